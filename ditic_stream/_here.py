"""Run a task in this process: a key after another, or two at a time.

In: a Task and keys.  Out: (key, result) as `executors` says; nothing is pickled and no process is started.

    SerialExecutor     the reference
    OverlapExecutor    two threads for work in order, so that a device computes while this process prepares; which keys
                       there are, in which order results come and what they are is as with the reference
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from ditic_stream._shared import Shared
from ditic_stream._tasks import ATTEMPTS, CallersError, OnFailure, OnNote, Task, named, translated
from ditic_stream.errors import DiticError

K = TypeVar("K")
R = TypeVar("R")
THREADS = 2


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
        note = _Notes(on_note)
        with task.open(note) as run:
            for key in keys:
                yield key, self._one(run, key, note, on_failure)

    run_unordered = run_in_order

    def _one(self, run: Callable[[K], R], key: K, note: _Notes, on_failure: OnFailure[K, R] | None) -> R:
        for attempt in range(1, self._attempts + 1):
            note.last = key
            try:
                return run(key)
            except CallersError as carrier:
                raise carrier.error from None
            except Exception as error:
                if isinstance(error, DiticError) or attempt == self._attempts:
                    failure = named(translated(error), note.last, attempt)
                    if on_failure is None or not isinstance(failure, DiticError):
                        raise failure from error
                    return on_failure(key, failure)
        raise AssertionError("no attempt was made")


class OverlapExecutor(SerialExecutor):
    """Two keys at a time where results are asked for in order; everything else one after the other.

    For tasks whose work may run in two threads, as that of `_rendering` may.
    """

    workers = THREADS

    def run_in_order(
        self,
        task: Task[K, R],
        keys: Iterable[K],
        *,
        in_flight: int | None = None,
        on_note: OnNote | None = None,
        on_failure: OnFailure[K, R] | None = None,
    ) -> Iterator[tuple[K, R]]:
        note, fresh = _Notes(on_note), iter(keys)
        most = in_flight or 2 * THREADS
        out: deque[tuple[K, Future[R]]] = deque()
        # The threads end before the task is closed.
        with task.open(note) as run, ThreadPoolExecutor(THREADS, "overlap", initializer=be_one_thread) as pool:
            try:
                while True:
                    while len(out) < most:
                        try:
                            key = next(fresh)
                        except StopIteration:
                            break
                        out.append((key, pool.submit(self._one, run, key, note, on_failure)))
                    if not out:
                        return
                    key, future = out.popleft()
                    yield key, future.result()
            finally:
                for _, future in out:
                    future.cancel()


class _Notes(threading.local):
    """The `note` of a task, and what was told last in each thread, to name the tile in errors."""

    def __init__(self, on_note: OnNote | None) -> None:
        self._on_note = on_note
        self.last: object = None

    def __call__(self, what: object, units: int = 0) -> None:
        self.last = what
        if self._on_note is not None:
            try:
                self._on_note(what, units)
            except Exception as error:
                raise CallersError(error) from error


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
