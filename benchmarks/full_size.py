"""Speed and memory of ditic-0.6b, part by part: full-size networks filled with seeded values, made on the spot.

    python -m benchmarks.full_size                                             on a GPU where there is one, else a CPU
    python -m benchmarks.full_size --side 512 --dtype float32 --threads 2      full size on a CPU: minutes
    python -m benchmarks.full_size --size ../shared/reference/golden-reduced-config.json --side 256 512

A square of `side` pixels is coded and decoded as one window.  Latency is the best of --repeat goes after one that warms
up: by CUDA events on a GPU; on a CPU of processor time over threads, which other work on the machine does not stretch
much.  `peak` is the most memory that was held while a part ran, weights included: allocated on a GPU, resident on a
CPU.  --batch shows what several windows in one pass would save (SANA and the decoder).  Compiled
graphs are checked against eager ones: the largest difference of pixels in 0..1 is printed.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.paper_memory import resident
from ditic_stream._codec_parts import ModelInfo
from ditic_stream._paper_codec import ENCODE_HALO, PaperCodec
from ditic_stream.entropy import Coded
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
            self.rows.append({**self.base, "part": part, **more, "seconds": None, "peak_gb": None})
            torch.cuda.empty_cache()
            return None
        peak = torch.cuda.max_memory_allocated() / 1e9 if cuda else resident("VmHWM")
        row = {**self.base, "part": part, **more, "seconds": min(times), "first_s": first, "peak_gb": peak}
        self.rows.append(row)
        print(f"  {part:<24} {row['seconds']:9.4f} s   first {first:8.3f} s   peak {peak:6.2f} GB", flush=True)
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
) -> np.ndarray | None:
    """All parts of one side, and `whole` ways there and back; gives the pixels.  kept: by side, what was coded first,
    and is decoded every time."""
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
        many = type(heads)(*(part.expand(batch, -1, -1, -1).contiguous() for part in vars(heads).values()))
        together = unscaled.expand(batch, -1, -1, -1).contiguous()
        meter(f"SANA, {batch} windows", lambda many=many: network.denoise(many).latent, batch=batch)  # type: ignore[misc]
        meter(f"DC-AE decoder, {batch} windows", lambda x=together: codec.decoder(x), batch=batch)  # type: ignore[misc]
    return pixels


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as markdown: a line for each side, type and way, a column for each part."""
    parts = list(dict.fromkeys(row["part"] for row in rows))
    ways = list(dict.fromkeys((row["side"], row["dtype"], row["graphs"]) for row in rows))
    lines = ["| side px | type | graphs | " + " | ".join(parts) + " | peak GB |", "|---" * (len(parts) + 4) + "|"]
    for way in ways:
        own = {row["part"]: row for row in rows if (row["side"], row["dtype"], row["graphs"]) == way}
        figures = [
            ""
            if part not in own
            else "out of memory"
            if own[part]["seconds"] is None
            else f"{own[part]['seconds']:.3f}"
            for part in parts
        ]
        peak = max(row["peak_gb"] or 0.0 for row in own.values())
        lines.append(f"| {way[0]} | {way[1]} | {way[2]} | " + " | ".join(figures) + f" | {peak:.2f} |")
    return "\n".join(lines)


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
    parser.add_argument("--size", default="official", help="official, or a JSON file with the backbones' sizes.")
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--batch", type=int, nargs="*", default=[], help="Windows in one pass, measured beside one.")
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
        for graphs in args.graphs:
            info = ModelInfo(f"{MODEL}:seeded", json.loads(config.to_json()), "0" * 64, "none", ENCODE_HALO)
            codec = PaperCodec(info, opened, args.device, getattr(torch, dtype))
            if graphs == "compiled":
                codec.compile()
            for side in args.side:
                print(f"{side} px, {dtype}, {graphs}", flush=True)
                base = {"side": side, "dtype": dtype, "graphs": graphs, "device": kind, "threads": args.threads}
                meter = Meter(device, args.repeat, base, rows)
                encode = not args.decode_only and graphs == "eager"
                pixels = measure(codec, side, meter, args.batch, kept, encode=encode, whole=not args.parts_only)
                if pixels is None:
                    continue
                before = shown.setdefault((side, dtype), pixels)
                if before is not pixels and before.shape == pixels.shape:
                    print(f"  largest difference from eager {np.abs(before - pixels).max():.2g}", flush=True)
            del codec
            if device.type == "cuda":
                torch.cuda.empty_cache()
        del opened
    print(table(rows))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
