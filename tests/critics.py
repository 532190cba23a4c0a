"""Features files for tests: the networks that are looked through, at their size, with seeded values."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from ditic_stream.training.observers import CAFFE_FIRST, shapes_of


def seeded(network: str) -> dict[str, torch.Tensor]:
    """Values for the layers of a network, each a function of its name: any machine makes the same."""
    tensors = {}
    for name, shape in shapes_of(network).items():
        n = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(shape, dtype=np.float32)
        scale = (2 / float(np.prod(shape[1:]))) ** 0.5 if len(shape) > 1 else 0.1
        tensors[name] = torch.from_numpy(n * np.float32(scale))
    return tensors


def write_features(path: Path, network: str = "SqueezeNet 1.1", *, caffe: bool = True) -> Path:
    """caffe: give SqueezeNet the first values by which the set for Caffe is told."""
    tensors = seeded(network)
    if network == "SqueezeNet 1.1" and caffe:
        tensors["features.0.bias"][: len(CAFFE_FIRST)] = torch.tensor(CAFFE_FIRST)
    save_file(tensors, path)
    return path


def looked_at() -> tuple[torch.Tensor, torch.Tensor]:
    """Two pictures (2, 3, 47, 36), 0..1, float64, and their damaged likes: the one by noise, the other moved aside."""
    g = np.random.Generator(np.random.PCG64(7))
    x = np.clip(np.cumsum(g.standard_normal((2, 3, 47, 36)), -1) / 12 + 0.5, 0, 1)
    y = np.stack([np.clip(x[0] + 0.1 * g.standard_normal(x[0].shape), 0, 1), np.roll(x[1], 2, -1)])
    return torch.from_numpy(x), torch.from_numpy(y)
