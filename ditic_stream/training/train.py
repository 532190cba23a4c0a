"""The training run: one end-to-end stage over a continuum of rates, resumable at any checkpoint.

In: a TrainConfig.  Out, in its folder: `checkpoint.pt` (everything needed to go on), `log.jsonl` (a line per report)
and, at the end, `weights.safetensors` (see `training.export`).  Same code on CPU and CUDA; on a CPU with several cores,
`threads` replicas share the parameters and average their gradients, one torch thread each, so that a busy core slows a
step and not an operator.
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ditic_stream.errors import ConfigError
from ditic_stream.models.config import LEVELS, PRESETS
from ditic_stream.models.network import Network
from ditic_stream.training.data import Crops, load_pictures
from ditic_stream.training.init import principal_start
from ditic_stream.training.losses import (
    STRUCTURE,
    border_error,
    rate_weight,
    self_distillation,
    squared_error,
    structure_loss,
    tone_error,
)

VALIDATION_EVERY, VALIDATION_CROPS = 40, 24
"""Every so many-th picture is held out, and so many crops of those are coded at each report."""


HARD_FROM, HARD_SHARE = 0.35, 0.5
"""From this part of a run on, so much of the rate is counted on rounded symbols."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One run."""

    data: tuple[str, ...]
    """Folders, tar files and pictures to train on."""
    out: str
    """Folder of checkpoint, log and weights; made if absent.  A checkpoint found there is continued."""
    model: str = "small"
    """Preset of sizes."""
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
    seed: int = 0
    structure: float = 0.5
    """Share of the structural term in the distortion, 0..1; the rest is squared error."""
    distillation: float = 0.05
    """Weight of self-distillation; 0 switches it off."""
    border: float = 0.4
    """Weight of the error of steps across cell borders beside the distortion; 0 switches it off."""
    tone: float = 0.004
    """Bits per pixel that a squared level of error in the mean of a cell is worth, at every rate; 0 switches it off."""
    report: float = 120.0
    """Seconds between checkpoints and reports."""

    def __post_init__(self) -> None:
        if self.model not in PRESETS:
            raise ConfigError(f"model {self.model!r} is not one of {sorted(PRESETS)}; choose one")
        if self.side % 256 or self.side < 256:
            raise ConfigError(f"side {self.side} px is not a multiple of 256; 256 is the default")
        if self.batch % self.threads or self.threads < 1:
            raise ConfigError(f"batch {self.batch} is not a multiple of {self.threads} threads; choose one that is")


def run(config: TrainConfig) -> Path:
    """Train (or go on training) and export; returns the path of the weights."""
    from ditic_stream.training.export import export

    trainer = Trainer(config)
    trainer.train()
    return export(trainer.averaged, trainer.training, Path(config.out) / "weights.safetensors")


