"""Give pixels back: any window of an archive, or all of it into a file, the same bits either way.

In: an archive.  Out: pixels in the scene's own type, masks restored; files with the metadata of the source.
Knows where finished pixels go; which windows a request touches and how they are decoded is in _decoding and _rendering.

    records --> latents --> windows --> blend --> network units to pixels, masks --> strips --> file
    (workers, any order)              (here, row-major: overlaps are added in the order of the grid, not of arrival)
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ditic_stream._belts import decode_apart
from ditic_stream._claim import keep_apart
from ditic_stream._decoding import Damage, OnError, Pixels, Progress, Strip, check_whole, decode, finish
from ditic_stream._paths import local_path
from ditic_stream._rendering import codec_of, decode_tile, render_window
from ditic_stream.archive import Archive, open_archive
from ditic_stream.blend import Blender, windows_of
from ditic_stream.executors import Executor, be_one_thread, cores, one_thread
from ditic_stream.geometry import TileKey, Window
from ditic_stream.latents import Cells, Latent, LatentCache, assemble
from ditic_stream.radiometry import Radiometry
from ditic_stream.summary import bits_per_pixel, rate
from ditic_stream.writer import Output, crop_metadata, not_kept, open_output

if TYPE_CHECKING:
    from ditic_stream.codec import TileCodec

__all__ = ["Damage", "OnError", "Result", "Scene", "decompress", "open_scene", "strips"]
CACHE_BYTES = 2**26
"""Latents an open scene keeps between reads."""
READ_THREADS = 4
"""Windows an open scene renders at once, at most; each takes some 300 MB at 1024 pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a run of `decompress` made."""

    out: str
    height: int
    width: int
    bands: int
    """Without alpha."""
    dtype: str
    damaged: tuple[str, ...]
    """Tiles ("row,col") that were filled, since their record or mask is lost or damaged, or is not coded yet."""
    uncoded: tuple[str, ...]
    """Those of them that are not coded yet: the archive is not complete."""
    degraded: tuple[str, ...]
    """Their neighbours, which are whole but for the pixels within the overlap of a damaged one."""
    warnings: tuple[str, ...]
    """What of the scene the file does not keep, one sentence each."""
    seconds: float


class Scene:
    """An archive as an array of pixels, decoded where it is read.  `shape` is (rows, columns, samples).

    A read gives the bits that `decompress` gives there.  It runs in this process; a few threads render windows, each
    window by one.  Tiles decoded last are kept, so that reads near one another are fast.  Not for use by several
    threads at once.
    """

    def __init__(self, archive: Archive, *, device: str = "cpu", on_error: OnError = "stop") -> None:
        check_whole(archive, on_error)
        self.archive = archive
        self.damage = Damage()
        self._fill = on_error == "fill"
        self._radiometry = Radiometry.from_json(archive.manifest.radiometry)
        self._device = device
        self._codec: TileCodec | None = None
        self._empty: set[TileKey] = set()
        self._latents = LatentCache(self._decode, limit=CACHE_BYTES)

    @property
    def shape(self) -> tuple[int, int, int]:
        image = self.archive.manifest.image
        return image.height, image.width, self._radiometry.samples

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.archive.manifest.image.dtype)

    @property
    def ndim(self) -> int:
        return 3

    @property
    def crs(self) -> str | None:
        """The reference system as "EPSG:code", None when the source named none by code."""
        code = self._geo.get("epsg")
        return f"EPSG:{code}" if code else None

    @property
    def transform(self) -> tuple[float, ...] | None:
        """(a, b, c, d, e, f): x = a col + b row + c, y = d col + e row + f of a pixel's upper left corner."""
        values = self._geo.get("transform")
        return tuple(values) if values else None

    @property
    def _geo(self) -> dict[str, Any]:
        geo = self.archive.manifest.source.metadata.get("geo")
        return geo if isinstance(geo, dict) else {}

    def read(self, window: Window | None = None) -> Pixels:
        """The samples (bands and alpha, rows, columns) of `window`, of the whole scene by default, in `dtype`.

        Raises WindowError outside the scene; MissingTileError, ChecksumError, DesyncError for lost and damaged tiles.
        """
        grid = self.archive.grid
        window = grid.scene if window is None else window.within(grid.height, grid.width)
        out = np.empty((self._radiometry.samples, *window.shape), self.dtype)
        rows, cols = windows_of(grid, window)
        blender = Blender(grid, rows, cols, self.archive.manifest.image.bands)
        for key, pixels in self._rendered([TileKey(row, col) for row in rows for col in cols]):
            done = blender.add(key, pixels)
            if done is not None and done[0].meets(window):
                part = done[0].intersect(window)
                units = done[1][(slice(None), *part.slices(done[0]))]
                samples, _ = finish(self.archive, self._radiometry, part, units, self.damage if self._fill else None)
                out[(slice(None), *part.slices(window))] = samples
        return out

    def __getitem__(self, index: Any) -> Pixels:
        """numpy's basic indexing, (rows, columns, samples): ints and slices; a step is taken after reading."""
        rows, cols, samples = _expand(index)
        height, width, _ = self.shape
        (top, bottom, row_step), (left, right, col_step) = _range(rows, height), _range(cols, width)
        if top >= bottom or left >= right:
            pixels = np.empty((max(bottom - top, 0), max(right - left, 0), self.shape[2]), self.dtype)
        else:
            window = Window(row=top, col=left, height=bottom - top, width=right - left)
            pixels = self.read(window).transpose(1, 2, 0)
        pixels = pixels[::row_step, ::col_step]
        picked = pixels[0 if isinstance(rows, int) else slice(None)]
        return picked[(..., 0, samples) if isinstance(cols, int) else (..., samples)]

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Pixels:
        if copy is False:
            raise ValueError("a scene is decoded into a new array; copy=False cannot be had")
        return self[...].astype(dtype or self.dtype, copy=False)

    def close(self) -> None:
        self.archive.close()

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _decode(self, key: TileKey) -> Latent:
        latent, decoded = decode_tile(self.archive, self._open_codec(), key, fill=self._fill)
        if decoded.empty:
            self._empty.add(key)
        if decoded.damage is not None:
            self.damage.tiles[key] = decoded.damage
        return latent

    def _rendered(self, keys: list[TileKey]) -> Iterator[tuple[TileKey, NDArray[np.float32]]]:
        """The rendered windows in the order of `keys`.  Latents are put together here, a few windows ahead."""
        codec, grid = self._open_codec(), self.archive.grid
        threads = min(len(keys), cores(), READ_THREADS) if self._device == "cpu" else 1
        waiting: deque[tuple[TileKey, Future[NDArray[np.float32]]]] = deque()

        def render(key: TileKey, cells: Cells) -> NDArray[np.float32]:
            if self._empty.issuperset(grid.neighbours(key)):  # nothing of it is seen
                return np.zeros((self.archive.manifest.image.bands, *grid.decode_window(key).shape), np.float32)
            return render_window(self.archive, codec, key, cells)

        with one_thread(), ThreadPoolExecutor(threads, initializer=be_one_thread) as pool:
            for key in keys:
                waiting.append((key, pool.submit(render, key, assemble(grid, key, self._latents))))
                if len(waiting) > threads:
                    done, future = waiting.popleft()
                    yield done, future.result()
            for done, future in waiting:
                yield done, future.result()

    def _open_codec(self) -> TileCodec:
        if self._codec is None:
            self._codec = codec_of(self.archive.manifest, self._device)
        return self._codec


