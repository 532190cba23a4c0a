"""Scenes on a real Ray cluster of two nodes: the bytes of one process, whoever works and whatever is killed."""

from __future__ import annotations

import contextlib
import filecmp
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fakes
import pytest
from clusters import cluster, wait_for
from conftest import Command, Sample
from pictures import landscape, write_scene

import ditic_stream
from ditic_stream.archive import open_archive
from ditic_stream.executors import found
from ditic_stream.workers import batch

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.ray


def same(one: Path, other: Path) -> bool:
    if one.is_file():
        return filecmp.cmp(one, other, shallow=False)
    names = [{str(at.relative_to(root)) for at in root.rglob("*") if at.is_file()} for root in (one, other)]
    return names[0] == names[1] and all(filecmp.cmp(one / name, other / name, shallow=False) for name in names[0])


def store_bytes() -> int:
    """Bytes in the object stores of all nodes."""
    return int(ray.cluster_resources()["object_store_memory"] - ray.available_resources()["object_store_memory"])


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """The codec without a network, in this process; actors install it too.  They start without torch, and at once."""
    monkeypatch.setitem(sys.modules, "ditic_stream.codec", fakes.module())


def test_two_actors_give_the_bytes_of_one_process_and_pixels_stay_out_of_the_object_store(
    nodes: Any, sample: Sample, tmp_path: Path
) -> None:
    with found("ray")(2, device="cpu") as executor:
        result = ditic_stream.compress(
            sample.scene, tmp_path / "scene.ditic", model="tiny", tile=256, overlap=32, executor=executor
        )
        ditic_stream.decompress(tmp_path / "scene.ditic", tmp_path / "scene.tif", executor=executor)
        assert result.devices == ("cpu",)
        assert store_bytes() < 1e6
    assert same(tmp_path / "scene.ditic", sample.archive)
    assert same(tmp_path / "scene.tif", sample.decoded)


SIZE: dict[str, Any] = {"tile": 256, "overlap": 32}


def scene_of(folder: Path) -> tuple[Path, Path, Path]:
    """A scene in 20 shards of a tile, its archive by one process, and what that decodes it to."""
    write_scene(folder / "scene.tif", landscape(1280, 1024))
    ditic_stream.compress(folder / "scene.tif", folder / "one.ditic", **SIZE, workers=1)
    ditic_stream.decompress(folder / "one.ditic", folder / "one.zarr", workers=1)
    return folder / "scene.tif", folder / "one.ditic", folder / "one.zarr"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_actors_gives_the_bytes_of_one_process(
    nodes: Any, fake: None, tmp_path: Path, workers: int
) -> None:
    scene, archive, decoded = scene_of(tmp_path)
    with found("ray")(workers, device="cpu", initializer=fakes.install) as executor:
        ditic_stream.compress(scene, tmp_path / "ray.ditic", **SIZE, executor=executor)
        ditic_stream.decompress(tmp_path / "ray.ditic", tmp_path / "ray.zarr", executor=executor)
    assert same(tmp_path / "ray.ditic", archive)
    assert same(tmp_path / "ray.zarr", decoded)


@pytest.mark.slow
def test_a_mixed_fleet_names_every_kind_of_device(nodes: Any, fake: None, tmp_path: Path) -> None:
    """The GPU is one that only Ray believes in: what is coded is the same here, where it is coded is told."""
    scene, archive, _ = scene_of(tmp_path)
    extra = nodes.add_node(num_cpus=0, num_gpus=1, object_store_memory=80 << 20)
    try:
        with found("ray")(2, device="mixed", initializer=fakes.install_slow) as executor:
            wait_for(lambda: {one["device"] for one in executor.usage()} == {"cpu", "cuda"})
            result = ditic_stream.compress(scene, tmp_path / "ray.ditic", **SIZE, device="cpu", executor=executor)
    finally:
        nodes.remove_node(extra)
    assert result.devices == ("cpu", "cuda")
    assert same(tmp_path / "ray.ditic", archive)


@pytest.mark.slow
def test_a_mixed_fleet_names_one_kind_in_all_archives_of_a_batch(nodes: Any, fake: None, tmp_path: Path) -> None:
    """So that whoever is free may go on with what another one began."""
    names = [f"s{number}" for number in range(8)]
    for name in names:
        write_scene(tmp_path / f"{name}.tif", landscape(300, 280))
    path = tmp_path / "jobs.jsonl"
    path.write_text(
        "".join(json.dumps({"verb": "compress", "source": f"{name}.tif", "settings": SIZE}) + "\n" for name in names)
    )
    extra = nodes.add_node(num_cpus=0, num_gpus=1, object_store_memory=80 << 20)
    try:
        with found("ray")(2, device="mixed", initializer=fakes.install_slow) as executor:
            wait_for(lambda: {one["device"] for one in executor.usage()} == {"cpu", "cuda"})
            assert batch.run_batch(path, executor=executor, device=executor.device).failed == 0
            assert all(one["keys"] for one in executor.usage())
    finally:
        nodes.remove_node(extra)
    for name in names:
        with open_archive(tmp_path / f"{name}.ditic") as archive:
            assert archive.manifest.numerics["device"] == "cuda"


