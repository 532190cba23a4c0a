"""The entropy networks in fixed point: what stands between a bitstream and its symbols, the same on every machine.

In: hyper-symbols, and a callback that knows the symbols of a pass or reads them.  Out: the latent and its raw scales as
int16.  An integer n of exponent e means n / 2^e.

Activations are 16-bit integers with one exponent a map, weights 12-bit integers with an exponent an output channel.
They are held and multiplied as float64, where every sum here stays below 2^52 and is exact: so neither the order of a
sum, nor the kernel, the number of threads, the batch or the device can change a bit: tiles of one size go through
together, and each weight is made a float64 once for all of them.  Convolutions are unfolded
into matrix products, those of one channel each into nine shifted products: kernels that multiply and add and do
nothing else.  A layer ends in one requantiser,

    floor((sum + bias + what is added, all of exponent E) / 2^(E - out) + 1/2), clamped to -32768..32767

and nonlinear functions are look-up tables (`lut`).  All integers are made once, at import (`recipe`), and stored.

    z symbols --h_s--> base --adapter_in, g_c, adapter_out--> means, scales --> table indexes      four times
                        ^--- values, refined by LRP <--- symbols, means <--------------'
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ditic_stream.models.paper.config import CODED, HYPER, PASSES, SCALES
from ditic_stream.models.paper.entropy import GROUP, cell_masks, gather_plane, scatter_plane
from ditic_stream.models.paper.lut import HIGH, LOW

WEIGHT_MAX = 2047
"""12-bit weights."""
EXACT = 2.0**52
VALUE_BITS, SCALE_BITS = 6, 7
"""Exponents of latent values and of scales: values reach 512 steps in 64ths, scales 256 in 128ths."""
SYMBOL_MAX = 500
"""Symbols of y are clipped to this, so that 64 of them and a mean stay in 17 bits before the clamp."""
PREFIX = "fixed."

Int32 = NDArray[np.int32]
UInt8 = NDArray[np.uint8]
Code = Callable[[int, NDArray[np.float64], UInt8], Int32]
"""A pass: its number, the means (exponent VALUE_BITS, integers) and table indexes of its planes, both (B, 80, h, w) ->
the symbols."""


@dataclass(frozen=True, slots=True)
class Map:
    """Activations: integers held in float64 (B, channels, rows, columns), and their exponent."""

    data: Tensor
    exponent: int


@dataclass(frozen=True, slots=True)
class Layer:
    """One convolution.  weight: int16 (out, in, k, k), or (out, 1, k, k) where each channel has its own; bias: int64
    (out,), of exponent E = steps + the input's; steps: int8 (out,), exponents of the weights; out: int8 (n,), the
    exponent of each n-th part of the output channels."""

    weight: Tensor
    bias: Tensor
    steps: Tensor
    out: Tensor


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    """Sums of products of integers in float64, zero-padded by kernel // 2: (B, in, h, w) -> (B, out, h, w)."""
    size, wide = weight.shape[2], weight.to(x.device, torch.float64)
    height, width = x.shape[2:]
    if weight.shape[1] == 1 and x.shape[1] > 1:
        edge = size // 2
        padded = F.pad(x, (edge, edge, edge, edge))
        total = torch.zeros_like(x)
        for row in range(size):
            for col in range(size):
                total += wide[:, 0, row, col, None, None] * padded[:, :, row : row + height, col : col + width]
        return total
    columns = x.flatten(2) if size == 1 else F.unfold(x, size, padding=size // 2)
    return torch.bmm(wide.flatten(1).expand(len(x), -1, -1), columns).unflatten(2, (height, width))


def powers(exponents: Tensor, device: torch.device) -> Tensor:
    """2 to the exponents, float64, along the channels of a map."""
    return torch.from_numpy(np.ldexp(1.0, exponents.cpu().numpy())).to(device)[:, None, None]  # torch's goes by pow


class Integers:
    """Layers and tables as they are stored: the tensors `fixed.*` of an imported file.  Raises ValueError when one is
    missing or out of bounds."""

    def __init__(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        self.device = device
        self._tensors = {
            # What is only looked at stays where it is: a device would be waited for.
            name.removeprefix(PREFIX): tensor.to(device) if name.endswith((".weight", ".bias")) else tensor
            for name, tensor in tensors.items()
        }
        self._tables: dict[str, Tensor] = {}
        for name, tensor in self._tensors.items():
            if name.endswith(".weight") and (tensor.dtype != torch.int16 or int(tensor.abs().max()) > WEIGHT_MAX):
                raise ValueError(f"{PREFIX}{name} is not of 12-bit integers")

    def get(self, name: str) -> Tensor:
        """A stored tensor."""
        if name not in self._tensors:
            raise ValueError(f"{PREFIX}{name} is missing")
        return self._tensors[name]

    def layer(self, name: str, x: Map, adds: Sequence[Map]) -> Layer:
        """The layer `name`, for that input and what is added to its sums."""
        return Layer(*(self.get(f"{name}.{part}") for part in ("weight", "bias", "steps", "out")))

    def out_of(self, name: str, layer: Layer, total: Tensor, exponents: Tensor, fixed: Sequence[int]) -> Tensor:
        """Exponents of the output, for equal parts of its channels."""
        return layer.out

    def table(self, kind: str, exponent: int) -> Tensor:
        """A look-up table."""
        key = f"luts.{kind}.{exponent}"
        if key not in self._tables:
            self._tables[key] = self.get(key).to(self.device, torch.float64)
        return self._tables[key]

    def has(self, name: str) -> bool:
        return f"{name}.weight" in self._tensors

    def conv(self, name: str, x: Map, adds: Sequence[Map] = (), *, fixed: Sequence[int] = ()) -> Map:
        """A convolution, what is added to its sums (residuals), and the requantiser.

        fixed: exponents of the output that are given beforehand, for equal parts of its channels.
        """
        layer = self.layer(name, x, adds)
        exponents = layer.steps.int() + x.exponent
        total = convolve(x.data, layer.weight)
        total += layer.bias.to(self.device, torch.float64)[:, None, None]
        for add in adds:
            total += add.data * powers(exponents - add.exponent, self.device)
        out = self.out_of(name, layer, total, exponents, fixed).int()
        each = out.repeat_interleave(len(exponents) // len(out))
        data = (total * powers(each - exponents, self.device) + 0.5).floor_().clamp_(LOW, HIGH)
        return Map(data, int(out[0]))

    def apply(self, kind: str, x: Map, out: int | None = None) -> Map:
        """A nonlinear function, element by element; out: the exponent of its table's entries, if not the input's."""
        table = self.table(kind, x.exponent)
        return Map(table[(x.data - LOW).long()], x.exponent if out is None else out)


def depth_conv(net: Integers, name: str, x: Map, *, shortcut: bool = False, fixed: Sequence[int] = ()) -> Map:
    """`blocks.DepthConv`."""
    y = net.conv(f"{name}.adaptor", x) if net.has(f"{name}.adaptor") else x
    inner = net.apply("wsilu", net.conv(f"{name}.dc.0", y))
    y = net.conv(f"{name}.dc.3", net.conv(f"{name}.dc.2", inner), [y])
    wide = net.apply("wsilu", net.conv(f"{name}.ffn.0", y))
    first, second = wide.data.chunk(2, 1)
    folded = Map((first + second).clamp_(LOW, HIGH), wide.exponent)
    return net.conv(f"{name}.ffn.2", folded, [y, x] if shortcut else [y], fixed=fixed)


def chain(net: Integers, name: str, x: Map, *, fixed: Sequence[int] = ()) -> Map:
    """`blocks.Chain`."""
    for number in (0, 2):
        x = net.apply("gelu", net.conv(f"{name}.branch1.{number}", x))
    return net.conv(f"{name}.branch1.4", x, fixed=fixed)


def base_of(net: Integers, z: Map) -> Map:
    """`latent_codec.HyperSynthesis`, out in the exponent of values."""
    for number in (0, 1):
        name = f"h_s.increase.{number}"
        wide = net.conv(f"{name}.up.conv.0", z)
        z = depth_conv(net, f"{name}.conv", Map(F.pixel_shuffle(wide.data, 2), wide.exponent), shortcut=True)
    z = depth_conv(net, "h_s.increase.2", z)
    return depth_conv(net, "h_s.increase.3", z, fixed=[VALUE_BITS])


def parameters_of_pass(net: Integers, number: int, base: Map) -> tuple[Tensor, Tensor]:
    """Means (exponent VALUE_BITS) and scales (SCALE_BITS) of every position before a pass, (B, 320, h, w)."""
    x = chain(net, f"adapter_in.{number}", base)
    for block in range(3):
        x = depth_conv(net, f"g_c.block.{block}", x)
    x = net.conv("g_c.block.3", x)
    mean, scale = chain(net, f"adapter_out.{number}", x, fixed=[VALUE_BITS, SCALE_BITS]).data.chunk(2, 1)
    return mean, scale


def refinement(net: Integers, number: int, decoded: Tensor, base: Map) -> Tensor:
    """What a pass adds to its decoded values, in the exponent of values."""
    x = chain(net, f"LRP.{number}.block.0", Map(torch.cat([decoded, base.data], 1), VALUE_BITS))
    return net.apply("halftanh", x, VALUE_BITS).data


@torch.inference_mode()
def walk(net: Integers, z_symbols: Int32, code: Code) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """The four passes of some tiles of one size, in either direction.

    z_symbols: int32 (B, 160, h, w), bounded by `z_bound`.  code: called once a pass, in order.
    Returns the latents (exponent VALUE_BITS) and the raw scale of each element in the pass that sent it (SCALE_BITS),
    int16, (B, 320, 4h, 4w).
    """
    with torch.autocast(net.device.type, enabled=False):
        exponent = int(net.get("z.exponent"))
        medians = net.get("z.medians").to(net.device, torch.float64)[:, None, None]
        symbols = torch.from_numpy(z_symbols).to(net.device, torch.float64)
        base = base_of(net, Map((symbols * 2.0**exponent + medians).clamp_(LOW, HIGH), exponent))
        thresholds = net.get("thresholds").to(net.device, torch.float64)
        masks = cell_masks(base.data.shape[2], base.data.shape[3], net.device)
        latent, scales = torch.zeros_like(base.data), torch.zeros_like(base.data)
        for number, mask in enumerate(masks):
            mean, scale = parameters_of_pass(net, number, base)
            plane = gather_plane(mean, mask)
            index = torch.searchsorted(thresholds, gather_plane(scale, mask)).clamp_max_(SCALES - 1)
            found = code(number, plane.cpu().numpy(), index.to(torch.uint8).cpu().numpy())
            sent = torch.from_numpy(found).to(net.device, torch.float64) * 2.0**VALUE_BITS + plane
            decoded = scatter_plane(sent.clamp_(LOW, HIGH), mask)
            refined = (decoded + refinement(net, number, decoded, base)).clamp_(LOW, HIGH)
            latent, scales = torch.where(mask, refined, latent), torch.where(mask, scale, scales)
            base = Map(torch.where(mask, refined, base.data), VALUE_BITS)
    return latent.cpu().numpy().astype(np.int16), scales.cpu().numpy().astype(np.int16)


def z_bound(net: Integers) -> int:
    """Largest hyper-symbol, either sign, that the networks take."""
    return int((HIGH - int(net.get("z.medians").abs().max())) >> int(net.get("z.exponent")))


def known_answer(net: Integers) -> int:
    """CRC-32 of all that the networks give for fixed symbols: equal everywhere, or symbols would not be."""
    z = (np.arange(HYPER, dtype=np.int32) * 7919 % 9 - 4).reshape(1, HYPER, 1, 1)
    seen: list[bytes] = []

    def fixed(_: int, means: NDArray[np.float64], indexes: UInt8) -> Int32:
        seen.extend((means.astype("<i4").tobytes(), indexes.tobytes()))
        return (np.arange(means.size, dtype=np.int32) * 7919 % 13 - 6).reshape(means.shape)

    seen += [part.astype("<i2").tobytes() for part in walk(net, z, fixed)]
    return zlib.crc32(b"".join(seen))


assert GROUP * PASSES == CODED
