"""Blending: the same bits for any rectangle of windows, weights that sum to one, every pixel once."""

# ruff: noqa: SIM118 - Grid.keys() is not a dictionary
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditic_stream.blend import Blender, cut, ramp, weighted, windows_of
from ditic_stream.config import GridConfig
from ditic_stream.errors import ConfigError
from ditic_stream.geometry import TileKey, Window
from ditic_stream.tiling import Grid

CHANNELS = 2


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    overlap = draw(st.sampled_from([0, 32, 64, 96, 128]))
    height, width = draw(st.integers(1, 1100)), draw(st.integers(1, 1100))
    return Grid(height=height, width=width, config=GridConfig(tile=256, overlap=overlap))


def render(grid: Grid, key: TileKey) -> np.ndarray:
    """Pixels of a decode window that differ from those its neighbours render for the same place."""
    rng = np.random.default_rng([key.row, key.col, grid.height, grid.width])
    return rng.standard_normal((CHANNELS, *grid.decode_window(key).shape), np.float32)


def blend(grid: Grid, rows: range, cols: range) -> tuple[np.ndarray, np.ndarray]:
    """The blended scene, NaN where nothing was finished, and how often each pixel came."""
    scene = np.full((CHANNELS, grid.height, grid.width), np.nan, np.float32)
    times = np.zeros((grid.height, grid.width), int)
    blender = Blender(grid, rows, cols, CHANNELS)
    for row in rows:
        for col in cols:
            done = blender.add(TileKey(row, col), render(grid, TileKey(row, col)))
            if done is not None:
                into = done[0].slices(grid.scene)
                scene[:, *into] = done[1]
                times[into] += 1
    return scene, times


def reference(grid: Grid) -> np.ndarray:
    """The weighted sum of all windows at every pixel, in float64: slow, whole, obviously right."""
    weights = {}
    for key in grid.keys():
        window, core, overlap = grid.decode_window(key), grid.core(key), grid.config.overlap
        axes = []
        for begin, end, first, last, side in (
            (window.row, window.row_end, core.row, core.row_end, grid.height),
            (window.col, window.col_end, core.col, core.col_end, grid.width),
        ):
            at = np.arange(begin, end) + 0.5
            up = (at - (first - overlap / 2)) / overlap if first and overlap else np.ones_like(at)
            down = ((last + overlap / 2) - at) / overlap if last < side and overlap else np.ones_like(at)
            axes.append(np.clip(np.minimum(up, down), 0, 1))
        weights[key] = axes[0][:, None] * axes[1][None, :]
    total, scene = np.zeros((grid.height, grid.width)), np.zeros((CHANNELS, grid.height, grid.width))
    for key, weight in weights.items():
        into = grid.decode_window(key).slices(grid.scene)
        total[into] += weight
        scene[:, *into] += weight * render(grid, key)
    assert np.allclose(total, 1)
    return scene


@pytest.mark.parametrize("fade", range(16, 1025, 16))
def test_weights_sum_to_one_for_any_overlap(fade: int) -> None:
    weight = ramp(fade)
    assert weight.shape == (2 * fade,)
    assert (weight + weight[::-1] == 1).all()
    assert (np.diff(weight) > 0).all()
    assert 0 < weight[0] < weight[-1] < 1


@settings(max_examples=25, deadline=None)
@given(grids())
def test_every_pixel_leaves_once_and_is_the_weighted_sum_of_its_windows(grid: Grid) -> None:
    scene, times = blend(grid, range(grid.rows), range(grid.cols))
    assert (times == 1).all()
    # float32 fades against float64 sums of values up to about 5: four roundings of 2^-24 relative, with room.
    assert np.abs(scene - reference(grid)).max() < 4e-6


@settings(max_examples=25, deadline=None)
@given(grids(), st.data())
def test_any_rectangle_of_windows_blends_to_the_bits_of_the_whole(grid: Grid, data: st.DataObject) -> None:
    whole, _ = blend(grid, range(grid.rows), range(grid.cols))
    row, col = data.draw(st.integers(0, grid.height - 1)), data.draw(st.integers(0, grid.width - 1))
    window = Window(
        row=row,
        col=col,
        height=data.draw(st.integers(1, grid.height - row)),
        width=data.draw(st.integers(1, grid.width - col)),
    )
    part, times = blend(grid, *windows_of(grid, window))
    into = window.slices(grid.scene)
    assert (times[into] == 1).all()
    assert (part[:, *into].view(np.int32) == whole[:, *into].view(np.int32)).all()
    finished = times > 0
    assert (part[:, finished] == whole[:, finished]).all()


