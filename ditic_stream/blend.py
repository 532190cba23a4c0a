"""Blend overlapping decoded windows into finished pixels.

In: (TileKey, pixels of its decode window) in row-major order.  Out: (Window, pixels), each pixel once and final.
Knows the fixed grid and its ramps; knows nothing of latents, models, dtypes of files or masks.

Neighbouring windows share `2 x overlap` pixels around the border of their cores.  The outer half of a window's overlap
is thrown away: there a decoder lacks the cells beyond the window, and shows it.  In the inner half, `fade` =
overlap / 2 pixels on each side of the border, the two cross-fade.  Their weights are t and 1 - t and sum to one:

    left    ----\\ /----    right         a + (b - a) * t,   t = (k + 1/2) / (2 fade),   k = 0 .. 2 fade - 1
                 X
    0       ____/ \\____    0             the cores meet between k = fade - 1 and k = fade

First left meets right, then upper meets lower: an order fixed by the grid and not by arrival, so a pixel has the same
bits whichever rectangle of windows is decoded around it.  Written as a step from a towards b, the fade leaves a
constant exactly constant, which a weighted sum does not.  A window's interior leaves at once; only the zones that wait
for a neighbour are kept: one to the right, and one row of them below.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ditic_stream.errors import ConfigError
from ditic_stream.geometry import TileKey, Window
from ditic_stream.tiling import Grid

Pixels = NDArray[np.float32]


def fade_of(grid: Grid) -> int:
    """Pixels on each side of a border in which two windows cross-fade."""
    return grid.config.overlap // 2


def ramp(fade: int) -> Pixels:
    """The weight of the later window at the 2 x `fade` pixels around a border: rising, symmetric, never 0 or 1."""
    steps = np.arange(2 * fade, dtype=np.float32)
    return (steps + np.float32(0.5)) / np.float32(2 * fade or 1)


def windows_of(grid: Grid, window: Window) -> tuple[range, range]:
    """Tile rows and tile columns whose windows have a weight somewhere in `window`."""
    tile, fade = grid.config.tile, fade_of(grid)
    return (
        range(max(window.row - fade, 0) // tile, min((window.row_end - 1 + fade) // tile + 1, grid.rows)),
        range(max(window.col - fade, 0) // tile, min((window.col_end - 1 + fade) // tile + 1, grid.cols)),
    )


def weighted(grid: Grid, key: TileKey) -> Window:
    """The pixels in which `key`'s window has a weight: its core and the fade around it, clipped at the scene."""
    return grid.core(key).grown(fade_of(grid), height=grid.height, width=grid.width)


def cut(grid: Grid, window: Window, parts: Iterator[Pixels]) -> Iterator[tuple[Window, Pixels]]:
    """Blend the pixels of `window` alone: (Window, pixels (channels, rows, columns)), each pixel once.

    parts: float32 (channels, rows, columns) of `weighted` of each tile in `windows_of(grid, window)`, row-major; they
    are read only.  The bits are those of a Blender.  Pieces end where a window begins to fade, on multiples of 16, or
    where `window` does.  Holds a part or two, and the zones that wait for the next row of tiles.
    """
    fade, weight, tile = fade_of(grid), ramp(fade_of(grid)), grid.config.tile
    rows, cols = windows_of(grid, window)
    above: Pixels | None = None
    for row in rows:
        top, bottom = max(row * tile - fade, window.row), min((row + 1) * tile + fade, window.row_end)
        last = bottom if row == rows[-1] else max((row + 1) * tile - fade, top)
        below: Pixels | None = None
        before: Pixels | None = None
        for col in cols:
            part, whole = next(parts), weighted(grid, TileKey(row, col))
            left, right = max(whole.col, window.col), min(whole.col_end, window.col_end)
            end = right if col == cols[-1] else max((col + 1) * tile - fade, left)
            part = part[:, top - whole.row : bottom - whole.row, left - whole.col : right - whole.col]
            piece = part[:, :, : end - left].copy()
            if before is not None:
                first = left - (col * tile - fade)
                _fade(before, piece[:, :, : before.shape[2]], weight[first : first + before.shape[2]])
            before = part[:, :, end - left :]
            if end == left:
                continue
            here = slice(left - window.col, end - window.col)
            if above is not None:
                first = top - (row * tile - fade)
                _fade(above[:, :, here], piece[:, : above.shape[1]], weight[first : first + above.shape[1], None])
            if row < rows[-1]:
                if below is None:
                    below = np.empty((len(part), bottom - last, window.width), np.float32)
                below[:, :, here] = piece[:, last - top :]
            if last > top:
                yield Window(row=top, col=left, height=last - top, width=end - left), piece[:, : last - top]
        above = below