def test_command_does_it_with_a_cluster_that_runs(nodes: Any, sample: Sample, tmp_path: Path, ditic: Command) -> None:
    settings = ("--model", "tiny", "--tile", "256", "--overlap", "32", "--workers", "1", "--ray-address", nodes.address)
    done = ditic("compress", sample.scene, tmp_path / "scene.ditic", *settings, timeout=120)
    assert done.code == 0, done.err
    assert "1 actors on 1 nodes" in done.err
    assert same(tmp_path / "scene.ditic", sample.archive)


def test_a_killed_actor_costs_no_byte(nodes: Any, fake: None, tmp_path: Path) -> None:
    scene, archive, _ = scene_of(tmp_path)
    killed: list[int] = []

    def kill(done: int, total: int) -> None:
        if len(killed) < 3 and done > len(killed) * total / 4:
            killed.append(executor.usage()[0]["pid"])
            os.kill(killed[-1], signal.SIGKILL)

    with found("ray")(2, device="cpu", initializer=fakes.install_slow) as executor:
        ditic_stream.compress(scene, tmp_path / "ray.ditic", **SIZE, executor=executor, progress=kill)
        assert executor.fleet.counts.restarts == len(killed) == 3
    assert same(tmp_path / "ray.ditic", archive)


def test_a_killed_node_costs_no_byte(nodes: Any, fake: None, tmp_path: Path) -> None:
    scene, archive, decoded = scene_of(tmp_path)
    began = time.monotonic()
    extra = [nodes.add_node(num_cpus=4, object_store_memory=80 << 20)]

    def kill(done: int, total: int) -> None:
        if extra and done > total / 8:
            nodes.remove_node(extra.pop(), allow_graceful=False)

    with found("ray")(6, device="cpu", initializer=fakes.install_slow) as executor:
        wait_for(lambda: len({one["node"] for one in executor.usage()}) == 2 and len(executor.usage()) == 6)
        ditic_stream.compress(scene, tmp_path / "ray.ditic", **SIZE, executor=executor, progress=kill)
        assert not extra
        assert executor.fleet.counts.nodes_lost >= 2
        extra.append(nodes.add_node(num_cpus=2, object_store_memory=80 << 20))
        wait_for(lambda: len(executor.usage()) == 6)  # the ones that waited for a node
        ditic_stream.decompress(tmp_path / "ray.ditic", tmp_path / "ray.zarr", executor=executor, progress=kill)
        assert not extra
    assert time.monotonic() - began < 300, "a lost node was waited for"
    assert same(tmp_path / "ray.ditic", archive)
    assert same(tmp_path / "ray.zarr", decoded)


def jobs_in(folder: Path, settings: dict[str, Any], scenes: int) -> Path:
    """Scenes of 9 tiles, a bad one among them, each compressed and decoded; what single commands make is in one/."""
    (folder / "one").mkdir()
    lines = []
    for number in range(scenes):
        write_scene(folder / f"s{number}.tif", landscape(600, 520 + 20 * number))
        archive = folder / "one" / f"s{number}.ditic"
        ditic_stream.compress(folder / f"s{number}.tif", archive, **settings, workers=1)
        ditic_stream.decompress(archive, folder / "one" / f"s{number}.tif", workers=1)
        lines += [
            {"verb": "compress", "source": f"s{number}.tif", "settings": settings},
            {"verb": "decompress", "source": f"s{number}.ditic", "out": f"out{number}.tif"},
        ]
    write_scene(folder / "bad.tif", landscape(300, 300))
    lines.insert(2, {"id": "poisoned", "verb": "compress", "source": "bad.tif", "settings": settings})
    path = folder / "jobs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def check_results(folder: Path, scenes: int) -> None:
    for number in range(scenes):
        assert same(folder / f"s{number}.ditic", folder / "one" / f"s{number}.ditic")
        assert same(folder / f"out{number}.tif", folder / "one" / f"s{number}.tif")


@pytest.mark.slow
@pytest.mark.parametrize("large", [2**26, 600 * 540])
def test_a_batch_ends_with_every_other_scene_whole_whatever_dies(
    nodes: Any, fake: None, tmp_path: Path, large: int
) -> None:
    """A scene that kills its workers, two killed actors and a killed node; small scenes whole, or large ones spread."""
    path = jobs_in(tmp_path, SIZE, 4)
    extra = [nodes.add_node(num_cpus=2, object_store_memory=80 << 20)]
    killed: list[int] = []

    def kill(outcome: Any, ended: int, of: int) -> None:
        if ended >= 2 and len(killed) < 2:
            with contextlib.suppress(ProcessLookupError):  # the poisoned scene may have been faster
                os.kill(pid := executor.usage()[0]["pid"], signal.SIGKILL)
                killed.append(pid)
        elif ended >= 4 and extra:
            nodes.remove_node(extra.pop(), allow_graceful=False)

    with found("ray")(4, device="cpu", initializer=fakes.poison) as executor:
        result = batch.run_batch(path, executor=executor, on_outcome=kill, large=large)
        assert len(killed) == 2 and not extra
    bad = result.outcomes[2]
    assert result.failed == 1
    assert bad.error is not None and bad.error["kind"] == "task"
    assert "was killed or crashed" in bad.error["message"] and "poisoned" in bad.error["tile"]
    check_results(tmp_path, 4)


