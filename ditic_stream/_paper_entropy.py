"""The entropy coder of ditic-0.6b: symbols of a tile into words and back, over the fixed-point networks.

In: hyper-symbols and the latent on the encoder's side, a record's words on the decoder's.  Out: words; or values
(64ths of a step) and raw scales (128ths), int16.  Knows integers and tables; nothing of pixels, records or files.

A group of three bands makes five parts of the stream: its hyper-symbols, then the planes of its four passes.
docs/format.md, section "Symbols of ditic-0.6b", states all of it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
        parts: list[tuple[Int32, UInt8]] = []
        symbols: list[Int32] = []
        hyper = [z.clip(-self.z_max, self.z_max).astype(np.int32) for z in z_groups]
        for z, y in zip(hyper, y_groups, strict=True):
            parts.append((z.ravel(), _z_indexes(z.shape).ravel()))
            wanted = torch.from_numpy(y).double()
            masks = cell_masks(*y.shape[1:])

            def code(
                number: int, means: NDArray[np.float64], indexes: UInt8, wanted: Tensor = wanted, masks: Tensor = masks
            ) -> Int32:
                steps = gather_plane(wanted[None], masks[number])[0].numpy() - means / 2**VALUE_BITS
                found = np.floor(steps + 0.5).clip(-SYMBOL_MAX, SYMBOL_MAX).astype(np.int32)
                parts.append((found.ravel(), indexes.ravel()))
                symbols.append(found)
                return found

            fixed.walk(self.networks, z, code)
        count = sum(len(part) for part, _ in parts)
        lanes = lanes_for(count)
        words, escapes = encode(parts, self.tables, lanes)
        return Coded(lanes.bit_length() - 1, words, escapes, count, _checksum(symbols, hyper))

    def pull(self, coded: Coded, groups: int, height: int, width: int) -> Cells:
        """Undo `push`, up to rounding; height and width in cells.  Raises DesyncError when the symbols disagree with
        their checksum or the words are not a whole stream."""
        if height % Z_CELLS or width % Z_CELLS:
            raise ConfigError(f"{height} x {width} cells are no multiples of {Z_CELLS}; this model pads its cores")
        shape = (HYPER, height // Z_CELLS, width // Z_CELLS)
        due = groups * (int(np.prod(shape)) + CODED * height * width)
        if coded.coded != due:
            raise DesyncError(f"{due} symbols are due where the record says {coded.coded}")
        values = np.empty((groups, CODED, height, width), np.int16)
        scales, symbols, hyper = np.empty_like(values), list[Int32](), list[Int32]()
        try:
            decoder = Decoder(coded.words, coded.escapes, self.tables, 1 << coded.lanes_log2)

            def code(_: int, means: NDArray[np.float64], indexes: UInt8) -> Int32:
                found = decoder.pull(indexes.ravel()).reshape(means.shape).clip(-SYMBOL_MAX, SYMBOL_MAX)
                symbols.append(found)
                return found

            for group in range(groups):
                z = decoder.pull(_z_indexes(shape).ravel()).reshape(shape).clip(-self.z_max, self.z_max)
                hyper.append(z)
                values[group], scales[group] = fixed.walk(self.networks, z, code)
            decoder.finish()
        except FormatError as error:
            raise DesyncError(
                f"the symbols do not decode ({error.message}); the record is damaged or the numerics differ"
            ) from error
        if _checksum(symbols, hyper) != coded.symbols_crc:
            raise DesyncError(
                "decoded symbols disagree with their checksum; the numerics here differ from the encoder's"
            )
        return Cells(values, scales)


def _z_indexes(shape: tuple[int, ...]) -> UInt8:
    """The tables of z come after those of y, one a channel."""
    channels = np.arange(SCALES, SCALES + HYPER, dtype=np.uint8)
    return np.broadcast_to(channels[:, None, None], shape)


def _checksum(symbols: list[Int32], hyper: list[Int32]) -> int:
    return symbols_checksum(
        *(np.stack(part).astype(np.int16) if part else np.empty(0, np.int16) for part in (symbols, hyper))
    )


assert GROUP * PASSES == CODED
