"""The door to diffusers: DC-AE (arXiv 2410.10733) and SANA (arXiv 2410.10629), built without weights.

diffusers is the extra `paper`; it is loaded when a backbone is built, not before.

SANA's self-attention is linear.  Its method `enable_xformers_memory_efficient_attention` would replace that by softmax
attention without a word; here it does not reach it.  The cross-attention, which is softmax, goes through the package's
own door (`layers.attention`), and that method chooses its kernel.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from ditic_stream.errors import ConfigError
from ditic_stream.models import layers
from ditic_stream.models.paper.config import PaperConfig


def _class(name: str) -> Any:
    try:
        with _broken_xformers_hidden():
            import diffusers

            return getattr(diffusers, name)
    except (ImportError, RuntimeError) as error:  # it translates what fails in a part of it
        raise ConfigError(
            f"ditic-0.6b needs diffusers, which is not usable here ({error}); pip install 'ditic-stream[paper]'"
        ) from error


@contextmanager
def _broken_xformers_hidden() -> Iterator[None]:
    """diffusers imports xformers where it is installed, and fails where that does.  Here xformers is the business of
    `layers.attention` alone, so one that is broken does not show meanwhile."""
    name = "xformers"
    if find_spec(name) is None or layers.xformers_kernel() is not None:
        yield
        return
    kept = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]  # as if there were none
    try:
        yield
    finally:
        del sys.modules[name]
        if kept is not None:
            sys.modules[name] = kept


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
    network = _build("SanaTransformer2DModel", config.transformer)
    for block in network.transformer_blocks:  # type: ignore[union-attr]
        for attention in (block.attn1, block.attn2):
            softmax = attention is block.attn2
            processor = CrossAttention() if softmax else attention.processor
            attention.processor = processor
            attention.set_use_memory_efficient_attention_xformers = partial(_use_xformers, processor)
    return network


class CrossAttention:
    """SANA's cross-attention over the attention door; a processor in the sense of diffusers."""

    def __init__(self) -> None:
        self.backend = "auto"

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Every condition token counts: there is no mask."""
        if attention_mask is not None:
            raise ConfigError("the cross-attention of ditic-0.6b takes no mask")
        query, key, value = attn.to_q(hidden_states), attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        query, key, value = (one.unflatten(2, (attn.heads, -1)) for one in (query, key, value))
        mixed = layers.attention(query, key, value, backend=self.backend).flatten(2)
        return attn.to_out[0](mixed) / attn.rescale_output_factor


def _use_xformers(processor: object, wanted: bool, *_: object, **__: object) -> None:
    """What diffusers calls for every attention when its user asks for xformers, or no longer wants it."""
    if isinstance(processor, CrossAttention):
        processor.backend = "auto" if wanted else "sdpa"


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
