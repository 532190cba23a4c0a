"""How far a decoded picture is from its source: squared error, largest error and MS-SSIM, from pieces of any size.

In: blocks of source and decoded pixels (bands, rows, columns).  Out: sums that add up, and the figures made from them.
Knows nothing of files, tiles or models; numpy only, so that a measurement starts without torch.

MS-SSIM (Wang, Simoncelli and Bovik 2003): 5 scales, an 11 x 11 Gaussian window of sigma 1.5, positions where the window
lies inside the picture, 2 x 2 means between scales (an odd last row or column is repeated), per band, then the mean of
the bands.  On sides that are multiples of 16 it equals pytorch-msssim, which pads odd sides in front with zeros.  It is
a product of powers of *means over positions*, so a scene's value follows exactly from sums over its blocks:

    scale j, position p   sees the pixels  16-aligned start .. (p + 11) * 2^j
    block of pixels       [--------- kept ---------|--- 160 more, to be seen only ---]

A block therefore brings `REACH` = 160 pixels below and to the right of what it answers for, unless the picture ends
there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[Any]
Sums = NDArray[np.float64]

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
SCALES = len(SCALE_WEIGHTS)
TAPS, SIGMA = 11, 1.5
REACH = (TAPS - 1) * 2 ** (SCALES - 1)
"""Pixels beyond a block that its coarsest positions see; a picture with a side of REACH or less has no MS-SSIM."""
ALIGN = 2 ** (SCALES - 1)
"""Blocks start, and what they answer for ends, on multiples of this many pixels."""
C1, C2 = np.float32(0.01**2), np.float32(0.03**2)

_gauss = np.exp(-((np.arange(TAPS) - TAPS // 2) ** 2) / (2 * SIGMA**2))
WINDOW: NDArray[np.float32] = (_gauss / _gauss.sum()).astype(np.float32)


@dataclass(slots=True)
class Errors:
    """Sums of the error of pixels seen so far, over all bands; `peak` is the value range PSNR refers to."""

    peak: float
    squared: float = 0.0
    largest: float = 0.0
    count: int = 0

    def add(self, source: Pixels, decoded: Pixels, valid: NDArray[np.bool_] | None = None) -> None:
        """Take in two arrays of one shape; where `valid` is given, only the samples it marks count."""
        difference = decoded.astype(np.float64) - source.astype(np.float64)
        if valid is not None:
            difference = difference[valid]
        if difference.size:
            flat = difference.ravel()
            self.squared += float(np.dot(flat, flat))
            self.largest = max(self.largest, float(np.abs(flat).max()))
            self.count += flat.size

    def merge(self, other: Errors) -> None:
        self.squared += other.squared
        self.largest = max(self.largest, other.largest)
        self.count += other.count

    @property
    def rmse(self) -> float | None:
        """Root of the mean squared error, source units; None when no sample counted."""
        return math.sqrt(self.squared / self.count) if self.count else None

    @property
    def psnr(self) -> float | None:
        """Decibels below `peak`; None when no sample counted or when there is no error at all."""
        return 10 * math.log10(self.peak**2 * self.count / self.squared) if self.squared else None


@dataclass(slots=True)
class Structure:
    """Sums for MS-SSIM of the positions seen so far.

    sums: (scales, 2, bands), of contrast-structure and of the whole SSIM.  counts: (scales,), positions a band.
    """

    bands: int
    sums: Sums = field(init=False)
    counts: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.sums = np.zeros((SCALES, 2, self.bands))
        self.counts = np.zeros(SCALES, np.int64)

    def add(self, source: Pixels, decoded: Pixels, *, rows: int | None = None, cols: int | None = None) -> None:
        """Take in one block, (bands, rows, columns), already scaled so that the value range is 0..1.

        rows, cols: how much of the block, from its upper left, these sums answer for; a multiple of ALIGN, or None for
        all positions the block holds (the block ends where the picture ends, or is the picture).
        """
        for band in range(self.bands):
            x, y = source[band].astype(np.float32), decoded[band].astype(np.float32)
            for scale in range(SCALES):
                if scale:
                    x, y = _halve(x), _halve(y)
                kept = tuple(None if n is None else n >> scale for n in (rows, cols))
                seen = tuple(slice(None if n is None else n + TAPS - 1) for n in kept)  # the rest serves coarser scales
                contrast, whole = ssim_maps(x[seen], y[seen])
                self.sums[scale, 0, band] += contrast.sum(dtype=np.float64)
                self.sums[scale, 1, band] += whole.sum(dtype=np.float64)
                if band == 0:
                    self.counts[scale] += contrast.size

    def merge(self, other: Structure) -> None:
        self.sums += other.sums
        self.counts += other.counts

    @property
    def ms_ssim(self) -> float | None:
        """The mean over bands; None when a scale has no position (a side of 160 pixels or less)."""
        if not self.counts.all():
            return None
        means = np.maximum(self.sums / self.counts[:, None, None], 0.0)
        factors = np.concatenate([means[:-1, 0], means[-1:, 1]])
        return float(np.prod(factors ** np.array(SCALE_WEIGHTS)[:, None], axis=0).mean())


def blocks(length: int, step: int) -> Iterator[tuple[int, int]]:
    """Cut 0..length into (start, end) of `step` each, the last one ragged.  `step` is a multiple of ALIGN."""
    return ((start, min(start + step, length)) for start in range(0, length, step))


def ssim_maps(x: NDArray[np.float32], y: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Contrast-structure and SSIM of one band (rows, columns) in 0..1, wherever the window lies inside."""
    if min(x.shape) < TAPS:
        empty = np.zeros((0, 0), np.float32)
        return empty, empty
    mean_x, mean_y = _blur(x), _blur(y)
    product, squares = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
    # Only the sum of the two variances is ever needed: four blurs instead of five.
    covariance = _blur(x * y) - product
    contrast = (covariance + covariance + C2) / (_blur(x * x + y * y) - squares + C2)
    luminance = (product + product + C1) / (squares + C1)
    return np.asarray(contrast, np.float32), np.asarray(contrast * luminance, np.float32)


