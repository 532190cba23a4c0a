"""What training minimises: bits plus distortion, at a continuum of rates.

Distortion is a mean of squared error and of one minus MS-SSIM (Wang, Simoncelli and Bovik 2003), both in 8-bit units:
squared error keeps colours and edges true, the structural term weighs an error by the contrast around it, so that flat
water and sky are kept clean.  Both enter with weights that make them equal at middle rates.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ditic_stream.models.config import LEVELS

LAMBDA_LOW, LAMBDA_RANGE = 0.00002, 1000.0
"""Weight of distortion against bits at level 0, and how many times larger it is at the last level."""
STRUCTURE = 4000.0
"""Squared 8-bit error that one unit of 1 - MS-SSIM is worth."""
STRUCTURE_SHARE = 0.75
"""Share of the structural term in the distortion, 0..1; the rest is squared error."""
FLAT = 1.5
"""Mean absolute gradient, 8-bit levels a pixel, at which a part of a picture stops counting as flat."""
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
C1, C2 = (0.01) ** 2, (0.03) ** 2


def rate_weight(level: float) -> float:
    """lambda of a level 0..7."""
    return LAMBDA_LOW * LAMBDA_RANGE ** (level / (LEVELS - 1))


def rate_weight_of(level_B: Tensor) -> Tensor:
    """`rate_weight` of many levels."""
    low, high = math.log(rate_weight(0)), math.log(rate_weight(LEVELS - 1))
    return (low + (high - low) * level_B / (LEVELS - 1)).exp()


def squared_error(x_B3HW: Tensor, y_B3HW: Tensor) -> Tensor:
    """Mean squared error per picture (B,), in squared 8-bit units."""
    return (x_B3HW - y_B3HW).square().mean((1, 2, 3)) * 65025


def structure_loss(x_B3HW: Tensor, y_B3HW: Tensor) -> Tensor:
    """About 1 - MS-SSIM per picture (B,): 8x8 box windows in place of Gaussians, means in place of products.  1 - cs of
    SSIM is exactly error variance over (both variances + C2)."""
    loss = torch.zeros(x_B3HW.shape[0], device=x_B3HW.device)
    last = len(SCALE_WEIGHTS) - 1
    for scale, weight in enumerate(SCALE_WEIGHTS):
        if scale:
            x_B3HW, y_B3HW = F.avg_pool2d(x_B3HW, 2), F.avg_pool2d(y_B3HW, 2)
        maps = torch.cat([x_B3HW, y_B3HW, x_B3HW**2, y_B3HW**2, (x_B3HW - y_B3HW) ** 2], 1)
        mean_x, mean_y, square_x, square_y, square_e = F.avg_pool2d(maps, 8, 4 if scale else 8).chunk(5, 1)
        variance = (square_x - mean_x**2) + (square_y - mean_y**2)
        dissimilar = (square_e - (mean_x - mean_y) ** 2) / (variance + C2)
        loss = loss + weight * dissimilar.mean((1, 2, 3))
        if scale == last:
            loss = loss + weight * ((mean_x - mean_y) ** 2 / (mean_x**2 + mean_y**2 + C1)).mean((1, 2, 3))
    return loss


def colour_error(x_B3HW: Tensor, y_B3HW: Tensor) -> Tensor:
    """Mean squared error of the colour differences red - green and blue - green over 2x2 pixels, per picture (B,), in
    squared 8-bit units: coloured specks at edges, which the structural term forgives, are seen."""
    error = F.avg_pool2d((x_B3HW - y_B3HW) * 255, 2)
    return (error[:, ::2] - error[:, 1:2]).square().mean((1, 2, 3))


def border_error(x_B3HW: Tensor, y_B3HW: Tensor) -> Tensor:
    """Mean squared error of the step across every 8th row and column per picture (B,), in squared 8-bit units.

    Borders of 16 count twice, of 32 four times: latent cells meet there, and a step the eye finds at once is little
    squared error."""
    error = (x_B3HW - y_B3HW) * 255
    loss = torch.zeros(error.shape[0], device=error.device)
    for side in (8, 16, 32):
        down = error[:, :, side::side] - error[:, :, side - 1 : -1 : side]
        right = error[..., side::side] - error[..., side - 1 : -1 : side]
        loss = loss + (down.square().mean((1, 2, 3)) + right.square().mean((1, 2, 3))) / 6
    return loss


def flat_border_error(x_B3HW: Tensor, y_B3HW: Tensor) -> Tensor:
    """`border_error` of the flat parts alone, per picture (B,), in squared 8-bit units: each step weighs
    1 / (1 + (a / FLAT)^2), a the mean absolute gradient of the source over 16 x 16 pixels around it.

    In water, haze and sky a step of a tenth of a level is seen; in texture ten are not, and there they would drown
    these."""
    error, source = (x_B3HW - y_B3HW) * 255, x_B3HW * 255
    loss = torch.zeros(error.shape[0], device=error.device)
    for axis in (2, 3):
        slope = source.diff(dim=axis).abs().mean(1, keepdim=True)
        around = F.interpolate(F.avg_pool2d(slope, 16, ceil_mode=True, count_include_pad=False), source.shape[2:])
        for side in (8, 16, 32):
            after = torch.arange(side, error.shape[axis], side, device=error.device)
            step = error.index_select(axis, after) - error.index_select(axis, after - 1)
            weight = 1 / (1 + (around.index_select(axis, after) / FLAT).square())
            loss = loss + (weight * step.square()).mean((1, 2, 3)) / 6
    return loss


def tone_error(x_B3HW: Tensor, y_B3HW: Tensor) -> Tensor:
    """Mean squared error of means over 32 x 32 pixels, on two grids half a cell apart, per picture (B,), in squared
    8-bit units.

    Squared error alone leaves flat regions in plateaus at low rates, where a few more bits a cell make them smooth."""
    error = (x_B3HW - y_B3HW) * 255
    on, between = F.avg_pool2d(error, 32), F.avg_pool2d(error[:, :, 16:-16, 16:-16], 32)
    return (on.square().mean((1, 2, 3)) + between.square().mean((1, 2, 3))) / 2


def self_distillation(features_BChw: Tensor, denoised_BChw: Tensor, std_C: Tensor) -> Tensor:
    """Hinge on the cosine between the encoder's own latent and the denoised one, per position, mean (B,): DiT-IC,
    alignment 2."""
    std = std_C[:, None, None]
    cosine = F.cosine_similarity(features_BChw.detach() / std, denoised_BChw / std, dim=1)
    return F.relu(0.5 - cosine).mean((1, 2))
