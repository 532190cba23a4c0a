"""How the integers of the fixed-point networks are made from a checkpoint: once, at import, and always the same.

In: a checkpoint's tensors and its integer tables.  Out: the tensors `fixed.*` of an imported file, see `fixed`.

    weights   a channel's exponent is the largest up to 20 at which its largest weight, times 2^exponent, is below
              2047.5, and at which what is added to its sums stays below 2^50; a weight is floor(w 2^exponent + 1/2),
              clamped to +-2047
    biases    floor(b 2^E + 1/2)
    z         exponent: the largest up to 8 at which 2 r + m + 1 fits into 15 bits, r the farthest value of the tables
              of z, m the largest median; medians are rounded at it
    scales    a threshold for each known width, floor(width 2^7); the index of a scale is how many are below it
    maps      the exponent is the largest up to 18 at which 8 times the largest sum that was seen fits into 15 bits;
              seen is what comes up when the networks, their layers being made one by one in the order in which they
              are used, decode a stream of uniformly random bits: 2 x 2 hyper-symbols a channel under their tables, and
              then every pass under the tables it asks for, escapes taken for 0.  The bits are the upper 16 of
              PCG64's raw 64, seed 0, in the order of use
    tables    `lut`, one for each function and exponent that came up

All of it is exact arithmetic (powers of two, float64 sums of integers, and `lut`), so that no two machines differ.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ditic_stream.models.paper.config import HYPER, SCALES
from ditic_stream.models.paper.fixed import (
    EXACT,
    PREFIX,
    SCALE_BITS,
    VALUE_BITS,
    WEIGHT_MAX,
    Int32,
    Integers,
    Layer,
    Map,
    UInt8,
    known_answer,
    powers,
    walk,
    z_bound,
)
from ditic_stream.models.paper.lut import HIGH, look_up_table
from ditic_stream.models.paper.tables import FlatTables

STEPS_MAX, Z_BITS_MAX, MAP_BITS = 20, 8, (-8, 18)
HEADROOM = 3
"""Bits of a map above the largest value seen."""
CARRY_MAX = 35
"""Bits by which what is added may be shifted up."""
CALIBRATION = 2
"""Rows and columns of hyper-symbols that are decoded."""
SHARED = re.compile(r"(adapter_in\.)[1-3](\.branch1\.4)")
"""Layers whose output one network takes in every pass: they have the exponent of the first one's."""
NETWORKS = ("h_s.", "g_c.", "adapter_in.", "adapter_out.", "LRP.")


def build(
    tensors: Mapping[str, Tensor], z: FlatTables, y: FlatTables, widths: NDArray[np.float32]
) -> dict[str, Tensor]:
    """All tensors `fixed.*` of a checkpoint.  Raises ValueError, one sentence, when a value is too large for them."""
    medians = tensors["codec.entropy_bottleneck.quantiles"][:, 0, 1].double()
    reach = int(max(np.abs(z.lows).max(), np.abs(z.lows + z.sizes - 2).max()))
    room = HIGH / (2 * reach + math.ceil(float(medians.abs().max())) + 1)
    exponent = min(max(math.frexp(room)[1] - 1, 0), Z_BITS_MAX)
    made: dict[str, Tensor] = {
        "z.exponent": torch.tensor(exponent, dtype=torch.int8),
        "z.medians": _rounded(medians * 2.0**exponent).to(torch.int32),
        "thresholds": torch.from_numpy(np.floor(widths.astype(np.float64) * 2**SCALE_BITS).astype(np.int32)),
    }
    net = _Making(tensors, made)
    source = _Random(z, y, z_bound(net))
    walk(net, source.hyper(CALIBRATION), source)
    made["known_answer"] = torch.tensor([known_answer(Integers(made, torch.device("cpu")))], dtype=torch.int64)
    return {PREFIX + name: tensor for name, tensor in sorted(made.items())}


