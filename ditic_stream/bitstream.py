"""Records: the bytes of one tile, with all that is needed to tell whose they are and whether they are whole.

In: the words and escapes of a coded tile, and its place.  Out: bytes, and the same values back.
Knows headers and checksums; knows nothing of symbols' meaning, files or models.  Written down in docs/format.md.

    offset  bytes  field           both kinds           offset  bytes  field           CODED only
         0      3  magic           "DTR"                    18      4  coded           symbols in the words
         3      1  version         1                        22      4  words           bytes that follow
         4      1  kind            0 EMPTY, 1 CODED         26      4  escapes         bytes after those
         5      1  lanes_log2      0..6 (EMPTY: 0)          30      4  symbols_crc     CRC-32C of the symbols
         6      2  row             of the tile              34         words, escapes
         8      2  col             of the tile
        10      8  archive_id                             last      4  crc             CRC-32C of all bytes before

Little-endian, no holes.  An EMPTY record is 22 bytes, a CODED one 38 and what it carries.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import google_crc32c

from ditic_stream.errors import ChecksumError, ConfigError, FormatError, UnsupportedVersionError
from ditic_stream.geometry import TileKey

if TYPE_CHECKING:
    from numpy.typing import NDArray

EMPTY, CODED = 0, 1
MAGIC, VERSION = b"DTR", 1
ID_BYTES = 8
MAX_LANES_LOG2 = 6
MAX_INDEX = 2**16 - 1
"""Last row and column of tiles: 2^24 pixels in tiles of 256."""
MAX_CODED = 2**28
"""Symbols of a record: more than a tile of 4096 pixels with a thousand bands has."""
MAX_RECORD = 2**29
"""Longest record, bytes; a reader allocates no more than this on the word of a file."""

_HEAD = struct.Struct("<3sBBBHH8s")
_BODY = struct.Struct("<IIII")
_CRC = struct.Struct("<I")
EMPTY_BYTES = _HEAD.size + _CRC.size
HEADER_BYTES = _HEAD.size + _BODY.size + _CRC.size
"""Bytes of a CODED record beside its words and escapes (38)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One tile: EMPTY (every pixel masked) or CODED.  Bounds are checked when built; ConfigError names the field."""

    kind: int
    key: TileKey
    archive_id: bytes
    """First 8 bytes of the SHA-256 of the archive's settings."""
    lanes_log2: int = 0
    """Logarithm of the rANS lanes."""
    words: bytes = b""
    """States and words of the rANS coder: 16-bit units, little-endian."""
    escapes: bytes = b""
    """Bits of the values outside the tables."""
    coded: int = 0
    """Symbols that `words` holds."""
    symbols_crc: int = 0
    """`symbols_checksum` of the tile's symbols, coded or not."""

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem:
            raise ConfigError(f"record: {problem}", key=str(self.key))

    def _problem(self) -> str | None:
        """What is out of bounds, if anything is."""
        if self.kind not in (EMPTY, CODED):
            return f"kind {self.kind} is neither {EMPTY} (EMPTY) nor {CODED} (CODED)"
        if not (0 <= self.key.row <= MAX_INDEX and 0 <= self.key.col <= MAX_INDEX):
            return f"its place leaves 0..{MAX_INDEX}"
        if len(self.archive_id) != ID_BYTES:
            return f"archive id of {len(self.archive_id)} bytes; {ID_BYTES} are needed"
        if self.kind == EMPTY:
            return None if self._is_bare() else "an EMPTY record carries words, escapes, lanes or a checksum"
        if not 0 <= self.lanes_log2 <= MAX_LANES_LOG2:
            return f"lanes_log2 {self.lanes_log2} leaves 0..{MAX_LANES_LOG2}"
        if not 0 <= self.coded <= MAX_CODED or not 0 <= self.symbols_crc < 2**32:
            return f"{self.coded} coded symbols (at most {MAX_CODED}) or checksum {self.symbols_crc} out of bounds"
        states = 4 << self.lanes_log2
        if len(self.words) % 2 or not states <= len(self.words) <= states + 2 * self.coded:
            most = states + 2 * self.coded
            return f"{len(self.words)} bytes of words; {self.coded} symbols in {self.lanes} lanes take {states}..{most}"
        if (
            8 * len(self.escapes) > 65 * self.coded + 7
            or HEADER_BYTES + len(self.words) + len(self.escapes) > MAX_RECORD
        ):
            return (
                f"{len(self.escapes)} bytes of escapes, {len(self.words)} of words: too many for {self.coded} symbols"
            )
        return None

    def _is_bare(self) -> bool:
        return not (self.lanes_log2 or self.words or self.escapes or self.coded or self.symbols_crc)

    @property
    def lanes(self) -> int:
        return 1 << self.lanes_log2

    def to_json(self) -> dict[str, Any]:
        """The header's fields, as schemas/record-1.json describes them."""
        return {
            "kind": ("empty", "coded")[self.kind],
            "row": self.key.row,
            "col": self.key.col,
            "archive_id": self.archive_id.hex(),
            "lanes": self.lanes,
            "coded": self.coded,
            "words": len(self.words),
            "escapes": len(self.escapes),
            "symbols_crc": self.symbols_crc,
        }


