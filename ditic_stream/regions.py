"""Give pixels back: any window of an archive, or all of it into a file, the same bits either way.

In: an archive.  Out: pixels in the scene's own type, masks restored; files with the metadata of the source.
Knows where finished pixels go; which windows a request touches and how they are decoded is in _decoding and _rendering.

    records --> latents --> windows --> blend --> network units to pixels, masks --> strips --> file
    (workers, any order)              (here, row-major: overlaps are added in the order of the grid, not of arrival)
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ditic_stream._belts import decode_apart
from ditic_stream._claim import keep_apart
from ditic_stream._decoding import Damage, OnError, Pixels, Progress, Strip, check_whole, decode
from ditic_stream._paths import Name, local_path, place_of
from ditic_stream.archive import Archive, open_archive
from ditic_stream.executors import Executor
from ditic_stream.families import check_environment
from ditic_stream.geometry import Window
from ditic_stream.radiometry import Radiometry
from ditic_stream.scene import Scene, open_scene
from ditic_stream.summary import bits_per_pixel, rate
from ditic_stream.writer import Output, crop_metadata, not_kept, open_output

__all__ = ["Damage", "OnError", "Result", "Scene", "decompress", "open_scene", "strips"]


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


def decompress(
    archive: Name,
    out: str | Path,
    *,
    window: Window | None = None,
    workers: int | None = None,
    device: str = "cpu",
    on_error: OnError = "stop",
    format: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    executor: Executor | None = None,
) -> Result:
    """Decode `archive`, or one window of it, into the file `out`: .tif, .cog.tif, .png, .zarr or .ome.zarr, with the
    source's metadata, or .npy, (rows, columns, samples), without.

    workers: processes, the cores by default.  format: one of writer.FORMATS, where the ending does not say it.
    on_error: "fill" goes on after lost or damaged tiles and names them in the Result.  progress: called with (pixels
    done, pixels in all).  executor: one to use instead of `workers`; where its workers are on other machines, they must
    see the archive and the folder of `out`.
    Raises MissingTileError, ChecksumError or DesyncError, with the tile's name; ConfigError when `out` exists or is
    part of the archive; StorageError when it cannot be written, and then nothing is left under its name.
    """
    began, damage = time.monotonic(), Damage()
    target = local_path(out)
    keep_apart(target, place_of(archive))
    with open_archive(archive) as opened:
        manifest, grid = opened.manifest, opened.grid
        check_environment(manifest.model.name, device)
        window = grid.scene if window is None else Window.of(window).within(grid.height, grid.width)
        check_whole(opened, on_error, window)
        metadata = manifest.source.metadata
        with open_output(
            target,
            height=window.height,
            width=window.width,
            bands=manifest.image.bands,
            dtype=manifest.image.dtype,
            metadata=metadata if window == grid.scene else crop_metadata(metadata, window),
            format=format,
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
            warnings=not_kept(target, metadata, format),
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
    archive: Name,
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
        grid = opened.grid
        window = grid.scene if window is None else Window.of(window).within(grid.height, grid.width)
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
