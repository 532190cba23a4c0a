"""Make ditic_stream/training/fitted.safetensors and its licences out of the wheels that publish the values.

    pip download --no-deps lpips==0.1.4 DISTS_pytorch==0.1 -d wheels
    python scripts/fitted.py wheels/lpips-0.1.4-*.whl wheels/DISTS_pytorch-0.1-*.whl
"""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file

OUT = Path(__file__).parents[1] / "ditic_stream" / "training"


def main(lpips: Path, dists: Path) -> None:
    with zipfile.ZipFile(lpips) as wheel:
        tensors = {}
        for network in ("vgg", "alex", "squeeze"):
            for name, value in load(wheel, f"lpips/weights/v0.1/{network}.pth").items():
                tensors[f"lpips.{network}.{name.partition('.')[0].removeprefix('lin')}"] = value.flatten().clone()
        texts = [wheel.read("lpips-0.1.4.dist-info/LICENSE").decode()]
    with zipfile.ZipFile(dists) as wheel:
        for name, value in load(wheel, "DISTS_pytorch/weights.pt").items():
            tensors[f"dists.{name}"] = value.flatten().clone()
        texts.append(wheel.read("DISTS_pytorch-0.1.dist-info/LICENSE").decode())
    save_file(tensors, OUT / "fitted.safetensors")
    heads = (
        "fitted.safetensors, lpips.*: linear weights of LPIPS v0.1, from the package lpips 0.1.4.",
        "fitted.safetensors, dists.*: alpha and beta of DISTS, from the package DISTS_pytorch 0.1.",
    )
    parts = [f"{head}\n\n{text.strip()}\n" for head, text in zip(heads, texts, strict=True)]
    (OUT / "fitted.LICENSE.txt").write_text("\n\n".join(parts))


def load(wheel: zipfile.ZipFile, name: str) -> dict[str, torch.Tensor]:
    return torch.load(io.BytesIO(wheel.read(name)), map_location="cpu", weights_only=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
