"""Turn a trained network into a weights file: floats for pixels, integers for symbols.

In: a network and pictures to calibrate on.  Out: safetensors with bfloat16 networks, 8-bit entropy networks, integer
tables and a known answer; its metadata names the config and the licence.  Post-training: 8 bits cost the rate less than
0.5 %.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from ditic_stream.config import Q_MAX
from ditic_stream.entropy import ACTIVATION_MAX, EXACT, EntropyModel
from ditic_stream.models.config import LOG_SCALE_MIN, LOG_SCALE_STEP, Q_STEPS, SCALES
from ditic_stream.models.latent_codec import Z_MAX, at_level
from ditic_stream.models.network import Network
from ditic_stream.models.weights import FLOAT32, LICENCE, WEIGHTS_FORMAT
from ditic_stream.rans import TOTAL
from ditic_stream.training.data import Crops

CALIBRATION_CROPS = 48
PERCENTILE = 0.9999
"""Share of activations that must fit into 8 bits; the rest saturates."""


@torch.no_grad()
def export(network: Network, pictures: list[Tensor], path: Path) -> Path:
    """Write the weights file of `network`; `pictures` (uint8, 3 x rows x columns) calibrate the integer activations."""
    network = network.float().cpu().eval()
    tensors = {
        name: value if name.startswith(FLOAT32) else value.to(torch.bfloat16)
        for name, value in network.state_dict().items()
        if not name.startswith(("codec.synthesis", "codec.log_scale"))
    }
    tensors |= integer_networks(network, Crops(pictures, 256, 3).batch(CALIBRATION_CROPS))
    tensors |= gaussian_tables()
    tensors["entropy.known_answer"] = torch.zeros(3, dtype=torch.int64)
    tensors["entropy.known_answer"] = torch.tensor(EntropyModel(network.config, tensors, check=False).known_answer())
    metadata = {
        "format": WEIGHTS_FORMAT,
        "config": json.dumps(asdict(network.config), sort_keys=True),
        "licence": LICENCE,
    }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path


def integer_networks(network: Network, crops_B3HW: Tensor) -> dict[str, Tensor]:
    """The `entropy.*` layers and scale tables of a network, calibrated on crops at every other level."""
    synthesis, codec = network.codec.synthesis, network.codec
    peaks = {name: [] for name in ("conv1", "expand", "conv2", "conv3")}  # type: dict[str, list[Tensor]]
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
            peaks["conv3"].append(F.relu(synthesis.conv3(h)).flatten())
    step = {name: _peak(torch.cat(values)) / ACTIVATION_MAX for name, values in peaks.items()}
    c = network.config.latent
    out_step = torch.cat([torch.full((c,), 1 / 16), torch.full((c,), LOG_SCALE_STEP / 16)])
    tensors: dict[str, Tensor] = {}
    before, input_max = 1.0, Z_MAX
    for name in ("conv1", "expand", "conv2", "conv3", "out"):
        layer: nn.Conv2d = getattr(synthesis, name)
        bias = layer.bias[None] + synthesis.level if name == "conv1" else layer.bias[None]  # type: ignore[index]
        after = out_step if name == "out" else torch.full((layer.out_channels,), step[name])
        weight, integer_bias, shift = _quantise(layer.weight, bias, before, after, input_max)
        tensors |= {
            f"entropy.{name}.weight": weight,
            f"entropy.{name}.bias": integer_bias,
            f"entropy.{name}.shift": shift,
        }
        before, input_max = step.get(name, 1.0), ACTIVATION_MAX
    for name, table in (("scale_table", codec.log_scale), ("scale_table_z", codec.log_scale_z)):
        tensors[f"entropy.{name}"] = (
            ((table - LOG_SCALE_MIN) * (16 / LOG_SCALE_STEP)).round().clamp(-4096, 4096).to(torch.int32)
        )
    return tensors


def _peak(values: Tensor) -> float:
    return float(np.quantile(values[:: max(1, len(values) // 4_000_000)].numpy(), PERCENTILE)) + 1e-6


def _quantise(
    weight: Tensor, bias_LO: Tensor, before: float, after_O: Tensor, input_max: int
) -> tuple[Tensor, Tensor, Tensor]:
    """8-bit weights, integer biases and shifts, so that floor((sum + half) * 2^-shift) is the output in steps of
    `after`."""
    scaled, bias = weight.double() * before / after_O[:, None, None, None], bias_LO.double() / after_O
    shift = (127 / scaled.abs().amax((1, 2, 3)).clamp_min(1e-9)).log2().floor().clamp(-8, 20)
    while True:
        factor = 2.0**shift
        w, b = (scaled * factor[:, None, None, None]).round(), (bias * factor).round()
        over = w.abs().sum((1, 2, 3)) * input_max + b.abs().amax(0) + factor >= EXACT
        if not over.any():
            return w.to(torch.int8), b.to(torch.int32), shift.to(torch.int8)
        shift = shift - over.double()


def gaussian_tables() -> dict[str, Tensor]:
    """Integer frequency tables: for latents at SCALES widths, then for hyper-latents at the same widths, cut at +-127.

    Built once, here, from float64 formulas; files store the integers.  The last count of a table is the escape's.
    """
    counts, sizes, lows = [], [], []
    for limit in (4095, Z_MAX):
        for index in range(SCALES):
            scale = math.exp(LOG_SCALE_MIN + index * LOG_SCALE_STEP)
            reach = min(limit, max(2, math.ceil(5 * scale)))
            row = _counts(scale, reach)
            counts.append(row)
            sizes.append(len(row))
            lows.append(-reach)
    return {
        "entropy.tables.counts": torch.from_numpy(np.concatenate(counts).astype(np.int32)),
        "entropy.tables.sizes": torch.tensor(sizes, dtype=torch.int32),
        "entropy.tables.lows": torch.tensor(lows, dtype=torch.int32),
    }


def _counts(scale: float, reach: int) -> np.ndarray:
    edges = [0.5 * math.erf((v - 0.5) / scale * math.sqrt(0.5)) for v in range(-reach, reach + 2)]
    mass = np.diff(np.array(edges))
    share = np.cumsum(np.append(mass, max(1 - mass.sum(), 0.0)))
    spare = TOTAL - len(share)  # every count is at least one; the rest is dealt out by rounding the running sum
    return 1 + np.diff(np.round(share / share[-1] * spare), prepend=0).astype(np.int64)
