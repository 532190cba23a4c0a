"""Read one window of an archive from Python, as an array: no other tile is decoded.

python examples/window.py scene.ditic --window 100,200,300,150
"""

from __future__ import annotations

import argparse

import ditic_stream


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive")
    parser.add_argument("--window", default="0,0,256,256", help="COL,ROW,WIDTH,HEIGHT")
    options = parser.parse_args()
    col, row, width, height = map(int, options.window.split(","))
    with ditic_stream.open(options.archive) as scene:
        print(f"scene: rows, columns, bands {scene.shape}, {scene.dtype}")
        pixels = scene[row : row + height, col : col + width]
    print(f"window: {pixels.shape}, mean of each band {pixels.mean(axis=(0, 1)).round(2).tolist()}")


if __name__ == "__main__":
    main()
