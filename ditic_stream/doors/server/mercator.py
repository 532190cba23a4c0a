"""Map tiles of the web: where they lie, which pixels of a scene fill them, and what TileJSON says of them.

In: a picture, its reference system and transform; z, x, y.  Out: RGBA tiles; a TileJSON 3.0.0 object.
Knows the square web map (EPSG:3857, tile 0/0/0 the world); asks rasterio about every other reference system.

    tile pixel centres --> metres of the web map --> coordinates of the scene --> pixels of a level --> bilinear samples

Between a pixel and its place on the map no shortcut is taken but one: coordinates are computed at every EVERY-th pixel
and linearly between, from zoom EXACT_BELOW on, where that moves nothing by a tenth of a pixel.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ditic_stream.doors.server.display import Picture
from ditic_stream.doors.server.resampling import Rgba, sample
from ditic_stream.errors import ConfigError
from ditic_stream.geometry import Window

EDGE = math.pi * 6378137.0
"""Half the width of the map, metres."""
MAX_ZOOM = 30
TILE = 256
EVERY, EXACT_BELOW = 8, 6
MAX_READ = 2**21
"""Pixels of a level read for one tile, at most: beyond, a coarser level is taken."""
WEB = {"EPSG:3857", "EPSG:900913", "EPSG:3785", "EPSG:102100"}
Floats = npt.NDArray[np.float64]


class Places:
    """A scene on the web map.

    crs: the scene's reference system, "EPSG:code" or WKT.  transform: (a, b, c, d, e, f), as Scene has it.
    ConfigError when the scene is not placed, cannot be, or needs rasterio and that is not here.
    """

    def __init__(self, width: int, height: int, crs: str | None, transform: tuple[float, ...] | None) -> None:
        if not crs or not transform:
            raise ConfigError("the scene does not say where it lies; ask for dzi, iiif or region")
        a, b, c, d, e, f = (float(value) for value in transform)
        determinant = a * e - b * d
        if determinant == 0 or not math.isfinite(determinant):
            raise ConfigError(f"transform {transform} cannot be turned around; ask for dzi, iiif or region")
        self._crs, self._forward = crs, (a, b, c, d, e, f)
        self._back = (e / determinant, -b / determinant, -d / determinant, a / determinant)
        self.width, self.height = width, height
        self._check()
        cols, rows = np.meshgrid(np.linspace(0, width, 33), np.linspace(0, height, 33))
        x, y = a * cols + b * rows + c, d * cols + e * rows + f
        try:
            x, y = self._to_web(x, y)
        except OutsideError:
            x, y = _each(self._crs, "EPSG:3857", x, y)
        known = np.isfinite(x) & np.isfinite(y)
        if not known.any():
            raise ConfigError(f"the scene lies outside the web map, in {crs[:60]}; ask for dzi, iiif or region")
        x, y = np.clip(x[known], -EDGE, EDGE), np.clip(y[known], -EDGE, EDGE)
        self.web = (float(x.min()), float(y.min()), float(x.max()), float(y.max()))
        # The zoom whose pixels are as fine as the scene's, and the one at which it fits into about a tile.
        span = max(self.web[2] - self.web[0], self.web[3] - self.web[1], 1e-3)
        detail = self._middle() or span / max(width, height)
        self.max_zoom = min(max(math.ceil(math.log2(2 * EDGE / TILE / detail) - 0.1), 0), MAX_ZOOM)
        self.min_zoom = min(max(math.floor(math.log2(2 * EDGE / span)), 0), self.max_zoom)

    def tilejson(self, name: str, address: str) -> dict[str, Any]:
        """TileJSON 3.0.0.  address: that of the tiles, with {z}, {x} and {y}."""
        west, south, east, north = (*_degrees(*self.web[:2]), *_degrees(*self.web[2:]))
        return {
            "tilejson": "3.0.0",
            "name": name,
            "scheme": "xyz",
            "tiles": [address],
            "minzoom": self.min_zoom,
            "maxzoom": self.max_zoom,
            "bounds": [west, south, east, north],
            "center": [(west + east) / 2, (south + north) / 2, self.min_zoom],
        }

    def tile(self, picture: Picture, z: int, x: int, y: int, size: int = TILE) -> Rgba:
        """The tile, uint8 (size, size, 4); transparent where the scene does not lie.  ConfigError beyond the map."""
        check_tile(z, x, y)
        span = 2 * EDGE / 2**z
        left, top = x * span - EDGE, EDGE - y * span
        if left >= self.web[2] or left + span <= self.web[0] or top <= self.web[1] or top - span >= self.web[3]:
            return np.zeros((size, size, 4), np.uint8)
        rows, cols = self._pixels(left, top, span, size, exact=z < EXACT_BELOW)
        seen = (rows > 0) & (rows < self.height) & (cols > 0) & (cols < self.width)
        if not seen.any():
            return np.zeros((size, size, 4), np.uint8)
        box = [(math.floor(one[seen].min()), math.ceil(one[seen].max())) for one in (rows, cols)]
        (first_row, last_row), (first_col, last_col) = box
        level = picture.level_of(_detail(rows, cols, seen))
        sizes = picture.levels.level_dimensions
        while level < len(sizes) - 1 and (last_row - first_row) * (last_col - first_col) / 4**level > MAX_READ:
            level += 1
        width, height = sizes[level]
        scale = 1 / 2**level
        top_row, left_col = max(math.floor(first_row * scale) - 1, 0), max(math.floor(first_col * scale) - 1, 0)
        window = Window(
            row=top_row,
            col=left_col,
            height=min(math.ceil(last_row * scale) + 1, height) - top_row,
            width=min(math.ceil(last_col * scale) + 1, width) - left_col,
        )
        rgba = picture.at_level(window, level)
        outside = ~((rows >= 0) & (rows <= self.height) & (cols >= 0) & (cols <= self.width))
        result = sample(rgba, rows * scale - top_row, cols * scale - left_col)
        result[outside] = 0
        return result

    def _middle(self) -> float | None:
        """Metres on the map from the middle pixel to its nearer neighbour; None where it is not on the map."""
        a, b, c, d, e, f = self._forward
        cols, rows = self.width / 2 + np.array([0, 1, 0]), self.height / 2 + np.array([0, 0, 1])
        try:
            x, y = self._to_web(a * cols + b * rows + c, d * cols + e * rows + f)
        except OutsideError:
            return None
        step = np.hypot(x[1:] - x[0], y[1:] - y[0]).min()
        return float(step) if step > 1e-6 else None

    def _pixels(self, left: float, top: float, span: float, size: int, *, exact: bool) -> tuple[Floats, Floats]:
        """(rows, cols) of the scene at the centres of a tile's pixels."""
        centres = (np.arange(size) + 0.5) / size
        known = centres if exact else np.linspace(0, 1, size // EVERY + 1)
        x, y = np.meshgrid(left + known * span, top - known * span)
        try:
            x, y = self._from_web(x, y)
        except OutsideError:
            if exact:
                return self._pixels(left, top, span, size, exact=False)
            x, y = _each("EPSG:3857", self._crs, x, y)
        a, b, d, e = self._back
        x, y = x - self._forward[2], y - self._forward[5]
        cols, rows = a * x + b * y, d * x + e * y
        return (rows, cols) if exact else (_between(rows, known, centres), _between(cols, known, centres))

    def _check(self) -> None:
        if self._crs in WEB or self._crs == "EPSG:4326":
            return
        try:
            from rasterio.crs import CRS
            from rasterio.errors import CRSError
        except ImportError:
            raise ConfigError(
                f"map tiles of a scene in {self._crs[:60]} need rasterio; install it with "
                "pip install 'ditic-stream[geo]'"
            ) from None
        try:
            CRS.from_user_input(self._crs)
        except CRSError as error:
            raise ConfigError(f"the scene's reference system {self._crs[:60]} is not understood: {error}") from error

    def _to_web(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        if self._crs in WEB:
            return x, y
        if self._crs == "EPSG:4326":
            with np.errstate(all="ignore"):
                north = np.log(np.tan(np.pi / 4 + np.radians(np.clip(y, -89.99, 89.99)) / 2)) * EDGE / np.pi
            return x * EDGE / 180, north
        return _transform(self._crs, "EPSG:3857", x, y)

    def _from_web(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        if self._crs in WEB:
            return x, y
        if self._crs == "EPSG:4326":
            return x * 180 / EDGE, np.degrees(2 * np.arctan(np.exp(y * np.pi / EDGE)) - np.pi / 2)
        return _transform("EPSG:3857", self._crs, x, y)


def check_tile(z: int, x: int, y: int) -> None:
    """ConfigError when the map has no tile z/x/y."""
    if not 0 <= z <= MAX_ZOOM or not (0 <= x < 2**z and 0 <= y < 2**z):
        raise ConfigError(f"tile {z}/{x}/{y} is not on the map; z goes to {MAX_ZOOM}, x and y from 0 to 2**z - 1")


def _detail(rows: Floats, cols: Floats, seen: npt.NDArray[np.bool_]) -> float:
    """Pixels of the scene from one pixel of the tile to the next, where it is least."""
    along = np.hypot(np.diff(rows, axis=1), np.diff(cols, axis=1))
    down = np.hypot(np.diff(rows, axis=0), np.diff(cols, axis=0))
    steps = []
    for values, both in ((along, seen[:, 1:] & seen[:, :-1]), (down, seen[1:] & seen[:-1])):
        if both.any():
            steps.append(float(np.median(values[both])))
    return min(steps, default=float(np.nanmedian(along)))


def _between(values: Floats, known: Floats, wanted: Floats) -> Floats:
    """Linear interpolation of a square grid, at `known` a side, to `wanted` a side."""
    place = np.clip(np.searchsorted(known, wanted, side="right") - 1, 0, len(known) - 2)
    share = (wanted - known[place]) / (known[place + 1] - known[place])
    rows = values[place] * (1 - share)[:, None] + values[place + 1] * share[:, None]
    result: Floats = rows[:, place] * (1 - share) + rows[:, place + 1] * share
    return result


class OutsideError(Exception):
    """A point lies where a projection gives no answer."""


def _transform(source: str, target: str, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Coordinates of one system in another; OutsideError when any has none."""
    from rasterio.env import Env
    from rasterio.errors import RasterioError
    from rasterio.warp import transform

    try:
        with Env():
            xs, ys = transform(source, target, x.ravel(), y.ravel())
    except (RasterioError, _gdal_error()) as error:
        raise OutsideError from error
    found = np.array([xs, ys], np.float64).reshape(2, *x.shape)
    found[~np.isfinite(found)] = np.nan
    return found[0], found[1]


def _each(source: str, target: str, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """The same, point by point: nan where there is no answer."""
    found = np.full((2, x.size), np.nan)
    for place, point in enumerate(zip(x.ravel(), y.ravel(), strict=True)):
        with contextlib.suppress(OutsideError):
            one = _transform(source, target, np.array(point[:1]), np.array(point[1:]))
            found[:, place] = one[0][0], one[1][0]
    return found[0].reshape(x.shape), found[1].reshape(x.shape)


def _gdal_error() -> type[Exception]:
    """What GDAL's own complaints are, which rasterio lets through."""
    from rasterio._err import CPLE_BaseError

    error: type[Exception] = CPLE_BaseError
    return error


def _degrees(x: float, y: float) -> tuple[float, float]:
    return x * 180 / EDGE, math.degrees(2 * math.atan(math.exp(y * math.pi / EDGE)) - math.pi / 2)
