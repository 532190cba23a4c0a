"""How a picture lies in a TIFF that this library writes: compressed tiles, and the fields that describe them.

In: blocks of rows, offsets and lengths of tiles, the metadata of the source.  Out: the bytes of tiles; entries of a
directory.  Knows what a field holds; knows nothing of files, nor in which order anything lies in one.

Tiles are under Deflate with a predictor, since every reader of TIFF opens that (Zstandard is smaller by a few percent
and unknown to many); a mask is a picture of its own, one bit a pixel, as GDAL reads it.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import numpy.typing as npt

from ditic_stream._output import Array, checked
from ditic_stream.errors import FormatError

ASCII, SHORT, LONG, LONG8 = 2, 3, 4, 16
DEFLATE, LEVEL = 8, 1  # of decoded pixels, 5 % more bytes than 6 in a quarter of its time
GDAL_METADATA = 42112
OVERVIEW, MASK = 1, 4
"""What a picture is to the first one (NewSubfileType): bits."""
Entry = tuple[int, int, int, bytes]
"""code, type, count, little-endian bytes"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """The tiles of a picture.  planar: each sample lies in tiles of its own."""

    dtype: np.dtype[Any]
    tile_height: int
    tile_width: int
    photometric: int
    extras: list[int]
    planar: bool

    def encode(self, block: Array, col: int) -> bytes:
        """The tile at column `col` of (samples, rows, columns), padded at the edges, predicted and compressed."""
        import imagecodecs

        part = block[:, :, col : col + self.tile_width]
        tile = np.zeros((self.tile_height, self.tile_width, len(part)), self.dtype)
        tile[: part.shape[1], : part.shape[2]] = part.transpose(1, 2, 0)
        if self.dtype.kind == "f":
            data = imagecodecs.floatpred_encode(tile, axis=-2)
        else:
            whole = tile.view(f"u{self.dtype.itemsize}")
            data = np.empty_like(whole)
            data[:, 0] = whole[:, 0]
            np.subtract(whole[:, 1:], whole[:, :-1], out=data[:, 1:])
        return bytes(imagecodecs.deflate_encode(data.astype(data.dtype.newbyteorder("<"), copy=False).tobytes(), LEVEL))

    def encode_mask(self, rows: npt.NDArray[np.uint8], col: int) -> bytes:
        """The tile at column `col` of a mask (rows, columns): one bit a pixel, 1 where it is not 0."""
        import imagecodecs

        part = rows[:, col : col + self.tile_width]
        tile = np.zeros((self.tile_height, self.tile_width), np.uint8)
        tile[: part.shape[0], : part.shape[1]] = part != 0
        return bytes(imagecodecs.deflate_encode(np.packbits(tile, axis=1).tobytes(), LEVEL))

    def picture(
        self, samples: int, size: tuple[int, int], offsets: Array, counts: Array, *, big: bool, role: int = 0
    ) -> list[Entry]:
        """What says how the pixels of the scene are stored, or those of one of its bands.  size: height, width."""
        form = {"u": 1, "i": 2, "f": 3}[self.dtype.kind]
        return [
            *self._structure(role, samples, self.dtype.itemsize * 8, self.photometric, size, offsets, counts, big),
            shorts(284, [2 if self.planar and samples > 1 else 1]), shorts(317, [3 if form == 3 else 2]),
            *([shorts(338, self.extras)] if self.extras and samples > 1 else []),
            shorts(339, [form] * samples),
        ]  # fmt: skip

    def mask(self, size: tuple[int, int], offsets: Array, counts: Array, *, big: bool, role: int = MASK) -> list[Entry]:
        """The same of a mask."""
        return self._structure(role, 1, 1, 4, size, offsets, counts, big)

    def _structure(
        self, role: int, samples: int, bits: int, photometric: int, size: tuple[int, int],
        offsets: Array, counts: Array, big: bool,
    ) -> list[Entry]:  # fmt: skip
        return [
            (254, LONG, 1, struct.pack("<I", role)), longs(256, [size[1]]), longs(257, [size[0]]),
            shorts(258, [bits] * samples), shorts(259, [DEFLATE]), shorts(262, [photometric]), shorts(277, [samples]),
            shorts(322, [self.tile_width]), shorts(323, [self.tile_height]),
            places(324, offsets, big), places(325, counts, big),
        ]  # fmt: skip


def shorts(code: int, values: list[int]) -> Entry:
    return (code, SHORT, len(values), struct.pack(f"<{len(values)}H", *values))


def longs(code: int, values: list[int]) -> Entry:
    return (code, LONG, len(values), struct.pack(f"<{len(values)}I", *values))


def places(code: int, values: Array, big: bool) -> Entry:
    """Offsets or lengths; 8 bytes each in a BigTIFF."""
    return (code, LONG8 if big else LONG, values.size, values.astype("<u8" if big else "<u4").tobytes())


def colours_of(metadata: dict[str, Any], samples: int) -> tuple[int, list[int]]:
    """Photometric interpretation and the roles of the samples beyond its colours, made to agree with `samples`."""
    photometric = checked(metadata, "photometric", (int,), 1)
    stated = checked(metadata, "extrasamples", (list,), [])
    colours = {0: 1, 1: 1, 2: 3, 5: 4}.get(photometric, 0)
    if not colours or not all(type(role) is int and 0 <= role < 65536 for role in stated):
        raise FormatError(f"photometric {photometric!r:.20} with extra samples {stated!r:.40}; distrust the archive")
    if samples < colours:
        photometric, colours = 1, 1
    extra = samples - colours
    roles = [0] * max(0, extra - len(stated)) + stated[max(0, len(stated) - extra) :] if extra else []
    alpha = checked(metadata, "alpha", (int, type(None)), None)
    if alpha is not None and (not colours <= alpha < samples or roles[alpha - colours] not in (1, 2)):
        raise FormatError(f"alpha at sample {alpha} of {samples}, roles {roles!r:.40}; distrust the archive")
    return photometric, roles


def mark(fields: list[Entry], lossy: str) -> list[Entry]:
    """The fields with an item DITIC_LOSSY in the GDAL metadata; an older mark stays in front of the new one."""
    text = (
        next((data for code, _, _, data in fields if code == GDAL_METADATA), b"")
        .split(b"\0")[0]
        .decode("utf-8", "replace")
    )
    old = re.search(r'<Item name="DITIC_LOSSY">([^<]{0,4096})</Item>\s*', text)
    words = escape(escape(lossy))  # GDAL escapes twice and expects as much
    if old:
        text, words = text.replace(old.group(0), ""), f"{old.group(1)} | {words}"
    item = f'  <Item name="DITIC_LOSSY">{words}</Item>\n'
    if "</GDALMetadata>" in text:
        head, tail = text.rsplit("</GDALMetadata>", 1)
        text = head + item + "</GDALMetadata>" + tail
    else:
        text = f"<GDALMetadata>\n{item}</GDALMetadata>\n"
    data = text.encode() + b"\0"
    return [field for field in fields if field[0] != GDAL_METADATA] + [(GDAL_METADATA, ASCII, len(data), data)]
