"""The entropy coder of ditic-0.6b: symbols of a tile into words and back, over the fixed-point networks.

In: hyper-symbols and the latent on the encoder's side, a record's words on the decoder's.  Out: words; or values
(64ths of a step) and raw scales (128ths), int16.  Knows integers and tables; nothing of pixels, records or files.

A group of three bands makes five parts of the stream: its hyper-symbols, then the planes of its four passes.
docs/format.md, section "Symbols of ditic-0.6b", states all of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ditic_stream._lockstep import pull_together
from ditic_stream.bitstream import symbols_checksum
from ditic_stream.entropy import Coded
from ditic_stream.errors import ConfigError, DesyncError, FormatError, WeightsError
from ditic_stream.latents import Cells
from ditic_stream.models.paper import fixed
from ditic_stream.models.paper.config import CODED, HYPER, PASSES, SCALES
from ditic_stream.models.paper.entropy import GROUP, cell_masks, gather_plane
from ditic_stream.models.paper.fixed import SYMBOL_MAX, VALUE_BITS
from ditic_stream.models.paper.tables import FlatTables
from ditic_stream.rans import Decoder, Tables, encode, lanes_for

Z_CELLS = 4
"""Cells of the latent a cell of the hyper-latent covers a side."""
CELLS_TOGETHER = 2048
"""Cells that go through the networks together, at most: of eight tiles of 1024 px, or eight groups of bands."""
Int32 = NDArray[np.int32]
UInt8 = NDArray[np.uint8]


class PaperEntropy:
    """The integer networks and tables of one set of weights, on one device.

    integers: the tensors `fixed.*` of an imported file; z, y: its tables.  Raises WeightsError when one is missing or
    out of bounds, DesyncError when this device does not reproduce the stored known answer (`check`).
    """

    def __init__(
        self,
        integers: Mapping[str, Tensor],
        z: FlatTables,
        y: FlatTables,
        device: str | torch.device = "cpu",
        *,
        check: bool = True,
    ) -> None:
        try:
            self.networks = fixed.Integers(integers, torch.device(device))
            self.z_max = fixed.z_bound(self.networks)
            both = (np.concatenate([getattr(y, part), getattr(z, part)]) for part in ("counts", "sizes", "lows"))
            self.tables = Tables.from_arrays(*both)
            known = int(self.networks.get("known_answer"))
            answer = fixed.known_answer(self.networks) if check else known
        except (ValueError, ConfigError) as error:
            raise WeightsError(f"the weights' entropy networks cannot be used: {error}; import them again") from error
        if answer != known:
            raise DesyncError(
                f"the entropy networks give {answer} on this device where the weights promise {known}; "
                "archives cannot be coded or decoded here: use --device cpu or another torch version"
            )

    def push(self, z_groups: list[Int32], y_groups: list[NDArray[np.float32]]) -> Coded:
        """Code a tile.  z_groups: a group's hyper-symbols, (160, rows / 4, columns / 4), rounded about the medians;
        y_groups: its latent in steps, (320, rows, columns), rows and columns multiples of 4."""
        fit = _fit(*y_groups[0].shape[1:])
        parts: list[tuple[Int32, UInt8]] = []
        symbols: list[Int32] = []
        hyper: list[Int32] = []
        for first in range(0, len(y_groups), fit):  # the encoder knows the symbols of all groups
            z = np.stack(z_groups[first : first + fit]).clip(-self.z_max, self.z_max).astype(np.int32)
            passes = self._rounded(z, np.stack(y_groups[first : first + fit]))
            for place, group in enumerate(z):
                hyper.append(group)
                parts.append((group.ravel(), _z_indexes(group.shape).ravel()))
                symbols += [found[place] for found, _ in passes]
                parts += [(found[place].ravel(), indexes[place].ravel()) for found, indexes in passes]
        count = sum(len(part) for part, _ in parts)
        lanes = lanes_for(count)
        words, escapes = encode(parts, self.tables, lanes)
        return Coded(lanes.bit_length() - 1, words, escapes, count, _checksum(symbols, hyper))

    def _rounded(self, z: Int32, y: NDArray[np.float32]) -> list[tuple[Int32, UInt8]]:
        """Symbols and table indexes of the four passes, each (B, 80, rows, columns)."""
        wanted, passes = torch.from_numpy(y).double(), list[tuple[Int32, UInt8]]()
        masks = cell_masks(*y.shape[2:])

        def code(number: int, means: NDArray[np.float64], indexes: UInt8) -> Int32:
            steps = gather_plane(wanted, masks[number]).numpy() - means / 2**VALUE_BITS
            found = np.floor(steps + 0.5).clip(-SYMBOL_MAX, SYMBOL_MAX).astype(np.int32)
            passes.append((found, indexes))
            return found

        fixed.walk(self.networks, z, code)
        return passes

    def pull(self, coded: Coded, groups: int, height: int, width: int) -> Cells:
        """Undo `push`, up to rounding; height and width in cells.  Raises DesyncError when the symbols disagree with
        their checksum or the words are not a whole stream."""
        return self.pull_many([coded], groups, height, width)[0]

    def pull_many(self, coded: Sequence[Coded], groups: int, height: int, width: int) -> list[Cells]:
        """Several tiles of one size, as many in one go of the networks as memory is bounded for: less time, and the
        same for each as alone.  Raises DesyncError, as `pull`, without saying which tile it is about."""
        if height % Z_CELLS or width % Z_CELLS:
            raise ConfigError(f"{height} x {width} cells are no multiples of {Z_CELLS}; this model pads its cores")
        fit, found = _fit(height, width), list[Cells]()
        try:
            for first in range(0, len(coded), fit):
                found += self._pulled(coded[first : first + fit], groups, height, width)
        except FormatError as error:
            raise DesyncError(
                f"the symbols do not decode ({error.message}); the record is damaged or the numerics differ"
            ) from error
        return found

    def _pulled(self, coded: Sequence[Coded], groups: int, height: int, width: int) -> list[Cells]:
        shape, count = (HYPER, height // Z_CELLS, width // Z_CELLS), len(coded)
        due = groups * (int(np.prod(shape)) + CODED * height * width)
        for one in coded:
            if one.coded != due:
                raise DesyncError(f"{due} symbols are due where the record says {one.coded}")
        values = np.empty((count, groups, CODED, height, width), np.int16)
        scales, symbols, hyper = np.empty_like(values), list[Int32](), list[Int32]()
        decoders = [Decoder(one.words, one.escapes, self.tables, 1 << one.lanes_log2) for one in coded]
        z_indexes = [_z_indexes(shape).ravel()] * count

        def code(_: int, means: NDArray[np.float64], indexes: UInt8) -> Int32:
            parts = pull_together(decoders, [one.ravel() for one in indexes])
            symbols.append(np.stack(parts).reshape(means.shape).clip(-SYMBOL_MAX, SYMBOL_MAX))
            return symbols[-1]

        for group in range(groups):
            parts = pull_together(decoders, z_indexes)
            hyper.append(np.stack(parts).reshape(count, *shape).clip(-self.z_max, self.z_max))
            values[:, group], scales[:, group] = fixed.walk(self.networks, hyper[-1], code)
        for place, (one, decoder) in enumerate(zip(coded, decoders, strict=True)):
            decoder.finish()
            if _checksum([part[place] for part in symbols], [part[place] for part in hyper]) != one.symbols_crc:
                raise DesyncError(
                    "decoded symbols disagree with their checksum; the numerics here differ from the encoder's"
                )
        return [Cells(*both) for both in zip(values, scales, strict=True)]


def _fit(height: int, width: int) -> int:
    """How many maps of so many cells go through the networks together."""
    return max(CELLS_TOGETHER // (height * width), 1)


def _z_indexes(shape: tuple[int, ...]) -> UInt8:
    """The tables of z come after those of y, one a channel."""
    channels = np.arange(SCALES, SCALES + HYPER, dtype=np.uint8)
    return np.broadcast_to(channels[:, None, None], shape)


def _checksum(symbols: list[Int32], hyper: list[Int32]) -> int:
    return symbols_checksum(
        *(np.stack(part).astype(np.int16) if part else np.empty(0, np.int16) for part in (symbols, hyper))
    )


assert GROUP * PASSES == CODED
