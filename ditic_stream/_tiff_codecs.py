"""Decode one strip or tile.

In: the stored bytes and the Layout.  Out: an array (rows, columns, samples) in native byte order, of a size the Layout
bounds.  What a coded picture says of its own size is read and checked before a decoder may allocate for it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ditic_stream._jpeg import check_codes
from ditic_stream._tiff_layout import CODECS, PICTURE_CODECS, Layout
from ditic_stream.errors import SourceError

Array = npt.NDArray[Any]
MAX_SCANS = 500
"""Most scans of a JPEG, as in the tests of libjpeg-turbo itself; progressive ones have about ten."""
SLACK = 2**16
"""Bytes a stream may decode to beyond its segment: some writers code rows that lie below the picture."""


def decode_segment(layout: Layout, data: bytes) -> Array:
    """The pixels of one segment; rows or columns beyond the picture's edge may be absent.

    Raises SourceError when the bytes are damaged or hold another picture than the layout says.
    """
    try:
        if layout.compression in PICTURE_CODECS:
            return _decode_picture(layout, data)
        return _decode_bytes(layout, data)
    except SourceError:
        raise
    except MemoryError as error:
        raise SourceError(
            "a strip or tile needs more memory than there is; cut the scene into smaller tiles"
        ) from error
    except Exception as error:  # imagecodecs raises a class of its own for each codec, and ValueError, RuntimeError
        name = CODECS[layout.compression]
        raise SourceError(
            f"{name} data is damaged ({type(error).__name__}: {error!s:.120}); fetch the file again"
        ) from error


def _decode_bytes(layout: Layout, data: bytes) -> Array:
    import imagecodecs

    if layout.lsb_first:
        data = bytes(imagecodecs.bitorder_decode(data))
    size = layout.segment_height * layout.row_bytes
    unpack: dict[int, Callable[..., Any]] = {
        5: imagecodecs.lzw_decode, 8: imagecodecs.zlib_decode, 32946: imagecodecs.zlib_decode,
        32773: imagecodecs.packbits_decode, 34925: imagecodecs.lzma_decode,
        34926: imagecodecs.zstd_decode, 50000: imagecodecs.zstd_decode,
    }  # fmt: skip
    if layout.compression != 1:
        data = unpack[layout.compression](data, out=size + SLACK)
    rows = min(len(data) // layout.row_bytes, layout.segment_height)
    if rows < 1:
        raise SourceError(f"a segment decodes to {len(data)} bytes, less than one row; the file is damaged")
    shape = (rows, layout.segment_width, layout.segment_samples)
    dtype = np.dtype(layout.dtype)
    body = memoryview(data)[: rows * layout.row_bytes]
    if layout.bits % 8:
        runlen = layout.segment_width * layout.segment_samples
        unpacked: Array = imagecodecs.packints_decode(bytes(body), dtype, layout.bits, runlen=runlen)
        return unpacked.reshape(shape)
    if layout.predictor == 3:
        # The predictor spreads the bytes of a row over planes, most significant first: it has no byte order.
        stored = np.frombuffer(body, dtype).reshape(shape)
        restored: Array = imagecodecs.floatpred_decode(stored, axis=-2)
        return restored
    pixels = np.frombuffer(body, dtype.newbyteorder(layout.ifd.order)).reshape(shape).astype(dtype)
    if layout.predictor == 2:
        whole = pixels.view(f"u{dtype.itemsize}")
        np.add.accumulate(whole, axis=1, dtype=whole.dtype, out=whole)
    return pixels


def _decode_picture(layout: Layout, data: bytes) -> Array:
    import imagecodecs

    name = CODECS[layout.compression]
    if name == "LERC":
        return _decode_lerc(layout, data)
    if "JPEG" in name and name not in ("JPEG 2000", "JPEG XL"):
        # Tables may stand in the segment itself, so a frame header is all that is looked for here.
        _check_size(layout, jpeg_size(data))
        if data.count(b"\xff\xda") > MAX_SCANS:
            raise SourceError(f"a segment holds a JPEG of more than {MAX_SCANS} scans; it is made to waste time")
        check_codes(data, layout.tables)
        stored, wanted = _jpeg_colours(layout, data)
        pixels: Array = imagecodecs.jpeg_decode(data, tables=layout.tables, colorspace=stored, outcolorspace=wanted)
    elif name == "JPEG 2000":
        _check_size(layout, jpeg2000_size(data))
        pixels = imagecodecs.jpeg2k_decode(data)
        if layout.compression == 33003 and layout.photometric == 6 and pixels.ndim == 3:
            raise SourceError("YCbCr in JPEG 2000 is not read; convert to RGB first")
    elif name == "WebP":
        _check_size(layout, (*webp_size(data), layout.segment_samples))
        pixels = imagecodecs.webp_decode(data, hasalpha=layout.segment_samples == 4)
    else:
        _check_size(layout, (*jpegxl_size(data), layout.segment_samples))
        pixels = imagecodecs.jpegxl_decode(data)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] != layout.segment_samples or pixels.dtype != np.dtype(layout.dtype):
        raise SourceError(
            f"{name} data holds {pixels.shape[2:]} samples of {pixels.dtype}, the file says {layout.segment_samples} "
            f"of {layout.dtype}; it is damaged"
        )
    return pixels


def _decode_lerc(layout: Layout, data: bytes) -> Array:
    import imagecodecs

    parameters = layout.ifd.ints(50674)
    second = parameters[1] if len(parameters) > 1 else 0
    if second:
        size = layout.segment_height * layout.segment_width * layout.segment_samples
        room = size * np.dtype(layout.dtype).itemsize * 2 + SLACK
        data = bytes({1: imagecodecs.zlib_decode, 2: imagecodecs.zstd_decode}[second](data, out=room))
    height, width = lerc_size(data)
    _check_size(layout, (height, width, layout.segment_samples))
    shape = (height, width) if layout.segment_samples == 1 else (height, width, layout.segment_samples)
    # `out` is compared with the size in the blob before anything is decoded.
    pixels, valid = imagecodecs.lerc_decode(data, masks=True, out=np.zeros(shape, layout.dtype))
    if valid is not None and np.issubdtype(pixels.dtype, np.floating):
        valid = np.asarray(valid, bool)
        pixels[np.broadcast_to(valid.reshape(valid.shape + (1,) * (pixels.ndim - valid.ndim)), pixels.shape) == 0] = (
            np.nan
        )
    whole: Array = pixels.reshape(height, width, layout.segment_samples)
    return whole


def _check_size(layout: Layout, size: tuple[int, int, int]) -> None:
    """Refuse a coded picture larger than its segment or with other samples, before it is decoded."""
    height, width, samples = size
    if not (1 <= height <= layout.segment_height and 1 <= width <= layout.segment_width):
        raise SourceError(
            f"a segment of {layout.segment_height} x {layout.segment_width} pixels holds a "
            f"{CODECS[layout.compression]} picture of {height} x {width}; the file is damaged"
        )
    if samples != layout.segment_samples:
        raise SourceError(
            f"a segment holds {samples} samples where the file says {layout.segment_samples}; it is damaged"
        )


def _jpeg_colours(layout: Layout, data: bytes) -> tuple[int | None, int | None]:
    """What the components are and what they become, by TIFF's numbers; None leaves it to libjpeg.

    YCbCr becomes RGB; stored RGB stays, unless a JFIF marker says that it is YCbCr.
    """
    if layout.planar or layout.segment_samples == 1:
        return None, 1
    if layout.photometric == 6:
        return None, 2
    if layout.photometric == 2 and layout.segment_samples == 3:
        return None if data[6:10] == b"JFIF" else 2, 2
    if layout.photometric == 5:
        return None, 4
    return None, None


def jpeg_size(data: bytes) -> tuple[int, int, int]:
    """(height, width, components) of the first frame header; SourceError when there is none."""
    at = 0
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            break
        marker = data[at + 1]
        at += 2
        if marker == 0xFF:
            at -= 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if at + 8 > len(data):
                break
            height, width, components = struct.unpack(">HHB", data[at + 3 : at + 8])
            return height, width, components
        elif marker in (0xD9, 0xDA):
            break
        elif not (marker == 0x01 or 0xD0 <= marker <= 0xD8):
            at += struct.unpack(">H", data[at : at + 2])[0]
    raise SourceError("JPEG data without a frame header; the file is damaged")


def jpeg2000_size(data: bytes) -> tuple[int, int, int]:
    """(height, width, components) from the SIZ segment, of a bare code stream or inside JP2 boxes."""
    at = 0
    if data[:4] != b"\xff\x4f\xff\x51":
        while at + 8 <= len(data):
            length, kind = struct.unpack(">I4s", data[at : at + 8])
            head = 8
            if length == 1 and at + 16 <= len(data):
                length, head = struct.unpack(">Q", data[at + 8 : at + 16])[0], 16
            if kind == b"jp2c":
                at += head
                break
            at += length if length >= head else len(data)
    siz = data[at : at + 42]
    if len(siz) < 42 or siz[:4] != b"\xff\x4f\xff\x51":
        raise SourceError("JPEG 2000 data without a size marker; the file is damaged")
    right, lower, left, upper = struct.unpack(">4I", siz[8:24])
    return lower - upper, right - left, struct.unpack(">H", siz[40:42])[0]


def webp_size(data: bytes) -> tuple[int, int]:
    """(height, width) of a WebP picture."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) >= 30:
        if data[12:16] == b"VP8X":
            return 1 + int.from_bytes(data[27:30], "little"), 1 + int.from_bytes(data[24:27], "little")
        if data[12:16] == b"VP8L":
            packed = int.from_bytes(data[21:25], "little")
            return 1 + (packed >> 14 & 0x3FFF), 1 + (packed & 0x3FFF)
        if data[12:16] == b"VP8 ":
            return int.from_bytes(data[28:30], "little") & 0x3FFF, int.from_bytes(data[26:28], "little") & 0x3FFF
    raise SourceError("WebP data without a header; the file is damaged")


