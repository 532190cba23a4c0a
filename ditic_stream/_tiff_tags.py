"""Read the directories of a TIFF as what they are, numbered fields, and carry the fields of one file into another.

In: a file, open for reading at offsets.  Out: Ifd, whose fields are read when asked for; a JSON list of the fields
worth keeping.  Knows classic TIFF and BigTIFF in both byte orders; knows nothing of pixels.

Why not a library: every count, offset and chain here may be hostile and is bounded before it is used, and a field must
come back with its own type and bytes (GeoTIFF, RPC, ICC, GDAL and OME metadata all live in them).
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ditic_stream._files import Readable
from ditic_stream.errors import FormatError, SourceError

MAX_IFDS = 4096
"""Longest chain of directories followed."""
MAX_FIELDS = 1024
"""Most fields in one directory; 65535 is the format's own bound, real files stay below 100."""
MAX_SEGMENTS = 2**25
"""Most strips or tiles of one image: a scene of 2^20 x 2^20 pixels in tiles of 256 has 2^24."""
MAX_FIELD_BYTES = 2**22
"""Largest field carried along; ICC profiles of printers, the largest that matter, stay below 3 MB."""
MAX_METADATA_BYTES = 2**23
"""Most bytes of fields carried along together; the manifest that holds them has its own cap above this."""

Order = Literal["<", ">"]

TYPES: dict[int, str] = {
    1: "u1", 2: "S1", 3: "u2", 4: "u4", 5: "u4", 6: "i1", 7: "V1", 8: "i2", 9: "i4", 10: "i4",
    11: "f4", 12: "f8", 13: "u4", 16: "u8", 17: "i8", 18: "u8",
}  # fmt: skip
"""numpy code of each TIFF field type; 5 and 10 are pairs of integers."""
SIZES = {kind: int(code[1]) * (2 if kind in (5, 10) else 1) for kind, code in TYPES.items()}

STRUCTURAL = frozenset({
    *range(254, 260), 262, 263, 264, 265, 266, 273, 277, 278, 279, 284, 288, 289, 292, 293, 317, 320, *range(322, 326),
    330, 332, 334, 336, 338, 339, 340, 341, 347, *range(512, 522), 529, 530, 531, 532, 32995, 32996, 32997, 32998,
    50674, 50838, 50839,
})  # fmt: skip
"""Fields that say how pixels are stored: the writer sets its own."""
BRANCHES = {"exif": 34665, "gps": 34853}
"""Directories that are kept beside the picture's own, and the fields that point at them."""
POINTERS = frozenset([*BRANCHES.values(), 40965, 330])
"""Fields that point at further directories: their value means nothing in another file."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a directory: where its `count` values of TIFF type `kind` lie in the file."""

    code: int
    kind: int
    count: int
    offset: int

    @property
    def size(self) -> int:
        return self.count * SIZES[self.kind]


@dataclass(frozen=True, slots=True)
class Ifd:
    """One directory: its fields by code, and how to read them.  `order` is "<" or ">", `big`: of a BigTIFF."""

    file: Readable
    order: Order
    big: bool
    fields: dict[int, Field]

    def raw(self, code: int, limit: int) -> bytes:
        """The bytes of a field in the file's order; SourceError when they exceed `limit` or the file."""
        field = self.fields[code]
        if field.size > limit:
            raise SourceError(f"TIFF field {code} claims {field.size} bytes, more than {limit}; the file is damaged")
        data = self.file.read_at(field.offset, field.size)
        if len(data) != field.size:
            raise SourceError(f"TIFF field {code} lies beyond the end of the file; the file is truncated")
        return data

    def array(self, code: int, limit: int) -> npt.NDArray[Any]:
        """The values of a numeric field, at most `limit` of them, in native byte order; empty when it is absent."""
        if code not in self.fields:
            return np.empty(0, np.int64)
        kind = self.fields[code].kind
        if kind in (2, 7):
            raise SourceError(f"TIFF field {code} holds text where numbers belong; the file is damaged")
        values = np.frombuffer(self.raw(code, limit * SIZES[kind]), np.dtype(TYPES[kind]).newbyteorder(self.order))
        return values.astype(values.dtype.newbyteorder("="))

    def ints(self, code: int, limit: int = MAX_FIELDS * 64) -> tuple[int, ...]:
        """The values of a field of whole numbers, () when it is absent."""
        values = self.array(code, limit)
        if values.dtype.kind not in "ui":
            raise SourceError(f"TIFF field {code} holds fractions where whole numbers belong; the file is damaged")
        return tuple(int(value) for value in values)

    def number(self, code: int, default: int) -> int:
        """The first value of a field of whole numbers, or `default` when it is absent or empty."""
        values = self.ints(code)
        return values[0] if values else default

    def branch(self, code: int) -> Ifd | None:
        """The directory a pointer field leads to, None when there is no such field."""
        return next(iter(self.branches(code)), None)

    def branches(self, code: int) -> list[Ifd]:
        """The directories a field of pointers leads to, [] when there is no such field."""
        return [_read_ifd(self.file, self.order, self.big, offset)[0] for offset in self.ints(code, MAX_IFDS) if offset]

    def text(self, code: int, limit: int = MAX_FIELD_BYTES) -> str:
        """The text of a field up to its first NUL, "" when it is absent or longer than `limit` bytes."""
        if code not in self.fields or self.fields[code].size > limit:
            return ""
        return self.raw(code, limit).split(b"\0", 1)[0].decode("utf-8", "replace")