def psnr(source: Pixels, decoded: Pixels, *, peak: float) -> float | None:
    """PSNR of whole arrays of one shape, decibels; None when they are equal."""
    errors = Errors(peak)
    errors.add(source, decoded)
    return errors.psnr


def ms_ssim(source: Pixels, decoded: Pixels, *, peak: float) -> float | None:
    """MS-SSIM of whole pictures (bands, rows, columns) with values 0..peak; None below 161 pixels a side."""
    structure = Structure(source.shape[0])
    structure.add(source / np.float32(peak), decoded / np.float32(peak))
    return structure.ms_ssim


def _blur(plane: NDArray[np.float32]) -> NDArray[np.float32]:
    """The Gaussian window at every position where it lies inside: (h, w) becomes (h - 10, w - 10)."""
    for axis in (0, 1):
        length = plane.shape[axis] - TAPS + 1
        taps = [plane[i : i + length] if axis == 0 else plane[:, i : i + length] for i in range(TAPS)]
        out = taps[TAPS // 2] * WINDOW[TAPS // 2]
        for i in range(TAPS // 2):  # the window is symmetric: one product serves two taps
            out += (taps[i] + taps[TAPS - 1 - i]) * WINDOW[i]
        plane = out
    return plane


def _halve(plane: NDArray[np.float32]) -> NDArray[np.float32]:
    # Rounding the side up keeps 161 pixels at 11 cells on the fifth scale, one window.
    even = np.pad(plane, [(0, n % 2) for n in plane.shape], mode="edge") if any(n % 2 for n in plane.shape) else plane
    return (even[0::2, 0::2] + even[0::2, 1::2] + even[1::2, 0::2] + even[1::2, 1::2]) * np.float32(0.25)
