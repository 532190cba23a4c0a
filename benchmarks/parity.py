"""Is ditic-0.6b the paper's system, value for value?  Every tensor against a golden file, the weights being seeded.

    python -m benchmarks.parity --config golden-reduced-config.json --golden golden-reduced-512x768.npz --seed 0

config: JSON with `vae` and `transformer`, the settings of the two backbones.  golden: an npz with `image` (rows,
columns, 3) uint8 and what the reference makes of it.  Weights are `ditic_stream.models.paper.seeded`.

A float tensor passes when its largest difference is within 1e-4 of the golden tensor's standard deviation; symbols and
table indexes when they agree, but for ties: values within 1e-4 of where rounding, or the choice of a table, turns over.
The passes go on from the golden symbols, so that a tie in one is no difference in the next.
Exit 0 when everything passes, 1 when not, 2 when a file cannot be used.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ditic_stream.errors import DiticError
from ditic_stream.models.paper.config import PaperConfig
from ditic_stream.models.paper.entropy import Plane, Replay, Rounding, run_passes, scale_table
from ditic_stream.models.paper.network import PaperNetwork, crop, pad, shapes_of, to_network_units
from ditic_stream.models.paper.seeded import seeded

TOLERANCE = 1e-4
"""Of a tensor's standard deviation; and in steps, the distance from a turning point that makes a tie."""
FLOATS = (
    "aux", "latent", "y", "z", "mean", "log_scale", "res", "prompt", "caption", "velocity", "denoised",
    "reconstruction",
)  # fmt: skip
INTEGERS = ("z_symbols", "symbols", "indexes")


@dataclass
class Report:
    """What was compared: lines for people, and the names of what does not pass."""

    golden: dict[str, np.ndarray]
    failed: list[str] = field(default_factory=list)

    def floats(self, name: str, here: Tensor) -> None:
        wanted, found = self.golden[name].astype(np.float64), here.double().cpu().numpy()
        if wanted.shape != found.shape:
            self._line(name, wanted.shape, f"has shape {found.shape} here", passed=False)
            return
        largest, spread = float(np.abs(found - wanted).max()), float(wanted.std())
        relative = largest / spread if spread else (0.0 if not largest else float("inf"))
        self._line(name, wanted.shape, f"{largest:10.2e} {relative:12.2e}", passed=relative <= TOLERANCE)

    def integers(self, name: str, here: Tensor, margin: np.ndarray) -> None:
        """margin: how far each value is from where it would be the golden one, in steps."""
        wanted, found = self.golden[name], here.long().cpu().numpy().ravel()
        if wanted.size != found.size:
            self._line(name, wanted.shape, f"has {found.size} values here", passed=False)
            return
        differs = found != wanted.ravel()
        near = np.abs(found - wanted.ravel()) <= 1
        ties = differs & near & (margin.ravel() <= TOLERANCE)
        text = f"{int(differs.sum())} of {wanted.size} differ, {int(ties.sum())} of them ties"
        self._line(name, wanted.shape, text, passed=bool((differs == ties).all()))

    def _line(self, name: str, shape: tuple[int, ...], text: str, *, passed: bool) -> None:
        print(f"{name:<16}{'x'.join(map(str, shape)):<16}{text}{'' if passed else '   FAILS'}", flush=True)
        if not passed:
            self.failed.append(name)


class Following:
    """A coder for `run_passes` that rounds as an encoder does, and goes on with the golden symbols."""

    def __init__(self, y: Tensor, symbols: Tensor) -> None:
        self.rounding, self._golden = Rounding(y), Replay(symbols)
        self._margins: list[tuple[np.ndarray, np.ndarray]] = []

    def __call__(self, plane: Plane) -> Tensor:
        self._margins.append((_distance_to_half(self.rounding.residual(plane)), _distance_to_table(plane.scale)))
        self.rounding(plane)
        return self._golden(plane)

    def margins(self) -> tuple[np.ndarray, np.ndarray]:
        """Of symbols and indexes, in the order of the stream."""
        symbols, indexes = zip(*self._margins, strict=True)
        return np.concatenate([m.ravel() for m in symbols]), np.concatenate([m.ravel() for m in indexes])


def _distance_to_half(values: Tensor) -> np.ndarray:
    """Distance of each value to the nearest of .., -0.5, 0.5, 1.5, .., where rounding turns over."""
    exact = values.double().cpu().numpy()
    return np.abs(exact - np.floor(exact) - 0.5)


