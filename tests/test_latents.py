"""Latents of neighbours put together: the canvas is a cut of the scene's latent grid, however it was kept."""

# ruff: noqa: SIM118 - Grid.keys() is not a dictionary
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditic_stream.config import GridConfig
from ditic_stream.errors import FormatError
from ditic_stream.executors import SerialExecutor
from ditic_stream.geometry import CELLS, TileKey, Units, Window
from ditic_stream.latents import Cells, LatentSpool, assemble
from ditic_stream.tiling import Grid

GROUPS, CHANNELS = 2, 3


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    units = draw(st.sampled_from([CELLS, Units(cell=64, align=256)]))
    overlap = draw(st.sampled_from([0, units.cell, 64, 128]))
    height, width = draw(st.integers(1, 1100)), draw(st.integers(1, 1100))
    return Grid(height=height, width=width, config=GridConfig(tile=256, overlap=overlap), units=units)


def scene_latents(grid: Grid) -> Cells:
    rng = np.random.default_rng(0)
    last = grid.latent_core(TileKey(grid.rows - 1, grid.cols - 1))
    shape = (GROUPS, CHANNELS, last.row_end, last.col_end)
    return Cells(rng.integers(-30000, 30000, shape, np.int16), rng.integers(0, 64, shape).astype(scales_of(grid)))


def scales_of(grid: Grid) -> str:
    """One type of scales with each kind of units."""
    return "uint8" if grid.units == CELLS else "int16"


def cut(whole: Cells, window: Window) -> Cells:
    rows, cols = slice(window.row, window.row_end), slice(window.col, window.col_end)
    return Cells(whole.values[:, :, rows, cols], whole.scales[:, :, rows, cols])


def same(one: Cells, other: Cells) -> bool:
    return bool((one.values == other.values).all() and (one.scales == other.scales).all())


@settings(max_examples=40, deadline=None)
@given(grids())
def test_assembled_window_equals_the_cut_of_the_whole_latent_grid(grid: Grid) -> None:
    whole = scene_latents(grid)
    for key in grid.keys():
        got = assemble(grid, key, lambda near: cut(whole, grid.latent_core(near)))
        assert same(got, cut(whole, grid.latent_window(key)))
        assert (got.values.dtype, got.scales.dtype) == (np.int16, scales_of(grid))


def test_latents_of_a_wrong_shape_are_refused_with_the_tile_that_has_them() -> None:
    grid = Grid(height=600, width=600, config=GridConfig(tile=256, overlap=64))
    whole = scene_latents(grid)

    def fetch(near: TileKey) -> Cells:
        return cut(whole, Window(row=0, col=0, height=3, width=3) if near == TileKey(0, 1) else grid.latent_core(near))

    with pytest.raises(FormatError, match=r"tile 0,1: .*\(8, 8\) cells are due"):
        assemble(grid, TileKey(0, 0), fetch)


@settings(max_examples=20, deadline=None)
@given(grids())
def test_spool_gives_back_what_was_put_until_its_row_is_used_again(grid: Grid) -> None:
    whole = scene_latents(grid)
    with SerialExecutor() as executor:
        store = executor.shared()
        spool = LatentSpool(grid=grid, groups=GROUPS, channels=CHANNELS, depth=2, store=store, scales=scales_of(grid))
        store.resize(spool.nbytes)
        for key in grid.keys():
            spool.put(key, cut(whole, grid.latent_core(key)))
            for row in {max(key.row - 1, 0) if key.col == grid.cols - 1 else key.row, key.row}:
                near = TileKey(row, key.col)
                assert same(spool.get(near), cut(whole, grid.latent_core(near)))


def test_spool_refuses_latents_of_a_wrong_shape() -> None:
    grid = Grid(height=300, width=300, config=GridConfig(tile=256, overlap=0))
    with SerialExecutor() as executor:
        spool = LatentSpool(grid=grid, groups=GROUPS, channels=CHANNELS, depth=2, store=executor.shared())
        with pytest.raises(FormatError, match="tile 1,1"):
            spool.put(TileKey(1, 1), cut(scene_latents(grid), grid.latent_core(TileKey(0, 0))))
