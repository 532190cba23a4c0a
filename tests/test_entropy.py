"""The integer boundary: exact on every device setting, in step with its own decoder, and loud when it is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import landscape

from ditic_stream.config import Q_MAX
from ditic_stream.entropy import ACTIVATION_MAX, LAYERS, EntropyModel, ExactLayer, interpolate
from ditic_stream.errors import DesyncError, WeightsError
from ditic_stream.models.config import LOG_SCALE_MIN, LOG_SCALE_STEP, PRESETS, SCALES
from ditic_stream.models.latent_codec import NEIGHBOURS, pass_of_cells, spread
from ditic_stream.models.network import Network
from ditic_stream.models.weights import Weights, load_weights
from ditic_stream.training.data import Crops
from ditic_stream.training.export import export
from ditic_stream.training.init import principal_start
from ditic_stream.training.start import start_from


@pytest.fixture(scope="module")
def with_context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a model that codes in four passes, with arbitrary weights where training would start at zero."""
    torch.manual_seed(0)
    picture = torch.from_numpy(landscape(320, 320, seed=1).transpose(2, 0, 1).copy())
    network = Network(replace(PRESETS["tiny"], context=24, overlap=8))
    principal_start(network, Crops([picture], 256, 0).batch(16))
    assert network.codec.near is not None and network.codec.context is not None
    with torch.no_grad():
        for layer in (network.codec.near.out, network.codec.context.out, network.codec.synthesis.out):
            layer.weight.normal_(0, 0.1)
        network.codec.near.share.uniform_(-0.2, 0.9)
    return export(network, [picture], tmp_path_factory.mktemp("weights") / "context.safetensors")


@pytest.fixture(scope="module", params=["one pass", "context"])
def weights(request: pytest.FixtureRequest, with_context: Path) -> Weights:
    return load_weights("tiny" if request.param == "one pass" else str(with_context))


@pytest.fixture(scope="module")
def model(weights: Weights) -> EntropyModel:
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


def test_symbols_are_equal_for_any_threads_layout_batch_and_precision(weights: Weights, model: EntropyModel) -> None:
    z, steps = _tile(model, 13, 22, groups=3)

    def made(other: EntropyModel = model, groups: slice = slice(None)) -> list[np.ndarray]:
        symbols, parts = other.quantise(z[groups], steps[groups], 5000)
        return [symbols, *(array for part in parts for array in part)]

    def same(other: list[np.ndarray]) -> bool:
        return all(np.array_equal(a, b) for a, b in zip(expected, other, strict=True))

    expected = made()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert same(made())
    finally:
        torch.set_num_threads(threads)
    singly = [made(groups=slice(i, i + 1))[0] for i in range(3)]
    assert np.array_equal(expected[0], np.concatenate(singly))
    with torch.autocast("cpu", torch.bfloat16):
        assert same(made())
    with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):  # type: ignore[arg-type, no-untyped-call]
        assert same(made())
    exact = EntropyModel(model.config, weights.tensors)
    for layer in exact.layers.values():
        layer.weight, layer.scale, layer.half = layer.weight.double(), layer.scale.double(), layer.half.double()
    x = torch.from_numpy(z).double()
    for name in LAYERS[:1]:
        fast = model.layers[name](x.float(), 5000, 0, ACTIVATION_MAX)
        assert torch.equal(fast.double(), exact.layers[name](x, 5000, 0, ACTIVATION_MAX))


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
    symbols, parts = model.quantise(z, steps, q)
    coded = latent.scales >= 7
    assert sum(len(part) for part, _ in parts) == z.size + int(coded.sum())
    assert not symbols[~coded].any()
    assert np.abs(latent.values[coded] - steps[coded]).max(initial=0) <= 8.0  # half a step is eight sixteenths


def test_passes_of_a_tile_cover_every_cell_and_see_only_what_is_known() -> None:
    for height, width in ((1, 1), (1, 7), (8, 5)):
        turn = pass_of_cells(height, width)
        assert turn.shape == (height, width) and set(turn.flatten().tolist()) <= {0, 1, 2}
        for step, offsets in enumerate(NEIGHBOURS):
            for row, col in (turn == step + 1).nonzero().tolist():
                for r, c in offsets:
                    if 0 <= row + r < height and 0 <= col + c < width:
                        assert turn[row + r, col + c] <= step


