"""The entropy model in floating point, as it is trained: a hyperprior over quantised latents, at a continuous rate
level.

In: features (B, C, h, w) and a level per picture (B,), 0..7.  Out: bits, and the noisy latent with its known spread.
Coding itself runs on the fixed-point twin of these networks (`ditic_stream.entropy`), made by
`ditic_stream.training.export`.

Every element y is scaled by a gain per channel and level, and coded as round(y - mean) under a Gaussian of known width;
mean and width come from the hyper-latent z (1/64), which is coded under a fixed width per channel and level.

Where the config has a `context`, so many leading channels, the coarse ones, are coded first and in three passes over
the cells of a tile: one in four, then those between four of these, then the rest.  Cells that are known correct the
mean and width of those between them (`Near`); all coarse channels then correct those of the others (`Context`).  After
the checkerboard of He et al. (arXiv 2103.15306) and the channel-wise context of Minnen and Singh (arXiv 2007.08739).
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


CONTEXT_STEPS = 12
"""Integer steps of the context's input to a factor of two in 1 + |value|; 12 keeps every value within +-127."""


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
        """Activations (B, hyper, 2 h, 2 w), of which `out` makes mean and log-scale."""
        x = F.relu(self.conv1(z_BNhw) + at_level(self.level, level_B)[:, :, None, None])
        x = F.relu(F.pixel_shuffle(self.expand(x), 2))
        return F.relu(self.conv3(F.relu(self.conv2(x))))


class Context(nn.Module):
    """Coarse channels as they were coded, and the hyperprior's activations -> corrections to the mean and log-scale of
    `out` channels.  ReLU only; starts at zero."""

    def __init__(self, config: ModelConfig, out: int) -> None:
        super().__init__()
        n = config.hyper
        self.conv = nn.Conv2d(config.context, n, 3, padding=1)
        self.join = nn.Conv2d(2 * n, n, 1)
        self.out = nn.Conv2d(n, 2 * out, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, value_BChw: Tensor, hyper_BNhw: Tensor) -> Tensor:
        x = F.relu(self.conv(compress(value_BChw)))
        return self.out(F.relu(self.join(torch.cat([x, hyper_BNhw], 1))))


