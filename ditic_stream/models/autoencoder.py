"""Pixels to latent features and back: f32, convolutional, with a lapped linear path under the residual blocks.

In: pixels (B, 3, H, W), H and W multiples of 32, network units (0..1 for ordinary pixels).  Out: features (B, latent,
H/32, W/32). The linear path alone (what `training.init` sets) is a lapped transform with principal-component merges;
the residual blocks start as identities.  Nothing runs finer than 1/8: the picture is one 3x3 convolution and a pixel
shuffle.

Merges and splits are blocks, and only the local means are lapped by construction.  `overlap` adds the rest of a lapped
transform where it counts: the leading (coarse) latent channels see and draw half a cell beyond their own, by weights
that start at zero.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditic_stream.models.config import ModelConfig
from ditic_stream.models.deblock import deblock
from ditic_stream.models.layers import Res1, lap, unlap


class Leading(nn.Sequential):
    """Residual blocks over so many leading channels; the others pass, finest details whose place is all there is to
    tell."""

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__(*(Res1(channels) for _ in range(depth)))
        self.channels = channels

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if self.channels == x_BCHW.shape[1]:
            return super().forward(x_BCHW)
        return torch.cat([super().forward(x_BCHW[:, : self.channels]), x_BCHW[:, self.channels :]], 1)


class Encoder(nn.Module):
    """Pixels -> latent features.  Reaches about 60 px beyond a latent cell; `ENCODE_HALO` covers what matters of it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, config.c8, 16, stride=8)
        self.blocks8 = nn.Sequential(*(Res1(config.c8) for _ in range(config.enc8)))
        self.merge16 = nn.Conv2d(config.c8, config.c16, 2, stride=2)
        self.blocks16 = Leading(config.c16 - config.passing, config.enc16)
        self.merge32 = nn.Conv2d(config.c16, config.latent, 2, stride=2)
        self.overlap32 = _overlap(config.c16, config.overlap, 4, stride=2) if config.overlap else None

    def forward(self, x_B3HW: Tensor) -> Tensor:
        x = self.stem(F.pad(x_B3HW - 0.5, (4, 4, 4, 4), mode="reflect"))
        x = self.merge16(lap(self.blocks8(x)))
        x = lap(self.blocks16(x))
        y = self.merge32(x)
        if self.overlap32 is not None:
            wide = self.overlap32(x)
            y = torch.cat([y[:, : wide.shape[1]] + wide, y[:, wide.shape[1] :]], 1)
        return y


class Decoder(nn.Module):
    """Latent features -> pixels."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.split16 = nn.Conv2d(config.latent, 4 * config.c16, 1)
        self.overlap32 = _overlap(config.overlap, 4 * config.c16, 3) if config.overlap else None
        self.blocks16 = Leading(config.c16 - config.passing, config.dec16)
        self.split8 = nn.Conv2d(config.c16, 4 * config.c8, 1)
        self.blocks8 = nn.Sequential(*(Res1(config.c8) for _ in range(config.dec8)))
        self.head = nn.Conv2d(config.c8, 192, 3)

    def forward(self, y_BChw: Tensor, level_B: Tensor) -> Tensor:
        """level_B: the rate level each latent was quantised at; see `deblock`."""
        y = self.blocks16(unlap(self.unfold(y_BChw)))
        y = self.blocks8(unlap(F.pixel_shuffle(self.split8(y), 2)))
        x = F.pixel_shuffle(self.head(F.pad(y, (1, 1, 1, 1), mode="replicate")), 8) + 0.5
        return deblock(x, level_B)

    def unfold(self, y_BChw: Tensor) -> Tensor:
        """Latent features -> the map at 1/16, its means still lapped."""
        y = self.split16(y_BChw)
        if self.overlap32 is not None:
            y += self.overlap32(y_BChw[:, : self.overlap32.in_channels])
        return F.pixel_shuffle(y, 2)


def _overlap(wide: int, out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution one sample wider a side than the block it stands beside; it starts at zero."""
    layer = nn.Conv2d(wide, out, kernel, stride=stride, padding=1, padding_mode="replicate", bias=False)
    nn.init.zeros_(layer.weight)
    return layer
