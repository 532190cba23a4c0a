"""What every output shares: strips come in from top to bottom, whole rows of tiles go out, all or nothing is kept.

In: (Window, pixels) strips of full width, of any height.  Out: blocks of `block` rows, under a temporary name that
becomes the final one when the last row has come.  Knows no format.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from ditic_stream._claim import Claim, storing
from ditic_stream.errors import ConfigError, FormatError, WindowError
from ditic_stream.geometry import Window

Array = npt.NDArray[Any]
MAX_BLOCK_BYTES = 2**28
"""Most bytes of rows gathered before they are written; wider scenes get lower tiles."""


class RowsCoder(Protocol):
    """Makes of a block of rows what `Output.take` puts into the output: anywhere, in any order.  Picklable."""

    def code(self, row: int, pixels: Array, mask: npt.NDArray[np.uint8] | None) -> list[bytes]:
        """row: a multiple of the output's `block`.  pixels: (samples, rows, columns), a whole block or the last one."""
        ...


@dataclass(frozen=True, slots=True)
class PlainRows:
    """For formats that only one writer can make: the rows as they are."""

    def code(self, row: int, pixels: Array, mask: npt.NDArray[np.uint8] | None) -> list[bytes]:
        return [pixels.tobytes(), *([] if mask is None else [mask.tobytes()])]


class Output(ABC):
    """A scene that is being written; a context manager.  Leaving it in order publishes it, an error removes it."""

    holds: ClassVar[tuple[str, ...]] = ()
    """What a format that is a folder has in it, the first always; nothing else is overwritten."""

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
        """samples: bands, and alpha if there is one.  metadata: what the reader found.  lossy: the mark that says by
        what the pixels were coded.  ConfigError when the format cannot hold the scene or `path` exists; FormatError for
        metadata that no reader wrote."""
        self.path, self.height, self.width, self.samples = path, height, width, samples
        self.dtype, self.metadata, self.lossy = np.dtype(dtype), metadata, lossy
        self.has_mask = bool(checked(metadata, "mask", (bool,), False))
        self._prepare()
        row_bytes = width * (samples * self.dtype.itemsize + self.has_mask)
        self.block = next((rows for rows in (512, 256, 128, 64, 32) if rows * row_bytes <= MAX_BLOCK_BYTES), 16)
        self._rows = 0
        self._held = 0
        self._buffer = np.zeros((samples, min(self.block, height), width), self.dtype)
        self._mask_buffer = np.zeros((self._buffer.shape[1:]) if self.has_mask else (0, 0), np.uint8)
        self._claim = Claim(path, overwrite=overwrite, holds=self.holds)
        self.partial = self._claim.partial
        self._open = True
        with self._storing():
            self._start()

    # What a format does, in this order.
    @abstractmethod
    def _prepare(self) -> None:
        """Look whether the format holds the scene, and read from the metadata what it writes; touch no file."""

    @abstractmethod
    def _start(self) -> None:
        """Open the temporary file and write what comes first."""

    @abstractmethod
    def _block(self, row: int, pixels: Array, mask: npt.NDArray[np.uint8] | None) -> None:
        """Write the rows from `row` on: pixels (samples, rows, columns), mask (rows, columns)."""

    @abstractmethod
    def _finish(self) -> None:
        """Write what comes last, flush to the disk and close."""

    @abstractmethod
    def _abandon(self) -> None:
        """Close without writing more."""

    def write(self, window: Window, pixels: Array, mask: npt.NDArray[np.uint8] | None = None) -> None:
        """Append a strip.

        window: full width, starting where the last strip ended.  pixels: (samples, rows, columns), alpha at its place.
        mask: (rows, columns), 0 where pixels are not valid; needed exactly when the metadata says that there is one.
        Raises WindowError for a strip out of order; StorageError when the disk is full.
        """
        if (window.row, window.col, window.width) != (self._rows, 0, self.width) or window.row_end > self.height:
            raise WindowError(
                f"strip of rows {window.row}..{window.row_end}, columns {window.col}..{window.col_end}; the next one "
                f"starts at row {self._rows} and takes all {self.width} columns of {self.height} rows"
            )
        if pixels.shape != (self.samples, *window.shape) or pixels.dtype != self.dtype:
            raise ConfigError(
                f"strip of {pixels.dtype} {pixels.shape}; it should be {self.dtype} {(self.samples, *window.shape)}"
            )
        if (mask is not None) != self.has_mask or (mask is not None and mask.shape != window.shape):
            raise ConfigError(
                f"a mask {'is missing' if mask is None else 'does not fit'}; the scene has mask: {self.has_mask}"
            )
        with self._storing():
            taken = 0
            while taken < window.height:
                count = min(self._buffer.shape[1] - self._held, window.height - taken)
                self._buffer[:, self._held : self._held + count] = pixels[:, taken : taken + count]
                if mask is not None:
                    self._mask_buffer[self._held : self._held + count] = mask[taken : taken + count]
                taken, self._held, self._rows = taken + count, self._held + count, self._rows + count
                if self._held == self._buffer.shape[1] or self._rows == self.height:
                    self._flush()

    def coder(self) -> RowsCoder:
        """What codes blocks of rows for `take` in other processes, on other machines that see the same files."""
        return PlainRows()

    def take(self, pieces: list[bytes]) -> None:
        """Append the next block of rows, as `coder` made it.  Not to be mixed with `write`."""
        count = min(self.block, self.height - self._rows)
        with self._storing():
            self._put(self._rows, count, pieces)
        self._rows += count

    def _put(self, row: int, count: int, pieces: list[bytes]) -> None:
        pixels = np.frombuffer(pieces[0], self.dtype).reshape(self.samples, count, self.width)
        mask = np.frombuffer(pieces[1], np.uint8).reshape(count, self.width) if self.has_mask else None
        self._block(row, pixels, mask)

    def _flush(self) -> None:
        mask = self._mask_buffer[: self._held] if self.has_mask else None
        self._block(self._rows - self._held, self._buffer[:, : self._held], mask)
        self._held = 0

    def close(self) -> None:
        """Publish the file under its name; ConfigError when rows are missing."""
        if not self._open:
            return
        if self._rows != self.height:
            self.abandon()
            raise ConfigError(f"{self._rows} of {self.height} rows were written; the output was removed")
        with self._storing():
            self._finish()
            self._claim.publish()
            self._open = False

    def abandon(self) -> None:
        """Remove what was written; a second call does nothing."""
        if self._open:
            self._open = False
            try:
                self._abandon()
            finally:
                self._claim.release()

    def __enter__(self) -> Output:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    @contextmanager
    def _storing(self) -> Iterator[None]:
        """Remove the temporary file on any error, and say in our words what the system says."""
        try:
            with storing(self.path):
                yield
        except BaseException:
            self.abandon()
            raise


def checked(metadata: dict[str, Any], key: str, kinds: tuple[type, ...], default: Any) -> Any:
    """An entry of the metadata, of one of `kinds`; FormatError otherwise, since manifests may be hostile."""
    value = metadata.get(key, default)
    if type(value) not in kinds:
        raise FormatError(f"metadata entry {key} is {value!r:.40}; distrust the archive")
    return value
