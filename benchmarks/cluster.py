"""What a cluster costs and gives: throughput against actors, the driver alone, the object store, memory, first tile.

    python benchmarks/cluster.py                          # all of it, a quarter of an hour on two cores
    python benchmarks/cluster.py --part driver            # keys through the driver, with no work behind them
    python benchmarks/cluster.py --part memory --keys 15625

Parts: `scene` compresses and decompresses a made-up scene with 1, 2, 4 actors and checks the bytes against one process;
`driver` does the same with a task that computes nothing (a shard of 64 tiles a key, then a tile a key), which leaves
the cost of handing out and taking back; `memory` sends a million tiles through the driver and watches its resident
bytes; `packing` runs a batch of small scenes.  A cluster of its own is started on this machine and ended; numbers of
actors beyond the cores show that nothing breaks, not that it is faster.  The store's peak is that of
cumulative_created_bytes: all that was ever put into it.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import ray
from memory import write_scene

import ditic_stream
from ditic_stream.executors import Note, found

SHARD_TILES = 64
SOON = 1000
"""Keys after which memory counts as that of a run that has begun."""


@dataclass(frozen=True)
class Nothing:
    """A task without work: a key makes a receipt of the usual size."""

    tiles: int

    @contextmanager
    def open(self, note: Note) -> Iterator[Callable[[Any], tuple[Any, ...]]]:
        yield lambda key: (key, self.tiles, 0, 123456, self.tiles << 20, 0, 3 * self.tiles << 20, 1.0, 2**28, "cpu")


def show(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def resident() -> int:
    """Resident bytes of this process now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def store() -> tuple[int, int]:
    """Bytes ever created in the object stores, and bytes in use."""
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    stats = get_memory_info_reply(get_state_from_address(ray.get_runtime_context().gcs_address)).store_stats
    return stats.cumulative_created_bytes, stats.object_store_bytes_used


def driver(actors: int, seconds: float) -> None:
    """Keys that cost nothing, for `seconds`: the first run warms up."""
    with found("ray")(actors, device="cpu") as executor:
        for tiles, in_flight in ((SHARD_TILES, None), (1, None), (1, 32 * actors)):
            list(executor.run_unordered(Nothing(tiles), range(200)))
            began, count = time.monotonic(), 0
            for _ in executor.run_unordered(Nothing(tiles), iter(int, 1), in_flight=in_flight):
                count += 1
                if time.monotonic() - began > seconds:
                    break
            took = time.monotonic() - began
            show(
                part="driver", actors=actors, tiles_a_key=tiles, in_flight=in_flight or 2 * actors,
                keys_per_s=round(count / took), tiles_per_s=round(count * tiles / took), created_bytes=store()[0],
            )  # fmt: skip


def memory(actors: int, keys: int, tiles: int) -> None:
    """The driver's resident bytes over a long run, its receipts kept as `compress` keeps them."""
    with found("ray")(actors, device="cpu") as executor:
        before = resident()
        early = late = peak = 0
        receipts = []
        began = time.monotonic()
        run = executor.run_unordered(Nothing(tiles), iter(range(keys)), in_flight=32 * actors)
        for count, (_, receipt) in enumerate(run, 1):
            receipts.append(receipt)
            if count % SOON == 0:
                now = resident()
                early, late, peak = early or now, now, max(peak, now)
        show(
            part="memory", keys=keys, tiles=keys * tiles, seconds=round(time.monotonic() - began, 1), start=before,
            after_1000=early, end=late, peak=peak, grown=late - early, created_bytes=store()[0],
        )  # fmt: skip


