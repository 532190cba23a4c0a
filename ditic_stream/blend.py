"""Blend overlapping decoded windows into finished pixels.

In: (TileKey, pixels of its decode window) in row-major order.  Out: (Window, pixels), each pixel once and final.
Knows the fixed grid and its ramps; knows nothing of latents, models, dtypes of files or masks.

Neighbouring windows share `2 x overlap` pixels around the border of their cores, and cross-fade there.  The two weights
at a pixel are t and 1 - t and sum to one:

    left    ----\\ /----    right         a + (b - a) * t,   t = (k + 1/2 - overlap / 2) / overlap within 0..1
                 X
    0       ____/ \\____    0             k = 0 .. 2 overlap - 1; the cores meet between overlap - 1 and overlap

The outer half of a window's overlap has no weight: there a decoder lacks the cells beyond the window, and shows it.

First left meets right, then upper meets lower: an order fixed by the grid and not by arrival, so a pixel has the same
bits whichever rectangle of windows is decoded around it.  Written as a step from a towards b, the fade leaves a
constant exactly constant, which a weighted sum does not.  A window's interior leaves at once; only the zones that wait
for a neighbour are kept: one to the right, and one row of them below.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ditic_stream.errors import ConfigError
from ditic_stream.geometry import TileKey, Window
from ditic_stream.tiling import Grid

Pixels = NDArray[np.float32]


def ramp(overlap: int) -> Pixels:
    """Weight of the later window at the 2 x `overlap` pixels around a border: 0, rising through the middle half, 1."""
    steps = np.arange(2 * overlap, dtype=np.float32)
    return ((steps + np.float32(0.5 - overlap / 2)) / np.float32(overlap or 1)).clip(0, 1)


@dataclass(frozen=True, slots=True)
class Span:
    """One axis of one window: where it fades in, what it finishes, what it leaves to the next.  Scene pixels."""

    begin: int
    """First pixel of the decode window."""
    fade: int
    """Pixels from `begin` that fade from the window before; 0 without one in the rectangle, or without overlap."""
    first: int
    """First finished pixel: `begin`, or behind the overlap when the window before exists but was not asked for."""
    last: int
    """End of the finished pixels, where the zone left to the next window begins (or the scene ends)."""
    end: int
    """End of the decode window."""


def _fade(before: Pixels, after: Pixels, weight: Pixels) -> None:
    """`after` becomes before + (after - before) * weight, in place."""
    after -= before
    after *= weight
    after += before


class Blender:
    """Blends the windows of one rectangle of tiles, given one by one in row-major order.

    rows, cols: tile rows and columns that will be given; what is finished is every pixel whose windows are all among
    them.  channels: planes of the pixels.  below: the store for the zones below one row of windows, float32 of
    `below_shape`; the caller may put it on disk for scenes that are very wide.
    """

    def __init__(
        self, grid: Grid, rows: range, cols: range, channels: int, *, below: Pixels | None = None
    ) -> None:
        if not rows or not cols or rows[-1] >= grid.rows or cols[-1] >= grid.cols or rows[0] < 0 or cols[0] < 0:
            raise ConfigError(f"tiles {rows} x {cols} are empty or outside the grid of {grid.rows} x {grid.cols}")
        self._grid, self._rows, self._cols = grid, rows, cols
        self._overlap = grid.config.overlap
        self._ramp = ramp(self._overlap)
        self._order = iter([TileKey(row, col) for row in rows for col in cols])
        self._right: Pixels | None = None
        self._left_col = self._span(cols[0], cols, grid.width).first
        shape = self.below_shape(grid, rows, cols, channels)
        self._below = np.empty(shape, np.float32) if below is None else below
        if self._below.shape != shape:
            raise ConfigError(f"a store of {self._below.shape} for zones of {shape}")

    @staticmethod
    def below_shape(grid: Grid, rows: range, cols: range, channels: int) -> tuple[int, int, int]:
        """Shape of the store below a row of windows: (channels, rows, columns)."""
        width = min((cols[-1] + 1) * grid.config.tile, grid.width) - cols[0] * grid.config.tile
        return channels, 2 * grid.config.overlap if len(rows) > 1 else 0, width + grid.config.overlap

    def _span(self, index: int, among: range, length: int) -> Span:
        """The span of tile row or column `index` when those of `among` are blended, on an axis of `length` pixels."""
        tile, overlap = self._grid.config.tile, self._overlap
        begin = max(index * tile - overlap, 0)
        end = min((index + 1) * tile + overlap, length)
        last = length if (index + 1) * tile >= length else (index + 1) * tile - overlap
        zone = min(index * tile + overlap, length) - begin if index else 0
        if index > among[0]:
            return Span(begin=begin, fade=zone, first=begin, last=last, end=end)
        return Span(begin=begin, fade=0, first=begin + zone, last=last, end=end)

    def add(self, key: TileKey, pixels: Pixels) -> tuple[Window, Pixels] | None:
        """Take the pixels of `key`'s decode window; give the pixels that are now final, or None.

        pixels: (channels, rows, columns) float32.  They are changed in place, and what comes back is a view of them:
        use it before the array is used again.  Raises ConfigError when `key` is not the next in row-major order, or
        the shape is not that of its decode window.
        """
        expected = next(self._order, None)
        if key != expected:
            raise ConfigError(f"window {key} came where {expected} was due; windows are blended in row-major order")
        if pixels.shape[1:] != self._grid.decode_window(key).shape:
            raise ConfigError(f"window {key} has {pixels.shape[1:]} pixels, not {self._grid.decode_window(key).shape}")
        col = self._span(key.col, self._cols, self._grid.width)
        if col.fade:
            assert self._right is not None
            _fade(self._right, pixels[:, :, : col.fade], self._ramp[: col.fade])
        # The zone to the right is kept whole, all rows of it: its corner fades sideways before it fades downwards.
        self._right = pixels[:, :, col.last - col.begin :].copy() if col.last < col.end else None
        if col.first >= col.last:
            return None
        row = self._span(key.row, self._rows, self._grid.height)
        across = slice(col.first - col.begin, col.last - col.begin)
        waiting = slice(col.first - self._left_col, col.last - self._left_col)
        if row.fade:
            _fade(self._below[:, : row.fade, waiting], pixels[:, : row.fade, across], self._ramp[: row.fade, None])
        if row.last < row.end and key.row < self._rows[-1]:
            self._below[:, : row.end - row.last, waiting] = pixels[:, row.last - row.begin :, across]
        if row.first >= row.last:
            return None
        window = Window(row=row.first, col=col.first, height=row.last - row.first, width=col.last - col.first)
        return window, pixels[:, row.first - row.begin : row.last - row.begin, across]
