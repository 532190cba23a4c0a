"""What of a batch is done: a file that outlives every kill, and the report that is made of it.

In: Outcomes as they come.  Out: the Outcomes of earlier runs, by job; a report, one JSON line a job; lines of a table.
A line is appended and flushed to disk before the next one; a last line that a kill cut short is passed over.  One
driver at a time holds the journal.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ditic_stream import _lock
from ditic_stream._store import write_object
from ditic_stream.errors import StorageError
from ditic_stream.workers._perform import Outcome
from ditic_stream.workers.jobs import Job

FORMAT = 1


class Journal:
    """The journal at `path`; a context manager.  LockedError while another driver has it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock_path = path.with_name(f".{path.name}.lock")
        self._lock = _lock.hold(self._lock_path, path)
        try:
            self._last = self._read()
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115  closed with the journal
            if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
                self._file.write(b"\n")
        except OSError as error:
            _lock.release(self._lock_path, self._lock)
            raise StorageError(f"the journal {path} cannot be kept: {error.strerror}; make room there") from error

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        _lock.release(self._lock_path, self._lock)

    def begun(self, job: Job, *, fresh: bool) -> None:
        """A job is handed out.  fresh: its output was not there, so that one which is there later is its own."""
        if (job.id, job.digest) not in self._last or self._last[job.id, job.digest]["state"] != "begun":
            self._append(job, {"state": "begun", "fresh": fresh})

    def ended(self, job: Job, outcome: Outcome) -> None:
        self._append(job, {"state": outcome.state, "outcome": outcome.to_json()})

    def done(self, job: Job) -> Outcome | None:
        """The outcome of a job that an earlier run has done."""
        found = self._last.get((job.id, job.digest))
        if found is None or found["state"] != "done":
            return None
        fields = found["outcome"]
        lists = {name: tuple(fields[name]) for name in ("damaged", "warnings")}
        return Outcome(**{**fields, **lists, "resumed": True})

    def left_own(self, job: Job) -> bool:
        """True when an earlier run began a job whose output was not there: what is there now is of that run."""
        found = self._last.get((job.id, job.digest))
        return found is not None and found["state"] == "begun" and bool(found["fresh"])

    def _append(self, job: Job, facts: dict[str, Any]) -> None:
        line = {"format": FORMAT, "id": job.id, "digest": job.digest, **facts}
        self._last[job.id, job.digest] = line
        try:
            self._file.write(json.dumps(line, sort_keys=True).encode() + b"\n")
            os.fsync(self._file.fileno())
        except OSError as error:
            raise StorageError(f"the journal {self.path} cannot be kept: {error.strerror}; make room there") from error

    def _read(self) -> dict[tuple[str, str], dict[str, Any]]:
        found: dict[tuple[str, str], dict[str, Any]] = {}
        if self.path.exists():
            for line in self.path.read_bytes().split(b"\n"):
                try:
                    entry = json.loads(line)
                    if entry["format"] == FORMAT:
                        found[entry["id"], entry["digest"]] = entry
                except (ValueError, KeyError, TypeError):
                    continue  # cut short
        return found


def write_report(path: Path, outcomes: Iterable[Outcome]) -> None:
    """Write one JSON line a job, whole or not at all."""
    lines = (json.dumps(outcome.to_json(), sort_keys=True).encode() + b"\n" for outcome in outcomes)
    write_object(path.absolute().parent, path.name, lines)


def table(outcomes: Iterable[Outcome]) -> list[str]:
    """The report for people: a line a job, failures with their reasons."""
    rows = [("job", "verb", "state", "MP", "MP/s", "bytes", "bpp", "tries")]
    notes = {}
    for one in outcomes:
        speed = one.pixels / one.seconds / 1e6 if one.seconds else 0.0
        rows.append(
            (
                one.id, one.verb, "done before" if one.resumed else one.state, f"{one.pixels / 1e6:.2f}",
                f"{speed:.2f}" if one.state == "done" else "", str(one.bytes) if one.bytes else "",
                f"{one.bpp:.3f}" if one.bpp is not None else "", str(one.attempts),
            )
        )  # fmt: skip
        if one.error is not None:
            tile = f"tile {one.error['tile']}: " if one.error["tile"] else ""
            notes[len(rows) - 1] = f"    {one.error['kind']}: {tile}{one.error['message']}"
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for index, row in enumerate(rows):
        words = (
            word.ljust(width) if column < 3 else word.rjust(width)
            for column, (word, width) in enumerate(zip(row, widths, strict=True))
        )  # fmt: skip
        lines.append("  ".join(words).rstrip())
        if index in notes:
            lines.append(notes[index])
    return lines
