"""Weights of no meaning, the same on every machine: for tests, parity and measurements.

In: names, shapes and a seed.  Out: tensors.  A tensor depends on its name, its shape and the seed alone: it is drawn by
numpy's PCG64 from the name's CRC-32 plus seed * 2^32, and scaled so that signals neither fade nor explode.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from ditic_stream.models.paper.config import SCALE_MIN
from ditic_stream.models.paper.entropy import FILTERS, INITIAL_WIDTH
from ditic_stream.models.paper.layout import TABLES

TAIL_MASS = LIKELIHOOD_MIN = 1e-9
"""CompressAI's defaults, which checkpoints carry along."""
GAINS = {
    "codec.g_a.analysis_transform.4.ffn.2.weight": 1.0,
    "codec.scale.synthesis_transform.4.weight": 12.0,
    "codec.g_s.synthesis_transform.4.weight": 4.0,
    "codec.aux.block.3.weight": 2.0,
    **{f"codec.adapter_out.{number}.branch1.4.weight": 24.0 for number in range(4)},
}
"""Gains of layers whose output has to have a size of its own; others have 0.5 in the latent codec and 1 elsewhere."""


def seeded(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """All tensors of a checkpoint, float32 (tables int32).  seed: 0..2^32 - 1."""
    return dict(draw(shapes, seed))


def draw(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> Iterator[tuple[str, Tensor]]:
    """The same one by one, for those who cannot hold them all."""
    for name, shape in shapes.items():
        yield name, seeded_tensor(name, tuple(shape), seed)


def seeded_tensor(name: str, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """One tensor."""
    if name in TABLES:
        return _initial_table(name, shape)
    random = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()) + seed * 2**32))
    if "entropy_bottleneck" in name:
        return _prior(name, shape, random)
    normal = random.standard_normal(shape, dtype=np.float32)
    if name.endswith("scale_shift_table"):
        normal *= np.float32(0.02)
    elif name.endswith("pattern"):
        pass
    elif len(shape) >= 2:
        gain = GAINS.get(name, 0.5 if name.startswith("codec.") else 1.0)
        normal *= np.float32(gain / math.sqrt(math.prod(shape[1:])))
    elif name.endswith("weight"):
        normal = 1 + np.float32(0.05) * normal
    else:
        normal *= np.float32(0.02)
    return torch.from_numpy(np.ascontiguousarray(normal))


def _prior(name: str, shape: tuple[int, ...], random: np.random.Generator) -> Tensor:
    """Biases are drawn, after as many normals; the rest are the deterministic first values of the prior."""
    kind, _, number = name.removeprefix("codec.entropy_bottleneck.").partition(".")
    if kind == "biases":
        random.standard_normal(shape, dtype=np.float32)
        return torch.from_numpy(random.random(shape, dtype=np.float32) - np.float32(0.5))
    if kind == "matrices":
        width = INITIAL_WIDTH ** (1 / (len(FILTERS) - 1))
        return torch.full(shape, math.log(math.expm1(1 / width / FILTERS[int(number) + 1])))
    if kind == "quantiles":
        return torch.tensor([-INITIAL_WIDTH, 0.0, INITIAL_WIDTH]).expand(shape).contiguous()
    return torch.zeros(shape)


def _initial_table(name: str, shape: tuple[int, ...]) -> Tensor:
    if name.endswith(("_offset", "_quantized_cdf", "_cdf_length")):
        return torch.zeros(shape, dtype=torch.int32)
    if name.endswith("likelihood_lower_bound.bound"):
        return torch.full(shape, LIKELIHOOD_MIN)
    if name.endswith("target"):
        tail = math.log(2 / TAIL_MASS - 1)
        return torch.tensor([-tail, 0.0, tail])
    return torch.full(shape, SCALE_MIN)
