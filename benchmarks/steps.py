"""Steps at the borders of latent cells, and drift of colour, in pictures as they are decoded.

    python -m benchmarks.steps PICTURE [PICTURE ...] [--model small] [--levels 0 2 4 6]

A step is the mean absolute gradient across multiples of 32 px (16: odd multiples of 16, 8: of 8) over that
off multiples of 8; 1 is perfect.  Measured on made-up ramps and hazes, on the flat regions of the pictures (mean
gradient of the source within 17 x 17 px below 1.5 levels a pixel), and on the pictures whole; beside it what the
sources themselves have.  Drift is the largest difference of a channel's mean from the source, in 8-bit levels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import imagecodecs
import numpy as np
import torch
from numpy.typing import NDArray

from ditic_stream._small_codec import SmallCodec, load
from ditic_stream.geometry import cells
from ditic_stream.models.config import Q_STEPS
from ditic_stream.training.evaluation import smooth_pictures

FLAT, REACH = 1.5, 17
Sums = NDArray[np.float64]
"""Rows 32, 16, 8 and elsewhere; columns sum of gradients and how many."""


def decoded(codec: SmallCodec, pixels: NDArray[np.float32], q: int) -> NDArray[np.float32]:
    """A picture coded as one tile and rendered whole; (3, rows, columns), levels 0..255."""
    height, width = pixels.shape[1:]
    coded = codec.encode(pixels[None], (slice(0, height), slice(0, width)), q)
    latent = codec.entropy.pull(coded, 1, cells(height), cells(width), q)
    found = codec.render(latent.values, latent.scales, q, (0, 0))[0, :, :height, :width]
    return np.rint(found.clip(0, 1) * np.float32(255))


def gradients(picture: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Mean over channels of absolute differences along rows (0) or columns (1)."""
    return np.abs(np.diff(picture, axis=axis + 1)).mean(0)


def flat(source: NDArray[np.float32]) -> list[NDArray[np.bool_]]:
    """Where the source is flat, for gradients along each axis."""
    steps = [gradients(source, axis) for axis in (0, 1)]
    shape = tuple(min(a, b) for a, b in zip(steps[0].shape, steps[1].shape, strict=True))
    both = torch.from_numpy(sum(step[: shape[0], : shape[1]] for step in steps) / 2)[None, None]  # type: ignore[arg-type]
    mean = torch.nn.functional.avg_pool2d(both, REACH, 1, REACH // 2, count_include_pad=False)[0, 0].numpy()
    return [np.pad(mean < FLAT, [(0, a - b) for a, b in zip(step.shape, shape, strict=True)]) for step in steps]


def sums(picture: NDArray[np.float32], where: list[NDArray[np.bool_]] | None) -> Sums:
    total = np.zeros((4, 2))
    for axis in (0, 1):
        step = gradients(picture, axis)
        counted = np.ones(step.shape, bool) if where is None else where[axis]
        lines = np.stack([(step * counted).sum(1 - axis), counted.sum(1 - axis)], -1)
        place = np.arange(1, len(lines) + 1)
        for row, rule in enumerate((place % 32 == 0, place % 32 == 16, place % 16 == 8, place % 8 != 0)):
            total[row] += lines[rule].sum(0)
    return total


def ratios(total: Sums) -> str:
    mean = total[:, 0] / np.maximum(total[:, 1], 1)
    return " / ".join(f"{value:.2f}" for value in mean[:3] / max(mean[3], 1e-9))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, nargs="+", help="8-bit colour pictures")
    parser.add_argument("--model", default="small")
    parser.add_argument("--levels", type=int, nargs="+", default=[0, 2, 4, 6], help="rate levels, 0..7")
    args = parser.parse_args()
    torch.set_num_threads(1)
    codec = load(args.model, "cpu")
    sources = {f"smooth {number}": picture * 255 for number, picture in enumerate(smooth_pictures().numpy())}
    read = {path.name: imagecodecs.imread(path)[..., :3] for path in args.pictures}
    real = {name: pixels.transpose(2, 0, 1).astype(np.float32) for name, pixels in read.items()}
    masks = {name: flat(picture) for name, picture in real.items()}
    share = np.mean([np.mean(mask[0]) for mask in masks.values()])
    print(f"{len(real)} pictures, {100 * share:.0f} % of them flat; steps at 32 / 16 / 8 px")
    print("| level | ramps and hazes | flat regions | whole pictures | drift: largest, median |\n|---|---|---|---|---|")
    for level in [None, *args.levels]:
        shown = {
            name: source if level is None else decoded(codec, source / np.float32(255), Q_STEPS * level)
            for name, source in (sources | real).items()
        }
        smooth = sum(sums(shown[name], None) for name in sources)
        within = sum(sums(shown[name], masks[name]) for name in real)
        whole = sum(sums(shown[name], None) for name in real)
        drift = [float(np.abs(shown[n].mean((1, 2)) - real[n].mean((1, 2))).max()) for n in real]
        name = "source" if level is None else str(level)
        columns = " | ".join(map(ratios, (smooth, within, whole)))  # type: ignore[arg-type]
        print(f"| {name} | {columns} | {max(drift):.2f}, {np.median(drift):.2f} |", flush=True)


if __name__ == "__main__":
    main()
