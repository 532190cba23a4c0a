"""The parts of ditic-0.6b by themselves: scheduler, padding, passes, tables, names, sizes.  No golden file needed."""

from __future__ import annotations

import builtins
import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ditic_stream.errors import ConfigError, WeightsError
from ditic_stream.models.paper import backbones, entropy, layout, network, one_step, seeded
from ditic_stream.models.paper.blocks import DepthConv, FoldedWSiLU, WSiLU
from ditic_stream.models.paper.condition import Projector
from ditic_stream.models.paper.config import OFFICIAL, PaperConfig
from ditic_stream.models.paper.latent_codec import LatentCodec

REFERENCE = Path(os.environ.get("DITIC_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "reference"


def test_sigma_is_that_of_the_last_training_time_under_shift_three() -> None:
    assert abs(one_step.SIGMA - 0.99966644) < 5e-9
    assert one_step.first_sigma(shift=1.0) == 0.999
    assert one_step.TIMESTEP == 999


def test_gain_grows_with_the_spread_between_its_bounds() -> None:
    log_variance = torch.tensor([-1e9, -30.0, 0.0, 2 * np.log(3.9), 20.0, 1e9])
    found = one_step.gain(log_variance)
    assert found[0] == found[1] == pytest.approx(0.4)
    assert float(found[2]) == pytest.approx(0.55) and float(found[3]) == pytest.approx(0.985)
    assert found[4] == found[5] == 1


def test_step_without_velocity_adds_the_correction_alone() -> None:
    noisy, zero = torch.randn(1, 32, 2, 2), torch.zeros(1, 32, 2, 2)
    assert torch.equal(one_step.step(noisy, zero, zero, zero + 0.25), noisy + 0.25)
    moved = one_step.step(noisy, zero + 1, zero, zero)
    torch.testing.assert_close(noisy - moved, zero + 0.55 * one_step.SIGMA)


@pytest.mark.parametrize("size", [(256, 256), (257, 300), (300, 420), (512, 255), (1, 1), (1, 300), (60, 600), (2, 3)])
def test_padding_makes_multiples_of_256_and_cropping_undoes_it(size: tuple[int, int]) -> None:
    x = torch.arange(2.0 * 3 * size[0] * size[1]).reshape(2, 3, *size)
    padded = network.pad(x)
    assert all(side % 256 == 0 and side - given < 256 for side, given in zip(padded.shape[2:], size, strict=True))
    assert torch.equal(network.crop(padded, *size), x)


def test_padding_reflects_without_repeating_the_edge_and_both_ways_agree() -> None:
    x = torch.rand(1, 3, 200, 300)
    padded = network.pad(x)
    assert torch.equal(padded[0, :, 200, 299], x[0, :, 198, 299])
    assert torch.equal(padded[0, :, 255, 511], x[0, :, 143, 87])
    rows = network._reflected(200, 256)
    assert torch.equal(padded, x[:, :, rows][:, :, :, network._reflected(300, 512)])
    assert network._reflected(3, 9).tolist() == [0, 1, 2, 1, 0, 1, 2, 1, 0]


def test_no_pixels_are_refused() -> None:
    with pytest.raises(ConfigError, match="no pixels"):
        network.pad(torch.zeros(1, 3, 0, 5))


def test_network_units_run_from_minus_one_to_one() -> None:
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 1, 1, 3)
    torch.testing.assert_close(network.to_network_units(pixels).flatten(), torch.tensor([-1.0, -0.6, 1.0]))


def test_every_element_is_sent_in_exactly_one_pass() -> None:
    masks = entropy.cell_masks(4, 6)
    assert masks.shape == (4, 320, 4, 6) and torch.equal(masks.sum(0), torch.ones(320, 4, 6, dtype=torch.int64))


def test_within_a_pass_the_groups_share_no_position() -> None:
    for mask, positions in zip(entropy.cell_masks(2, 2), entropy.POSITIONS, strict=True):
        groups = mask.unflatten(0, (4, 80))[:, 0].flatten(1)
        assert groups.int().argmax(1).tolist() == list(positions)
        assert torch.equal(groups.sum(0), torch.ones(4, dtype=torch.int64))


def test_planes_scatter_back_to_where_they_were_gathered() -> None:
    x = torch.randn(2, 320, 4, 6)
    masks = entropy.cell_masks(4, 6)
    planes = [entropy.gather_plane(x, mask) for mask in masks]
    assert planes[0].shape == (2, 80, 4, 6)
    assert torch.equal(sum(map(entropy.scatter_plane, planes, masks), torch.zeros_like(x)), x)


def test_table_index_is_the_narrowest_width_that_holds_the_scale() -> None:
    table = entropy.scale_table()
    assert table.dtype == np.float32 and len(table) == 64 and (np.diff(table) > 0).all()
    assert table[[0, -1]].tolist() == pytest.approx([0.11, 256])
    exact = torch.from_numpy(table)
    assert entropy.table_indexes(exact).tolist() == list(range(64))
    assert entropy.table_indexes(exact * 1.001).tolist() == [*range(1, 64), 63]
    assert entropy.table_indexes(torch.tensor([-5.0, 0.0, 1e-9, 1e9])).tolist() == [0, 0, 0, 63]


@pytest.fixture(scope="module")
def codec() -> LatentCodec:
    """The latent codec with seeded weights."""
    shapes = {k: v for k, v in layout.official().items() if k.startswith("codec.") and layout.used(k)}
    with torch.device("meta"):
        codec = LatentCodec()
    tensors = {k.removeprefix("codec."): v for k, v in seeded.draw(shapes, 7)}
    codec.load_state_dict(tensors, assign=True)
    return codec.eval().requires_grad_(False)


def test_replayed_symbols_give_the_encoders_latent(codec: LatentCodec) -> None:
    random = torch.Generator().manual_seed(8)
    y = 3 * torch.randn(2, 320, 4, 4, generator=random)
    z_hat = codec.entropy_bottleneck.values(codec.entropy_bottleneck.symbols(codec.h_a(y)))
    rounding = entropy.Rounding(y)
    sent = entropy.run_passes(codec, z_hat, rounding)
    read = entropy.run_passes(codec, z_hat, entropy.Replay(rounding.symbols()))
    assert torch.equal(sent.latent, read.latent) and torch.equal(sent.scales, read.scales)
    assert rounding.symbols().shape == rounding.indexes().shape == (2, 320 * 16)
    assert rounding.symbols().abs().max() > 0
    # Rounding is at most half a step off, and the refinement adds at most half a step.
    assert float((sent.latent - y).abs().max()) <= 1 + 1e-4


def test_a_pass_is_sent_under_what_the_passes_before_it_gave(codec: LatentCodec) -> None:
    y = torch.zeros(1, 320, 4, 4)
    z_hat = torch.zeros(1, 160, 1, 1)
    planes: dict[int, list[entropy.Plane]] = {0: [], 1: []}

    def code(plane: entropy.Plane, shift: int) -> torch.Tensor:
        planes[shift].append(plane)
        return torch.full_like(plane.mean, shift)

    for shift in planes:
        entropy.run_passes(codec, z_hat, lambda plane, shift=shift: code(plane, shift))  # type: ignore[misc]
    same = [torch.equal(a.mean, b.mean) for a, b in zip(planes[0], planes[1], strict=True)]
    assert same == [True, False, False, False] and y.sum() == 0


def test_blocks_do_what_their_docstrings_say() -> None:
    x = torch.linspace(-3, 3, 8).reshape(1, 4, 1, 2)
    torch.testing.assert_close(WSiLU()(x), torch.nn.functional.silu(4 * x) / 4)
    folded = FoldedWSiLU()(x)
    torch.testing.assert_close(folded, WSiLU()(x[:, :2]) + WSiLU()(x[:, 2:]))
    torch.manual_seed(0)
    plain, outer = DepthConv(4), DepthConv(4, shortcut=True)
    outer.load_state_dict(plain.state_dict())
    torch.testing.assert_close(outer(x), plain(x) + x)
    assert DepthConv(4, 6)(x).shape == (1, 6, 1, 2)


def test_projector_pools_rows_first_and_appends_the_learned_tokens() -> None:
    torch.manual_seed(1)
    projector = Projector(64)
    prompt = torch.randn(2, 320, 6, 8)
    tokens = projector(prompt)
    assert tokens.shape == (2, 77, 64)
    cell = prompt[1, :, 2, 3]  # with 48 cells each is a token of its own
    torch.testing.assert_close(tokens[1, 2 * 8 + 3], projector.align(cell))
    torch.testing.assert_close(tokens[0, 48:], projector.align(projector.pattern[0]))
    assert projector(torch.randn(1, 320, 2, 3)).shape == (1, 77, 64)  # fewer cells than tokens


def test_official_names_and_shapes_are_those_of_the_released_files() -> None:
    path = REFERENCE / "official-checkpoint-keys.json"
    if not path.is_file():
        pytest.skip(f"no list of the released tensors at {path}; name the folder above it by DITIC_SHARED")
    wanted = {name: tuple(shape) for name, (shape, _) in json.loads(path.read_text())["tensors"].items()}
    assert layout.official() == wanted


def test_the_networks_have_the_official_tensors() -> None:
    pytest.importorskip("diffusers", reason="the extra `paper` is not installed")
    with torch.device("meta"):
        built = network.PaperNetwork(OFFICIAL)
    assert layout.whole({k: tuple(v.shape) for k, v in built.state_dict().items()}) == layout.official()


def test_every_second_name_has_a_first() -> None:
    seconds = [name for name in layout.official() if layout.alias_of(name)]
    assert len(seconds) == 4 + 4 * 4
    for name in seconds:
        first = layout.alias_of(name)
        assert first is not None and layout.second_name_of(first) == name and layout.used(first)
        assert layout.official()[first] == layout.official()[name]


def test_seeded_tensors_depend_on_name_shape_and_seed_alone() -> None:
    name, shape = "codec.g_a.pre1.0.weight", (4, 3, 3, 3)
    one = seeded.seeded_tensor(name, shape, 3)
    assert torch.equal(one, seeded.seeded({"other": (5,), name: shape}, 3)[name])
    assert not torch.equal(one, seeded.seeded_tensor(name, shape, 4))
    assert not torch.equal(one, seeded.seeded_tensor("codec.g_a.pre1.1.weight", shape, 3))
    # By hand: CRC-32 of the name, plus the seed in the upper half.
    import zlib

    random = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()) + (3 << 32)))
    by_hand = random.standard_normal(shape, dtype=np.float32) * 0.5 / np.sqrt(27)
    np.testing.assert_allclose(one.numpy(), by_hand, rtol=1e-6)


