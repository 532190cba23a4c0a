"""The grid: every pixel has one owner, every window stays on its multiples of 32, whatever the size."""

# ruff: noqa: SIM118 - Grid.keys() is not a dictionary
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditic_stream.config import Q_MAX, Q_OF_QUALITY, GridConfig, q_of_quality, quality_of_q
from ditic_stream.errors import ConfigError
from ditic_stream.geometry import CELL, TileKey, Units, Window
from ditic_stream.models.config import LEVELS, Q_STEPS
from ditic_stream.tiling import MAX_SIDE, MIN_SHARDS, Grid


@st.composite
def grids(draw: st.DrawFn, limit: int = 1800) -> Grid:
    tile = draw(st.sampled_from([256, 512, 768]))
    overlap = draw(st.sampled_from([0, 32, 64, 96, 128]))
    height, width = draw(st.integers(1, limit)), draw(st.integers(1, limit))
    return Grid(height=height, width=width, config=GridConfig(tile=tile, overlap=overlap))


@settings(max_examples=60, deadline=None)
@given(grids())
def test_every_pixel_belongs_to_exactly_one_tile(grid: Grid) -> None:
    owners = np.zeros((grid.height, grid.width), np.uint8)
    for key in grid.keys():
        core = grid.core(key)
        owners[core.row : core.row_end, core.col : core.col_end] += 1
    assert (owners == 1).all()


@settings(max_examples=60, deadline=None)
@given(grids())
def test_every_latent_cell_belongs_to_exactly_one_tile(grid: Grid) -> None:
    owners = np.zeros((-(-grid.height // CELL), -(-grid.width // CELL)), np.uint8)
    for key in grid.keys():
        core = grid.latent_core(key)
        owners[core.row : core.row_end, core.col : core.col_end] += 1
    assert (owners == 1).all()


@settings(max_examples=60, deadline=None)
@given(grids())
def test_every_tile_belongs_to_exactly_one_shard_that_holds_its_pixels(grid: Grid) -> None:
    seen = [key for shard in grid.shards() for key in grid.tiles_of(shard)]
    assert sorted(seen) == list(grid.keys())
    for shard in grid.shards():
        window = grid.shard_window(shard)
        for key in grid.tiles_of(shard):
            assert grid.shard_of(key) == shard
            assert window.intersect(grid.core(key)) == grid.core(key)


@settings(max_examples=60, deadline=None)
@given(grids())
def test_decode_windows_start_on_cells_and_reach_the_overlap(grid: Grid) -> None:
    overlap = grid.config.overlap
    for key in grid.keys():
        core, window = grid.core(key), grid.decode_window(key)
        assert window.row % CELL == window.col % CELL == 0
        assert core.row - window.row == (overlap if key.row else 0)
        assert window.row_end == min(core.row_end + overlap, grid.height)
        assert grid.latent_window(key).height * CELL >= window.height


def test_units_of_a_model_pad_its_cores_and_bound_its_overlap() -> None:
    units = Units(cell=64, align=256)
    grid = Grid(height=600, width=1000, config=GridConfig(tile=512, overlap=64), units=units)
    assert grid.latent_core(TileKey(1, 1)) == Window(row=8, col=8, height=4, width=8), (
        "88 x 488 px, padded to 256 x 512"
    )
    # A window has all cells of its own core, and of its neighbours' those that its overlap reaches.
    assert grid.latent_window(TileKey(1, 1)) == Window(row=7, col=7, height=5, width=9)
    assert grid.latent_window(TileKey(0, 0)) == Window(row=0, col=0, height=9, width=9)
    with pytest.raises(ConfigError, match="overlap 32 px is not a multiple of 64"):
        Grid(height=600, width=1000, config=GridConfig(tile=512, overlap=32), units=units)


@settings(max_examples=60, deadline=None)
@given(grids(), st.data())
def test_touching_names_exactly_the_windows_that_meet(grid: Grid, data: st.DataObject) -> None:
    row, col = data.draw(st.integers(0, grid.height - 1)), data.draw(st.integers(0, grid.width - 1))
    window = Window(
        row=row,
        col=col,
        height=data.draw(st.integers(1, grid.height - row)),
        width=data.draw(st.integers(1, grid.width - col)),
    )
    rows, cols = grid.touching(window)
    named = {TileKey(r, c) for r in rows for c in cols}
    assert named == {key for key in grid.keys() if grid.decode_window(key).meets(window)}


@settings(max_examples=60, deadline=None)
@given(grids())
def test_neighbours_own_exactly_the_cells_of_the_latent_window(grid: Grid) -> None:
    for key in grid.keys():
        window, near = grid.latent_window(key), list(grid.neighbours(key))
        assert key in near
        assert near == sorted(near)
        assert set(near) == {other for other in grid.keys() if grid.latent_core(other).meets(window)}


def test_a_scene_of_4096_pixels_already_has_sixteen_shards() -> None:
    assert len(list(Grid(height=4096, width=4096, config=GridConfig()).shards())) == 16


@given(st.integers(1, 300_000), st.integers(1, 300_000))
def test_shards_are_the_largest_that_still_give_sixteen(height: int, width: int) -> None:
    grid = Grid(height=height, width=width, config=GridConfig())
    assert grid.shard in (1, 2, 4, 8)
    if grid.shard > 1:
        assert grid.shard_rows * grid.shard_cols >= MIN_SHARDS
    if grid.shard < 8:
        assert -(-grid.rows // (2 * grid.shard)) * -(-grid.cols // (2 * grid.shard)) < MIN_SHARDS


@pytest.mark.parametrize("tile", [0, 255, 300, 8192, -256])
def test_tiles_off_the_multiples_of_256_are_refused(tile: int) -> None:
    with pytest.raises(ConfigError, match=f"tile {tile} px"):
        GridConfig(tile=tile)


@pytest.mark.parametrize("overlap", [-32, 10, 160])
def test_overlaps_off_the_multiples_of_32_or_above_half_a_tile_are_refused(overlap: int) -> None:
    with pytest.raises(ConfigError, match=f"overlap {overlap} px"):
        GridConfig(tile=256, overlap=overlap)


@pytest.mark.parametrize("side", [0, MAX_SIDE + 1])
def test_sides_out_of_bounds_are_refused(side: int) -> None:
    with pytest.raises(ConfigError, match=f"height {side} px"):
        Grid(height=side, width=1, config=GridConfig())


def test_quality_rises_with_q_and_ends_at_its_ends() -> None:
    scale = [q_of_quality(quality) for quality in range(1, 101)]
    assert (scale[0], scale[-1]) == (0, Q_MAX) and Q_MAX == Q_STEPS * (LEVELS - 1)
    assert set(np.diff(scale)) == {Q_OF_QUALITY}
    assert [quality_of_q(q) for q in scale] == list(range(1, 101))
    assert [quality_of_q(q) for q in (56, 57, Q_MAX - 56, Q_MAX - 55)] == [1, 2, 99, 100]
    for bad in (0, 101):
        with pytest.raises(ConfigError, match=r"1\.\.100"):
            q_of_quality(bad)
