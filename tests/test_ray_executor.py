"""The executor for Ray, on a real cluster: it does what the serial one does; what dies is done again, and named."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clusters import wait_for
from executor_rules import *  # noqa: F403  (tests)
from fakes import Crowd, Square, start_slowly

from ditic_stream.errors import ConfigError, TaskError
from ditic_stream.executors import found

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def executor(nodes: Any) -> Iterator[Any]:
    """Two actors that most tests share: starting some takes a second or two."""
    with found("ray")(2, device="cpu") as made:
        yield made


def test_task_is_opened_once_an_actor(executor: Any, tmp_path: Path) -> None:
    assert len(list(executor.run_unordered(Square(tmp_path), range(30), in_flight=4))) == 30
    assert 1 <= len(list(tmp_path.glob("open-*"))) <= 2


def test_task_that_keeps_failing_is_named_with_its_own_words(executor: Any, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"tile 3: .*OSError.*a lens cap") as caught:
        list(executor.run_unordered(Square(tmp_path, (3,), 99), range(6)))
    assert (caught.value.attempt, caught.value.key) == (3, "tile 3")


def test_a_failure_that_is_taken_leaves_the_other_keys_their_results(executor: Any, tmp_path: Path) -> None:
    task = Square(tmp_path, (2,), 99, "ours")
    got = dict(executor.run_unordered(task, range(6), on_failure=lambda key, error: -key))
    assert got == {0: 0, 1: 1, 2: -2, 3: 9, 4: 16, 5: 25}


def test_a_killed_actor_is_replaced_and_its_keys_are_done(executor: Any, tmp_path: Path) -> None:
    before = executor.fleet.counts.restarts
    got = dict(executor.run_unordered(Square(tmp_path, (2, 5), 1, "kill"), range(9), in_flight=5))
    assert got == {number: number * number for number in range(9)}
    assert executor.fleet.counts.restarts - before == 2


def test_a_key_that_kills_every_actor_is_set_aside_and_named(executor: Any, tmp_path: Path) -> None:
    errors = {}
    task = Square(tmp_path, (4,), 99, "kill")
    got = dict(executor.run_unordered(task, range(9), on_failure=lambda key, error: errors.setdefault(key, error)))
    assert {key: value for key, value in got.items() if key != 4} == {n: n * n for n in range(9) if n != 4}
    assert str(errors[4]).startswith("tile tile 4: its worker was killed or crashed")
    assert "3 attempts" in str(errors[4])
    # An idle actor may take a key over from a slow one just before that dies of it: once more, and not counted twice.
    assert 3 <= len(list(tmp_path.glob("try-4-*"))) <= 4


def test_executor_works_again_after_a_run_was_left_early(executor: Any, tmp_path: Path) -> None:
    run = executor.run_unordered(Square(tmp_path), range(50), in_flight=4)
    next(run)
    run.close()
    (tmp_path / "b").mkdir()
    assert dict(executor.run_unordered(Square(tmp_path / "b"), range(5))) == {n: n * n for n in range(5)}


def test_notes_reach_the_driver(executor: Any, tmp_path: Path) -> None:
    notes: list[tuple[object, int]] = []
    list(executor.run_unordered(Square(tmp_path), range(6), on_note=lambda *note: notes.append(note)))
    assert {what for what, _ in notes} == {f"tile {number}" for number in range(6)}


def test_an_actor_without_memory_works_on_fewer_keys_at_once(nodes: Any, tmp_path: Path) -> None:
    with found("ray")(1, device="cpu", lanes=4) as executor:
        got = dict(executor.run_unordered(Crowd(tmp_path, most=2), range(12), in_flight=12))
        assert got == {number: number for number in range(12)}
        assert executor.fleet.counts.shrinks >= 1
        assert executor.usage()[0]["lanes"] in (1, 2)


def test_a_key_that_is_slow_is_done_by_an_idle_actor_too(nodes: Any, tmp_path: Path, monkeypatch: Any) -> None:
    from ditic_stream.workers import _fleet

    monkeypatch.setattr(_fleet, "SLOW_SECONDS", 1.0)
    with found("ray")(2, device="cpu") as executor:
        got = dict(executor.run_unordered(Square(tmp_path, (3,), 1, "sleep"), range(9)))
    assert got == {number: number * number for number in range(9)}
    assert executor.fleet.counts.doubled >= 1  # on a busy machine others are slow too


def test_an_actor_that_is_stopped_is_ended_and_its_keys_are_done(nodes: Any, tmp_path: Path, monkeypatch: Any) -> None:
    from ditic_stream.workers import _fleet

    monkeypatch.setattr(_fleet, "SILENT_SECONDS", 2.0)
    with found("ray")(2, device="cpu") as executor:
        stopped: list[int] = []

        def stop(*note: object) -> None:
            if not stopped:
                stopped.append(executor.usage()[0]["pid"])
                os.kill(stopped[0], signal.SIGSTOP)

        got = {}
        for key, value in executor.run_unordered(Square(tmp_path), range(40), in_flight=6, on_note=stop):
            got[key] = value
            time.sleep(0.02)
        assert got == {number: number * number for number in range(40)}
        assert executor.fleet.counts.restarts == 1
    wait_for(lambda: not Path(f"/proc/{stopped[0]}").exists())


@pytest.mark.slow
def test_a_node_that_is_lost_while_its_actors_start_ends_nothing(nodes: Any, tmp_path: Path) -> None:
    extra = nodes.add_node(num_cpus=6, object_store_memory=80 << 20)
    with found("ray")(12, device="cpu", initializer=start_slowly) as executor:
        time.sleep(3)
        nodes.remove_node(extra, allow_graceful=False)
        assert len(dict(executor.run_unordered(Square(tmp_path), range(40)))) == 40
        wait_for(lambda: executor.fleet.counts.nodes_lost >= 5)
        assert len(dict(executor.run_unordered(Square(tmp_path), range(40)))) == 40
        assert len(executor.fleet.members) == 12


def test_a_key_that_an_actor_left_to_others_comes_back_to_it_only_once_it_has_said_so() -> None:
    """Else its answer to the first call is taken for one to the second, and nobody waits for that any more."""
    from ditic_stream.workers._fleet import Fleet
    from ditic_stream.workers._members import Job, Member, Run

    run = Run(name="run", blob=None, label="", attempts=3, priority=0, repeatable=True)
    left, other = (Job(run, index, index) for index in range(2))
    fleet, member = object.__new__(Fleet), Member(handle=None, device=None, lanes=2)
    fleet._runs, fleet.members, member.jobs[left] = [run], [member], 0.0
    run.waiting.extend([left, other])
    assert fleet._next(member) is other
    assert fleet._next(member) is None
    del member.jobs[left]
    assert fleet._next(member) is left


@pytest.mark.slow
def test_a_key_that_ends_workers_for_memory_is_given_up_and_the_workers_come_back(
    nodes: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """What Ray's memory monitor says is put in the place of what it says of a killed process."""
    from ray.exceptions import OutOfMemoryError

    from ditic_stream.workers import _fleet

    monkeypatch.setattr(_fleet, "STARVED", 2)
    bury = _fleet.Fleet._bury
    monkeypatch.setattr(_fleet.Fleet, "_bury", lambda self, member, _: bury(self, member, OutOfMemoryError("memory")))
    with found("ray")(4, device="cpu") as executor:
        task = Square(tmp_path, (4,), 99, "kill")
        errors = {}
        got = dict(executor.run_unordered(task, range(9), on_failure=lambda key, error: errors.setdefault(key, error)))
        assert {key: value for key, value in got.items() if key != 4} == {n: n * n for n in range(9) if n != 4}
        assert "ran out of memory" in str(errors[4])
        # A death may be seen before the answer of the key ahead of it, and is then laid to neither.
        assert 2 + 3 <= executor.fleet.counts.restarts <= 2 + 3 + 3
        wait_for(lambda: len(executor.usage()) == 4)


