"""An archive in one file: a zip whose entries are stored, so that every object is a range of the file.

In: a Store of objects.  Out: a zip of the same bytes whoever packs it; and a Store that reads any stored zip, from here
or from afar.
Knows the zip format (PKWARE APPNOTE 6.3), zip64 for what is large; knows nothing of what the objects hold.

Written here and not by `zipfile`, since each byte must be the same under every Python and `verify` must be able to say
of each whether it is; and since `zipfile` takes a kilobyte of memory for each entry a hostile file claims to have.

    per entry   local header (30), name, bytes    in the order of `ordered`; dates 1980-01-01, method 0, no extras
    then        central directory (46 and the name each; zip64: 12 where an offset needs it), end (22; zip64: 98)

From afar it opens by its last bytes, and by one range more where these do not hold all: the directory, and before it
the sizes and the manifest of an archive with many objects; the manifest of others.
"""

from __future__ import annotations

import re
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from pathlib import Path

from ditic_stream._files import LocalFile, Range, Readable
from ditic_stream._paths import Place, Uri
from ditic_stream._store import GROUP, OBJECT, NamedRange, Store, write_object
from ditic_stream.errors import ConfigError, FormatError
from ditic_stream.manifest import MAX_MANIFEST

MAX_DIRECTORY = 2**26
"""Longest central directory, bytes: 600 000 objects, the shards of some 10 terapixels in tiles of 1024."""
TAIL_BYTES = 2**13
"""Last bytes to read of a zip that is far away."""
FEW = 100
"""Objects whose directory the last bytes hold: the manifest then comes first, as others expect it."""
SIZES = re.compile(r"records/sizes/\d+/\d+")
BLOCK = 2**20
LIMIT32, LIMIT16 = 2**32 - 1, 2**16 - 1
DOS_DATE = 0x21
"""1980-01-01."""
UNIX, MODE = 3, 0o100644 << 16

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")


def write_zip(store: Store, target: Place) -> int:
    """Write the zip of the objects in `store` to `target`, whole or not at all.  Returns its bytes; StorageError when
    there is no room."""
    if not isinstance(target, Uri):
        return write_object(target.parent, target.name, zip_pieces(store))
    from ditic_stream._cloud import Bucket

    return Bucket(target).stream("", zip_pieces(store))


def zip_pieces(store: Store) -> Iterator[bytes]:
    """The bytes of the zip that holds the objects of `store`, a piece at a time.

    `write_zip` writes them; `verify` compares them with the file, and so misses no byte of it.
    """
    directory = []
    at = 0
    for name in ordered(store.names()):
        store.fetch([(name, 0, None)])
        size = store.size(name) or 0
        if size >= LIMIT32:
            raise ConfigError(
                f"{name} has {size} bytes; an object in a zip holds at most {LIMIT32 - 1}: keep the folder"
            )
        crc = 0
        for piece in _blocks(store, name, size):
            crc = zlib.crc32(piece, crc)
        path = name.encode("ascii")
        head = _LOCAL.pack(b"PK\3\4", 10, 0, 0, 0, DOS_DATE, crc, size, size, len(path), 0) + path
        extra, offset = (b"", at) if at < LIMIT32 else (struct.pack("<HHQ", 1, 8, at), LIMIT32)
        version = 45 if extra else 10
        fields = (
            UNIX << 8 | version,
            version,
            0,
            0,
            0,
            DOS_DATE,
            crc,
            size,
            size,
            len(path),
            len(extra),
            0,
            0,
            0,
            MODE,
            offset,
        )
        directory.append(_CENTRAL.pack(b"PK\1\2", *fields) + path + extra)
        yield head
        yield from _blocks(store, name, size)
        at += len(head) + size
    central = b"".join(directory)
    yield central
    count, length = len(directory), len(central)
    if count >= LIMIT16 or at >= LIMIT32 or length >= LIMIT32:
        yield _END64.pack(b"PK\6\6", _END64.size - 12, UNIX << 8 | 45, 45, 0, 0, count, count, length, at)
        yield _LOCATOR.pack(b"PK\6\7", 0, at + length, 1)
    short = min(count, LIMIT16)
    yield _END.pack(b"PK\5\6", 0, 0, short, short, min(length, LIMIT32), min(at, LIMIT32), 0)


