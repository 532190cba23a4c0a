"""Many jobs from one file: batch."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from ditic_stream import console
from ditic_stream.verbs.options import Device, Json, Quiet, Ray, RayAddress, Workers, executor_of

USAGE_SECONDS = 30.0
"""How often each actor's share of busy time is told."""


def batch(
    context: typer.Context,
    jobs: Annotated[Path, typer.Argument(help="One JSON object a line, as schemas/jobs-1.json says.")],
    journal: Annotated[Path | None, typer.Option(help="What is done (default: JOBS.journal).")] = None,
    report: Annotated[Path | None, typer.Option(help="One JSON line a job (default: JOBS.report.jsonl).")] = None,
    workers: Workers = None,
    device: Device = "cpu",
    large: Annotated[
        int, typer.Option(min=1, help="Megapixels from which a scene is spread over the workers; below, one does it.")
    ] = 67,
    ray: Ray = False,
    ray_address: RayAddress = None,
    gpu_share: Annotated[
        float,
        typer.Option(help="Of a GPU, for each actor: 0.25 puts four on one, which small networks need to fill it."),
    ] = 1.0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run the jobs of a file: compress, decompress, region, verify; the same command again goes on where it was.

    A job that fails does so alone, with its reason in the report; then the command leaves with 1.

    \b
    Example:  ditic-stream batch jobs.jsonl --ray
    """
    from ditic_stream.executors import found

    told = time.monotonic()

    def show(outcome: Any, ended: int, of: int) -> None:
        nonlocal told
        if outcome.error is not None:
            tile = f"tile {outcome.error['tile']}: " if outcome.error["tile"] else ""
            words = f"{outcome.error['kind']}: {tile}{outcome.error['message']}"
            console.note(f"job {outcome.id} failed ({ended} of {of} ended): {words}")
        if executor is not None and time.monotonic() - told > USAGE_SECONDS:
            told = time.monotonic()
            console.note(f"{ended} of {of} jobs ended", quiet=quiet)
            for one in executor.usage():
                busy = f"{100 * one['busy']:.0f} % busy, {one['keys']} keys, {console.size(one['memory'])}"
                console.note(f"  {one['device']} {one['host']}/{one['pid']}: {busy}", quiet=quiet)

    with contextlib.ExitStack() as stack:
        stack.enter_context(console.interruptible("what is done is kept; run the same command again to go on"))
        executor, device = stack.enter_context(
            executor_of(context, ray, ray_address, workers, device, gpus=gpu_share, quiet=quiet)
        )
        progress = stack.enter_context(console.Progress("batch", quiet=quiet))
        result = found("batch", "ditic_stream.drivers")(
            jobs, workers=workers, device=device, executor=executor, journal=journal, report=report,
            large=large * 10**6,
            progress=progress, on_outcome=show,
        )  # fmt: skip
    if as_json:
        for outcome in result.outcomes:
            console.emit({"kind": "job", **console.plain(outcome)}, as_json=True, lines=[])
    pixels = sum(outcome.pixels for outcome in result.outcomes if outcome.state == "done" and not outcome.resumed)
    facts = {
        "kind": "batch", "jobs": len(result.outcomes), "failed": result.failed, "seconds": result.seconds,
        "workers": result.workers, "report": result.report, "pixels": pixels, "usage": console.plain(result.usage),
    }  # fmt: skip
    console.emit(
        facts, as_json=as_json, quiet=quiet,
        lines=[
            *result.table(),
            f"{len(result.outcomes) - result.failed} of {len(result.outcomes)} jobs done in "
            f"{console.duration(result.seconds)}, {pixels / max(result.seconds, 1e-3) / 1e6:.2f} MP/s by "
            f"{result.workers} workers; report: {result.report}",
        ],
    )  # fmt: skip
    if result.failed:
        raise typer.Exit(1)
