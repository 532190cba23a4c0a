"""How unlike two pictures are to a network that was trained to recognise things: a loss, and a figure of benchmarks.

In: a features file the user names (`training.observers`), and pictures (B, 3, H, W), 0..1, sRGB, sides of 32 px or
more.  Out: distances (B,), 0 for equal pictures, differentiable in the second.  Knows nothing of rates.

Two distances.  One compares features place by place (Zhang et al., CVPR 2018), the other their means, variances and
covariances over the picture (Ding et al., IEEE TPAMI 44(5), 2020), so that grass may be other grass.  Both were fitted
to what people judge, through networks with torchvision's values; `fitted.safetensors` has what was fitted, as the
packages lpips 0.1.4 and DISTS_pytorch 0.1 publish it (`scripts/fitted.py`, licences beside it):

    file                          place by place             statistics
    VGG16                         LPIPS v0.1 (vgg)           DISTS
    AlexNet                       LPIPS v0.1 (alex)          their form, uniform weights, over the same layers
    SqueezeNet 1.1                LPIPS v0.1 (squeeze)       the same
    SqueezeNet 1.1 for Caffe      its form, uniform weights  the same

What has the form alone is neither LPIPS nor DISTS, and goes by other names: `likeness` and `texture`.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from ditic_stream.training.observers import Observer, open_observer

FITTED = {"VGG16": "vgg", "AlexNet": "alex", "SqueezeNet 1.1": "squeeze"}
STABLE = 1e-4
"""Share of a layer's mean square below which means and variances count as absent, where nothing is fitted: DISTS's
constant is absolute, and features of Caffe's values are a hundred times larger than those it was chosen for."""
DISTS_STABLE = 1e-6


