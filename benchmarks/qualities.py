"""How evenly the steps of `--quality` lie in rate, and whether every step takes more bytes.

    python -m benchmarks.qualities PICTURE ... [--model small]

Each 8-bit picture is one tile, coded at all 100 qualities.  Printed are its rates at both ends, the steps in percent of
the rate (least, median, largest), and how many take no more bytes than the step before.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import imagecodecs
import numpy as np
import torch

from ditic_stream._small_codec import load
from ditic_stream.config import QUALITY_MAX, QUALITY_MIN, q_of_quality


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, nargs="+")
    parser.add_argument("--model", default="small")
    args = parser.parse_args()
    torch.set_num_threads(1)
    codec = load(args.model, "cpu")
    qs = [q_of_quality(quality) for quality in range(QUALITY_MIN, QUALITY_MAX + 1)]
    print("| picture | bpp at 1, at 100 | steps, % | not rising |\n|---|---|---|---|")
    logs = []
    for path in args.pictures:
        pixels = imagecodecs.imread(path)[..., :3].transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255)
        height, width = pixels.shape[2:]
        coded = codec.encode_at(pixels, (slice(0, height), slice(0, width)), qs)
        bpp = np.array([8 * (len(one.words) + len(one.escapes)) for one in coded]) / (height * width)
        logs.append(np.log(bpp))
        print(row(path.stem, bpp), flush=True)
    print(row("geometric mean of all", np.exp(np.mean(logs, 0))))


def row(name: str, bpp: np.ndarray) -> str:
    steps = 100 * (bpp[1:] / bpp[:-1] - 1)
    spread = " / ".join(f"{value:.1f}" for value in (steps.min(), np.median(steps), steps.max()))
    return f"| {name} | {bpp[0]:.4f}, {bpp[-1]:.4f} | {spread} | {int((steps <= 0).sum())} |"


if __name__ == "__main__":
    main()
