"""Run one task over many keys: in this process, or in worker processes beside it.

In: a Task (a small picklable value, opened once a worker) and keys.  Out: (key, result) as they finish, or in order.
Knows nothing of scenes, codecs or files; pixels do not pass through here, only keys and receipts.

    SerialExecutor      the reference: every key here, one after the other (_here)
    OverlapExecutor     the same, two keys at a time, so that a device does not wait for this process
    ProcessExecutor     the same, faster (_processes)
    found("ray")        the same on a cluster (workers/, by entry point)

A task may run twice (its worker died, or something foreign went wrong), so it must write the same bytes again.
A DiticError is an answer and is raised at once; anything else is tried up to ATTEMPTS times, then becomes a TaskError.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ditic_stream._here import OverlapExecutor, SerialExecutor, be_one_thread, one_thread
from ditic_stream._processes import ProcessExecutor
from ditic_stream._shared import Shared
from ditic_stream._tasks import ATTEMPTS, Note, OnFailure, OnNote, Task, loaded
from ditic_stream.errors import ConfigError

__all__ = [
    "ATTEMPTS",
    "Executor",
    "Note",
    "OnFailure",
    "OnNote",
    "OverlapExecutor",
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


@contextlib.contextmanager
def executor_for(
    workers: int | None, device: str, jobs: int, pixels: int, *, overlap: bool = False
) -> Iterator[Executor]:
    """The executor for so many workers and jobs: this process itself where one will do.

    workers: None takes the cores, but no more than there is work for, as a process takes seconds to start; and one
    where the networks run on another device, which several would only share.
    overlap: there this process may work on two keys at a time, as in decoding: one tile's symbols while a window
    renders.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"{workers} workers cannot work; use 1 or more")
    if workers is None:
        workers = min(cores(), max(pixels // PIXELS_A_WORKER, 1)) if device == "cpu" else 1
    count = min(workers, jobs)
    alone = OverlapExecutor if overlap and device != "cpu" and jobs > 1 else SerialExecutor
    with alone() if count == 1 else ProcessExecutor(count) as made:
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
