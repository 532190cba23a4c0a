"""Smaller copies of a picture while it is written, each half the one before, from strips that come in once.

In: blocks of rows from top to bottom, their mask.  Out: the blocks of every level, of the height that was asked for.
Knows what is in sight; knows no format.

A pixel of a level is the mean of the four of the level before it that are in sight: not nodata in their band, finite,
not masked, alpha not 0.  Where none is, it is the first of the four; a mean that would be nodata moves to the next
value.  Integers are rounded half to even; sides are rounded up, and at a ragged edge the last row or column counts
twice.  Alpha is the mean of all four; a mask says yes where one of the four does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ditic_stream._output import Array, checked

Uint8 = npt.NDArray[np.uint8]
NODATA_FIELD = 42113
AT_ONCE = 2**20
"""Samples halved at a time: intermediate sums take some 24 bytes each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What is not in sight: pixels of the value `nodata` (None: there is none), and those where sample `alpha` is 0."""

    nodata: float | None
    alpha: int | None

    @classmethod
    def of(cls, metadata: dict[str, Any], dtype: np.dtype[Any]) -> Sight:
        """As the metadata of a source says; a nodata value that the type cannot hold hides nothing."""
        value = nodata_of(metadata)
        if value is not None and dtype.kind in "ui":
            bounds = np.iinfo(dtype)
            value = value if value == value and value == int(value) and bounds.min <= value <= bounds.max else None
        elif value is not None:
            with np.errstate(over="ignore"):
                value = float(dtype.type(value))
        return cls(nodata=value, alpha=checked(metadata, "alpha", (int, type(None)), None))


def nodata_of(metadata: dict[str, Any]) -> float | None:
    """The nodata value among the kept fields, None where there is none or it is no number."""
    for field in metadata.get("fields", []):
        if field["code"] == NODATA_FIELD:
            try:
                value = float(str(field.get("text", "")).strip("\0 "))
            except ValueError:
                return None
            return value if value != value or abs(value) != math.inf else None
    return None


def sizes(height: int, width: int, side: int) -> list[tuple[int, int]]:
    """(height, width) of the levels, the picture itself first, down to one that fits into `side` x `side`."""
    levels = [(height, width)]
    while max(levels[-1]) > side:
        levels.append((-(-levels[-1][0] // 2), -(-levels[-1][1] // 2)))
    return levels


class Pyramid:
    """Takes the blocks of a picture and gives those of all its levels.

    levels: as `sizes` gives them.  rows: the height of the blocks that go in and out, even; the last one of a level
    may be lower.
    """

    def __init__(
        self, levels: list[tuple[int, int]], samples: int, dtype: np.dtype[Any], sight: Sight, rows: int, mask: bool
    ) -> None:
        self.levels, self._sight, self._rows = levels, sight, rows
        self._waiting = [_Rows(samples, dtype, size, rows, mask) for size in levels[1:]]

    def put(self, row: int, pixels: Array, mask: Uint8 | None, level: int = 0) -> Iterator[Block]:
        """The blocks that are whole now: this one, and those of smaller levels that it completes."""
        yield Block(level, row, pixels, mask)
        if level + 1 == len(self.levels):
            return
        below = self._waiting[level]
        below.add(*halved(pixels, mask, self._sight))
        if below.held == self._rows or row + pixels.shape[1] == self.levels[level][0]:
            first = below.row
            yield from self.put(first, *below.take(), level=level + 1)


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of one level, from `row` on: pixels (samples, rows, columns), mask (rows, columns)."""

    level: int
    row: int
    pixels: Array
    mask: Uint8 | None


class _Rows:
    """Rows of a level that wait until a block is full."""

    def __init__(self, samples: int, dtype: np.dtype[Any], size: tuple[int, int], rows: int, mask: bool) -> None:
        height = min(rows, size[0])
        self._pixels = np.empty((samples, height, size[1]), dtype)
        self._mask = np.empty((height, size[1]), np.uint8) if mask else None
        self.row = self.held = 0

    def add(self, pixels: Array, mask: Uint8 | None) -> None:
        into = slice(self.held, self.held + pixels.shape[1])
        self._pixels[:, into] = pixels
        if self._mask is not None and mask is not None:
            self._mask[into] = mask
        self.held += pixels.shape[1]

    def take(self) -> tuple[Array, Uint8 | None]:
        held, self.held = self.held, 0
        self.row += held
        return self._pixels[:, :held], None if self._mask is None else self._mask[:held]


def halved(pixels: Array, mask: Uint8 | None, sight: Sight) -> tuple[Array, Uint8 | None]:
    """(samples, ceil(rows / 2), ceil(columns / 2)) of (samples, rows, columns), and the mask likewise."""
    samples, height, width = pixels.shape
    out = np.empty((samples, -(-height // 2), -(-width // 2)), pixels.dtype)
    small = np.empty(out.shape[1:], np.uint8) if mask is not None else None
    step = max(AT_ONCE // max(width, 1) // 2 * 2, 2)
    for row in range(0, height, step):
        rows, into = slice(row, row + step), slice(row // 2, -(-min(row + step, height) // 2))
        shown: npt.NDArray[np.bool_] | None = None
        if mask is not None and small is not None:
            shown = _fours(mask[rows]) != 0
            small[into] = np.where(shown.any(0), 255, 0)
        if sight.alpha is not None:
            opaque = _fours(pixels[sight.alpha, rows]) != 0
            shown = opaque if shown is None else shown & opaque
        for sample in range(samples):
            fours = _fours(pixels[sample, rows])
            out[sample, into] = _mean(fours, None if sample == sight.alpha else _seen(fours, shown, sight), sight)
    return out, small


def _fours(rows: Array) -> Array:
    """(4, rows / 2, columns / 2): the four pixels that make one; a last odd row or column stands twice."""
    height, width = rows.shape
    if height % 2 or width % 2:
        rows = np.pad(rows, ((0, height % 2), (0, width % 2)), mode="edge")
    return np.stack([rows[0::2, 0::2], rows[0::2, 1::2], rows[1::2, 0::2], rows[1::2, 1::2]])


def _seen(fours: Array, shown: npt.NDArray[np.bool_] | None, sight: Sight) -> npt.NDArray[np.bool_] | None:
    """Which of the four count; None when all do."""
    if fours.dtype.kind == "f":
        finite = np.isfinite(fours)
        if not finite.all():
            shown = finite if shown is None else shown & finite
    if sight.nodata is not None and sight.nodata == sight.nodata:
        data = fours != fours.dtype.type(sight.nodata)
        shown = data if shown is None else shown & data
    return shown


def _mean(fours: Array, seen: npt.NDArray[np.bool_] | None, sight: Sight) -> Array:
    dtype = fours.dtype
    if seen is None:
        means: Array = fours.sum(0, dtype=np.float64) / 4
        plain: Array = (means if dtype.kind == "f" else np.rint(means)).astype(dtype)
        return plain
    count = seen.sum(0)
    means = np.where(seen, fours, 0).sum(0, dtype=np.float64) / np.maximum(count, 1)
    out: Array = (means if dtype.kind == "f" else np.rint(means)).astype(dtype)
    if sight.nodata is not None and sight.nodata == sight.nodata:
        value = dtype.type(sight.nodata)
        if dtype.kind == "f":
            other = np.nextafter(value, dtype.type(math.inf))
        else:
            other = value + dtype.type(1) if value < np.iinfo(dtype).max else value - dtype.type(1)
        out[out == value] = other
    out[count == 0] = fours[0][count == 0]
    return out
