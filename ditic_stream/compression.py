"""Compress a scene into an archive, shard by shard, so that it can be stopped anywhere and go on.

In: a source and a place for the archive.  Out: the archive, and a Result of a few numbers.
Knows the order of things; pixels are read, coded and written inside the workers (_encoding), which get the name of a
shard and give back a Receipt.

    source --> survey, manifest --> lock, what is done already --> shards, in any order --> metadata, complete --> zip
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ditic_stream import __version__
from ditic_stream._claim import keep_apart
from ditic_stream._destination import destination_of
from ditic_stream._encoding import Describe, EncodeShard, Receipt, area, peak_memory
from ditic_stream._forecast import CodeWindows, Forecast, Forecaster, at, spread
from ditic_stream._layout import Layout
from ditic_stream._lock import hold, release
from ditic_stream._pace import Spent, seconds_of_run
from ditic_stream._paths import Name, Place, Uri, everywhere, place_of
from ditic_stream._store import LOCK, PARTIAL
from ditic_stream.archive import ArchiveWriter, create_archive, is_there, open_archive, pack_zip, remove_archive
from ditic_stream.bitstream import EMPTY
from ditic_stream.config import GridConfig, q_of_quality
from ditic_stream.errors import ConfigError, DiticError, LockedError, StorageError
from ditic_stream.executors import Executor, executor_for
from ditic_stream.families import check_environment, family_of
from ditic_stream.geometry import TileKey
from ditic_stream.manifest import FORMAT, Image, Manifest, ModelRef, SourceRef
from ditic_stream.models.folder import check_accepted
from ditic_stream.radiometry import survey
from ditic_stream.reader import Source, open_source
from ditic_stream.summary import bits_per_pixel, rate
from ditic_stream.tiling import Grid

SAMPLE_TILES, MOST_TILES = 8, 24
"""Tiles a dry run codes to know time and memory: three a worker, in these bounds."""
QUALITY = 50
"""Unless another, a rate or a size is asked for."""
PREVIEW_SHARE, PREVIEW_BYTES = 0.85, 45
"""About the part of the preview's bytes that compression leaves, and what an object of it takes beside."""
CAP = 10**5
"""A length of the longest record that has about as many digits as that of any."""
ZIP_BYTES, ZIP_OBJECT_BYTES = 22, 76
"""What a zip adds, once and for each object, beside its name twice."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a run of `compress` made.  Tiles and bytes are those of the whole archive, whoever coded them."""

    archive: str
    tiles: int
    empty: int
    """Tiles without a coded pixel."""
    quality: int
    bytes: int
    """Records with headers, shard indexes, sizes of chunks where they are said, and masks: what `bpp` counts."""
    fixed_bytes: int
    """Everything else: metadata and preview."""
    bpp: float
    shards: int
    resumed: int
    """Shards that an earlier run had finished."""
    outside: float
    """Share of the samples coded by this run that lay beyond what the networks are shown, and were clipped."""
    seconds: float
    warnings: tuple[str, ...]
    """What of the source the archive does not keep, a sentence each."""
    devices: tuple[str, ...] = ()
    """Kinds of devices that coded what this run coded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a dry run expects, from coding windows and a few tiles spread over the scene."""

    archive: str
    tiles: int
    shards: int
    sampled: int
    """Windows of 256 x 256 pixels that were coded to know; of a scene of up to 33 megapixels, its tiles."""
    quality: int
    bytes: int
    """Records with headers, shard indexes, sizes of chunks where they are said, and masks: what `bpp` counts."""
    bytes_low: int
    bytes_high: int
    """Bounds that hold for 9 scenes of 10."""
    bpp: float
    psnr: float | None
    """Decibels, as `compare` measures it; None when nothing differs or nothing is in sight."""
    psnr_low: float | None
    psnr_high: float | None
    seconds: float
    """Of the same call without dry_run; where it has a quality to choose, that is counted."""
    seconds_low: float
    seconds_high: float
    """Bounds that are to hold for 9 scenes of 10: close on a machine of one's own, wide on one that others use too."""
    memory: int
    """Bytes, of all processes together: an upper estimate, for shared libraries are counted in each."""
    warnings: tuple[str, ...]


