"""Executors: serial and processes do the same; what dies is done again; what fails is named."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from executor_rules import *  # noqa: F403  (tests)
from fakes import Fill, Square

from ditic_stream import executors
from ditic_stream.errors import ConfigError, StorageError, TaskError
from ditic_stream.executors import (
    Executor,
    OverlapExecutor,
    ProcessExecutor,
    SerialExecutor,
    Shared,
    executor_for,
    one_thread,
)


@pytest.fixture(params=["serial", "overlap", "processes"])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    kinds = {"serial": SerialExecutor, "overlap": OverlapExecutor}
    with kinds[request.param]() if request.param in kinds else ProcessExecutor(2) as made:
        yield made


def test_task_is_opened_once_a_worker_and_closed_at_the_end(tmp_path: Path) -> None:
    with ProcessExecutor(2) as executor:
        assert len(list(executor.run_unordered(Square(tmp_path), range(30), in_flight=4))) == 30
    opened = {path.name.removeprefix("open-") for path in tmp_path.glob("open-*")}
    closed = {path.name.removeprefix("closed-") for path in tmp_path.glob("closed-*")}
    assert 1 <= len(opened) <= 2
    assert opened == closed


def test_one_executor_runs_one_task_after_another(executor: Executor, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        assert len(list(executor.run_unordered(Square(tmp_path / name), range(4)))) == 4
        assert len(list((tmp_path / name).glob("record-*"))) == 4


def test_task_that_keeps_failing_is_named_with_its_own_words(executor: Executor, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"tile 3: .*OSError.*a lens cap") as caught:
        list(executor.run_unordered(Square(tmp_path, (3,), 99), range(6)))
    assert caught.value.attempt == executors.ATTEMPTS
    assert caught.value.key == "tile 3"


def test_out_of_memory_is_one_sentence_with_a_remedy(executor: Executor, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"out of memory; use fewer --workers"):
        list(executor.run_unordered(Square(tmp_path, (0,), 99, "memory"), range(2)))


@pytest.mark.parametrize("ordered", [False, True])
def test_a_killed_worker_is_replaced_and_its_keys_are_done(tmp_path: Path, ordered: bool) -> None:
    with ProcessExecutor(2) as executor:
        run = executor.run_in_order if ordered else executor.run_unordered
        got = list(run(Square(tmp_path, (2, 5), 2, "kill"), range(9), in_flight=5))
    assert sorted(got) == [(number, number * number) for number in range(9)]
    if ordered:
        assert got == sorted(got)


def test_a_key_that_kills_every_worker_is_named(tmp_path: Path) -> None:
    with ProcessExecutor(2) as executor, pytest.raises(TaskError, match=r"tile 4: its worker was killed.*3 attempts"):
        list(executor.run_unordered(Square(tmp_path, (4,), 99, "kill"), range(9), in_flight=4))


def test_last_words_of_a_worker_that_leaves_are_passed_on(tmp_path: Path) -> None:
    with ProcessExecutor(1) as executor, pytest.raises(TaskError, match="exit code 7: the last words"):
        list(executor.run_unordered(Square(tmp_path, (0,), 99, "exit"), [0]))


def test_executor_works_again_after_a_run_was_left_early(executor: Executor, tmp_path: Path) -> None:
    run = executor.run_unordered(Square(tmp_path), range(50), in_flight=4)
    next(run)
    run.close()  # type: ignore[attr-defined]
    assert dict(executor.run_unordered(Square(tmp_path), range(5))) == {n: n * n for n in range(5)}


def test_notes_reach_the_parent_in_the_order_of_the_work(executor: Executor, tmp_path: Path) -> None:
    notes: list[tuple[object, int]] = []
    list(executor.run_unordered(Square(tmp_path), range(6), on_note=lambda *note: notes.append(note)))
    assert sorted(notes) == [(f"tile {number}", 0) for number in range(6)]


def test_what_the_callers_own_callback_raises_comes_back_as_it_is(executor: Executor, tmp_path: Path) -> None:
    calls = []

    def callback(what: object, units: int) -> None:
        calls.append(what)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(executor.run_unordered(Square(tmp_path), range(6), on_note=callback))
    assert len(calls) == 1


def test_fewer_than_one_worker_is_refused_and_one_stays_in_this_process() -> None:
    with pytest.raises(ConfigError, match="0 workers"):
        ProcessExecutor(0)
    with pytest.raises(ConfigError, match="0 workers"), executor_for(0, "cpu", 9, 10**9):
        pass


@pytest.mark.parametrize(
    ("workers", "device", "jobs", "pixels", "expected"),
    [
        (1, "cpu", 9, 10**9, 1),
        (4, "cpu", 1, 10**9, 1),
        (2, "cpu", 9, 10, 2),
        (9, "cpu", 3, 10, 3),
        (None, "cpu", 9, 10**9, 4),
        (None, "cpu", 9, 10**6, 1),
        (None, "cuda", 9, 10**9, 1),
        (2, "cuda", 9, 10**9, 2),
    ],
)
def test_workers_are_as_asked_or_as_many_as_cores_and_work_allow(
    workers: int | None, device: str, jobs: int, pixels: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executors, "cores", lambda: 4)
    with executor_for(workers, device, jobs, pixels) as made:
        assert made.workers == expected
        assert isinstance(made, SerialExecutor if expected == 1 else ProcessExecutor)


def test_decoding_on_another_device_this_process_works_on_two_keys_at_a_time() -> None:
    with executor_for(None, "cuda", 9, 10**9, overlap=True) as made:
        assert isinstance(made, OverlapExecutor) and made.workers == 2
    for device, jobs in (("cuda", 1), ("cpu", 9)):
        with executor_for(None, device, jobs, 10, overlap=True) as made:
            assert type(made) is SerialExecutor


class Meeting:
    """A task whose keys wait for each other in pairs; a key of `fails` raises."""

    def __init__(self, fails: int = -1) -> None:
        self.barrier, self.fails, self.taken = threading.Barrier(2), fails, list[int]()

    @contextmanager
    def open(self, note: object) -> Iterator[Callable[[int], int]]:
        def run(key: int) -> int:
            self.barrier.wait(timeout=20)
            if key == self.fails:
                raise ConfigError(f"key {key}")
            return key * key

        yield run


def test_two_keys_overlap_and_come_back_in_order_with_no_more_taken_than_asked() -> None:
    task, used = Meeting(), list[int]()

    def keys() -> Iterator[int]:
        for key in range(8):
            task.taken.append(len(used))
            yield key

    with OverlapExecutor() as executor:
        for key, result in executor.run_in_order(task, keys(), in_flight=4):
            used.append(key)
            assert result == key * key
    assert used == list(range(8))
    assert all(key - done < 4 for key, done in enumerate(task.taken))


def test_an_error_in_one_of_two_keys_is_raised_at_its_turn() -> None:
    with OverlapExecutor() as executor:
        results = executor.run_in_order(Meeting(fails=3), range(8), in_flight=4)
        assert [next(results)[0] for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ConfigError, match="key 3"):
            next(results)


def test_a_system_that_starts_no_process_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with ProcessExecutor(2) as executor, pytest.raises(TaskError, match="no worker can be started"):
        list(executor.run_unordered(Square(tmp_path), [1]))


def test_there_is_a_core() -> None:
    assert executors.cores() >= 1


def test_shared_bytes_written_by_workers_are_read_by_the_parent(executor: Executor, tmp_path: Path) -> None:
    for store in [executor.shared(), executor.shared(folder=tmp_path)]:
        store.resize(4096 * 8)
        for number, threads in executor.run_unordered(Fill(store), range(8)):
            assert (store.floats(number * 4096, (2, 3)) == number).all()
            back = np.empty(number, np.int16)
            store.read_into(number * 4096 + 1024, back)
            assert (back == np.arange(number)).all()
            assert threads == "1" or isinstance(executor, SerialExecutor)
    assert list(tmp_path.iterdir()) == []  # scratch files have no name


def test_shared_bytes_asked_for_later_reach_new_workers(tmp_path: Path) -> None:
    with ProcessExecutor(1) as executor:
        list(executor.run_unordered(Square(tmp_path), [1]))
        store = executor.shared()
        store.resize(4096)
        list(executor.run_unordered(Fill(store), [0]))
        assert (store.floats(0, (2, 3)) == 0).all()


def test_scratch_without_room_or_folder_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match="no scratch file can be made"):
        Shared(folder=tmp_path / "nowhere")
    with SerialExecutor() as executor:
        store = executor.shared(folder=tmp_path)

        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(StorageError, match=rf"{tmp_path} .*No space left.*make room"):
            pickle.loads(pickle.dumps(store)).write(0, np.zeros(4, np.uint8))  # as a worker says it


def test_one_thread_gives_the_callers_setting_back() -> None:
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


SLEEPER = """
import sys, time, os
sys.path[:0] = {paths!r}
from fakes import Sleep
from ditic_stream.executors import ProcessExecutor
with ProcessExecutor(2) as executor:
    for _ in executor.run_unordered(Sleep(), range(4), on_note=lambda what, pid: print(pid, flush=True)):
        pass
