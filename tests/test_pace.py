"""What a run is expected to take follows from the pace of tiles, and its bounds from how that differs."""

from __future__ import annotations

import numpy as np
import pytest

from ditic_stream._pace import AGAIN, NORMAL, WAITING, WRITING, seconds_of_run


def test_equal_tiles_give_their_pace_and_bounds_for_another_time_alone() -> None:
    value, low, high = seconds_of_run(1000, [(10, 2.0, 2.0)] * 8, shards=0, workers=2, start=3.0)
    assert value == pytest.approx(103)
    assert low == pytest.approx(103 / (1 + NORMAL * AGAIN))
    assert high == pytest.approx(103 * (1 + NORMAL * AGAIN))


def test_the_first_tile_of_each_worker_is_left_out_while_most_remain() -> None:
    slow, usual = (10, 50.0, 50.0), (10, 1.0, 1.0)
    assert seconds_of_run(100, [slow, slow, *[usual] * 3], shards=0, workers=2, start=0)[0] == pytest.approx(5)
    assert seconds_of_run(100, [slow, slow, usual, usual], shards=0, workers=2, start=0)[0] > 100


def test_one_tile_is_enough_to_say_something() -> None:
    value, low, high = seconds_of_run(100, [(100, 4.0, 4.0)], shards=10, workers=1, start=1.0)
    assert 1 < low < value < high and value == pytest.approx(5 + 10 * WRITING)


def test_bounds_hold_nine_times_of_ten_when_tiles_differ_and_times_do() -> None:
    random, inside = np.random.default_rng(0), 0
    for _ in range(500):
        seconds = random.gamma(8.0, 0.25, 40)
        value = seconds.sum() * np.exp(random.normal(0, AGAIN))
        _, low, high = seconds_of_run(40, [(1, float(s), float(s)) for s in seconds[:12]], shards=0, workers=1, start=0)
        inside += low <= value <= high
    assert 0.85 < inside / 500 <= 0.97


def test_a_load_that_ends_or_doubles_is_within_the_bounds() -> None:
    value, low, high = seconds_of_run(1000, [(10, 3.0, 1.0)] * 8, shards=0, workers=1, start=0)
    assert value == pytest.approx(300)
    assert low < 100 and high > 500
    assert high < 300 + 2 * WAITING * NORMAL * 200
    calm = seconds_of_run(1000, [(10, 3.0, 3.0)] * 8, shards=0, workers=1, start=0)
    assert calm[0] == value and low < calm[1] and calm[2] < high
