"""Batches on this machine: the bytes of single commands; one bad scene fails alone; killed anywhere, they go on."""

from __future__ import annotations

import contextlib
import filecmp
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fakes
import jsonschema
import numpy as np
import pytest
from conftest import Command, Sample
from pictures import landscape, write_scene

import ditic_stream
from ditic_stream import schemas
from ditic_stream.errors import ConfigError, LockedError, SourceError
from ditic_stream.executors import ProcessExecutor
from ditic_stream.workers import _perform, batch, jobs, journal

TINY = {"model": "tiny", "tile": 256, "overlap": 32}


def write_jobs(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def same(one: Path, other: Path) -> bool:
    if one.is_file():
        return filecmp.cmp(one, other, shallow=False)
    names = [{str(at.relative_to(root)) for at in root.rglob("*") if at.is_file()} for root in (one, other)]
    return names[0] == names[1] and all(filecmp.cmp(one / name, other / name, shallow=False) for name in names[0])


# The file of jobs.


def test_a_job_says_where_everything_lies(tmp_path: Path) -> None:
    path = write_jobs(
        tmp_path / "jobs.jsonl",
        {"verb": "compress", "source": "a.scene.tif", "settings": TINY, "priority": 3},
        {"verb": "decompress", "source": "a.scene.ditic.zip", "id": "back"},
        {"verb": "verify", "source": "s3://bucket/b.ditic", "retries": 0},
    )
    first, second, third = jobs.read_jobs(path)
    assert (first.id, first.source, first.out) == ("line 1", f"{tmp_path}/a.scene.tif", f"{tmp_path}/a.scene.ditic")
    assert (second.id, second.out) == ("back", f"{tmp_path}/a.scene.decoded.tif")
    assert (third.source, third.out, third.retries) == ("s3://bucket/b.ditic", "", 0)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"verb": "shred", "source": "a"}, r"line 2: \$\.verb 'shred'"),
        ({"verb": "compress"}, "'source' is a required"),
        ({"verb": "compress", "source": "a", "settings": {"quality": 0}}, r"\$\.settings\.quality 0 is less than"),
        ({"verb": "compress", "source": "a", "settings": {"qualty": 3}}, "qualty"),
        ({"verb": "verify", "source": "a", "out": "b"}, r"\$"),
        ({"verb": "region", "source": "a", "out": "b", "settings": {}}, "not valid under any"),
        ({"verb": "compress", "source": "a", "retries": -1}, "retries -1"),
        ({"verb": "compress", "source": "file://elsewhere/a.tif"}, "line 2: .*not on this machine"),
        ({"verb": "compress", "source": "a", "id": "first"}, "has the id first of line 1"),
        ({"verb": "compress", "source": "b", "out": "first.ditic"}, "has the out .*first.ditic of line 1"),
    ],
)
def test_what_is_no_job_is_refused_with_its_line(tmp_path: Path, line: dict[str, Any], words: str) -> None:
    path = write_jobs(tmp_path / "jobs.jsonl", {"verb": "compress", "source": "first.tif", "id": "first"}, line)
    with pytest.raises(ConfigError, match=words):
        jobs.read_jobs(path)


def test_no_file_no_json_and_no_job_are_each_said(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot be read"):
        jobs.read_jobs(tmp_path / "none")
    (tmp_path / "jobs").write_text("\n{]\n")
    with pytest.raises(ConfigError, match="line 2 is no JSON"):
        jobs.read_jobs(tmp_path / "jobs")
    (tmp_path / "jobs").write_text("\n\n")
    with pytest.raises(ConfigError, match="holds no job"):
        jobs.read_jobs(tmp_path / "jobs")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("[" * 100_000, "line 1 is no JSON: .*recursion"),
        ('{"verb": "verify", "source": "a\\ud800b"}', "line 1 holds half a character"),
        ('{"verb": "verify", "source": "a\\u0000b"}', "line 1 holds half a character, .* or a zero"),
        ('{"verb": "verify", "source": "a", "id": "\\udfff"}', "line 1 holds half a character"),
    ],
)
def test_names_that_are_none_and_lines_made_to_harm_are_refused(tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "jobs").write_text(f"{line}\n")
    with pytest.raises(ConfigError, match=words):
        jobs.read_jobs(tmp_path / "jobs")


