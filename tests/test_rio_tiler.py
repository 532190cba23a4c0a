"""rio-tiler and titiler: what they show of an archive is what they show of the file that `decompress` makes of it."""

from __future__ import annotations

import io
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import rasterio
from doors import decoded, geo_archive
from PIL import Image
from rasterio.crs import CRS
from rio_tiler.errors import PointOutsideBounds, TileOutsideBounds
from rio_tiler.io import Reader as RasterioReader

from ditic_stream.doors import _shared
from ditic_stream.doors._shared import Scenes, scenes
from ditic_stream.doors.rio_tiler import Reader
from ditic_stream.errors import ConfigError, SourceError
from ditic_stream.scene import Scene

UTM = CRS.from_epsg(32633)
KINDS: dict[str, dict[str, Any]] = {
    "plain": {}, "nodata": {"bands": 4, "dtype": "uint16", "nodata": 0}, "mask": {"mask": True},
    "alpha": {"alpha": True}, "float": {"bands": 1, "dtype": "float32", "nodata": float("nan")},
}  # fmt: skip


@pytest.fixture(autouse=True)
def fake_codec(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(sys.modules, "ditic_stream.codec", fakes.module())
    yield
    scenes.close()


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: geo_archive(tmp_path_factory.mktemp(name), **kind) for name, kind in KINDS.items()}


@pytest.fixture(params=KINDS)
def archive(request: pytest.FixtureRequest, archives: dict[str, Path]) -> Path:
    return archives[request.param]


def same(found: Any, expected: Any) -> None:
    """Equal data where both see some, equal masks."""
    np.testing.assert_array_equal(found.array.mask, expected.array.mask)
    np.testing.assert_array_equal(found.array.filled(0), expected.array.filled(0))
    assert found.band_names == expected.band_names and found.band_descriptions == expected.band_descriptions
    assert found.crs == expected.crs and found.bounds == pytest.approx(expected.bounds)


def test_info_says_what_rio_tiler_says_of_the_decoded_file(archive: Path) -> None:
    with Reader(str(archive)) as ours, RasterioReader(str(decoded(archive))) as theirs:
        found, expected = ours.info().model_dump(), theirs.info().model_dump()
        for name in expected.keys() - {"driver", "overviews", "band_metadata"}:
            assert repr(found[name]) == repr(expected[name]), name
        assert (ours.minzoom, ours.maxzoom, ours.bounds) == (theirs.minzoom, theirs.maxzoom, theirs.bounds)


def test_a_part_in_the_scenes_own_grid_is_the_crop(archive: Path) -> None:
    box = (500500, 4596000, 503000, 4598500)
    with Reader(str(archive)) as ours, RasterioReader(str(decoded(archive))) as theirs:
        same(ours.part(box, bounds_crs=UTM), theirs.part(box, bounds_crs=UTM))
        same(ours.part(box, bounds_crs=UTM, indexes=1), theirs.part(box, bounds_crs=UTM, indexes=1))
        count = ours.scene.shape[2]
        if count > 1:
            expression = {"expression": "b1*2;b2-b1"}
            same(ours.part(box, bounds_crs=UTM, **expression), theirs.part(box, bounds_crs=UTM, **expression))


def test_a_tile_at_full_resolution_is_that_of_the_decoded_file(archive: Path) -> None:
    with Reader(str(archive)) as ours, RasterioReader(str(decoded(archive))) as theirs:
        zoom = ours.maxzoom
        tile = ours.tms.tile(*lnglat(503000, 4597500), zoom)
        found, expected = ours.tile(tile.x, tile.y, zoom), theirs.tile(tile.x, tile.y, zoom)
        agree = (found.array.filled(0) == expected.array.filled(0)).mean()
        assert found.array.shape == expected.array.shape and agree > 0.999  # GDAL warps to an eighth of a pixel
        assert (found.array.mask == expected.array.mask).mean() > 0.999
        with pytest.raises(TileOutsideBounds):
            ours.tile(0, 0, zoom)
        whole = ours.tms.tile(*lnglat(503000, 4597500), zoom - 3)
        found, expected = ours.tile(whole.x, whole.y, zoom - 3), theirs.tile(whole.x, whole.y, zoom - 3)
        both = ~found.array.mask & ~expected.array.mask
        assert (found.array.mask == expected.array.mask).mean() > 0.97 and both.any()
        difference = found.array.data.astype(float) - expected.array.data.astype(float)
        assert abs(difference[both].mean()) < 2


