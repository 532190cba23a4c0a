"""The driver of a batch: many jobs, one executor, a journal that makes it resumable, a report.

In: a file of jobs.  Out: a Batch: the outcome of every job, in the order of the file.
Knows which job runs when and by whom; how a job is done is in _perform.  Runs on this machine or on a cluster alike.

    jobs --waves, priority--> small: a whole job a worker, packed one after the other -----+--> journal --> report
                              large: its shards spread over all workers, beside the small --+

Nothing is kept in memory but outcomes: whatever is killed, the same command goes on from the journal, and archives go
on from their finished shards.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ditic_stream.errors import ConfigError, DiticError, TaskError
from ditic_stream.executors import Executor, ProcessExecutor, Shared, cores
from ditic_stream.workers._perform import PASSING, Outcome, RunJob, blank, failed, is_there, perform, pixels_of
from ditic_stream.workers.jobs import Job, read_jobs, waves
from ditic_stream.workers.journal import Journal, table, write_report

LARGE = 67 * 10**6
"""Pixels from which a scene is spread over the workers: less is done by one of them in seconds."""
LARGE_AT_ONCE = 4
"""Large scenes in work at the same time on a cluster, so that the end of one does not leave workers idle."""
Progress = Callable[[int, int], None]
OnOutcome = Callable[[Outcome, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What became of a batch."""

    outcomes: tuple[Outcome, ...]
    """In the order of the file."""
    report: str
    seconds: float
    workers: int
    usage: tuple[dict[str, Any], ...]
    """On a cluster: each actor, where it is, what it did, its share of busy time."""

    @property
    def failed(self) -> int:
        return sum(outcome.state != "done" for outcome in self.outcomes)

    def table(self) -> list[str]:
        """The report for people."""
        return table(self.outcomes)


def run_batch(
    path: str | Path,
    *,
    workers: int | None = None,
    device: str = "cpu",
    executor: Executor | None = None,
    journal: Path | None = None,
    report: Path | None = None,
    large: int = LARGE,
    progress: Progress | None = None,
    on_outcome: OnOutcome | None = None,
) -> Batch:
    """Run the jobs of a file, those that the journal says are done left out.

    journal, report: JOBS.journal and JOBS.report.jsonl beside the file by default.  executor: a cluster's; else worker
    processes on this machine, as many as `workers` or the cores.  large: pixels from which a scene is spread over the
    workers.  progress: called with (pixels done, pixels in all, estimated until all heads are read).  on_outcome:
    called with each outcome, the jobs that have ended, and the jobs in all.
    Raises ConfigError for a file that is not of jobs, LockedError while another driver runs it.  A job that fails is
    an outcome and raises nothing.
    """
    began, path = time.monotonic(), Path(path)
    jobs = read_jobs(path)
    order = waves(jobs)
    report = report or path.with_name(f"{path.name}.report.jsonl")
    journal = journal or path.with_name(f"{path.name}.journal")
    if len({name.resolve() for name in (path, journal, report)}) < 3:
        raise ConfigError(f"{path}, its journal {journal} and its report {report} are three files; give each its own name")
    with Journal(journal) as book, contextlib.ExitStack() as stack:
        running = executor or stack.enter_context(ProcessExecutor(workers or cores()))
        driver = _Driver(jobs, running, device, book, large, progress, on_outcome)
        for wave in order:
            driver.run(wave)
        outcomes = tuple(driver.outcomes[job.id] for job in jobs)
        write_report(report, outcomes)
        usage: list[dict[str, Any]] = getattr(running, "usage", list)()
    return Batch(
        outcomes=outcomes, report=str(report), seconds=round(time.monotonic() - began, 3), workers=running.workers,
        usage=tuple(usage),
    )  # fmt: skip


class _Ranked:
    """An executor whose keys go before those of lower priority, where several runs share its workers."""

    def __init__(self, executor: Executor, priority: int) -> None:
        self._executor = executor
        self._rank: dict[str, Any] = {} if executor.local else {"priority": priority}
        self.workers, self.local = executor.workers, executor.local

    def __enter__(self) -> _Ranked:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def run_unordered(self, task: Any, keys: Any, **settings: Any) -> Iterator[tuple[Any, Any]]:
        return self._executor.run_unordered(task, keys, **settings, **self._rank)

    def run_in_order(self, task: Any, keys: Any, **settings: Any) -> Iterator[tuple[Any, Any]]:
        return self._executor.run_in_order(task, keys, **settings)

    def shared(self, *, folder: Path | None = None) -> Shared:
        return self._executor.shared(folder=folder)


