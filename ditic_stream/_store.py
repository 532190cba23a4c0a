"""Where the objects of an archive lie: a folder, or one zip file; and how an object gets there whole or not at all.

In: names such as `records/c/0/3/0`.  Out: bytes, by range.  Knows files; knows nothing of shards or manifests.
The other Store, `ZipStore`, is in _zip.py.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from ditic_stream.errors import DiticError, FormatError, SourceError, StorageError

PARTIAL = ".partial"
"""End of the name of whatever is not finished; swept by the next run, seen by no reader."""
LOCK = ".lock"
GROUP = "zarr.json"
"""Name of the metadata of the archive and, in their folders, of its arrays."""
OPENING_BYTES = 2**20
"""What is asked for of a manifest that is far away, before its size is known: more than any has."""
OBJECT = re.compile(
    r"((records|mask|preview)/)?zarr\.json|(records|mask|preview)/c/\d{1,8}/\d{1,8}/\d{1,8}|records/sizes/\d{1,8}/\d{1,8}"
)
"""What the name of every object of an archive looks like; other files in the folder are left alone."""
LEFTOVER = re.compile(rf"({OBJECT.pattern})\.\d+\.partial|(records|mask|preview)\.partial")
"""What killed runs leave: an object that was being written, by a process; an array that was being replaced."""
OWN = re.compile(
    r"\.lock|((records|mask|preview)(\.partial)?/)?zarr\.json(\.\d+\.partial)?"
    r"|(records|mask|preview)(\.partial)?(/c(/\d{1,8}(/\d{1,8}(/\d{1,8}(\.\d+\.partial)?)?)?)?)?"
    r"|records(\.partial)?/sizes(/\d{1,8}(/\d{1,8}(\.\d+\.partial)?)?)?"
)
"""Whatever a run may have made in the folder of an archive, folders too; the rest is a user's."""

NamedRange = tuple[str, int, int | None]
"""Name of an object, offset (below zero: counted from the end) and length (None: to the end), bytes."""


class Store(Protocol):
    """Read access to named objects."""

    def size(self, name: str) -> int | None:
        """Bytes of an object; None when there is none of that name."""

    def get(self, name: str, start: int, length: int) -> bytes:
        """`length` bytes from `start`; FormatError when the object is shorter, KeyError when there is none."""

    def fetch(self, ranges: Iterable[NamedRange], most: int | None = None) -> None:
        """Say what will be read next: a store that is far away brings it near, in one round of requests.

        most: of at most so many requests, unless what then would have to be read along is too much.
        What is not there, or is shorter, is left to `get` to name.
        """

    def names(self) -> Iterator[str]:
        """The names of all objects of an archive, sorted; what else lies there is not looked at."""

    def promise(self, names: Iterable[str]) -> None:
        """Say which objects a whole archive has, for a store that cannot list its own."""

    def close(self) -> None: ...


class FolderStore:
    """The files below a folder.  Keeps nothing open, so that any number of shards costs no handles."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def size(self, name: str) -> int | None:
        try:
            found = os.stat(self._path(name))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise SourceError(f"cannot look at {name} in {self.root}: {error.strerror}") from error
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def get(self, name: str, start: int, length: int) -> bytes:
        try:
            # Without O_NONBLOCK a named pipe put in place of an object would hold the reader for ever.
            handle = os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            raise KeyError(name) from None
        except OSError as error:
            raise SourceError(f"cannot open {name} in {self.root}: {error.strerror}") from error
        with os.fdopen(handle, "rb", buffering=0) as file:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode) or start + length > found.st_size:
                raise FormatError(f"{name} has {found.st_size} bytes, {start + length} are needed: it is cut short")
            try:
                file.seek(start)
                return _read(file, length, name)
            except OSError as error:
                raise SourceError(f"cannot read {name} in {self.root}: {error.strerror}") from error

    def fetch(self, ranges: Iterable[NamedRange], most: int | None = None) -> None:
        pass  # it is near

    def names(self) -> Iterator[str]:
        found = []
        for folder, _, files in os.walk(self.root):
            inner = Path(folder).relative_to(self.root)
            found += [(inner / file).as_posix() for file in files]
        return iter(sorted(name for name in found if OBJECT.fullmatch(name)))

    def promise(self, names: Iterable[str]) -> None:
        pass

    def close(self) -> None:
        return None

    def _path(self, name: str) -> str:
        return os.path.join(self.root, name)


def _read(file: object, length: int, name: str) -> bytes:
    """Exactly `length` bytes; a raw read may bring fewer at a time."""
    pieces = []
    left = length
    while left:
        piece = file.read(left)  # type: ignore[attr-defined]
        if not piece:
            raise FormatError(f"{name} ends {left} bytes early")
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def write_object(root: Path, name: str, pieces: Iterable[bytes]) -> int:
    """Write an object whole or not at all: temporary name, flush to disk, rename.  Returns its bytes.

    Raises StorageError when there is no room or no permission; then nothing is left under either name.
    """
    target = root / name
    # Process numbers repeat on other machines, where the same shard may be written at the same time.
    once = os.getpid() * 10**10 + int.from_bytes(os.urandom(4), "big")
    temporary = target.with_name(f"{target.name}.{once}{PARTIAL}")
    written = 0
    try:
        fresh = _make_folders(target.parent)
        try:
            with open(temporary, "wb") as file:
                for piece in pieces:
                    written += file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        for folder in (target.parent, *fresh):
            sync_folder(folder)
    except DiticError:
        raise  # of what the pieces are read from
    except OSError as error:
        raise StorageError(
            f"cannot write {name} in {root} ({error.strerror}); make room or fix the permissions, "
            "then run the same command again"
        ) from error
    return written


def _make_folders(folder: Path) -> list[Path]:
    """Make `folder` and those above it; the ones that got a new name in them."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for one in reversed(missing):
        one.mkdir(exist_ok=True)  # another worker may come first
    return [one.parent for one in missing]


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` last: a rename is on disk only once its folder is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
