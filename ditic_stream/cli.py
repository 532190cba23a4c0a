"""The command line: each verb parses, calls one library function, and prints.

Results on stdout (`--json`: one object a line), progress and errors on stderr.  Exit 0 done, 1 failed in one line with
its kind, 2 usage, 130 interrupted.  Everything heavy is imported inside the verb that needs it: `info` and `verify`
start without torch and zarr.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ditic_stream import console
from ditic_stream._paths import local_path
from ditic_stream.errors import ConfigError
from ditic_stream.geometry import Window

app = typer.Typer(
    name="ditic-stream",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # errors are one line (console.guarded), tracebacks are for DITIC_DEBUG=1
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Compress scenes too large to hold with a learned codec, tile by tile, and read any window of them back.",
)
models = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The networks and weights at hand.")
app.add_typer(models, name="models")

Archive = Annotated[
    Path, typer.Argument(parser=local_path, help="An archive: a folder NAME.ditic or a file NAME.ditic.zip.")
]
Json = Annotated[bool, typer.Option("--json", help="Print results as JSON, one object a line.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary; errors only.")]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Processes (default: the cores). The bytes do not depend on it.")
]
Device = Annotated[str, typer.Option(help="Where the networks run: cpu or cuda.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]
OnError = Annotated[
    Literal["stop", "fill"],
    typer.Option(help="At a damaged or lost tile: stop with its name, or fill it, go on and report it."),
]


def main(arguments: list[str] | None = None) -> None:
    """The command from within Python; leaves with the exit code."""
    raise SystemExit(console.guarded(lambda: run(arguments)))


def run(arguments: list[str] | None = None) -> None:
    """The command without the guard that turns errors into exit codes."""
    # typer brings pydantic, which looks through every installed package for plugins: a tenth of the start of `info`.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    app(arguments)


def _version(wanted: bool) -> None:
    if wanted:
        from ditic_stream import __version__

        typer.echo(f"ditic-stream {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


@app.command(short_help="Compress a scene into an archive, or resume.")
def compress(
    scene: Annotated[
        Path, typer.Argument(parser=local_path, help="The scene: TIFF of any ordinary kind, PNG or JPEG.")
    ],
    archive: Annotated[
        Path | None,
        typer.Argument(parser=local_path, help="NAME.ditic or NAME.ditic.zip (default: SCENE with .ditic)."),
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
    device: Device = "cpu",
    workers: Workers = None,
    expand_palette: Annotated[
        bool, typer.Option("--expand-palette", help="Code the colours of a palette picture; it comes back in RGB.")
    ] = False,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what is to be expected, write nothing.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compress a scene into an archive; the same command again resumes a run that was stopped.

    \b
    Example:  ditic-stream compress scene.tif scene.ditic --quality 60
    """
    from ditic_stream.compression import Estimate
    from ditic_stream.compression import compress as run

    target = archive or _beside(scene, f"{scene.stem}.ditic")
    with (
        console.interruptible(f"finished shards are kept; run the same command again to go on with {target}"),
        console.Progress("compress", quiet=quiet or dry_run) as progress,
    ):
        result = run(
            scene, target, quality=quality, bpp=bpp, size=_bytes(size), model=model, tile=tile, overlap=overlap,
            device=device, workers=workers, expand_palette=expand_palette, overwrite=overwrite, dry_run=dry_run,
            progress=progress,
        )  # fmt: skip
    for warning in result.warnings:
        console.note(f"warning: {warning}", quiet=quiet)
    facts = console.plain(result)
    if isinstance(result, Estimate):
        size_of, span = console.size, console.duration
        psnr = f", PSNR {result.psnr:.1f} dB ({result.psnr_low:.1f} to {result.psnr_high:.1f})" if result.psnr else ""
        lines = [
            f"{result.archive}: {result.tiles} tiles in {result.shards} shards, nothing written (dry run)",
            f"expected at quality {result.quality}: {size_of(result.bytes)} ({size_of(result.bytes_low)} to "
            f"{size_of(result.bytes_high)}), {result.bpp:.3f} bits per pixel{psnr}",
            f"{span(result.seconds)} ({span(result.seconds_low)} to {span(result.seconds_high)}), "
            f"{size_of(result.memory)} of memory; bounds hold 9 times of 10; from {result.sampled} windows or tiles",
        ]
    else:
        lines = [
            f"{result.archive}: {console.size(result.bytes)}, {result.bpp:.3f} bits per pixel at quality "
            f"{result.quality}, {result.tiles} tiles, "
            f"and {console.size(result.fixed_bytes)} of container and preview, {console.duration(result.seconds)}"
        ]
        if result.resumed == result.shards:
            lines.append(f"nothing was left to code: all {result.shards} shards were there already")
        elif result.resumed:
            lines.append(f"resumed: {result.resumed} of {result.shards} shards were there already")
    console.emit(facts, as_json=as_json, lines=lines, quiet=quiet)