class _Driver:
    """The state of a run: what has ended, and how many pixels of how many are done."""

    def __init__(
        self,
        jobs: list[Job],
        executor: Executor,
        device: str,
        journal: Journal,
        large: int,
        progress: Progress | None,
        on_outcome: OnOutcome | None,
    ) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self._jobs, self._executor, self._device, self._journal = jobs, executor, device, journal
        self._large, self._progress, self._on_outcome = large, progress, on_outcome
        self._lock = threading.RLock()
        self._makers = {job.out: job for job in jobs if job.out}
        self._tries: dict[str, int] = {}
        self._known: dict[str, int] = {}
        self._pixels = 0

    def run(self, wave: list[Job]) -> None:
        """Run the jobs of a wave until each is done, or has failed as often as it may."""
        todo = [job for job in wave if not self._settled(job)]
        while todo:
            again: list[Job] = []
            large: list[Job] = []
            if self._executor.local:
                self._pack(todo, large.append, again)
                for job in large:
                    self._spread(job, again)
            else:
                self._pack_and_spread(todo, again)
            todo = again

    def _pack_and_spread(self, todo: list[Job], again: list[Job]) -> None:
        """Small jobs and large ones at the same time, by the same workers."""
        with ThreadPoolExecutor(LARGE_AT_ONCE, thread_name_prefix="ditic-large") as pool:
            spread: list[Future[None]] = []

            def put_large(job: Job) -> None:
                spread.append(pool.submit(self._spread, job, again))

            try:
                self._pack(todo, put_large, again)
                for future in spread:
                    future.result()
            except BaseException:
                for future in spread:
                    future.cancel()
                self._executor.__exit__(None, None, None)  # ends the runs that the threads wait for
                raise

    def _settled(self, job: Job) -> bool:
        """True when an earlier run has done a job, or what it reads cannot be had."""
        maker = self._makers.get(job.source)
        if maker is not None and self.outcomes[maker.id].state != "done":
            self._end(job, failed(blank(job), TaskError(f"the job {maker.id}, which makes its source, failed")))
            return True
        earlier = self._journal.done(job)
        if earlier is None or not is_there(job):
            return False
        self.outcomes[job.id] = earlier
        self._known[job.id] = 0  # says nothing of this run's speed
        return True

    def _pack(self, todo: list[Job], put_large: Callable[[Job], object], again: list[Job]) -> None:
        """Small jobs, whole, one after the other by whoever is free; a large one that is met goes elsewhere."""
        own = frozenset(job.id for job in todo if self._journal.left_own(job))

        def small() -> Iterator[Job]:
            for job in todo:
                pixels = self._known.get(job.id) or pixels_of(job) or 0
                with self._lock:
                    self._known[job.id] = pixels
                self._journal.begun(job, fresh=job.id in own or not is_there(job))
                if pixels >= self._large and job.verb != "verify":
                    put_large(job)
                else:
                    yield job

        def give_up(job: Job, error: DiticError) -> Outcome:
            return failed(blank(job), error)

        results = _Ranked(self._executor, max(job.priority for job in todo)).run_unordered(
            RunJob(device=self._device, overwrite=own), small(), on_note=lambda _, pixels: self._count(pixels),
            on_failure=give_up,
        )  # fmt: skip
        for job, outcome in results:
            self._judge(job, outcome, again)

    def _spread(self, job: Job, again: list[Job]) -> None:
        """A large job, its shards or belts by all workers."""
        done = 0

        def progress(ready: int, _: int) -> None:
            nonlocal done
            self._count(max(ready - done, 0))
            done = max(ready, done)

        own = self._journal.left_own(job)
        try:
            outcome = perform(job, _Ranked(self._executor, job.priority), self._device, progress, overwrite=own)
        except Exception as error:  # foreign, in this process: this job's failure alone
            outcome = failed(blank(job), TaskError(f"failed with {type(error).__name__}: {error}"[:400]))
        self._judge(job, outcome, again)

    def _judge(self, job: Job, outcome: Outcome, again: list[Job]) -> None:
        """Take an outcome, or put the job among those that are run again."""
        with self._lock:
            tries = self._tries[job.id] = self._tries.get(job.id, 0) + 1
            passing = outcome.error is not None and outcome.error["kind"] in PASSING
            if outcome.state != "done" and passing and tries <= job.retries:
                again.append(job)
            else:
                self._end(job, replace(outcome, attempts=tries))

    def _end(self, job: Job, outcome: Outcome) -> None:
        with self._lock:
            self.outcomes[job.id] = outcome
            self._journal.ended(job, outcome)
            if self._on_outcome is not None:
                self._on_outcome(outcome, len(self.outcomes), len(self._jobs))

    def _count(self, pixels: int) -> None:
        with self._lock:
            self._pixels += pixels
            if self._progress is not None and pixels:
                known = [self._known[name] for name in self._known]
                unknown = len(self._jobs) - len(known)
                total = sum(known) + unknown * (sum(known) // max(len(known), 1))
                self._progress(min(self._pixels, total), total)
