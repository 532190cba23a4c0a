"""Write an archive: begin or resume it under a lock, put its shards there one by one, finish it.

In: a manifest; the records, masks and preview of each shard.  Out: the objects of an archive folder.
Knows resume and the order of writing; knows nothing of pixels or symbols.  `archive` is the door to it.

    zarr.json, not complete -> per shard: mask, preview, then records -> zarr.json of the arrays -> zarr.json, complete

A shard is whole once its records are there, an archive once its manifest says so: a kill in between costs no more than
the shard it hit.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

from ditic_stream import _lock
from ditic_stream._layout import Layout, read_manifest
from ditic_stream._shard import ShardReader, checked_array, pack_chunks, pack_mask, pack_preview, seal
from ditic_stream._store import GROUP, LEFTOVER, LOCK, OWN, PARTIAL, FolderStore, write_object
from ditic_stream.bitstream import unpack_record
from ditic_stream.errors import ConfigError, FormatError, MissingTileError, StorageError
from ditic_stream.geometry import TileKey
from ditic_stream.manifest import Manifest
from ditic_stream.tiling import Grid

if TYPE_CHECKING:
    from ditic_stream._shard import Uint8

OBJECTS = ("records", "mask", "preview")
"""Folders of an archive; the records come first, since a shard without them is not there."""


class ShardBytes(NamedTuple):
    """Bytes of the three objects of a shard, as written."""

    records: int
    mask: int
    preview: int


class ShardWriter:
    """Writes whole shards of the archive that `create_archive` began, in this process or another.  Needs no lock.

    A shard has one owner at a time.  Writing it again gives the same bytes, so a task may run twice.
    """

    def __init__(self, path: str | Path, manifest: Manifest) -> None:
        self.path = Path(path)
        self.manifest = manifest
        self.layout = Layout(manifest)

    @property
    def grid(self) -> Grid:
        return self.layout.grid

    def put_shard(
        self,
        shard: TileKey,
        records: Mapping[TileKey, bytes],
        masks: Mapping[TileKey, Uint8 | Sequence[bytes | None]] | None,
        preview: Uint8,
    ) -> ShardBytes:
        """Write a shard: all or nothing of each object, the records last, flushed to disk.

        records: packed, one for every tile of the shard.  masks: uint8 (planes, h, w) of each tile's core, or what
        `_shard.pack_mask` made of it; None when the scene has no planes.  preview: uint8 (1 or 3, h / 64, w / 64),
        rounded up, of the shard's pixels.  Returns the bytes written.
        Raises ConfigError when something is missing, of another shape or of another archive; StorageError when there
        is no room, and then the shard is as it was.
        """
        layout, grid = self.layout, self.grid
        tiles = {layout.slot(key): key for key in grid.tiles_of(shard)}
        if set(records) != set(tiles.values()):
            raise ConfigError(
                f"shard {shard} has {len(tiles)} tiles, records came for {len(records)}; give one for each tile"
            )
        if bool(layout.planes) != (masks is not None) or (masks is not None and set(masks) != set(records)):
            raise ConfigError(
                f"shard {shard} of a scene with {layout.planes} mask planes: masks must come for all tiles or none"
            )
        for key, data in records.items():
            unpack_record(data, archive_id=layout.archive_id, key=key)
        places = range(grid.shard**2)
        mask: list[bytes] = []
        if masks is not None:
            packed = {key: self._packed(key, found) for key, found in masks.items()}
            mask = pack_chunks(
                [
                    packed[tiles[place]][plane] if place in tiles else None
                    for plane in range(layout.planes)
                    for place in places
                ]
            )
        preview = checked_array("preview", preview, layout.preview_part(shard), shard)
        small = pack_preview(preview, layout)
        pieces = pack_chunks([records[tiles[place]] if place in tiles else None for place in places], seal(mask, small))
        mask_bytes = write_object(self.path, layout.mask(shard), mask) if masks is not None else 0
        preview_bytes = write_object(self.path, layout.preview(shard), [small])
        return ShardBytes(write_object(self.path, layout.records(shard), pieces), mask_bytes, preview_bytes)

    def done(self, shard: TileKey) -> bool:
        """True when all objects of a shard are there and whole: nothing of it needs to be coded again."""
        store = FolderStore(self.path)
        if any(store.size(name) is None for name in self.layout.objects(shard)):
            return False
        return next(ShardReader(store, self.layout, shard).problems(), None) is None

    def _packed(self, key: TileKey, found: Uint8 | Sequence[bytes | None]) -> Sequence[bytes | None]:
        layout, core = self.layout, self.grid.core(key)
        if not isinstance(found, Sequence):  # an array
            return pack_mask(checked_array("mask", found, (layout.planes, *core.shape), key), self.manifest.grid.tile)
        if len(found) != layout.planes:
            raise ConfigError(f"mask of {len(found)} planes for a scene with {layout.planes}", key=str(key))
        return found


class ArchiveWriter(ShardWriter):
    """The one writer that holds an archive's lock; a context manager."""

    def __init__(self, path: Path, manifest: Manifest, *, overwrite: bool = False) -> None:
        super().__init__(path, Manifest.from_json(manifest.to_json(), manifest.attributes))  # checks it whole
        if self.manifest.complete:
            raise ConfigError("a new archive is not complete; give a manifest with complete=False")
        _check_place(path)
        self._lock: int | None = _make_and_hold(path)
        try:
            self._begin(overwrite)
        except BaseException:
            self.close()
            raise

    def todo(self) -> Iterator[TileKey]:
        """The shards still to be written, row-major.  Reads what is there to be sure of it."""
        return (shard for shard in self.grid.shards() if not self.done(shard))

    def finish(self) -> None:
        """Write the arrays' metadata, then the manifest with `complete`; release the lock.

        Raises MissingTileError, naming a tile, when a shard is not whole yet.
        """
        store, cap = FolderStore(self.path), 0
        for shard in self.grid.shards():
            for name in self.layout.objects(shard):
                if store.size(name) is None:
                    first = next(self.grid.tiles_of(shard))
                    raise MissingTileError(
                        f"{name} is not written yet; write all shards before the end", key=str(first)
                    )
            cap = max(cap, ShardReader(store, self.layout, shard).longest())
        for name, document in self.layout.arrays(cap).items():
            write_object(self.path, name, [document])
        self.manifest = self.manifest.finished()
        self.layout = Layout(self.manifest)
        _sweep(self.path)
        write_object(self.path, GROUP, [self.layout.group()])
        self.close()

    def close(self) -> None:
        """Release the lock.  An archive that is not finished stays resumable."""
        if self._lock is not None:
            _lock.release(self.path / LOCK, self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self, overwrite: bool) -> None:
        store = FolderStore(self.path)
        if store.size(GROUP) is not None:
            try:
                found = read_manifest(store, self.path)[0]
            except FormatError:
                if not overwrite:
                    raise
                found = None
            if found is not None and found.complete and not overwrite:
                raise ConfigError(f"{self.path} is a complete archive; choose another name or overwrite it")
            differences = found.differences(self.manifest) if found is not None else ["manifest"]
            if found is not None and not found.complete and not differences:
                _sweep(self.path)
                return
            if not overwrite:
                raise ConfigError(
                    f"{self.path} was begun with other settings: {', '.join(differences)}; use them, or overwrite it"
                )
            _set_aside(self.path)
        write_object(self.path, GROUP, [self.layout.group()])
        _sweep(self.path)


