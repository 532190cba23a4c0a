"""Start a network from a published set of weights, so that training goes on where that set stopped.

In: a network and a set of the same widths, or of smaller ones (see `widen`).  Changes the network in place.  Parts the
set does not have (`context`, `overlap`) keep their start, which is zero, so the network does at first what the set did;
condition tokens that the network does not have are dropped, and it has to learn to do without.
A file holds the hyper-synthesis as integers alone; floats that do the same are read off them, up to the rounding of
activations.
"""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import torch
from torch import Tensor

from ditic_stream.errors import WeightsError
from ditic_stream.models.config import LEVELS, LOG_SCALE_MIN, LOG_SCALE_STEP
from ditic_stream.models.latent_codec import CONTEXT_STEPS, at_level
from ditic_stream.models.network import Network
from ditic_stream.models.weights import Weights
from ditic_stream.training.widen import widen

ACTIVATION = 6.0 / 255
"""What an integer step of an activation becomes: ReLU networks do the same at any scale, and train best near one."""
ADDED = ("encoder.overlap32", "decoder.overlap32", "codec.near", "codec.context")
"""Parts that a set may lack."""
LACKING = ("context", "overlap")
"""Their sizes, 0 in a set without."""
CONDITION = ("step.condition.", ".query.", ".key_value.", ".cross.")
"""What the tensors of condition tokens are called by, which a set may have and the network not."""
GROWING = {"c16", "latent", "passing", "enc8", "enc16", "dec8", "dec16"}
"""Sizes that may be larger than those of a set."""


@torch.no_grad()
def start_from(network: Network, weights: Weights, crops_B3HW: Tensor | None = None) -> None:
    """Copy `weights` into `network`.  Where there are crops (0..1) to tell what to add from, `network` may be wider or
    have more residual blocks (see `widen`).  WeightsError where it does not fit."""
    theirs, ours = asdict(weights.config), asdict(network.config)
    drops = ours["unconditioned"] > theirs["unconditioned"]
    theirs["unconditioned"] += drops
    unequal = {n for n, value in theirs.items() if value != ours[n] and not (n in LACKING and value == 0)}
    if unequal and crops_B3HW is not None and _grown(theirs, ours, unequal):
        narrow = Network(replace(weights.config, **{name: ours[name] for name in (*LACKING, "unconditioned")})).eval()
        start_from(narrow, weights)
        widen(network, narrow, crops_B3HW)
        return
    if unequal:
        differing = ", ".join(f"{name} {theirs[name]}, not {ours[name]}" for name in theirs if name in unequal)
        raise WeightsError(f"{weights.name} has other widths than this model: {differing}; start from another")
    stored = {name: tensor for name, tensor in weights.tensors.items() if not name.startswith("entropy.")}
    if drops:
        stored = {name: tensor for name, tensor in stored.items() if not any(part in name for part in CONDITION)}
    stored |= _synthesis(network, weights.tensors)
    for name in ("log_scale", "log_scale_z"):
        table = weights.tensors[f"entropy.{name.removeprefix('log_').replace('scale', 'scale_table')}"]
        stored[f"codec.{name}"] = table.float() * (LOG_SCALE_STEP / 16) + LOG_SCALE_MIN
    missing, unexpected = network.load_state_dict(stored, strict=False)
    missing = [name for name in missing if not name.startswith(ADDED)]
    if missing or unexpected:
        raise WeightsError(
            f"{weights.name} does not fit this model: {missing[:3]} are missing, {unexpected[:3]} unknown; "
            "start from another"
        )


def _grown(theirs: dict[str, int], ours: dict[str, int], unequal: set[str]) -> bool:
    """True where ours differs in what may grow, has grown, and leaves residual blocks as wide as they were."""
    return (
        unequal <= GROWING
        and all(ours[name] > theirs[name] for name in unequal)
        and theirs["c16"] - theirs["passing"] == ours["c16"] - ours["passing"]
    )


@torch.no_grad()
def space_levels(network: Network, x_B3HW: Tensor) -> None:
    """Move the rate levels so that the logarithm of the rate of a crop rises evenly, in the mean, from first to last.

    Training spaces levels by the weight of distortion, against which the rate is steep in the middle and flat at the
    ends; users turn a quality, and expect equal steps.  Tables between two levels are interpolated, so the levels move
    along the curve they lie on.
    """
    codec, features = network.codec, torch.cat([network.encoder(x) for x in x_B3HW.split(8)]).float()
    places = torch.linspace(0, LEVELS - 1, 4 * (LEVELS - 1) + 1, device=x_B3HW.device)
    bits = [codec(features, place.expand(len(features))) for place in places]
    rates = torch.stack([(one.bits_y + one.bits_z).log().mean() for one in bits]).cummax(0).values
    wanted = torch.linspace(float(rates[0]), float(rates[-1]), LEVELS)
    levels = torch.from_numpy(np.interp(wanted, rates.cpu(), places.cpu())).to(places)
    for parameter in codec.parameters():
        if len(parameter) == LEVELS and parameter.ndim == 2:
            parameter.copy_(at_level(parameter, levels))


def _synthesis(network: Network, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The floats of every integer layer: weight * 2^-shift, in units of what goes in and comes out."""
    codec = network.codec
    latent, first = network.config.latent, network.config.context
    floats: dict[str, Tensor] = {}
    hidden = torch.tensor(ACTIVATION)

    def layer(name: str, stored: str, before: Tensor, after: Tensor) -> None:
        shift = 2.0 ** -tensors[f"entropy.{stored}.shift"].float()
        weight = tensors[f"entropy.{stored}.weight"].float() * shift[:, None, None, None]
        floats[f"{name}.weight"] = weight * (after.expand(len(weight))[:, None] / before)[:, :, None, None]
        floats[f"{name}.bias"] = tensors[f"entropy.{stored}.bias"].float() * shift * after

    def out_step(channels: int) -> Tensor:
        return torch.cat([torch.full((channels,), 1 / 16), torch.full((channels,), LOG_SCALE_STEP / 16)])

    n = codec.synthesis.conv1.out_channels
    layer("codec.synthesis.conv1", "conv1", torch.ones(1), hidden)
    for name in ("expand", "conv2", "conv3"):
        layer(f"codec.synthesis.{name}", name, hidden.expand(1), hidden)
    layer("codec.synthesis.out", "out", hidden.expand(1), out_step(latent))
    floats["codec.synthesis.level"] = floats["codec.synthesis.conv1.bias"]
    floats["codec.synthesis.conv1.bias"] = torch.zeros(n)
    for name in ("expand", "conv2", "conv3", "out"):
        floats[f"codec.synthesis.{name}.bias"] = floats[f"codec.synthesis.{name}.bias"][0]
    if network.config.context and "entropy.near_share" in tensors:
        for name, out in (("near", first), ("context", latent - first)):
            layer(f"codec.{name}.conv", f"{name}_conv", torch.full((1,), 1 / CONTEXT_STEPS), hidden)
            layer(f"codec.{name}.join", f"{name}_join", hidden.expand(1), hidden)
            layer(f"codec.{name}.out", f"{name}_out", hidden.expand(1), out_step(out))
            for part in ("conv", "join", "out"):
                floats[f"codec.{name}.{part}.bias"] = floats[f"codec.{name}.{part}.bias"][0]
        floats["codec.near.share"] = tensors["entropy.near_share"].float() / 256
    return floats
