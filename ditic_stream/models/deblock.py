"""Deblocking: what is left of a step across the borders of latent cells, spread over the pixels around it.

In and out: pixels (B, 3, H, W), H and W multiples of 32, network units.  Cells of 32 px are quantised each for itself,
and so are their quarters of 16 px; however well a decoder is trained, a part of the difference stays where they meet,
and in water, haze and sky a tenth of a grey level is seen if it lies on a straight line.  As in the loop filters of
video codecs (List et al., IEEE Trans. Circuits and Systems for Video Technology 13(7), 2003), a step is what exceeds
the slope on its two sides, and it is taken for an artefact where the picture is flat; here it is also averaged along
the border, since texture changes from pixel to pixel and a quantisation step does not.  No parameter is learned;
networks are trained with the filter behind them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ditic_stream.models.config import LEVELS

CELL = 32
REACH = {CELL: 12, CELL // 2: 8}
"""Pixels on each side of a border that take part, by the border's place: between cells, and in their middle."""
ALONG = 9
"""Pixels along a border over which its step is averaged."""
FLAT_LOW, FLAT_HIGH = 4 / 255, 1 / 255
"""Mean absolute gradient a pixel, network units, at which half of a step is taken for texture: at level 0, at the
last."""


def deblock(x_B3HW: Tensor, level_B: Tensor) -> Tensor:
    """The picture without the steps; `level_B`: rate levels, 0..7, since coarser steps need a stronger filter."""
    flat = (FLAT_LOW * (FLAT_HIGH / FLAT_LOW) ** (level_B.to(x_B3HW.dtype) / (LEVELS - 1)))[:, None, None, None]
    half = CELL // 2
    x = x_B3HW.clone()
    for axis in (3, 2):
        if x.shape[axis] > CELL:
            _spread_middles(x.narrow(axis, half, x.shape[axis] - CELL), axis, flat, REACH[CELL])
        _spread_middles(x, axis, flat, REACH[half])
    return x


def _spread_middles(x_B3HW: Tensor, axis: int, flat: Tensor, reach: int) -> None:
    """Spread the step in the middle of every 32 rows (axis 2) or columns (3) over `reach` pixels a side, in place."""
    near = x_B3HW.unflatten(axis, (-1, CELL)).narrow(axis + 1, CELL // 2 - reach, 2 * reach)
    first, left, right, last = (near.select(axis + 1, i) for i in (0, reach - 1, reach, 2 * reach - 1))
    step = right - left
    slope = (last - first - step) / (2 * reach - 2)
    even, odd = near.unflatten(axis + 1, (reach, 2)).unbind(axis + 2)
    activity = (odd - even).abs_().mean((1, axis + 1)).unsqueeze(1)
    step = _along(step - slope, axis) / (1 + (_along(activity, axis) / flat).square())
    away = torch.arange(reach, 0, -1, device=near.device, dtype=near.dtype) - 0.5
    ramp = torch.cat([away.flip(0), -away]) / (2 * reach)
    near += step.unsqueeze(axis + 1) * (ramp if axis == 3 else ramp[:, None])


def _along(x: Tensor, axis: int) -> Tensor:
    """Mean over ALONG pixels along the border; `axis` is the one across."""
    kernel, padding = ((ALONG, 1), (ALONG // 2, 0)) if axis == 3 else ((1, ALONG), (0, ALONG // 2))
    return F.avg_pool2d(x, kernel, stride=1, padding=padding, count_include_pad=False)
