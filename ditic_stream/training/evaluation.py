"""What a report of a training run says: rate and quality of held-out crops, and steps at the borders of cells.

In: a network and pictures.  Out: numbers by rate level.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ditic_stream.models.network import Network
from ditic_stream.training.losses import rate_weight, squared_error, structure_loss

REPORTED = (0.0, 2.0, 4.0, 6.0)
"""Rate levels that are reported."""


@torch.no_grad()
def evaluate(network: Network, x_B3HW: Tensor) -> list[dict[str, float]]:
    """Ideal rate, mean PSNR and structure loss of held-out crops at levels 0, 2, 4, 6; float32, hard rounding."""
    rows = []
    for level in REPORTED:
        parts = []
        for x in x_B3HW.split(4):
            y, coded, _, _ = network(x, torch.full((len(x),), level, device=x.device))
            y = (y.clamp(0, 1) * 255).round() / 255
            bpp = (coded.bits_y + coded.bits_z) / (x.shape[2] * x.shape[3])
            error, structure = squared_error(x, y), structure_loss(x, y)
            parts.append(
                torch.stack([bpp, 10 * (65025 / error).log10(), structure, (bpp + rate_weight(level) * error).log()])
            )
        row = torch.cat(parts, 1).mean(1)
        rows.append(dict(zip(("bpp", "psnr", "structure", "log_j"), rounded(row), strict=True)))
    return rows


@torch.no_grad()
def block_steps(network: Network, device: torch.device | str = "cpu") -> list[dict[str, float]]:
    """Mean absolute gradient across multiples of 32, 16 and 8 px over that elsewhere, on smooth pictures; 1 is
    perfect."""
    x = smooth_pictures().to(device)
    rows = []
    for level in REPORTED:
        y = network(x, torch.full((len(x),), level, device=x.device))[0]
        y = (y.clamp(0, 1) * 255).round()
        rows.append(block_ratios(y))
    return rows


def block_ratios(y_B3HW: Tensor) -> dict[str, float]:
    """See `block_steps`; for any pictures whose sides are multiples of 32 cells' borders."""
    across = [
        (y_B3HW[:, :, 1:] - y_B3HW[:, :, :-1]).abs().mean((0, 1, 3)),
        (y_B3HW[..., 1:] - y_B3HW[..., :-1]).abs().mean((0, 1, 2)),
    ]
    place = [torch.arange(1, len(a) + 1, device=a.device) for a in across]
    elsewhere = torch.cat([a[p % 8 != 0] for a, p in zip(across, place, strict=True)]).mean().clamp_min(1e-6)
    chosen = {"32": lambda p: p % 32 == 0, "16": lambda p: p % 32 == 16, "8": lambda p: p % 16 == 8}
    return {
        name: round(float(torch.cat([a[rule(p)] for a, p in zip(across, place, strict=True)]).mean() / elsewhere), 3)
        for name, rule in chosen.items()
    }


def smooth_pictures(side: int = 256, seed: int = 5) -> Tensor:
    """Ramps and hazes with noise of one level, (6, 3, side, side), 0..1: where block steps and blotches show first."""
    random = torch.Generator().manual_seed(seed)
    position = torch.linspace(0, 1, side)
    ramps = [0.3 + 0.3 * position.expand(side, side), 0.5 + 0.08 * (position[:, None] + position)]
    hazes = [
        F.interpolate(torch.rand(1, 1, n, n, generator=random), (side, side), mode="bicubic", align_corners=True)[0, 0]
        * 0.3
        + 0.3
        for n in (3, 4, 5, 7)
    ]
    gray = torch.stack([*ramps, *hazes])[:, None]
    tint = torch.tensor([1.0, 0.95, 0.85])[:, None, None]
    noisy = gray * tint + torch.randn(len(gray), 3, side, side, generator=random) / 255
    return (noisy * 255).round().clamp(0, 255) / 255


def rounded(values: Tensor) -> list[float]:
    return [round(float(v), 5) for v in values]