def compress(
    source: Name,
    archive: Name,
    *,
    quality: int | None = None,
    bpp: float | None = None,
    size: int | None = None,
    model: str = "small",
    tile: int = 1024,
    overlap: int = 64,
    device: str = "cpu",
    workers: int | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    expand_palette: bool = False,
    progress: Progress | None = None,
    executor: Executor | None = None,
    accept_licence: bool = False,
) -> Result | Estimate:
    """Compress the scene `source` into `archive`, a folder NAME.ditic or a file NAME.ditic.zip, here or by their URIs.

    quality: 1..100, 50 when neither a rate nor a size is given.  bpp: the rate to meet in bits per pixel, over what
    Result.bytes counts.  size: the same as the bytes of the whole archive.  For these, windows spread over the scene
    are coded first, and the q nearest to the target is taken, which may lie between two qualities.  tile, overlap:
    pixels, see GridConfig.  workers: processes, the cores by default; the bytes do not depend on it.  overwrite:
    replace a complete archive, or one of other settings.  dry_run: write nothing and give an Estimate.  expand_palette:
    code the colours of a palette picture.  progress: called with (pixels done, pixels in all).  executor: one to use
    instead of `workers`.  accept_licence: needed once for imported weights whose licence is not a free one.  Weights of
    one rate (ditic-0.6b) take none of quality, bpp and size.
    A run that was stopped is taken up by the same call: finished shards are kept, and the bytes are those of a run
    that was not stopped.  A complete archive of the same scene and settings is left as it is: all of it was resumed.
    Raises ConfigError for settings and for another complete archive, before the scene is read where size, name and
    settings tell; SourceError for the input, StorageError when the archive cannot be written, LockedError while another
    run writes it.
    """
    began = time.monotonic()
    config, origin, target = GridConfig(tile=tile, overlap=overlap), everywhere(place_of(source)), place_of(archive)
    _check_rate(quality, bpp, size)
    if model.endswith(".safetensors"):
        model = str(Path(model).absolute())  # workers on a cluster have another working folder
    family = family_of(model)
    check_environment(model, device)
    if family.one_rate and not quality is bpp is size is None:
        raise ConfigError(
            f"{model} has one rate, the one it was trained for: give no quality, rate or size, or choose other weights "
            f"of {family.name} by --model"
        )
    if family.imported:
        check_accepted(model, accept=accept_licence)
    if isinstance(origin, Uri) or origin.is_file():
        keep_apart(target, origin)
    folder = target if dry_run else _folder(target)
    there = None if dry_run or overwrite else _complete(target)
    if there is not None:
        _clear(folder, there)
        settled = None if bpp or size else quality or QUALITY
        _require_same(target, there, _expected(there, origin, config, settled))
    with open_source(origin, expand_palette=expand_palette) as scene:
        scene.check()
        grid = Grid(height=scene.height, width=scene.width, config=config, units=family.units)
        jobs = grid.shard_rows * grid.shard_cols
        pixels = grid.height * grid.width
        workers = family.at_once if workers is None else workers
        with nullcontext(executor) if executor else executor_for(workers, device, jobs, pixels) as running:
            ((_, described),) = running.run_unordered(Describe(model, device), [None])
            manifest = _manifest(scene, grid, described, quality or QUALITY, device, there or _earlier(folder))
            if there is not None:
                _require_same(target, there, replace(manifest, quality=there.quality, q=there.q))
            windows = CodeWindows(
                source=origin, expand_palette=expand_palette, manifest=manifest, model=model, device=device
            )
            forecaster = Forecaster(running, windows, grid)
            if bpp is not None:
                manifest = at(manifest, forecaster.q_for(round(bpp * pixels / 8)))
            elif size is not None:
                manifest = at(manifest, forecaster.q_for(size, _fixed(manifest, target)))
            task = EncodeShard(
                source=origin,
                expand_palette=expand_palette,
                archive=everywhere(folder),
                manifest=manifest,
                model=model,
                device=device,
            )
            start = time.monotonic() - began
            if dry_run:
                expected = forecaster.expect(manifest.q)
                return _estimate(running, task, expected, grid, target, start, forecaster.spent)
            receipts, resumed = _make(running, task, target, overwrite, progress)
    return _result(target, receipts, resumed, time.monotonic() - began)