def lerc_size(data: bytes) -> tuple[int, int]:
    """(height, width) of a LERC blob of the second kind."""
    if data[:6] == b"Lerc2 " and len(data) >= 22:
        version = int(struct.unpack("<i", data[6:10])[0])
        height, width = struct.unpack("<ii", data[14:22] if version >= 3 else data[10:18])
        return height, width
    raise SourceError("LERC data without a header of its second version; convert it first")


def jpegxl_size(data: bytes) -> tuple[int, int]:
    """(height, width) from the size header of a JPEG XL code stream, bare or inside boxes."""
    if data[:2] != b"\xff\x0a":
        at = 0
        while at + 8 <= len(data):
            length, kind = struct.unpack(">I4s", data[at : at + 8])
            if kind in (b"jxlc", b"jxlp"):
                data = data[at + (8 if kind == b"jxlc" else 12) :]
                break
            at += length if length >= 8 else len(data)
    if data[:2] != b"\xff\x0a":
        raise SourceError("JPEG XL data without a code stream; the file is damaged")
    bits, used = int.from_bytes(data[2:14], "little"), 0

    def take(count: int) -> int:
        nonlocal used
        used += count
        return bits >> (used - count) & ((1 << count) - 1)

    def side(small: bool) -> int:
        return 8 * (take(5) + 1) if small else take((9, 13, 18, 30)[take(2)]) + 1

    small = take(1) == 1
    height = side(small)
    ratio = take(3)
    if ratio == 0:
        return height, side(small)
    above, below = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
    return height, height * above // below
