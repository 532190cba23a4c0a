"""Shards: the unit of writing.  The three objects of one shard, packed, read and checked.

In: records, masks and a preview.  Out: the bytes of their objects, and the same values back.
Knows Zarr's shard index, seals and chunk codecs; reaches files through a Store alone.

    records object   seal (8) | record | record | ...        | index (16 bytes a place) | CRC-32C of the index
    mask object                 chunk  | chunk  | ...        | index                    | CRC-32C of the index
    preview object   zstd frame | CRC-32C of the frame       chunk: the same
                     (more than three channels: chunks of three, index, CRC-32C, as in a mask object)

The seal is the start of the SHA-256 of mask object and preview object: it ties all three together, and since the
records object is written last, a shard is whole once that is there.
"""

from __future__ import annotations

import hashlib
import logging
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ditic_stream._layout import ZSTD_LEVEL, Layout
from ditic_stream._sizes import SEAL_BYTES, ShardSizes, Span
from ditic_stream._store import NamedRange, Store
from ditic_stream.bitstream import EMPTY_BYTES, MAX_RECORD, Record, crc32c, record_length, unpack_record
from ditic_stream.errors import ChecksumError, ConfigError, DiticError, FormatError, MissingTileError, naming
from ditic_stream.geometry import TileKey

_log = logging.getLogger(__name__)

ENTRY_BYTES = 16
ABSENT = 2**64 - 1
"""Offset and length of a chunk that is not there, by Zarr's sharding codec."""
CHUNK_OVERHEAD = 1024
"""Bytes a stored chunk may be longer than its pixels: zstd's own bound is 1/256 more for the smallest of them."""

if TYPE_CHECKING:  # numpy takes a fifth of the half second in which `info` is to start, and only pixels need it
    import numpy as np
    from numpy.typing import NDArray

    Uint8 = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something `verify` found."""

    kind: str
    """Stable code: that of an error, or "index", "seal", "metadata", "stray", "zip", "incomplete"."""
    message: str
    key: TileKey | None = None
    """The tile, when it is a tile's."""
    shard: TileKey | None = None
    """The shard, when no tile of it is damaged by this; the message names its tiles."""
    name: str | None = None
    """The object it was found in."""

    def __str__(self) -> str:
        place = f"tile {self.key}: " if self.key else ""
        return f"{place}{self.message}" + (f" ({self.name})" if self.name else "")


def pack_chunks(chunks: Sequence[bytes | None], prefix: bytes = b"") -> list[bytes]:
    """The pieces of a shard object: `prefix`, the chunks that are there in order, index, CRC-32C of the index."""
    entries, at = [], len(prefix)
    for chunk in chunks:
        entries += [ABSENT, ABSENT] if chunk is None else [at, len(chunk)]
        at += len(chunk or b"")
    index = struct.pack(f"<{len(entries)}Q", *entries)
    return [prefix, *(chunk for chunk in chunks if chunk is not None), index, struct.pack("<I", crc32c(index))]


def index_bytes(places: int) -> int:
    return ENTRY_BYTES * places + 4


