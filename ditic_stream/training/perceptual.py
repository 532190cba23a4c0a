"""How unlike two pictures are to a network that was trained to recognise things: a loss, and a figure of benchmarks.

In: a features file the user names (safetensors of SqueezeNet 1.1 under torchvision's names with Caffe's values), and
pictures (B, 3, H, W), 0..1, sRGB, sides of 32 px or more.  Out: distances (B,), 0 for equal pictures, differentiable
in the second.  Knows nothing of rates.

Two distances of the same features.  `feature_distance` compares them place by place (the uncalibrated distance of
Zhang et al., CVPR 2018: not LPIPS, since no layer is fitted to people's judgements).  `texture_distance` compares their
means, variances and covariances over the picture (Ding et al., IEEE TPAMI 44(5), 2020, with uniform weights: not DISTS,
for the same reason), so that grass may be other grass.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ditic_stream.errors import WeightsError

TAPS = (1, 4, 7, 9, 10, 11, 12)
"""Layers of torchvision's `features` whose outputs are compared."""
POOLED = (3, 6, 9)
"""Layers with max-pooling before them."""
FIRES = (3, 4, 6, 7, 9, 10, 11, 12)
PARTS = ("squeeze", "expand1x1", "expand3x3")
MEAN = (123.0, 117.0, 104.0)
"""What the network expects to be taken off pixels 0..255."""
STABLE = 1e-4
"""Share of a layer's mean square below which means and variances count as absent: Ding's constants are absolute, and
these features are a hundred times larger than those they were chosen for."""


class Features:
    """SqueezeNet's layers up to the last tap, on a device, float32, never trained."""

    def __init__(self, path: Path | str, device: torch.device | str = "cpu") -> None:
        """Read a features file.  WeightsError when it is absent, damaged or of another network."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        names = ["features.0", *(f"features.{index}.{part}" for index in FIRES for part in PARTS)]
        try:
            stored = load_file(path)
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"features {path} cannot be read ({error}); name a safetensors file") from error
        wanted = [f"{name}.{part}" for name in names for part in ("weight", "bias")]
        if missing := [name for name in wanted if name not in stored]:
            raise WeightsError(
                f"features {path} lack {missing[0]} and {len(missing) - 1} more; name the features of SqueezeNet 1.1"
            )
        self._layers = {name: stored[name].float().to(device) for name in wanted}
        self._mean = torch.tensor(MEAN, device=device)[:, None, None]
        try:
            self.taps(torch.zeros(1, 3, 32, 32, device=device))
        except RuntimeError as error:
            raise WeightsError(f"features {path} have other shapes than SqueezeNet 1.1: {error}") from error

    def taps(self, x_B3HW: Tensor) -> list[Tensor]:
        """Outputs of the seven layers, float32, finest first."""
        with torch.autocast(x_B3HW.device.type, enabled=False):
            x = self._convolve("features.0", x_B3HW.float() * 255 - self._mean, stride=2)
            taps = [x]
            for index in FIRES:
                if index in POOLED:
                    x = F.max_pool2d(x, 3, 2, ceil_mode=True)
                squeezed, wide, wider = (f"features.{index}.{part}" for part in PARTS)
                thin = self._convolve(squeezed, x)
                x = torch.cat([self._convolve(wide, thin), self._convolve(wider, thin, padding=1)], 1)
                if index in TAPS:
                    taps.append(x)
            return taps

    def distance(self, x_B3HW: Tensor, y_B3HW: Tensor) -> Tensor:
        """Mean of the two distances per picture (B,); one pass of the network over each picture."""
        with torch.no_grad():
            source = self.taps(x_B3HW)
        decoded = self.taps(y_B3HW)
        with torch.autocast(x_B3HW.device.type, enabled=False):
            textures = texture_distance([x_B3HW.float(), *source], [y_B3HW.float(), *decoded])
            return (feature_distance(source, decoded) + textures) / 2

    def _convolve(self, name: str, x: Tensor, padding: int = 0, stride: int = 1) -> Tensor:
        return F.relu(F.conv2d(x, self._layers[f"{name}.weight"], self._layers[f"{name}.bias"], stride, padding))


def feature_distance(xs: list[Tensor], ys: list[Tensor]) -> Tensor:
    """Squared difference of features of length one at each place, mean over places and layers, per picture (B,)."""
    layers = [(_of_length_one(x) - _of_length_one(y)).square().sum(1).mean((1, 2)) for x, y in zip(xs, ys, strict=True)]
    return torch.stack(layers).mean(0)


def _of_length_one(x_BChw: Tensor) -> Tensor:
    """The root has no slope at zero, and a place where no feature fires is common: hence the tiny addend."""
    return x_BChw / (x_BChw.square().sum(1, keepdim=True) + 1e-10).sqrt()


def texture_distance(xs: list[Tensor], ys: list[Tensor]) -> Tensor:
    """One minus the likeness of means and of covariances, equally weighed, mean over channels and layers, per picture
    (B,), 0..1 and for opposite pictures a little beyond."""
    layers = []
    for x, y in zip(xs, ys, strict=True):
        mean_x, mean_y = x.mean((2, 3)), y.mean((2, 3))
        var_x, var_y = x.var((2, 3), correction=0), y.var((2, 3), correction=0)
        covariance = ((x - mean_x[..., None, None]) * (y - mean_y[..., None, None])).mean((2, 3))
        small = STABLE * x.square().mean((1, 2, 3)).detach()[:, None] + 1e-6
        texture = (2 * mean_x * mean_y + small) / (mean_x**2 + mean_y**2 + small)
        structure = (2 * covariance + small) / (var_x + var_y + small)
        layers.append(1 - (texture + structure).mean(1) / 2)
    return torch.stack(layers).mean(0)
