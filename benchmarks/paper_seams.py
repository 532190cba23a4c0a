"""Seams of ditic-0.6b: how far tiles are from the whole picture, by the encoder's halo and by the decoder's overlap.

    python -m benchmarks.paper_seams PICTURE ... [--model ditic-0.6b:q3] [--tile 256] [--halo 0 128] [--overlap 0 64]

Encoder: the difference of a tile's latent from that of the whole picture, rms over the tile in quantisation steps (of
which rounding alone is 0.29), and over the cells at its border.  Decoder: the picture decoded in windows and blended
against the same latent decoded whole, and the gradient across tile borders over that 13 px aside; in the lines of a
halo the latent comes from tiles, too, and is decoded with the first overlap above 0.

Pictures are cut to whole tiles.  With weights of no meaning the figures show what the mathematics reach, not what eyes
would see.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import imagecodecs
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.seams import at_borders
from ditic_stream._paper_codec import UNITS, PaperCodec, load
from ditic_stream.blend import Blender
from ditic_stream.config import GridConfig
from ditic_stream.geometry import Window
from ditic_stream.latents import Cells
from ditic_stream.tiling import Grid

Units = NDArray[np.float32]


def latent_of(codec: PaperCodec, pixels: Units) -> Units:
    """The latent in steps, (320, rows / 64, columns / 64)."""
    with torch.inference_mode():
        found: Units = codec.network.analyse(torch.from_numpy(pixels[None]) * 2 - 1)[2][0].numpy()
    return found


def encoder(codec: PaperCodec, pixels: Units, grid: Grid, halos: list[int]) -> None:
    whole, cell = latent_of(codec, pixels), UNITS.cell
    for halo in halos:
        inside, border = [], []
        for key in grid.keys():  # noqa: SIM118  (a generator of tiles)
            window, core = grid.encode_window(key, halo), grid.core(key)
            rows, cols = window.slices(grid.scene)
            found = latent_of(codec, pixels[:, rows, cols])
            own = tuple(slice(part.start // cell, part.stop // cell) for part in core.slices(window))
            there = tuple(slice(part.start // cell, part.stop // cell) for part in core.slices(grid.scene))
            error = np.square(found[(slice(None), *own)] - whole[(slice(None), *there)])
            edge = np.ones(error.shape[1:], bool)
            edge[1:-1, 1:-1] = False
            inside.append(error.mean())
            border.append(error[:, edge].mean())
        print(f"| encode halo {halo} | {np.mean(inside) ** 0.5:.4f} | {np.mean(border) ** 0.5:.4f} |", flush=True)


def windowed(codec: PaperCodec, latent: Cells, grid: Grid) -> Units:
    """Render all windows and blend them; (3, rows, columns)."""
    blender = Blender(grid, range(grid.rows), range(grid.cols), 3)
    picture = np.zeros((3, grid.height, grid.width), np.float32)
    for key in grid.keys():  # noqa: SIM118
        canvas, window = grid.latent_window(key), grid.decode_window(key)
        part = (..., slice(canvas.row, canvas.row_end), slice(canvas.col, canvas.col_end))
        pixels = codec.render(latent.values[part], latent.scales[part], 0, (canvas.row, canvas.col))[0]
        if done := blender.add(key, pixels[:, : window.height, : window.width]):
            picture[(..., *done[0].slices(grid.scene))] = done[1]
    return picture


def from_tiles(codec: PaperCodec, pixels: Units, grid: Grid, halo: int) -> Cells:
    """The latent as an archive holds it: each tile coded by itself."""
    shape = (1, 320, grid.height // UNITS.cell, grid.width // UNITS.cell)
    latent = Cells(np.zeros(shape, np.int16), np.zeros(shape, np.int16))
    for key in grid.keys():  # noqa: SIM118
        window, core = grid.encode_window(key, halo), grid.core(key)
        coded = codec.encode(pixels[(None, slice(None), *window.slices(grid.scene))], core.slices(window), 0)
        own = grid.latent_core(key)
        found = codec.entropy.pull(coded, 1, *own.shape)
        part = (..., slice(own.row, own.row_end), slice(own.col, own.col_end))
        latent.values[part], latent.scales[part] = found.values, found.scales
    return latent


def decoder(codec: PaperCodec, pixels: Units, tile: int, halos: list[int], overlaps: list[int]) -> None:
    height, width = pixels.shape[1:]
    everything = Window(row=0, col=0, height=height, width=width)
    coded = codec.encode(pixels[None], everything.slices(everything), 0)
    latent = codec.entropy.pull(coded, 1, UNITS.core_cells(height), UNITS.core_cells(width))
    whole = codec.render(latent.values, latent.scales, 0, (0, 0))[0, :, :height, :width] * 255
    print(f"| whole | - | {at_borders(whole, tile):.3f} |")
    grids = {
        overlap: Grid(height=height, width=width, config=GridConfig(tile=tile, overlap=overlap), units=UNITS)
        for overlap in overlaps
    }

    def show(what: str, tiled: Units) -> None:
        decibels = 10 * np.log10(65025 / max(float(np.square(tiled - whole).mean()), 1e-12))
        print(f"| {what} | {decibels:.1f} dB | {at_borders(tiled, tile):.3f} |", flush=True)

    for overlap, grid in grids.items():
        show(f"overlap {overlap}", windowed(codec, latent, grid) * 255)
    grid = grids[min((overlap for overlap in overlaps if overlap), default=overlaps[0])]
    for halo in halos:
        found = windowed(codec, from_tiles(codec, pixels, grid, halo), grid) * 255
        show(f"halo {halo}, overlap {grid.config.overlap}", found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, nargs="+")
    parser.add_argument("--model", default="ditic-0.6b:q3")
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--halo", type=int, nargs="+", default=[0, 128, 256])
    parser.add_argument("--overlap", type=int, nargs="+", default=[0, 64, 128])
    parser.add_argument("--largest", type=int, default=1024, help="Side to which pictures are cut, pixels.")
    args = parser.parse_args()
    torch.set_num_threads(1)
    codec = load(args.model, "cpu")
    for path in args.pictures:
        read = imagecodecs.imread(path)[: args.largest, : args.largest, :3]
        height, width = (side // args.tile * args.tile for side in read.shape[:2])
        pixels = read[:height, :width].transpose(2, 0, 1).astype(np.float32) / np.float32(255)
        grid = Grid(height=height, width=width, config=GridConfig(tile=args.tile, overlap=0), units=UNITS)
        print(f"{path.stem}, {width} x {height}, tiles of {args.tile}", flush=True)
        encoder(codec, pixels, grid, args.halo)
        decoder(codec, pixels, args.tile, args.halo, args.overlap)


if __name__ == "__main__":
    main()