def lnglat(x: float, y: float) -> tuple[float, float]:
    (lon,), (lat,) = rasterio.warp.transform(UTM, "EPSG:4326", [x], [y])
    return lon, lat


def test_a_part_in_other_coordinates_has_the_size_it_has_of_the_decoded_file(archive: Path) -> None:
    with Reader(str(archive)) as reader, RasterioReader(str(decoded(archive))) as expected:
        west, south, east, north = reader.get_geographic_bounds(reader.tms.rasterio_geographic_crs)
        box = (0.7 * west + 0.3 * east, 0.8 * south + 0.2 * north, 0.4 * west + 0.6 * east, 0.3 * south + 0.7 * north)
        ring = [[box[0], box[1]], [box[2], box[1]], [box[2], box[3]], [box[0], box[1]]]
        shape = {"type": "Polygon", "coordinates": [ring]}
        for options in ({}, {"max_size": 64}, {"dst_crs": CRS.from_epsg(3857)}, {"buffer": 2.0}):
            found = reader.part(box, **options), reader.feature(shape, **options)
            wanted = expected.part(box, **options), expected.feature(shape, **options)
            for one, other in zip(found, wanted, strict=True):
                assert one.array.shape == other.array.shape and one.bounds == pytest.approx(other.bounds)
        found, wanted = reader.part(box), expected.part(box)
        assert (found.array.filled(0) == wanted.array.filled(0)).mean() > 0.999  # GDAL warps to an eighth of a pixel


def test_a_point_is_the_pixel_there(archive: Path) -> None:
    with Reader(str(archive)) as ours, RasterioReader(str(decoded(archive))) as theirs:
        for place in ((500005, 4599995), (506995, 4594005), (502331, 4598001), (503333, 4595555)):
            found, expected = ours.point(*place, coord_crs=UTM), theirs.point(*place, coord_crs=UTM)
            np.testing.assert_array_equal(found.array.filled(0), expected.array.filled(0))
            np.testing.assert_array_equal(found.array.mask, expected.array.mask)
        with pytest.raises(PointOutsideBounds):
            ours.point(499995, 4599995, coord_crs=UTM)


def test_a_preview_shows_the_scene_as_a_whole(archive: Path) -> None:
    with Reader(str(archive)) as ours, RasterioReader(str(decoded(archive))) as theirs:
        same(ours.preview(), theirs.preview())
        found, expected = ours.preview(max_size=100), theirs.preview(max_size=100)
        assert found.array.shape == expected.array.shape and found.bounds == pytest.approx(expected.bounds)
        assert (found.array.mask == expected.array.mask).mean() > 0.95
        assert ours.preview(height=50, width=60).array.shape[1:] == (50, 60)


def test_a_feature_masks_what_is_around_it(archive: Path) -> None:
    ring = [[500500, 4599000], [503000, 4599500], [502000, 4596000], [500500, 4599000]]
    shape = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    options = {"shape_crs": UTM, "dst_crs": UTM}
    with Reader(str(archive)) as ours, RasterioReader(str(decoded(archive))) as theirs:
        found, expected = ours.feature(shape, **options), theirs.feature(shape, **options)
        same(found, expected)
        assert found.array.mask.any() and not found.array.mask.all()


def test_statistics_are_those_of_the_decoded_file(archive: Path) -> None:
    with Reader(str(archive)) as ours, RasterioReader(str(decoded(archive))) as theirs:
        found, expected = ours.statistics(), theirs.statistics()
        assert found.keys() == expected.keys()
        for band, values in expected.items():
            assert found[band].model_dump() == values.model_dump()
        assert ours.statistics(indexes=1, max_size=64).keys() == {"b1"}


