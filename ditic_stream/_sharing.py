"""Work that several threads may want: done once while it is wanted, kept while there is room.

In: a key, and how to begin the work of it.  Out: a Future of the value, the same one for all who ask meanwhile.
Knows threads and bytes; knows nothing of tiles or pixels.

    kept = SharedWork(limit=2**26, size=lambda value: value.nbytes)
    value = kept.get(key, lambda future: pool.submit(...)).result()

Values that are finished count against the limit, and those used longest ago go first.  A value that goes stays with
those who hold its Future.  Work that failed is not kept: the next to ask tries again.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from functools import partial
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class SharedWork(Generic[K, V]):
    """A cache of Futures, safe in any number of threads."""

    def __init__(self, *, limit: int, size: Callable[[V], int]) -> None:
        """limit: bytes of finished values kept.  size: the bytes of one."""
        self._limit, self._size = limit, size
        self._lock = threading.Lock()
        self._kept: OrderedDict[K, Future[V]] = OrderedDict()
        self._sizes: dict[K, int] = {}
        self._bytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the finished values that are kept."""
        return self._bytes

    def has(self, key: K) -> bool:
        """True when `get` would begin nothing."""
        with self._lock:
            return key in self._kept

    def get(self, key: K, begin: Callable[[Future[V]], object]) -> Future[V]:
        """The Future of `key`; `begin` is called with a new one when there is none, and sees to it that it ends."""
        with self._lock:
            future = self._kept.get(key)
            if future is not None:
                self._kept.move_to_end(key)
                return future
            future = self._kept[key] = Future()
        future.add_done_callback(partial(self._finished, key))
        try:
            begin(future)
        except BaseException as error:
            if not future.done():
                future.set_exception(error)
            raise
        return future

    def clear(self) -> None:
        """Forget everything; work under way ends for those who wait for it."""
        with self._lock:
            self._kept.clear()
            self._sizes.clear()
            self._bytes = 0

    def _finished(self, key: K, future: Future[V]) -> None:
        failed = future.cancelled() or future.exception() is not None
        with self._lock:
            if self._kept.get(key) is not future:
                return
            if failed:
                del self._kept[key]
                return
            self._sizes[key] = self._size(future.result())
            self._bytes += self._sizes[key]
            if self._bytes > self._limit:
                self._let_go()

    def _let_go(self) -> None:
        for key in [key for key in self._kept if key in self._sizes]:
            if self._bytes <= self._limit:
                return
            del self._kept[key]
            self._bytes -= self._sizes.pop(key)