def _check_rate(quality: int | None, bpp: float | None, size: int | None) -> None:
    if sum(value is not None for value in (quality, bpp, size)) > 1:
        raise ConfigError("quality, bpp and size each say how many bytes to spend; give one of them")
    q_of_quality(QUALITY if quality is None else quality)
    if bpp is not None and not 0 < bpp <= 64:
        raise ConfigError(f"{bpp} bits per pixel are outside 0..64; 0.1 to 1 is usual")
    if size is not None and size < 1:
        raise ConfigError(f"an archive of {size} bytes holds nothing; give the bytes it may have")


def _folder(target: Place) -> Place:
    """Where the archive is built: the target itself, or a folder beside a zip, which is packed at the end."""
    folder = target.with_name(f"{target.name}{PARTIAL}") if target.suffix == ".zip" else target
    if isinstance(folder, Uri):
        destination_of(folder)  # says so if it cannot be written to
    elif not folder.absolute().parent.is_dir():
        raise ConfigError(f"{folder.absolute().parent} is not a folder; make it first")
    return folder


def _complete(target: Place) -> Manifest | None:
    """The manifest of the complete archive at `target`; ConfigError for a zip file that is something else."""
    found = _earlier(target)
    if found is not None and found.complete:
        return found
    if target.suffix == ".zip" and is_there(target):
        raise ConfigError(f"{target} exists and is not a complete archive; choose another name or overwrite it")
    return None


def _expected(there: Manifest, source: Place, config: GridConfig, quality: int | None) -> Manifest:
    """What the archive that is there would say if this call had made it, as far as is known without reading."""
    wanted = replace(there, grid=config, format=FORMAT)
    if quality is not None:
        wanted = replace(wanted, quality=quality, q=q_of_quality(quality))
    if not isinstance(source, Uri) and source.is_file():
        wanted = replace(wanted, source=replace(there.source, name=source.name, size=source.stat().st_size))
    return wanted


def _require_same(target: Place, there: Manifest, wanted: Manifest) -> None:
    differences = there.differences(wanted)
    if differences:
        raise ConfigError(
            f"{target} is a complete archive of other settings: {', '.join(differences)}; "
            "choose another name or overwrite it"
        )


def _is_made(target: Place, wanted: Manifest) -> bool:
    """True when the archive is complete already; ConfigError when one of other settings is."""
    there = _complete(target)
    if there is not None:
        _require_same(target, there, wanted)
    return there is not None


def _clear(folder: Place, there: Manifest) -> None:
    """Take away what a run left that was killed once the archive was whole: the folder of a zip, or a lock."""
    if folder.suffix == PARTIAL:
        if _earlier(folder) == there:
            with _locked(folder):
                remove_archive(folder)
    elif isinstance(folder, Path) and (folder / LOCK).exists():
        with suppress(LockedError, StorageError), _locked(folder):  # unless it is somebody's, or may not be touched
            pass


@contextmanager
def _locked(folder: Place) -> Iterator[None]:
    """Hold the lock of an archive; LockedError while another run has it.  Objects elsewhere have none."""
    if isinstance(folder, Uri):
        yield
        return
    handle = hold(folder / LOCK, folder)
    try:
        yield
    finally:
        release(folder / LOCK, handle)


