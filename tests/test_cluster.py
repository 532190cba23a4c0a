"""Scenes on a real Ray cluster of two nodes: the bytes of one process, whoever works and whatever is killed."""

from __future__ import annotations

import filecmp
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clusters import cluster, wait_for
from conftest import Command, Sample
from pictures import landscape, write_scene

import ditic_stream
from ditic_stream.executors import found

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A head that thinks it has four CPUs, connected; tests add nodes that they may kill."""
    with cluster(4) as made:
        ray.init(address=made.address, log_to_driver=False, logging_level="error")
        yield made
        ray.shutdown()


def same(one: Path, other: Path) -> bool:
    if one.is_file():
        return filecmp.cmp(one, other, shallow=False)
    names = [{str(at.relative_to(root)) for at in root.rglob("*") if at.is_file()} for root in (one, other)]
    return names[0] == names[1] and all(filecmp.cmp(one / name, other / name, shallow=False) for name in names[0])


def store_bytes() -> int:
    """Bytes that were ever in use in the object stores of the nodes: sealed objects of all workers and the driver."""
    return int(ray.cluster_resources()["object_store_memory"] - ray.available_resources()["object_store_memory"])


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_any_number_of_actors_gives_the_bytes_of_one_process(
    nodes: Any, sample: Sample, tmp_path: Path, workers: int
) -> None:
    with found("ray")(workers, device="cpu") as executor:
        result = ditic_stream.compress(
            sample.scene, tmp_path / "scene.ditic", model="tiny", tile=256, overlap=32, executor=executor
        )
        ditic_stream.decompress(tmp_path / "scene.ditic", tmp_path / "scene.tif", executor=executor)
        ditic_stream.decompress(tmp_path / "scene.ditic", tmp_path / "scene.zarr", executor=executor)
        assert result.devices == ("cpu",)
        assert store_bytes() < 10e6
    assert same(tmp_path / "scene.ditic", sample.archive)
    assert same(tmp_path / "scene.tif", sample.decoded)
    ditic_stream.decompress(sample.archive, tmp_path / "one.zarr", workers=1)
    assert same(tmp_path / "scene.zarr", tmp_path / "one.zarr")


def test_command_does_it_with_a_cluster_that_runs(nodes: Any, sample: Sample, tmp_path: Path, ditic: Command) -> None:
    for arguments in (
        ("compress", sample.scene, tmp_path / "a.ditic.zip", "--model", "tiny", "--tile", "256", "--overlap", "32"),
        ("decompress", tmp_path / "a.ditic.zip", tmp_path / "a.tif"),
    ):
        done = ditic(*arguments, "--ray-address", nodes.address, "--workers", "2", timeout=120)
        assert done.code == 0, done.err
        assert "actors on 1 nodes" in done.err
    assert same(tmp_path / "a.tif", sample.decoded)


def scene_of(folder: Path) -> tuple[Path, Path]:
    """A scene in 20 shards of a tile, and its archive by one process."""
    write_scene(folder / "scene.tif", landscape(1280, 1024))
    ditic_stream.compress(folder / "scene.tif", folder / "one.ditic", model="tiny", tile=256, overlap=32, workers=1)
    return folder / "scene.tif", folder / "one.ditic"


def test_a_killed_actor_costs_no_byte(nodes: Any, tmp_path: Path) -> None:
    scene, one = scene_of(tmp_path)
    killed: list[int] = []

    def kill(done: int, total: int) -> None:
        if len(killed) < 2 and done > len(killed) * total / 4:
            killed.append(executor.usage()[0]["pid"])
            os.kill(killed[-1], signal.SIGKILL)

    with found("ray")(2, device="cpu") as executor:
        ditic_stream.compress(
            scene, tmp_path / "ray.ditic", model="tiny", tile=256, overlap=32, executor=executor, progress=kill
        )
        assert executor.fleet.counts.restarts == len(killed) == 2
    assert same(tmp_path / "ray.ditic", one)


def test_a_killed_node_costs_no_byte(nodes: Any, tmp_path: Path) -> None:
    scene, one = scene_of(tmp_path)
    extra = nodes.add_node(num_cpus=4, object_store_memory=80 << 20)
    began, killed = time.monotonic(), []

    def kill(done: int, total: int) -> None:
        if not killed and done > total / 8:
            killed.append(extra)
            nodes.remove_node(extra, allow_graceful=False)

    with found("ray")(4, device="cpu") as executor:
        wait_for(lambda: len({one["node"] for one in executor.usage()}) == 2 and len(executor.usage()) == 4)
        ditic_stream.compress(
            scene, tmp_path / "ray.ditic", model="tiny", tile=256, overlap=32, executor=executor, progress=kill
        )
        assert killed
        assert executor.fleet.counts.nodes_lost >= 1
        ditic_stream.decompress(tmp_path / "ray.ditic", tmp_path / "ray.tif", executor=executor)
    assert time.monotonic() - began < 60
    assert same(tmp_path / "ray.ditic", one)
    ditic_stream.decompress(one, tmp_path / "one.tif", workers=1)
    assert same(tmp_path / "ray.tif", tmp_path / "one.tif")


def test_metrics_are_exported_the_standard_way(nodes: Any, sample: Sample, tmp_path: Path) -> None:
    import urllib.request

    with found("ray")(1, device="cpu") as executor:
        ditic_stream.compress(
            sample.scene, tmp_path / "scene.ditic", model="tiny", tile=256, overlap=32, executor=executor
        )

        def exported() -> str | None:
            (node,) = [one for one in ray.nodes() if one["Alive"]]
            place = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            with urllib.request.urlopen(place, timeout=10) as answer:
                text = answer.read().decode()
            return text if "ray_ditic_pixels" in text and "ray_ditic_bytes" in text else None

        text = wait_for(exported, 40)
    pixels = [float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith("ray_ditic_pixels")]
    assert max(pixels) >= 600 * 700
