"""What fixed point costs ditic-0.6b: bytes and pictures against the same entropy networks in floating point.

    python -m benchmarks.paper_fixed PICTURE ... [--model ditic-0.6b:q3] [--largest 512]

Both sides code the same latent under the same integer tables with the same coder; only the networks that choose means
and tables differ.  PSNR is of the decoded picture against the source; with weights of no meaning it says nothing but
that the two are alike.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import imagecodecs
import numpy as np
import torch

from ditic_stream._paper_codec import load
from ditic_stream.metrics import psnr
from ditic_stream.models.paper import checkpoint
from ditic_stream.models.paper.entropy import Decoded, Rounding, run_passes
from ditic_stream.models.paper.network import PaperNetwork, pad, to_network_units
from ditic_stream.rans import encode, lanes_for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, nargs="+")
    parser.add_argument("--model", default="ditic-0.6b:q3")
    parser.add_argument("--largest", type=int, default=512, help="Side to which pictures are cut, pixels.")
    args = parser.parse_args()
    torch.set_num_threads(1)
    codec, opened = load(args.model, "cpu"), checkpoint.load(args.model)
    network = PaperNetwork.of(opened.config, opened.tensors)
    print("| picture | bytes, float | fixed | more | indexes that differ | PSNR, float | fixed | networks s | fixed |")
    print("|---" * 9 + "|")
    for path in args.pictures:
        picture = np.ascontiguousarray(imagecodecs.imread(path)[: args.largest, : args.largest, :3])
        height, width = picture.shape[:2]
        with torch.inference_mode():
            encoded = network.encode(pad(to_network_units(torch.from_numpy(picture)[None])))
            prior, rounding = network.codec.entropy_bottleneck, Rounding(encoded.y)
            z = prior.symbols(encoded.z)
            began = time.monotonic()
            decoded = run_passes(network.codec, prior.values(z), rounding)
            in_float = time.monotonic() - began
        z_tables = 64 + np.arange(160).repeat(z[0, 0].numel())
        indexes = rounding.indexes().numpy().ravel()
        parts = [(rounding.symbols().numpy().ravel(), indexes), (z.numpy().ravel(), z_tables)]
        lanes = lanes_for(sum(len(symbols) for symbols, _ in parts))
        before = sum(map(len, encode(parts, codec.entropy.tables, lanes)))
        coded = codec.entropy.push([z[0].numpy()], [encoded.y[0].numpy()])
        after = len(coded.words) + len(coded.escapes)
        began = time.monotonic()
        cells = codec.entropy.pull(coded, 1, *encoded.y.shape[2:])
        in_fixed = time.monotonic() - began
        moved = _differ(codec.entropy.networks, z[0].numpy(), encoded.y, indexes)
        quality = []
        for latent, scales in (
            (decoded.latent, decoded.scales),
            (torch.from_numpy(cells.values).float() / 64, torch.from_numpy(cells.scales).float() / 128),
        ):
            with torch.inference_mode():
                shown = network.decode(network.denoise(network.heads(Decoded(latent, scales))).latent)
            pixels = ((shown[0, :, :height, :width] + 1) * 127.5).round().numpy()
            quality.append(psnr(picture.transpose(2, 0, 1).astype(np.float64), pixels.astype(np.float64), peak=255.0))
        print(
            f"| {path.stem} | {before} | {after} | {100 * (after / before - 1):+.3f} % | {100 * moved:.1f} % "
            f"| {quality[0]:.3f} | {quality[1]:.3f} | {in_float:.2f} | {in_fixed:.2f} |",
            flush=True,
        )


def _differ(networks: object, z: np.ndarray, y: torch.Tensor, indexes: np.ndarray) -> float:
    """Share of the elements whose table is another one in fixed point."""
    from ditic_stream.models.paper import fixed
    from ditic_stream.models.paper.entropy import cell_masks, gather_plane

    seen, masks = [], cell_masks(*y.shape[2:])

    def code(number: int, means: np.ndarray, found: np.ndarray) -> np.ndarray:
        seen.append(found.ravel())
        plane = gather_plane(y.double(), masks[number]).numpy()
        return np.floor(plane - means / 64 + 0.5).astype(np.int32)

    fixed.walk(networks, z[None], code)  # type: ignore[arg-type]
    return float(np.mean(np.concatenate(seen) != indexes))


if __name__ == "__main__":
    main()
