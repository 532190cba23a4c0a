"""Rate control and dry runs beside what comes: does a target come true, and do the intervals hold?

    python -m benchmarks.forecast SCENE [SCENE ...] [--model small] [--bpp 0.1 0.3] [--workers 1]
    python -m benchmarks.forecast --mosaics 10 PICTURES ... [--no-windows]

For each scene and rate: what `compress --bpp` reaches, what the dry run expected (bytes, PSNR) and whether its interval
held, and the time both took; then what windows of 256 px cost beside tiles of 1024 px, which is what the forecast rests
on.  Scenes are compressed into a temporary folder.  With --mosaics so many scenes of 35 megapixels are made of the
pictures (folders, tar files), and measured in place of them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from ditic_stream import compare
from ditic_stream.bitstream import HEADER_BYTES
from ditic_stream.compression import Estimate, Result, compress
from ditic_stream.errors import DiticError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", type=Path, nargs="+")
    parser.add_argument("--model", default="small")
    parser.add_argument("--bpp", type=float, nargs="+", default=[0.1, 0.3])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--mosaics", type=int, default=0, help="make so many large scenes of the given pictures")
    parser.add_argument("--no-windows", action="store_true", help="leave out what windows cost beside tiles")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(args, _mosaics(args, Path(folder)) if args.mosaics else args.scenes)


def _mosaics(args: argparse.Namespace, folder: Path) -> Iterator[Path]:
    from benchmarks._mosaics import write_mosaic
    from ditic_stream.training.scenes import load_pictures

    pictures = [picture.numpy() for picture in load_pictures(args.scenes)]
    for seed in range(args.mosaics):
        scene = write_mosaic(folder / f"mosaic-{seed}.tif", pictures, seed=seed)
        yield scene
        scene.unlink()


def measure(args: argparse.Namespace, scenes: Iterable[Path]) -> None:
    settings = {"model": args.model, "workers": args.workers}
    columns = (
        "scene",
        "target bpp",
        "quality",
        "reached",
        "bytes in interval",
        "PSNR",
        "in interval",
        "seconds dry, run",
    )
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    missed, held = [], []
    for scene in scenes:
        for bpp in args.bpp:
            with tempfile.TemporaryDirectory() as folder:
                archive = Path(folder) / "a.ditic"
                began = time.monotonic()
                try:
                    expected = compress(scene, archive, bpp=bpp, dry_run=True, **settings)
                except DiticError as error:
                    print(f"| {scene.stem} | {bpp} | refused: {error} |")
                    continue
                middle = time.monotonic()
                result = compress(scene, archive, bpp=bpp, **settings)
                ended = time.monotonic()
                assert isinstance(expected, Estimate)
                assert isinstance(result, Result)
                psnr = compare.compare(scene, archive, workers=args.workers).psnr
            inside = expected.bytes_low <= result.bytes <= expected.bytes_high
            low, high = expected.psnr_low, expected.psnr_high
            seen = None if psnr is None or low is None or high is None else low <= psnr <= high
            held += [inside] + ([] if seen is None else [seen])
            missed.append(abs(result.bpp / bpp - 1))
            print(
                f"| {scene.stem} | {bpp} | {result.quality} | {result.bpp:.4f} ({100 * (result.bpp / bpp - 1):+.1f} %) "
                f"| {inside} | {psnr and round(psnr, 2)} ({low} to {high}) | {seen} "
                f"| {middle - began:.1f}, {ended - middle:.1f} |",
                flush=True,
            )
    within = sum(miss <= 0.05 for miss in missed)
    print(f"\nwithin 5 %: {within} of {len(missed)}; intervals that held: {sum(held)} of {len(held)}")
    if args.no_windows or args.mosaics:
        return
    print("\n| scene | payload in windows of 256 px over that in tiles of 1024 px |\n|---|---|")
    for scene in args.scenes:
        with tempfile.TemporaryDirectory() as folder:
            sizes = []
            for tile in (256, 1024):
                result = compress(scene, Path(folder) / f"{tile}.ditic", tile=tile, **settings)
                assert isinstance(result, Result)
                sizes.append(result.bytes - (HEADER_BYTES + 16) * result.tiles)
        print(f"| {scene.stem} | {sizes[0] / sizes[1]:.4f} |", flush=True)


if __name__ == "__main__":
    main()
