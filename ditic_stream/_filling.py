"""Continue known pixels smoothly into unknown ones.

In: values and which of them are known.  Out: values everywhere.  Knows nothing of what the values mean.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def fill_smoothly(values: Array, known: npt.NDArray[np.bool_]) -> Array:
    """`values` (rows, columns) where `known`; elsewhere a smooth continuation, 0.5 when nothing is known.

    Pull averages of known pixels up a pyramid of halved sizes, push them down again where pixels are unknown
    (Gortler et al., The Lumigraph, 1996, section 3.5): linear time, and flat far from the known.
    """
    if not known.any():
        return np.full(values.shape, 0.5, np.float32)
    levels = [(np.where(known, values, 0).astype(np.float32), known.astype(np.float32))]
    while levels[-1][0].size > 1 and not levels[-1][1].all():
        value, weight = (_halve(part) for part in (levels[-1][0] * levels[-1][1], levels[-1][1]))
        levels.append((np.divide(value, weight, out=np.zeros_like(value), where=weight > 0), np.minimum(weight, 1)))
    filled = levels.pop()[0]
    while levels:
        value, weight = levels.pop()
        filled = np.where(weight > 0, value, _double(filled, value.shape))
    return filled


def _halve(part: Array) -> Array:
    """Sums over 2 x 2 pixels; a ragged edge stands alone."""
    rows, cols = part.shape
    even = np.pad(part, ((0, rows % 2), (0, cols % 2)))
    return np.asarray(even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2])


def _double(part: Array, shape: tuple[int, ...]) -> Array:
    """Twice the size, interpolated linearly, cut to `shape`."""
    for axis in (0, 1):
        moved = np.moveaxis(part, axis, 0)
        edge = np.concatenate([moved[:1], moved, moved[-1:]])
        wide = np.empty((2 * len(moved), *moved.shape[1:]), np.float32)
        wide[::2] = np.float32(0.75) * moved + np.float32(0.25) * edge[:-2]
        wide[1::2] = np.float32(0.75) * moved + np.float32(0.25) * edge[2:]
        part = np.moveaxis(wide[: shape[axis]], 0, axis)
    return part