def unpack_index(data: bytes, places: int, *, start: int, end: int) -> list[Span | None]:
    """(offset, length) of each chunk, None for those that are not there, from the index `data` of `places` places.

    start, end: where the chunks begin and end.  They must fill it in order, without gap or overlap, so an index that
    points elsewhere never gets as far as a read.  Raises ChecksumError or FormatError.
    """
    if len(data) != index_bytes(places) or crc32c(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
        raise ChecksumError("the shard's index fails its CRC-32C")
    entries = struct.unpack(f"<{2 * places}Q", data[:-4])
    spans: list[Span | None] = []
    at = start
    for offset, length in zip(entries[::2], entries[1::2], strict=True):
        if offset == ABSENT and length == ABSENT:
            spans.append(None)
            continue
        if offset != at or length < 1 or offset + length > end:
            raise FormatError(
                f"the shard's index has a chunk at {offset} of {length} bytes; {at}..{end} are left to fill"
            )
        spans.append((offset, length))
        at += length
    if at != end:
        raise FormatError(f"the shard's index leaves {end - at} bytes to no chunk")
    return spans


def pack_chunk(pixels: Uint8) -> bytes:
    """A chunk of `mask` or `preview` as Zarr's codecs bytes, zstd, crc32c make it."""
    import numpy as np
    from numcodecs import zstd

    frame = bytes(zstd.compress(np.ascontiguousarray(pixels), ZSTD_LEVEL, False))
    return frame + struct.pack("<I", crc32c(frame))


def unpack_chunk(data: bytes, shape: tuple[int, ...]) -> Uint8:
    """The pixels of a chunk, uint8 of `shape`; allocates no more.  Raises ChecksumError or FormatError."""
    import numpy as np
    from numcodecs import zstd

    if len(data) < 5 or crc32c(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
        raise ChecksumError("chunk fails its CRC-32C: its bytes are damaged")
    pixels = np.empty(shape, dtype=np.uint8)
    if _frame_size(data) != pixels.size:
        raise FormatError(f"chunk holds {_frame_size(data)} bytes for {pixels.size} pixels")
    try:
        zstd.decompress(data[:-4], pixels)
    except (RuntimeError, ValueError) as error:
        raise FormatError(f"chunk is not one zstd frame: {error}") from error
    return pixels


def _frame_size(frame: bytes) -> int | None:
    """Content size a zstd frame declares (RFC 8878, 3.1.1.1), None when it is another thing or declares none.

    Read here, since a frame that does not say makes numcodecs allocate as it goes.
    """
    if frame[:4] != b"\x28\xb5\x2f\xfd":
        return None
    descriptor = frame[4]
    single, flag = descriptor >> 5 & 1, descriptor >> 6
    width = (1 if single else 0, 2, 4, 8)[flag]
    at = 5 + (not single) + (0, 1, 2, 4)[descriptor & 3]
    if not width or len(frame) < at + width:
        return None
    return int.from_bytes(frame[at : at + width], "little") + (256 if width == 2 else 0)


def pack_mask(planes: Uint8, tile: int) -> tuple[bytes | None, ...]:
    """The mask chunks of one tile, uint8 (planes, h, w): a plane each, None for one that is zero all over.

    They are padded with zeros to `tile` pixels a side.  What a worker keeps of a tile until its shard is written.
    """
    return tuple(pack_chunk(_padded(plane, (tile, tile))) if plane.any() else None for plane in planes)


def _padded(array: Uint8, shape: tuple[int, ...]) -> Uint8:
    import numpy as np

    return np.pad(array, [(0, full - side) for side, full in zip(array.shape, shape, strict=True)])


def pack_preview(pixels: Uint8, layout: Layout) -> list[bytes]:
    """The pieces of a shard's preview object: uint8 (channels, h, w), padded with zeros to whole chunks."""
    side = layout.preview_side
    if layout.previews == 1:
        return [pack_chunk(_padded(pixels, (layout.channels, side, side)))]
    some = (pixels[at : at + 3] for at in range(0, layout.channels, 3))
    return pack_chunks([pack_chunk(_padded(part, (3, side, side))) for part in some])


def seal(mask: Sequence[bytes], preview: Sequence[bytes]) -> bytes:
    """What the records object begins with: the first 8 bytes of the SHA-256 of mask object, then preview object."""
    state = hashlib.sha256()
    for piece in (*mask, *preview):
        state.update(piece)
    return state.digest()[:SEAL_BYTES]


class ShardReader:
    """The three objects of one shard.  Indexes are read once and kept; everything else is read anew.

    sizes: where its chunks lie, if an archive says so: then no index is read, and each mask and preview chunk is held
    against its checksum there.  What does not fit them is read by the indexes and the seal, as if there were none.
    """

    def __init__(self, store: Store, layout: Layout, shard: TileKey, sizes: ShardSizes | None = None) -> None:
        self.store, self.layout, self.shard = store, layout, shard
        self.sizes = sizes
        self._records: list[Span | None] | None = None
        self._masks: list[Span | None] | None = None
        self._previews: list[Span | None] | None = None
        self._foreign: bool | None = None
        self.recovered = False
        """True when the index of the records was damaged and rebuilt from the records themselves."""

    def record_bytes(self, key: TileKey) -> bytes:
        """The bytes of a tile's record by its index: one range, and one for the index the first time.

        MissingTileError if it is lost.
        """
        self.check(key)
        span = self._record_spans()[self.layout.slot(key)]
        assert span is not None
        return self._get(self.layout.records(self.shard), *span)

    def index_ranges(self) -> list[NamedRange]:
        """What to fetch before the place of any record is known; nothing once it is."""
        size = index_bytes(self.layout.grid.shard**2)
        return [] if self._records is not None else [(self.layout.records(self.shard), -size, size)]

    def mask_ranges(self, wanted: bool = True) -> list[NamedRange]:
        """What to fetch before masks are read by the seal, if they are `wanted`; nothing once it was looked at.

        Mask and preview as a whole, since the seal is over both.
        """
        if not wanted or self._foreign is not None:
            return []
        mask, preview, records = self.layout.objects(self.shard)
        return [(mask, 0, None), (preview, 0, None), (records, 0, SEAL_BYTES)]

    def mask_chunks(self, key: TileKey) -> list[NamedRange]:
        """Where the mask chunks of a tile lie, by the sizes."""
        sizes = self.sizes
        if sizes is None:
            return []
        places = range(self.layout.slot(key), len(sizes.masks), self.layout.grid.shard**2)
        spans = (sizes.masks[place] for place in places)
        return [(self.layout.mask(self.shard), *span) for span in spans if span is not None]

    def preview_ranges(self, groups: Sequence[int]) -> list[NamedRange]:
        """What to fetch before some groups of bands of the preview are read."""
        name, sizes = self.layout.preview(self.shard), self.sizes
        if sizes is None or self.layout.previews == 1:
            return [(name, 0, None)]
        return [(name, *span) for span in (sizes.previews[group] for group in groups) if span is not None]

    def record_range(self, key: TileKey) -> tuple[str, int, int] | None:
        """Where a tile's record lies, None when it is lost or its index cannot be read."""
        slot, sizes = self.layout.slot(key), self.sizes
        try:
            span = self._record_spans()[slot] if sizes is None else sizes.records[slot]
        except (FormatError, MissingTileError):
            return None
        return None if span is None else (self.layout.records(self.shard), *span)

    def check(self, key: TileKey) -> None:
        """MissingTileError when a tile has no record, by the index alone."""
        with naming(key):
            if self._record_spans()[self.layout.slot(key)] is None:
                raise MissingTileError("its record is missing; compress the scene again to add it")

    def record_size(self, key: TileKey) -> int:
        """Bytes of a tile's record, by the index alone.  MissingTileError if lost."""
        self.check(key)
        span = self._record_spans()[self.layout.slot(key)]
        assert span is not None
        return span[1]

    def has_room(self) -> bool:
        """True when the object of the records is there and is long enough to hold one for each tile."""
        size = self.store.size(self.layout.records(self.shard)) or 0
        tiles = sum(1 for _ in self.layout.grid.tiles_of(self.shard))
        return size >= SEAL_BYTES + tiles * EMPTY_BYTES + index_bytes(self.layout.grid.shard**2)

    def record(self, key: TileKey) -> Record:
        """A tile's record, checked against archive id and place."""
        archive_id, sizes = self.layout.archive_id, self.sizes
        span = sizes.records[self.layout.slot(key)] if sizes is not None else None
        if span is not None:
            try:
                return unpack_record(self._get(self.layout.records(self.shard), *span), archive_id=archive_id, key=key)
            except (FormatError, MissingTileError):
                self.sizes = None
        return unpack_record(self.record_bytes(key), archive_id=archive_id, key=key)

    def measured(self) -> ShardSizes:
        """The sizes of the shard, by its objects.  Raises what reading them does; MissingTileError without a tile."""
        for key in self.layout.grid.tiles_of(self.shard):
            self.check(key)
        masks = self._mask_spans() if self.layout.planes else []
        name, previews = self.layout.preview(self.shard), self._preview_spans()
        return ShardSizes(
            records=tuple(self._record_spans()),
            masks=tuple(masks),
            previews=tuple(previews),
            mask_sums=tuple(self._sum(self.layout.mask(self.shard), span) for span in masks),
            preview_sums=tuple(self._sum(name, span) for span in previews),
        )

    def _sum(self, name: str, span: Span | None) -> bytes:
        """The checksum a chunk ends with."""
        return b"" if span is None else self._get(name, span[0] + span[1] - 4, 4)

    def longest(self) -> int:
        """Bytes of the longest record; MissingTileError when a tile has none."""
        for key in self.layout.grid.tiles_of(self.shard):
            self.check(key)
        return max(span[1] for span in self._record_spans() if span)

    def cap(self) -> int:
        """Bytes of the longest record that is there; 0 when none is or the shard cannot be read."""
        try:
            return max((span[1] for span in self._record_spans() if span), default=0)
        except DiticError:
            return 0

    def mask(self, key: TileKey, plane: int) -> Uint8:
        """One mask plane of a tile's core, uint8 (h, w), held against the sizes, or else the whole shard's seal."""
        core, tile = self.layout.grid.core(key), self.layout.manifest.grid.tile
        place = plane * self.layout.grid.shard**2 + self.layout.slot(key)
        with naming(key):
            sizes, found = self.sizes, None
            if sizes is not None:
                found = self._sized(self.layout.mask(self.shard), place, sizes.masks, sizes.mask_sums, (tile, tile))
            if found is None:
                span = self._mask_spans()[place]
                if self._is_foreign():
                    raise ChecksumError(self._foreign_message())
                if span is not None:
                    found = unpack_chunk(self._get(self.layout.mask(self.shard), *span), (tile, tile))
            if found is None:
                import numpy as np

                return np.zeros(core.shape, dtype=np.uint8)
            return found[: core.height, : core.width]

    def _sized(
        self,
        name: str,
        place: int,
        spans: Sequence[Span | None],
        sums: Sequence[bytes],
        shape: tuple[int, ...],
    ) -> Uint8 | None:
        """The chunk that the sizes tell of; None when it is not the one there."""
        span = spans[place]
        if span is None:
            import numpy as np

            return np.zeros(shape, dtype=np.uint8)
        try:
            if span[1] > _most(shape):
                raise FormatError(f"{name} holds a chunk longer than its pixels")
            data = self._get(name, *span)
            if data[-4:] != sums[place]:
                raise ChecksumError(f"{name} holds another chunk")
            return unpack_chunk(data, shape)
        except (FormatError, MissingTileError):
            return None

    def preview(self, groups: Sequence[int] | None = None) -> Uint8:
        """The preview of the shard, uint8 (channels, h, w), clipped to the scene; of some groups of three bands.

        Held against the sizes; without them against its own checksum alone.
        """
        return self._preview(range(self.layout.previews) if groups is None else groups, self.sizes)

    def _preview(self, groups: Sequence[int], sizes: ShardSizes | None) -> Uint8:
        layout, side = self.layout, self.layout.preview_side
        name, channels = layout.preview(self.shard), layout.channels if layout.previews == 1 else 3
        shape, found = (channels, side, side), []
        for group in groups:
            part = None
            if sizes is not None:
                part = self._sized(name, group, sizes.previews, sizes.preview_sums, shape)
                if part is None and self._is_foreign():
                    raise ChecksumError(self._foreign_message())
            if part is None:
                span = self._preview_spans()[group]
                if span is None:
                    raise FormatError(f"{name} has no chunk for bands {3 * group}..{3 * group + 2}")
                part = unpack_chunk(self._get(name, *span), shape)
            found.append(part[: layout.channels - 3 * group])
        _, height, width = layout.preview_part(self.shard)
        if len(found) == 1:
            return found[0][:, :height, :width]
        import numpy as np

        return np.concatenate(found)[:, :height, :width]

    def problems(self) -> Iterator[Problem]:
        """All that is wrong with the shard; nothing when it is whole.  Reads every byte of it."""
        grid, layout = self.layout.grid, self.layout
        name = layout.records(self.shard)
        try:
            self._record_spans()
            if self.recovered:
                yield self._index_problem()
        except DiticError as error:
            for key in grid.tiles_of(self.shard):
                yield Problem(kind=error.kind, key=key, name=name, message=error.message)
        else:
            for key in grid.tiles_of(self.shard):
                try:
                    self.record(key)
                except DiticError as error:
                    yield Problem(kind=error.kind, key=key, name=name, message=error.message)
        yield from self._other_problems()
        if self._is_foreign():
            if layout.planes:
                for key in grid.tiles_of(self.shard):
                    yield Problem(kind="seal", key=key, name=name, message=self._foreign_message())
            else:
                message = f"the preview of {self._place()} belongs to other records"
                yield Problem(kind="seal", shard=self.shard, name=name, message=message)

    def _index_problem(self) -> Problem:
        tiles = list(self.layout.grid.tiles_of(self.shard))
        spans = self._record_spans()
        found = sum(spans[self.layout.slot(key)] is not None for key in tiles)
        rest = "the records are there" if found == len(tiles) else f"{found} of {len(tiles)} records are found"
        message = f"the index of the records of {self._place()} is damaged; {rest}"
        return Problem(kind="index", shard=self.shard, name=self.layout.records(self.shard), message=message)

    def _place(self) -> str:
        """The shard and its tiles, for messages."""
        tiles = list(self.layout.grid.tiles_of(self.shard))
        named = f"tile {tiles[0]}" if len(tiles) == 1 else f"tiles {tiles[0]} to {tiles[-1]}"
        return f"shard {self.shard} ({named})"

    def _other_problems(self) -> Iterator[Problem]:
        layout, tile = self.layout, self.layout.manifest.grid.tile
        if layout.planes:
            name = layout.mask(self.shard)
            try:
                spans = self._mask_spans()
            except DiticError as error:
                for key in layout.grid.tiles_of(self.shard):
                    yield Problem(kind=error.kind, key=key, name=name, message=f"mask: {error.message}")
            else:
                for key in layout.grid.tiles_of(self.shard):
                    for plane in range(layout.planes):
                        span = spans[plane * layout.grid.shard**2 + layout.slot(key)]
                        try:
                            if span is not None:
                                unpack_chunk(self._get(name, *span), (tile, tile))
                        except DiticError as error:
                            yield Problem(
                                kind=error.kind, key=key, name=name, message=f"mask plane {plane}: {error.message}"
                            )
        try:
            self._preview(range(layout.previews), None)
        except DiticError as error:
            name = layout.preview(self.shard)
            message = f"preview of {self._place()}: {error.message}"
            yield Problem(kind=error.kind, shard=self.shard, name=name, message=message)

    def _is_foreign(self) -> bool:
        """True when mask and preview are whole by their own checksums, and yet not those the records were sealed with.

        A part that is lost or damaged explains by itself why the seal does not fit; then whatever is whole still reads.
        """
        if self._foreign is None:
            there = self.store.size(self.layout.records(self.shard)) is not None
            self._foreign = there and not self._is_sealed() and next(self._other_problems(), None) is None
        return self._foreign

    def _foreign_message(self) -> str:
        what = "mask or preview" if self.layout.planes else "the preview"
        verb = "belong" if self.layout.planes else "belongs"
        return f"{what} of shard {self.shard} {verb} to other records; compress the scene again"

    def _is_sealed(self) -> bool:
        state = hashlib.sha256()
        for name in self.layout.objects(self.shard)[:-1]:
            size = self.store.size(name) or 0
            for start in range(0, size, 2**20):
                state.update(self._get(name, start, min(2**20, size - start)))
        try:
            return self._get(self.layout.records(self.shard), 0, SEAL_BYTES) == state.digest()[:SEAL_BYTES]
        except DiticError:
            return False

    def _record_spans(self) -> list[Span | None]:
        if self._records is None:
            name, grid = self.layout.records(self.shard), self.layout.grid
            places, tiles = grid.shard**2, {self.layout.slot(key): key for key in grid.tiles_of(self.shard)}
            size = self.store.size(name)
            if size is None:
                raise MissingTileError(f"{name} is missing; compress the scene again to add it")
            end = size - index_bytes(places)
            try:
                if end < SEAL_BYTES:
                    raise FormatError(f"{name} has {size} bytes; the index alone takes {index_bytes(places)}")
                spans = unpack_index(self._get(name, end, size - end), places, start=SEAL_BYTES, end=end)
            except FormatError:
                spans = self._walk(name, size, places)
            for place, span in enumerate(spans):
                if span is not None and (place not in tiles or span[1] > MAX_RECORD):
                    raise FormatError(f"{name} holds a record of {span[1]} bytes at place {place}, where none belongs")
            self._records = spans
        return self._records

    def _walk(self, name: str, size: int, places: int) -> list[Span | None]:
        """Rebuild a damaged index: records say their own length and place.  What cannot be found is None."""
        spans: list[Span | None] = [None] * places
        at = SEAL_BYTES
        while at + EMPTY_BYTES <= size:
            try:
                head = self._get(name, at, min(64, size - at))
                length = record_length(head)
                key = unpack_record(self._get(name, at, min(length, size - at)), archive_id=self.layout.archive_id).key
            except DiticError:
                break
            if self.layout.grid.shard_of(key) == self.shard:
                spans[self.layout.slot(key)] = (at, length)
            at += length
        self.recovered = True
        _log.info("the index of %s is damaged; rebuilt from its records", name)
        return spans

    def _mask_spans(self) -> list[Span | None]:
        if self._masks is None:
            name, tile = self.layout.mask(self.shard), self.layout.manifest.grid.tile
            places = self.layout.planes * self.layout.grid.shard**2
            size = self._size(name, places * (_most((tile, tile)) + ENTRY_BYTES))
            end = size - index_bytes(places)
            if end < 0:
                raise FormatError(f"{name} has {size} bytes; the index alone takes {index_bytes(places)}")
            spans = unpack_index(self._get(name, end, size - end), places, start=0, end=end)
            if any(span is not None and span[1] > _most((tile, tile)) for span in spans):
                raise FormatError(f"{name} holds a chunk longer than its pixels")
            self._masks = spans
        return self._masks

    def _preview_spans(self) -> list[Span | None]:
        if self._previews is None:
            layout, side = self.layout, self.layout.preview_side
            name, count = layout.preview(self.shard), layout.previews
            shape = (layout.channels if count == 1 else 3, side, side)
            size = self._size(name, count * (_most(shape) + ENTRY_BYTES))
            if count == 1:
                return [(0, size)]
            end = size - index_bytes(count)
            if end < 0:
                raise FormatError(f"{name} has {size} bytes; the index alone takes {index_bytes(count)}")
            spans = unpack_index(self._get(name, end, size - end), count, start=0, end=end)
            if any(span is not None and span[1] > _most(shape) for span in spans):
                raise FormatError(f"{name} holds a chunk longer than its pixels")
            self._previews = spans
        return self._previews

    def _size(self, name: str, most: int) -> int:
        size = self.store.size(name)
        if size is None:
            raise MissingTileError(f"{name} is missing; compress the scene again to add it")
        if size > most:
            raise FormatError(f"{name} has {size} bytes; at most {most} belong there")
        return size

    def _get(self, name: str, start: int, length: int) -> bytes:
        try:
            return self.store.get(name, start, length)
        except KeyError:
            raise MissingTileError(f"{name} is missing; compress the scene again to add it") from None


def _most(shape: tuple[int, ...]) -> int:
    pixels = math.prod(shape)
    return pixels + pixels // 128 + CHUNK_OVERHEAD


def checked_array(name: str, array: Any, shape: tuple[int, ...], key: TileKey) -> Uint8:
    """`array` as uint8 of `shape`; ConfigError otherwise."""
    import numpy as np

    found = np.asarray(array)
    if found.shape != shape or found.dtype != np.uint8:
        raise ConfigError(f"{name} of {key} is {found.dtype} {found.shape}; it must be uint8 {shape}")
    return found
