"""Rate and quality of a model beside JPEG 2000, AVIF, WebP and JPEG XL, in real bytes.

    python -m benchmarks.rate_quality FOLDER|PICTURE ... [--model small] [--out runs/rate_quality] [--earth]
        [--features squeezenet1_1.safetensors] [--ssimulacra2] [--sheet 0.1] [--codecs jpeg2000 avif] [--every 2]

Pictures are whatever training takes: 8-bit ones whole, all else (16 bit, many bands, nodata) in windows of 1024 px and
three bands, in 8 bits, as the networks see them; sides of 256 px or more.  Names that start with `sat_` or `aerial_`
count as earth observation, others as photos; with --earth all do.
Each picture is one tile, as if many lay in one archive: our bytes are the record with its header and its 16 bytes of
shard index; the classical codecs' are the whole file.  PSNR and MS-SSIM follow docs/numbers.md; SSIMULACRA2 (a second
a picture and setting) and the distance of SqueezeNet's features are measured when asked for.  Every codec is run at
many settings once, curves are interpolated in log rate per picture, and pictures count where JPEG 2000 and ours both
reach the rate.

Prints tables.  Writes points.json (read again on the next run for the classical codecs; delete it to measure anew),
curves-*.png, and with --sheet a contact sheet of details, the codecs side by side, each brought to that rate.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from ditic_stream.errors import ConfigError
from ditic_stream.metrics import ms_ssim, psnr

RATES = (0.03, 0.05, 0.1, 0.2, 0.4, 0.8)
SPAN = (0.03, 1.0)
INDEX_BYTES = 16
SEARCHED = 6
"""Settings that are tried between two to meet a rate."""
SETTINGS: dict[str, list[float]] = {
    "jpeg2000": [14, 16, 18, 20, 22, 23.5, 25, 26.5, 28, 30, 32, 34, 37, 40],
    "avif": [2, 6, 12, 20, 30, 40, 50, 60, 70, 80, 90],
    "webp": [0, 3, 8, 16, 30, 50, 70, 85, 93],
    "jpegxl": [25, 19, 14, 10, 7, 5, 3.5, 2.4, 1.6, 1.0],
    "ours": [1, 8, 15, 22, 29, 36, 43, 50, 57, 64, 71, 78, 85, 92, 100],
}
METRICS = {"psnr": "PSNR dB", "ms_ssim": "MS-SSIM", "ssimulacra2": "SSIMULACRA2", "features": "feature distance"}
Bytes = NDArray[np.uint8]
Point = dict[str, float]
"""`setting`, `bpp`, and figures by the names of METRICS."""
Known = dict[str, dict[str, list[Point]]]
"""Points by codec and picture."""


@dataclass(frozen=True)
class Picture:
    """What is coded: a file, or one of the parts that training would make of it."""

    name: str
    path: Path
    part: int = 0

    def pixels(self) -> Bytes:
        """(rows, columns, 3)."""
        return parts_of(self.path)[self.part]


def parts_of(path: Path) -> list[Bytes]:
    from ditic_stream.training.scenes import load_pictures

    return [np.ascontiguousarray(part.numpy().transpose(1, 2, 0)) for part in load_pictures([path])]


def pictures_of(given: Sequence[Path]) -> list[Picture]:
    """The pictures of files and folders, those in folders within too; SystemExit where two have the same name."""
    from ditic_stream.training.scenes import SUFFIXES

    found: dict[str, Picture] = {}
    for place in given:
        files = sorted(p for p in place.rglob("*") if p.suffix.lower() in SUFFIXES) if place.is_dir() else [place]
        for path in files:
            try:
                count = len(parts_of(path))
            except ConfigError as small:
                print(f"{path} is left out: {small}")
                continue
            for part in range(count):
                name = path.name if count == 1 else f"{path.name}:{part}"
                if name in found:
                    raise SystemExit(f"{path} has the name of {found[name].path}; rename one, tables go by names")
                found[name] = Picture(name, path, part)
    if not found:
        raise SystemExit("no pictures found; give folders or files")
    return list(found.values())


@dataclass(frozen=True)
class Job:
    """One codec on one picture."""

    codec: str
    picture: Picture
    settings: tuple[float, ...]
    model: str
    features: Path | None
    ssimulacra2: bool


def classical(codec: str, pixels: Bytes, setting: float) -> tuple[int, Bytes]:
    """Bytes and decode with imagecodecs at its default effort; JPEG 2000 irreversible with a PSNR target."""
    match codec:
        case "jpeg2000":
            data = imagecodecs.jpeg2k_encode(pixels, level=setting, codecformat="j2k", reversible=False, mct=True)
            return len(data), imagecodecs.jpeg2k_decode(data)
        case "avif":
            data = imagecodecs.avif_encode(pixels, level=setting, speed=6)
            return len(data), imagecodecs.avif_decode(data)
        case "webp":
            data = imagecodecs.webp_encode(pixels, level=setting, lossless=False)
            return len(data), imagecodecs.webp_decode(data)
        case _:
            data = imagecodecs.jpegxl_encode(pixels, distance=setting, lossless=False, effort=7)
            return len(data), imagecodecs.jpegxl_decode(data)


class Ours:
    """A model, on one tile."""

    def __init__(self, model: str) -> None:
        import torch

        from ditic_stream.codec import load_codec

        torch.set_num_threads(1)
        self.codec = load_codec(model)

    def __call__(self, pixels: Bytes, quality: int) -> tuple[int, Bytes]:
        from ditic_stream.bitstream import CODED, HEADER_BYTES, Record
        from ditic_stream.config import q_of_quality
        from ditic_stream.geometry import TileKey, cells

        height, width = pixels.shape[:2]
        q = q_of_quality(quality)
        units = pixels.transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255)
        coded = self.codec.encode(units, (slice(0, height), slice(0, width)), q)
        record = Record(
            kind=CODED, key=TileKey(0, 0), archive_id=bytes(8), lanes_log2=coded.lanes_log2, words=coded.words,
            escapes=coded.escapes, coded=coded.coded, symbols_crc=coded.symbols_crc,
        )  # fmt: skip
        latent = self.codec.decode_symbols(record, 1, cells(height), cells(width), q)
        decoded = self.codec.render(latent.values, latent.scales, q, (0, 0))[0, :, :height, :width]
        size = HEADER_BYTES + len(coded.words) + len(coded.escapes) + INDEX_BYTES
        return size, np.rint(decoded * 255).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)


def measure(job: Job) -> list[Point]:
    """All points of a codec on a picture."""
    pixels = job.picture.pixels()
    ours = Ours(job.model) if job.codec == "ours" else None
    points = []
    for setting in job.settings:
        size, decoded = ours(pixels, int(setting)) if ours else classical(job.codec, pixels, setting)
        bpp = 8 * size / (pixels.shape[0] * pixels.shape[1])
        points.append({"setting": setting, "bpp": bpp, **figures(job, pixels, decoded)})
    return points


def figures(job: Job, source: Bytes, decoded: Bytes) -> Point:
    x, y = (pixels.transpose(2, 0, 1).astype(np.float32) for pixels in (source, decoded))
    found = {"psnr": psnr(x, y, peak=255) or 99.0, "ms_ssim": ms_ssim(x, y, peak=255) or 0.0}
    if job.features:
        from benchmarks._perceptual import feature_distance

        found["features"] = feature_distance(source, decoded, job.features)
    if job.ssimulacra2:
        from benchmarks._perceptual import ssimulacra2

        found["ssimulacra2"] = ssimulacra2(source, decoded)
    return found


def at_rate(points: list[Point], rate: float, metric: str) -> float | None:
    """A figure at a rate, interpolated in log rate; None outside the measured range."""
    points = sorted(points, key=lambda point: point["bpp"])
    rates = np.log([point["bpp"] for point in points])
    if not rates[0] <= math.log(rate) <= rates[-1]:
        return None
    return float(np.interp(math.log(rate), rates, [point[metric] for point in points]))


def at_bytes(
    encode: Callable[[float], tuple[float, Bytes]], points: list[Point], rate: float, *, whole: bool
) -> tuple[float, Bytes]:
    """The rate and decode of the setting whose rate comes closest to `rate`, found between two measured points.

    encode: bits per pixel and decode of a setting.  whole: settings are integers.  Out of reach, the nearest end.
    """
    points = sorted(points, key=lambda point: point["bpp"])
    above = next((i for i, point in enumerate(points) if point["bpp"] >= rate), None)
    around = (-1, -1) if above is None else (max(above - 1, 0), above)
    ends = [points[i]["setting"] for i in around]
    tried = [encode(end) for end in dict.fromkeys(ends)]
    for _ in range(SEARCHED):
        between = sum(ends) / 2
        setting = round(between) if whole else between
        if len(tried) == 1 or setting in ends:
            break
        tried.append(encode(setting))
        ends[tried[-1][0] >= rate] = setting
    return min(tried, key=lambda one: abs(math.log(one[0] / rate)))


def rising(values: NDArray[np.float64], metric: str) -> NDArray[np.float64]:
    """The scale on which curves are compared: larger is better, and about straight against log rate."""
    match metric:
        case "ms_ssim":
            return -np.log(np.maximum(1 - values, 1e-6))
        case "features":
            return -np.log(np.maximum(values, 1e-6))
        case _:
            return values


def rate_ratio(ours: list[Point], theirs: list[Point], metric: str) -> float | None:
    """Mean log ratio of the rates two codecs need for equal quality, over the qualities both reach within SPAN."""

    def curve(points: list[Point]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        inside = [p for p in points if SPAN[0] <= p["bpp"] <= SPAN[1]]
        quality = rising(np.array([p[metric] for p in inside], float), metric)
        order = np.argsort(quality)
        rate = np.log(np.array([p["bpp"] for p in inside], float))[order]
        return quality[order], np.maximum.accumulate(rate) if len(rate) else rate

    (qa, ra), (qb, rb) = curve(ours), curve(theirs)
    if len(qa) < 2 or len(qb) < 2 or (low := max(qa[0], qb[0])) >= (high := min(qa[-1], qb[-1])):
        return None
    grid = np.linspace(low, high, 50)
    return float(np.mean(np.interp(grid, qa, ra) - np.interp(grid, qb, rb)))


def kinds(names: list[str], earth_only: bool = False) -> dict[str, list[str]]:
    """The pictures by kind."""
    earth = [name for name in names if earth_only or name.startswith(("sat_", "aerial_"))]
    found = {"earth observation": earth, "photos": [name for name in names if name not in earth]}
    return {kind: chosen for kind, chosen in found.items() if chosen}


def report(known: Known, codecs: list[str], by_kind: dict[str, list[str]], metrics: list[str]) -> None:
    """Print the tables."""
    for kind, chosen in by_kind.items():
        for metric in metrics:
            print(
                f"\n{kind}: {METRICS[metric]}, means over n of {len(chosen)} pictures (fewer in brackets where a codec "
                "does not reach the rate)"
            )
            print("| bpp | n | " + " | ".join(codecs) + " |\n|---|---|" + "---|" * len(codecs))
            for rate in RATES:
                both = [n for n in chosen if all(at_rate(known[c][n], rate, metric) for c in ("jpeg2000", "ours"))]
                cells = []
                for codec in codecs:
                    got = [v for n in both if (v := at_rate(known[codec][n], rate, metric)) is not None]
                    digits = 2 if metric in ("psnr", "ssimulacra2") else 4
                    short = f" ({len(got)})" if len(got) < len(both) else ""
                    cells.append(f"{np.mean(got):.{digits}f}{short}" if got else "-")
                print(f"| {rate} | {len(both)} | " + " | ".join(cells) + " |")
        for metric in metrics:
            for other in (one for one in ("jpeg2000", "avif") if one in codecs):
                line = []
                for codec in codecs:
                    ratios = [
                        r for n in chosen if (r := rate_ratio(known[codec][n], known[other][n], metric)) is not None
                    ]
                    share = 100 * (math.exp(np.mean(ratios)) - 1) if ratios else math.nan
                    line.append(f"{codec} {share:+.1f} % ({len(ratios)})")
                print(f"rate at equal {METRICS[metric]} against {other}: " + ", ".join(line))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, nargs="+")
    parser.add_argument("--model", default="small")
    parser.add_argument("--out", type=Path, default=Path("runs/rate_quality"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--features", type=Path, help="weights of SqueezeNet 1.1, see training.perceptual")
    parser.add_argument("--ssimulacra2", action="store_true")
    parser.add_argument(
        "--codecs", nargs="*", choices=SETTINGS, default=list(SETTINGS), help="beside JPEG 2000 and ours"
    )
    parser.add_argument("--every", type=int, default=1, help="measure every so many-th setting alone")
    parser.add_argument("--sheet", type=float, nargs="*", default=[], help="rates of contact sheets, bits per pixel")
    parser.add_argument("--earth", action="store_true", help="all pictures are earth observation, whatever their names")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    pictures = pictures_of(args.pictures)
    metrics = ["psnr", "ms_ssim"] + ["ssimulacra2"] * args.ssimulacra2 + ["features"] * (args.features is not None)
    codecs = [codec for codec in SETTINGS if codec in {"jpeg2000", "ours", *args.codecs}]
    known = gather(args, codecs, pictures, metrics)
    by_kind = kinds([picture.name for picture in pictures], args.earth)
    report(known, codecs, by_kind, metrics)

    from benchmarks import _plots

    for kind, chosen in by_kind.items():
        _plots.curves(known, codecs, chosen, metrics, args.out / f"curves-{kind.split()[0]}.png", title=kind)
    for rate in args.sheet:
        _plots.sheet(known, codecs, pictures, rate, args.model, args.out / f"sheet-{rate:g}.png")


def gather(args: argparse.Namespace, codecs: list[str], pictures: list[Picture], metrics: list[str]) -> Known:
    """Measure what points.json does not have, and always what is ours."""
    store = args.out / "points.json"
    known: Known = json.loads(store.read_text()) if store.exists() else {}
    known.pop("ours", None)
    settings = {codec: tuple(SETTINGS[codec][:: args.every]) for codec in codecs}

    def measured(codec: str, picture: Picture) -> bool:
        points = known.get(codec, {}).get(picture.name, [])
        same = tuple(point.get("setting") for point in points) == settings[codec]
        return same and all(set(metrics) <= set(point) for point in points)

    jobs = [
        Job(codec, picture, settings[codec], args.model, args.features, args.ssimulacra2)
        for codec in codecs
        for picture in pictures
        if not measured(codec, picture)
    ]
    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
        for job, points in zip(jobs, pool.map(measure, jobs), strict=True):
            known.setdefault(job.codec, {})[job.picture.name] = points
            store.write_text(json.dumps(known))
    return known


if __name__ == "__main__":
    main()