@dataclass(frozen=True, slots=True)
class Span:
    """One axis of one window: what has a weight, where it fades in, what it finishes.  Scene pixels."""

    begin: int
    """First pixel that has a weight."""
    fade: int
    """Pixels from `begin` that fade from the window before; 0 without one in the rectangle, or without overlap."""
    first: int
    """First finished pixel: `begin`, or behind the fade when the window before exists but was not asked for."""
    last: int
    """End of the finished pixels, where the fade into the next window begins (or the scene ends)."""
    end: int
    """End of the pixels that have a weight."""


def _fade(before: Pixels, after: Pixels, weight: Pixels) -> None:
    """`after` becomes before + (after - before) * weight, in place."""
    after -= before
    after *= weight
    after += before


def fade_down(grid: Grid, row: int, above: Pixels, below: Pixels) -> Pixels:
    """The rows in which two parts that were blended by themselves meet, as one Blender of both would give them.

    row: of the first of them, counted from where the fade begins.  above, below: what each part made of them, both
    (channels, rows, columns); `below` is changed and returned.
    """
    _fade(above, below, ramp(fade_of(grid))[row : row + below.shape[1], None])
    return below


class Blender:
    """Blends the windows of one rectangle of tiles, given one by one in row-major order.

    rows, cols: tile rows and columns that will be given; what is finished is every pixel whose windows are all among
    them.  channels: planes of the pixels.  below: the store for the zones below one row of windows, float32 of
    `below_shape`; the caller may put it on disk for scenes that are very wide.  whole: the tile rows of which `rows` is
    a part that is blended by itself; the rows that fade into the other parts come out as well, faded sideways alone,
    and `fade_down` puts those of two parts together.
    """

    def __init__(
        self,
        grid: Grid,
        rows: range,
        cols: range,
        channels: int,
        *,
        below: Pixels | None = None,
        whole: range | None = None,
    ) -> None:
        if not rows or not cols or rows[-1] >= grid.rows or cols[-1] >= grid.cols or rows[0] < 0 or cols[0] < 0:
            raise ConfigError(f"tiles {rows} x {cols} are empty or outside the grid of {grid.rows} x {grid.cols}")
        self._grid, self._rows, self._cols = grid, rows, cols
        self._open_above = whole is not None and rows[0] > whole[0]
        self._open_below = whole is not None and rows[-1] < whole[-1]
        self._ramp = ramp(fade_of(grid))
        self._order = (TileKey(row, col) for row in rows for col in cols)
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
        return channels, 2 * fade_of(grid) if len(rows) > 1 else 0, width + fade_of(grid)

    def _span(self, index: int, among: range, length: int) -> Span:
        """The span of tile row or column `index` when those of `among` are blended, on an axis of `length` pixels."""
        tile, fade = self._grid.config.tile, fade_of(self._grid)
        begin = max(index * tile - fade, 0)
        end = min((index + 1) * tile + fade, length)
        last = length if (index + 1) * tile >= length else (index + 1) * tile - fade
        zone = min(index * tile + fade, length) - begin if index else 0
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
        window = self._grid.decode_window(key)
        if pixels.shape[1:] != window.shape:
            raise ConfigError(f"window {key} has {pixels.shape[1:]} pixels, not {window.shape}")
        row = self._span(key.row, self._rows, self._grid.height)
        if self._open_above and key.row == self._rows[0]:
            row = replace(row, first=row.begin)
        if self._open_below and key.row == self._rows[-1]:
            row = replace(row, last=row.end)
        col = self._span(key.col, self._cols, self._grid.width)
        pixels = pixels[:, row.begin - window.row : row.end - window.row, col.begin - window.col : col.end - window.col]
        if col.fade:
            assert self._right is not None
            _fade(self._right, pixels[:, :, : col.fade], self._ramp[: col.fade])
        # The zone to the right is kept whole, all rows of it: its corner fades sideways before it fades downwards.
        self._right = pixels[:, :, col.last - col.begin :].copy() if col.last < col.end else None
        if col.first >= col.last:
            return None
        across = slice(col.first - col.begin, col.last - col.begin)
        waiting = slice(col.first - self._left_col, col.last - self._left_col)
        if row.fade:
            _fade(self._below[:, : row.fade, waiting], pixels[:, : row.fade, across], self._ramp[: row.fade, None])
        if row.last < row.end and key.row < self._rows[-1]:
            self._below[:, : row.end - row.last, waiting] = pixels[:, row.last - row.begin :, across]
        if row.first >= row.last:
            return None
        done = Window(row=row.first, col=col.first, height=row.last - row.first, width=col.last - col.first)
        return done, pixels[:, row.first - row.begin : row.last - row.begin, across]
