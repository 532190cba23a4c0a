"""Peak memory of compress and decompress, as the sum of PSS over the process and all its children.

    python benchmarks/memory.py --model tiny --size 8192            # routine: minutes
    python benchmarks/memory.py --model small --size 32768          # the promise: under 2 GB, flat in height
    python benchmarks/memory.py --size 8192 --out out.cog.tif       # another output, such as out.ome.zarr

A scene of SIZE columns is written by streaming at two heights (half of SIZE, and SIZE), each is compressed, verified
and decompressed by the real command in a real process, and /proc/*/smaps_rollup is read several times a second.  Prints
one line a run, the ratio of the two peaks; fails when a peak passes --limit or the taller scene takes over 10 % more.
PSS counts a page shared by n processes as 1/n in each, so the sum counts it once; the page cache is not in it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile

BLOCK = 512
INTERVAL = 0.1
FLAT = 1.10


def scene_blocks(height: int, width: int) -> Iterator[np.ndarray]:
    """Tiles of a made-up landscape: slow waves, fields with edges, a little noise; (BLOCK, BLOCK, 3) uint8."""
    noise = np.random.default_rng(7).normal(0, 5, (BLOCK, BLOCK, 3)).astype(np.float32)
    rows, cols = np.mgrid[0:BLOCK, 0:BLOCK].astype(np.float32)
    for row in range(0, height, BLOCK):
        for col in range(0, width, BLOCK):
            y, x = rows + row, cols + col
            waves = 60 * np.sin(y / 700 + np.cos(x / 900)) + 25 * np.sin(x / 37) * np.cos(y / 53)
            fields = 20.0 * ((y // 190 + x // 230) % 3)
            picture = (110 + waves + fields)[..., None] * np.array([1.0, 0.9, 0.7], np.float32) + noise
            yield np.clip(picture, 0, 255).astype(np.uint8)


def write_scene(path: Path, height: int, width: int) -> None:
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        writer.write(
            scene_blocks(height, width), shape=(height, width, 3), dtype=np.uint8, tile=(BLOCK, BLOCK),
            photometric="rgb", compression="zstd", metadata=None,
        )  # fmt: skip


def family(pid: int) -> list[int]:
    """The process and everything below it."""
    found, waiting = [], [pid]
    while waiting:
        current = waiting.pop()
        found.append(current)
        try:
            for children in Path(f"/proc/{current}/task").glob("*/children"):
                waiting.extend(int(child) for child in children.read_text().split())
        except OSError:
            continue  # it ended while we looked
    return found


def pss(pid: int) -> int:
    """Proportional set size of one process in bytes; 0 when it has ended."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def measured(command: list[str]) -> tuple[int, float]:
    """Run a command; (peak of the summed PSS in bytes, seconds).  Leaves with its output when it fails."""
    began, peak = time.monotonic(), 0
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None:
            peak = max(peak, sum(pss(pid) for pid in family(process.pid)))
            time.sleep(INTERVAL)
        if process.returncode:
            log.seek(0)
            sys.exit(f"{' '.join(command)} failed with {process.returncode}:\n{log.read()}")
    return peak, time.monotonic() - began


def run(height: int, options: argparse.Namespace, folder: Path) -> list[dict[str, object]]:
    """Compress, verify and decompress one scene; a row of figures for each of the two measured commands."""
    scene, archive, out = folder / "scene.tif", folder / "scene.ditic", folder / options.out
    write_scene(scene, height, options.size)
    tool = [str(Path(sys.executable).with_name("ditic-stream"))]
    workers = ["--workers", str(options.workers)] if options.workers else []
    rows: list[dict[str, object]] = []
    for verb, places, extra in (
        ("compress", [scene, archive], ["--model", options.model, "--tile", str(options.tile)]),
        ("decompress", [archive, out], []),
    ):
        peak, seconds = measured([*tool, verb, *map(str, places), *extra, *workers, "--quiet"])
        pixels = height * options.size
        row = {"verb": verb, "height": height, "width": options.size, "peak_bytes": peak,
               "seconds": round(seconds, 1), "mp_per_s": round(pixels / seconds / 1e6, 2)}  # fmt: skip
        print(json.dumps(row), flush=True)
        rows.append(row)
    subprocess.run([*tool, "verify", str(archive), "--quiet"], check=True)
    if out.suffix == ".tif":
        with tifffile.TiffFile(out) as written:
            if written.pages[0].shape != (height, options.size, 3):
                sys.exit(f"decoded to {written.pages[0].shape}, not {(height, options.size, 3)}")
    for leftover in (scene, archive, out):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--size", type=int, default=8192, help="columns, and rows of the taller scene")
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--workers", type=int, help="as in the command line: the cores by default")
    parser.add_argument("--limit", type=float, default=2.0, help="GB no peak may pass")
    parser.add_argument("--out", default="out.tif", help="name of the output; its ending says the format")
    parser.add_argument("--folder", type=Path, help="where to work; needs about 8 bytes a pixel")
    options = parser.parse_args()
    if options.size % (2 * BLOCK) or options.size <= 0:
        parser.error(f"--size {options.size} is not a positive multiple of {2 * BLOCK}")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        short, tall = (run(height, options, Path(name)) for height in (options.size // 2, options.size))
    failed = False
    for low, high in zip(short, tall, strict=True):
        ratio = float(high["peak_bytes"]) / float(low["peak_bytes"])  # type: ignore[arg-type]
        peak = float(high["peak_bytes"]) / 1e9  # type: ignore[arg-type]
        failed |= ratio > FLAT or peak > options.limit
        print(f"{high['verb']}: peak {peak:.2f} GB, {ratio:.2f} x the peak at half the height")
    sys.exit("over the limit" if failed else 0)


if __name__ == "__main__":
    main()
