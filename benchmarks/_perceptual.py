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
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Bytes = NDArray[np.uint8]
TAPS = (1, 4, 7, 9, 10, 11, 12)
"""Layers of torchvision's `features` whose outputs LPIPS compares (Zhang et al., CVPR 2018)."""
POOLED = (3, 6, 9)
"""Layers with max-pooling before them."""
MEAN = (123.0, 117.0, 104.0)


def ssimulacra2(source: Bytes, decoded: Bytes) -> float:
    """SSIMULACRA2 (Cloudinary, 2023) by the package of that name: 100 is equal, 70 high quality, 50 medium, 10 low."""
    from ssimulacra2 import compute_ssimulacra2

    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("source.png", "decoded.png")]
        for path, pixels in zip(paths, (source, decoded), strict=True):
            imagecodecs.imwrite(path, pixels)
        return float(compute_ssimulacra2(*map(str, paths)))


def feature_distance(source: Bytes, decoded: Bytes, weights: Path) -> float:
    """The uncalibrated distance of the LPIPS paper on SqueezeNet 1.1: 0 is equal, JPEG quality 30 gives about 0.3.

    weights: safetensors with torchvision's names and Caffe's values (inputs 0..255 less a mean, no padding in the
    first layer).  Not LPIPS: no layer is fitted to people's judgements."""
    torch.set_num_threads(1)
    network = _load(weights)
    with torch.inference_mode():
        taps = [_taps(network, _tensor(pixels)) for pixels in (source, decoded)]
        total = [
            (F.normalize(a, dim=1, eps=1e-10) - F.normalize(b, dim=1, eps=1e-10)).square().sum(1).mean()
            for a, b in zip(*taps, strict=True)
        ]
    return float(torch.stack(total).mean())


@cache
def _load(weights: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return {name: tensor.float() for name, tensor in load_file(weights).items()}


def _tensor(pixels: Bytes) -> Tensor:
    x = torch.from_numpy(pixels.astype(np.float32).transpose(2, 0, 1)[None])
    return x - torch.tensor(MEAN)[:, None, None]


def _taps(network: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    def convolve(name: str, x: Tensor, padding: int = 0, stride: int = 1) -> Tensor:
        return F.relu(F.conv2d(x, network[f"{name}.weight"], network[f"{name}.bias"], stride, padding))

    x = convolve("features.0", x, stride=2)
    taps = [x]
    for index in (3, 4, 6, 7, 9, 10, 11, 12):
        if index in POOLED:
            x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        squeezed = convolve(f"features.{index}.squeeze", x)
        x = torch.cat(
            [convolve(f"features.{index}.expand1x1", squeezed), convolve(f"features.{index}.expand3x3", squeezed, 1)], 1
        )
        if index in TAPS:
            taps.append(x)
    return taps
