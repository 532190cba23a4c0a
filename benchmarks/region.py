"""Latency and bytes of reading windows of a gigapixel picture over HTTP, beside COG-JPEG, COG-WebP and JPEG 2000.

    python benchmarks/region.py                                # the model small, 32768 x 32768 pixels
    python benchmarks/region.py --model tiny --side 8192 --places 2 --windows 256,512    # routine: a minute

A picture of 2048 x 2048 pixels (made up, or the upper left of --picture) is coded once by each codec, and its coded
tiles are laid out again and again as one archive, two tiled TIFFs (tiles of 512, as COGs have) and one JP2 (tiles of
1024): what is read is what a scene of that size would have, and takes seconds to make.  A server on loopback counts
requests and bytes.  Each window is read at the same random places by all, one after the other:

    cold     opened and read for the first time; this process and the networks are warm, nothing of the file is at hand
    pan      the same open file, moved by half a window
    again    the same window once more
    CPU      of this process while a cold read lasts, all threads and the server's: what a busy machine does not change

Prints medians, and the shares of the whole that cold reads took; then what opening and fetching 200 windows of 512 in
random places took of our archives, without decoding.  Pixels read are held against the picture that was
coded; leaves with 1 when one is off by more than its codec may be, or a 512 window of ours takes 2 % of the archive.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import statistics
import struct
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import rasterio
import tifffile
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window as RasterioWindow

import ditic_stream
from ditic_stream._rendering import tiles_read
from ditic_stream.archive import open_archive, pack_zip
from ditic_stream.blend import windows_of
from ditic_stream.geometry import TileKey

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests")]
from _repeat import repeat  # noqa: E402
from memory import scene_blocks  # noqa: E402
from servers import Folder, serving  # noqa: E402

BASE, TILE, COG_TILE = 2048, 1024, 512
GDAL = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_CACHEMAX": 64, "CPL_VSIL_CURL_CACHE_SIZE": 2**26}
LEAST_PSNR = 18.0
"""Decibels below which a read is taken for wrong: even `tiny` is above."""
Pixels = np.ndarray


def base_picture(path: Path | None) -> Pixels:
    """(BASE, BASE, 3) uint8."""
    if path is not None:
        picture = tifffile.imread(path) if path.suffix in (".tif", ".tiff") else imagecodecs.imread(path)
        return np.ascontiguousarray(np.tile(picture[..., :3], (8, 8, 1))[:BASE, :BASE])
    side = 512
    picture = np.empty((BASE, BASE, 3), np.uint8)
    for place, block in enumerate(scene_blocks(BASE, BASE)):
        row, col = divmod(place, BASE // side)
        picture[row * side : (row + 1) * side, col * side : (col + 1) * side] = block
    return picture


def write_tiff(path: Path, picture: Pixels, side: int, compression: str) -> None:
    """A tiled TIFF of the coded tiles of `picture`, repeated."""
    tiles = {}
    for row in range(0, BASE, COG_TILE):
        for col in range(0, BASE, COG_TILE):
            tile = np.ascontiguousarray(picture[row : row + COG_TILE, col : col + COG_TILE])
            if compression == "jpeg":
                tiles[row, col] = imagecodecs.jpeg8_encode(
                    tile, level=75, colorspace="RGB", outcolorspace="YCBCR", subsampling="420"
                )
            else:
                tiles[row, col] = imagecodecs.webp_encode(tile, level=75, lossless=False)

    def repeated() -> Iterator[bytes]:
        for row in range(0, side, COG_TILE):
            for col in range(0, side, COG_TILE):
                yield tiles[row % BASE, col % BASE]

    more: dict[str, Any] = (
        {"photometric": "ycbcr", "subsampling": (2, 2)} if compression == "jpeg" else {"photometric": "rgb"}
    )
    tifffile.imwrite(
        path, repeated(), shape=(side, side, 3), dtype=np.uint8, tile=(COG_TILE, COG_TILE), compression=compression,
        metadata=None, bigtiff=False, **more,
    )  # fmt: skip


def write_jp2(path: Path, picture: Pixels, side: int) -> None:
    """A JP2 of the tile-parts of `picture`, coded by OpenJPEG through GDAL, repeated under new tile numbers."""
    with tempfile.TemporaryDirectory() as name:
        small = Path(name) / "small.jp2"
        with rasterio.open(
            small, "w", driver="JP2OpenJPEG", width=BASE, height=BASE, count=3, dtype="uint8", QUALITY=2.5,
            BLOCKXSIZE=TILE, BLOCKYSIZE=TILE, PHOTOMETRIC="RGB",
        ) as out:  # fmt: skip
            out.write(picture.transpose(2, 0, 1))
        data = small.read_bytes()
    start = data.index(b"\xff\x4f\xff\x51")
    first = data.index(b"\xff\x90\x00\x0a", start)
    head = bytearray(data[start:first])
    struct.pack_into(">II", head, 2 + 2 + 2 + 2, side, side)  # SOC, SIZ marker, length, capabilities; then Xsiz, Ysiz
    parts: dict[int, list[bytes]] = {}
    at = first
    while data[at : at + 2] == b"\xff\x90":
        index, length = struct.unpack_from(">HI", data, at + 4)
        parts.setdefault(index, []).append(data[at : at + length])
        at += length
    across, few = side // TILE, BASE // TILE
    code = [bytes(head)]
    for index in range(across * across):
        row, col = divmod(index, across)
        for part in parts[row % few * few + col % few]:
            code.append(part[:4] + struct.pack(">H", index) + part[6:])
    stream = b"".join([*code, b"\xff\xd9"])
    boxes = bytearray(data[:start])
    place = boxes.index(b"ihdr") + 4
    struct.pack_into(">II", boxes, place, side, side)
    box = boxes.rindex(b"jp2c") - 4
    struct.pack_into(">I", boxes, box, 0)  # to the end of the file
    path.write_bytes(bytes(boxes) + stream)


class Ours:
    """An open archive."""

    def __init__(self, address: str) -> None:
        self.scene = ditic_stream.open(address)

    def read(self, row: int, col: int, size: int) -> Pixels:
        return self.scene.read(ditic_stream.Window(row=row, col=col, height=size, width=size))

    def close(self) -> None:
        self.scene.close()


class Theirs:
    """A file that is open through rasterio.  Every opening has an address of its own: GDAL keeps what it read."""

    opened = 0

    def __init__(self, address: str) -> None:
        Theirs.opened += 1
        self.env = rasterio.Env(**GDAL)
        self.env.__enter__()
        self.file = rasterio.open(f"/vsicurl/{address}?opened={os.getpid()}-{Theirs.opened}")

    def read(self, row: int, col: int, size: int) -> Pixels:
        return self.file.read(window=RasterioWindow(col, row, size, size))

    def close(self) -> None:
        self.file.close()
        self.env.__exit__(None, None, None)


def psnr(picture: Pixels, pixels: Pixels, row: int, col: int, size: int) -> float:
    rows, cols = np.arange(row, row + size) % BASE, np.arange(col, col + size) % BASE
    error = picture[rows][:, cols].transpose(2, 0, 1).astype(np.float64) - pixels
    return float(10 * np.log10(255**2 / max(float(np.mean(error**2)), 1e-9)))


def measure(
    opener: Callable[[str], Ours | Theirs],
    name: str,
    server: Folder,
    picture: Pixels,
    places: list[tuple[int, int]],
    size: int,
) -> dict[str, Any]:
    """Medians over the places; `parts`: the bytes of each cold read, of the whole."""
    whole = sum(path.stat().st_size for path in _files(server.root / name))
    rows: list[dict[str, float]] = []
    for row, col in places:
        server.clear()
        began, spent = time.perf_counter(), time.process_time()
        file = opener(f"{server.url}/{name}")
        try:
            pixels = file.read(row, col, size)
            cold, cpu = time.perf_counter() - began, time.process_time() - spent
            asked, sent = len(server.requests), server.sent
            quality = psnr(picture, pixels, row, col, size)
            if quality < LEAST_PSNR:
                sys.exit(f"{name}: the window at row {row}, column {col} has {quality:.1f} dB: it is not the picture")
            began = time.perf_counter()
            file.read(row, col + size // 2, size)
            pan = time.perf_counter() - began
            began = time.perf_counter()
            file.read(row, col, size)
            again = time.perf_counter() - began
        finally:
            file.close()
        rows.append(
            {
                "cold": cold,
                "cpu": cpu,
                "pan": pan,
                "again": again,
                "requests": asked,
                "bytes": sent,
                "part": sent / whole,
                "psnr": quality,
            }
        )
    return {
        "name": name, "window": size, "size": whole,
        **{key: statistics.median(one[key] for one in rows) for key in rows[0]},
        "parts": [one["part"] for one in rows],
    }  # fmt: skip


def _files(place: Path) -> list[Path]:
    return [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="small")
    parser.add_argument("--quality", type=int, default=50)
    parser.add_argument("--picture", type=Path, help="an RGB picture; smaller than 2048 pixels it is repeated")
    parser.add_argument("--side", type=int, default=32768, help="pixels, a multiple of 2048")
    parser.add_argument("--windows", default="256,512,1024,2048")
    parser.add_argument("--places", type=int, default=5)
    parser.add_argument("--of", default="scene.ditic,scene.ditic.zip,jpeg.tif,webp.tif,j2k.jp2", help="what to read")
    parser.add_argument("--folder", type=Path, help="where to work; needs a gigabyte")
    options = parser.parse_args()
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    side, sizes = options.side, [int(one) for one in options.windows.split(",")]
    picture = base_picture(options.picture)
    chance = random.Random(6)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        tifffile.imwrite(folder / "base.tif", picture, tile=(256, 256), photometric="rgb")
        ditic_stream.compress(
            folder / "base.tif", folder / "base.ditic", model=options.model, quality=options.quality, tile=TILE
        )
        repeat(folder / "base.ditic", folder / "scene.ditic", rows=side // TILE, cols=side // TILE)
        pack_zip(folder / "scene.ditic", folder / "scene.ditic.zip")
        write_tiff(folder / "jpeg.tif", picture, side, "jpeg")
        write_tiff(folder / "webp.tif", picture, side, "webp")
        write_jp2(folder / "j2k.jp2", picture, side)
        ways: list[tuple[str, Callable[[str], Ours | Theirs]]] = [
            *((one, Ours) for one in ("scene.ditic", "scene.ditic.zip")),
            *((one, Theirs) for one in ("jpeg.tif", "webp.tif", "j2k.jp2")),
        ]
        ways = [way for way in ways if way[0] in options.of.split(",")]
        with serving(folder) as server:
            for one, opener in ways:  # libraries, networks and threads are warm from here on
                file = opener(f"{server.url}/{one}")
                file.read(0, 0, 256)
                file.close()
            results, failed = [], False
            for size in sizes:
                places = [
                    (chance.randrange(side - size), chance.randrange(side - size * 2)) for _ in range(options.places)
                ]
                for one, opener in ways:
                    found = measure(opener, one, server, picture, places, size)
                    results.append(found)
                    print(json.dumps(found), file=sys.stderr, flush=True)
                    if opener is Ours and size == 512:
                        failed |= side >= 32768 and not _within(folder / one, places, found)
            counts: list[str] = []
            for one in ("scene.ditic", "scene.ditic.zip"):
                whole = sum(path.stat().st_size for path in _files(folder / one))
                counts += count(f"{server.url}/{one}", server, whole, side)
    print(_table(results, side))
    print("\n| read from | windows | shards | reads | requests to open, most | to fetch, most | of all, most |")
    print("|---|---|---|---|---|---|---|", *counts, sep="\n")
    sys.exit("a read of 512 x 512 pixels took more of the archive than promised" if failed else 0)


def count(address: str, server: Folder, whole: int, side: int) -> list[str]:
    """Lines of a table: requests and bytes of opening, and of one cold window of 512 pixels, by how many windows of the
    grid it meets and in how many shards its records lie."""
    chance, found = random.Random(7), dict[tuple[int, str], list[tuple[int, int, float]]]()
    for _ in range(200):
        row, col = chance.randrange(side - 512), chance.randrange(side - 512)
        server.clear()
        with open_archive(address) as archive:
            opened, grid = len(server.requests), archive.grid
            window = ditic_stream.Window(row=row, col=col, height=512, width=512)
            rows, cols = windows_of(grid, window)
            keys = [TileKey(*place) for place in itertools.product(*tiles_read(grid, rows, cols))]
            archive.fetch(keys)
            fetched = len(server.requests) - opened
            for key in keys:
                archive.record(key)
            assert len(server.requests) == opened + fetched, "all that is needed was fetched"
            where = "one" if len({grid.shard_of(key) for key in keys}) == 1 else "several"
        found.setdefault((len(rows) * len(cols), where), []).append((opened, fetched, server.sent / whole))
    name = address.rpartition("/")[2]
    lines = []
    for (windows, where), reads in sorted(found.items()):
        opened, fetched, part = (max(values) for values in zip(*reads, strict=True))
        lines.append(f"| {name} | {windows} | {where} | {len(reads)} | {opened} | {fetched} | {part:.2%} |")
    return lines


def _within(path: Path, places: list[tuple[int, int]], found: dict[str, Any]) -> bool:
    """Less than 1 % of the bytes where one window suffices, less than 2 % always."""
    with ditic_stream.open(path) as scene:
        for (row, col), part in zip(places, found["parts"], strict=True):
            rows, cols = windows_of(scene.archive.grid, ditic_stream.Window(row=row, col=col, height=512, width=512))
            if part >= (0.01 if len(rows) * len(cols) == 1 else 0.02):
                return False
    return True


def _table(results: list[dict[str, Any]], side: int) -> str:
    lines = [
        "| window | read from | bits a pixel | dB | cold, ms | of it CPU | pan, ms | again, ms | requests | kB read "
        "| of all |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    base, cpu = (
        {found["window"]: found[key] for found in results if found["name"] == "jpeg.tif"} for key in ("cold", "cpu")
    )
    for found in results:
        size = found["window"]
        wall, own = found["cold"] / base.get(size, math.nan), found["cpu"] / cpu.get(size, math.nan)
        lines.append(
            f"| {size} | {found['name']} | {8 * found['size'] / side**2:.2f} | {found['psnr']:.1f} | "
            f"{found['cold'] * 1e3:.0f} ({wall:.1f} x) | {found['cpu'] * 1e3:.0f} ({own:.1f} x) | "
            f"{found['pan'] * 1e3:.0f} | {found['again'] * 1e3:.1f} | {found['requests']:.0f} | "
            f"{found['bytes'] / 1e3:.0f} | {found['part']:.2%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
