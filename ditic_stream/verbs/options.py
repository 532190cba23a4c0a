"""Options and ways of reading them that several verbs share."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ditic_stream import console
from ditic_stream._paths import Place, Uri, place_of
from ditic_stream.errors import ConfigError
from ditic_stream.geometry import Window

Archive = Annotated[
    Any, typer.Argument(parser=place_of, help="An archive, path or URI: a folder NAME.ditic or a file NAME.ditic.zip.")
]
"""A Place, which typer knows no word for."""
Json = Annotated[bool, typer.Option("--json", help="Print results as JSON, one object a line.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary; errors only.")]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Processes (default: the cores). The bytes do not depend on it.")
]
Ray = Annotated[
    bool,
    typer.Option(
        "--ray",
        help="Work on a Ray cluster: --ray-address, RAY_ADDRESS, or one of this command's own. Needs the extra `ray`.",
    ),
]
RayAddress = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help='A Ray cluster that runs: "auto", HOST:PORT or ray://HOST:PORT.')
]
Device = Annotated[str, typer.Option(help="Where the networks run: cpu or cuda.")]
Format = Annotated[
    Literal["tif", "bigtiff", "cog", "zarr", "ome-zarr", "png", "npy"] | None,
    typer.Option(help="What to write, where the ending of the name does not say it: cog for a .tif, for one."),
]
FORMAT_ENDINGS = {
    "tif": ".tif", "bigtiff": ".btf", "cog": ".cog.tif", "zarr": ".zarr", "ome-zarr": ".ome.zarr", "png": ".png",
    "npy": ".npy",
}  # fmt: skip
"""How a result ends that gets its name from the archive's."""
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]
OnError = Annotated[
    Literal["stop", "fill"],
    typer.Option(help="At a damaged or lost tile: stop with its name, or fill it, go on and report it."),
]


@contextlib.contextmanager
def executor_of(
    context: typer.Context,
    ray: bool,
    address: str | None,
    workers: int | None,
    device: str,
    *,
    gpus: float = 1.0,
    quiet: bool = False,
) -> Iterator[tuple[Any, str]]:
    """The executor that options ask for, and the device; None is the library's own choice, on this machine.

    On a cluster a device that was not asked for is "auto": its GPUs where it has some.
    """
    if not ray and address is None:
        yield None, device
        return
    from ditic_stream.executors import found, warm

    source = context.get_parameter_source("device")
    asked = source is not None and source.name != "DEFAULT"
    with found("ray")(
        workers, address=address, device=device if asked else "auto", gpus=gpus, initializer=warm
    ) as executor:
        yield executor, executor.device
        console.note(fleet_line(executor), quiet=quiet)


def fleet_line(executor: Any) -> str:
    """What the workers of a cluster did, in a line."""
    usage, counts = executor.usage(), executor.fleet.counts
    busy = sum(one["busy"] for one in usage) / len(usage) if usage else 0.0
    nodes = len({one["node"] for one in usage})
    troubles = ", ".join(
        f"{count} {what}"
        for count, what in (
            (counts.restarts, "restarted"), (counts.nodes_lost, "lost with their nodes"),
            (counts.retries, "keys again"), (counts.shrinks, "made smaller for memory"),
            (counts.doubled, "slow keys doubled"),
        )
        if count
    )  # fmt: skip
    return f"{len(usage)} actors on {nodes} nodes, {100 * busy:.0f} % busy" + (f"; {troubles}" if troubles else "")


def beside(place: Place, name: str, *, here: bool = False) -> Place:
    """Where a result goes unless it is told: beside what it is made of, or into this folder if that is elsewhere and
    cannot be written to; with `here`, also if it can."""
    if isinstance(place, Uri):
        return Path(name) if here or place.is_web else place.with_name(name)
    if place.name in ("", ".."):
        raise ConfigError(f"{place} is a folder without a name to make another of; name the output too")
    return place.with_name(name)


def stem(archive: Place) -> str:
    """scene.ditic and scene.ditic.zip are archives of "scene"."""
    return archive.name.removesuffix(".zip").removesuffix(".ditic")


def numbers(text: str, count: int, kind: type, option: str) -> tuple[Any, ...]:
    try:
        values = tuple(kind(part) for part in text.split(","))
        if len(values) != count or any(value != value or abs(value) == float("inf") for value in values):
            raise ValueError
    except ValueError:
        raise typer.BadParameter(f"{option} {text!r} is not {count} numbers with commas between") from None
    return values


def byte_count(text: str | None, option: str = "--size") -> int | None:
    """Bytes of "500000", "500kB", "20M", "1.5 GB": units of 1000, as sizes are printed."""
    if text is None:
        return None
    found = re.fullmatch(r"([0-9.]+)\s*([kMGT]?)B?", text.strip())
    try:
        if found is None:
            raise ValueError
        return round(float(found[1]) * 10.0 ** (3 * " kMGT".index(found[2] or " ")))
    except ValueError:
        raise typer.BadParameter(f"{option} {text!r} is not a number of bytes such as 500000, 500kB or 20MB") from None


def window_of(col: int, row: int, width: int, height: int) -> Window:
    return Window(row=row, col=col, height=height, width=width)


def report_damage(result: Any, quiet: bool) -> None:
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
