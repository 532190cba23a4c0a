"""Training crops, cut where the pictures lie: on the device, out of one buffer of uint8, a batch at a time.

In: pictures, uint8 (3, rows, columns).  Out: float32 batches (B, 3, side, side), 0..1, scaled, flipped, and some
regraded or strongly blurred.  Knows nothing of files.

What is random is drawn on the CPU from seed and number of the batch, so that a run repeats, goes on after a stop where
it would have been, and cuts the same on every device (but for the noise, which the device draws).  On a GPU resampling
is a matrix product along each axis: a batch is one gather from the buffer and two products, however it is scaled; a CPU
is four times quicker one crop after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from ditic_stream.errors import ConfigError
from ditic_stream.training.scenes import load_pictures

__all__ = ["Crops", "Draw", "Mix", "Pictures", "load_pictures", "shrink_weights"]

MAX_SHRINK = 2.2
"""A crop is cut at up to this many times its side and scaled down, so that every sharpness is met."""
HALF_CLEAR = 0.4
"""Share of blurred crops of which one part stays clear."""
CANDIDATES, SAMPLED_ROWS = 8, 16
"""Places a detailed crop is chosen from, and the rows of each that tell its detail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """Shares of crops that are changed, 0..1."""

    shrunk: float = 0.5
    """Scaled down."""
    smooth: float = 0.15
    """Strongly blurred: water, haze and sky are where block steps show."""
    graded: float = 0.1
    """Of another sensor: channels, gamma and range."""
    detailed: float = 0.6
    """Taken where the most detailed of eight places lies: towns and woods, which need the most bits."""


class Pictures(Sequence[Tensor]):
    """Pictures in one buffer of bytes on a device; as a sequence, views (3, rows, columns) of it."""

    def __init__(self, pictures: list[Tensor], device: torch.device | str = "cpu") -> None:
        """Copies, and empties the list on the way, so that no picture is held twice."""
        shapes = [tuple(p.shape[1:]) for p in pictures]
        ends = torch.tensor([0] + [3 * height * width for height, width in shapes]).cumsum(0).tolist()
        buffer = torch.empty(ends[-1], dtype=torch.uint8, device=device)
        pictures.reverse()
        for start, end in pairwise(ends):
            buffer[start:end] = pictures.pop().reshape(-1).to(device)
        self._set(buffer, [(start, *shape) for start, shape in zip(ends, shapes, strict=False)])

    def _set(self, buffer: Tensor, places: list[tuple[int, int, int]]) -> None:
        self.buffer, self.places = buffer, places

    def chosen(self, numbers: list[int]) -> Pictures:
        """Some of the pictures, in the same buffer."""
        some = Pictures.__new__(Pictures)
        some._set(self.buffer, [self.places[number] for number in numbers])
        return some

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number):  # type: ignore[no-untyped-def]
        if isinstance(number, slice):
            return self.chosen(list(range(len(self))[number]))
        start, height, width = self.places[number]
        return self.buffer[start : start + 3 * height * width].view(3, height, width)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """What is random of a batch, a value a crop, on the CPU."""

    picture: Tensor
    cut: Tensor
    """Side that is cut, pixels, before scaling."""
    top: Tensor
    left: Tensor
    flipped: Tensor
    """(B, 3) bool: columns, rows, axes exchanged."""
    graded: Tensor
    order: Tensor
    """(B, 3): the channel each channel is taken from."""
    gamma: Tensor
    low: Tensor
    high: Tensor
    smooth: Tensor
    cells: Tensor
    """Cells a side that a blurred crop is squeezed into."""
    clear: Tensor
    edge: Tensor
    steep: Tensor
    noise: Tensor
    """Its size, 0..1.5 levels."""


USUAL = Mix()


