"""Sizes: what every chunk of a block of shards measures, in one small object, so that reading from afar needs no index.

In: the places of chunks, by shard.  Out: the bytes of the object `records/sizes/{row}/{col}`, and the places again.
Knows the order of chunks; knows nothing of what is in them.

    DTS, version (1) | archive id (8) | row, col of the block (4) | numbers | checksums (4 each) | CRC-32C (4)

For each shard, row-major: the bytes of its records, then of its mask chunks (0: none), then of its preview chunks.  A
mask or preview chunk does not say whose it is; here is the CRC-32C it ends with, so one that was exchanged is found out
by itself, where the seal of a shard takes all masks and previews of it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ditic_stream._layout import Layout
from ditic_stream.bitstream import crc32c
from ditic_stream.errors import ChecksumError, FormatError
from ditic_stream.geometry import TileKey

SEAL_BYTES = 8
"""What a records object begins with."""
_HEAD = struct.Struct("<3sB8sHH")
MAGIC, VERSION = b"DTS", 1
MAX_NUMBER = 2**32

Span = tuple[int, int]
"""Offset and length of a chunk in its object."""


@dataclass(frozen=True, slots=True)
class ShardSizes:
    """Where the chunks of one shard lie, by their places in the indexes; None where there is none.

    mask_sums, preview_sums: the last 4 bytes of each mask and preview chunk, b"" where there is none.
    """

    records: tuple[Span | None, ...]
    masks: tuple[Span | None, ...]
    previews: tuple[Span | None, ...]
    mask_sums: tuple[bytes, ...]
    preview_sums: tuple[bytes, ...]


def largest(layout: Layout, block: TileKey) -> int:
    """The most bytes the sizes of a block may have."""
    chunks = sum(len(_places(layout, shard)) * (1 + layout.planes) for shard in layout.shards_of(block))
    chunks += layout.previews * sum(1 for _ in layout.shards_of(block))
    return _HEAD.size + 9 * chunks + 4


def pack_sizes(layout: Layout, block: TileKey, found: Mapping[TileKey, ShardSizes]) -> bytes:
    """The object of a block, given the sizes of its shards."""
    numbers, sums = bytearray(), bytearray()
    for shard in layout.shards_of(block):
        sizes, places = found[shard], _places(layout, shard)
        for place in places:
            _put(numbers, sizes.records[place])
        for plane in range(layout.planes):
            for place in places:
                at = plane * layout.grid.shard**2 + place
                _put(numbers, sizes.masks[at])
                sums += sizes.mask_sums[at]
        for at, span in enumerate(sizes.previews):
            _put(numbers, span)
            sums += sizes.preview_sums[at]
    body = _HEAD.pack(MAGIC, VERSION, layout.archive_id, block.row, block.col) + numbers + sums
    return body + struct.pack("<I", crc32c(body))


def unpack_sizes(data: bytes, layout: Layout, block: TileKey) -> dict[TileKey, ShardSizes]:
    """What `pack_sizes` was given.  ChecksumError or FormatError when the bytes are damaged or another archive's."""
    if len(data) < _HEAD.size + 4 or crc32c(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
        raise ChecksumError("the sizes of a block of shards fail their CRC-32C")
    head = (MAGIC, VERSION, layout.archive_id, block.row, block.col)
    if _HEAD.unpack_from(data) != head:
        raise FormatError("the sizes of a block of shards are those of another block or archive")
    reader = _Numbers(data, _HEAD.size, len(data) - 4)
    lengths = {}
    for shard in layout.shards_of(block):
        tiles = len(_places(layout, shard))
        lengths[shard] = [reader.take(count) for count in (tiles, tiles * layout.planes, layout.previews)]
    sums, found = iter(data[at : at + 4] for at in range(reader.at, len(data) - 4, 4)), {}
    for shard, (records, masks, previews) in lengths.items():
        places = _places(layout, shard)
        found[shard] = ShardSizes(
            records=_spans(layout.grid.shard**2, places, records, SEAL_BYTES),
            masks=_spans(layout.planes * layout.grid.shard**2, _planewise(layout, places), masks, 0),
            previews=_spans(layout.previews, range(layout.previews), previews, 0),
            mask_sums=_sums(layout.planes * layout.grid.shard**2, _planewise(layout, places), masks, sums),
            preview_sums=_sums(layout.previews, range(layout.previews), previews, sums),
        )
    if next(sums, None) is not None or (len(data) - 4 - reader.at) % 4:
        raise FormatError("the sizes of a block of shards are followed by bytes that belong to no chunk")
    return found


def _places(layout: Layout, shard: TileKey) -> list[int]:
    """The places of a shard's tiles, in order."""
    return sorted(layout.slot(key) for key in layout.grid.tiles_of(shard))


def _planewise(layout: Layout, places: list[int]) -> list[int]:
    return [plane * layout.grid.shard**2 + place for plane in range(layout.planes) for place in places]


def _spans(count: int, places: Iterable[int], lengths: list[int], start: int) -> tuple[Span | None, ...]:
    spans: list[Span | None] = [None] * count
    for place, length in zip(places, lengths, strict=True):
        if length:
            spans[place] = (start, length)
            start += length
    return tuple(spans)


def _sums(count: int, places: Iterable[int], lengths: list[int], sums: Iterable[bytes]) -> tuple[bytes, ...]:
    found, following = [b""] * count, iter(sums)
    for place, length in zip(places, lengths, strict=True):
        if length:
            one = next(following, b"")
            if len(one) != 4:
                raise FormatError("the sizes of a block of shards end before their checksums do")
            found[place] = one
    return tuple(found)


def _put(out: bytearray, span: Span | None) -> None:
    """A length, seven bits a byte, the lowest first; all but the last byte have the eighth bit."""
    length = span[1] if span is not None else 0
    while length > 127:
        out.append(length & 127 | 128)
        length >>= 7
    out.append(length)


class _Numbers:
    """Reads what `_put` wrote."""

    def __init__(self, data: bytes, at: int, end: int) -> None:
        self._data, self.at, self._end = data, at, end

    def take(self, count: int) -> list[int]:
        return [self._one() for _ in range(count)]

    def _one(self) -> int:
        value = shift = 0
        while self.at < self._end:
            byte = self._data[self.at]
            self.at += 1
            value |= (byte & 127) << shift
            if byte < 128 and value < MAX_NUMBER:
                return value
            shift += 7
            if shift > 28:
                break
        raise FormatError("the sizes of a block of shards hold a number that no chunk has")
