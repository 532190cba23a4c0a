"""Take pixels to the units the networks see and back, and keep apart what must not be coded with loss.

In: pixels (bands, rows, columns) as a file stores them.  Out: float32 (groups, 3, rows, columns), where 0..1 is the
range most valid pixels lie in; and back.  Beside them go planes of bytes, stored without loss: which pixels hold no
data, what the mask says, all levels of alpha.  Knows numbers; knows nothing of files, networks or archives.

    pixels --+--> to_network   -->  u = (x - offset) / scale, unknown pixels filled smoothly, clipped to -0.5..1.5
             +--> planes       -->  validity codes, mask, bytes of alpha
    pixels <----- from_network <--  x = u scale + offset, rounded, clipped to the true range, planes applied exactly
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ditic_stream._bands import Band, Number, Plane, Radiometry
from ditic_stream._filling import fill_smoothly
from ditic_stream._survey import (
    INFINITE,
    MINUS_INFINITE,
    NAN,
    NODATA,
    VALID,
    Readable,
    blocks,
    codes_of,
    hidden_by,
    needs_survey,
    survey,
)
from ditic_stream.errors import FormatError, WindowError
from ditic_stream.geometry import Window

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
NETWORK_LOW, NETWORK_HIGH = -0.5, 1.5
"""What a network is shown; the share of samples outside is small by the choice of scale, and is reported."""


def read_window(source: Readable, window: Window, radiometry: Radiometry) -> tuple[Array, Bytes]:
    """Pixels (bands, rows, columns) and planes (planes, rows, columns; none: 0 of them) of a window, read once."""
    pixels = source.read(window)
    out = np.zeros((len(radiometry.planes), *window.shape), np.uint8)
    alpha, mask = source.read_alpha(window), source.read_mask(window)
    for number, plane in enumerate(radiometry.planes):
        if plane.kind == "validity":
            band = plane.bands[0]
            out[number] = codes_of(pixels[band], radiometry.bands[band].nodata)
        elif plane.kind == "mask" and mask is not None:
            out[number] = mask
        elif alpha is not None:
            byte = int(plane.kind[-1])
            out[number] = (alpha.view(f"u{alpha.itemsize}") >> (8 * byte)) & 255
    return pixels, out


def planes(source: Readable, window: Window, radiometry: Radiometry) -> Bytes:
    """The planes (planes, rows, columns) of a window."""
    return read_window(source, window, radiometry)[1]


def alpha_of(planes: Bytes, radiometry: Radiometry) -> Array | None:
    """The alpha band (rows, columns) in the scene's type, None when it has none."""
    if radiometry.alpha is None:
        return None
    dtype = np.dtype(radiometry.dtype)
    out = np.zeros(planes.shape[1:], f"u{dtype.itemsize}")
    for number, plane in enumerate(radiometry.planes):
        if plane.kind.startswith("alpha_"):
            out |= planes[number].astype(out.dtype) << out.dtype.type(8 * int(plane.kind[-1]))
    return out.view(dtype)


def mask_of(planes: Bytes, radiometry: Radiometry) -> Bytes | None:
    """The mask (rows, columns), 0 or 255, None when the scene has none."""
    for number, plane in enumerate(radiometry.planes):
        if plane.kind == "mask":
            mask: Bytes = np.where(planes[number] != 0, np.uint8(255), np.uint8(0))
            return mask
    return None


def join_alpha(pixels: Array, planes: Bytes, radiometry: Radiometry) -> Array:
    """Bands and alpha (samples, rows, columns) in the order of the file; the bands themselves without alpha."""
    alpha = alpha_of(planes, radiometry)
    return pixels if alpha is None or radiometry.alpha is None else np.insert(pixels, radiometry.alpha, alpha, axis=0)


def all_masked(planes: Bytes, radiometry: Radiometry) -> bool:
    """True when no pixel of any band is coded: planes alone restore the tile."""
    if not radiometry.planes:
        return False
    return not any(_coded(planes, radiometry, number).any() for number in range(len(radiometry.bands)))


def _validity(planes: Bytes, radiometry: Radiometry, band: int) -> Bytes | None:
    for number, plane in enumerate(radiometry.planes):
        if plane.kind == "validity" and band in plane.bands:
            codes: Bytes = planes[number]
            return codes
    return None


