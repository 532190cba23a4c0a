"""Open scenes: the bits of `decompress` in any order, cache and number of threads; rasterio's and OpenSlide's words."""

from __future__ import annotations

import gc
import os
import select
import signal
import sys
import threading
import time
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import rasterio
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import landscape, write_scene
from rasterio.transform import from_origin
from rasterio.windows import Window as RasterioWindow

import ditic_stream
from ditic_stream import compression, regions
from ditic_stream._loading import Loader
from ditic_stream.cutout import region
from ditic_stream.errors import ChecksumError, ConfigError, WindowError
from ditic_stream.geometry import TileKey, Window

TILE = 256
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")  # some scenes here are not


@pytest.fixture(autouse=True)
def fake_codec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ditic_stream.codec", fakes.module())


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[int, int]]:
    """How often each window was rendered, by the latent cell it starts at."""
    times: Counter[tuple[int, int]] = Counter()
    render = fakes.FakeCodec.render

    def count(self: fakes.FakeCodec, values: np.ndarray, scales: np.ndarray, q: int, anchor: tuple[int, int]) -> Any:
        times[anchor] += 1
        return render(self, values, scales, q, anchor)

    monkeypatch.setattr(fakes.FakeCodec, "render", count)
    return times


def archived(folder: Path, source: Path) -> tuple[Path, Path]:
    """The archive of a scene in tiles of 256 pixels, and the GeoTIFF that decompress makes of it."""
    compression.compress(source, folder / "a.ditic", tile=TILE, overlap=64, workers=1)
    regions.decompress(folder / "a.ditic", folder / "a.tif", workers=1)
    return folder / "a.ditic", folder / "a.tif"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, Path]:
    """A georeferenced scene of 3 x 4 tiles: its archive, its decoded pixels, its decoded file."""
    folder = tmp_path_factory.mktemp("plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "ditic_stream.codec", fakes.module())
        archive, decoded = archived(folder, write_scene(folder / "scene.tif", landscape(700, 810)))
    return archive, tifffile.imread(decoded), decoded


windows = st.tuples(st.integers(0, 699), st.integers(0, 809), st.integers(1, 300), st.integers(1, 300))


def clipped(row: int, col: int, height: int, width: int) -> Window:
    return Window(row=row, col=col, height=min(height, 700 - row), width=min(width, 810 - col))


def same(scene: Any, window: Window, expected: np.ndarray) -> bool:
    got = scene.read(window).transpose(1, 2, 0)
    return bool((got == expected[window.row : window.row_end, window.col : window.col_end]).all())


# --- many readers at once


@settings(max_examples=15, deadline=None)
@given(
    wanted=st.lists(windows, min_size=4, max_size=16),
    cache=st.sampled_from([0, 2**20, 2**23, 2**28]),
    threads=st.integers(1, 4),
)
def test_threads_that_read_at_once_get_the_bits_of_the_whole_whatever_is_kept(
    plain: tuple[Path, np.ndarray, Path], wanted: list[tuple[int, int, int, int]], cache: int, threads: int
) -> None:
    archive, expected, _ = plain
    with (
        ditic_stream.open(archive, cache_bytes=cache, threads=threads) as scene,
        ThreadPoolExecutor(6) as readers,
    ):
        assert all(readers.map(lambda one: same(scene, clipped(*one), expected), wanted))
        assert scene._loader.nbytes <= cache


def test_a_rendered_window_that_goes_is_gone_though_its_tiles_stay(
    plain: tuple[Path, np.ndarray, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, *_ = plain
    seen: list[weakref.ref[np.ndarray]] = []
    render = Loader._render

    def watched(self: Loader, *arguments: Any) -> np.ndarray:
        made = render(self, *arguments)
        seen.append(weakref.ref(made))
        return made

    monkeypatch.setattr(Loader, "_render", watched)
    with ditic_stream.open(archive, cache_bytes=2**20, threads=2) as scene:  # room for the latents, and for one window
        for _ in range(2):
            scene.read()
        gc.collect()
        assert len(scene._loader._parts._kept) > 1
        alive = sum(one.nbytes for ref in seen if (one := ref()) is not None)
        assert len(seen) > 12 and alive == scene._loader._windows.nbytes


def test_readers_of_one_place_share_the_work_of_one(
    plain: tuple[Path, np.ndarray, Path], rendered: Counter[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, expected, _ = plain
    monkeypatch.setenv("FAKE_SECONDS", "0.05")
    window = Window(row=300, col=300, height=150, width=150)
    with ditic_stream.open(archive) as scene, ThreadPoolExecutor(8) as readers:
        assert all(readers.map(lambda _: same(scene, window, expected), range(16)))
        assert sum(rendered.values()) == 1
        assert same(scene, Window(row=260, col=240, height=10, width=20), expected)
    assert max(rendered.values()) == 1


def test_a_small_read_does_not_wait_for_all_of_a_large_one(
    plain: tuple[Path, np.ndarray, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, expected, _ = plain
    monkeypatch.setenv("FAKE_SECONDS", "0.1")  # the large one takes 12 windows
    with ditic_stream.open(archive, threads=1) as scene, ThreadPoolExecutor(2) as readers:
        large = readers.submit(scene.read)
        time.sleep(0.15)
        assert same(scene, Window(row=600, col=700, height=20, width=20), expected)
        assert not large.done()
        assert (large.result().transpose(1, 2, 0) == expected).all()


def test_a_damaged_tile_fails_for_all_who_want_it_and_for_nobody_else(
    plain: tuple[Path, np.ndarray, Path], tmp_path: Path
) -> None:
    import shutil

    archive, expected, _ = plain
    shutil.copytree(archive, tmp_path / "a.ditic")
    place = tmp_path / "a.ditic/records/c/0/0/0"
    data = bytearray(place.read_bytes())
    data[60] ^= 4
    place.write_bytes(data)
    with ditic_stream.open(tmp_path / "a.ditic") as scene, ThreadPoolExecutor(6) as readers:

        def read(number: int) -> str:
            if number % 2:
                return str(same(scene, Window(row=590, col=number, height=50, width=200), expected))
            with pytest.raises(ChecksumError, match="tile 0,0"):
                scene.read(Window(row=number, col=0, height=10, width=10))
            return "raised"

        assert set(readers.map(read, range(12))) == {"True", "raised"}


# --- its life


def test_a_closed_scene_says_so_to_those_who_read_and_to_those_who_wait(
    plain: tuple[Path, np.ndarray, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_SECONDS", "0.1")
    scene = ditic_stream.open(plain[0], threads=1)
    with ThreadPoolExecutor(1) as readers:
        waiting = readers.submit(scene.read)
        time.sleep(0.2)
        scene.close()
        with pytest.raises(ConfigError, match="closed; open it again"):
            waiting.result(timeout=20)
    with pytest.raises(ConfigError, match="closed"):
        scene[0, 0]
    with pytest.raises(ConfigError, match="closed"):
        scene.read(level=3)
    scene.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ditic-scene")]


def test_a_process_forked_after_opening_is_told_to_open_for_itself(plain: tuple[Path, np.ndarray, Path]) -> None:
    with ditic_stream.open(plain[0], threads=1) as scene:
        expected = scene[:300, :300]
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            try:
                scene[300:400, 300:400]
            except ConfigError as error:
                os.write(writer, str(error).encode())
            finally:
                os._exit(0)
        os.close(writer)
        ready = select.select([reader], [], [], 30)[0]
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with open(reader, "rb") as words:
            assert ready and b"open it in this process" in words.read()
        np.testing.assert_array_equal(scene[:300, :300], expected)


def test_networks_on_another_device_go_when_the_last_scene_closes(plain: tuple[Path, np.ndarray, Path]) -> None:
    one, other = (ditic_stream.open(plain[0], device="elsewhere") for _ in range(2))
    one[0, 0], other[0, 0]
    assert one._loader.codec is other._loader.codec
    codec = weakref.ref(one._loader.codec)
    one.close()
    gc.collect()
    assert codec() is not None
    other.close()
    gc.collect()
    assert codec() is None


def test_wrong_arguments_say_what_is_wrong(plain: tuple[Path, np.ndarray, Path]) -> None:
    for options, words in [
        ({"threads": 0}, "0 threads"), ({"threads": 1.5}, r"threads is 1\.5"), ({"cache_bytes": -1}, "cache_bytes -1"),
        ({"cache_bytes": "1GB"}, "cache_bytes '1GB'"), ({"cache_bytes": float("nan")}, "cache_bytes nan"),
    ]:  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            ditic_stream.open(plain[0], **options)
    with ditic_stream.open(plain[0]) as scene:
        window = Window(row=0, col=0, height=10, width=10)
        for options, words in [
            ({"level": 5}, "level 5 is outside 0..4"),
            ({"level": -1}, "level -1 is outside"),
            ({"bands": [3]}, r"band 3 is outside 0\.\.2"),
            ({"out_shape": (0, 5)}, "is empty"),
            ({"window": window, "bbox": (0, 0, 1, 1)}, "give one of the two"),
            ({"level": 1.0}, r"level is 1\.0; give a whole number"),
            ({"bands": 1}, "bands 1; give a list"),
            ({"bands": []}, r"bands \[\]; give a list"),
            ({"bands": "rgb"}, "a band is 'r'"),
            ({"out_shape": 5}, "out_shape 5 is no pair"),
            ({"out_shape": (5, 5, 5)}, "is no pair"),
            ({"out_shape": (5.5, 5)}, "is no pair"),
            ({"bbox": (0, 0, 1)}, "is not four numbers"),
            ({"bbox": (-float("inf"), 0, 1, 1)}, "is not four numbers"),
            ({"bbox": ("a", 0, 1, 1)}, "is not four numbers"),
            ({"bbox": 5}, "is not four numbers"),
            ({"window": (0, 0, 10, 10)}, "no window of whole pixels"),
        ]:
            with pytest.raises(ConfigError, match=words):
                scene.read(**options)
        for place, size in (((float("nan"), 0), (1, 1)), ((0, 0), (1.5, 1))):
            with pytest.raises(ConfigError, match="region"):
                scene.read_region(place, 0, size)
        np.testing.assert_array_equal(scene.read(RasterioWindow(0, 0, 10, 10)), scene.read(window))
        with pytest.raises(WindowError, match="44 x 51"):
            scene.read(Window(row=0, col=0, height=45, width=51), level=4)
        with pytest.raises(WindowError, match="none of the scene's"):
            scene.read(bbox=(0, 0, 1, 1))


# --- rasterio's words, on the decompressed file


def mosaic(folder: Path, kind: str) -> Path:
    """A scene with what hides pixels: by nodata, in one band or in all; NaN; alpha; a mask."""
    pixels = landscape(520, 600).transpose(2, 0, 1).copy()
    pixels[pixels == 0] = 1
    profile: dict[str, Any] = {
        "driver": "GTiff", "height": 520, "width": 600, "count": 3, "dtype": "uint8", "crs": "EPSG:32633",
        "transform": from_origin(400000.5, 5650000, 10, 20), "photometric": "rgb",
    }  # fmt: skip
    mask = None
    if kind == "nodata":
        pixels[:, 100:330, 50:400] = 0
        profile |= {"nodata": 0}
    elif kind == "one band":
        pixels[1, 100:330, 50:400] = 0
        profile |= {"nodata": 0}
    elif kind == "nan":
        pixels = pixels.astype("float32") / 7
        pixels[:, 100:330, 50:400] = np.nan
        profile |= {"dtype": "float32", "nodata": np.nan}
    elif kind == "alpha":
        alpha = (np.add.outer(np.arange(520), np.arange(600)) % 256).astype("uint8")
        alpha[100:330, 50:400] = 0
        pixels = np.concatenate([pixels, alpha[None]])
        profile |= {"count": 4, "alpha": "yes"}
    elif kind == "mask":
        mask = np.full((520, 600), 255, np.uint8)
        mask[100:330, 50:400] = 0
    elif kind == "wkt":
        profile |= {"crs": "+proj=laea +lat_0=10 +lon_0=20 +datum=WGS84 +units=m", "dtype": "uint16"}
        pixels = pixels.astype("uint16") * 200
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(folder / "scene.tif", "w", **profile) as file:
        file.write(pixels)
        file.update_tags(PLACE="on the moon", WHEN="1969 & later")
        file.update_tags(1, NAME="red")
        if mask is not None:
            file.write_mask(mask)
    return folder / "scene.tif"


KINDS = ["nodata", "one band", "nan", "alpha", "mask", "wkt"]


@pytest.fixture(scope="module", params=KINDS)
def placed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("placed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "ditic_stream.codec", fakes.module())
        return archived(folder, mosaic(folder, request.param))


def test_what_a_scene_says_of_itself_is_what_rasterio_says_of_the_decompressed_file(placed: tuple[Path, Path]) -> None:
    with ditic_stream.open(placed[0]) as scene, rasterio.open(placed[1]) as file:
        profile = dict(file.profile)
        assert scene.bounds == tuple(file.bounds)
        assert scene.transform == tuple(file.transform)[:6]
        assert rasterio.CRS.from_user_input(scene.crs) == file.crs
        assert scene.crs == "EPSG:32633" or str(scene.crs).startswith("PROJCS[")
        np.testing.assert_equal(scene.nodata, file.nodata)
        for name in ("driver", "height", "width", "count", "dtype", "tiled"):
            assert scene.profile[name] == profile[name]
        assert scene.profile["blockxsize"] == scene.profile["blockysize"] == TILE
        theirs, ours = file.tags(), scene.tags()
        assert theirs.pop("DITIC_LOSSY").startswith(ours.pop("DITIC_LOSSY"))
        assert ours == theirs
        assert ours["WHEN"] == "1969 & later"
        assert (scene.name, scene.uri) == ("scene.tif", str(placed[0]))


def test_masked_reads_and_the_dataset_mask_are_those_of_rasterio(placed: tuple[Path, Path]) -> None:
    window = Window(row=90, col=40, height=260, width=380)
    with ditic_stream.open(placed[0]) as scene, rasterio.open(placed[1]) as file:
        theirs = file.read(window=RasterioWindow(40, 90, 380, 260), masked=True)
        ours = scene.read(window, masked=True)
        assert np.array_equal(ours.data, theirs.data, equal_nan=ours.dtype.kind == "f")
        for sample in range(scene.shape[2]):
            if sample != scene.alpha:  # GDAL takes alpha itself for valid where it is 0
                assert (ours.mask[sample] == np.ma.getmaskarray(theirs)[sample]).all()
        mask = file.dataset_mask(window=RasterioWindow(40, 90, 380, 260))  # of alpha GDAL says its values
        assert (scene.valid(window) == np.where(mask, 255, 0)).all()
        if scene.nodata == 0:  # where it is NaN, rasterio fills with 1e20
            assert ours.fill_value == theirs.fill_value
        assert not isinstance(scene.read(window), np.ma.MaskedArray)


def test_a_box_reads_the_pixels_that_the_command_cuts(plain: tuple[Path, np.ndarray, Path], tmp_path: Path) -> None:
    archive, _, decoded = plain
    box = (401003.0, 5647000.0, 402999.0, 5648504.0)
    cut = region(archive, tmp_path / "cut.npy", bbox=box)
    with ditic_stream.open(archive) as scene:
        assert (scene.read(bbox=box).transpose(1, 2, 0) == np.load(tmp_path / "cut.npy")).all()
        assert scene.read(bbox=box, level=1).shape == (3, -(-(cut.row + cut.height) // 2) - cut.row // 2, 100)
    with rasterio.open(decoded) as file:
        assert file.window(*box).round_offsets().col_off == cut.col


# --- other shapes


def test_reads_of_another_shape_are_means_of_areas(plain: tuple[Path, np.ndarray, Path]) -> None:
    archive, expected, _ = plain
    with ditic_stream.open(archive) as scene:
        window = Window(row=100, col=50, height=360, width=240)
        crop = expected[100:460, 50:290].astype(float)
        got = scene.read(window, out_shape=(120, 80)).transpose(1, 2, 0)  # 3 pixels a side: from level 1
        means = crop.reshape(120, 3, 80, 3, 3).mean((1, 3))
        assert got.dtype == np.uint8
        assert np.abs(got - means).max() <= 1.0  # once more rounded, at level 1
        enlarged = scene.read(window, out_shape=(720, 480)).transpose(1, 2, 0)
        assert (enlarged == np.rint(crop).repeat(2, 0).repeat(2, 1)).all()
        assert (scene.read(window, out_shape=(360, 240)) == scene.read(window)).all()
        assert scene.read(out_shape=(7, 5), masked=True).shape == (3, 7, 5)


def test_a_resampled_read_is_masked_where_all_of_an_area_is(tmp_path: Path) -> None:
    archive, _ = archived(tmp_path, mosaic(tmp_path, "nodata"))
    with ditic_stream.open(archive) as scene:
        window = Window(row=60, col=30, height=300, width=390)
        got = scene.read(window, out_shape=(30, 39), masked=True)
        hidden = np.ma.getmaskarray(scene.read(window, masked=True)).reshape(3, 30, 10, 39, 10)
        mask = np.ma.getmaskarray(got)
        assert not (mask & ~hidden.all((2, 4))).any()
        assert mask[:, 5:26, 3:36].all()  # areas of 10 pixels are made from pixels of 8, which reach beyond them
        assert (got.data[got.mask] == 0).all()
        assert (got.data[~got.mask] > 0).all()


def test_alpha_of_an_area_is_the_mean_of_all_of_it(tmp_path: Path) -> None:
    archive, _ = archived(tmp_path, mosaic(tmp_path, "alpha"))
    with ditic_stream.open(archive) as scene:
        place, (rows, cols) = scene.alpha, (scene.shape[0] // 5 * 5, scene.shape[1] // 5 * 5)
        window = Window(row=0, col=0, height=rows, width=cols)
        whole = scene.read(window, bands=[place])[0].astype(np.float64)
        got = scene.read(window, bands=[place], out_shape=(rows, cols // 5))[0]
        mean = whole.reshape(rows, cols // 5, 5).mean(2)
        assert (np.unique(whole) > 0).any() and ((mean > 0) & (mean < whole.max())).any()
        assert (np.abs(got - np.where((mean > 0) & (mean < 1), 1, mean)) <= 0.5).all()


def test_regions_are_read_as_openslide_reads_them(plain: tuple[Path, np.ndarray, Path]) -> None:
    archive, expected, _ = plain
    with ditic_stream.open(archive) as scene:
        assert (scene.level_count, scene.level_downsamples) == (5, (1.0, 2.0, 4.0, 8.0, 16.0))
        assert scene.level_dimensions == ((810, 700), (405, 350), (203, 175), (102, 88), (51, 44))
        assert scene.dimensions == (810, 700)
        asked = (0.3, 1, 1.99, 2, 9, 16, 1000)
        assert [scene.get_best_level_for_downsample(each) for each in asked] == [0, 0, 0, 1, 3, 4, 4]
        with pytest.raises(ConfigError, match="a downsample of 'x'"):
            scene.get_best_level_for_downsample("x")  # type: ignore[arg-type]
        inside = scene.read_region((200, 100), 0, (50, 70))
        assert (inside == expected[100:170, 200:250]).all()
        beyond = scene.read_region((-5, 690), 0, (20, 30))
        assert beyond.shape == (30, 20, 3)
        assert (beyond[:10, 5:] == expected[690:, :15]).all()
        assert not beyond[10:].any() and not beyond[:, :5].any()
        coarse = scene.read(level=2)
        # The place is in pixels of level 0, the size in those of the level.
        assert (scene.read_region((40, 80), 2, (30, 20)) == coarse[:, 20:40, 10:40].transpose(1, 2, 0)).all()
        assert not scene.read_region((5000, 5000), 1, (4, 4)).any()
        assert scene.read_region((0, 0), 0, (0, 3)).shape == (3, 0, 3)
        with pytest.raises(ConfigError, match="-1 x 3"):
            scene.read_region((0, 0), 0, (-1, 3))


def test_samples_are_read_by_their_place(plain: tuple[Path, np.ndarray, Path]) -> None:
    archive, expected, _ = plain
    window = Window(row=0, col=0, height=20, width=30)
    with ditic_stream.open(archive) as scene:
        assert (scene.read(window, bands=[2, 0, -1]) == expected[:20, :30, [2, 0, 2]].transpose(2, 0, 1)).all()
        assert (scene[:20, :30, ::-1] == expected[:20, :30, ::-1]).all()


def test_what_tiles_a_read_needs_is_said_before_they_are_read(
    plain: tuple[Path, np.ndarray, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with ditic_stream.open(plain[0]) as scene:
        asked: list[list[TileKey]] = []
        monkeypatch.setattr(scene._loader, "fetch", lambda records, planes=(): asked.append(list(records)))
        scene.read(Window(row=10, col=10, height=5, width=5))
        assert asked == [[TileKey(0, 0), TileKey(0, 1), TileKey(1, 0), TileKey(1, 1)]]
        scene.read(Window(row=10, col=300, height=5, width=5))
        assert asked[1] == [TileKey(0, 2), TileKey(1, 2)]  # the others are kept


def test_a_region_that_cannot_be_is_refused_with_a_reason(plain: tuple[Path, np.ndarray, Path]) -> None:
    with ditic_stream.open(plain[0]) as scene:
        for place, size, words in [
            ((0, 0), (10**6, 10**7), "more memory than there is"),
            ((0, 0), (10**12, 10**12), "more memory than there is"),
            ((0, 0), 5, r"give \(x, y\) and"),
            (0, (5, 5), r"give \(x, y\) and"),
            (("a", 0), (5, 5), r"give \(x, y\) and"),
            ((0, 0), (5.0, 5), "a side of a region is 5"),
        ]:
            with pytest.raises(ConfigError, match=words):
                scene.read_region(place, 0, size)
    for read in (scene.valid, scene.read, lambda: scene.read_region((0, 0), 0, (0, 0))):
        with pytest.raises(ConfigError, match="is closed; open it again"):
            read()


def test_more_pixels_than_memory_has_room_for_are_refused_with_a_bound(plain: tuple[Path, np.ndarray, Path]) -> None:
    refused = pytest.raises(ConfigError, match=r"out_shape 100000 x 100000 of 3 samples is 30000000000 values; at most")
    with ditic_stream.open(plain[0]) as scene, refused:
        scene.read(out_shape=(100_000, 100_000))


def test_memory_that_runs_out_on_the_way_is_said_with_a_remedy(
    plain: tuple[Path, np.ndarray, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(np, "empty", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
    refused = pytest.raises(ConfigError, match=r"3 x 9 x 8 values of uint8 need more memory than there is; read them")
    with ditic_stream.open(plain[0]) as scene, refused:
        scene.read(Window(row=0, col=0, height=9, width=8))
