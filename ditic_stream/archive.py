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

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ditic_stream._layout import PREVIEW_SCALE, Layout, read_manifest
from ditic_stream._paths import Name, Place, Uri, place_of
from ditic_stream._shard import ShardReader, pack_mask
from ditic_stream._sizes import ShardSizes, largest, unpack_sizes
from ditic_stream._store import PARTIAL, FolderStore, NamedRange, Store
from ditic_stream._writer import ArchiveWriter, ShardBytes, ShardWriter, remove_archive
from ditic_stream._zip import TAIL_BYTES, ZipStore, write_zip
from ditic_stream.bitstream import Record
from ditic_stream.errors import ConfigError, FormatError, SourceError
from ditic_stream.geometry import TileKey, Window
from ditic_stream.manifest import Manifest
from ditic_stream.tiling import Grid

if TYPE_CHECKING:
    from pathlib import Path

    from ditic_stream._shard import Uint8

__all__ = [
    "PREVIEW_SCALE",
    "Archive",
    "ArchiveWriter",
    "ShardBytes",
    "ShardWriter",
    "create_archive",
    "is_there",
    "open_archive",
    "pack_mask",
    "pack_zip",
    "remove_archive",
]

_log = logging.getLogger(__name__)

MAX_PREVIEW = 2**30
"""Largest preview read as one array, bytes."""
MAX_WINDOW = 2**31
"""Largest mask window read as one array, bytes."""
FETCHED_BYTES = 2**25
"""Records brought near at a time, bytes: what is beyond is read record by record."""
REQUESTS = 4
"""Requests that reading records and masks of one shard may take."""
FETCHED_TILES, FETCHED_PREVIEWS = 4096, 64
"""Tiles looked at for that, and previews of shards brought near at a time."""
KEPT_BLOCKS = 4
"""Blocks of shards whose sizes are kept: of at most 16384 tiles each."""
KEPT_SHARDS = 256
"""Shards whose indexes a reader keeps: at most 64 KB of them without masks."""


def create_archive(path: Name, manifest: Manifest, *, overwrite: bool = False) -> ArchiveWriter:
    """Begin the archive `path` (a folder, or a URI), or go on with it where a run with the same settings was stopped.

    Takes the archive's lock, which lasts until `close` or the death of this process; objects elsewhere have none.  A
    complete archive is refused without `overwrite`, and so is a partial one of other settings.

    Raises ConfigError, LockedError or StorageError.
    """
    return ArchiveWriter(place_of(path), manifest, overwrite=overwrite)


def open_archive(path: Name) -> Archive:
    """Open an archive, folder or zip, complete or not, here or by its URI.  Reads its manifest and nothing else.

    What is named by a URI is a zip if its name ends in .zip.  Opening takes one request of a folder, two of a zip.
    Raises SourceError when there is none, FormatError (or one of its kinds) when it cannot be trusted; ConfigError when
    the extra `cloud` is needed and not here.
    """
    place = place_of(path)
    store: Store
    if isinstance(place, Uri):
        store = _far(place)
    elif _is_folder(place):
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


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as error:  # a name that is too long
        raise SourceError(
            f"{path!s:.200} cannot be looked at: {error.strerror}; name an archive that exists"
        ) from error


def _far(uri: Uri) -> Store:
    """The store of an archive on another machine."""
    from ditic_stream._remote import RemoteFile, RemoteStore

    if uri.suffix != ".zip":
        return RemoteStore(uri)
    file = RemoteFile(uri, -TAIL_BYTES)
    try:
        file.exactly()
        return ZipStore(uri, file)
    except BaseException:
        file.close()
        raise


