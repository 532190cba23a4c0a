"""Speed and memory of ditic-0.6b, part by part: full-size networks filled with seeded values, made on the spot.

    python -m benchmarks.full_size                                             on a GPU where there is one, else a CPU
    python -m benchmarks.full_size --side 512 --dtype float32 --threads 2      full size on a CPU: minutes
    python -m benchmarks.full_size --size ../shared/reference/golden-reduced-config.json --side 256 512

A square of `side` pixels is coded and decoded as one window.  Latency is the best of --repeat goes after one that warms
up: by CUDA events on a GPU; on a CPU of processor time over threads, which other work on the machine does not stretch
much.  `peak` is the most memory that was held while a part ran, weights included: allocated on a GPU, resident on a
CPU; `reserved`, the most that torch's allocator had taken from a GPU, which is what has to be free.  --batch shows what
several windows in one pass would save (SANA and the decoder; each window beside its own cells moved aside) and whether
that would change a bit, and what several tiles do save where symbols are decoded.  --attention compares kernels of
SANA's cross-attention.  Where ways are compared, the largest difference of pixels in 0..1 from the first is printed.
--check decodes the symbols on the CPU, too: they have to be the same.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.paper_memory import resident
from ditic_stream._codec_parts import ModelInfo
from ditic_stream._paper_codec import ENCODE_HALO, PaperCodec
from ditic_stream._paper_entropy import PaperEntropy
from ditic_stream.entropy import Coded
from ditic_stream.families import ATTENTION_VARIABLE, ATTENTIONS
from ditic_stream.models.paper import layout, seeded
from ditic_stream.models.paper.config import MODEL, OFFICIAL, PaperConfig
from ditic_stream.models.paper.entropy import Decoded
from ditic_stream.models.paper.fixed import SCALE_BITS, VALUE_BITS
from ditic_stream.models.paper.network import shapes_of
from ditic_stream.models.paper.tables import tables_of
from ditic_stream.models.paper.weights_file import Checkpoint, complete, table_arrays

ENCODE = ("DC-AE encoder", "ELIC", "latent codec analysis", "entropy encode")
DECODE = ("entropy decode", "heads", "SANA", "DC-AE decoder")


def weights(config: PaperConfig, seed: int, dtype: torch.dtype) -> Checkpoint:
    """A set that was never trained, in memory; the large networks in `dtype`, so that all of it is held once."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in seeded.draw(shapes_of(config), seed):
        if name in layout.TABLES or layout.used(name):
            large = name.startswith(("vae.", "DiT.", "prompter."))
            tensors[name] = tensor.to(dtype) if large else tensor
    arrays = table_arrays(tensors)
    z, y, scales = tables_of(arrays)
    used = {name: tensor for name, tensor in tensors.items() if layout.used(name)}
    full = complete(used, arrays, name="seeded values")
    fixed = {name: tensor for name, tensor in full.items() if name.startswith("fixed.")}
    return Checkpoint(config, used, z, y, scales, fixed, {})


@dataclass
class Meter:
    """Runs a part and keeps its figures."""

    device: torch.device
    repeat: int
    base: dict[str, Any]
    rows: list[dict[str, Any]]

    def __call__(self, part: str, run: Callable[[], Any], **more: Any) -> Any:
        """What `run` gives; its latency (s) and peak (GB) become a row."""
        cuda = self.device.type == "cuda"
        try:
            if cuda:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            else:
                Path("/proc/self/clear_refs").write_text("5")
            found, first = self._time(run)
            times = [self._time(run)[1] for _ in range(self.repeat)] or [first]
        except torch.OutOfMemoryError:
            self.rows.append({**self.base, "part": part, **more, "seconds": None, "peak_gb": None, "reserved_gb": None})
            torch.cuda.empty_cache()
            return None
        peak = torch.cuda.max_memory_allocated() / 1e9 if cuda else resident("VmHWM")
        reserved = torch.cuda.max_memory_reserved() / 1e9 if cuda else None
        row = {**self.base, "part": part, **more, "seconds": min(times), "first_s": first}
        self.rows.append(row | {"peak_gb": peak, "reserved_gb": reserved})
        held = f"peak {peak:6.2f} GB" + (f"   reserved {reserved:6.2f} GB" if reserved is not None else "")
        print(f"  {part:<24} {row['seconds']:9.4f} s   first {first:8.3f} s   {held}", flush=True)
        return found

    def _time(self, run: Callable[[], Any]) -> tuple[Any, float]:
        if self.device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            began = time.perf_counter()
            begin.record()
            found = run()
            end.record()
            torch.cuda.synchronize()
            # What runs on the host alone has no events to speak of.
            return found, max(begin.elapsed_time(end) / 1000, 0.0) or time.perf_counter() - began
        began = time.process_time()
        found = run()
        return found, (time.process_time() - began) / torch.get_num_threads()


