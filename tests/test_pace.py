"""What a run is expected to take follows from the pace of tiles, and its bounds from how that differs."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from ditic_stream._pace import AGAIN, NORMAL, WAITING, WRITING, Spent, seconds_of_run, stopwatch


def tile(seconds: float, queued: float = 0.0, pixels: int = 10) -> tuple[int, Spent]:
    """A tile that was kept from a core for some of its seconds, and worked for the others."""
    return pixels, Spent(seconds, seconds - queued, queued)


def test_equal_tiles_give_their_pace_and_bounds_for_another_time_alone() -> None:
    value, low, high = seconds_of_run(1000, [tile(2.0)] * 8, shards=0, workers=2, start=3.0)
    assert value == pytest.approx(103)
    assert low == pytest.approx(103 / (1 + NORMAL * AGAIN))
    assert high == pytest.approx(103 * (1 + NORMAL * AGAIN))


def test_the_first_tile_of_each_worker_is_left_out_while_most_remain() -> None:
    slow, usual = tile(50.0), tile(1.0)
    assert seconds_of_run(100, [slow, slow, *[usual] * 3], shards=0, workers=2, start=0)[0] == pytest.approx(5)
    assert seconds_of_run(100, [slow, slow, usual, usual], shards=0, workers=2, start=0)[0] > 100


def test_one_tile_is_enough_to_say_something() -> None:
    value, low, high = seconds_of_run(100, [tile(4.0, pixels=100)], shards=10, workers=1, start=1.0)
    assert 1 < low < value < high and value == pytest.approx(5 + 10 * WRITING)


def test_bounds_hold_nine_times_of_ten_when_tiles_differ_and_times_do() -> None:
    random, inside = np.random.default_rng(0), 0
    for _ in range(500):
        seconds = random.gamma(8.0, 0.25, 40)
        value = seconds.sum() * np.exp(random.normal(0, AGAIN))
        tiles = [tile(float(s), pixels=1) for s in seconds[:12]]
        _, low, high = seconds_of_run(40, tiles, shards=0, workers=1, start=0)
        inside += low <= value <= high
    assert 0.85 < inside / 500 <= 0.97


def test_a_load_that_ends_or_doubles_is_within_the_bounds() -> None:
    value, low, high = seconds_of_run(1000, [tile(3.0, queued=2.0)] * 8, shards=0, workers=1, start=0)
    assert value == pytest.approx(300)
    assert low < 100 and high > 500
    assert high < 300 + 2 * WAITING * NORMAL * 200
    calm = seconds_of_run(1000, [tile(3.0)] * 8, shards=0, workers=1, start=0)
    assert calm[0] == value and low < calm[1] and calm[2] < high


def test_a_load_that_pauses_while_the_tiles_are_coded_is_known_from_the_windows_before_them() -> None:
    windows = Spent(300.0, 100.0, 200.0)
    value, low, high = seconds_of_run(1000, [tile(1.0)] * 8, others=windows, shards=0, workers=1, start=30.0)
    assert value == pytest.approx(30 + 300, rel=0.05)
    assert low < 30 / 3 + 100 < 30 + 300 < high


def test_waiting_for_pixels_is_not_waiting_for_a_core() -> None:
    slow_source = (10, Spent(3.0, 1.0, 0.0))
    value, low, high = seconds_of_run(1000, [slow_source] * 8, shards=0, workers=1, start=0)
    assert value == pytest.approx(300)
    assert high / low < 1.5


def test_a_stopwatch_tells_work_from_sleep() -> None:
    spent = stopwatch()
    time.sleep(0.2)
    slept = spent()
    assert slept.seconds >= 0.2 and slept.busy < 0.1 and slept.queued < 0.2


def test_a_stopwatch_measures_its_own_thread() -> None:
    def work() -> None:
        until = time.thread_time() + 0.2
        while time.thread_time() < until:
            pass

    spent, other = stopwatch(), threading.Thread(target=work)
    other.start()
    other.join()
    assert spent().busy < 0.1
