"""A window as so many pixels as a caller asks for, out of the level that is fine enough for them.

In: levels, a window of one, and a shape.  Out: samples of that shape, and which of them are in sight.
Knows which level to take and where borders lie; means and pixels are those of _resampling and _levels.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ditic_stream._decoding import Pixels
from ditic_stream._levels import Levels
from ditic_stream._pyramid import coarser
from ditic_stream._resampling import area_means
from ditic_stream.errors import ConfigError
from ditic_stream.geometry import Window

MAX_VALUES = 2**27
"""Values of a resampled window: each takes some 33 bytes while areas are added up, 4 GB in all."""


def reshaped(
    levels: Levels, level: int, window: Window, out_shape: tuple[int, int], samples: Sequence[int]
) -> tuple[Pixels, NDArray[np.bool_]]:
    """A window of a level as `out_shape` pixels: means over the areas they cover, of the coarsest level that is
    no coarser than they are."""
    try:
        rows, cols = (operator.index(side) for side in out_shape)
    except (TypeError, ValueError):
        raise ConfigError(f"out_shape {out_shape!r:.40} is no pair of whole numbers; give (rows, columns)") from None
    if rows < 1 or cols < 1:
        raise ConfigError(f"out_shape {out_shape} is empty; give (rows, columns), 1 or more each")
    if rows * cols * len(samples) > MAX_VALUES:
        raise ConfigError(
            f"out_shape {rows} x {cols} of {len(samples)} samples is {rows * cols * len(samples)} values; at most "
            f"{MAX_VALUES} are made at once: read it in parts, by windows"
        )
    ratio = min(window.height / rows, window.width / cols)
    more = min(max(int(math.log2(ratio)) if ratio >= 1 else 0, 0), levels.count - 1 - level)
    source = coarser(window, more)
    pixels, planes = levels.read(level + more, source, samples)
    height, width = levels.shape(level)
    down, across = (
        np.linspace(window.row, window.row_end, rows + 1),
        np.linspace(window.col, window.col_end, cols + 1),
    )
    here, there = _borders(source.row, source.height, more, height), _borders(source.col, source.width, more, width)
    sight = levels.sight(planes, samples)
    values, seen = area_means(pixels, sight, (here, down), (there, across))
    for place, sample in enumerate(samples):
        if sample == levels.alpha:  # as in levels: of all of an area, and 0 only where all of it is
            covered = area_means(pixels[[place]], np.ones_like(sight[[place]]), (here, down), (there, across))[0][0]
            values[place] = covered if pixels.dtype.kind == "f" else np.maximum(covered, 1)
    row, col = _places(here, down), _places(there, across)
    return levels.settled(values, seen, pixels[:, row[:, None], col], samples), seen


def _borders(first: int, count: int, levels: int, side: int) -> NDArray[np.float64]:
    """The borders of pixels 2^levels coarser, counted in the pixels of an axis of `side`."""
    return np.asarray(np.minimum(np.arange(first, first + count + 1) << levels, side), np.float64)


def _places(borders: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.intp]:
    """The pixel, between `borders`, that holds the middle of each wanted interval."""
    middle = (wanted[1:] + wanted[:-1]) / 2
    return np.clip(np.searchsorted(borders, middle, side="right") - 1, 0, len(borders) - 2)
