"""Turn a trained network into a weights file: floats for pixels, integers for symbols.

In: a network and pictures to calibrate on.  Out: safetensors with bfloat16 networks, 8-bit entropy networks, integer
tables and a known answer; its metadata names the config and the licence.  Post-training: 8 bits cost the rate less than
0.5 % (benchmarks/fixed_point.py).
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditic_stream.config import Q_MAX
from ditic_stream.entropy import ACTIVATION_MAX, EXACT, EntropyModel
from ditic_stream.errors import WeightsError
from ditic_stream.models.config import LOG_SCALE_MIN, LOG_SCALE_STEP, Q_STEPS, SCALES
from ditic_stream.models.latent_codec import CONTEXT_STEPS, Z_MAX, at_level, compress
from ditic_stream.models.names import WEIGHTS_FORMAT
from ditic_stream.models.network import Network
from ditic_stream.models.weights import FLOAT32, INTEGER, NOT_STATED
from ditic_stream.rans import TOTAL
from ditic_stream.training.data import Crops
from ditic_stream.training.keeping import save_weights

CALIBRATION_CROPS = 48
PERCENTILE = 0.9999
"""Share of activations that must fit into 8 bits; the rest saturates."""


ASTRAY = "training has gone astray, what it has come to is no codec; begin anew in another folder, at a lower --rate"
PRIOR = 3000.0
"""Symbols that the Gaussian counts for beside those that were seen under a scale index."""


@torch.no_grad()
def export(network: Network, pictures: Sequence[Tensor], path: Path, licence: str = NOT_STATED) -> Path:
    """Write the weights file of `network`; `pictures` (uint8, 3 x rows x columns) calibrate the integer activations.

    licence: under which the weights may be passed on, in a few words.
    Raises WeightsError when training has diverged, StorageError where the file cannot be written.
    """
    network = network.float().cpu().eval()
    if not all(bool(torch.isfinite(value).all()) for value in network.state_dict().values()):
        raise WeightsError(ASTRAY)
    tensors = {
        name: value if name.startswith(FLOAT32) else value.to(torch.bfloat16)
        for name, value in network.state_dict().items()
        if not name.startswith(INTEGER)
    }
    crops = Crops(pictures, 256, 3).batch(CALIBRATION_CROPS).cpu()
    tensors |= integer_networks(network, crops)
    tensors |= tables_of(gaussian_masses())
    tensors["entropy.known_answer"] = torch.zeros(3, dtype=torch.int64)
    entropy = EntropyModel(network.config, tensors, check=False)
    tensors["entropy.known_answer"] = torch.tensor(entropy.known_answer())
    tensors |= tables_of(fitted_masses(network, entropy, crops))
    metadata = {
        "format": WEIGHTS_FORMAT,
        "config": json.dumps(network.config.to_json(), sort_keys=True),
        "licence": licence,
    }
    save_weights({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata, path)
    return path


def integer_networks(network: Network, crops_B3HW: Tensor) -> dict[str, Tensor]:
    """The `entropy.*` layers and scale tables of a network, calibrated on crops at every other level."""
    synthesis, codec = network.codec.synthesis, network.codec
    contexts = {name: part for name, part in (("near", codec.near), ("context", codec.context)) if part is not None}
    peaks: defaultdict[str, list[Tensor]] = defaultdict(list)
    for x in crops_B3HW.split(8):
        features = network.encoder(x)
        for q in range(0, Q_MAX + 1, 2 * Q_STEPS):
            level = torch.full((len(x),), q / Q_STEPS)
            h = codec.hyper(features, level).round().clamp(-Z_MAX, Z_MAX)
            h = F.relu(synthesis.conv1(h) + at_level(synthesis.level, level)[:, :, None, None])
            peaks["conv1"].append(h.flatten())
            h = F.relu(F.pixel_shuffle(synthesis.expand(h), 2))
            peaks["expand"].append(h.flatten())
            h = F.relu(synthesis.conv2(h))
            peaks["conv2"].append(h.flatten())
            h = F.relu(synthesis.conv3(h))
            peaks["conv3"].append(h.flatten())
            if contexts:
                h = h[:, :, : features.shape[2], : features.shape[3]]
                value = (features * codec.gain(level))[:, : network.config.context]
                # Near enough, for the range of activations, to what is coded: within half a step, and all cells known.
                known = {"context": value, "near": value - synthesis.out(h)[:, : network.config.context]}
                for name, layers in contexts.items():
                    near = F.relu(layers.conv(compress(known[name])))
                    peaks[f"{name}_conv"].append(near.flatten())
                    peaks[f"{name}_join"].append(F.relu(layers.join(torch.cat([near, h], 1))).flatten())
    step = {name: _peak(torch.cat(values)) / ACTIVATION_MAX for name, values in peaks.items()}
    n = network.config.hyper
    tensors: dict[str, Tensor] = {}

    def store(name: str, layer: nn.Conv2d, before: Tensor, input_max: int, bias: Tensor | None = None) -> None:
        after = torch.full((layer.out_channels,), step[name]) if name in step else _out_step(layer.out_channels)
        bias = layer.bias[None] if bias is None else bias  # type: ignore[index]
        parts = _quantise(layer.weight, bias, before, after, input_max)
        for part, tensor in zip(("weight", "bias", "shift"), parts, strict=True):
            tensors[f"entropy.{name}.{part}"] = tensor

    store("conv1", synthesis.conv1, torch.ones(1), Z_MAX, synthesis.conv1.bias + synthesis.level)  # type: ignore[operator]
    for earlier, name in pairwise(("conv1", "expand", "conv2", "conv3", "out")):
        store(name, getattr(synthesis, name), torch.tensor([step[earlier]]), ACTIVATION_MAX)
    for name, layers in contexts.items():
        store(f"{name}_conv", layers.conv, torch.tensor([1 / CONTEXT_STEPS]), Z_MAX)
        before = torch.tensor([step[f"{name}_conv"]] * n + [step["conv3"]] * n)
        store(f"{name}_join", layers.join, before, ACTIVATION_MAX)
        store(f"{name}_out", layers.out, torch.tensor([step[f"{name}_join"]]), ACTIVATION_MAX)
    if codec.near is not None:
        tensors["entropy.context_steps"] = context_steps()
        tensors["entropy.near_share"] = (codec.near.share * 256).round().clamp(-512, 512).to(torch.int32)
    for name, table in (("scale_table", codec.log_scale), ("scale_table_z", codec.log_scale_z)):
        tensors[f"entropy.{name}"] = (
            ((table - LOG_SCALE_MIN) * (16 / LOG_SCALE_STEP)).round().clamp(-4096, 4096).to(torch.int32)
        )
    return tensors


def _out_step(channels: int) -> Tensor:
    """Unit of each output of the last layers: sixteenths of a step for means, of a scale index for log-scales."""
    half = channels // 2
    return torch.cat([torch.full((half,), 1 / 16), torch.full((half,), LOG_SCALE_STEP / 16)])


def context_steps() -> Tensor:
    """The smallest |value|, in sixteenths of a step, that reaches 1, 2, ... 127 on the context's logarithmic scale
    (CONTEXT_STEPS times log2(1 + |value|), rounded)."""
    reach = (np.arange(1, Z_MAX + 1) - 0.5) / CONTEXT_STEPS
    return torch.from_numpy(np.ceil(16 * (2**reach - 1)).astype(np.int32))


def _peak(values: Tensor) -> float:
    if not bool(torch.isfinite(values).all()):
        raise WeightsError(ASTRAY)
    return float(np.quantile(values[:: max(1, len(values) // 4_000_000)].numpy(), PERCENTILE)) + 1e-6


def _quantise(
    weight: Tensor, bias_LO: Tensor, before_I: Tensor, after_O: Tensor, input_max: int
) -> tuple[Tensor, Tensor, Tensor]:
    """8-bit weights, integer biases and shifts, so that floor((sum + half) * 2^-shift) is the output in steps of
    `after`, for inputs in steps of `before`."""
    scaled, bias = weight.double() * before_I[:, None, None] / after_O[:, None, None, None], bias_LO.double() / after_O
    shift = (127 / scaled.abs().amax((1, 2, 3)).clamp_min(1e-9)).log2().floor().clamp(-8, 20)
    while True:
        factor = 2.0**shift
        w, b = (scaled * factor[:, None, None, None]).round(), (bias * factor).round()
        over = w.abs().sum((1, 2, 3)) * input_max + b.abs().amax(0) + factor >= EXACT
        if not over.any():
            return w.to(torch.int8), b.to(torch.int32), shift.to(torch.int8)
        shift = shift - over.double()


def gaussian_masses() -> list[np.ndarray]:
    """Probabilities of the entries of each table: for latents at SCALES widths, then for hyper-latents at the same
    widths, cut at +-127.  A table holds the values -reach..reach and last the escape."""
    masses = []
    for limit in (4095, Z_MAX):
        for index in range(SCALES):
            scale = math.exp(LOG_SCALE_MIN + index * LOG_SCALE_STEP)
            reach = min(limit, max(2, math.ceil(5 * scale)))
            edges = [0.5 * math.erf((v - 0.5) / scale * math.sqrt(0.5)) for v in range(-reach, reach + 2)]
            mass = np.diff(np.array(edges))
            masses.append(np.append(mass, max(1 - mass.sum(), 0.0)))
    return masses


def fitted_masses(network: Network, entropy: EntropyModel, crops_B3HW: Tensor) -> list[np.ndarray]:
    """The same, moved towards the symbols that crops give under each scale index, both signs taken together."""
    masses = gaussian_masses()
    seen = [np.zeros(len(mass)) for mass in masses]

    def count(symbols: np.ndarray, index: np.ndarray) -> None:
        for table in np.unique(index):
            values, last = symbols[index == table], len(seen[table]) - 1
            entries = values + last // 2
            entries[(entries < 0) | (entries >= last)] = last
            seen[table] += np.bincount(entries, minlength=last + 1)

    for x in crops_B3HW.split(1):
        features = network.encoder(x)
        for q in range(0, Q_MAX + 1, Q_STEPS // 2):
            level = torch.tensor([q / Q_STEPS])
            z = network.codec.hyper(features, level).round().clamp(-Z_MAX, Z_MAX).to(torch.int32).numpy()
            _, parts = entropy.quantise(z, (features * (network.codec.gain(level) * 16)).numpy(), q)
            for symbols, index in parts:
                count(symbols, index)
    fitted = []
    for mass, found in zip(masses, seen, strict=True):
        found[:-1] = (found[:-1] + found[:-1][::-1]) / 2
        fitted.append((found + PRIOR * mass) / (found.sum() + PRIOR))
    return fitted


def tables_of(masses: list[np.ndarray]) -> dict[str, Tensor]:
    """Integer frequency tables; files store these, and nobody computes them from floats again."""
    counts = [_counts(mass) for mass in masses]
    return {
        "entropy.tables.counts": torch.from_numpy(np.concatenate(counts).astype(np.int32)),
        "entropy.tables.sizes": torch.tensor([len(row) for row in counts], dtype=torch.int32),
        "entropy.tables.lows": torch.tensor([1 - len(row) // 2 for row in counts], dtype=torch.int32),
    }


def _counts(mass: np.ndarray) -> np.ndarray:
    """Every count is at least one; the rest is dealt out by rounding the running sum."""
    share = np.cumsum(mass)
    return 1 + np.diff(np.round(share / share[-1] * (TOTAL - len(share))), prepend=0).astype(np.int64)
