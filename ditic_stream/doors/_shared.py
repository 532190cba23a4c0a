"""Scenes that stay open between requests: a tile server opens its reader anew for each tile.

In: names of archives.  Out: open scenes, the same one for the same archive while it is the same; a few stay open when
nobody reads them.  Knows files only to see that one was replaced.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ditic_stream.scene import Scene, open_scene

KEPT = 4
"""Scenes that stay open though nobody reads them."""
Key = tuple[Any, ...]


class _Kept:
    """A scene, once it is open, and how many read it or wait for it."""

    def __init__(self) -> None:
        self.opening = threading.Lock()
        self.scene: Scene | None = None
        self.readers = 0


class Scenes:
    """Open scenes by name and options, and how many read each.  Safe in threads; one that opens slowly keeps only
    those waiting who want it too."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._lock = threading.Lock()
        self._open: OrderedDict[Key, _Kept] = OrderedDict()

    @contextmanager
    def borrow(self, uri: str, **options: Any) -> Iterator[Scene]:
        """An open scene for as long as the context lasts; raises what `ditic_stream.open` raises."""
        key = (uri, _state(uri), *sorted(options.items()))
        with self._lock:
            kept = self._open.setdefault(key, _Kept())
            self._open.move_to_end(key)
            kept.readers += 1
        try:
            with kept.opening:
                if kept.scene is None:
                    kept.scene = open_scene(uri, **options)
            yield kept.scene
        finally:
            with self._lock:
                kept.readers -= 1
            self._close_all_but(self._kept)

    def close(self) -> None:
        """Close those that nobody reads."""
        self._close_all_but(0)

    def _close_all_but(self, count: int) -> None:
        """Close what nobody reads, but for `count` of them that were read last; forget what did not open."""
        with self._lock:
            idle = [key for key, kept in self._open.items() if not kept.readers]
            failed = [key for key in idle if self._open[key].scene is None]
            idle = [key for key in idle if key not in failed]
            closing = [self._open.pop(key) for key in failed + idle[: max(len(idle) - count, 0)]]
        for kept in closing:
            if kept.scene is not None:
                kept.scene.close()


def _state(uri: str) -> tuple[int, int] | None:
    """What changes when a local archive is written again; None for other places."""
    try:
        found = os.stat(os.path.join(uri, "zarr.json") if os.path.isdir(uri) else uri)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


scenes = Scenes()
"""Those of this process."""
