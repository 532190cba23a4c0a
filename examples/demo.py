"""A real picture there and back by the command line: `make demo` runs this.

Takes retina.jpg, the photograph of an eye's background that scikit-image brings (1411 x 1411 pixels, public domain),
writes it as a GeoTIFF placed in UTM zone 33N, and cuts it into nine tiles of 512 pixels.  Leaves in ./demo, or in the
folder given: the scene, the archive, a decoded region and side-by-side.png (original left, decoded right).
A crop of this picture is among those that the shipped networks were trained on, so take its figures as a demonstration;
those of pictures never seen in training are in docs/numbers.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile

# ModelPixelScale, ModelTiepoint, GeoKeyDirectory: 0.5 m pixels from 400000 E 5650000 N in EPSG:32633.
GEO_TAGS = [
    (33550, "d", 3, (0.5, 0.5, 0.0), True),
    (33922, "d", 6, (0.0, 0.0, 0.0, 400000.0, 5650000.0, 0.0), True),
    (34735, "H", 16, (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32633), True),
]
REGION = (420, 480, 512, 512)
"""Column, row, width, height of the part that is decoded alone; it crosses seams of the grid."""


def bundled_picture() -> np.ndarray:
    """retina.jpg as (rows, columns, 3) uint8."""
    import skimage

    return np.asarray(imagecodecs.jpeg_decode((Path(skimage.__file__).parent / "data" / "retina.jpg").read_bytes()))


def tool(*arguments: str) -> str:
    """Run a command as a user would, show it, and return what it printed; leave with its code if it fails."""
    print(f"\n$ ditic-stream {' '.join(arguments)}", flush=True)
    command = [Path(sys.executable).with_name("ditic-stream"), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("demo"))
    parser.add_argument("--model", default="small")
    parser.add_argument("--quality", default="50")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    scene, archive, region, beside = (
        str(options.folder / name) for name in ("retina.tif", "retina.ditic", "region.png", "side-by-side.png")
    )

    picture = bundled_picture()
    tifffile.imwrite(
        scene, picture, tile=(256, 256), compression="deflate", photometric="rgb", metadata=None, extratags=GEO_TAGS
    )
    print(f"scene: {scene}, {picture.shape[0]} x {picture.shape[1]} pixels, EPSG:32633")

    settings = ("--tile", "512", "--model", options.model, "--quality", options.quality)
    print(tool("compress", scene, archive, *settings, "--overwrite"))
    print(tool("info", archive))
    print(tool("verify", archive))
    tool("region", archive, region, "--window", ",".join(map(str, REGION)), "--overwrite", "-q")
    col, row, width, height = REGION
    decoded = imagecodecs.png_decode(Path(region).read_bytes())
    original = picture[row : row + height, col : col + width]
    gutter = np.full((height, 8, 3), 255, np.uint8)
    Path(beside).write_bytes(imagecodecs.png_encode(np.concatenate([original, gutter, decoded], axis=1)))

    quality = json.loads(tool("compare", scene, archive, "--json", "-q").splitlines()[-1])
    raw, coded = picture.nbytes, quality["record_bytes"]
    print(f"\nraw pixels          {raw:>9} bytes   24 bits per pixel")
    print(f"scene.tif, deflate  {Path(scene).stat().st_size:>9} bytes")
    print(f"records             {coded:>9} bytes   {quality['bpp']:.3f} bits per pixel, 1 : {raw / coded:.0f}")
    print(f"container, preview  {quality['fixed_bytes']:>9} bytes   once an archive")
    figures = (quality["psnr"], quality["ms_ssim"], quality["max_error"])
    print("PSNR {:.2f} dB, MS-SSIM {:.4f}, largest error {:g} of 255".format(*figures))
    print("(a crop of this picture was among the training pictures: docs/numbers.md has figures of unseen ones)")
    print(f"look at {beside}: original left, decoded right")


if __name__ == "__main__":
    main()
