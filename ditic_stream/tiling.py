"""Cut a scene into tiles, decode windows and shards: the fixed grid every request is mapped onto.

In: the size of a scene and a GridConfig.  Out: Windows and TileKeys.  Knows nothing of pixels, latents or files.

    +-------------+-------------+----        core: `tile` x `tile` pixels, the unit of storage (ragged at the far edges)
    |  core 0,0   |  core 0,1   |            decode window: core plus `overlap` a side, clipped at the scene
    |          +--|--+          |            shard: a block of `shard` x `shard` tiles, the unit of writing
    +----------|--+--|----------+----
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ditic_stream.config import GridConfig
from ditic_stream.errors import ConfigError
from ditic_stream.geometry import CELLS, TileKey, Units, Window

MAX_SIDE = 2**24
"""Longest side of a scene, pixels.  A bound for readers of hostile manifests, 16 times the widest scene known to us."""
SHARD_SIDES = (8, 4, 2, 1)
MIN_SHARDS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The tiles of one scene of `height` x `width` pixels."""

    height: int
    width: int
    config: GridConfig
    units: Units = CELLS
    """Of the model."""

    def __post_init__(self) -> None:
        for name, side in (("height", self.height), ("width", self.width)):
            if not 1 <= side <= MAX_SIDE:
                raise ConfigError(f"{name} {side} px is outside 1..{MAX_SIDE}; split the scene")
        if self.config.overlap % self.units.cell:
            raise ConfigError(
                f"overlap {self.config.overlap} px is not a multiple of {self.units.cell}, the cells of this model's "
                "latent; choose one"
            )

    @property
    def scene(self) -> Window:
        return Window(row=0, col=0, height=self.height, width=self.width)

    @property
    def rows(self) -> int:
        """Tile rows."""
        return -(-self.height // self.config.tile)

    @property
    def cols(self) -> int:
        """Tile columns."""
        return -(-self.width // self.config.tile)

    @property
    def shard(self) -> int:
        """Tiles a side of a shard: the largest of 8, 4, 2, 1 that gives at least 16 shards, else 1."""
        for side in SHARD_SIDES:
            if -(-self.rows // side) * -(-self.cols // side) >= MIN_SHARDS:
                return side
        return 1

    @property
    def shard_rows(self) -> int:
        return -(-self.rows // self.shard)

    @property
    def shard_cols(self) -> int:
        return -(-self.cols // self.shard)

    def keys(self) -> Iterator[TileKey]:
        """Every tile, row-major."""
        return (TileKey(row, col) for row in range(self.rows) for col in range(self.cols))

    def shards(self) -> Iterator[TileKey]:
        """Every shard, row-major; a shard's key counts in shards."""
        return (TileKey(row, col) for row in range(self.shard_rows) for col in range(self.shard_cols))

    def shard_of(self, key: TileKey) -> TileKey:
        return TileKey(key.row // self.shard, key.col // self.shard)

    def tiles_of(self, shard: TileKey) -> Iterator[TileKey]:
        """The tiles of a shard inside the grid, row-major."""
        side = self.shard
        for row in range(shard.row * side, min((shard.row + 1) * side, self.rows)):
            for col in range(shard.col * side, min((shard.col + 1) * side, self.cols)):
                yield TileKey(row, col)

    def core(self, key: TileKey) -> Window:
        """The pixels a tile owns."""
        tile = self.config.tile
        row, col = key.row * tile, key.col * tile
        return Window(row=row, col=col, height=min(tile, self.height - row), width=min(tile, self.width - col))

    def shard_window(self, shard: TileKey) -> Window:
        """The pixels the tiles of a shard own together."""
        side = self.shard * self.config.tile
        row, col = shard.row * side, shard.col * side
        return Window(row=row, col=col, height=min(side, self.height - row), width=min(side, self.width - col))

    def decode_window(self, key: TileKey) -> Window:
        """The pixels one decode step renders: the core plus the overlap, clipped.  Starts on a whole cell."""
        return self.core(key).grown(self.config.overlap, height=self.height, width=self.width)

    def encode_window(self, key: TileKey, halo: int) -> Window:
        """The pixels the encoder sees: the core plus `halo` pixels (whole cells) a side, clipped."""
        return self.core(key).grown(halo, height=self.height, width=self.width)

    def latent_core(self, key: TileKey) -> Window:
        """The latent cells a tile owns, on the scene's latent grid: those of its core, padded as the model asks."""
        core, units = self.core(key), self.units
        return Window(
            row=core.row // units.cell,
            col=core.col // units.cell,
            height=units.core_cells(core.height),
            width=units.core_cells(core.width),
        )

    def latent_window(self, key: TileKey) -> Window:
        """The latent cells a decode window covers, on the scene's latent grid: the tile's own, all of them, and those
        its overlap reaches."""
        seen, own, units = self.decode_window(key), self.latent_core(key), self.units
        row, col = seen.row // units.cell, seen.col // units.cell
        return Window(
            row=row,
            col=col,
            height=max(units.cells(seen.row_end), own.row_end) - row,
            width=max(units.cells(seen.col_end), own.col_end) - col,
        )

    def touching(self, window: Window) -> tuple[range, range]:
        """Tile rows and tile columns whose decode windows meet `window`."""
        tile, overlap = self.config.tile, self.config.overlap
        return (
            range(max(window.row - overlap, 0) // tile, min((window.row_end - 1 + overlap) // tile + 1, self.rows)),
            range(max(window.col - overlap, 0) // tile, min((window.col_end - 1 + overlap) // tile + 1, self.cols)),
        )

    def neighbours(self, key: TileKey) -> Iterator[TileKey]:
        """The tiles whose latents a decode window reads: the tile itself and those its overlap reaches, row-major."""
        rows, cols = (
            self.touching(self.core(key))
            if self.config.overlap
            else (range(key.row, key.row + 1), range(key.col, key.col + 1))
        )
        return (TileKey(row, col) for row in rows for col in cols)
