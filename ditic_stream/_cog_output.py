"""Write a scene as a Cloud Optimized GeoTIFF: all directories first, then the tiles, smallest overview first.

In: blocks of rows.  Out: classic TIFF or BigTIFF in GDAL's COG layout, pixel-interleaved tiles of 512 x 512 (lower and
narrower for many bands), overviews by halves (`_halving`), the mask of each level with it, all fields of the source.

How long a tile is, nobody knows before it is compressed, and the directories that say so come first in the file.  So
the tiles of each level go to a file without a name beside the output, and are copied into place at the end: the disk
holds the compressed scene twice for that moment.  Layout: GDAL's documentation of its COG driver.

    header | ghost area | directories: scene, mask, overviews, their masks | tiles: last overview ... scene
    a tile: its length (4) | data | its last 4 bytes again, and likewise its mask's tile right behind it
"""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from ditic_stream._halving import NODATA_FIELD, Block, Pyramid, Sight, sizes
from ditic_stream._output import Array, Output
from ditic_stream._tiff_form import LONG8, MASK, OVERVIEW, Entry, Form, colours_of, longs, mark
from ditic_stream._tiff_geo import DESCRIPTION
from ditic_stream._tiff_tags import branches_from_json, fields_from_json

CLASSIC_LIMIT = 2**32 - 1
SIDE = 512
MAX_TILE_BYTES = 2**24
"""Most bytes of a tile before compression: many bands get smaller tiles."""