def test_only_a_newline_ends_a_line(tmp_path: Path) -> None:
    names = ["a\u2028b.tif", "a\x85b.tif", "a\u000cb.tif"]
    lines = [json.dumps({"verb": "compress", "source": name}, ensure_ascii=False) for name in names]
    (tmp_path / "jobs").write_bytes("\r\n".join(lines).encode())
    path = tmp_path / "jobs"
    path.write_bytes(path.read_bytes().replace(b"\x0c", b"\\f"))
    assert [job.source for job in jobs.read_jobs(path)] == [f"{tmp_path}/{name}" for name in names]


def test_whole_numbers_may_be_written_with_a_point(tmp_path: Path) -> None:
    path = tmp_path / "jobs"
    path.write_text(
        '{"verb": "compress", "source": "a", "settings": {"quality": 60.0, "bpp": 0.5}, "retries": 2.0}\n'
        '{"verb": "region", "source": "a", "out": "b", "settings": {"window": [0.0, 1.0, 2, 3e0]}}\n'
    )
    first, second = jobs.read_jobs(path)
    assert repr((first.settings, first.retries)) == "({'quality': 60, 'bpp': 0.5}, 2)"
    assert repr(second.settings) == "{'window': [0, 1, 2, 3]}"


def test_a_file_of_weights_counts_from_the_folder_of_the_jobs_too(tmp_path: Path) -> None:
    models = ("x.safetensors", "small")
    lines = [{"verb": "compress", "source": f"{model}.tif", "settings": {"model": model}} for model in models]
    first, second = jobs.read_jobs(write_jobs(tmp_path / "jobs", *lines))
    assert (first.settings["model"], second.settings["model"]) == (f"{tmp_path}/x.safetensors", "small")


def test_journal_and_report_do_not_take_the_place_of_the_jobs(tmp_path: Path) -> None:
    path = write_jobs(tmp_path / "jobs", {"verb": "verify", "source": "a"})
    before = path.read_bytes()
    for names in ({"journal": path}, {"report": path}, {"journal": tmp_path / "x", "report": tmp_path / "x"}):
        with pytest.raises(ConfigError, match="give each its name"):
            batch.run_batch(path, **names)
    assert path.read_bytes() == before


def test_schema_knows_the_settings_of_the_verbs() -> None:
    """What the schema lets through, the functions take."""
    import inspect

    from ditic_stream.compression import compress
    from ditic_stream.regions import decompress

    definitions = schemas.load("jobs-1")["$defs"]
    jsonschema.Draft202012Validator.check_schema(schemas.load("jobs-1"))
    assert set(definitions["compress"]["properties"]) <= set(inspect.signature(compress).parameters)
    assert set(definitions["decompress"]["properties"]) <= set(inspect.signature(decompress).parameters)
    assert set(schemas.load("jobs-1")["properties"]["verb"]["enum"]) == set(_perform.VERBS)
    assert {"id", "verb", "source", "out", "settings", "priority", "retries"} == set(jobs.Job.__dataclass_fields__)


def test_jobs_that_read_what_others_make_come_later_and_higher_priorities_first(tmp_path: Path) -> None:
    path = write_jobs(
        tmp_path / "jobs",
        {"id": "back", "verb": "decompress", "source": "a.ditic", "priority": 9},
        {"id": "a", "verb": "compress", "source": "a.tif"},
        {"id": "b", "verb": "compress", "source": "b.tif", "priority": 2},
    )
    assert [[job.id for job in wave] for wave in jobs.waves(jobs.read_jobs(path))] == [["b", "a"], ["back"]]
    path = write_jobs(
        tmp_path / "jobs",
        {"id": "a", "verb": "compress", "source": "b.x", "out": "a.x"},
        {"id": "b", "verb": "decompress", "source": "a.x", "out": "b.x"},
    )
    with pytest.raises(ConfigError, match="wait for each other"):
        jobs.waves(jobs.read_jobs(path))


# The journal.


def outcome(job: jobs.Job, state: str = "done") -> _perform.Outcome:
    return _perform.Outcome(id=job.id, verb=job.verb, source=job.source, out=job.out, state=state, damaged=("1,2",))


