"""Read a scene once, by windows, and choose how its bands map to network units and which planes lie beside them.

In: a source.  Out: Radiometry.  Knows numbers; knows nothing of files, networks or archives.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ditic_stream._bands import Band, Number, Plane, Radiometry
from ditic_stream.geometry import Window

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]
VALID, NODATA, NAN, INFINITE, MINUS_INFINITE = range(5)
"""Codes of a validity plane."""
QUANTILES = (0.0005, 0.9995)
"""Valid samples that 0..1 covers when a few extreme ones would squeeze the rest; half as much again fits each side."""
SURVEY_SAMPLES = 2**21
"""Samples kept, over all bands, to find the quantiles."""


class Readable(Protocol):
    """What a survey asks of a source; see reader.Source."""

    height: int
    width: int
    bands: int
    dtype: str
    has_mask: bool

    @property
    def nodata(self) -> tuple[Number | None, ...] | None: ...
    @property
    def alpha(self) -> Any: ...
    def read(self, window: Window) -> Array: ...
    def read_alpha(self, window: Window) -> Array | None: ...
    def read_mask(self, window: Window) -> Bytes | None: ...


def needs_survey(source: Readable) -> bool:
    """False for plain 8-bit pictures: x / 255 and no planes, whatever they hold."""
    return source.dtype != "uint8" or source.nodata is not None or source.alpha is not None or source.has_mask


def survey(source: Readable, strips: Iterable[Window] | None = None) -> Radiometry:
    """Read the scene once, by windows, and choose maps and planes.  8-bit bands are x / 255, never stretched.

    strips: windows that cover the scene; `blocks` when None.  Nothing is read where `needs_survey` is
    False.
    Raises SourceError when pixels cannot be read.
    """
    if not needs_survey(source):
        return Radiometry(dtype=source.dtype, bands=(Band(),) * source.bands)
    nodata = source.nodata or (None,) * source.bands
    seen, same, every = (
        [_Seen() for _ in nodata],
        True,
        max(1, source.height * source.width * source.bands // SURVEY_SAMPLES),
    )
    for window in strips if strips is not None else blocks(source):
        pixels = source.read(window)
        hidden = hidden_by(source.read_mask(window), source.read_alpha(window))
        codes = [codes_of(band, value) for band, value in zip(pixels, nodata, strict=True)]
        same = same and all(np.array_equal(code, codes[0]) for code in codes[1:])
        for band, code, one in zip(pixels, codes, seen, strict=True):
            one.add(band, code, hidden, every)
    invalid = [number for number, one in enumerate(seen) if one.invalid]
    planes = [
        Plane(kind="validity", bands=tuple(group))
        for group in ([invalid] if same and invalid else [[n] for n in invalid])
    ]
    if source.has_mask:
        planes.append(Plane(kind="mask"))
    if source.alpha is not None:
        planes += [Plane(kind=f"alpha_{byte}") for byte in range(np.dtype(source.dtype).itemsize)]
    return Radiometry(
        dtype=source.dtype,
        bands=tuple(one.band(source.dtype, value) for one, value in zip(seen, nodata, strict=True)),
        planes=tuple(planes),
        alpha=None if source.alpha is None else source.alpha.index,
    )


def blocks(source: Readable, *, rows: int = 512, limit: int = 2**25) -> Iterator[Window]:
    """Windows that cover a scene row by row, each of at most `limit` bytes of pixels over all bands.

    Many bands get up to four times that, 128 MB: lower windows would have every tile of the file decoded again.
    """
    pixel = source.bands * np.dtype(source.dtype).itemsize
    while rows > 1 and rows * 512 * pixel > 4 * limit:
        rows //= 2
    wide = max(512, limit // (rows * pixel) // 512 * 512)
    for row in range(0, source.height, rows):
        for col in range(0, source.width, wide):
            yield Window(row=row, col=col, height=min(rows, source.height - row), width=min(wide, source.width - col))


class _Seen:
    """What a survey has seen of one band: extremes and a sample, apart for pixels in sight and under the mask."""

    def __init__(self) -> None:
        self.invalid = False
        self._low, self._high = [math.inf, math.inf], [-math.inf, -math.inf]
        self._samples: list[list[Array]] = [[], []]

    def add(self, pixels: Array, codes: Bytes, hidden: npt.NDArray[np.bool_] | None, every: int) -> None:
        valid = codes == VALID
        self.invalid = self.invalid or not valid.all()
        parts = [valid] if hidden is None else [valid & ~hidden, valid & hidden]
        step = every
        while math.gcd(step, pixels.shape[1]) > 1:  # else the sample would be a few whole columns
            step += 1
        for side, part in enumerate(parts):
            values = pixels[part] if not part.all() else pixels.reshape(-1)
            if values.size:
                self._low[side] = min(self._low[side], values.min().item())
                self._high[side] = max(self._high[side], values.max().item())
                self._samples[side].append(values[::step].copy())

    def band(self, dtype: str, nodata: Number | None) -> Band:
        constant = self._low[1] == self._high[1]
        hidden = self._low[1] if constant else None
        sides = [0] if constant else [0, 1]
        low, high = min(self._low[side] for side in sides), max(self._high[side] for side in sides)
        if low > high:  # no pixel is coded
            return Band(
                offset=0.0,
                scale=255.0 if dtype == "uint8" else 1.0,
                low=_zero(dtype),
                high=_zero(dtype),
                nodata=nodata,
                hidden=hidden,
            )
        if dtype == "uint8":
            return Band(low=low, high=high, nodata=nodata, hidden=hidden)
        sample = np.concatenate([part for side in sides for part in self._samples[side]])
        bottom, top = (float(value) for value in np.quantile(sample.astype(np.float64), QUANTILES, method="nearest"))
        if not float(high) - float(low) > 2 * (top - bottom):
            bottom, top = float(low), float(high)  # extremes cost less than a factor 2 of precision: show them all
        if not top > bottom:
            bottom, top = float(low), float(high)
        scale = top - bottom if top > bottom else 1.0
        return Band(offset=bottom, scale=scale, low=low, high=high, nodata=nodata, hidden=hidden)


def _zero(dtype: str) -> Number:
    return 0.0 if dtype == "float32" else 0


def codes_of(pixels: Array, nodata: Number | None) -> Bytes:
    """Validity codes (rows, columns) of one band."""
    codes = np.zeros(pixels.shape, np.uint8)
    if nodata is not None and math.isfinite(nodata):
        codes[pixels == pixels.dtype.type(nodata)] = NODATA
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        codes[np.isnan(pixels)] = NAN
        codes[np.isposinf(pixels)] = INFINITE
        codes[np.isneginf(pixels)] = MINUS_INFINITE
    return codes


def hidden_by(mask: Bytes | None, alpha: Array | None) -> npt.NDArray[np.bool_] | None:
    """Pixels that mask or alpha hide."""
    out: npt.NDArray[np.bool_] | None = None if mask is None else np.equal(mask, 0)
    if alpha is not None:
        clear: npt.NDArray[np.bool_] = alpha == 0
        out = clear if out is None else out | clear
    return out