def test_bands_that_nobody_asked_for_are_not_read(archives: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    plain = Scene.read

    def watched(self: Scene, window: Any = None, **options: Any) -> Any:
        asked.append(options["bands"])
        return plain(self, window, **options)

    monkeypatch.setattr(Scene, "read", watched)
    box = (500500, 4596000, 503000, 4598500)
    found = archives["nodata"]
    with Reader(str(found)) as ours, RasterioReader(str(decoded(found))) as theirs:
        for options in ({"indexes": (4, 2)}, {"indexes": 3}, {"expression": "b4/b1"}):
            same(ours.part(box, bounds_crs=UTM, **options), theirs.part(box, bounds_crs=UTM, **options))
        assert asked == [[1, 3], [2], [0, 3]]
        with pytest.raises(Exception, match="9"):
            ours.part(box, bounds_crs=UTM, indexes=9)
    with Reader(str(archives["alpha"])) as reader:
        reader.preview(indexes=1)
        assert asked[-1] == [0, 3]


def test_a_large_view_is_made_from_the_preview(archives: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    plain = Scene.read

    def watched(self: Scene, window: Any = None, **options: Any) -> Any:
        asked.append(options["out_shape"])
        return plain(self, window, **options)

    monkeypatch.setattr(Scene, "read", watched)
    with Reader(str(archives["plain"]), max_pixels=1000) as reader:
        found = reader.preview(max_size=300)
        assert asked == [(9, 10)] and found.array.shape == (3, 258, 300)
    with Reader(str(archives["plain"])) as reader:
        assert reader.preview(max_size=300).array.shape == (3, 258, 300)
        assert asked[-1] == (300, 350)


def test_a_box_far_larger_than_the_scene_reads_it_coarsely(
    archives: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    plain = Scene.read

    def watched(self: Scene, window: Any = None, **options: Any) -> Any:
        asked.append((window.shape, options["out_shape"]))
        return plain(self, window, **options)

    monkeypatch.setattr(Scene, "read", watched)
    with Reader(str(archives["plain"])) as reader:
        left, bottom, right, top = reader.bounds
        wide, high = right - left, top - bottom
        around = (left - 4 * wide, bottom - 4 * high, right + 5 * wide, top + 5 * high)
        for size, made in (({"height": 100, "width": 100}, (18, 21)), ({"max_size": 100}, (9, 10))):
            found = reader.part(around, bounds_crs=UTM, **size)
            assert 50 < found.array.mask[0].size - found.array.mask[0].sum() < 150
            assert asked[-1] == ((600, 700), made)
        corner = (right - wide / 10, bottom - 9 * high, right + 9 * wide, bottom + high)
        reader.part(corner, bounds_crs=UTM, height=100, width=100)  # a strip of 70 columns, all rows
        (rows, cols), shape = asked[-1]
        assert rows == 600 and cols >= 70 and max(shape) < 40


def test_a_box_beside_the_scene_gives_what_rio_tiler_gives(archives: dict[str, Path]) -> None:
    box = (400000, 4590000, 401000, 4591000)
    with Reader(str(archives["plain"])) as ours, RasterioReader(str(decoded(archives["plain"]))) as theirs:
        found, expected = (one.part(box, bounds_crs=UTM, width=32, height=32) for one in (ours, theirs))
        assert found.array.mask.all() and expected.array.mask.all()


def test_a_scene_without_a_place_is_refused(tmp_path: Path) -> None:
    made = geo_archive(tmp_path / "a", height=64, width=64, crs=None)
    with pytest.raises(ConfigError, match="does not say where it lies"):
        Reader(str(made))
    with pytest.raises(SourceError, match="name an archive that exists"):
        Reader(str(tmp_path / "none.ditic"))


def test_a_turned_scene_lies_where_its_transform_says(tmp_path: Path) -> None:
    turned = rasterio.Affine(8, 6, 500000, 6, -8, 4600000)
    made = geo_archive(tmp_path / "a", transform=turned)
    with Reader(str(made)) as ours, RasterioReader(str(decoded(made))) as theirs:
        assert ours.bounds == pytest.approx(theirs.bounds)
        x, y = turned * (350.5, 200.5)
        box = (x - 300, y - 300, x + 300, y + 300)
        found, expected = (one.part(box, bounds_crs=UTM, width=64, height=64) for one in (ours, theirs))
        assert (found.array.filled(0) == expected.array.filled(0)).mean() > 0.99 and not found.array.mask.any()


# --- scenes that stay open


def test_readers_share_a_scene_until_the_archive_is_replaced(archives: dict[str, Path], tmp_path: Path) -> None:
    copied = shutil.copytree(archives["plain"], tmp_path / "a.ditic")
    with Reader(str(copied)) as one, Reader(str(copied)) as other:
        assert one.scene is other.scene
    with Reader(str(copied)) as again:
        assert again.scene is one.scene
    shutil.rmtree(copied)
    shutil.copytree(archives["mask"], copied)
    with Reader(str(copied)) as new:
        assert new.scene is not one.scene and new.info().nodata_type == "Mask"


def test_few_scenes_stay_open_and_none_is_closed_while_it_is_read(archives: dict[str, Path]) -> None:
    kept = Scenes(kept=1)
    with kept.borrow(str(archives["plain"])) as first:
        for name in ("nodata", "mask", "alpha"):
            with kept.borrow(str(archives[name])):
                pass
        assert first[0, 0].shape == (3,)
    with kept.borrow(str(archives["mask"])) as last:
        pass
    with pytest.raises(ConfigError, match="closed"):
        _ = first[...]
    assert last[0, 0].shape == (3,)
    kept.close()


def test_an_archive_that_opens_slowly_holds_up_nobody_else(
    archives: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, opened = threading.Event(), []
    plain = _shared.open_scene

    def slow(uri: str, **options: Any) -> Scene:
        opened.append(uri)
        if uri == str(archives["mask"]):
            assert gate.wait(60)
        return plain(uri, **options)

    monkeypatch.setattr(_shared, "open_scene", slow)
    kept, found = Scenes(), []

    def read() -> None:
        with kept.borrow(str(archives["mask"])) as scene:
            found.append(scene)

    waiting = [threading.Thread(target=read) for _ in range(3)]
    for thread in waiting:
        thread.start()
    with kept.borrow(str(archives["plain"])) as scene:
        assert scene[0, 0].shape == (3,) and not found
    gate.set()
    for thread in waiting:
        thread.join()
    assert len(found) == 3 and len(set(map(id, found))) == 1 and opened.count(str(archives["mask"])) == 1
    with pytest.raises(SourceError), kept.borrow("none.ditic"):
        pass
    kept.close()
    assert not kept._open


def test_tiles_are_read_by_many_threads_at_once(archives: dict[str, Path]) -> None:
    with RasterioReader(str(decoded(archives["mask"]))) as theirs:
        box = (500500, 4596000, 503000, 4598500)
        expected = theirs.part(box, bounds_crs=UTM)
    failed: list[BaseException] = []

    def read() -> None:
        try:
            with Reader(str(archives["mask"])) as ours:
                same(ours.part(box, bounds_crs=UTM), expected)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


# --- titiler


def test_titiler_serves_tiles_of_an_archive(archives: dict[str, Path]) -> None:
    from fastapi import FastAPI
    from starlette.testclient import TestClient
    from titiler.core.factory import TilerFactory

    app = FastAPI()
    app.include_router(TilerFactory(reader=Reader).router)
    url = str(archives["mask"])
    with TestClient(app) as client, Reader(url) as reader:
        tile = reader.tms.tile(*lnglat(503000, 4597500), reader.maxzoom)
        path = f"/tiles/WebMercatorQuad/{tile.z}/{tile.x}/{tile.y}.png"
        answer = client.get(path, params={"url": url})
        assert answer.status_code == 200 and answer.headers["content-type"] == "image/png"
        picture = np.asarray(Image.open(io.BytesIO(answer.content)))
        assert picture.shape == (256, 256, 4)
        expected = reader.tile(tile.x, tile.y, tile.z)
        np.testing.assert_array_equal(picture[..., :3], expected.array.data.transpose(1, 2, 0))
        np.testing.assert_array_equal(picture[..., 3], expected.mask)
        about = client.get("/WebMercatorQuad/tilejson.json", params={"url": url}).json()
        assert about["minzoom"] == reader.minzoom and about["maxzoom"] == reader.maxzoom
        assert client.get("/info", params={"url": url}).json()["dtype"] == "uint8"
        assert client.get("/statistics", params={"url": url}).json().keys() == {"b1", "b2", "b3"}
        lon, lat = lnglat(503000, 4597500)
        assert len(client.get(f"/point/{lon},{lat}", params={"url": url}).json()["values"]) == 3
