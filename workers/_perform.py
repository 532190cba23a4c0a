"""Do one job of a batch: the work behind every verb, in whatever process.

In: a Job.  Out: an Outcome, also of a failure: one bad scene fails alone.  Knows the verbs.

    RunJob      a whole job by one worker: scenes that are small among thousands
    perform     the same with an executor: a large scene spread over many workers
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ditic_stream._paths import Uri, local_path, place_of
from ditic_stream.errors import DiticError, TaskError
from ditic_stream.executors import Executor, Note, OnFailure, OnNote, SerialExecutor, Task
from ditic_stream.geometry import Window
from ditic_stream.workers.jobs import Job

PASSING = ("task", "storage", "source", "locked")
"""Kinds of errors after which a job may go well when it is run again."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a job; a line of the report.  state: "done" or "failed"."""

    id: str
    verb: str
    source: str
    out: str
    state: str
    pixels: int = 0
    bytes: int = 0
    """Of the archive for compress and verify, of the file for the others."""
    bpp: float | None = None
    seconds: float = 0.0
    attempts: int = 1
    host: str = ""
    error: dict[str, Any] | None = None
    """kind, message, and the tile where there is one."""
    damaged: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    resumed: bool = False
    """An earlier run of the batch had done it."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunJob:
    """The task of the workers: a whole job.  overwrite: ids of jobs that a run which was killed may have finished."""

    device: str
    """What the networks run on; a worker on a cluster puts its own here."""
    named: str
    """What manifests name: in a fleet of both kinds another worker must be able to go on with an archive."""
    overwrite: frozenset[str] = field(default_factory=frozenset)
    repeatable = False
    """Two workers would be kept apart by the lock of the output: the second could only fail."""

    @contextmanager
    def open(self, note: Note) -> Iterator[Callable[[Job], Outcome]]:
        def run(job: Job) -> Outcome:
            done = 0

            def progress(ready: int, _: int) -> None:
                nonlocal done
                note(job.id, max(ready - done, 0))
                done = max(ready, done)

            note(job.id)
            executor = Telling(lambda what: note(f"{job.id}, tile {what}"), self.device)
            return perform(job, executor, self.named, progress, overwrite=job.id in self.overwrite)

        yield run


class Telling(SerialExecutor):
    """A serial executor that tells which tile is being worked on, so that it is named when the worker dies.

    device: takes the place of the tasks' own.
    """

    def __init__(self, tell: Callable[[object], None], device: str) -> None:
        super().__init__(attempts=1)
        self._tell, self.device = tell, device

    def run_in_order(
        self,
        task: Task[Any, Any],
        keys: Iterable[Any],
        *,
        in_flight: int | None = None,
        on_note: OnNote | None = None,
        on_failure: OnFailure[Any, Any] | None = None,
    ) -> Iterator[tuple[Any, Any]]:
        def note(what: object, units: int) -> None:
            if not units and what is not None:
                self._tell(what)
            if on_note is not None:
                on_note(what, units)

        if "device" in getattr(task, "__dataclass_fields__", ()):
            task = replace(task, device=self.device)  # type: ignore[type-var]
        return super().run_in_order(task, keys, in_flight=in_flight, on_note=note, on_failure=on_failure)

    run_unordered = run_in_order


def perform(
    job: Job, executor: Executor, device: str, progress: Progress | None = None, *, overwrite: bool = False
) -> Outcome:
    """Do a job.  A DiticError, and whatever the system says of its files, is its outcome; a TaskError is one too.

    Foreign errors pass, so that the executor tries again; the last one is the outcome there.
    """
    began = time.monotonic()
    outcome = replace(blank(job), host=os.uname().nodename)
    try:
        found = VERBS[job.verb](job, executor, device, progress, overwrite)
    except TaskError as error:
        if isinstance(executor, Telling):
            raise  # foreign, or memory: another try in a fresh worker may do
        outcome = failed(outcome, error)
    except DiticError as error:
        outcome = failed(outcome, error)
    else:
        outcome = replace(outcome, **{"state": "done", **found})
    return replace(outcome, seconds=round(time.monotonic() - began, 3))


def blank(job: Job) -> Outcome:
    """The outcome of a job that has not been done.  URIs are named without the credentials they may carry."""
    source, out = (str(place_of(name)) if name else "" for name in (job.source, job.out))
    return Outcome(id=job.id, verb=job.verb, source=source, out=out, state="failed")


def failed(outcome: Outcome, error: DiticError) -> Outcome:
    told = {"kind": error.kind, "message": error.message, "tile": error.key}
    return replace(outcome, state="failed", error=told)


def _compress(job: Job, executor: Executor, device: str, progress: Progress | None, _: bool) -> dict[str, Any]:
    from ditic_stream.compression import Result, compress

    result = compress(job.source, job.out, device=device, executor=executor, progress=progress, **job.settings)
    assert isinstance(result, Result)
    return {
        "pixels": _size(job.out), "bytes": result.bytes + result.fixed_bytes, "bpp": result.bpp,
        "warnings": result.warnings,
    }  # fmt: skip


def _decompress(
    job: Job, executor: Executor, device: str, progress: Progress | None, overwrite: bool
) -> dict[str, Any]:
    from ditic_stream.regions import decompress

    settings = {**job.settings, "overwrite": overwrite or job.settings.get("overwrite", False)}
    result = decompress(job.source, job.out, device=device, executor=executor, progress=progress, **settings)
    return _decoded(job, result)


def _region(job: Job, executor: Executor, device: str, progress: Progress | None, overwrite: bool) -> dict[str, Any]:
    from ditic_stream._ground import Ground
    from ditic_stream.archive import open_archive
    from ditic_stream.regions import decompress

    settings = {**job.settings, "overwrite": overwrite or job.settings.get("overwrite", False)}
    pixels, bbox, crs = (settings.pop(name, None) for name in ("window", "bbox", "bbox_crs"))
    if pixels is not None:
        window = Window(row=pixels[1], col=pixels[0], height=pixels[3], width=pixels[2])
    else:
        with open_archive(job.source) as archive:
            window = Ground.of(archive.manifest, archive.path.name).window_of(tuple(bbox), crs)
    result = decompress(
        job.source, job.out, window=window, device=device, executor=executor, progress=progress, **settings
    )
    return _decoded(job, result)


def _decoded(job: Job, result: Any) -> dict[str, Any]:
    place = local_path(job.out)
    files = [place] if place.is_file() else [one for one in place.rglob("*") if one.is_file()]
    return {
        "pixels": result.height * result.width, "bytes": sum(one.stat().st_size for one in files),
        "damaged": result.damaged, "warnings": result.warnings,
    }  # fmt: skip


def _verify(job: Job, executor: Executor, device: str, progress: Progress | None, _: bool) -> dict[str, Any]:
    if job.settings.get("deep"):
        from ditic_stream.deep import verify_deep

        report = verify_deep(job.source, device=getattr(executor, "device", device))
    else:
        from ditic_stream.verify import verify

        report = verify(job.source)
    facts: dict[str, Any] = {"pixels": _size(job.source), "bytes": report.bytes}
    if not report.ok:
        words = "; ".join(f"{problem.kind}: {problem}" for problem in report.problems[:3])
        facts |= {
            "state": "failed", "damaged": tuple(str(key) for key in report.damaged),
            "error": {"kind": "damage", "message": f"{len(report.problems)} problems: {words}", "tile": None},
        }  # fmt: skip
    return facts


VERBS: dict[str, Callable[..., dict[str, Any]]] = {
    "compress": _compress, "decompress": _decompress, "region": _region, "verify": _verify,
}  # fmt: skip


def pixels_of(job: Job) -> int | None:
    """Pixels that a job is about, by the head of its source; None when that cannot be told: the job will say why."""
    from ditic_stream.reader import open_source

    try:
        if job.verb == "compress":
            with open_source(job.source, expand_palette=bool(job.settings.get("expand_palette"))) as scene:
                return scene.height * scene.width
        if job.settings.get("window"):
            return int(job.settings["window"][2]) * int(job.settings["window"][3])
        return _size(job.source)
    except (DiticError, OSError):
        return None


def _size(archive: str) -> int:
    from ditic_stream.archive import open_archive

    with open_archive(archive) as opened:
        return opened.grid.height * opened.grid.width


def is_there(job: Job) -> bool:
    """True when the output of a job exists; a job without one counts as there, and one elsewhere: the journal knows."""
    place = place_of(job.out) if job.out else None
    return True if place is None or isinstance(place, Uri) else place.exists()
