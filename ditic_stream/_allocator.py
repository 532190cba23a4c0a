"""What the C library's allocator of a worker keeps, and when it gives back.

Arrays of a tile's size come and go by the second.  glibc would map and unmap each of them, and a third of all processor
time went into clearing fresh pages.  Kept, they are there for the next tile; but small things that stay, such as the
records of a shard, settle among them, so what is free is given back once a shard is written.  On other C libraries
nothing here does anything.
"""

from __future__ import annotations

import contextlib
import ctypes

MMAP_THRESHOLD, TRIM_THRESHOLD = 2**26, 2**28
"""Bytes from which an array is mapped by itself; free bytes at the end of the heap from which they are given back."""
VARIABLES = {"MALLOC_MMAP_THRESHOLD_": str(MMAP_THRESHOLD), "MALLOC_TRIM_THRESHOLD_": str(TRIM_THRESHOLD)}
"""The same for a process that is still to start."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # numbers of mallopt(3)


def keep() -> None:
    """Set the thresholds of this process."""
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD)
        library.mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD)


def give_back() -> None:
    """Return to the system what is free."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
