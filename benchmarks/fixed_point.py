"""What integers cost the rate: the entropy networks of a run as exported, beside the floats they were made from.

    python -m benchmarks.fixed_point RUN PICTURES ... [--qualities 1 29 58 86]

RUN: the folder of a finished run (`checkpoint.pt`, `weights.safetensors`).  Both sides see the same latents and count
bits under the same tables, those of Gaussians cut to so many widths, so that only the networks differ; beside it the
integers under the tables in the file, which are fitted to symbols.  An escaped symbol counts as its escape alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ditic_stream.config import q_of_quality
from ditic_stream.entropy import CODED_FROM, EntropyModel
from ditic_stream.models.config import LOG_SCALE_MIN, LOG_SCALE_STEP, Q_STEPS, SCALES, ModelConfig
from ditic_stream.models.latent_codec import Z_MAX, LatentCodec, at_level
from ditic_stream.models.network import Network
from ditic_stream.models.weights import load_weights
from ditic_stream.rans import TOTAL
from ditic_stream.training.export import gaussian_masses, tables_of
from ditic_stream.training.keeping import load_checkpoint
from ditic_stream.training.scenes import load_pictures

CELL = 32
Tables = dict[str, torch.Tensor]
Parts = list[tuple[NDArray[np.int64], NDArray[np.int64]]]
Row = list[float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("pictures", type=Path, nargs="+")
    parser.add_argument("--qualities", type=int, nargs="+", default=[1, 29, 58, 86], help="about levels 0, 2, 4, 6")
    args = parser.parse_args()
    torch.set_num_threads(1)
    weights = load_weights(str(args.run / "weights.safetensors"))
    network = network_of(args.run, weights.config)
    entropy = EntropyModel(weights.config, weights.tensors)
    tables = (tables_of(gaussian_masses()), weights.tensors)
    pictures = load_pictures(args.pictures)
    print("| quality | bpp, floats | integers | integers, fitted tables |\n|---|---|---|---|")
    for quality in args.qualities:
        q = q_of_quality(quality)
        found = np.array([bits_of(network, entropy, tables, picture, q) for picture in pictures])
        pixels = sum(picture.shape[1] // CELL * (picture.shape[2] // CELL) * CELL**2 for picture in pictures)
        total = found.sum(0)
        shares = " | ".join(f"{100 * (bits / total[0] - 1):+.2f} %" for bits in total[1:])
        print(f"| {quality} | {total[0] / pixels:.4f} | {shares} |", flush=True)


def network_of(run: Path, config: ModelConfig) -> Network:
    """The moving average that a run has exported."""
    network = Network(config)
    network.load_state_dict(load_checkpoint(run / "checkpoint.pt", torch.device("cpu"))["averaged"])
    return network.eval()


@torch.no_grad()
def bits_of(network: Network, entropy: EntropyModel, tables: Sequence[Tables], picture: torch.Tensor, q: int) -> Row:
    """Bits of a picture, uint8 (3, rows, columns): floats under the first tables, integers under each."""
    height, width = (side // CELL * CELL for side in picture.shape[1:])
    level = torch.tensor([q / Q_STEPS])
    features = network.encoder(picture[None, :, :height, :width].float() / 255).float()
    z = network.codec.hyper(features, level).round().clamp(-Z_MAX, Z_MAX)
    values = (features * (network.codec.gain(level) * 16)).numpy()
    _, integers = entropy.quantise(z.to(torch.int32).numpy(), values, q)
    return [cost(in_floats(network.codec, features, z, level), tables[0]), *(cost(integers, one) for one in tables)]


def in_floats(codec: LatentCodec, features: torch.Tensor, z: torch.Tensor, level: torch.Tensor) -> Parts:
    """Symbols and indexes of tables as float networks choose them; see LatentCodec.forward."""

    def index_of(log_scale: torch.Tensor) -> NDArray[np.int64]:
        return ((log_scale - LOG_SCALE_MIN) / LOG_SCALE_STEP).round().clamp(0, SCALES - 1).long().numpy()

    hyper = codec.synthesis(z, level)[:, :, : features.shape[2], : features.shape[3]]
    value = features * codec.gain(level)
    mean, log_scale = codec.synthesis.out(hyper).chunk(2, 1)
    log_scale = log_scale + at_level(codec.log_scale, level)[:, :, None, None]
    if codec.context is not None:
        mean, log_scale = codec._in_context(value, mean, log_scale, hyper)
    z_index = index_of(at_level(codec.log_scale_z, level)[:, :, None, None].expand_as(z)) + SCALES
    symbols, index = (value - mean).round().long().numpy(), index_of(log_scale)
    coded = index >= CODED_FROM  # others are taken to be zero, by either side
    return [(z.long().numpy(), z_index), (symbols[coded], index[coded])]


def cost(parts: Parts, tables: Tables) -> float:
    """Ideal bits of symbols under the tables that were chosen for them."""
    sizes, counts = tables["entropy.tables.sizes"].numpy(), tables["entropy.tables.counts"].numpy()
    starts, bits = np.concatenate([[0], np.cumsum(sizes)]), np.log2(TOTAL / counts.astype(np.float64))
    total = 0.0
    for symbols, index in parts:
        last = sizes[index] - 1
        entry = symbols + last // 2
        total += float(bits[starts[index] + np.where((entry < 0) | (entry >= last), last, entry)].sum())
    return total


if __name__ == "__main__":
    main()
