"""Tries at equal training: alignments of DiT-IC off or on, the transformer off, other sizes, other losses, other crops.

    python -m benchmarks.ablations DATA ... --out runs/tries [--seeds 0 1] [--steps 400] [--only "without dit"]
    python -m benchmarks.ablations DATA ... --out runs/parts --start small --steps 150 --rate 3e-4
    python -m benchmarks.ablations DATA ... --out runs/sizes --seconds 90 --batch 4 --seeds 0 1 2 --only reference ...

Every try sees the same crops in the same order as the reference of its seed and takes as many steps; what differs is
named.  From principal components, the default, seeds differ by more than most tries do, so take several.  With
`--start` a trained set goes on with a part of it switched off, which says what that part is worth to the rest, as far
as the rest can make up for it in so many steps.  With `--seconds` each try takes as many steps as fit into that much
CPU time: what a step costs is measured first, of all tries in turn, so that a run repeats on a busy machine too.  Tries
that are done are not run again.

Prints a table: J is the mean over levels 0, 2, 4, 6 and over pictures of log(bits + weighted distortion), the
distortion being what training minimises (J), squared error alone (J mse) or 1 - MS-SSIM alone (J structure); a
hundredth is about one percent of the rate.  J plain is J of crops that are neither blurred nor regraded.  All as
differences from the reference, by entropy, on held-out crops.  Of several seeds a second table has the mean and, in
brackets, the standard deviation of these differences.  A try that trains a part of the rate levels is judged at those.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ditic_stream.models.network import Network
from ditic_stream.training.data import USUAL, Crops, Mix, load_pictures
from ditic_stream.training.evaluation import REPORTED, block_steps
from ditic_stream.training.losses import STRUCTURE, rate_weight, squared_error, structure_loss
from ditic_stream.training.objective import Terms
from ditic_stream.training.settings import ALL_LEVELS, TrainConfig
from ditic_stream.training.train import Trainer

REFERENCE = {
    "c8": 48, "c16": 96, "latent": 256, "hyper": 64, "hyper_z": 16, "dim": 128, "depth": 4, "heads": 4,
    "enc8": 1, "enc16": 2, "dec8": 2, "dec16": 2, "context": 32, "overlap": 32,
}  # fmt: skip
"""`small` at half its widths: four tries in the time of one."""
CHECKED = 96
"""Held-out crops that a try is judged by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    """What differs from the reference."""

    without: tuple[str, ...] = ()
    changes: dict[str, int] = field(default_factory=dict)
    terms: Terms = field(default_factory=Terms)
    crops: Mix = USUAL
    levels: tuple[float, float] = ALL_LEVELS


PARTS = ("dit", "variance")
TRIES = {"reference": Try()} | {f"without {part}": Try(without=(part,)) for part in PARTS}
TRIES |= {
    "with condition": Try(changes={"unconditioned": 0}),
    "distillation 0.05": Try(terms=Terms(distillation=0.05)),
    "squared error alone": Try(terms=Terms(structure=0.0)),
    "structure 0.9": Try(terms=Terms(structure=0.9)),
    "no colour term": Try(terms=Terms(colour=0.0)),
    "no border terms": Try(terms=Terms(border=0.0, flat=0.0)),
    "no tone term": Try(terms=Terms(tone=0.0)),
    "no blurred crops": Try(crops=Mix(smooth=0.0)),
    "no regraded crops": Try(crops=Mix(graded=0.0)),
    "no scaled crops": Try(crops=Mix(shrunk=0.0)),
    "more regraded crops": Try(crops=Mix(graded=0.3)),
    "no crops chosen for detail": Try(crops=Mix(detailed=0.0)),
    "latent 128": Try(changes={"latent": 128}),
    "latent 384": Try(changes={"latent": 384}),
    "no context": Try(changes={"context": 0}),
    "context 64": Try(changes={"context": 64}),
    "depth 2, dec 3 4": Try(changes={"depth": 2, "dec8": 3, "dec16": 4}),
    "depth 8, dec 1 1": Try(changes={"depth": 8, "dec8": 1, "dec16": 1}),
    "hyper 128": Try(changes={"hyper": 128, "hyper_z": 32}),
    "levels 0 to 5": Try(levels=(0.0, 5.0)),
    "levels 2 to 7": Try(levels=(2.0, 7.0)),
}
TIMED = 7
"""Steps by which the time of a step is known, after one that warms up: their median."""


