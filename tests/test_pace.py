"""What a run is expected to take follows from the pace of tiles, and its bounds from how that differs."""

from __future__ import annotations

import numpy as np
import pytest

from ditic_stream._pace import LOAD, NORMAL, seconds_of_run


def test_equal_tiles_give_their_pace_and_bounds_for_the_load_alone() -> None:
    value, low, high = seconds_of_run(1000, [(10, 2.0)] * 8, workers=2, start=3.0)
    assert value == pytest.approx(103)
    assert low == pytest.approx(103 / (1 + NORMAL * LOAD))
    assert high == pytest.approx(103 * (1 + NORMAL * LOAD))


def test_the_first_tile_of_each_worker_is_left_out_while_most_remain() -> None:
    slow, usual = (10, 50.0), (10, 1.0)
    assert seconds_of_run(100, [slow, slow, *[usual] * 3], workers=2, start=0)[0] == pytest.approx(5)
    assert seconds_of_run(100, [slow, slow, usual, usual], workers=2, start=0)[0] > 100


def test_one_tile_is_enough_to_say_something() -> None:
    value, low, high = seconds_of_run(100, [(100, 4.0)], workers=1, start=1.0)
    assert 1 < low < value < high and value == pytest.approx(5)


def test_bounds_hold_nine_times_of_ten_when_tiles_and_the_load_differ() -> None:
    random, inside = np.random.default_rng(0), 0
    for _ in range(500):
        seconds = random.gamma(8.0, 0.25, 40)
        value = seconds.sum() * np.exp(random.normal(0, LOAD))
        _, low, high = seconds_of_run(40, [(1, float(s)) for s in seconds[:12]], workers=1, start=0)
        inside += low <= value <= high
    assert 0.85 < inside / 500 <= 0.97
