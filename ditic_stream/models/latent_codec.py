"""The entropy model in floating point, as it is trained: a hyperprior over quantised latents, at a continuous rate
level.

In: features (B, C, h, w) and a level per picture (B,), 0..7.  Out: bits, and the noisy latent with its known spread.
Coding itself runs on the fixed-point twin of these networks (`ditic_stream.entropy`), made by
`ditic_stream.training.export`.

Every element y is scaled by a gain per channel and level, and coded as round(y - mean) under a Gaussian of known width;
mean and width come from the hyper-latent z (1/64), which is coded under a fixed width per channel and level.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditic_stream.models.config import LEVELS, LOG_SCALE_MAX, LOG_SCALE_MIN, ModelConfig

Z_MAX = 127
"""Hyper-latent symbols are clipped to +-127, so that they fit the fixed-point networks' 8-bit inputs."""


@dataclass(frozen=True)
class Quantised:
    """What one pass of the entropy model gives: `noisy` (B,C,h,w) is what a decoder would hold, in feature units,
    `spread` its expected error's standard deviation; `bits_y`, `bits_z` (B,) are ideal code lengths."""

    noisy: Tensor
    spread: Tensor
    bits_y: Tensor
    bits_z: Tensor


def at_level(table_LK: Tensor, level_B: Tensor) -> Tensor:
    """Rows of a per-level table, interpolated linearly: (LEVELS, K) and (B,) -> (B, K)."""
    low = level_B.floor().clamp(0, LEVELS - 2).long()
    part = (level_B - low).unsqueeze(1)
    return table_LK[low] * (1 - part) + table_LK[low + 1] * part


class HyperAnalysis(nn.Module):
    """Normalised latent -> hyper-latent before rounding (B, Nz, ceil(h/2), ceil(w/2)).  Encoder only, so floats are
    fine."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(config.latent, config.hyper, 3, padding=1)
        self.level = nn.Parameter(torch.zeros(LEVELS, config.hyper))
        self.conv2 = nn.Conv2d(config.hyper, config.hyper, 2, stride=2)
        self.conv3 = nn.Conv2d(config.hyper, config.hyper_z, 3, padding=1)

    def forward(self, y_BChw: Tensor, level_B: Tensor) -> Tensor:
        y_BChw = F.pad(y_BChw, (0, y_BChw.shape[3] % 2, 0, y_BChw.shape[2] % 2), mode="replicate")
        x = F.relu(self.conv1(y_BChw) + at_level(self.level, level_B)[:, :, None, None])
        return self.conv3(F.relu(self.conv2(x)))


class HyperSynthesis(nn.Module):
    """Hyper-latent -> mean and log-scale per element, before the level's scale table is added.  ReLU only: see
    `entropy`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        n = config.hyper
        self.conv1 = nn.Conv2d(config.hyper_z, n, 3, padding=1)
        self.level = nn.Parameter(torch.zeros(LEVELS, n))
        self.expand = nn.Conv2d(n, 4 * n, 1)
        self.conv2 = nn.Conv2d(n, n, 3, padding=1)
        self.conv3 = nn.Conv2d(n, n, 3, padding=1)
        self.out = nn.Conv2d(n, 2 * config.latent, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, z_BNhw: Tensor, level_B: Tensor) -> Tensor:
        x = F.relu(self.conv1(z_BNhw) + at_level(self.level, level_B)[:, :, None, None])
        x = F.relu(F.pixel_shuffle(self.expand(x), 2))
        x = F.relu(self.conv3(F.relu(self.conv2(x))))
        return self.out(x)


class LatentCodec(nn.Module):
    """Gains, hyperprior and rates."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.analysis = HyperAnalysis(config)
        self.synthesis = HyperSynthesis(config)
        self.log_gain = nn.Parameter(torch.zeros(LEVELS, config.latent))
        self.log_scale = nn.Parameter(torch.zeros(LEVELS, config.latent))
        self.log_gain_z = nn.Parameter(torch.linspace(-1.5, 1.0, LEVELS)[:, None].repeat(1, config.hyper_z))
        self.log_scale_z = nn.Parameter(torch.zeros(LEVELS, config.hyper_z))
        self.register_buffer("feature_std", torch.ones(config.latent))
        self.hard_share = 0.0

    feature_std: Tensor
    hard_share: float
    """Share of the rate that is counted on rounded symbols; the rest on noisy ones, whose gradient is smooth but which
    cost an element near zero more than coding does.  In evaluation mode all of it is."""

    def hyper(self, f_BChw: Tensor, level_B: Tensor) -> Tensor:
        """The hyper-latent in quantisation steps, not rounded, float32."""
        z = self.analysis(f_BChw / self.feature_std[:, None, None], level_B).float()
        return z * at_level(self.log_gain_z, level_B).exp()[:, :, None, None]

    def gain(self, level_B: Tensor) -> Tensor:
        """Steps per feature unit: (B, C, 1, 1)."""
        return at_level(self.log_gain, level_B).exp()[:, :, None, None]

    def forward(self, f_BChw: Tensor, level_B: Tensor) -> Quantised:
        z = self.hyper(f_BChw, level_B)
        z_scale = at_level(self.log_scale_z, level_B).clamp(LOG_SCALE_MIN, LOG_SCALE_MAX).exp()[:, :, None, None]
        z_hard = z + (z.detach().round().clamp(-Z_MAX, Z_MAX) - z.detach())
        mean, log_scale = (
            self.synthesis(z_hard, level_B)[:, :, : f_BChw.shape[2], : f_BChw.shape[3]].float().chunk(2, 1)
        )
        log_scale = (log_scale + at_level(self.log_scale, level_B)[:, :, None, None]).clamp(
            LOG_SCALE_MIN, LOG_SCALE_MAX
        )
        scale = log_scale.exp()
        gain = self.gain(level_B)
        residual = f_BChw.float() * gain - mean
        symbols = residual + (residual.detach().round() - residual.detach())
        return Quantised(
            noisy=(symbols + mean) / gain,
            spread=spread(scale) / gain,
            bits_y=self._bits(residual, symbols, scale),
            bits_z=self._bits(z, z_hard, z_scale),
        )

    def _bits(self, value: Tensor, rounded: Tensor, scale: Tensor) -> Tensor:
        hard = self.hard_share if self.training else 1.0
        bits = torch.zeros(len(value), device=value.device)
        if hard < 1:
            bits = bits + (1 - hard) * gaussian_bits(value + torch.rand_like(value) - 0.5, scale).sum((1, 2, 3))
        if hard > 0:
            bits = bits + hard * gaussian_bits(rounded, scale).sum((1, 2, 3))
        return bits


def spread(scale: Tensor) -> Tensor:
    """Expected standard deviation of the quantisation error, in steps, of a Gaussian of `scale` steps: the scale itself
    while everything rounds to the mean, 1/sqrt(12) at high rate."""
    square = scale * scale
    return (square / (1 + 12 * square)).sqrt()


def gaussian_bits(value: Tensor, scale: Tensor) -> Tensor:
    """Bits of a unit-wide bin around `value` under a zero-mean Gaussian."""
    value = value.abs()
    root = math.sqrt(0.5)
    likelihood = 0.5 * (torch.erf((value + 0.5) / scale * root) - torch.erf((value - 0.5) / scale * root))
    return -likelihood.clamp_min(1e-6).log2()
