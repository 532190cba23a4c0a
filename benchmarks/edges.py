"""Ringing at nodata edges: the error near holes beside that elsewhere.

    python -m benchmarks.edges PICTURE ... [--model small] [--quality 10 30] [--near 8]

Each picture gets holes of nodata (discs, a slanting cut and a frame, a sixth of it; value 0, sources moved off it) and
is coded twice: with the holes, and whole.  Printed are root mean squared errors in 8-bit levels over valid pixels
within `--near` pixels of a hole and over all others, and over the same near pixels when nothing was cut out: what the
hole costs is the first over the last.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from ditic_stream.compression import compress
from ditic_stream.regions import decompress


def holes(height: int, width: int, seed: int = 0) -> NDArray[np.bool_]:
    """Where there is no data."""
    random = np.random.default_rng(seed)
    row, col = np.mgrid[:height, :width]
    hole = row + 0.37 * col > 0.93 * (height + 0.37 * width)
    hole |= (row < 20) | (col < 33)
    for _ in range(6):
        middle = random.uniform(0.1, 0.9, 2) * (height, width)
        radius = random.uniform(0.02, 0.08) * min(height, width)
        hole |= (row - middle[0]) ** 2 + (col - middle[1]) ** 2 < radius**2
    return np.asarray(hole)


def near(hole: NDArray[np.bool_], reach: int) -> NDArray[np.bool_]:
    """Valid pixels at most `reach` rows and columns from a hole."""
    grown = hole.copy()
    for axis in (0, 1):
        wide = grown.copy()
        for step in range(1, reach + 1):
            for sign in (-step, step):
                moved = np.roll(grown, sign, axis)
                edge = slice(None, step) if sign > 0 else slice(-step, None)
                moved[(edge, slice(None)) if axis == 0 else (slice(None), edge)] = False
                wide |= moved
        grown = wide
    return grown & ~hole


def coded(pixels: NDArray[np.uint8], folder: Path, nodata: bool, model: str, quality: int) -> NDArray[np.uint8]:
    import tifffile

    tags = [(42113, "s", 0, "0", True)] if nodata else []
    source, back = folder / "source.tif", folder / "back.tif"
    tifffile.imwrite(source, pixels, photometric="rgb", extratags=tags)
    archive = folder / f"{nodata}-{quality}.ditic"
    compress(source, archive, model=model, quality=quality)
    decompress(archive, back, overwrite=True)
    return np.asarray(tifffile.imread(back))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, nargs="+")
    parser.add_argument("--model", default="small")
    parser.add_argument("--quality", type=int, nargs="+", default=[10, 30])
    parser.add_argument("--near", type=int, default=8)
    args = parser.parse_args()
    print(
        "| picture | quality | near a hole | elsewhere | the same pixels, no hole | near over no hole |\n"
        + "|---" * 6
        + "|"
    )
    for path in args.pictures:
        whole = np.maximum(np.asarray(imagecodecs.imread(path))[..., :3], 1).astype(np.uint8)
        hole = holes(*whole.shape[:2])
        beside = near(hole, args.near)
        cut = np.where(hole[..., None], np.uint8(0), whole)
        for quality in args.quality:
            with tempfile.TemporaryDirectory() as folder:
                first, second = (
                    coded(pixels, Path(folder), nodata, args.model, quality)
                    for pixels, nodata in ((cut, True), (whole, False))
                )
            assert not first[hole].any() and first[~hole].all(), "a hole has moved"

            def rms(back: NDArray[np.uint8], where: NDArray[np.bool_], whole: NDArray[np.uint8] = whole) -> float:
                return float(np.sqrt(np.square(back[where].astype(float) - whole[where]).mean()))

            at_edge, without = rms(first, beside), rms(second, beside)
            print(
                f"| {path.stem} | {quality} | {at_edge:.2f} | {rms(first, ~hole & ~beside):.2f} | {without:.2f} "
                f"| {at_edge / without:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