def pack_zip(folder: Name, out: Name, *, overwrite: bool = False) -> int:
    """Pack the complete archive `folder` into the zip file `out`, whole or not at all.  Returns its bytes.

    Elsewhere it goes there in parts while it is packed, and has its name once the last one is there.

    The zip holds the archive's objects and nothing else that may lie in the folder.  ConfigError when the archive is
    not complete or `out` exists and `overwrite` is not set, StorageError when there is no room.
    """
    target = place_of(out)
    if is_there(target) and not (overwrite and (isinstance(target, Uri) or target.is_file())):
        raise ConfigError(f"{target} exists; choose another name or overwrite it")
    with open_archive(folder) as archive:
        if not archive.manifest.complete:
            raise ConfigError(f"{folder} is not complete; run the same compression again, then pack it")
        return write_zip(archive.store, target)


def is_there(place: Place) -> bool:
    """True when a file, a folder or an object has the name."""
    if not isinstance(place, Uri):
        return place.exists()
    from ditic_stream._cloud import Bucket

    return Bucket(place).head("") is not None


class Archive:
    """An open archive.  Each tile is read alone: two ranges for its record, one once the shard's index is known.

    Who knows what will be read says so first, by `fetch`: an archive that is far away then answers in two rounds.
    """

    def __init__(self, path: Place, store: Store) -> None:
        self.path = path
        self.store = store
        self.manifest, self.attributes = read_manifest(store, path)
        """`attributes`: those of the group as stored, so that `verify` can hold its bytes against its meaning."""
        self.layout = Layout(self.manifest)
        self._shards: OrderedDict[TileKey, ShardReader] = OrderedDict()
        self._sizes: OrderedDict[TileKey, dict[TileKey, ShardSizes]] = OrderedDict()
        self._lock = threading.Lock()
        store.promise(self.layout.names())
        if self.layout.in_one_block and self.manifest.complete:
            store.fetch([(self.layout.sizes(TileKey(0, 0)), 0, None)])

    @property
    def grid(self) -> Grid:
        return self.layout.grid

    def fetch(self, keys: Iterable[TileKey], *, masks: Iterable[TileKey] = ()) -> None:
        """Bring the records of tiles near, and the masks of some, in one round of requests by the archive's sizes.
        Where it has none: the indexes of their shards in one, with what the masks need, then the records in another.
        Does nothing to an archive that is here.

        What is lost or damaged is left for `record` and `mask` to name; SourceError when the other machine fails.
        """
        tiles = sorted(set(islice(keys, FETCHED_TILES)))
        masked = sorted(set(islice(masks, FETCHED_TILES))) if self.layout.planes else []
        shards = {self.grid.shard_of(key) for key in (*tiles, *masked)}
        asked = self._bring_sizes(shards)
        unsized = {shard for shard in shards if self.shard(shard).sizes is None}
        self.look_up(unsized, masks=unsized.intersection(map(self.grid.shard_of, masked)))
        wanted, left = list[NamedRange](), FETCHED_BYTES
        records = (self.shard(self.grid.shard_of(key)).record_range(key) for key in tiles)
        chunks = (one for key in masked for one in self.shard(self.grid.shard_of(key)).mask_chunks(key))
        for found in (*records, *chunks):
            if found is not None and (found[2] or 0) <= left:
                left -= found[2] or 0
                wanted.append(found)
        rounds = asked + bool(unsized)
        self.store.fetch(wanted, REQUESTS - rounds if len(shards) == 1 else None)

    def fetch_previews(self, shards: Iterable[TileKey], groups: Sequence[int]) -> None:
        """Bring the previews of shards near, of some groups of three bands."""
        some = list(shards)
        self._bring_sizes(set(some))
        self.store.fetch(one for shard in some for one in self.shard(shard).preview_ranges(groups))

    def fetch_shard(self, shard: TileKey) -> None:
        """Bring all objects of a shard near, each whole."""
        self.store.fetch((name, 0, None) for name in self.layout.objects(shard))

    def look_up(self, shards: Iterable[TileKey], *, masks: Iterable[TileKey] = ()) -> None:
        """Bring the indexes of shards near, in one round of requests; of those in `masks` all that their masks need."""
        readers, masked = [self.shard(shard) for shard in islice(sorted(shards), KEPT_SHARDS)], set(masks)
        self.store.fetch(
            one for reader in readers for one in (*reader.index_ranges(), *reader.mask_ranges(reader.shard in masked))
        )

    def record(self, key: TileKey) -> Record:
        """The record of a tile.  MissingTileError when it is lost, ChecksumError or FormatError when it is damaged."""
        self._check(key)
        reader = self.shard(self.grid.shard_of(key))
        if reader.sizes is None:
            self.store.fetch(reader.index_ranges())
        return reader.record(key)

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

        rows = range(window.row // tile, -(-window.row_end // tile))
        cols = range(window.col // tile, -(-window.col_end // tile))
        self.fetch((), masks=(TileKey(row, col) for row in rows for col in cols))
        result = np.zeros((planes, window.height, window.width), dtype=np.uint8)
        for row in rows:
            for col in cols:
                key = TileKey(row, col)
                core = self.grid.core(key)
                common = core.intersect(window)
                reader = self.shard(self.grid.shard_of(key))
                for plane in range(planes):
                    result[(plane, *common.slices(window))] = reader.mask(key, plane)[common.slices(core)]
        return result

    def preview(self) -> Uint8:
        """The scene at 1/64, uint8 (channels, rows, columns).  ConfigError when it is larger than 1 GiB."""
        channels, height, width = self.layout.preview_shape
        if channels * height * width > MAX_PREVIEW:
            raise ConfigError(
                f"preview of {channels} x {height} x {width} bytes; at most {MAX_PREVIEW}: read it with a Zarr reader"
            )
        import numpy as np

        result = np.zeros((channels, height, width), dtype=np.uint8)
        side = self.layout.preview_side
        for place, shard in enumerate(self.grid.shards()):
            if place % FETCHED_PREVIEWS == 0:
                following = islice(self.grid.shards(), place, place + FETCHED_PREVIEWS)
                self.store.fetch((self.layout.preview(one), 0, None) for one in following)
            part = self.shard(shard).preview()
            row, col = shard.row * side, shard.col * side
            result[:, row : row + part.shape[1], col : col + part.shape[2]] = part
        return result

    def shard(self, shard: TileKey) -> ShardReader:
        """The reader of one shard; the last 256 are kept for their indexes."""
        with self._lock:
            reader = self._shards.get(shard)
        if reader is not None:
            return reader
        made = ShardReader(self.store, self.layout, shard, self._sizes_of(self.layout.block_of(shard)).get(shard))
        with self._lock:
            reader = self._shards.setdefault(shard, made)
            if len(self._shards) > KEPT_SHARDS:
                self._shards.popitem(last=False)
            return reader

    def _bring_sizes(self, shards: set[TileKey]) -> bool:
        """Bring the sizes of shards near that are not at hand; True when any were asked for."""
        if not self.layout.sized or not self.manifest.complete:
            return False
        blocks = {self.layout.block_of(shard) for shard in shards}
        with self._lock:
            wanted = sorted(block for block in blocks if block not in self._sizes)
        if self.layout.in_one_block or not wanted:
            return False  # they came when it was opened
        self.store.fetch((self.layout.sizes(block), 0, None) for block in wanted)
        return True

    def _sizes_of(self, block: TileKey) -> dict[TileKey, ShardSizes]:
        """The sizes of a block's shards; none when the archive has none, or they are lost or damaged: `verify` says so,
        and the indexes of the shards say the same."""
        if not self.layout.sized or not self.manifest.complete:
            return {}
        with self._lock:
            if block in self._sizes:
                return self._sizes[block]
        name, found = self.layout.sizes(block), dict[TileKey, ShardSizes]()
        try:
            self.store.fetch([(name, 0, None)])
            size = self.store.size(name)
            if size is not None and size <= largest(self.layout, block):
                found = unpack_sizes(self.store.get(name, 0, size), self.layout, block)
        except (FormatError, KeyError) as error:
            _log.info("%s cannot be used (%s); the indexes of the shards are", name, error)
        with self._lock:
            self._sizes[block] = found
            if len(self._sizes) > KEPT_BLOCKS:
                self._sizes.popitem(last=False)
        return found

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
