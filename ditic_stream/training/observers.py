"""Networks through which perceptual distances look: VGG16, AlexNet and SqueezeNet 1.1, up to their last tap.

In: a file of the user's, tensors under torchvision's names (safetensors, or a state dict of torch, read with
`weights_only`), and pictures (B, 3, H, W), 0..1, sRGB, sides of 32 px or more.  Out: what chosen layers say of them,
finest first.  Knows nothing of distances, and trains nothing.

Which network a file holds follows from names and shapes.  Two sets of values are about for SqueezeNet 1.1,
torchvision's and those first published, for Caffe; these take pixels of 0..255 less a mean, and are told by their first
values.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ditic_stream.errors import WeightsError

VGG_STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
VGG_WIDTHS = (64, 128, 256, 512, 512)
ALEX = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
"""Layer: channels out, channels in, side of the kernel."""
FIRES = {3: (16, 64), 4: (16, 64), 6: (32, 128), 7: (32, 128), 9: (48, 192), 10: (48, 192)} | dict.fromkeys(
    (11, 12), (64, 256)
)
"""Block: channels it is squeezed to, channels of each of its two outputs."""
POOLED = (3, 6, 9)
"""Blocks with max-pooling before them."""
TAPS = (4, 7, 9, 10, 11, 12)
"""Blocks whose outputs are taps, behind the first layer."""
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What torchvision's networks expect pixels to be brought to zero mean and unit spread by."""
CAFFE_MEAN = (123.0, 117.0, 104.0)
"""What Caffe's expects to be taken off pixels 0..255."""
CAFFE_FIRST = (-0.01437, 0.1609, -0.01656, 0.005314)
"""The first biases of SqueezeNet 1.1 as published for Caffe, to three places at least."""


