"""Coarser views of a scene: level k has a pixel for each 2^k x 2^k pixels, whatever that costs least to make.

In: a level and a window of its pixels.  Out: samples in the scene's own type, and the level's mask planes.
Knows where each level comes from (docs/format.md, section 13, defines them); decoding and keeping is _loading's.

    0        decoded pixels
    1, 2     means of decoded pixels
    3 .. 5   means of decoded pixels
    6 ..     means of the stored preview; bands it does not have come from decoded pixels

A block of pixels is a pixel of the level.  Its mean is over those in sight; where none is, the block is what its upper
left pixel is: nodata, NaN, hidden.  Planes shrink by the same rule, so that every level is masked like a scene.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditic_stream._decoding import Damage, planes_of_tile
from ditic_stream._loading import Loader
from ditic_stream._rendering import DAMAGE
from ditic_stream._resampling import any_of, box_means, boxes
from ditic_stream.archive import PREVIEW_SCALE
from ditic_stream.blend import cut, windows_of
from ditic_stream.errors import ConfigError
from ditic_stream.geometry import TileKey, Window
from ditic_stream.radiometry import VALID, Radiometry, alpha_of, from_network, from_values, mask_of, pixels_of

MIDDLE_LEVEL = 3
PREVIEW_LEVEL = PREVIEW_SCALE.bit_length() - 1
SMALLEST = 64
"""Longest side of the last level, pixels."""
STRIP_PIXELS = 2**22
"""Pixels of a source held while a strip of a level is made from it."""
Array = NDArray[Any]
Uint8 = NDArray[np.uint8]


class Levels:
    """The levels of one open scene."""

    def __init__(self, loader: Loader, radiometry: Radiometry, damage: Damage | None) -> None:
        self._loader, self._radiometry, self._damage = loader, radiometry, damage
        self._archive, self._grid = loader.archive, loader.grid
        longest, count = max(self._grid.height, self._grid.width), 1
        while -(-longest >> (count - 1)) > SMALLEST:
            count += 1
        self.count = count

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
        bands = sorted({band for band in map(self._band, samples) if band is not None})
        for part, found, below in self._strips(level, window, bands):
            at = part.slices(window)
            planes[(slice(None), *at)] = below
            alpha = alpha_of(below, self._radiometry)
            for place, sample in enumerate(samples):
                band = self._band(sample)
                out[(place, *at)] = alpha if band is None else found[bands.index(band)]
        return out, planes

    def sight(self, planes: Uint8, samples: Sequence[int]) -> NDArray[np.bool_]:
        """Which of the samples (samples, rows, columns) of planes are valid: no nodata or NaN, and not hidden."""
        return np.stack([self._valid(planes, self._band(sample)) & self._visible(planes) for sample in samples])

    def mask(self, planes: Uint8) -> Uint8:
        """The mask of the scene, 0 or 255: some band is valid, and neither mask nor alpha hides the pixel."""
        valid = np.zeros(planes.shape[1:], bool)
        served = {band for plane in self._radiometry.planes for band in plane.bands}
        if len(served) < len(self._radiometry.bands):
            valid[...] = True
        for number, plane in enumerate(self._radiometry.planes):
            if plane.kind == "validity":
                valid |= planes[number] == VALID
        return np.where(valid & self._visible(planes), np.uint8(255), np.uint8(0))

    def _band(self, sample: int) -> int | None:
        """The band of a sample; None for alpha."""
        alpha = self._radiometry.alpha
        return sample if alpha is None or sample < alpha else None if sample == alpha else sample - 1

    def _valid(self, planes: Uint8, band: int | None) -> NDArray[np.bool_]:
        for number, plane in enumerate(self._radiometry.planes):
            if plane.kind == "validity" and band in plane.bands:
                return np.asarray(planes[number] == VALID)
        return np.ones(planes.shape[1:], bool)

    def _visible(self, planes: Uint8) -> NDArray[np.bool_]:
        mask, alpha = mask_of(planes, self._radiometry), alpha_of(planes, self._radiometry)
        seen = np.ones(planes.shape[1:], bool)
        if mask is not None:
            seen &= mask != 0
        if alpha is not None:
            seen &= alpha != 0
        return seen

    def valid(self, level: int, window: Window) -> Uint8:
        """The mask (rows, columns), 0 or 255, of a window of the level's pixels."""
        window.within(*self.shape(level))
        out = np.empty(window.shape, np.uint8)
        rows = max(STRIP_PIXELS // (window.width << 2 * (level - _source(level))), 1)
        for part in _slices(window, rows):
            out[part.slices(window)] = self.mask(self.planes(level, part))
        return out

    def planes(self, level: int, window: Window) -> Uint8:
        """The mask planes (planes, rows, columns) of a window of the level's pixels."""
        planes = np.zeros((self._archive.layout.planes, *window.shape), np.uint8)
        if not len(planes):
            return planes
        finer = _source(level)
        if finer < level:
            return self._shrunk_planes(
                self.planes(finer, _scaled(window, level - finer, *self.shape_at(finer))), 1 << (level - finer)
            )
        side = self._grid.config.tile >> level
        keys = _tiles(window, side)
        kept = self._loader.planes(keys) if not level else self._loader.each(f"planes{level}", keys, self._tile(level))
        for key, found in zip(keys, kept, strict=True):
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
            band = self._band(sample)
            if band is not None:
                pixels = pixels_of(values[place], self._radiometry.bands[band], out.dtype)
            else:
                pixels = np.rint(values[place]).astype(out.dtype) if out.dtype.kind != "f" else values[place]
            out[place] = np.where(seen[place], pixels, nearest[place])
        return out

    def _strips(self, level: int, window: Window, bands: Sequence[int]) -> Iterator[tuple[Window, Array, Uint8]]:
        """Pieces of a window from top to bottom: (Window, bands (bands, rows, columns), planes)."""
        if level < PREVIEW_LEVEL or any(band >= self._archive.layout.channels for band in bands):
            return self._from_pixels(level, window, bands)
        return self._from_preview(level, window, bands)

    def _from_pixels(self, level: int, window: Window, bands: Sequence[int]) -> Iterator[tuple[Window, Array, Uint8]]:
        source = _scaled(window, level, self._grid.height, self._grid.width)
        for piece, pixels, planes in _aligned(self._pixels(source), 1 << level, source.row_end):
            row, end = piece.row >> level, -(-piece.row_end >> level)
            part = Window(row=row, col=window.col, height=end - row, width=window.width)
            if level:
                below = self.planes(level, part)
                means = self._means(pixels, planes, 1 << level)
                yield part, from_values(means, below, self._radiometry)[list(bands)], below
            else:
                yield part, pixels[list(bands)], planes

    def _pixels(self, window: Window) -> Iterator[tuple[Window, Array, Uint8]]:
        """Decoded pixels, (Window, bands (bands, rows, columns), planes), a piece a row of tiles."""
        rows, cols = windows_of(self._grid, window)
        keys = [TileKey(row, col) for row in rows for col in cols]
        for piece, units in cut(self._grid, window, self._loader.rendered(keys)):
            planes = self.planes(0, piece)
            yield piece, from_network(units[None], planes, self._radiometry), planes

    def _from_preview(self, level: int, window: Window, bands: Sequence[int]) -> Iterator[tuple[Window, Array, Uint8]]:
        more = level - PREVIEW_LEVEL
        for part in _slices(window, max(STRIP_PIXELS // (window.width << 2 * more), 1)):
            source = _scaled(part, more, *self.shape_at(PREVIEW_LEVEL))
            units = np.zeros((len(self._radiometry.bands), *source.shape), np.float32)
            units[: self._archive.layout.channels] = self._preview(source)
            means = self._means(units, self.planes(PREVIEW_LEVEL, source), 1 << more)
            below = self.planes(level, part)
            yield part, from_network(means[None].astype(np.float32), below, self._radiometry)[list(bands)], below

    def _preview(self, window: Window) -> NDArray[np.float32]:
        """The preview (channels, rows, columns) of a window of its pixels, in network units."""
        side = self._archive.layout.preview_side
        out = np.zeros((self._archive.layout.channels, *window.shape), np.float32)
        shards = _tiles(window, side)
        for shard, found in zip(shards, self._loader.each("preview", shards, self._shard_preview), strict=True):
            whole = Window(row=shard.row * side, col=shard.col * side, height=found.shape[1], width=found.shape[2])
            part = whole.intersect(window)
            out[(slice(None), *part.slices(window))] = found[(slice(None), *part.slices(whole))]
        return out / np.float32(255)

    def _shard_preview(self, shard: TileKey) -> Uint8:
        try:
            return self._archive.shard(shard).preview()
        except DAMAGE:
            if self._damage is None:
                raise
            return np.zeros(self._archive.layout.preview_part(shard), np.uint8)

    def _tile(self, level: int) -> Callable[[TileKey], Uint8]:
        """How the planes of a tile are made at a level."""
        return lambda key: self._shrunk_planes(planes_of_tile(self._archive, key, self._damage), 1 << level)

    def _means(self, values: Array, planes: Uint8, factor: int) -> NDArray[np.float64]:
        """Means (bands, rows, columns) over blocks of what is in sight (of what is valid, where all is hidden)."""
        if not len(planes):
            return box_means(values, np.ones(values.shape[1:], bool), factor)[0]
        visible = self._visible(planes)
        out = np.empty((len(values), *(-(-side // factor) for side in values.shape[1:])))
        for band, pixels in enumerate(values):
            valid = self._valid(planes, band)
            out[band], seen = box_means(pixels, valid & visible, factor)
            if not seen.all():
                out[band] = np.where(seen, out[band], box_means(pixels, valid, factor)[0])
        return out

    def _shrunk_planes(self, planes: Uint8, factor: int) -> Uint8:
        """Planes of blocks: valid or unmasked where a pixel is, else the upper left one's; alpha's mean, 0 only where
        all of it is 0."""
        shape = (len(planes), *(-(-side // factor) for side in planes.shape[1:]))
        out = np.zeros(shape, np.uint8)
        if factor == 1:
            return planes
        for number, plane in enumerate(self._radiometry.planes):
            if plane.kind == "validity":
                first = planes[number, ::factor, ::factor]
                out[number] = np.where(any_of(planes[number] == VALID, factor), VALID, first)
            elif plane.kind == "mask":
                out[number] = np.where(any_of(planes[number] != 0, factor), 255, 0)
        alpha = alpha_of(planes, self._radiometry)
        if alpha is not None:
            self._put_alpha(out, alpha, factor)
        return out

    def _put_alpha(self, planes: Uint8, alpha: Array, factor: int) -> None:
        number = boxes(np.ones(alpha.shape), factor)
        mean = boxes(alpha.astype(np.float64), factor) / number
        if alpha.dtype.kind != "f":
            mean = np.where((mean > 0) & (mean < 1), 1, np.rint(mean))
        bits = mean.astype(alpha.dtype).view(f"u{alpha.itemsize}")
        for place, plane in enumerate(self._radiometry.planes):
            if plane.kind.startswith("alpha_"):
                planes[place] = (bits >> (8 * int(plane.kind[-1]))) & 255


def _scaled(window: Window, level: int, height: int, width: int) -> Window:
    """The pixels of a finer grid of height x width that a window of one `level` coarser covers."""
    row, col = window.row << level, window.col << level
    return Window(
        row=row,
        col=col,
        height=min(window.row_end << level, height) - row,
        width=min(window.col_end << level, width) - col,
    )


def _source(level: int) -> int:
    """The level whose planes are kept by the tile, from which those of `level` are made."""
    return 0 if level < MIDDLE_LEVEL else MIDDLE_LEVEL if level < PREVIEW_LEVEL else PREVIEW_LEVEL


def _slices(window: Window, rows: int) -> Iterator[Window]:
    """A window from top to bottom, so many rows at a time."""
    for row in range(window.row, window.row_end, rows):
        yield Window(row=row, col=window.col, height=min(rows, window.row_end - row), width=window.width)


def _aligned(
    pieces: Iterator[tuple[Window, Array, Uint8]], factor: int, end: int
) -> Iterator[tuple[Window, Array, Uint8]]:
    """The pieces cut anew so that each but the last ends on a multiple of `factor` rows."""
    kept: tuple[Window, Array, Uint8] | None = None
    for piece in pieces:
        if kept is not None:
            above, pixels, planes = kept
            window = Window(row=above.row, col=above.col, height=above.height + piece[0].height, width=above.width)
            piece = (window, np.concatenate([pixels, piece[1]], 1), np.concatenate([planes, piece[2]], 1))
        whole, pixels, planes = piece
        ready = whole.height if whole.row_end == end else whole.row_end // factor * factor - whole.row
        kept = None if ready == whole.height else piece
        if ready > 0:
            done = Window(row=whole.row, col=whole.col, height=ready, width=whole.width)
            yield done, pixels[:, :ready], planes[:, :ready]
            if kept is not None:
                rest = Window(row=done.row_end, col=whole.col, height=whole.height - ready, width=whole.width)
                kept = (rest, pixels[:, ready:], planes[:, ready:])


def _tiles(window: Window, side: int) -> list[TileKey]:
    """Squares of a grid of `side` pixels that a window meets, row-major."""
    return [
        TileKey(row, col)
        for row in range(window.row // side, (window.row_end - 1) // side + 1)
        for col in range(window.col // side, (window.col_end - 1) // side + 1)
    ]
