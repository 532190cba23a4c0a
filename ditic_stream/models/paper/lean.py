"""DC-AE in little memory: the decoder's exact split, norms and linear attention that hold no whole map twice.

In: a DC-AE as diffusers builds it, and a latent.  Out: what its own decoder gives, up to the order of sums.

Attention is in the deep stages only (1/32, 1/16, 1/8 of the released model).  What follows them is local: convolutions,
upsampling, norms over the channels of a pixel.  So the deep stages run on the window whole, and the rest in tiles that
see `halo` cells of the last deep stage more a side, as far as convolutions reach: 7 at 1/8.

    latent --deep stages, whole window--> 1/8 --+-- tile + halo --local stages--> pixels of the tile --+--> pixels
                                                +-- ...                                                +

In the deep stages, too, nothing but the maps between blocks is whole: linear attention needs sums of relu(k) v^T over
the positions and then only its queries, a feed-forward sees one cell beside its own, a norm only a pixel; so all run
strip by strip.  Stock attention and stock norms copy whole maps to float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import chain, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TAIL_CELLS = 144
"""Side of the largest tile of the local stages, cells of the last deep stage: 1152 px, a decode window of 1024 px tiles
with their overlap, stays whole."""
STRIP_ELEMENTS = 2**27
"""Values of the widest map in a strip of the deep stages, at most, and of a strip in a norm a quarter of it."""
Local = Callable[[Tensor], Tensor]


class PixelDecoder:
    """The decoder of a DC-AE.

    decoder: its module, whose norms and attention are replaced by the ones here.  settings: its configuration.
    tail_cells: side of the largest tile of the local stages.  halo: cells beside it; what the convolutions reach,
    unless a test asks for less.  `deep` and `tail`, the two steps, may be replaced by compiled ones.
    """

    def __init__(
        self,
        decoder: nn.Module,
        settings: Mapping[str, Any],
        *,
        tail_cells: int = TAIL_CELLS,
        halo: int | None = None,
        strip_elements: int = STRIP_ELEMENTS,
    ) -> None:
        make_lean(decoder, strip_elements)
        self._decoder: Any = decoder
        self.deep: Local = self._deep
        self.tail: Local = self._tail
        self._strip, self.tail_cells = strip_elements, tail_cells
        self.local = local_stages(settings)
        self.halo = reach_cells(settings, self.local) if halo is None else halo

    def __call__(self, latent_BChw: Tensor) -> Tensor:
        """Pixels (B, 3, 32h, 32w), not clamped, of the unscaled latent."""
        deep = self.deep(latent_BChw)
        height, width = deep.shape[2:]
        if not self.local or (height <= self.tail_cells and width <= self.tail_cells):
            return self.tail(deep)
        scale = 2**self.local
        out = deep.new_empty(deep.shape[0], 3, height * scale, width * scale)
        for top, bottom in parts(height, self.tail_cells):
            for left, right in parts(width, self.tail_cells):
                row, col = max(top - self.halo, 0), max(left - self.halo, 0)
                seen = deep[:, :, row : min(bottom + self.halo, height), col : min(right + self.halo, width)]
                rows = slice((top - row) * scale, (bottom - row) * scale)
                cols = slice((left - col) * scale, (right - col) * scale)
                pixels = self.tail(seen)[:, :, rows, cols]
                out[:, :, top * scale : bottom * scale, left * scale : right * scale] = pixels
        return out

    def _deep(self, x: Tensor) -> Tensor:
        decoder = self._decoder
        copies = decoder.in_shortcut_repeats if decoder.in_shortcut else 0
        x = decoder.conv_in(x) + x.repeat_interleave(copies, 1) if copies else decoder.conv_in(x)
        for step in steps(reversed(decoder.up_blocks[self.local :]), self._strip):
            x = step(x)
        return x

    def _tail(self, x: Tensor) -> Tensor:
        decoder = self._decoder
        for stage in reversed(decoder.up_blocks[: self.local]):
            x = stage(x)
        x = decoder.norm_out(x.movedim(1, -1)).movedim(-1, 1)
        return decoder.conv_out(decoder.conv_act(x))


def steps(stages: Iterable[Any], strip_elements: int) -> Iterator[Local]:
    """What stages do, one after the other, feed-forwards in strips; no map is held that the next step does not need."""

    def forward(part: Any, x: Tensor) -> Tensor:
        return in_strips(part, x, halo=1, rows=strip_elements // (part.conv_depth.weight.shape[0] * x.shape[3]))

    for block in chain.from_iterable(stages):
        if hasattr(block, "attn"):
            yield block.attn
            yield partial(forward, block.conv_out)
        else:
            yield block


def local_stages(settings: Mapping[str, Any], side: str = "decoder") -> int:
    """How many stages of the decoder (or the encoder), counted from the pixels, are local; 0 where the split is not
    possible."""
    blocks, layers = settings[f"{side}_block_types"], settings[f"{side}_layers_per_block"]
    local = 0
    while local < len(blocks) - 1 and blocks[local] == "ResBlock" and layers[local] > 0:
        local += 1
    # A stage whose upsampling stands in the one before it would be cut in two.
    return local if all(layers[: local + 1]) else 0


def reach_cells(settings: Mapping[str, Any], local: int) -> int:
    """Cells of the last deep stage that a pixel of the local ones depends on, beside its own."""
    first = 1 if settings["upsample_block_type"] == "interpolate" else 2
    pixels = 1 + sum((first + 2 * settings["decoder_layers_per_block"][stage]) * 2**stage for stage in range(local))
    return math.ceil(pixels / 2**local)


def parts(size: int, most: int) -> list[tuple[int, int]]:
    """`size` cut into as few parts as hold at most `most`, as equal as can be: (begin, end) of each."""
    count = max(-(-size // most), 1)
    ends = [size * part // count for part in range(count + 1)]
    return list(pairwise(ends))


def in_strips(local: Local, x: Tensor, *, halo: int, rows: int) -> Tensor:
    """A local function of a map, evaluated in strips of about `rows` rows that see `halo` rows more a side."""
    height = x.shape[2]
    strips = parts(height, max(rows, 8))
    if len(strips) == 1:
        return local(x)
    out: Tensor | None = None
    for top, bottom in strips:
        row = max(top - halo, 0)
        found = local(x[:, :, row : min(bottom + halo, height)])[:, :, top - row : bottom - row]
        if out is None:
            out = found.new_empty(*found.shape[:2], height, found.shape[3])
        out[:, :, top:bottom] = found
    assert out is not None
    return out


def make_lean(module: nn.Module, strip_elements: int = STRIP_ELEMENTS) -> None:
    """Replace the norms and the linear attention in a part of a DC-AE by those here; parameters stay where they are."""
    every: list[Any] = list(module.modules())
    for parent in every:
        for name, child in list(parent.named_children()):
            if type(child).__name__ == "RMSNorm" and getattr(child, "weight", None) is not None:
                setattr(parent, name, StripNorm(child, strip_elements // 4))
        if hasattr(parent, "to_qkv_multiscale"):
            parent.processor = StreamedAttention(parent.processor, strip_elements)


def _precise(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


class StripNorm(nn.Module):
    """x / rms(x) * weight + bias over the last axis, a few rows at a time: the arithmetic of the norm it stands for,
    without its float32 copy of the whole map.  (B, H, W, C), of any layout in memory, which the output has too."""

    def __init__(self, norm: Any, elements: int) -> None:
        super().__init__()
        self.weight, self.bias, self.eps, self._elements = norm.weight, norm.bias, norm.eps, elements

    def forward(self, x_BHWC: Tensor) -> Tensor:
        rows = max(self._elements // (x_BHWC.shape[0] * math.prod(x_BHWC.shape[2:])), 1)
        out = torch.empty_like(x_BHWC)
        for first in range(0, x_BHWC.shape[1], rows):
            part = x_BHWC[:, first : first + rows]
            scale = torch.rsqrt(_precise(part).square().mean(-1, keepdim=True) + self.eps)
            found = (part * scale).to(part.dtype) * self.weight
            out[:, first : first + rows] = found if self.bias is None else found + self.bias
        return out


class StreamedAttention:
    """DC-AE's multi-scale linear attention in two sweeps over strips of rows: sums over all positions, then outputs.

    A processor in the sense of diffusers.  Maps of no more positions than a head is wide go to `stock`, whose
    other formula costs less there.
    """

    def __init__(self, stock: Any, strip_elements: int) -> None:
        self._stock, self._elements = stock, strip_elements

    def __call__(self, attn: Any, x_BCHW: Tensor) -> Tensor:
        height, width = x_BCHW.shape[2:]
        if height * width <= attn.attention_head_dim:
            return self._stock(attn, x_BCHW)
        channels = 3 * attn.to_q.weight.shape[0] * (1 + len(attn.to_qkv_multiscale))
        strips = parts(height, max(self._elements // (channels * width), 8))
        kept = None
        sums: Tensor | None = None
        for top, bottom in strips:
            query, key, value = self._heads(attn, x_BCHW, top, bottom)
            part = torch.matmul(F.pad(value, (0, 0, 0, 1), value=1.0), key.transpose(-1, -2))
            sums = part if sums is None else sums + part
            kept = query if len(strips) == 1 else None
        assert sums is not None
        out = torch.empty_like(x_BCHW)
        for top, bottom in strips:
            query = self._heads(attn, x_BCHW, top, bottom)[0] if kept is None else kept
            mixed = torch.matmul(sums, query)
            mixed = (mixed[:, :, :-1] / (mixed[:, :, -1:] + attn.eps)).to(x_BCHW.dtype)
            found = attn.to_out(mixed.reshape(len(mixed), -1, bottom - top, width).movedim(1, -1))
            if attn.norm_type == "rms_norm":
                found = attn.norm_out(found).movedim(-1, 1)
            else:
                found = attn.norm_out(found.movedim(-1, 1))
            strip = x_BCHW[:, :, top:bottom]
            out[:, :, top:bottom] = found + strip if attn.residual_connection else found
        return out

    def _heads(self, attn: Any, x: Tensor, top: int, bottom: int) -> tuple[Tensor, Tensor, Tensor]:
        """relu(q), relu(k) and v of some rows, (B, heads, head width, positions), float32 at least."""
        halo = max([0, *(scale.proj_in.kernel_size[0] // 2 for scale in attn.to_qkv_multiscale)])
        row = max(top - halo, 0)
        seen = x[:, :, row : min(bottom + halo, x.shape[2])].movedim(1, -1)
        plain = torch.cat([attn.to_q(seen), attn.to_k(seen), attn.to_v(seen)], 3).movedim(-1, 1)
        scales = [plain, *(scale(plain) for scale in attn.to_qkv_multiscale)]
        inner = torch.cat([one[:, :, top - row : bottom - row] for one in scales], 1)
        heads = inner.reshape(len(inner), -1, 3 * attn.attention_head_dim, (bottom - top) * x.shape[3])
        query, key, value = _precise(heads).chunk(3, 2)
        return attn.nonlinearity(query), attn.nonlinearity(key), value
