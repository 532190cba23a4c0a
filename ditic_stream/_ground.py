"""Where the pixels of a scene lie on the ground, and which pixels a box on the ground touches.

In: the `geo` entry of a source's metadata, and sizes.  Out: transforms, bounds, windows.  Knows affine maps; knows
projections only through rasterio, where a caller asks for another reference system.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ditic_stream.errors import ConfigError, WindowError
from ditic_stream.geometry import Window
from ditic_stream.manifest import Manifest

Box = tuple[float, float, float, float]
Transform = tuple[float, float, float, float, float, float]
SLACK = 1e-6
"""Pixels a box may reach over a pixel's border before it touches the next one: coordinates are rounded in many ways."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """The place of one scene.  `name`: of the archive, for messages; `height`, `width`: pixels of the scene."""

    name: str
    height: int
    width: int
    epsg: int | None
    transform: Transform | None
    """x = a col + b row + c, y = d col + e row + f of the upper left corner of a pixel."""

    @classmethod
    def of(cls, manifest: Manifest, name: str) -> Ground:
        geo: Any = manifest.source.metadata.get("geo")
        geo = geo if isinstance(geo, dict) else {}
        values = geo.get("transform")
        return cls(
            name=name,
            height=manifest.image.height,
            width=manifest.image.width,
            epsg=geo.get("epsg"),
            transform=tuple(float(value) for value in values) if values else None,  # type: ignore[arg-type]
        )

    @property
    def bounds(self) -> Box | None:
        """(left, bottom, right, top) of the scene's corners, the smallest box that holds them, as rasterio gives it."""
        if self.transform is None:
            return None
        a, b, c, d, e, f = self.transform
        corners = [(col, row) for col in (0, self.width) for row in (0, self.height)]
        if not b and not d:
            return c, f + e * self.height, c + a * self.width, f
        xs, ys = [a * col + b * row + c for col, row in corners], [d * col + e * row + f for col, row in corners]
        return min(xs), min(ys), max(xs), max(ys)

    def window_of(self, bbox: Box, crs: str | None = None) -> Window:
        """The pixels that a box touches, clipped to the scene.

        bbox: (xmin, ymin, xmax, ymax).  crs: what its numbers mean, such as "EPSG:4326"; None: the scene's own.
        Raises ConfigError when the scene does not say where it lies, or rasterio is needed and not here; WindowError
        when they do not meet.
        """
        if not self.transform:
            raise ConfigError(f"{self.name} does not say where it lies; ask for pixels by a window")
        try:
            known = len(bbox) == 4 and all(map(math.isfinite, bbox))
        except TypeError:
            known = False
        if not known:
            raise ConfigError(f"bbox {bbox!r:.80} is not four numbers; the order is xmin,ymin,xmax,ymax")
        xmin, ymin, xmax, ymax = bbox if crs is None else _reproject(bbox, crs, self.epsg)
        if not (xmin <= xmax and ymin <= ymax):
            raise ConfigError(
                f"bbox {xmin:g},{ymin:g},{xmax:g},{ymax:g} is turned around; the order is xmin,ymin,xmax,ymax"
            )
        a, b, c, d, e, f = self.transform
        determinant = a * e - b * d
        if determinant == 0 or not math.isfinite(determinant):
            raise ConfigError(f"{self.name}: its transform {self.transform} cannot be turned around; use a window")
        corners = [(x - c, y - f) for x in (xmin, xmax) for y in (ymin, ymax)]
        cols = [(e * x - b * y) / determinant for x, y in corners]
        rows = [(a * y - d * x) / determinant for x, y in corners]
        left, right = max(math.floor(min(cols) + SLACK), 0), min(math.ceil(max(cols) - SLACK), self.width)
        top, bottom = max(math.floor(min(rows) + SLACK), 0), min(math.ceil(max(rows) - SLACK), self.height)
        if left >= right or top >= bottom:
            raise WindowError(
                f"bbox {xmin:.10g},{ymin:.10g},{xmax:.10g},{ymax:.10g} covers columns {min(cols):.1f}..{max(cols):.1f},"
                f" rows {min(rows):.1f}..{max(rows):.1f}, none of the scene's {self.width} x {self.height} pixels; "
                "choose one that does"
            )
        return Window(row=top, col=left, height=bottom - top, width=right - left)


def _reproject(bbox: Box, crs: str, epsg: int | None) -> Box:
    if epsg is None:
        raise ConfigError(
            "the scene's CRS has no EPSG code, so --bbox-crs cannot be applied; give --bbox in its own CRS"
        )
    try:
        from rasterio import Env
        from rasterio.crs import CRS
        from rasterio.errors import CRSError, RasterioError
        from rasterio.warp import transform_bounds
    except ImportError:
        raise ConfigError("--bbox-crs needs rasterio; install it with pip install 'ditic-stream[geo]'") from None
    try:
        with Env():  # so that what PROJ says goes to a log, and not to the terminal
            theirs = CRS.from_user_input(crs)
    except (CRSError, ValueError) as error:
        raise ConfigError(f"--bbox-crs {crs!r:.60} is no reference system; name one like EPSG:4326") from error
    try:
        left, bottom, right, top = transform_bounds(theirs, f"EPSG:{epsg}", *bbox)
    except (RasterioError, ValueError) as error:
        numbers = ",".join(f"{value:.10g}" for value in bbox)
        raise ConfigError(
            f"bbox {numbers} cannot be moved from {crs} to EPSG:{epsg}: {error}; check the order of its numbers"
        ) from error
    if not all(map(math.isfinite, (left, bottom, right, top))):
        numbers = ",".join(f"{value:.10g}" for value in bbox)
        raise ConfigError(
            f"bbox {numbers} in {crs} lies where EPSG:{epsg} is not defined; check the order of its numbers"
        )
    return float(left), float(bottom), float(right), float(top)
