"""Means of boxes of pixels, weighted by what is in sight: halving for levels, any ratio for a shape asked for.

In: values and which of them count.  Out: means in float64, and where at least one counted.  Knows arrays alone.

A sum over a box is taken in float64, rows first, in one order, so that a mean has the same bits whichever window it is
computed in.  Integers up to 32 bits have exact sums.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Array = NDArray[Any]


def boxes(values: Array, factor: int) -> Array:
    """Sums over boxes of `factor` x `factor` of the last two axes; the last ones are smaller where sizes are ragged."""
    rows = np.add.reduceat(values, np.arange(0, values.shape[-2], factor), axis=-2)
    return np.asarray(np.add.reduceat(rows, np.arange(0, values.shape[-1], factor), axis=-1))


def any_of(flags: Bools, factor: int) -> Bools:
    """True where a box of `factor` x `factor` of the last two axes holds one that is."""
    rows = np.logical_or.reduceat(flags, np.arange(0, flags.shape[-2], factor), axis=-2)
    return np.asarray(np.logical_or.reduceat(rows, np.arange(0, flags.shape[-1], factor), axis=-1))


def box_means(values: Array, counts: Bools, factor: int) -> tuple[Floats, Bools]:
    """Means over boxes of the values that count, and where one does; 0 elsewhere.  Both (..., rows, columns)."""
    number = boxes(counts.astype(np.float64), factor)
    total = boxes(np.where(counts, values, 0).astype(np.float64), factor)
    return total / np.maximum(number, 1), number > 0


def between(values: Array, counts: Bools, rows: Floats, cols: Floats) -> Floats:
    """Values (rows, columns) drawn linearly between the middles of those that count; 0 where none of the four does.

    rows, cols: where, counted from the middle of the first; beyond the last ones are the last ones.
    """
    weight = _linear(_linear(counts.astype(np.float64), rows, 0), cols, 1)
    total = _linear(_linear(np.where(counts, values, 0).astype(np.float64), rows, 0), cols, 1)
    return np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)


def _linear(values: Floats, at: Floats, axis: int) -> Floats:
    at = at.clip(0, values.shape[axis] - 1)
    before = np.floor(at).astype(np.intp)
    after = np.minimum(before + 1, values.shape[axis] - 1)
    part = (at - before).reshape((-1, 1) if axis == 0 else (1, -1))
    return np.asarray(values.take(before, axis) * (1 - part) + values.take(after, axis) * part)


def area_means(
    values: Array, counts: Bools, rows: tuple[Floats, Floats], cols: tuple[Floats, Floats]
) -> tuple[Floats, Bools]:
    """Means over boxes with any borders: a value counts by the area it shares with the box.

    rows, cols: the borders of the values along their axis, and those of the boxes, both ascending.  Values and counts
    are (..., rows, columns).  Returns means, and where something counts.
    """
    weight = _integrate(_integrate(counts.astype(np.float64), *rows, axis=-2), *cols, axis=-1)
    total = np.where(counts, values, 0).astype(np.float64)
    total = _integrate(_integrate(total, *rows, axis=-2), *cols, axis=-1)
    smallest = np.finfo(np.float64).eps * weight.max(initial=1.0)
    seen = weight > smallest
    return np.divide(total, weight, out=np.zeros_like(total), where=seen), seen


def _integrate(values: Floats, borders: Floats, wanted: Floats, axis: int) -> Floats:
    """The integral over each wanted interval of a function that is constant between `borders`."""
    moved = np.moveaxis(values, axis, -1)
    sums = np.zeros((*moved.shape[:-1], moved.shape[-1] + 1))
    np.cumsum(moved * np.diff(borders), axis=-1, out=sums[..., 1:])
    at = np.clip(np.searchsorted(borders, wanted, side="right") - 1, 0, moved.shape[-1] - 1)
    upto = sums[..., at] + moved[..., at] * (wanted - borders[at])
    return np.moveaxis(np.diff(upto, axis=-1), -1, axis)
