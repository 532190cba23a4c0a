"""The life of a worker on a node of a Ray cluster: it keeps tasks open, runs keys, says where it is.

In: a pickled task and a key.  Out: an Answer of a few hundred bytes.  Pixels and latents stay in this process: the task
opens its source and its archive itself.  Knows nothing of the other workers, nor of which keys there are.

    lane ----- run ----->  one thread a lane, each with its own open tasks; several lanes are the batch of a worker,
    lane ----- run ----->  which shrinks when memory runs out
    watch ---- state --->  a thread beside them: what each key is at, for progress and for the name of a tile
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import pickle
import resource
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

from ditic_stream import _allocator
from ditic_stream._processes import WORKER_VARIABLES
from ditic_stream._tasks import name_of, translated
from ditic_stream.errors import OUT_OF_MEMORY, DiticError, TaskError
from ditic_stream.executors import be_one_thread
from ditic_stream.workers._meters import Meters

OPEN_TASKS = 3
"""Tasks a lane keeps open: scenes whose shards come one among the other."""
log = logging.getLogger("ditic_stream.worker")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a worker lives.  device: what its networks run on, "cpu" or "cuda"."""

    node: str
    host: str
    pid: int
    device: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A key to run.  careful: its worker died before; tell the board each note before going on."""

    run: str
    index: int
    key: Any
    label: str
    careful: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What became of a key.  kind: "done", "failed", "memory" or "skipped"; what: the result, or the error."""

    kind: str
    what: Any = None
    note: Any = None
    """What the task said last."""
    units: int = 0
    """All that it said it has done: pixels."""
    seconds: float = 0.0
    memory: int = 0
    """Highest resident bytes of the worker so far."""


class Board:
    """Remembers what careful workers are at, outside of them, so that a tile that kills its worker is named."""

    def __init__(self) -> None:
        self._notes: dict[tuple[str, int], str] = {}

    def put(self, run: str, index: int, note: str) -> None:
        self._notes[run, index] = note

    def get(self, run: str, index: int) -> str | None:
        return self._notes.get((run, index))


class Worker:
    """device: given, it takes the place of the task's own.  initializer: called once, before any task."""

    def __init__(self, device: str | None = None, initializer: Callable[[], None] | None = None) -> None:
        prepare_process()
        if initializer is not None:
            initializer()
        self._device = device
        self._lanes = threading.local()
        self._at: dict[tuple[str, int], tuple[Any, int]] = {}
        self._lock = threading.Lock()
        self._begun: deque[tuple[str, int]] = deque(maxlen=256)
        self._skip: set[tuple[str, int]] = set()
        self._closed: set[str] = set()
        self._meters = Meters(device or "cpu")

    def where(self) -> Place:
        """Where this worker is; the answer says that it is ready."""
        import ray

        node = ray.get_runtime_context().get_node_id()
        return Place(node=node, host=os.uname().nodename, pid=os.getpid(), device=self._device or "cpu")

    def run(self, task: bytes, call: Call, board: Any = None) -> Answer:
        """Do one key.  Every error of the task is an answer; only the death of the process is none."""
        name = (call.run, call.index)
        with self._lock:
            if name in self._skip:
                self._skip.discard(name)
                return Answer(kind="skipped")
            self._begun.append(name)
        began = time.monotonic()

        def note(what: object, units: int = 0) -> None:
            before = self._at.get(name, (None, 0))[1]
            self._at[name] = (what, before + units)
            if units:
                self._meters.pixels(units)
                log.info("%s: %s done, %d px", call.label, what, units)
            elif call.careful:
                import ray

                with contextlib.suppress(ray.exceptions.RayError):  # a board that is slow to answer only costs the name
                    ray.get(board.put.remote(*name, str(what)), timeout=30)

        note(call.key)
        try:
            result = self._opened(call.run, task, note)(call.key)
        except Exception as error:
            answer = self._failed(error, call, *self._at[name])
        else:
            answer = Answer(kind="done", what=result, note=self._at[name][0], units=self._at[name][1])
            self._meters.wrote(getattr(result, "bytes", 0))
        self._at.pop(name, None)
        seconds = time.monotonic() - began
        self._meters.busy(seconds)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return dataclasses.replace(answer, seconds=seconds, memory=peak)

    def state(self) -> dict[tuple[str, int], tuple[Any, int]]:
        """What the keys at hand are at: (note, units done)."""
        return dict(self._at)

    def skip(self, run: str, index: int) -> bool:
        """Leave a key to another worker; False when it has begun here."""
        with self._lock:
            if (run, index) in self._begun:
                return False
            self._skip.add((run, index))
            return True

    def close(self, run: str) -> None:
        """No key of this run comes any more: each lane closes its task before the next key."""
        self._closed.add(run)

    def _failed(self, error: Exception, call: Call, note: Any, units: int) -> Answer:
        told = translated(error)
        if isinstance(told, TaskError):
            told.key = told.key or name_of(note)
        log.warning("%s: %s failed: %s", call.label, note, told)
        kind = "memory" if isinstance(told, TaskError) and told.message == OUT_OF_MEMORY else "failed"
        if kind == "memory":
            self._close(call.run)
            free_memory()
        return Answer(kind=kind, what=told, note=note, units=units)

    def _opened(self, run: str, blob: bytes, note: Callable[..., None]) -> Callable[[Any], Any]:
        """The function that does one key of a task, which is open in this lane from here on."""
        tasks: OrderedDict[str, tuple[Any, Any, Any]] | None = getattr(self._lanes, "tasks", None)
        if tasks is None:
            tasks = self._lanes.tasks = OrderedDict()
            be_one_thread()
        for old in [name for name in tasks if name in self._closed]:
            self._close(old)
        if run not in tasks:
            while len(tasks) >= OPEN_TASKS:
                self._close(next(iter(tasks)))
            task = pickle.loads(blob)
            if self._device is not None and "device" in getattr(task, "__dataclass_fields__", ()):
                task = dataclasses.replace(task, device=self._device)
            teller, stack = Teller(), contextlib.ExitStack()
            teller.tell = note
            tasks[run] = (stack.enter_context(task.open(teller)), teller, stack)
        tasks.move_to_end(run)
        function, teller, _ = tasks[run]
        teller.tell = note
        return function  # type: ignore[no-any-return]

    def _close(self, run: str) -> None:
        tasks = getattr(self._lanes, "tasks", {})
        if run in tasks:
            stack = tasks.pop(run)[2]
            with contextlib.suppress(DiticError):
                stack.close()


class Teller:
    """The note a task is opened with; it reaches whichever key is at work in this lane."""

    tell: Callable[..., None]

    def __call__(self, what: object, units: int = 0) -> None:
        self.tell(what, units)


def prepare_process() -> None:
    """One thread for every library that would take more, and memory that is given back; before torch is loaded."""
    for name, value in WORKER_VARIABLES.items():
        os.environ.setdefault(name, value)
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
    _allocator.keep()  # its variables are read when a process starts, and Ray has started this one


def free_memory() -> None:
    """Give back what a failed forward left, on the device too."""
    import gc

    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
