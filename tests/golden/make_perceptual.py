"""Make perceptual.json: LPIPS and DISTS of two pictures by the packages that publish them.

They look through seeded networks (tests/critics.py), since the trained ones cannot be put here.  Needs lpips 0.1.4,
DISTS_pytorch 0.1 and a torchvision that fits the torch (it was 0.28.0; beside a torch without CUDA its compiled
operators do not load, so what registers them is switched off here: the networks need none).

    pip install --no-deps lpips==0.1.4 DISTS_pytorch==0.1 torchvision==0.28.0
    python tests/golden/make_perceptual.py
"""

from __future__ import annotations

import json
import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]
KEYS = {"VGG16": "vgg16", "AlexNet": "alexnet", "SqueezeNet 1.1": "squeezenet1_1"}
NETS = {"VGG16": "vgg", "AlexNet": "alex", "SqueezeNet 1.1": "squeeze"}


def main() -> None:
    register, torch.library.register_fake = torch.library.register_fake, lambda *a, **k: lambda f: f
    # By name, since they are no dependency, not even of tests.
    models = import_module("torchvision.models")

    torch.library.register_fake = register
    from critics import looked_at, seeded

    lpips, DISTS = import_module("lpips"), import_module("DISTS_pytorch").DISTS

    for name, key in KEYS.items():
        setattr(models, key, partial(filled, getattr(models, key), seeded(name)))
    x, y = looked_at()
    found = {}
    for name, net in NETS.items():
        judge = lpips.LPIPS(net=net, verbose=False).double()
        found[f"lpips {name}"] = judged(partial(judge, normalize=True), x, y)
    found["dists VGG16"] = judged(partial(DISTS().double(), require_grad=True), x, y)
    (HERE / "perceptual.json").write_text(json.dumps(found, indent=1) + "\n")


def filled(make: Any, tensors: dict[str, torch.Tensor], *, pretrained: bool) -> torch.nn.Module:
    """A network of torchvision's with seeded values in place of trained ones; its classifier is not looked at."""
    network = make()
    network.load_state_dict(tensors, strict=False)
    return network


def judged(judge: Any, x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
    moved = y.clone().requires_grad_()
    distance = judge(x, moved).flatten()
    distance.sum().backward()
    return {"distance": distance.tolist(), "slope": moved.grad.norm().item()}


if __name__ == "__main__":
    main()
