"""A scene as a Zarr store that is not there: anything that opens Zarr v3 sees ordinary arrays of pixels.

In: an open scene.  Out: a read-only `zarr.abc.store.Store` of one group: the levels of the scene as arrays "0", "1",
... (samples, rows, columns), uncompressed little-endian chunks that are decoded when they are asked for; `labels/mask`
likewise where anything is hidden; attributes of OME-NGFF 0.5 and GeoZarr, as in `.ome.zarr` outputs.
Knows the keys of Zarr v3; the pixels are those of `Scene.read`.

    zarr.json   0/zarr.json   0/c/0/{row}/{col}   ...   labels/zarr.json   labels/mask/0/c/{row}/{col}   ...
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype

from ditic_stream._ome import VERSION, image_attributes, mask_attributes
from ditic_stream.doors._pixels import Pixels, Valid, chunk_side, is_masked
from ditic_stream.errors import ConfigError
from ditic_stream.scene import Scene, open_scene

LABELS, MASK = "labels/", "labels/mask/"
HOW = "levels of ditic format 1"


def view(scene: Scene | str, **options: Any) -> SceneStore:
    """A store that shows a scene; open it by `zarr.open_group(view(uri), mode="r")`, or hand it to what opens Zarr.

    scene: an open scene, which must stay open; or the name of an archive, then closed with the store.
    options: of `ditic_stream.open`, for a name.  Raises what that raises; writing raises ValueError.
    """
    if isinstance(scene, Scene):
        if options:
            raise ConfigError(f"{', '.join(options)}: options of opening, and the scene is open; give its name instead")
        return SceneStore(scene)
    return SceneStore(open_scene(scene, **options), owned=True)


class _Array:
    """One array of the view: its metadata, and the bytes of its chunks."""

    def __init__(self, pixels: Pixels | Valid, fill: float | int) -> None:
        self._pixels, self.shape = pixels, pixels.shape
        side = chunk_side(pixels.scene, pixels.level)
        self.chunk = (*self.shape[:-2], min(side, self.shape[-2]), min(side, self.shape[-1]))
        self.grid = tuple(-(-size // part) for size, part in zip(self.shape, self.chunk, strict=True))
        self._fill = pixels.dtype.type(fill)

    def metadata(self) -> dict[str, Any]:
        """What `zarr.json` says of it."""
        names = ["c", "y", "x"][-len(self.shape) :]
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(self.shape),
            "data_type": self._pixels.dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(self.chunk)}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": _json_number(self._fill.item()),
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
            "dimension_names": names,
            "attributes": {},
        }

    def chunk_keys(self) -> Iterator[str]:
        return ("c/" + "/".join(map(str, place)) for place in np.ndindex(self.grid))

    def holds(self, place: tuple[int, ...]) -> bool:
        """Whether the grid of chunks has this place."""
        return len(place) == len(self.grid) and all(at < count for at, count in zip(place, self.grid, strict=True))

    @property
    def chunk_bytes(self) -> int:
        return int(np.prod(self.chunk)) * self._pixels.dtype.itemsize

    def read(self, place: tuple[int, ...]) -> bytes:
        """The bytes of a chunk; what lies outside the scene is the fill value."""
        slices = tuple(slice(at * part, (at + 1) * part) for at, part in zip(place, self.chunk, strict=True))
        found: NDArray[Any] = self._pixels[slices]
        if found.shape != self.chunk:
            whole = np.full(self.chunk, self._fill, found.dtype)
            whole[tuple(slice(size) for size in found.shape)] = found
            found = whole
        return found.astype(found.dtype.newbyteorder("<"), copy=False).tobytes()


class SceneStore(Store):
    """The store; `view` makes it.  Safe in threads; pickles as the archive's name, which is opened again elsewhere."""

    supports_writes: bool = False
    supports_deletes: bool = False
    supports_listing: bool = True

    def __init__(self, scene: Scene, *, owned: bool = False) -> None:
        super().__init__(read_only=True)
        self._scene, self._owned = scene, owned
        levels, metadata = range(scene.level_count), scene.archive.manifest.source.metadata
        images = [Pixels(scene, level, bands_first=True) for level in levels]
        self._arrays = {f"{pixels.level}/": _Array(pixels, scene.nodata or 0) for pixels in images}
        lossy = scene.tags()["DITIC_LOSSY"]
        attributes = image_attributes(metadata, [one.shape for one in images], scene.dtype, how=HOW, lossy=lossy)
        groups: dict[str, dict[str, Any]] = {"": attributes}
        if is_masked(scene):
            masks = [Valid(scene, level) for level in levels]
            self._arrays |= {f"{MASK}{mask.level}/": _Array(mask, 0) for mask in masks}
            groups[LABELS] = {"ome": {"version": VERSION, "labels": ["mask"]}}
            groups[MASK] = mask_attributes(metadata, [mask.shape for mask in masks], HOW)
        documents = {
            path: {"zarr_format": 3, "node_type": "group", "attributes": attributes}
            for path, attributes in groups.items()
        } | {path: array.metadata() for path, array in self._arrays.items()}
        self._documents = {f"{path}zarr.json": json.dumps(one).encode() for path, one in documents.items()}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SceneStore) and other._scene is self._scene

    __hash__ = object.__hash__

    def __reduce__(self) -> Any:
        return SceneStore, (self._scene,)

    def __repr__(self) -> str:
        return f"SceneStore({self._scene.uri!r})"

    def close(self) -> None:
        """Close the scene too, if the store opened it."""
        super().close()
        if self._owned:
            self._scene.close()

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Metadata, or a chunk decoded in a thread; None for a key that is not there."""
        found: bytes | None = self._documents.get(key)
        if found is None:
            array, place = self._chunk(key)
            if array is None:
                return None
            found = await asyncio.to_thread(array.read, place)
        return (prototype or default_buffer_prototype()).buffer.from_bytes(_part(found, byte_range))

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """The same for several keys at once."""
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def exists(self, key: str) -> bool:
        """Whether there is such a key; decodes nothing."""
        return key in self._documents or self._chunk(key)[0] is not None

    async def getsize(self, key: str) -> int:
        """Bytes of a value, without decoding it; FileNotFoundError when there is none."""
        if key in self._documents:
            return len(self._documents[key])
        array, _ = self._chunk(key)
        if array is None:
            raise FileNotFoundError(key)
        return array.chunk_bytes

    async def list(self) -> AsyncIterator[str]:
        """All keys: a scene of a million chunks has a million."""
        for key in self._keys():
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        for key in self._keys():
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """The names right below a prefix."""
        folder = prefix.rstrip("/") + "/" if prefix.rstrip("/") else ""
        chunks = next(((path, one) for path, one in self._arrays.items() if folder.startswith(f"{path}c/")), None)
        if chunks is not None:
            path, array = chunks
            above = folder[len(path) + 2 :].split("/")[:-1]
            for place in range(array.grid[len(above)] if len(above) < len(array.grid) else 0):
                yield str(place)
            return
        names = dict.fromkeys(key[len(folder) :].split("/")[0] for key in self._documents if key.startswith(folder))
        for name in names:
            yield name
        if folder in self._arrays:
            yield "c"

    async def set(self, key: str, value: Buffer) -> None:
        self._check_writable()

    async def delete(self, key: str) -> None:
        self._check_writable()

    def _keys(self) -> Iterator[str]:
        yield from self._documents
        for path, array in self._arrays.items():
            yield from (path + key for key in array.chunk_keys())

    def _chunk(self, key: str) -> tuple[_Array | None, tuple[int, ...]]:
        """The array and the place of a chunk's key; (None, ()) for any other."""
        found = re.fullmatch(r"((?:labels/mask/)?\d{1,2}/)c((?:/(?:0|[1-9]\d{0,8}))+)", key)
        array = self._arrays.get(found[1]) if found else None
        if found is None or array is None:
            return None, ()
        place = tuple(map(int, found[2][1:].split("/")))
        return (array, place) if array.holds(place) else (None, ())


def _json_number(value: float | int) -> float | int | str:
    """As Zarr writes it: JSON has no NaN and no infinities."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    return value


def _part(data: bytes, byte_range: ByteRequest | None) -> bytes:
    """The bytes that a request asks for."""
    if isinstance(byte_range, RangeByteRequest):
        return data[byte_range.start : byte_range.end]
    if isinstance(byte_range, OffsetByteRequest):
        return data[byte_range.offset :]
    if isinstance(byte_range, SuffixByteRequest):
        return data[-byte_range.suffix :] if byte_range.suffix else b""
    return data
