"""Where an archive is written: a folder on this machine, or objects in a bucket; each object whole or not at all.

In: names and bytes.  Out: objects.  Knows locks, leftovers and what may be replaced; knows nothing of shards.

    LocalFolder    temporary name, flush, rename; a lock that dies with its holder; leftovers of killed runs are swept
    Objects        whole puts, no seeks, no copy here; no lock: runs of the same settings write the same bytes, and of
                   two that begin at once the second is refused by a put that needs a free name
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from ditic_stream import _lock
from ditic_stream._cloud import Bucket
from ditic_stream._paths import Place, Uri
from ditic_stream._remote import RemoteStore
from ditic_stream._store import GROUP, LEFTOVER, LOCK, OBJECT, OWN, PARTIAL, FolderStore, Store, write_object
from ditic_stream.errors import ConfigError, LockedError, StorageError

KINDS = ("records", "mask", "preview")
"""Folders of an archive; the records come first, since a shard without them is not there."""


class Destination(Protocol):
    """A place for one archive."""

    def begin(self) -> None:
        """Refuse a place where anything lies that no archive has; make it, and keep other runs out where that can be.

        Raises ConfigError, LockedError or StorageError.
        """

    def release(self) -> None:
        """Let other runs in; a second call does nothing."""

    def store(self) -> Store:
        """What is there now, for reading."""

    def create(self, name: str, data: bytes) -> None:
        """Write an object that was not there.  LockedError when another run was faster."""

    def write(self, name: str, pieces: Iterable[bytes]) -> int:
        """Write an object, whole or not at all.  Returns its bytes; StorageError when it cannot be written."""

    def set_aside(self) -> None:
        """Take an archive out of the way so that, killed at any point, none of its shards passes for a new one."""

    def sweep(self) -> None:
        """Remove what killed runs left under temporary names."""

    def remove(self) -> None:
        """Remove the whole archive.  ConfigError when anything lies there that no archive has."""


def destination_of(place: Place) -> Destination:
    """ConfigError for a place that is read only."""
    return Objects(place) if isinstance(place, Uri) else LocalFolder(place)


class LocalFolder:
    """A folder on this machine."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock: int | None = None

    def begin(self) -> None:
        _check_folder(self._path)
        self._lock = _make_and_hold(self._path)

    def release(self) -> None:
        if self._lock is not None:
            _lock.release(self._path / LOCK, self._lock)
            self._lock = None

    def store(self) -> Store:
        return FolderStore(self._path)

    def create(self, name: str, data: bytes) -> None:
        self.write(name, [data])  # the lock keeps others out

    def write(self, name: str, pieces: Iterable[bytes]) -> int:
        return write_object(self._path, name, pieces)

    def set_aside(self) -> None:
        for name in KINDS:
            if (self._path / name).exists():
                _remove(self._path / f"{name}{PARTIAL}")
                (self._path / name).rename(self._path / f"{name}{PARTIAL}")

    def sweep(self) -> None:
        for folder, folders, files in os.walk(self._path):
            inner = Path(folder).relative_to(self._path)
            for name in [*files, *folders]:
                if LEFTOVER.fullmatch((inner / name).as_posix()):
                    _remove(Path(folder, name))

    def remove(self) -> None:
        _check_folder(self._path)
        _remove(self._path)


class Objects:
    """The objects below a URI of a store that can be written to."""

    def __init__(self, uri: Uri) -> None:
        if uri.is_web:
            raise ConfigError(f"{uri} can be read and not written; name a path, or an s3://, gs:// or az:// URI")
        self._uri = uri
        self._bucket = Bucket(uri)

    def begin(self) -> None:
        self._names()

    def release(self) -> None:
        pass

    def store(self) -> Store:
        found = RemoteStore(self._uri)
        found.names()  # by one listing sizes are known, and what is not there
        return found

    def create(self, name: str, data: bytes) -> None:
        if not self._bucket.put(name, data, fresh=True):
            raise LockedError(f"another run began {self._uri} just now; run the same command again")

    def write(self, name: str, pieces: Iterable[bytes]) -> int:
        data = b"".join(pieces)
        self._bucket.put(name, data)
        return len(data)

    def set_aside(self) -> None:
        names = self._names()
        for kind in KINDS:
            self._bucket.remove([name for name in names if name.startswith(f"{kind}/")])

    def sweep(self) -> None:
        pass  # a put that breaks off leaves nothing under any name

    def remove(self) -> None:
        self.set_aside()
        self._bucket.remove([GROUP])

    def _names(self) -> list[str]:
        names = sorted(self._bucket.sizes())
        for name in names:
            if not OBJECT.fullmatch(name):
                raise ConfigError(f"{self._uri} holds {name}, which no archive has; choose another name")
        return names


def _make_and_hold(path: Path) -> int:
    """Make the folder of an archive and hold its lock."""
    while True:
        try:
            path.mkdir(exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"cannot make the folder {path}: {error.strerror}; make room or fix the permissions, "
                "then run the same command again"
            ) from error
        try:
            return _lock.hold(path / LOCK, path)
        except StorageError:
            if path.is_dir():
                raise  # else the run that held it has packed it just now and taken it away


def _check_folder(path: Path) -> None:
    """Refuse to write where anything lies that no archive has: `overwrite` must not take a user's folder away."""
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path} is a file; choose another name")
    if not path.is_dir():
        if not path.parent.is_dir():
            raise ConfigError(f"{path.parent} is not a folder; make it first")
        return
    for folder, folders, files in os.walk(path):
        inner = Path(folder).relative_to(path)
        for name in sorted((inner / one).as_posix() for one in [*folders, *files]):
            if not OWN.fullmatch(name):
                raise ConfigError(f"{path} holds {name}, which no archive has; choose another name")


def _remove(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(
            f"cannot remove {path}: {error.strerror}; fix the permissions, then run the same command again"
        ) from error
