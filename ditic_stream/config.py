"""The settings that are hashed into an archive: frozen, validated when built, every key used."""

from __future__ import annotations

from dataclasses import dataclass

from ditic_stream.errors import ConfigError

DTYPES = ("uint8", "uint16", "int16", "float32")
"""Sample types an archive can hold."""

QUALITY_MIN, QUALITY_MAX = 1, 100
"""Bounds of `--quality`."""
Q_OF_QUALITY = 112
"""The models see an integer rate q; a step of quality is so many of it, and a rate level (there are 7, from 0) 1584."""
Q_MAX = Q_OF_QUALITY * (QUALITY_MAX - QUALITY_MIN)


def q_of_quality(quality: int) -> int:
    """The integer rate q (0..11088, stored in the archive) of a user's quality (1..100): equal steps."""
    if not QUALITY_MIN <= quality <= QUALITY_MAX:
        raise ConfigError(f"quality {quality} is outside {QUALITY_MIN}..{QUALITY_MAX}; choose one inside")
    return (quality - QUALITY_MIN) * Q_OF_QUALITY


def quality_of_q(q: int) -> int:
    """The quality (1..100) nearest to a rate q, which may lie between two; the lower one of two as near."""
    return (q + Q_OF_QUALITY // 2 - 1) // Q_OF_QUALITY + QUALITY_MIN


@dataclass(frozen=True, slots=True, kw_only=True)
class GridConfig:
    """How a scene is cut."""

    tile: int = 1024
    """Side of a tile's core, pixels; a multiple of 256.  Larger: fewer records and less overlap to compute, more
    memory."""
    overlap: int = 64
    """Pixels a decode window reaches beyond its core a side; a multiple of 32, at most half a tile.  Costs time, no
    bits."""

    def __post_init__(self) -> None:
        if self.tile % 256 or not 256 <= self.tile <= 4096:
            raise ConfigError(
                f"tile {self.tile} px is not a multiple of 256 in 256..4096; choose one, 1024 is the default"
            )
        if self.overlap % 32 or not 0 <= self.overlap <= self.tile // 2:
            raise ConfigError(
                f"overlap {self.overlap} px is not a multiple of 32 in 0..{self.tile // 2}, half a tile; 64 is usual"
            )