def test_journal_remembers_what_is_done_and_passes_over_a_line_cut_short(tmp_path: Path) -> None:
    one, other = (
        jobs.Job(id=name, verb="compress", source=name, out=f"{name}.ditic", settings={}) for name in ("a", "b")
    )
    with journal.Journal(tmp_path / "j") as book:
        book.begun(one, fresh=True)
        book.ended(one, outcome(one))
        book.begun(other, fresh=True)
        with pytest.raises(LockedError):
            journal.Journal(tmp_path / "j")
    with open(tmp_path / "j", "ab") as file:
        file.write(b'{"format": 1, "id": "b", "digest": "')
    with journal.Journal(tmp_path / "j") as book:
        found = book.done(one)
        assert found is not None and found.resumed and found.damaged == ("1,2",)
        assert book.done(other) is None and book.left_own(other) and not book.left_own(one)
        book.ended(other, outcome(other, "failed"))
    changed = jobs.Job(id="a", verb="compress", source="a", out="a.ditic", settings={"quality": 3})
    with journal.Journal(tmp_path / "j") as book:
        assert book.done(changed) is None
        assert not book.left_own(other)


# Whole batches.  Those that need no driver of their own use the codec without a network: workers then start at once.


@dataclass(frozen=True, slots=True)
class Expected:
    """What single commands make of the scenes."""

    archive: Path
    large: Path
    decoded: Path
    part: np.ndarray


def jobs_in(folder: Path, scene: Path, settings: dict[str, Any]) -> None:
    """Three scenes, one of them broken, and a file of jobs of every verb on them."""
    shutil.copy(scene, folder / "scene.tif")
    (folder / "bad.tif").write_bytes(scene.read_bytes()[:5000])
    write_scene(folder / "large.tif", landscape(1100, 520))
    region = {"window": [100, 50, 300, 260]}
    write_jobs(
        folder / "jobs.jsonl",
        {"id": "good", "verb": "compress", "source": "scene.tif", "settings": settings},
        {"id": "bad", "verb": "compress", "source": "bad.tif", "settings": settings, "retries": 2},
        {"id": "large", "verb": "compress", "source": "large.tif", "settings": settings, "priority": 1},
        {"id": "check", "verb": "verify", "source": "scene.ditic"},
        {"id": "back", "verb": "decompress", "source": "scene.ditic"},
        {"id": "part", "verb": "region", "source": "large.ditic", "out": "part.npy", "settings": region},
        {"id": "of bad", "verb": "verify", "source": "bad.ditic"},
    )


def expected(folder: Path, settings: dict[str, Any]) -> Expected:
    """In this process, one after the other."""
    (folder / "one").mkdir()
    for name in ("scene", "large"):
        ditic_stream.compress(folder / f"{name}.tif", folder / f"one/{name}.ditic", **settings, workers=1)
    ditic_stream.decompress(folder / "one/scene.ditic", folder / "one/scene.tif", workers=1)
    with ditic_stream.open(folder / "one/large.ditic") as scene:
        part = scene[50:310, 100:400]
    return Expected(folder / "one/scene.ditic", folder / "one/large.ditic", folder / "one/scene.tif", part)


@pytest.fixture
def folder(tmp_path: Path, sample: Sample) -> Path:
    jobs_in(tmp_path, sample.scene, TINY)
    return tmp_path


@pytest.fixture
def fake(tmp_path: Path, sample: Sample, monkeypatch: pytest.MonkeyPatch) -> Expected:
    """The same, for the codec without a network, which stands here and in workers that `install` it."""
    monkeypatch.setitem(sys.modules, "ditic_stream.codec", fakes.module())
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    settings = {"tile": 256, "overlap": 32}
    jobs_in(tmp_path, sample.scene, settings)
    return expected(tmp_path, settings)


def check_results(folder: Path, wanted: Expected) -> None:
    assert same(folder / "scene.ditic", wanted.archive)
    assert same(folder / "scene.decoded.tif", wanted.decoded)
    assert same(folder / "large.ditic", wanted.large)
    assert np.array_equal(np.load(folder / "part.npy"), wanted.part)
    lines = [json.loads(line) for line in (folder / "jobs.jsonl.report.jsonl").read_text().splitlines()]
    assert [(line["id"], line["state"]) for line in lines] == [
        ("good", "done"), ("bad", "failed"), ("large", "done"), ("check", "done"), ("back", "done"), ("part", "done"),
        ("of bad", "failed"),
    ]  # fmt: skip
    assert lines[1]["error"]["kind"] == "source"
    assert lines[1]["attempts"] == 3
    assert "bad, which makes its source, failed" in lines[-1]["error"]["message"]


@pytest.mark.parametrize("large", [2**26, pytest.param(500 * 1000, marks=pytest.mark.slow)])
def test_a_batch_gives_the_bytes_of_single_commands_and_one_bad_scene_fails_alone(
    tmp_path: Path, fake: Expected, large: int
) -> None:
    told: list[tuple[int, int]] = []
    with ProcessExecutor(2, initializer=fakes.install) as executor:
        result = batch.run_batch(
            tmp_path / "jobs.jsonl", executor=executor, large=large, progress=lambda *at: told.append(at)
        )
    assert result.failed == 2
    check_results(tmp_path, fake)
    assert told[-1][0] <= told[-1][1]


