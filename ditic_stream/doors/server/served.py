"""The archives that are served, each under a name: the only things a request can reach.

In: archives (paths or URIs), and sources to be seen beside them.  Out: a dictionary of Served.
Knows scenes; knows nothing of HTTP.  A name in an address is a key of the dictionary and never becomes a path.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ditic_stream
from ditic_stream._paths import Name, Uri, place_of
from ditic_stream.doors.server.display import Picture, Stretch, stretch_of
from ditic_stream.doors.server.original import Original
from ditic_stream.errors import ConfigError, DiticError
from ditic_stream.geometry import TileKey, Window
from ditic_stream.reader import open_source
from ditic_stream.regions import OnError, Scene
from ditic_stream.summary import summary

RESERVED = {"healthz", "info", "region", "static"}
MAX_RATES = 2**20
"""Tiles whose bytes are told in one answer."""


class Served:
    """One archive under its name.  For any thread."""

    def __init__(self, name: str, scene: Scene, original: Original | None, *, fills: bool = False) -> None:
        self.name, self.scene, self.original = name, scene, original
        version = f"{scene.archive.manifest.to_json()['digest']} {ditic_stream.__version__}"
        if fills:  # what is damaged now may be whole when the server is started anew
            version += f" {secrets.token_hex(8)}"
        self.version = hashlib.sha256(version.encode()).hexdigest()[:16]
        """Changes when the pixels may: the archive, or this package, is another.  Part of every ETag."""
        self._stretches: dict[Any, Stretch] = {}
        self._lock = threading.Lock()  # never held while anything is read
        self._rates: list[int] | None = None
        self._summary: dict[str, Any] | None = None

    def version_of(self, *, original: bool) -> str:
        """That of the archive's pixels, or of its source's: these are shown by the archive's stretch."""
        if not original or self.original is None:
            return self.version
        return hashlib.sha256(f"{self.version} {self.original.version}".encode()).hexdigest()[:16]

    def stretch(
        self, bands: tuple[int, ...] | None = None, rescale: tuple[tuple[float, float], ...] | None = None
    ) -> Stretch:
        """How the scene is shown; found once, for finding it may decode a coarse level."""
        with self._lock:
            found = self._stretches.get((bands, rescale))
        if found is None:
            found = stretch_of(self.scene, bands, rescale)
            with self._lock:
                if len(self._stretches) >= 256:
                    self._stretches.clear()
                self._stretches[bands, rescale] = found
        return found

    def picture(self, stretch: Stretch | None = None, *, original: bool = False) -> Picture:
        """The scene, or its source, ready to be shown: both by the same stretch."""
        stretch = stretch or self.stretch()
        if not original:
            return Picture(self.scene, stretch)
        if self.original is None:
            raise LookupError(self.name)
        return Picture(self.original, stretch)

    def warm(self) -> None:
        """Load the networks, as the first picture would: then that one is fast.  Errors wait for who meets them."""
        with contextlib.suppress(Exception):
            self.scene.read(Window(row=0, col=0, height=1, width=1))

    def transparent(self) -> bool:
        """True when pixels may be without data."""
        return bool(self.scene.archive.manifest.radiometry["planes"])

    def rates(self) -> dict[str, Any]:
        """Bytes of the record of each tile, row by row; -1 where there is none.  Reads the shards' indexes.

        ConfigError when there are more than MAX_RATES tiles.
        """
        grid = self.scene.archive.grid
        if grid.rows * grid.cols > MAX_RATES:
            raise ConfigError(f"{grid.rows * grid.cols} tiles are too many to tell the bytes of; at most {MAX_RATES}")
        if self._rates is None:
            self._rates = [self._rate(TileKey(row, col)) for row in range(grid.rows) for col in range(grid.cols)]
        return {"tile": grid.config.tile, "rows": grid.rows, "cols": grid.cols, "bytes": self._rates}

    def _rate(self, key: TileKey) -> int:
        archive = self.scene.archive
        try:
            return archive.shard(archive.grid.shard_of(key)).record_size(key)
        except DiticError:
            return -1

    def facts(self) -> dict[str, Any]:
        """What /info says: all that `ditic-stream info` does, and how the scene is shown."""
        scene, stretch = self.scene, self.stretch()
        if self._summary is None:
            self._summary = summary(scene.archive)
        original = self.original
        return {
            "name": self.name,
            "version": self.version,
            **self._summary,
            "crs": scene.crs,
            "bounds": scene.bounds,
            "levels": [list(size) for size in scene.level_dimensions],
            "shown": {
                "bands": [band + 1 for band in stretch.bands],
                "low": stretch.low,
                "high": stretch.high,
                "stretch": stretch.source,
                "transparent": self.transparent(),
            },
            "original": None
            if original is None
            else {
                "name": original.name,
                "version": self.version_of(original=True),
                "done": original.done,
                "failed": original.error is not None,
            },
        }


class Catalog:
    """All that is served, by name; a context manager that closes the scenes."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._served: dict[str, Served] = {}

    def add(
        self,
        archive: Name,
        *,
        source: Name | None = None,
        device: str = "cpu",
        on_error: OnError = "stop",
        cache_bytes: int = 2**28,
        threads: int | None = None,
    ) -> Served:
        """Open an archive (and its source) and give it a name: that of its file, with a number where it is taken.

        Raises what opening raises; ConfigError when the source has another size than the archive.
        """
        scene = ditic_stream.open(
            archive, device=device, on_error=on_error, cache_bytes=cache_bytes, threads=threads
        )  # fmt: skip
        self._stack.callback(scene.close)
        original = None
        if source is not None:
            original = Original(open_source(source, expand_palette=True))
            self._stack.callback(original.close)
            if original.shape != scene.shape:
                raise ConfigError(
                    f"{original.name} has {original.shape} rows, columns and samples, the archive {scene.shape}; name "
                    "the scene it was made from"
                )
            threading.Thread(target=original.prepare, name="ditic-overview", daemon=True).start()
        served = Served(self._free(name_of(archive)), scene, original, fills=on_error != "stop")
        self._served[served.name] = served
        return served

    def get(self, name: str) -> Served | None:
        return self._served.get(name)

    def __iter__(self) -> Iterator[Served]:
        return iter(self._served.values())

    def __len__(self) -> int:
        return len(self._served)

    def __enter__(self) -> Catalog:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _free(self, name: str) -> str:
        if name not in self._served and name not in RESERVED:
            return name
        return next(
            candidate for number in range(2, 10**9) if (candidate := f"{name}-{number}") not in self._served
        )  # fmt: skip


def name_of(archive: Name) -> str:
    """The name an archive is served under: that of its last part, in letters, digits, dots, dashes and underscores."""
    stem = place_of(archive).name.removesuffix(".zip").removesuffix(".ditic")
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-") or "scene"


def source_at_hand(archive: Name) -> Path | None:
    """The scene an archive was made from, when it lies beside it: of the name and the size the manifest tells."""
    from ditic_stream.archive import open_archive

    place = place_of(archive)
    if isinstance(place, Uri):
        return None
    with open_archive(place) as opened:
        source = opened.manifest.source
    candidate = place.parent / Path(source.name).name
    try:
        return candidate if candidate.is_file() and candidate.stat().st_size == source.size else None
    except OSError:
        return None
