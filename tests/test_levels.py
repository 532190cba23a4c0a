"""Levels: what docs/format.md says each is, in any window, masked like a scene, and cheap to come by."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pictures import landscape

import ditic_stream
from ditic_stream import compression, regions
from ditic_stream.archive import open_archive
from ditic_stream.errors import ChecksumError, MissingTileError
from ditic_stream.geometry import Window
from ditic_stream.scene import Scene
from ditic_stream.verify import verify

TILE = 256


@contextmanager
def faked() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "ditic_stream.codec", fakes.module())
        yield


@pytest.fixture(autouse=True)
def fake_codec(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not {"networks", "bands"} & set(request.fixturenames):
        monkeypatch.setitem(sys.modules, "ditic_stream.codec", fakes.module())


def archived(folder: Path, pixels: np.ndarray, model: str = "small", **tags: Any) -> tuple[Path, np.ndarray]:
    """The archive of a scene (rows, columns, samples) in tiles of 256, and its decoded pixels."""
    many = {"planarconfig": "contig"} if pixels.shape[2] > 1 else {}
    rgb = pixels.dtype == np.uint8 and pixels.shape[2] >= 3 and not (pixels.shape[2] > 3 and "extrasamples" not in tags)
    tifffile.imwrite(folder / "scene.tif", pixels, photometric="rgb" if rgb else "minisblack", **many, **tags)
    compression.compress(folder / "scene.tif", folder / "a.ditic", model=model, tile=TILE, overlap=32, workers=1)
    regions.decompress(folder / "a.ditic", folder / "a.tif", workers=1)
    decoded = tifffile.imread(folder / "a.tif")
    return folder / "a.ditic", decoded if decoded.ndim == 3 else decoded[..., None]


def in_format_1(patch: pytest.MonkeyPatch) -> None:
    """Let new archives be as the first ones were."""
    manifest = compression._manifest
    patch.setattr(compression, "_manifest", lambda *settings: replace(manifest(*settings), format=1, q=5445))


def blocks(pixels: np.ndarray, factor: int) -> Iterator[tuple[int, int, np.ndarray]]:
    for row in range(0, pixels.shape[0], factor):
        for col in range(0, pixels.shape[1], factor):
            yield row // factor, col // factor, pixels[row : row + factor, col : col + factor]


def means(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Means over blocks, (rows, columns, samples)."""
    out = np.zeros((-(-pixels.shape[0] // factor), -(-pixels.shape[1] // factor), pixels.shape[2]))
    for row, col, block in blocks(pixels, factor):
        out[row, col] = block.reshape(-1, block.shape[2]).astype(float).mean(0)
    return out


# --- fine levels


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    with faked():
        return archived(tmp_path_factory.mktemp("plain"), landscape(700, 810))


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """High enough for levels that come from the preview: 0..7."""
    with faked():
        return archived(tmp_path_factory.mktemp("long"), landscape(4200, 300))


@pytest.mark.parametrize("level", [1, 2, 3])
def test_fine_levels_are_means_of_decoded_pixels(plain: tuple[Path, np.ndarray], level: int) -> None:
    archive, decoded = plain
    with ditic_stream.open(archive) as scene:
        assert (scene.read(level=level).transpose(1, 2, 0) == np.rint(means(decoded, 1 << level))).all()


def test_levels_from_six_on_are_means_of_the_preview_and_decode_nothing(
    long: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, _ = long
    monkeypatch.setattr(fakes.FakeCodec, "decode_symbols", lambda *_: pytest.fail("a record was decoded"))
    with open_archive(archive) as opened, ditic_stream.open(archive) as scene:
        preview = opened.preview().transpose(1, 2, 0)
        assert (scene.level_count, scene.level_dimensions[6:]) == (8, ((5, 66), (3, 33)))
        assert (scene.read(level=6).transpose(1, 2, 0) == preview).all()
        assert (scene.read(level=7).transpose(1, 2, 0) == np.rint(means(preview, 2))).all()


def test_weights_without_a_readout_have_their_preview_enlarged(long: tuple[Path, np.ndarray]) -> None:
    source = landscape(4200, 300).mean((0, 1))  # of which the preview is; the fake networks paint a slope over it
    with ditic_stream.open(long[0]) as scene:
        for level in (4, 5):
            got = scene.read(level=level).transpose(1, 2, 0).astype(float)
            assert np.abs(got.mean((0, 1)) - source).max() < 2
            assert np.abs(np.diff(got, axis=0)).max() < 70  # no steps of whole blocks


windows = st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 10**6), st.integers(1, 10**6))


def part_of(scene: Scene, level: int, numbers: tuple[int, int, int, int]) -> Window:
    width, height = scene.level_dimensions[level]
    row, col = numbers[0] % height, numbers[1] % width
    return Window(row=row, col=col, height=1 + numbers[2] % (height - row), width=1 + numbers[3] % (width - col))


@settings(max_examples=40, deadline=None)
@given(numbers=windows, level=st.integers(0, 7))
def test_a_window_of_a_level_is_the_crop_of_all_of_it(
    long: tuple[Path, np.ndarray], whole_levels: list[np.ndarray], numbers: tuple[int, int, int, int], level: int
) -> None:
    with ditic_stream.open(long[0]) as scene:
        window = part_of(scene, level, numbers)
        got = scene.read(window, level=level)
    assert (got == whole_levels[level][:, window.row : window.row_end, window.col : window.col_end]).all()


@pytest.fixture(scope="module")
def whole_levels(long: tuple[Path, np.ndarray]) -> list[np.ndarray]:
    with faked(), ditic_stream.open(long[0]) as scene:
        return [scene.read(level=level) for level in range(scene.level_count)]


# --- masks


@pytest.fixture(scope="module", params=["nodata", "alpha", "nan", "bands apart"])
def hidden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Scenes with pixels out of sight: archive, decoded pixels, which samples are in sight."""
    with faked():
        return with_holes(tmp_path_factory.mktemp("hidden"), request.param)


def with_holes(folder: Path, kind: str) -> tuple[Path, np.ndarray, np.ndarray]:
    pixels = np.maximum(landscape(600, 520), 1)
    seen = np.ones(pixels.shape, bool)
    holes = np.random.default_rng(0).random((600, 520)) < 0.3
    holes[200:400, 100:300] = True
    if kind == "alpha":
        pixels = np.dstack([pixels, np.where(holes, 0, 200).astype(np.uint8)])
        archive, decoded = archived(folder, pixels, extrasamples=["unassalpha"])
        return archive, decoded, np.repeat(~holes[..., None], 4, 2)
    if kind == "nan":
        pixels = pixels.astype(np.float32)
        pixels[holes] = np.nan
        archive, decoded = archived(folder, pixels[..., :1])
        return archive, decoded, ~holes[..., None]
    if kind == "bands apart":
        pixels[..., 1][holes] = 0
        seen[..., 1] = ~holes
    else:
        pixels[holes] = 0
        seen &= ~holes[..., None]
    archive, decoded = archived(folder, pixels, extratags=[(42113, "s", 2, "0", True)])
    return archive, decoded, seen


@pytest.mark.parametrize("level", [2, 4])
def test_a_block_counts_what_is_in_sight_and_is_hidden_where_nothing_is(hidden: Any, level: int) -> None:
    archive, decoded, seen = hidden
    factor = 1 << level
    with ditic_stream.open(archive) as scene:
        got = scene.read(level=level, masked=True)
        data, mask = got.data.transpose(1, 2, 0), np.ma.getmaskarray(got).transpose(1, 2, 0)
        dataset = scene.valid(level=level)
        colours = [sample for sample in range(scene.shape[2]) if sample != scene.alpha]
        for row, col, block in blocks(seen, factor):
            here = block.any((0, 1))
            assert (mask[row, col] == ~here).all()
            assert (dataset[row, col] == 255) == bool(here.any())
            pixels = decoded[row * factor : (row + 1) * factor, col * factor : (col + 1) * factor]
            for sample in colours if level < 3 else ():
                if here[sample] or scene.alpha is not None:  # colours under alpha differ here, and so are means too
                    counted = block[..., sample] if here[sample] else ...
                    mean = pixels[..., sample][counted].astype(float).mean()
                    assert abs(data[row, col, sample] - mean) <= (1e-4 if data.dtype.kind == "f" else 0.5)
                else:
                    np.testing.assert_equal(data[row, col, sample], pixels[0, 0, sample])
        if scene.alpha is not None:
            alpha = np.rint(means(decoded[..., 3:], factor)[..., 0])
            assert np.abs(data[..., 3] - alpha).max() <= (level > 3)  # there it is rounded twice


def test_masks_of_levels_are_crops_in_any_window_and_decode_no_record(
    hidden: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fakes.FakeCodec, "decode_symbols", lambda *_: pytest.fail("a record was decoded"))
    with ditic_stream.open(hidden[0]) as scene:
        for level in range(scene.level_count):
            whole = scene.valid(level=level)
            window = part_of(scene, level, (77, 55, 300, 200))
            assert (
                scene.valid(window, level=level) == whole[window.slices(part_of(scene, level, (0, 0, -1, -1)))]
            ).all()


# --- middle levels, by the real networks


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """Four bands in 5 x 4 tiles by `tiny`."""
    picture = landscape(1100, 900)
    pixels = np.dstack([picture, 255 - picture[..., 0]])
    return archived(tmp_path_factory.mktemp("networks"), pixels, "tiny")


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean(np.square((one - other) / 255))))


def test_middle_levels_are_near_the_means_and_render_nothing(
    networks: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ditic_stream._small_codec import SmallCodec

    archive, decoded = networks
    monkeypatch.setattr(SmallCodec, "render", lambda *_: pytest.fail("a window was rendered"))
    with ditic_stream.open(archive) as scene:
        assert scene.level_count == 6
        for level in (3, 4, 5):
            got = scene.read(level=level).transpose(1, 2, 0)
            inner = (slice(None, -1), slice(None, -1))  # at the ragged edge a block reaches beyond the scene
            assert psnr(got[inner], means(decoded, 1 << level)[inner]) > 33


@pytest.fixture(scope="module")
def middle(networks: tuple[Path, np.ndarray]) -> Iterator[tuple[Scene, dict[int, np.ndarray]]]:
    with ditic_stream.open(networks[0], cache_bytes=2**22) as scene:  # of latents not all are kept
        yield scene, {level: scene.read(level=level) for level in (3, 4, 5)}


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(numbers=windows, level=st.integers(3, 5))
def test_a_window_of_a_middle_level_is_the_crop_of_all_of_it(
    networks: Any,
    middle: tuple[Scene, dict[int, np.ndarray]],
    numbers: tuple[int, int, int, int],
    level: int,
) -> None:
    scene, wholes = middle
    window = part_of(scene, level, numbers)
    expected = wholes[level][:, window.row : window.row_end, window.col : window.col_end]
    assert (scene.read(window, level=level) == expected).all()
    assert (scene.read(window, level=level, bands=[3])[0] == expected[3]).all()


def test_a_damaged_record_is_named_at_middle_levels_and_can_be_filled(
    networks: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(networks[0], tmp_path / "a.ditic")
    place = tmp_path / "a.ditic/records/c/0/0/0"
    data = bytearray(place.read_bytes())
    data[60] ^= 4
    place.write_bytes(data)
    with ditic_stream.open(tmp_path / "a.ditic") as scene:
        with pytest.raises(ChecksumError, match="tile 0,0"):
            scene.read(level=4)
        scene.read(Window(row=40, col=40, height=5, width=5), level=4)
    with ditic_stream.open(tmp_path / "a.ditic", on_error="fill") as scene:
        scene.read(level=4)
        assert [str(key) for key in scene.damage.tiles] == ["0,0"]


def test_a_lost_preview_is_said_at_coarse_levels_and_can_be_filled(
    long: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(long[0], tmp_path / "a.ditic")
    (tmp_path / "a.ditic/preview/c/0/0/0").unlink()
    with ditic_stream.open(tmp_path / "a.ditic") as scene, pytest.raises(MissingTileError, match="preview"):
        scene.read(level=6)
    with ditic_stream.open(tmp_path / "a.ditic", on_error="fill") as scene:
        assert not scene.read(level=6)[:, :4, :4].any()


@pytest.fixture(scope="module")
def bands(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """Four bands in format 1, whose preview has three."""
    picture = landscape(4200, 260)
    with pytest.MonkeyPatch.context() as patch:
        in_format_1(patch)
        return archived(tmp_path_factory.mktemp("bands"), np.dstack([picture, 255 - picture[..., :1]]), "tiny")


def test_the_preview_has_all_bands_and_coarse_levels_decode_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = np.dstack([landscape(2100, 1100, seed) for seed in (1, 2, 3)])[..., :7].astype(np.uint16) * 9 + 5
    archive, _ = archived(tmp_path, picture)
    monkeypatch.setattr(fakes.FakeCodec, "decode_symbols", lambda *_: pytest.fail("a record was decoded"))
    with open_archive(archive) as opened, ditic_stream.open(archive, cache_bytes=0) as scene:
        preview = opened.preview()
        assert preview.shape == (7, 33, 18)
        found = scene.read(level=6).transpose(1, 2, 0).astype(float)
        steps = [band["scale"] / 255 for band in opened.manifest.radiometry["bands"]]
        assert (np.abs(found - means(picture, 64)).max((0, 1)) <= np.array(steps) * 0.51 + 0.5).all()
        for some in ([5], [6, 0, 3]):
            assert (scene.read(level=6, bands=some) == found[..., some].transpose(2, 0, 1)).all()
        part = Window(row=3, col=9, height=17, width=5)
        assert (scene.read(part, level=6, bands=[4])[0] == found[3:20, 9:14, 4]).all()
        assert scene.read(level=5).shape == (7, 66, 35)
        assert zarr.open(archive / "preview", mode="r").shape == preview.shape
        assert (zarr.open(archive / "preview", mode="r")[...] == preview).all()


def test_the_second_of_two_bands_has_a_preview_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = landscape(2100, 1100, 4)[..., :2].astype(np.uint16) * 9 + 5
    archive, _ = archived(tmp_path, picture)
    monkeypatch.setattr(fakes.FakeCodec, "decode_symbols", lambda *_: pytest.fail("a record was decoded"))
    with open_archive(archive) as opened, ditic_stream.open(archive, cache_bytes=0) as scene:
        assert opened.preview().shape == (2, 33, 18)
        steps = [band["scale"] / 255 for band in opened.manifest.radiometry["bands"]]
        found = scene.read(level=6).transpose(1, 2, 0)
        assert (np.abs(found - means(picture, 64)).max((0, 1)) <= np.array(steps) * 0.51 + 0.5).all()
    assert verify(archive).ok


def test_a_band_that_the_preview_does_not_have_comes_from_latents_at_coarse_levels(
    bands: tuple[Path, np.ndarray],
) -> None:
    archive, decoded = bands
    with ditic_stream.open(archive) as scene, open_archive(archive) as opened:
        got = scene.read(level=6).transpose(1, 2, 0)
        assert (got[..., :3] == opened.preview().transpose(1, 2, 0)).all()
        assert psnr(got[:-1, :-1, 3], means(decoded, 64)[:-1, :-1, 3]) > 33
        assert (scene.read(level=6, bands=[3])[0] == got[..., 3]).all()


def test_without_a_readout_it_comes_from_decoded_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ditic_stream.codec", fakes.module())
    in_format_1(monkeypatch)
    picture = landscape(4224, 128)  # of whole blocks: at a ragged edge means of means weigh their pixels alike
    archive, decoded = archived(tmp_path, np.dstack([picture, 255 - picture[..., :1]]))
    with ditic_stream.open(archive) as scene:
        for level in (4, 5, 6):
            exact = means(decoded, 1 << level)[..., 3]
            assert np.abs(scene.read(level=level, bands=[3])[0] - exact).max() <= (0.5 if level == 4 else 1)