class Trainer:
    """State of a run: the network, its moving average, the optimiser, and the clock."""

    def __init__(self, config: TrainConfig) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(config.seed)
        self.config, self.device = config, torch.device(config.device)
        self.folder = Path(config.out)
        self.folder.mkdir(parents=True, exist_ok=True)
        pictures = load_pictures([Path(p) for p in config.data])
        held_out = pictures[VALIDATION_EVERY // 2 :: VALIDATION_EVERY] or pictures[:1]
        kept = [p for i, p in enumerate(pictures) if i % VALIDATION_EVERY != VALIDATION_EVERY // 2] or pictures
        self.validation = Crops(held_out, config.side, 1).batch(VALIDATION_CROPS)
        self.training = kept
        self.network = Network(PRESETS[config.model])
        principal_start(self.network, Crops(kept, 256, 2).batch(192))
        self.network.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.averaged = copy.deepcopy(self.network).requires_grad_(False).eval()
        self.optimiser = torch.optim.AdamW(_groups(self.network, config.rate), betas=(0.9, 0.97), eps=1e-8)
        self.steps, self.elapsed = 0, 0.0
        if (self.folder / "checkpoint.pt").exists():
            self._restore()
        replicas = 1 if self.device.type == "cuda" else config.threads
        self.replicas = [self.network, *(_sharing(self.network) for _ in range(replicas - 1))]
        self.crops = [
            Crops(kept, config.side, 1000 * config.seed + 10 + i + 7919 * self.steps) for i in range(replicas)
        ]

    def train(self) -> None:
        """Step until the time is up, reporting and saving on the way."""
        last = self.elapsed
        reported: list[Tensor] = []
        self._report(reported)
        began = time.monotonic() - self.elapsed
        with ThreadPoolExecutor(len(self.replicas)) as pool:
            while (progress := self._progress()) < 1:
                reported.append(self._step(pool, progress))
                self.elapsed = time.monotonic() - began
                if self.elapsed - last > self.config.report:
                    last = self.elapsed
                    self._save()
                    self._report(reported)
                    reported.clear()
        self._save()
        self._report(reported)

    def _progress(self) -> float:
        """How far the run is, 0..1 and beyond."""
        return self.steps / self.config.steps if self.config.steps else self.elapsed / (self.config.minutes * 60)

    def _step(self, pool: ThreadPoolExecutor, progress: float) -> Tensor:
        warm = min(1.0, progress / 0.03)
        for replica in self.replicas:
            replica.codec.hard_share = HARD_SHARE if progress > HARD_FROM else 0.0
        for group in self.optimiser.param_groups:
            group["lr"] = group["base"] * warm * (0.02 + 0.49 * (1 + math.cos(math.pi * progress)))
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
        self.optimiser.zero_grad(set_to_none=True)
        self.steps += 1
        decay = min(0.998, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.averaged.parameters()), [p.data for p in first], 1 - decay)
        return parts.mean(0)

    def _backward(self, index: int) -> Tensor:
        config, network, crops = self.config, self.replicas[index], self.crops[index]
        x = (
            crops.batch(config.batch // len(self.replicas))
            .to(self.device)
            .contiguous(memory_format=torch.channels_last)
        )
        level = torch.rand(len(x), generator=crops.random).to(self.device) * (LEVELS - 1)
        anchor = (0, 0)
        if float(torch.rand((), generator=crops.random)) < 0.25:
            anchor = (
                int(torch.randint(8, (), generator=crops.random)),
                int(torch.randint(8, (), generator=crops.random)),
            )
        with torch.autocast(self.device.type, torch.bfloat16):
            y, coded, features, denoised = network(x, level, anchor)
        y = y.float()
        weight = rate_weight_of(level)
        bpp = (coded.bits_y + coded.bits_z) / (x.shape[2] * x.shape[3])
        error, structure = squared_error(x, y), structure_loss(x, y)
        distortion = (1 - config.structure) * error + config.structure * STRUCTURE * structure
        if config.border:
            distortion = distortion + config.border * border_error(x, y)
        loss = bpp + weight * distortion
        if config.tone:
            loss = loss + config.tone * tone_error(x, y)
        balanced = loss * (rate_weight((LEVELS - 1) / 2) / weight).sqrt()
        total = balanced.mean()
        if config.distillation:
            total = (
                total + config.distillation * self_distillation(features, denoised, network.codec.feature_std).mean()
            )
        (total / len(self.replicas)).backward()
        return torch.stack([loss.log().mean(), bpp.mean(), error.mean(), structure.mean()]).detach().cpu()

    @torch.no_grad()
    def _report(self, parts: list[Tensor]) -> None:
        line: dict[str, object] = {"step": self.steps, "seconds": round(self.elapsed, 1)}
        if parts:
            line["train"] = dict(
                zip(("log_j", "bpp", "mse", "structure"), _rounded(torch.stack(parts).mean(0)), strict=True)
            )
        line["validation"] = evaluate(self.averaged, self.validation.to(self.device))
        line["smooth"] = block_steps(self.averaged, self.device)
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")

    def _save(self) -> None:
        state = {
            "config": asdict(self.config),
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "steps": self.steps,
            "elapsed": self.elapsed,
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


def rate_weight_of(level_B: Tensor) -> Tensor:
    """`rate_weight` of many levels."""
    low, high = math.log(rate_weight(0)), math.log(rate_weight(LEVELS - 1))
    return (low + (high - low) * level_B / (LEVELS - 1)).exp()


@torch.no_grad()
def evaluate(network: Network, x_B3HW: Tensor) -> list[dict[str, float]]:
    """Ideal rate, mean PSNR and structure loss of held-out crops at levels 0, 2, 4, 6; float32, hard rounding."""
    rows = []
    for level in (0.0, 2.0, 4.0, 6.0):
        parts = []
        for x in x_B3HW.split(4):
            y, coded, _, _ = network(x, torch.full((len(x),), level, device=x.device))
            y = (y.clamp(0, 1) * 255).round() / 255
            bpp = (coded.bits_y + coded.bits_z) / (x.shape[2] * x.shape[3])
            error, structure = squared_error(x, y), structure_loss(x, y)
            parts.append(
                torch.stack([bpp, 10 * (65025 / error).log10(), structure, (bpp + rate_weight(level) * error).log()])
            )
        row = torch.cat(parts, 1).mean(1)
        rows.append(dict(zip(("bpp", "psnr", "structure", "log_j"), _rounded(row), strict=True)))
    return rows


@torch.no_grad()
def block_steps(network: Network, device: torch.device | str = "cpu") -> list[dict[str, float]]:
    """Mean absolute gradient across multiples of 32, 16 and 8 px over that elsewhere, on smooth pictures; 1 is
    perfect."""
    x = smooth_pictures().to(device)
    rows = []
    for level in (0.0, 2.0, 4.0, 6.0):
        y = network(x, torch.full((len(x),), level, device=x.device))[0]
        y = (y.clamp(0, 1) * 255).round()
        rows.append(block_ratios(y))
    return rows


def block_ratios(y_B3HW: Tensor) -> dict[str, float]:
    """See `block_steps`; for any pictures whose sides are multiples of 32 cells' borders."""
    across = [
        (y_B3HW[:, :, 1:] - y_B3HW[:, :, :-1]).abs().mean((0, 1, 3)),
        (y_B3HW[..., 1:] - y_B3HW[..., :-1]).abs().mean((0, 1, 2)),
    ]
    place = [torch.arange(1, len(a) + 1, device=a.device) for a in across]
    elsewhere = torch.cat([a[p % 8 != 0] for a, p in zip(across, place, strict=True)]).mean().clamp_min(1e-6)
    chosen = {"32": lambda p: p % 32 == 0, "16": lambda p: p % 32 == 16, "8": lambda p: p % 16 == 8}
    return {
        name: round(float(torch.cat([a[rule(p)] for a, p in zip(across, place, strict=True)]).mean() / elsewhere), 3)
        for name, rule in chosen.items()
    }


def smooth_pictures(side: int = 256, seed: int = 5) -> Tensor:
    """Ramps and hazes with noise of one level, (6, 3, side, side), 0..1: where block steps and blotches show first."""
    random = torch.Generator().manual_seed(seed)
    position = torch.linspace(0, 1, side)
    ramps = [0.3 + 0.3 * position.expand(side, side), 0.5 + 0.08 * (position[:, None] + position)]
    hazes = [
        torch.nn.functional.interpolate(
            torch.rand(1, 1, n, n, generator=random), (side, side), mode="bicubic", align_corners=True
        )[0, 0]
        * 0.3
        + 0.3
        for n in (3, 4, 5, 7)
    ]
    gray = torch.stack([*ramps, *hazes])[:, None]
    tint = torch.tensor([1.0, 0.95, 0.85])[:, None, None]
    noisy = gray * tint + torch.randn(len(gray), 3, side, side, generator=random) / 255
    return (noisy * 255).round().clamp(0, 255) / 255


def _groups(network: Network, rate: float) -> list[dict[str, object]]:
    """Parameter groups: tables at three times the rate, entropy networks at twice; decay on matrices alone."""
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in network.named_parameters():
        table = name.startswith("codec.log_") or name.endswith((".level", ".table"))
        entropy = name.startswith(("codec.analysis", "codec.synthesis"))
        factor = 3.0 if table else 2.0 if entropy else 1.0
        decay = 0.01 if parameter.ndim >= 2 and not table else 0.0
        groups.setdefault((factor, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": rate * factor, "base": rate * factor, "weight_decay": decay}
        for (factor, decay), parameters in groups.items()
    ]


def _sharing(network: Network) -> Network:
    """A second network on the same parameters, with gradients of its own."""
    twin = copy.deepcopy(network)
    for mine, other in zip(twin.parameters(), network.parameters(), strict=True):
        mine.data = other.data
    return twin


def _rounded(values: Tensor) -> list[float]:
    return [round(float(v), 5) for v in values]
