"""The name of an output while it is written: one run at a time, and published whole or not at all.

In: the path of a file or folder to be.  Out: a temporary path beside it, which takes the name in the end.
Knows names and locks; knows no format.

    .NAME.lock   held by the run that writes        NAME.partial  --publish-->  NAME
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ditic_stream._lock import hold, release
from ditic_stream._paths import Place, Uri
from ditic_stream._store import PARTIAL, sync_folder
from ditic_stream.errors import ConfigError, DiticError, StorageError


class Claim:
    """The right to write `path`, from here to `publish` or `release`.

    partial: where to write; nothing is there at first.  overwrite: replace what is at `path`, in the end.
    holds: what an output that is a folder has in it, the first always; empty for a file.
    Raises ConfigError when `path` exists and `overwrite` is not set, or is not what this output would be; LockedError
    while another run writes it; StorageError when its folder refuses.
    """

    def __init__(self, path: Path, *, overwrite: bool, holds: tuple[str, ...] = ()) -> None:
        self.path, self.partial = path, path.with_name(path.name + PARTIAL)
        self._overwrite, self._holds = overwrite, holds
        self._lock_path = path.with_name(f".{path.name}.lock")
        with storing(path):
            self._check()
            self._lock: int | None = hold(self._lock_path, path)
            try:
                self._check()  # again: the run that held the lock before may just have published
                discard(self.partial)
            except BaseException:
                self.release()
                raise

    def publish(self) -> None:
        """Give what lies at `partial` its name.  ConfigError when it was taken meanwhile and `overwrite` is not set."""
        if self._overwrite:
            self._check()
            if self._holds:
                discard(self.path)
            os.replace(self.partial, self.path)
        else:
            try:
                _rename_to_new(self.partial, self.path)
            except FileExistsError as error:
                raise ConfigError(
                    f"{self.path} appeared while it was being written, and was left alone; "
                    "choose another name, or pass --overwrite"
                ) from error
        sync_folder(self.path.parent)
        self.release()

    def release(self) -> None:
        """Remove what was not published and let others write; a second call does nothing."""
        if self._lock is not None:
            handle, self._lock = self._lock, None
            with suppress(OSError):  # the error that led here is the one to tell
                discard(self.partial)
            release(self._lock_path, handle)

    def _check(self) -> None:
        """Refuse to take away what is no earlier output of this kind, such as a folder of files."""
        path = self.path
        if not os.path.lexists(path):
            return
        if not self._overwrite:
            raise ConfigError(f"{path} exists; choose another name, or pass --overwrite")
        if path.is_symlink() or not path.is_dir():
            if self._holds:
                raise ConfigError(f"{path} is not a folder, which this output is; choose another name")
            return
        if not self._holds:
            raise ConfigError(f"{path} is a folder; name a file")
        names = sorted(os.listdir(path))
        strangers = [name for name in names if name not in self._holds]
        if strangers or (names and self._holds[0] not in names):
            raise ConfigError(
                f"{path} {f'holds {strangers[0]}' if strangers else f'has no {self._holds[0]}'}: it is not an output "
                "of this program, and is not overwritten; choose another name"
            )


def keep_apart(target: Place, source: Place) -> None:
    """Raise ConfigError when writing `target` would change `source`, from which it is made."""
    if isinstance(target, Uri) or isinstance(source, Uri):
        if target == source:
            raise ConfigError(f"{target} is what it is to be made from; choose another name")
        return
    try:
        same = os.path.samefile(target, source)
    except OSError:
        same = False  # one of them is not there
    if same or (source.is_dir() and source.resolve() in target.resolve().parents):
        raise ConfigError(
            f"{target} {'is' if same else 'lies in'} {source}, which it is made from; choose another name"
        )


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Say in our words what the system says while `path` is written."""
    try:
        yield
    except DiticError:
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise StorageError(
            f"{path} cannot be written: {error.strerror or error}; "
            f"{'make room' if full else 'check the folder and its permissions'} and run the same command again"
        ) from error


def _rename_to_new(path: Path, name: Path) -> None:
    """Rename, but never onto a file: FileExistsError when `name` is there."""
    try:
        os.link(path, name, follow_symlinks=False)  # unlike a rename, it asks and takes in one step
    except FileExistsError:
        raise
    except OSError:  # a folder, or a file system without links
        if os.path.lexists(name):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(name)) from None
        path.rename(name)  # a folder is never renamed onto a file or onto a folder that holds something
    else:
        path.unlink()


def discard(path: Path) -> None:
    """Remove a file or a folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
