"""Rate control and dry runs beside what comes: does a target come true, and do the intervals hold?

    python -m benchmarks.forecast SCENE [SCENE ...] [--model small] [--bpp 0.1 0.3] [--workers 1]
    python -m benchmarks.forecast --mosaics 10 PICTURES ... [--no-windows]

For each scene and rate: what `compress --bpp` reaches, what the dry run expected (bytes, PSNR, seconds), whether its
intervals held, how wide they were, and the time the dry run itself took; then what windows of 256 px cost beside tiles
of 1024 px, which is what the forecast rests on.  Scenes are compressed into a temporary folder.  With --mosaics so many
scenes of 35 megapixels are made of the pictures (folders, tar files), and measured in place of them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from ditic_stream import compare
from ditic_stream.bitstream import HEADER_BYTES
from ditic_stream.codec import load_codec
from ditic_stream.compression import Estimate, Result, compress
from ditic_stream.errors import DiticError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", type=Path, nargs="+")
    parser.add_argument("--model", default="small")
    parser.add_argument("--bpp", type=float, nargs="+", default=[0.1, 0.3])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--mosaics", type=int, default=0, help="make so many large scenes of the given pictures")
    parser.add_argument("--seed", type=int, default=0, help="of the first of them")
    parser.add_argument("--no-windows", action="store_true", help="leave out what windows cost beside tiles")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(args, _mosaics(args, Path(folder)) if args.mosaics else args.scenes)


def _mosaics(args: argparse.Namespace, folder: Path) -> Iterator[Path]:
    from benchmarks._mosaics import write_mosaic
    from ditic_stream.training.scenes import load_pictures

    pictures = [picture.numpy() for picture in load_pictures(args.scenes)]
    for seed in range(args.seed, args.seed + args.mosaics):
        scene = write_mosaic(folder / f"mosaic-{seed}.tif", pictures, seed=seed)
        yield scene
        scene.unlink()


def measure(args: argparse.Namespace, scenes: Iterable[Path]) -> None:
    load_codec(args.model)  # so that the first dry run is no slower to start than the run after it
    settings = {"model": args.model, "workers": args.workers}
    columns = ("scene", "target bpp", "quality", "reached", "bytes (interval, held)", "PSNR", "seconds", "dry run")
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    missed: list[float] = []
    seen: dict[str, list[tuple[bool, float]]] = {"bytes, %": [], "PSNR, dB": [], "time, factor": []}
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
                took = time.monotonic() - began
                assert isinstance(expected, Estimate)
                result = compress(scene, archive, bpp=bpp, **settings)
                assert isinstance(result, Result)
                psnr = compare.compare(scene, archive, workers=args.workers).psnr
            missed.append(abs(result.bpp / bpp - 1))
            low, high = expected.bytes_low, expected.bytes_high
            cells = [_cell(seen["bytes, %"], result.bytes, low, high, 100 * (high - low) / expected.bytes)]
            low, high = expected.psnr_low, expected.psnr_high
            known = psnr is not None and low is not None and high is not None
            cells.append(_cell(seen["PSNR, dB"], psnr, low, high, high - low) if known else "-")
            low, high = expected.seconds_low, expected.seconds_high
            cells.append(_cell(seen["time, factor"], result.seconds, low, high, high / low))
            reached = f"{result.bpp:.4f} ({100 * (result.bpp / bpp - 1):+.1f} %)"
            print(
                f"| {scene.stem} | {bpp} | {result.quality} | {reached} | {' | '.join(cells)} | {took:.1f} |",
                flush=True,
            )
    print(f"\nwithin 5 %: {sum(miss <= 0.05 for miss in missed)} of {len(missed)}")
    for name, found in seen.items():
        widths = [width for _, width in found]
        held = sum(inside for inside, _ in found)
        print(f"{name}: interval held {held} of {len(found)}, mean width {sum(widths) / max(len(widths), 1):.2f}")
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


def _cell(seen: list[tuple[bool, float]], value: float, low: float, high: float, width: float) -> str:
    inside = low <= value <= high
    seen.append((inside, width))
    digits = 0 if value > 1000 else 2
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f}, {'yes' if inside else 'NO'})"


if __name__ == "__main__":
    main()
