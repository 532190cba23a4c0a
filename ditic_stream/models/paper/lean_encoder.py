"""Analysis in little memory: the exact split of DC-AE's encoder, and the ELIC analysis in tiles.

In: the two as they are built, and pixels.  Out: what they give themselves, up to the order of sums.

The mirror image of the decoder's split (`lean`): the local stages come first, in tiles that see 5 cells of 1/8 more a
side, and what has attention sees the window whole.  The ELIC analysis is local altogether, 9 cells of 1/16.

    pixels --+-- tile + halo --local stages--> 1/8 of the tile --+--deep stages, whole window--> latent
             +-- ...                                             +
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from ditic_stream.models.paper.lean import STRIP_ELEMENTS, Local, local_stages, make_lean, parts, steps

HEAD_CELLS = 160
"""Side of the largest tile of the local stages, cells of 1/8: 1280 px, the encode window of a tile of 1024 px, stays
whole."""
ELIC_DOWN, ELIC_REACH = 16, 9
"""Pixels a cell of the ELIC analysis covers, and cells it sees beside its own: 132 px, four convolutions of 5 x 5 at 1
to 1/8 and 15 of 3 x 3 behind them."""


class PixelEncoder:
    """The encoder of a DC-AE.

    encoder: its module, whose norms and attention are replaced by the ones here.  settings: its configuration.
    head_cells: side of the largest tile of the local stages.  halo: cells beside it; what the convolutions reach,
    unless a test asks for less.
    """

    def __init__(
        self,
        encoder: nn.Module,
        settings: Mapping[str, Any],
        *,
        head_cells: int = HEAD_CELLS,
        halo: int | None = None,
        strip_elements: int = STRIP_ELEMENTS,
    ) -> None:
        make_lean(encoder, strip_elements)
        self._encoder: Any = encoder
        self._strip, self.head_cells = strip_elements, head_cells
        self.local = local_stages(settings, "encoder")
        self.halo = reach_cells(settings, self.local) if halo is None else halo

    def __call__(self, pixels_B3HW: Tensor) -> Tensor:
        """The unscaled latent (B, 32, H/32, W/32)."""
        encoder = self._encoder
        if self.local:
            x = in_tiles(self._head, pixels_B3HW, down=2**self.local, cells=self.head_cells, halo=self.halo)
        else:
            x = self._head(pixels_B3HW)
        for step in steps(encoder.down_blocks[self.local :], self._strip):
            x = step(x)
        out: Tensor = encoder.conv_out(x)
        if encoder.out_shortcut:
            out = out + x.unflatten(1, (-1, encoder.out_shortcut_average_group_size)).mean(2)
        return out

    def _head(self, x: Tensor) -> Tensor:
        x = self._encoder.conv_in(x)
        for stage in self._encoder.down_blocks[: self.local]:
            x = stage(x)
        return x


def split_analysis(vae: nn.Module, settings: Mapping[str, Any], elic: nn.Module) -> None:
    """Let a DC-AE's encoder and the ELIC analysis beside it run in tiles from now on, whoever calls them."""
    encoder: Any = vae.encoder
    encoder.forward = PixelEncoder(encoder, settings)
    whole = elic.forward
    elic.forward = partial(in_tiles, whole, down=ELIC_DOWN, cells=HEAD_CELLS // 2, halo=ELIC_REACH)


def reach_cells(settings: Mapping[str, Any], local: int) -> int:
    """Cells of the first deep stage whose pixels a cell depends on, beside its own."""
    layers = settings["encoder_layers_per_block"]
    pixels = 1 + sum((1 + 2 * layers[stage]) * 2**stage for stage in range(local))
    return math.ceil(pixels / 2**local)


def in_tiles(local: Local, x: Tensor, *, down: int, cells: int, halo: int) -> Tensor:
    """A local function that makes one cell of each `down` x `down` samples, evaluated in tiles of at most `cells` cells
    a side that see `halo` cells more."""
    height, width = (size // down for size in x.shape[2:])
    if height <= cells and width <= cells:
        return local(x)
    out: Tensor | None = None
    for top, bottom in parts(height, cells):
        for left, right in parts(width, cells):
            row, col = max(top - halo, 0), max(left - halo, 0)
            seen = x[:, :, row * down : (bottom + halo) * down, col * down : (right + halo) * down]
            found = local(seen)[:, :, top - row : bottom - row, left - col : right - col]
            if out is None:
                out = found.new_empty(*found.shape[:2], height, width)
            out[:, :, top:bottom, left:right] = found
    assert out is not None
    return out
