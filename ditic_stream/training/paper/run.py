"""A fine-tuning run of ditic-0.6b, resumable at any checkpoint.

In: a TuneConfig.  Out, in its folder: `checkpoint.pt` (what is trained, its moving average, the optimiser; not what
stands still), `log.jsonl` (a line a report) and at the end `weights.safetensors`, which `models import` takes.

Trained are the pairs of `adapters`, the latent codec but for the medians of its prior, and the projector: AdamW at
1e-4, warmed up over 100 steps, gradients clipped to a norm of 4, a moving average of 0.999, which is what is written.
Each step draws crops and noise from seeds of its own, so that a run that was stopped and goes on does what it would
have done.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ditic_stream import __version__
from ditic_stream.errors import ConfigError
from ditic_stream.families import attention_asked
from ditic_stream.models import folder
from ditic_stream.models.paper.config import MODEL
from ditic_stream.models.paper.network import PaperNetwork
from ditic_stream.models.paper.tuned import SUFFIX, write_tuned
from ditic_stream.models.paper.weights_file import Checkpoint, open_file
from ditic_stream.training.adversary import Adversary
from ditic_stream.training.data import Crops, Pictures, load_pictures
from ditic_stream.training.keeping import append_line, folder_of_a_run, load_checkpoint, save_checkpoint
from ditic_stream.training.paper import adapters
from ditic_stream.training.paper.config import TuneConfig
from ditic_stream.training.paper.objective import Weights, objective, show
from ditic_stream.training.paper.rate import set_tails
from ditic_stream.training.perceptual import Features
from ditic_stream.training.stopping import stopping

LAST = f"vae.decoder.conv_out.lora_B{adapters.MARK}weight"
"""The decoder's last parameter that is trained, at which gradients are weighed against each other."""
CLIP, AVERAGE, WARM_UP = 4.0, 0.999, 100
DECAY = 0.01
VALIDATION_EVERY, VALIDATION_CROPS = 40, 4
"""Every so many-th picture is held out, and so many crops of those are coded at each report."""
STILL = ("codec.entropy_bottleneck.quantiles",)
"""Medians, where the rounding of z stands, and tails, which are found at the end."""
Progress = Callable[[int, int], None]
"""Told after each step the seconds that are done and in all; of a run by steps, the latter is a forecast."""


def run(config: TuneConfig, progress: Progress | None = None) -> Path:
    """Tune (or go on tuning) and write the weights; returns their path."""
    with folder_of_a_run(Path(config.out)):
        tuner = Tuner(config)
        tuner.train(progress)
        return tuner.export(Path(config.out) / "weights.safetensors")


def base_of(start: str) -> tuple[Checkpoint, dict[str, Any]]:
    """The set a run starts from, and what its result says of it.  ConfigError for one that is not there."""
    if start.endswith(SUFFIX):
        path = Path(start)
        if not path.is_file():
            raise ConfigError(f"{start} is no file; start from the weights of a run, or from a set of the model folder")
        opened = open_file(path)
        said = {key: opened.origin.get(key, "unknown") for key in ("licence", "licence_note")}
        return opened, {"name": path.name, "sha256": folder.hash_of(path), **said, "before": opened.origin}
    found = folder.find(start)
    if found is None:
        known = ", ".join(one for one in folder.names() if one.startswith(f"{MODEL}:")) or "none"
        raise ConfigError(f"no weights are named {start!r} in {folder.models_folder()}; of {MODEL} it has {known}")
    path, record = found
    opened = open_file(path)
    said = {"licence": record.licence, "licence_note": record.licence_note}
    origin = {"name": start, "sha256": record.sha256, **said}
    return opened, origin | ({"before": opened.origin} if opened.origin else {})


