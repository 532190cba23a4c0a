"""Sets of weights at the lowest rates, side by side, in real bytes: what fine-tuning for them brought.

    python -m benchmarks.low_rates PICTURE ... --models small runs/plain/weights.safetensors [...]
        [--features squeezenet1_1.safetensors] [--ssimulacra2] [--out runs/low_rates]

In: 8-bit colour pictures, each one tile, and sets by name or file.  Out: a table of means over the pictures at two
rates, those of the first set about quality 4 and 11 (each picture at its own, so sets compare at equal bytes), and
details.png, the source and every set at quality 1, enlarged.  Figures are those of rate_quality.
"""

from __future__ import annotations

import argparse
import math
from itertools import pairwise
from pathlib import Path

import imagecodecs
import numpy as np

from benchmarks.rate_quality import METRICS, Bytes, Job, Ours, Picture, Point, at_rate, figures

CODED = (1, 8, 15)
"""Qualities at which every set is run; between them figures are interpolated in the logarithm of the rate."""
SIDE, ZOOM = 192, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, nargs="+")
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--features", type=Path)
    parser.add_argument("--ssimulacra2", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/low_rates"))
    args = parser.parse_args()
    metrics = ["psnr", "ms_ssim"] + ["ssimulacra2"] * args.ssimulacra2 + ["features"] * (args.features is not None)
    curves: dict[str, list[list[Point]]] = {}
    details: list[list[Bytes]] = [[_detail(_read(path))] for path in args.pictures]
    for model in args.models:
        ours = Ours(model)
        for path, row in zip(args.pictures, details, strict=True):
            pixels = _read(path)
            job = Job("ours", Picture(path.name, path), (), model, args.features, args.ssimulacra2)
            points = []
            for quality in CODED:
                size, decoded = ours(pixels, quality)
                points.append({"bpp": 8 * size / math.prod(pixels.shape[:2]), **figures(job, pixels, decoded)})
                if quality == CODED[0]:
                    row.append(_detail(decoded))
            curves.setdefault(model, []).append(points)
    rates = [
        [math.sqrt(low["bpp"] * high["bpp"]) for low, high in pairwise(points)] for points in curves[args.models[0]]
    ]
    told = " | ".join(f"{METRICS[m]}, lower / higher rate" for m in metrics)
    print(f"| set | {told} | own bpp at quality 1 / 8 / 15 |")
    print("|---" * (len(metrics) + 2) + "|")
    for model, pictures in curves.items():
        cells = []
        for metric in metrics:
            means = []
            for step in range(len(CODED) - 1):
                found = [at_rate(points, own[step], metric) for points, own in zip(pictures, rates, strict=True)]
                reached = [value for value in found if value is not None]
                short = f" ({len(reached)})" if len(reached) < len(found) else ""
                means.append(f"{np.mean(reached):.{4 if metric in ('ms_ssim', 'features') else 2}f}{short}")
            cells.append(" / ".join(means))
        own = " / ".join(f"{np.mean([points[i]['bpp'] for points in pictures]):.4f}" for i in range(len(CODED)))
        print(f"| {model} | {' | '.join(cells)} | {own} |", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    sheet = np.concatenate([np.concatenate(row, 1) for row in details])
    imagecodecs.imwrite(args.out / "details.png", np.ascontiguousarray(sheet))


def _read(path: Path) -> Bytes:
    return np.ascontiguousarray(imagecodecs.imread(path)[..., :3])


def _detail(pixels: Bytes) -> Bytes:
    top, left = ((side - SIDE) // 2 for side in pixels.shape[:2])
    return pixels[top : top + SIDE, left : left + SIDE].repeat(ZOOM, 0).repeat(ZOOM, 1)


if __name__ == "__main__":
    main()
