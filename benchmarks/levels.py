"""What a view of each level costs and how near it comes: 512 x 512 pixels of a large archive, cold and again.

    python -m benchmarks.levels PICTURES [--model small] [--side 32] [--keep FOLDER]

PICTURES: a folder; they are laid out as a scene of 4096 x 4096, coded, and its records repeated to --side x --side
tiles of 1024.  Cold: the archive is opened anew, networks are loaded already.  CPU seconds are those of all threads.
PSNR: of the levels of the scene itself, against means of its decoded pixels, in 8-bit levels.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile

import ditic_stream
from benchmarks._repeat import repeat
from ditic_stream._resampling import box_means
from ditic_stream.geometry import Window
from ditic_stream.scene import Scene

SIDE, VIEW = 4096, 512


def mosaic(folder: Path) -> np.ndarray:
    """Pictures of a folder cut to 512 x 512 and laid out row by row, again and again: (4096, 4096, 3)."""
    found = [np.asarray(imagecodecs.imread(path)) for path in sorted(folder.glob("*.png"))]
    parts = [picture[:512, :512, :3] for picture in found if picture.ndim == 3 and min(picture.shape[:2]) >= 512]
    out = np.zeros((SIDE, SIDE, 3), np.uint8)
    for place in range((SIDE // 512) ** 2):
        row, col = divmod(place, SIDE // 512)
        out[row * 512 : (row + 1) * 512, col * 512 : (col + 1) * 512] = parts[place * 7 % len(parts)]
    return out


def timed(scene: Scene, level: int) -> tuple[float, float]:
    """Seconds, and seconds of CPU, of a view from the middle of the scene or all of it."""
    width, height = scene.level_dimensions[level]
    window = Window(
        row=max((height - VIEW) // 2, 0) // 8 * 8,
        col=max((width - VIEW) // 2, 0) // 8 * 8,
        height=min(VIEW, height),
        width=min(VIEW, width),
    )
    wall, cpu = time.perf_counter(), time.process_time()
    scene.read(window, level=level)
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--model", default="small")
    parser.add_argument("--side", type=int, default=32, help="tiles a side of the large archive")
    parser.add_argument("--keep", type=Path, help="where the archives are made, or are already")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        small, large = folder / "small.ditic", folder / "large.ditic"
        if not small.exists():
            tifffile.imwrite(folder / "scene.tif", mosaic(options.pictures), photometric="rgb")
            ditic_stream.compress(folder / "scene.tif", small, model=options.model)
        if not large.exists():
            repeat(small, large, rows=options.side, cols=options.side)
        with ditic_stream.open(large) as scene:
            scene[0, 0]
            print(f"{scene.shape}, {scene.level_count} levels")
            levels = scene.level_count
        for level in range(levels):
            with ditic_stream.open(large) as scene:
                cold, cold_cpu = timed(scene, level)
                warm, warm_cpu = timed(scene, level)
                held = scene._loader.nbytes / 2**20
            print(
                f"level {level}: cold {cold:.2f} s ({cold_cpu:.2f} CPU)  again {warm:.3f} s ({warm_cpu:.3f} CPU)  "
                f"kept {held:.0f} MB",
                flush=True,
            )
        with ditic_stream.open(small) as scene:
            pixels = scene.read()
            for level in range(3, scene.level_count):
                exact, _ = box_means(pixels, np.ones(pixels.shape[1:], bool), 1 << level)
                error = scene.read(level=level) - exact
                print(f"level {level}: {-10 * np.log10(np.mean(np.square(error / 255))):.1f} dB")


if __name__ == "__main__":
    main()
