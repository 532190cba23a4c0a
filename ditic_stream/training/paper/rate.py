"""Bits of the latent and the hyper-latent, so that gradients pass.

In: the latent codec and a latent in steps.  Out: what the decoder would see, and bits a picture.  The decoder's side
sees values that are rounded pass by pass, as in coding, with the gradient of no rounding (straight through); the bits
are those of the latent with uniform noise in place of rounding, or of the rounded one where no noise is given.  Knows
no pixels.

Bits of y are counted under the scales that networks give, not under the next of the 64 known widths; z's under the
factorised prior (J. Ballé et al., arXiv 1802.01436, appendix 6.1).  The medians of z are where its rounding stands and
stay as they are; its tails are found anew at the end (`set_tails`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ditic_stream.models.paper.config import SCALE_MIN
from ditic_stream.models.paper.entropy import Decoded, FactorisedPrior, Plane, Rounding, run_passes
from ditic_stream.models.paper.latent_codec import LatentCodec
from ditic_stream.models.paper.seeded import TAIL_MASS
from ditic_stream.models.paper.tables import MAX_REACH

LOG2 = math.log(2)
LEAST = 1e-9
"""Probability below which a symbol of z does not fall."""
BISECTIONS = 64


@dataclass(frozen=True)
class Coded:
    """`decoded`: what the decoder sees; `bits` (B,): of both latents."""

    decoded: Decoded
    bits: Tensor


class AtLeast(torch.autograd.Function):
    """max(x, bound), whose gradient passes below the bound, too, where it leads upwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bound = bound
        return x.clamp_min(bound)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return gradients[0] * ((x >= ctx.bound) | (gradients[0] < 0)), None


def rounded(x: Tensor) -> Tensor:
    """x rounded, with the gradient of x."""
    return x + (torch.round(x) - x).detach()


def noisy(x: Tensor, noise: torch.Generator | None) -> Tensor:
    """x with uniform noise of one step, or rounded where there is none to draw from."""
    if noise is None:
        return rounded(x)
    return x + torch.rand(x.shape, generator=noise, device=x.device, dtype=x.dtype) - 0.5


def gaussian_bits(residual: Tensor, scale: Tensor) -> Tensor:
    """Bits of a step around `residual` under a Gaussian of mean 0, element for element.

    In logarithms, so that far values have a gradient.  scale: raw; below 0.11 it counts as that.
    """
    scale, distance = AtLeast.apply(scale, SCALE_MIN), residual.abs()
    upper, lower = (torch.special.log_ndtr((edge - distance) / scale) for edge in (0.5, -0.5))
    # log(e^upper - e^lower); the second term tends to 0 where the lower edge is far out
    return -(upper + torch.log(-torch.expm1((lower - upper).clamp_max(-1e-7)))) / LOG2


def prior_logits(prior: FactorisedPrior, values_C1n: Tensor) -> Tensor:
    """Logits of the cumulative of each channel at values (160, 1, n), in their type."""
    x, factors = values_C1n, list(prior.factors)
    for layer, (matrix, bias) in enumerate(zip(prior.matrices, prior.biases, strict=True)):
        x = F.softplus(matrix.to(x.dtype)) @ x + bias.to(x.dtype)
        if layer < len(factors):
            x = x + torch.tanh(factors[layer].to(x.dtype)) * torch.tanh(x)
    return x


def prior_bits(prior: FactorisedPrior, z_BChw: Tensor) -> Tensor:
    """Bits of a step around each value of the hyper-latent, (B, 160, h, w)."""
    values = z_BChw.movedim(1, 0).flatten(1)[:, None]
    lower, upper = (prior_logits(prior, values + shift) for shift in (-0.5, 0.5))
    side = torch.where(lower + upper > 0, -1.0, 1.0).detach()  # where a sigmoid is near 1 its mirror keeps the digits
    mass = (torch.sigmoid(side * upper) - torch.sigmoid(side * lower)).abs()
    bits = -torch.log(AtLeast.apply(mass, LEAST)) / LOG2
    batch, channels, *size = z_BChw.shape
    return bits[:, 0].reshape(channels, batch, *size).movedim(0, 1)


class Counting(Rounding):
    """The encoder's side of `run_passes` in training: rounds with a gradient and adds up `bits` (B,)."""

    def __init__(self, y_BChw: Tensor, noise: torch.Generator | None) -> None:
        super().__init__(y_BChw)
        self._noise, self.bits = noise, torch.zeros(len(y_BChw), device=y_BChw.device)

    def __call__(self, plane: Plane) -> Tensor:
        residual = self.residual(plane)
        self.bits = self.bits + gaussian_bits(noisy(residual, self._noise), plane.scale).flatten(1).sum(1)
        return rounded(residual)


def code(codec: LatentCodec, y_BChw: Tensor, noise: torch.Generator | None = None) -> Coded:
    """Code y (B, 320, h, w), in steps, h and w multiples of 4.  noise: where it is drawn from, on y's device; None
    counts the bits of what is rounded, as for a report."""
    prior = codec.entropy_bottleneck
    medians = prior.medians.detach()
    z = codec.h_a(y_BChw)
    bits = prior_bits(prior, noisy(z - medians, noise) + medians).flatten(1).sum(1)
    passes = Counting(y_BChw, noise)
    decoded = run_passes(codec, rounded(z - medians) + medians, passes)
    return Coded(decoded, bits + passes.bits)


@torch.no_grad()
def set_tails(prior: FactorisedPrior) -> None:
    """Put the outer quantiles where 1e-9 of each channel's mass is left outside, half a side, found by bisection; no
    nearer than a step to the median, which stays, no farther than tables reach."""
    medians = prior.quantiles[:, 0, 1].double()
    for place, wanted in ((0, -1.0), (2, 1.0)):
        target = wanted * math.log(2 / TAIL_MASS - 1)
        low, high = medians - MAX_REACH + 1, medians + MAX_REACH - 1
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            below = prior_logits(prior, middle[:, None, None])[:, 0, 0] < target
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        tail = torch.minimum(high, medians - 1) if wanted < 0 else torch.maximum(high, medians + 1)
        prior.quantiles[:, 0, place] = tail.to(prior.quantiles.dtype)