def main() -> None:
    """Run what is asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="folders, tar files and pictures to train on")
    parser.add_argument("--check", nargs="+", help="pictures to judge by; without: those training holds out")
    parser.add_argument("--out", type=Path, default=Path("runs/tries"))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seconds", type=float, default=0.0, help="CPU time of a try, in place of --steps")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--start", default="", help="weights to go on from; tries of other sizes are left out then")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", action="append", choices=TRIES, help="repeatable; without: all")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    if arguments.start and (sized := [name for name in arguments.only or () if TRIES[name].changes]):
        parser.error(f"{sized[0]!r} is another architecture than that of --start; try it from scratch")
    names = arguments.only or [name for name, one in TRIES.items() if not (arguments.start and one.changes)]
    steps = _steps_in(arguments.seconds, names, arguments) if arguments.seconds else {}
    rows: dict[str, list[tuple[Result, Result]]] = {name: [] for name in names}
    for seed in arguments.seeds:
        reference: Result | None = None
        for name in names:
            folder = arguments.out / f"{name.replace(' ', '-').replace(',', '')}-{seed}"
            result = folder / "result.json"
            if not result.exists():
                made = _run(TRIES[name], seed, folder, arguments, steps.get(name, arguments.steps))
                result.write_text(json.dumps(made))
            row = json.loads(result.read_text())
            reference = reference or row
            rows[name].append((row, reference))
            print(_line(f"{name}, seed {seed}", row, reference), flush=True)
    if len(arguments.seeds) > 1:
        print(
            "\n" + "\n".join(_over_seeds(name, pairs, steps.get(name, arguments.steps)) for name, pairs in rows.items())
        )


Result = dict[str, Any]


def _trainer(one: Try, seed: int, folder: Path, arguments: argparse.Namespace, steps: int) -> Trainer:
    start = arguments.start
    return Trainer(
        TrainConfig(
            data=tuple(arguments.data), out=str(folder), model="small", start=start, terms=one.terms,
            crops=one.crops, levels=one.levels, seed=seed, changes={} if start else REFERENCE | one.changes,
            without=() if start else one.without, steps=steps, batch=arguments.batch, rate=arguments.rate,
            threads=1, device=arguments.device, report=1e6,
        )
    )  # fmt: skip


def _steps_in(seconds: float, names: list[str], arguments: argparse.Namespace) -> dict[str, int]:
    """Steps that take so many seconds of CPU time; measured once a folder."""
    kept = arguments.out / "steps.json"
    known: dict[str, float] = json.loads(kept.read_text()) if kept.exists() else {}
    if new := [name for name in names if name not in known]:
        with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as pool:
            trainers = {name: _trainer(TRIES[name], 0, Path(folder), arguments, 1000) for name in new}
            took: dict[str, list[float]] = {name: [] for name in new}
            for _ in range(TIMED + 1):
                for name, trainer in trainers.items():
                    began = time.process_time()
                    trainer._step(pool, 0.5)
                    took[name].append(time.process_time() - began)
        known |= {name: statistics.median(some[1:]) for name, some in took.items()}
        arguments.out.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(known))
    return {name: max(round(seconds / known[name]), 1) for name in names}


def _run(one: Try, seed: int, folder: Path, arguments: argparse.Namespace, steps: int) -> Result:
    start, trainer = arguments.start, _trainer(one, seed, folder, arguments, steps)
    if start:
        for part in one.without:
            _switch_off(part, trainer)
    began = time.process_time()
    trainer.train()
    seconds = time.process_time() - began
    pictures = load_pictures([Path(p) for p in arguments.check]) if arguments.check else trainer.held_out
    x, plain = (
        Crops(pictures, 256, 1, mix=mix).batch(CHECKED).to(trainer.device) for mix in (USUAL, Mix(smooth=0, graded=0))
    )
    return {
        "seconds": seconds,
        "levels": one.levels,
        "parameters": sum(p.numel() for p in trainer.network.parameters()),
        "quality": judge(trainer.averaged, x) | {"J plain": judge(trainer.averaged, plain)["J"]},
        "steps": [row["32"] for row in block_steps(trainer.averaged, trainer.device)],
    }


def _switch_off(part: str, trainer: Trainer) -> None:
    """As `TrainConfig.without` does, in a network that has been trained with the part."""
    for network in (trainer.network, trainer.averaged):
        if part == "dit":
            network.step.blocks = torch.nn.ModuleList()
        elif part == "variance":
            network.step.guided = False


@torch.no_grad()
def judge(network: Network, x_B3HW: torch.Tensor) -> dict[str, list[float]]:
    """Bits per pixel and the three J of the module's head at levels 0, 2, 4, 6."""
    quality: dict[str, list[float]] = {"bpp": [], "J": [], "J mse": [], "J structure": []}
    share = Terms().structure
    for level in REPORTED:
        parts = []
        for x in x_B3HW.split(8):
            y, coded, _, _ = network(x, torch.full((len(x),), level, device=x.device))
            y = (y.clamp(0, 1) * 255).round() / 255
            bpp = (coded.bits_y + coded.bits_z) / (x.shape[2] * x.shape[3])
            error, structure = squared_error(x, y), STRUCTURE * structure_loss(x, y)
            for_level = rate_weight(level)
            costs = ((1 - share) * error + share * structure, error, structure)
            parts.append(torch.stack([bpp, *((bpp + for_level * cost).log() for cost in costs)]))
        for key, value in zip(quality, torch.cat(parts, 1).mean(1).tolist(), strict=True):
            quality[key].append(value)
    return quality


