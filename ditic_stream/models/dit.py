"""One step of a diffusion transformer over noisy latents: y0 = noisy - spread * v, the variance-guided flow of DiT-IC.

In: the noisy latent, its expected error (`spread`), and where the window lies on the scene's latent grid.  Out: the
denoised latent.  The paper (arXiv 2603.13162) maps the decoded variance to a pseudo-time per position; here the network
sees that time per token (modulation) and per element (the step's length), and the condition tokens, of presets that
have them, come from the latent itself.

Attention runs in windows of 8x8 cells anchored at multiples of 8 on the scene's latent grid, so what a cell sees does
not depend on where a tile begins.  Cells a window lacks are masked.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditic_stream.models.config import ATTENTION_CELLS, ModelConfig
from ditic_stream.models.layers import attention

TIME_FEATURES = 33
BLIND = 0.25
"""Expected error of every element where the decoded variance is not used, in standard deviations of the feature."""


class OneStep(nn.Module):
    """The whole step."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.dim
        self.guided, conditioned = not config.unguided, not config.unconditioned
        self.embed = nn.Conv2d(2 * config.latent, dim, 1)
        self.condition = nn.Conv2d(config.latent, dim, 1) if conditioned else None
        self.time = nn.Sequential(nn.Conv2d(TIME_FEATURES, 64, 1), nn.SiLU(), nn.Conv2d(64, 9 * dim, 1))
        self.blocks = nn.ModuleList(
            Block(dim, config.heads, attends=i % 2 == 1, conditioned=conditioned) for i in range(config.depth)
        )
        self.out = nn.Conv2d(dim, config.latent, 1)
        for layer in (self.out, self.time[2]):
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, noisy_BChw: Tensor, spread_BChw: Tensor, std_C: Tensor, anchor: tuple[int, int]) -> Tensor:
        """anchor: (row, column) of the window on the scene's latent grid, modulo 8."""
        std = std_C[:, None, None]
        if not self.guided:
            spread_BChw = BLIND * std.expand_as(spread_BChw)
        relative = spread_BChw / std
        x = self.embed(torch.cat([noisy_BChw / std, 0.5 * (relative + 1e-6).log()], 1))
        time = relative.square().mean(1, keepdim=True).sqrt()
        modulation = self.time(_time_features(time).to(x.dtype))
        condition = self.condition(noisy_BChw / std) if self.condition is not None else None
        for block in self.blocks:
            x = block(x, condition, modulation, anchor)
        return noisy_BChw - spread_BChw * self.out(x).float()