def test_actors_are_pinned_to_a_gpu_each_and_take_no_cpu(nodes: Any) -> None:
    extra = nodes.add_node(num_cpus=0, num_gpus=2, object_store_memory=80 << 20)
    try:
        with found("ray")(device="cuda") as executor:
            assert executor.workers == 2
            assert executor.device == "cuda"
            seen: set[str] = set()
            while seen != {"0", "1"}:  # one actor may be through with all keys before the other has started
                seen |= set(dict(executor.run_unordered(Which(), range(6), in_flight=6)).values())
                assert seen <= {"0", "1"}
            usage = executor.usage()
            assert {one["device"] for one in usage} == {"cuda"}
        with found("ray")(device="mixed", gpus=0.5) as executor:
            assert executor.workers == 4 + 6
    finally:
        nodes.remove_node(extra)


class Which:
    """Tells which GPU an actor sees."""

    def open(self, note: Any) -> Any:
        import contextlib

        return contextlib.nullcontext(lambda key: os.environ.get("CUDA_VISIBLE_DEVICES"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"workers": 0}, "0 workers"), ({"gpus": 2}, "2 of a GPU"), ({"device": "tpu"}, "device 'tpu'"),
     ({"device": "cuda"}, "the cluster has no GPU")],
)  # fmt: skip
def test_what_no_cluster_can_do_is_refused(nodes: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        found("ray")(**settings)


def test_an_address_that_is_none_is_an_error_in_time(tmp_path: Path) -> None:
    """In a process of its own: this one is connected."""
    program = (
        "import sys, os; from ditic_stream.executors import found; from ditic_stream.errors import TaskError\n"
        "for address in ('127.0.0.1:1', '127.0.0.1:99999999', 'localhost:x'):\n"
        "    os.environ['RAY_ADDRESS'] = address\n"
        "    try: found('ray')(1, address='')\n"
        "    except TaskError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.count("no Ray cluster at ") == 3


def test_workers_that_cannot_start_are_an_error_in_time(nodes: Any, tmp_path: Path) -> None:
    with found("ray")(4, device="cpu"), found("ray")(1, device="cpu", start_seconds=2) as starved:  # noqa: SIM117
        with pytest.raises(TaskError, match=r"no worker could start within 2 s.*fewer --workers"):
            list(starved.run_unordered(Square(tmp_path), range(3)))


def test_an_answer_is_small_and_an_error_survives_it() -> None:
    from ditic_stream.workers._actor import Answer

    answer = pickle.loads(pickle.dumps(Answer(kind="failed", what=TaskError("words", key="1,2", attempt=2))))
    assert (answer.what.key, answer.what.attempt) == ("1,2", 2)
