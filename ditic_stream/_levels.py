"""Coarser views of a scene: level k has a pixel for each 2^k x 2^k pixels, whatever that costs least to make.

In: a level and a window of its pixels.  Out: samples in the scene's own type, and the level's mask planes.
Knows where each level comes from (docs/format.md, section 13, defines them); decoding and keeping is _loading's.

    0        decoded pixels
    1, 2     means of decoded pixels
    3 .. 5   read out of the coarse latents (_overview)
    6 ..     means of the stored preview; bands it does not have (old archives): means of level 5

Weights without a readout: 3 is means of decoded pixels; 4 and 5 are the preview enlarged.  For bands that it does not
have, 4 is means of decoded pixels, and what follows means of level 4.

What a mean is over, and how masks shrink, says _sight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditic_stream import _sight as sight
from ditic_stream._decoding import Damage, planes_of_tile
from ditic_stream._loading import Loader
from ditic_stream._overview import Readout, weight_of
from ditic_stream._pyramid import coarser, count_of, finer, slices, tiles
from ditic_stream._rendering import DAMAGE
from ditic_stream._resampling import between
from ditic_stream.archive import PREVIEW_SCALE
from ditic_stream.blend import cut, windows_of
from ditic_stream.errors import ConfigError
from ditic_stream.geometry import CELL, TileKey, Window
from ditic_stream.radiometry import Radiometry, alpha_of, from_network, from_values, pixels_of, some_from_values

MIDDLE_LEVEL, PIXEL_LEVEL = 3, 4
"""Where levels that decode no pixels begin, and where those that may end."""
CELL_LEVEL = CELL.bit_length() - 1
PREVIEW_LEVEL = PREVIEW_SCALE.bit_length() - 1
STRIP_PIXELS = 2**22
"""Pixels of a source held while a strip of a level is made from it."""
STRIP_CELLS = 2**16
"""Cells of latents held while a strip of a level is read out of them, some 100 MB."""
Array = NDArray[Any]
Uint8 = NDArray[np.uint8]
Strips = Iterator[tuple[Window, Array, Uint8]]
"""Pieces of a window: where, bands (bands, rows, columns), planes (planes, rows, columns)."""
Make = Callable[[int, Window, Sequence[int]], Strips]
"""How pieces of a window of a level are made, of some bands."""


class Levels:
    """The levels of one open scene."""

    def __init__(self, loader: Loader, radiometry: Radiometry, damage: Damage | None) -> None:
        self._loader, self._radiometry, self._damage = loader, radiometry, damage
        self._archive, self._grid = loader.archive, loader.grid
        self.count = count_of(self._grid.height, self._grid.width)

    @property
    def alpha(self) -> int | None:
        """Index of the alpha sample."""
        return self._radiometry.alpha

    def shape(self, level: int) -> tuple[int, int]:
        """(rows, columns) of a level; ConfigError when there is none."""
        if not 0 <= level < self.count:
            raise ConfigError(f"level {level} is outside 0..{self.count - 1}")
        return self.shape_at(level)

    def shape_at(self, level: int) -> tuple[int, int]:
        """The same, for levels that a small scene does not offer too."""
        return -(-self._grid.height >> level), -(-self._grid.width >> level)

    def read(self, level: int, window: Window, samples: Sequence[int]) -> tuple[Array, Uint8]:
        """The samples (samples, rows, columns) of a window of the level's pixels, and its mask planes."""
        window.within(*self.shape(level))
        planes = np.empty((self._archive.layout.planes, *window.shape), np.uint8)
        out = np.empty((len(samples), *window.shape), self._radiometry.dtype)
        wanted = sorted({band for band in self._bands(samples) if band is not None})
        for strips, bands in self._sources(level, window, wanted):
            for part, found, below in strips:
                at = part.slices(window)
                planes[(slice(None), *at)] = below
                for place, band in enumerate(self._bands(samples)):
                    if band is not None and band in bands:
                        out[(place, *at)] = found[bands.index(band)]
        if not wanted:
            planes = self.planes(level, window)
        if self._radiometry.alpha in samples:
            alpha = alpha_of(planes, self._radiometry)
            out[[sample == self._radiometry.alpha for sample in samples]] = alpha
        return out, planes

    def _bands(self, samples: Sequence[int]) -> list[int | None]:
        return [sight.band_of(sample, self._radiometry) for sample in samples]

    def sight(self, planes: Uint8, samples: Sequence[int]) -> NDArray[np.bool_]:
        """Which samples (samples, rows, columns) have a value and are visible, by planes that `read` gave."""
        return sight.sight(planes, self._radiometry, samples)

    def valid(self, level: int, window: Window) -> Uint8:
        """The mask (rows, columns), 0 or 255, of a window of the level's pixels."""
        window.within(*self.shape(level))
        out = np.empty(window.shape, np.uint8)
        rows = max(STRIP_PIXELS // (window.width << 2 * (level - _source(level))), 1)
        for part in slices(window, rows):
            out[part.slices(window)] = sight.dataset_mask(self.planes(level, part), self._radiometry)
        return out

    def planes(self, level: int, window: Window) -> Uint8:
        """The mask planes (planes, rows, columns) of a window of the level's pixels."""
        planes = np.zeros((self._archive.layout.planes, *window.shape), np.uint8)
        if not len(planes):
            return planes
        kept = _source(level)
        if kept < level:
            below = self.planes(kept, finer(window, level - kept, *self.shape_at(kept)))
            return sight.shrunk(below, self._radiometry, 1 << (level - kept))
        side = self._grid.config.tile >> level
        keys = tiles(window, side)
        loader, kind = self._loader, f"planes{level}"
        if level:
            loader.fetch((), loader.missing(kind, keys))
        made = loader.each(kind, keys, self._tile_planes(level)) if level else loader.planes(keys)
        for key, found in zip(keys, made, strict=True):
            whole = Window(row=key.row * side, col=key.col * side, height=found.shape[1], width=found.shape[2])
            part = whole.intersect(window)
            planes[(slice(None), *part.slices(window))] = found[(slice(None), *part.slices(whole))]
        return planes

    def settled(
        self, values: NDArray[np.float64], seen: NDArray[np.bool_], nearest: Array, samples: Sequence[int]
    ) -> Array:
        """Values (samples, rows, columns) as pixels where something is in sight, `nearest` elsewhere."""
        out = nearest.copy()
        for place, sample in enumerate(samples):
            band = sight.band_of(sample, self._radiometry)
            if band is not None:
                pixels = pixels_of(values[place], self._radiometry.bands[band], out.dtype)
            else:
                pixels = np.rint(values[place]).astype(out.dtype) if out.dtype.kind != "f" else values[place]
            out[place] = np.where(seen[place], pixels, nearest[place])
        return out

    def _sources(self, level: int, window: Window, bands: list[int]) -> Iterator[tuple[Strips, list[int]]]:
        """Where the bands of a level come from: the pieces of a window, and the bands they hold."""
        stored = [band for band in bands if band < self._archive.layout.channels]
        others = [band for band in bands if band not in stored]
        model = self._archive.manifest.model
        readable = weight_of(model.name, model.weights) is not None
        found: list[tuple[Make, list[int]]]
        if level < MIDDLE_LEVEL or (level == MIDDLE_LEVEL and not readable):
            found = [(self._from_pixels, bands)]
        elif level < PREVIEW_LEVEL and readable:
            found = [(self._from_latents, bands)]
        else:
            preview = self._from_preview if level >= PREVIEW_LEVEL else self._from_preview_enlarged
            if readable:
                rest = self._from_level(CELL_LEVEL, self._from_latents)
            elif level == PIXEL_LEVEL:
                rest = self._from_pixels
            else:
                rest = self._from_level(PIXEL_LEVEL, self._from_pixels)
            found = [(preview, stored), (rest, others)]
        return ((make(level, window, some), some) for make, some in found if some)

    def _from_pixels(self, level: int, window: Window, bands: Sequence[int]) -> Strips:
        """Means of decoded pixels, up to level 4: pieces end on multiples of 16."""
        for piece, pixels, planes in self._pixels(finer(window, level, self._grid.height, self._grid.width)):
            if not level:
                yield piece, pixels[list(bands)], planes
                continue
            part = coarser(piece, level)
            below = self.planes(level, part)
            means = self._means(pixels, planes, 1 << level)
            yield part, from_values(means, below, self._radiometry)[list(bands)], below

    def _pixels(self, window: Window) -> Strips:
        """Decoded pixels, piece by piece."""
        rows, cols = windows_of(self._grid, window)
        keys = [TileKey(row, col) for row in rows for col in cols]
        cores = tiles(window, self._grid.config.tile)
        for piece, units in cut(self._grid, window, self._loader.rendered(keys, cores)):
            planes = self.planes(0, piece)
            yield piece, from_network(units[None], planes, self._radiometry), planes

    def _from_latents(self, level: int, window: Window, bands: Sequence[int]) -> Strips:
        """Means of 8, 16 or 32 pixels out of the coarse latents, a strip of cells after the other."""
        readout = self._readout
        assert readout is not None
        parts = 1 << (CELL_LEVEL - level)
        groups = sorted({band // 3 for band in bands})
        cells = Window(
            row=window.row // parts,
            col=window.col // parts,
            height=-(-window.row_end // parts) - window.row // parts,
            width=-(-window.col_end // parts) - window.col // parts,
        )
        for strip in slices(cells, max(STRIP_CELLS // cells.width, 1)):
            means = readout.means(self._coarse(strip, groups), parts)
            whole = Window(row=strip.row * parts, col=strip.col * parts, height=means.shape[1], width=means.shape[2])
            part = whole.intersect(window)
            units = np.zeros((3 * self._radiometry.groups, *part.shape), np.float32)
            for place, group in enumerate(groups):
                units[3 * group : 3 * group + 3] = means[(slice(3 * place, 3 * place + 3), *part.slices(whole))]
            below = self.planes(level, part)
            yield part, from_network(units[None], below, self._radiometry)[list(bands)], below

    def _from_level(self, base: int, make: Make) -> Make:
        """Means of a finer level's pixels, which `make` makes."""

        def strips(level: int, window: Window, bands: Sequence[int]) -> Strips:
            for part in slices(window, max(STRIP_PIXELS // (window.width << 2 * (level - base)), 1)):
                source = finer(part, level - base, *self.shape_at(base))
                pixels = np.zeros((len(self._radiometry.bands), *source.shape), self._radiometry.dtype)
                for piece, found, _ in make(base, source, bands):
                    pixels[(list(bands), *piece.slices(source))] = found
                means = self._means(pixels, self.planes(base, source), 1 << (level - base))
                below = self.planes(level, part)
                yield part, from_values(means, below, self._radiometry)[list(bands)], below

        return strips

    def _coarse(self, window: Window, groups: list[int]) -> NDArray[np.int16]:
        """The coarse values (groups, channels, rows + 2, columns + 2) of a window of cells and of the cells around it;
        beyond the scene's they are those at its edge."""
        assert self._readout is not None
        rows, cols = self.shape_at(CELL_LEVEL)
        around = window.grown(1, height=rows, width=cols)
        out = np.empty((len(groups), self._readout.channels, *around.shape), np.int16)
        side = self._grid.config.tile // CELL
        keys = tiles(around, side)
        for key, found in zip(keys, self._loader.coarse(keys), strict=True):
            whole = self._grid.latent_core(key)
            part = whole.intersect(around)
            out[(slice(None), slice(None), *part.slices(around))] = found[(groups, slice(None), *part.slices(whole))]
        before = (window.row == around.row, around.row_end == window.row_end)
        beside = (window.col == around.col, around.col_end == window.col_end)
        return np.pad(out, ((0, 0), (0, 0), before, beside), mode="edge")

    @cached_property
    def _readout(self) -> Readout | None:
        model = self._archive.manifest.model
        weight = weight_of(model.name, model.weights)
        if weight is None:
            return None
        return Readout(weight, self._loader.codec.coarse_gain(self._archive.manifest.q))

    def _from_preview(self, level: int, window: Window, bands: Sequence[int]) -> Strips:
        more = level - PREVIEW_LEVEL
        for part in slices(window, max(STRIP_PIXELS // (window.width * len(bands) << 2 * more), 1)):
            source = finer(part, more, *self.shape_at(PREVIEW_LEVEL))
            planes = self.planes(PREVIEW_LEVEL, source)
            means = self._means(self._preview(source, bands), planes, 1 << more, bands)
            yield self._from_stored(level, part, means, bands)

    def _from_preview_enlarged(self, level: int, window: Window, bands: Sequence[int]) -> Strips:
        """The preview drawn larger, linearly between the middles of its pixels that are in sight."""
        factor = 1 << (PREVIEW_LEVEL - level)
        for part in slices(window, max(STRIP_PIXELS // (window.width * len(bands)), 1)):
            inner = coarser(part, PREVIEW_LEVEL - level)
            height, width = self.shape_at(PREVIEW_LEVEL)
            source = inner.grown(1, height=height, width=width)
            units, planes = self._preview(source, bands), self.planes(PREVIEW_LEVEL, source)
            visible = sight.visible(planes, self._radiometry)
            rows = (np.arange(part.row, part.row_end) + 0.5) / factor - 0.5 - source.row
            cols = (np.arange(part.col, part.col_end) + 0.5) / factor - 0.5 - source.col
            larger = [
                between(pixels, sight.valid(planes, self._radiometry, band) & visible, rows, cols)
                for band, pixels in zip(bands, units, strict=True)
            ]
            yield self._from_stored(level, part, np.stack(larger), bands)

    def _from_stored(
        self, level: int, part: Window, stored: NDArray[np.float64], bands: Sequence[int]
    ) -> tuple[Window, Array, Uint8]:
        """A piece of a level out of means of the preview, 0..255, of some bands."""
        described = [self._radiometry.bands[band] for band in bands]
        values = (means * (band.scale / 255) + band.offset for means, band in zip(stored, described, strict=True))
        below = self.planes(level, part)
        return part, some_from_values(values, below, self._radiometry, bands), below

    def _preview(self, window: Window, bands: Sequence[int]) -> Uint8:
        """The preview (bands, rows, columns) of a window of its pixels, as stored, of some bands."""
        side, layout = self._archive.layout.preview_side, self._archive.layout
        groups = sorted({min(band // 3, layout.previews - 1) for band in bands})
        out = np.zeros((len(bands), *window.shape), np.uint8)
        shards = tiles(window, side)
        self._loader.fetch_previews(shards, groups)
        for group in groups:
            own = [(place, band - 3 * group) for place, band in enumerate(bands) if band // 3 == group]
            made = self._loader.each(f"preview{group}", shards, self._shard_preview(group))
            for shard, found in zip(shards, made, strict=True):
                whole = Window(row=shard.row * side, col=shard.col * side, height=found.shape[1], width=found.shape[2])
                part = whole.intersect(window)
                for place, at in own:
                    out[(place, *part.slices(window))] = found[(at, *part.slices(whole))]
        return out

    def _shard_preview(self, group: int) -> Callable[[TileKey], Uint8]:
        """How the preview of a shard is read, of one group of bands."""

        def read(shard: TileKey) -> Uint8:
            layout = self._archive.layout
            try:
                return self._archive.shard(shard).preview([group])
            except DAMAGE:
                if self._damage is None:
                    raise
                return np.zeros((min(3, layout.channels - 3 * group), *layout.preview_part(shard)[1:]), np.uint8)

        return read

    def _tile_planes(self, level: int) -> Callable[[TileKey], Uint8]:
        """How the planes of a tile are made at a level."""
        return lambda key: sight.shrunk(planes_of_tile(self._archive, key, self._damage), self._radiometry, 1 << level)

    def _means(
        self, values: Array, planes: Uint8, factor: int, bands: Sequence[int] | None = None
    ) -> NDArray[np.float64]:
        return sight.means(values, planes, self._radiometry, factor, bands)


def _source(level: int) -> int:
    """The level whose planes are kept by the tile, from which those of `level` are made."""
    return 0 if level < MIDDLE_LEVEL else MIDDLE_LEVEL if level < PREVIEW_LEVEL else PREVIEW_LEVEL
