"""The entropy model: what is coded, in which order, and under which table.

Everything is in quantisation steps (the step is 1).  The hyper-latent z is rounded about its medians.  The latent y
goes in four passes over channel groups and the positions of 2x2 cells: within a pass each group has another position,
so that the pass is one dense plane of a quarter of the channels.

    position in a cell   0 1      pass | group   0 1 2 3
                         2 3          0          0 1 2 3
                                      1          3 2 1 0
                                      2          2 3 0 1
                                      3          1 0 3 2

One loop, `run_passes`, serves both directions: it asks for the symbols of a plane and is given what was rounded or what
was read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ditic_stream.models.paper.config import CODED, HYPER, PASSES, SCALE_MAX, SCALE_MIN, SCALES

if TYPE_CHECKING:
    from ditic_stream.models.paper.latent_codec import LatentCodec

POSITIONS = ((0, 1, 2, 3), (3, 2, 1, 0), (2, 3, 0, 1), (1, 0, 3, 2))
"""POSITIONS[pass][group]: the position that group sends; position 2r + c is row r, column c of a cell."""
GROUP = CODED // PASSES
FILTERS = (1, 3, 3, 3, 3, 1)
"""Widths of the factorised prior's cumulative (J. Ballé et al., arXiv 1802.01436, appendix 6.1)."""
INITIAL_WIDTH = 10.0


class FactorisedPrior(nn.Module):
    """Distribution of the hyper-latent: its medians, and the parameters its integer tables are made from.

    The cumulative of channel c is sigmoid(f(x)), f a chain of softplus matrices with tanh gates; `quantiles`
    (160, 1, 3) hold the lower tail, the median and the upper tail.
    """

    def __init__(self) -> None:
        super().__init__()
        self.quantiles = nn.Parameter(torch.tensor([-INITIAL_WIDTH, 0.0, INITIAL_WIDTH]).repeat(HYPER, 1, 1))
        layers = len(FILTERS) - 1
        width = INITIAL_WIDTH ** (1 / layers)
        self.matrices = nn.ParameterList(
            torch.full((HYPER, FILTERS[i + 1], FILTERS[i]), float(np.log(np.expm1(1 / width / FILTERS[i + 1]))))
            for i in range(layers)
        )
        self.biases = nn.ParameterList(torch.zeros(HYPER, FILTERS[i + 1], 1) for i in range(layers))
        self.factors = nn.ParameterList(torch.zeros(HYPER, FILTERS[i + 1], 1) for i in range(layers - 1))

    @property
    def medians(self) -> Tensor:
        """(1, 160, 1, 1), in steps."""
        return self.quantiles[:, 0, 1].reshape(1, -1, 1, 1)

    def symbols(self, z_BChw: Tensor) -> Tensor:
        """Rounded distance from the medians, int32."""
        return torch.round(z_BChw - self.medians).int()

    def values(self, symbols_BChw: Tensor) -> Tensor:
        """The hyper-latent that `symbols` stand for."""
        return symbols_BChw.to(self.quantiles.dtype) + self.medians


def scale_table() -> np.ndarray:
    """The 64 Gaussian widths, float32, rising: exp(linspace(log 0.11, log 256, 64))."""
    return np.exp(np.linspace(np.log(SCALE_MIN), np.log(SCALE_MAX), SCALES)).astype(np.float32)


def table_indexes(scale: Tensor) -> Tensor:
    """Index (int32, 0..63) of the smallest known width that is at least `scale`; the widest where none is.

    scale: raw output of the network, any shape; below 0.11 it counts as 0.11.
    """
    table = torch.from_numpy(scale_table()).to(scale.device)
    bounded = scale.float().clamp_min(float(table[0])).contiguous()
    return torch.searchsorted(table, bounded).clamp_max(SCALES - 1).int()