def read_ifds(file: Readable) -> list[Ifd]:
    """Follow the chain of directories from the header, first picture first.

    Raises SourceError on a loop, on a directory outside the file, and on counts beyond the bounds above.
    """
    head = file.read_at(0, 16)
    orders: dict[bytes, Order] = {b"II": "<", b"MM": ">"}
    order = orders.get(head[:2])
    if order is None or len(head) < 8:
        raise SourceError("the file has no TIFF header")
    big = struct.unpack(order + "H", head[2:4])[0] == 43
    if big:
        if len(head) < 16 or struct.unpack(order + "HH", head[4:8]) != (8, 0):
            raise SourceError("the BigTIFF header is damaged")
        offset = int(struct.unpack(order + "Q", head[8:16])[0])
    else:
        offset = int(struct.unpack(order + "I", head[4:8])[0])
    seen: set[int] = set()
    ifds: list[Ifd] = []
    while offset:
        if offset in seen:
            raise SourceError(f"the chain of TIFF directories loops back to byte {offset}; the file is damaged")
        if len(ifds) == MAX_IFDS:
            raise SourceError(f"the file holds more than {MAX_IFDS} TIFF directories; split it")
        seen.add(offset)
        ifd, offset = _read_ifd(file, order, big, offset)
        ifds.append(ifd)
    if not ifds:
        raise SourceError("the TIFF holds no picture")
    return ifds


def _read_ifd(file: Readable, order: Order, big: bool, offset: int) -> tuple[Ifd, int]:
    head, entry, link, inline = (8, 20, 8, 8) if big else (2, 12, 4, 4)
    start = file.read_at(offset, head)
    if len(start) != head:
        raise SourceError(
            f"a TIFF directory at byte {offset} lies beyond the file's {file.size} bytes; it is truncated"
        )
    count = int(struct.unpack(order + ("Q" if big else "H"), start)[0])
    if not 1 <= count <= MAX_FIELDS:
        raise SourceError(f"a TIFF directory claims {count} fields, outside 1..{MAX_FIELDS}; the file is damaged")
    body = file.read_at(offset + head, count * entry + link)
    if len(body) < count * entry:
        raise SourceError(f"the TIFF directory at byte {offset} is cut off; the file is truncated")
    fields: dict[int, Field] = {}
    for at in range(0, count * entry, entry):
        code, kind, values = struct.unpack(order + ("HHQ" if big else "HHI"), body[at : at + entry - inline])
        if kind not in TYPES or code in fields:
            continue  # a reader skips what it does not know, and the first of two counts
        where = offset + head + at + entry - inline
        if values * SIZES[kind] > inline:
            where = int(struct.unpack(order + ("Q" if big else "I"), body[at + entry - inline : at + entry])[0])
        fields[code] = Field(code, kind, values, where)
    tail = body[count * entry :]
    following = int(struct.unpack(order + ("Q" if big else "I"), tail)[0]) if len(tail) == link else 0
    return Ifd(file, order, big, fields), following


