"""Find the end of a JPEG, and whether its codes fill its pixels: what libjpeg passes over in silence.

In: bytes of a JPEG, whole or an abbreviated one of a TIFF with its tables.  Out: nothing, or a SourceError.

libjpeg paints what is missing in one colour and goes on.  libjxl, which packs JPEG anew without loss, takes the codes
apart as strictly as a packer has to: it refuses a stream that ends too early.  One that goes on too long, since codes
that were destroyed stood for fewer pixels, still passes when its last bytes are cut off; a whole one never does.
What no one can see: damage that happens to code as many pixels, and whole scans cut off a progressive JPEG.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from ditic_stream._files import MemoryFile, Readable
from ditic_stream.errors import SourceError

MAX_SEGMENTS = 2**20
MAX_WALK_PIXELS = 2**25
"""Largest picture whose codes are taken apart: it takes about 35 bytes a pixel, 1.1 GB here."""
SPARE_BYTES = 64
"""Bytes that may follow the last pixel: some cameras pad."""
CHUNK = 2**20
MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""What ends coded data: neither an escaped 255 nor a restart."""
SOI, EOI, SOS, DHT, DRI = 0xD8, 0xD9, 0xDA, 0xC4, 0xDD
ONES = b"\xff\xdb\x00\x43\x00" + bytes([1] * 64)
"""A quantisation table in place of all others: codes do not depend on it, and libjxl refuses one that stands twice."""
FRAMES = (0xC0, 0xC1, 0xC2)
"""Frames that libjxl takes apart: baseline, extended and progressive under Huffman codes."""
FACTORS = {(0x11,), (0x11, 0x11, 0x11), (0x21, 0x11, 0x11), (0x12, 0x11, 0x11), (0x22, 0x11, 0x11)}
"""Subsampling that it takes apart."""


def end_of(file: Readable, at: int = 2) -> int | None:
    """The offset behind the end marker of the JPEG whose segments start at `at`, None where it has none.

    Thumbnails inside its metadata, and pictures behind it, are not taken for its end.
    """
    return next((end for marker, _, end in _segments(file, at) if marker == EOI), None)


def check_codes(data: bytes, tables: bytes | None = None) -> None:
    """Raise SourceError when the codes of a JPEG are too few or too many for its pixels.

    Kinds that cannot be taken apart (four components, arithmetic codes, very large ones) pass.
    """
    parts = _parts(tables or b"") + _parts(data)
    frame = next((body for marker, body in parts if marker in FRAMES), b"")
    kinds = {marker for marker, _ in parts}
    if len(frame) < 10 or not {DHT, SOS} <= kinds or parts[-1][0] != SOS:
        return
    bits, height, width, count = struct.unpack(">BHHB", frame[4:10])
    factors = tuple(frame[11 : 10 + 3 * count : 3])
    if bits != 8 or height * width > MAX_WALK_PIXELS or factors not in FACTORS:
        return
    names = {name: number for number, name in enumerate(frame[10 : 10 + 3 * count : 3], start=1)}
    *others, scan = (_plain(marker, body, names) for marker, body in parts)
    head, scan = b"\xff\xd8" + ONES + b"".join(others), scan.rstrip(b"\xff")
    coded = len(scan) - 2 - int.from_bytes(scan[2:4], "big")
    spare = coded > SPARE_BYTES and _fills(head + scan[:-SPARE_BYTES])
    if spare or not _fills(head + scan):
        raise SourceError(
            f"JPEG data is damaged: its codes {'go on after' if spare else 'end before'} its pixels do; "
            "fetch the file again"
        )


def _plain(marker: int, body: bytes, names: dict[int, int]) -> bytes:
    """A segment whose components are called 1, 2, 3 (libjxl takes R, G, B for colours) and share table 0."""
    out = bytearray(body)
    if marker in FRAMES:
        out[10::3] = bytes(names.get(name, name) for name in out[10::3])
        out[12::3] = bytes(len(out[12::3]))
    elif marker == SOS and len(out) > 4:
        stop = min(5 + 2 * out[4], len(out))
        out[5:stop:2] = bytes(names.get(name, name) for name in out[5:stop:2])
    return bytes(out)


def _fills(stream: bytes) -> bool:
    import imagecodecs

    try:
        imagecodecs.jpegxl_encode_jpeg(stream + b"\xff\xd9", usecontainer=False, numthreads=1)
    except imagecodecs.JpegxlError:
        return False
    return True


def _parts(data: bytes) -> list[tuple[int, bytes]]:
    """What a decoder needs of a JPEG, by marker: codes, frame and scans, without metadata and the end."""
    return [
        (marker, data[start:end])
        for marker, start, end in _segments(MemoryFile(data), 2)
        if marker in (*FRAMES, DHT, DRI, SOS)
    ]


def _segments(file: Readable, at: int) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of the segments up to the end marker; a scan ends where its coded data do."""
    for _ in range(MAX_SEGMENTS):
        start = _marker_from(file, at)
        if start is None:
            return
        head = file.read_at(start, 4)
        marker = head[1]
        if marker == EOI:
            yield marker, start, start + 2
            return
        at = start + 2
        if marker == 1 or marker == SOI:
            continue
        at += max(2, int.from_bytes(head[2:], "big"))
        if marker == SOS:
            found = _marker_from(file, at)
            at = file.size if found is None else found
        yield marker, start, at


def _marker_from(file: Readable, at: int) -> int | None:
    """Where the next marker starts."""
    size = 4
    while chunk := file.read_at(at, size):
        found = MARKER.search(chunk)
        if found:
            return at + found.start()
        if len(chunk) < size:
            return None
        at, size = at + size - 1, CHUNK
    return None
