"""Run one task over many keys: in this process, or in worker processes beside it.

In: a Task (a small picklable value, opened once a worker) and keys.  Out: (key, result) as they finish, or in order.
Knows nothing of scenes, codecs or files; pixels do not pass through here, only keys and receipts.

    parent ---- key ----> worker     one socket a worker; a worker whose parent is gone sees it close and leaves at once
           <--- note ---             "at tile 3,4 now": progress, and the name of the tile when the worker dies
           <-- receipt --

Workers are fresh interpreters (torch does not survive a fork) that import this module and nothing of the caller's
`__main__`, so that compress() works from a script without a main guard, from a notebook and from stdin, where
multiprocessing's spawn does not.  They run one thread each: parallelism comes from processes, and the bits of float
sums depend on the number of threads.

A task may run twice (its worker died, or something foreign went wrong), so it must write the same bytes again.
A DiticError is an answer and is raised at once; anything else is tried up to `attempts` times, then becomes a
TaskError.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ditic_stream.errors import ConfigError, DiticError, StorageError, TaskError

ATTEMPTS = 3
"""Times a key is tried before it is given up."""
DEPTH = 2
"""Keys a worker holds at most: the one it works on, and the next, so that it does not wait for a busy parent."""
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
STOP_SECONDS = 10.0
"""Time an idle worker has to leave by itself."""
WORDS = 400
"""Characters of a dead worker's last words that are passed on."""