class _Level:
    """The tiles of one level: their bytes, and where in them each lies."""

    def __init__(self, size: tuple[int, int], form: Form, folder: Path) -> None:
        self.size = size
        shape = (-(-size[0] // form.tile_height), -(-size[1] // form.tile_width))
        self.offsets, self.counts = np.zeros((2, *shape), np.uint64)
        self.mask_offsets, self.mask_counts = np.zeros((2, *shape), np.uint64)
        self.file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  closed by _release
        self.bytes = 0

    def append(self, data: bytes) -> tuple[int, int]:
        """Where `data` lies, counted from the first byte of the level, and its length."""
        self.file.write(struct.pack("<I", len(data)) + data + data[-4:])
        at = self.bytes + 4
        self.bytes += len(data) + 8
        return at, len(data)


class CogOutput(Output):
    """A Cloud Optimized GeoTIFF."""

    def _prepare(self) -> None:
        self._photometric, self._extras = colours_of(self.metadata, self.samples)
        fields = fields_from_json(self.metadata.get("fields", []))
        if self.metadata.get("pages"):  # what describes the pages of channels is not true of bands in one picture
            fields = [field for field in fields if field[0] != DESCRIPTION]
        self._fields = fields
        self._branches = branches_from_json(self.metadata)
        self._sight = Sight.of(self.metadata, self.dtype)
        if self.lossy:
            self._fields = mark(self._fields, self.lossy)
        self._levels: list[_Level] = []
        self._pool: ThreadPoolExecutor | None = None
        self._file: IO[bytes] | None = None

    def _start(self) -> None:
        side = -(-max(self.height, self.width) // 16) * 16  # a small picture gets a small tile, as TIFF allows it
        pixel = self.samples * self.dtype.itemsize
        widest = next((side for side in (SIDE, 256, 128) if side * side * pixel <= MAX_TILE_BYTES), 64)
        levels = sizes(self.height, self.width, SIDE)
        self._form = Form(
            dtype=self.dtype, tile_height=min(self.block, side, widest), tile_width=min(side, _width(widest, levels)),
            photometric=self._photometric, extras=self._extras, planar=False,
        )  # fmt: skip
        self._pyramid = Pyramid(levels, self.samples, self.dtype, self._sight, self.block, self.has_mask)
        self._levels = [_Level(size, self._form, self.partial.parent) for size in levels]
        self._pool = ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1))  # the compressor frees the GIL
        self._file = open(self.partial, "wb")  # noqa: SIM115  closed by _release

    def _block(self, row: int, pixels: Array, mask: npt.NDArray[np.uint8] | None) -> None:
        for block in self._pyramid.put(row, pixels, mask):
            self._tiles(block)

    def _tiles(self, block: Block) -> None:
        assert self._pool is not None
        level, form = self._levels[block.level], self._form
        for first in range(0, block.pixels.shape[1], form.tile_height):
            part = block.pixels[:, first : first + form.tile_height]
            down = (block.row + first) // form.tile_height
            cols = range(0, level.size[1], form.tile_width)
            tiles = self._pool.map(lambda col, part=part: form.encode(part, col), cols)
            for across, (col, data) in enumerate(zip(cols, tiles, strict=True)):
                level.offsets[down, across], level.counts[down, across] = level.append(data)
                if block.mask is not None:
                    data = form.encode_mask(block.mask[first : first + form.tile_height], col)
                    level.mask_offsets[down, across], level.mask_counts[down, across] = level.append(data)

    def _finish(self) -> None:
        assert self._file is not None
        data = sum(level.bytes for level in self._levels)
        head = self._head(False)
        if len(head) + data > CLASSIC_LIMIT:
            head = self._head(True)
        self._file.write(head)
        for level in reversed(self._levels):
            level.file.seek(0)
            shutil.copyfileobj(level.file, self._file, 2**20)
            level.file.close()  # its room is free again before the next one is copied
        self._file.flush()
        os.fsync(self._file.fileno())
        self._release()

    def _head(self, big: bool) -> bytes:
        """What comes before the tiles; how long it is does not depend on where they lie, so it is made twice."""
        at = len(self._directories(big, [0] * len(self._levels)))
        starts = []
        for level in reversed(self._levels):
            starts.append(at)
            at += level.bytes
        return self._directories(big, starts[::-1])

    def _directories(self, big: bool, starts: list[int]) -> bytes:
        """Header, ghost area and directories; `starts`: where in the file the tiles of each level begin."""
        head = _Head(big, _ghost(self.has_mask))
        masks: list[list[Entry]] = []
        for number, (level, start) in enumerate(zip(self._levels, starts, strict=True)):
            role, shift = OVERVIEW if number else 0, np.uint64(start)
            own = self._form.picture(self.samples, level.size, level.offsets + shift, level.counts, big=big, role=role)
            fields = [field for field in self._fields if not number or field[0] == NODATA_FIELD]
            head.add(own + fields, {} if number else self._branches)
            if self.has_mask:
                offsets = level.mask_offsets + shift
                masks.append(self._form.mask(level.size, offsets, level.mask_counts, big=big, role=MASK | role))
            for mask in masks if not number or number == len(self._levels) - 1 else ():
                head.add(mask, {})
            if not number:
                masks = []
        return bytes(head.data)

    def _abandon(self) -> None:
        self._release()

    def _release(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
        for level in self._levels:
            level.file.close()
        if self._file is not None:
            file, self._file = self._file, None
            file.close()


def _width(widest: int, levels: list[tuple[int, int]]) -> int:
    """The width of tiles.  rio-cogeo takes tiles as wide as their picture for strips where that is over 512 high."""
    taken = {width for height, width in levels if height > SIDE}
    wanted: tuple[int, ...] = (widest, widest // 2, *range(widest - 16, 0, -16))
    return next(width for width in wanted if width not in taken)


class _Head:
    """The bytes before the tiles, directory by directory, each with its values right behind it."""

    def __init__(self, big: bool, ghost: bytes) -> None:
        self._inline, self._wide = (8, "<Q") if big else (4, "<I")
        self._big = big
        self._link = 8 if big else 4
        self.data = bytearray(b"II+\0\x08\0\0\0" + bytes(8) if big else b"II*\0" + bytes(4)) + ghost

    def add(self, entries: list[Entry], branches: dict[int, list[Entry]]) -> None:
        """Append a directory, and behind it those that `branches` lead to."""
        pointers = [(code, LONG8, 1, bytes(8)) if self._big else longs(code, [0]) for code in branches]
        directory = sorted(entries + pointers)
        values, self._link = self._place(directory, self._link)
        for code, inner in branches.items():
            self._place(inner, values[[entry[0] for entry in directory].index(code)])

    def _place(self, directory: list[Entry], link: int) -> tuple[list[int], int]:
        """Append a directory and point at it from `link`; where its entries' values lie, and its own link."""
        self.data += bytes(len(self.data) % 2)
        start = len(self.data)
        struct.pack_into(self._wide, self.data, link, start)
        head = struct.pack("<Q" if self._big else "<H", len(directory))
        entry = (4 + 2 * self._inline) if self._big else 12
        values = [start + len(head) + entry * number + entry - self._inline for number in range(len(directory))]
        own = start + len(head) + entry * len(directory)
        body, behind = bytearray(), bytearray()
        for code, kind, count, data in directory:
            if len(data) > self._inline:
                behind += bytes((own + self._inline + len(behind)) % 2)
                place = struct.pack(self._wide, own + self._inline + len(behind))
                behind += data
                data = place
            body += struct.pack("<HHQ" if self._big else "<HHI", code, kind, count) + data.ljust(self._inline, b"\0")
        self.data += head + body + bytes(self._inline) + behind
        return values, own


def _ghost(mask: bool) -> bytes:
    """What GDAL reads of the layout before anything else; the space is room for YES instead of NO."""
    text = "LAYOUT=IFDS_BEFORE_DATA\nBLOCK_ORDER=ROW_MAJOR\nBLOCK_LEADER=SIZE_AS_UINT4\n"
    text += "BLOCK_TRAILER=LAST_4_BYTES_REPEATED\nKNOWN_INCOMPATIBLE_EDITION=NO\n "
    text += "MASK_INTERLEAVED_WITH_IMAGERY=YES\n" if mask else ""
    return f"GDAL_STRUCTURAL_METADATA_SIZE={len(text):06d} bytes\n{text}".encode()
