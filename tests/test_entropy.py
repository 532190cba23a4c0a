"""The integer boundary: exact on every device setting, in step with its own decoder, and loud when it is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ditic_stream.config import Q_MAX
from ditic_stream.entropy import ACTIVATION_MAX, LAYERS, EntropyModel, ExactLayer, interpolate
from ditic_stream.errors import DesyncError, WeightsError
from ditic_stream.models.weights import load_weights


@pytest.fixture(scope="module")
def model() -> EntropyModel:
    weights = load_weights("tiny")
    return EntropyModel(weights.config, weights.tensors)


def _tile(
    model: EntropyModel, height: int, width: int, groups: int = 1, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    z = random.integers(-20, 21, (groups, model.config.hyper_z, -(-height // 2), -(-width // 2)), dtype=np.int32)
    steps = (random.standard_normal((groups, model.config.latent, height, width)) * 40).astype(np.float32)
    return z, steps


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_every_sum_stays_where_float32_is_exact(name: str) -> None:
    weights = load_weights(name)
    EntropyModel(weights.config, weights.tensors)  # checks the bound
    broken = dict(weights.tensors)
    broken["entropy.conv2.bias"] = broken["entropy.conv2.bias"] + 2**24
    with pytest.raises(WeightsError, match="beyond 16777216"):
        EntropyModel(weights.config, broken)


def test_parameters_are_equal_for_any_threads_layout_batch_and_precision(model: EntropyModel) -> None:
    z, _ = _tile(model, 13, 22, groups=3)
    expected = model.parameters(z, 50, 13, 22)

    def same(other: tuple[np.ndarray, np.ndarray]) -> bool:
        return all(np.array_equal(a, b) for a, b in zip(expected, other, strict=True))

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert same(model.parameters(z, 50, 13, 22))
    finally:
        torch.set_num_threads(threads)
    singly = [model.parameters(z[i : i + 1], 50, 13, 22) for i in range(3)]
    assert same((np.concatenate([s[0] for s in singly]), np.concatenate([s[1] for s in singly])))
    with torch.autocast("cpu", torch.bfloat16):
        assert same(model.parameters(z, 50, 13, 22))
    with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):  # type: ignore[arg-type, no-untyped-call]
        assert same(model.parameters(z, 50, 13, 22))
    exact = EntropyModel(model.config, load_weights("tiny").tensors)
    for layer in exact.layers.values():
        layer.weight, layer.shift, layer.half = layer.weight.double(), layer.shift.double(), layer.half.double()
    x = torch.from_numpy(z).double()
    for name in LAYERS[:1]:
        fast = model.layers[name](x.float(), 50, 0, ACTIVATION_MAX)
        assert torch.equal(fast.double(), exact.layers[name](x, 50, 0, ACTIVATION_MAX))


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    groups=st.integers(1, 2),
    q=st.integers(0, Q_MAX),
    seed=st.integers(0, 99),
)
def test_symbols_survive_for_any_size_and_rate(
    model: EntropyModel, height: int, width: int, groups: int, q: int, seed: int
) -> None:
    z, steps = _tile(model, height, width, groups, seed)
    latent = model.pull(model.push(z, steps, q), groups, height, width, q)
    mean, index = model.parameters(z, q, height, width)
    assert np.array_equal(latent.scales, index)
    coded = index >= 7
    assert np.array_equal(latent.values[~coded], mean[~coded])
    assert np.abs(latent.values[coded] - steps[coded]).max(initial=0) <= 8.0  # half a step is eight sixteenths


def test_decoder_out_of_step_raises(model: EntropyModel) -> None:
    z, steps = _tile(model, 8, 8)
    coded = model.push(z, steps, 60)
    with pytest.raises(DesyncError, match="checksum"):
        model.pull(replace(coded, symbols_crc=coded.symbols_crc ^ 1), 1, 8, 8, 60)
    with pytest.raises(DesyncError):
        model.pull(coded, 1, 8, 8, 61)


def test_device_that_computes_otherwise_is_refused() -> None:
    weights = load_weights("tiny")
    tensors = dict(weights.tensors)
    tensors["entropy.out.weight"] = tensors["entropy.out.weight"].clone()
    tensors["entropy.out.weight"][:, 0] += 1
    with pytest.raises(DesyncError, match="promise"):
        EntropyModel(weights.config, tensors)


def test_interpolation_meets_the_nodes() -> None:
    nodes = torch.tensor([[-5, 10], [7, 20], [100, -30]])
    assert interpolate(nodes, 0).tolist() == [-5, 10]
    assert interpolate(nodes, 16).tolist() == [7, 20]
    assert interpolate(nodes, 32).tolist() == [100, -30]
    assert interpolate(nodes, 8).tolist() == [1, 15]


def test_requantiser_rounds_half_up() -> None:
    layer = ExactLayer(torch.tensor([[[[1]]]]), torch.zeros(1, 1, dtype=torch.int32), torch.tensor([2]), 127)
    x = torch.tensor([-6.0, -2.0, 1.0, 2.0, 6.0]).reshape(1, 1, 1, 5)
    assert layer(x, 0, -127, 127).flatten().tolist() == [-1, 0, 0, 1, 2]