@app.command(short_help="Decode a whole archive into a file.")
def decompress(
    archive: Archive,
    out: Annotated[
        Path | None,
        typer.Argument(
            parser=local_path, help="NAME.tif, NAME.zarr, NAME.png or NAME.npy (default: NAME.decoded.tif)."
        ),
    ] = None,
    workers: Workers = None,
    device: Device = "cpu",
    on_error: OnError = "stop",
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Decode a whole archive, strip by strip, with the metadata of its source.

    \b
    Example:  ditic-stream decompress scene.ditic scene.decoded.tif
    """
    from ditic_stream.regions import decompress as run

    target = out or _beside(archive, f"{_stem(archive)}.decoded.tif")
    with (
        console.interruptible(f"nothing was written to {target}; run the same command again"),
        console.Progress("decompress", quiet=quiet) as progress,
    ):
        result = run(
            archive, target, workers=workers, device=device, on_error=on_error, overwrite=overwrite, progress=progress
        )
    _report_damage(result, quiet)
    console.emit(
        console.plain(result), as_json=as_json, quiet=quiet,
        lines=[f"{target}: {console.size(target.stat().st_size) if target.is_file() else 'written'}"],
    )  # fmt: skip


@app.command(short_help="Decode one window into a file.")
def region(
    archive: Archive,
    out: Annotated[
        Path,
        typer.Argument(parser=local_path, help="NAME.tif, NAME.zarr, NAME.png or NAME.npy (rows, columns, bands)."),
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
    bounds = _numbers(bbox, 4, float, "--bbox") if bbox is not None else None
    pixels = _window(*_numbers(window, 4, int, "--window")) if window is not None else None
    from ditic_stream.cutout import region as run

    with console.interruptible(f"nothing was written to {out}; run the same command again"):
        result = run(
            archive, out, window=pixels, bbox=bounds, bbox_crs=bbox_crs, device=device, workers=workers,
            on_error=on_error, overwrite=overwrite,
        )  # fmt: skip
    _report_damage(result, quiet)
    console.emit(
        console.plain(result), as_json=as_json, quiet=quiet,
        lines=[f"{out}: {result.width} x {result.height} pixels from column {result.col}, row {result.row}"],
    )  # fmt: skip


@app.command(short_help="Say what an archive holds and costs.")
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


@app.command(short_help="Check every byte of an archive.")
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


@app.command(short_help="Measure an archive against its scene.")
def compare(
    scene: Annotated[Path, typer.Argument(parser=local_path, help="The scene the archive was made from.")],
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


@app.command(short_help="Train the networks of the package.")
def train(
    data: Annotated[list[Path], typer.Argument(help="Folders, tar files and pictures to train on.")],
    out: Annotated[Path, typer.Option(help="Folder of checkpoint, log and weights; a run found there goes on.")] = Path(
        "runs/train"
    ),
    model: Annotated[str, typer.Option(help="Preset of sizes: small or tiny.")] = "small",
    start: Annotated[str, typer.Option(help="Set of weights to go on from (name or file); none: from scratch.")] = "",
    stage: Annotated[
        str, typer.Option(help="whole: all networks; entropy: only what predicts symbols, from --start.")
    ] = "whole",
    without: Annotated[
        list[str] | None,
        typer.Option(help="Leave out, from scratch: variance, distillation, condition, dit. Repeatable."),
    ] = None,
    even_levels: Annotated[
        bool, typer.Option("--even-levels", help="First space the rate levels of --start evenly in rate.")
    ] = False,
    minutes: Annotated[float, typer.Option(min=0, help="Wall time to train; the learning rate falls over it.")] = 60.0,
    batch: Annotated[int, typer.Option(min=1, help="Crops a step, over all threads.")] = 8,
    side: Annotated[int, typer.Option(help="Side of a crop, pixels: a multiple of 256.")] = 256,
    rate: Annotated[float, typer.Option(min=0, help="Learning rate.")] = 1e-3,
    threads: Annotated[int, typer.Option(min=1, help="Replicas on a CPU.")] = 2,
    device: Device = "cpu",
    precision: Annotated[str, typer.Option(help="auto, bfloat16 or float32.")] = "auto",
    report: Annotated[float, typer.Option(min=1, help="Seconds between checkpoints and reports.")] = 120.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of crops and weights.")] = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a set of weights; the same command again goes on from the last checkpoint.

    \b
    Example:  ditic-stream train pictures/ --model tiny --minutes 10 --out runs/tiny
    To go on: ditic-stream train scenes.tar --start small --minutes 120 --rate 5e-4 --out runs/mine
    """
    from ditic_stream.training.train import TrainConfig, run

    settings = TrainConfig(
        data=tuple(map(str, data)), out=str(out), model=model, start=start, stage=stage,
        without=tuple(without or ()), even_levels=even_levels, minutes=minutes, batch=batch, side=side, rate=rate,
        threads=threads, device=device, precision=precision, report=report, seed=seed,
    )  # fmt: skip
    with (
        console.interruptible(f"run the same command again to go on from the last checkpoint in {out}"),
        console.Progress("train", quiet=quiet, unit="min") as progress,
    ):
        weights = run(settings, progress)
    size = weights.stat().st_size
    facts = {"weights": str(weights), "bytes": size, "log": str(out / "log.jsonl")}
    console.emit(facts, as_json=as_json, lines=[f"{weights}: {console.size(size)}"], quiet=quiet)


@models.command("list", short_help="List the weight sets at hand.")
def list_models(as_json: Json = False, quiet: Quiet = False) -> None:
    """List the weight sets at hand: name, parameters, bytes, licence, sha256.

    Those of the package come first, then those that `models import` brought into the model folder: $DITIC_MODELS, or
    ~/.local/share/ditic-stream/models.

    \b
    Example:  ditic-stream models list --json
    """
    from ditic_stream.summary import weight_sets

    for found in weight_sets():
        if "problem" in found:
            console.note(f"warning: {found['name']}: {found['problem']}", quiet=quiet)
            line = f"{found['name']:<14} damaged"
        else:
            line = (
                f"{found['name']:<14} {found['parameters'] / 1e6:7.2f} M parameters  "
                f"{console.size(found['bytes']):>8}  {found['licence']}  sha256 {found['sha256'][:16]}..."
            )
        console.emit(found, as_json=as_json, lines=[line], quiet=quiet)


@models.command("import", short_help="Bring a checkpoint or a bundle into the model folder.")
def import_model(
    file: Annotated[Path, typer.Argument(help="A released checkpoint (q3_merge_ema.pt), or a bundle of `export`.")],
    name: Annotated[
        str | None, typer.Option(help="What to call it (default: ditic-0.6b:q3 for q3_merge_ema.pt).")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="JSON with the sizes of its backbones, if they are not the released ones.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace weights that have the name.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Bring a checkpoint of the paper's authors, or a bundle, into the model folder.

    The pickle is read without running anything in it, every name and shape is checked, and what is not a whole
    checkpoint is refused with the list of what differs.  The licence is shown.

    \b
    Example:  ditic-stream models import q3_merge_ema.pt
    """
    from ditic_stream.errors import CheckpointError
    from ditic_stream.models.folder import is_bundle
    from ditic_stream.models.paper.checkpoint import import_bundle, import_checkpoint
    from ditic_stream.models.paper.config import OFFICIAL, PaperConfig
    from ditic_stream.summary import weight_facts

    try:
        with console.interruptible("nothing was kept; run the same command again"):
            if is_bundle(file):
                path, record = import_bundle(file, name=name, overwrite=overwrite)
            else:
                sizes = PaperConfig.load(config) if config is not None else OFFICIAL
                path, record = import_checkpoint(file, name=name, config=sizes, overwrite=overwrite)
    except CheckpointError as error:
        # A result, and so printed even when quiet.
        for difference in error.differences:
            typer.echo(json.dumps({"difference": difference}) if as_json else difference)
        raise
    console.note(f"licence: {record.licence}. {record.licence_note}", quiet=quiet)
    console.emit(
        weight_facts(path, record), as_json=as_json, quiet=quiet,
        lines=[f"{record.name}: {path}, {console.size(record.size)}, sha256 {record.sha256}"],
    )  # fmt: skip


@models.command("export", short_help="Pack weights of the model folder into a bundle.")
def export_model(
    name: Annotated[str, typer.Argument(help="As `models list` names it, e.g. ditic-0.6b:q3.")],
    out: Annotated[Path | None, typer.Argument(help="The bundle, a zip file (default: ditic-0.6b-q3.zip).")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Pack weights of the model folder into one file, to `models import` where there is no network.

    \b
    Example:  ditic-stream models export ditic-0.6b:q3 q3.zip
    """
    from ditic_stream.models import folder

    found = folder.find(name)
    if found is None:
        known = ", ".join(folder.names()) or "none"
        raise ConfigError(f"{name} is not in {folder.models_folder()}, which has {known}; import it first")
    path, record = found
    target = out or Path(f"{name.replace(':', '-')}.zip")
    with console.interruptible("nothing was written; run the same command again"):
        size = folder.export(path, record, target, overwrite=overwrite)
    console.note(f"licence: {record.licence}. {record.licence_note}", quiet=quiet)
    facts = {"bundle": str(target), "bytes": size, "name": record.name, "sha256": record.sha256}
    console.emit(facts, as_json=as_json, lines=[f"{target}: {record.name}, {console.size(size)}"], quiet=quiet)


def _beside(place: Path, name: str) -> Path:
    """Where a result goes unless it is told."""
    if place.name in ("", ".."):
        raise ConfigError(f"{place} is a folder without a name to make another of; name the output too")
    return place.with_name(name)


def _stem(archive: Path) -> str:
    """scene.ditic and scene.ditic.zip are archives of "scene"."""
    return archive.name.removesuffix(".zip").removesuffix(".ditic")


def _numbers(text: str, count: int, kind: type, option: str) -> tuple[Any, ...]:
    try:
        values = tuple(kind(part) for part in text.split(","))
        if len(values) != count or any(value != value or abs(value) == float("inf") for value in values):
            raise ValueError
    except ValueError:
        raise typer.BadParameter(f"{option} {text!r} is not {count} numbers with commas between") from None
    return values


def _bytes(text: str | None) -> int | None:
    """Bytes of "500000", "500kB", "20M", "1.5 GB": units of 1000, as sizes are printed."""
    if text is None:
        return None
    found = re.fullmatch(r"([0-9.]+)\s*([kMGT]?)B?", text.strip())
    try:
        if found is None:
            raise ValueError
        return round(float(found[1]) * 10.0 ** (3 * " kMGT".index(found[2] or " ")))
    except ValueError:
        raise typer.BadParameter(f"--size {text!r} is not a number of bytes such as 500000, 500kB or 20MB") from None


def _window(col: int, row: int, width: int, height: int) -> Window:
    return Window(row=row, col=col, height=height, width=width)


def _report_damage(result: Any, quiet: bool) -> None:
    """What the file does not keep; filled tiles and those their loss reached, on stderr even when quiet: errors
    that were let pass."""
    for warning in result.warnings:
        console.note(f"warning: {warning}", quiet=quiet)
    lost = [key for key in result.damaged if key not in set(result.uncoded)]
    for keys, what in (
        (lost, "filled: damaged or lost"),
        (result.uncoded, "filled: not coded yet, for the archive is not complete"),
        (result.degraded, "degraded by a neighbour"),
    ):
        if keys:
            shown = " ".join(keys[:20]) + (f" and {len(keys) - 20} more" if len(keys) > 20 else "")
            console.note(
                f"warning: {what}: {'tile' if len(keys) == 1 else 'tiles'} {shown}",
                quiet=quiet and keys is result.degraded,
            )