def small() -> PaperConfig:
    """Backbones of a few thousand parameters."""
    widths, kinds = [8, 8, 16, 16, 16, 32], ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3
    scales: list[list[int]] = [[], [], [], [5], [5], [5]]
    vae: dict[str, Any] = {**OFFICIAL.vae, "attention_head_dim": 8}
    for side in ("encoder", "decoder"):
        vae |= {f"{side}_block_types": kinds, f"{side}_block_out_channels": widths}
        vae |= {f"{side}_layers_per_block": [1] * 6, f"{side}_qkv_multiscales": scales}
    transformer = {
        **OFFICIAL.transformer, "attention_head_dim": 8, "num_attention_heads": 2, "cross_attention_dim": 16,
        "cross_attention_head_dim": 8, "num_cross_attention_heads": 2, "num_layers": 1, "caption_channels": 24,
    }  # fmt: skip
    return PaperConfig.of(vae, transformer)


@torch.no_grad()
def test_the_whole_runs_at_another_size_and_refuses_what_does_not_fit() -> None:
    pytest.importorskip("diffusers", reason="the extra `paper` is not installed")
    config = small()
    tensors = seeded.seeded(network.shapes_of(config), 2)
    built = network.PaperNetwork.of(config, tensors)
    encoded = built.encode(network.pad(torch.rand(1, 3, 100, 300) * 2 - 1))
    prior = built.codec.entropy_bottleneck
    decoded = entropy.run_passes(built.codec, prior.values(prior.symbols(encoded.z)), entropy.Rounding(encoded.y))
    denoised = built.denoise(built.heads(decoded))
    assert denoised.tokens.shape == (1, 77, 24) and denoised.latent.shape == (1, 32, 8, 16)
    pixels = network.crop(built.decode(denoised.latent), 100, 300)
    assert pixels.shape == (1, 3, 100, 300) and float(pixels.abs().max()) <= 1 and pixels.isfinite().all()
    with pytest.raises(ConfigError, match="no multiples of 256"):
        built.encode(torch.zeros(1, 3, 128, 256))
    del tensors["prompter.pattern"]
    with pytest.raises(WeightsError, match=r"1 tensors .*prompter\.pattern"):
        network.PaperNetwork.of(config, tensors)