"""


@pytest.fixture
def sleepers() -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A parent started from stdin-like code without a main guard, and the pids of its two sleeping workers."""
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    parent = subprocess.Popen(
        [sys.executable, "-c", SLEEPER.format(paths=paths)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert parent.stdout is not None
    pids = [int(parent.stdout.readline()) for _ in range(2)]
    yield parent, pids
    parent.kill()
    parent.communicate()


def _gone(pids: list[int], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        alive = []
        for pid in pids:
            with contextlib.suppress(OSError):
                state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
                alive += [pid] if state != "Z" else []
        if not alive:
            return True
        time.sleep(0.02)
    return False


def test_workers_leave_by_themselves_when_the_parent_is_killed(
    sleepers: tuple[subprocess.Popen[str], list[int]],
) -> None:
    parent, pids = sleepers
    parent.kill()
    assert _gone(pids, 5)


def test_interrupting_the_process_group_ends_all_and_only_the_parent_speaks(
    sleepers: tuple[subprocess.Popen[str], list[int]],
) -> None:
    parent, pids = sleepers
    os.killpg(parent.pid, signal.SIGINT)
    _, said = parent.communicate(timeout=20)
    assert _gone(pids, 5)
    assert said.count("Traceback") == 1  # Python's own, for the uncaught KeyboardInterrupt of the parent
    assert "KeyboardInterrupt" in said
