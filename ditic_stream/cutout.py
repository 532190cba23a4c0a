"""Cut one window out of an archive into a file, asked for in pixels or in ground coordinates.

In: an archive, and a window or a box.  Out: any of the outputs of `writer` with the metadata moved to its place.
Knows where a box lies among the pixels; the decoding and the formats are those of `regions`.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

from ditic_stream._paths import local_path
from ditic_stream.archive import Archive, open_archive
from ditic_stream.errors import ConfigError, WindowError
from ditic_stream.geometry import Window
from ditic_stream.regions import OnError, decompress

Box = tuple[float, float, float, float]
SLACK = 1e-6
"""Pixels a box may reach over a pixel's border before it touches the next one: coordinates are rounded in many ways."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cutout:
    """What was written, and from where.  damaged, uncoded, degraded: tiles, as in regions.Result."""

    out: str
    row: int
    col: int
    height: int
    width: int
    bands: int
    dtype: str
    damaged: tuple[str, ...]
    uncoded: tuple[str, ...]
    degraded: tuple[str, ...]
    warnings: tuple[str, ...]
    """What of the scene the file does not keep, one sentence each."""
    seconds: float


def region(
    archive: str | Path,
    out: str | Path,
    *,
    window: Window | None = None,
    bbox: Box | None = None,
    bbox_crs: str | None = None,
    workers: int = 1,
    device: str = "cpu",
    on_error: OnError = "stop",
    format: str | None = None,
    overwrite: bool = False,
) -> Cutout:
    """Decode one window into the file `out`: the exact crop of what `decompress` gives.

    window: scene pixels.  bbox: (xmin, ymin, xmax, ymax) in the scene's coordinates, or in those of `bbox_crs`; every
    pixel it touches, clipped to the scene.  .npy holds (rows, columns, bands and alpha).  format: as in `decompress`.
    Raises ConfigError when neither or both are given, `out` exists or the scene has no transform; WindowError outside
    the scene; StorageError when `out` cannot be written; and what decoding raises.
    """
    began, target = time.monotonic(), local_path(out)
    if (window is None) == (bbox is None):
        raise ConfigError("a region needs a window or a bbox; give one of the two")
    with open_archive(archive) as opened:
        if bbox is not None:
            window = window_of(opened, bbox, bbox_crs)
        assert window is not None
        image = opened.manifest.image
        window.within(image.height, image.width)
    result = decompress(
        archive, target, window=window, workers=workers, device=device, on_error=on_error, format=format,
        overwrite=overwrite,
    )  # fmt: skip
    return Cutout(
        out=str(target), row=window.row, col=window.col, height=window.height, width=window.width, bands=image.bands,
        dtype=image.dtype, damaged=result.damaged, uncoded=result.uncoded, degraded=result.degraded,
        warnings=result.warnings,
        seconds=round(time.monotonic() - began, 3),
    )  # fmt: skip


def window_of(archive: Archive, bbox: Box, bbox_crs: str | None = None) -> Window:
    """The pixels that a box on the ground touches, clipped to the scene.

    bbox: (xmin, ymin, xmax, ymax).  bbox_crs: what its numbers mean, such as "EPSG:4326"; None: the scene's own.
    Raises ConfigError when the scene does not say where it lies, or rasterio is needed and not here; WindowError when
    they do not meet.
    """
    geo, image = archive.manifest.source.metadata.get("geo") or {}, archive.manifest.image
    transform = geo.get("transform")
    if not transform:
        raise ConfigError(f"{archive.path.name} does not say where it lies; ask for pixels by --window")
    xmin, ymin, xmax, ymax = bbox if bbox_crs is None else _reproject(bbox, bbox_crs, geo.get("epsg"))
    if not (xmin <= xmax and ymin <= ymax):
        raise ConfigError(
            f"bbox {xmin:g},{ymin:g},{xmax:g},{ymax:g} is turned around; the order is xmin,ymin,xmax,ymax"
        )
    a, b, c, d, e, f = (float(value) for value in transform)
    determinant = a * e - b * d
    if determinant == 0 or not math.isfinite(determinant):
        raise ConfigError(f"{archive.path.name}: its transform {transform} cannot be turned around; use --window")
    corners = [(x - c, y - f) for x in (xmin, xmax) for y in (ymin, ymax)]
    cols = [(e * x - b * y) / determinant for x, y in corners]
    rows = [(a * y - d * x) / determinant for x, y in corners]
    left, right = max(math.floor(min(cols) + SLACK), 0), min(math.ceil(max(cols) - SLACK), image.width)
    top, bottom = max(math.floor(min(rows) + SLACK), 0), min(math.ceil(max(rows) - SLACK), image.height)
    if left >= right or top >= bottom:
        raise WindowError(
            f"bbox {xmin:.10g},{ymin:.10g},{xmax:.10g},{ymax:.10g} covers columns {min(cols):.1f}..{max(cols):.1f}, "
            f"rows {min(rows):.1f}..{max(rows):.1f}, none of the scene's {image.width} x {image.height} pixels; "
            "choose one that does"
        )
    return Window(row=top, col=left, height=bottom - top, width=right - left)


def _reproject(bbox: Box, crs: str, epsg: int | None) -> Box:
    if epsg is None:
        raise ConfigError(
            "the scene's CRS has no EPSG code, so --bbox-crs cannot be applied; give --bbox in its own CRS"
        )
    try:
        from rasterio.errors import RasterioError
        from rasterio.warp import transform_bounds
    except ImportError:
        raise ConfigError("--bbox-crs needs rasterio; install it with pip install 'ditic-stream[geo]'") from None
    try:
        left, bottom, right, top = transform_bounds(crs, f"EPSG:{epsg}", *bbox)
    except (RasterioError, ValueError) as error:
        raise ConfigError(f"--bbox-crs {crs}: {error}; name it like EPSG:4326") from error
    return float(left), float(bottom), float(right), float(top)
