"""The source of an archive by levels, to be seen beside what was decoded.

In: an open source.  Out: its pixels and what is valid, by levels.  Knows files through `reader`; nothing of archives.

Levels are means over boxes of the valid pixels.  Those up to FINE are read from the file, a few blocks at a time; the
others come from an overview that `prepare` makes once, in strips: of a gigapixel it takes a minute and some megabytes.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ditic_stream.errors import DiticError
from ditic_stream.geometry import Window
from ditic_stream.reader import Source

FINE = 3
"""The last level read from the file itself."""
STRIP_ROWS = 8
"""Rows of the overview made at once."""
LAST_SIDE = 64
"""There are levels until the longest side is no longer than this."""

Array = npt.NDArray[Any]
_log = logging.getLogger(__name__)


class Original:
    """A source by levels (display.Levels).  For any thread: one reads at a time."""

    def __init__(self, source: Source) -> None:
        self._source, self._lock = source, threading.Lock()
        self.alpha = None if source.alpha is None else source.alpha.index
        self.shape = (source.height, source.width, source.bands + (source.alpha is not None))
        self.dtype: np.dtype[Any] = np.dtype(source.dtype)
        sizes = [(source.width, source.height)]
        while max(sizes[-1]) > LAST_SIDE:
            sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
        self.level_dimensions: tuple[tuple[int, int], ...] = tuple(sizes)
        self.name = source.name
        self._overview: tuple[Array, Array] | None = None
        self._closed = False
        self.version = secrets.token_hex(8)
        """Another each time: a file of the same name may be another by the next time it is opened."""
        self.error: Exception | None = None
        """What ended `prepare`: the overview is never going to be made."""
        self.done = 0.0
        """Share of the overview that is made; 1 when all levels can be read at once."""
        self._last: tuple[Window, int, tuple[Array, npt.NDArray[np.uint8]]] | None = None

    def read(self, window: Window, *, level: int, bands: Sequence[int] | None = None) -> Array:
        """(samples, rows, columns) of `window`, in pixels of `level`; bands: places of those wanted."""
        with self._lock:
            samples = self._means(window, level)[0]
        return samples if bands is None else samples[list(bands)]

    def valid(self, window: Window, *, level: int) -> npt.NDArray[np.uint8]:
        """(rows, columns), 255 where a pixel of the box is valid in a band, else 0."""
        with self._lock:
            return self._means(window, level)[1]

    def prepare(self) -> None:
        """Read the whole source once, for the levels that are made of much of it.  Other reads go on meanwhile.

        Raises nothing: what went wrong is kept in `error`.
        """
        try:
            self._prepare()
        except Exception as error:
            self.error = error
            _log.error("the overview of the original cannot be made: %s", error)

    def _prepare(self) -> None:
        if len(self.level_dimensions) > FINE + 1 and self._overview is None:
            width, height = self.level_dimensions[FINE + 1]
            samples = np.empty((self.shape[2], height, width), self.dtype)
            valid = np.empty((height, width), np.uint8)
            for row in range(0, height, STRIP_ROWS):
                rows = slice(row, min(row + STRIP_ROWS, height))
                window = Window(row=row, col=0, height=rows.stop - row, width=width)
                with self._lock:
                    if self._closed:
                        return
                    samples[:, rows], valid[rows] = self._from_file(window, FINE + 1)
                self.done = min(rows.stop / height, 0.99)
            self._overview = samples, valid
        self.done = 1.0

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._source.close()

    def _means(self, window: Window, level: int) -> tuple[Array, npt.NDArray[np.uint8]]:
        """Pixels and validity; the last answer is kept, for one is asked for after the other."""
        if self._last is None or self._last[:2] != (window, level):
            width, height = self.level_dimensions[level]
            self._last = window, level, self._made(window.within(height, width), level)
        return self._last[2]

    def _made(self, window: Window, level: int) -> tuple[Array, npt.NDArray[np.uint8]]:
        if level <= FINE:
            return self._from_file(window, level)
        if self._overview is None:
            raise BusyError(f"the overview of {self.name} is being made, {self.done:.0%} of it; ask again later")
        samples, valid = self._overview
        factor = 2 ** (level - FINE - 1)
        rows = slice(window.row * factor, window.row_end * factor)
        cols = slice(window.col * factor, window.col_end * factor)
        return box_means(samples[:, rows, cols], valid[rows, cols], factor)

    def _from_file(self, window: Window, level: int) -> tuple[Array, npt.NDArray[np.uint8]]:
        factor = 2**level
        row, col = window.row * factor, window.col * factor
        full = Window(
            row=row,
            col=col,
            height=min(window.row_end * factor, self.shape[0]) - row,
            width=min(window.col_end * factor, self.shape[1]) - col,
        )
        samples = self._source.read(full)
        valid = np.full(full.shape, 255, np.uint8)
        for band, nodata in zip(samples, self._source.nodata or (), strict=False):
            if nodata is not None:
                valid[np.isnan(band) if nodata != nodata else band == nodata] = 0
        if self.dtype.kind == "f":
            valid[~np.isfinite(samples).all(axis=0)] = 0
        mask = self._source.read_mask(full)
        if mask is not None:
            valid &= mask
        alpha = self._source.read_alpha(full)
        if alpha is not None:
            assert self.alpha is not None
            valid[alpha == 0] = 0
            samples = np.insert(samples, self.alpha, alpha, axis=0)
        return box_means(samples, valid, factor)


class BusyError(DiticError):
    """What is asked for is still being made."""

    kind = "busy"


def box_means(samples: Array, valid: npt.NDArray[np.uint8], factor: int) -> tuple[Array, npt.NDArray[np.uint8]]:
    """Means of the valid pixels of boxes of `factor` a side; boxes at the right and lower end may be cut.

    samples (samples, rows, columns); valid (rows, columns), 0 or more.  A box without a valid pixel is 0, and not
    valid.
    """
    if factor == 1:
        return samples, valid
    height, width = valid.shape
    rows, cols = np.arange(0, height, factor), np.arange(0, width, factor)
    seen = valid > 0
    counts = np.add.reduceat(np.add.reduceat(seen, rows, axis=0, dtype=np.int64), cols, axis=1)
    out = np.zeros((len(samples), len(rows), len(cols)), samples.dtype)
    for band, target in zip(samples, out, strict=True):
        sums = np.add.reduceat(np.where(seen, band, 0), rows, axis=0, dtype=np.float64)
        sums = np.add.reduceat(sums, cols, axis=1)
        means = sums / np.maximum(counts, 1)
        target[...] = np.rint(means) if samples.dtype.kind in "ui" else means
    return out, np.where(counts > 0, np.uint8(255), np.uint8(0))