@torch.inference_mode()
def measure(
    codec: PaperCodec,
    side: int,
    meter: Meter,
    batches: list[int],
    kept: dict[int, Coded],
    *,
    encode: bool,
    whole: bool,
    host: PaperEntropy | None = None,
) -> np.ndarray | None:
    """All parts of one side, and `whole` ways there and back; gives the pixels.  kept: by side, what was coded first,
    and is decoded every time.  host: decodes it as well; SystemExit when it finds other symbols."""
    network, device = codec.network, codec.device
    random = np.random.default_rng(side)
    cells, coded = side // 64, None
    if encode:
        smooth = np.kron(random.random((3, side // 32, side // 32)), np.ones((32, 32)))
        units = (0.8 * smooth + 0.2 * random.random((3, side, side))).astype(np.float32)[None]
        x = torch.from_numpy(units * 2 - 1).to(device)
        scaling = network.config.scaling
        latent = meter(ENCODE[0], lambda: network.vae.encode(x.to(codec.dtype)).latent * scaling)
        aux = meter(ENCODE[1], lambda: network.aux_codec((x + 1) / 2))
        if latent is None or aux is None:
            return None

        def analyse() -> tuple[np.ndarray, np.ndarray]:
            y = network.codec.g_a(latent.float(), aux)
            z = network.codec.entropy_bottleneck.symbols(network.codec.h_a(y))
            return y[0].float().cpu().numpy(), z[0].cpu().numpy()

        y, z = meter(ENCODE[2], analyse)
        del latent, aux
        coded = meter(ENCODE[3], lambda: codec.entropy.push([z], [y]))
        if whole:
            every = slice(0, side)
            meter("encode, all", lambda: codec.encode(units, (every, every), 0))
        print(f"  {8 * (len(coded.words) + len(coded.escapes)) / side**2:.3f} bits a pixel")
    elif side not in kept:  # symbols of about the same spread, without the encoder's pass
        y = random.normal(0, 2, (320, cells, cells)).astype(np.float32)
        z = random.integers(-3, 4, (160, cells // 4, cells // 4)).astype(np.int32)
        coded = codec.entropy.push([z], [y])
    coded = kept.setdefault(side, coded) if coded is not None else kept[side]
    found = meter(DECODE[0], lambda: codec.entropy.pull(coded, 1, cells, cells))
    if host is not None:
        there = host.pull(coded, 1, cells, cells)
        same = np.array_equal(there.values, found.values) and np.array_equal(there.scales, found.scales)
        print(f"  symbols, values and scales: {'as' if same else 'NOT as'} on the CPU", flush=True)
        if not same:
            raise SystemExit(1)
    values, scales = (
        torch.from_numpy(part).to(device).float() * 2.0**-bits
        for part, bits in ((found.values, VALUE_BITS), (found.scales, SCALE_BITS))
    )
    heads = meter(DECODE[1], lambda: network.heads(Decoded(values, scales)))
    step = meter(DECODE[2], lambda: network.denoise(heads).latent)
    unscaled = (step / network.config.scaling).to(codec.dtype)
    meter(DECODE[3], lambda: codec.decoder(unscaled))
    pixels: np.ndarray | None = None
    if whole:
        pixels = meter("render, all", lambda: codec.render(found.values, found.scales, 0, (0, 0)))
    for batch in batches:
        meter(f"entropy decode, {batch} tiles", lambda n=batch: codec.entropy.pull_many([coded] * n, 1, cells, cells))  # type: ignore[misc]
        many = type(heads)(*(_moved(part, batch) for part in vars(heads).values()))
        step = meter(f"SANA, {batch} windows", lambda many=many: network.denoise(many).latent)  # type: ignore[misc]
        x = _moved(unscaled, batch)
        shown = meter(f"DC-AE decoder, {batch} windows", lambda x=x: codec.decoder(x))  # type: ignore[misc]
        for what, run, given, seen in (
            ("SANA", lambda one: network.denoise(type(heads)(*one)).latent, list(vars(many).values()), step),
            ("DC-AE decoder", lambda one: codec.decoder(*one), [x], shown),
        ):
            if seen is not None:
                off = max(
                    float((run([part[at : at + 1] for part in given]) - seen[at : at + 1]).abs().max())
                    for at in range(batch)
                )
                print(
                    f"  {what}, {batch} windows: {f'{off:.2g} off' if off else 'bit for bit as'} one by one", flush=True
                )
    return pixels


def _moved(x: Tensor, batch: int) -> Tensor:
    """A map, and beside it as many as are asked for with its cells moved aside."""
    return torch.cat([x.roll(place, 3) for place in range(batch)])


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as markdown: a line for each side, type and way, a column for each part."""
    parts = list(dict.fromkeys(row["part"] for row in rows))
    ways = list(dict.fromkeys(_way(row) for row in rows))
    lines = ["| side px | type | graphs | attention | " + " | ".join(parts) + " | peak GB | reserved GB |"]
    lines.append("|---" * (len(parts) + 6) + "|")
    for way in ways:
        own = {row["part"]: row for row in rows if _way(row) == way}
        peak, reserved = (max(row[what] or 0.0 for row in own.values()) for what in ("peak_gb", "reserved_gb"))
        held = [f"{peak:.2f}", f"{reserved:.2f}" if reserved else ""]
        figures = [*way, *(_figure(own.get(part)) for part in parts), *held]
        lines.append(f"| {' | '.join(figures)} |")
    return "\n".join(lines)


def _way(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[what]) for what in ("side", "dtype", "graphs", "attention"))


def _figure(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    return "out of memory" if row["seconds"] is None else f"{row['seconds']:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cuda = torch.cuda.is_available()
    parser.add_argument("--side", type=int, nargs="+", default=[512, 1024, 2048, 4096] if cuda else [512])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16", "float16"] if cuda else ["float32"])
    parser.add_argument("--graphs", nargs="+", default=["eager", "compiled"] if cuda else ["eager"])
    parser.add_argument("--attention", nargs="+", default=["auto"], choices=ATTENTIONS)
    parser.add_argument("--check", action="store_true", help="Decode the symbols on the CPU, too, and compare.")
    parser.add_argument("--size", default="official", help="official, or a JSON file with the backbones' sizes.")
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--batch", type=int, nargs="*", default=[], help="Windows (or tiles) in one pass, beside one.")
    parser.add_argument("--repeat", type=int, default=5 if cuda else 1, help="Goes after the first.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--decode-only", action="store_true")
    parser.add_argument("--parts-only", action="store_true", help="Leave out the goes through all parts in one.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if any(side % 256 for side in args.side):
        parser.error("sides are multiples of 256")
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    config = OFFICIAL if args.size == "official" else PaperConfig.load(Path(args.size))
    kind = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    print(f"{kind}, torch {torch.__version__}, {args.threads} threads, {args.size}", flush=True)
    rows: list[dict[str, Any]] = []
    shown: dict[tuple[int, str], np.ndarray] = {}
    kept: dict[int, Coded] = {}
    for dtype in args.dtype:
        opened = weights(config, args.seed, getattr(torch, dtype))
        host = PaperEntropy(opened.fixed, opened.z, opened.y) if args.check else None
        for graphs, attention in product(args.graphs, args.attention):
            os.environ[ATTENTION_VARIABLE] = attention
            torch._dynamo.reset()  # a graph has the kernel inside that was chosen when it was made
            info = ModelInfo(f"{MODEL}:seeded", json.loads(config.to_json()), "0" * 64, "none", ENCODE_HALO)
            codec = PaperCodec(info, opened, args.device, getattr(torch, dtype))
            if graphs == "compiled":
                codec.compile()
            for side in args.side:
                print(f"{side} px, {dtype}, {graphs}, attention {attention}", flush=True)
                base = {"side": side, "dtype": dtype, "graphs": graphs, "attention": attention}
                meter = Meter(device, args.repeat, base | {"device": kind, "threads": args.threads}, rows)
                first = (graphs, attention) == (args.graphs[0], args.attention[0])
                pixels = measure(
                    codec, side, meter, args.batch, kept,
                    encode=first and not args.decode_only, whole=not args.parts_only, host=host if first else None,
                )  # fmt: skip
                if pixels is None:
                    continue
                before = shown.setdefault((side, dtype), pixels)
                if before is not pixels and before.shape == pixels.shape:
                    print(f"  largest difference from the first way {np.abs(before - pixels).max():.2g}", flush=True)
            del codec
            if device.type == "cuda":
                torch.cuda.empty_cache()
        del opened
    print(table(rows))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
