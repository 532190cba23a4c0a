"""Verify: say whether every byte of an archive is what its writer wrote, and name what is not, to the tile.

In: an archive, folder or zip.  Out: a Report.  Knows what each byte must be; decodes no symbols and needs no torch.

    manifest            digest, schema             zarr.json            equal to what the manifest gives
    record              CRC-32C, place, archive    index of a shard     CRC-32C, no gap, no overlap
    mask, preview       CRC-32C, zstd, seal        zip                  equal to what packing the objects gives
    sizes               equal to what the shards measure

`check` is the door for what needs the model: `verify --deep` passes a function that decodes a record's symbols.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ditic_stream._layout import group_document
from ditic_stream._paths import Name
from ditic_stream._shard import Problem, ShardReader
from ditic_stream._sizes import ShardSizes, largest, pack_sizes, unpack_sizes
from ditic_stream._store import GROUP
from ditic_stream._zip import ZipStore, zip_pieces
from ditic_stream.archive import Archive, open_archive
from ditic_stream.bitstream import Record
from ditic_stream.errors import ConfigError, DiticError, FormatError
from ditic_stream.geometry import TileKey

__all__ = ["Problem", "Report", "verify"]

MAX_PROBLEMS = 1000
"""Problems after which verifying stops, and lost tiles are counted only: a hostile grid has more than memory has room
for.  What takes time is what is there: shards are found by the objects that exist, not by the grid."""

Progress = Callable[[int, int], None]
Check = Callable[[TileKey, Record], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What `verify` found."""

    problems: tuple[Problem, ...]
    tiles: int
    """Tiles looked at."""
    bytes: int
    """Bytes of all objects."""
    stopped: bool = False
    """True when MAX_PROBLEMS were reached and the rest was not looked at."""
    unlisted: int = 0
    """Lost tiles beyond those among the problems."""

    @property
    def ok(self) -> bool:
        return not self.problems

    @property
    def damaged(self) -> tuple[TileKey, ...]:
        """The tiles with a problem, each once, row-major."""
        return tuple(sorted({problem.key for problem in self.problems if problem.key is not None}))

    def to_json(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "tiles": self.tiles,
            "bytes": self.bytes,
            "stopped": self.stopped,
            "unlisted": self.unlisted,
            "damaged": [str(key) for key in self.damaged],
            "problems": [
                {
                    "kind": problem.kind,
                    "tile": None if problem.key is None else str(problem.key),
                    "shard": None if problem.shard is None else str(problem.shard),
                    "object": problem.name,
                    "message": problem.message,
                }
                for problem in self.problems
            ],
        }


def verify(path: Name | Archive, progress: Progress | None = None, check: Check | None = None) -> Report:
    """Check every byte of an archive.  Damage is reported, never raised; SourceError alone says there is no archive.

    progress: called with (bytes done, bytes of all objects) after each shard.  check: called with every sound record of
    kind CODED; a DiticError it raises becomes a problem of that tile.  Memory: one record or one mask chunk.
    """
    if isinstance(path, Archive):
        return _verify(path, progress, check)
    try:
        archive = open_archive(path)
    except FormatError as error:
        problem = Problem(kind=error.kind, name=GROUP, message=f"{error.message}; no tile was looked at")
        return Report(problems=(problem,), tiles=0, bytes=0)
    with closing(archive):
        return _verify(archive, progress, check)


def _verify(archive: Archive, progress: Progress | None, check: Check | None) -> Report:
    problems: list[Problem] = []
    tiles = done = 0
    found = set(archive.store.names())
    size = sum(archive.store.size(name) or 0 for name in found)
    cap = 0
    present = {shard for shard in map(archive.layout.shard_of, found) if shard is not None}
    measured: dict[TileKey, dict[TileKey, ShardSizes] | None] = {}
    for shard in sorted(present):
        archive.fetch_shard(shard)
        reader = ShardReader(archive.store, archive.layout, shard)  # by its indexes, whatever the sizes say
        found_here = list(reader.problems())
        problems += found_here
        cap = max(cap, reader.cap())
        tiles += sum(1 for _ in archive.grid.tiles_of(shard))
        if check is not None:
            problems += _checked(archive, shard, check)
        problems += _sizes_of(archive, reader, measured, whole=not found_here)
        if len(problems) >= MAX_PROBLEMS:
            return Report(problems=tuple(problems[:MAX_PROBLEMS]), tiles=tiles, bytes=size, stopped=True)
        found.difference_update(archive.layout.objects(shard))
        if progress is not None:
            done += sum(archive.store.size(name) or 0 for name in archive.layout.objects(shard))
            progress(done, size)
    unlisted = 0
    if archive.manifest.complete:
        lost = list(islice(_lost(archive, present), MAX_PROBLEMS - len(problems)))
        problems += lost
        unlisted = archive.grid.rows * archive.grid.cols - tiles - len(lost)
        tiles += unlisted + len(lost)
    for block in sorted(measured):
        found.discard(archive.layout.sizes(block))
        if measured[block] is not None and archive.manifest.complete:  # not all of its shards are whole
            problems += _sizes_problem(archive, block, None)
    problems += _documents(archive, cap, found, damaged=bool(problems))
    if isinstance(archive.store, ZipStore) and not problems:
        problems += _wrapper(archive.store)
    return Report(problems=tuple(problems), tiles=tiles, bytes=size, unlisted=unlisted)


