"""Code tiles and write shards, in any process: the work behind `compression`.

In: a source and an archive by their names, and the names of shards.  Out: the objects of each shard, and a Receipt.
Knows radiometry, the codec and records; knows nothing of resume, locks or the order of shards.

    window + halo --+--> planes --------------------> mask chunks
                    +--> network units --+--> symbols --> record
                                         +--> block means  --> preview
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ditic_stream import _allocator
from ditic_stream._layout import Layout
from ditic_stream._pace import Spent, stopwatch
from ditic_stream._paths import Place
from ditic_stream._shard import pack_mask
from ditic_stream.archive import PREVIEW_SCALE, ShardWriter
from ditic_stream.bitstream import CODED, EMPTY, Record, pack_record
from ditic_stream.errors import naming
from ditic_stream.executors import Note, loaded, one_thread
from ditic_stream.families import family_of
from ditic_stream.geometry import TileKey, Window
from ditic_stream.manifest import Manifest, ModelRef
from ditic_stream.radiometry import Radiometry, all_masked, outside, read_window, to_network
from ditic_stream.reader import Source, open_source
from ditic_stream.tiling import Grid

if TYPE_CHECKING:
    from ditic_stream.codec import TileCodec
    from ditic_stream.entropy import Coded

Uint8 = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What a worker says of a shard it wrote."""

    shard: TileKey
    tiles: int
    empty: int
    bytes: int
    """Bytes of the records."""
    pixels: int
    outside: int
    """Samples beyond what the networks are shown."""
    samples: int
    spent: Spent
    memory: int
    """Highest resident bytes of the worker so far."""
    device: str = "cpu"
    """The kind of device that coded it: on a cluster of several kinds, records differ as their float encoders do."""


@dataclass(frozen=True, slots=True)
class Describe:
    """A task: what the manifest says of the model.  In a worker, so that the parent need not load torch."""

    model: str
    device: str

    @contextmanager
    def open(self, note: Note) -> Iterator[Callable[[None], ModelRef]]:
        from ditic_stream.codec import load_codec

        info = load_codec(self.model, device=self.device).info
        yield lambda _: ModelRef(name=info.name, config=dict(info.config), weights=info.weights, licence=info.licence)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeShard:
    """The task of the workers: code the tiles of a shard and write it.  Small; pixels stay in the worker."""

    source: Place
    expand_palette: bool
    archive: Place | None
    """None codes single tiles and writes nothing: a dry run."""
    manifest: Manifest
    model: str
    """As the caller named it; the manifest has the name of the set."""
    device: str

    @contextmanager
    def open(self, note: Note) -> Iterator[Callable[[TileKey], Receipt]]:
        from ditic_stream.codec import load_codec

        manifest = self.manifest
        codec = loaded(load_codec, self.model, self.device)
        if codec.info.weights != manifest.model.weights:  # others were imported under that name since
            codec = load_codec(self.model, device=self.device)
        with (
            one_thread(),
            open_source(
                self.source, expand_palette=self.expand_palette, checked=True, etag=manifest.source.etag
            ) as source,
        ):
            image = manifest.image
            coder = TileCoder(
                source=source,
                codec=codec,
                grid=Grid(
                    height=image.height,
                    width=image.width,
                    config=manifest.grid,
                    units=family_of(manifest.model.name).units,
                ),
                radiometry=Radiometry.from_json(manifest.radiometry),
                q=manifest.q,
                archive_id=manifest.archive_id,
                channels=Layout(manifest).channels,
            )
            writer = None if self.archive is None else ShardWriter(self.archive, manifest)
            kind = self.device.partition(":")[0]
            yield lambda key: replace(_code_shard(coder, writer, key, note), device=kind)


