"""Worker processes on this machine: the parent's side, and the life of a worker.

    parent ---- key ----> worker     one socket a worker; a worker whose parent is gone sees it close and leaves at once
           <--- note ---             "at tile 3,4 now": progress, and the name of the tile when the worker dies
           <-- receipt --

Workers are fresh interpreters (torch does not survive a fork) that import this module and nothing of the caller's
`__main__`, so that compress() works from a script without a main guard, from a notebook and from stdin, where
multiprocessing's spawn does not.  They run one thread each: parallelism comes from processes, and the bits of float
sums depend on the number of threads.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import IO, Any, TypeVar

from ditic_stream import _allocator
from ditic_stream._shared import Shared
from ditic_stream._tasks import ATTEMPTS, WORDS, OnFailure, OnNote, Task, name_of, named, translated
from ditic_stream.errors import ConfigError, DiticError, TaskError

DEPTH = 2
"""Keys a worker holds at most: the one it works on, and the next, so that it does not wait for a busy parent."""
WORKER_VARIABLES = (
    dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1") | _allocator.VARIABLES
)
STOP_SECONDS = 10.0
"""Time an idle worker has to leave by itself."""

K = TypeVar("K")
R = TypeVar("R")


@dataclass(slots=True, eq=False)
class _Job:
    index: int
    key: Any
    attempt: int = 1


@dataclass(slots=True, eq=False)
class _Worker:
    """The parent's side of one worker process."""

    process: subprocess.Popen[bytes]
    connection: Connection
    log: IO[bytes]
    task: bytes = b""
    """The task it has open."""
    jobs: deque[_Job] = field(default_factory=deque)
    note: Any = None
    """What the first of `jobs` said last, to name the tile when the worker dies."""

    def send(self, message: object) -> None:
        with contextlib.suppress(OSError):  # a worker that is gone is found when its end of the socket reads as closed
            self.connection.send(message)

    def close(self, *, patience: float) -> None:
        """End the process: let it leave by itself for `patience` seconds, then kill it."""
        try:
            if patience:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(patience)
        finally:
            self.connection.close()
            self.process.kill()
            self.process.wait()
            self.log.close()

    def last_words(self) -> str:
        code = self.process.wait()
        self.log.seek(max(self.log.seek(0, os.SEEK_END) - WORDS, 0))
        words = " ".join(self.log.read().decode("utf-8", "replace").split("\n")[-2:]).strip()
        if code == -signal.SIGKILL:
            return "was killed, by the system if memory ran out: use fewer --workers or a smaller --tile"
        if code < 0:
            return f"died of signal {-code}" + (f": {words}" if words else "")
        return f"left with exit code {code}" + (f": {words}" if words else "")


