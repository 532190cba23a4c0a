"""Start a network from principal components: the linear path codes well before the first training step.

The stem is the lapped transform followed by the principal components of its coefficients; each merge takes 2x2 cells to
their principal components.  The three local means stay the first three channels throughout, because they are lapped.
Gains and scale tables follow from high-rate theory.  In: crops (B, 3, H, W), 0..1.  Changes the network in place.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ditic_stream.models.config import LEVELS
from ditic_stream.models.layers import LAP_CHANNELS, lap, lapped_basis
from ditic_stream.models.network import Network
from ditic_stream.training.losses import rate_weight

HIGH_RATE = 2 * math.log(2) * 65025 / 36
"""Squared reciprocal of the best step per unit of lambda: from rate log2, error step^2 / 12, three values a pixel."""


@torch.no_grad()
def principal_start(network: Network, crops_B3HW: Tensor) -> None:
    """Set the linear path, gains and tables from `crops_B3HW`."""
    config, n = network.config, LAP_CHANNELS
    analysis, synthesis = (torch.from_numpy(np.ascontiguousarray(b)).float() for b in lapped_basis())
    forward = torch.einsum("ui,vj->uvij", analysis, analysis).reshape(64, 1, 16, 16)
    backward = torch.einsum("ui,vj->uvij", synthesis, synthesis).reshape(64, 16, 16)

    padded = F.pad(crops_B3HW - 0.5, (4, 4, 4, 4), mode="reflect")
    coefficients = F.conv2d(padded, forward.repeat(3, 1, 1, 1), stride=8, groups=3)
    means, details = [0, 64, 128], [i for i in range(192) if i % 64]
    mix8 = torch.zeros(config.c8, 192)
    mix8[:n, means] = _principal(coefficients[:, means], n)
    mix8[n:, details] = _principal(coefficients[:, details], config.c8 - n)
    map8 = torch.einsum("kc,bchw->bkhw", mix8, coefficients)
    mix16, map16 = _merge(lap(map8), config.c16)
    mix32, map32 = _merge(lap(map16), config.latent)

    # Features are coefficients times std^-1/2, so that activations stay near one; the weights carry it both ways.
    white8, white16, white32 = (m.pow(2).mean((0, 2, 3)).sqrt().clamp_min(1e-4).rsqrt() for m in (map8, map16, map32))
    encoder, decoder, codec = network.encoder, network.decoder, network.codec
    encoder.stem.weight.copy_(
        torch.einsum("kcu,uij->kcij", mix8.reshape(-1, 3, 64), forward[:, 0]) * white8[:, None, None, None]
    )
    encoder.merge16.weight.copy_((mix16 / white8[:, None, None]) * white16[:, None, None, None])
    encoder.merge32.weight.copy_((mix32 / white16[:, None, None]) * white32[:, None, None, None])
    decoder.split16.weight.copy_(_transpose(mix32 * white16.reciprocal()[:, None, None].reciprocal(), white32))
    decoder.split8.weight.copy_(_transpose(mix16 * white8[:, None, None], white16))
    decoder.head.weight.copy_(_head(mix8, backward, white8))
    for layer in (encoder.stem, encoder.merge16, encoder.merge32, decoder.split16, decoder.split8, decoder.head):
        torch.nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    std = white32.square().reciprocal()
    lambdas = torch.tensor([rate_weight(float(level)) for level in range(LEVELS)])
    steps = (HIGH_RATE * lambdas).sqrt()
    codec.feature_std.copy_(std * white32)
    codec.log_gain.copy_((steps[:, None] / white32).log())
    codec.log_scale.copy_((std * steps[:, None]).log() - 0.5)


def _principal(x_BCHW: Tensor, keep: int) -> Tensor:
    """Leading eigenvectors of the second moments over channels, as rows (keep, C)."""
    flat = x_BCHW.movedim(1, 0).flatten(1).double()
    _, vectors = torch.linalg.eigh(flat @ flat.T / flat.shape[1])
    rows = vectors.flip(1).T[:keep]
    return (rows * rows.sum(1, keepdim=True).sign()).float()


def _merge(x_BCHW: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Weights (keep, C, 2, 2) of an orthonormal 2x2 merge and what it gives; means of means come first."""
    n, channels = LAP_CHANNELS, x_BCHW.shape[1]
    haar = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
    patches = F.pixel_unshuffle(x_BCHW, 2).unflatten(1, (channels, 4))
    means = torch.einsum("qp,bcphw->bcqhw", haar, patches[:, :n])
    rest = torch.cat([means[:, :, 1:].flatten(1, 2), patches[:, n:].flatten(1, 2)], 1)
    components = _principal(rest, keep - n)
    weight = torch.zeros(keep, channels, 4)
    for channel in range(n):
        weight[channel, channel] = haar[0]
    weight[n:, :n] = torch.einsum("kcq,qp->kcp", components[:, : 3 * n].unflatten(1, (n, 3)), haar[1:])
    weight[n:, n:] = components[:, 3 * n :].unflatten(1, (channels - n, 4))
    return weight.unflatten(2, (2, 2)), torch.einsum("kcp,bcphw->bkhw", weight, patches)


def _transpose(mix: Tensor, white: Tensor) -> Tensor:
    """1x1 weights (C * 4, keep, 1, 1) of the inverse of an orthonormal merge whose outputs were scaled by `white`."""
    return (mix / white[:, None, None, None]).flatten(1).T[:, :, None, None]


def _head(mix8: Tensor, backward: Tensor, white8: Tensor) -> Tensor:
    """3x3 weights (192, c8, 3, 3) that draw lapped functions, 16 px wide, into blocks of 8."""
    pictures = torch.einsum("kcu,uij->kcij", mix8.reshape(-1, 3, 64), backward) / white8[:, None, None, None]
    canvas = F.pad(pictures, (4, 4, 4, 4)).reshape(-1, 3, 3, 8, 3, 8)
    # A block at offset (dy, dx) from a cell is drawn by that cell's part there; the kernel looks the other way.
    return canvas.flip(2, 4).permute(1, 3, 5, 0, 2, 4).reshape(192, -1, 3, 3)