class Tuner:
    """State of a run: the network, what of it is trained, the moving average, the optimiser and the clock."""

    def __init__(self, config: TuneConfig) -> None:
        attention_asked()
        torch.set_num_threads(config.threads)
        self.config, self.device = config, torch.device(config.device)
        self.features = _features(config.features, self.device)
        self.base, self.origin = base_of(config.start)
        self.folder = Path(config.out)
        self.folder.mkdir(parents=True, exist_ok=True)
        pictures = Pictures(load_pictures(config.data, config.memory, config.seed), self.device)
        numbers = range(len(pictures))
        held_out = pictures.chosen(list(numbers[VALIDATION_EVERY // 2 :: VALIDATION_EVERY]) or [0])
        kept = pictures.chosen([i for i in numbers if i % VALIDATION_EVERY != VALIDATION_EVERY // 2] or [0])
        self.validation = Crops(held_out, config.side, 1).batch(VALIDATION_CROPS)
        self.crops = Crops(kept, config.side, 1000 * config.seed + 10)
        self.network = PaperNetwork.of(self.base.config, self.base.tensors)
        adapters.add(self.network, config.rank, config.seed)
        self.network.to(self.device)
        self.trained = trainable(self.network)
        self.averaged = {name: parameter.detach().clone() for name, parameter in self.trained.items()}
        self.optimiser = torch.optim.AdamW(groups(self.trained), lr=config.rate)
        self.weights = Weights(rate=config.weight)
        self.bfloat16 = config.precision == "bfloat16" or (config.precision == "auto" and _multiplies(self.device))
        self.adversary = Adversary(1, config.rate, self.device, config.seed) if config.stage == "adversarial" else None
        self.steps, self.elapsed = 0, 0.0
        if (self.folder / "checkpoint.pt").exists():
            self._restore()

    def train(self, progress: Progress | None = None) -> None:
        """Step until the time is up, reporting and saving on the way; Ctrl-C saves and raises KeyboardInterrupt."""
        config, last = self.config, self.elapsed
        seen: list[dict[str, float]] = []
        self._report(seen)
        began = time.monotonic() - self.elapsed
        with stopping() as asked:
            while self.part < 1:
                seen.append(self.step())
                self.elapsed = time.monotonic() - began
                if progress:
                    progress(round(self.elapsed), round(self.elapsed / max(self.part, 1e-9)))
                if self.elapsed - last > config.report:
                    last = self.elapsed
                    self._save()
                    self._report(seen)
                    seen.clear()
                if asked():
                    break
            self._save()
            if asked():
                raise KeyboardInterrupt
        if seen:
            self._report(seen)

    @property
    def part(self) -> float:
        """How far the run is, 0..1 and beyond."""
        config = self.config
        return self.steps / config.steps if config.steps else self.elapsed / max(config.minutes * 60, 1e-9)

    def step(self) -> dict[str, float]:
        """One step; gives its figures."""
        self.crops.number = self.steps
        noise = torch.Generator(self.device).manual_seed(self.config.seed * 2**32 + self.steps)
        x = self.crops.batch(self.config.batch).to(self.device)
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.rate * min(1.0, (self.steps + 1) / WARM_UP)
        shown = show(self.network, x, noise, bfloat16=self.bfloat16)
        total, figures = objective(shown, x, self.weights, self.features)
        if self.adversary is not None:
            self.adversary.part = self.part
            even = torch.ones(len(x), device=self.device)
            seen, last = (shown.pixels + 1) / 2, self.trained[LAST]
            term, figures["told_apart"] = self.adversary.pull(0, x, seen, even, total, last)
            total = total + self.weights.adversarial * term
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.trained.values(), CLIP)
        if torch.isfinite(norm):
            self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self.adversary is not None:
            self.adversary.step()
        self.steps += 1
        decay = min(AVERAGE, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.averaged.values()), [p.data for p in self.trained.values()], 1 - decay)
        return {name: float(value.detach()) for name, value in figures.items()}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Bits a pixel and PSNR of held-out crops, rounded as they are coded, under the moving average."""
        x = self.validation.to(self.device)
        with self.average():
            shown = [show(self.network, one[None], None, bfloat16=self.bfloat16) for one in x]
        errors = [
            ((one.pixels[0].clamp(-1, 1) + 1) / 2 - crop).square().mean() for one, crop in zip(shown, x, strict=True)
        ]
        psnr = -10 * torch.stack(errors).clamp_min(1e-10).log10().mean()
        return {"bpp": float(torch.cat([one.bpp for one in shown]).mean()), "psnr": float(psnr)}

    def export(self, path: Path) -> Path:
        """Write the moving average, adapters merged and tails found anew, as a set that can be imported."""
        with self.average():
            set_tails(self.network.codec.entropy_bottleneck)
            tensors = adapters.merged(self.network)
        changed = {
            name: tensor
            if name.startswith(("codec.", "prompter.")) or not torch.equal(tensor, self.base.tensors[name].float())
            else self.base.tensors[name]
            for name, tensor in tensors.items()
        }
        origin = {
            **self.origin,
            "stage": self.config.stage,
            "steps": self.steps,
            "rate_weight": self.config.weight,
            "software": f"ditic-stream {__version__}",
        }
        write_tuned(path, self.base, changed, origin)
        return path

    @contextmanager
    def average(self) -> Iterator[None]:
        """The network with the moving average in place of what is being trained."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self.trained.items():
            parameter.data, self.averaged[name] = self.averaged[name], parameter.data

    def _report(self, seen: list[dict[str, float]]) -> None:
        line: dict[str, object] = {"step": self.steps, "seconds": round(self.elapsed, 1)}
        line["perception"] = self.features.words if self.features is not None else None
        if seen:
            line["train"] = {name: sum(one[name] for one in seen) / len(seen) for name in seen[0]}
        line["validation"] = self.evaluate()
        append_line(self.folder / "log.jsonl", line)

    def _save(self) -> None:
        state = {
            "config": asdict(self.config),
            "base": self.origin["sha256"],
            "trained": {name: parameter.detach() for name, parameter in self.trained.items()},
            "averaged": self.averaged,
            "optimiser": self.optimiser.state_dict(),
            "adversary": self.adversary.state() if self.adversary is not None else None,
            "steps": self.steps,
            "elapsed": self.elapsed,
        }
        save_checkpoint(state, self.folder / "checkpoint.pt")

    def _restore(self) -> None:
        path = self.folder / "checkpoint.pt"
        state = load_checkpoint(path, self.device, mmap=True)
        if state.get("base") != self.origin["sha256"]:
            raise ConfigError(f"{path} is of a run from another set than {self.config.start}; take another --out")
        for what in ("stage", "rank", "rate_weight"):
            if state["config"][what] != getattr(self.config, what):
                raise ConfigError(
                    f"{path} is of a run of {what.replace('_', ' ')} {state['config'][what]}, "
                    f"not {getattr(self.config, what)}; "
                    "take another --out"
                )
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(state["trained"][name])
                self.averaged[name].copy_(state["averaged"][name])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.adversary is not None:
            self.adversary.restore(state["adversary"])
        self.steps, self.elapsed = state["steps"], state["elapsed"]


def trainable(network: PaperNetwork) -> dict[str, nn.Parameter]:
    """What a run trains, by name, asking for gradients, in float32 tensors of its own; all else does not."""
    network.requires_grad_(False)
    found = adapters.adapted(network)
    for part in ("codec", "prompter"):
        for name, parameter in getattr(network, part).named_parameters(prefix=part):
            parameter.data = parameter.detach().float().clone()  # the file's own memory is not ours to write
            if name not in STILL:
                found[name] = parameter
    for parameter in found.values():
        parameter.requires_grad_(True)
    return found


def groups(trained: dict[str, nn.Parameter]) -> list[dict[str, Any]]:
    """Parameter groups: decay on matrices alone."""
    matrices = [p for name, p in trained.items() if p.ndim >= 2 and "entropy_bottleneck" not in name]
    held = {id(p) for p in matrices}
    return [
        {"params": matrices, "weight_decay": DECAY},
        {"params": [p for p in trained.values() if id(p) not in held], "weight_decay": 0.0},
    ]


def _features(path: str, device: torch.device) -> Features | None:
    """What judges pictures; a line of log says where it is less than LPIPS and DISTS."""
    log = logging.getLogger("ditic_stream")
    if not path:
        log.warning("no file of features: the perceptual terms are left out")
        return None
    features = Features(path, device)
    exact = features.names == ("lpips", "dists")
    log.log(logging.INFO if exact else logging.WARNING, "perceptual terms: %s", features.words)
    return features


def _multiplies(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