def _covered(planes: Bytes, radiometry: Radiometry) -> npt.NDArray[np.bool_] | None:
    return hidden_by(mask_of(planes, radiometry), alpha_of(planes, radiometry))


def _coded(planes: Bytes, radiometry: Radiometry, band: int) -> npt.NDArray[np.bool_]:
    """Pixels of a band that the network codes: valid, and not hidden under one known value."""
    codes = _validity(planes, radiometry, band)
    coded = np.ones(planes.shape[1:], bool) if codes is None else codes == VALID
    if radiometry.bands[band].hidden is not None:
        covered = _covered(planes, radiometry)
        if covered is not None:
            coded &= ~covered
    return coded


def in_sight(planes: Bytes, radiometry: Radiometry) -> npt.NDArray[np.bool_]:
    """Samples (bands, rows, columns) that the network codes, and that figures of quality are about."""
    return np.stack([_coded(planes, radiometry, number) for number in range(len(radiometry.bands))])


def value_range(radiometry: Radiometry) -> tuple[float, float]:
    """Lowest value, and the value range that PSNR refers to: that of the dtype, or of the valid pixels for float32."""
    if radiometry.dtype != "float32":
        limits = np.iinfo(radiometry.dtype)
        return float(limits.min), float(limits.max) - float(limits.min)
    low = min(float(band.low) for band in radiometry.bands)
    high = max(float(band.high) for band in radiometry.bands)
    return low, (high - low) or 1.0


def to_network(pixels: Array, planes: Bytes, radiometry: Radiometry) -> Floats:
    """Pixels (bands, rows, columns) as the networks see them: float32 (groups, 3, rows, columns) in -0.5..1.5.

    Pixels that are not coded are filled smoothly from those that are, so that nothing bleeds into the coded ones.
    """
    _check_shapes(pixels, planes, radiometry)
    out = np.empty((3 * radiometry.groups, *pixels.shape[1:]), np.float32)
    for number, band in enumerate(radiometry.bands):
        coded = _coded(planes, radiometry, number) if radiometry.planes else None
        out[number] = _to_units(pixels[number], band)
        if coded is not None and not coded.all():
            out[number] = fill_smoothly(out[number], coded)
    out[len(radiometry.bands) :] = out[len(radiometry.bands) - 1]
    np.clip(out, NETWORK_LOW, NETWORK_HIGH, out=out)
    return out.reshape(radiometry.groups, 3, *pixels.shape[1:])


def _to_units(pixels: Array, band: Band) -> Array:
    if pixels.dtype == np.uint8 and band.offset == 0:
        return pixels.astype(np.float32) / np.float32(band.scale)
    with np.errstate(invalid="ignore", over="ignore"):
        units: Array = (pixels.astype(np.float64) - band.offset) / band.scale
        return np.clip(units, -4.0, 4.0).astype(np.float32)


def from_network(units: Floats, planes: Bytes, radiometry: Radiometry) -> Array:
    """The pixels (bands, rows, columns) of network output (groups, 3, rows, columns), in the scene's type.

    Integers are rounded half to even; all values are clipped to the band's true range; a coded pixel that would come
    back as nodata moves to the nearest other value; nodata, NaN, infinities and hidden pixels are restored exactly.
    """
    bands = units.reshape(-1, *units.shape[2:])[: len(radiometry.bands)]
    return some_from_values(
        (one.astype(np.float64) * band.scale + band.offset for one, band in zip(bands, radiometry.bands, strict=True)),
        planes,
        radiometry,
        range(len(radiometry.bands)),
    )


def from_values(values: npt.NDArray[np.float64], planes: Bytes, radiometry: Radiometry) -> Array:
    """The pixels (bands, rows, columns) of values in the scene's own units, such as means of pixels; else the same."""
    if len(values) != len(radiometry.bands):
        raise WindowError(f"values {values.shape} do not fit {len(radiometry.bands)} bands")
    return some_from_values(iter(values), planes, radiometry, range(len(radiometry.bands)))


