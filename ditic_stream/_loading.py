"""Decode the tiles that reads of one open archive need, in threads of its own, and keep what was decoded last.

In: tile keys.  Out: latents, rendered windows and mask planes of tiles.  Knows records, the codec and the caches; knows
nothing of the windows users ask for.

    fetch --> records --> latents (a job a tile) --> render (a job a window, once its tiles are there) --> kept
          --> planes of the mask (a job a tile) -------------------------------------------------------> kept

Jobs run in the order they came and a read asks for a few windows at a time, so that no read waits for all of another.
Two reads that want the same tile share one job.  Nothing in a job waits for another job.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ditic_stream._decoding import Damage, planes_of_tile
from ditic_stream._rendering import codec_of, decode_tiles, groups_of, release_memory, render_window
from ditic_stream._sharing import SharedWork
from ditic_stream.archive import Archive
from ditic_stream.blend import weighted
from ditic_stream.errors import ConfigError, naming
from ditic_stream.executors import be_one_thread, cores
from ditic_stream.families import family_of
from ditic_stream.geometry import CELL, TileKey, whole
from ditic_stream.latents import Cells, assemble

if TYPE_CHECKING:
    from ditic_stream.codec import TileCodec

MAX_THREADS = 4
"""Threads by default, at most; each takes some 300 MB while it renders a window of 1024 pixels."""
BATCH = 16
"""Windows whose records are fetched together."""
MAX_TOGETHER, CELLS_TOGETHER = 32, 2**13
"""Tiles whose latents are decoded together, and cells of their groups of bands: eight tiles of 1024, some 300 MB."""
Pixels = NDArray[np.float32]
Uint8 = NDArray[np.uint8]
K = TypeVar("K")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TileCells:
    """The latents of a tile.  empty: the mask restores all of it."""

    cells: Cells
    empty: bool

    @property
    def nbytes(self) -> int:
        return self.cells.nbytes


class Loader:
    """What the reads of one Scene share.  Safe in any number of threads.

    cache_bytes: three quarters for rendered windows, one for latents, masks and what levels are made of.
    threads: None takes the cores, up to MAX_THREADS, and one where the networks run on another device.
    """

    def __init__(
        self,
        archive: Archive,
        *,
        device: str,
        fill: bool,
        cache_bytes: int,
        threads: int | None,
        damage: Damage,
    ) -> None:
        if not isinstance(cache_bytes, (int, float, np.number)) or not cache_bytes >= 0:
            raise ConfigError(f"cache_bytes {cache_bytes!r:.40} is no number of bytes, 0 or more; 0 keeps nothing")
        if threads is not None and whole(threads, "threads") < 1:
            raise ConfigError(f"{threads} threads cannot read; use 1 or more")
        self.archive, self.grid = archive, archive.grid
        most = family_of(archive.manifest.model.name).at_once or MAX_THREADS
        self.threads = threads or (min(cores(), most) if device == "cpu" else 1)
        self._device, self._fill, self._damage = device, fill, damage
        tile_cells = groups_of(archive.manifest) * (self.grid.config.tile // CELL) ** 2
        self._together = min(max(CELLS_TOGETHER // tile_cells, 1), MAX_TOGETHER)
        self._pool: ThreadPoolExecutor | None = ThreadPoolExecutor(self.threads, thread_name_prefix="ditic-scene")
        self._process = os.getpid()
        self._loading = threading.Lock()
        self._codec: TileCodec | None = None
        self._windows = SharedWork[TileKey, Pixels](limit=cache_bytes * 3 // 4, size=lambda value: value.nbytes)
        self._parts = SharedWork[tuple[str, TileKey], Any](limit=cache_bytes // 4, size=lambda value: value.nbytes)

    @property
    def nbytes(self) -> int:
        """Bytes that the caches hold."""
        return self._windows.nbytes + self._parts.nbytes

    @property
    def codec(self) -> TileCodec:
        """The networks, loaded when first asked for; WeightsError when those at hand are others."""
        with self._loading:
            if self._codec is None:
                if self._pool is None:
                    raise self._closed()
                self._codec = codec_of(self.archive.manifest, self._device)
            return self._codec

    def check_open(self) -> None:
        """ConfigError once it is closed, and in a process that was forked since: the threads did not come along, and
        who waited for them would wait for ever."""
        if self._pool is None:
            raise self._closed()
        if os.getpid() != self._process:
            raise ConfigError(
                f"{self.archive.path} was opened before this process was forked; open it in this process, or hand the "
                "scene over as an argument: it pickles as its name"
            )

    def fetch(self, records: Iterable[TileKey], planes: Iterable[TileKey] = ()) -> None:
        """Bring near what these tiles are stored as, in few rounds of requests: the one place where a read says what it
        needs.  Does nothing to an archive that is here."""
        self.archive.fetch(records, masks=planes)

    def fetch_previews(self, shards: Sequence[TileKey], groups: Sequence[int]) -> None:
        """The same for the previews of shards, of some groups of three bands."""
        wanted = [group for group in groups if self.missing(f"preview{group}", shards)]
        if wanted:
            self.archive.fetch_previews(shards, wanted)

    def missing(self, kind: str, keys: Iterable[TileKey]) -> list[TileKey]:
        """Those of `keys` that nothing of this kind is kept of."""
        return [key for key in keys if not self._parts.has((kind, key))]

    def rendered(self, keys: Sequence[TileKey], planes: Iterable[TileKey] = ()) -> Iterator[Pixels]:
        """The pixels of `blend.weighted` of each tile, float32 (bands, rows, columns) in network units, in order.

        They are shared: read only.  planes: tiles whose mask planes will be asked for next.
        """
        self.codec  # noqa: B018  (its errors are the caller's, not those of the first job)
        waiting: deque[Future[Pixels]] = deque()
        for at, key in enumerate(keys):
            if at % BATCH == 0:
                new = [key for key in keys[at : at + BATCH] if not self._windows.has(key)]
                near = {near: None for key in new for near in self.grid.neighbours(key)}
                self.fetch(self.missing("latents", near), [] if at else self.missing("planes", planes))
            waiting.append(self._window(key))
            if len(waiting) > self.threads:
                yield self._result(waiting.popleft())
        while waiting:
            yield self._result(waiting.popleft())

    def planes(self, keys: Sequence[TileKey]) -> Iterator[Uint8]:
        """The mask planes of each tile's core, uint8 (planes, rows, columns), in order; shared, read only."""
        self.fetch((), self.missing("planes", keys))
        return self.each("planes", keys, self._planes)

    def each(self, kind: str, keys: Sequence[TileKey], make: Callable[[TileKey], T]) -> Iterator[T]:
        """What `make` makes of each key, in order, in the threads; kept under `kind`.  Values have `nbytes`."""
        return self._ordered((self._parts.get((kind, key), self._job(make, key)) for key in keys), 2 * self.threads)

    def coarse(self, keys: Sequence[TileKey]) -> Iterator[NDArray[np.int16]]:
        """The coarse values (groups, channels, rows, columns) of each tile's cells, in order; shared, read only."""
        self.codec  # noqa: B018
        self.fetch(self.missing("coarse", keys))
        run = self._together * self.threads
        runs = [keys[at : at + run] for at in range(0, len(keys), run)]
        futures = (tile for some in runs for tile in self._begin_tiles("coarse", some))
        return self._ordered(futures, 2 * run)

    def _ordered(self, futures: Iterable[Future[T]], ahead: int) -> Iterator[T]:
        """The results of futures, of which at most so many more are begun."""
        waiting: deque[Future[T]] = deque()
        for future in futures:
            waiting.append(future)
            if len(waiting) > ahead:
                yield self._result(waiting.popleft())
        while waiting:
            yield self._result(waiting.popleft())

    def close(self) -> None:
        """Wait for the jobs under way, and let go of the networks and of all that was kept."""
        with self._loading:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)
        self._windows.clear()
        self._parts.clear()
        with self._loading:
            if self._codec is not None:
                self._codec = None
                release_memory(self._device)

    def _window(self, key: TileKey) -> Future[Pixels]:
        return self._windows.get(key, lambda future: self._begin_window(key, future))

    def _begin_window(self, key: TileKey, window: Future[Pixels]) -> None:
        """Begin the tiles a window reads; the last of them to end begins its rendering."""
        near = list(self.grid.neighbours(key))
        tiles: list[Future[TileCells]] = self._begin_tiles("latents", near)
        left, lock = len(near), threading.Lock()
        # Futures keep what is to be called when they end, after that too: a tile that stays must not hold the window.
        held = [(window, tiles)]

        def count(_: Future[TileCells]) -> None:
            nonlocal left
            with lock:
                left -= 1
                if left:
                    return
            window, tiles = held.pop()
            try:
                found = {one: tile.result() for one, tile in zip(near, tiles, strict=True)}
            except BaseException as error:
                _fail(window, error)
                return
            self._job(lambda key: self._render(key, found), key)(window)

        for tile in tiles:
            tile.add_done_callback(count)

    def _begin_tiles(self, kind: str, keys: Sequence[TileKey]) -> list[Future[Any]]:
        """The latents of each tile, or the coarse ones; those nobody asked for yet are decoded several at a time."""
        fresh: list[tuple[TileKey, Future[Any]]] = []
        try:
            tiles = [
                self._parts.get((kind, key), lambda future, key=key: fresh.append((key, future)))  # type: ignore[misc]
                for key in keys
            ]
        except BaseException as error:
            for _, future in fresh:
                _fail(future, error)
            raise
        size = min(-(-len(fresh) // self.threads), self._together) or 1
        for at in range(0, len(fresh), size):
            self._decode(kind, fresh[at : at + size])
        return tiles

    def _decode(self, kind: str, tiles: list[tuple[TileKey, Future[Any]]]) -> None:
        """Begin the job that decodes some tiles."""

        def run(_: None) -> None:
            found = decode_tiles(
                self.archive, self.codec, [key for key, _ in tiles], fill=self._fill, coarse=kind == "coarse"
            )
            for (key, future), one in zip(tiles, found, strict=True):
                if isinstance(one, Exception):
                    _fail(future, one)
                    continue
                latent, decoded = one
                if decoded.damage is not None:
                    self._damage.tiles[key] = decoded.damage
                if kind == "coarse":
                    future.set_result(np.ascontiguousarray(latent.values))
                else:
                    future.set_result(TileCells(Cells(latent.values, latent.scales), decoded.empty))

        whole: Future[None] = Future()

        def ended(job: Future[None]) -> None:
            error = job.exception()
            for _, future in tiles if error is not None else ():
                _fail(future, error)  # type: ignore[arg-type]

        whole.add_done_callback(ended)
        self._job(run, None)(whole)

    def _job(self, make: Callable[[K], T], key: K) -> Callable[[Future[T]], None]:
        """How to begin `make(key)` in the threads, for SharedWork."""

        def run(future: Future[T]) -> None:
            try:
                be_one_thread()
                future.set_result(make(key))
            except BaseException as error:
                _fail(future, error)

        def begin(future: Future[T]) -> None:
            pool = self._pool
            if pool is None:
                _fail(future, self._closed())
                return
            try:
                task = pool.submit(run, future)
            except RuntimeError:  # closed a moment ago
                _fail(future, self._closed())
                return
            task.add_done_callback(lambda task: _fail(future, self._closed()) if task.cancelled() else None)

        return begin

    def _result(self, future: Future[T]) -> T:
        try:
            return future.result()
        except CancelledError:
            raise self._closed() from None

    def _closed(self) -> ConfigError:
        return ConfigError(f"{self.archive.path} is closed; open it again to read")

    def _render(self, key: TileKey, tiles: dict[TileKey, TileCells]) -> Pixels:
        window, seen = self.grid.decode_window(key), weighted(self.grid, key)
        if all(tile.empty for tile in tiles.values()):  # nothing of it is seen
            pixels = np.zeros((self.archive.manifest.image.bands, *seen.shape), np.float32)
        else:
            cells = assemble(self.grid, key, lambda near: tiles[near].cells)
            whole = render_window(self.archive, self.codec, key, cells)
            pixels = whole[(slice(None), *seen.slices(window))].copy()
        pixels.flags.writeable = False
        return pixels

    def _planes(self, key: TileKey) -> Uint8:
        with naming(key):
            planes = planes_of_tile(self.archive, key, self._damage if self._fill else None)
        planes.flags.writeable = False
        return planes


def _fail(future: Future[T], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
