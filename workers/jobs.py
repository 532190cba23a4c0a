"""The jobs of a batch: lines of JSON, checked against schemas/jobs-1.json before anything runs.

In: a file of one JSON object a line; empty lines are passed over.  Out: Jobs, and the waves in which they may run.
Knows names and settings; knows nothing of how a job is done.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ditic_stream import schemas
from ditic_stream._paths import SCHEME, place_of
from ditic_stream.errors import ConfigError, SourceError

SCHEMA = "jobs-1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One line.  source, out: absolute paths or URIs; `out` is empty for verify."""

    id: str
    verb: str
    source: str
    out: str
    settings: dict[str, Any]
    priority: int = 0
    retries: int = 1

    def __str__(self) -> str:
        return self.id

    @property
    def digest(self) -> str:
        """Names what is done: a line that says something else is another job, whatever its id."""
        said = json.dumps([self.verb, self.source, self.out, self.settings], sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()[:32]


def read_jobs(path: Path) -> list[Job]:
    """The jobs of a file, in its order.

    Raises SourceError when it cannot be read; ConfigError, with the line, for what is no job, for an id that comes
    twice, and for two jobs that would write the same place.
    """
    import jsonschema

    check = jsonschema.Draft202012Validator(schemas.load(SCHEMA))
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # other ends of lines may be part of a name
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} cannot be read: {error}") from error
    jobs: list[Job] = []
    ids: dict[str, int] = {}
    outs: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{path.name} line {number}"
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{place} is no JSON: {error}") from error
        if not _is_text(fields):
            raise ConfigError(f"{place} holds half a character, such as \\ud800, or a zero; write names as they are")
        fault = next(iter(check.iter_errors(fields)), None)
        if fault is not None:
            raise ConfigError(f"{place}: {fault.json_path} {fault.message:.300}; see schemas/{SCHEMA}.json")
        try:
            job = _job(fields, number, path.absolute().parent)
        except SourceError as error:
            raise ConfigError(f"{place}: {error.message}") from error
        for kind, value, seen in (("id", job.id, ids), ("out", job.out, outs)):
            if value and value in seen:
                raise ConfigError(f"{place} has the {kind} {value} of line {seen[value]}; give each job its own")
            seen[value] = number
        jobs.append(job)
    if not jobs:
        raise ConfigError(f"{path} holds no job; write one JSON object a line")
    return jobs


def _job(fields: dict[str, Any], number: int, folder: Path) -> Job:
    source = _placed(fields["source"], folder)
    stem = source.rsplit("/", 1)[-1].removesuffix(".zip").removesuffix(".ditic")
    beside = source[: -len(source.rsplit("/", 1)[-1])]
    default = {
        "compress": f"{beside}{stem.rsplit('.', 1)[0] or stem}.ditic", "decompress": f"{beside}{stem}.decoded.tif",
    }.get(fields["verb"], "")  # fmt: skip
    return Job(
        id=fields.get("id", f"line {number}"),
        verb=fields["verb"],
        source=source,
        out=_placed(fields["out"], folder) if "out" in fields else default,
        settings={name: _whole(value) for name, value in fields.get("settings", {}).items()},
        priority=int(fields.get("priority", 0)),
        retries=int(fields.get("retries", 1)),
    )


def _whole(value: Any) -> Any:
    """60.0 is an integer in JSON's schemas, and must be one for whoever takes it."""
    if isinstance(value, list):
        return [_whole(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_text(fields: object) -> bool:
    """False when a string in it can neither be printed nor be the name of a file."""
    if isinstance(fields, dict):
        return all(_is_text(part) for pair in fields.items() for part in pair)
    if isinstance(fields, list):
        return all(_is_text(part) for part in fields)
    return not isinstance(fields, str) or not any(at == "\0" or "\ud800" <= at <= "\udfff" for at in fields)


def _placed(name: str, folder: Path) -> str:
    place_of(name)  # refuses what is no name at all
    return name if SCHEME.match(name) else str(folder / name)


def waves(jobs: Iterable[Job]) -> list[list[Job]]:
    """Jobs in the order in which they may run: all of a wave at once, those that read what another one makes later.

    In a wave the higher priority comes first, then the order of the file.  ConfigError when jobs wait for each other.
    """
    left = list(jobs)
    made = {job.out: job for job in left if job.out}
    found: list[list[Job]] = []
    ready: set[str] = set()
    while left:
        wave = [job for job in left if job.source not in made or made[job.source].id in ready]
        if not wave:
            raise ConfigError(f"the jobs {left[0].id} and {made[left[0].source].id} wait for each other")
        found.append(sorted(wave, key=lambda job: -job.priority))
        ready |= {job.id for job in wave}
        left = [job for job in left if job.id not in ready]
    return found