K = TypeVar("K")
R = TypeVar("R")
K_contra = TypeVar("K_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)
OnNote = Callable[[object, int], None]


class Note(Protocol):
    """Tells the parent what a task is at: something small and picklable, and how many units more it has done."""

    def __call__(self, what: object, units: int = 0) -> None: ...


class _CallersError(BaseException):
    """Carries what the caller's own callback raised through a task, which must not take it for its own failure."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class Task(Protocol[K_contra, R_co]):
    """What to do with a key.  Frozen, picklable, a few hundred bytes; the work happens inside `open`."""

    def open(self, note: Note) -> AbstractContextManager[Callable[[K_contra], R_co]]:
        """Load what every key needs (codec, files) and give the function that does one key.

        note: says which tile is being worked on, which names the tile should the worker die, and what is done.
        """
        ...


class Executor(Protocol):
    """One way of running tasks.  Serial is the reference; the others are the same thing faster."""

    @property
    def workers(self) -> int: ...

    def __enter__(self) -> Executor: ...

    def __exit__(self, *error: object) -> None: ...

    def run_unordered(
        self, task: Task[K, R], keys: Iterable[K], *, in_flight: int | None = None, on_note: OnNote | None = None
    ) -> Iterator[tuple[K, R]]:
        """Yield (key, result) as they finish.

        At most `in_flight` keys are taken from `keys` and not yet yielded (default: one a worker).
        on_note: called with each note of a task.  Raises the task's own DiticError, or TaskError.
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


class Shared:
    """A file without a name that the parent and the workers of one executor share: nothing stays behind, whatever dies.

    folder: where its bytes lie on disk; None keeps them in memory where the system can.  It travels to workers as the
    number of its descriptor.
    """

    def __init__(self, *, folder: Path | None = None) -> None:
        if folder is None and hasattr(os, "memfd_create"):
            self.fd = os.memfd_create("ditic-stream")
        else:
            try:
                with tempfile.TemporaryFile(dir=folder) as file:
                    self.fd = os.dup(file.fileno())
            except OSError as error:
                raise StorageError(f"no scratch file can be made in {folder}: {error.strerror}") from error
        self._map: mmap.mmap | None = None

    def __getstate__(self) -> int:
        return self.fd

    def __setstate__(self, fd: int) -> None:
        self.fd = fd
        self._map = None

    def resize(self, size: int) -> None:
        """Set the bytes; StorageError when there is no room."""
        try:
            os.ftruncate(self.fd, size)
        except OSError as error:
            raise StorageError(f"no room for {size} bytes of scratch ({error.strerror}); use fewer workers") from error

    def close(self) -> None:
        os.close(self.fd)

    def write(self, offset: int, array: NDArray[Any]) -> None:
        """Put the bytes of a contiguous array at `offset`; StorageError when there is no room."""
        rest = array.reshape(-1).view(np.uint8).data
        while rest:
            try:
                done = os.pwrite(self.fd, rest, offset)
            except OSError as error:
                raise StorageError(
                    f"scratch file beside the output: {error.strerror}; make room there and run the same command again"
                ) from error
            rest, offset = rest[done:], offset + done

    def read_into(self, offset: int, array: NDArray[Any]) -> None:
        """Fill a contiguous array from `offset`."""
        rest = array.reshape(-1).view(np.uint8).data
        while rest:
            done = os.preadv(self.fd, [rest], offset)
            if not done:
                raise StorageError(f"scratch file ends at byte {offset}, {len(rest)} bytes too early")
            rest, offset = rest[done:], offset + done

    def floats(self, offset: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """A float32 array that lies in the shared bytes themselves, from `offset` (in bytes)."""
        if self._map is None:
            self._map = mmap.mmap(self.fd, 0)
        count = int(np.prod(shape, dtype=np.int64))
        return np.frombuffer(self._map, np.float32, count, offset).reshape(shape)


def _described(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:WORDS] if str(error) else type(error).__name__


def _translated(error: Exception) -> Exception:
    """What may travel and be shown: DiticErrors as they are, others as a TaskError in their own words."""
    if isinstance(error, DiticError):
        return error
    if isinstance(error, MemoryError):
        return TaskError("out of memory; use fewer --workers or a smaller --tile, and run the same command again")
    told = TaskError(f"failed with {_described(error)}; run the same command again, or report it")
    told.add_note("".join(traceback.format_exception(error)))  # a cause would not survive pickling, a note does
    return told


def _name(key: object) -> str | None:
    return None if key is None else str(key)


def _named(error: Exception, key: object, attempt: int) -> Exception:
    """Say of a TaskError where and at which attempt it happened; tasks name the tile in errors of their own."""
    if isinstance(error, TaskError):
        error.attempt = attempt
        error.key = error.key or _name(key)
    return error


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run torch, if it is loaded, with one thread as the workers do, and give the caller's setting back."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class SerialExecutor:
    """The reference: every key in this process, one after the other."""

    workers = 1

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
        self, task: Task[K, R], keys: Iterable[K], *, in_flight: int | None = None, on_note: OnNote | None = None
    ) -> Iterator[tuple[K, R]]:
        last: object = None

        def note(what: object, units: int = 0) -> None:
            nonlocal last
            last = what
            if on_note is not None:
                try:
                    on_note(what, units)
                except Exception as error:
                    raise _CallersError(error) from error

        with task.open(note) as run:
            for key in keys:
                for attempt in range(1, self._attempts + 1):
                    last = key
                    try:
                        result = run(key)
                        break
                    except _CallersError as carrier:
                        raise carrier.error from None
                    except Exception as error:
                        if isinstance(error, DiticError) or attempt == self._attempts:
                            raise _named(_translated(error), last, attempt) from error
                yield key, result

    run_unordered = run_in_order


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
        self, task: Task[K, R], keys: Iterable[K], *, in_flight: int | None = None, on_note: OnNote | None = None
    ) -> Iterator[tuple[K, R]]:
        return self._run(task, keys, in_flight or self.workers, on_note, ordered=False)

    def run_in_order(
        self, task: Task[K, R], keys: Iterable[K], *, in_flight: int | None = None, on_note: OnNote | None = None
    ) -> Iterator[tuple[K, R]]:
        return self._run(task, keys, in_flight or DEPTH * self.workers, on_note, ordered=True)

    def _run(
        self, task: Task[K, R], keys: Iterable[K], in_flight: int, on_note: OnNote | None, *, ordered: bool
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
                self._listen(again, finished, on_note, block=due not in finished and out > 0)
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
        self, again: deque[_Job], finished: dict[int, tuple[_Job, Any]], on_note: OnNote | None, *, block: bool
    ) -> None:
        """Take what the workers have sent; wait for something when `block`."""
        by_connection = {worker.connection: worker for worker in self._pool}
        for connection in wait(list(by_connection), None if block else 0):
            worker = by_connection[connection]  # type: ignore[index]
            try:
                kind, what = worker.connection.recv()
            except (EOFError, OSError, pickle.UnpicklingError):
                self._bury(worker, again)
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
                raise _named(what, last, job.attempt)
            else:
                job.attempt += 1
                again.append(job)

    def _bury(self, worker: _Worker, again: deque[_Job]) -> None:
        """A worker died: what it held goes to others, what it worked on has failed once more."""
        self._pool.remove(worker)
        words = worker.last_words()
        worker.close(patience=0)
        if not worker.jobs:
            return
        first = worker.jobs[0]
        if first.attempt >= self._attempts:
            raise TaskError(
                f"its worker {words} ({first.attempt} attempts)",
                key=_name(worker.note if worker.note is not None else first.key),
                attempt=first.attempt,
            )
        first.attempt += 1
        again.extend(worker.jobs)

    def _start(self) -> _Worker:
        ours, theirs = Pipe()
        log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
        run = f"from ditic_stream.executors import serve; serve({theirs.fileno()})"
        # Ctrl-C reaches the whole process group.  Workers start with it held back, and then ignore it: the parent
        # alone decides, and no worker prints a traceback, not even one that is still starting.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process = subprocess.Popen(
                [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {run}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **ONE_THREAD},
                pass_fds=(theirs.fileno(), *(shared.fd for shared in self._shared)),
            )
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
                    tell("failed", _translated(error))
                else:
                    tell("done", result)


@contextlib.contextmanager
def executor_for(workers: int | None, jobs: int) -> Iterator[Executor]:
    """The executor for so many workers (the cores by default) and jobs: this process itself where one will do."""
    if workers is not None and workers < 1:
        raise ConfigError(f"{workers} workers cannot work; use 1 or more")
    count = min(workers or cores(), jobs)
    with SerialExecutor() if count == 1 else ProcessExecutor(count) as made:
        yield made


def cores() -> int:
    """Cores this process may use: the default number of workers."""
    if hasattr(os, "sched_getaffinity"):
        return max(len(os.sched_getaffinity(0)), 1)
    return os.cpu_count() or 1
