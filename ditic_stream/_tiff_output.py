"""Write a scene as a tiled TIFF, in one pass and in bounded memory, with the fields its source had.

In: blocks of rows.  Out: classic TIFF or BigTIFF; tiles of 512 x 512 under Deflate with a predictor, since every reader
of TIFF opens that (Zstandard is smaller by a few percent and unknown to many); the mask as a picture of its own, one
bit a pixel, as GDAL reads it; bands that had pages of their own have them again.  Tiles lie in the file in row-major
order and the directories at the end.

Why not a library: strips are pushed here, tifffile pulls; and fields come back with their own types and bytes.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from xml.sax.saxutils import escape

import numpy as np
import numpy.typing as npt

from ditic_stream._output import Array, Output, checked
from ditic_stream._tiff_tags import BRANCHES, fields_from_json
from ditic_stream.errors import FormatError

ASCII, SHORT, LONG, LONG8 = 2, 3, 4, 16
DEFLATE, LEVEL = 8, 6
CLASSIC_LIMIT = 2**32 - 2**24
GDAL_METADATA = 42112
Entry = tuple[int, int, int, bytes]
"""code, type, count, little-endian bytes"""


@dataclass(frozen=True, slots=True)
class Tiles:
    """How one tile of a TIFF is made."""

    dtype: np.dtype[Any]
    height: int
    width: int

    def encode(self, block: Array, col: int) -> bytes:
        """One tile of (samples, rows, columns), padded at the edges, predicted and compressed."""
        import imagecodecs

        part = block[:, :, col : col + self.width]
        tile = np.zeros((self.height, self.width, len(part)), self.dtype)
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
        import imagecodecs

        part = rows[:, col : col + self.width]
        tile = np.zeros((self.height, self.width), np.uint8)
        tile[: part.shape[0], : part.shape[1]] = part != 0
        return bytes(imagecodecs.deflate_encode(np.packbits(tile, axis=1).tobytes(), LEVEL))


@dataclass(frozen=True, slots=True)
class TiffRows:
    """Codes blocks of rows as tiles, in the order in which they lie in the file."""

    tiles: Tiles
    width: int
    planar: bool

    def code(
        self, row: int, pixels: Array, mask: npt.NDArray[np.uint8] | None, each: Callable[..., Iterable[bytes]] = map
    ) -> list[bytes]:
        """each: a `map`, of threads perhaps."""
        out: list[bytes] = []
        cols = range(0, self.width, self.tiles.width)
        for first in range(0, pixels.shape[1], self.tiles.height):
            part = pixels[:, first : first + self.tiles.height]
            for block in part[:, None] if self.planar else part[None]:
                out += each(lambda col, block=block: self.tiles.encode(block, col), cols)
            if mask is not None:
                rows = mask[first : first + self.tiles.height]
                out += [self.tiles.encode_mask(rows, col) for col in cols]
        return out


class TiffOutput(Output):
    """A GeoTIFF, or a plain one.  `lossy`: the mark that says by what the pixels were coded."""

    def __init__(
        self,
        path: Path,
        *,
        height: int,
        width: int,
        samples: int,
        dtype: str,
        metadata: dict[str, Any],
        lossy: str | None,
        overwrite: bool,
    ) -> None:
        self._photometric, self._extras = colours_of(metadata, samples)
        self._pages = bool(checked(metadata, "pages", (bool,), False)) and samples > 1 and self._photometric in (0, 1)
        self._planar = (bool(checked(metadata, "planar", (bool,), False)) or self._pages) and samples > 1
        self._fields = fields_from_json(metadata.get("fields", []))
        self._branches = {
            code: fields_from_json(metadata[name], branch=True) for name, code in BRANCHES.items() if metadata.get(name)
        }
        if lossy:
            self._fields = mark(self._fields, lossy)
        self._file: IO[bytes] | None = None
        self._pool: ThreadPoolExecutor | None = None
        mask = bool(checked(metadata, "mask", (bool,), False))
        super().__init__(path, height=height, width=width, samples=samples, dtype=dtype, mask=mask, overwrite=overwrite)

    def _start(self) -> None:
        # Compressed bytes of one tile row are held; a small picture gets a small tile, a multiple of 16 as TIFF asks.
        side = -(-max(self.height, self.width) // 16) * 16
        self.tile_height, self.tile_width = min(self.block, side), min(512, side)
        down, across = -(-self.height // self.tile_height), -(-self.width // self.tile_width)
        planes = self.samples if self._planar else 1
        self._offsets = np.zeros((planes, down, across), np.uint64)
        self._counts = np.zeros((planes, down, across), np.uint64)
        self._mask_offsets, self._mask_counts = np.zeros((2, down, across), np.uint64)
        area = down * across * self.tile_height * self.tile_width
        fields = sum(
            len(data) for *_, data in [*self._fields, *(entry for part in self._branches.values() for entry in part)]
        )
        most = (
            area * self.samples * self.dtype.itemsize * 1.01 + area / 8 + 32 * planes * down * across + fields + 2**16
        )
        self.big = most > CLASSIC_LIMIT
        self._tiles = Tiles(self.dtype, self.tile_height, self.tile_width)
        self._file = open(self.partial, "wb")  # noqa: SIM115  closed by _finish or _abandon
        self._file.write(b"II+\0\x08\0\0\0" + bytes(8) if self.big else b"II*\0" + bytes(4))
        self._at = 16 if self.big else 8
        self._pool = ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1))  # the compressor frees the GIL

    def _block(self, row: int, pixels: Array, mask: npt.NDArray[np.uint8] | None) -> None:
        assert self._pool is not None
        self._put(row, pixels.shape[1], self.coder().code(row, pixels, mask, self._pool.map))

    def coder(self) -> TiffRows:
        return TiffRows(self._tiles, self.width, self._planar)

    def _put(self, row: int, count: int, pieces: list[bytes]) -> None:
        places = iter(self._append(data) for data in pieces)
        planes = self.samples if self._planar else 1
        for down in range(row // self.tile_height, -(-(row + count) // self.tile_height)):
            for plane in range(planes):
                for across in range(self._offsets.shape[2]):
                    self._offsets[plane, down, across], self._counts[plane, down, across] = next(places)
            if self.has_mask:
                for across in range(self._offsets.shape[2]):
                    self._mask_offsets[down, across], self._mask_counts[down, across] = next(places)

    def _append(self, data: bytes) -> tuple[int, int]:
        assert self._file is not None
        at = self._at
        self._file.write(data)
        self._at += len(data)
        return at, len(data)

    def _finish(self) -> None:
        assert self._file is not None
        if self._pages:
            places = zip(self._offsets, self._counts, strict=True)
            own, *further = (self._picture(1, offsets, counts) for offsets, counts in places)
        else:
            own, further = self._picture(self.samples, self._offsets, self._counts), []
            if self._extras:
                own.append(shorts(338, self._extras))
        for code, entries in self._branches.items():
            start, _ = self._directory(entries, None)
            own.append((code, LONG8, 1, struct.pack("<Q", start)) if self.big else longs(code, [start]))
        directories = [own + self._fields, *further]
        if self.has_mask:
            directories.append(self._structure(4, 1, 1, 4, self._mask_offsets, self._mask_counts))
        link = 8 if self.big else 4
        for entries in directories:
            _, link = self._directory(sorted(entries), link)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._release()

    def _picture(self, samples: int, offsets: Array, counts: Array) -> list[Entry]:
        """What says how the pixels of the scene are stored, or those of one of its bands."""
        form = {"u": 1, "i": 2, "f": 3}[self.dtype.kind]
        return [
            *self._structure(0, samples, self.dtype.itemsize * 8, self._photometric, offsets, counts),
            shorts(284, [2 if self._planar and samples > 1 else 1]), shorts(317, [3 if form == 3 else 2]),
            shorts(339, [form] * samples),
        ]  # fmt: skip

    def _structure(
        self, role: int, samples: int, bits: int, photometric: int, offsets: Array, counts: Array
    ) -> list[Entry]:
        return [
            (254, LONG, 1, struct.pack("<I", role)), longs(256, [self.width]), longs(257, [self.height]),
            shorts(258, [bits] * samples), shorts(259, [DEFLATE]), shorts(262, [photometric]), shorts(277, [samples]),
            shorts(322, [self.tile_width]), shorts(323, [self.tile_height]),
            self._numbers(324, offsets), self._numbers(325, counts),
        ]  # fmt: skip

    def _numbers(self, code: int, values: Array) -> Entry:
        return (code, LONG8 if self.big else LONG, values.size, values.astype("<u8" if self.big else "<u4").tobytes())

    def _directory(self, entries: list[Entry], link: int | None) -> tuple[int, int]:
        """Append one directory and the values that do not fit into it; set the `link` that leads to it, if any.

        Returns where it starts, and where its own link to the next one lies.
        """
        assert self._file is not None
        inline, wide = (8, "<Q") if self.big else (4, "<I")
        body = b""
        for code, kind, count, data in entries:
            if len(data) > inline:
                self._file.write(bytes(self._at % 2))
                self._at += self._at % 2
                at, _ = self._append(data)
                data = struct.pack(wide, at)
            body += struct.pack("<HHQ" if self.big else "<HHI", code, kind, count) + data.ljust(inline, b"\0")
        self._file.write(bytes(self._at % 2))
        self._at += self._at % 2
        start, _ = self._append(struct.pack("<Q" if self.big else "<H", len(entries)) + body)
        own, _ = self._append(bytes(inline))
        if link is not None:
            self._file.seek(link)
            self._file.write(struct.pack(wide, start))
            self._file.seek(self._at)
        return start, own

    def _abandon(self) -> None:
        self._release()

    def _release(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
        if self._file is not None:
            file, self._file = self._file, None
            file.close()


def shorts(code: int, values: list[int]) -> Entry:
    return (code, SHORT, len(values), struct.pack(f"<{len(values)}H", *values))


def longs(code: int, values: list[int]) -> Entry:
    return (code, LONG, len(values), struct.pack(f"<{len(values)}I", *values))


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
