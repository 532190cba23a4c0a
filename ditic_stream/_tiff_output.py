"""Write a scene as a tiled TIFF, in one pass and in bounded memory, with the fields its source had.

In: blocks of rows.  Out: classic TIFF or BigTIFF; tiles of 512 x 512 as `_tiff_form` makes them; bands that had pages
of their own have them again.  Tiles lie in the file in row-major order and the directories at the end.

Why not a library: strips are pushed here, tifffile pulls; and fields come back with their own types and bytes.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, ClassVar

import numpy as np
import numpy.typing as npt

from ditic_stream._output import Array, Output, checked
from ditic_stream._tiff_form import LONG8, Entry, Form, colours_of, longs, mark
from ditic_stream._tiff_tags import branches_from_json, fields_from_json

CLASSIC_LIMIT = 2**32 - 2**24


@dataclass(frozen=True, slots=True)
class TiffRows:
    """Codes blocks of rows as tiles, in the order in which they lie in the file."""

    form: Form
    width: int

    def code(
        self, row: int, pixels: Array, mask: npt.NDArray[np.uint8] | None, each: Callable[..., Iterable[bytes]] = map
    ) -> list[bytes]:
        """each: a `map`, of threads perhaps."""
        out: list[bytes] = []
        cols = range(0, self.width, self.form.tile_width)
        for first in range(0, pixels.shape[1], self.form.tile_height):
            part = pixels[:, first : first + self.form.tile_height]
            for block in part[:, None] if self.form.planar else part[None]:
                out += each(lambda col, block=block: self.form.encode(block, col), cols)
            if mask is not None:
                rows = mask[first : first + self.form.tile_height]
                out += [self.form.encode_mask(rows, col) for col in cols]
        return out


class TiffOutput(Output):
    """A GeoTIFF, or a plain one; a BigTIFF where the classic one might not do."""

    always_big: ClassVar = False
    """Whether it is a BigTIFF whatever the size."""

    def _prepare(self) -> None:
        self._photometric, self._extras = colours_of(self.metadata, self.samples)
        pages, planar = (bool(checked(self.metadata, key, (bool,), False)) for key in ("pages", "planar"))
        self._pages = pages and self.samples > 1 and self._photometric in (0, 1)
        self._planar = (planar or self._pages) and self.samples > 1
        self._fields = fields_from_json(self.metadata.get("fields", []))
        self._branches = branches_from_json(self.metadata)
        if self.lossy:
            self._fields = mark(self._fields, self.lossy)
        self._file: IO[bytes] | None = None
        self._pool: ThreadPoolExecutor | None = None

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
        self.big = self.always_big or most > CLASSIC_LIMIT
        self._form = Form(
            dtype=self.dtype, tile_height=self.tile_height, tile_width=self.tile_width,
            photometric=self._photometric, extras=self._extras, planar=self._planar,
        )  # fmt: skip
        self._file = open(self.partial, "wb")  # noqa: SIM115  closed by _finish or _abandon
        self._file.write(b"II+\0\x08\0\0\0" + bytes(8) if self.big else b"II*\0" + bytes(4))
        self._at = 16 if self.big else 8
        self._pool = ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1))  # the compressor frees the GIL

    def _block(self, row: int, pixels: Array, mask: npt.NDArray[np.uint8] | None) -> None:
        assert self._pool is not None
        self._put(row, pixels.shape[1], self.coder().code(row, pixels, mask, self._pool.map))

    def coder(self) -> TiffRows:
        return TiffRows(self._form, self.width)

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
        size = (self.height, self.width)
        if self._pages:
            places = zip(self._offsets, self._counts, strict=True)
            own, *further = (self._form.picture(1, size, *place, big=self.big) for place in places)
        else:
            own = self._form.picture(self.samples, size, self._offsets, self._counts, big=self.big)
            further = []
        for code, entries in self._branches.items():
            start, _ = self._directory(entries, None)
            own.append((code, LONG8, 1, struct.pack("<Q", start)) if self.big else longs(code, [start]))
        directories = [own + self._fields, *further]
        if self.has_mask:
            directories.append(self._form.mask(size, self._mask_offsets, self._mask_counts, big=self.big))
        link = 8 if self.big else 4
        for entries in directories:
            _, link = self._directory(sorted(entries), link)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._release()

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


class BigTiffOutput(TiffOutput):
    """A BigTIFF, whatever the size."""

    always_big = True
