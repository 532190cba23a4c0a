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


class Scenes:
    """Open scenes by name and options, and how many read each.  Safe in threads."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._lock = threading.Lock()
        self._open: OrderedDict[Key, Scene] = OrderedDict()
        self._readers: dict[Key, int] = {}

    @contextmanager
    def borrow(self, uri: str, **options: Any) -> Iterator[Scene]:
        """An open scene for as long as the context lasts; raises what `ditic_stream.open` raises."""
        key = (uri, _state(uri), *sorted(options.items()))
        with self._lock:
            if key not in self._open:
                self._open[key] = open_scene(uri, **options)  # others wait: two would open it twice
            self._open.move_to_end(key)
            self._readers[key] = self._readers.get(key, 0) + 1
            scene = self._open[key]
        try:
            yield scene
        finally:
            with self._lock:
                self._readers[key] -= 1
                idle = [key for key in self._open if not self._readers.get(key)]
                closing = [self._open.pop(key) for key in idle[: max(len(idle) - self._kept, 0)]]
                self._readers = {key: count for key, count in self._readers.items() if count}
            for old in closing:
                old.close()

    def close(self) -> None:
        """Close those that nobody reads."""
        with self._lock:
            closing = [self._open.pop(key) for key in list(self._open) if not self._readers.get(key)]
        for scene in closing:
            scene.close()


def _state(uri: str) -> tuple[int, int] | None:
    """What changes when a local archive is written again; None for other places."""
    try:
        found = os.stat(os.path.join(uri, "zarr.json") if os.path.isdir(uri) else uri)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


scenes = Scenes()
"""Those of this process."""
