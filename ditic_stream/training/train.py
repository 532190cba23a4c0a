"""The training run: one end-to-end stage over a continuum of rates, resumable at any checkpoint.

In: a TrainConfig.  Out, in its folder: `checkpoint.pt` (everything needed to go on), `log.jsonl` (a line per report),
`curves.png` and, at the end, `weights.safetensors` (see `training.export`).  Same code on CPU and CUDA; on a CPU with
several cores, `threads` replicas share the parameters and average their gradients, one torch thread each, so that a
busy core slows a step and not an operator.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ditic_stream.errors import ConfigError
from ditic_stream.families import attention_asked
from ditic_stream.models.network import Network
from ditic_stream.models.weights import load_weights
from ditic_stream.training.adversary import Adversary
from ditic_stream.training.curves import draw
from ditic_stream.training.data import Crops, Mix, Pictures, load_pictures
from ditic_stream.training.evaluation import block_steps, evaluate, rounded
from ditic_stream.training.init import principal_start
from ditic_stream.training.keeping import append_line, folder_of_a_run, load_checkpoint, save_checkpoint
from ditic_stream.training.objective import Critics, Terms, entropy_objective, whole_objective
from ditic_stream.training.perceptual import Features
from ditic_stream.training.settings import TrainConfig, write_settings
from ditic_stream.training.speed import Operations, Speed
from ditic_stream.training.start import space_levels, start_from
from ditic_stream.training.stopping import stopping

START_CROPS = 512
"""Crops, of eight a picture at most, that tell what a wider network adds to the set it starts from."""
PLAIN, SPACING_CROPS = Mix(smooth=0, graded=0), 48
"""Crops that levels are spaced by."""
VALIDATION_EVERY, VALIDATION_CROPS = 40, 24
"""Every so many-th picture is held out, and so many crops of those are coded after each step."""
HARD_FROM, HARD_SHARE = 0.35, 0.5
"""From this part of a run on, so much of the rate is counted on rounded symbols."""
ALL_HARD_FROM = 0.6
"""From this part of an entropy stage on, all of it: scales are to fit what is coded; means learn from noisy symbols."""

RUN = ("model", "changes", "without", "condition", "stage", "start", "side", "seed", "levels")
"""Settings a run cannot change on its way, as a rate that is said; data may move, and steps, minutes and threads may be
others."""
Progress = Callable[[int, int], None]
"""Told after each step the seconds that are done and in all; of a run by steps, the latter is a forecast."""


def run(config: TrainConfig, progress: Progress | None = None, say: Callable[[str], None] | None = None) -> Path:
    """Train (or go on training) and export; returns the path of the weights.  say: told the speed after each step."""
    from ditic_stream.training.export import export

    attention_asked()  # a variable that names none is found before anything is written
    out = Path(config.out)
    with folder_of_a_run(out):
        if not (out / "checkpoint.pt").exists():
            write_settings(config, out / "config.json")
        trainer = Trainer(config)
        trainer.train(progress, say)
        return export(trainer.averaged, trainer.training, out / "weights.safetensors", config.licence)


class Trainer:
    """State of a run: the network, its moving average, the optimiser, and the clock."""

    def __init__(self, config: TrainConfig) -> None:
        attention_asked()
        torch.set_num_threads(1)
        torch.manual_seed(config.seed)
        self.config, self.device = config, torch.device(config.device)
        self.bfloat16 = config.precision == "bfloat16" or (
            config.precision == "auto" and _multiplies_bfloat16(self.device)
        )
        self.folder = Path(config.out)
        self.folder.mkdir(parents=True, exist_ok=True)
        kept_state = self._kept()
        pictures = Pictures(load_pictures(config.data, config.memory, config.seed), self.device)
        large = [i for i, (_, *sides) in enumerate(pictures.places) if min(sides) >= config.side]
        judging = large[VALIDATION_EVERY // 2 :: VALIDATION_EVERY]
        held_out = pictures.chosen(judging or large[:1])
        kept = pictures.chosen(sorted(set(range(len(pictures))) - set(judging)))
        self.held_out = held_out
        self.validation = Crops(held_out, config.side, 1).batch(VALIDATION_CROPS).cpu()
        self.training = kept
        self.network = Network(config.architecture)
        if kept_state is not None:
            _same_sizes(self.network, kept_state, self.folder)
        self.terms = config.terms
        if kept_state is None:
            self._start(kept)
        self.network.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.averaged = copy.deepcopy(self.network).requires_grad_(False).eval()
        if config.stage == "entropy":
            for name, parameter in self.network.named_parameters():
                parameter.requires_grad_(name.startswith("codec.") and name != "codec.log_gain")
        self.optimiser = torch.optim.AdamW(_groups(self.network, config.learning_rate), betas=(0.9, 0.97), eps=1e-8)
        self.steps, self.elapsed = 0, 0.0
        replicas = 1 if self.device.type == "cuda" else config.threads
        features = Features(config.features, self.device) if config.features else None
        self.adversary = (
            Adversary(replicas, config.learning_rate, self.device, config.seed) if self.terms.adversarial else None
        )
        if kept_state is not None:
            self._restore(kept_state)
        self.critics = [Critics(features=features, adversary=self.adversary, replica=i) for i in range(replicas)]
        self.replicas = [self.network, *(_sharing(self.network) for _ in range(replicas - 1))]
        seeds = (1000 * config.seed + 10 + replica for replica in range(replicas))
        self.crops = [Crops(kept, config.side, seed, self.steps, config.crops) for seed in seeds]
        self.speed = Speed(self.device)

    def _start(self, pictures: Sequence[Tensor]) -> None:
        """Set the network from a set of weights, or from principal components."""
        config = self.config
        if not config.start:
            principal_start(self.network, Crops(pictures, 256, 2).batch(192).cpu())
            return
        weights, crops = load_weights(config.start), None
        if config.stage == "whole" and weights.config != self.network.config:
            crops = Crops(pictures, 256, 2).batch(min(START_CROPS, 8 * len(pictures))).cpu()
        if config.stage == "entropy" and weights.config.unconditioned < self.network.config.unconditioned:
            raise ConfigError(
                f"{config.start} has condition tokens, which networks that stand still cannot learn to do without; run "
                "the whole stage from it first"
            )
        start_from(self.network, weights, crops)
        if config.even_levels:
            space_levels(self.network.eval(), Crops(pictures, config.side, 4, mix=PLAIN).batch(SPACING_CROPS).cpu())
            self.network.train()

    def train(self, progress: Progress | None = None, say: Callable[[str], None] | None = None) -> None:
        """Step until the time is up, reporting and saving on the way; Ctrl-C saves and raises KeyboardInterrupt."""
        last = self.elapsed
        reported: list[Tensor] = []
        self._report(reported)
        self.speed.start()
        began = time.monotonic() - self.elapsed
        with ThreadPoolExecutor(len(self.replicas)) as pool, stopping() as asked:
            while (part := self._part()) < 1:
                reported.append(self._step(pool, part))
                self.speed.add(self.config.batch)
                self.elapsed = time.monotonic() - began
                if say and (words := self.speed.words()):
                    say(f"train  {words}")
                if progress:
                    progress(round(self.elapsed), round(self.elapsed / max(self._part(), 1e-9)))
                if self.elapsed - last > self.config.report:
                    self._save()
                    self._report(reported)
                    reported.clear()
                    last = time.monotonic() - began
                if asked():
                    break
            self._save()
            if asked():
                raise KeyboardInterrupt
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
        low, high = config.levels
        level = low + torch.rand(len(x), generator=crops.random).to(self.device) * (high - low)
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
        append_line(path, line)
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
        save_checkpoint(state, self.folder / "checkpoint.pt")

    def _kept(self) -> dict[str, Any] | None:
        """The checkpoint that is there; ConfigError when it is one of another run."""
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return None
        state = load_checkpoint(path, self.device)
        for name in (*RUN, *(["rate"] if self.config.rate is not None else [])):
            ours, theirs = (_comparable(settings.get(name)) for settings in (asdict(self.config), state["config"]))
            if ours != theirs and name in state["config"]:
                raise ConfigError(
                    f"{self.folder} holds a run of another {name} ({theirs or 'none'}, not {ours or 'none'}); give the "
                    "settings it was begun with, or another folder"
                )
        return state

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.steps, self.elapsed = state["steps"], state["elapsed"]
        self.terms = _going_on(self.terms, state["config"])
        if self.adversary is not None and (kept := state.get("adversary")):
            self.adversary.restore(kept)


def _same_sizes(network: Network, state: Mapping[str, Any], folder: Path) -> None:
    """ConfigError where a checkpoint is of a network of other sizes, as those of a preset were in an older version."""
    ours, theirs = network.state_dict(), state["network"]
    if {name: tensor.shape for name, tensor in ours.items()} != {name: tensor.shape for name, tensor in theirs.items()}:
        raise ConfigError(
            f"{folder} holds a run of a network of other sizes, as of an older version: small had condition tokens, "
            "with which --condition goes on; or take its weights.safetensors as --start of a run in another folder"
        )


def _comparable(setting: Any) -> Any:
    """A setting of now or of a checkpoint; self-distillation was a part to leave out once."""
    return [part for part in setting if part != "distillation"] if isinstance(setting, list | tuple) else setting


def _going_on(terms: Terms, began: Mapping[str, Any]) -> Terms:
    """Terms of a run that was begun with the settings `began`.  When those were written self-distillation may have been
    the default: the run goes on with it, as it goes on at the learning rate its optimiser holds."""
    if terms.distillation or "distillation" in began["without"]:
        return terms
    return replace(terms, distillation=began["terms"]["distillation"])


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