def open_scene(path: str | Path, *, device: str = "cpu", on_error: OnError = "stop") -> Scene:
    """Open an archive for reading windows; a context manager.  The networks are loaded at the first read.

    on_error: "fill" goes on after a lost or damaged tile with zero latents and lists it in `scene.damage`.
    Raises SourceError or FormatError when it is no archive; MissingTileError when it is not complete.
    """
    archive = open_archive(path)
    try:
        return Scene(archive, device=device, on_error=on_error)
    except BaseException:
        archive.close()
        raise


def decompress(
    archive: str | Path,
    out: str | Path,
    *,
    window: Window | None = None,
    workers: int | None = None,
    device: str = "cpu",
    on_error: OnError = "stop",
    overwrite: bool = False,
    progress: Progress | None = None,
    executor: Executor | None = None,
) -> Result:
    """Decode `archive`, or one window of it, into the file `out`: .tif, .png or .zarr, with the source's metadata,
    or .npy, (rows, columns, samples), without.

    workers: processes, the cores by default.  on_error: "fill" goes on after lost or damaged tiles and names them in
    the Result.  progress: called with (pixels done, pixels in all).  executor: one to use instead of `workers`; where
    its workers are on other machines, they must see the archive and the folder of `out`.
    Raises MissingTileError, ChecksumError or DesyncError, with the tile's name; ConfigError when `out` exists or is
    part of the archive; StorageError when it cannot be written, and then nothing is left under its name.
    """
    began, damage = time.monotonic(), Damage()
    target = local_path(out)
    keep_apart(target, local_path(archive))
    with open_archive(archive) as opened:
        manifest, grid = opened.manifest, opened.grid
        window = grid.scene if window is None else window.within(grid.height, grid.width)
        check_whole(opened, on_error, window)
        metadata = manifest.source.metadata
        with open_output(
            target,
            height=window.height,
            width=window.width,
            bands=manifest.image.bands,
            dtype=manifest.image.dtype,
            metadata=metadata if window == grid.scene else crop_metadata(metadata, window),
            overwrite=overwrite,
            lossy=_lossy(opened),
        ) as output:
            if executor is not None and not executor.local:
                decode_apart(opened, window, output, executor, device, on_error, progress, damage)
            else:
                scratch = target.absolute().parent
                _write(
                    output,
                    window,
                    decode(opened, window, workers, device, on_error, progress, executor, scratch, damage),
                )
        return Result(
            out=str(target),
            height=window.height,
            width=window.width,
            bands=manifest.image.bands,
            dtype=manifest.image.dtype,
            damaged=tuple(str(key) for key in sorted(damage.tiles)),
            uncoded=tuple(str(key) for key in damage.uncoded(opened)),
            degraded=tuple(str(key) for key in damage.degraded(opened)),
            warnings=not_kept(target, metadata),
            seconds=round(time.monotonic() - began, 3),
        )