class Block(nn.Module):
    """Optional windowed self- and cross-attention, then a gated convolutional feed-forward; adaLN-single modulation."""

    def __init__(self, dim: int, heads: int, *, attends: bool, conditioned: bool) -> None:
        super().__init__()
        self.heads, self.attends = heads, attends
        self.table = nn.Parameter(torch.zeros(9, dim))
        with torch.no_grad():
            self.table[2::3] = 0.2
        if attends:
            self.qkv = nn.Conv2d(dim, 3 * dim, 1)
            self.proj = nn.Conv2d(dim, dim, 1)
        if attends and conditioned:
            self.query = nn.Conv2d(dim, dim, 1)
            self.key_value = nn.Conv2d(dim, 2 * dim, 1)
            self.cross = nn.Conv2d(dim, dim, 1)
        self.wide = nn.Conv2d(dim, 2 * dim, 1)
        self.depthwise = nn.Conv2d(2 * dim, 2 * dim, 3, padding=1, groups=2 * dim)
        self.narrow = nn.Conv2d(2 * dim, dim, 1)

    def forward(
        self, x_BDhw: Tensor, condition_BDhw: Tensor | None, modulation: Tensor, anchor: tuple[int, int]
    ) -> Tensor:
        parts = [m + self.table[i][:, None, None] for i, m in enumerate(modulation.chunk(9, 1))]
        if self.attends:
            x_BDhw = x_BDhw + parts[2] * self._self_attention(_norm(x_BDhw, parts[0], parts[1]), anchor)
        if self.attends and condition_BDhw is not None:
            x_BDhw = x_BDhw + parts[5] * self._cross_attention(
                _norm(x_BDhw, parts[3], parts[4]), condition_BDhw, anchor
            )
        x = F.gelu(self.wide(_norm(x_BDhw, parts[6], parts[7])), approximate="tanh")
        return x_BDhw + parts[8] * self.narrow(F.gelu(self.depthwise(x), approximate="tanh"))

    def _self_attention(self, x_BDhw: Tensor, anchor: tuple[int, int]) -> Tensor:
        side = ATTENTION_CELLS
        tokens, mask = _windows(self.qkv(x_BDhw), side, anchor)
        q, k, v = tokens.unflatten(2, (3, self.heads, -1)).unbind(2)
        out = attention(_rotate(q), _rotate(k), v, mask)
        return self.proj(_unwindows(out.flatten(2), x_BDhw.shape, side, anchor))

    def _cross_attention(self, x_BDhw: Tensor, condition_BDhw: Tensor, anchor: tuple[int, int]) -> Tensor:
        side = ATTENTION_CELLS
        q, _ = _windows(self.query(x_BDhw), side, anchor)
        pooled, half_anchor = _pool(condition_BDhw, anchor)
        keys, mask = _windows(self.key_value(pooled), side // 2, half_anchor)
        k, v = keys.unflatten(2, (2, self.heads, -1)).unbind(2)
        out = attention(q.unflatten(2, (self.heads, -1)), k, v, mask)
        return self.cross(_unwindows(out.flatten(2), x_BDhw.shape, side, anchor))


def _norm(x_BDhw: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    x = F.layer_norm(x_BDhw.movedim(1, -1), (x_BDhw.shape[1],)).movedim(-1, 1)
    return x * (1 + scale) + shift


def _time_features(t_B1hw: Tensor) -> Tensor:
    """Sinusoids of the pseudo-time, 33 features: itself, and sine and cosine of 16 octave-spaced multiples."""
    angles = t_B1hw * (math.pi * 2.0 ** (torch.arange(16, device=t_B1hw.device) / 3))[:, None, None]
    return torch.cat([t_B1hw, angles.sin(), angles.cos()], 1)


def _windows(x_BDhw: Tensor, side: int, anchor: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
    """Cut into anchored windows: (B * windows, side * side, D), and a key mask where cells were padded."""
    height, width = x_BDhw.shape[2:]
    top, left = anchor[0] % side, anchor[1] % side
    bottom, right = -(top + height) % side, -(left + width) % side
    mask = None
    if top or left or bottom or right:
        inside = torch.zeros(1, 1, top + height + bottom, left + width + right, dtype=torch.bool, device=x_BDhw.device)
        inside[:, :, top : top + height, left : left + width] = True
        mask = _cut(inside, side).repeat(x_BDhw.shape[0], 1, 1).transpose(1, 2).unsqueeze(1)
        x_BDhw = F.pad(x_BDhw, (left, right, top, bottom))
    return _cut(x_BDhw, side), mask


def _cut(x: Tensor, side: int) -> Tensor:
    b, d, height, width = x.shape
    x = x.reshape(b, d, height // side, side, width // side, side).permute(0, 2, 4, 3, 5, 1)
    return x.reshape(-1, side * side, d)


def _unwindows(tokens: Tensor, shape: torch.Size, side: int, anchor: tuple[int, int]) -> Tensor:
    b, height, width = shape[0], shape[2], shape[3]
    top, left = anchor[0] % side, anchor[1] % side
    rows, cols = -(-(top + height) // side), -(-(left + width) // side)
    x = tokens.reshape(b, rows, cols, side, side, -1).permute(0, 5, 1, 3, 2, 4).reshape(b, -1, rows * side, cols * side)
    return x[:, :, top : top + height, left : left + width]


def _pool(x_BDhw: Tensor, anchor: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
    """Mean of 2x2 cells on the scene's grid, over the cells that are there."""
    height, width = x_BDhw.shape[2:]
    pad = (anchor[1] % 2, (anchor[1] + width) % 2, anchor[0] % 2, (anchor[0] + height) % 2)
    half = (anchor[0] // 2, anchor[1] // 2)
    if not any(pad):
        return F.avg_pool2d(x_BDhw, 2), half
    weight = F.avg_pool2d(F.pad(torch.ones_like(x_BDhw[:1, :1]), pad), 2)
    return F.avg_pool2d(F.pad(x_BDhw, pad), 2) / weight, half


def _rotate(x_BLND: Tensor) -> Tensor:
    """Two-dimensional rotary positions inside a window: half of a head's width turns with the row, half with the
    column."""
    length, width = x_BLND.shape[1], x_BLND.shape[3]
    side = math.isqrt(length)
    quarter = width // 4
    position = torch.arange(length, device=x_BLND.device)
    speed = 100.0 ** (-torch.arange(quarter, device=x_BLND.device) / quarter)
    angle = torch.cat([(position // side)[:, None] * speed, (position % side)[:, None] * speed], 1)[:, None, :]
    cos, sin = angle.cos().to(x_BLND.dtype), angle.sin().to(x_BLND.dtype)
    first, second = x_BLND.chunk(2, 3)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], 3)
