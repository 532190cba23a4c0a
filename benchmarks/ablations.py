"""Tries at equal training: alignments of DiT-IC off or on, the transformer off, other sizes, other losses, other crops.

    python -m benchmarks.ablations DATA ... --out runs/tries [--seeds 0 1] [--steps 400] [--only "without dit"]
    python -m benchmarks.ablations DATA ... --out runs/parts --start small --steps 150 --rate 3e-4

Every try sees the same crops in the same order as the reference of its seed and takes as many steps; what differs is
named.  From principal components, the default, seeds differ by more than most tries do, so take several.  With
`--start` a trained set goes on with a part of it switched off, which says what that part is worth to the rest, as far
as the rest can make up for it in so many steps.  Tries that are done are not run again.

Prints a table: J is the mean over levels 0, 2, 4, 6 and over pictures of log(bits + weighted distortion), the
distortion being what training minimises (J), squared error alone (J mse) or 1 - MS-SSIM alone (J structure); a
hundredth is about one percent of the rate.  J plain is J of crops that are neither blurred nor regraded.  All as
differences from the reference, by entropy, on held-out crops.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ditic_stream.models.network import Network
from ditic_stream.training.data import USUAL, Crops, Mix, load_pictures
from ditic_stream.training.evaluation import REPORTED, block_steps
from ditic_stream.training.losses import STRUCTURE, rate_weight, squared_error, structure_loss
from ditic_stream.training.objective import Terms
from ditic_stream.training.settings import TrainConfig
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


PARTS = ("dit", "variance", "condition")
TRIES = {"reference": Try()} | {f"without {part}": Try(without=(part,)) for part in PARTS}
TRIES |= {
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
    "latent 128": Try(changes={"latent": 128}),
    "latent 384": Try(changes={"latent": 384}),
    "no context": Try(changes={"context": 0}),
    "depth 2, dec8 3": Try(changes={"depth": 2, "dec8": 3}),
    "depth 8, dec8 1": Try(changes={"depth": 8, "dec8": 1}),
    "context 64": Try(changes={"context": 64}),
}


def main() -> None:
    """Run what is asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="folders, tar files and pictures to train on")
    parser.add_argument("--check", nargs="+", help="pictures to judge by; without: those training holds out")
    parser.add_argument("--out", type=Path, default=Path("runs/tries"))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--start", default="", help="weights to go on from; tries of other sizes are left out then")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", action="append", choices=TRIES, help="repeatable; without: all")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    names = [name for name, one in TRIES.items() if not (arguments.start and one.changes)]
    for seed in arguments.seeds:
        reference: Result | None = None
        for name in arguments.only or names:
            folder = arguments.out / f"{name.replace(' ', '-').replace(',', '')}-{seed}"
            result = folder / "result.json"
            if not result.exists():
                result.write_text(json.dumps(_run(TRIES[name], seed, folder, arguments)))
            row = json.loads(result.read_text())
            reference = reference or row
            print(_line(f"{name}, seed {seed}", row, reference), flush=True)


Result = dict[str, Any]


def _run(one: Try, seed: int, folder: Path, arguments: argparse.Namespace) -> Result:
    start = arguments.start
    trainer = Trainer(
        TrainConfig(
            data=tuple(arguments.data), out=str(folder), model="small", start=start, terms=one.terms,
            crops=one.crops, seed=seed, changes={} if start else REFERENCE | one.changes,
            without=() if start else one.without, steps=arguments.steps, batch=arguments.batch, rate=arguments.rate,
            threads=1, device=arguments.device, report=300,
        )
    )  # fmt: skip
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
        elif part == "condition":
            network.step.condition = None


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


def _line(name: str, row: Result, reference: Result) -> str:
    quality, other = row["quality"], reference["quality"]

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    cells = [
        f"{mean(quality[key]) - mean(other[key]):+.3f}" if key in quality and key in other else "-"
        for key in ("J", "J mse", "J structure", "J plain")
    ]
    by_level = " / ".join(f"{a - b:+.3f}" for a, b in zip(quality["J"], other["J"], strict=True))
    at_borders = " / ".join(f"{s:.2f}" for s in row["steps"])
    millions, minutes = row["parameters"] / 1e6, row["seconds"] / 60
    return f"| {name} | {' | '.join(cells)} | {by_level} | {at_borders} | {millions:.2f} M | {minutes:.1f} |"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
