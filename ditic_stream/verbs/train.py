"""train: a set of weights from pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ditic_stream import console
from ditic_stream.errors import ConfigError
from ditic_stream.families import FAMILIES, family_of
from ditic_stream.training import SEED_MAX
from ditic_stream.verbs.options import Device, Json, Quiet


def train(
    context: typer.Context,
    data: Annotated[
        list[str] | None, typer.Argument(help="Folders, tar files, lists, pictures and scenes to train on.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of checkpoint, log and weights; a run found there goes on.")] = Path(
        "runs/train"
    ),
    config: Annotated[
        Path | None,
        typer.Option(help="Settings as JSON, such as a run's config.json; options that are given win."),
    ] = None,
    model: Annotated[
        str, typer.Option(help="Preset of sizes: small or tiny; or ditic-0.6b:SET, to tune that set.")
    ] = "small",
    start: Annotated[str, typer.Option(help="Set of weights to go on from (name or file); none: from scratch.")] = "",
    stage: Annotated[
        str,
        typer.Option(
            help="whole: all networks; entropy: only what predicts symbols, from --start; adversarial: with a "
            "discriminator (ditic-0.6b's second stage)."
        ),
    ] = "whole",
    without: Annotated[
        list[str] | None,
        typer.Option(help="Leave out, from scratch: variance, condition, dit. Repeatable."),
    ] = None,
    condition: Annotated[
        bool,
        typer.Option("--condition", help="Latent-conditioned guidance, from scratch: small leaves it out."),
    ] = False,
    even_levels: Annotated[
        bool, typer.Option("--even-levels", help="First space the rate levels of --start evenly in rate.")
    ] = False,
    features: Annotated[
        str,
        typer.Option(
            help="Weights of VGG16 (for LPIPS and DISTS), AlexNet or SqueezeNet 1.1 under torchvision's names, for "
            "--perceptual and ditic-0.6b; see docs/train.md."
        ),
    ] = "",
    perceptual: Annotated[
        float, typer.Option(min=0, help="Weight of the distance of features at low rates; 0: none.")
    ] = 0.0,
    adversarial: Annotated[
        float, typer.Option(min=0, max=1, help="Share of a discriminator's pull at low rates, say 0.5; 0: none.")
    ] = 0.0,
    distillation: Annotated[
        float, typer.Option(min=0, help="Weight of self-distillation, 0.05 in the paper; 0: none, better here.")
    ] = 0.0,
    licence: Annotated[
        str, typer.Option(help="Licence the weights say they are under, such as CC-BY-4.0; none: not stated.")
    ] = "",
    minutes: Annotated[float, typer.Option(min=0, help="Wall time to train; the learning rate falls over it.")] = 60.0,
    steps: Annotated[int, typer.Option(min=0, help="Steps to train in place of --minutes, when not 0.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Crops a step, over all threads.")] = 8,
    side: Annotated[int, typer.Option(help="Side of a crop, pixels: a multiple of 256.")] = 256,
    rate: Annotated[
        float | None,
        typer.Option(min=0, help="Learning rate (default: 1e-3; whole from --start 3e-4; of ditic-0.6b 1e-4)."),
    ] = None,
    rate_weight: Annotated[
        float | None, typer.Option(min=0, help="ditic-0.6b: weight of a bit a pixel (default: by the set's name).")
    ] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="ditic-0.6b: rank of the adapters (default: 32).")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Replicas on a CPU; of ditic-0.6b threads.")] = 2,
    device: Device = "cpu",
    memory: Annotated[float, typer.Option(min=0, help="Gigabytes of pictures to hold; of more, a draw.")] = 4.0,
    precision: Annotated[str, typer.Option(help="auto, bfloat16 or float32.")] = "auto",
    report: Annotated[float, typer.Option(min=1, help="Seconds between checkpoints and reports.")] = 120.0,
    seed: Annotated[int, typer.Option(min=0, max=SEED_MAX, help="Seed of crops and weights.")] = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a set of weights; the same command again goes on from the last checkpoint.

    \b
    Example:  ditic-stream train pictures/ --model tiny --minutes 10 --out runs/tiny
    To go on: ditic-stream train scenes.tar --start small --minutes 120 --out runs/mine
    To tune:  ditic-stream train scenes.tar --model ditic-0.6b:q3 --device cuda --minutes 600 --out runs/q3
    """
    if not data and config is None:
        raise typer.BadParameter("name what to train on, or a --config that does")
    common = {
        "data": tuple(data or ()), "out": str(out), "stage": stage, "minutes": minutes, "steps": steps,
        "batch": batch, "side": side, "threads": threads, "device": device, "precision": precision, "report": report,
        "seed": seed, "features": features, "memory": memory,
    }  # fmt: skip
    common |= {} if rate is None else {"rate": rate}
    only = {"rate_weight": rate_weight, "rank": rank}
    own: dict[str, Any] = {"without": tuple(without or ()), "condition": condition, "even_levels": even_levels}
    own |= {"licence": licence} if licence else {}
    terms = {"perceptual": perceptual, "adversarial": adversarial, "distillation": distillation}
    run: Callable[[console.Progress], Path]
    if family_of(model) in FAMILIES.values():
        if config is not None:
            raise ConfigError(f"--config is of the package's own networks; leave it out for {model}")
        run = _tuning(model, start, common, only, own | terms)
    else:
        sources = {name: context.get_parameter_source(name) for name in context.params}
        given = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
        run = _training({"model": model, "start": start, **common, **own}, only, terms, config, given)
    with (
        console.interruptible(f"what was trained is kept; run the same command again to go on with {out}"),
        console.Progress("train", quiet=quiet, unit="min") as progress,
    ):
        weights = run(progress)
    size = weights.stat().st_size
    facts = {"weights": str(weights), "bytes": size, "log": str(out / "log.jsonl")}
    lines = [f"{weights}: {console.size(size)}"]
    if course := _course(out / "log.jsonl"):
        facts |= course
        told = (f"{name} {began:.3f} at first, {ended:.3f} now" for name, (began, ended) in course.items())
        lines.append(f"held-out crops, lower is better: {'; '.join(told)}")
        if (
            stage == "whole"
            and not (perceptual or adversarial)
            and all(ended >= began for began, ended in course.values())
        ):
            lines.append("nothing was won; a lower --rate may help")
    console.emit(facts, as_json=as_json, lines=lines, quiet=quiet)


