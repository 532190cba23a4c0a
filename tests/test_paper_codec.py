"""ditic-0.6b in the pipeline: fixed-point networks that no machine can bend, archives, regions, licences."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import landscape, write_scene

import ditic_stream
from ditic_stream import _paper_entropy, codec
from ditic_stream._layout import Layout
from ditic_stream._paper_codec import PaperCodec
from ditic_stream._paper_entropy import PaperEntropy
from ditic_stream.archive import open_archive
from ditic_stream.config import GridConfig
from ditic_stream.entropy import Coded
from ditic_stream.errors import ConfigError, DesyncError, FormatError, WeightsError
from ditic_stream.executors import OverlapExecutor
from ditic_stream.geometry import TileKey, Window
from ditic_stream.models import folder
from ditic_stream.models.paper import checkpoint, entropy, fixed, recipe
from ditic_stream.models.paper.compiled import Compiled
from ditic_stream.models.paper.entropy import Decoded
from ditic_stream.models.paper.network import PaperNetwork
from ditic_stream.rans import encode
from ditic_stream.regions import open_scene
from ditic_stream.summary import lines, summary

pytestmark = pytest.mark.usefixtures("models")
NAME = "ditic-0.6b:q3"


@pytest.fixture(scope="module")
def opened(models: Path) -> checkpoint.Checkpoint:
    return checkpoint.load(NAME)


@pytest.fixture(scope="module")
def paper(models: Path) -> PaperCodec:
    found = codec.load_codec(NAME)
    assert isinstance(found, PaperCodec)
    return found


@pytest.fixture(scope="module")
def network(opened: checkpoint.Checkpoint) -> PaperNetwork:
    """The same weights as the paper has them: in floating point, nothing split."""
    return PaperNetwork.of(opened.config, opened.tensors)


@pytest.fixture(scope="module")
def archive(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene of 300 x 250 pixels in two ragged tiles."""
    root = tmp_path_factory.mktemp("scene")
    write_scene(root / "scene.tif", landscape(300, 250))
    with pytest.raises(ConfigError, match=r"not under a free licence.*--accept-licence"):
        ditic_stream.compress(root / "scene.tif", root / "scene.ditic", model=NAME, tile=256)
    ditic_stream.compress(root / "scene.tif", root / "scene.ditic", model=NAME, tile=256, accept_licence=True)
    return root / "scene.ditic"


def _pixels(height: int, width: int) -> np.ndarray:
    return np.ascontiguousarray(landscape(height, width).transpose(2, 0, 1)[None], np.float32) / np.float32(255)


def _coded(record: Any) -> Coded:
    return Coded(record.lanes_log2, record.words, record.escapes, record.coded, record.symbols_crc)


# Fixed point


