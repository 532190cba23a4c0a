"""Memory of ditic-0.6b at full size, counted without computing: every tensor of a decode or encode is made on torch's
meta device, where it has a size and no values, and the bytes alive at once are added up.

    python -m benchmarks.paper_memory --side 1024 2048 4096 --dtype bfloat16 float32
    python -m benchmarks.paper_memory --run CONFIG --side 1024 --dtype float32     counted and measured, on this CPU

What kernels use beside their inputs and outputs (workspaces, a caching allocator's gaps) is not counted.  --run decodes
at the sizes of a configuration file and sets what the process really needed beside what was counted.
"""

from __future__ import annotations

import argparse
import gc
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ditic_stream.models.paper import backbones
from ditic_stream.models.paper.config import OFFICIAL, PaperConfig
from ditic_stream.models.paper.entropy import Decoded
from ditic_stream.models.paper.lean import PixelDecoder
from ditic_stream.models.paper.lean_encoder import split_analysis
from ditic_stream.models.paper.network import PaperNetwork

META = torch.device("meta")


class Counter(TorchDispatchMode):
    """Adds up the bytes of the storages that operators make, while a tensor holds them."""

    def __init__(self) -> None:
        super().__init__()
        self._alive: dict[int, list[int]] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._hold(tensor)
        return out

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        entry = self._alive.setdefault(storage._cdata, [0, 0])
        if not entry[0]:
            entry[1] = storage.nbytes()
            self.now += entry[1]
            self.peak = max(self.peak, self.now)
        entry[0] += 1
        weakref.finalize(tensor, self._release, storage._cdata)

    def _release(self, key: int) -> None:
        entry = self._alive[key]
        entry[0] -= 1
        if not entry[0]:
            self.now -= entry[1]
            del self._alive[key]


def peak(run: Callable[[], object]) -> float:
    """GB that `run` has alive at once, its inputs left out."""
    with Counter() as counter, torch.inference_mode():
        run()
    return counter.peak / 1e9


def resident(which: str) -> float:
    """GB of this process: VmRSS now, VmHWM at most since the last `clear`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which)) * 1024 / 1e9


def measure(config: PaperConfig, sides: list[int], dtypes: list[str], tail_cells: int) -> None:
    """Print counted and measured bytes of the decoder, stock and split."""
    torch.set_num_threads(1)
    print("| side px | type | decoder | counted GB | measured GB |\n|---|---|---|---|---|")
    for name, side, lean in ((name, side, lean) for name in dtypes for side in sides for lean in (False, True)):
        dtype = getattr(torch, name)
        vae = nn.Module.to(backbones.autoencoder(config).requires_grad_(False), dtype)
        latent = torch.randn(1, 32, side // 32, side // 32, dtype=dtype)
        decoder = vae.decoder
        run = PixelDecoder(decoder, config.vae, tail_cells=tail_cells) if lean else decoder  # type: ignore[arg-type]
        counted = peak(partial(run, latent))  # type: ignore[arg-type]
        gc.collect()
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        with torch.inference_mode():
            run(latent)  # type: ignore[operator]
        measured = resident("VmHWM") - before
        print(f"| {side} | {name} | {'split' if lean else 'stock'} | {counted:.2f} | {measured:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--dtype", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--tail-cells", type=int, default=144)
    parser.add_argument("--run", type=Path, metavar="CONFIG")
    args = parser.parse_args()
    if args.run is not None:
        measure(PaperConfig.load(args.run), args.side, args.dtype, args.tail_cells)
        return
    print("| side px | type | weights GB | heads + SANA | DC-AE decoder, stock | split | all in all | encoder |")
    print("|---|---|---|---|---|---|---|---|")
    for name in args.dtype:
        dtype = getattr(torch, name)
        with META:
            network = PaperNetwork(OFFICIAL).requires_grad_(False)
        network.drop_entropy_networks()
        for part in (network.vae, network.DiT, network.prompter):
            nn.Module.to(part, dtype)  # diffusers' own warns of parts it has not
        weights = sum(p.numel() * p.element_size() for p in network.parameters()) / 1e9
        with META:
            stock = nn.Module.to(backbones.autoencoder(OFFICIAL).requires_grad_(False), dtype)
        split_analysis(network.vae, OFFICIAL.vae, network.aux_codec)
        split = PixelDecoder(network.vae.decoder, OFFICIAL.vae, tail_cells=args.tail_cells)  # type: ignore[arg-type]
        for side in args.side:
            cells = side // 64
            y = torch.empty(1, 320, cells, cells, device=META)
            latent = torch.empty(1, 32, 2 * cells, 2 * cells, device=META, dtype=dtype)
            pixels = torch.empty(1, 3, side, side, device=META)
            runs = (
                partial(lambda net, y: net.denoise(net.heads(Decoded(y, y))), network, y),
                partial(stock.decoder, latent),  # type: ignore[arg-type]
                partial(split, latent),
                partial(network.analyse, pixels),
            )
            step, whole, tiled, encode = map(peak, runs)
            print(
                f"| {side} | {name} | {weights:.2f} | {step:.2f} | {whole:.2f} | {tiled:.2f} "
                f"| {weights + max(step, tiled):.2f} | {encode:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
