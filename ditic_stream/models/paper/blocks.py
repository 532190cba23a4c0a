"""Blocks that the latent codec is made of: depthwise blocks, the upsampler, a chain of three convolutions.

Legend of suffixes: B batch, C channels, H W rows and columns of the map at hand.  All maps are float.

Attribute names (`dc`, `ffn`, `branch1`, ...) follow the tensor names of the released checkpoints, so that a file's
tensors need no translation; what stands between the named layers is ours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution padded with kernel // 2 zeros; the 2x2 ones of stride 2 see no padding."""
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=0 if kernel == stride else kernel // 2)


class WSiLU(nn.Module):
    """x * sigmoid(4 x): a SiLU with a sharper knee."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW * torch.sigmoid(4 * x_BCHW)


class FoldedWSiLU(nn.Module):
    """WSiLU, then the second half of the channels is added onto the first: (B, 2C, H, W) -> (B, C, H, W)."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        first, second = (x_BCHW * torch.sigmoid(4 * x_BCHW)).chunk(2, 1)
        return first + second


class DepthConv(nn.Module):
    """Two residual branches: a depthwise 3x3 between 1x1 convolutions, then a folded feed-forward of four times the
    width.  (B, inputs, H, W) -> (B, outputs, H, W)."""

    def __init__(self, inputs: int, outputs: int | None = None, *, shortcut: bool = False) -> None:
        """shortcut: add the block's input to its output once more."""
        super().__init__()
        width = outputs or inputs
        if width != inputs:
            self.adaptor = conv(inputs, width, 1)
        self.adapts, self.shortcut = width != inputs, shortcut
        depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.dc = nn.Sequential(conv(width, width, 1), WSiLU(), depthwise, conv(width, width, 1))
        self.ffn = nn.Sequential(conv(width, 4 * width, 1), FoldedWSiLU(), conv(2 * width, width, 1))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y = self.adaptor(x_BCHW) if self.adapts else x_BCHW
        y = y + self.dc(y)
        y = y + self.ffn(y)
        return y + x_BCHW if self.shortcut else y


class Upsample(nn.Module):
    """Twice as many rows and columns: 3x3, GELU, 1x1 to four times the channels, pixel shuffle."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.branch1 = nn.Sequential(conv(inputs, inputs, 3), nn.GELU(), conv(inputs, 4 * outputs, 1))
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.shuffle(self.branch1(x_BCHW))


class Downsample(nn.Module):
    """Half as many rows and columns by one 3x3 convolution of stride 2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.branch1 = conv(inputs, outputs, 3, stride=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.branch1(x_BCHW)


class Chain(nn.Module):
    """Three 3x3 convolutions with GELU between them."""

    def __init__(self, inputs: int, middle: int, outputs: int, second: int | None = None) -> None:
        super().__init__()
        last = second or middle
        self.branch1 = nn.Sequential(
            conv(inputs, middle, 3), nn.GELU(), conv(middle, last, 3), nn.GELU(), conv(last, outputs, 3)
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.branch1(x_BCHW)
