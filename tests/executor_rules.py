"""What every executor does, whatever its workers are: tests that the modules of the executors take over.

They ask for the fixture `executor`, which each of those modules has its own of.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import Square

from ditic_stream.errors import FormatError
from ditic_stream.executors import Executor


def test_every_key_gives_its_result_once_in_any_executor(executor: Executor, tmp_path: Path) -> None:
    got = dict(executor.run_unordered(Square(tmp_path), range(12), in_flight=4))
    assert got == {number: number * number for number in range(12)}


def test_results_come_in_the_order_of_keys_when_asked_for(executor: Executor, tmp_path: Path) -> None:
    got = list(executor.run_in_order(Square(tmp_path), range(20), in_flight=5))
    assert got == [(number, number * number) for number in range(20)]


@pytest.mark.parametrize("ordered", [False, True])
def test_no_more_keys_are_taken_than_in_flight(executor: Executor, tmp_path: Path, ordered: bool) -> None:
    taken = used = 0

    def keys() -> Iterator[int]:
        nonlocal taken
        for number in range(15):
            assert taken - used < 3
            taken += 1
            yield number

    run = executor.run_in_order if ordered else executor.run_unordered
    for _ in run(Square(tmp_path), keys(), in_flight=3):
        used += 1
    assert (taken, used) == (15, 15)


def test_no_keys_give_no_results(executor: Executor, tmp_path: Path) -> None:
    assert list(executor.run_unordered(Square(tmp_path), [])) == []


@pytest.mark.parametrize("how", ["error", "memory"])
def test_task_that_fails_twice_still_writes_one_record(executor: Executor, tmp_path: Path, how: str) -> None:
    got = dict(executor.run_unordered(Square(tmp_path, (3,), 2, how), range(6)))
    assert got[3] == 9
    assert (tmp_path / "record-3").read_text() == "9\n"


def test_an_error_of_ours_is_an_answer_and_is_not_tried_again(executor: Executor, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"^tile 5,6: broken$"):
        list(executor.run_unordered(Square(tmp_path, (2,), 99, "ours"), range(6)))
    assert len(list(tmp_path.glob("try-2-*"))) == 1
