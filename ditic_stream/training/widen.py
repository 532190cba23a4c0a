"""Start a wider network from a narrower one that is trained: what that one does is kept, what it drops can be learnt.

In: two networks and crops (B, 3, H, W), 0..1.  Changes the wider network in place.  What both have is copied; residual
blocks that the narrower one lacks stay identities.  Added channels at 1/16 and of the latent are those combinations of
what the encoder sees that tell most, by reduced-rank regression, of what the narrower network gets wrong even when
nothing is rounded; they are coded about as finely as the last channels there were.  Then the decoder learns what to
draw of them, while all else stands still: trained at once, what costs bits and draws nothing yet would fade away.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditic_stream.models.config import LEVELS
from ditic_stream.models.layers import lap, lapped_basis
from ditic_stream.models.network import Network
from ditic_stream.training.losses import STRUCTURE, STRUCTURE_SHARE, squared_error, structure_loss

FINEST, COARSER = 128, 0.35
"""So many of the last channels of a latent tell how finely added ones are coded, and the logarithm of how much coarser:
at the highest rates a narrow latent is coded too finely, since nothing else is left to spend on."""
HALVES = {"codec.synthesis.out": 0, "codec.context.out": 0, "step.embed": 1}
"""Layers of two numbers a latent channel, and the axis on which the two halves lie."""
RIDGE = 1e-3
"""Of the regressions, in mean squares of what they regress on."""
PASSES, RATE = 4, 3e-3
"""How often the decoder sees the crops when it learns what to make of added channels, and the learning rate."""
FROM_LEVEL = 4.0
"""The lowest rate level it sees; below, next to nothing of what is added is coded."""


@torch.no_grad()
def widen(wide: Network, narrow: Network, crops_B3HW: Tensor) -> None:
    """Set `wide` from `narrow`, whose residual blocks have as many channels and which is nowhere wider or deeper."""
    theirs, ours = narrow.state_dict(), wide.state_dict()
    for name, tensor in theirs.items():
        halves = HALVES.get(name.rpartition(".")[0])
        _copy_leading(ours[name], tensor, halves if halves is not None and halves < tensor.ndim else None)

    encoder, codec, kept = wide.encoder, wide.codec, narrow.config.latent
    wider16, wider32 = wide.config.c16 > narrow.config.c16, wide.config.latent > kept
    seen8, missed = [], []
    for x in crops_B3HW.split(8):
        y = narrow.decoder(narrow.encoder(x), torch.full((len(x),), float(LEVELS - 1)))
        seen8.append(lap(encoder.blocks8(encoder.stem(F.pad(x - 0.5, (4, 4, 4, 4), mode="reflect")))))
        missed.append(_coefficients(x - y))
    lost = torch.cat(missed)
    if wider16:
        _add(encoder.merge16, narrow.config.c16, torch.cat(seen8), F.pixel_unshuffle(lost, 2))
    seen = torch.cat([lap(encoder.blocks16(encoder.merge16(x))) for x in seen8])
    if wider32:
        _add(encoder.merge32, kept, seen, F.pixel_unshuffle(lost, 4))

    features = encoder.merge32(seen)
    if wider16:
        passing = F.pixel_unshuffle(torch.cat([encoder.merge16(x)[:, narrow.config.c16 :] for x in seen8]), 2)
        rows = _regression(_samples(features), _samples(passing))
        wide.decoder.split16.weight[4 * narrow.config.c16 :] = rows.float()[:, :, None, None]

    if wider32:
        codec.feature_std[kept:] = features[:, kept:].std((0, 2, 3))
        size = codec.feature_std.log()
        steps = (codec.log_gain - size)[:, :kept][:, -FINEST:].median(1, keepdim=True).values
        codec.log_gain[:, kept:] = steps + size[kept:] - COARSER
        codec.log_scale[:, kept:] = codec.log_gain[:, kept:] + size[kept:] - 0.5
    _learn_to_draw(wide, narrow, crops_B3HW)


@torch.enable_grad()
def _learn_to_draw(wide: Network, narrow: Network, crops_B3HW: Tensor) -> None:
    """Train what the decoder makes of added channels as they are coded, and nothing else."""
    layers = ((wide.decoder.split16, narrow.decoder.split16), (wide.decoder.split8, narrow.decoder.split8))
    drawn = {layer.weight: old.weight.shape for layer, old in layers}
    optimiser = torch.optim.Adam(drawn, lr=RATE)
    batches = PASSES * crops_B3HW.split(8)
    for step, x in enumerate(batches):
        optimiser.param_groups[0]["lr"] = RATE * (1 - step / len(batches))
        level = torch.linspace(FROM_LEVEL, LEVELS - 1, len(x))
        with torch.no_grad():
            coded = wide.codec(wide.encoder(x), level)
            latent = wide.step(coded.noisy, coded.spread, wide.codec.feature_std, (0, 0))
        y = wide.decoder(latent, level)
        error, structure = squared_error(x, y), structure_loss(x, y)
        loss = ((1 - STRUCTURE_SHARE) * error + STRUCTURE_SHARE * STRUCTURE * structure).mean()
        loss.backward(inputs=list(drawn))
        for weight, (rows, columns, *_) in drawn.items():
            assert weight.grad is not None
            weight.grad[:rows, :columns] = 0
        optimiser.step()
        optimiser.zero_grad()


def _copy_leading(ours: Tensor, theirs: Tensor, halves: int | None) -> None:
    """Theirs into the leading part of every axis of ours, or into that of both halves of one; 0 elsewhere."""
    if ours.shape == theirs.shape:
        ours.copy_(theirs)
        return
    ours.zero_()
    pairs = [(ours, theirs)] if halves is None else zip(ours.chunk(2, halves), theirs.chunk(2, halves), strict=True)
    for into, part in pairs:
        into[tuple(slice(n) for n in part.shape)] = part


def _coefficients(x_B3HW: Tensor) -> Tensor:
    """Lapped transform, (B, 192, H / 8, W / 8): orthonormal, so squared coefficients are squared pixels."""
    basis = torch.from_numpy(np.ascontiguousarray(lapped_basis(stretch=1.0)[0])).float()
    kernel = torch.einsum("ui,vj->uvij", basis, basis).reshape(64, 1, 16, 16)
    return F.conv2d(F.pad(x_B3HW, (4, 4, 4, 4), mode="reflect"), kernel.repeat(3, 1, 1, 1), stride=8, groups=3)


def _samples(x_BChw: Tensor) -> Tensor:
    """(C, B * h * w), without their mean, float64."""
    flat = x_BChw.movedim(1, 0).flatten(1).double()
    return flat - flat.mean(1, keepdim=True)


def _regression(x_CN: Tensor, y_KN: Tensor) -> Tensor:
    """The matrix (K, C) that makes y of x with the least squared error."""
    square = x_CN @ x_CN.T
    square += RIDGE * square.diagonal().mean() * torch.eye(len(square), dtype=square.dtype)
    return torch.linalg.solve(square, y_KN @ x_CN.T, left=False)


def _add(merge: nn.Conv2d, kept: int, x_BCHW: Tensor, lost_BKhw: Tensor) -> None:
    """Set the rows of `merge` after the first `kept`: those that tell most of what was lost from 2x2 cells of x."""
    cells = F.pixel_unshuffle(x_BCHW, 2)
    x_CN, lost_KN = _samples(cells), _samples(lost_BKhw)
    regression = _regression(x_CN, lost_KN)
    _, vectors = torch.linalg.eigh(regression @ x_CN @ lost_KN.T)
    rows = vectors.flip(1)[:, : merge.out_channels - kept].T @ regression
    rows *= (rows @ x_CN).square().mean(1, keepdim=True).pow(-0.25)  # activations stay near one
    assert merge.bias is not None
    merge.weight[kept:] = rows.float().unflatten(1, (-1, 2, 2))
    merge.bias[kept:] = -(rows @ cells.mean((0, 2, 3)).double()).float()
