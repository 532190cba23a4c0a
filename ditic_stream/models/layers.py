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
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
        return x_BCHW + self.out(F.leaky_relu(self.conv(x_BCHW), 0.1))


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

    mask: bool (B, 1, 1, keys), True where a key counts, or None.  xformers serves CUDA tensors, torch's own kernel
    everything else; backend "sdpa" forces the latter.
    """
    if q_BLND.is_cuda and backend != "sdpa" and mask is None and (ops := _xformers()) is not None:
        return ops.memory_efficient_attention(q_BLND, k_BLND, v_BLND)
    out = F.scaled_dot_product_attention(
        q_BLND.transpose(1, 2), k_BLND.transpose(1, 2), v_BLND.transpose(1, 2), attn_mask=mask
    )
    return out.transpose(1, 2)


@cache
def _xformers() -> Any:
    """The xformers kernels, or None where they are absent or broken (said once)."""
    try:
        import xformers.ops as ops  # type: ignore[import-not-found, unused-ignore]
    except (ImportError, OSError) as error:
        logging.getLogger("ditic_stream").info("xformers is not usable (%s): attention runs on torch's kernels", error)
        return None
    return ops