def some_from_values(
    values: Iterable[npt.NDArray[np.float64]], planes: Bytes, radiometry: Radiometry, bands: Sequence[int]
) -> Array:
    """Values (rows, columns) in the scene's units of some bands, one at a time, as pixels (bands, rows, columns) of its
    type, planes applied."""
    out = np.empty((len(bands), *planes.shape[1:]), np.dtype(radiometry.dtype))
    if len(planes) != len(radiometry.planes):
        raise WindowError(f"planes {planes.shape} do not fit {len(radiometry.planes)} planes of one window")
    covered = _covered(planes, radiometry) if radiometry.planes else None
    for pixels, number, exact in zip(out, bands, values, strict=True):
        band = radiometry.bands[number]
        pixels[...] = pixels_of(exact, band, out.dtype)
        if covered is not None and band.hidden is not None:
            pixels[covered] = band.hidden
        codes = _validity(planes, radiometry, number)
        if codes is not None and codes.any():
            _restore(pixels, codes, band.nodata)
    return out


def pixels_of(exact: npt.NDArray[np.float64], band: Band, dtype: Any) -> Array:
    """Values of one band, in its own units, as coded pixels of `dtype`: in its range, rounded, and never nodata."""
    exact = np.fmax(np.fmin(exact, band.high), band.low)  # fmin and fmax also replace NaN, should a network emit it
    kind = np.dtype(dtype)
    pixels = (np.rint(exact) if kind.kind != "f" else exact).astype(kind)
    _avoid(pixels, exact, band)
    return pixels


def _avoid(pixels: Array, exact: Array, band: Band) -> None:
    """Move pixels that would read as nodata to the nearest other value inside the band's range."""
    if band.nodata is None or not math.isfinite(band.nodata) or band.low == band.high:
        return
    hit = pixels == pixels.dtype.type(band.nodata)
    if not hit.any():
        return
    nodata = pixels.dtype.type(band.nodata)
    if pixels.dtype.kind == "f":
        above, below = np.nextafter(nodata, pixels.dtype.type(np.inf)), np.nextafter(nodata, pixels.dtype.type(-np.inf))
    else:
        above, below = band.nodata + 1, band.nodata - 1
    upwards = (exact[hit] >= band.nodata) & (float(above) <= band.high) | (float(below) < band.low)
    pixels[hit] = np.where(upwards, above, below).astype(pixels.dtype)


def _restore(pixels: Array, codes: Bytes, nodata: Number | None) -> None:
    values = {NODATA: nodata, NAN: math.nan, INFINITE: math.inf, MINUS_INFINITE: -math.inf}
    for code, value in values.items():
        here = codes == code
        if here.any():
            if value is None or (pixels.dtype.kind != "f" and not math.isfinite(value)):
                raise FormatError(
                    f"a validity plane holds code {code}, which means nothing in this band; distrust the archive"
                )
            pixels[here] = value


def outside(pixels: Array, planes: Bytes, radiometry: Radiometry) -> int:
    """Coded samples that `to_network` clips: beyond half a scale on either side of the robust range."""
    total = 0
    for number, band in enumerate(radiometry.bands):
        if pixels.dtype == np.uint8:
            continue
        units = _to_units(pixels[number], band)
        beyond = (units < NETWORK_LOW) | (units > NETWORK_HIGH)
        total += int((beyond & _coded(planes, radiometry, number)).sum())
    return total


def _check_shapes(pixels: Array, planes: Bytes, radiometry: Radiometry) -> None:
    if len(pixels) != len(radiometry.bands) or planes.shape != (len(radiometry.planes), *pixels.shape[1:]):
        raise WindowError(
            f"pixels {pixels.shape} and planes {planes.shape} do not fit {len(radiometry.bands)} bands and "
            f"{len(radiometry.planes)} planes of one window"
        )


__all__ = [
    "NETWORK_HIGH",
    "NETWORK_LOW",
    "VALID",
    "Band",
    "Plane",
    "Radiometry",
    "all_masked",
    "alpha_of",
    "blocks",
    "from_network",
    "from_values",
    "join_alpha",
    "mask_of",
    "needs_survey",
    "outside",
    "pixels_of",
    "planes",
    "read_window",
    "some_from_values",
    "survey",
    "to_network",
]
