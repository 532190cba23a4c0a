"""Put the latents of neighbouring tiles together into the canvas one decode step sees, and keep them at hand.

In: the latents of tiles, as stored.  Out: (values, scales) of a tile's latent window: its own cells and those its
overlap reaches.  Knows cells and tiles; knows nothing of records, models or pixels.

A tile's latents are decoded once and read by up to nine windows, so they are kept meanwhile: in memory for the reads of
an open scene (_loading), in a file for a whole scene decoded in row-major order (LatentSpool), where a wide scene's
three rows would not fit into memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ditic_stream.errors import FormatError
from ditic_stream.geometry import TileKey
from ditic_stream.tiling import Grid

Values = NDArray[np.int16]
Scales = NDArray[np.integer[Any]]
"""uint8 or int16: what a model's entropy coder knew of each value's width, as that model writes it."""


class Latent(Protocol):
    """What a record decodes into: int16 values and their scales, both (groups, channels, rows, columns)."""

    @property
    def values(self) -> Values: ...
    @property
    def scales(self) -> Scales: ...


@dataclass(frozen=True, slots=True)
class Cells:
    """Latents of one tile or window; both arrays (groups, channels, rows, columns) of cells."""

    values: Values
    scales: Scales

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.scales.nbytes


Fetch = Callable[[TileKey], Latent]


def assemble(grid: Grid, key: TileKey, fetch: Fetch) -> Cells:
    """The latents of `key`'s decode window, from its own tile and the neighbours its overlap reaches.

    fetch: gives the latents of a tile; called once a neighbour, row-major.  Raises FormatError when what it gives does
    not have the shape of the tile's core.
    """
    window = grid.latent_window(key)
    canvas: Cells | None = None
    for near in grid.neighbours(key):
        core = grid.latent_core(near)
        latent = fetch(near)
        if latent.values.shape[2:] != core.shape or latent.scales.shape != latent.values.shape:
            raise FormatError(
                f"latents {latent.values.shape} and scales {latent.scales.shape} where {core.shape} cells are due",
                key=str(near),
            )
        if canvas is None:
            shape = (*latent.values.shape[:2], *window.shape)
            canvas = Cells(np.zeros(shape, np.int16), np.zeros(shape, latent.scales.dtype))
        part = window.intersect(core)
        into, out_of = (..., *part.slices(window)), (..., *part.slices(core))
        canvas.values[into] = latent.values[out_of]
        canvas.scales[into] = latent.scales[out_of]
    assert canvas is not None  # a tile is its own neighbour
    return canvas


class Bytes(Protocol):
    """A file by offset, as executors.Shared is."""

    def read_into(self, offset: int, array: NDArray[np.generic]) -> None: ...
    def write(self, offset: int, array: NDArray[np.generic]) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentSpool:
    """A ring of tile rows in a file that all workers share: written once a tile, read by the windows around it.

    A value: it travels to the workers.  `store`: the file.  `depth`: tile rows it holds; row r lies where row r - depth
    lay, so whoever writes row r knows that no window needs that one any more (see regions.schedule).
    """

    grid: Grid
    groups: int
    channels: int
    depth: int
    store: Bytes
    scales: str = "uint8"
    """Type of the scales."""

    @property
    def slot(self) -> int:
        """Bytes a tile takes."""
        side = self.grid.units.core_cells(self.grid.config.tile)
        return self.groups * self.channels * side * side * (2 + np.dtype(self.scales).itemsize)

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return self.slot * self.depth * self.grid.cols

    def _offset(self, key: TileKey) -> int:
        return ((key.row % self.depth) * self.grid.cols + key.col) * self.slot

    def put(self, key: TileKey, latent: Latent) -> None:
        """Write a tile's latents; FormatError when their shape is not the grid's."""
        shape = (self.groups, self.channels, *self.grid.latent_core(key).shape)
        if latent.values.shape != shape or latent.scales.shape != shape:
            raise FormatError(f"latents of {latent.values.shape} where {shape} are due", key=str(key))
        self.store.write(self._offset(key), np.ascontiguousarray(latent.values, np.int16))
        self.store.write(self._offset(key) + latent.values.size * 2, np.ascontiguousarray(latent.scales, self.scales))

    def get(self, key: TileKey) -> Cells:
        """Read what `put` wrote."""
        shape = (self.groups, self.channels, *self.grid.latent_core(key).shape)
        cells = Cells(np.empty(shape, np.int16), np.empty(shape, self.scales))
        self.store.read_into(self._offset(key), cells.values)
        self.store.read_into(self._offset(key) + cells.values.nbytes, cells.scales)
        return cells