@settings(max_examples=15, deadline=None)
@given(grids(), st.floats(-1, 2, width=32))
def test_a_constant_stays_exactly_constant(grid: Grid, value: float) -> None:
    blender = Blender(grid, range(grid.rows), range(grid.cols), 1)
    for key in grid.keys():
        done = blender.add(key, np.full((1, *grid.decode_window(key).shape), value, np.float32))
        if done is not None:
            assert (done[1] == np.float32(value)).all()


@settings(max_examples=25, deadline=None)
@given(grids())
def test_the_outer_half_of_the_overlap_is_not_seen(grid: Grid) -> None:
    """Whatever a window holds there, and there the networks are wrong."""
    expected, _ = blend(grid, range(grid.rows), range(grid.cols))
    blender = Blender(grid, range(grid.rows), range(grid.cols), CHANNELS)
    for key in grid.keys():
        window, core = grid.decode_window(key), grid.core(key)
        seen = core.grown(grid.config.overlap // 2, height=grid.height, width=grid.width)
        pixels = np.full((CHANNELS, *window.shape), np.nan, np.float32)
        pixels[:, *seen.slices(window)] = render(grid, key)[:, *seen.slices(window)]
        done = blender.add(key, pixels)
        if done is not None:
            assert (done[1] == expected[:, *done[0].slices(grid.scene)]).all()


def test_the_store_below_is_an_overlap_high_and_may_be_the_callers() -> None:
    grid = Grid(height=600, width=900, config=GridConfig(tile=256, overlap=64))
    rows, cols = range(grid.rows), range(grid.cols)
    channels, height, width = Blender.below_shape(grid, rows, cols, 3)
    assert (channels, height) == (3, 64)
    assert 900 <= width <= 1000
    assert Blender.below_shape(grid, range(1), cols, 3)[1] == 0
    Blender(grid, rows, cols, 3, below=np.empty((channels, height, width), np.float32))
    with pytest.raises(ConfigError, match="for zones of"):
        Blender(grid, rows, cols, 3, below=np.empty((channels, height, width - 1), np.float32))


def test_windows_out_of_order_or_of_another_shape_are_refused() -> None:
    grid = Grid(height=600, width=600, config=GridConfig(tile=256, overlap=64))
    with pytest.raises(ConfigError, match="where 0,0 was due"):
        Blender(grid, range(3), range(3), 1).add(TileKey(0, 1), np.zeros((1, 320, 384), np.float32))
    with pytest.raises(ConfigError, match="not \\(320, 320\\)"):
        Blender(grid, range(3), range(3), 1).add(TileKey(0, 0), np.zeros((1, 32, 32), np.float32))
    with pytest.raises(ConfigError, match="outside the grid"):
        Blender(grid, range(4), range(3), 1)


@settings(max_examples=60, deadline=None)
@given(grids(), st.data())
def test_a_window_cut_alone_has_the_bits_of_the_whole(grid: Grid, data: st.DataObject) -> None:
    whole, _ = blend(grid, range(grid.rows), range(grid.cols))
    row, col = data.draw(st.integers(0, grid.height - 1)), data.draw(st.integers(0, grid.width - 1))
    height, width = data.draw(st.integers(1, grid.height - row)), data.draw(st.integers(1, grid.width - col))
    window = Window(row=row, col=col, height=height, width=width)
    rows, cols = windows_of(grid, window)
    keys = [TileKey(row, col) for row in rows for col in cols]

    def part(key: TileKey) -> np.ndarray:
        pixels = render(grid, key)[(slice(None), *weighted(grid, key).slices(grid.decode_window(key)))]
        pixels.flags.writeable = False
        return pixels

    times = np.zeros(window.shape, int)
    for piece, pixels in cut(grid, window, map(part, keys)):
        assert (pixels == whole[(slice(None), *piece.slices(grid.scene))]).all()
        times[piece.slices(window)] += 1
        for begin, first in ((piece.row, window.row), (piece.col, window.col)):
            assert begin == first or begin % 16 == 0
    assert (times == 1).all()
