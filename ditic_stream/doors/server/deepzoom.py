"""Deep Zoom (DZI): the pyramid of tiles that most viewers of large pictures read.

In: the size of a picture; level, column and row of a tile.  Out: the XML that describes it; the tile's window.
Knows numbers only.  Level n of Deep Zoom is level `top - n` of a scene: 0 is one pixel, `top` is the scene itself.
"""

from __future__ import annotations

from ditic_stream.errors import ConfigError
from ditic_stream.geometry import Window

TILE, OVERLAP = 512, 1
"""Side of a tile, and the pixels it shares with each neighbour, so that viewers show no gap between them."""


def descriptor(width: int, height: int, form: str) -> str:
    """The .dzi document."""
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<Image xmlns="http://schemas.microsoft.com/deepzoom/2008" TileSize="{TILE}" Overlap="{OVERLAP}" '
        f'Format="{form}"><Size Width="{width}" Height="{height}"/></Image>\n'
    )


def top_level(width: int, height: int) -> int:
    """The level of the scene itself: the first power of two that is no less than its longer side."""
    return (max(width, height) - 1).bit_length()


def tile_window(width: int, height: int, level: int, col: int, row: int) -> tuple[Window, int]:
    """(window, level of the scene) of a tile; the window in pixels of that level.  ConfigError when there is none."""
    top = top_level(width, height)
    if 0 <= level <= top:
        down = top - level
        wide, high = -(-width // 2**down), -(-height // 2**down)
        left, above = max(col * TILE - OVERLAP, 0), max(row * TILE - OVERLAP, 0)
        if 0 <= col * TILE < wide and 0 <= row * TILE < high:
            right, below = min((col + 1) * TILE + OVERLAP, wide), min((row + 1) * TILE + OVERLAP, high)
            return Window(row=above, col=left, height=below - above, width=right - left), down
    raise ConfigError(f"level {level} has no tile in column {col}, row {row}; levels go from 0 to {top}")
