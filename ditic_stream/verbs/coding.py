"""Scenes to archives and back: compress, decompress, region, info, verify, compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ditic_stream import console
from ditic_stream._paths import local_path, place_of
from ditic_stream.config import QUALITY_MAX
from ditic_stream.verbs.options import (
    FORMAT_ENDINGS,
    Archive,
    Device,
    Format,
    Json,
    OnError,
    Overwrite,
    Quiet,
    Ray,
    RayAddress,
    Workers,
    beside,
    byte_count,
    executor_of,
    numbers,
    report_damage,
    stem,
    window_of,
)

NEAR = 0.95
"""Part of a rate or size that is asked for, below which it was not met."""


def compress(
    context: typer.Context,
    scene: Annotated[
        Any, typer.Argument(parser=place_of, help="The scene, path or URI: TIFF of any ordinary kind, PNG or JPEG.")
    ],
    archive: Annotated[
        Any,
        typer.Argument(parser=place_of, help="NAME.ditic or NAME.ditic.zip, path or URI (default: SCENE with .ditic)."),
    ] = None,
    quality: Annotated[
        int | None, typer.Option(min=1, max=100, help="1 (smallest) to 100 (best); 50 unless --bpp or --size is given.")
    ] = None,
    bpp: Annotated[float | None, typer.Option(help="Bits per pixel to meet: the quality is chosen for it.")] = None,
    size: Annotated[
        str | None, typer.Option(metavar="BYTES", help="Bytes of the archive to meet, as 500000, 500kB, 20MB or 1.5GB.")
    ] = None,
    model: Annotated[str, typer.Option(help="The networks; see `ditic-stream models list`.")] = "small",
    tile: Annotated[int, typer.Option(help="Side of a tile, pixels: a multiple of 256.")] = 1024,
    overlap: Annotated[int, typer.Option(help="Overlap of decoded tiles a side, pixels: a multiple of 32.")] = 64,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Accept the licence of imported weights; asked for once.")
    ] = False,
    device: Device = "cpu",
    workers: Workers = None,
    expand_palette: Annotated[
        bool, typer.Option("--expand-palette", help="Code the colours of a palette picture; it comes back in RGB.")
    ] = False,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what is to be expected, write nothing.")] = False,
    ray: Ray = False,
    ray_address: RayAddress = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compress a scene into an archive; the same command again resumes a run that was stopped.

    \b
    Example:  ditic-stream compress scene.tif scene.ditic --quality 60
    """
    from ditic_stream.compression import Estimate
    from ditic_stream.compression import compress as run
    from ditic_stream.families import family_of

    target = archive or beside(scene, f"{scene.stem}.ditic")
    with (
        console.interruptible(f"finished shards are kept; run the same command again to go on with {target}"),
        executor_of(context, ray, ray_address, workers, device, quiet=quiet) as (executor, device),
        console.Progress("compress", quiet=quiet or dry_run) as progress,
    ):
        result = run(
            scene, target, quality=quality, bpp=bpp, size=byte_count(size), model=model, tile=tile, overlap=overlap,
            device=device, workers=workers, expand_palette=expand_palette, overwrite=overwrite, dry_run=dry_run,
            progress=progress, accept_licence=accept_licence, executor=executor,
        )  # fmt: skip
    for warning in result.warnings:
        console.note(f"warning: {warning}", quiet=quiet)
    least, asked = result.bpp, bpp
    if size is not None:
        least, asked = result.bytes + getattr(result, "fixed_bytes", 0), byte_count(size)
    if asked is not None and result.quality == QUALITY_MAX and least < NEAR * asked:
        console.note(f"note: even quality {QUALITY_MAX}, the best, takes less than what was asked for", quiet=quiet)
    facts = console.plain(result)
    at = "" if family_of(model).one_rate else f" at quality {result.quality}"
    if isinstance(result, Estimate):
        size_of, span = console.size, console.duration
        psnr = f", PSNR {result.psnr:.1f} dB ({result.psnr_low:.1f} to {result.psnr_high:.1f})" if result.psnr else ""
        lines = [
            f"{result.archive}: {result.tiles} tiles in {result.shards} shards, nothing written (dry run)",
            f"expected{at}: {size_of(result.bytes)} ({size_of(result.bytes_low)} to "
            f"{size_of(result.bytes_high)}), {result.bpp:.3f} bits per pixel{psnr}",
            f"{span(result.seconds)} ({span(result.seconds_low)} to {span(result.seconds_high)}), "
            f"{size_of(result.memory)} of memory; bounds hold 9 times of 10; from {result.sampled} windows or tiles",
        ]
    else:
        lines = [
            f"{result.archive}: {console.size(result.bytes)}, {result.bpp:.3f} bits per pixel{at}, "
            f"{result.tiles} tiles, "
            f"and {console.size(result.fixed_bytes)} of container and preview, {console.duration(result.seconds)}"
        ]
        if result.resumed == result.shards:
            lines.append(f"nothing was left to code: all {result.shards} shards were there already")
        elif result.resumed:
            lines.append(f"resumed: {result.resumed} of {result.shards} shards were there already")
    console.emit(facts, as_json=as_json, lines=lines, quiet=quiet)


