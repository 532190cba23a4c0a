"""Latents to symbols and back, in integers: the part on which every machine must agree.

In: quantised latents on the encoder's side, rANS words on the decoder's.  Out: words; or per element an int16 value
(the latent in sixteenths of a step) and a uint8 scale index.  Knows integers and tables; nothing of pixels, records or
files.

The entropy-parameter network is the fixed-point twin of `models.latent_codec.HyperSynthesis`.  Weights are 8-bit
integers, activations 8-bit integers, and every sum stays below 2^24, so that float32 arithmetic is exact whatever the
kernel, the number of threads, the batch or the device; `ExactLayer` checks that bound when a model is loaded.  A layer
ends in one requantiser, floor((sum + 2^(s-1)) * 2^-s).  docs/format.md, section "Symbols", states all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ditic_stream.bitstream import crc32c, symbols_checksum
from ditic_stream.config import Q_MAX
from ditic_stream.errors import ConfigError, DesyncError, FormatError, WeightsError
from ditic_stream.models.config import CODED_FROM, Q_STEPS, SCALES, ModelConfig
from ditic_stream.models.latent_codec import Z_MAX
from ditic_stream.rans import Decoder, Tables, encode, lanes_for

EXACT = 2**24
"""Integers up to here, and sums of them, are exact in float32."""
ACTIVATION_MAX = 255
VALUE_MAX, SYMBOL_MAX, MEAN_MAX = 32767, 1000, 16383
"""Bounds of a value (sixteenths of a step), of a symbol, and of a mean (sixteenths)."""
LAYERS = ("conv1", "expand", "conv2", "conv3", "out")
KNOWN_ANSWER_Q = (0, 37, Q_MAX)

Int16 = NDArray[np.int16]
UInt8 = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Coded:
    """A tile's symbols as bytes: the fields of a record."""

    lanes_log2: int
    words: bytes
    escapes: bytes
    coded: int
    symbols_crc: int


@dataclass(frozen=True, slots=True)
class TileLatent:
    """A tile's latents: values int16 in sixteenths of a step, scale indexes uint8, both (groups, channels, rows,
    columns)."""

    values: Int16
    scales: UInt8


class ExactLayer:
    """One integer convolution and its requantiser.

    weight: int8 (out, in, k, k); bias: int32 (nodes, out), interpolated by q when there is more than one node; shift:
    int8 (out,).  Raises WeightsError when a sum could leave the range in which float32 is exact.
    """

    def __init__(self, weight: Tensor, bias: Tensor, shift: Tensor, input_max: int) -> None:
        worst = weight.double().abs().sum((1, 2, 3)) * input_max + bias.double().abs().amax(0)
        if float((worst + 2.0 ** shift.double()).max()) >= EXACT:
            raise WeightsError(
                f"a sum of the entropy network can reach {float(worst.max()):.0f}, beyond {EXACT}; re-export"
            )
        self.weight, self.bias, self.shift = weight.float(), bias.to(torch.int64), shift.float()
        self.half = torch.where(self.shift >= 1, 2.0 ** (self.shift - 1), torch.zeros_like(self.shift))

    def __call__(self, x: Tensor, q: int, low: int, high: int) -> Tensor:
        bias = interpolate(self.bias, q) if len(self.bias) > 1 else self.bias[0]
        total = _convolve(x, self.weight) + (bias.float() + self.half)[:, None, None]
        return (total * (2.0**-self.shift)[:, None, None]).floor().clamp(low, high)