def cell_masks(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """(4 passes, 320, height, width) bool, height and width even: what each pass sends.  Each element is sent once."""
    rows = torch.arange(height, device=device)[:, None] % 2
    cols = torch.arange(width, device=device)[None, :] % 2
    position = 2 * rows + cols
    group_of_channel = torch.arange(CODED, device=device) // GROUP
    wanted = torch.tensor(POSITIONS, device=device)[:, group_of_channel]
    return wanted[:, :, None, None] == position


def gather_plane(x_BChw: Tensor, mask_Chw: Tensor) -> Tensor:
    """What a pass sends of a map, as its dense plane: (B, 320, h, w) -> (B, 80, h, w), row-major in the stream."""
    masked = torch.where(mask_Chw, x_BChw, torch.zeros((), dtype=x_BChw.dtype, device=x_BChw.device))
    return masked.unflatten(1, (PASSES, GROUP)).sum(1).to(x_BChw.dtype)


def scatter_plane(plane_BGhw: Tensor, mask_Chw: Tensor) -> Tensor:
    """Undo `gather_plane`: every element back at its group's position, zeros elsewhere."""
    spread = plane_BGhw.repeat(1, PASSES, 1, 1)
    return torch.where(mask_Chw, spread, torch.zeros((), dtype=spread.dtype, device=spread.device))


@dataclass(frozen=True)
class Plane:
    """What a pass is coded under: its `number` (0..3), and the planes (B, 80, h, w) of means and raw scales, in
    steps."""

    number: int
    mean: Tensor
    scale: Tensor

    @property
    def indexes(self) -> Tensor:
        """Table index per element, int32."""
        return table_indexes(self.scale)


@dataclass(frozen=True)
class Decoded:
    """`latent` (B, 320, h, w): the sum of the four passes.  `scales`: each element's raw scale in the pass that sent
    it, same shape."""

    latent: Tensor
    scales: Tensor


Coder = Callable[[Plane], Tensor]
"""Gives the symbols of a plane: (B, 80, h, w), any integer or float type."""


def run_passes(codec: LatentCodec, z_hat_BChw: Tensor, code: Coder) -> Decoded:
    """The four passes, in either direction.

    z_hat: the decoded hyper-latent (B, 160, h, w).  code: called once a pass, in order.
    """
    base = codec.h_s(z_hat_BChw)
    masks = cell_masks(base.shape[2], base.shape[3], base.device)
    latent, scales = torch.zeros_like(base), torch.zeros_like(base)
    for number, mask in enumerate(masks):
        mean, scale = codec.parameters_of_pass(number, base)
        plane = Plane(number, gather_plane(mean, mask), gather_plane(scale, mask))
        decoded = scatter_plane(code(plane).to(base.dtype) + plane.mean, mask)
        decoded = decoded + torch.where(mask, codec.refine(number, decoded, base), torch.zeros_like(base))
        base = torch.where(mask, decoded, base)
        latent, scales = latent + decoded, torch.where(mask, scale, scales)
    return Decoded(latent, scales)


class Rounding:
    """The encoder's side of `run_passes`: rounds y about the means, and keeps what it has sent.

    y: (B, 320, h, w), in steps.  After the passes, `symbols()` and `indexes()` are the stream in its order.
    """

    def __init__(self, y_BChw: Tensor) -> None:
        self._y = y_BChw
        self._masks = cell_masks(y_BChw.shape[2], y_BChw.shape[3], y_BChw.device)
        self._sent: list[tuple[Tensor, Tensor]] = []

    def residual(self, plane: Plane) -> Tensor:
        """y - mean of what the pass sends, not rounded."""
        return gather_plane(self._y, self._masks[plane.number]) - plane.mean

    def __call__(self, plane: Plane) -> Tensor:
        symbols = torch.round(self.residual(plane)).int()
        self._sent.append((symbols, plane.indexes))
        return symbols

    def symbols(self) -> Tensor:
        """(B, 4 * 80 * h * w) int32: passes in order, each row-major over (channel, row, column)."""
        return torch.cat([symbols.flatten(1) for symbols, _ in self._sent], 1)

    def indexes(self) -> Tensor:
        """Table indexes of the same elements in the same order, int32."""
        return torch.cat([indexes.flatten(1) for _, indexes in self._sent], 1)


class Replay:
    """The decoder's side of `run_passes`: symbols (B, 4 * 80 * h * w) in the order of the stream."""

    def __init__(self, symbols: Tensor) -> None:
        self._planes: Iterator[Tensor] = iter(symbols.chunk(PASSES, 1))

    def __call__(self, plane: Plane) -> Tensor:
        return next(self._planes).reshape(plane.mean.shape)