def decompress(
    context: typer.Context,
    archive: Archive,
    out: Annotated[
        Path | None,
        typer.Argument(
            parser=local_path,
            help="NAME.tif, .cog.tif, .btf (BigTIFF), .zarr, .ome.zarr, .png or .npy (default: NAME.decoded.tif).",
        ),
    ] = None,
    format: Format = None,
    workers: Workers = None,
    device: Device = "cpu",
    on_error: OnError = "stop",
    overwrite: Overwrite = False,
    ray: Ray = False,
    ray_address: RayAddress = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Decode a whole archive, strip by strip, with the metadata of its source.

    \b
    Example:  ditic-stream decompress scene.ditic scene.decoded.tif
    """
    from ditic_stream.regions import decompress as run

    if device == "mixed":
        raise typer.BadParameter("pixels differ in the last level between kinds of devices; use --device cpu or cuda")
    name = f"{stem(archive)}.decoded{FORMAT_ENDINGS[format or 'tif']}"
    target = out or local_path(beside(archive, name, here=True))
    with (
        console.interruptible(f"nothing was written to {target}; run the same command again"),
        executor_of(context, ray, ray_address, workers, device, quiet=quiet) as (executor, device),
        console.Progress("decompress", quiet=quiet) as progress,
    ):
        result = run(
            archive, target, workers=workers, device=device, on_error=on_error, format=format, overwrite=overwrite,
            progress=progress, executor=executor,
        )  # fmt: skip
    report_damage(result, quiet)
    console.emit(
        console.plain(result), as_json=as_json, quiet=quiet,
        lines=[f"{target}: {console.size(target.stat().st_size) if target.is_file() else 'written'}"],
    )  # fmt: skip


def region(
    archive: Archive,
    out: Annotated[
        Path,
        typer.Argument(
            parser=local_path, help="NAME.tif, .cog.tif, .btf, .zarr, .ome.zarr, .png or .npy (rows, columns, bands)."
        ),
    ],
    window: Annotated[
        str | None, typer.Option(metavar="COL,ROW,WIDTH,HEIGHT", help="Pixels, counted from the upper left.")
    ] = None,
    bbox: Annotated[
        str | None, typer.Option(metavar="XMIN,YMIN,XMAX,YMAX", help="Ground coordinates: every pixel they touch.")
    ] = None,
    bbox_crs: Annotated[
        str | None, typer.Option(help="CRS of --bbox, e.g. EPSG:4326 (default: the scene's). Needs the extra `geo`.")
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes; more than one pay for large windows. The bytes do not depend on it.")
    ] = 1,
    format: Format = None,
    device: Device = "cpu",
    on_error: OnError = "stop",
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Decode one window: the exact crop of what `decompress` gives, reading only the tiles it needs.

    \b
    Example:  ditic-stream region scene.ditic part.tif --window 4096,2048,1024,768
    """
    if (window is None) == (bbox is None):
        raise typer.BadParameter("give one of --window and --bbox")
    if bbox_crs is not None and bbox is None:
        raise typer.BadParameter("--bbox-crs says how --bbox is meant; give --bbox too")
    bounds = numbers(bbox, 4, float, "--bbox") if bbox is not None else None
    pixels = window_of(*numbers(window, 4, int, "--window")) if window is not None else None
    from ditic_stream.cutout import region as run

    with console.interruptible(f"nothing was written to {out}; run the same command again"):
        result = run(
            archive, out, window=pixels, bbox=bounds, bbox_crs=bbox_crs, device=device, workers=workers,
            on_error=on_error, format=format, overwrite=overwrite,
        )  # fmt: skip
    report_damage(result, quiet)
    console.emit(
        console.plain(result), as_json=as_json, quiet=quiet,
        lines=[f"{out}: {result.width} x {result.height} pixels from column {result.col}, row {result.row}"],
    )  # fmt: skip


def info(archive: Archive, as_json: Json = False, quiet: Quiet = False) -> None:
    """Say what an archive holds and costs, without reading a pixel.

    \b
    Example:  ditic-stream info scene.ditic --json
    """
    from ditic_stream.archive import open_archive
    from ditic_stream.summary import lines, summary

    with open_archive(archive) as opened:
        facts = summary(opened)
    console.emit(facts, as_json=as_json, lines=lines(facts), quiet=quiet)


def verify(
    archive: Archive,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also decode the symbols of every tile; needs torch and the weights.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check every byte of an archive; name what is damaged, and leave with 1 if anything is.

    \b
    Example:  ditic-stream verify scene.ditic
    """
    with console.interruptible("nothing was changed"), console.Progress("verify", quiet=quiet, unit="MB") as progress:
        if deep:
            from ditic_stream.deep import verify_deep

            report = verify_deep(archive, progress=progress)
        else:
            from ditic_stream.verify import verify as run

            report = run(archive, progress)
    found = len(report.problems)
    verdict = "no problem" if report.ok else "1 problem" if found == 1 else f"{found} problems"
    more = " and more: stopped there" if report.stopped else ""
    more += f" and {report.unlisted} more lost tiles" if report.unlisted else ""
    for problem in () if as_json else report.problems:
        typer.echo(f"{problem.kind}: {problem}")  # a result, and so printed even when quiet
    console.emit(
        report.to_json(), as_json=as_json, quiet=quiet,
        lines=[f"{archive}: {verdict}{more} in {report.tiles} tiles, {console.size(report.bytes)}"],
    )  # fmt: skip
    if not report.ok:
        raise typer.Exit(1)


def compare(
    scene: Annotated[Any, typer.Argument(parser=place_of, help="The scene the archive was made from.")],
    archive: Archive,
    min_psnr: Annotated[float | None, typer.Option(help="Leave with 1 when PSNR is lower, dB.")] = None,
    min_ms_ssim: Annotated[float | None, typer.Option(help="Leave with 1 when MS-SSIM is lower.")] = None,
    max_error: Annotated[float | None, typer.Option(help="Leave with 1 when any sample is farther off.")] = None,
    workers: Workers = None,
    device: Device = "cpu",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure an archive against its scene: PSNR, MS-SSIM, largest error, bits per pixel.

    Leaves with 1 when a bound is broken, or when nodata or masks came back otherwise than they were.

    With --json: one object a tile ("kind": "tile"), then one for the scene ("kind": "scene").

    \b
    Example:  ditic-stream compare scene.tif scene.ditic --min-psnr 30
    """
    from ditic_stream.compare import TileQuality
    from ditic_stream.compare import compare as run

    def show(tile: TileQuality) -> None:
        if as_json:
            console.emit({"kind": "tile", **console.plain(tile)}, as_json=True, lines=[])

    with (
        console.interruptible("nothing was changed; run the same command again"),
        console.Progress("compare", quiet=quiet) as progress,
    ):
        found = run(scene, archive, workers=workers, device=device, progress=progress, on_tile=show)
    broken = found.violations(min_psnr=min_psnr, min_ms_ssim=min_ms_ssim, max_error=max_error)
    facts = {"kind": "scene", **console.plain(found), "violations": broken}
    console.emit(facts, as_json=as_json, lines=found.lines(), quiet=quiet)
    for sentence in broken:
        console.note(f"ditic-stream: bound: {sentence}")
    if broken:
        raise typer.Exit(1)
