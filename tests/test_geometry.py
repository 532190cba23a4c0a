"""Windows and keys: small values that must not lie."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rasterio.windows import Window as RasterioWindow

from ditic_stream.errors import ConfigError, WindowError
from ditic_stream.geometry import CELL, TileKey, Window, cells

sides = st.integers(1, 70)
places = st.integers(0, 70)
windows = st.builds(
    lambda row, col, height, width: Window(row=row, col=col, height=height, width=width), places, places, sides, sides
)


def _mask(window: Window) -> np.ndarray:
    plane = np.zeros((150, 150), bool)
    plane[window.row : window.row_end, window.col : window.col_end] = True
    return plane


@given(windows, windows)
def test_windows_meet_exactly_when_they_share_a_pixel(one: Window, other: Window) -> None:
    both = _mask(one) & _mask(other)
    assert one.meets(other) == bool(both.any())
    if both.any():
        assert (_mask(one.intersect(other)) == both).all()
    else:
        with pytest.raises(WindowError):
            one.intersect(other)


@given(windows, windows)
def test_slices_cut_a_window_out_of_the_array_that_holds_it(outer: Window, inner: Window) -> None:
    if not outer.meets(inner):
        return
    inner = inner.intersect(outer)
    plane = np.arange(150 * 150).reshape(150, 150)
    held = plane[outer.row : outer.row_end, outer.col : outer.col_end]
    rows, cols = inner.slices(outer)
    assert (held[rows, cols] == plane[inner.row : inner.row_end, inner.col : inner.col_end]).all()


@given(windows, st.integers(0, 40))
def test_a_grown_window_stays_inside_the_scene(window: Window, margin: int) -> None:
    grown = window.grown(margin, height=150, width=150)
    assert grown == grown.within(150, 150)
    assert grown.intersect(window) == window
    assert window.row - grown.row in (margin, window.row)


@pytest.mark.parametrize(
    "bad",
    [
        {"row": -1, "col": 0, "height": 1, "width": 1},
        {"row": 0, "col": -1, "height": 1, "width": 1},
        {"row": 0, "col": 0, "height": 0, "width": 1},
        {"row": 0, "col": 0, "height": 1, "width": 0},
    ],
)
def test_empty_and_negative_windows_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(WindowError, match="height and width at 1"):
        Window(**bad)


def test_a_window_has_ints_of_python_and_no_halves() -> None:
    window = Window(row=np.int32(1), col=np.uint8(250), height=np.int64(3), width=np.uint16(9))
    assert window.col_end == 259 and type(window.col) is int
    with pytest.raises(WindowError, match=r"row of a window is 1\.5"):
        Window(row=1.5, col=0, height=1, width=1)  # type: ignore[arg-type]


def test_windows_of_rasterio_are_windows_where_pixels_are_whole() -> None:
    expected = Window(row=20, col=10, height=40, width=30)
    assert Window.of(expected) is expected
    assert Window.of(RasterioWindow(10, 20, 30.0, 40)) == expected
    for bad in (RasterioWindow(10, 20, 30.5, 40), RasterioWindow(float("nan"), 0, 1, 1), (10, 20, 30, 40), None):
        with pytest.raises(ConfigError, match="no window of whole pixels"):
            Window.of(bad)


def test_a_window_outside_the_scene_is_refused_with_the_bound() -> None:
    window = Window(row=90, col=0, height=11, width=5)
    assert window.within(101, 5) is window
    with pytest.raises(WindowError, match="100 x 5"):
        window.within(100, 5)


@given(st.integers(1, 10_000))
def test_cells_cover_all_pixels_and_waste_less_than_one(pixels: int) -> None:
    assert cells(pixels) * CELL >= pixels > (cells(pixels) - 1) * CELL


def test_windows_and_keys_travel_and_sort_in_row_order() -> None:
    window = Window(row=1, col=2, height=3, width=4)
    assert pickle.loads(pickle.dumps(window)) == window
    assert sorted([TileKey(1, 0), TileKey(0, 5)]) == [TileKey(0, 5), TileKey(1, 0)]
    assert str(TileKey(3, 14)) == "3,14"
    with pytest.raises(AttributeError):
        window.row = 5  # type: ignore[misc]