class Near(Context):
    """Cells that are known, as differences from the hyperprior's mean (0 where they are not) -> corrections between
    them.  Beside the network a share of the known neighbours' mean difference, since that has to be linear: local means
    of neighbouring cells are much alike."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, config.context)
        self.share = nn.Parameter(torch.zeros(2, config.context))

    def forward(self, difference_BChw: Tensor, hyper_BNhw: Tensor, step: int = 0) -> Tensor:
        """step 0: cells between four diagonal neighbours; 1: between four adjacent ones."""
        mean, log_scale = super().forward(difference_BChw, hyper_BNhw).float().chunk(2, 1)
        return torch.cat([mean + self.share[step][:, None, None] * between(difference_BChw, step), log_scale], 1)


NEIGHBOURS = (((-1, -1), (-1, 1), (1, -1), (1, 1)), ((-1, 0), (0, -1), (0, 1), (1, 0)))
"""Offsets (row, column) of the cells that are known around one, in the second and in the third pass."""


def pass_of_cells(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """The pass each cell of a tile is coded in, 0..2: even row and column; odd row and column; the rest."""
    row, col = torch.arange(height, device=device)[:, None] % 2, torch.arange(width, device=device) % 2
    return torch.where(row == col, row, 2)


def between(value_BChw: Tensor, step: int) -> Tensor:
    """Mean over the neighbours that lie in the tile."""
    height, width = value_BChw.shape[2:]
    padded = F.pad(torch.cat([value_BChw, torch.ones_like(value_BChw[:, :1])], 1), (1, 1, 1, 1))
    known = [padded[:, :, 1 + r : 1 + r + height, 1 + c : 1 + c + width] for r, c in NEIGHBOURS[step]]
    total = torch.stack(known).sum(0)
    return total[:, :-1] / total[:, -1:].clamp_min(1)


def compress(value: Tensor) -> Tensor:
    """A value in steps on a logarithmic scale, odd and smooth: what tells most of other channels' scale is the order of
    magnitude, and what fits 8 bits is that.  The fixed-point twin looks CONTEXT_STEPS times this up in a table."""
    return value.sign() * (1 + value.abs()).log2()


class LatentCodec(nn.Module):
    """Gains, hyperprior and rates."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.analysis = HyperAnalysis(config)
        self.synthesis = HyperSynthesis(config)
        self.config = config
        self.near = Near(config) if config.context else None
        self.context = Context(config, config.latent - config.context) if config.context else None
        self.log_gain = nn.Parameter(torch.zeros(LEVELS, config.latent))
        self.log_scale = nn.Parameter(torch.zeros(LEVELS, config.latent))
        self.log_gain_z = nn.Parameter(torch.linspace(-1.5, 1.0, LEVELS)[:, None].repeat(1, config.hyper_z))
        self.log_scale_z = nn.Parameter(torch.zeros(LEVELS, config.hyper_z))
        self.register_buffer("feature_std", torch.ones(config.latent))
        self.hard_share = 0.0
        self.noise: torch.Generator | None = None
        """Where the noise of training comes from; None: torch's own generator."""

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
        hyper = self.synthesis(z_hard, level_B)[:, :, : f_BChw.shape[2], : f_BChw.shape[3]]
        gain = self.gain(level_B)
        value = f_BChw.float() * gain
        mean, log_scale = self.synthesis.out(hyper).float().chunk(2, 1)
        log_scale = log_scale + at_level(self.log_scale, level_B)[:, :, None, None]
        if self.context is not None:
            mean, log_scale = self._in_context(value, mean, log_scale, hyper)
        scale = log_scale.clamp(LOG_SCALE_MIN, LOG_SCALE_MAX).exp()
        quantised = _rounded(value, mean)
        return Quantised(
            noisy=quantised / gain,
            spread=spread(scale) / gain,
            bits_y=self._bits(value - mean, quantised - mean, scale),
            bits_z=self._bits(z, z_hard, z_scale),
        )

    def _in_context(self, value: Tensor, mean: Tensor, log_scale: Tensor, hyper: Tensor) -> tuple[Tensor, Tensor]:
        """The hyperprior's mean and log-scale, corrected by what is coded before each element."""
        assert self.near is not None and self.context is not None
        first, turn = self.config.context, pass_of_cells(value.shape[2], value.shape[3], value.device)
        coarse, prior, mean1, scale1 = value[:, :first], mean[:, :first], mean[:, :first], log_scale[:, :first]
        for step in (0, 1):
            known = (_rounded(coarse, mean1) - prior) * (turn <= step)
            more_mean, more_scale = self.near(known, hyper, step).chunk(2, 1)
            here = turn == step + 1
            mean1, scale1 = torch.where(here, prior + more_mean, mean1), torch.where(here, scale1 + more_scale, scale1)
        more_mean, more_scale = self.context(_rounded(coarse, mean1), hyper).float().chunk(2, 1)
        return (
            torch.cat([mean1, mean[:, first:] + more_mean], 1),
            torch.cat([scale1, log_scale[:, first:] + more_scale], 1),
        )

    def _bits(self, value: Tensor, rounded: Tensor, scale: Tensor) -> Tensor:
        hard = self.hard_share if self.training else 1.0
        bits = torch.zeros(len(value), device=value.device)
        if hard < 1:
            noise = torch.rand(value.shape, generator=self.noise, device=value.device, dtype=value.dtype)
            bits = bits + (1 - hard) * gaussian_bits(value + noise - 0.5, scale).sum((1, 2, 3))
        if hard > 0:
            bits = bits + hard * gaussian_bits(rounded, scale).sum((1, 2, 3))
        return bits


def _rounded(value: Tensor, mean: Tensor) -> Tensor:
    """What a decoder gets of `value`; its gradient is that of the identity."""
    residual = (value - mean).detach()
    return value + (residual.round() - residual)


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
