"""Decode a window of an archive strip by strip: workers render, this process blends, finishes and lets go.

In: an open archive and a window.  Out: Strips of samples in the scene's own type, masks restored, from top to bottom.
Knows windows, blending and masks; knows nothing of files.  Holds a few rendered windows, the zones that still have to
blend, and one row of tiles of finished pixels.

    schedule --> workers (_rendering), any order --> in order --> Blender --> finish --> Strip
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ditic_stream._paths import Uri
from ditic_stream._rendering import DAMAGE, Job, Rendering, RenderWindow, schedule, spool_depth, tiles_read
from ditic_stream._shared import Scratch
from ditic_stream.archive import Archive
from ditic_stream.blend import Blender, windows_of
from ditic_stream.errors import ConfigError, MissingTileError, naming
from ditic_stream.executors import Executor, executor_for
from ditic_stream.families import family_of
from ditic_stream.geometry import TileKey, Window
from ditic_stream.radiometry import Radiometry, from_network, join_alpha, mask_of
from ditic_stream.tiling import Grid

STRIP_ROWS = (256, 128, 64, 32)
"""Rows of a finished strip: the most that stay within STRIP_BYTES, or 16."""
STRIP_BYTES = 2**26
MEMORY_BYTES = 2**28
"""Unfinished rows held in memory; those of wider scenes lie on disk until they are finished."""
BELOW_BYTES = 2**27
"""The same for the zones that blend with the next row of windows."""
WINDOWS_AHEAD = 3
"""Jobs a worker may be ahead of the blending; a rendered window is 16 MB at 1024 pixels."""
FAR_TOGETHER = 8
"""Tiles of an archive that is far away whose records a worker asks for at once."""
LOOKED_UP = 64
"""Shards whose indexes are asked for at a time."""
FLOAT = 4
Pixels = NDArray[Any]
Uint8 = NDArray[np.uint8]
Progress = Callable[[int, int], None]
OnError = Literal["stop", "fill"]


@dataclass(slots=True)
class Damage:
    """What was found damaged on the way, and filled."""

    tiles: dict[TileKey, str] = field(default_factory=dict)
    """Tiles whose record or mask is lost or damaged, and why."""

    def degraded(self, archive: Archive) -> list[TileKey]:
        """Tiles that are whole, but blend with a damaged neighbour near their border; row-major."""
        near = {other for key in self.tiles for other in archive.grid.neighbours(key)}
        return sorted(near - set(self.tiles))

    def uncoded(self, archive: Archive) -> list[TileKey]:
        """Those of `tiles` that no run has coded yet, since the archive is not complete; row-major."""
        if archive.manifest.complete:
            return []
        names = {key: archive.layout.records(archive.grid.shard_of(key)) for key in self.tiles}
        return sorted(key for key, name in names.items() if archive.store.size(name) is None)


class Strip(NamedTuple):
    """Finished rows.  window: scene pixels; samples: (bands and alpha, rows, columns); mask: 0 or 255, or None."""

    window: Window
    samples: Pixels
    mask: Uint8 | None


def check_whole(archive: Archive, on_error: OnError, window: Window | None = None) -> None:
    """MissingTileError when the archive is not complete, or lacks a tile that `window` needs; "fill" goes on.

    Tiles are looked for by the names and sizes of the shards' objects, those of the first row in the indexes too.  Ask
    before any room is made: what an archive claims to hold may be far more than there is.
    """
    if on_error not in ("stop", "fill"):
        raise ConfigError(f"on_error {on_error!r} is neither 'stop' nor 'fill'")
    if not archive.manifest.complete and on_error == "stop":
        raise MissingTileError(
            f"{archive.path} is not complete; run the same compression again, or go on without the missing tiles by "
            "--on-error fill"
        )
    if window is None or on_error == "fill":
        return
    grid, side = archive.grid, archive.grid.shard
    rows, cols = tiles_read(grid, *windows_of(grid, window))
    shards = (
        TileKey(row, col)
        for row in range(rows[0] // side, rows[-1] // side + 1)
        for col in range(cols[0] // side, cols[-1] // side + 1)
    )
    while some := list(islice(shards, LOOKED_UP)):
        archive.look_up(some)
        for shard in some:
            reader = archive.shard(shard)
            there = reader.has_room()
            for key in grid.tiles_of(shard) if not there or shard.row == rows[0] // side else ():
                if key.row in rows and key.col in cols and (not there or key.row == rows[0]):
                    reader.check(key)


def decode(
    archive: Archive,
    window: Window,
    workers: int | None,
    device: str,
    on_error: OnError,
    progress: Progress | None,
    executor: Executor | None,
    scratch: Path | None,
    damage: Damage,
) -> Iterator[Strip]:
    """The strips of `window` from top to bottom, by however many workers; see regions.decompress for the rest."""
    check_whole(archive, on_error)
    grid, fill = archive.grid, on_error == "fill"
    rows, cols = windows_of(grid, window)
    radiometry = Radiometry.from_json(archive.manifest.radiometry)
    bands = len(radiometry.bands)
    below = Scratch(Blender.below_shape(grid, rows, cols, bands), np.float32, limit=BELOW_BYTES, folder=scratch)
    blender = Blender(grid, rows, cols, bands, below=below.array)
    buffer = _Strips(window, radiometry, grid, scratch)
    total, ready = window.height * window.width, 0
    jobs = len(rows) * len(cols)
    if workers is None:
        workers = family_of(archive.manifest.model.name).at_once
    with nullcontext(executor) if executor else executor_for(workers, device, jobs, total, overlap=True) as running:
        for key, pixels in _rendered(archive, rows, cols, running, device, scratch, damage, fill):
            done = blender.add(key, pixels)
            below.release()
            if done is None or not done[0].meets(window):
                continue
            part = done[0].intersect(window)
            units = done[1][(slice(None), *part.slices(done[0]))]
            buffer.put(part, *finish(archive, radiometry, part, units, damage if fill else None))
            ready += part.height * part.width
            if progress is not None:
                progress(ready, total)
            yield from buffer.ready(part)


def _rendered(
    archive: Archive,
    rows: range,
    cols: range,
    executor: Executor,
    device: str,
    scratch: Path | None,
    damage: Damage,
    fill: bool,
) -> Iterator[tuple[TileKey, NDArray[np.float32]]]:
    """The rendered windows in row-major order; each array is the caller's until the next one is asked for."""
    grid, in_flight = archive.grid, WINDOWS_AHEAD * executor.workers
    channels = archive.manifest.image.bands
    side = grid.config.tile + 2 * grid.config.overlap
    slot_bytes = channels * min(side, grid.height) * min(side, grid.width) * FLOAT
    slots, spool = executor.shared(), executor.shared(folder=scratch)
    slots.resize(in_flight * slot_bytes)
    free, empty = list(range(in_flight)), set[TileKey]()
    most = FAR_TOGETHER if isinstance(archive.path, Uri) else 1
    if device != "cpu":
        most = max(most, family_of(archive.manifest.model.name).together)
    together = max(min(most, len(rows) * len(cols) // (2 * executor.workers)), 1)
    task = Rendering(
        archive=archive.path,
        device=device,
        fill=fill,
        depth=spool_depth(grid, cols, in_flight),
        spool=spool,
        slots=slots,
        slot_bytes=slot_bytes,
    )

    def jobs() -> Iterator[Job]:
        for item in schedule(grid, rows, cols, in_flight, together):
            if isinstance(item, TileKey):
                # Nothing of such a window is seen: the masks restore every pixel of these tiles.
                yield RenderWindow(item, free.pop(), blank=empty.issuperset(grid.neighbours(item)))
            else:
                yield item

    for job, decoded in executor.run_in_order(task, jobs(), in_flight=in_flight):
        for tile in decoded:
            if tile.empty:
                empty.add(tile.key)
            if tile.damage is not None:
                damage.tiles[tile.key] = tile.damage
        if isinstance(job, RenderWindow):
            pixels = slots.floats(job.slot * slot_bytes, (channels, *grid.decode_window(job.key).shape))
            if job.blank:
                pixels[...] = 0
            yield job.key, pixels
            free.append(job.slot)


def finish(
    archive: Archive, radiometry: Radiometry, window: Window, units: NDArray[np.float32], damage: Damage | None
) -> tuple[Pixels, Uint8 | None]:
    """Blended network units (bands, rows, columns) as samples (bands and alpha, rows, columns) and mask.

    damage: collects tiles whose mask is damaged, which then counts as all valid; None raises instead.
    """
    planes = _planes(archive, window, damage)
    pixels = from_network(units[None], planes, radiometry)
    return join_alpha(pixels, planes, radiometry), mask_of(planes, radiometry)


def _planes(archive: Archive, window: Window, damage: Damage | None) -> Uint8:
    """The mask planes of a window, (planes, rows, columns); none are 0 of them.  Errors name the tile."""
    planes = np.zeros((archive.layout.planes, *window.shape), np.uint8)
    if not archive.layout.planes:
        return planes
    tile = archive.grid.config.tile
    for row in range(window.row // tile, (window.row_end - 1) // tile + 1):
        for col in range(window.col // tile, (window.col_end - 1) // tile + 1):
            key = TileKey(row, col)
            part = archive.grid.core(key).intersect(window)
            planes[(slice(None), *part.slices(window))] = planes_of_tile(archive, key, damage, part)
    return planes


def planes_of_tile(archive: Archive, key: TileKey, damage: Damage | None, part: Window | None = None) -> Uint8:
    """The mask planes of a tile's core or of a part of it, (planes, rows, columns); `damage` as for `finish`."""
    part = part or archive.grid.core(key)
    try:
        with naming(key):
            found = archive.mask(part)
        return np.zeros((0, *part.shape), np.uint8) if found is None else found
    except DAMAGE as error:
        if damage is None:
            raise
        damage.tiles.setdefault(key, error.message)
        valid = _all_valid(archive)
        return np.broadcast_to(valid, (len(valid), *part.shape)).copy()


def _all_valid(archive: Archive) -> Uint8:
    """Planes that say of a pixel that it is valid and opaque, (planes, 1, 1)."""
    kinds = [plane["kind"] for plane in archive.manifest.radiometry["planes"]]
    return np.array([0 if kind == "validity" else 255 for kind in kinds], np.uint8)[:, None, None]


class _Strips:
    """Collects finished pieces into strips of full width, and lets each go when its last piece came."""

    def __init__(self, window: Window, radiometry: Radiometry, grid: Grid, scratch: Path | None) -> None:
        self._window, self._scratch = window, scratch
        self._samples, self._dtype = radiometry.samples, np.dtype(radiometry.dtype)
        row_bytes = self._samples * self._dtype.itemsize * window.width
        self.rows = next((rows for rows in STRIP_ROWS if rows * row_bytes <= STRIP_BYTES), 16)
        unfinished = (grid.config.tile + grid.config.overlap + self.rows) * row_bytes
        self._limit = 0 if unfinished > MEMORY_BYTES else MEMORY_BYTES
        self._strips: dict[int, tuple[Scratch, Uint8 | None]] = {}
        self._next = 0

    def put(self, window: Window, samples: Pixels, mask: Uint8 | None) -> None:
        col = slice(window.col - self._window.col, window.col_end - self._window.col)
        row, end = window.row - self._window.row, window.row_end - self._window.row
        while row < end:
            index, first = divmod(row, self.rows)
            count = min(self.rows - first, end - row)
            taken = row - (window.row - self._window.row)
            strip, strip_mask = self._strip(index, mask is not None)
            strip.array[:, first : first + count, col] = samples[:, taken : taken + count]
            strip.release()
            if mask is not None and strip_mask is not None:
                strip_mask[first : first + count, col] = mask[taken : taken + count]
            row += count

    def ready(self, last: Window) -> Iterator[Strip]:
        """The strips that are complete now that the piece `last` came."""
        if last.col_end < self._window.col_end:
            return
        while self._next in self._strips:
            begin = self._next * self.rows + self._window.row
            end = min(begin + self.rows, self._window.row_end)
            if end > last.row_end:
                return
            strip, mask = self._strips.pop(self._next)
            self._next += 1
            window = Window(row=begin, col=self._window.col, height=end - begin, width=self._window.width)
            yield Strip(window, strip.array, mask)

    def _strip(self, index: int, masked: bool) -> tuple[Scratch, Uint8 | None]:
        if index not in self._strips:
            height = min(self.rows, self._window.height - index * self.rows)
            shape = (self._samples, height, self._window.width)
            samples = Scratch(shape, self._dtype, limit=self._limit, folder=self._scratch)
            mask = np.empty((height, self._window.width), np.uint8) if masked else None
            self._strips[index] = (samples, mask)
        return self._strips[index]
