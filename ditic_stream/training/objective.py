"""What a training step minimises, from crops and a network: bits plus distortion at each crop's own rate level.

In: crops (B, 3, H, W), 0..1, and a level each (B,), 0..7.  Out: the loss, and for the log four means: log of rate plus
weighted distortion, bits per pixel, squared error, structural error.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ditic_stream.models.config import LEVELS
from ditic_stream.models.network import Network
from ditic_stream.training.adversary import Adversary
from ditic_stream.training.losses import (
    STRUCTURE,
    STRUCTURE_SHARE,
    border_error,
    colour_error,
    flat_border_error,
    rate_weight,
    rate_weight_of,
    self_distillation,
    squared_error,
    structure_loss,
    tone_error,
)
from ditic_stream.training.perceptual import Features

LOW_RATES = 2.0
"""Rate level at which the terms of perception count half; they fall with its fourth power, so that what is sharp
anyway is kept true."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """Weights of the terms of the loss; 0 switches one off."""

    structure: float = STRUCTURE_SHARE
    """Share of the structural term in the distortion, 0..1; the rest is squared error."""
    colour: float = 0.2
    """Error of colour differences, beside the distortion."""
    border: float = 0.2
    """Error of steps across cell borders, beside the distortion."""
    flat: float = 4.0
    """The same in flat parts."""
    tone: float = 0.004
    """Bits per pixel that a squared level of error in the mean of a cell is worth, at every rate."""
    distillation: float = 0.0
    """Self-distillation (alignment 2 of DiT-IC, which weighs it 0.05); here it costs, see docs/experiments.md."""
    perceptual: float = 0.0
    """Distance of features (training.perceptual), at low rates; needs a features file."""
    adversarial: float = 0.0
    """Share of a discriminator's pull (training.adversary) in that of all other terms, at low rates; 0.5 is usual."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Critics:
    """Networks that judge pictures and are no part of the codec."""

    features: Features | None = None
    adversary: Adversary | None = None
    replica: int = 0
    """Which of the adversary's twins to ask."""


def low_rate_share(level_B: Tensor) -> Tensor:
    """How much the terms of perception count at rate levels, (B,): 1 at level 0, half at LOW_RATES, 0.007 at level
    7."""
    return 1 / (1 + (level_B / LOW_RATES) ** 4)


NO_CRITICS = Critics()


def whole_objective(
    network: Network,
    x_B3HW: Tensor,
    level_B: Tensor,
    anchor: tuple[int, int],
    terms: Terms,
    critics: Critics = NO_CRITICS,
) -> tuple[Tensor, Tensor]:
    """End to end: everything is trained.  The means are followed by those of the features' distance and of the
    discriminator's loss, where there are such critics."""
    y, coded, features, denoised = network(x_B3HW, level_B, anchor)
    y, weight = y.float(), rate_weight_of(level_B)
    bpp = (coded.bits_y + coded.bits_z) / (x_B3HW.shape[2] * x_B3HW.shape[3])
    error, structure = squared_error(x_B3HW, y), structure_loss(x_B3HW, y)
    distortion = (1 - terms.structure) * error + terms.structure * STRUCTURE * structure
    for share, term in ((terms.colour, colour_error), (terms.border, border_error), (terms.flat, flat_border_error)):
        if share:
            distortion = distortion + share * term(x_B3HW, y)
    loss = bpp + weight * distortion
    if terms.tone:
        loss = loss + terms.tone * tone_error(x_B3HW, y)
    total = _balanced(loss, weight)
    if terms.distillation:
        total = total + terms.distillation * self_distillation(features, denoised, network.codec.feature_std).mean()
    means = [loss.log().mean(), bpp.mean(), error.mean(), structure.mean()]
    low = low_rate_share(level_B)
    if critics.features is not None:
        distance = critics.features.distance(x_B3HW, y)
        total = total + terms.perceptual * (low * distance).mean()
        means.append(distance.mean())
    if critics.adversary is not None:
        pull, apart = critics.adversary.pull(critics.replica, x_B3HW, y, low, total, network.decoder.head.weight)
        total = total + terms.adversarial * pull
        means.append(apart)
    return total, torch.stack(means)


def entropy_objective(
    network: Network,
    x_B3HW: Tensor,
    level_B: Tensor,
    anchor: tuple[int, int],
    terms: Terms,
    critics: Critics = NO_CRITICS,
) -> tuple[Tensor, Tensor]:
    """Rate alone, of latents that stay as they are: no pixel is decoded, so a step costs a fraction."""
    with torch.no_grad():
        features = network.encoder(x_B3HW).float()
    coded = network.codec(features, level_B)
    bpp = (coded.bits_y + coded.bits_z) / (x_B3HW.shape[2] * x_B3HW.shape[3])
    zero = torch.zeros(())
    return _balanced(bpp, rate_weight_of(level_B)), torch.stack([bpp.log().mean(), bpp.mean(), zero, zero])


def _balanced(loss_B: Tensor, weight_B: Tensor) -> Tensor:
    """Mean in which all levels pull alike."""
    return (loss_B * (rate_weight((LEVELS - 1) / 2) / weight_B).sqrt()).mean()
