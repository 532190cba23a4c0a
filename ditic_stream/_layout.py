"""What objects an archive has and what its Zarr metadata says: all of it follows from the manifest.

In: a manifest.  Out: names, shapes, and the bytes of every zarr.json.  Knows Zarr's documents, not the zarr package:
they are a few lines of JSON, written here so that their bytes repeat and `info` starts at once; tests read with zarr.

    zarr.json                     group; attributes: manifest and georeferencing
    records/c/{row}/{col}/0       a shard of records: uint8 (tile rows, tile columns, cap)
    mask/c/0/{row}/{col}          a shard of mask chunks: uint8 (planes, rows, columns), if the scene has a mask
    preview/c/0/{row}/{col}       a chunk of the preview: uint8 (channels, rows / 64, columns / 64); where there are
                                  more than three channels, a shard of chunks of three each
    records/sizes/{row}/{col}     if sized: what the chunks of a block of shards measure (_sizes)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ditic_stream._paths import Place
from ditic_stream._store import GROUP, OPENING_BYTES, Store
from ditic_stream.config import GridConfig
from ditic_stream.errors import ConfigError, FormatError, SourceError
from ditic_stream.families import family_of
from ditic_stream.geometry import TileKey
from ditic_stream.manifest import KEY, MAX_MANIFEST, Image, Manifest, canonical_json, parse_json
from ditic_stream.tiling import Grid

PREVIEW_SCALE = 64
"""Scene pixels a preview pixel covers a side."""
ZSTD_LEVEL = 9
BLOCK = 16
"""Shards a side of the blocks whose sizes lie in one object."""
MANY_TILES = 256
"""Tiles from which on an archive says its sizes: a window of 16 tiles with what lies between is then a small part."""

Json = dict[str, Any]
_CRC: Json = {"name": "crc32c"}
_BYTES: Json = {"name": "bytes", "configuration": {"endian": "little"}}
_ZSTD: Json = {"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": False}}
RECORD_CODEC = "ditic.record"


@dataclass(frozen=True)
class Layout:
    """Names, shapes and metadata of one archive.  FormatError when the manifest contradicts itself."""

    manifest: Manifest

    def __post_init__(self) -> None:
        if self.grid.shard != self.manifest.shard:
            raise FormatError(
                f"manifest says shards of {self.manifest.shard} tiles a side; its grid has {self.grid.shard}"
            )

    @cached_property
    def grid(self) -> Grid:
        image = self.manifest.image
        units = family_of(self.manifest.model.name).units
        try:
            return Grid(height=image.height, width=image.width, config=self.manifest.grid, units=units)
        except ConfigError as error:
            raise FormatError(f"manifest: {error.message}") from error

    @cached_property
    def archive_id(self) -> bytes:
        return self.manifest.archive_id

    @property
    def planes(self) -> int:
        return self.manifest.planes

    @property
    def channels(self) -> int:
        """Channels of the preview: all bands; where it is not sized the first of one or two, else three."""
        bands = self.manifest.image.bands
        return bands if self.sized else 1 if bands < 3 else 3

    @property
    def previews(self) -> int:
        """Chunks of the preview of a shard, of three bands each; where there is one, it is the object itself."""
        return -(-self.channels // 3)

    @property
    def sized(self) -> bool:
        """True for archives that say the sizes of their chunks and have previews of all bands: those of format 2, and
        those of format 3 to which it is of use."""
        manifest = self.manifest
        return manifest.format == 2 or (manifest.format > 2 and _of_use(manifest.image, manifest.grid, manifest.planes))

    def block_of(self, shard: TileKey) -> TileKey:
        return TileKey(shard.row // BLOCK, shard.col // BLOCK)

    def blocks(self) -> Iterator[TileKey]:
        """The blocks of shards that have an object of sizes; none where it is not sized."""
        if self.sized:
            for row in range(-(-self.grid.shard_rows // BLOCK)):
                for col in range(-(-self.grid.shard_cols // BLOCK)):
                    yield TileKey(row, col)

    def shards_of(self, block: TileKey) -> Iterator[TileKey]:
        """The shards of a block, row-major."""
        for row in range(block.row * BLOCK, min((block.row + 1) * BLOCK, self.grid.shard_rows)):
            for col in range(block.col * BLOCK, min((block.col + 1) * BLOCK, self.grid.shard_cols)):
                yield TileKey(row, col)

    @property
    def in_one_block(self) -> bool:
        """True when one object holds all sizes: whoever opens the archive from afar reads it then."""
        return self.sized and max(self.grid.shard_rows, self.grid.shard_cols) <= BLOCK

    @property
    def preview_side(self) -> int:
        """Preview pixels a side of a shard."""
        return self.grid.shard * self.manifest.grid.tile // PREVIEW_SCALE

    @property
    def preview_shape(self) -> tuple[int, int, int]:
        image = self.manifest.image
        return self.channels, -(-image.height // PREVIEW_SCALE), -(-image.width // PREVIEW_SCALE)

    def preview_part(self, shard: TileKey) -> tuple[int, int, int]:
        """Shape of the preview of one shard, clipped to the scene."""
        window = self.grid.shard_window(shard)
        return self.channels, -(-window.height // PREVIEW_SCALE), -(-window.width // PREVIEW_SCALE)

    def slot(self, key: TileKey) -> int:
        """Place of a tile in its shard's index."""
        side = self.grid.shard
        return key.row % side * side + key.col % side

    def records(self, shard: TileKey) -> str:
        return f"records/c/{shard.row}/{shard.col}/0"

    def mask(self, shard: TileKey) -> str:
        return f"mask/c/0/{shard.row}/{shard.col}"

    def preview(self, shard: TileKey) -> str:
        return f"preview/c/0/{shard.row}/{shard.col}"

    def sizes(self, block: TileKey) -> str:
        return f"records/sizes/{block.row}/{block.col}"

    def objects(self, shard: TileKey) -> list[str]:
        """The objects one shard has, the one that says it is whole last."""
        return [*([self.mask(shard)] if self.planes else []), self.preview(shard), self.records(shard)]

    def names(self) -> Iterator[str]:
        """The names of all objects of a whole archive."""
        yield GROUP
        yield from self.arrays(0)
        for shard in self.grid.shards():
            yield from self.objects(shard)
        yield from map(self.sizes, self.blocks())

    def shard_of(self, name: str) -> TileKey | None:
        """The shard an object belongs to; None for those of no shard of this archive."""
        parts = name.split("/")
        if len(parts) != 5 or not all(part.isdecimal() for part in parts[2:]):
            return None
        row, col = parts[2:4] if parts[0] == "records" else parts[3:]
        shard = TileKey(int(row), int(col))
        inside = 0 <= shard.row < self.grid.shard_rows and 0 <= shard.col < self.grid.shard_cols
        return shard if inside and name in self.objects(shard) else None

    def group(self) -> bytes:
        """zarr.json of the archive."""
        attributes = {**self.manifest.attributes, KEY: self.manifest.to_json()}
        return group_document(attributes)

    def arrays(self, cap: int) -> dict[str, bytes]:
        """The zarr.json of each array by name; `cap`: bytes of the longest record."""
        side, tile = self.grid.shard, self.manifest.grid.tile
        image, part = self.manifest.image, self.preview_side
        documents = {
            "records": _array(
                [self.grid.rows, self.grid.cols, cap],
                [side, side, cap],
                [_sharding([1, 1, cap], [{"name": RECORD_CODEC}])],
                ["tile_row", "tile_col", "byte"],
            ),
            "preview": _array(list(self.preview_shape), *self._preview_chunks(part), ["band", "y", "x"]),
        }
        if self.planes:
            documents["mask"] = _array(
                [self.planes, image.height, image.width],
                [self.planes, side * tile, side * tile],
                [_sharding([1, tile, tile], [_BYTES, _ZSTD, _CRC])],
                ["plane", "y", "x"],
            )
        return {f"{name}/{GROUP}": canonical_json(document) for name, document in documents.items()}

    def _preview_chunks(self, side: int) -> tuple[list[int], list[Json]]:
        """Chunk shape and codecs of the preview."""
        plain = [_BYTES, _ZSTD, _CRC]
        if self.previews == 1:
            return [self.channels, side, side], plain
        return [3 * self.previews, side, side], [_sharding([3, side, side], plain)]


