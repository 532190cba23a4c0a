"""Killed anywhere, interrupted, out of disk: the same command again gives the bytes of a run that was left alone.

Everything here is a real `ditic-stream` process with real workers.  Most use the fake codec, slowed down so that
there is something to interrupt at a known point; the last ones the `tiny` networks, at random moments.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from pictures import landscape

TESTS, ROOT = Path(__file__).parent, Path(__file__).parents[1]
RUNNER = f"""
import sys
sys.path[:0] = [{str(TESTS)!r}, {str(ROOT)!r}]
import functools, fakes
from ditic_stream import executors
fakes.install()
executors.ProcessExecutor = functools.partial(executors.ProcessExecutor, initializer=fakes.install)
from ditic_stream.cli import main
sys.argv[0] = "ditic-stream"
sys.exit(main())
"""
PATIENCE = 60.0


class Command:
    """A running `ditic-stream`, leader of its own process group.

    fake: with the fake codec, which takes `seconds` a tile, and waits for as long as the file `gate` is there.
    """

    def __init__(
        self,
        *arguments: object,
        fake: bool = True,
        seconds: float = 0.0,
        gate: Path | None = None,
        limit: Callable[[], None] | None = None,
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *(["-c", RUNNER] if fake else ["-m", "ditic_stream"]), *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=limit,
            env={**os.environ, "FAKE_SECONDS": str(seconds), "FAKE_GATE": str(gate or "")},
        )

    def end(self) -> tuple[int, str]:
        """Exit code and stderr."""
        _, said = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, said

    def workers(self) -> list[int]:
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
            return [int(pid) for pid in children.split()]
        return []

    def wait_for(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert self.process.poll() is None, self.end()
            assert time.monotonic() < end
            time.sleep(0.01)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 x 4 tiles, each a shard, with alpha, so that shards have all three objects."""
    pixels = np.dstack([landscape(700, 810), np.add.outer(np.arange(700), np.arange(810)) % 251])
    path = tmp_path_factory.mktemp("scene") / "scene.tif"
    tifffile.imwrite(path, pixels.astype(np.uint8), tile=(128, 128), photometric="rgb", extrasamples=["unassalpha"])
    return path


def compress(scene: Path, target: Path, *, workers: int = 2, **options: object) -> Command:
    return Command("compress", scene, target, "--tile", 256, "--workers", workers, **options)  # type: ignore[arg-type]


def content(archive: Path) -> dict[str, bytes]:
    if archive.is_file():
        return {archive.name: archive.read_bytes()}
    return {
        path.relative_to(archive).as_posix(): path.read_bytes() for path in sorted(archive.rglob("*")) if path.is_file()
    }


@pytest.fixture(scope="module")
def undisturbed(scene: Path) -> dict[str, bytes]:
    target = scene.with_name("undisturbed.ditic")
    assert compress(scene, target).end()[0] == 0
    return content(target)


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A file that is not there.  Touched, it stops the fake codec before its next tile."""
    return tmp_path / "gate"


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "a.ditic"
    assert not list(tmp_path.rglob("*.partial"))
    assert not list(tmp_path.rglob(".lock"))


def _arrives(last: Command, target: Path, expected: dict[str, bytes]) -> None:
    """The last run of many ends well, or finds that the one before had ended before it was killed."""
    code, said = last.end()
    assert code == 0 or "is a complete archive" in said, said
    assert content(target) == expected


def records(target: Path) -> int:
    return len(list(target.glob("records/c/*/*/0")))


def gone(pids: list[int]) -> bool:
    """True when none of the processes runs any more, soon."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        if not any(_runs(pid) for pid in pids):
            return True
        time.sleep(0.02)
    return False


