"""Files read at offsets: on this machine, or bytes in memory.  (What lies elsewhere is in _remote.py.)

In: a path, or bytes.  Out: bytes at an offset, without a shared position, so that threads do not disturb one another.
Knows nothing of what is in them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from ditic_stream.errors import SourceError

Range = tuple[int, int]
"""Offset and length, bytes."""


class Readable(Protocol):
    """What is read from: bytes at an offset, fewer only where the file ends."""

    size: int
    far: bool
    """True when it pays to say first what will be read."""

    def read_at(self, offset: int, size: int) -> bytes: ...

    def fetch(self, *groups: Iterable[Range], most: int | None = None) -> None:
        """Say what will be read next: a file that is far away brings it near, all at once.

        Within a group ranges that lie close together may be read as one.  What lies beyond the end is left out.
        most: requests, as for a Store.
        """

    def close(self) -> None: ...


class MemoryFile:
    """Bytes in memory, read like a file: the EXIF block of a picture."""

    far = False

    def __init__(self, data: bytes) -> None:
        self._data, self.size = data, len(data)

    def read_at(self, offset: int, size: int) -> bytes:
        return self._data[offset : offset + size]

    def fetch(self, *groups: Iterable[Range], most: int | None = None) -> None:
        pass

    def close(self) -> None:
        pass


class LocalFile:
    """A local file.  SourceError when there is none, or it cannot be opened or read."""

    far = False

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise SourceError(f"{path} {'is not a file' if path.exists() else 'does not exist'}; name a file")
        try:
            self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise SourceError(f"{path} cannot be opened: {error.strerror}") from error
        self.size = os.fstat(self._fd).st_size

    def read_at(self, offset: int, size: int) -> bytes:
        parts: list[bytes] = []
        size = min(size, self.size - offset)  # room is made for what is asked, and what is asked may be hostile
        while size > 0 and offset >= 0:
            try:
                part = os.pread(self._fd, size, offset)
            except OSError as error:
                raise SourceError(f"reading {size} bytes at {offset} failed: {error.strerror}") from error
            if not part:
                break
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def fetch(self, *groups: Iterable[Range], most: int | None = None) -> None:
        pass

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
