"""numpy's basic indexing of an array that is read by windows: what to read, and how to pick from it.

In: an index as Python hands it to `__getitem__`, and a shape.  Out: for each axis the range read and the picker
applied to it.  Knows numbers; reads nothing.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Pick:
    """One axis: read [first, end), then take `step`, an int picker, or a slice of what was read."""

    first: int
    end: int
    take: int | slice

    @property
    def empty(self) -> bool:
        return self.first >= self.end


def picks_of(index: Any, shape: tuple[int, ...]) -> list[Pick]:
    """A Pick for each axis of `shape`.  Ints, slices (any step), one ellipsis; IndexError for all else."""
    parts = list(index) if isinstance(index, tuple) else [index]
    places = [place for place, part in enumerate(parts) if part is Ellipsis]
    if len(places) > 1:
        raise IndexError("an index can only have a single ellipsis ('...')")
    if places:
        parts[places[0] : places[0] + 1] = [slice(None)] * (len(shape) + 1 - len(parts))
    parts += [slice(None)] * (len(shape) - len(parts))
    if len(parts) != len(shape):
        raise IndexError(
            f"too many indices: {len(parts)} for the {len(shape)} axes (rows, columns, samples) of a scene"
        )
    return [_pick(part, length, axis) for axis, (part, length) in enumerate(zip(parts, shape, strict=True))]


def _pick(part: Any, length: int, axis: int) -> Pick:
    if isinstance(part, slice):
        first, end, step = part.indices(length)
        count = len(range(first, end, step))
        if not count:
            return Pick(0, 0, slice(0, 0))
        last = first + (count - 1) * step
        if step > 0:
            return Pick(first, last + 1, slice(None, None, step))
        return Pick(last, first + 1, slice(None, None, step))
    if isinstance(part, bool) or part is None or type(part).__name__ == "bool_":
        raise IndexError(_other(part))
    try:
        at = operator.index(part)
    except TypeError:
        raise IndexError(_other(part)) from None
    if not -length <= at < length:
        raise IndexError(f"index {at} is out of bounds for axis {axis} with size {length}")
    return Pick(at % length, at % length + 1, 0)


def _other(part: Any) -> str:
    words = repr(part)
    return (
        f"index {words if len(words) < 60 else words[:57] + '...'} is neither a number, a slice nor an ellipsis; read "
        "the window around it and index the array that comes back"
    )