def _runs(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


@pytest.mark.parametrize(
    ("shards", "whom"),
    [
        (0, "group"),
        (4, "parent"),
        pytest.param(0, "parent", marks=pytest.mark.slow),
        pytest.param(4, "group", marks=pytest.mark.slow),
        pytest.param(11, "group", marks=pytest.mark.slow),
        pytest.param(11, "parent", marks=pytest.mark.slow),
    ],
)
def test_killed_after_some_shards_it_resumes_and_gives_the_same_bytes(
    scene: Path, target: Path, undisturbed: dict[str, bytes], gate: Path, whom: str, shards: int
) -> None:
    if not shards:
        gate.touch()
    command = compress(scene, target, seconds=0.1, gate=gate)
    command.wait_for(lambda: (target / "zarr.json").exists() and len(command.workers()) == 2)
    command.wait_for(lambda: records(target) >= shards)
    gate.touch()
    workers = command.workers()
    if whom == "parent":
        command.process.kill()
        command.process.wait()
        assert gone(workers)  # by themselves
    command.kill()
    assert gone(workers)  # a worker that was writing to the disk dies when that is done
    kept = {name: (target / name).stat().st_mtime_ns for name in content(target) if name.startswith("records/c")}
    assert len(kept) >= shards
    _arrives(compress(scene, target), target, undisturbed)
    assert kept == {name: (target / name).stat().st_mtime_ns for name in kept}  # finished shards were not written again


def test_a_killed_worker_costs_nothing_but_its_tile(scene: Path, target: Path, undisturbed: dict[str, bytes]) -> None:
    command = compress(scene, target, seconds=0.1)
    for shards in (1, 5):
        command.wait_for(lambda shards=shards: records(target) >= shards and len(command.workers()) == 2)
        os.kill(command.workers()[0], signal.SIGKILL)
    code, said = command.end()
    assert code == 0, said
    assert content(target) == undisturbed


@pytest.mark.parametrize(
    ("workers", "stop"),
    [
        pytest.param(1, signal.SIGINT, marks=pytest.mark.slow),
        (2, signal.SIGINT),
        pytest.param(2, signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_interrupted_it_leaves_with_130_and_says_how_to_go_on(
    scene: Path, target: Path, undisturbed: dict[str, bytes], gate: Path, workers: int, stop: signal.Signals
) -> None:
    command = compress(scene, target, workers=workers, seconds=0.2, gate=gate)
    command.wait_for(lambda: records(target) >= 3)
    gate.touch()
    pids = command.workers()
    if stop == signal.SIGINT:
        os.killpg(command.process.pid, stop)  # as a terminal does
    else:
        command.process.send_signal(stop)
    code, said = command.end()
    assert code == 130
    lines = said.splitlines()
    assert "interrupted" in lines[-1]
    assert "same command again" in lines[-1]
    assert "Traceback" not in said
    assert gone(pids)
    assert compress(scene, target).end()[0] == 0
    assert content(target) == undisturbed


def test_interrupted_while_workers_start_only_one_line_is_said(scene: Path, tmp_path: Path, gate: Path) -> None:
    target = tmp_path / "a.ditic"
    gate.touch()
    command = compress(scene, target, gate=gate)
    command.wait_for(lambda: len(command.workers()) >= 1)
    os.killpg(command.process.pid, signal.SIGINT)
    code, said = command.end()
    assert code == 130
    assert len(said.splitlines()) == 1, said


def test_a_second_run_at_once_is_refused_and_the_first_goes_on(
    scene: Path, target: Path, undisturbed: dict[str, bytes], gate: Path
) -> None:
    first = compress(scene, target, seconds=0.2, gate=gate)
    first.wait_for(lambda: records(target) >= 1)
    gate.touch()
    code, said = compress(scene, target).end()
    assert code == 1
    assert f"another run (process {first.process.pid})" in said
    assert len(said.splitlines()) == 1
    gate.unlink()
    assert first.end()[0] == 0
    assert content(target) == undisturbed


def test_a_disk_that_is_full_is_one_line_and_the_run_resumes(
    scene: Path, target: Path, undisturbed: dict[str, bytes]
) -> None:
    largest = max(map(len, undisturbed.values()))

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1, largest - 1))

    code, said = compress(scene, target, limit=limit).end()
    assert code == 1
    assert "storage: " in said
    assert "run the same command again" in said
    assert len(said.splitlines()) == 1
    assert compress(scene, target).end()[0] == 0
    assert content(target) == undisturbed


def test_a_zip_killed_at_any_stage_comes_out_the_same(scene: Path, tmp_path: Path) -> None:
    whole, target = tmp_path / "whole.ditic.zip", tmp_path / "a.ditic.zip"
    assert compress(scene, whole).end()[0] == 0
    for shards in (2, 7, 12):
        command = compress(scene, target, seconds=0.05)
        with contextlib.suppress(AssertionError):  # the last one may have ended before it was killed
            command.wait_for(lambda shards=shards: records(tmp_path / "a.ditic.zip.partial") >= shards)
        command.kill()
    if not target.exists():
        assert compress(scene, target).end()[0] == 0
    compress(scene, target).end()  # refused, as complete; clears what a kill after packing may have left
    assert target.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ditic.zip", "whole.ditic.zip"]


@pytest.fixture(scope="module")
def finished(scene: Path) -> Path:
    """An archive nobody disturbed."""
    path = scene.with_name("finished.ditic")
    assert compress(scene, path).end()[0] == 0
    return path


def test_decompress_interrupted_or_killed_leaves_no_file_under_its_name(
    finished: Path, tmp_path: Path, gate: Path
) -> None:
    archive, out = finished, tmp_path / "out.tif"
    assert Command("decompress", archive, tmp_path / "whole.tif", "--workers", 2).end()[0] == 0
    for stop in (signal.SIGINT, signal.SIGKILL):
        gate.touch()
        command = Command("decompress", archive, out, "--workers", 2, gate=gate)
        command.wait_for(lambda: (tmp_path / "out.tif.partial").exists())
        pids = command.workers()
        os.killpg(command.process.pid, stop)
        code, said = command.end()
        assert not out.exists()
        assert gone(pids)
        assert "Traceback" not in said
        assert code == (130 if stop == signal.SIGINT else -signal.SIGKILL)
    gate.unlink()
    assert Command("decompress", archive, out, "--workers", 2).end()[0] == 0
    assert out.read_bytes() == (tmp_path / "whole.tif").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.tif", "whole.tif"]


def test_decompress_on_a_full_disk_is_one_line_and_leaves_nothing(finished: Path, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    code, said = Command("decompress", finished, tmp_path / "out.tif", "--workers", 2, limit=limit).end()
    assert code == 1
    assert "storage: " in said
    assert len(said.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_killed_again_and_again_at_random_moments_it_still_arrives(
    scene: Path, target: Path, undisturbed: dict[str, bytes], seed: int
) -> None:
    """Kills of the parent, of a worker or of all, at moments that fall into start-up, coding, writing and the end."""
    rng = random.Random(seed)
    for _ in range(40):
        command = compress(scene, target, workers=rng.choice([1, 2, 3]), seconds=rng.choice([0, 0.02, 0.1]))
        time.sleep(rng.uniform(0, 2.5))
        workers = command.workers()
        whom = rng.choice(["parent", "group", "worker"])
        if whom == "worker" and workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rng.choice(workers), signal.SIGKILL)
            time.sleep(rng.uniform(0, 0.5))
        if whom == "parent":
            command.process.kill()
            command.process.communicate()  # and the next run starts at once, beside workers that still have to notice
        else:
            command.kill()
        if (target / "zarr.json").exists() and b'"complete":true' in (target / "zarr.json").read_bytes():
            break
    _arrives(compress(scene, target), target, undisturbed)


# --- the real networks


def compress_tiny(scene: Path, target: Path, workers: int = 2) -> Command:
    return Command("compress", scene, target, "--model", "tiny", "--tile", 256, "--workers", workers, fake=False)


@pytest.fixture(scope="module")
def undisturbed_tiny(scene: Path) -> tuple[dict[str, bytes], float]:
    """What one worker makes when it is left alone, and the seconds that two take."""
    alone, two = scene.with_name("alone.ditic"), scene.with_name("two.ditic")
    assert compress_tiny(scene, alone, workers=1).end()[0] == 0
    began = time.monotonic()
    assert compress_tiny(scene, two).end()[0] == 0
    seconds = time.monotonic() - began
    assert content(two) == content(alone)
    return content(alone), seconds


def _kill_and_go_on(scene: Path, target: Path, after: float, whom: str) -> None:
    command = compress_tiny(scene, target)
    time.sleep(after)
    workers = command.workers()
    if whom == "worker" and workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(workers[0], signal.SIGKILL)
        assert command.end()[0] == 0
        return
    if whom == "parent":
        command.process.kill()
        command.process.communicate()
    command.kill()


@pytest.mark.slow
@pytest.mark.parametrize(("share", "whom"), [(0.7, "parent"), (0.8, "worker")])
def test_the_networks_killed_on_the_way_give_the_same_bytes(
    scene: Path, target: Path, undisturbed_tiny: tuple[dict[str, bytes], float], share: float, whom: str
) -> None:
    expected, seconds = undisturbed_tiny
    _kill_and_go_on(scene, target, share * seconds, whom)
    _arrives(compress_tiny(scene, target), target, expected)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_the_networks_killed_at_a_random_moment_give_the_same_bytes(
    scene: Path, target: Path, undisturbed_tiny: tuple[dict[str, bytes], float], seed: int
) -> None:
    expected, seconds = undisturbed_tiny
    rng = random.Random(seed)
    for _ in range(2):
        _kill_and_go_on(scene, target, rng.uniform(0, seconds), rng.choice(["parent", "group", "worker"]))
    _arrives(compress_tiny(scene, target), target, expected)
