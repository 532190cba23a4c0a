"""Rate and quality of a model beside JPEG 2000, AVIF, WebP and JPEG XL, in real bytes.

    python -m benchmarks.rate_quality FOLDER [--model small] [--out runs/rate_quality]

FOLDER holds 8-bit colour pictures (PNG).  Names that start with `sat_` or `aerial_` count as earth observation, others
as photos. Each picture is one tile, as if many lay in one archive: our bytes are the record with its header and its 16
bytes of shard index; the classical codecs' are the whole file.  PSNR and MS-SSIM follow docs/numbers.md.  Every codec
is run at many settings once, curves are interpolated in log rate per picture, and pictures count where JPEG 2000 and
ours both reach the rate. Prints tables; writes points.json, read again on the next run for the classical codecs (delete
it to measure anew).
"""

from __future__ import annotations

import argparse
import json
import math
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from ditic_stream.metrics import ms_ssim, psnr

RATES = (0.05, 0.1, 0.2, 0.4, 0.8)
SPAN = (0.03, 1.0)
INDEX_BYTES = 16
SETTINGS = {
    "jpeg2000": [20, 22, 23.5, 25, 26.5, 28, 30, 32, 34, 37, 40],
    "avif": [2, 6, 12, 20, 30, 40, 50, 60, 70, 80, 90],
    "webp": [0, 3, 8, 16, 30, 50, 70, 85, 93],
    "jpegxl": [14, 10, 7, 5, 3.5, 2.4, 1.6, 1.0],
    "ours": [0, 8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 104, 112],
}
Point = tuple[float, float, float]


def classical(codec: str, pixels: NDArray[np.uint8], setting: float) -> tuple[bytes, NDArray[np.uint8]]:
    """Encode and decode with imagecodecs at its default effort; JPEG 2000 irreversible with a PSNR target."""
    match codec:
        case "jpeg2000":
            data = imagecodecs.jpeg2k_encode(pixels, level=setting, codecformat="j2k", reversible=False, mct=True)
            return data, imagecodecs.jpeg2k_decode(data)
        case "avif":
            data = imagecodecs.avif_encode(pixels, level=setting, speed=6)
            return data, imagecodecs.avif_decode(data)
        case "webp":
            data = imagecodecs.webp_encode(pixels, level=setting, lossless=False)
            return data, imagecodecs.webp_decode(data)
        case _:
            data = imagecodecs.jpegxl_encode(pixels, distance=setting, lossless=False, effort=7)
            return data, imagecodecs.jpegxl_decode(data)


def measure(task: tuple[str, str, str]) -> tuple[str, str, list[Point]]:
    """All points (bits per pixel, PSNR, MS-SSIM) of one codec on one picture."""
    codec, path, model = task
    pixels = imagecodecs.imread(path)[..., :3]
    height, width = pixels.shape[:2]
    source = pixels.transpose(2, 0, 1).astype(np.float32)
    points = []
    if codec == "ours":
        import torch

        from ditic_stream.bitstream import HEADER_BYTES, Record
        from ditic_stream.codec import load_codec
        from ditic_stream.geometry import TileKey, cells

        torch.set_num_threads(1)
        tile = load_codec(model)
    for setting in SETTINGS[codec]:
        if codec == "ours":
            q = int(setting)
            coded = tile.encode(source[None] / np.float32(255), (slice(0, height), slice(0, width)), q)
            size = HEADER_BYTES + len(coded.words) + len(coded.escapes) + INDEX_BYTES
            record = Record(
                kind=1, key=TileKey(0, 0), archive_id=bytes(8), lanes_log2=coded.lanes_log2, words=coded.words,
                escapes=coded.escapes, coded=coded.coded, symbols_crc=coded.symbols_crc,
            )  # fmt: skip
            latent = tile.decode_symbols(record, 1, cells(height), cells(width), q)
            units = tile.render(latent.values, latent.scales, q, (0, 0))[0, :, :height, :width]
            decoded = np.rint(units * 255).clip(0, 255).astype(np.float32)
        else:
            data, back = classical(codec, pixels, setting)
            size, decoded = len(data), back.transpose(2, 0, 1).astype(np.float32)
        quality = ms_ssim(source, decoded, peak=255)
        points.append((8 * size / (height * width), psnr(source, decoded, peak=255) or 99.0, quality or 0.0))
    return codec, Path(path).name, points


