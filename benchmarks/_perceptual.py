"""Two perceptual figures for the benchmarks: SSIMULACRA2, and the distance of SqueezeNet's features.

In: a source and its decode, uint8 (rows, columns, 3).  Out: a number.  Both read pixels as sRGB.
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import imagecodecs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ditic_stream.training import perceptual

Bytes = NDArray[np.uint8]


def ssimulacra2(source: Bytes, decoded: Bytes) -> float:
    """SSIMULACRA2 (Cloudinary, 2023) by the package of that name: 100 is equal, 70 high quality, 50 medium, 10 low."""
    from ssimulacra2 import compute_ssimulacra2

    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("source.png", "decoded.png")]
        for path, pixels in zip(paths, (source, decoded), strict=True):
            imagecodecs.imwrite(path, np.ascontiguousarray(pixels))
        return float(compute_ssimulacra2(*map(str, paths)))


def feature_distance(source: Bytes, decoded: Bytes, weights: Path) -> float:
    """The uncalibrated distance of the LPIPS paper on SqueezeNet 1.1, see training.perceptual: 0 is equal, JPEG quality
    30 gives about 0.3."""
    torch.set_num_threads(1)
    network = _load(weights)
    with torch.inference_mode():
        taps = [network.taps(_tensor(pixels)) for pixels in (source, decoded)]
        return float(perceptual.feature_distance(*taps))


@cache
def _load(weights: Path) -> perceptual.Features:
    return perceptual.Features(weights)


def _tensor(pixels: Bytes) -> Tensor:
    return torch.from_numpy(pixels.astype(np.float32).transpose(2, 0, 1)[None]) / 255
