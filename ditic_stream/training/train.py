"""The training run: one end-to-end stage over a continuum of rates, resumable at any checkpoint.

In: a TrainConfig.  Out, in its folder: `checkpoint.pt` (everything needed to go on), `log.jsonl` (a line per report),
`curves.png` and, at the end, `weights.safetensors` (see `training.export`).  Same code on CPU and CUDA; on a CPU with
several cores, `threads` replicas share the parameters and average their gradients, one torch thread each, so that a
busy core slows a step and not an operator.
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import torch
from torch import Tensor

from ditic_stream.errors import ConfigError
from ditic_stream.models.config import LEVELS, PRESETS, ModelConfig
from ditic_stream.models.network import Network
from ditic_stream.models.weights import load_weights
from ditic_stream.training import SEED_MAX
from ditic_stream.training.adversary import Adversary
from ditic_stream.training.curves import draw
from ditic_stream.training.data import Crops, Pictures, load_pictures
from ditic_stream.training.evaluation import block_steps, evaluate, rounded
from ditic_stream.training.init import principal_start
from ditic_stream.training.objective import Critics, Terms, entropy_objective, whole_objective
from ditic_stream.training.perceptual import Features
from ditic_stream.training.scenes import MEMORY
from ditic_stream.training.speed import Operations, Speed
from ditic_stream.training.start import space_levels, start_from

VALIDATION_EVERY, VALIDATION_CROPS = 40, 24
"""Every so many-th picture is held out, and so many crops of those are coded after each step."""


SWITCHES: dict[str, dict[str, int]] = {
    "variance": {"unguided": 1},
    "distillation": {},
    "condition": {"unconditioned": 1},
    "dit": {"depth": 0},
}
"""The alignments of DiT-IC (variance-guided flow, self-distillation, latent-conditioned guidance) and the transformer
as a whole, and what switches each off in the network; distillation is a term of the loss."""
HARD_FROM, HARD_SHARE = 0.35, 0.5
"""From this part of a run on, so much of the rate is counted on rounded symbols."""
ALL_HARD_FROM = 0.6
"""From this part of an entropy stage on, all of it: scales are to fit what is coded; means learn from noisy symbols."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One run."""

    data: tuple[str, ...]
    """Folders, tar files, lists, pictures and scenes to train on, see `training.scenes`."""
    memory: float = MEMORY
    """Gigabytes of pictures that are held, on the device; of more, windows are drawn."""
    out: str
    """Folder of checkpoint, log and weights; made if absent.  A checkpoint found there is continued."""
    model: str = "small"
    """Preset of sizes."""
    without: tuple[str, ...] = ()
    """What to leave out, of SWITCHES, for ablations.  Another architecture, so not together with `start`."""
    changes: dict[str, int] = field(default_factory=dict)
    """Sizes of the preset to change (fields of ModelConfig), to try another architecture."""
    stage: str = "whole"
    """"whole" trains all networks end to end; "entropy" trains what predicts symbols alone, on pictures' latents, and
    leaves the others as `start` has them."""
    start: str = ""
    """Set of weights to go on from (a name or a file) in place of principal components; rounded symbols count from the
    first step on."""
    even_levels: bool = False
    """Space the rate levels of `start` evenly first, see `training.start`; train its entropy stage afterwards."""
    minutes: float = 60.0
    """Wall time to train; the learning rate falls over it (cosine)."""
    steps: int = 0
    """Steps to train in place of `minutes`, when not 0: a run that repeats whatever the machine's speed."""
    batch: int = 8
    """Crops a step, over all replicas."""
    side: int = 256
    """Side of a crop, pixels; a multiple of 256."""
    rate: float = 1e-3
    """Learning rate; entropy networks take twice, tables three times as much."""
    threads: int = 2
    """Replicas on a CPU."""
    device: str = "cpu"
    precision: str = "auto"
    """Of the networks' activations: "bfloat16", "float32", or "auto", bfloat16 where the hardware multiplies it (where
    it does not, that is eight times slower than float32)."""
    seed: int = 0
    terms: Terms = field(default_factory=Terms)
    """What is minimised beside the rate."""
    features: str = ""
    """Features file of SqueezeNet 1.1, for `terms.perceptual`."""
    report: float = 120.0
    """Seconds between checkpoints and reports."""

    def __post_init__(self) -> None:
        if self.model not in PRESETS:
            raise ConfigError(f"model {self.model!r} is not one of {sorted(PRESETS)}; choose one")
        if self.side % 256 or self.side < 256:
            raise ConfigError(f"side {self.side} px is not a multiple of 256; 256 is the default")
        if self.stage not in ("whole", "entropy") or (self.stage == "entropy" and not self.start):
            raise ConfigError(f"stage {self.stage!r} from {self.start!r}: whole, or entropy from a set of weights")
        if strange := set(self.changes) - {f.name for f in fields(ModelConfig)}:
            raise ConfigError(f"{sorted(strange)[0]!r} is no size of a model; see models/config.py")
        if unknown := set(self.without) - set(SWITCHES):
            raise ConfigError(f"without {sorted(unknown)[0]!r} is not one of {', '.join(SWITCHES)}; choose of these")
        if self.start and set(self.without) - {"distillation"}:
            raise ConfigError("a set to start from has its architecture already; leave parts out from scratch")
        if self.even_levels and not self.start:
            raise ConfigError("levels are spaced evenly from those of a trained set; name one to start from")
        if self.precision not in ("auto", "bfloat16", "float32"):
            raise ConfigError(f"precision {self.precision!r} is not one of auto, bfloat16, float32; choose one")
        if (self.terms.perceptual > 0) != bool(self.features):
            raise ConfigError(
                f"perceptual {self.terms.perceptual:g} with features {self.features!r}; name a features file and a "
                "weight above 0, or neither"
            )
        if self.stage == "entropy" and (self.terms.perceptual or self.terms.adversarial):
            raise ConfigError("an entropy stage decodes no pixel that could be judged; perception belongs to `whole`")
        if not 0 <= self.seed <= SEED_MAX:
            raise ConfigError(f"seed {self.seed} is outside 0..{SEED_MAX}; choose one within")
        if self.batch % self.threads or self.threads < 1:
            raise ConfigError(f"batch {self.batch} is not a multiple of {self.threads} threads; choose one that is")