def test_a_killed_driver_leaves_a_batch_that_goes_on(nodes: Any, tmp_path: Path, ditic: Command) -> None:
    path = jobs_in(tmp_path, {"model": "tiny", **SIZE}, 2)
    command = ("batch", path, "--workers", "1", "--ray-address", nodes.address)
    driver = subprocess.Popen(
        [sys.executable, "-m", "ditic_stream", *map(str, command)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    book = tmp_path / "jobs.jsonl.journal"
    wait_for(lambda: book.exists() and b'"outcome"' in book.read_bytes(), 90)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    done = ditic(*command, timeout=120)
    assert done.code == 0, done.err
    assert "done before" in done.out
    check_results(tmp_path, 2)


def test_metrics_are_exported_the_standard_way(nodes: Any, fake: None, sample: Sample, tmp_path: Path) -> None:
    import urllib.request

    with found("ray")(1, device="cpu", initializer=fakes.install) as executor:
        ditic_stream.compress(sample.scene, tmp_path / "scene.ditic", **SIZE, executor=executor)

        def exported() -> str | None:
            (node,) = [one for one in ray.nodes() if one["Alive"]]
            place = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            with urllib.request.urlopen(place, timeout=10) as answer:
                text = answer.read().decode()
            return text if "ray_ditic_pixels" in text and "ray_ditic_bytes" in text else None

        text = wait_for(exported, 40)
    pixels = [float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith("ray_ditic_pixels")]
    assert max(pixels) >= 600 * 700


def test_without_ray_the_rest_works_and_the_command_says_what_to_install(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['ray'] = None\n"
        "from ditic_stream.__main__ import main\n"
        "import ditic_stream.workers.batch, ditic_stream.executors\n"
        "sys.argv = ['ditic-stream', 'compress', 'scene.tif', '--ray']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ray is not installed; pip install 'ditic-stream[ray]'" in done.stderr


def test_no_cluster_at_the_address_is_one_line(tmp_path: Path, sample: Sample, ditic: Command) -> None:
    done = ditic("compress", sample.scene, tmp_path / "a.ditic", "--ray-address", "127.0.0.1:1", timeout=120)
    assert done.code == 1
    assert done.err.splitlines()[-1].startswith("ditic-stream: task: no Ray cluster at 127.0.0.1:1")


@pytest.mark.slow
def test_a_head_that_dies_ends_the_driver_in_time_and_a_new_one_goes_on(tmp_path: Path, ditic: Command) -> None:
    """Without a store for its state outside of it, a head that dies takes its cluster along; the journal stays."""
    path = jobs_in(tmp_path, {"model": "tiny", **SIZE}, 3)
    variables = {**os.environ, "RAY_gcs_rpc_server_reconnect_timeout_s": "5"}
    book = tmp_path / "jobs.jsonl.journal"
    for ends in (True, False):
        # In a process of its own: the test's own connection must not go down with the head.
        keeper = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "clusters.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables,
        )  # fmt: skip
        assert keeper.stdout is not None
        address, pid = keeper.stdout.readline().split()
        command = [sys.executable, "-m", "ditic_stream", "batch", str(path), "--workers", "1", "--ray-address", address]
        driver = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables)
        try:
            if ends:
                wait_for(lambda: book.exists() and b'"outcome"' in book.read_bytes(), 200)
                os.kill(int(pid), signal.SIGKILL)
                driver.communicate(timeout=90)
                assert driver.returncode != 0
            else:
                out, err = driver.communicate(timeout=120)
                assert driver.returncode == 0, err
                assert "done before" in out
        finally:
            driver.kill()
            driver.communicate()
            keeper.communicate(timeout=60)
    check_results(tmp_path, 3)


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.mark.slow
def test_a_batch_runs_as_a_ray_job(tmp_path: Path) -> None:
    path = jobs_in(tmp_path, {"model": "tiny", **SIZE}, 1)
    # Ray's own numbers, 8265 and 52365, may be those of the tests' other cluster.
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        ports = {"dashboard_port": one.getsockname()[1], "dashboard_agent_listen_port": other.getsockname()[1]}
    with cluster(2, include_dashboard=True, **ports) as made:
        wait_for(lambda: answers(ports["dashboard_agent_listen_port"]))
        submit = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit"]
        entry = [sys.executable, "-m", "ditic_stream", "batch", str(path), "--ray", "--workers", "1"]
        command = [*submit, "--address", f"http://{made.head_node.webui_url}", "--", *entry]
        done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 3 jobs done" in done.stdout
    check_results(tmp_path, 1)