def _write(output: Output, window: Window, strips: Iterator[Strip]) -> None:
    """Write strips while the next ones are blended: compressing a strip must not keep the workers waiting."""
    with ThreadPoolExecutor(1) as writer:
        written: Future[None] | None = None
        for strip in strips:
            if written is not None:
                written.result()
            at = Window(row=strip.window.row - window.row, col=0, height=strip.window.height, width=window.width)
            written = writer.submit(output.write, at, strip.samples, strip.mask)
        if written is not None:
            written.result()


def strips(
    archive: str | Path,
    *,
    window: Window | None = None,
    workers: int | None = None,
    device: str = "cpu",
    on_error: OnError = "stop",
    progress: Progress | None = None,
    executor: Executor | None = None,
    scratch: Path | None = None,
    damage: Damage | None = None,
) -> Iterator[tuple[Window, Pixels]]:
    """Decode `window`, the whole scene by default, from top to bottom: (Window, pixels (bands, rows, columns)).

    Strips take the window's full width and are 256 rows high (less if very wide, and the last one); alpha is left
    out.  scratch: the folder for what lies on disk meanwhile.  damage: collects what "fill" filled.
    """
    with open_archive(archive) as opened:
        window = opened.grid.scene if window is None else window.within(opened.grid.height, opened.grid.width)
        check_whole(opened, on_error, window)
        alpha = Radiometry.from_json(opened.manifest.radiometry).alpha
        found = damage if damage is not None else Damage()
        for strip in decode(opened, window, workers, device, on_error, progress, executor, scratch, found):
            yield strip.window, strip.samples if alpha is None else np.delete(strip.samples, alpha, axis=0)


def _lossy(archive: Archive) -> str:
    """The mark a decoded file keeps: by what its pixels were coded, and at which rate."""
    manifest = archive.manifest
    bpp = bits_per_pixel(rate(archive)[0], manifest.image.height, manifest.image.width)
    return f"{manifest.software}; {manifest.model.name} {manifest.model.weights[:16]}; {bpp:.4f} bpp"


def _expand(index: Any) -> tuple[Any, Any, Any]:
    """An index of a (rows, columns, samples) array as three ints or slices."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in [part for part in parts if not isinstance(part, np.ndarray)]:
        at = parts.index(Ellipsis)
        parts[at : at + 1] = [slice(None)] * (4 - len(parts))
    parts += [slice(None)] * (3 - len(parts))
    if len(parts) != 3:
        raise IndexError(f"{len(parts)} indexes for the three axes (rows, columns, samples)")
    for part in parts:
        if not isinstance(part, slice | int | np.integer):
            raise IndexError(f"index {part!r} is neither a number nor a slice; read the window around it")
    rows, cols, samples = (int(part) if isinstance(part, np.integer) else part for part in parts)
    return rows, cols, samples


def _range(index: int | slice, length: int) -> tuple[int, int, int]:
    """(first, end, step) of an index on an axis."""
    if isinstance(index, int):
        first = index + length if index < 0 else index
        if not 0 <= first < length:
            raise IndexError(f"index {index} is outside the scene's axis of {length} pixels")
        return first, first + 1, 1
    first, end, step = index.indices(length)
    if step < 1:
        raise IndexError(f"step {step} is not positive; read forwards and turn the array around")
    return first, end, step
