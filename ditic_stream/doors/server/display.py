"""Scenes as people see them: any box of a scene at any size, as RGBA of 8 bits.

In: a scene by levels (pixels in its own type, and which of them are valid).  Out: RGBA, uint8 (rows, columns, 4).
Knows bands, stretch and levels; knows nothing of HTTP, projections or files.

    level with at least the detail asked for --> three bands --> stretch to 0..255 --> area means to the very size

A large picture is made in strips of rows, so that memory depends on the size asked for and not on the scene.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ditic_stream.doors.server.resampling import Rgba, area
from ditic_stream.errors import ConfigError
from ditic_stream.geometry import Window

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in full-resolution pixels; may lie between pixels."""
MAX_SIDE, MAX_AREA = 4096, 2**22
"""Largest picture made at once, pixels: a side, and all."""
STRIP_AREA = 2**20
"""Pixels of a level read at once, about, and of the picture made."""
STRETCH_SIDE = 64
"""The stretch is taken from the coarsest level with a side of at least this."""
LOW, HIGH = 2.0, 98.0
"""Percentiles of the valid pixels shown as black and as white."""


class Levels(Protocol):
    """A scene by levels, of which level k has ceil(size / 2**k) pixels a side."""

    @property
    def shape(self) -> tuple[int, int, int]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def alpha(self) -> int | None: ...

    @property
    def level_dimensions(self) -> tuple[tuple[int, int], ...]: ...

    def read(self, window: Window, *, level: int, bands: Sequence[int] | None = None) -> npt.NDArray[Any]:
        """(samples, rows, columns) of `window`, in pixels of the level; bands: the places of those wanted."""
        ...

    def valid(self, window: Window, *, level: int) -> npt.NDArray[np.uint8]:
        """(rows, columns), 0 where there is nothing to see."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """How samples become 0..255.  bands: places of red, green and blue (or of the one shown in grey) among the samples;
    low, high: the value of each shown as 0 and as 255."""

    bands: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    source: str
    """Where low and high come from, in words for people."""

    def apply(self, samples: npt.NDArray[Any], alpha: npt.NDArray[np.uint8]) -> Rgba:
        """RGBA (rows, columns, 4) of the bands (one or three, rows, columns) and their alpha."""
        out = np.empty((*samples.shape[1:], 4), np.uint8)
        for channel in range(3):
            place = min(channel, len(self.bands) - 1)
            if channel > place:
                out[..., channel] = out[..., 0]
            else:
                out[..., channel] = self._one(samples[place], self.low[place], self.high[place])
        out[..., 3] = alpha
        return out

    def _one(self, band: npt.NDArray[Any], low: float, high: float) -> npt.NDArray[np.uint8]:
        if band.dtype == np.uint8 and (low, high) == (0, 255):
            return band
        with np.errstate(all="ignore"):  # ranges may be asked for that no float32 holds
            units = (band.astype(np.float32) - np.float32(low)) * np.float32(255 / ((high - low) or 1.0))
        result: npt.NDArray[np.uint8] = np.nan_to_num(np.clip(units, 0, 255), nan=0.0).round().astype(np.uint8)
        return result


class Picture:
    """A scene ready to be shown.  Not for use by several threads unless its levels are."""

    def __init__(self, levels: Levels, stretch: Stretch) -> None:
        self.levels, self.stretch = levels, stretch
        self.height, self.width = levels.shape[:2]

    def render(self, box: Box, width: int, height: int, check: Callable[[], None] = lambda: None) -> Rgba:
        """`box` as a picture of `height` x `width` pixels: area means of the nearest level with as much detail.

        check: called between strips; may raise to stop.  ConfigError when the box leaves the scene or is empty, or the
        picture is larger than MAX_SIDE a side or MAX_AREA in all.
        """
        left, top, right, bottom = box
        if not (0 <= left < right <= self.width and 0 <= top < bottom <= self.height):
            raise ConfigError(
                f"box {left:g},{top:g},{right:g},{bottom:g} is empty or leaves the scene of {self.width} x "
                f"{self.height} pixels"
            )
        check_size(width, height)
        level = self.level_of(min(_detail(right - left, width), _detail(bottom - top, height)))
        scale = 1 / 2**level
        cols = np.linspace(left * scale, right * scale, width + 1)
        rows = np.linspace(top * scale, bottom * scale, height + 1)
        first = math.floor(cols[0])
        last = min(math.ceil(cols[-1]), self.levels.level_dimensions[level][0])
        read = STRIP_AREA / max(last - first, 1) * height / max(rows[-1] - rows[0], 1e-9)
        step = max(min(int(read), STRIP_AREA // width), 1)
        out = np.empty((height, width, 4), np.uint8)
        for row in range(0, height, step):
            check()
            edges = rows[row : row + step + 1]
            above = math.floor(edges[0])
            below = max(min(math.ceil(edges[-1]), self.levels.level_dimensions[level][1]), above + 1)
            window = Window(row=above, col=first, height=below - above, width=max(last - first, 1))
            part = self.at_level(window, level)
            out[row : row + step] = area(
                part, np.clip(edges - above, 0, part.shape[0]), np.clip(cols - first, 0, part.shape[1])
            )
        return out

    def tile(self, window: Window, level: int) -> Rgba:
        """`window`, in pixels of level `level`, which may be coarser than any the scene has: down to one pixel."""
        check_size(window.width, window.height)
        most = len(self.levels.level_dimensions) - 1
        if level <= most:
            return self.at_level(window, level)
        (width, height), times = self.levels.level_dimensions[most], 2 ** (level - most)
        cols = np.minimum(np.arange(window.col, window.col_end + 1) * float(times), width)
        rows = np.minimum(np.arange(window.row, window.row_end + 1) * float(times), height)
        return area(self.at_level(Window(row=0, col=0, height=height, width=width), most), rows, cols)

    def at_level(self, window: Window, level: int) -> Rgba:
        """`window`, in pixels of a level the scene has, as it is shown."""
        place, alpha = self.levels.alpha, self.levels.valid(window, level=level)
        wanted = [*self.stretch.bands, *(() if place is None else (place,))]
        samples = self.levels.read(window, level=level, bands=wanted)
        if place is not None and samples.dtype.kind == "u":
            alpha = np.minimum(alpha, (samples[-1] >> (8 * (samples.dtype.itemsize - 1))).astype(np.uint8))
        return self.stretch.apply(samples, alpha)

    def level_of(self, scale: float) -> int:
        """The coarsest level whose pixels are at most `scale` full-resolution pixels a side."""
        most = len(self.levels.level_dimensions) - 1
        return min(max(math.floor(math.log2(max(scale, 1)) + 1e-9), 0), most)


def _detail(extent: float, pixels: int) -> float:
    """Scene pixels a picture pixel.  Sizes are often rounded up, as those of levels are, which is no finer detail."""
    return extent / (pixels - 1 if pixels > 8 else pixels)


def check_size(width: int, height: int) -> None:
    """ConfigError when a picture of `width` x `height` is not made at once."""
    if width < 1 or height < 1:
        raise ConfigError(f"a picture of {width} x {height} pixels has none; ask for 1 x 1 at least")
    if width > MAX_SIDE or height > MAX_SIDE or width * height > MAX_AREA:
        raise TooLargeError(
            f"a picture of {width} x {height} pixels is too large; at most {MAX_SIDE} a side and {MAX_AREA} in all: "
            "ask for a smaller size, or in parts"
        )


class TooLargeError(ConfigError):
    """More is asked for than is made at once."""

    kind = "size"


def stretch_of(
    levels: Levels, bands: tuple[int, ...] | None = None, rescale: tuple[tuple[float, float], ...] | None = None
) -> Stretch:
    """How a scene is shown.

    bands: one or three places among the samples, from 0; None: the first three, or the first where there are fewer.
    rescale: (low, high) of each; None: 0 and 255 for uint8, else percentiles 2 and 98 of a coarse level.
    ConfigError when there is no such band.
    """
    samples = levels.shape[2]
    if bands is None:
        data = [place for place in range(samples) if place != levels.alpha]
        bands = tuple(data[:3] if len(data) >= 3 else data[:1])
    if len(bands) not in (1, 3) or any(not 0 <= band < samples for band in bands):
        raise ConfigError(
            f"bands {', '.join(str(band + 1) for band in bands) or 'none'} cannot be shown; name one or three of the "
            f"{samples} there are, counted from 1"
        )
    if rescale is not None:
        if any(not (math.isfinite(low) and math.isfinite(high) and low < high) for low, high in rescale):
            raise ConfigError("a range to show is turned around, empty or endless; give LOW,HIGH with LOW below HIGH")
        ranges = rescale * len(bands) if len(rescale) == 1 else rescale
        if len(ranges) != len(bands):
            raise ConfigError(f"{len(rescale)} ranges for {len(bands)} bands; give one, or one a band")
        words = "as asked for"
    elif levels.dtype == np.uint8:
        ranges, words = ((0.0, 255.0),) * len(bands), "none: 8 bits as they are"
    else:
        ranges, words = _percentiles(levels, bands), f"percentiles {LOW:g} and {HIGH:g} of an overview"
    return Stretch(
        bands=bands, low=tuple(low for low, _ in ranges), high=tuple(high for _, high in ranges), source=words
    )


def _percentiles(levels: Levels, bands: tuple[int, ...]) -> tuple[tuple[float, float], ...]:
    fit = [place for place, size in enumerate(levels.level_dimensions) if max(size) >= STRETCH_SIDE]
    level = max(fit, default=0)
    width, height = levels.level_dimensions[level]
    window = Window(row=0, col=0, height=height, width=width)
    samples, valid = levels.read(window, level=level, bands=bands), levels.valid(window, level=level) > 0
    ranges = []
    for band in samples:
        values = band[valid & np.isfinite(band)]
        low, high = (float(value) for value in np.percentile(values, (LOW, HIGH))) if values.size else (0.0, 1.0)
        ranges.append((low, high) if low < high else (low, low + 1.0))
    return tuple(ranges)