def _of_use(image: Image, grid: GridConfig, planes: int) -> bool:
    """Whether the sizes of chunks, or previews of other bands than the first or three, are of use."""
    tiles = -(-image.height // grid.tile) * -(-image.width // grid.tile)
    return planes > 0 or image.bands not in (1, 3) or tiles >= MANY_TILES


def group_document(attributes: Json) -> bytes:
    return canonical_json({"attributes": attributes, "node_type": "group", "zarr_format": 3})


def _array(shape: list[int], chunk: list[int], codecs: list[Json], dimensions: list[str]) -> Json:
    return {
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "codecs": codecs,
        "data_type": "uint8",
        "dimension_names": dimensions,
        "fill_value": 0,
        "node_type": "array",
        "shape": shape,
        "zarr_format": 3,
    }


def _sharding(chunk: list[int], codecs: list[Json]) -> Json:
    return {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": chunk,
            "codecs": codecs,
            "index_codecs": [_BYTES, _CRC],
            "index_location": "end",
        },
    }


def read_manifest(store: Store, path: Place) -> tuple[Manifest, Json]:
    """The manifest of the archive in `store`, and all attributes of its group as stored.

    path: for messages.  Raises SourceError when there is no archive, FormatError when it cannot be trusted.
    """
    store.fetch([(GROUP, 0, OPENING_BYTES)])
    size = store.size(GROUP)
    if size is None:
        raise SourceError(f"{path} has no {GROUP}: it is not an archive, or its writing never began")
    if size > MAX_MANIFEST:
        raise FormatError(f"{GROUP} of {size} bytes; at most {MAX_MANIFEST} are allowed")
    document = parse_json(store.get(GROUP, 0, size))
    attributes = document.get("attributes") if isinstance(document, dict) else None
    if not isinstance(attributes, dict) or KEY not in attributes:
        raise FormatError(f"{path} has no `{KEY}` among its attributes: it is a Zarr group, but not an archive")
    return Manifest.from_json(
        attributes[KEY], {name: value for name, value in attributes.items() if name != KEY}
    ), attributes
