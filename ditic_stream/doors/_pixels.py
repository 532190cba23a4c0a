"""A level of a scene as an array that is read where it is indexed, for libraries that take anything array-like.

In: an open scene.  Out: `shape`, `dtype`, numpy's basic indexing; what the source says of its bands.
Knows axes; knows no library that wants them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import unescape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditic_stream._indexing import picks_of
from ditic_stream.errors import ConfigError
from ditic_stream.geometry import Window
from ditic_stream.scene import Scene

CHUNK_BYTES = 2**26
GDAL_METADATA = 42112
ITEM = re.compile(r'<Item name="[^"]*" sample="(\d{1,5})" role="(description|scale|offset|unittype)">([^<]*)</Item>')


class Pixels:
    """Samples of a level, (rows, columns, samples), or (samples, rows, columns) where `bands_first`.

    Safe in any number of threads, as the scene is; pickles as the scene's name, which is opened again elsewhere.
    """

    ndim = 3

    def __init__(self, scene: Scene, level: int = 0, *, bands_first: bool = False) -> None:
        if not 0 <= level < scene.level_count:
            raise ConfigError(f"level {level} is outside 0..{scene.level_count - 1}")
        self.scene, self.level, self.bands_first = scene, level, bands_first
        width, height = scene.level_dimensions[level]
        self.dtype = scene.dtype
        self.shape = (scene.shape[2], height, width) if bands_first else (height, width, scene.shape[2])

    def __getitem__(self, index: Any) -> NDArray[Any]:
        picks = picks_of(index, self.shape)
        bands, rows, cols = picks if self.bands_first else (picks[2], picks[0], picks[1])
        if rows.empty or cols.empty or bands.empty:
            pixels = np.empty([pick.end - pick.first for pick in (bands, rows, cols)], self.dtype)
        else:
            window = Window(row=rows.first, col=cols.first, height=rows.end - rows.first, width=cols.end - cols.first)
            pixels = self.scene.read(window, level=self.level, bands=range(bands.first, bands.end))
        taken = pixels if self.bands_first else pixels.transpose(1, 2, 0)
        return np.asarray(taken[tuple(pick.take for pick in picks)])


class Valid:
    """The mask of a level, (rows, columns) uint8: 255 where pixels are valid, 0 elsewhere."""

    ndim = 2
    dtype = np.dtype(np.uint8)

    def __init__(self, scene: Scene, level: int = 0) -> None:
        self.scene, self.level = scene, level
        width, height = scene.level_dimensions[level]
        self.shape = (height, width)

    def __getitem__(self, index: Any) -> NDArray[np.uint8]:
        rows, cols = picks_of(index, self.shape)
        if rows.empty or cols.empty:
            return np.empty((rows.end - rows.first, cols.end - cols.first), np.uint8)
        window = Window(row=rows.first, col=cols.first, height=rows.end - rows.first, width=cols.end - cols.first)
        return np.asarray(self.scene.valid(window, level=self.level)[rows.take, cols.take])


def is_masked(scene: Scene) -> bool:
    """Whether any pixel may be hidden: by nodata, NaN, a mask or alpha."""
    return bool(scene.archive.layout.planes)


def chunk_side(scene: Scene, level: int) -> int:
    """Pixels a side of what is best read at once at a level: a tile, or what becomes of it there, 256 at least; less
    where many bands would make that more than CHUNK_BYTES."""
    side = min(max(scene.archive.grid.config.tile >> level, 256), 1024)
    while side > 64 and side * side * scene.shape[2] * scene.dtype.itemsize > CHUNK_BYTES:
        side //= 2
    return side


@dataclass(frozen=True, slots=True, kw_only=True)
class Bands:
    """What the source says of its samples, one entry each; None where it says nothing of any."""

    descriptions: tuple[str | None, ...]
    scales: tuple[float, ...] | None
    offsets: tuple[float, ...] | None
    units: tuple[str, ...] | None


def bands_of(scene: Scene) -> Bands:
    """The descriptions, scales, offsets and units that GDAL keeps of bands."""
    fields = scene.archive.manifest.source.metadata.get("fields", [])
    text = str(next((field.get("text", "") for field in fields if field["code"] == GDAL_METADATA), ""))
    found: dict[str, dict[int, str]] = {"description": {}, "scale": {}, "offset": {}, "unittype": {}}
    for sample, role, value in ITEM.findall(text):
        found[role][int(sample)] = unescape(unescape(value))
    samples = range(scene.shape[2])
    try:
        scales = tuple(float(found["scale"].get(sample, 1)) for sample in samples) if found["scale"] else None
        offsets = tuple(float(found["offset"].get(sample, 0)) for sample in samples) if found["offset"] else None
    except ValueError:
        scales = offsets = None
    units = tuple(found["unittype"].get(sample, "") for sample in samples) if found["unittype"] else None
    names = tuple(found["description"].get(sample) for sample in samples)
    return Bands(descriptions=names, scales=scales, offsets=offsets, units=units)


@contextmanager
def needing(extra: str) -> Iterator[None]:
    """ConfigError that names the extra when a library is not here."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(
            f"{error.name or extra} is not here; install it with pip install 'ditic-stream[{extra}]'"
        ) from error