def test_command_runs_a_batch_and_resumes_a_killed_one_to_the_same_bytes(folder: Path, ditic: Command) -> None:
    command = [sys.executable, "-m", "ditic_stream", "batch", str(folder / "jobs.jsonl"), "--workers", "1", "-q"]
    book = folder / "jobs.jsonl.journal"
    for wanted in (b'"id": "large"', b'"id": "good", "outcome"'):
        driver = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
        while driver.poll() is None and not (book.exists() and wanted in book.read_bytes()):
            with contextlib.suppress(subprocess.TimeoutExpired):
                driver.wait(0.02)
        os.kill(driver.pid, signal.SIGKILL)
        assert driver.wait() == -signal.SIGKILL
    done = ditic("batch", folder / "jobs.jsonl", "--workers", "1")
    assert done.code == 1, done.err
    assert "job bad failed" in done.err
    assert "5 of 7 jobs done" in done.out
    check_results(folder, expected(folder, TINY))
    again = ditic("batch", folder / "jobs.jsonl", "--json", "--workers", "1")
    facts = [json.loads(line) for line in again.out.splitlines()]
    assert [fact["resumed"] for fact in facts[:-1]] == [True, False, True, True, True, True, False]
    assert (facts[-1]["kind"], facts[-1]["failed"]) == ("batch", 2)


def test_damage_found_by_verify_fails_the_job_and_names_the_tile(folder: Path, sample: Sample) -> None:
    shutil.copytree(sample.archive, folder / "hurt.ditic")
    place = sorted(one for one in (folder / "hurt.ditic" / "records" / "c").rglob("0") if one.is_file())[4]
    data = bytearray(place.read_bytes())
    data[50] ^= 1
    place.write_bytes(data)
    path = write_jobs(folder / "v.jsonl", {"verb": "verify", "source": "hurt.ditic"})
    (found,) = batch.run_batch(path, workers=1).outcomes
    assert (found.state, found.damaged) == ("failed", ("1,1",))
    assert found.error is not None and found.error["kind"] == "damage"


def test_an_output_that_a_killed_run_had_finished_is_no_obstacle_but_a_users_is(folder: Path, sample: Sample) -> None:
    path = write_jobs(
        folder / "d.jsonl", {"id": "d", "verb": "decompress", "source": str(sample.archive), "out": "d.tif"}
    )
    (job,) = jobs.read_jobs(path)
    (folder / "d.tif").write_bytes(b"a user's")
    (found,) = batch.run_batch(path, workers=1).outcomes
    assert found.error is not None and found.error["kind"] == "config"
    assert (folder / "d.tif").read_bytes() == b"a user's"
    (folder / "d.jsonl.journal").unlink()
    with journal.Journal(folder / "d.jsonl.journal") as book:
        book.begun(job, fresh=True)
    (found,) = batch.run_batch(path, workers=1).outcomes
    assert found.state == "done"
    assert same(folder / "d.tif", sample.decoded)


def test_a_scene_that_kills_its_worker_is_set_aside_and_named(
    tmp_path: Path, fake: Expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POISON", "bad.tif")
    with ProcessExecutor(2, initializer=fakes.poison) as executor:
        result = batch.run_batch(tmp_path / "jobs.jsonl", executor=executor)
    bad = result.outcomes[1]
    assert bad.error is not None and bad.error["kind"] == "task"
    assert "its worker was killed" in bad.error["message"] and "bad" in bad.error["tile"]
    states = [one.state for one in result.outcomes]
    assert states == ["done", "failed", "done", "done", "done", "done", "failed"]
    assert same(tmp_path / "scene.ditic", fake.archive)
    assert same(tmp_path / "large.ditic", fake.large)


def test_table_shows_each_job_and_the_reason_of_a_failure() -> None:
    job = jobs.Job(id="a", verb="compress", source="a", out="a.ditic", settings={})
    bad = _perform.failed(outcome(job), SourceError("it is no picture", key="3,4"))
    lines = journal.table([outcome(job), bad])
    assert [line.split()[:3] for line in lines[:2]] == [["job", "verb", "state"], ["a", "compress", "done"]]
    assert lines[3] == "    source: tile 3,4: it is no picture"
