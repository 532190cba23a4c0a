"""A features file for tests: SqueezeNet 1.1 in its form, a few channels a layer, seeded."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from ditic_stream.training.perceptual import FIRES

WIDTH, THIN = 8, 4


def write_features(path: Path, seed: int = 0) -> Path:
    random = torch.Generator().manual_seed(seed)
    tensors = {}

    def layer(name: str, out: int, before: int, kernel: int) -> None:
        scale = (2 / (before * kernel**2)) ** 0.5
        tensors[f"{name}.weight"] = torch.randn(out, before, kernel, kernel, generator=random) * scale
        tensors[f"{name}.bias"] = torch.zeros(out)

    layer("features.0", 2 * WIDTH, 3, 3)
    for index in FIRES:
        layer(f"features.{index}.squeeze", THIN, 2 * WIDTH, 1)
        layer(f"features.{index}.expand1x1", WIDTH, THIN, 1)
        layer(f"features.{index}.expand3x3", WIDTH, THIN, 3)
    save_file(tensors, path)
    return path