@dataclass(frozen=True)
class Observer:
    """A network on a device, in one precision."""

    name: str
    """VGG16, AlexNet, SqueezeNet 1.1."""
    caffe: bool
    """With the values for Caffe."""
    layers: Mapping[str, Tensor]

    def taps(self, x_B3HW: Tensor) -> list[Tensor]:
        """Outputs of the layers that LPIPS compares: five, of SqueezeNet seven."""
        return LOOKS[self.name](self, self._scaled(x_B3HW))

    def both(self, x_B3HW: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Of VGG16: its taps as it is, and with pooling by root mean square in place of the largest (Ding et al.),
        the first of which is the same."""
        first = self._stage(0, self._scaled(x_B3HW))
        plain, smooth = [first], [first]
        for stage in range(1, len(VGG_STAGES)):
            plain.append(self._stage(stage, F.max_pool2d(plain[-1], 2)))
            smooth.append(self._stage(stage, pool_evenly(smooth[-1])))
        return plain, smooth

    def _scaled(self, x_B3HW: Tensor) -> Tensor:
        def column(values: tuple[float, ...]) -> Tensor:
            return torch.tensor(values, device=x_B3HW.device, dtype=x_B3HW.dtype)[:, None, None]

        if self.caffe:
            return x_B3HW * 255 - column(CAFFE_MEAN)
        return (x_B3HW - column(MEAN)) / column(SPREAD)

    def _stage(self, stage: int, x: Tensor) -> Tensor:
        for index in VGG_STAGES[stage]:
            x = self._convolve(f"features.{index}", x, padding=1)
        return x

    def _vgg(self, x: Tensor) -> list[Tensor]:
        taps = [self._stage(0, x)]
        for stage in range(1, len(VGG_STAGES)):
            taps.append(self._stage(stage, F.max_pool2d(taps[-1], 2)))
        return taps

    def _alex(self, x: Tensor) -> list[Tensor]:
        taps = [self._convolve("features.0", x, padding=2, stride=4)]
        for index in (3, 6, 8, 10):
            x = F.max_pool2d(taps[-1], 3, 2) if index in (3, 6) else taps[-1]
            taps.append(self._convolve(f"features.{index}", x, padding=ALEX[index][2] // 2))
        return taps

    def _squeeze(self, x: Tensor) -> list[Tensor]:
        x = self._convolve("features.0", x, stride=2)
        taps = [x]
        for index in FIRES:
            if index in POOLED:
                x = F.max_pool2d(x, 3, 2, ceil_mode=True)
            thin = self._convolve(f"features.{index}.squeeze", x)
            wide = self._convolve(f"features.{index}.expand1x1", thin)
            x = torch.cat([wide, self._convolve(f"features.{index}.expand3x3", thin, padding=1)], 1)
            if index in TAPS:
                taps.append(x)
        return taps

    def _convolve(self, name: str, x: Tensor, padding: int = 0, stride: int = 1) -> Tensor:
        return F.relu(F.conv2d(x, self.layers[f"{name}.weight"], self.layers[f"{name}.bias"], stride, padding))


LOOKS = {"VGG16": Observer._vgg, "AlexNet": Observer._alex, "SqueezeNet 1.1": Observer._squeeze}


def pool_evenly(x_BChw: Tensor) -> Tensor:
    """Halve by the root of a weighted mean of squares, weights of a Hann window of three: no aliasing, as max has."""
    line = torch.tensor([0.25, 0.5, 0.25], device=x_BChw.device, dtype=x_BChw.dtype)
    window = (line[:, None] * line).expand(x_BChw.shape[1], 1, 3, 3)
    return (F.conv2d(x_BChw.square(), window, stride=2, padding=1, groups=x_BChw.shape[1]) + 1e-12).sqrt()


def shapes_of(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the layers of a network that are looked through."""
    convolutions: dict[str, tuple[int, int, int]] = {}
    if name == "VGG16":
        before = 3
        for indexes, width in zip(VGG_STAGES, VGG_WIDTHS, strict=True):
            for index in indexes:
                convolutions[f"{index}"] = (width, before, 3)
                before = width
    elif name == "AlexNet":
        convolutions = {f"{index}": shape for index, shape in ALEX.items()}
    else:
        convolutions["0"], before = (64, 3, 3), 64
        for index, (thin, wide) in FIRES.items():
            convolutions[f"{index}.squeeze"] = (thin, before, 1)
            convolutions[f"{index}.expand1x1"], convolutions[f"{index}.expand3x3"] = (wide, thin, 1), (wide, thin, 3)
            before = 2 * wide
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, (after, before, side) in convolutions.items():
        shapes[f"features.{layer}.weight"] = (after, before, side, side)
        shapes[f"features.{layer}.bias"] = (after,)
    return shapes


def open_observer(path: Path | str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Observer:
    """Read a file and tell which network it holds.

    Raises WeightsError when it is absent, damaged, holds more than tensors, or is of no such network.
    """
    stored = _read(Path(path))
    name, wanted = _recognised(stored, Path(path).name)
    layers = {one: stored[one].detach().to(device, dtype) for one in wanted}
    if broken := [one for one, tensor in layers.items() if not bool(torch.isfinite(tensor).all())]:
        raise WeightsError(f"features {path}: {broken[0]} holds values that are not finite; fetch the file again")
    first = layers["features.0.bias"][: len(CAFFE_FIRST)].double().cpu()
    caffe = name == "SqueezeNet 1.1" and torch.allclose(first, torch.tensor(CAFFE_FIRST).double(), rtol=2e-3, atol=1e-4)
    return Observer(name, caffe, layers)


def _recognised(stored: Mapping[str, Tensor], file: str) -> tuple[str, dict[str, tuple[int, ...]]]:
    """The network whose layers `stored` has, all of them, in their shapes, and no others."""
    ours = {name for name in stored if name.startswith("features.")}
    known = {name: shapes_of(name) for name in LOOKS}
    name = max(known, key=lambda one: len(ours & known[one].keys()) - len(ours ^ known[one].keys()) / 1000)
    found = []
    for layer, shape in known[name].items():
        if layer not in ours:
            found.append(f"{layer} is missing")
        elif tuple(stored[layer].shape) != shape or not stored[layer].is_floating_point() or stored[layer].is_meta:
            found.append(f"{layer} is {stored[layer].dtype} {tuple(stored[layer].shape)}, not float {shape}")
    found += [f"{layer} is no part of it" for layer in sorted(ours - known[name].keys())]
    if found:
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        raise WeightsError(
            f"features {file} hold none of {', '.join(LOOKS)}; as {name}, {found[0]}{more}; take "
            "torchvision's file, or one with its names"
        )
    return name, known[name]


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that may be layers looked through; classifiers are left in the file where it can be."""
    from safetensors import safe_open

    try:
        with path.open("rb") as file:
            pickled = file.read(2) in (b"PK", b"\x80\x02")
        if not pickled:
            with safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys() if name.startswith("features.")}  # noqa: SIM118
        # Every door of torch.load raises errors of its own, and what they say ends in advice to load unsafely.
        data = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:
        reason = str(error).strip().partition("\n")[0].partition(". ")[0][:160]
        raise WeightsError(
            f"features {path} cannot be read, or hold more than tensors ({reason}); name a safetensors file, or a "
            "state dict of torch"
        ) from error
    if not isinstance(data, Mapping):
        raise WeightsError(f"features {path} hold a {type(data).__name__}, not tensors by name; name a state dict")
    return {str(name): value for name, value in data.items() if isinstance(value, Tensor)}