def ordered(names: Iterable[str]) -> list[str]:
    """The order of entries: metadata first, then sorted.  The root's metadata comes before all, so that a file cut
    short still says what it is (OME-NGFF RFC 9); but after all where there are sizes or more than a few objects: then
    one range at the end holds all that opening takes."""
    found = sorted(names)
    late = len(found) > FEW or any(SIZES.fullmatch(name) for name in found)

    def place(name: str) -> tuple[int, int, str]:
        if late and (name == GROUP or SIZES.fullmatch(name)):
            return 3 if name == GROUP else 2, 0, name
        return int(not name.endswith(GROUP)), name.count("/"), name

    return sorted(found, key=place)


def _blocks(store: Store, name: str, size: int) -> Iterator[bytes]:
    return (store.get(name, start, min(BLOCK, size - start)) for start in range(0, size, BLOCK))


class _BadNameError(FormatError):
    """A name that no damage makes: the zip is refused, and not read by its local headers."""


class ZipStore:
    """The entries of a stored zip file, this library's or another's.

    Compressed or encrypted entries, names that climb out or come twice, and ranges outside the file are refused with
    FormatError.  A damaged directory is rebuilt from the local headers, if these have no such name: `verify` reports
    it, and every tile still reads, since records and chunks carry checksums of their own.  An entry whose local header
    has the same bad name is no damage.

    file: an open one that is far away, with its last TAIL_BYTES at hand: opening then takes one request more at most.
    """

    def __init__(self, path: Place, file: Readable | None = None) -> None:
        self.path = path
        if file is None:
            assert isinstance(path, Path)
            file = LocalFile(path)
        self._file = file
        self._starts: dict[str, int] = {}
        self._headers: dict[str, tuple[int, int]] | None = None
        self._bad: list[str] = []
        """Names of local headers that climb out or come twice."""
        try:
            self.length = self._end = self._file.size
            try:
                self._entries = self._directory()
            except _BadNameError:
                raise
            except FormatError:
                self._entries = self._scan()
                if self._bad:
                    raise self._refusal(self._bad[0]) from None
                if GROUP not in self._entries:
                    raise
            self._offsets = sorted(offset for offset, _ in self._entries.values())
            if self._file.far:
                self._bring_first()
        except BaseException:
            self.close()
            raise

    def size(self, name: str) -> int | None:
        # A damaged name in the directory hides an object that is there.
        entry = self._entries.get(name) or self._scan().get(name)
        return None if entry is None else entry[1]

    def get(self, name: str, start: int, length: int) -> bytes:
        offset, size = self._entries.get(name) or self._scan()[name]
        if start < 0 or start + length > size:
            raise FormatError(f"{name} has {size} bytes, {start + length} are needed: it is cut short")
        return self.read(self._start(name, offset, size) + start, length)

    def fetch(self, ranges: Iterable[NamedRange], most: int | None = None) -> None:
        if not self._file.far:
            return
        groups: dict[str, list[Range]] = {}
        for name, start, length in ranges:
            if name in self._entries:
                offset, size = self._entries[name]
                start = max(size + start, 0) if start < 0 else start
                length = size - start if length is None else min(length, size - start)
                if length > 0:
                    groups.setdefault(name, []).append((self._start(name, offset, size) + start, length))
        self._file.fetch(*groups.values(), most=most)

    def names(self) -> Iterator[str]:
        return iter(sorted(name for name in self._entries if OBJECT.fullmatch(name)))

    def promise(self, names: Iterable[str]) -> None:
        pass

    def close(self) -> None:
        self._file.close()

    def read(self, start: int, length: int) -> bytes:
        """`length` bytes of the zip file itself."""
        if start < 0 or start + length > self.length:
            raise FormatError(f"{self.path.name} has {self.length} bytes, {start + length} are needed: it is cut short")
        data = self._file.read_at(start, length)
        if len(data) != length:
            raise FormatError(f"{self.path.name} ends {length - len(data)} bytes early")
        return data

    def _directory(self) -> dict[str, tuple[int, int]]:
        """name -> (offset of the local header, size), from the central directory."""
        at, tail, tail_start = -1, b"", 0
        for expected in [TAIL_BYTES, _END.size + LIMIT16] if self._file.far else [_END.size + LIMIT16]:
            tail_start = max(0, self.length - expected)
            self._file.fetch([(tail_start, self.length - tail_start)])
            tail = self.read(tail_start, self.length - tail_start)
            at = tail.rfind(b"PK\5\6")
            if at >= 0:
                break
        if at < 0 or at + _END.size > len(tail):
            raise FormatError(f"{self.path.name} is not a zip file: it has no end record")
        _, disk, _, _, count, length, start, _ = _END.unpack_from(tail, at)
        end = tail_start + at
        if count == LIMIT16 or length == LIMIT32 or start == LIMIT32:
            signature, _, record, _ = _LOCATOR.unpack(self.read(end - _LOCATOR.size, _LOCATOR.size))
            if signature == b"PK\6\7":
                _, _, _, _, disk, _, _, count, length, start = _END64.unpack(self.read(record, _END64.size))
        if disk or length > MAX_DIRECTORY or start + length > end or count * _CENTRAL.size > length:
            raise FormatError(f"{self.path.name} claims {count} entries in {length} bytes at {start} of {end}")
        self._end = start
        if self._file.far and start < tail_start:
            begin = _first_wanted(tail[: max(start + length - tail_start, 0)], start)
            self._file.fetch([(begin, tail_start - begin)])
            return self._parse(self._joined(start, tail_start) + tail[: start + length - tail_start], count, start)
        return self._parse(self.read(start, length), count, start)

    def _joined(self, start: int, end: int) -> bytes:
        """The bytes between, a block at a time."""
        return b"".join(self.read(at, min(BLOCK, end - at)) for at in range(start, end, BLOCK))

    def _bring_first(self) -> None:
        """Bring near what opening an archive reads: the manifest, and its sizes if they are one object."""
        sizes = [name for name in self._entries if SIZES.fullmatch(name)]
        wanted = []
        for name in [*(sizes if len(sizes) == 1 else ()), GROUP]:
            offset, size = self._entries.get(name, (0, LIMIT32))
            if size <= MAX_MANIFEST:
                wanted.append((self._start(name, offset, size), size))
        self._file.fetch(wanted)

    def _start(self, name: str, offset: int, size: int) -> int:
        """Where the bytes of an entry begin."""
        if name not in self._starts:
            self._starts[name] = self._begin(name, offset, size)
        return self._starts[name]

    def _begin(self, name: str, offset: int, size: int) -> int:
        """Where the bytes of an entry begin, by its local header, unless that is damaged or not at `offset`."""
        if self._file.far:
            # As write_zip makes it they fill all up to what follows; then the header need not be asked for.
            following = bisect_right(self._offsets, offset)
            end = self._offsets[following] if following < len(self._offsets) else self._end
            if offset + _LOCAL.size + len(name) + size == end:
                return offset + _LOCAL.size + len(name)
        local = self._local(offset)
        if local is None or local[0] != name:
            offset = self._scan().get(name, (offset, size))[0]
            local = self._local(offset)
        place = bisect_right(self._offsets, offset)
        limit = self._offsets[place] if place < len(self._offsets) else self._end
        if local is not None and local[0] == name and local[1] + size <= limit:
            return local[1]
        return offset + _LOCAL.size + len(name)  # as write_zip makes it

    def _local(self, offset: int) -> tuple[str, int, int] | None:
        """(name, offset of the bytes, size) by the local header at `offset`; None when there is none to trust."""
        if offset + _LOCAL.size > self.length:
            return None
        signature, _, flags, method, _, _, _, packed, size, path, extra = _LOCAL.unpack(self.read(offset, _LOCAL.size))
        begin = offset + _LOCAL.size + path + extra
        if signature != b"PK\3\4" or flags & 9 or method or packed != size or begin + size > self.length:
            return None
        return self.read(offset + _LOCAL.size, path).decode("ascii", "replace"), begin, size

    def _scan(self) -> dict[str, tuple[int, int]]:
        """The entries that local headers tell of, from the start of the file to the first not to be trusted."""
        if self._headers is None:
            self._headers = {}
            at = 0
            for _ in range(MAX_DIRECTORY // _CENTRAL.size):
                local = self._local(at)
                if local is None:
                    break
                name, begin, size = local
                if not _is_plain(name.removesuffix("/") if not size else name) or name in self._headers:
                    self._bad.append(name)
                elif not name.endswith("/"):
                    self._headers[name] = (at, size)
                at = begin + size
        return self._headers

    def _parse(self, central: bytes, count: int, limit: int) -> dict[str, tuple[int, int]]:
        entries: dict[str, tuple[int, int]] = {}
        at = 0
        for _ in range(count):
            if at + _CENTRAL.size > len(central):
                raise FormatError(f"{self.path.name} ends its directory after {len(entries)} of {count} entries")
            fields = _CENTRAL.unpack_from(central, at)
            signature, flags, method, packed, size, path, extra, comment, offset = (
                *(fields[place] for place in (0, 3, 4, 8, 9, 10, 11, 12)),
                fields[16],
            )
            begin = at + _CENTRAL.size
            at = begin + path + extra + comment
            if signature != b"PK\1\2" or at > len(central):
                raise FormatError(f"{self.path.name} breaks its directory at entry {len(entries)}")
            name = central[begin : begin + path].decode("ascii", "replace")
            if name.endswith("/") and not size:
                continue  # other packers write an entry for each folder
            if method or flags & 1 or packed != size or size == LIMIT32:
                raise FormatError(
                    f"entry {name!r} of {self.path.name} is compressed, encrypted or too large; pack it stored"
                )
            if offset == LIMIT32:
                offset = _offset64(central[begin + path : begin + path + extra])
            if not _is_plain(name) or name in entries:
                offsets = [offset] if name not in entries else [offset, entries[name][0]]
                if _climbs(name) or all(self._is_named(one, name) for one in offsets):
                    raise self._refusal(name)
                raise FormatError(f"entry {name!r} of {self.path.name} is damaged")
            if offset + _LOCAL.size + path + size > limit:
                raise FormatError(f"entry {name!r} of {self.path.name} lies outside the file")
            entries[name] = (offset, size)
        return entries

    def _is_named(self, offset: int, name: str) -> bool:
        """True when the local header at `offset` has the name too."""
        local = self._local(offset)
        return local is not None and local[0] == name

    def _refusal(self, name: str) -> FormatError:
        return _BadNameError(f"entry {name!r} of {self.path.name} leaves the archive or comes twice; distrust the file")


def _first_wanted(tail: bytes, start: int) -> int:
    """Where to begin reading before a directory, of which `tail` is the end: at the manifest and the one object of
    sizes, if they lie right before it, as its last entries say; else at its `start`."""
    begin, at = start, len(tail)
    for name in (GROUP, "records/sizes/0/0"):
        for extra in (12, 0):
            place = at - extra - len(name) - _CENTRAL.size
            if place < 0 or tail[place + _CENTRAL.size : place + _CENTRAL.size + len(name)] != name.encode():
                continue
            fields = _CENTRAL.unpack_from(tail, place)
            offset = fields[16] if fields[16] != LIMIT32 else _offset64(tail[at - extra : at])
            if fields[0] == b"PK\1\2" and offset < begin and begin - offset <= MAX_MANIFEST:
                begin, at = offset, place
                break
        else:
            break
    return begin


def _offset64(extra: bytes) -> int:
    """The offset a zip64 extra field holds; entries of 4 GiB are refused, so nothing stands before it."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1 and length == 8 and at + 12 <= len(extra):
            return int(struct.unpack_from("<Q", extra, at + 4)[0])
        at += 4 + length
    return LIMIT32


def _climbs(name: str) -> bool:
    """True for a readable name that leaves the archive; what a changed byte makes of a good name is not one."""
    return name.isascii() and name.isprintable() and (name[:1] == "/" or "\\" in name or ".." in name.split("/"))


def _is_plain(name: str) -> bool:
    """True for relative ASCII paths without empty parts, dots or backslashes: nothing that could climb out."""
    return name.isascii() and "\\" not in name and "\0" not in name and all(part.strip(".") for part in name.split("/"))