LEVELED = ("J", "J mse", "J structure", "J plain")


def _differences(row: Result, reference: Result) -> dict[str, list[float]]:
    """From the reference, at the levels that the try was trained for."""
    low, high = row.get("levels", ALL_LEVELS)
    at = [place for place, level in enumerate(REPORTED) if low <= level <= high]
    quality, other = row["quality"], reference["quality"]
    return {key: [quality[key][i] - other[key][i] for i in at] for key in LEVELED if key in quality and key in other}


def _line(name: str, row: Result, reference: Result) -> str:
    off = _differences(row, reference)
    cells = [f"{statistics.mean(off[key]):+.3f}" if key in off else "-" for key in LEVELED]
    by_level = " / ".join(f"{value:+.3f}" for value in off["J"])
    at_borders = " / ".join(f"{s:.2f}" for s in row["steps"])
    millions, minutes = row["parameters"] / 1e6, row["seconds"] / 60
    return f"| {name} | {' | '.join(cells)} | {by_level} | {at_borders} | {millions:.2f} M | {minutes:.1f} |"


def _over_seeds(name: str, pairs: list[tuple[Result, Result]], steps: int) -> str:
    def cell(values: Sequence[float]) -> str:
        return f"{statistics.mean(values):+.3f} ({statistics.stdev(values):.3f})"

    off = [_differences(*pair) for pair in pairs]
    cells = [
        cell([statistics.mean(one[key]) for one in off]) if all(key in one for one in off) else "-" for key in LEVELED
    ]
    by_level = " / ".join(cell(values) for values in zip(*(one["J"] for one in off), strict=True))
    return f"| {name} | {steps} | {' | '.join(cells)} | {by_level} |"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