def _sizes_of(
    archive: Archive, reader: ShardReader, measured: dict[TileKey, dict[TileKey, ShardSizes] | None], *, whole: bool
) -> list[Problem]:
    """Measure a shard; what is wrong with the sizes of its block, once that is the last one of it.

    measured: the sizes by block; None of a block that was compared.  whole: nothing is wrong with the shard.
    """
    layout = archive.layout
    if not layout.sized:
        return []
    block = layout.block_of(reader.shard)
    found = measured.setdefault(block, {})
    assert found is not None
    if whole:
        found[reader.shard] = reader.measured()
    if len(found) < sum(1 for _ in layout.shards_of(block)) or not archive.manifest.complete:
        return []
    measured[block] = None
    return _sizes_problem(archive, block, found)


def _sizes_problem(archive: Archive, block: TileKey, found: dict[TileKey, ShardSizes] | None) -> list[Problem]:
    """What is wrong with the sizes of a block, given those of its shards, or None where these are not all whole."""
    name = archive.layout.sizes(block)
    archive.store.fetch([(name, 0, None)])
    size = archive.store.size(name)
    if size is None:
        return [Problem(kind="missing", name=name, message="the sizes of a block of shards are missing")]
    try:
        if size > largest(archive.layout, block):
            raise FormatError(f"the sizes of a block of shards have {size} bytes")
        data = archive.store.get(name, 0, size)
        unpack_sizes(data, archive.layout, block)
    except FormatError as error:
        return [Problem(kind=error.kind, name=name, message=error.message)]
    if found is not None and data != pack_sizes(archive.layout, block, found):
        return [Problem(kind="metadata", name=name, message="the sizes are not those of the shards")]
    return []


def _lost(archive: Archive, present: set[TileKey]) -> Iterator[Problem]:
    """The tiles of shards of which no object is there, row-major."""
    for shard in archive.grid.shards():
        if shard not in present:
            name = archive.layout.records(shard)
            for key in archive.grid.tiles_of(shard):
                yield Problem(kind="missing", key=key, name=name, message="its whole shard is missing")


def _checked(archive: Archive, shard: TileKey, check: Check) -> Iterator[Problem]:
    for key in archive.grid.tiles_of(shard):
        try:
            record = archive.record(key)
        except DiticError:
            continue  # reported already
        try:
            if record.kind:
                check(key, record)
        except DiticError as error:
            yield Problem(kind=error.kind, key=key, name=archive.layout.records(shard), message=error.message)


def _documents(archive: Archive, cap: int, rest: set[str], *, damaged: bool) -> Iterator[Problem]:
    """Problems of the zarr.json files, and of objects that belong to no shard."""
    expected: dict[str, bytes | None] = {GROUP: group_document(archive.attributes)}
    if not archive.manifest.complete:
        yield Problem(kind="incomplete", message="the archive is not complete; run the same compression again")
    else:
        expected.update(archive.layout.arrays(cap))
        if damaged:  # the longest record may be among the damaged ones, so its length is not known
            expected["records/zarr.json"] = None
    for name, document in expected.items():
        size = archive.store.size(name)
        rest.discard(name)
        if size is None:
            yield Problem(kind="missing", name=name, message="the metadata of an array is missing")
        elif document is not None and (size != len(document) or archive.store.get(name, 0, size) != document):
            yield Problem(kind="metadata", name=name, message="the metadata is not what the manifest gives")
    for name in sorted(rest):
        yield Problem(kind="stray", name=name, message="no shard of this archive has an object of that name")


def _wrapper(store: ZipStore) -> Iterator[Problem]:
    """The first byte of the zip file that packing its objects would not give."""
    at = 0
    message = None
    try:
        for piece in zip_pieces(store):
            if store.read(at, len(piece)) != piece:
                message = (
                    f"the zip itself differs from what packing its objects gives, at bytes {at}..{at + len(piece)}"
                )
                break
            at += len(piece)
        else:
            if at != store.length:
                message = f"{store.length - at} bytes follow the end of the zip"
    except (FormatError, ConfigError) as error:
        message = error.message
    if message:
        yield Problem(kind="zip", name=store.path.name, message=message)
