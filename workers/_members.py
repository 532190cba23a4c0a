"""The keys that a fleet works on, the actors that do so, and what it knows of either.

In: what Ray and the actors say.  Out: who has room, who is slow, whose node is gone.  Decides nothing (_fleet does).
"""

from __future__ import annotations

import contextlib
import queue
import statistics
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayError

from ditic_stream._tasks import WORDS
from ditic_stream.errors import OUT_OF_MEMORY
from ditic_stream.workers._actor import Place

SHORT_SECONDS = 1.0
"""Keys that take less are handed out one ahead, so that a worker does not wait for the driver."""


@dataclass(slots=True, eq=False)
class Run:
    """One task and its keys, as the fleet sees them."""

    name: str
    blob: Any
    label: str
    attempts: int
    priority: int
    repeatable: bool
    inbox: queue.SimpleQueue[tuple[str, Any, Any]] = field(default_factory=queue.SimpleQueue)
    waiting: deque[Job] = field(default_factory=deque)
    jobs: dict[int, Job] = field(default_factory=dict)
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=64))
    """What its last keys took."""

    @property
    def median(self) -> float:
        """Seconds a key takes, by the last of them."""
        return statistics.median(self.seconds) if self.seconds else SHORT_SECONDS


@dataclass(slots=True, eq=False)
class Job:
    """A key on its way."""

    run: Run
    index: int
    key: Any
    attempt: int = 1
    losses: int = 0
    starved: int = 0
    careful: bool = False
    told: int = 0
    """Units that the run's inbox has heard of."""
    note: Any = None
    holders: list[Member] = field(default_factory=list)
    asked_back: bool = False
    """An idle member could have it, if its holder has not begun."""


@dataclass(slots=True, eq=False)
class Member:
    """An actor of the fleet."""

    handle: Any
    device: str | None
    lanes: int
    began: float = field(default_factory=time.monotonic)
    place: Place | None = None
    jobs: dict[Job, float] = field(default_factory=dict)
    """In the order they were sent, and when."""
    asked: float | None = None
    """Since when it has not said what it is at."""
    busy: float = 0.0
    done: int = 0
    memory: int = 0

    @property
    def capacity(self) -> int:
        """Keys it may hold."""
        if any(job.careful for job in self.jobs):
            return 0  # alone, so that a death tells who it was
        return self.lanes + (self.lanes == 1 and all(job.run.median < SHORT_SECONDS for job in self.jobs))

    def usage(self) -> dict[str, Any]:
        """Where it is, what it did, and the share of its time that it was at work."""
        assert self.place is not None
        lived = max(time.monotonic() - self.began, 1e-6)
        return {
            "node": self.place.node[:8], "host": self.place.host, "pid": self.place.pid, "device": self.place.device,
            "keys": self.done, "lanes": self.lanes, "memory": self.memory,
            "busy": round(min(self.busy / lived / self.lanes, 1.0), 3),
        }  # fmt: skip

    def node_lives(self, error: BaseException) -> bool:
        """Whether its node is still there after its death by `error`: if so, the death was its own."""
        if isinstance(error, ActorUnavailableError) or "node has died" in str(error):
            return False
        if self.place is None:
            return True
        return any(node["Alive"] and node["NodeID"] == self.place.node for node in ray.nodes())

    def end(self, *, wait: bool = False) -> None:
        """Kill the actor.  wait: until it is gone and writes no more."""
        with contextlib.suppress(Exception):
            ray.kill(self.handle, no_restart=True)
            if wait:
                with contextlib.suppress(RayError):
                    for _ in range(100):  # a call to an actor that is gone raises; one that lives may still write
                        with contextlib.suppress(GetTimeoutError):
                            ray.get(self.handle.state.options(concurrency_group="watch").remote(), timeout=1)
                        time.sleep(0.05)


@dataclass(slots=True)
class Counts:
    """What happened so far."""

    restarts: int = 0
    nodes_lost: int = 0
    retries: int = 0
    shrinks: int = 0
    doubled: int = 0
    """Keys that were given to a second worker because the first was slow."""


def words_of(error: BaseException) -> str:
    """What Ray says of a death, in a line."""
    text = " ".join(str(error).split())
    for start in ("The actor is dead because ", "The actor died because "):
        if start in text:
            text = text[text.index(start) + len(start) :]
            break
    if "worker process has died" in text:
        return "was killed or crashed; its node is still there: look at the worker's log, or use fewer --workers"
    if "OutOfMemory" in type(error).__name__ or "memory" in text[:200].lower():
        return f"was ended by Ray, since the node ran {OUT_OF_MEMORY}"
    return text[:WORDS]
