"""Weights of ditic-0.6b for tests: seeded values, backbones of a few thousand parameters.  What lies between the
backbones has its full size all the same: 150 M parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ditic_stream.models.paper import checkpoint, layout, network, seeded
from ditic_stream.models.paper.config import OFFICIAL, PaperConfig


def reduced() -> PaperConfig:
    """Sizes of the backbones."""
    vae: dict[str, Any] = {**OFFICIAL.vae, "attention_head_dim": 8}
    for side in ("encoder", "decoder"):
        vae |= {f"{side}_block_out_channels": [8, 8, 16, 16, 16, 32], f"{side}_layers_per_block": [1] * 6}
    transformer = {
        **OFFICIAL.transformer, "attention_head_dim": 8, "num_attention_heads": 2, "cross_attention_dim": 16,
        "cross_attention_head_dim": 8, "num_cross_attention_heads": 2, "num_layers": 1, "caption_channels": 24,
    }  # fmt: skip
    return PaperConfig.of(vae, transformer)


def import_reduced(folder: Path, name: str = "ditic-0.6b:q3", seed: int = 11) -> Path:
    """Bring seeded weights into the model folder of the environment; `folder` holds their pickle meanwhile.  Gives
    where they lie."""
    config = reduced()
    shapes = network.shapes_of(config)
    drawn = {
        one: tensor if one in layout.TABLES else tensor.bfloat16()
        for one, tensor in seeded.draw({one: shapes[one] for one in shapes if not layout.alias_of(one)}, seed)
    }
    released = folder / "released.pt"
    torch.save({one: drawn[layout.alias_of(one) or one] for one in shapes}, released)
    path, _ = checkpoint.import_checkpoint(released, name=name, config=config)
    released.unlink()
    return path