def _manifest(
    scene: Source, grid: Grid, model: ModelRef, quality: int, device: str, earlier: Manifest | None
) -> Manifest:
    """All settings of the archive.  A survey made for an archive begun earlier on the same file is used again."""
    digest = scene.digest() if scene.etag is None else None
    if (
        earlier is not None
        and earlier.source.identity == (digest or scene.etag)
        and earlier.source.metadata == scene.metadata
    ):
        surveyed = earlier.radiometry
    else:
        surveyed = survey(scene).to_json()
    return Manifest(
        image=Image(height=scene.height, width=scene.width, bands=scene.bands, dtype=scene.dtype),
        radiometry=surveyed,
        grid=grid.config,
        shard=grid.shard,
        model=model,
        quality=quality,
        q=q_of_quality(quality),
        source=SourceRef(
            name=scene.name,
            size=scene.size,
            sha256=digest,
            etag=scene.etag,
            metadata=scene.metadata,
            warnings=tuple(scene.warnings),
        ),
        software=f"ditic-stream {__version__}",
        numerics={
            "device": device.partition(":")[0],
            "dtype": family_of(model.name).dtype(device),
            "torch": version("torch").partition("+")[0],
        },
        attributes=_georeference(scene.metadata, grid),
    )


def _earlier(folder: Place) -> Manifest | None:
    """The manifest of an archive that was begun at `folder`, if there is one that can be read."""
    try:
        with open_archive(folder) as found:
            return found.manifest
    except DiticError:
        return None


def _georeference(metadata: Mapping[str, Any], grid: Grid) -> dict[str, Any]:
    """Where the scene lies, by the GeoZarr conventions, for tools that know nothing of ours."""
    geo, out = metadata.get("geo") or {}, dict[str, Any]()
    if geo.get("transform"):
        out["spatial:dimensions"] = ["y", "x"]
        out["spatial:transform"] = geo["transform"]
        out["spatial:shape"] = [grid.height, grid.width]
    if geo.get("epsg"):
        out["proj:code"] = f"EPSG:{geo['epsg']}"
    return out


def _pack(folder: Place, target: Place, overwrite: bool) -> None:
    """Pack the finished folder into the zip, under its lock, and take it away."""
    with _locked(folder):
        pack_zip(folder, target, overwrite=overwrite)
        remove_archive(folder)


def _make(
    executor: Executor, task: EncodeShard, target: Place, overwrite: bool, progress: Progress | None
) -> tuple[list[Receipt], list[TileKey]]:
    """Code the shards that are not done and pack a zip; receipts of these, and the names of the others."""
    assert task.archive is not None
    folder, manifest = task.archive, task.manifest
    receipts, resumed = list[Receipt](), list(Layout(manifest).grid.shards())
    if not overwrite and _is_made(target, manifest):
        return receipts, resumed
    zipped = folder != everywhere(target)
    if not zipped or _earlier(folder) != manifest.finished():  # else a run was killed before it had packed the folder
        with create_archive(folder, manifest, overwrite=overwrite) as writer:
            if zipped and not overwrite and is_there(target):  # packed by another run, since this one began
                if not any(name.startswith("records/c/") for name in destination_of(folder).store().names()):
                    remove_archive(folder)
                if _is_made(target, manifest):
                    return receipts, resumed
            receipts, resumed = _encode(executor, task, writer, progress)
    if zipped:
        _pack(folder, target, overwrite)
    return receipts, resumed


def _encode(
    executor: Executor, task: EncodeShard, writer: ArchiveWriter, progress: Progress | None
) -> tuple[list[Receipt], list[TileKey]]:
    receipts: list[Receipt] = []
    grid = writer.grid
    todo = list(writer.todo())
    resumed = sorted(set(grid.shards()) - set(todo))
    total, done = grid.height * grid.width, sum(area(grid.shard_window(shard)) for shard in resumed)

    def tell(_: object, pixels: int) -> None:
        nonlocal done
        done += pixels
        if progress is not None:
            progress(min(done, total), total)  # a shard coded twice, after its worker died, counts twice

    tell(None, 0)
    for _, receipt in executor.run_unordered(task, todo, on_note=tell):
        receipts.append(receipt)
    writer.finish()
    return receipts, resumed


