"""Latents to symbols and back, in integers: the part on which every machine must agree.

In: quantised latents on the encoder's side, rANS words on the decoder's.  Out: words; or per element an int16 value
(the latent in sixteenths of a step) and a uint8 scale index.  Knows integers and tables; nothing of pixels, records or
files.

The entropy-parameter networks are the fixed-point twins of `models.latent_codec.HyperSynthesis` and `Context`.
Weights are 8-bit integers, activations 8-bit integers, and every sum stays below 2^24, so that float32 arithmetic is
exact whatever the kernel, the number of threads, the batch or the device; `ExactLayer` checks that bound when a model
is loaded.  A layer ends in one requantiser, floor((sum + 2^(s-1)) * 2^-s).  docs/format.md, section "Symbols", states
all of it.

    z --> activations --+--> mean, scale of the coarse channels --> symbols, in three passes over the cells --+
                        |                                                                                      v
                        +--> mean, scale of the other channels <------------- context <--------------------- values

`_passes` are the same for both directions.  A model without context has one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ditic_stream._lockstep import pull_together
from ditic_stream.bitstream import crc32c, symbols_checksum
from ditic_stream.config import Q_MAX
from ditic_stream.errors import ConfigError, DesyncError, FormatError, WeightsError
from ditic_stream.models.config import CODED_FROM, Q_STEPS, SCALES, ModelConfig
from ditic_stream.models.latent_codec import NEIGHBOURS, Z_MAX, pass_of_cells
from ditic_stream.rans import Decoder, Tables, encode, lanes_for

EXACT = 2**24
"""Integers up to here, and sums of them, are exact in float32."""
ACTIVATION_MAX = 255
VALUE_MAX, SYMBOL_MAX, MEAN_MAX = 32767, 1000, 16383
"""Bounds of a value (sixteenths of a step), of a symbol, and of a mean (sixteenths)."""
LAYERS = ("conv1", "expand", "conv2", "conv3", "out")
CONTEXT_LAYERS = tuple(f"{name}_{layer}" for name in ("near", "context") for layer in ("conv", "join", "out"))
KNOWN_ANSWER_Q = (0, 37 * Q_STEPS // 16, Q_MAX)

Int16 = NDArray[np.int16]
Int64 = NDArray[np.int64]
UInt8 = NDArray[np.uint8]
Code = Callable[[slice, NDArray[np.bool_], Int16, UInt8], NDArray[np.int32]]
"""A pass: its channels, its cells (rows, columns), and of all elements of these channels the means (sixteenths of a
step) and scale indexes, (groups, channels, rows, columns) -> the symbols, 0 where none is coded."""

Wanted = tuple[slice, NDArray[np.bool_], Int16, UInt8]
Passes = Generator[Wanted, NDArray[np.int32], Any]


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

    The factor 2^-shift is in the weights and the bias already: a power of two changes exponents alone, so that sums of
    scaled integers are as exact as those of integers.
    """

    def __init__(self, weight: Tensor, bias: Tensor, shift: Tensor, input_max: int) -> None:
        worst = weight.double().abs().sum((1, 2, 3)) * input_max + bias.double().abs().amax(0)
        if float((worst + 2.0 ** shift.double()).max()) >= EXACT:
            raise WeightsError(
                f"a sum of the entropy network can reach {float(worst.max()):.0f}, beyond {EXACT}; re-export"
            )
        self.integers = weight, bias, shift
        self.bias, self.scale = bias.to(torch.int64), 2.0 ** -shift.float()
        self.half = torch.where(shift >= 1, 0.5, 0.0)
        self.weight = weight.float() * self.scale[:, None, None, None]

    def __call__(self, x: Tensor, q: int, low: int, high: int) -> Tensor:
        bias = interpolate(self.bias, q) if len(self.bias) > 1 else self.bias[0]
        return _convolve(x, self.weight, bias * self.scale + self.half).floor_().clamp_(low, high)

    def only(self, outputs: Tensor) -> ExactLayer:
        """The layer with some of its outputs alone."""
        weight, bias, shift = self.integers
        return ExactLayer(weight[outputs], bias[:, outputs], shift[outputs], input_max=0)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A convolution that only multiplies and adds; on a GPU as a matrix product, since its kernels may transform
    (Winograd)."""
    if not x.is_cuda:
        return F.conv2d(x, weight, bias, padding=weight.shape[2] // 2)
    columns = F.unfold(x, weight.shape[2], padding=weight.shape[2] // 2)
    return (weight.flatten(1) @ columns).add_(bias[:, None]).unflatten(2, x.shape[2:])


def interpolate(nodes: Tensor, q: int) -> Tensor:
    """Integer table of a rate q, between the nodes of its two levels: (a * (1584 - f) + b * f + 792) // 1584."""
    level = min(q // Q_STEPS, len(nodes) - 2)
    part = q - level * Q_STEPS
    return (nodes[level] * (Q_STEPS - part) + nodes[level + 1] * part + Q_STEPS // 2) // Q_STEPS


def _halves(x: Tensor) -> tuple[Int64, Int64]:
    """Means and scales, the two halves of the channels of an output."""
    mean, scale = x.cpu().numpy().astype(np.int64).reshape(len(x), 2, -1, *x.shape[2:]).swapaxes(0, 1)
    return mean, scale


def _between(known: Int64, step: int, share: NDArray[np.int32]) -> Int64:
    """`share` (1/256, a channel each) of the mean over the neighbours of each cell that lie in the tile, rounded:
    floor((2 share sum + 256 count) / (512 count))."""
    height, width = known.shape[2:]
    padded = np.pad(known, ((0, 0), (0, 0), (1, 1), (1, 1)))
    inside = np.pad(np.ones((height, width), np.int64), 1)
    total, count = np.zeros_like(known), np.zeros((height, width), np.int64)
    for row, col in NEIGHBOURS[step]:
        part = (..., slice(1 + row, 1 + row + height), slice(1 + col, 1 + col + width))
        total, count = total + padded[part], count + inside[part]
    count = np.maximum(count, 1)
    return np.asarray((2 * share[:, None, None].astype(np.int64) * total + 256 * count) // (512 * count))


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
        names = LAYERS + (CONTEXT_LAYERS if config.context else ())
        try:
            self.layers = {
                name: ExactLayer(
                    tensors[f"entropy.{name}.weight"].to(self.device),
                    tensors[f"entropy.{name}.bias"].to(self.device),
                    tensors[f"entropy.{name}.shift"].to(self.device),
                    input_max=Z_MAX if name in ("conv1", "near_conv", "context_conv") else ACTIVATION_MAX,
                )
                for name in names
            }
            self.scale_table = tensors["entropy.scale_table"].to(torch.int64)
            self.scale_table_z = tensors["entropy.scale_table_z"].to(torch.int64)
            if config.context:
                first = torch.arange(config.context)
                self.layers["coarse_out"] = self.layers["out"].only(torch.cat([first, first + config.latent]))
                self.context_steps = tensors["entropy.context_steps"].numpy()
                self.share = tensors["entropy.near_share"].numpy()
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
        """CRC-32C of the networks' output for fixed symbols at three rates: equal on every device, or symbols would not
        be."""
        n = self.config.hyper_z
        z = (np.arange(n * 35, dtype=np.int64) * 7919 % 255 - 127).reshape(1, n, 5, 7).astype(np.int32)
        answers = []
        for q in KNOWN_ANSWER_Q:
            seen: list[bytes] = []

            def fixed(
                part: slice, cells: NDArray[np.bool_], mean: Int16, index: UInt8, seen: list[bytes] = seen
            ) -> NDArray[np.int32]:
                seen += [mean.astype("<i2").tobytes(), index.tobytes()]
                return (np.arange(mean.size, dtype=np.int32) * 7919 % 101 - 50).reshape(mean.shape)

            self._walk(z, q, 9, 14, fixed)
            answers.append(crc32c(b"".join(seen)))
        return answers

    def _walk(
        self, z: NDArray[np.int32], q: int, height: int, width: int, code: Code
    ) -> tuple[NDArray[np.int32], TileLatent]:
        """Go through the passes of a tile.  Returns all symbols, and the latent they make."""
        with self._exact():
            passes = self._passes(z, q, height, width)
            wanted = next(passes)
            while True:
                try:
                    wanted = passes.send(code(*wanted))
                except StopIteration as done:
                    made: tuple[NDArray[np.int32], TileLatent] = done.value
                    return made

    @contextmanager
    def _exact(self) -> Iterator[None]:
        """How the networks run."""
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
            yield

    def _passes(self, z: NDArray[np.int32], q: int, height: int, width: int, *, coarse: bool = False) -> Passes:
        """The passes of a tile: yields what each needs to be coded, takes its symbols, and ends with all symbols and
        the latent they make.  Run it inside `_exact`.

        coarse: stop after the passes of the first `context` channels, and give no others.
        """
        latent, first = self.config.latent, self.config.context
        shape = (len(z), first if coarse else latent, height, width)
        symbols, values, indexes = np.zeros(shape, np.int32), np.zeros(shape, np.int16), np.zeros(shape, np.uint8)
        table = (interpolate(self.scale_table, q).numpy() + 8)[:, None, None]

        def coded(part: slice, cells: NDArray[np.bool_], mean: Int64, scale: Int64) -> Passes:
            means = mean.clip(-MEAN_MAX, MEAN_MAX).astype(np.int16)
            index = ((scale + table[part]) >> 4).clip(0, SCALES - 1).astype(np.uint8)
            found = yield part, cells, means, index
            for whole, new in ((symbols, found), (values, found * 16 + means), (indexes, index)):
                np.copyto(whole[:, part], new.astype(whole.dtype), where=cells)

        hyper = self._hyper(z, q)[:, :, :height, :width]
        mean, scale = _halves(self.layers["coarse_out" if coarse else "out"](hyper, q, -MEAN_MAX, MEAN_MAX))
        if first:
            lead, turn = slice(0, first), pass_of_cells(height, width).numpy()
            yield from coded(lead, turn == 0, mean[:, lead], scale[:, lead])
            for step in (0, 1):
                known = np.where(turn <= step, values[:, lead] - mean[:, lead], 0)
                more_mean, more_scale = self._context("near", known, hyper, q)
                more_mean += _between(known, step, self.share[step])
                yield from coded(lead, turn == step + 1, mean[:, lead] + more_mean, scale[:, lead] + more_scale)
            if coarse:
                return symbols, TileLatent(values, indexes)
            more_mean, more_scale = self._context("context", values[:, lead].astype(np.int64), hyper, q)
            mean, scale = mean[:, first:] + more_mean, scale[:, first:] + more_scale
        yield from coded(slice(first, latent), np.ones((height, width), bool), mean, scale)
        return symbols, TileLatent(values, indexes)

    def _hyper(self, z: NDArray[np.int32], q: int) -> Tensor:
        """Activations that hyper-symbols ask for, twice their size."""
        x = self.layers["conv1"](torch.from_numpy(z).to(self.device, torch.float32), q, 0, ACTIVATION_MAX)
        x = F.pixel_shuffle(self.layers["expand"](x, q, 0, ACTIVATION_MAX), 2)
        return self.layers["conv3"](self.layers["conv2"](x, q, 0, ACTIVATION_MAX), q, 0, ACTIVATION_MAX)

    def _context(self, name: str, known: Int64, hyper: Tensor, q: int) -> tuple[Int64, Int64]:
        """What known values (sixteenths of a step) add to means and scales."""
        steps = np.searchsorted(self.context_steps, np.abs(known), side="right") * np.sign(known)
        x = torch.from_numpy(steps.astype(np.float32)).to(self.device)
        x = torch.cat([self.layers[f"{name}_conv"](x, q, 0, ACTIVATION_MAX), hyper], 1)
        x = self.layers[f"{name}_join"](x, q, 0, ACTIVATION_MAX)
        return _halves(self.layers[f"{name}_out"](x, q, -MEAN_MAX, MEAN_MAX))

    def _z_indexes(self, shape: tuple[int, ...], q: int) -> UInt8:
        index = ((interpolate(self.scale_table_z, q) + 8) >> 4).clamp(0, SCALES - 1) + SCALES
        return np.broadcast_to(index.numpy().astype(np.uint8)[:, None, None], shape)

    def quantise(
        self, z: NDArray[np.int32], steps_x16: NDArray[np.float32], q: int
    ) -> tuple[NDArray[np.int32], list[tuple[NDArray[np.int32], UInt8]]]:
        """The symbols of a latent, (groups, channels, rows, columns), and what of them and of z is coded: per part the
        symbols and the index of each one's table."""
        parts = [(z.ravel(), self._z_indexes(z.shape, q).ravel())]

        def code(part: slice, cells: NDArray[np.bool_], mean: Int16, index: UInt8) -> NDArray[np.int32]:
            coded = (index >= CODED_FROM) & cells
            symbols = np.zeros(mean.shape, np.int32)
            steps = np.floor((steps_x16[:, part][coded] - mean[coded]) / 16 + 0.5)
            symbols[coded] = steps.clip(-SYMBOL_MAX, SYMBOL_MAX)
            parts.append((symbols[coded], index[coded]))
            return symbols

        symbols, _ = self._walk(z, q, steps_x16.shape[2], steps_x16.shape[3], code)
        return symbols, parts

    def push(self, z: NDArray[np.int32], steps_x16: NDArray[np.float32], q: int) -> Coded:
        """Code a tile.  z: hyper-symbols, -127..127; steps_x16: the latent in sixteenths of a step, float32."""
        symbols, parts = self.quantise(z, steps_x16, q)
        count = sum(len(part) for part, _ in parts)
        lanes = lanes_for(count)
        words, escapes = encode(parts, self.tables, lanes)
        crc = symbols_checksum(symbols.astype(np.int16), z.astype(np.int16))
        return Coded(lanes.bit_length() - 1, words, escapes, count, crc)

    def pull(self, coded: Coded, groups: int, height: int, width: int, q: int) -> TileLatent:
        """Undo `push`, up to rounding.  Raises DesyncError when the symbols disagree with their checksum or the words
        are not a whole stream."""
        return self.pull_many([coded], groups, height, width, q)[0]

    def pull_many(
        self, coded: Sequence[Coded], groups: int, height: int, width: int, q: int, *, coarse: bool = False
    ) -> list[TileLatent]:
        """Several tiles of one size, their streams in lockstep: less time, and the same for each as alone.

        coarse: the first `context` channels alone (all, where the model has no context).  They are the first parts of a
        stream, so the rest is not decoded, and the checksum, which is over all, is not checked.
        Raises DesyncError, as `pull`, without saying which tile it is about.
        """
        coarse = coarse and self.config.context > 0
        try:
            with self._exact():
                return self._pulled(coded, groups, height, width, q, coarse)
        except FormatError as error:
            raise DesyncError(
                f"the symbols do not decode ({error.message}); the record is damaged or the numerics differ"
            ) from error

    def _pulled(
        self, coded: Sequence[Coded], groups: int, height: int, width: int, q: int, coarse: bool
    ) -> list[TileLatent]:
        shape = (groups, self.config.hyper_z, -(-height // 2), -(-width // 2))
        left = [one.coded - int(np.prod(shape)) for one in coded]
        decoders = [Decoder(one.words, one.escapes, self.tables, 1 << one.lanes_log2) for one in coded]
        parts = pull_together(decoders, [self._z_indexes(shape, q).ravel()] * len(coded))
        hyper = [part.reshape(shape).clip(-Z_MAX, Z_MAX) for part in parts]
        passes = [self._passes(z, q, height, width, coarse=coarse) for z in hyper]
        wanted = [next(one) for one in passes]
        made: list[tuple[NDArray[np.int32], TileLatent]] = []
        while not made:
            there = [(index >= CODED_FROM) & cells for _, cells, _, index in wanted]
            for place, (part, *_) in enumerate(wanted):
                left[place] -= int(there[place].sum())
                if left[place] < 0 or (left[place] and part.stop == self.config.latent):
                    due = coded[place].coded
                    raise DesyncError(f"{due - left[place]} symbols are due where the record says {due}")
            found = pull_together(decoders, [index[some] for (*_, index), some in zip(wanted, there, strict=True)])
            following = []
            for one, some, values in zip(passes, there, found, strict=True):
                symbols = np.zeros(some.shape, np.int32)
                symbols[some] = values.clip(-SYMBOL_MAX, SYMBOL_MAX)
                try:
                    following.append(one.send(symbols))
                except StopIteration as done:
                    made.append(done.value)
            wanted = following
        for decoder in () if coarse else decoders:
            decoder.finish()
        for record, z, (symbols, _) in () if coarse else zip(coded, hyper, made, strict=True):
            if symbols_checksum(symbols.astype(np.int16), z.astype(np.int16)) != record.symbols_crc:
                raise DesyncError(
                    "decoded symbols disagree with their checksum; the numerics here differ from the encoder's"
                )
        return [latent for _, latent in made]
