"""Means over boxes: those of a slow twin, of what counts alone, the same in any window."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ditic_stream._resampling import any_of, area_means, box_means


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 2, 4, 8]), st.integers(0, 9))
def test_box_means_are_those_of_each_box_alone(height: int, width: int, factor: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 65536, (2, height, width)).astype(np.uint16)
    counts = rng.random((height, width)) < 0.6
    means, seen = box_means(values, counts, factor)
    assert means.shape == (2, -(-height // factor), -(-width // factor))
    assert (any_of(counts, factor) == seen).all()
    for row in range(means.shape[1]):
        for col in range(means.shape[2]):
            box = (slice(row * factor, (row + 1) * factor), slice(col * factor, (col + 1) * factor))
            here = values[:, *box][:, counts[box]]
            assert seen[row, col] == bool(here.size)
            assert (means[:, row, col] == (here.astype(float).mean(1) if here.size else 0)).all()


def test_a_mean_has_the_same_bits_in_any_window_that_holds_its_box() -> None:
    values = np.random.default_rng(0).standard_normal((1, 64, 64)).astype(np.float32) * 1e5
    every = np.ones((64, 64), bool)
    whole, _ = box_means(values, every, 4)
    part, _ = box_means(values[:, 12:40, 8:64], every[12:40, 8:64], 4)
    assert (part == whole[:, 3:10, 2:16]).all()


def slow(values: np.ndarray, counts: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """Area means by summing over every pixel for every box; NaN where nothing counts."""
    out = np.full((len(rows) - 1, len(cols) - 1), np.nan)
    for i in range(len(rows) - 1):
        for j in range(len(cols) - 1):
            down = np.clip(
                np.minimum(rows[i + 1], np.arange(1, 1 + len(values))) - np.maximum(rows[i], np.arange(len(values))),
                0,
                None,
            )
            side = values.shape[1]
            across = np.clip(
                np.minimum(cols[j + 1], np.arange(1, 1 + side)) - np.maximum(cols[j], np.arange(side)), 0, None
            )
            weight = np.outer(down, across) * counts
            if weight.sum() > 1e-12:
                out[i, j] = (weight * values).sum() / weight.sum()
    return out


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 30), st.integers(1, 30), st.integers(0, 9))
def test_area_means_weigh_each_pixel_by_the_part_of_it_inside(
    height: int, width: int, out_height: int, out_width: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    values, counts = rng.random((height, width)), rng.random((height, width)) < 0.7
    rows, cols = np.linspace(0, height, out_height + 1), np.linspace(0, width, out_width + 1)
    borders = np.arange(height + 1.0), np.arange(width + 1.0)
    means, seen = area_means(values, counts, (borders[0], rows), (borders[1], cols))
    expected = slow(values, counts, rows, cols)
    assert (seen == ~np.isnan(expected)).all()
    np.testing.assert_allclose(means[seen], expected[seen], rtol=1e-9, atol=1e-9)