def test_configurations_that_cannot_be_are_refused(tmp_path: Path) -> None:
    assert PaperConfig.from_json(json.loads(OFFICIAL.to_json())) == OFFICIAL
    assert hash(OFFICIAL) and OFFICIAL.scaling == 0.41407 and OFFICIAL.caption == 2304
    for part, change in itertools.product(("vae", "transformer"), [{}, None, 3]):
        data: Any = {"vae": OFFICIAL.vae, "transformer": OFFICIAL.transformer, part: change}
        with pytest.raises(ConfigError):
            PaperConfig.from_json(data)
    for name, value in [("patch_size", 2), ("in_channels", 16), ("caption_channels", 0)]:
        with pytest.raises(ConfigError, match=name):
            PaperConfig.of(OFFICIAL.vae, {**OFFICIAL.transformer, name: value})
    path = tmp_path / "config.json"
    with pytest.raises(ConfigError, match="cannot be read"):
        PaperConfig.load(path)
    path.write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        PaperConfig.load(path)


def test_a_setting_the_backbone_does_not_know_is_refused() -> None:
    pytest.importorskip("diffusers", reason="the extra `paper` is not installed")
    config = PaperConfig.of(OFFICIAL.vae, {**OFFICIAL.transformer, "colour": "blue"})
    with pytest.raises(ConfigError, match=r"SanaTransformer2DModel.*colour"), torch.device("meta"):
        backbones.transformer(config)


def test_without_diffusers_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "diffusers":
            raise ImportError("No module named 'diffusers'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match=r"^ditic-0.6b needs diffusers.*pip install 'ditic-stream\[paper\]'"):
        backbones.autoencoder(OFFICIAL)
