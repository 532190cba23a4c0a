"""Which share of a gigapixel archive a window takes from afar, and how many requests, at low and at high rates.

    python benchmarks/shares.py                          # 0.05 .. 0.5 bits per pixel, with a mask and without
    python benchmarks/shares.py --rates 0.1 --windows 20

Archives of 32768 x 32768 pixels in tiles of 1024, RGB, with records that hold noise in place of symbols: their lengths
lie about a rate (up to SPREAD off either way), and fetching looks at nothing else.  The mask is made
up of blobs and has a chunk in every tile; the preview is noise of 4 bits.  A server on loopback counts requests and
bytes of 512 x 512 windows in random places, each opened anew.  Leaves with 1 where a window of one shard takes more
than 4 requests, opening more than 2, one window of the grid 1 % or more, or any 2 %.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests")]
from servers import serving  # noqa: E402

import ditic_stream  # noqa: E402
from ditic_stream._layout import format_for  # noqa: E402
from ditic_stream._rendering import tiles_read  # noqa: E402
from ditic_stream._shard import pack_mask  # noqa: E402
from ditic_stream.archive import create_archive, open_archive, pack_zip  # noqa: E402
from ditic_stream.bitstream import CODED, Record, pack_record  # noqa: E402
from ditic_stream.blend import windows_of  # noqa: E402
from ditic_stream.geometry import TileKey, Window  # noqa: E402
from ditic_stream.manifest import Image  # noqa: E402

TILE, SIDE = 1024, 32
SPREAD = 0.15
"""How far the length of a record may be from the mean of all, as a part of it."""


def make(out: Path, rate: float, masked: bool, chance: np.random.Generator) -> None:
    """Write an archive of noise at a rate, bits per pixel."""
    with tempfile.TemporaryDirectory() as name:
        import tifffile

        picture = chance.integers(1, 256, (TILE, TILE, 3), np.uint8)
        if masked:
            picture[:9, :9] = 0
        extra = [(42113, "s", 2, "0", True)] if masked else []
        tifffile.imwrite(Path(name) / "a.tif", picture, photometric="rgb", metadata=None, extratags=extra)
        ditic_stream.compress(Path(name) / "a.tif", Path(name) / "a.ditic", model="tiny", quality=1, workers=1)
        with open_archive(Path(name) / "a.ditic") as archive:
            manifest = archive.manifest
    image = Image(height=SIDE * TILE, width=SIDE * TILE, bands=3, dtype="uint8")
    manifest = replace(manifest, complete=False, image=image, shard=8)
    manifest = replace(manifest, format=format_for(image, manifest.grid, manifest.planes))
    blobs = [pack_mask(one[None], TILE) for one in _blobs(chance)]
    with create_archive(out, manifest) as writer:
        for shard in writer.grid.shards():
            keys = list(writer.grid.tiles_of(shard))
            records = {key: _record(key, writer.layout.archive_id, rate, chance) for key in keys}
            masks = {key: blobs[int(chance.integers(len(blobs)))] for key in keys} if masked else None
            shape = writer.layout.preview_part(shard)
            writer.put_shard(shard, records, masks, chance.integers(0, 16, shape, np.uint8))
        writer.finish()


def _record(key: TileKey, archive_id: bytes, rate: float, chance: np.random.Generator) -> bytes:
    size = int(rate * TILE * TILE / 8 * chance.uniform(1 - SPREAD, 1 + SPREAD)) // 2 * 2
    words = chance.bytes(max(size - 38, 8) // 2 * 2)
    record = Record(
        kind=CODED, key=key, archive_id=archive_id, lanes_log2=0, words=words, escapes=b"", coded=len(words),
        symbols_crc=0,
    )  # fmt: skip
    return pack_record(record)


def _blobs(chance: np.random.Generator) -> list[np.ndarray]:
    """Masks of smooth outlines, 0 or 1, (TILE, TILE)."""
    rows, cols = np.indices((TILE, TILE), np.float32) / TILE
    found = []
    for _ in range(16):
        waves = [chance.uniform(-12, 12, 3) for _ in range(6)]
        field = sum(np.sin(a * rows + b * cols + c) for a, b, c in waves)
        found.append((np.asarray(field) > 1).astype(np.uint8))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", default="0.05,0.08,0.12,0.25,0.5")
    parser.add_argument("--windows", type=int, default=200)
    options = parser.parse_args()
    chance, failed = np.random.default_rng(1), False
    with tempfile.TemporaryDirectory() as name, serving(Path(name)) as server:
        for rate in map(float, options.rates.split(",")):
            for masked in (False, True):
                make(Path(name) / "a.ditic", rate, masked, chance)
                pack_zip(Path(name) / "a.ditic", Path(name) / "a.ditic.zip", overwrite=True)
                for kind in ("a.ditic", "a.ditic.zip"):
                    failed |= measure(server, kind, rate, masked, options.windows)
                shutil.rmtree(Path(name) / "a.ditic")
    return int(failed)


def measure(server, kind: str, rate: float, masked: bool, count: int) -> bool:
    """Print a line for windows that meet 1, 2 and 4 of the grid; True where a bound is broken."""
    place = server.root / kind
    whole = sum(path.stat().st_size for path in [place, *place.rglob("*")] if path.is_file())
    draw, found = random.Random(2), {}
    for _ in range(count):
        row, col = (draw.randrange(SIDE * TILE - 512) for _ in range(2))
        window = Window(row=row, col=col, height=512, width=512)
        server.clear()
        with open_archive(f"{server.url}/{kind}") as archive:
            opening = len(server.requests)
            grid = archive.grid
            rows, cols = windows_of(grid, window)
            high, wide = tiles_read(grid, rows, cols)
            read = [TileKey(one, other) for one in high for other in wide]
            inside = [range(first // TILE, (end - 1) // TILE + 1) for first, end in
                      ((window.row, window.row_end), (window.col, window.col_end))]  # fmt: skip
            archive.fetch(read, masks=[TileKey(one, other) for one in inside[0] for other in inside[1]])
            reading = len(server.requests) - opening
            for key in read:
                archive.record(key)
            archive.mask(window)
            assert len(server.requests) == opening + reading, "all that is needed was brought"
        alone = len({grid.shard_of(key) for key in read}) == 1
        found.setdefault((len(rows) * len(cols), alone), []).append((server.sent / whole, opening, reading))
    broken = False
    for (windows, alone), lines in sorted(found.items()):
        share, opening, reading = (max(line[at] for line in lines) for at in range(3))
        bad = opening > 2 or (alone and reading > 4) or share >= (0.01 if windows == 1 else 0.02)
        broken |= bad
        print(
            f"{rate:5.2f} bpp {'masked' if masked else '      '} {'zip   ' if kind.endswith('.zip') else 'folder'} "
            f"{windows} windows, {'one shard ' if alone else 'several   '} {len(lines):3} reads: open {opening}, "
            f"read {reading}, {100 * share:.2f} %{'  BROKEN' if bad else ''}",
            flush=True,
        )
    return broken


if __name__ == "__main__":
    sys.exit(main())
