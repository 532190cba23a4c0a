"""Compress one scene at several qualities and print size against quality: choose a setting before the long run.

python examples/rate_and_quality.py scene.tif --quality 20 50 80
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import ditic_stream
from ditic_stream.compare import compare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene")
    parser.add_argument("--quality", type=int, nargs="+", default=[20, 50, 80])
    parser.add_argument("--model", default="small")
    parser.add_argument("--tile", type=int, default=1024)
    options = parser.parse_args()
    print("quality      bpp   PSNR dB   MS-SSIM")
    with tempfile.TemporaryDirectory() as folder:
        for quality in options.quality:
            archive = Path(folder) / f"{quality}.ditic"
            ditic_stream.compress(options.scene, archive, quality=quality, model=options.model, tile=options.tile)
            found = compare(options.scene, archive)
            psnr = "     inf" if found.psnr is None else f"{found.psnr:8.2f}"
            similar = "    none" if found.ms_ssim is None else f"{found.ms_ssim:8.4f}"
            print(f"{quality:7d} {found.bpp:8.3f}  {psnr}  {similar}")


if __name__ == "__main__":
    main()