def _course(log: Path) -> dict[str, tuple[float, float]]:
    """J (by squared error) and the structure loss of held-out crops when a run began and when it ended, means of the
    levels; nothing where the log tells none."""
    from ditic_stream.training.keeping import read_lines

    lines = read_lines(log) if log.exists() else []
    began = max((place for place, line in enumerate(lines) if not line.get("step")), default=0)
    lines = lines[began:]
    told = [rows for line in lines if isinstance(rows := line.get("validation"), list) and rows]
    course = {}
    for name, key in (("J", "log_j"), ("structure", "structure")):
        means = [
            sum(row[key] for row in rows) / len(rows) for rows in told if all(row.get(key) is not None for row in rows)
        ]
        if means:
            course[name] = (means[0], means[-1])
    return course


def _training(
    options: dict[str, Any], only: dict[str, Any], terms: dict[str, float], config: Path | None, given: set[str]
) -> Callable[[console.Progress], Path]:
    """A run of the package's own networks.  given: options that were said, which win over those of a file."""
    from ditic_stream.training.objective import Terms
    from ditic_stream.training.settings import TrainConfig, read_settings
    from ditic_stream.training.train import run

    if config is not None:
        file = read_settings(config)
        options = {**options, **file, **{name: options[name] for name in {"out", *given} & options.keys()}}
        terms = {**asdict(file.get("terms", Terms())), **{name: terms[name] for name in given & terms.keys()}}
    for name, value in only.items():
        if value is not None:
            raise ConfigError(f"--{name.replace('_', '-')} is of ditic-0.6b; {options['model']} has no such thing")
    if options["stage"] == "adversarial":
        raise ConfigError(f"the stage adversarial is of ditic-0.6b; for {options['model']} take whole or entropy")
    settings = TrainConfig(**{**options, "terms": Terms(**terms)})
    if not settings.data:
        raise ConfigError(f"neither the command nor {config} names what to train on; name it")
    return lambda progress: run(settings, progress, progress.say)


def _tuning(
    model: str, start: str, common: dict[str, Any], own: dict[str, Any], others: dict[str, Any]
) -> Callable[[console.Progress], Path]:
    """A run that tunes a set of ditic-0.6b."""
    from ditic_stream.training.paper.config import TuneConfig
    from ditic_stream.training.paper.run import run

    for name, value in others.items():
        if value:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{option} is of the package's own networks; leave it out for {model}")
    if start and ":" in model:
        raise ConfigError(f"--model {model} names a set to start from, and so does --start {start}; leave one out")
    if not start and ":" not in model:
        raise ConfigError(
            f"name the set of {model} to tune: --model {model}:q3, or --start runs/mine/weights.safetensors"
        )
    own = {name: value for name, value in own.items() if value is not None}
    settings = TuneConfig(start=start or model, **common, **own)
    return lambda progress: run(settings, progress)