def at_rate(points: list[Point], rate: float) -> tuple[float, float] | None:
    """PSNR and MS-SSIM at a rate, interpolated in log rate; None outside the measured range."""
    points = sorted(points)
    rates = np.log([p[0] for p in points])
    if not rates[0] <= math.log(rate) <= rates[-1]:
        return None
    return tuple(float(np.interp(math.log(rate), rates, [p[k] for p in points])) for k in (1, 2))  # type: ignore[return-value]


def rate_ratio(ours: list[Point], theirs: list[Point], metric: int) -> float | None:
    """Mean log ratio of the rates two codecs need for equal quality, over the qualities both reach within SPAN."""

    def curve(points: list[Point]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        rows = sorted((p[metric], math.log(p[0])) for p in points if SPAN[0] <= p[0] <= SPAN[1])
        table = np.array(rows).reshape(-1, 2)
        quality = -np.log(np.maximum(1 - table[:, 0], 1e-6)) if metric == 2 else table[:, 0]
        return quality, np.maximum.accumulate(table[:, 1]) if len(table) else table[:, 1]

    (qa, ra), (qb, rb) = curve(ours), curve(theirs)
    if len(qa) < 2 or len(qb) < 2 or (low := max(qa[0], qb[0])) >= (high := min(qa[-1], qb[-1])):
        return None
    grid = np.linspace(low, high, 50)
    return float(np.mean(np.interp(grid, qa, ra) - np.interp(grid, qb, rb)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="small")
    parser.add_argument("--out", type=Path, default=Path("runs/rate_quality"))
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    store = args.out / "points.json"
    known: dict[str, dict[str, list[Point]]] = json.loads(store.read_text()) if store.exists() else {}
    known.pop("ours", None)
    names = sorted(args.folder.glob("*.png"))
    tasks = [(c, str(p), args.model) for c in SETTINGS for p in names if p.name not in known.get(c, {})]
    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
        for codec, name, points in pool.map(measure, tasks):
            known.setdefault(codec, {})[name] = points
            store.write_text(json.dumps(known))
    report(known, [p.name for p in names])


def report(known: dict[str, dict[str, list[Point]]], names: list[str]) -> None:
    """Print the tables."""
    for title, chosen in (
        ("earth observation", [n for n in names if n.startswith(("sat_", "aerial_"))]),
        ("photos", [n for n in names if not n.startswith(("sat_", "aerial_"))]),
    ):
        if not chosen:
            continue
        print(
            f"\n{title}: {len(chosen)} pictures.  PSNR dB / MS-SSIM, means over n pictures "
            "(fewer in brackets where a codec does not reach the rate)"
        )
        print("| bpp | n | " + " | ".join(SETTINGS) + " |\n|---|---|" + "---|" * len(SETTINGS))
        for rate in RATES:
            both = [n for n in chosen if at_rate(known["jpeg2000"][n], rate) and at_rate(known["ours"][n], rate)]
            cells = []
            for codec in SETTINGS:
                got = [v for n in both if (v := at_rate(known[codec][n], rate))]
                mean = np.mean(got, 0) if got else (float("nan"), float("nan"))
                cells.append(f"{mean[0]:.2f} / {mean[1]:.4f}" + (f" ({len(got)})" if len(got) < len(both) else ""))
            print(f"| {rate} | {len(both)} | " + " | ".join(cells) + " |")
        for metric, label in ((1, "PSNR"), (2, "MS-SSIM")):
            line = []
            for codec in SETTINGS:
                ratios = [
                    r for n in chosen if (r := rate_ratio(known[codec][n], known["jpeg2000"][n], metric)) is not None
                ]
                line.append(
                    f"{codec} {100 * (math.exp(np.mean(ratios)) - 1):+.1f} % ({len(ratios)})"
                    if ratios
                    else f"{codec} -"
                )
            print(f"rate at equal {label} against JPEG 2000: " + ", ".join(line))


if __name__ == "__main__":
    main()