def _distance_to_table(scale: Tensor) -> np.ndarray:
    """Distance of each raw scale to the nearest of the known widths, where the index turns over."""
    table, values = scale_table().astype(np.float64), scale.double().cpu().numpy()
    above = np.searchsorted(table, values).clip(1, len(table) - 1)
    return np.minimum(np.abs(values - table[above - 1]), np.abs(values - table[above]))


@torch.no_grad()
def compare(network: PaperNetwork, golden: dict[str, np.ndarray]) -> list[str]:
    """Run the system on the golden image, print a line a tensor, and give the names of those that fail."""
    report = Report(golden)
    like = network.prompter.pattern
    image, z_symbols, symbols = (
        torch.from_numpy(golden[name]).to(like.device) for name in ("image", "z_symbols", "symbols")
    )
    encoded = network.encode(pad(to_network_units(image[None])).to(like.dtype))
    report.floats("latent", encoded.latent)
    report.floats("aux", encoded.aux[:, ::4])
    report.floats("y", encoded.y)
    report.floats("z", encoded.z)

    prior = network.codec.entropy_bottleneck
    report.integers("z_symbols", prior.symbols(encoded.z), _distance_to_half(encoded.z - prior.medians))
    if report.failed:
        print("the encoder differs, so what follows may too")
    if encoded.z.shape != z_symbols.shape or encoded.y.numel() != symbols.numel():
        raise ValueError("the symbols of the golden file belong to a picture of another size")
    coder = Following(encoded.y, symbols[None])
    decoded = run_passes(network.codec, prior.values(z_symbols), coder)
    symbol_margin, index_margin = coder.margins()
    report.integers("symbols", coder.rounding.symbols(), symbol_margin)
    report.integers("indexes", coder.rounding.indexes(), index_margin)

    heads = network.heads(decoded)
    report.floats("mean", heads.mean)
    report.floats("log_scale", heads.log_variance)
    report.floats("res", heads.correction)
    report.floats("prompt", heads.prompt[:, ::4])
    denoised = network.denoise(heads)
    report.floats("caption", denoised.tokens[:, :57:4, :64])
    report.floats("velocity", denoised.velocity)
    report.floats("denoised", denoised.latent)
    pixels = crop(network.decode(denoised.latent), *image.shape[:2])
    report.floats("reconstruction", pixels[:, :, ::2, ::2])
    return report.failed


def read_golden(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a golden file.  Raises ValueError when one that is needed is absent."""
    with np.load(path, allow_pickle=False) as file:
        golden = {name: file[name] for name in file.files}
    lacking = [name for name in ("image", *FLOATS, *INTEGERS) if name not in golden]
    if lacking:
        raise ValueError(f"{path.name} lacks {', '.join(lacking)}")
    if golden["image"].dtype != np.uint8 or golden["image"].ndim != 3 or golden["image"].shape[2] != 3:
        raise ValueError(f"{path.name}: `image` is no (rows, columns, 3) of uint8")
    return golden


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="python -m benchmarks.parity"
    )
    parser.add_argument("--config", type=Path, required=True, help="JSON with `vae` and `transformer`")
    parser.add_argument("--golden", type=Path, required=True, help="npz with the image and the reference's tensors")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default 0)")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32", help="of weights and sums")
    parser.add_argument("--device", default="cpu", help="where the networks run (default cpu)")
    options = parser.parse_args()
    # What is compared is formulas, not kernels.  On CUDA, convolutions would round their inputs to 10 bits of mantissa;
    # on a CPU, oneDNN's add up in longer runs, 2 to 4 times farther from float64 than torch's own.
    torch.backends.mkldnn.set_flags(False)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    began = time.perf_counter()
    try:
        golden, config = read_golden(options.golden), PaperConfig.load(options.config)
        tensors = seeded(shapes_of(config), options.seed)
        network = PaperNetwork.of(config, tensors, getattr(torch, options.dtype)).to(options.device)
        height, width = golden["image"].shape[:2]
        print(
            f"{options.golden.name}: {width} x {height} pixels, weights of seed {options.seed}, "
            f"{options.dtype} on {options.device}"
        )
        print(f"{'tensor':<16}{'shape':<16}{'largest':>10} {'in std devs':>12}")
        failed = compare(network, golden)
    except (DiticError, OSError, ValueError, RuntimeError) as error:
        print(f"parity: {error}", file=sys.stderr)
        return 2
    verdict = f"FAILED: {', '.join(failed)}" if failed else f"all {len(FLOATS) + len(INTEGERS)} tensors pass"
    print(f"{verdict} (bound {TOLERANCE:g}), {time.perf_counter() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