def fields_to_json(ifd: Ifd, *, branch: bool = False) -> tuple[list[dict[str, Any]], list[str]]:
    """Read the fields worth keeping as [{code, kind, text | values | base64}], and say which are left behind.

    branch: an EXIF or GPS directory, whose numbers mean something else and are all kept.
    """
    kept: list[dict[str, Any]] = []
    notes: list[str] = []
    total = 0
    for code in sorted(ifd.fields):
        if code in POINTERS or (code in STRUCTURAL and not branch):
            continue
        field = ifd.fields[code]
        total += min(field.size, MAX_FIELD_BYTES)
        if field.size > MAX_FIELD_BYTES or total > MAX_METADATA_BYTES:
            notes.append(f"TIFF field {code} of {field.size} bytes is too large to keep")
        elif ifd.file.size < field.offset + field.size:
            notes.append(f"TIFF field {code} lies beyond the end of the file")
        elif field.size:
            kept.append(raw_field(code, field.kind, ifd.raw(code, MAX_FIELD_BYTES), ifd.order))
    return kept, notes


def branches_to_json(ifd: Ifd) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """The EXIF and GPS directories of a picture, as {"exif": fields, "gps": fields}, and what is left behind."""
    kept: dict[str, list[dict[str, Any]]] = {}
    notes: list[str] = []
    for name, code in BRANCHES.items():
        try:
            found = ifd.branch(code)
            if found is not None:
                kept[name], left = fields_to_json(found, branch=True)
                notes += left
        except SourceError:
            notes.append(f"the {name.upper()} directory is damaged and is not kept")
    return kept, notes


def raw_field(code: int, kind: int, data: bytes, order: Order = "<") -> dict[str, Any]:
    """One field as JSON, of its bytes in the byte order of their file."""
    item = np.dtype(TYPES[kind])
    if kind == 2:
        body = data[:-1] if data.endswith(b"\0") else data
        try:
            return {"code": code, "kind": 2, "text": body.decode("utf-8")}
        except UnicodeDecodeError:
            pass  # Latin-1 and the like come back byte for byte
    elif item.kind in "uif" and item.itemsize > 1:
        values = np.frombuffer(data, item.newbyteorder(order))
        data = values.astype(item.newbyteorder("<")).tobytes()
        listed = values.tolist()
        if all(math.isfinite(value) for value in listed):
            return {"code": code, "kind": kind, "values": listed}
    return {"code": code, "kind": kind, "base64": base64.b64encode(data).decode("ascii")}


def fields_from_json(items: Any, *, branch: bool = False) -> list[tuple[int, int, int, bytes]]:
    """The (code, kind, count, little-endian bytes) of fields kept as JSON; FormatError on anything else.

    The list may come from a hostile manifest: codes, types and sizes are checked, structural fields are refused.
    """
    fields: dict[int, tuple[int, int, int, bytes]] = {}
    if not isinstance(items, list) or len(items) > MAX_FIELDS:
        raise FormatError(f"the kept TIFF fields are not a list of at most {MAX_FIELDS}; distrust the archive")
    total = 0
    for item in items:
        code, kind = (item.get("code"), item.get("kind")) if isinstance(item, dict) else (None, None)
        if type(code) is not int or type(kind) is not int or kind not in TYPES or not 0 <= code < 65536:
            raise FormatError(f"a kept TIFF field has code {code!r:.40} and type {kind!r:.40}; distrust the archive")
        if (code in STRUCTURAL and not branch) or code in POINTERS or code in fields:
            raise FormatError(
                f"kept TIFF field {code} is not one that may be kept, or stands twice; distrust the archive"
            )
        try:
            data = _data_of(item, kind)
        except (KeyError, ValueError, TypeError, OverflowError, binascii.Error) as error:
            raise FormatError(
                f"kept TIFF field {code} does not hold what its type says; distrust the archive"
            ) from error
        total += len(data)
        if total > 2 * MAX_METADATA_BYTES or len(data) % SIZES[kind] or not data:
            raise FormatError(f"kept TIFF field {code} has {len(data)} bytes; distrust the archive")
        fields[code] = (code, kind, len(data) // SIZES[kind], data)
    return [fields[code] for code in sorted(fields)]


def branches_from_json(metadata: dict[str, Any]) -> dict[int, list[tuple[int, int, int, bytes]]]:
    """The EXIF and GPS directories that metadata keeps, under the codes of the fields that point at them."""
    return {
        code: fields_from_json(metadata[name], branch=True) for name, code in BRANCHES.items() if metadata.get(name)
    }


def _data_of(item: dict[str, Any], kind: int) -> bytes:
    if "text" in item:
        return str(item["text"]).encode("utf-8") + b"\0"
    if "values" in item:
        values = item["values"]
        if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
            raise ValueError("values are not a list of numbers")
        return np.array(values, np.dtype(TYPES[kind]).newbyteorder("<")).tobytes()
    return base64.b64decode(item["base64"], validate=True)
