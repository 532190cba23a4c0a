"""Map tiles against GDAL's own warper, and TileJSON."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from leveled import InMemory
from pictures import landscape

from ditic_stream.doors.server.display import Picture, stretch_of
from ditic_stream.doors.server.mercator import EDGE, Places, check_tile
from ditic_stream.errors import ConfigError

UTM = (10.0, 0.0, 400000.0, 0.0, -10.0, 5650000.0)


def smooth(height: int, width: int) -> np.ndarray:
    """Slow waves in three bands: what two ways of interpolating agree on."""
    rows, cols = np.mgrid[0:height, 0:width]
    bands = [128 + 100 * np.sin(rows / (30 + 9 * band)) * np.cos(cols / (41 - 5 * band)) for band in range(3)]
    return np.stack(bands).astype(np.uint8)


def warped(pixels: np.ndarray, crs: str, transform: tuple[float, ...], z: int, x: int, y: int) -> np.ndarray:
    """The tile by rasterio: RGBA (256, 256, 4), from the full resolution."""
    from rasterio.transform import Affine, from_bounds
    from rasterio.warp import Resampling, reproject

    span = 2 * EDGE / 2**z
    left, top = x * span - EDGE, EDGE - y * span
    source = np.concatenate([pixels, np.full((1, *pixels.shape[1:]), 255, np.uint8)])
    out = np.zeros((4, 256, 256), np.uint8)
    reproject(
        source, out, src_transform=Affine(*transform), src_crs=crs,
        dst_transform=from_bounds(left, top - span, left + span, top, 256, 256), dst_crs="EPSG:3857",
        resampling=Resampling.bilinear, src_alpha=4, dst_alpha=4,
    )  # fmt: skip
    return out.transpose(1, 2, 0)


def tile_at(places: Places, z: int, share: float = 0.5) -> tuple[int, int, int]:
    """The tile of a zoom that holds the pixel `share` of the way down the scene's diagonal."""
    a, b, c, d, e, f = places._forward
    col, row = np.array([share * places.width]), np.array([share * places.height])
    x, y = places._to_web(a * col + b * row + c, d * col + e * row + f)
    at_x, at_y = float(x[0]), float(y[0])
    return z, int((at_x + EDGE) / (2 * EDGE) * 2**z), int((EDGE - at_y) / (2 * EDGE) * 2**z)