def _make_and_hold(path: Path) -> int:
    """Make the folder of an archive and hold its lock."""
    while True:
        try:
            path.mkdir(exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"cannot make the folder {path}: {error.strerror}; make room or fix the permissions, "
                "then run the same command again"
            ) from error
        try:
            return _lock.hold(path / LOCK, path)
        except StorageError:
            if path.is_dir():
                raise  # else the run that held it has packed it just now and taken it away


def _check_place(path: Path) -> None:
    """Refuse to write where anything lies that no archive has: `overwrite` must not take a user's folder away."""
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path} is a file; choose another name")
    if not path.is_dir():
        if not path.parent.is_dir():
            raise ConfigError(f"{path.parent} is not a folder; make it first")
        return
    for folder, folders, files in os.walk(path):
        inner = Path(folder).relative_to(path)
        for name in sorted((inner / one).as_posix() for one in [*folders, *files]):
            if not OWN.fullmatch(name):
                raise ConfigError(f"{path} holds {name}, which no archive has; choose another name")


def remove_archive(path: Path) -> None:
    """Remove the folder of an archive.  ConfigError when anything lies there that no archive has."""
    _check_place(path)
    _remove(path)


def _set_aside(path: Path) -> None:
    """Take a complete archive out of the way so that, killed at any point, none of its shards passes for a new one."""
    for name in OBJECTS:
        if (path / name).exists():
            _remove(path / f"{name}{PARTIAL}")
            (path / name).rename(path / f"{name}{PARTIAL}")


def _sweep(path: Path) -> None:
    """Remove what killed runs left under temporary names."""
    for folder, folders, files in os.walk(path):
        inner = Path(folder).relative_to(path)
        for name in [*files, *folders]:
            if LEFTOVER.fullmatch((inner / name).as_posix()):
                _remove(Path(folder, name))


def _remove(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(
            f"cannot remove {path}: {error.strerror}; fix the permissions, then run the same command again"
        ) from error