def pack_record(record: Record) -> bytes:
    """The bytes of `record`: 22 when EMPTY, 38 + words + escapes when CODED."""
    head = _HEAD.pack(MAGIC, VERSION, record.kind, record.lanes_log2, record.key.row, record.key.col, record.archive_id)
    if record.kind == CODED:
        head += _BODY.pack(record.coded, len(record.words), len(record.escapes), record.symbols_crc)
    data = head + record.words + record.escapes
    return data + _CRC.pack(crc32c(data))


def unpack_record(data: bytes, *, archive_id: bytes | None = None, key: TileKey | None = None) -> Record:
    """The record in `data`, which holds nothing else.

    archive_id, key: what the record must say of itself, if given.
    Raises ChecksumError when the bytes are damaged or belong to another tile or archive, FormatError when they break
    the format, UnsupportedVersionError when a later release wrote them; each names the tile, `key` or the record's own.
    """
    name = None if key is None else str(key)
    length = record_length(data, key=key)
    if length != len(data):
        raise FormatError(f"record says {length} bytes but has {len(data)}", key=name)
    _, _, kind, lanes_log2, row, col, found_id = _HEAD.unpack_from(data)
    if crc32c(data[:-4]) != _CRC.unpack_from(data, length - 4)[0]:
        raise ChecksumError("record fails its CRC-32C: its bytes are damaged", key=name)
    found = TileKey(row, col)
    if key is not None and found != key:
        raise ChecksumError(f"record is that of tile {found}: records were exchanged", key=name)
    if archive_id is not None and found_id != archive_id:
        raise ChecksumError(
            f"record is of archive {found_id.hex()}, not of {archive_id.hex()}: it was coded with other settings",
            key=str(found),
        )
    coded, words, symbols_crc, body = 0, 0, 0, b""
    if kind == CODED:
        coded, words, _, symbols_crc = _BODY.unpack_from(data, _HEAD.size)
        body = data[_HEAD.size + _BODY.size : -4]
    try:
        return Record(
            kind=kind,
            key=found,
            archive_id=found_id,
            lanes_log2=lanes_log2,
            words=body[:words],
            escapes=body[words:],
            coded=coded,
            symbols_crc=symbols_crc,
        )
    except ConfigError as error:
        raise FormatError(error.message, key=str(found)) from error


def record_length(data: bytes, *, key: TileKey | None = None) -> int:
    """Bytes of the record that `data` begins with, by its header: where padding or the next record starts.

    Raises FormatError when no record begins there, or `data` is too short to hold its header.
    """
    name = None if key is None else str(key)
    if len(data) < EMPTY_BYTES:
        raise FormatError(f"record has {len(data)} bytes; the shortest has {EMPTY_BYTES}", key=name)
    magic, version, kind = _HEAD.unpack_from(data)[:3]
    if magic != MAGIC:
        raise FormatError(f"record starts with {magic!r}, not {MAGIC!r}", key=name)
    if version != VERSION:
        raise UnsupportedVersionError(
            f"record has format {version}; this release reads {VERSION}: it is damaged, or needs a later release",
            key=name,
        )
    if kind == EMPTY:
        return EMPTY_BYTES
    if kind != CODED or len(data) < HEADER_BYTES:
        raise FormatError(
            f"record of kind {kind} has {len(data)} bytes; a CODED one has {HEADER_BYTES} or more", key=name
        )
    _, words, escapes, _ = _BODY.unpack_from(data, _HEAD.size)
    length = HEADER_BYTES + int(words) + int(escapes)
    if length > MAX_RECORD:
        raise FormatError(f"record says {length} bytes; at most {MAX_RECORD} are allowed", key=name)
    return length


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli), as iSCSI and Zarr use it."""
    return int(google_crc32c.value(data))


def symbols_checksum(*arrays: NDArray[Any]) -> int:
    """CRC-32C of symbols as little-endian int16, array after array, each in C order.

    arrays: integers of any shape, every y symbol (the uncoded zeros too), then z.
    Raises FormatError when a symbol leaves int16, as only a hostile record makes it.
    """
    import numpy as np

    crc = 0
    for array in arrays:
        if array.size and not -(2**15) <= int(array.min()) <= int(array.max()) < 2**15:
            raise FormatError(f"symbols {array.min()}..{array.max()} leave int16")
        crc = google_crc32c.extend(crc, np.ascontiguousarray(array, dtype="<i2").tobytes())
    return int(crc)
