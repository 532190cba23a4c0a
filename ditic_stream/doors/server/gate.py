"""Let requests through to a few threads: fairly, in bounded numbers, for a bounded time.

In: jobs (plain functions), each with the client that asks and a key.  Out: what they return, or a refusal.
Knows nothing of scenes or HTTP.

    client a   [job] [job] [job]  \\                            one job of each client in turn, a client's own in order
    client b   [job]               +--> threads --> answers     equal keys share one job
    client c   [job] [job]        /                             nobody waits for it any more: it leaves the queue

A thread cannot be stopped from outside, so a job gets a Ticket and asks it, between steps, whether anyone still waits.
All methods run in one event loop; jobs run in the threads.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from ditic_stream.errors import DiticError

Run = Callable[["Ticket"], Any]
LONGEST_RETRY = 60


class Busy(DiticError):
    """There is no room, or no time left: ask again after `seconds`."""

    kind = "busy"

    def __init__(self, message: str, *, key: str | None = None, seconds: int = 1) -> None:
        super().__init__(message, key=key)
        self.seconds = seconds


class Abandoned(Exception):
    """Nobody waits for this job any more."""


class Ticket:
    """What a job sees of those who wait for it."""

    def __init__(self) -> None:
        self._gone = threading.Event()

    def check(self) -> None:
        """Raise Abandoned when nobody waits any more; jobs call it between steps."""
        if self._gone.is_set():
            raise Abandoned

    def give_up(self) -> None:
        self._gone.set()


@dataclass(eq=False, slots=True)
class _Job:
    client: str
    key: Hashable
    run: Run
    future: asyncio.Future[Any]
    ticket: Ticket = field(default_factory=Ticket)
    waiting: int = 0
    running: bool = False


class Gate:
    """A bounded thread pool behind fair, bounded queues.

    threads: jobs that run at once.  queue: jobs that wait, in all; each: of one client.  timeout: seconds from asking
    to the answer.
    """

    def __init__(self, *, threads: int, queue: int = 256, each: int = 64, timeout: float = 30.0) -> None:
        self.threads, self.timeout = threads, timeout
        self.running = self.waiting = self.done = self.refused = self.late = self.left = 0
        self._queue, self._each = queue, each
        self._queues: OrderedDict[str, deque[_Job]] = OrderedDict()
        self._jobs: dict[Hashable, _Job] = {}
        self._seconds = 0.5
        """Running mean of what a job takes: for advice only."""
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="ditic-serve")

    async def run(self, client: str, key: Hashable, run: Run) -> Any:
        """The result of `run`, or of the job under the same key that waits or runs already.

        Raises Busy when the queue is full or time runs out, and what the job raises.  When the caller is cancelled, and
        no other waits for the job, it leaves the queue; if it runs, its ticket says so.
        """
        job = self._jobs.get(key) or self._enqueue(client, key, run)
        job.waiting += 1
        try:
            async with asyncio.timeout(self.timeout):
                return await asyncio.shield(job.future)
        except TimeoutError:
            self.late += 1
            raise Busy(
                f"no answer within {self.timeout:g} s, with {self.running} jobs running and {self.waiting} waiting; "
                "ask again later",
                seconds=self._retry(),
            ) from None
        finally:
            job.waiting -= 1
            if not job.waiting and not job.future.done():
                self._abandon(job)

    def close(self) -> None:
        """Drop what waits and end the threads, once what runs has ended."""
        for jobs in self._queues.values():
            for job in jobs:
                job.future.cancel()
        self._queues.clear()
        for job in self._jobs.values():
            job.ticket.give_up()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def facts(self) -> dict[str, int]:
        """Counts for /healthz: now (threads, running, waiting) and since the start."""
        return {
            "threads": self.threads, "running": self.running, "waiting": self.waiting, "done": self.done,
            "refused": self.refused, "late": self.late, "left": self.left,
        }  # fmt: skip

    def _enqueue(self, client: str, key: Hashable, run: Run) -> _Job:
        jobs = self._queues.get(client)
        own = len(jobs) if jobs else 0
        if self.waiting >= self._queue or own >= self._each:
            self.refused += 1
            raise Busy(
                f"{self.waiting} requests wait, {own} of them yours; at most {self._queue} and {self._each} may: ask "
                "again later",
                seconds=self._retry(),
            )
        job = _Job(client, key, run, asyncio.get_running_loop().create_future())
        job.future.add_done_callback(_looked_at)
        self._jobs[key] = job
        self._queues.setdefault(client, deque()).append(job)
        self.waiting += 1
        self._start()
        return job

    def _start(self) -> None:
        """Hand the next jobs to free threads: one of each client in turn."""
        while self.running < self.threads and self._queues:
            client, jobs = self._queues.popitem(last=False)
            job = jobs.popleft()
            if jobs:
                self._queues[client] = jobs
            self.waiting -= 1
            self.running += 1
            job.running = True
            loop = asyncio.get_running_loop()
            work = loop.run_in_executor(self._pool, job.run, job.ticket)
            began = time.monotonic()
            work.add_done_callback(lambda work, job=job, began=began: self._finish(job, work, began))  # type: ignore[misc]

    def _finish(self, job: _Job, work: asyncio.Future[Any], began: float) -> None:
        self.running -= 1
        self.done += 1
        self._seconds += 0.1 * (time.monotonic() - began - self._seconds)
        if self._jobs.get(job.key) is job:
            del self._jobs[job.key]
        error = asyncio.CancelledError() if work.cancelled() else work.exception()
        if not job.future.done():
            if error is None:
                job.future.set_result(work.result())
            elif isinstance(error, (Abandoned, asyncio.CancelledError)):
                job.future.cancel()
            else:
                job.future.set_exception(error)
        self._start()

    def _abandon(self, job: _Job) -> None:
        self.left += 1
        job.ticket.give_up()
        if self._jobs.get(job.key) is job:
            del self._jobs[job.key]  # who asks anew gets a job of their own
        if not job.running:
            jobs = self._queues.get(job.client)
            if jobs is not None and job in jobs:
                jobs.remove(job)
                self.waiting -= 1
                if not jobs:
                    del self._queues[job.client]
            job.future.cancel()

    def _retry(self) -> int:
        return min(max(math.ceil((self.waiting + self.running) * self._seconds / self.threads), 1), LONGEST_RETRY)


def _looked_at(future: asyncio.Future[Any]) -> None:
    """An error that nobody waits for any more is no fault."""
    if not future.cancelled():
        future.exception()
