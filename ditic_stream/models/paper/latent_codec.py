"""The latent codec's networks: to the coded latent and its hyper-latent, and from the decoded latent to what one
diffusion step needs.

    latent (1/32) + aux (1/16) --g_a--> y (1/64) --h_a--> z (1/256) --h_s--> base (1/64)
    y_hat  --g_s--> noisy latent    --aux--> correction    --prompt--> condition map      (1/32)
    scales --scale--> log-variance                                                        (1/32)

Coding itself (the four passes, symbols and table indexes) is in `entropy`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ditic_stream.models.paper.blocks import Chain, DepthConv, Downsample, Upsample, conv
from ditic_stream.models.paper.config import AUX, CODED, HYPER, LATENT, PASSES, PROMPT
from ditic_stream.models.paper.entropy import FactorisedPrior


class Analysis(nn.Module):
    """(B, 32, h, w) at 1/32 and (B, 320, 2h, 2w) at 1/16 -> y (B, 320, h/2, w/2) at 1/64."""

    def __init__(self) -> None:
        super().__init__()
        main, side = 128, 64
        width = main + side
        self.pre1 = nn.Sequential(conv(LATENT, main, 3))
        self.pre2 = nn.Sequential(Downsample(AUX, side))
        self.analysis_transform = nn.Sequential(
            DepthConv(width), DepthConv(width), Downsample(width, CODED), DepthConv(CODED), DepthConv(CODED)
        )

    def forward(self, latent_BChw: Tensor, aux_BAHW: Tensor) -> Tensor:
        return self.analysis_transform(torch.cat([self.pre1(latent_BChw), self.pre2(aux_BAHW)], 1))


class Head(nn.Module):
    """Three depthwise blocks, the upsampler, a 3x3 convolution: (B, 320, h, w) -> (B, outputs, 2h, 2w)."""

    def __init__(self, middle: int, outputs: int) -> None:
        super().__init__()
        self.synthesis_transform = nn.Sequential(
            DepthConv(CODED), DepthConv(CODED), DepthConv(CODED), Upsample(CODED, middle), conv(middle, outputs, 3)
        )

    def forward(self, x_BChw: Tensor) -> Tensor:
        return self.synthesis_transform(x_BChw)


class Correction(nn.Module):
    """What is added after the diffusion step: (B, 320, h, w) -> (B, 32, 2h, 2w)."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(DepthConv(CODED), DepthConv(CODED), Upsample(CODED, CODED), conv(CODED, LATENT, 3))

    def forward(self, x_BChw: Tensor) -> Tensor:
        return self.block(x_BChw)


class Shrink(nn.Module):
    """A 2x2 convolution of stride 2, then a depthwise block with its outer shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down = conv(width, width, 2, stride=2)
        self.conv = DepthConv(width, shortcut=True)

    def forward(self, x_BChw: Tensor) -> Tensor:
        return self.conv(self.down(x_BChw))


class Grow(nn.Module):
    """A 1x1 convolution and pixel shuffle, then a depthwise block with its outer shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.ModuleDict({"conv": nn.Sequential(conv(width, 4 * width, 1), nn.PixelShuffle(2))})
        self.conv = DepthConv(width, shortcut=True)

    def forward(self, x_BChw: Tensor) -> Tensor:
        return self.conv(self.up["conv"](x_BChw))


class HyperAnalysis(nn.Module):
    """y (B, 320, h, w) at 1/64 -> z (B, 160, h/4, w/4) at 1/256, not rounded."""

    def __init__(self) -> None:
        super().__init__()
        self.reduction = nn.Sequential(DepthConv(CODED), DepthConv(CODED, HYPER), Shrink(HYPER), Shrink(HYPER))

    def forward(self, y_BChw: Tensor) -> Tensor:
        return self.reduction(y_BChw)


class HyperSynthesis(nn.Module):
    """z_hat (B, 160, h, w) at 1/256 -> the base of the first pass (B, 320, 4h, 4w) at 1/64."""

    def __init__(self) -> None:
        super().__init__()
        self.increase = nn.Sequential(Grow(HYPER), Grow(HYPER), DepthConv(HYPER, CODED), DepthConv(CODED))

    def forward(self, z_BChw: Tensor) -> Tensor:
        return self.increase(z_BChw)


class Context(nn.Module):
    """What the four passes share between their adapters: (B, 640, h, w) -> the same."""

    def __init__(self) -> None:
        super().__init__()
        width = 2 * CODED
        self.block = nn.Sequential(DepthConv(width), DepthConv(width), DepthConv(width), conv(width, width, 1))

    def forward(self, x_BChw: Tensor) -> Tensor:
        return self.block(x_BChw)


class Refinement(nn.Module):
    """What a pass adds to the values it has decoded, before tanh: (B, 640, h, w) -> (B, 320, h, w)."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(Chain(2 * CODED, 480, CODED))

    def forward(self, x_BChw: Tensor) -> Tensor:
        return self.block(x_BChw)


class LatentCodec(nn.Module):
    """All of it.  Attribute names are those of a checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        both = 2 * CODED
        self.g_a = Analysis()
        self.h_a = HyperAnalysis()
        self.h_s = HyperSynthesis()
        self.g_s = Head(CODED, LATENT)
        self.scale = Head(192, LATENT)
        self.prompt = Head(CODED, PROMPT)
        self.aux = Correction()
        self.g_c = Context()
        self.adapter_in = nn.ModuleList(Chain(CODED, 480, both) for _ in range(PASSES))
        self.adapter_out = nn.ModuleList(Chain(both, both, both) for _ in range(PASSES))
        self.LRP = nn.ModuleList(Refinement() for _ in range(PASSES))
        self.entropy_bottleneck = FactorisedPrior()

    def parameters_of_pass(self, number: int, base_BChw: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and raw scale of every position before pass `number` (0..3): two maps (B, 320, h, w), in steps."""
        both = self.adapter_out[number](self.g_c(self.adapter_in[number](base_BChw)))
        mean, scale = both.chunk(2, 1)
        return mean, scale

    def refine(self, number: int, decoded_BChw: Tensor, base_BChw: Tensor) -> Tensor:
        """What pass `number` adds to its decoded values, within -0.5..0.5, at every position (B, 320, h, w)."""
        return 0.5 * torch.tanh(self.LRP[number](torch.cat([decoded_BChw, base_BChw], 1)))
