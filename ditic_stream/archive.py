"""Archives: create and resume them, open them, read single records, masks and the preview, pack them into one file.

In: a manifest, and the shards of a scene.  Out: a folder that is a Zarr v3 group, or one zip of it; and its records.
Knows where things are; knows nothing of pixels, symbols or models.

    create_archive --lock--> ArchiveWriter --path, manifest--> ShardWriter (in any process, one owner a shard)
                                  | finish                         | put_shard
                                  v                                v
    open_archive <---------- zarr.json, complete            records/c/{row}/{col}/0 ...

The zarr package is not used (_layout.py says why); the tests read every array with it.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ditic_stream._layout import PREVIEW_SCALE, Layout, read_manifest
from ditic_stream._paths import local_path
from ditic_stream._shard import ShardReader, pack_mask
from ditic_stream._store import PARTIAL, FolderStore, Store
from ditic_stream._writer import ArchiveWriter, ShardBytes, ShardWriter, remove_archive
from ditic_stream._zip import ZipStore, write_zip
from ditic_stream.bitstream import Record
from ditic_stream.errors import ConfigError, SourceError
from ditic_stream.geometry import TileKey, Window
from ditic_stream.manifest import Manifest
from ditic_stream.tiling import Grid

if TYPE_CHECKING:
    from ditic_stream._shard import Uint8

__all__ = [
    "PREVIEW_SCALE",
    "Archive",
    "ArchiveWriter",
    "ShardBytes",
    "ShardWriter",
    "create_archive",
    "open_archive",
    "pack_mask",
    "pack_zip",
    "remove_archive",
]

MAX_PREVIEW = 2**30
"""Largest preview read as one array, bytes."""
MAX_WINDOW = 2**31
"""Largest mask window read as one array, bytes."""
KEPT_SHARDS = 256
"""Shards whose indexes a reader keeps: at most 64 KB of them without masks."""


def create_archive(path: str | Path, manifest: Manifest, *, overwrite: bool = False) -> ArchiveWriter:
    """Begin the archive `path` (a folder), or go on with it where a run with the same settings was stopped.

    Takes the archive's lock, which lasts until `close` or the death of this process.  A complete archive is refused
    without `overwrite`, and so is a partial one of other settings.  Raises ConfigError, LockedError or StorageError.
    """
    return ArchiveWriter(local_path(path), manifest, overwrite=overwrite)


def open_archive(path: str | Path) -> Archive:
    """Open an archive, folder or zip, complete or not.  Reads its manifest and nothing else.

    Raises SourceError when there is none, FormatError (or one of its kinds) when it cannot be trusted.
    """
    place = local_path(path)
    store: Store
    if place.is_dir():
        store = FolderStore(place)
    elif place.is_file():
        store = ZipStore(place)
    else:
        begun = place.with_name(f"{place.name}{PARTIAL}")
        if begun.is_dir():
            raise SourceError(f"{place} is not finished; run its compression again, or name {begun} for what is there")
        raise SourceError(f"{place} is no file or folder; name an archive that exists")
    try:
        return Archive(place, store)
    except BaseException:
        store.close()
        raise


def pack_zip(folder: str | Path, out: str | Path, *, overwrite: bool = False) -> int:
    """Pack the complete archive `folder` into the zip file `out`, whole or not at all.  Returns its bytes.

    The zip holds the archive's objects and nothing else that may lie in the folder.  ConfigError when the archive is
    not complete or `out` exists and `overwrite` is not set, StorageError when there is no room.
    """
    target = local_path(out)
    if target.exists() and not (overwrite and target.is_file()):
        raise ConfigError(f"{target} exists; choose another name or overwrite it")
    with open_archive(folder) as archive:
        if not archive.manifest.complete:
            raise ConfigError(f"{folder} is not complete; run the same compression again, then pack it")
        return write_zip(archive.store, target)


class Archive:
    """An open archive.  Each tile is read alone: two ranges for its record, one once the shard's index is known."""

    def __init__(self, path: Path, store: Store) -> None:
        self.path = path
        self.store = store
        self.manifest, self.attributes = read_manifest(store, path)
        """`attributes`: those of the group as stored, so that `verify` can hold its bytes against its meaning."""
        self.layout = Layout(self.manifest)
        self._shards: OrderedDict[TileKey, ShardReader] = OrderedDict()

    @property
    def grid(self) -> Grid:
        return self.layout.grid

    def record(self, key: TileKey) -> Record:
        """The record of a tile.  MissingTileError when it is lost, ChecksumError or FormatError when it is damaged."""
        self._check(key)
        return self.shard(self.grid.shard_of(key)).record(key)

    def mask(self, window: Window) -> Uint8 | None:
        """The mask planes of a window of scene pixels, uint8 (planes, h, w); None when the scene has no mask.

        Decodes the chunks the window touches, one at a time.  Raises WindowError outside the scene, else as `record`.
        """
        window.within(self.grid.height, self.grid.width)
        planes, tile = self.layout.planes, self.manifest.grid.tile
        if not planes:
            return None
        if planes * window.height * window.width > MAX_WINDOW:
            raise ConfigError(
                f"mask window of {planes} x {window.height} x {window.width} bytes; at most {MAX_WINDOW}: read strips"
            )
        import numpy as np

        result = np.zeros((planes, window.height, window.width), dtype=np.uint8)
        for row in range(window.row // tile, -(-window.row_end // tile)):
            for col in range(window.col // tile, -(-window.col_end // tile)):
                key = TileKey(row, col)
                core = self.grid.core(key)
                common = core.intersect(window)
                reader = self.shard(self.grid.shard_of(key))
                for plane in range(planes):
                    result[(plane, *common.slices(window))] = reader.mask(key, plane)[common.slices(core)]
        return result

    def preview(self) -> Uint8:
        """The scene at 1/64, uint8 (1 or 3, rows, columns).  ConfigError when it is larger than 1 GiB."""
        channels, height, width = self.layout.preview_shape
        if channels * height * width > MAX_PREVIEW:
            raise ConfigError(
                f"preview of {channels} x {height} x {width} bytes; at most {MAX_PREVIEW}: read it with a Zarr reader"
            )
        import numpy as np

        result = np.zeros((channels, height, width), dtype=np.uint8)
        side = self.layout.preview_side
        for shard in self.grid.shards():
            part = self.shard(shard).preview()
            row, col = shard.row * side, shard.col * side
            result[:, row : row + part.shape[1], col : col + part.shape[2]] = part
        return result

    def shard(self, shard: TileKey) -> ShardReader:
        """The reader of one shard; the last 256 are kept for their indexes."""
        reader = self._shards.get(shard)
        if reader is None:
            reader = self._shards[shard] = ShardReader(self.store, self.layout, shard)
            if len(self._shards) > KEPT_SHARDS:
                self._shards.popitem(last=False)
        return reader

    def close(self) -> None:
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, key: TileKey) -> None:
        if not (0 <= key.row < self.grid.rows and 0 <= key.col < self.grid.cols):
            raise ConfigError(f"tile {key} leaves the grid of {self.grid.rows} x {self.grid.cols} tiles")