class Features:
    """A network that looks, and the two distances it gives; on a device, never trained."""

    def __init__(
        self, path: Path | str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        """Read a features file.  WeightsError when it is absent, damaged or of another network."""
        self.observer: Observer = open_observer(path, device, dtype)
        self._dtype = dtype
        place = {name: value.to(device, dtype) for name, value in fitted().items()}
        self._linear: list[Tensor] | None = None
        self._shares: tuple[Tensor, Tensor] | None = None
        if not self.observer.caffe:
            key = FITTED[self.observer.name]
            self._linear = [place[f"lpips.{key}.{tap}"] for tap in range(5 if key != "squeeze" else 7)]
        if self.observer.name == "VGG16":
            whole = place["dists.alpha"].sum() + place["dists.beta"].sum()
            self._shares = place["dists.alpha"] / whole, place["dists.beta"] / whole

    @property
    def names(self) -> tuple[str, str]:
        """Of the two distances: lpips or likeness, dists or texture."""
        return ("likeness" if self._linear is None else "lpips", "texture" if self._shares is None else "dists")

    @property
    def words(self) -> str:
        """What the two distances are, for a log."""
        network = f"{self.observer.name}{' with values for Caffe' if self.observer.caffe else ''}"
        if self._shares is not None:
            return f"LPIPS v0.1 and DISTS through {network}"
        if self._linear is not None:
            return f"LPIPS v0.1 through {network}; of DISTS, which is of VGG16 alone, the form without fitted weights"
        return f"the forms of LPIPS and DISTS through {network}, without fitted weights: neither LPIPS nor DISTS"

    def taps(self, x_B3HW: Tensor) -> list[Tensor]:
        """What LPIPS compares: outputs of layers, finest first."""
        with torch.autocast(x_B3HW.device.type, enabled=False):
            return self.observer.taps(x_B3HW.to(self._dtype))

    def judge(self, x_B3HW: Tensor, y_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """The two distances per picture, (B,) each; gradients reach `y`."""
        with torch.autocast(x_B3HW.device.type, enabled=False):
            x, y = x_B3HW.to(self._dtype), y_B3HW.to(self._dtype)
            with torch.no_grad():
                source, smooth_source = self._seen(x)
            decoded, smooth = self._seen(y)
            if self._linear is None:
                place = feature_distance(source, decoded)
            else:
                place = lpips(source, decoded, self._linear)
            if self._shares is None:
                return place, texture_distance([x, *smooth_source], [y, *smooth])
            return place, dists([x, *smooth_source], [y, *smooth], *self._shares)

    def distance(self, x_B3HW: Tensor, y_B3HW: Tensor) -> Tensor:
        """Mean of the two distances per picture, (B,)."""
        place, texture = self.judge(x_B3HW, y_B3HW)
        return (place + texture) / 2

    def _seen(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Taps for the one distance, and for the other."""
        if self._shares is not None:
            return self.observer.both(x)
        taps = self.observer.taps(x)
        return taps, taps


@cache
def fitted() -> dict[str, Tensor]:
    """What was fitted, float32, by name: `lpips.NETWORK.TAP` (channels,), `dists.alpha` and `dists.beta` (1475,)."""
    from safetensors.torch import load

    return load(resources.files("ditic_stream.training").joinpath("fitted.safetensors").read_bytes())


def lpips(xs: list[Tensor], ys: list[Tensor], linear: list[Tensor]) -> Tensor:
    """LPIPS v0.1 of taps, per picture (B,): squared differences of features of length one at each place, weighed a
    channel, mean over places, sum over layers."""
    layers = [
        torch.einsum("bchw,c->b", (_of_length_one(x) - _of_length_one(y)).square(), weight) / x[0, 0].numel()
        for x, y, weight in zip(xs, ys, linear, strict=True)
    ]
    return torch.stack(layers).sum(0)


def feature_distance(xs: list[Tensor], ys: list[Tensor]) -> Tensor:
    """LPIPS's form: channels weigh alike, and so do layers, of which it is the mean, per picture (B,)."""
    layers = [(_of_length_one(x) - _of_length_one(y)).square().sum(1).mean((1, 2)) for x, y in zip(xs, ys, strict=True)]
    return torch.stack(layers).mean(0)


def _of_length_one(x_BChw: Tensor) -> Tensor:
    """The root has no slope at zero, and a place where no feature fires is common: hence the bound within it, below
    the addend of LPIPS."""
    return x_BChw / (x_BChw.square().sum(1, keepdim=True).clamp_min(1e-24).sqrt() + 1e-10)


def dists(xs: list[Tensor], ys: list[Tensor], alpha_C: Tensor, beta_C: Tensor) -> Tensor:
    """DISTS of pixels and taps, per picture (B,): one minus the likeness of means, weighed by `alpha`, and of
    covariances, by `beta`; C goes over the channels of all layers."""
    texture, structure = (torch.cat(parts, 1) for parts in zip(*map(_statistics, xs, ys), strict=True))
    return 1 - (texture * alpha_C + structure * beta_C).sum(1)


def texture_distance(xs: list[Tensor], ys: list[Tensor]) -> Tensor:
    """DISTS's form: means and covariances weigh alike, and so do channels and layers, per picture (B,), 0..1 and for
    opposite pictures a little beyond."""
    layers = []
    for x, y in zip(xs, ys, strict=True):
        small = STABLE * x.square().mean((1, 2, 3)).detach()[:, None] + 1e-6
        texture, structure = _statistics(x, y, small)
        layers.append(1 - (texture + structure).mean(1) / 2)
    return torch.stack(layers).mean(0)


def _statistics(x: Tensor, y: Tensor, small: Tensor | float = DISTS_STABLE) -> tuple[Tensor, Tensor]:
    """Likeness of means and of covariances, (B, C) each, 1 for equal pictures; small: what counts as absent."""
    mean_x, mean_y = x.mean((2, 3)), y.mean((2, 3))
    var_x, var_y = x.var((2, 3), correction=0), y.var((2, 3), correction=0)
    covariance = ((x - mean_x[..., None, None]) * (y - mean_y[..., None, None])).mean((2, 3))
    texture = (2 * mean_x * mean_y + small) / (mean_x**2 + mean_y**2 + small)
    return texture, (2 * covariance + small) / (var_x + var_y + small)