def scene(size: int, model: str, tile: int, actors: tuple[int, ...], folder: Path) -> None:
    """A scene by one process, then by clusters; the bytes are compared."""
    source, settings = folder / "scene.tif", {"model": model, "tile": tile}
    write_scene(source, size, size)
    ditic_stream.compress(source, folder / "warm.ditic", **settings, workers=1)  # files in the page cache
    began = time.monotonic()
    ditic_stream.compress(source, folder / "one.ditic", **settings, workers=1)
    coded = time.monotonic()
    ditic_stream.decompress(folder / "one.ditic", folder / "one.tif", workers=1)
    pixels = size * size / 1e6
    show(
        part="scene", by="one process", encode_mp_s=round(pixels / (coded - began), 2),
        decode_mp_s=round(pixels / (time.monotonic() - coded), 2),
    )  # fmt: skip
    for count in actors:
        began = time.monotonic()
        first: list[tuple[float, int]] = []
        with found("ray")(count, device="cpu") as executor:

            def progress(done: int, total: int, first: list[tuple[float, int]] = first) -> None:
                if done and not first:
                    first.append((time.monotonic(), done))

            ditic_stream.compress(source, folder / "ray.ditic", **settings, executor=executor, progress=progress)
            coded = time.monotonic()
            ditic_stream.decompress(folder / "ray.ditic", folder / "ray.tif", executor=executor)
            ended = time.monotonic()
            for name in [one.relative_to(folder / "one.ditic") for one in (folder / "one.ditic").rglob("*")]:
                one, other = folder / "one.ditic" / name, folder / "ray.ditic" / name
                assert one.is_dir() or filecmp.cmp(one, other, shallow=False), name
            assert filecmp.cmp(folder / "one.tif", folder / "ray.tif", shallow=False)
            busy = [one["busy"] for one in executor.usage()]
            show(
                part="scene", by=f"{count} actors", encode_mp_s=round(pixels / (coded - began), 2),
                decode_mp_s=round(pixels / (ended - coded), 2), first_tile_s=round(first[0][0] - began, 2),
                then_mp_s=round((pixels - first[0][1] / 1e6) / (coded - first[0][0]), 2),
                busy=round(sum(busy) / len(busy), 2), created_bytes=store()[0], in_use=store()[1],
            )  # fmt: skip
        ditic_stream.compress(source, folder / "ray.ditic", **settings)  # complete: a check that it is taken as done
        for path in (folder / "ray.tif",):
            path.unlink()
        import shutil

        shutil.rmtree(folder / "ray.ditic")


def packing(scenes: int, size: int, model: str, actors: int, folder: Path) -> None:
    """Small scenes, a whole one a key."""
    lines = []
    for number in range(scenes):
        write_scene(folder / f"small{number}.tif", size, size)
        settings = {"model": model, "tile": 512}
        lines.append(json.dumps({"verb": "compress", "source": f"small{number}.tif", "settings": settings}))
    (folder / "jobs.jsonl").write_text("\n".join(lines))
    with found("ray")(actors, device="cpu") as executor:
        result = found("batch", "ditic_stream.drivers")(folder / "jobs.jsonl", executor=executor)
        busy = [one["busy"] for one in executor.usage()]
    show(
        part="packing", scenes=scenes, pixels=size * size, actors=actors, failed=result.failed,
        scenes_per_s=round(scenes / result.seconds, 2), busy=round(sum(busy) / len(busy), 2),
        created_bytes=store()[0],
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["scene", "driver", "memory", "packing"], action="append")
    parser.add_argument("--size", type=int, default=4096, help="side of the scene, pixels")
    parser.add_argument("--model", default="small")
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--keys", type=int, default=15_625, help="keys of the memory part, 64 tiles each")
    parser.add_argument("--tiles", type=int, default=SHARD_TILES, help="tiles a key stands for in the memory part")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--scenes", type=int, default=40)
    chosen = parser.parse_args()
    parts = chosen.part or ["driver", "memory", "scene", "packing"]
    ray.init(
        address="local", num_cpus=max(chosen.actors), include_dashboard=False, object_store_memory=2**27,
        log_to_driver=False, logging_level="error",
    )  # fmt: skip
    show(load=os.getloadavg(), cores=len(os.sched_getaffinity(0)), ray=ray.__version__)
    with tempfile.TemporaryDirectory() as place:
        if "driver" in parts:
            driver(min(2, max(chosen.actors)), chosen.seconds)
        if "memory" in parts:
            memory(min(2, max(chosen.actors)), chosen.keys, chosen.tiles)
        if "scene" in parts:
            scene(chosen.size, chosen.model, chosen.tile, tuple(chosen.actors), Path(place))
        if "packing" in parts:
            packing(chosen.scenes, 512, chosen.model, min(2, max(chosen.actors)), Path(place))
    show(load=os.getloadavg())
    ray.shutdown()


if __name__ == "__main__":
    main()