def _result(target: Place, receipts: list[Receipt], resumed: list[TileKey], seconds: float) -> Result:
    with open_archive(target) as archive:
        grid, image = archive.grid, archive.manifest.image
        coded, fixed = rate(archive)
        empty = sum(receipt.empty for receipt in receipts)
        for shard in resumed:
            archive.fetch(grid.tiles_of(shard))
            empty += sum(archive.record(key).kind == EMPTY for key in grid.tiles_of(shard))
        samples = sum(receipt.samples for receipt in receipts)
        return Result(
            archive=str(target),
            tiles=grid.rows * grid.cols,
            empty=empty,
            quality=archive.manifest.quality,
            bytes=coded,
            fixed_bytes=fixed,
            bpp=bits_per_pixel(coded, image.height, image.width),
            shards=grid.shard_rows * grid.shard_cols,
            resumed=len(resumed),
            outside=sum(receipt.outside for receipt in receipts) / samples if samples else 0.0,
            seconds=round(seconds, 3),
            warnings=archive.manifest.source.warnings,
            devices=tuple(sorted({receipt.device for receipt in receipts})),
        )


def _fixed(manifest: Manifest, target: Place) -> int:
    """About the bytes of metadata and preview, and of the zip around them."""
    layout = Layout(manifest.finished())
    documents = [layout.group(), *layout.arrays(CAP).values()]
    shards = layout.grid.shard_rows * layout.grid.shard_cols
    beside = PREVIEW_SHARE * math.prod(layout.preview_shape) + PREVIEW_BYTES * shards
    zipped = ZIP_BYTES + sum(ZIP_OBJECT_BYTES + 2 * len(name) for name in layout.names())
    return round(sum(map(len, documents)) + beside + (zipped if target.suffix == ".zip" else 0))


def _estimate(
    executor: Executor,
    task: EncodeShard,
    forecast: Forecast,
    grid: Grid,
    target: Place,
    start: float,
    spent: Spent,
) -> Estimate:
    """Code a few tiles spread over the scene, for time and memory, and write nothing."""
    count = max(SAMPLE_TILES, min(3 * executor.workers, MOST_TILES))
    keys = spread(grid, count)[: 2 * count]
    receipts = [receipt for _, receipt in executor.run_unordered(replace(task, archive=None), keys)]
    paces = [(one.pixels, one.spent) for one in receipts]
    if any(receipt.device != "cpu" for receipt in receipts):  # who waits for a GPU is not kept from a core
        paces, spent = [(size, replace(one, queued=0.0)) for size, one in paces], replace(spent, queued=0.0)
    shards = grid.shard_rows * grid.shard_cols
    seconds, least, most = seconds_of_run(
        grid.height * grid.width, paces, others=spent, shards=shards, workers=executor.workers, start=start
    )
    workers = max(receipt.memory for receipt in receipts) * (executor.workers if executor.workers > 1 else 0)
    psnr = forecast.psnr
    return Estimate(
        archive=str(target),
        tiles=grid.rows * grid.cols,
        shards=shards,
        sampled=forecast.windows,
        quality=task.manifest.quality,
        bytes=round(forecast.bytes.value),
        bytes_low=round(forecast.bytes.low),
        bytes_high=round(forecast.bytes.high),
        bpp=bits_per_pixel(round(forecast.bytes.value), grid.height, grid.width),
        psnr=round(psnr.value, 2) if psnr else None,
        psnr_low=round(psnr.low, 2) if psnr else None,
        psnr_high=round(psnr.high, 2) if psnr else None,
        seconds=round(seconds, 1),
        seconds_low=round(least, 1),
        seconds_high=round(most, 1),
        memory=workers + peak_memory(),
        warnings=task.manifest.source.warnings,
    )
