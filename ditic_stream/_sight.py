"""What of a scene is in sight, by its mask planes, and the means of what is.

In: planes (planes, rows, columns) of any level, and the radiometry that says what they are.  Out: flags, masks, the
planes of coarser levels, means.  Knows numbers; knows nothing of archives.

A block of pixels is a pixel of a coarser level.  Its mean is over the pixels in sight; where none is, the block is what
its upper left pixel is: nodata, NaN, hidden.  Planes shrink by the same rule, so every level is masked like a scene.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditic_stream._resampling import any_of, box_means, boxes
from ditic_stream.radiometry import VALID, Radiometry, alpha_of, mask_of

Array = NDArray[Any]
Bools = NDArray[np.bool_]
Uint8 = NDArray[np.uint8]


def band_of(sample: int, radiometry: Radiometry) -> int | None:
    """The band of a sample of the file; None for alpha."""
    alpha = radiometry.alpha
    return sample if alpha is None or sample < alpha else None if sample == alpha else sample - 1


def valid(planes: Uint8, radiometry: Radiometry, band: int | None) -> Bools:
    """Pixels (rows, columns) of a band that have a value."""
    for number, plane in enumerate(radiometry.planes):
        if plane.kind == "validity" and band in plane.bands:
            return np.asarray(planes[number] == VALID)
    return np.ones(planes.shape[1:], bool)


def visible(planes: Uint8, radiometry: Radiometry) -> Bools:
    """Pixels (rows, columns) that neither mask nor alpha hides."""
    mask, alpha = mask_of(planes, radiometry), alpha_of(planes, radiometry)
    seen = np.ones(planes.shape[1:], bool)
    if mask is not None:
        seen &= mask != 0
    if alpha is not None:
        seen &= alpha != 0
    return seen


def sight(planes: Uint8, radiometry: Radiometry, samples: Sequence[int]) -> Bools:
    """Samples (samples, rows, columns) that have a value and are visible."""
    seen = visible(planes, radiometry)
    return np.stack([valid(planes, radiometry, band_of(sample, radiometry)) & seen for sample in samples])


def dataset_mask(planes: Uint8, radiometry: Radiometry) -> Uint8:
    """0 or 255 (rows, columns): some band has a value, and the pixel is visible."""
    served = {band for plane in radiometry.planes for band in plane.bands}
    some = np.full(planes.shape[1:], len(served) < len(radiometry.bands))
    for number, plane in enumerate(radiometry.planes):
        if plane.kind == "validity":
            some |= planes[number] == VALID
    return np.where(some & visible(planes, radiometry), np.uint8(255), np.uint8(0))


def means(
    values: Array, planes: Uint8, radiometry: Radiometry, factor: int, bands: Sequence[int] | None = None
) -> NDArray[np.float64]:
    """Means of some bands (the leading ones), values (bands, rows, columns), over blocks of `factor` x `factor` pixels
    in sight; of those that have a value, where none of these is visible."""
    if not len(planes):
        return box_means(values, np.ones(values.shape[1:], bool), factor)[0]
    seen = visible(planes, radiometry)
    out = np.empty((len(values), *(-(-side // factor) for side in values.shape[1:])))
    for place, (band, pixels) in enumerate(zip(bands or range(len(values)), values, strict=True)):
        there = valid(planes, radiometry, band)
        out[place], some = box_means(pixels, there & seen, factor)
        if not some.all():
            out[place] = np.where(some, out[place], box_means(pixels, there, factor)[0])
    return out


def shrunk(planes: Uint8, radiometry: Radiometry, factor: int) -> Uint8:
    """The planes of blocks: valid, or not masked, where a pixel is; else the code of the upper left one.  Alpha is the
    mean, rounded, and 0 only where all of it is."""
    if factor == 1 or not len(planes):
        return planes[:, ::factor, ::factor]
    out = np.zeros((len(planes), *(-(-side // factor) for side in planes.shape[1:])), np.uint8)
    for number, plane in enumerate(radiometry.planes):
        if plane.kind == "validity":
            first = planes[number, ::factor, ::factor]
            out[number] = np.where(any_of(planes[number] == VALID, factor), VALID, first)
        elif plane.kind == "mask":
            out[number] = np.where(any_of(planes[number] != 0, factor), 255, 0)
    alpha = alpha_of(planes, radiometry)
    if alpha is not None:
        mean = boxes(alpha.astype(np.float64), factor) / boxes(np.ones(alpha.shape), factor)
        if alpha.dtype.kind != "f":
            mean = np.where((mean > 0) & (mean < 1), 1, np.rint(mean))
        bits = mean.astype(alpha.dtype).view(f"u{alpha.itemsize}")
        for number, plane in enumerate(radiometry.planes):
            if plane.kind.startswith("alpha_"):
                out[number] = (bits >> (8 * int(plane.kind[-1]))) & 255
    return out
