"""Write a scene as PNG in one pass: 8 or 16 bits, gray or RGB, with or without alpha.

In: blocks of rows.  Out: one zlib stream cut into IDAT chunks, every row under the Paeth filter (PNG specification,
section 9.4).  A mask becomes alpha.  A colour profile goes along; coordinates have no place in a PNG.
"""

from __future__ import annotations

import os
import struct
import zlib
from typing import IO

import numpy as np
import numpy.typing as npt

from ditic_stream._output import Array, Output, checked
from ditic_stream._tiff_tags import fields_from_json
from ditic_stream.errors import ConfigError

ICC = 34675
FILTER_ROWS = 64
"""Rows filtered at a time: intermediate sums take four times the bytes of the rows."""


class PngOutput(Output):
    """A PNG.  The lossy mark is a text chunk."""

    def _prepare(self) -> None:
        alpha = checked(self.metadata, "alpha", (int, type(None)), None)
        bands = self.samples - (alpha is not None)
        if self.dtype.name not in ("uint8", "uint16") or bands not in (1, 3) or self.metadata.get("photometric") == 5:
            raise ConfigError(f"PNG does not hold {bands} bands of {self.dtype}; name a .tif instead")
        if alpha not in (None, self.samples - 1):
            raise ConfigError("PNG holds alpha in the last band only; name a .tif instead")
        if self.height >= 2**31 or self.width >= 2**31:
            raise ConfigError(f"PNG does not hold {self.height} x {self.width} pixels; name a .tif instead")
        self._add_mask = self.has_mask and alpha is None
        self._channels = self.samples + self._add_mask
        self._invert = self.metadata.get("photometric") == 0
        self._profile = next(
            (data for code, _, _, data in fields_from_json(self.metadata.get("fields", [])) if code == ICC), b""
        )
        self._file: IO[bytes] | None = None

    def _start(self) -> None:
        self._file = open(self.partial, "wb")  # noqa: SIM115  closed by _finish or _abandon
        self._file.write(b"\x89PNG\r\n\x1a\n")
        colour = {1: 0, 2: 4, 3: 2, 4: 6}[self._channels]
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", self.width, self.height, self.dtype.itemsize * 8, colour, 0, 0, 0))
        if self._profile:
            self._chunk(b"iCCP", b"profile\0\0" + zlib.compress(self._profile))
        if self.lossy:
            self._chunk(b"iTXt", b"DITIC_LOSSY\0\0\0\0\0" + self.lossy.encode())
        self._stream = zlib.compressobj(6)
        self._above = np.zeros(self.width * self._channels * self.dtype.itemsize, np.uint8)

    def _block(self, row: int, pixels: Array, mask: npt.NDArray[np.uint8] | None) -> None:
        for first in range(0, pixels.shape[1], FILTER_ROWS):
            part = pixels[:, first : first + FILTER_ROWS]
            if self._invert:
                part = np.concatenate([np.iinfo(self.dtype).max - part[:1], part[1:]])
            if self._add_mask and mask is not None:
                levels = np.where(mask[None, first : first + FILTER_ROWS] != 0, np.iinfo(self.dtype).max, 0)
                part = np.concatenate([part, levels.astype(self.dtype)])
            self._rows_out(np.ascontiguousarray(part.transpose(1, 2, 0)).astype(self.dtype.newbyteorder(">")))

    def _rows_out(self, rows: Array) -> None:
        step = self._channels * self.dtype.itemsize
        here = rows.reshape(len(rows), -1).view(np.uint8).reshape(len(rows), -1)
        up = np.concatenate([self._above[None], here[:-1]]).astype(np.int16)
        left = np.pad(here, ((0, 0), (step, 0)))[:, :-step].astype(np.int16)
        corner = np.pad(up, ((0, 0), (step, 0)))[:, :-step]
        guess = left + up - corner
        far_left, far_up, far_corner = abs(guess - left), abs(guess - up), abs(guess - corner)
        paeth = np.where(
            (far_left <= far_up) & (far_left <= far_corner), left, np.where(far_up <= far_corner, up, corner)
        )
        out = np.empty((len(here), here.shape[1] + 1), np.uint8)
        out[:, 0] = 4
        out[:, 1:] = here - paeth.astype(np.uint8)
        self._above = here[-1].copy()
        self._idat(self._stream.compress(out.tobytes()))

    def _idat(self, data: bytes) -> None:
        for at in range(0, len(data), 2**20):
            self._chunk(b"IDAT", data[at : at + 2**20])

    def _chunk(self, kind: bytes, data: bytes) -> None:
        assert self._file is not None
        self._file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))

    def _finish(self) -> None:
        assert self._file is not None
        self._idat(self._stream.flush())
        self._chunk(b"IEND", b"")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._abandon()

    def _abandon(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            file.close()
