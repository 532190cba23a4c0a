"""A reader for rio-tiler, and so for titiler: map tiles, parts, previews, points, features and statistics of a scene.

In: the name of an archive, or an open scene; what rio-tiler asks for.  Out: rio-tiler's ImageData and the like.
Knows which pixels of a scene a request needs, and at which level; how they are warped and masked is rio-tiler's own
work: it gets them as a small dataset in memory with the scene's nodata, mask, alpha and band names.

    titiler:  TilerFactory(reader=Reader)
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rasterio import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.features import bounds as feature_bounds
from rasterio.io import DatasetReader
from rasterio.warp import calculate_default_transform, transform_bounds
from rio_tiler.constants import WEB_MERCATOR_CRS, WEB_MERCATOR_TMS, WGS84_CRS
from rio_tiler.errors import PointOutsideBounds, TileOutsideBounds
from rio_tiler.expression import parse_expression
from rio_tiler.io.base import BaseReader
from rio_tiler.io.rasterio import Reader as RasterioReader
from rio_tiler.models import BandStatistics, ImageData, Info, PointData
from rio_tiler.utils import CRS_to_uri, cast_to_sequence, output_size

from ditic_stream.archive import PREVIEW_SCALE
from ditic_stream.doors._dataset import colours_for, dataset_of, has_mask, nodata_for
from ditic_stream.doors._pixels import bands_of
from ditic_stream.doors._shared import scenes
from ditic_stream.errors import ConfigError
from ditic_stream.geometry import Window
from ditic_stream.scene import Scene

Box = tuple[float, float, float, float]
MAX_PIXELS = 2**26
"""A map tile of 256 pixels at 1/32, whose records are some seconds of work."""
MERCATOR_ENDS = 85.06
"""Degrees of latitude beyond which the web map has no sensible resolution."""
MARGIN = 4
"""Pixels read around what was asked for, for kernels that look around (Lanczos takes three)."""


class Reader(BaseReader):
    """Reads a georeferenced archive.  A context manager.

    input: path or URI, or an open Scene, which stays open.  tms: the grid of tiles, a morecantile.TileMatrixSet.
    options: of rio-tiler's readers (nodata, unscale, ...).  device, on_error: of `ditic_stream.open`.
    max_pixels: scene pixels whose tiles are read for a result of a given size; one that shows more of the scene is made
    from the stored preview.  Archives stay open between the readers of one process, a few at a time.
    Raises ConfigError for a scene without a reference system or transform.
    """

    def __init__(
        self,
        input: str | Path | Scene,
        tms: Any = WEB_MERCATOR_TMS,
        options: dict[str, Any] | None = None,
        *,
        device: str = "cpu",
        on_error: str = "stop",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        super().__init__(input, tms)
        self.options, self.max_pixels = options or {}, max_pixels
        self._stack = contextlib.ExitStack()
        if isinstance(input, Scene):
            self.scene = input
        else:
            self.scene = self._stack.enter_context(scenes.borrow(str(input), device=device, on_error=on_error))
        try:
            self._place()
        except BaseException:
            self.close()
            raise

    def _place(self) -> None:
        scene = self.scene
        if scene.crs is None or scene.transform is None:
            raise ConfigError(f"{scene.name} does not say where it lies, so it has no map tiles; read it by its pixels")
        try:
            self.crs = CRS.from_user_input(scene.crs)
        except CRSError as error:
            raise ConfigError(f"{scene.name}: its reference system is not one that PROJ knows: {error}") from error
        self.bounds = scene.bounds
        self.transform = Affine(*scene.transform)
        self.height, self.width = scene.shape[:2]

    def close(self) -> None:
        """Give the scene back; the archive may stay open for the next reader."""
        self._stack.close()

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def minzoom(self) -> int:
        return int(self._minzoom)

    @property
    def maxzoom(self) -> int:
        return int(self._maxzoom)

    def info(self) -> Info:
        """What there is; reads no pixels."""
        scene, bands = self.scene, bands_of(self.scene)
        count = scene.shape[2]
        named = [(f"b{band + 1}", name or f"b{band + 1}") for band, name in enumerate(bands.descriptions)]
        nodata = self.options.get("nodata", nodata_for(scene))
        mask = "Mask" if has_mask(scene) else "None"
        kind = "Nodata" if nodata is not None else "Alpha" if scene.alpha is not None else mask
        return Info.model_validate(
            {
                "bounds": self.bounds,
                "crs": CRS_to_uri(self.crs) or self.crs.to_wkt(),
                "band_metadata": [(name, {}) for name, _ in named],
                "band_descriptions": named,
                "dtype": scene.dtype.name,
                "colorinterp": [one.name for one in colours_for(scene)],
                "nodata_type": kind,
                "driver": "ditic",
                "count": count,
                "width": self.width,
                "height": self.height,
                "overviews": [int(factor) for factor in scene.level_downsamples[1:]],
                "scales": bands.scales or (1.0,) * count,
                "offsets": bands.offsets or (0.0,) * count,
            }
            | ({} if nodata is None else {"nodata_value": float(nodata)})
        )

    def statistics(self, *args: Any, max_size: int = 1024, **options: Any) -> dict[str, BandStatistics]:
        """Statistics of bands, of the scene seen at `max_size` pixels at most; options as in rio-tiler."""
        height, width = output_size(dataset_height=self.height, dataset_width=self.width, max_size=max_size)
        with self._whole(height, width, options) as part:
            return dict(part.statistics(*args, max_size=None, height=height, width=width, **options))

    def tile(self, tile_x: int, tile_y: int, tile_z: int, tilesize: int | None = None, **options: Any) -> ImageData:
        """A map tile; TileOutsideBounds where the scene is not.  Options as in rio-tiler."""
        if not self.tile_exists(tile_x, tile_y, tile_z):
            raise TileOutsideBounds(f"Tile(x={tile_x}, y={tile_y}, z={tile_z}) is outside bounds")
        matrix, bbox = self.tms.matrix(tile_z), tuple(self.tms.xy_bounds(tile_x, tile_y, tile_z))
        crs = self.tms.rasterio_crs
        height, width = tilesize or matrix.tileHeight, tilesize or matrix.tileWidth
        return self.part(bbox, dst_crs=crs, bounds_crs=crs, height=height, width=width, **options)

    def part(
        self,
        bbox: Box,
        dst_crs: CRS | None = None,
        bounds_crs: CRS = WGS84_CRS,
        max_size: int | None = None,
        height: int | None = None,
        width: int | None = None,
        buffer: float | None = None,
        **options: Any,
    ) -> ImageData:
        """What lies in a box, at native resolution unless a size is given.  Options as in rio-tiler."""
        with self._around(bbox, bounds_crs, max_size, height, width, buffer, options) as part:
            if not height and not width:
                height, width = self._size(bbox, bounds_crs, dst_crs or bounds_crs, max_size, options)
            found = part.part(
                bbox, dst_crs=dst_crs, bounds_crs=bounds_crs, max_size=None if height and width else max_size,
                height=height, width=width, buffer=buffer, **options,
            )  # fmt: skip
        found.assets = [self.scene.uri]
        return found

    def preview(
        self, max_size: int = 1024, height: int | None = None, width: int | None = None, **options: Any
    ) -> ImageData:
        """The scene seen as a whole.  Options as in rio-tiler."""
        asked = {"max_size": max_size} if not (height or width) else {"output_height": height, "output_width": width}
        height, width = output_size(dataset_height=self.height, dataset_width=self.width, **asked)
        with self._whole(height, width, options) as part:
            found = part.preview(max_size=None, height=height, width=width, **options)
        found.assets = [self.scene.uri]
        return found

    def point(self, lon: float, lat: float, coord_crs: CRS = WGS84_CRS, **options: Any) -> PointData:
        """The pixel at a place; PointOutsideBounds outside.  Options as in rio-tiler."""
        box = (lon, lat, lon, lat)
        window = self._window(box, coord_crs, margin=0)
        if window is None:
            raise PointOutsideBounds("Point is outside dataset bounds")
        with self._around(box, coord_crs, None, None, None, None, options) as part:
            found = part.point(lon, lat, coord_crs=coord_crs, **options)
        found.assets = [self.scene.uri]
        return found

    def feature(
        self,
        shape: dict[str, Any],
        dst_crs: CRS | None = None,
        shape_crs: CRS = WGS84_CRS,
        max_size: int | None = None,
        height: int | None = None,
        width: int | None = None,
        buffer: float | None = None,
        **options: Any,
    ) -> ImageData:
        """What lies in a GeoJSON feature; the rest of its box is masked.  Options as in rio-tiler."""
        box = feature_bounds(shape.get("geometry", shape))
        with self._around(box, shape_crs, max_size, height, width, buffer, options) as part:
            if not height and not width:
                height, width = self._size(box, shape_crs, dst_crs or shape_crs, max_size, options)
            found = part.feature(
                shape, dst_crs=dst_crs, shape_crs=shape_crs, max_size=None if height and width else max_size,
                height=height, width=width, buffer=buffer, **options,
            )  # fmt: skip
        found.assets = [self.scene.uri]
        return found

    # --- what a request needs of the scene

    @contextmanager
    def _around(
        self, box: Box, crs: CRS, max_size: int | None, height: int | None, width: int | None, buffer: float | None,
        options: dict[str, Any],
    ) -> Iterator[_Part]:  # fmt: skip
        """A reader of the pixels that a box needs, at a level no coarser than what is asked for."""
        window = self._window(box, crs, margin=0)
        if window is None:  # rio-tiler says what it thinks of a box outside: it sees one pixel of the scene
            window = Window(row=0, col=0, height=1, width=1)
        made: list[float | None] = [height, width]
        if max_size and not (height or width):
            sides = box[3] - box[1], box[2] - box[0]
            made = [max_size * side / (max(sides) or 1) or max_size for side in sides]
        rows, cols = (side and side * share for side, share in zip(made, self._share(window, box, crs), strict=True))
        factor = _factor(window, self.max_pixels, rows, cols)
        margin = (MARGIN + math.ceil(buffer or 0)) * factor
        with self._part(window.grown(margin, height=self.height, width=self.width), factor, options) as part:
            yield part

    @contextmanager
    def _whole(self, height: int, width: int, options: dict[str, Any]) -> Iterator[_Part]:
        """A reader of the whole scene, at the level that serves a size."""
        window = Window(row=0, col=0, height=self.height, width=self.width)
        factor = _factor(window, self.max_pixels, height, width)
        with self._part(window, factor, options) as part:
            yield part

    def _size(
        self, box: Box, crs: CRS, dst_crs: CRS, max_size: int | None, options: dict[str, Any]
    ) -> tuple[int | None, int | None]:
        """(height, width) of a box at the resolution that the whole scene has in another reference system, which is not
        quite that of a part of it; None each where rio-tiler finds it by itself."""
        bounds = self.scene.bounds
        if bounds is None or dst_crs == self.crs or options.get("align_bounds_with_dataset"):
            return None, None
        if dst_crs == WEB_MERCATOR_CRS and self.crs.is_geographic and max(map(abs, bounds[1::2])) > MERCATOR_ENDS:
            return None, None
        if crs != dst_crs:
            box = transform_bounds(crs, dst_crs, *box, densify_pts=21)
        grid, _, _ = calculate_default_transform(self.crs, dst_crs, self.width, self.height, *bounds)
        sides = (box[3] - box[1]) / -grid.e, (box[2] - box[0]) / grid.a
        if not all(map(math.isfinite, sides)):
            return None, None
        height, width = (max(round(side), 1) for side in sides)
        found: tuple[int, int] = output_size(dataset_height=height, dataset_width=width, max_size=max_size)
        return found

    def _window(self, box: Box, crs: CRS, margin: int) -> Window | None:
        """The pixels that a box touches and `margin` more a side; None where there is none."""
        if crs != self.crs:
            box = transform_bounds(crs, self.crs, *box, densify_pts=21)
        if not all(map(math.isfinite, box)):
            return Window(row=0, col=0, height=self.height, width=self.width)
        corners = [~self.transform * (x, y) for x in (box[0], box[2]) for y in (box[1], box[3])]
        (left, right), (top, bottom) = ((min(axis), max(axis)) for axis in zip(*corners, strict=True))
        first, upper = max(math.floor(left) - margin, 0), max(math.floor(top) - margin, 0)
        last = min(max(math.ceil(right), math.floor(left) + 1) + margin, self.width)
        lower = min(max(math.ceil(bottom), math.floor(top) + 1) + margin, self.height)
        if first >= last or upper >= lower:
            return None
        return Window(row=upper, col=first, height=lower - upper, width=last - first)

    def _share(self, window: Window, box: Box, crs: CRS) -> tuple[float, float]:
        """The shares of a box's height and width that show a window: below 1 where the box leaves the scene."""
        left, top, right, bottom = window.col, window.row, window.col_end, window.row_end
        corners = [self.transform * (x, y) for x in (left, right) for y in (top, bottom)]
        xs, ys = zip(*corners, strict=True)
        place: Box = (min(xs), min(ys), max(xs), max(ys))
        if crs != self.crs:
            place = transform_bounds(self.crs, crs, *place, densify_pts=21)
        shares = []
        for low, high, first, last in ((1, 3, box[1], box[3]), (0, 2, box[0], box[2])):
            inside = min(place[high], last) - max(place[low], first)
            share = inside / (last - first) if last > first else 1.0
            shares.append(min(share, 1.0) if share > 0 and math.isfinite(share) else 1.0)
        return shares[0], shares[1]

    @contextmanager
    def _part(self, window: Window, factor: int, options: dict[str, Any]) -> Iterator[_Part]:
        """A reader of a window, each pixel of it over `factor` pixels a side of the scene, or a little more."""
        shape = max(window.height // factor, 1), max(window.width // factor, 1)
        with dataset_of(self.scene, self.crs, window, shape, _bands(self.scene, options)) as dataset:
            yield _Part(None, dataset=dataset, tms=self.tms, options=self.options)


class _Part(RasterioReader):
    """rio-tiler's own reader of the pixels that were read for one request; it needs no overviews, nor says so."""

    def __attrs_post_init__(self) -> None:
        dataset: DatasetReader = self.dataset
        self.bounds, self.crs, self.transform = tuple(dataset.bounds), dataset.crs, dataset.transform
        self.height, self.width = dataset.height, dataset.width
        self.colormap: dict[int, Any] = {}


def _factor(window: Window, max_pixels: int, height: float | None, width: float | None) -> int:
    """Scene pixels a pixel of the source covers a side: the largest power of two that is no coarser than the result,
    `height` and `width` pixels of which show the window; that of the preview where the tiles of more than `max_pixels`
    would have to be read."""
    ratios = [window.height / height] if height else []
    ratios += [window.width / width] if width else []
    ratio = min(ratios, default=1.0)
    factor = 2 ** math.floor(math.log2(ratio)) if ratio >= 2 else 1
    return max(factor, PREVIEW_SCALE) if ratios and window.height * window.width > max_pixels else int(factor)


def _bands(scene: Scene, options: dict[str, Any]) -> list[int] | None:
    """The samples that a request needs, counted from 0; None for all.  What it asks for wrongly rio-tiler tells."""
    if options.get("expression"):
        found = set(parse_expression(options["expression"]))
    elif options.get("indexes"):
        found = set(cast_to_sequence(options["indexes"]))
    else:
        return None
    alpha = set() if scene.alpha is None else {scene.alpha}
    return sorted({index - 1 for index in found if 1 <= index <= scene.shape[2]} | alpha) or [0]
