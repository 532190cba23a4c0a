"""How fast whole commands are, beside JPEG 2000 and AVIF in the same run, and where the time goes.

    python -m benchmarks.speed PICTURES [--model small] [--quality 50] [--side 6144] [--rounds 2]

PICTURES are 8-bit pictures or folders of them; a scene of `--side` pixels is made of parts of them.  `compress` and
`decompress` are run as commands with two workers, start included; the classical codecs code the same pixels in tiles
of 1024, in two processes, at about as many bytes (each by the nearest of its settings on one tile; ours are records
and indexes, as `info` counts them), the fastest of the rounds.  The profile is of one tile of the scene and one thread.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
import torch
from numpy.typing import NDArray

from benchmarks._mosaics import write_mosaic
from ditic_stream._small_codec import SmallCodec, load
from ditic_stream.archive import open_archive
from ditic_stream.bitstream import CODED, Record
from ditic_stream.config import q_of_quality
from ditic_stream.geometry import TileKey, cells
from ditic_stream.summary import bits_per_pixel, rate

TILE, WORKERS = 1024, 2
AVIF_LEVELS = (5, 10, 20, 30, 40, 50, 60, 70, 80)
Bytes = NDArray[np.uint8]


def command(*words: str) -> float:
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "ditic_stream", *words, "--quiet"], check=True)
    return time.monotonic() - began


def tiles(scene: Bytes) -> list[Bytes]:
    return [
        np.ascontiguousarray(scene[row : row + TILE, col : col + TILE])
        for row in range(0, scene.shape[0], TILE)
        for col in range(0, scene.shape[1], TILE)
    ]


def encoders(sample: Bytes, bpp: float) -> dict[str, tuple[Callable[[Bytes, float], bytes], float]]:
    """How each classical codec is called, and the setting that takes about `bpp` of a tile."""
    off = {level: abs(math.log(8 * len(avif(sample, level)) / (TILE * TILE) / bpp)) for level in AVIF_LEVELS}
    levels = {
        level: abs(math.log(8 * len(jpeg2000(sample, level)) / (TILE * TILE) / bpp)) for level in range(10, 44, 2)
    }
    return {"JPEG 2000": (jpeg2000, min(levels, key=levels.__getitem__)), "AVIF": (avif, min(off, key=off.__getitem__))}


def jpeg2000(pixels: Bytes, level: float) -> bytes:
    return imagecodecs.jpeg2k_encode(pixels, level=level, codecformat="j2k", reversible=False, mct=True, numthreads=1)  # type: ignore[no-any-return]


def avif(pixels: Bytes, level: float) -> bytes:
    return imagecodecs.avif_encode(pixels, level=level, speed=6, numthreads=1)  # type: ignore[no-any-return]


def decoded(data: bytes) -> int:
    decode = imagecodecs.avif_decode if data[4:8] == b"ftyp" else imagecodecs.jpeg2k_decode
    return int(decode(data, numthreads=1).size)


@contextmanager
def counted(seconds: dict[str, float], name: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    seconds[name] = min(time.monotonic() - began, seconds.get(name, math.inf))


@torch.inference_mode()
def profile(codec: SmallCodec, tile: Bytes, q: int, rounds: int) -> dict[str, float]:
    """Seconds of the parts of coding and decoding a tile, the least of some rounds."""
    seconds: dict[str, float] = {}
    units = tile.transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255)
    height, width = tile.shape[:2]
    network, x = codec.network, torch.from_numpy(units).contiguous(memory_format=torch.channels_last)
    for _ in range(rounds):
        with counted(seconds, "encode: encoder"):
            network.encoder(x)
        with counted(seconds, "encode"):
            coded = codec.encode(units, (slice(0, height), slice(0, width)), q)
        record = Record(
            kind=CODED, key=TileKey(0, 0), archive_id=bytes(8), lanes_log2=coded.lanes_log2, words=coded.words,
            escapes=coded.escapes, coded=coded.coded, symbols_crc=coded.symbols_crc,
        )  # fmt: skip
        with counted(seconds, "decode: symbols"):
            latent = codec.decode_symbols(record, 1, cells(height), cells(width), q)
        with counted(seconds, "decode: render"):
            codec.render(latent.values, latent.scales, q, (0, 0))
        noisy, error = (torch.rand(1, len(network.codec.feature_std), cells(height), cells(width)) for _ in range(2))
        noisy, error = (t.contiguous(memory_format=torch.channels_last) for t in (noisy, error))
        with counted(seconds, "decode: transformer"):
            features = network.step(noisy, error, network.codec.feature_std, (0, 0))
        with counted(seconds, "decode: decoder"):
            network.decoder(features, torch.zeros(1))
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, nargs="+")
    parser.add_argument("--model", default="small")
    parser.add_argument("--quality", type=int, default=50)
    parser.add_argument("--side", type=int, default=6144, help="a multiple of 1024")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    paths = [p for given in args.pictures for p in (sorted(given.glob("*.png")) if given.is_dir() else [given])]
    pictures = [imagecodecs.imread(path)[..., :3].transpose(2, 0, 1) for path in paths]
    pictures = [picture for picture in pictures if min(picture.shape[1:]) >= 512]
    mega = args.side**2 / 1e6
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        scene, archive, back = (str(folder / name) for name in ("scene.tif", "scene.ditic", "back.tif"))
        write_mosaic(Path(scene), pictures, height=args.side, width=args.side, seed=1)
        pixels = tifffile.imread(scene)
        ours = [
            (
                command("compress", scene, archive, "--model", args.model, "--quality", str(args.quality),
                        "--workers", str(WORKERS), "--overwrite"),
                command("decompress", archive, back, "--workers", str(WORKERS), "--overwrite"),
            )
            for _ in range(args.rounds)
        ]  # fmt: skip
        with open_archive(Path(archive)) as opened:
            bpp = bits_per_pixel(rate(opened)[0], args.side, args.side)
        print("| codec | bpp | encode MP/s | decode MP/s |\n|---|---|---|---|")
        both = [mega / min(times) for times in zip(*ours, strict=True)]
        each = [", ".join(f"{mega / one:.2f}" for one in times) for times in zip(*ours, strict=True)]
        print(f"| {args.model}, whole commands | {bpp:.3f} | {both[0]:.2f} ({each[0]}) | {both[1]:.2f} ({each[1]}) |")
        parts = tiles(pixels)
        with ProcessPoolExecutor(WORKERS) as pool:
            list(pool.map(decoded, pool.map(jpeg2000, parts[:2], [30, 30])))  # processes have started
            for name, (encode, level) in encoders(parts[len(parts) // 2], bpp).items():
                seconds: dict[str, float] = {}
                for _ in range(args.rounds):
                    with counted(seconds, "encode"):
                        coded = list(pool.map(encode, parts, [level] * len(parts)))
                    with counted(seconds, "decode"):
                        list(pool.map(decoded, coded))
                theirs = bits_per_pixel(sum(map(len, coded)), args.side, args.side)
                print(f"| {name} | {theirs:.3f} | {mega / seconds['encode']:.2f} | {mega / seconds['decode']:.2f} |")
    found = profile(load(args.model, "cpu"), parts[0], q_of_quality(args.quality), max(args.rounds, 3))
    print("\n| part, one thread, a tile | seconds | MP/s |\n|---|---|---|")
    for name, took in found.items():
        print(f"| {name} | {took:.3f} | {TILE * TILE / 1e6 / took:.2f} |")


if __name__ == "__main__":
    main()
