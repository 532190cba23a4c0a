"""Regions: every window is the crop of the whole, bit for bit; damage is named and stays where it is."""

from __future__ import annotations

import shutil
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pictures import landscape, write_scene

from ditic_stream import _decoding, compression, regions
from ditic_stream._layout import group_document
from ditic_stream._rendering import DecodeTile, Pause, schedule, spool_depth
from ditic_stream.archive import open_archive, pack_zip
from ditic_stream.config import GridConfig
from ditic_stream.cutout import region
from ditic_stream.errors import (
    ChecksumError,
    ConfigError,
    DiticError,
    MissingTileError,
    SourceError,
    WeightsError,
    WindowError,
)
from ditic_stream.executors import OverlapExecutor, ProcessExecutor, SerialExecutor
from ditic_stream.geometry import TileKey, Window
from ditic_stream.manifest import KEY
from ditic_stream.tiling import Grid
from ditic_stream.verbs import options

TILE = 256


@pytest.fixture(autouse=True)
def fake_codec(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "real_codec" not in request.fixturenames:
        monkeypatch.setitem(sys.modules, "ditic_stream.codec", fakes.module())


@pytest.fixture(scope="module")
def real_codec() -> None:
    """Asked for by tests of the networks."""


def picture(height: int, width: int, bands: int = 3, dtype: str = "uint8") -> np.ndarray:
    """Slopes and noise, (rows, columns, bands)."""
    rng = np.random.default_rng([height, width, bands])
    slope = np.add.outer(np.linspace(0, 180, height), np.linspace(0, 60, width))[..., None] * np.linspace(1, 0.5, bands)
    return (slope + rng.integers(0, 10, (height, width, bands))).astype(dtype)


def archive_of(folder: Path, pixels: np.ndarray, *, overlap: int = 64, **tags: Any) -> Path:
    source = folder / "scene.tif"
    tifffile.imwrite(source, pixels, photometric="rgb" if pixels.shape[2] >= 3 else "minisblack", **tags)
    target = folder / "scene.ditic"
    compression.compress(source, target, tile=TILE, overlap=overlap, workers=1)
    return target


def whole(archive: Path, **options: Any) -> np.ndarray:
    """The decompressed file, (rows, columns, samples)."""
    out = archive.with_name("whole.tif")
    regions.decompress(archive, out, **{"workers": 1, "overwrite": True, **options})
    pixels = tifffile.imread(out)
    return pixels if pixels.ndim == 3 else pixels[..., None]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, np.ndarray]]:
    """Archives of ragged scenes with all overlaps, and what decompress makes of them."""
    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "ditic_stream.codec", fakes.module())
        sizes = [(700, 810, 64), (513, 300, 128), (40, 1100, 32), (600, 530, 0)]
        for number, (height, width, overlap) in enumerate(sizes):
            folder = tmp_path_factory.mktemp(f"scene{number}")
            archive = archive_of(folder, picture(height, width), overlap=overlap)
            made.append((archive, whole(archive)))
    return made


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_region_equals_crop_of_whole_scene(scenes: list[tuple[Path, np.ndarray]], data: st.DataObject) -> None:
    archive, expected = data.draw(st.sampled_from(scenes))
    height, width = expected.shape[:2]
    row, col = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    window = Window(
        row=row,
        col=col,
        height=data.draw(st.integers(1, height - row)),
        width=data.draw(st.integers(1, width - col)),
    )
    with regions.open_scene(archive) as scene:
        pixels = scene.read(window)
    assert (pixels.transpose(1, 2, 0) == expected[row : window.row_end, col : window.col_end]).all()


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_any_size_comes_back_and_its_regions_are_crops(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    height, width = data.draw(st.integers(1, 600)), data.draw(st.integers(1, 600))
    overlap = data.draw(st.sampled_from([0, 64]))
    archive = archive_of(tmp_path_factory.mktemp("any"), picture(height, width), overlap=overlap)
    expected = whole(archive)
    assert expected.shape == (height, width, 3)
    with regions.open_scene(archive) as scene:
        row, col = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
        assert (scene[row:, : col + 1] == expected[row:, : col + 1]).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1), (31, 33), (256, 256), (257, 255)])
