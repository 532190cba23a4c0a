"""The advisory lock of what is being written: one run at a time, and none kept out by a run that died.

In: the path of a lock file.  Out: an open handle that holds it.  Knows flock; knows nothing of archives or outputs.
"""

from __future__ import annotations

import os
from pathlib import Path

from ditic_stream.errors import LockedError, StorageError


def hold(path: Path, what: Path) -> int:
    """Hold the advisory lock on `path`; the kernel drops it when this process ends, however it ends.

    what: the archive or output it stands for.  LockedError while another run has it, StorageError when there is none.
    """
    import fcntl

    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StorageError(
                f"cannot lock {what}: {error.strerror}; fix the permissions or make room, then run again"
            ) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before unlinks the file: a lock on a file that has no name any more is worth nothing.
            if _is_same(handle, path):
                os.ftruncate(handle, 0)
                os.write(handle, b"%d\n" % os.getpid())
                return handle
        except BlockingIOError:
            holder = os.pread(handle, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(handle)
            raise LockedError(f"another run (process {holder}) writes {what}; wait for it, or stop it") from None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _is_same(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def release(path: Path, handle: int) -> None:
    """Let the lock go and take its file away: while it is held, so that a run that waits at the old file finds out."""
    path.unlink(missing_ok=True)
    os.close(handle)
