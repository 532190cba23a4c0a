"""The door to diffusers: DC-AE (arXiv 2410.10733) and SANA (arXiv 2410.10629), built without weights.

diffusers is the extra `paper`; it is loaded when a backbone is built, not before.

SANA's self-attention is linear.  Its method `enable_xformers_memory_efficient_attention` would replace that by softmax
attention without a word, and must not be called.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ditic_stream.errors import ConfigError
from ditic_stream.models.paper.config import PaperConfig


def _class(name: str) -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise ConfigError(
            f"ditic-0.6b needs diffusers, which is not usable here ({error}); pip install 'ditic-stream[paper]'"
        ) from error
    return getattr(diffusers, name)


def _build(name: str, settings: dict[str, Any]) -> nn.Module:
    kind = _class(name)
    try:
        found: nn.Module = kind(**settings)
    except (TypeError, ValueError, IndexError) as error:
        raise ConfigError(f"the configuration does not make a {name} ({error})") from error
    return found.eval()


def autoencoder(config: PaperConfig) -> nn.Module:
    """DC-AE; `encode_pixels` and `decode_latent` run it."""
    return _build("AutoencoderDC", config.vae)


def transformer(config: PaperConfig) -> nn.Module:
    """SANA; `velocity` runs it."""
    return _build("SanaTransformer2DModel", config.transformer)


def encode_pixels(vae: nn.Module, pixels_B3HW: Tensor, scaling: float) -> Tensor:
    """Pixels in -1..1 -> the scaled latent (B, 32, H/32, W/32)."""
    return vae.encode(pixels_B3HW).latent * scaling  # type: ignore[operator]


def decode_latent(vae: nn.Module, latent_BChw: Tensor, scaling: float) -> Tensor:
    """The scaled latent (B, 32, h, w) -> pixels (B, 3, 32h, 32w), not clamped."""
    return vae.decode(latent_BChw / scaling).sample  # type: ignore[operator]


def velocity(network: nn.Module, noisy_BChw: Tensor, tokens_BLD: Tensor, timestep: int) -> Tensor:
    """SANA's velocity (B, 32, h, w) at one time for the whole batch; every condition token counts."""
    # Not in the network's type: bfloat16 would make 1000 of 999.
    time = torch.full((len(noisy_BChw),), timestep, dtype=torch.float32, device=noisy_BChw.device)
    return network(noisy_BChw, encoder_hidden_states=tokens_BLD, timestep=time).sample