def _code_shard(coder: TileCoder, writer: ShardWriter | None, shard: TileKey, note: Note) -> Receipt:
    """Code all tiles of a shard and write it; without a writer, `shard` is the one tile that is coded."""
    spent, grid = stopwatch(), coder.grid
    keys = list(grid.tiles_of(shard)) if writer is not None else [shard]
    coded: dict[TileKey, CodedTile] = {}
    for key in keys:
        note(key)
        with naming(key):
            coded[key] = coder.code(key)
        note(key, area(grid.core(key)))
    if writer is not None:
        side = grid.config.tile // PREVIEW_SCALE * grid.shard
        preview = np.zeros(writer.layout.preview_part(shard), np.uint8)
        for key, tile in coded.items():
            row, col = (place * grid.config.tile // PREVIEW_SCALE % side for place in (key.row, key.col))
            preview[:, row : row + tile.preview.shape[1], col : col + tile.preview.shape[2]] = tile.preview
        masks = {key: tile.mask for key, tile in coded.items()} if coder.radiometry.planes else None
        writer.put_shard(shard, {key: tile.record for key, tile in coded.items()}, masks, preview)
    if writer is not None or grid.shard == 1:  # a dry run's tile is to take as long as in a run
        _allocator.give_back()
    return Receipt(
        shard=shard,
        tiles=len(keys),
        empty=sum(tile.empty for tile in coded.values()),
        bytes=sum(len(tile.record) + sum(len(chunk or b"") for chunk in tile.mask) for tile in coded.values()),
        pixels=sum(area(grid.core(key)) for key in keys),
        outside=sum(tile.outside for tile in coded.values()),
        samples=sum(area(grid.core(key)) for key in keys) * len(coder.radiometry.bands),
        spent=spent(),
        memory=peak_memory(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CodedTile:
    """All that is written of one tile."""

    record: bytes
    empty: bool
    mask: tuple[bytes | None, ...]
    """Packed mask chunks, one a plane; a shard of 64 tiles of plain masks would not fit into memory."""
    preview: Uint8
    outside: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """A tile as it was read, with its halo."""

    pixels: NDArray[Any]
    planes: Uint8
    units: NDArray[np.float32]
    """The same for the networks."""
    inner: tuple[slice, slice]
    """Rows and columns of the core in the three above."""
    mask: tuple[bytes | None, ...]
    """Packed mask chunks of the core, one a plane."""
    blank: bool
    """No pixel of the core is coded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TileCoder:
    """Codes single tiles of one scene."""

    source: Source
    codec: TileCodec
    grid: Grid
    radiometry: Radiometry
    q: int
    archive_id: bytes
    channels: int = 0
    """Of the preview; 0 for those who want none."""

    def look(self, key: TileKey) -> Look:
        """Read a tile with its halo.  Raises what reading raises."""
        core, window = self.grid.core(key), self.grid.encode_window(key, self.codec.info.encode_halo)
        pixels, planes = read_window(self.source, window, self.radiometry)
        rows, cols = core.slices(window)
        inner = (slice(None), rows, cols)
        return Look(
            pixels=pixels,
            planes=planes,
            units=to_network(pixels, planes, self.radiometry),
            inner=(rows, cols),
            mask=pack_mask(planes[inner], self.grid.config.tile),
            blank=all_masked(planes[inner], self.radiometry),
        )

    def code(self, key: TileKey) -> CodedTile:
        """Read a tile and code its core.  Raises what reading raises."""
        look = self.look(key)
        inner = (slice(None), *look.inner)
        preview = block_means(look.units[(slice(None), *inner)], look.planes[inner], self.radiometry, self.channels)
        beyond = outside(look.pixels[inner], look.planes[inner], self.radiometry)
        units, place, mask, blank = look.units, look.inner, look.mask, look.blank
        del look  # its pixels, as large as the units: two of them and the networks together are too much for many bands
        coded = None if blank else self.codec.encode(units, place, self.q)
        record = pack_record(self.record(key, coded))
        return CodedTile(record=record, empty=blank, mask=mask, preview=preview, outside=beyond)

    def record(self, key: TileKey, coded: Coded | None) -> Record:
        """The record of a tile; without symbols an empty one."""
        if coded is None:
            return Record(kind=EMPTY, key=key, archive_id=self.archive_id)
        return Record(
            kind=CODED,
            key=key,
            archive_id=self.archive_id,
            lanes_log2=coded.lanes_log2,
            words=coded.words,
            escapes=coded.escapes,
            coded=coded.coded,
            symbols_crc=coded.symbols_crc,
        )


def block_means(units: NDArray[np.float32], planes: Uint8, radiometry: Radiometry, channels: int) -> Uint8:
    """The preview of a tile: means over blocks of 64 x 64 pixels that are in sight, uint8 (channels, rows, columns).

    units: float32 (groups, 3, rows, columns), 0..1 is black to white.  channels: of so many bands, the first ones.
    Blocks without a pixel in sight are 0.  Sums are of integers (1/256 of a level), so that every machine gives the
    same bytes.
    """
    found = []
    for first in range(0, channels, 3):  # a group at a time, for memory
        bands = range(first, min(first + 3, channels))
        levels = np.rint(np.clip(units[first // 3, : len(bands)], 0, 1) * np.float32(255 * 256)).astype(np.int32)
        seen = np.ones(levels.shape, np.int32)
        if radiometry.planes:
            for place, band in enumerate(bands):
                seen[place] = _in_sight(planes, radiometry, band)
            levels *= seen
        sums, counts = _block_sums(levels), _block_sums(seen)
        found.append(((sums + 128 * counts) // np.maximum(256 * counts, 1)).astype(np.uint8))
    return found[0] if len(found) == 1 else np.concatenate(found)


def _in_sight(planes: Uint8, radiometry: Radiometry, band: int) -> NDArray[np.bool_]:
    """Pixels of a band that are valid, not masked, and not wholly transparent."""
    seen = np.ones(planes.shape[1:], bool)
    alpha = np.zeros(planes.shape[1:], bool)
    for plane, described in zip(planes, radiometry.planes, strict=True):
        if described.kind == "validity" and band in described.bands:
            seen &= plane == 0
        elif described.kind == "mask":
            seen &= plane != 0
        elif described.kind.startswith("alpha"):
            alpha |= plane != 0
    return seen & alpha if radiometry.alpha is not None else seen


def _block_sums(planes: NDArray[np.int32]) -> NDArray[np.int64]:
    """Sums over blocks of 64 x 64 of (planes, rows, columns); the last ones hold what is left."""
    side = PREVIEW_SCALE
    count, height, width = planes.shape
    pad = ((0, 0), (0, -height % side), (0, -width % side))
    whole = np.pad(planes, pad) if height % side or width % side else planes
    blocks = whole.reshape(count, whole.shape[1] // side, side, whole.shape[2] // side, side)
    # Along the rows first, where 64 levels of 16 bits still fit 32 bits.
    return np.asarray(blocks.sum(axis=4, dtype=np.int32).sum(axis=2, dtype=np.int64))


def area(window: Window) -> int:
    return window.height * window.width


def peak_memory() -> int:
    """Highest resident bytes of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
