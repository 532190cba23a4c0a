"""train: a set of weights from pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ditic_stream import console
from ditic_stream.verbs.options import Device, Json, Quiet


def train(
    data: Annotated[list[str], typer.Argument(help="Folders, tar files, lists, pictures and scenes to train on.")],
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
    features: Annotated[
        str, typer.Option(help="Features file (SqueezeNet 1.1, safetensors) for --perceptual, see docs/train.md.")
    ] = "",
    perceptual: Annotated[
        float, typer.Option(min=0, help="Weight of the distance of features at low rates; 0: none.")
    ] = 0.0,
    adversarial: Annotated[
        float, typer.Option(min=0, max=1, help="Share of a discriminator's pull at low rates, say 0.5; 0: none.")
    ] = 0.0,
    minutes: Annotated[float, typer.Option(min=0, help="Wall time to train; the learning rate falls over it.")] = 60.0,
    batch: Annotated[int, typer.Option(min=1, help="Crops a step, over all threads.")] = 8,
    side: Annotated[int, typer.Option(help="Side of a crop, pixels: a multiple of 256.")] = 256,
    rate: Annotated[float, typer.Option(min=0, help="Learning rate.")] = 1e-3,
    threads: Annotated[int, typer.Option(min=1, help="Replicas on a CPU.")] = 2,
    device: Device = "cpu",
    memory: Annotated[float, typer.Option(min=0, help="Gigabytes of pictures to hold; of more, a draw.")] = 4.0,
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
    from ditic_stream.training.objective import Terms
    from ditic_stream.training.train import TrainConfig, run

    settings = TrainConfig(
        data=tuple(data), out=str(out), model=model, start=start, stage=stage,
        without=tuple(without or ()), even_levels=even_levels, minutes=minutes, batch=batch, side=side, rate=rate,
        threads=threads, device=device, precision=precision, report=report, seed=seed, features=features, memory=memory,
        terms=Terms(perceptual=perceptual, adversarial=adversarial),
    )  # fmt: skip
    with (
        console.interruptible(f"run the same command again to go on from the last checkpoint in {out}"),
        console.Progress("train", quiet=quiet, unit="min") as progress,
    ):
        weights = run(settings, progress, progress.say)
    size = weights.stat().st_size
    facts = {"weights": str(weights), "bytes": size, "log": str(out / "log.jsonl")}
    console.emit(facts, as_json=as_json, lines=[f"{weights}: {console.size(size)}"], quiet=quiet)
