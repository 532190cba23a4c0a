"""Seams: a scene rendered in windows beside the same latents rendered whole, for several overlaps.

    python -m benchmarks.seams PICTURE [PICTURE ...] [--model small] [--tile 256] [--quality 10 30 60]

Prints the PSNR of windows against whole (at least 55 dB: as if it were one decode), the largest difference in 8-bit
levels, and the mean absolute gradient across core borders over that 13 px aside; then what the encoder's halo changes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import imagecodecs
import numpy as np
import torch
from numpy.typing import NDArray

from ditic_stream._small_codec import SmallCodec, load
from ditic_stream.blend import Blender
from ditic_stream.config import GridConfig, q_of_quality
from ditic_stream.entropy import TileLatent
from ditic_stream.geometry import CELL, cells
from ditic_stream.models.config import Q_STEPS
from ditic_stream.tiling import Grid


def windowed(codec: SmallCodec, latent: TileLatent, grid: Grid, q: int) -> NDArray[np.float32]:
    """Render all windows and blend them; (3, rows, columns) in network units."""
    blender = Blender(grid, range(grid.rows), range(grid.cols), 3)
    picture = np.zeros((3, grid.height, grid.width), np.float32)
    for key in grid.keys():  # noqa: SIM118  (a generator of tiles)
        canvas, window = grid.latent_window(key), grid.decode_window(key)
        part = (..., slice(canvas.row, canvas.row_end), slice(canvas.col, canvas.col_end))
        pixels = codec.render(latent.values[part], latent.scales[part], q, (canvas.row, canvas.col))[0]
        if done := blender.add(key, pixels[:, : window.height, : window.width]):
            picture[(..., *done[0].slices(grid.scene))] = done[1]
    return picture


def at_borders(picture: NDArray[np.float32], tile: int) -> float:
    """Mean absolute gradient across core borders over that 13 px aside."""

    def gradient(axis: int, aside: int) -> float:
        step = np.abs(np.diff(picture, axis=axis))
        places = [p + aside for p in range(tile - 1, step.shape[axis] - 13, tile)]
        return float(np.take(step, places, axis).mean())

    return (gradient(1, 0) + gradient(2, 0)) / max(gradient(1, 13) + gradient(2, 13), 1e-9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, nargs="+")
    parser.add_argument("--model", default="small")
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--quality", type=int, nargs="+", default=[10, 30, 60])
    args = parser.parse_args()
    torch.set_num_threads(1)
    codec = load(args.model, "cpu")
    print(
        "| picture | quality | overlap px | windows against whole dB | largest difference | border gradient |\n"
        + "|---" * 6
        + "|"
    )
    for path in args.pictures:
        pixels = imagecodecs.imread(path)[..., :3].transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255)
        height, width = pixels.shape[2:]
        for quality in args.quality:
            q = q_of_quality(quality)
            coded = codec.encode(pixels, (slice(0, height), slice(0, width)), q)
            latent = codec.entropy.pull(coded, 1, cells(height), cells(width), q)
            whole = codec.render(latent.values, latent.scales, q, (0, 0))[0, :, :height, :width] * 255
            print(f"| {path.stem} | {quality} | whole | - | - | {at_borders(whole, args.tile):.3f} |")
            for overlap in (0, CELL, 2 * CELL, 4 * CELL):
                grid = Grid(height=height, width=width, config=GridConfig(tile=args.tile, overlap=overlap))
                tiled = windowed(codec, latent, grid, q) * 255
                error = np.square(tiled - whole).mean()
                decibels = 10 * np.log10(65025 / max(error, 1e-12))
                worst = np.abs(tiled - whole).max()
                print(
                    f"| {path.stem} | {quality} | {overlap} | {decibels:.1f} | {worst:.1f} "
                    f"| {at_borders(tiled, args.tile):.3f} |"
                )
            print_halo(codec, pixels, q)


def print_halo(codec: SmallCodec, pixels: NDArray[np.float32], q: int) -> None:
    """How far the latents of a 256 px core are from those of the whole picture, for encode halos of 0 to 128 px."""
    whole = codec.network.encoder(torch.from_numpy(pixels[:, :, :1024, :1024]))
    steps = codec.network.codec.gain(torch.tensor([q / Q_STEPS]))
    for halo in (0, 32, 64, 128):
        part = slice(256 - halo, 512 + halo)
        features = codec.network.encoder(torch.from_numpy(pixels[:, :, part, part].copy()))
        inner = slice(halo // CELL, halo // CELL + 8)
        error = ((features[:, :, inner, inner] - whole[:, :, 8:16, 8:16]) * steps).square().mean().sqrt()
        print(f"encode halo {halo} px: latents differ by {float(error):.4f} steps rms")


if __name__ == "__main__":
    main()
