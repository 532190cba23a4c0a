"""Run tasks on a Ray cluster: the executor of `--ray`.

In: a task and keys.  Out: (key, result), as executors.Executor says.  The bytes are those of a serial run.
Knows the cluster's resources; which actor does what is in _fleet.

    one actor a GPU (num_gpus=1, num_cpus=0, pinned by Ray), or one a CPU where there is none; each opens sources and
    archives itself, from storage that all nodes see, so that only keys and receipts cross the cluster
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import ray

from ditic_stream._tasks import ATTEMPTS, OnNote, Task
from ditic_stream.errors import ConfigError, DiticError, TaskError
from ditic_stream.executors import OnFailure, Shared
from ditic_stream.workers._fleet import Fleet
from ditic_stream.workers._members import Run

STORE_BYTES = 2**27
"""Object store of a cluster of our own, on this machine: nothing large goes through it."""
CONNECT_SECONDS = 10.0
START_SECONDS = 600.0
"""Patience with the first worker: an autoscaler may have to start a machine."""

K = TypeVar("K")
R = TypeVar("R")


class RayExecutor:
    """Actors of a Ray cluster.  Use it in a `with` block: leaving it ends them.

    workers: actors; by default one for each GPU, or each CPU, that the cluster has.  address: that of a cluster that
    runs ("auto" finds the one of this machine); None takes the connection this process has, then RAY_ADDRESS, then
    starts a cluster of its own that ends with this.  device: "cuda" or "cpu" for all actors, "mixed" for one on each
    GPU and one on each CPU that is left, "auto" for cuda where the cluster has GPUs.
    gpus: the share of a GPU an actor takes.  lanes: keys an actor works on at once.  attempts: times a key is tried.
    start_seconds: patience with the first actor.  initializer: an importable function called once in each actor.
    Raises ConfigError when the cluster has not what is asked for, TaskError when it cannot be reached.
    """

    local = False
    """Workers see the files that this process sees, and nothing of its memory."""

    def __init__(
        self,
        workers: int | None = None,
        *,
        address: str | None = None,
        device: str = "auto",
        gpus: float = 1.0,
        lanes: int = 1,
        attempts: int = ATTEMPTS,
        start_seconds: float = START_SECONDS,
        initializer: Callable[[], None] | None = None,
    ) -> None:
        if workers is not None and workers < 1:
            raise ConfigError(f"{workers} workers cannot work; use 1 or more")
        if not 0 < gpus <= 1:
            raise ConfigError(f"{gpus} of a GPU is outside 0..1; 1, 0.5 or 0.25 is usual")
        if device.partition(":")[0] not in ("auto", "cpu", "cuda", "mixed"):
            raise ConfigError(f"device {device!r} is none that Ray can pin; use auto, cpu, cuda or mixed")
        self._attempts = attempts
        self._ours = _connect(address)
        try:
            plan = _plan(workers, device, gpus)
            kinds = {kind for kind, _ in plan}
            self.device = "cuda" if "cuda" in kinds else "cpu"
            """What a manifest names: where a mixed fleet codes, the receipts name the rest."""
            self.workers = len(plan)
            self._lanes = lanes
            self.fleet = Fleet(plan, lanes=lanes, start_seconds=start_seconds, initializer=initializer)
        except BaseException:
            self._disconnect()
            raise

    def __enter__(self) -> RayExecutor:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.fleet.stop()
        finally:
            self._disconnect()

    def shared(self, *, folder: Path | None = None) -> Shared:
        raise ConfigError("nodes of a cluster share no memory; decode in belts (regions.decompress does)")

    def run_unordered(
        self,
        task: Task[K, R],
        keys: Iterable[K],
        *,
        in_flight: int | None = None,
        on_note: OnNote | None = None,
        on_failure: OnFailure[K, R] | None = None,
        priority: int = 0,
    ) -> Iterator[tuple[K, R]]:
        return self._run(task, keys, in_flight, on_note, on_failure, priority, ordered=False)

    def run_in_order(
        self, task: Task[K, R], keys: Iterable[K], *, in_flight: int | None = None, on_note: OnNote | None = None
    ) -> Iterator[tuple[K, R]]:
        return self._run(task, keys, in_flight, on_note, None, 0, ordered=True)

    def usage(self) -> list[dict[str, Any]]:
        """Each actor that lives: where it is, what it did, its share of busy time."""
        return self.fleet.usage()

    def _run(
        self,
        task: Task[K, R],
        keys: Iterable[K],
        in_flight: int | None,
        on_note: OnNote | None,
        on_failure: OnFailure[K, R] | None,
        priority: int,
        *,
        ordered: bool,
    ) -> Iterator[tuple[K, R]]:
        in_flight = in_flight or 2 * self.workers * self._lanes
        fresh = enumerate(keys)
        finished: dict[int, tuple[K, R]] = {}  # in arrival order
        turn = out = 0
        exhausted = False
        run: Run | None = None
        try:
            while True:
                while not exhausted and out < in_flight:
                    index, key = next(fresh, (-1, None))
                    if index < 0:
                        exhausted = True
                        break
                    if run is None:
                        run = self._open(task, priority)
                    self.fleet.submit(run, index, key)
                    out += 1
                if run is None or (exhausted and not out):
                    return
                due = turn if ordered else next(iter(finished), turn)
                if due not in finished:
                    _listen(run, finished, on_note, on_failure)
                due = turn if ordered else next(iter(finished), turn)
                if due in finished:
                    yield finished.pop(due)
                    turn += 1
                    out -= 1
        finally:
            if run is not None:
                self.fleet.close(run)

    def _open(self, task: Task[Any, Any], priority: int) -> Run:
        label = str(getattr(task, "source", None) or getattr(task, "archive", None) or type(task).__name__)
        repeatable = bool(getattr(task, "repeatable", True))
        return self.fleet.open(
            ray.cloudpickle.dumps(task), label=label, attempts=self._attempts, priority=priority, repeatable=repeatable
        )

    def _disconnect(self) -> None:
        if self._ours:
            ray.shutdown()


def _listen(
    run: Run, finished: dict[int, Any], on_note: OnNote | None, on_failure: Callable[[Any, DiticError], Any] | None
) -> None:
    """Take the next event of a run; an error that nobody takes is raised."""
    kind, job, what = run.inbox.get()
    if kind == "note":
        if on_note is not None:
            on_note(job, what)
    elif kind == "done":
        finished[job.index] = (job.key, what)
    elif kind == "failed":
        if on_failure is None:
            raise what
        finished[job.index] = (job.key, on_failure(job.key, what))
    elif kind == "broken":
        raise what


def _connect(address: str | None) -> bool:
    """Connect to a cluster; True when the connection is ours to end."""
    if ray.is_initialized():
        return False
    options: dict[str, Any] = {"log_to_driver": bool(os.environ.get("DITIC_DEBUG")), "logging_level": logging.ERROR}
    address = address or os.environ.get("RAY_ADDRESS") or None
    host, _, port = (address or "").rpartition(":")
    try:
        if host and port.isdigit() and "://" not in host:
            # Ray itself tries for minutes.
            socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
        if address is None:
            ray.init(address="local", include_dashboard=False, object_store_memory=STORE_BYTES, **options)
        else:
            ray.init(address=address, **options)
    except (ConnectionError, OSError, OverflowError, RuntimeError, ValueError) as error:
        words = " ".join(str(error).split())[:300]
        raise TaskError(
            f"no Ray cluster at {address or 'this machine'}: {words}; start one, or name another"
        ) from error
    return True


def _plan(workers: int | None, device: str, gpus: float) -> list[tuple[str | None, dict[str, Any]]]:
    """The device and the resources of each actor.

    An actor on a GPU takes no CPU: it would keep it for as long as it lives, and starve whatever else needs one.
    """
    there = ray.cluster_resources()
    cards, cores = int(there.get("GPU", 0)), int(there.get("CPU", 0))
    on_gpu = ("cuda", {"num_gpus": gpus, "num_cpus": 0})
    on_cpu = ("cpu", {"num_cpus": 1, "num_gpus": 0})
    if device in ("cuda", "mixed") and not cards:
        raise ConfigError("the cluster has no GPU; use --device cpu, or add a node that has one")
    if device == "mixed":
        most = [on_gpu] * int(cards / gpus) + [on_cpu] * max(cores, 1)
        return list(most if workers is None else most[:workers])
    kind = on_gpu if device.startswith("cuda") or (device == "auto" and cards) else on_cpu
    return [kind] * (workers or (int(cards / gpus) if kind is on_gpu else max(cores, 1)))
