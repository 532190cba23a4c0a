"""Training crops: pictures held as uint8 in memory, cut, scaled, flipped and sometimes blurred on the way out.

In: folders, tar files or single pictures.  Out: float32 batches (B, 3, side, side), 0..1.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterable
from pathlib import Path

import imagecodecs
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ditic_stream.errors import ConfigError, SourceError

SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp"}
MAX_SHRINK = 2.2
"""A crop is cut at up to this many times its side and scaled down, so that every sharpness is met."""
SHRUNK, SMOOTH, GRADED = 0.5, 0.2, 0.1
"""Shares of crops that are scaled down; strongly blurred (water, haze and sky are where block steps show); regraded."""


def load_pictures(paths: Iterable[Path]) -> list[Tensor]:
    """Read every picture of the given files, folders and tar archives: uint8 (3, rows, columns) each, sides 256 or
    more."""
    pictures = [_decode(name, data) for path in paths for name, data in _files(path)]
    usable = [p for p in pictures if p is not None and min(p.shape[1:]) >= 256]
    if not usable:
        raise ConfigError(
            "no picture of at least 256 x 256 pixels found; give folders, tar files or pictures that hold some"
        )
    return usable


def _files(path: Path) -> Iterable[tuple[str, bytes]]:
    if path.is_dir():
        for child in sorted(path.iterdir()):
            yield from _files(child)
    elif path.suffix == ".tar":
        with tarfile.open(path) as tar:
            for member in tar:
                if (
                    member.isfile()
                    and Path(member.name).suffix.lower() in SUFFIXES
                    and (stream := tar.extractfile(member))
                ):
                    yield member.name, stream.read()
    elif path.suffix.lower() in SUFFIXES:
        yield path.name, path.read_bytes()
    elif not path.exists():
        raise SourceError(f"{path} does not exist; give a folder, a tar file or a picture")


def _decode(name: str, data: bytes) -> Tensor | None:
    try:
        array = np.asarray(imagecodecs.imread(data))
    except Exception as error:  # imagecodecs raises a class per codec
        raise SourceError(f"{name} cannot be decoded ({error}); remove it from the training set") from error
    if array.dtype != np.uint8:
        return None
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, 2)
    return torch.from_numpy(np.ascontiguousarray(array[..., :3].transpose(2, 0, 1)))


class Crops:
    """Random crops, drawn in proportion to a picture's area; a generator of its own, so runs repeat.

    Pictures smaller than a crop are left out; ConfigError when all are.
    """

    def __init__(self, pictures: list[Tensor], side: int, seed: int) -> None:
        self.pictures, self.side = [p for p in pictures if min(p.shape[1:]) >= side], side
        if not self.pictures:
            raise ConfigError(f"no picture is as large as a crop of {side} x {side} pixels; take a smaller side")
        area = torch.tensor([float(p.shape[1] * p.shape[2]) for p in self.pictures])
        self.share = area / area.sum()
        self.random = torch.Generator().manual_seed(seed)

    def batch(self, count: int) -> Tensor:
        """(count, 3, side, side) float32 in 0..1, values on the 8-bit grid as a scene's are."""
        return torch.stack([self._one() for _ in range(count)])

    def _uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.random))

    def _one(self) -> Tensor:
        picture = self.pictures[int(torch.multinomial(self.share, 1, generator=self.random))]
        height, width = picture.shape[1:]
        cut = self.side
        if self._uniform() < SHRUNK:
            cut = int(min(self.side * self._uniform(1.0, MAX_SHRINK), height, width))
        top, left = int(self._uniform(0, height - cut + 0.999)), int(self._uniform(0, width - cut + 0.999))
        crop = picture[:, top : top + cut, left : left + cut].float() / 255
        if cut != self.side:
            crop = F.interpolate(crop[None], (self.side, self.side), mode="bilinear", antialias=True)[0]
        if self._uniform() < 0.5:
            crop = crop.flip(2)
        if self._uniform() < 0.5:
            crop = crop.flip(1)
        if self._uniform() < 0.5:
            crop = crop.transpose(1, 2)
        if self._uniform() < GRADED:
            crop = self._regrade(crop)
        if self._uniform() < SMOOTH:
            crop = self._smooth(crop)
        return (crop * 255).round().clamp(0, 255) / 255

    def _regrade(self, crop: Tensor) -> Tensor:
        """Another sensor: channels permuted or one of them for all, another gamma and range."""
        order = torch.randperm(3, generator=self.random) if self._uniform() < 0.5 else torch.tensor([1, 1, 1])
        gamma, low, high = self._uniform(0.6, 1.6), self._uniform(0, 0.25), self._uniform(0.6, 1.0)
        return crop[order].pow(gamma) * (high - low) + low

    def _smooth(self, crop: Tensor) -> Tensor:
        """Haze, water, defocus: blurred over 8 to 64 px, all or half of it, with up to 1.5 levels of noise."""
        cells = max(4, int(self.side / self._uniform(8, 64)))
        small = F.interpolate(crop[None], (cells, cells), mode="bilinear", antialias=True)
        soft = F.interpolate(small, (self.side, self.side), mode="bicubic")[0]
        if self._uniform() < 0.4:
            position = torch.linspace(-1, 1, self.side)
            edge = ((position - self._uniform(-0.5, 0.5)) * self._uniform(2, 20)).sigmoid()
            soft = soft * edge + crop * (1 - edge)
        noise = torch.randn(crop.shape, generator=self.random) * (self._uniform(0, 1.5) / 255)
        return soft + noise
