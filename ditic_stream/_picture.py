"""Read PNG and JPEG pictures: what they say of themselves at once, their pixels when the first window is asked for.

In: a file.  Out: Picture, with pixels (samples, rows, columns) of any window and the metadata a writer needs, as fields
of TIFF.  Both formats can only be decoded whole, so a picture has to fit a bound in memory.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from ditic_stream._files import MemoryFile, Readable
from ditic_stream._jpeg import check_codes, end_of
from ditic_stream._tiff_tags import (
    MAX_FIELD_BYTES,
    branches_to_json,
    fields_to_json,
    raw_field,
    read_ifds,
)
from ditic_stream.errors import SourceError
from ditic_stream.geometry import Window

Array = npt.NDArray[Any]
MAX_PICTURE_BYTES = 2**28
"""Largest decoded PNG or JPEG, 256 MB: 89 megapixels of RGB."""
MAX_CHUNKS = 2**20
MAX_SCANS = 500
"""Most scans of a JPEG, as in the tests of libjpeg-turbo itself; progressive ones have about ten."""
RESOLUTION_X, RESOLUTION_Y, RESOLUTION_UNIT, DESCRIPTION, XMP, ICC = 282, 283, 296, 270, 700, 34675
ASCII, BYTE, SHORT, RATIONAL, UNDEFINED = 2, 1, 3, 5, 7
CENTIMETRE, INCH = 3, 2


class Picture:
    """A PNG or a JPEG.  Alpha, where there is one, is the last sample."""

    def __init__(
        self, file: Readable, driver: str, *, height: int, width: int, samples: int, dtype: str, alpha: bool
    ) -> None:
        size = height * width * samples * np.dtype(dtype).itemsize
        if not height or not width:
            raise SourceError(f"the picture has {height} x {width} pixels; the file is damaged")
        if size > MAX_PICTURE_BYTES:
            raise SourceError(
                f"{driver.upper()} can only be decoded whole, {size >> 20} MB here, more than "
                f"{MAX_PICTURE_BYTES >> 20} MB; convert it to a .tif first, e.g. gdal_translate -co TILED=YES"
            )
        self.height, self.width, self.samples, self.dtype, self.has_alpha = height, width, samples, dtype, alpha
        self.warnings: tuple[str, ...] = ()
        self.metadata: dict[str, Any] = {}
        self._file, self._driver = file, driver
        self._pixels: Array | None = None
        self.parts: list[tuple[int, int]] = [(0, file.size)]
        """(offset, size) of what the decoder is given."""
        self.checked = False
        """True once `check` has passed, here or in the process that handed the picture on."""

    def describe(self, fields: dict[int, dict[str, Any]], branches: dict[str, Any], notes: list[str]) -> Picture:
        """Set metadata and warnings."""
        colours = self.samples - self.has_alpha
        self.metadata = {
            "driver": self._driver, "photometric": 2 if colours == 3 else 1,
            "extrasamples": [2] if self.has_alpha else [],
            "planar": False, "alpha": self.samples - 1 if self.has_alpha else None, "mask": False,
            "fields": [fields[code] for code in sorted(fields)], **branches,
            "geo": {"epsg": None, "transform": None, "gcps": 0},
        }  # fmt: skip
        self.warnings = tuple(notes)
        return self

    def read(self, window: Window) -> Array:
        """Pixels (samples, rows, columns); SourceError when the file is damaged."""
        if self._pixels is None:
            self._pixels = self._decode()
        part = self._pixels[window.row : window.row_end, window.col : window.col_end]
        return np.ascontiguousarray(part.transpose(2, 0, 1))

    def check(self) -> None:
        """Raise SourceError when a JPEG is damaged in a way that its decoder would pass over."""
        if not self.checked:
            self._data()

    def close(self) -> None:
        self._pixels = None

    def _data(self) -> bytes:
        """What the decoder is given, checked once."""
        data = b"".join(self._file.read_at(offset, size) for offset, size in self.parts)
        if self._driver == "jpeg" and data.count(b"\xff\xda") > MAX_SCANS:
            raise SourceError(f"the JPEG has more than {MAX_SCANS} scans; the file is damaged, or made to waste time")
        if self._driver == "jpeg" and not self.checked:
            check_codes(data)
        self.checked = True
        return data

    def _decode(self) -> Array:
        import imagecodecs

        data = self._data()
        try:
            pixels: Array = imagecodecs.png_decode(data) if self._driver == "png" else imagecodecs.jpeg8_decode(data)
        except MemoryError as error:
            raise SourceError(
                "the picture needs more memory than there is; convert it to a tiled .tif first"
            ) from error
        except Exception as error:  # imagecodecs raises a class of its own for each codec
            raise SourceError(
                f"{self._driver.upper()} data is damaged ({error!s:.120}); fetch the file again"
            ) from error
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        if pixels.shape != (self.height, self.width, self.samples) or pixels.dtype != np.dtype(self.dtype):
            raise SourceError(
                f"the picture decodes to {pixels.shape} {pixels.dtype}, its header says "
                f"{(self.height, self.width, self.samples)} {self.dtype}; the file is damaged"
            )
        return pixels


def open_picture(file: Readable, expand_palette: bool) -> Picture:
    """Read the headers of a PNG or a JPEG; SourceError for what cannot be given back."""
    return _open_png(file, expand_palette) if file.read_at(0, 1) == b"\x89" else _open_jpeg(file)


def _open_png(file: Readable, expand_palette: bool) -> Picture:
    seen: dict[bytes, bytes] = {}
    parts = [(0, 8)]
    at = 8
    for _ in range(MAX_CHUNKS):
        head = file.read_at(at, 8)
        if len(head) != 8:
            raise SourceError(f"the PNG ends at byte {file.size} without its last chunk; the file is truncated")
        length, kind = struct.unpack(">I4s", head)
        if kind in (b"IHDR", b"tRNS", b"iCCP", b"pHYs", b"eXIf", b"PLTE") and length <= MAX_FIELD_BYTES:
            seen[kind] = file.read_at(at + 8, length)
        else:
            seen.setdefault(kind, b"")
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            parts.append((at, length + 12))  # the decoder sees no other: it prints what it thinks of them
        if kind == b"IEND":
            break
        at += length + 12
    if len(seen.get(b"IHDR", b"")) != 13 or b"IEND" not in seen or b"IDAT" not in seen:
        raise SourceError("the PNG has no header, no pixels or no end; the file is damaged")
    width, height, bits, colour = struct.unpack(">IIBB", seen[b"IHDR"][:10])
    if b"acTL" in seen:
        raise SourceError("the PNG is animated; save one frame as a picture of its own")
    if colour == 3 and not expand_palette:
        raise SourceError("the PNG has a palette, whose indexes a lossy codec would destroy; use --expand-palette")
    if colour not in (0, 2, 3, 4, 6) or bits not in (1, 2, 4, 8, 16):
        raise SourceError(f"PNG colour type {colour} with {bits} bits; the file is damaged")
    if colour != 3 and bits < 8:
        raise SourceError(f"gray of {bits} bits is line art, which a lossy codec would destroy; keep the file as it is")
    alpha = colour in (4, 6) or b"tRNS" in seen
    samples = (1 if colour in (0, 4) else 3) + alpha
    dtype = "uint16" if bits == 16 else "uint8"
    picture = Picture(file, "png", height=height, width=width, samples=samples, dtype=dtype, alpha=alpha)
    picture.parts = parts
    fields, branches, notes = _exif(seen.get(b"eXIf", b""))
    if b"iCCP" in seen:
        profile = _inflate(seen[b"iCCP"].partition(b"\0")[2][1:])
        if profile:
            fields[ICC] = raw_field(ICC, UNDEFINED, profile)
        else:
            notes.append("the colour profile is damaged and is not kept")
    if len(seen.get(b"pHYs", b"")) == 9:
        across, down, unit = struct.unpack(">IIB", seen[b"pHYs"])
        _resolution(
            fields, (across, 100 if unit == 1 else 1), (down, 100 if unit == 1 else 1), CENTIMETRE if unit == 1 else 1
        )
    if {b"tEXt", b"zTXt", b"iTXt"} & set(seen):
        notes.append("text chunks of the PNG are not kept")
    if ({b"gAMA", b"cHRM"} & set(seen)) and b"iCCP" not in seen and b"sRGB" not in seen:
        notes.append("gamma and primaries of the PNG are not kept")
    if colour == 3:
        notes.append("the palette is expanded: the file comes back in RGB")
    return picture.describe(fields, branches, notes)


def _inflate(data: bytes) -> bytes:
    """The profile in a zlib stream, b"" when it is damaged or too large."""
    stream = zlib.decompressobj()
    try:
        profile = stream.decompress(data, MAX_FIELD_BYTES)
    except zlib.error:
        return b""
    return profile if stream.eof else b""


def _open_jpeg(file: Readable) -> Picture:
    frame: bytes | None = None
    exif = xmp = comment = jfif = b""
    profiles: dict[int, bytes] = {}
    several = False
    at = 2
    for _ in range(MAX_CHUNKS):
        head = file.read_at(at, 4)
        if len(head) < 4 or head[0] != 0xFF:
            break
        marker, length = head[1], int.from_bytes(head[2:], "big")
        if marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD8:
            at += 1 if marker == 0xFF else 2
            continue
        if marker in (0xD9, 0xDA):
            break
        body = file.read_at(at + 4, max(length - 2, 0))
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if marker not in (0xC0, 0xC1, 0xC2, 0xC9, 0xCA) or len(body) < 6:
                raise SourceError(
                    f"JPEG of kind {marker - 0xC0} (lossless or hierarchical) is not read; convert it first"
                )
            frame = frame or body[:6]
        elif marker == 0xE0 and body[:5] == b"JFIF\0":
            jfif = body
        elif marker == 0xE1 and body[:6] == b"Exif\0\0":
            exif = exif or body[6:]
        elif marker == 0xE1 and body.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            xmp = body[29:]
        elif marker == 0xE2 and body[:12] == b"ICC_PROFILE\0" and len(body) > 14:
            profiles[body[12]] = body[14:]
        elif marker == 0xE2 and body[:4] == b"MPF\0":
            several = True
        elif marker == 0xFE:
            comment = body
        at += 2 + length
    if frame is None:
        raise SourceError("the JPEG has no frame header; the file is damaged")
    bits, height, width, samples = struct.unpack(">BHHB", frame)
    if bits != 8:
        raise SourceError(f"JPEG of {bits} bits is not read; convert it to a 16-bit .tif first")
    if samples not in (1, 3):
        raise SourceError(f"JPEG of {samples} components (CMYK or the like) is not read; convert it to RGB first")
    end = end_of(file)
    if end is None:
        raise SourceError("the JPEG has no end marker; the file is truncated, fetch it again")
    picture = Picture(file, "jpeg", height=height, width=width, samples=samples, dtype="uint8", alpha=False)
    picture.parts = [(0, end)]  # what follows belongs to others, or to nobody
    fields, branches, notes = _exif(exif)
    if profiles:
        fields[ICC] = raw_field(ICC, UNDEFINED, b"".join(profiles[number] for number in sorted(profiles)))
    if xmp:
        fields[XMP] = raw_field(XMP, BYTE, xmp)
    if comment and DESCRIPTION not in fields:
        fields[DESCRIPTION] = raw_field(DESCRIPTION, ASCII, comment.rstrip(b"\0") + b"\0")
    if len(jfif) >= 12 and RESOLUTION_X not in fields:
        unit, across, down = struct.unpack(">BHH", jfif[7:12])
        _resolution(fields, (across, 1), (down, 1), {1: INCH, 2: CENTIMETRE}.get(unit, 1))
    if several:
        notes.append("further pictures in the JPEG (previews, depth, second view) are not kept")
    return picture.describe(fields, branches, notes)


def _exif(data: bytes) -> tuple[dict[int, dict[str, Any]], dict[str, Any], list[str]]:
    """The fields of an EXIF block, its EXIF and GPS directories, and what is left behind."""
    if not data:
        return {}, {}, []
    try:
        main = read_ifds(MemoryFile(data))[0]
        fields, left = fields_to_json(main)
        branches, lost = branches_to_json(main)
    except SourceError:
        return {}, {}, ["the EXIF block is damaged and is not kept"]
    return {field["code"]: field for field in fields}, dict(branches), left + lost


def _resolution(fields: dict[int, dict[str, Any]], across: tuple[int, int], down: tuple[int, int], unit: int) -> None:
    """Resolution as TIFF states it: pixels per unit, a fraction each way."""
    if across[0] and down[0]:
        for code, kind, values in (
            (RESOLUTION_X, RATIONAL, list(across)),
            (RESOLUTION_Y, RATIONAL, list(down)),
            (RESOLUTION_UNIT, SHORT, [unit]),
        ):
            fields[code] = {"code": code, "kind": kind, "values": values}