class ProcessExecutor:
    """Worker processes on this machine.  Use it in a `with` block: leaving it ends the workers.

    workers: how many.  initializer: an importable function called once in each worker before any task.
    """

    def __init__(
        self, workers: int, *, initializer: Callable[[], None] | None = None, attempts: int = ATTEMPTS
    ) -> None:
        if workers < 1:
            raise ConfigError(f"{workers} workers cannot work; use 1 or more")
        self.workers = workers
        self.local = True
        self._initializer = initializer
        self._attempts = attempts
        self._pool: list[_Worker] = []
        self._shared: list[Shared] = []

    def __enter__(self) -> ProcessExecutor:
        return self

    def __exit__(self, *error: object) -> None:
        self._end(patience=0 if any(error) else STOP_SECONDS)
        while self._shared:
            self._shared.pop().close()

    def shared(self, *, folder: Path | None = None) -> Shared:
        self._end(patience=STOP_SECONDS)
        self._shared.append(Shared(folder=folder))
        return self._shared[-1]

    def run_unordered(
        self,
        task: Task[K, R],
        keys: Iterable[K],
        *,
        in_flight: int | None = None,
        on_note: OnNote | None = None,
        on_failure: OnFailure[K, R] | None = None,
    ) -> Iterator[tuple[K, R]]:
        return self._run(task, keys, in_flight or self.workers, on_note, on_failure, ordered=False)

    def run_in_order(
        self, task: Task[K, R], keys: Iterable[K], *, in_flight: int | None = None, on_note: OnNote | None = None
    ) -> Iterator[tuple[K, R]]:
        return self._run(task, keys, in_flight or DEPTH * self.workers, on_note, None, ordered=True)

    def _run(
        self,
        task: Task[K, R],
        keys: Iterable[K],
        in_flight: int,
        on_note: OnNote | None,
        on_failure: OnFailure[K, R] | None,
        *,
        ordered: bool,
    ) -> Iterator[tuple[K, R]]:
        blob = pickle.dumps(task)
        fresh = (_Job(index, key) for index, key in enumerate(keys))
        again: deque[_Job] = deque()  # handed out before, to a worker that died or failed
        finished: dict[int, tuple[_Job, R]] = {}  # in arrival order
        turn = out = 0  # the next index to yield in order; keys taken and not yet yielded
        exhausted = False
        depth = max(1, min(DEPTH, in_flight // self.workers))
        try:
            while True:
                while self._has_room(depth):
                    if not again and not exhausted and out < in_flight:
                        job = next(fresh, None)
                        if job is None:
                            exhausted = True
                        else:
                            again.append(job)
                            out += 1
                    if not again:
                        break
                    self._hand_out(blob, again.popleft())
                due = turn if ordered else next(iter(finished), turn)
                self._listen(again, finished, on_note, on_failure, block=due not in finished and out > 0)
                if due in finished:
                    job, result = finished.pop(due)
                    turn += 1
                    yield job.key, result
                    out -= 1
                elif exhausted and not out:
                    return
        finally:
            # Left early, by an error or by the caller: the workers hold keys nobody waits for any more.
            if out:
                self._end(patience=0)

    def _has_room(self, depth: int) -> bool:
        return len(self._pool) < self.workers or any(len(worker.jobs) < depth for worker in self._pool)

    def _hand_out(self, task: bytes, job: _Job) -> None:
        """Give a key to the worker with the least to do; to a new one while all are busy and fewer than asked for."""
        worker = min(self._pool, key=lambda worker: len(worker.jobs), default=None)
        if worker is None or (worker.jobs and len(self._pool) < self.workers):
            worker = self._start()
        if worker.task != task:
            worker.task = task
            worker.send(("task", task))
        worker.jobs.append(job)
        worker.send(("key", job.key))

    def _listen(
        self,
        again: deque[_Job],
        finished: dict[int, tuple[_Job, Any]],
        on_note: OnNote | None,
        on_failure: OnFailure[Any, Any] | None,
        *,
        block: bool,
    ) -> None:
        """Take what the workers have sent; wait for something when `block`."""

        def give_up(job: _Job, error: DiticError) -> None:
            if on_failure is None:
                raise error
            finished[job.index] = (job, on_failure(job.key, error))

        by_connection = {worker.connection: worker for worker in self._pool}
        for connection in wait(list(by_connection), None if block else 0):
            worker = by_connection[connection]  # type: ignore[index]
            try:
                kind, what = worker.connection.recv()
            except (EOFError, OSError, pickle.UnpicklingError):
                self._bury(worker, again, give_up)
                continue
            if kind == "note":
                worker.note, units = what
                if on_note is not None:
                    on_note(worker.note, units)
                continue
            job = worker.jobs.popleft()
            last, worker.note = worker.note if worker.note is not None else job.key, None
            if kind == "done":
                finished[job.index] = (job, what)
            elif isinstance(what, DiticError) and not (isinstance(what, TaskError) and job.attempt < self._attempts):
                named(what, last, job.attempt)
                give_up(job, what)
            else:
                job.attempt += 1
                again.append(job)

    def _bury(self, worker: _Worker, again: deque[_Job], give_up: Callable[[_Job, DiticError], None]) -> None:
        """A worker died: what it held goes to others, what it worked on has failed once more."""
        self._pool.remove(worker)
        words = worker.last_words()
        worker.close(patience=0)
        if not worker.jobs:
            return
        first = worker.jobs[0]
        if first.attempt >= self._attempts:
            again.extend(list(worker.jobs)[1:])
            give_up(
                first,
                TaskError(
                    f"its worker {words} ({first.attempt} attempts)",
                    key=name_of(worker.note if worker.note is not None else first.key),
                    attempt=first.attempt,
                ),
            )
            return
        first.attempt += 1
        again.extend(worker.jobs)

    def _start(self) -> _Worker:
        ours, theirs = Pipe()
        log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
        run = f"from ditic_stream._processes import serve; serve({theirs.fileno()})"
        # Ctrl-C reaches the whole process group.  Workers start with it held back, and then ignore it: the parent
        # alone decides, and no worker prints a traceback, not even one that is still starting.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process = subprocess.Popen(
                [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {run}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **WORKER_VARIABLES},
                pass_fds=(theirs.fileno(), *(shared.fd for shared in self._shared)),
            )
        except OSError as error:
            ours.close()
            log.close()
            raise TaskError(f"no worker can be started ({error.strerror}); use fewer --workers") from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        worker = _Worker(process, ours, log)
        self._pool.append(worker)
        worker.send(("start", pickle.dumps(self._initializer)))
        return worker

    def _end(self, *, patience: float) -> None:
        if patience:
            for worker in self._pool:
                worker.send(("stop", None))
        while self._pool:
            self._pool.pop().close(patience=patience)


def serve(descriptor: int) -> None:
    """A worker's life: run the keys the parent sends, until the parent says stop, or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    connection = Connection(descriptor)
    inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()

    def listen() -> None:
        # In a thread of its own, to notice in the middle of a task that nobody waits for its result any more.  What a
        # task writes appears whole or not at all, so it may be cut off anywhere.
        try:
            while True:
                inbox.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)

    def tell(kind: str, what: Any) -> None:
        try:
            connection.send((kind, what))
        except OSError:
            os._exit(0)

    def note(what: object, units: int = 0) -> None:
        tell("note", (what, units))

    threading.Thread(target=listen, daemon=True).start()
    blob = b""
    run: Callable[[Any], Any] | None = None
    with contextlib.ExitStack() as opened:
        while True:
            order, what = inbox.get()
            if order == "stop":
                return
            if order == "start":
                initializer = pickle.loads(what)
                if initializer is not None:
                    initializer()
            elif order == "task":
                opened.close()
                blob, run = what, None
            else:
                try:
                    if run is None:
                        run = opened.enter_context(pickle.loads(blob).open(note))
                    result = run(what)
                except Exception as error:
                    tell("failed", translated(error))
                else:
                    tell("done", result)
