"""Write an archive: begin or resume it under a lock, put its shards there one by one, finish it.

In: a manifest; the records, masks and preview of each shard.  Out: the objects of an archive, at its Destination.
Knows resume and the order of writing; knows nothing of pixels or symbols.  `archive` is the door to it.

    zarr.json, not complete -> per shard: mask, preview, then records -> sizes, zarr.json of the arrays
        -> zarr.json, complete

A shard is whole once its records are there, an archive once its manifest says so: a kill in between costs no more than
the shard it hit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

from ditic_stream._destination import destination_of
from ditic_stream._layout import Layout, read_manifest
from ditic_stream._paths import Name, Place, place_of
from ditic_stream._shard import ShardReader, checked_array, pack_chunks, pack_mask, pack_preview, seal
from ditic_stream._sizes import ShardSizes, pack_sizes
from ditic_stream._store import GROUP, Store
from ditic_stream.bitstream import unpack_record
from ditic_stream.errors import ConfigError, FormatError, MissingTileError
from ditic_stream.geometry import TileKey
from ditic_stream.manifest import Manifest
from ditic_stream.tiling import Grid

if TYPE_CHECKING:
    from ditic_stream._shard import Uint8


LOOKED_UP = 64
"""Shards whose indexes are asked for at a time."""
MEASURED = 4
"""Shards whose masks and previews are, for their sizes."""


class ShardBytes(NamedTuple):
    """Bytes of the three objects of a shard, as written."""

    records: int
    mask: int
    preview: int


class ShardWriter:
    """Writes whole shards of the archive that `create_archive` began, in this process or another.  Needs no lock.

    A shard has one owner at a time.  Writing it again gives the same bytes, so a task may run twice.
    """

    def __init__(self, path: Name, manifest: Manifest) -> None:
        self.path = place_of(path)
        self._at = destination_of(self.path)
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
        `_shard.pack_mask` made of it; None when the scene has no planes.  preview: uint8 (channels, h / 64, w / 64),
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
        mask_bytes = self._at.write(layout.mask(shard), mask) if masks is not None else 0
        preview_bytes = self._at.write(layout.preview(shard), small)
        return ShardBytes(self._at.write(layout.records(shard), pieces), mask_bytes, preview_bytes)

    def done(self, shard: TileKey, store: Store | None = None) -> bool:
        """True when all objects of a shard are there and whole: nothing of it needs to be coded again.

        store: what was there at some moment, for those who ask of many shards.
        """
        store = store or self._at.store()
        if any(store.size(name) is None for name in self.layout.objects(shard)):
            return False
        store.fetch((name, 0, None) for name in self.layout.objects(shard))
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

    def __init__(self, path: Place, manifest: Manifest, *, overwrite: bool = False) -> None:
        super().__init__(path, Manifest.from_json(manifest.to_json(), manifest.attributes))  # checks it whole
        if self.manifest.complete:
            raise ConfigError("a new archive is not complete; give a manifest with complete=False")
        self._at.begin()
        try:
            self._begin(overwrite)
        except BaseException:
            self.close()
            raise

    def todo(self) -> Iterator[TileKey]:
        """The shards still to be written, row-major.  Reads what is there to be sure of it."""
        store = self._at.store()
        return (shard for shard in self.grid.shards() if not self.done(shard, store))

    def finish(self) -> None:
        """Write sizes and the arrays' metadata, then the manifest with `complete`; release the lock.

        Raises MissingTileError, naming a tile, when a shard is not whole yet.
        """
        store, cap, layout = self._at.store(), 0, self.layout
        found: dict[TileKey, dict[TileKey, ShardSizes]] = {}
        at_once = MEASURED if layout.sized else LOOKED_UP
        for place, shard in enumerate(self.grid.shards()):
            if place % at_once == 0:
                some = list(islice(self.grid.shards(), place, place + at_once))
                readers = (ShardReader(store, layout, one) for one in some)
                store.fetch(one for reader in readers for one in reader.index_ranges())
                if layout.sized:  # each mask and preview chunk gives its checksum
                    store.fetch((name, 0, None) for one in some for name in layout.objects(one)[:-1])
            for name in self.layout.objects(shard):
                if store.size(name) is None:
                    first = next(self.grid.tiles_of(shard))
                    raise MissingTileError(
                        f"{name} is not written yet; write all shards before the end", key=str(first)
                    )
            reader = ShardReader(store, layout, shard)
            cap = max(cap, reader.longest())
            if layout.sized:
                block = layout.block_of(shard)
                measured = found.setdefault(block, {})
                measured[shard] = reader.measured()
                if len(measured) == sum(1 for _ in layout.shards_of(block)):
                    self._at.write(layout.sizes(block), [pack_sizes(layout, block, found.pop(block))])
        for name, document in self.layout.arrays(cap).items():
            self._at.write(name, [document])
        self.manifest = self.manifest.finished()
        self.layout = Layout(self.manifest)
        self._at.sweep()
        self._at.write(GROUP, [self.layout.group()])
        self.close()

    def close(self) -> None:
        """Release the lock.  An archive that is not finished stays resumable."""
        self._at.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self, overwrite: bool) -> None:
        store = self._at.store()
        if store.size(GROUP) is None:
            self._at.create(GROUP, self.layout.group())
            self._at.sweep()
            return
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
            self._at.sweep()
            return
        if not overwrite:
            raise ConfigError(
                f"{self.path} was begun with other settings: {', '.join(differences)}; use them, or overwrite it"
            )
        self._at.set_aside()
        self._at.write(GROUP, [self.layout.group()])
        self._at.sweep()


def remove_archive(place: Name) -> None:
    """Remove an archive.  ConfigError when anything lies there that no archive has."""
    destination_of(place_of(place)).remove()
