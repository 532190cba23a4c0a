"""Run one task over many keys: in this process, or in worker processes beside it.

In: a Task (a small picklable value, opened once a worker) and keys.  Out: (key, result) as they finish, or in order.
Knows nothing of scenes, codecs or files; pixels do not pass through here, only keys and receipts.

    SerialExecutor      the reference: every key here, one after the other
    ProcessExecutor     the same, faster (_processes)
    found("ray")        the same on a cluster (workers/, by entry point)

A task may run twice (its worker died, or something foreign went wrong), so it must write the same bytes again.
A DiticError is an answer and is raised at once; anything else is tried up to ATTEMPTS times, then becomes a TaskError.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ditic_stream._processes import ProcessExecutor
from ditic_stream._shared import Shared
from ditic_stream._tasks import ATTEMPTS, CallersError, Note, OnFailure, OnNote, Task, loaded, named, translated
from ditic_stream.errors import ConfigError, DiticError

__all__ = [
    "ATTEMPTS",
    "Executor",
    "Note",
    "OnFailure",
    "OnNote",
    "ProcessExecutor",
    "SerialExecutor",
    "Shared",
    "Task",
    "be_one_thread",
    "cores",
    "executor_for",
    "found",
    "loaded",
    "one_thread",
    "warm",
]

OWN = {
    ("ditic_stream.executors", "ray"): "ditic_stream.workers.ray_executor:RayExecutor",
    ("ditic_stream.drivers", "batch"): "ditic_stream.workers.batch:run_batch",
}
"""Entry points of this package, for Python started in a checkout that was never installed."""
PIXELS_A_WORKER = 2**21
"""Pixels that are worth a process: about as long as one takes to load the networks."""
K = TypeVar("K")
R = TypeVar("R")


class Executor(Protocol):
    """One way of running tasks.  Serial is the reference; the others are the same thing faster."""

    @property
    def workers(self) -> int: ...

    @property
    def local(self) -> bool:
        """True when the workers are on this machine and see `shared` bytes; others see files that all nodes see."""
        ...

    def __enter__(self) -> Executor: ...

    def __exit__(self, *error: object) -> None: ...

    def run_unordered(
        self,
        task: Task[K, R],
        keys: Iterable[K],
        *,
        in_flight: int | None = None,
        on_note: OnNote | None = None,
        on_failure: OnFailure[K, R] | None = None,
    ) -> Iterator[tuple[K, R]]:
        """Yield (key, result) as they finish.

        At most `in_flight` keys are taken from `keys` and not yet yielded (default: one a worker).
        on_note: called with each note of a task.  Raises the task's own DiticError, or TaskError; with on_failure, that
        is called with the key and the error instead, and what it returns is the result.
        """
        ...

    def run_in_order(
        self, task: Task[K, R], keys: Iterable[K], *, in_flight: int | None = None, on_note: OnNote | None = None
    ) -> Iterator[tuple[K, R]]:
        """Yield (key, result) in the order of `keys`.

        When a key is taken from `keys`, all but the `in_flight` - 1 keys before it have been yielded and used.
        """
        ...

    def shared(self, *, folder: Path | None = None) -> Shared:
        """Bytes that this process and the workers see.  Ends the workers at hand: only new ones learn of them."""
        ...


class SerialExecutor:
    """The reference: every key in this process, one after the other."""

    workers = 1
    local = True

    def __init__(self, *, attempts: int = ATTEMPTS) -> None:
        self._attempts = attempts
        self._shared: list[Shared] = []

    def __enter__(self) -> SerialExecutor:
        return self

    def __exit__(self, *error: object) -> None:
        while self._shared:
            self._shared.pop().close()

    def shared(self, *, folder: Path | None = None) -> Shared:
        self._shared.append(Shared(folder=folder))
        return self._shared[-1]

    def run_in_order(
        self,
        task: Task[K, R],
        keys: Iterable[K],
        *,
        in_flight: int | None = None,
        on_note: OnNote | None = None,
        on_failure: OnFailure[K, R] | None = None,
    ) -> Iterator[tuple[K, R]]:
        last: object = None

        def note(what: object, units: int = 0) -> None:
            nonlocal last
            last = what
            if on_note is not None:
                try:
                    on_note(what, units)
                except Exception as error:
                    raise CallersError(error) from error

        with task.open(note) as run:
            for key in keys:
                for attempt in range(1, self._attempts + 1):
                    last = key
                    try:
                        result = run(key)
                        break
                    except CallersError as carrier:
                        raise carrier.error from None
                    except Exception as error:
                        if isinstance(error, DiticError) or attempt == self._attempts:
                            failure = named(translated(error), last, attempt)
                            if on_failure is None or not isinstance(failure, DiticError):
                                raise failure from error
                            result = on_failure(key, failure)
                            break
                yield key, result

    run_unordered = run_in_order


def be_one_thread() -> None:
    """Let torch, if it is loaded, compute with one thread in the thread that calls this: torch asks each for itself."""
    torch = _torch()
    if torch is not None:
        torch.set_num_threads(1)


def _torch() -> Any:
    """torch if it is loaded, all of it: another thread may be importing it just now, and then this one waits."""
    return import_module("torch") if "torch" in sys.modules else None


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run torch, if it is loaded, with one thread as the workers do, and give the caller's setting back."""
    torch = _torch()
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def executor_for(workers: int | None, device: str, jobs: int, pixels: int) -> Iterator[Executor]:
    """The executor for so many workers and jobs: this process itself where one will do.

    workers: None takes the cores, but no more than there is work for, as a process takes seconds to start; and one
    where the networks run on another device, which several would only share.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"{workers} workers cannot work; use 1 or more")
    if workers is None:
        workers = min(cores(), max(pixels // PIXELS_A_WORKER, 1)) if device == "cpu" else 1
    count = min(workers, jobs)
    with SerialExecutor() if count == 1 else ProcessExecutor(count) as made:
        yield made


def found(name: str, group: str = "ditic_stream.executors") -> Any:
    """What is registered under `name`: an executor's class, or a driver.  ConfigError says what to install."""
    known = [*entry_points(group=group, name=name)]
    if not known and (group, name) in OWN:
        known = [EntryPoint(name, OWN[group, name], group)]
    if not known:
        raise ConfigError(f"no {group.rpartition('.')[2]} entry {name!r} is installed; install the package that has it")
    try:
        module, _, attribute = known[0].value.partition(":")
        return getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != name:
            raise
        raise ConfigError(f"{name} is not installed; pip install 'ditic-stream[{name}]'") from error


def warm() -> None:
    """Load what the networks need, in a worker that has nothing to do yet."""
    import_module("ditic_stream.codec")


def cores() -> int:
    """Cores this process may use: the default number of workers."""
    if hasattr(os, "sched_getaffinity"):
        return max(len(os.sched_getaffinity(0)), 1)
    return os.cpu_count() or 1