Progress = Callable[[int, int], None]
"""Told after each step the seconds that are done and in all; of a run by steps, the latter is a forecast."""


def run(config: TrainConfig, progress: Progress | None = None, say: Callable[[str], None] | None = None) -> Path:
    """Train (or go on training) and export; returns the path of the weights.  say: told the speed after each step."""
    from ditic_stream.training.export import export

    trainer = Trainer(config)
    trainer.train(progress, say)
    return export(trainer.averaged, trainer.training, Path(config.out) / "weights.safetensors")


class Trainer:
    """State of a run: the network, its moving average, the optimiser, and the clock."""

    def __init__(self, config: TrainConfig) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(config.seed)
        self.config, self.device = config, torch.device(config.device)
        self.bfloat16 = config.precision == "bfloat16" or (
            config.precision == "auto" and _multiplies_bfloat16(self.device)
        )
        self.folder = Path(config.out)
        self.folder.mkdir(parents=True, exist_ok=True)
        pictures = Pictures(load_pictures(config.data, config.memory, config.seed), self.device)
        numbers = range(len(pictures))
        held_out = pictures.chosen(list(numbers[VALIDATION_EVERY // 2 :: VALIDATION_EVERY]) or [0])
        kept = pictures.chosen([i for i in numbers if i % VALIDATION_EVERY != VALIDATION_EVERY // 2] or [0])
        self.held_out = held_out
        self.validation = Crops(held_out, config.side, 1).batch(VALIDATION_CROPS).cpu()
        self.training = kept
        left_out = {name: value for part in config.without for name, value in SWITCHES[part].items()}
        self.network = Network(replace(PRESETS[config.model], **(config.changes | left_out)))
        self.terms = replace(config.terms, distillation=0.0) if "distillation" in config.without else config.terms
        if config.start:
            start_from(self.network, load_weights(config.start))
            if config.even_levels:
                space_levels(self.network.eval(), self.validation)
                self.network.train()
        else:
            principal_start(self.network, Crops(kept, 256, 2).batch(192).cpu())
        self.network.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.averaged = copy.deepcopy(self.network).requires_grad_(False).eval()
        if config.stage == "entropy":
            for name, parameter in self.network.named_parameters():
                parameter.requires_grad_(name.startswith("codec.") and name != "codec.log_gain")
        self.optimiser = torch.optim.AdamW(_groups(self.network, config.rate), betas=(0.9, 0.97), eps=1e-8)
        self.steps, self.elapsed = 0, 0.0
        replicas = 1 if self.device.type == "cuda" else config.threads
        features = Features(config.features, self.device) if config.features else None
        self.adversary = Adversary(replicas, config.rate, self.device, config.seed) if self.terms.adversarial else None
        if (self.folder / "checkpoint.pt").exists():
            self._restore()
        self.critics = [Critics(features=features, adversary=self.adversary, replica=i) for i in range(replicas)]
        self.replicas = [self.network, *(_sharing(self.network) for _ in range(replicas - 1))]
        self.crops = [Crops(kept, config.side, 1000 * config.seed + 10 + i, self.steps) for i in range(replicas)]
        self.speed = Speed(self.device)

    def train(self, progress: Progress | None = None, say: Callable[[str], None] | None = None) -> None:
        """Step until the time is up, reporting and saving on the way."""
        last = self.elapsed
        reported: list[Tensor] = []
        self._report(reported)
        self.speed.start()
        began = time.monotonic() - self.elapsed
        with ThreadPoolExecutor(len(self.replicas)) as pool:
            while (part := self._part()) < 1:
                reported.append(self._step(pool, part))
                self.speed.add(self.config.batch)
                self.elapsed = time.monotonic() - began
                if say and (words := self.speed.words()):
                    say(f"train  {words}")
                if progress:
                    progress(round(self.elapsed), round(self.elapsed / max(self._part(), 1e-9)))
                if self.elapsed - last > self.config.report:
                    last = self.elapsed
                    self._save()
                    self._report(reported)
                    reported.clear()
        self._save()
        self._report(reported)

    def _part(self) -> float:
        """How far the run is, 0..1 and beyond."""
        return self.steps / self.config.steps if self.config.steps else self.elapsed / (self.config.minutes * 60)

    def _hard_share(self, part: float) -> float:
        if self.config.stage == "entropy" and part > ALL_HARD_FROM:
            return 1.0
        return HARD_SHARE if self.config.start or part > HARD_FROM else 0.0

    def _step(self, pool: ThreadPoolExecutor, part: float) -> Tensor:
        warm = min(1.0, part / 0.03)
        for replica in self.replicas:
            replica.codec.hard_share = self._hard_share(part)
        if self.adversary is not None:
            self.adversary.part = part
        for group in self.optimiser.param_groups:
            group["lr"] = group["base"] * warm * (0.02 + 0.49 * (1 + math.cos(math.pi * part)))
        parts = torch.stack(list(pool.map(self._backward, range(len(self.replicas)))))
        first, *others = (list(r.parameters()) for r in self.replicas)
        for other in others:
            with torch.no_grad():
                torch._foreach_add_(
                    [p.grad for p in first if p.grad is not None], [p.grad for p in other if p.grad is not None]
                )
            for p in other:
                p.grad = None
        norm = torch.nn.utils.clip_grad_norm_(first, 1.0)
        if torch.isfinite(norm):
            self.optimiser.step()
        if self.adversary is not None:
            self.adversary.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.steps += 1
        decay = min(0.998, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.averaged.parameters()), [p.data for p in first], 1 - decay)
        return parts.mean(0)

    def _backward(self, index: int) -> Tensor:
        config, network, crops = self.config, self.replicas[index], self.crops[index]
        x = crops.batch(config.batch // len(self.replicas)).contiguous(memory_format=torch.channels_last)
        network.codec.noise = crops.noise
        level = torch.rand(len(x), generator=crops.random).to(self.device) * (LEVELS - 1)
        anchor = (0, 0)
        if float(torch.rand((), generator=crops.random)) < 0.25:
            anchor = (
                int(torch.randint(8, (), generator=crops.random)),
                int(torch.randint(8, (), generator=crops.random)),
            )
        objective = entropy_objective if config.stage == "entropy" else whole_objective
        counter = Operations() if index == 0 and not self.speed.operations else nullcontext()
        with counter:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
                total, parts = objective(network, x, level, anchor, self.terms, self.critics[index])
            (total / len(self.replicas)).backward()
        if isinstance(counter, Operations):
            self.speed.operations = counter.total / len(x)
        return parts.detach()

    @torch.no_grad()
    def _report(self, parts: list[Tensor]) -> None:
        line: dict[str, object] = {"step": self.steps, "seconds": round(self.elapsed, 1)}
        if parts:
            names = ["log_j", "bpp", "mse", "structure"]
            names += ["perceptual"] * bool(self.terms.perceptual) + ["apart"] * bool(self.terms.adversarial)
            line["train"] = dict(zip(names, rounded(torch.stack(parts).mean(0).cpu()), strict=True))
        if figures := self.speed.figures():
            line["speed"] = figures
        line["validation"] = evaluate(self.averaged, self.validation.to(self.device))
        line["smooth"] = block_steps(self.averaged, self.device)
        path = self.folder / "log.jsonl"
        with path.open("a") as log:
            log.write(json.dumps(line) + "\n")
        draw(path)
        self.speed.start()

    def _save(self) -> None:
        state = {
            "config": asdict(self.config),
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "steps": self.steps,
            "elapsed": self.elapsed,
            "adversary": self.adversary.state() if self.adversary is not None else None,
        }
        partial = self.folder / "checkpoint.pt.partial"
        torch.save(state, partial)
        os.replace(partial, self.folder / "checkpoint.pt")

    def _restore(self) -> None:
        state = torch.load(self.folder / "checkpoint.pt", weights_only=True, map_location=self.device)
        self.network.load_state_dict(state["network"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.steps, self.elapsed = state["steps"], state["elapsed"]
        if self.adversary is not None and (kept := state.get("adversary")):
            self.adversary.restore(kept)


def _groups(network: Network, rate: float) -> list[dict[str, object]]:
    """Parameter groups: tables at three times the rate, entropy networks at twice; decay on matrices alone."""
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        table = name.startswith("codec.log_") or name.endswith((".level", ".table", ".share"))
        entropy = name.startswith("codec.") and not table
        factor = 3.0 if table else 2.0 if entropy else 1.0
        decay = 0.01 if parameter.ndim >= 2 and not table else 0.0
        groups.setdefault((factor, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": rate * factor, "base": rate * factor, "weight_decay": decay}
        for (factor, decay), parameters in groups.items()
    ]


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _sharing(network: Network) -> Network:
    """A second network on the same parameters, with gradients of its own."""
    twin = copy.deepcopy(network)
    for mine, other in zip(twin.parameters(), network.parameters(), strict=True):
        mine.data = other.data
    return twin