def test_integer_context_follows_the_float_one(with_context: Path) -> None:
    """Rounded to 8 bits, the networks still give nearly the means and widths they were trained to give."""
    weights = load_weights(str(with_context))
    model, network = EntropyModel(weights.config, weights.tensors), Network(weights.config)
    start_from(network, weights)
    picture = torch.from_numpy(landscape(320, 256, seed=4).transpose(2, 0, 1).copy())[None] / 255
    level = torch.tensor([4.0])
    with torch.no_grad():
        network.eval()
        features = network.encoder(picture)
        z = network.codec.hyper(features, level).round().clamp(-127, 127)
        ideal = network.codec(features, level)
        steps = (features * network.codec.gain(level) * 16).numpy()
    latent = model.pull(model.push(z.int().numpy(), steps, 6336), 1, 10, 8, 6336)
    widths = (LOG_SCALE_MIN + LOG_SCALE_STEP * torch.arange(SCALES)).exp()[torch.from_numpy(latent.scales).long()]
    gain = network.codec.gain(level)
    apart = ((ideal.spread * gain).log() - spread(widths).log()).abs()
    assert float((apart < LOG_SCALE_STEP).double().mean()) > 0.95
    away = (ideal.noisy * gain - torch.from_numpy(latent.values) / 16).abs()
    assert float((away < 1 / 4).double().mean()) > 0.95


def test_decoder_out_of_step_raises(model: EntropyModel) -> None:
    z, steps = _tile(model, 8, 8)
    coded = model.push(z, steps, 6000)
    with pytest.raises(DesyncError, match="checksum"):
        model.pull(replace(coded, symbols_crc=coded.symbols_crc ^ 1), 1, 8, 8, 6000)
    with pytest.raises(DesyncError):
        model.pull(coded, 1, 8, 8, 6112)


@pytest.mark.parametrize("name", ["out", "near_join", "context_out"])
def test_device_that_computes_otherwise_is_refused(with_context: Path, name: str) -> None:
    weights = load_weights(str(with_context))
    tensors = dict(weights.tensors)
    tensors[f"entropy.{name}.weight"] = tensors[f"entropy.{name}.weight"].clone()
    tensors[f"entropy.{name}.weight"][:, 0] += 1
    with pytest.raises(DesyncError, match="promise"):
        EntropyModel(weights.config, tensors)


def test_interpolation_meets_the_nodes() -> None:
    nodes = torch.tensor([[-5, 10], [7, 20], [100, -30]])
    assert interpolate(nodes, 0).tolist() == [-5, 10]
    assert interpolate(nodes, 1584).tolist() == [7, 20]
    assert interpolate(nodes, 3168).tolist() == [100, -30]
    assert interpolate(nodes, 792).tolist() == [1, 15]


def test_whole_sixteenths_of_a_level_are_what_formats_1_and_2_had() -> None:
    nodes = torch.randint(-(2**20), 2**20, (8, 500), generator=torch.Generator().manual_seed(0))
    for q in range(113):
        level = min(q // 16, 6)
        part = q - 16 * level
        earlier = (nodes[level] * (16 - part) + nodes[level + 1] * part + 8) >> 4
        assert torch.equal(interpolate(nodes, 99 * q), earlier)


def test_requantiser_rounds_half_up() -> None:
    layer = ExactLayer(torch.tensor([[[[1]]]]), torch.zeros(1, 1, dtype=torch.int32), torch.tensor([2]), 127)
    x = torch.tensor([-6.0, -2.0, 1.0, 2.0, 6.0]).reshape(1, 1, 1, 5)
    assert layer(x, 0, -127, 127).flatten().tolist() == [-1, 0, 0, 1, 2]


def test_several_tiles_at_once_are_those_of_each_alone(model: EntropyModel) -> None:
    coded = []
    for seed, gain in enumerate((1, 30, 0.01, 4)):
        z, steps = _tile(model, 9, 14, groups=2, seed=seed)
        coded.append(model.push(z, steps * np.float32(gain), 3700))
    together = model.pull_many(coded, 2, 9, 14, 3700)
    for one, latent in zip(coded, together, strict=True):
        alone = model.pull(one, 2, 9, 14, 3700)
        assert (latent.values == alone.values).all() and (latent.scales == alone.scales).all()
    with pytest.raises(DesyncError, match="checksum"):
        model.pull_many([*coded, replace(coded[0], symbols_crc=coded[0].symbols_crc ^ 1)], 2, 9, 14, 3700)


def test_the_leading_channels_alone_are_those_of_the_whole_and_know_when_words_end(model: EntropyModel) -> None:
    coded = [model.push(*_tile(model, 9, 14, groups=2, seed=seed), 3700) for seed in range(3)]
    lead = model.pull_many(coded, 2, 9, 14, 3700, coarse=True)
    for one, latent in zip(coded, lead, strict=True):
        whole = model.pull(one, 2, 9, 14, 3700).values
        assert (latent.values == whole[:, : model.config.context or model.config.latent]).all()
    short = replace(coded[1], words=coded[1].words[: len(coded[1].words) // 8 // 2 * 2])
    for many in ([short], [coded[0], short]):
        with pytest.raises(DesyncError, match="do not decode"):
            model.pull_many(many, 2, 9, 14, 3700, coarse=True)