@pytest.mark.parametrize("shape", [(6, 5, 3, 3), (6, 5, 1, 1), (5, 1, 3, 3)], ids=["3x3", "1x1", "depthwise"])
def test_convolution_gives_the_sums_that_integers_give(shape: tuple[int, ...]) -> None:
    random = torch.Generator().manual_seed(3)
    x = torch.randint(-32768, 32768, (1, 5, 4, 6), generator=random)
    weight = torch.randint(-2047, 2048, shape, generator=random)
    groups = 5 if shape[1] == 1 else 1
    padded = torch.nn.functional.pad(x, (shape[3] // 2,) * 4)
    expected = torch.zeros(1, shape[0], 4, 6, dtype=torch.int64)
    for out in range(shape[0]):
        for into in range(shape[1]):
            for row in range(shape[2]):
                for col in range(shape[3]):
                    seen = padded[:, out if groups > 1 else into, row : row + 4, col : col + 6]
                    expected[:, out] += weight[out, into, row, col] * seen
    assert torch.equal(fixed.convolve(x.double(), weight.to(torch.int16)), expected.double())


@pytest.mark.slow
def test_integers_made_with_other_threads_are_the_stored_ones(opened: checkpoint.Checkpoint) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3 - min(before, 2))
    try:
        again = recipe.build(opened.tensors, opened.z, opened.y, opened.scales)
    finally:
        torch.set_num_threads(before)
    assert again.keys() == opened.fixed.keys()
    assert all(torch.equal(tensor, opened.fixed[name]) for name, tensor in again.items())


def test_symbols_and_values_do_not_depend_on_threads(paper: PaperCodec) -> None:
    random = np.random.default_rng(4)
    z, y = random.integers(-3, 4, (160, 1, 1)).astype(np.int32), random.normal(0, 2, (320, 4, 4)).astype(np.float32)
    before, found = torch.get_num_threads(), []
    coded = paper.entropy.push([z], [y])
    for threads in (1, 2):
        torch.set_num_threads(threads)
        latent = paper.entropy.pull(coded, 1, 4, 4)
        found.append((latent.values.tobytes(), latent.scales.tobytes()))
    torch.set_num_threads(before)
    assert found[0] == found[1]
    assert np.abs(latent.values[0] / 64 - y).max() < 1.02  # half a step of rounding, and the refinement's half


def test_fixed_point_costs_no_rate_to_speak_of(paper: PaperCodec, network: PaperNetwork) -> None:
    picture = torch.from_numpy(_pixels(256, 256)) * 2 - 1
    with torch.inference_mode():
        y = network.analyse(picture)[2]
        z = network.codec.entropy_bottleneck.symbols(network.codec.h_a(y))
        rounding = entropy.Rounding(y)
        latent = entropy.run_passes(network.codec, network.codec.entropy_bottleneck.values(z), rounding).latent
    indexes = [rounding.indexes().numpy().ravel(), 64 + np.arange(160).repeat(z[0, 0].numel())]
    parts = list(zip([rounding.symbols().numpy().ravel(), z.numpy().ravel()], indexes, strict=True))
    coded = paper.entropy.push([z[0].numpy()], [y[0].numpy()])
    in_float = sum(map(len, encode(parts, paper.entropy.tables, 1 << coded.lanes_log2)))
    assert len(coded.words) + len(coded.escapes) < 1.003 * in_float + 8
    # Means move a little, so that y is rounded about other points; how far it is off stays the same.
    here = paper.entropy.pull(coded, 1, 4, 4).values[0] / 64
    errors = [float(np.std(one - y[0].numpy())) for one in (latent[0].numpy(), here)]
    assert errors[1] == pytest.approx(errors[0], rel=0.01)


@pytest.mark.parametrize("groups", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_tiles_decoded_together_are_those_decoded_alone_and_so_are_groups(
    groups: int, paper: PaperCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    random, coded = np.random.default_rng(8), []
    for spread in (0.1, 20.0):  # of no symbols to speak of, and beyond what tables hold
        z = [random.integers(-3, 4, (160, 1, 1)).astype(np.int32) for _ in range(groups)]
        y = [random.normal(0, spread, (320, 4, 4)).astype(np.float32) for _ in range(groups)]
        coded.append(paper.entropy.push(z, y))
    together = paper.entropy.pull_many(coded, groups, 4, 4)
    monkeypatch.setattr(_paper_entropy, "CELLS_TOGETHER", 16)  # tile by tile, group by group
    assert groups == 1 or paper.entropy.push(z, y) == coded[-1]
    alone = paper.entropy.pull_many(coded, groups, 4, 4)
    for one, other in zip(together, alone, strict=True):
        assert np.array_equal(one.values, other.values) and np.array_equal(one.scales, other.scales)
    with pytest.raises(DesyncError, match="are due where the record says"):
        paper.entropy.pull_many([coded[0], replace(coded[1], coded=1)], groups, 4, 4)


def test_a_device_that_computes_otherwise_is_refused(opened: checkpoint.Checkpoint) -> None:
    bias, weight = "fixed.h_s.increase.0.up.conv.0.bias", "fixed.g_c.block.3.weight"
    bent = {**opened.fixed, bias: opened.fixed[bias] + 2**20}
    with pytest.raises(DesyncError, match="where the weights promise"):
        PaperEntropy(bent, opened.z, opened.y)
    bent = {**opened.fixed, weight: opened.fixed[weight] * 0 + 2048}
    with pytest.raises(WeightsError, match="not of 12-bit integers"):
        PaperEntropy(bent, opened.z, opened.y)


def test_records_of_other_symbols_raise(paper: PaperCodec) -> None:
    z, y = np.zeros((160, 1, 1), np.int32), np.full((320, 4, 4), 3.0, np.float32)
    coded = paper.entropy.push([z], [y])
    for wrong in (
        Coded(coded.lanes_log2, coded.words, coded.escapes, coded.coded, coded.symbols_crc ^ 1),
        Coded(coded.lanes_log2, coded.words, coded.escapes, coded.coded - 1, coded.symbols_crc),
        Coded(coded.lanes_log2, coded.words[:-40], coded.escapes, coded.coded, coded.symbols_crc),
    ):
        with pytest.raises(DesyncError):
            paper.entropy.pull(wrong, 1, 4, 4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_symbols_of_a_gpu_are_those_of_a_cpu(opened: checkpoint.Checkpoint, paper: PaperCodec) -> None:
    there = PaperCodec(paper.info, opened, "cuda", torch.bfloat16)
    coded = there.encode(_pixels(256, 512), (slice(0, 256), slice(0, 512)), 5488)
    latents = [one.entropy.pull(coded, 1, 4, 8) for one in (paper, there)]
    assert np.array_equal(latents[0].values, latents[1].values)
    assert np.array_equal(latents[0].scales, latents[1].scales)


# The codec


def test_rendering_is_the_networks_own_decoder(paper: PaperCodec, network: PaperNetwork) -> None:
    random = np.random.default_rng(5)
    values, scales = (random.integers(-200, 200, (1, 320, 4, 8)).astype(np.int16) for _ in range(2))
    with torch.inference_mode():
        y, spread = torch.from_numpy(values).float() / 64, torch.from_numpy(scales).float() / 128
        expected = network.decode(network.denoise(network.heads(Decoded(y, spread))).latent)
    found = paper.render(values, scales, 5488, (0, 0)) * 2 - 1
    np.testing.assert_allclose(found.clip(-1, 1), expected.numpy(), atol=2e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)])
def test_half_precision_shows_the_same_picture(
    opened: checkpoint.Checkpoint, paper: PaperCodec, dtype: torch.dtype
) -> None:
    half = PaperCodec(paper.info, opened, dtype=dtype)
    assert {half.network.DiT.dtype, half.network.vae.dtype} == {dtype}
    assert half.network.codec.g_s.synthesis_transform[4].weight.dtype == torch.float32
    random = np.random.default_rng(6)
    values, scales = (random.integers(-200, 200, (1, 320, 4, 4)).astype(np.int16) for _ in range(2))
    whole, found = (one.render(values, scales, 5488, (0, 0)) for one in (paper, half))
    # 8 bits of bfloat16's mantissa, through some 40 layers; float16 has 11.
    assert np.square(whole - found).mean() < (1e-4 if dtype == torch.bfloat16 else 1e-5)


def test_small_cores_of_any_size_are_padded_to_256(paper: PaperCodec) -> None:
    coded = paper.encode(np.concatenate([_pixels(1, 70)] * 2), (slice(0, 1), slice(64, 70)), 5488)
    assert coded.coded == 2 * (160 + 320 * 16)
    with pytest.raises(ConfigError, match="no multiples of 4"):
        paper.entropy.pull(coded, 2, 1, 4)


# Archives


def test_region_is_the_crop_of_the_whole(archive: Path, tmp_path: Path) -> None:
    ditic_stream.decompress(archive, tmp_path / "whole.npy")
    whole = np.load(tmp_path / "whole.npy")
    assert whole.shape == (300, 250, 3) and whole.dtype == np.uint8 and whole.std() > 1
    with open_scene(archive) as scene:
        part = scene.read(Window(row=180, col=100, height=20, width=100)).transpose(1, 2, 0)
    assert np.array_equal(part, whole[180:200, 100:200])
    with OverlapExecutor() as executor:  # as on a GPU: symbols of one tile while a window renders
        ditic_stream.decompress(archive, tmp_path / "two.npy", executor=executor)
    assert np.array_equal(np.load(tmp_path / "two.npy"), whole)


@pytest.mark.parametrize("works", [True, False], ids=["compiled", "no compiler"])
def test_compiled_graphs_show_the_same_picture_and_where_they_fail_the_networks_do(
    works: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen = []

    def compile_(plain: Any, **_: Any) -> Any:
        def fast(x: torch.Tensor) -> torch.Tensor:
            seen.append(tuple(x.shape))
            if not works:
                raise RuntimeError("no compiler here\nsee its manual")
            return plain(x)

        return fast

    monkeypatch.setattr(torch, "compile", compile_)
    found, x = Compiled(torch.square), torch.ones(2)
    assert torch.equal(found(x), x) and torch.equal(found(x), x)
    assert len(seen) == (2 if works else 1)
    assert [record.getMessage() for record in caplog.records] == (
        [] if works else ["torch.compile fails here (RuntimeError: no compiler here); ditic-0.6b goes on without it"]
    )


def test_every_shape_is_compiled_once_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []

    def note(graph: Any, inputs: list[Any]) -> Any:
        shapes.append(tuple(inputs[0].shape))
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=note))  # graphs alone: no compiler is needed
    found = Compiled(lambda x: x.square() + 1)
    for _ in range(2):
        for side in range(2, 14):  # a ragged scene has nine sizes of windows, and torch stops at eight
            found(torch.ones(side, 3))
    assert shapes == [(side, 3) for side in range(2, 14)]


def test_records_decode_alone_and_say_their_licence(archive: Path, paper: PaperCodec) -> None:
    with open_archive(archive) as found:
        manifest = found.manifest
        assert manifest.model.name == NAME and manifest.model.licence == "not stated by the authors"
        assert set(manifest.model.config) == {"vae", "transformer"}
        assert manifest.model.weights == paper.info.weights == folder.find(NAME)[1].sha256  # type: ignore[index]
        assert any("not stated by the authors" in line for line in lines(summary(found)))
        core = found.grid.latent_core(TileKey(1, 0))
        assert core.shape == (4, 4), "44 x 250 pixels, padded to 256 x 256"
        latent = paper.entropy.pull(_coded(found.record(TileKey(1, 0))), 1, *core.shape)
        assert latent.values.shape == (1, 320, 4, 4)
        with pytest.raises(FormatError, match="overlap 32 px is not a multiple of 64"):
            Layout(replace(manifest, grid=GridConfig(tile=256, overlap=32)))


def test_weights_are_found_by_their_hash_and_no_others_taken(
    archive: Path, models: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sha256 = folder.find(NAME)[1].sha256  # type: ignore[index]
    monkeypatch.setenv(folder.VARIABLE, str(tmp_path))
    with pytest.raises(WeightsError, match=f"needs weights {sha256[:16]}.*models import"):
        folder.at_hand(NAME, sha256)
    place = folder.place_of("ditic-0.6b:mine")
    place.parent.mkdir(parents=True)
    place.symlink_to(models / "ditic-0.6b" / "q3.safetensors")
    record = (models / "ditic-0.6b" / "q3.json").read_text().replace(NAME, "ditic-0.6b:mine")
    place.with_suffix(".json").write_text(record)
    assert folder.at_hand(NAME, sha256) == "ditic-0.6b:mine"
    with open_archive(archive) as found:
        assert found.manifest.model.weights == sha256


def test_settings_that_do_not_fit_are_refused(archive: Path, tmp_path: Path) -> None:
    scene = archive.with_name("scene.tif")
    for settings, message in (
        ({"quality": 60}, "has one rate"),
        ({"bpp": 0.1}, "has one rate"),
        ({"overlap": 32}, "overlap 32 px is not a multiple of 64"),
        ({"model": "ditic-0.6b:q9"}, "no weights are named 'ditic-0.6b:q9'"),
    ):
        with pytest.raises(ConfigError, match=message):
            ditic_stream.compress(scene, tmp_path / "out.ditic", **{"model": NAME, "tile": 256, **settings})  # type: ignore[arg-type]


def test_licence_is_asked_for_once_and_again_for_other_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(folder.VARIABLE, str(tmp_path))

    def bring(data: bytes, licence: str, overwrite: bool = False) -> None:
        with folder.Incoming("toy:one", overwrite=overwrite) as incoming:
            incoming.write(data)
            record = folder.Record(
                name="toy:one", sha256=incoming.sha256, size=incoming.size, parameters=1, licence=licence
            )
            incoming.keep(record)

    bring(b"weights", "non-commercial")
    with pytest.raises(ConfigError, match="toy:one is not under a free licence"):
        folder.check_accepted("toy:one")
    folder.check_accepted("toy:one", accept=True)
    folder.check_accepted("toy:one")
    assert folder.names() == ["toy:one"]
    bring(b"other weights", "non-commercial", overwrite=True)
    with pytest.raises(ConfigError, match="accept_licence=True"):
        folder.check_accepted("toy:one")
    bring(b"free weights", "Apache-2.0", overwrite=True)
    folder.check_accepted("toy:one")
