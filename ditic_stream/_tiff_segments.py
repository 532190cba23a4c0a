"""Read windows of a TIFF picture, decoding only the strips or tiles a window touches.

In: a Layout and a window.  Out: pixels (samples, rows, columns).  Decoded segments are kept, most recent first, in a
bounded memory; compressed strips that fall out of it go to an unnamed temporary file, since the next tile of the same
row of tiles needs every one of them again.
"""

from __future__ import annotations

import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ditic_stream._tiff_codecs import decode_segment
from ditic_stream._tiff_layout import Layout
from ditic_stream.errors import SourceError
from ditic_stream.geometry import Window

Array = npt.NDArray[Any]
CACHE_BYTES = 2**26
"""Decoded segments held in memory by one reader, 64 MB; a window of 1024 in tiles of 512 takes a few."""
FETCHED_BYTES = 2**25
"""Most bytes of a file far away that are asked for at once."""
SPOOL_BYTES = 2**31
"""Decoded strips held in a temporary file, 2 GB: a row of tiles of 1024 pixels of the widest ordinary scene."""


class TiffRaster:
    """The pixels of one picture of a TIFF.  `fill`: the value of sparse segments (nodata, else 0)."""

    def __init__(self, layout: Layout, fill: float | int = 0) -> None:
        self.layout = layout
        self._fill = np.asarray(fill).astype(layout.dtype)
        self._cache = SegmentCache(spool=not layout.tiled and layout.compression != 1)
        self._lock = threading.Lock()

    def read(self, window: Window) -> Array:
        """Pixels (samples, rows, columns) of `window`; SourceError when a segment it touches is damaged."""
        layout = self.layout
        if layout.ifd.file.far:
            self._fetch(window)
        out = np.empty((layout.samples, window.height, window.width), layout.dtype)
        for plane in range(layout.samples if layout.planar else 1):
            target = out[plane : plane + 1] if layout.planar else out
            for row in range(window.row // layout.segment_height, -(-window.row_end // layout.segment_height)):
                for col in range(window.col // layout.segment_width, -(-window.col_end // layout.segment_width)):
                    self._paste(target, window, plane, row, col)
        return out

    def close(self) -> None:
        self._cache.close()

    def _fetch(self, window: Window) -> None:
        """Ask at once for what a window reads of the file, up to FETCHED_BYTES; the rest comes as it is read."""
        layout, wanted, left = self.layout, list[tuple[int, int]](), FETCHED_BYTES
        for plane in range(layout.samples if layout.planar else 1):
            for row in range(window.row // layout.segment_height, -(-window.row_end // layout.segment_height)):
                for col in range(window.col // layout.segment_width, -(-window.col_end // layout.segment_width)):
                    index = (plane * layout.down + row) * layout.across + col
                    count = int(layout.counts[index])
                    if not count:
                        continue
                    part = self._frame(row, col).intersect(window)
                    if layout.raw:
                        ranges = list(self._raw_ranges(index, part.slices(self._frame(row, col))))
                    else:
                        with self._lock:
                            held = self._cache.get(index) is not None
                        ranges = [] if held else [(int(layout.offsets[index]), count)]
                    left -= sum(size for _, size in ranges)
                    if left < 0:
                        break
                    wanted += ranges
        layout.ifd.file.fetch(wanted)

    def _frame(self, row: int, col: int) -> Window:
        """The pixels a segment owns, beyond the picture's edge too."""
        high, wide = self.layout.segment_height, self.layout.segment_width
        return Window(row=row * high, col=col * wide, height=high, width=wide)

    def _paste(self, target: Array, window: Window, plane: int, row: int, col: int) -> None:
        layout = self.layout
        frame = self._frame(row, col)
        part = frame.intersect(window)
        inside = target[(slice(None), *part.slices(window))]
        index = (plane * layout.down + row) * layout.across + col
        if not int(layout.counts[index]):
            inside[...] = self._fill
            return
        if layout.raw:
            self._read_raw(inside, index, part.slices(frame))
            return
        with self._lock:  # two threads that want one segment decode it once
            segment = self._cache.get(index)
            if segment is None:
                data = layout.ifd.file.read_at(int(layout.offsets[index]), int(layout.counts[index]))
                try:
                    segment = decode_segment(layout, data)
                except SourceError as error:
                    what = "tile" if layout.tiled else "strip"
                    raise SourceError(
                        f"{what} {index} at row {frame.row}, column {frame.col}: {error.message}"
                    ) from error
                self._cache.put(index, segment)
        rows, cols = part.slices(frame)
        if rows.stop > segment.shape[0] or cols.stop > segment.shape[1]:
            raise SourceError(
                f"a segment at row {frame.row}, column {frame.col} decodes to {segment.shape[0]} x {segment.shape[1]} "
                f"pixels, {rows.stop} x {cols.stop} are needed; the file is damaged"
            )
        inside[...] = segment[rows, cols].transpose(2, 0, 1)

    def _read_raw(self, target: Array, index: int, where: tuple[slice, slice]) -> None:
        """Copy a rectangle of an uncompressed segment from the file: whole rows at once, or row by row if narrow."""
        layout, (rows, cols) = self.layout, where
        dtype = np.dtype(layout.dtype).newbyteorder(layout.ifd.order)
        count, width = rows.stop - rows.start, cols.stop - cols.start
        ranges = self._raw_ranges(index, where)
        if width * 4 >= layout.segment_width:
            first = 0
            for offset, size in ranges:
                many = size // layout.row_bytes
                block = np.frombuffer(self._exactly(offset, size), dtype)
                block = block.reshape(many, layout.segment_width, layout.segment_samples)
                target[:, first : first + many] = block[:, cols].transpose(2, 0, 1)
                first += many
            return
        for row, (offset, size) in zip(range(count), ranges, strict=True):
            data = self._exactly(offset, size)
            target[:, row] = np.frombuffer(data, dtype).reshape(width, layout.segment_samples).T

    def _raw_ranges(self, index: int, where: tuple[slice, slice]) -> Iterator[tuple[int, int]]:
        """What a rectangle of an uncompressed segment takes of the file: whole rows, 16 MB at a time, or parts."""
        layout, (rows, cols) = self.layout, where
        pixel = layout.segment_samples * np.dtype(layout.dtype).itemsize
        count, width = rows.stop - rows.start, cols.stop - cols.start
        start = int(layout.offsets[index]) + rows.start * layout.row_bytes
        if width * 4 >= layout.segment_width:
            chunk = max(1, 2**24 // layout.row_bytes)
            for first in range(0, count, chunk):
                yield start + first * layout.row_bytes, min(chunk, count - first) * layout.row_bytes
        else:
            for row in range(count):
                yield start + row * layout.row_bytes + cols.start * pixel, width * pixel

    def _exactly(self, offset: int, size: int) -> bytes:
        data = self.layout.ifd.file.read_at(offset, size)
        if len(data) != size:
            raise SourceError(
                f"the file ends before byte {offset + size}; it is truncated, or was cut while being read"
            )
        return data


class SegmentCache:
    """Decoded segments by index, least recently used out first; with `spool`, out goes to a temporary file."""

    def __init__(self, *, spool: bool) -> None:
        self._held: OrderedDict[int, Array] = OrderedDict()
        self._bytes = 0
        self._spool = spool
        self._file: IO[bytes] | None = None
        self._slots: OrderedDict[int, tuple[int, tuple[int, ...], str]] = OrderedDict()
        self._slot_bytes = 0

    def get(self, index: int) -> Array | None:
        if index in self._held:
            self._held.move_to_end(index)
            return self._held[index]
        if self._file is not None and index in self._slots:
            slot, shape, dtype = self._slots[index]
            self._file.seek(slot * self._slot_bytes)
            segment = np.empty(shape, dtype)
            if self._read_into(segment):
                return segment
        return None

    def _read_into(self, segment: Array) -> bool:
        data = b"" if self._file is None else self._file.read(segment.nbytes)
        if len(data) != segment.nbytes:
            return False
        segment.reshape(-1).view(np.uint8)[:] = np.frombuffer(data, np.uint8)
        return True

    def put(self, index: int, segment: Array) -> None:
        self._held[index] = segment
        self._bytes += segment.nbytes
        while self._bytes > CACHE_BYTES and len(self._held) > 1:
            old, out = self._held.popitem(last=False)
            self._bytes -= out.nbytes
            if self._spool and old not in self._slots:
                self._to_file(old, out)

    def _to_file(self, index: int, segment: Array) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="ditic-")  # noqa: SIM115  closed with the reader
            self._slot_bytes = segment.nbytes
        if segment.nbytes > self._slot_bytes:
            return
        if (len(self._slots) + 1) * self._slot_bytes > SPOOL_BYTES and self._slots:
            slot = self._slots.popitem(last=False)[1][0]
        else:
            slot = len(self._slots)
        try:
            self._file.seek(slot * self._slot_bytes)
            self._file.write(np.ascontiguousarray(segment).data)
        except OSError:
            self._spool = False  # a full disk only costs time: strips are decoded again
            return
        self._slots[index] = (slot, segment.shape, segment.dtype.str)

    def close(self) -> None:
        self._held.clear()
        if self._file is not None:
            self._file.close()
            self._file = None
