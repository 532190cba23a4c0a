"""Windows of one level seen from another: rectangles, strips and squares of a grid.  Numbers only."""

from __future__ import annotations

from collections.abc import Iterator

from ditic_stream.geometry import TileKey, Window

SMALLEST = 64
"""Longest side of the last level, pixels."""


def count_of(height: int, width: int) -> int:
    """Levels of a scene, the scene itself among them: as many as it takes to come down to SMALLEST."""
    count = 1
    while -(-max(height, width) >> (count - 1)) > SMALLEST:
        count += 1
    return count


def finer(window: Window, level: int, height: int, width: int) -> Window:
    """The pixels of a finer grid of height x width that a window of one `level` coarser covers."""
    row, col = window.row << level, window.col << level
    return Window(
        row=row,
        col=col,
        height=min(window.row_end << level, height) - row,
        width=min(window.col_end << level, width) - col,
    )


def slices(window: Window, rows: int) -> Iterator[Window]:
    """A window from top to bottom, so many rows at a time."""
    for row in range(window.row, window.row_end, rows):
        yield Window(row=row, col=window.col, height=min(rows, window.row_end - row), width=window.width)


def coarser(window: Window, levels: int) -> Window:
    """The pixels of a grid 2^levels coarser that a window touches."""
    row, col = window.row >> levels, window.col >> levels
    return Window(row=row, col=col, height=-(-window.row_end >> levels) - row, width=-(-window.col_end >> levels) - col)


def tiles(window: Window, side: int) -> list[TileKey]:
    """Squares of a grid of `side` pixels that a window meets, row-major."""
    return [
        TileKey(row, col)
        for row in range(window.row // side, (window.row_end - 1) // side + 1)
        for col in range(window.col // side, (window.col_end - 1) // side + 1)
    ]
