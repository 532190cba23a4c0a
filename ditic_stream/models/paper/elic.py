"""The ELIC analysis (D. He et al., arXiv 2203.10886): a second, convolutional look at the picture beside DC-AE.

In: pixels in 0..1, (B, 3, H, W), H and W multiples of 16.  Out: (B, 320, H/16, W/16).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditic_stream.models.paper.blocks import conv
from ditic_stream.models.paper.config import AUX

WIDTH = 192
"""Channels at 1/2, 1/4 and 1/8."""


def _bottleneck(width: int) -> nn.Sequential:
    half = width // 2
    return nn.Sequential(conv(width, half, 1), nn.ReLU(), conv(half, half, 3), nn.ReLU(), conv(half, width, 1))


class Residual(nn.Module):
    """x + bottleneck(x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = _bottleneck(width)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW + self.branch(x_BCHW)


class RectifiedResidual(nn.Module):
    """relu(x + bottleneck(x)): the unit of the attention block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = _bottleneck(width)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.relu(x_BCHW + self.conv(x_BCHW))


class Attention(nn.Module):
    """x + a(x) * sigmoid(b(x)), with a and b chains of residual units: a gate per element, no softmax."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_a = nn.Sequential(*(RectifiedResidual(width) for _ in range(3)))
        self.conv_b = nn.Sequential(*(RectifiedResidual(width) for _ in range(3)), conv(width, width, 1))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW + self.conv_a(x_BCHW) * torch.sigmoid(self.conv_b(x_BCHW))


class ElicAnalysis(nn.Module):
    """Four halvings by 5x5 convolutions, three residual units after each of the first three, attention after the second
    and the last."""

    def __init__(self) -> None:
        super().__init__()

        def units() -> list[nn.Module]:
            return [Residual(WIDTH) for _ in range(3)]

        self.analysis_transform = nn.Sequential(
            conv(3, WIDTH, 5, stride=2),
            *units(),
            conv(WIDTH, WIDTH, 5, stride=2),
            *units(),
            Attention(WIDTH),
            conv(WIDTH, WIDTH, 5, stride=2),
            *units(),
            conv(WIDTH, AUX, 5, stride=2),
            Attention(AUX),
        )

    def forward(self, x_B3HW: Tensor) -> Tensor:
        return self.analysis_transform(x_B3HW)
