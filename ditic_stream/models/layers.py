"""Blocks the networks share: residual block, lapped transforms, the attention door.

Legend of suffixes: B batch, C channels, H W rows and columns of the map at hand, L tokens, D token width, N heads.

The lapped transforms keep the linear path free of block borders.  `lapped_basis` is the time-domain lapped transform of
Tran, Liang and Tu (IEEE Trans. Signal Processing 51(6), 2003): an 8-point DCT behind a prefilter across block borders.
`lap` is its two-point sister for the merges 1/8 -> 1/16 -> 1/32: it stretches the difference across a border by LAP,
and `unlap` shrinks it again, so that a latent of which only the mean survives is drawn as a ramp and not as a step.
"""

from __future__ import annotations

import logging
import math
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditic_stream.errors import ConfigError
from ditic_stream.families import ATTENTIONS, attention_asked

LAP = 2.0
"""Stretch of the difference across a block border in the merges; 2 reproduces linear ramps from means alone."""
LAP_CHANNELS = 3
"""Leading channels that are lapped: the local means of the three colours."""


class Res1(nn.Module):
    """x + 1x1(LeakyReLU(3x3(x))); the last convolution starts at zero, so the block starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.out(F.leaky_relu_(self.conv(x_BCHW), 0.1)).add_(x_BCHW)


def lap(x_BCHW: Tensor, factor: float = LAP) -> Tensor:
    """Stretch the difference between samples 2i-1 and 2i by `factor`, both axes, in the first LAP_CHANNELS channels."""
    means, rest = x_BCHW[:, :LAP_CHANNELS], x_BCHW[:, LAP_CHANNELS:]
    means = _across_borders(means, factor)
    means = _across_borders(means.transpose(2, 3), factor).transpose(2, 3)
    return torch.cat([means, rest], 1)


def unlap(x_BCHW: Tensor) -> Tensor:
    """Undo `lap`."""
    return lap(x_BCHW, 1 / LAP)


def _across_borders(x: Tensor, factor: float) -> Tensor:
    if x.shape[-1] <= 2:
        return x
    pairs = x[..., 1:-1].unflatten(-1, (-1, 2))
    half = (pairs[..., 1:] - pairs[..., :1]) * ((factor - 1) / 2)
    moved = (pairs + torch.cat([-half, half], -1)).flatten(-2)
    return torch.cat([x[..., :1], moved, x[..., -1:]], -1)


def lapped_basis(size: int = 8, stretch: float = 1.6) -> tuple[np.ndarray, np.ndarray]:
    """Analysis and synthesis functions of the lapped transform, each (size, 2 * size) float64; block k covers samples
    k * size - size / 2 .. k * size + 3 * size / 2.  `stretch` 1 is orthogonal; 1.6 is the paper's smoother choice."""
    half = size // 2

    def dct(n: int, kind: int) -> np.ndarray:
        k, i = np.meshgrid(np.arange(n), np.arange(n), indexing="ij")
        if kind == 2:
            basis = np.cos(np.pi * k * (2 * i + 1) / (2 * n)) * math.sqrt(2 / n)
            basis[0] /= math.sqrt(2)
            return basis
        return np.asarray(np.cos(np.pi * (2 * k + 1) * (2 * i + 1) / (4 * n)) * math.sqrt(2 / n))

    eye, flip = np.eye(half), np.eye(half)[::-1]
    diagonal = np.diag([stretch] + [1.0] * (half - 1))
    turn = flip @ dct(half, 2).T @ diagonal @ dct(half, 4) @ flip
    butterfly = np.block([[eye, flip], [flip, -eye]])
    blank = np.zeros((half, half))
    prefilter = butterfly @ np.block([[eye, blank], [blank, turn]]) @ butterfly / 2
    # Three borders around two blocks are enough to read off one block's functions.
    stack = np.eye(2 * size)
    for border in (0, size):
        stack[border : border + size, border : border + size] = prefilter
    inside = slice(half, half + size)
    analysis = dct(size, 2) @ stack[inside]
    synthesis = dct(size, 2) @ np.linalg.inv(stack).T[inside]
    return analysis, synthesis


def attention(
    q_BLND: Tensor, k_BLND: Tensor, v_BLND: Tensor, mask: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    """Softmax attention, (batch, tokens, heads, width of a head) in and out: the one door to attention kernels.

    mask: bool (B, 1, 1, keys), True where a key counts, or None.  backend: "auto" lets xformers serve CUDA tensors and
    torch's own kernel everything else, unless $DITIC_ATTENTION names one; "xformers" asks for it on any device, "sdpa"
    forces torch's.  Where xformers is absent or fails, torch's kernel serves, and one line of log says so.
    Raises ConfigError for any other backend.
    """
    chosen = attention_asked() if backend == "auto" else backend
    if chosen not in ATTENTIONS:
        raise ConfigError(f"the attention backend is {chosen!r}; use one of {', '.join(ATTENTIONS)}")
    if chosen == "xformers" or (chosen == "auto" and q_BLND.is_cuda):
        out = _by_xformers(q_BLND, k_BLND, v_BLND, mask)
        if out is not None:
            return out
    out = F.scaled_dot_product_attention(
        q_BLND.transpose(1, 2), k_BLND.transpose(1, 2), v_BLND.transpose(1, 2), attn_mask=mask
    )
    return out.transpose(1, 2)


def _by_xformers(q_BLND: Tensor, k_BLND: Tensor, v_BLND: Tensor, mask: Tensor | None) -> Tensor | None:
    """Attention by xformers, or None where it is of no use here."""
    kernel = xformers_kernel()
    if kernel is None:
        return None
    bias = None
    if mask is not None:
        bias = torch.zeros(mask.shape, dtype=q_BLND.dtype, device=q_BLND.device).masked_fill(~mask, -math.inf)
        bias = bias.expand(q_BLND.shape[0], q_BLND.shape[2], q_BLND.shape[1], k_BLND.shape[1])
    try:
        out: Tensor = kernel(q_BLND, k_BLND, v_BLND, attn_bias=bias)
        return out
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # no operator for this device, type or bias; or a build that does not fit torch's
        _say_once(type(error).__name__, str(error).strip().partition("\n")[0])
        return None


@cache
def xformers_kernel() -> Any:
    """The kernel of xformers, or None where it is absent or broken (said once)."""
    try:
        return import_module("xformers.ops").memory_efficient_attention
    except Exception as error:  # a build for another torch, or for other libraries, raises whatever they do
        _say_once("absent or broken", str(error).strip().partition("\n")[0])
        return None


@cache
def _say_once(kind: str, reason: str) -> None:
    level = logging.WARNING if attention_asked() == "xformers" else logging.INFO  # who asked is to see it
    logging.getLogger("ditic_stream").log(
        level, "xformers is not usable (%s: %s): attention runs on torch's kernels", kind, reason
    )
