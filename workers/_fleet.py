"""Which actor does which key, and what happens when one dies, runs out of memory, or is slow.

In: runs (a pickled task and its keys, by `submit`).  Out: events in each run's inbox: notes, results, failures.
Knows actors and keys (_members); knows nothing of scenes, nor of what keys mean.  One thread decides; everything that
happens (an answer, a death, a new key) reaches it as an event, so that nothing has to be asked for again and again.

    submit --> waiting keys --> actor with room --> answer --> inbox
                    ^               | dies: its key again, elsewhere; another actor takes its place
                    +---------------+ no memory: fewer lanes; slow: an idle actor does the key too, the first one counts

Ray's own retries (max_restarts, max_task_retries) are off: they either burn out while a lost node is still believed
alive, or run a scene that kills its worker for ever.  A death is charged to the key at work only while its node lives:
spot instances that vanish are nobody's fault.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from itertools import count
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayActorError, RayError

from ditic_stream._tasks import WORDS, name_of
from ditic_stream.errors import DiticError, TaskError
from ditic_stream.workers._actor import Answer, Board, Call, Worker
from ditic_stream.workers._members import Counts, Job, Member, Run, words_of
from ditic_stream.workers._meters import Meters

POLL_SECONDS = 0.5
"""How often workers are asked what they are at."""
SLOW_TIMES, SLOW_SECONDS = 4.0, 10.0
"""A key that takes this many times the median, and at least so long, is given to an idle worker as well."""
LOSSES = 20
"""Times a key may be lost with its node before it is given up."""
FAILED_STARTS = 5
"""Workers that may die one after the other before any of them was ready."""
SILENT_SECONDS = 120.0
"""A worker that does not even say what it is at, for so long, is taken for dead and ended."""
STARVED = 5
"""Times a key may end its worker for memory, each time with one worker less, before it is taken for the cause."""


class Fleet:
    """Actors of a cluster that is connected.  plan: for each actor wanted its device and its options for Ray.

    lanes: keys an actor works on at once.  start_seconds: how long to wait for the first actor.
    """

    def __init__(
        self,
        plan: list[tuple[str | None, dict[str, Any]]],
        *,
        lanes: int,
        start_seconds: float,
        initializer: Callable[[], None] | None = None,
    ) -> None:
        self.counts = Counts()
        self.members: list[Member] = []
        self._plan, self._start_seconds, self._initializer = plan, start_seconds, initializer
        self._events: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._runs: list[Run] = []
        self._names = count()
        self._board: Any = None
        self._failed_starts = 0
        self._withheld: list[Member] = []  # for whom memory did not suffice
        self._polled = self._slow_seen = 0.0
        self._meters = Meters("driver")
        for device, options in plan:
            self._spawn(device, options, lanes)
        self._alone_since = time.monotonic()
        self._thread = threading.Thread(target=self._loop, name="ditic-fleet", daemon=True)
        self._thread.start()

    # What any thread may call.

    def open(self, blob: bytes, *, label: str, attempts: int, priority: int, repeatable: bool) -> Run:
        if not self._thread.is_alive():
            raise TaskError("the workers were ended; run the same command again")
        run = Run(
            name=f"run-{next(self._names)}", blob=ray.put(blob), label=label, attempts=attempts, priority=priority,
            repeatable=repeatable,
        )  # fmt: skip
        self._events.put(("opened", run))
        return run

    def submit(self, run: Run, index: int, key: Any) -> None:
        self._events.put(("submitted", Job(run, index, key)))

    def close(self, run: Run) -> None:
        """End a run; returns when no worker is at work on any of its keys."""
        done = threading.Event()
        self._events.put(("closed", run, done))
        while not done.wait(1) and self._thread.is_alive():
            pass

    def stop(self) -> None:
        """End all actors."""
        self._events.put(("stopped",))
        self._thread.join()

    def usage(self) -> list[dict[str, Any]]:
        """Each actor that lives: where, what it did, and the share of its time that it was at work."""
        return [member.usage() for member in list(self.members) if member.place is not None]

    # The one thread.

    def _loop(self) -> None:
        handlers: dict[str, Callable[..., None]] = {
            "opened": self._runs.append, "submitted": self._submitted, "closed": self._closed, "ready": self._ready,
            "answered": self._answered, "state": self._state, "freed": self._freed,
        }  # fmt: skip
        while True:
            with contextlib.suppress(queue.Empty):
                kind, *facts = self._events.get(timeout=POLL_SECONDS)
                if kind == "stopped":
                    break
                try:
                    handlers[kind](*facts)
                except Exception as error:  # a fault here must not leave callers waiting for ever
                    self._give_up(TaskError(f"the cluster cannot be used: {type(error).__name__}: {error}"[:WORDS]))
            try:
                self._tend()
            except Exception as error:
                self._give_up(TaskError(f"the cluster cannot be used: {type(error).__name__}: {error}"[:WORDS]))
        self._give_up(TaskError("the workers were ended; run the same command again"))
        for member in self.members:
            member.end()
        if self._board is not None:
            with contextlib.suppress(Exception):
                ray.kill(self._board)

    def _tend(self) -> None:
        now = time.monotonic()
        self._dispatch()
        if now - self._polled < POLL_SECONDS:
            return
        self._polled = now
        for member in self.members:
            if member.jobs and member.asked is None and member.place is not None:
                member.asked = now
                self._watch(member.handle.state.options(concurrency_group="watch").remote(), "state", member)
        for member in [one for one in self.members if one.asked is not None and now - one.asked > SILENT_SECONDS]:
            member.end(wait=True)  # a process that was stopped holds its locks until it is gone
            self._bury(member, TimeoutError(f"did not answer for {SILENT_SECONDS:.0f} s, and was ended"))
        if any(run.jobs for run in self._runs) and not any(member.place for member in self.members):
            if now - self._alone_since > self._start_seconds:
                free = {name: what for name, what in ray.available_resources().items() if name in ("CPU", "GPU")}
                self._give_up(
                    TaskError(
                        f"no worker could start within {self._start_seconds:.0f} s; the cluster has "
                        f"{free or 'nothing'} free and each worker takes one CPU or one GPU: free some, or ask for "
                        "fewer --workers"
                    )
                )
        else:
            self._alone_since = now

    def _spawn(self, device: str | None, options: dict[str, Any], lanes: int) -> None:
        groups = {"concurrency_groups": {"lanes": lanes, "watch": 1}}
        actor = ray.remote(**options, **groups, max_restarts=0, max_task_retries=0)(Worker)
        member = Member(actor.remote(device, self._initializer), device, lanes)
        self.members.append(member)
        self._watch(member.handle.where.remote(), "ready", member)

    def _watch(self, ref: Any, kind: str, *facts: Any) -> None:
        """Make an event of it when a call comes back."""
        ref.future().add_done_callback(lambda future: self._events.put((kind, *facts, future)))

    def _ready(self, member: Member, future: Any) -> None:
        if member not in self.members:
            return
        error = future.exception()
        if error is None:
            member.place, member.began, self._failed_starts = future.result(), time.monotonic(), 0
            return
        self._failed_starts += member.node_lives(error)
        if self._failed_starts < FAILED_STARTS:
            self._bury(member, error)
            return
        self.members.remove(member)
        if not any(one.place for one in self.members):
            self._give_up(TaskError(f"workers die before they are ready: {words_of(error)}"))

    def _submitted(self, job: Job) -> None:
        if job.run in self._runs:
            job.run.jobs[job.index] = job
            job.run.waiting.append(job)

    def _closed(self, run: Run, done: threading.Event) -> None:
        if run in self._runs:
            self._runs.remove(run)
        run.jobs.clear()
        run.waiting.clear()
        # Whoever still works on one of its keys must not write any more once the caller goes on: it packs the archive,
        # or removes what was half done.  It is somebody the run was left by, or the slower of two.
        for member in [one for one in self.members if any(job.run is run for job in one.jobs)]:
            refs = [job for job in member.jobs if job.run is not run]
            self.members.remove(member)
            member.end(wait=True)
            for job in refs:
                self._again(job, member)
            self._replace(member)
        for member in self.members:
            if member.place is not None:
                member.handle.close.remote(run.name)
        done.set()

    def _dispatch(self) -> None:
        while (member := self._roomiest()) is not None:
            job = self._next(member)
            if job is None:
                return
            self._send(member, job)

    def _roomiest(self) -> Member | None:
        """The member with the fewest keys that has room for one more."""
        free = [one for one in self.members if one.place is not None and len(one.jobs) < one.capacity]
        return min(free, key=lambda one: len(one.jobs), default=None)

    def _next(self, member: Member) -> Job | None:
        ready = [run for run in self._runs if run.waiting]
        if len(ready) > 1:  # the one with the fewest keys at work, so that several runs share the members evenly
            at_work = Counter(job.run.name for one in self.members for job in one.jobs)
            ready.sort(key=lambda run: (-run.priority, at_work[run.name]))
        for run in ready:
            # Not one that it has left to others and has not answered for: that answer would be taken for the new one's.
            job = next((one for one in run.waiting if one not in member.jobs), None)
            if job is not None and not (job.careful and member.jobs):
                run.waiting.remove(job)
                return job
        return None if member.jobs else self._slow()

    def _slow(self) -> Job | None:
        """A key for an idle member that another one is slow with, or has not begun."""
        now = time.monotonic()
        for member in self.members:
            for place, (job, sent) in enumerate(member.jobs.items()):
                if job.holders != [member] or job.run.jobs.get(job.index) is not job:
                    continue
                if place >= member.lanes:
                    if not job.asked_back:
                        job.asked_back = True
                        ref = member.handle.skip.options(concurrency_group="watch").remote(job.run.name, job.index)
                        self._watch(ref, "freed", member, job)
                    continue
                if job.careful or not job.run.repeatable:
                    continue
                limit = max(SLOW_SECONDS, SLOW_TIMES * job.run.median)
                if len(job.run.seconds) >= 3 and now - sent > limit:
                    self.counts.doubled += 1
                    return job
        return None

    def _send(self, member: Member, job: Job) -> None:
        if job.careful and self._board is None:
            self._board = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Board).remote()
        call = Call(
            run=job.run.name, index=job.index, key=job.key, label=f"{job.run.label} {job.key}"[:WORDS],
            careful=job.careful,
        )  # fmt: skip
        member.jobs[job] = time.monotonic()
        job.holders.append(member)
        ref = member.handle.run.options(concurrency_group="lanes").remote(
            job.run.blob, call, self._board if job.careful else None
        )
        self._watch(ref, "answered", member, job)

    def _answered(self, member: Member, job: Job, future: Any) -> None:
        error = future.exception()
        if isinstance(error, RayActorError | ActorUnavailableError | OutOfMemoryError):
            if member in self.members:
                self._bury(member, error)
            return
        member.jobs.pop(job, None)
        if member in job.holders:
            job.holders.remove(member)
        if error is not None:
            answer = Answer(kind="failed", what=TaskError(f"Ray gave no answer: {words_of(error)}"))
        else:
            answer = future.result()
        member.busy += answer.seconds
        member.memory = max(member.memory, answer.memory)
        if job.run.jobs.get(job.index) is not job or job in job.run.waiting:
            return  # done by another, closed, or on its way again
        if answer.kind == "skipped" or (answer.kind != "done" and job.holders):
            return  # somebody else is at it, or will be
        self._tell(job, answer.note, answer.units)
        if answer.kind == "done":
            member.done += 1
            job.run.seconds.append(answer.seconds)
            self._finish(job, "done", answer.what)
        elif answer.kind == "memory" and member.lanes > 1:
            member.lanes = max(member.lanes // 2, 1)
            self.counts.shrinks += 1
            self._again(job, member)
        elif isinstance(answer.what, DiticError) and not isinstance(answer.what, TaskError):
            self._finish(job, "failed", answer.what)
        else:
            self._charge(job, answer.what)

    def _freed(self, member: Member, job: Job, future: Any) -> None:
        """A holder has said whether it leaves a key, which it has not begun, to others."""
        job.asked_back = False
        if future.exception() is None and future.result() and job.run.jobs.get(job.index) is job:
            if member in job.holders:
                job.holders.remove(member)
            if not job.holders and job not in job.run.waiting:
                job.run.waiting.appendleft(job)

    def _state(self, member: Member, future: Any) -> None:
        member.asked = None
        if future.exception() is None:
            at = future.result()
            for job in member.jobs:
                if (job.run.name, job.index) in at:
                    self._tell(job, *at[job.run.name, job.index])

    def _tell(self, job: Job, note: Any, units: int) -> None:
        """Pass on what a key is at, and what it has done beyond what was told before."""
        if note is not None:
            job.note = note
        if job.run.jobs.get(job.index) is job and (units > job.told or note is not None):
            job.run.inbox.put(("note", job.note, max(units - job.told, 0)))
            job.told = max(units, job.told)

    def _bury(self, member: Member, error: BaseException) -> None:
        """A member is gone: its keys go to others, and another one takes its place."""
        self.members.remove(member)
        member.end()
        self.counts.restarts += 1
        at_work = list(member.jobs)[: member.lanes]
        lost = not member.node_lives(error)
        no_memory = isinstance(error, OutOfMemoryError) or "OutOfMemory" in str(error)
        self.counts.nodes_lost += lost
        fewer = no_memory and member.lanes == 1 and bool(self.members)
        if fewer:
            self._withheld.append(member)  # one worker less on this cluster: the others need its memory
        for job in list(member.jobs):
            if member in job.holders:
                job.holders.remove(member)
            if job.run.jobs.get(job.index) is not job or job.holders or job in job.run.waiting:
                continue
            if lost:
                job.losses += 1
                if job.losses > LOSSES:
                    self._finish(job, "failed", self._named(job, f"its node was lost {job.losses} times"))
                else:
                    self._again(job, member)
            elif job not in at_work or (no_memory and member.lanes > 1):
                self._again(job, member)
            elif no_memory and self.members and job.starved < STARVED:
                job.starved += 1
                self._again(job, member)
            elif len(at_work) > 1:
                job.careful = True  # one of several: alone, the next death tells which
                self._again(job, member)
            else:
                self._charge(job, self._named(job, f"its worker {words_of(error)}"))
        if no_memory:
            self.counts.shrinks += 1
            if fewer:
                return
            self._replace(member, lanes=max(member.lanes // 2, 1))
        else:
            self._replace(member)

    def _replace(self, member: Member, lanes: int | None = None) -> None:
        options = next(options for device, options in self._plan if device == member.device)
        self._spawn(member.device, options, lanes or member.lanes)

    def _charge(self, job: Job, error: TaskError) -> None:
        """A key failed by its own fault: once more, watched, or given up."""
        error.attempt, error.key = job.attempt, error.key or name_of(job.note)
        if job.attempt >= job.run.attempts:
            error.message += "" if "attempts" in error.message else f" ({job.attempt} attempts)"
            self._finish(job, "failed", error)
            return
        job.attempt += 1
        job.careful = True
        self._again(job, None)

    def _named(self, job: Job, words: str) -> TaskError:
        told = name_of(job.note)
        if job.careful and self._board is not None:
            with contextlib.suppress(RayError):
                told = ray.get(self._board.get.remote(job.run.name, job.index), timeout=30) or told
        return TaskError(f"{words} ({job.attempt} attempts)", key=told, attempt=job.attempt)

    def _again(self, job: Job, member: Member | None) -> None:
        if member is not None and member in job.holders:
            job.holders.remove(member)
        if job.run.jobs.get(job.index) is job:
            self.counts.retries += 1
            self._meters.retry()
            job.run.inbox.put(("again", job.key, job.attempt))
            job.run.waiting.appendleft(job)

    def _finish(self, job: Job, kind: str, what: Any) -> None:
        job.run.jobs.pop(job.index, None)
        if kind == "failed" and job.starved:  # it was the cause
            while self._withheld:
                self._replace(self._withheld.pop())
        job.run.inbox.put((kind, job, what))

    def _give_up(self, error: TaskError) -> None:
        for run in self._runs:
            run.inbox.put(("broken", None, error))