class _Making(Integers):
    """Makes each layer when it is first asked for, and keeps it in `made`."""

    def __init__(self, tensors: Mapping[str, Tensor], made: dict[str, Tensor]) -> None:
        super().__init__({}, torch.device("cpu"))
        self._tensors = made
        self._floats = {
            name.removeprefix("codec."): tensor
            for name, tensor in tensors.items()
            if name.removeprefix("codec.").startswith(NETWORKS)
        }

    def has(self, name: str) -> bool:
        return f"{name}.weight" in self._floats

    def layer(self, name: str, x: Map, adds: Sequence[Map]) -> Layer:
        if f"{name}.weight" not in self._tensors:
            weight, bias = self._floats[f"{name}.weight"].double(), self._floats[f"{name}.bias"].double()
            steps = _steps(weight, x.exponent, adds)
            exact = _rounded(bias * powers(steps + x.exponent, self.device).flatten())
            if float(exact.abs().max()) >= EXACT / 4:
                raise ValueError(f"codec.{name}.bias holds {float(bias.abs().max()):.3g}, too much for fixed point")
            whole = _rounded(weight.mul_(powers(steps, self.device)[..., None])).clamp_(-WEIGHT_MAX, WEIGHT_MAX)
            made = {"weight": whole.to(torch.int16), "bias": exact.to(torch.int64), "steps": steps.to(torch.int8)}
            self._tensors |= {f"{name}.{part}": tensor for part, tensor in made.items()}
        weight, bias, steps = (self._tensors[f"{name}.{part}"] for part in ("weight", "bias", "steps"))
        return Layer(weight, bias, steps, self._tensors.get(f"{name}.out", torch.zeros(0, dtype=torch.int8)))

    def out_of(self, name: str, layer: Layer, total: Tensor, exponents: Tensor, fixed: Sequence[int]) -> Tensor:
        """Of a layer that serves several passes, and of those before it (g_c, adapter_in), what the first one
        showed."""
        if len(layer.out):
            return layer.out
        if fixed:
            out = torch.tensor(list(fixed), dtype=torch.int8)
        elif SHARED.fullmatch(name):
            out = self._tensors[SHARED.sub(r"\g<1>0\g<2>.out", name)]
        else:
            largest = float((total * powers(-exponents, self.device)).abs().max())
            bits = HIGH.bit_length() - HEADROOM - math.frexp(largest)[1]
            out = torch.tensor([min(max(bits, MAP_BITS[0]), MAP_BITS[1])], dtype=torch.int8)
        self._tensors[f"{name}.out"] = out
        return out

    def table(self, kind: str, exponent: int) -> Tensor:
        key = f"luts.{kind}.{exponent}"
        if key not in self._tensors:
            out = VALUE_BITS if kind == "halftanh" else exponent
            self._tensors[key] = torch.from_numpy(look_up_table(kind, exponent, out))
        return super().table(kind, exponent)


def _steps(weight: Tensor, exponent: int, adds: Sequence[Map]) -> Tensor:
    """Exponents of a layer's weights, int32, one an output channel."""
    largest = weight.abs().flatten(1).amax(1).numpy()
    steps = np.frexp((WEIGHT_MAX + 0.5) / np.maximum(largest, 2.0**-40))[1].astype(np.int32) - 1
    top = min([STEPS_MAX, *(CARRY_MAX + add.exponent - exponent for add in adds)])
    if int(steps.min()) + exponent < -20:
        raise ValueError(f"a weight of {float(largest.max()):.3g} is too large for fixed point")
    return torch.from_numpy(np.minimum(steps, top))


def _rounded(x: Tensor) -> Tensor:
    return x.add_(0.5).floor_()


class _Random:
    """Symbols that the tables make of uniformly random bits; a `Code` of `fixed.walk`."""

    def __init__(self, z: FlatTables, y: FlatTables, bound: int) -> None:
        self._bits, self._z, self._y, self._bound = np.random.PCG64(0), _rows(z), _rows(y), bound

    def hyper(self, side: int) -> Int32:
        drawn = [self._draw(table, side * side) for table in self._z]
        return np.stack(drawn).reshape(1, HYPER, side, side).clip(-self._bound, self._bound).astype(np.int32)

    def __call__(self, _: int, means: NDArray[np.float64], indexes: UInt8) -> Int32:
        symbols = np.zeros(means.shape, np.int32)
        for index in range(SCALES):
            there = indexes == index
            symbols[there] = self._draw(self._y[index], int(there.sum()))
        return symbols

    def _draw(self, table: tuple[NDArray[np.int64], int], count: int) -> NDArray[np.int64]:
        ends, low = table
        slots = (np.atleast_1d(self._bits.random_raw(count)) >> np.uint64(48)).astype(np.int64)
        entries = np.searchsorted(ends, slots, side="right")
        return np.where(entries == len(ends) - 1, 0, entries + low)


def _rows(tables: FlatTables) -> list[tuple[NDArray[np.int64], int]]:
    parts = np.split(tables.counts.astype(np.int64), np.cumsum(tables.sizes)[:-1])
    return [(np.cumsum(part), int(low)) for part, low in zip(parts, tables.lows, strict=True)]
