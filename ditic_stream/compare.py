"""Compare a scene with its archive: rate and quality of the whole and of every tile, in bounded memory.

In: a source and its archive.  Out: TileQuality as tile rows finish, then a SceneQuality.  Knows sources, archives and
metrics; the decoding itself is done by `regions`, strip by strip, and no more than a strip and the rows that MS-SSIM
still has to see (metrics.REACH) are held.

Rate is 8 x bytes / (rows x columns), over the bytes of records (with headers), shard indexes and masks.  What an
archive costs once (Zarr metadata, manifest, preview) stands beside it, in bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditic_stream._paths import Name
from ditic_stream.archive import Archive, open_archive
from ditic_stream.errors import ConfigError
from ditic_stream.geometry import TileKey, Window
from ditic_stream.metrics import REACH, Errors, Structure
from ditic_stream.radiometry import VALID, Radiometry, alpha_of, mask_of, read_window, value_range
from ditic_stream.summary import bits_per_pixel, rate

STEP = 256
"""Rows taken in at a time; divides every tile and is a multiple of metrics.ALIGN."""
Pixels = NDArray[Any]
Bytes = NDArray[np.uint8]
Flags = NDArray[np.bool_]
Strip = tuple[Window, Pixels]


@dataclass(frozen=True, slots=True, kw_only=True)
class TileQuality:
    """How one tile came back.  A figure is None where nothing can be measured; `psnr` also when nothing differs."""

    tile: str
    """ "row,col" in the grid."""
    psnr: float | None
    ms_ssim: float | None
    """Over the positions whose window starts in the tile; None for a tile too thin to hold any."""
    max_error: float
    """Largest absolute error of a valid sample, source units."""
    record_bytes: int
    bpp: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneQuality:
    """How the whole scene came back."""

    height: int
    width: int
    bands: int
    dtype: str
    peak: float
    """The value range that PSNR and MS-SSIM refer to: that of the dtype, or of the valid pixels for float32."""
    psnr: float | None
    """Decibels, over all valid samples; None when nothing differs or nothing is valid."""
    rmse: float | None
    ms_ssim: float | None
    max_error: float
    exact: int
    """Samples that must come back exactly: nodata, NaN, infinities, constants under a mask; none counts above."""
    exact_wrong: int
    """Of those, and of the bytes of masks and alpha, the ones that came back otherwise.  Anything but 0 is a fault."""
    bpp: float
    record_bytes: int
    """Records, shard indexes and masks: what `bpp` counts."""
    fixed_bytes: int
    """Everything else in the archive."""
    worst_tiles: tuple[str, ...]
    """The tiles with the lowest PSNR, worst first, at most five."""

    def violations(
        self, *, min_psnr: float | None = None, min_ms_ssim: float | None = None, max_error: float | None = None
    ) -> list[str]:
        """The bounds that do not hold, a sentence each.  What could not be measured violates no bound but MS-SSIM's.

        One bound holds always: whatever must come back exactly does.
        """
        found = []
        if self.exact_wrong:
            found.append(f"samples of nodata or masks that came back otherwise: {self.exact_wrong}; none may")
        if min_psnr is not None and self.psnr is not None and self.psnr < min_psnr:
            found.append(f"PSNR {self.psnr:.2f} dB is below {min_psnr:g}")
        if min_ms_ssim is not None and self.ms_ssim is None:
            found.append(f"MS-SSIM needs 161 pixels a side, the scene has {self.width} x {self.height}")
        elif min_ms_ssim is not None and self.ms_ssim is not None and self.ms_ssim < min_ms_ssim:
            found.append(f"MS-SSIM {self.ms_ssim:.4f} is below {min_ms_ssim:g}")
        if max_error is not None and self.max_error > max_error:
            found.append(f"largest error {self.max_error:g} is above {max_error:g}")
        return found

    def lines(self) -> list[str]:
        """For people."""
        psnr = "no sample differs" if self.psnr is None else f"{self.psnr:.2f} dB"
        similar = "none below 161 pixels a side" if self.ms_ssim is None else f"{self.ms_ssim:.4f}"
        exact = f"{self.exact} samples, {self.exact_wrong} of them or of the masks wrong"
        return [
            f"PSNR           {psnr}",
            f"MS-SSIM        {similar}",
            f"largest error  {self.max_error:g} (peak {self.peak:g}, {self.dtype})",
            f"rate           {self.bpp:.4f} bits per pixel: {self.record_bytes} bytes of records, indexes and masks",
            f"container      {self.fixed_bytes} bytes of metadata and preview, once an archive",
            *([f"kept exactly   {exact}"] if self.exact or self.exact_wrong else []),
            *([f"worst tiles    {'  '.join(self.worst_tiles)} (row,col)"] if len(self.worst_tiles) > 1 else []),
        ]


WORST = 5


def compare(
    source: Name,
    archive: Name,
    *,
    workers: int | None = None,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
    on_tile: Callable[[TileQuality], None] | None = None,
) -> SceneQuality:
    """Decode `archive` strip by strip and measure it against the scene it came from.

    on_tile: called once a tile, row-major.  Raises ConfigError when the two do not have one size, bands and dtype, and
    what reading either of them raises.
    """
    from ditic_stream import regions
    from ditic_stream.reader import open_source

    with open_archive(archive) as opened, open_source(source) as scene:
        image = opened.manifest.image
        here = (scene.height, scene.width, scene.bands, scene.dtype)
        there = (image.height, image.width, image.bands, image.dtype)
        if here != there:
            raise ConfigError(
                f"the scene is {_shape(*here)}, the archive {_shape(*there)}; compare an archive with its own scene"
            )
        meter = _Meter(opened)
        strips = regions.strips(archive, workers=workers, device=device, progress=progress)
        for quality in meter.measure(scene, strips):
            if on_tile is not None:
                on_tile(quality)
        return meter.total()


class _Meter:
    """The sums of a scene and of the tile row being measured."""

    def __init__(self, archive: Archive) -> None:
        manifest = archive.manifest
        self._archive, self._image, self._grid = archive, manifest.image, archive.grid
        self._radiometry = Radiometry.from_json(manifest.radiometry)
        self._low, self._peak = value_range(self._radiometry)
        self._errors = Errors(self._peak)
        self._structure = Structure(manifest.image.bands)
        self._masked = self._wrong = 0
        self._row: list[tuple[Errors, Structure]] = []
        self._worst: list[tuple[float, str]] = []

    def measure(self, source: Any, strips: Iterable[Strip]) -> Iterator[TileQuality]:
        """Take in decoded strips from top to bottom; give the tiles of each tile row when it is finished."""
        height, width, tile = self._image.height, self._image.width, self._grid.config.tile
        first, pieces = 0, _Rows(self._image.bands, width)
        for window, decoded in strips:
            for top in range(window.row, window.row_end, STEP):
                part = Window(row=top, col=0, height=min(STEP, window.row_end - top), width=width)
                rows = decoded[:, part.row - window.row : part.row_end - window.row]
                pixels, planes = read_window(source, part, self._radiometry)
                valid, exact = self._valid(planes)
                if exact is not None:
                    same = (pixels == rows) | ((pixels != pixels) & (rows != rows))  # here NaN equals NaN
                    self._masked += int(np.count_nonzero(exact))
                    self._wrong += int(np.count_nonzero(exact & ~same))
                    self._wrong += int(np.count_nonzero(planes != self._archive.mask(part)))
                pieces.add(pixels, rows, valid)
            while first < height and pieces.end >= min(first + STEP + REACH, height):
                if first % tile == 0:
                    self._row = [(Errors(self._peak), Structure(self._image.bands)) for _ in range(self._grid.cols)]
                last = min(first + STEP, height)
                self._add(pieces, last - first, last == height)
                pieces.drop(last - first)
                if last % tile == 0 or last == height:
                    yield from self._finish(first // tile)
                first = last
        assert first == height, f"strips ended at row {first} of {height}"

    def total(self) -> SceneQuality:
        coded, fixed = rate(self._archive)
        image = self._image
        return SceneQuality(
            height=image.height, width=image.width, bands=image.bands, dtype=image.dtype, peak=self._peak,
            psnr=self._errors.psnr, rmse=self._errors.rmse, ms_ssim=self._structure.ms_ssim,
            max_error=self._errors.largest, exact=self._masked, exact_wrong=self._wrong,
            bpp=bits_per_pixel(coded, image.height, image.width), record_bytes=coded, fixed_bytes=fixed,
            worst_tiles=tuple(name for _, name in self._worst),
        )  # fmt: skip

    def _valid(self, planes: Bytes) -> tuple[Flags | None, Flags | None]:
        """(bands, rows, columns): what counts, and what must come back exactly.  None twice without planes."""
        if not len(planes):
            return None, None
        valid = np.ones((self._image.bands, *planes.shape[1:]), bool)
        for plane, described in zip(planes, self._radiometry.planes, strict=True):
            if described.kind == "validity":
                valid[list(described.bands)] &= plane == VALID
        exact = ~valid
        for layer in (mask_of(planes, self._radiometry), alpha_of(planes, self._radiometry)):
            if layer is not None:
                valid &= layer != 0
                constant = [band.hidden is not None for band in self._radiometry.bands]
                exact[constant] |= layer == 0
        return valid, exact

    def _add(self, pieces: _Rows, rows: int, at_end: bool) -> None:
        """Measure the first `rows` rows held, tile by tile."""
        tile, width = self._grid.config.tile, self._image.width
        for col, (errors, structure) in enumerate(self._row):
            left, right = col * tile, min((col + 1) * tile, width)
            source, decoded = (pixels[:, :, left : right + REACH] for pixels in (pieces.source, pieces.decoded))
            valid = None if pieces.valid is None else pieces.valid[:, :, left : right + REACH]
            own = (slice(None), slice(rows), slice(right - left))
            errors.add(source[own], decoded[own], None if valid is None else valid[own])
            structure.add(
                self._scaled(source, valid), self._scaled(decoded, valid),
                rows=None if at_end else rows, cols=None if right == width else right - left,
            )  # fmt: skip

    def _scaled(self, pixels: Pixels, valid: Flags | None) -> NDArray[np.float32]:
        """In 0..1, masked samples 0 on both sides."""
        scaled = (pixels.astype(np.float32) - np.float32(self._low)) / np.float32(self._peak)
        return scaled if valid is None else np.where(valid, scaled, np.float32(0))

    def _finish(self, row: int) -> Iterator[TileQuality]:
        for col, (errors, structure) in enumerate(self._row):
            self._errors.merge(errors)
            self._structure.merge(structure)
            key = TileKey(row, col)
            core = self._grid.core(key)
            size = self._archive.shard(self._grid.shard_of(key)).record_size(key)
            if errors.psnr is not None:
                self._worst = sorted([*self._worst, (errors.psnr, str(key))])[:WORST]
            yield TileQuality(
                tile=str(key), psnr=errors.psnr, ms_ssim=structure.ms_ssim, max_error=errors.largest,
                record_bytes=size, bpp=bits_per_pixel(size, core.height, core.width),
            )  # fmt: skip


class _Rows:
    """The rows of source and decoded pixels that are still needed, and which of them are valid."""

    def __init__(self, bands: int, width: int) -> None:
        self.source: Pixels = np.empty((bands, 0, width))
        self.decoded: Pixels = np.empty((bands, 0, width))
        self.valid: Flags | None = None
        self.end = 0
        """Scene row behind the last one held."""

    def add(self, source: Pixels, decoded: Pixels, valid: Flags | None) -> None:
        empty = self.source.shape[1] == 0
        self.source = source if empty else np.concatenate([self.source, source], axis=1)
        self.decoded = decoded if empty else np.concatenate([self.decoded, decoded], axis=1)
        if valid is not None:
            self.valid = valid if empty or self.valid is None else np.concatenate([self.valid, valid], axis=1)
        self.end += source.shape[1]

    def drop(self, rows: int) -> None:
        self.source, self.decoded = self.source[:, rows:], self.decoded[:, rows:]
        if self.valid is not None:
            self.valid = self.valid[:, rows:]


def _shape(height: int, width: int, bands: int, dtype: str) -> str:
    return f"{height} x {width} pixels, {bands} bands, {dtype}"