def _convolve(x: Tensor, weight: Tensor) -> Tensor:
    """A convolution that only multiplies and adds; on a GPU as a matrix product, since its kernels may transform
    (Winograd)."""
    if not x.is_cuda:
        return F.conv2d(x, weight, padding=weight.shape[2] // 2)
    columns = F.unfold(x, weight.shape[2], padding=weight.shape[2] // 2)
    return (weight.flatten(1) @ columns).unflatten(2, x.shape[2:])


def interpolate(nodes: Tensor, q: int) -> Tensor:
    """Integer table of a rate q, between the nodes of its two levels: (a * (16 - f) + b * f + 8) >> 4."""
    level = min(q // Q_STEPS, len(nodes) - 2)
    part = q - level * Q_STEPS
    return (nodes[level] * (Q_STEPS - part) + nodes[level + 1] * part + Q_STEPS // 2) >> 4


class EntropyModel:
    """The integer networks and tables of one set of weights, on one device.

    tensors: those named `entropy.*` of a weights file (see training.export).  Raises WeightsError when one is missing
    or out of bounds, DesyncError when this device does not reproduce the stored known answer (`check`).
    """

    def __init__(
        self,
        config: ModelConfig,
        tensors: Mapping[str, Tensor],
        device: str | torch.device = "cpu",
        *,
        check: bool = True,
    ) -> None:
        self.config, self.device = config, torch.device(device)
        try:
            self.layers = {
                name: ExactLayer(
                    tensors[f"entropy.{name}.weight"].to(self.device),
                    tensors[f"entropy.{name}.bias"].to(self.device),
                    tensors[f"entropy.{name}.shift"].to(self.device),
                    input_max=Z_MAX if name == "conv1" else ACTIVATION_MAX,
                )
                for name in LAYERS
            }
            self.scale_table = tensors["entropy.scale_table"].to(torch.int64)
            self.scale_table_z = tensors["entropy.scale_table_z"].to(torch.int64)
            self.tables = Tables.from_arrays(
                *(tensors[f"entropy.tables.{p}"].numpy() for p in ("counts", "sizes", "lows"))
            )
            known = [int(v) for v in tensors["entropy.known_answer"]]
        except (KeyError, ConfigError) as error:
            raise WeightsError(
                f"the weights' entropy networks are incomplete or out of bounds: {error}; export again"
            ) from error
        if check and (answer := self.known_answer()) != known:
            raise DesyncError(
                f"the entropy networks give {answer} on this device where the weights promise {known}; "
                "archives cannot be coded or decoded here: use --device cpu or another torch version"
            )

    def known_answer(self) -> list[int]:
        """CRC-32C of the networks' output for a fixed input at three rates: equal on every device, or symbols would not
        be."""
        n = self.config.hyper_z
        z = (np.arange(n * 35, dtype=np.int64) * 7919 % 255 - 127).reshape(1, n, 5, 7).astype(np.int32)
        answers = []
        for q in KNOWN_ANSWER_Q:
            mean, index = self.parameters(z, q, 9, 14)
            answers.append(crc32c(mean.astype("<i2").tobytes() + index.tobytes()))
        return answers

    def parameters(self, z: NDArray[np.int32], q: int, height: int, width: int) -> tuple[Int16, UInt8]:
        """Means (sixteenths of a step) and scale indexes, (groups, channels, height, width), that hyper-symbols ask
        for."""
        means, indexes = [], []
        table = (interpolate(self.scale_table, q) + 8).to(torch.float32).to(self.device)[:, None, None]
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            for group in torch.from_numpy(z).to(self.device, torch.float32).split(1):
                x = self.layers["conv1"](group, q, 0, ACTIVATION_MAX)
                x = F.pixel_shuffle(self.layers["expand"](x, q, 0, ACTIVATION_MAX), 2)
                x = self.layers["conv3"](self.layers["conv2"](x, q, 0, ACTIVATION_MAX), q, 0, ACTIVATION_MAX)
                mean, scale = self.layers["out"](x[:, :, :height, :width], q, -MEAN_MAX, MEAN_MAX).chunk(2, 1)
                means.append(mean.to(torch.int16).cpu())
                indexes.append(((scale + table) / Q_STEPS).floor().clamp(0, SCALES - 1).to(torch.uint8).cpu())
        return torch.cat(means).numpy(), torch.cat(indexes).numpy()

    def _z_indexes(self, shape: tuple[int, ...], q: int) -> UInt8:
        index = ((interpolate(self.scale_table_z, q) + 8) >> 4).clamp(0, SCALES - 1) + SCALES
        return np.broadcast_to(index.numpy().astype(np.uint8)[:, None, None], shape)

    def push(self, z: NDArray[np.int32], steps_x16: NDArray[np.float32], q: int) -> Coded:
        """Code a tile.  z: hyper-symbols, -127..127; steps_x16: the latent in sixteenths of a step, float32."""
        mean, index = self.parameters(z, q, *steps_x16.shape[2:])
        symbols = np.floor((steps_x16 - mean) / 16 + 0.5).clip(-SYMBOL_MAX, SYMBOL_MAX).astype(np.int32)
        coded = index >= CODED_FROM
        symbols[~coded] = 0
        count = z.size + int(coded.sum())
        lanes = lanes_for(count)
        words, escapes = encode(
            [(z.ravel(), self._z_indexes(z.shape, q).ravel()), (symbols[coded], index[coded])], self.tables, lanes
        )
        crc = symbols_checksum(symbols.astype(np.int16), z.astype(np.int16))
        return Coded(lanes.bit_length() - 1, words, escapes, count, crc)

    def pull(self, coded: Coded, groups: int, height: int, width: int, q: int) -> TileLatent:
        """Undo `push`, up to rounding.  Raises DesyncError when the symbols disagree with their checksum, FormatError
        when the words are not a whole stream."""
        shape = (groups, self.config.hyper_z, -(-height // 2), -(-width // 2))
        try:
            decoder = Decoder(coded.words, coded.escapes, self.tables, 1 << coded.lanes_log2)
            z = decoder.pull(self._z_indexes(shape, q).ravel()).reshape(shape).clip(-Z_MAX, Z_MAX)
            mean, index = self.parameters(z, q, height, width)
            there = index >= CODED_FROM
            symbols = np.zeros(mean.shape, np.int32)
            if z.size + int(there.sum()) != coded.coded:
                raise DesyncError(f"{z.size + int(there.sum())} symbols are due where the record says {coded.coded}")
            symbols[there] = decoder.pull(index[there]).clip(-SYMBOL_MAX, SYMBOL_MAX)
            decoder.finish()
        except FormatError as error:
            raise DesyncError(
                f"the symbols do not decode ({error.message}); the record is damaged or the numerics differ"
            ) from error
        if symbols_checksum(symbols.astype(np.int16), z.astype(np.int16)) != coded.symbols_crc:
            raise DesyncError(
                "decoded symbols disagree with their checksum; the numerics here differ from the encoder's"
            )
        return TileLatent((symbols * 16 + mean).astype(np.int16), index)