ROTATED = (8.0, 3.0, 400000.0, 3.0, -8.0, 5650000.0)
CASES = {
    "utm": ("EPSG:32633", UTM),
    "rotated": ("EPSG:32633", ROTATED),
    "degrees": ("EPSG:4326", (0.0002, 0.0, 7.0, 0.0, -0.0001, 47.0)),
    "web": ("EPSG:3857", (20.0, 0.0, 1500000.0, 0.0, -20.0, 6600000.0)),
    "polar": ("EPSG:3413", (500.0, 0.0, -200000.0, 0.0, -500.0, -1500000.0)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_tiles_at_full_detail_are_those_of_gdal(case: str, share: float) -> None:
    pytest.importorskip("rasterio")
    crs, transform = CASES[case]
    pixels = smooth(700, 900)
    levels = InMemory(pixels)
    places = Places(900, 700, crs, transform)
    key = tile_at(places, places.max_zoom, share)
    found = places.tile(Picture(levels, stretch_of(levels)), *key)
    expected = warped(pixels, crs, transform, *key)
    both = (found[..., 3] == 255) & (expected[..., 3] == 255)
    assert both.mean() > 0.02  # the tile does hold some of the scene
    assert np.mean((found[..., 3] > 0) != (expected[..., 3] > 0)) < 0.02  # they draw the border within a pixel
    assert np.abs(found[both].astype(int) - expected[both])[..., :3].max() <= 4


def test_coarse_tiles_read_coarse_levels_and_look_alike() -> None:
    pytest.importorskip("rasterio")
    levels = InMemory(smooth(1500, 2000))
    places = Places(2000, 1500, "EPSG:32633", UTM)
    picture = Picture(levels, stretch_of(levels))
    for z in range(places.max_zoom - 3, places.max_zoom + 1):
        levels.asked.clear()
        found = places.tile(picture, *tile_at(places, z))
        assert sum(window.height * window.width for window, _ in levels.asked) < 4 * 512 * 512
        expected = warped(levels.levels[0][0], "EPSG:32633", UTM, *tile_at(places, z))
        both = (found[..., 3] == 255) & (expected[..., 3] == 255)
        assert np.abs(found[both].astype(int) - expected[both])[..., :3].mean() < 3


def test_the_world_in_one_tile_holds_the_scene_where_it_lies() -> None:
    pytest.importorskip("rasterio")
    levels = InMemory(smooth(700, 900))
    places = Places(900, 700, "EPSG:3413", (5000.0, 0.0, -2000000.0, 0.0, -5000.0, -500000.0))
    found = places.tile(Picture(levels, stretch_of(levels)), 0, 0, 0)
    expected = warped(levels.levels[0][0], "EPSG:3413", (5000.0, 0.0, -2000000.0, 0.0, -5000.0, -500000.0), 0, 0, 0)
    assert 0.005 < (found[..., 3] > 0).mean() < 0.3
    assert np.mean((found[..., 3] > 0) != (expected[..., 3] > 0)) < 0.02


def test_neighbouring_tiles_meet() -> None:
    levels = InMemory(smooth(700, 900))
    places = Places(900, 700, *CASES["web"])
    picture = Picture(levels, stretch_of(levels))
    z, x, y = tile_at(places, places.max_zoom)
    left, right = places.tile(picture, z, x, y), places.tile(picture, z, x + 1, y)
    inside = np.abs(np.diff(left[..., :3].astype(int), axis=1)).max()
    across = np.abs(left[:, -1, :3].astype(int) - right[:, 0, :3]).max()
    assert across <= inside + 1


def test_a_tile_twice_as_large_has_twice_the_detail() -> None:
    levels = InMemory(smooth(700, 900))
    places = Places(900, 700, *CASES["web"])
    picture = Picture(levels, stretch_of(levels))
    z, x, y = tile_at(places, places.max_zoom - 1)
    large = places.tile(picture, z, x, y, 512)
    quarter = places.tile(picture, z + 1, 2 * x, 2 * y)
    assert np.abs(large[:256, :256].astype(int) - quarter).max() <= 2


def test_tiles_beside_the_scene_are_clear_and_read_nothing() -> None:
    levels = InMemory(smooth(70, 90))
    places = Places(90, 70, *CASES["web"])
    picture = Picture(levels, stretch_of(levels))
    levels.asked.clear()
    assert not places.tile(picture, 10, 0, 0).any() and not levels.asked
    for z, x, y in [(31, 0, 0), (-1, 0, 0), (3, 8, 0), (3, 0, -1)]:
        with pytest.raises(ConfigError, match="not on the map"):
            check_tile(z, x, y)


def test_tilejson_says_where_the_scene_lies() -> None:
    pytest.importorskip("rasterio")
    from rasterio.warp import transform_bounds

    places = Places(900, 700, "EPSG:32633", UTM)
    facts = places.tilejson("scene", "http://host/scene/tiles/{z}/{x}/{y}.webp")
    assert facts["tilejson"] == "3.0.0" and facts["tiles"] == ["http://host/scene/tiles/{z}/{x}/{y}.webp"]
    expected = transform_bounds("EPSG:32633", "EPSG:4326", 400000, 5650000 - 7000, 409000, 5650000)
    assert np.abs(np.array(facts["bounds"]) - expected).max() < 1e-3
    west, south, east, north = facts["bounds"]
    assert west < facts["center"][0] < east and south < facts["center"][1] < north
    assert 0 <= facts["minzoom"] == facts["center"][2] <= facts["maxzoom"] <= 30
    # Pixels of 10 m at 51 degrees north are 15.9 m on the map: zoom 13 has 19.1 m a pixel, 14 has 9.6.
    assert facts["maxzoom"] == 14 and facts["minzoom"] == 11


def test_a_scene_on_the_web_map_needs_no_rasterio(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "rasterio"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rasterio", None)
    levels = InMemory(landscape(300, 300).transpose(2, 0, 1))
    for case in ("web", "degrees"):
        places = Places(300, 300, *CASES[case])
        assert places.tile(Picture(levels, stretch_of(levels)), *tile_at(places, places.max_zoom)).any()
    with pytest.raises(ConfigError, match=r"ditic-stream\[geo\]"):
        Places(300, 300, "EPSG:32633", UTM)


@pytest.mark.parametrize(
    ("crs", "transform", "words"),
    [
        (None, UTM, "where it lies"),
        ("EPSG:32633", None, "where it lies"),
        ("EPSG:3857", (0.0, 0.0, 1.0, 0.0, 0.0, 1.0), "turned around"),
        ("EPSG:999999", UTM, "not understood"),
    ],
)
def test_a_scene_that_cannot_be_placed_says_why(crs: str | None, transform: tuple[float, ...], words: str) -> None:
    pytest.importorskip("rasterio")
    with pytest.raises(ConfigError, match=words):
        Places(10, 10, crs, transform)