def test_the_smallest_sizes_come_back(size: tuple[int, int], tmp_path: Path) -> None:
    pixels = picture(*size)
    decoded = whole(archive_of(tmp_path, pixels))
    assert decoded.shape == pixels.shape
    assert decoded.dtype == pixels.dtype


def test_reads_in_any_order_and_repeated_give_the_same_bits(scenes: list[tuple[Path, np.ndarray]]) -> None:
    archive, expected = scenes[0]
    with regions.open_scene(archive) as scene:
        for row, col in [(600, 700), (0, 0), (300, 300), (600, 700), (250, 10), (0, 0)]:
            assert (scene[row : row + 90, col : col + 90] == expected[row : row + 90, col : col + 90]).all()


@pytest.mark.parametrize("workers", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_worker_count_does_not_change_a_bit(
    scenes: list[tuple[Path, np.ndarray]], workers: int, tmp_path: Path
) -> None:
    window = Window(row=20, col=200, height=400, width=90)
    with ProcessExecutor(workers, initializer=fakes.install) as executor:
        for archive, expected in scenes[: 2 if workers == 2 else 1]:
            regions.decompress(archive, tmp_path / "out.tif", executor=executor, overwrite=True)
            assert (tifffile.imread(tmp_path / "out.tif") == expected).all()
            regions.decompress(archive, tmp_path / "out.tif", window=window, executor=executor, overwrite=True)
            assert (tifffile.imread(tmp_path / "out.tif") == expected[20:420, 200:290]).all()


def test_strips_cover_the_scene_from_top_to_bottom(scenes: list[tuple[Path, np.ndarray]]) -> None:
    for archive, expected in scenes:
        seen, row = [], 0
        for window, pixels in regions.strips(archive, workers=1):
            assert (window.row, window.col, window.width) == (row, 0, expected.shape[1])
            assert window.height == min(256, expected.shape[0] - row)
            row = window.row_end
            seen.append(pixels)
        assert (np.concatenate(seen, axis=1).transpose(1, 2, 0) == expected).all()


def test_what_lies_on_disk_for_wide_scenes_changes_no_bit(
    scenes: list[tuple[Path, np.ndarray]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_decoding, "STRIP_BYTES", 10_000)
    monkeypatch.setattr(_decoding, "MEMORY_BYTES", 1000)
    monkeypatch.setattr(_decoding, "BELOW_BYTES", 1000)
    for archive, expected in scenes:
        seen = [pixels for _, pixels in regions.strips(archive, workers=1, scratch=tmp_path)]
        assert max(pixels.shape[1] for pixels in seen) < 256
        assert (np.concatenate(seen, axis=1).transpose(1, 2, 0) == expected).all()
        assert not list(tmp_path.iterdir())


def test_progress_rises_to_the_area_of_the_window(scenes: list[tuple[Path, np.ndarray]], tmp_path: Path) -> None:
    archive, expected = scenes[0]
    calls: list[tuple[int, int]] = []
    regions.decompress(archive, tmp_path / "out.tif", workers=1, progress=lambda *call: calls.append(call))
    done, totals = zip(*calls, strict=True)
    assert set(totals) == {expected.shape[0] * expected.shape[1]}
    assert list(done) == sorted(done)
    assert done[-1] == totals[0]


indexes = st.one_of(
    st.integers(-60, 59),
    st.slices(60),
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "ditic_stream.codec", fakes.module())
        archive = archive_of(tmp_path_factory.mktemp("small"), picture(60, 60))
        return archive, whole(archive)


@settings(max_examples=80, deadline=None)
@given(rows=indexes, cols=indexes, bands=st.one_of(st.integers(-3, 2), st.slices(3)), form=st.integers(0, 4))
def test_indexing_follows_numpy(small: tuple[Path, np.ndarray], rows: Any, cols: Any, bands: Any, form: int) -> None:
    archive, expected = small
    index = [rows, (rows, cols), (rows, cols, bands), (rows, ...), (..., bands)][form]
    with regions.open_scene(archive) as scene:
        got = scene[index]
        assert got.shape == expected[index].shape
        assert (got == expected[index]).all()


def test_a_scene_looks_like_an_array(small: tuple[Path, np.ndarray]) -> None:
    archive, expected = small
    with regions.open_scene(archive) as scene:
        assert (scene.shape, scene.dtype, scene.ndim, len(scene)) == (expected.shape, expected.dtype, 3, 60)
        assert (np.asarray(scene) == expected).all()
        assert np.asarray(scene, np.float32).dtype == np.float32
        assert (scene.crs, scene.transform) == (None, None)
        for bad in [60, -61, (0, 60), (0, 0, 3), (0, 0, 0, 0), (..., ...), "x", [1, 2], None, True, np.array([True])]:
            with pytest.raises(IndexError):
                scene[bad]
        with pytest.raises(WindowError, match="60 x 60"):
            scene.read(Window(row=0, col=50, height=1, width=11))
        with pytest.raises(ValueError, match="copy=False"):
            np.asarray(scene, copy=False)


@st.composite
def rectangles(draw: st.DrawFn) -> tuple[Grid, range, range, int]:
    overlap = draw(st.sampled_from([0, 64]))
    grid = Grid(
        height=draw(st.integers(1, 256 * 9)),
        width=draw(st.integers(1, 256 * 9)),
        config=GridConfig(tile=TILE, overlap=overlap),
    )
    top, left = draw(st.integers(0, grid.rows - 1)), draw(st.integers(0, grid.cols - 1))
    rows = range(top, draw(st.integers(top + 1, grid.rows)))
    cols = range(left, draw(st.integers(left + 1, grid.cols)))
    return grid, rows, cols, draw(st.integers(1, 12))


@settings(max_examples=200, deadline=None)
@given(rectangles(), st.integers(1, 9))
def test_schedule_decodes_each_tile_once_and_well_before_its_windows(
    rectangle: tuple[Grid, range, range, int], together: int
) -> None:
    grid, rows, cols, distance = rectangle
    items = list(schedule(grid, rows, cols, distance, together))
    windows = [item for item in items if isinstance(item, TileKey)]
    assert windows == [TileKey(row, col) for row in rows for col in cols]
    tiles = [key for item in items if isinstance(item, DecodeTile) for key in item.keys]
    assert len(set(tiles)) == len(tiles)
    assert set(tiles) == {near for key in windows for near in grid.neighbours(key)}
    places = {key: place for place, item in enumerate(items) if isinstance(item, DecodeTile) for key in item.keys}
    for place, item in enumerate(items):
        if isinstance(item, TileKey):
            assert all(place - places[near] >= distance for near in grid.neighbours(item))


@settings(max_examples=200, deadline=None)
@given(rectangles(), st.integers(1, 9))
def test_spool_keeps_each_tile_until_its_last_window_is_done(
    rectangle: tuple[Grid, range, range, int], together: int
) -> None:
    grid, rows, cols, distance = rectangle
    depth = spool_depth(grid, cols, distance)
    items = list(schedule(grid, rows, cols, distance, together))
    ring: dict[tuple[int, int], TileKey] = {}
    for place, item in enumerate(items):
        if isinstance(item, DecodeTile):
            ring |= {(key.row % depth, key.col): key for key in item.keys}
            # Now any window among the last `distance` - 1 jobs may still be reading.
            for late in items[max(place - distance + 1, 0) : place]:
                if isinstance(late, TileKey):
                    for near in grid.neighbours(late):
                        assert ring[near.row % depth, near.col] == near
        elif isinstance(item, TileKey):
            for near in grid.neighbours(item):
                assert ring[near.row % depth, near.col] == near


def test_schedule_pauses_only_at_the_start_of_a_large_scene() -> None:
    grid = Grid(height=32768, width=32768, config=GridConfig())
    items = list(schedule(grid, range(grid.rows), range(grid.cols), 6))
    pauses = [place for place, item in enumerate(items) if isinstance(item, Pause)]
    assert len(pauses) <= 6
    assert all(place < 64 for place in pauses)


def test_spool_of_a_wide_scene_is_a_few_rows() -> None:
    grid = Grid(height=32768, width=32768, config=GridConfig())
    assert spool_depth(grid, range(grid.cols), 6) <= 4


# --- damage


def flip(archive: Path, key: TileKey) -> None:
    """Damage a byte in the middle of a tile's record."""
    with open_archive(archive) as opened:
        shard = opened.grid.shard_of(key)
        name, span = opened.layout.records(shard), opened.shard(shard)._record_spans()[opened.layout.slot(key)]
    assert span is not None
    path = archive / name
    data = bytearray(path.read_bytes())
    data[span[0] + span[1] // 2] ^= 0x10
    path.write_bytes(data)


@pytest.fixture
def copy(scenes: list[tuple[Path, np.ndarray]], tmp_path: Path) -> tuple[Path, np.ndarray]:
    """An archive to damage: 700 x 810 pixels, 3 x 4 tiles, each its own shard, overlap 64."""
    archive, expected = scenes[0]
    shutil.copytree(archive, tmp_path / "copy.ditic")
    return tmp_path / "copy.ditic", expected


def test_a_damaged_record_stops_the_run_with_its_name_and_leaves_no_file(copy: tuple[Path, np.ndarray]) -> None:
    archive, _ = copy
    flip(archive, TileKey(1, 2))
    out = archive.with_name("out.tif")
    with pytest.raises(ChecksumError, match="tile 1,2"):
        regions.decompress(archive, out, workers=1)
    assert not list(archive.parent.glob("out.tif*"))
    with ProcessExecutor(2, initializer=fakes.install) as executor, pytest.raises(ChecksumError, match="tile 1,2"):
        regions.decompress(archive, out, executor=executor)


def test_windows_that_do_not_touch_the_damage_still_read(copy: tuple[Path, np.ndarray]) -> None:
    archive, expected = copy
    flip(archive, TileKey(0, 0))
    with regions.open_scene(archive) as scene:
        assert (scene[580:, :400] == expected[580:, :400]).all()
        with pytest.raises(ChecksumError, match="tile 0,0"):
            scene[300:310, 300:310]


@pytest.fixture
def masked(tmp_path: Path) -> Path:
    """2 x 2 tiles, each its own shard, with nodata in different places of the upper two."""
    pixels = picture(512, 512)
    pixels[40:90, 30:120] = pixels[100:180, 300:400] = 0
    return archive_of(tmp_path, pixels, extratags=[(42113, "s", 2, "0", True)])


def exchange(archive: Path, one: str, two: str) -> None:
    first, second = (archive / one).read_bytes(), (archive / two).read_bytes()
    (archive / one).write_bytes(second)
    (archive / two).write_bytes(first)


def claiming(archive: Path, path: Path, side: int) -> Path:
    """The archive with a manifest that says it has side x side pixels, in shards of 8 x 8 tiles."""
    with open_archive(archive) as opened:
        image = replace(opened.manifest.image, height=side, width=side)
        settings = replace(opened.manifest, image=image, shard=8)
    shutil.copytree(archive, path)
    (path / "zarr.json").write_bytes(group_document({KEY: settings.to_json(), **settings.attributes}))
    return path


@pytest.mark.parametrize("suffix", [".tif", ".zarr"])
def test_an_archive_that_claims_more_than_it_holds_is_refused_before_room_is_made(
    masked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(regions, "open_output", lambda *_, **__: pytest.fail("an output was opened"))
    path = claiming(masked, tmp_path / "claims.ditic", 2**20)
    tracemalloc.start()
    with pytest.raises(MissingTileError, match="tile 0,"):
        regions.decompress(path, tmp_path / f"out{suffix}", workers=1)
    assert tracemalloc.get_traced_memory()[1] < 10**7
    tracemalloc.stop()


@pytest.mark.parametrize("data", [None, b"", bytes(49)], ids=["lost", "empty", "cut short"])
def test_a_lost_shard_is_named_before_an_output_is_opened(
    copy: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch, data: bytes | None
) -> None:
    archive, expected = copy
    place = archive / "records/c/2/3/0"
    place.unlink()
    if data is not None:
        place.write_bytes(data)
    with monkeypatch.context() as patch:
        patch.setattr(regions, "open_output", lambda *_, **__: pytest.fail("an output was opened"))
        with pytest.raises(MissingTileError, match="tile 2,3"):
            regions.decompress(archive, archive.with_name("out.tif"), workers=1)
    result = regions.decompress(archive, archive.with_name("out.tif"), workers=1, on_error="fill")
    assert result.damaged == ("2,3",)
    regions.decompress(archive, archive.with_name("corner.tif"), window=Window(row=0, col=0, height=300, width=300))
    assert (tifffile.imread(archive.with_name("corner.tif")) == expected[:300, :300]).all()


def test_masks_of_exchanged_shards_stop_the_run_or_are_filled_and_named(masked: Path) -> None:
    exchange(masked, "mask/c/0/0/0", "mask/c/0/0/1")
    out = masked.with_name("out.tif")
    with pytest.raises(ChecksumError, match=r"tile 0,0: mask or preview of shard 0,0 belong to other records"):
        regions.decompress(masked, out, workers=1)
    result = regions.decompress(masked, out, workers=1, on_error="fill")
    assert result.damaged == ("0,0", "0,1")
    with regions.open_scene(masked) as scene:
        scene[300:, :]
        with pytest.raises(ChecksumError, match="tile 0,1"):
            scene[:10, 300:]
    with regions.open_scene(masked, on_error="fill") as scene:
        scene[...]
        assert [str(key) for key in scene.damage.tiles] == ["0,0", "0,1"]


def test_a_damaged_preview_costs_no_pixel(masked: Path) -> None:
    expected = whole(masked)
    place = masked / "preview/c/0/0/0"
    data = place.read_bytes()
    for damaged in (data[:-1] + bytes([data[-1] ^ 1]), None):
        if damaged is None:
            place.unlink()
        else:
            place.write_bytes(damaged)
        assert (whole(masked) == expected).all()


def test_fill_reports_the_tile_and_its_neighbours_and_leaves_the_rest_alone(copy: tuple[Path, np.ndarray]) -> None:
    archive, expected = copy
    flip(archive, TileKey(0, 0))
    out = archive.with_name("out.tif")
    result = regions.decompress(archive, out, workers=1, on_error="fill")
    assert result.damaged == ("0,0",)
    assert result.degraded == ("0,1", "1,0", "1,1")
    decoded = tifffile.imread(out)
    differs = (decoded != expected).any(axis=2)
    assert differs[:150, :150].any()
    # Windows are the tile plus 64; one that reads a zero latent may differ as a whole, none of the others may.
    assert not differs[512 + 64 :].any()
    assert not differs[:, 512 + 64 :].any()
    with regions.open_scene(archive, on_error="fill") as scene:
        assert (scene[...] == decoded).all()
        assert [str(key) for key in scene.damage.tiles] == ["0,0"]
        assert [str(key) for key in scene.damage.degraded(scene.archive)] == ["0,1", "1,0", "1,1"]


def test_a_lost_shard_is_missing_and_can_be_filled(copy: tuple[Path, np.ndarray]) -> None:
    archive, expected = copy
    (archive / "records/c/2/3/0").unlink()
    with pytest.raises(MissingTileError, match="tile 2,3"):
        whole(archive)
    with ProcessExecutor(2, initializer=fakes.install) as executor:
        result = regions.decompress(archive, archive.with_name("o.tif"), executor=executor, on_error="fill")
    assert result.damaged == ("2,3",)
    assert (tifffile.imread(archive.with_name("o.tif"))[:192] == expected[:192]).all()


def test_swapped_records_are_named(copy: tuple[Path, np.ndarray]) -> None:
    archive, _ = copy
    one, other = archive / "records/c/0/1/0", archive / "records/c/1/1/0"
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)
    with pytest.raises(DiticError, match=r"tile (0,1|1,1)"):
        whole(archive)


def test_an_archive_that_is_not_complete_is_refused_and_can_be_filled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "scene.tif"
    tifffile.imwrite(source, picture(600, 600), photometric="rgb")

    def stop(done: int, total: int) -> None:
        if done > total // 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compression.compress(source, tmp_path / "a.ditic", tile=TILE, workers=1, progress=stop)
    with pytest.raises(MissingTileError, match="not complete; run the same compression again"):
        regions.open_scene(tmp_path / "a.ditic")
    result = regions.decompress(tmp_path / "a.ditic", tmp_path / "out.tif", workers=1, on_error="fill")
    assert 0 < len(result.damaged) < 9
    assert result.uncoded == result.damaged
    flip(tmp_path / "a.ditic", TileKey(0, 0))
    for name in ("again.tif", "again.npy"):
        window = Window(row=0, col=0, height=600, width=600)
        cut = region(tmp_path / "a.ditic", tmp_path / name, window=window, on_error="fill")
        assert cut.uncoded == result.uncoded
        assert cut.damaged == ("0,0", *result.damaged)
    options.report_damage(cut, quiet=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "warning: filled: damaged or lost: tile 0,0"
    assert lines[1].startswith("warning: filled: not coded yet, for the archive is not complete: tiles ")


def test_other_weights_are_refused_by_name(small: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fakes.FakeCodec, "info", fakes.FakeInfo(weights="f" * 64))
    with regions.open_scene(small[0]) as scene, pytest.raises(WeightsError, match=r"needs weights 0000.* has ffff"):
        scene[0, 0]
    with pytest.raises(WeightsError, match="models import"):
        whole(small[0])


def test_wrong_arguments_say_what_is_wrong(small: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    archive, _ = small
    with pytest.raises(ConfigError, match="on_error 'ignore'"):
        regions.open_scene(archive, on_error="ignore")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="0 workers"):
        regions.decompress(archive, tmp_path / "o.tif", workers=0)
    with pytest.raises(SourceError, match="no file or folder"):
        regions.open_scene(tmp_path / "nothing.ditic")
    (tmp_path / "there.tif").touch()
    with pytest.raises(ConfigError, match="exists"):
        regions.decompress(archive, tmp_path / "there.tif")
    with pytest.raises(WindowError, match="60 x 60"):
        regions.decompress(archive, tmp_path / "o.tif", window=Window(row=1, col=0, height=60, width=1))
    assert [path.name for path in tmp_path.iterdir()] == ["there.tif"]


def test_the_callers_executor_is_used_and_left_open(small: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    with SerialExecutor() as executor:
        for name in ("a.tif", "b.tif"):
            regions.decompress(small[0], tmp_path / name, executor=executor)
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()


def test_two_threads_give_the_bytes_of_one(tmp_path: Path) -> None:
    archive = archive_of(tmp_path, picture(700, 600, 3, "uint8"))
    for name, kind in (("one.tif", SerialExecutor), ("two.tif", OverlapExecutor)):
        with kind() as executor:
            regions.decompress(archive, tmp_path / name, executor=executor)
    assert (tmp_path / "one.tif").read_bytes() == (tmp_path / "two.tif").read_bytes()


# --- masks


def test_masked_pixels_alpha_and_nan_come_back_exactly_in_any_region(tmp_path: Path) -> None:
    pixels = picture(600, 700, 1, "float32")
    pixels[100:330, 50:400] = np.nan
    pixels[260:512, 512:] = np.nan  # a whole tile but for its ragged edge
    pixels[500, 600] = np.inf
    archive = archive_of(tmp_path, pixels)
    decoded = whole(archive)
    assert (np.isnan(decoded) == np.isnan(pixels)).all()
    assert decoded[500, 600] == np.inf
    with regions.open_scene(archive) as scene:
        assert np.array_equal(scene[90:520, 40:650], decoded[90:520, 40:650], equal_nan=True)


def test_a_scene_with_alpha_has_it_as_a_sample(tmp_path: Path) -> None:
    pixels = picture(300, 520, 4)
    pixels[..., 3] = np.add.outer(np.arange(300), np.arange(520)) % 256
    archive = archive_of(tmp_path, pixels, extrasamples=["unassalpha"])
    decoded = whole(archive)
    assert (decoded[..., 3] == pixels[..., 3]).all()
    with regions.open_scene(archive) as scene:
        assert scene.shape == (300, 520, 4)
        assert (scene[10:290, 100:400] == decoded[10:290, 100:400]).all()
    ((_, bands),) = [strip for strip in regions.strips(archive, workers=1) if strip[0].row == 256]
    assert (bands.transpose(1, 2, 0) == decoded[256:, :, :3]).all()


def test_a_damaged_mask_names_its_tile_and_counts_as_valid_when_filled(tmp_path: Path) -> None:
    pixels = picture(300, 520, 4)
    pixels[..., 3] = np.add.outer(np.arange(300), np.arange(520)) % 256
    archive = archive_of(tmp_path, pixels, extrasamples=["unassalpha"])
    path = archive / "mask/c/0/0/1"
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(ChecksumError, match="tile 0,1"):
        whole(archive)
    out = tmp_path / "out.tif"
    assert regions.decompress(archive, out, workers=1, on_error="fill").damaged == ("0,1",)
    decoded = tifffile.imread(out)
    assert (decoded[:256, 256:512, 3] == 255).all()
    assert (decoded[:, :256, 3] == pixels[:, :256, 3]).all()


def test_windows_of_which_nothing_is_seen_are_not_rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = picture(256 * 5, 256, 1, "float32")
    pixels[256:] = np.nan
    archive = archive_of(tmp_path, pixels)
    rendered = []
    render = fakes.FakeCodec.render

    def count(self: fakes.FakeCodec, *args: Any) -> np.ndarray:
        rendered.append(args[3])
        return render(self, *args)

    monkeypatch.setattr(fakes.FakeCodec, "render", count)
    decoded = whole(archive)
    assert len(rendered) == 2  # the coded tile, and the one below whose window reaches into it
    assert np.isnan(decoded[256:]).all()
    rendered.clear()
    with regions.open_scene(archive) as scene:
        assert np.array_equal(scene[...], decoded, equal_nan=True)
    assert len(rendered) == 2


# --- the real networks


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """An archive by `tiny`, and what decompress makes of it in this process."""
    folder = tmp_path_factory.mktemp("networks")
    source = write_scene(folder / "scene.tif", landscape(600, 530))
    compression.compress(source, folder / "scene.ditic", model="tiny", tile=TILE, workers=1)
    return folder / "scene.ditic", whole(folder / "scene.ditic")


@pytest.mark.usefixtures("real_codec")
class TestNetworks:
    @settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_region_equals_crop_of_whole_scene(self, networks: tuple[Path, np.ndarray], data: st.DataObject) -> None:
        archive, expected = networks
        row, col = data.draw(st.integers(0, 599)), data.draw(st.integers(0, 529))
        window = Window(
            row=row,
            col=col,
            height=data.draw(st.integers(1, 600 - row)),
            width=data.draw(st.integers(1, 530 - col)),
        )
        with regions.open_scene(archive) as scene:
            pixels = scene.read(window)
        assert (pixels.transpose(1, 2, 0) == expected[row : window.row_end, col : window.col_end]).all()

    @pytest.mark.parametrize("workers", [2, pytest.param(3, marks=pytest.mark.slow)])
    def test_worker_count_changes_neither_a_byte_nor_a_bit(
        self, networks: tuple[Path, np.ndarray], workers: int, tmp_path: Path
    ) -> None:
        archive, expected = networks
        compression.compress(
            archive.with_name("scene.tif"), tmp_path / "a.ditic", model="tiny", tile=TILE, workers=workers
        )
        for path in sorted(archive.rglob("*")):
            if path.is_file():
                assert (tmp_path / "a.ditic" / path.relative_to(archive)).read_bytes() == path.read_bytes()
        assert (whole(tmp_path / "a.ditic", workers=workers) == expected).all()

    def test_the_callers_threads_do_not_change_a_bit(self, networks: tuple[Path, np.ndarray]) -> None:
        import torch

        archive, expected = networks
        before = torch.get_num_threads()
        torch.set_num_threads(4)
        try:
            assert (whole(archive) == expected).all()
            assert torch.get_num_threads() == 4
        finally:
            torch.set_num_threads(before)

    def test_a_read_that_fails_gives_the_callers_threads_back(
        self, networks: tuple[Path, np.ndarray], tmp_path: Path
    ) -> None:
        import torch

        shutil.copytree(networks[0], tmp_path / "a.ditic")
        flip(tmp_path / "a.ditic", TileKey(2, 2))
        before = torch.get_num_threads()
        torch.set_num_threads(3)
        try:
            with regions.open_scene(tmp_path / "a.ditic") as scene, pytest.raises(ChecksumError) as first:
                scene.read()
            assert torch.get_num_threads() == 3
            with pytest.raises(ChecksumError) as second:
                whole(tmp_path / "a.ditic")
            assert torch.get_num_threads() == 3
            assert str(first.value) == str(second.value)
        finally:
            torch.set_num_threads(before)


def test_an_archive_is_never_replaced_or_added_to_by_what_is_decoded_from_it(tmp_path: Path) -> None:
    archive = archive_of(tmp_path, picture(40, 40)).rename(tmp_path / "a.zarr")
    pack_zip(archive, tmp_path / "a.tif")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for place, out in [(archive, archive), (archive, archive / "records" / "b.tif"), (tmp_path / "a.tif",) * 2]:
        with pytest.raises(ConfigError, match="made from; choose another name"):
            regions.decompress(place, out, workers=1, overwrite=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