class Crops:
    """Random crops, drawn in proportion to a picture's area; a generator of its own, so runs repeat.

    Pictures smaller than a crop are left out; ConfigError when all are.
    """

    def __init__(self, pictures: Sequence[Tensor], side: int, seed: int, number: int = 0, mix: Mix = USUAL) -> None:
        """number: of the batch to begin with.  Another mix draws the same places, and chooses of them by detail."""
        held = pictures if isinstance(pictures, Pictures) else Pictures(list(pictures))
        self.pictures = held.chosen(
            [i for i, (_, height, width) in enumerate(held.places) if min(height, width) >= side]
        )
        self.side, self.seed, self.number, self.mix = side, seed, number, mix
        if not self.pictures:
            raise ConfigError(f"no picture is as large as a crop of {side} x {side} pixels; take a smaller side")
        self.device = self.pictures.buffer.device
        self._start, self._height, self._width = torch.tensor(self.pictures.places).T
        area = (self._height * self._width).double()
        self._until = (area / area.sum()).cumsum(0)
        self.random = torch.Generator()
        """Of the batch that was cut last; further draws for it come from here."""
        self.noise = torch.Generator(self.device)
        """The same on the device."""
        self._blurs: dict[int, Tensor] = {}

    def batch(self, count: int) -> Tensor:
        """(count, 3, side, side) float32 in 0..1, values on the 8-bit grid as a scene's are."""
        seed = (self.seed * 1_000_003 + self.number) & (2**63 - 1)
        self.random.manual_seed(seed)
        self.noise.manual_seed(seed)
        self.number += 1
        return self.cut(self.draw(count))

    def draw(self, count: int) -> Draw:
        """Throw the dice for so many crops."""

        def uniform(low: float = 0.0, high: float = 1.0) -> Tensor:
            return low + (high - low) * torch.rand(count, generator=self.random)

        wide = torch.where(uniform() < self.mix.shrunk, uniform(1.0, MAX_SHRINK), torch.ones(count))
        tries = torch.rand(3, CANDIDATES, count, generator=self.random)
        detailed = uniform() < self.mix.detailed
        picture, cut, top, left = self._chosen(self._places(wide, *tries), detailed)
        mixed = torch.rand(count, 3, generator=self.random).argsort(1)
        smallest = max(4, int(self.side / 64))
        return Draw(
            picture=picture,
            cut=cut,
            top=top,
            left=left,
            flipped=torch.rand(count, 3, generator=self.random) < 0.5,
            graded=uniform() < self.mix.graded,
            order=torch.where(uniform()[:, None] < 0.5, mixed, torch.ones(count, 3, dtype=torch.long)),
            gamma=uniform(0.6, 1.6),
            low=uniform(0, 0.25),
            high=uniform(0.6, 1.0),
            smooth=uniform() < self.mix.smooth,
            cells=(self.side / uniform(8, 64)).long().clamp(min=smallest),
            clear=uniform() < HALF_CLEAR,
            edge=uniform(-0.5, 0.5),
            steep=uniform(2, 20),
            noise=uniform(0, 1.5),
        )

    def _places(self, wide_B: Tensor, which_CB: Tensor, down_CB: Tensor, along_CB: Tensor) -> Tensor:
        """(4, C, B): picture, side that is cut, top and left of C candidates a crop, from numbers in 0..1."""
        picture = torch.searchsorted(self._until, which_CB.double()).clamp(max=len(self.pictures) - 1)
        height, width = self._height[picture], self._width[picture]
        cut = (wide_B * self.side).long().minimum(height).minimum(width)
        top = (down_CB * (height - cut + 1)).long().minimum(height - cut)
        left = (along_CB * (width - cut + 1)).long().minimum(width - cut)
        return torch.stack((picture, cut, top, left))

    def _chosen(self, places_4CB: Tensor, detailed_B: Tensor) -> Tensor:
        """(4, B): the first of the candidates, or the most detailed where that is asked for."""
        best = torch.zeros(len(detailed_B), dtype=torch.long)
        asked = detailed_B.nonzero()[:, 0]
        if len(asked):
            best[asked] = self.detail(*places_4CB[:, :, asked]).argmax(0)
        return places_4CB[:, best, torch.arange(len(best))]

    def detail(self, picture: Tensor, cut: Tensor, top: Tensor, left: Tensor) -> Tensor:
        """Mean difference of neighbours, levels, of places (...): of some rows, in green, at the spacing a crop of
        `side` has, which costs a fraction of cutting it."""
        width = self._width[picture]
        green = self._start[picture] + self._height[picture] * width
        down, along = ((torch.arange(n) + 0.5) / n for n in (SAMPLED_ROWS, self.side))
        rows = top[..., None] + (cut[..., None] * down).long()
        cols = left[..., None] + (cut[..., None] * along).long()
        rows = (green[..., None] + rows * width[..., None]).to(self.device)
        at = rows[..., None] + cols.to(self.device)[..., None, :]
        return self.pictures.buffer[at].float().diff(dim=-1).abs().mean((-2, -1)).cpu()

    def cut(self, draw: Draw) -> Tensor:
        """The crops of a draw."""
        out = self.one_by_one(draw) if self.device.type == "cpu" else self.at_once(draw)
        self._change(out, draw.flipped[:, 0], lambda x, _: x.flip(3))
        self._change(out, draw.flipped[:, 1], lambda x, _: x.flip(2))
        self._change(out, draw.flipped[:, 2], lambda x, _: x.mT)
        self._change(out, draw.graded, lambda x, i: self._regraded(x, draw, i))
        self._change(out, draw.smooth, lambda x, i: self._smoothed(x, draw, i))
        return (out * 255).round_().clamp_(0, 255) / 255

    def one_by_one(self, draw: Draw) -> Tensor:
        """Crops as they lie in the pictures, brought to the side that is wanted: what is quick on a CPU."""
        crops = []
        for number, cut, top, left in zip(
            *(p.tolist() for p in (draw.picture, draw.cut, draw.top, draw.left)), strict=True
        ):
            crop = self.pictures[number][None, :, top : top + cut, left : left + cut].float() / 255
            if cut != self.side:
                crop = F.interpolate(crop, (self.side, self.side), mode="bilinear", antialias=True)
            crops.append(crop)
        return torch.cat(crops)

    def at_once(self, draw: Draw) -> Tensor:
        """The same as one gather and two products for all that are scaled, and one gather for the rest."""
        out = torch.empty(len(draw.cut), 3, self.side, self.side, device=self.device)
        scaled = draw.cut != self.side
        for chosen in (scaled, ~scaled):
            if len(numbers := chosen.nonzero()[:, 0]):
                out[numbers.to(self.device)] = self._gathered(draw, numbers)
        return out

    def _gathered(self, draw: Draw, i: Tensor) -> Tensor:
        cut, most = draw.cut[i], int(draw.cut[i].max())
        at = torch.arange(most).minimum(cut[:, None] - 1)  # beyond a smaller cut its last pixel, which weighs nothing
        width = self._width[draw.picture[i]]
        rows = self._start[draw.picture[i]][:, None] + (draw.top[i][:, None] + at) * width[:, None]
        cols = draw.left[i][:, None] + at
        planes = torch.arange(3) * (self._height[draw.picture[i]] * width)[:, None]
        rows, cols, planes = rows.to(self.device), cols.to(self.device), planes.to(self.device)
        x = (
            self.pictures.buffer[planes[:, :, None, None] + rows[:, None, :, None] + cols[:, None, None, :]].float()
            / 255
        )
        if most == self.side == int(cut.min()):
            return x
        weight = shrink_weights(cut, self.side, most).to(self.device)[:, None]
        return weight @ x @ weight.mT

    def _change(self, out: Tensor, chosen: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Replace the chosen crops by what `change` makes of them and their numbers."""
        numbers = chosen.nonzero()[:, 0]
        if len(numbers):
            there = numbers.to(self.device)
            out[there] = change(out[there], numbers)

    def _regraded(self, x_B3HW: Tensor, draw: Draw, i: Tensor) -> Tensor:
        """Another sensor: channels permuted or one of them for all, another gamma and range."""
        order = draw.order[i].to(self.device)[:, :, None, None].expand_as(x_B3HW)
        gamma, low, high = (part[i].to(self.device)[:, None, None, None] for part in (draw.gamma, draw.low, draw.high))
        return x_B3HW.gather(1, order).clamp(0, 1) ** gamma * (high - low) + low

    def _smoothed(self, x_B3HW: Tensor, draw: Draw, i: Tensor) -> Tensor:
        """Haze, water, defocus: blurred over 8 to 64 px, all or one side of it, with up to 1.5 levels of noise."""
        blur = torch.stack([self._blur(int(cells)) for cells in draw.cells[i]]).to(self.device)[:, None]
        soft = blur @ x_B3HW @ blur.mT
        position = torch.linspace(-1, 1, self.side)
        edge = ((position - draw.edge[i][:, None]) * draw.steep[i][:, None]).sigmoid()
        edge = torch.where(draw.clear[i][:, None], edge, torch.ones(())).to(self.device)[:, None, None, :]
        noise = torch.randn(x_B3HW.shape, generator=self.noise, device=self.device)
        return soft * edge + x_B3HW * (1 - edge) + noise * (draw.noise[i].to(self.device) / 255)[:, None, None, None]

    def _blur(self, cells: int) -> Tensor:
        """(side, side): down to so many cells and up again."""
        if cells not in self._blurs:
            across = torch.eye(self.side)[None, None]
            small = F.interpolate(across, (cells, self.side), mode="bilinear", antialias=True)
            self._blurs[cells] = F.interpolate(small, (self.side, self.side), mode="bicubic")[0, 0]
        return self._blurs[cells]


def shrink_weights(cut_B: Tensor, side: int, most: int) -> Tensor:
    """(B, side, most): what each of `cut` pixels gives to each of `side`, by a triangle as wide as the scale, which is
    what torch's interpolation with antialiasing does; columns beyond `cut` are zero."""
    scale = (cut_B.double() / side)[:, None, None]
    centre = (torch.arange(side)[:, None] + 0.5) * scale
    pixel = torch.arange(most) + 0.5
    weight = (1 - (pixel - centre).abs() / scale).clamp(min=0) * (pixel < cut_B[:, None, None])
    return (weight / weight.sum(2, keepdim=True)).float()
