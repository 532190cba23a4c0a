"""Scratch bytes without a name in any folder: nothing of them stays behind, whatever dies.

In: arrays at offsets, or the shape of an array.  Out: the same, or the array.  Shared: a parent and its workers see it.
Scratch: an array that lies on disk where memory would not hold it.  Knows files; knows nothing of what bytes mean.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditic_stream.errors import StorageError


def _unnamed(folder: Path | None) -> int:
    """The descriptor of a file in `folder` (None: where temporary files go) that has no name any more."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.dup(file.fileno())
    except OSError as error:
        raise StorageError(f"no scratch file can be made in {_place(folder)}: {_reason(error)}") from error


def _place(folder: Path | None) -> str:
    return str(folder or tempfile.gettempdir())


def _reason(error: OSError) -> str:
    return f"{error.strerror}; make room there and run the same command again"


class Scratch:
    """An array for the caller alone, of undefined content: in memory up to `limit` bytes, in a file beyond.

    A scene a million pixels wide has rows that do not fit otherwise.  `release` lets the pages go that were touched.
    """

    def __init__(self, shape: tuple[int, ...], dtype: Any, *, limit: int, folder: Path | None) -> None:
        kind = np.dtype(dtype)
        size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        self._map: mmap.mmap | None = None
        self.array: NDArray[Any]
        if size <= limit:
            self.array = np.empty(shape, kind)
            return
        fd = _unnamed(folder)
        try:
            # Reserved, not sparse: a write to a mapped page that the disk has no room for is a signal, not an error.
            os.posix_fallocate(fd, 0, size)
            self._map = mmap.mmap(fd, size)
        except OSError as error:
            raise StorageError(f"no room for {size} bytes of scratch in {_place(folder)}: {_reason(error)}") from error
        finally:
            os.close(fd)
        self.array = np.frombuffer(self._map, kind).reshape(shape)

    def release(self) -> None:
        """Take the array out of this process's memory; its content stays in the file."""
        if self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)


class Shared:
    """Bytes that a parent and the workers of one executor see.

    folder: where they lie on disk; None keeps them in memory where the system can.  It travels to workers as the
    number of its descriptor.
    """

    def __init__(self, *, folder: Path | None = None) -> None:
        if folder is None and hasattr(os, "memfd_create"):
            self.fd, self._place = os.memfd_create("ditic-stream"), "memory"
        else:
            self.fd, self._place = _unnamed(folder), _place(folder)
        self._map: mmap.mmap | None = None

    def __getstate__(self) -> tuple[int, str]:
        return self.fd, self._place

    def __setstate__(self, state: tuple[int, str]) -> None:
        self.fd, self._place = state
        self._map = None

    def resize(self, size: int) -> None:
        """Set the bytes; StorageError when there is no room."""
        try:
            os.ftruncate(self.fd, size)
        except OSError as error:
            raise StorageError(
                f"no room for {size} bytes of scratch in {self._place} ({error.strerror}); use fewer workers"
            ) from error

    def close(self) -> None:
        os.close(self.fd)

    def write(self, offset: int, array: NDArray[Any]) -> None:
        """Put the bytes of a contiguous array at `offset`; StorageError when there is no room."""
        rest = array.reshape(-1).view(np.uint8).data
        while rest:
            try:
                done = os.pwrite(self.fd, rest, offset)
            except OSError as error:
                raise StorageError(f"a scratch file in {self._place} cannot be written: {_reason(error)}") from error
            rest, offset = rest[done:], offset + done

    def read_into(self, offset: int, array: NDArray[Any]) -> None:
        """Fill a contiguous array from `offset`."""
        rest = array.reshape(-1).view(np.uint8).data
        while rest:
            done = os.preadv(self.fd, [rest], offset)
            if not done:
                raise StorageError(
                    f"a scratch file in {self._place} ends at byte {offset}, {len(rest)} bytes too early"
                )
            rest, offset = rest[done:], offset + done

    def floats(self, offset: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """A float32 array that lies in the shared bytes themselves, from `offset` (in bytes)."""
        if self._map is None:
            self._map = mmap.mmap(self.fd, 0)
        count = int(np.prod(shape, dtype=np.int64))
        return np.frombuffer(self._map, np.float32, count, offset).reshape(shape)
