"""Pictures of the rate-quality benchmark: curves, and contact sheets of details at equal bytes.

In: measured points and pictures.  Out: PNG files.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot

from benchmarks.rate_quality import METRICS, Bytes, Known, Ours, Picture, at_bytes, at_rate, classical

NAMES = {"jpeg2000": "JPEG 2000", "avif": "AVIF", "webp": "WebP", "jpegxl": "JPEG XL", "ours": "ditic-stream"}
CURVE_RATES = np.geomspace(0.03, 1.0, 25)
DETAIL = 160
"""Side of a detail, pixels."""


def curves(known: Known, codecs: list[str], names: list[str], metrics: list[str], out: Path, *, title: str) -> None:
    """Means over all pictures; a codec's curve spans the rates that it reaches on every one of them."""
    figure, axes = pyplot.subplots(1, len(metrics), figsize=(5.5 * len(metrics), 4.2), squeeze=False)
    for axis, metric in zip(axes[0], metrics, strict=True):
        for codec in codecs:
            rows = [[at_rate(known[codec][name], rate, metric) for name in names] for rate in CURVE_RATES]
            shown = [
                (rate, np.mean([v for v in row if v is not None]))
                for rate, row in zip(CURVE_RATES, rows, strict=True)
                if all(v is not None for v in row)
            ]
            if shown:
                axis.semilogx(*zip(*shown, strict=True), label=NAMES[codec], lw=2.5 if codec == "ours" else 1.3)
        axis.set_xlabel("bits per pixel")
        axis.set_ylabel(METRICS[metric])
        axis.grid(alpha=0.3, which="both")
    axes[0][0].legend()
    figure.suptitle(f"{title}, means of {len(names)} pictures")
    figure.tight_layout()
    figure.savefig(out, dpi=110)
    pyplot.close(figure)


def sheet(known: Known, codecs: list[str], pictures: list[Picture], rate: float, model: str, out: Path) -> None:
    """A detail of each picture, enlarged: the source, then each codec as near to `rate` as its settings allow."""
    ours = Ours(model)
    columns = ["source", *codecs]
    figure, axes = pyplot.subplots(
        len(pictures), len(columns), figsize=(2.2 * len(columns), 2.35 * len(pictures)), squeeze=False
    )
    for row, picture in zip(axes, pictures, strict=True):
        pixels = picture.pixels()
        for axis, column in zip(row, columns, strict=True):
            shown, words = pixels, Path(picture.name).stem
            if column != "source":

                def encode(setting: float, codec: str = column, pixels: Bytes = pixels) -> tuple[float, Bytes]:
                    size, decoded = ours(pixels, int(setting)) if codec == "ours" else classical(codec, pixels, setting)
                    return 8 * size / (pixels.shape[0] * pixels.shape[1]), decoded

                whole = column in ("ours", "avif")
                bpp, shown = at_bytes(encode, known[column][picture.name], rate, whole=whole)
                words = f"{NAMES[column]} {bpp:.3f}"
            axis.imshow(_detail(shown), interpolation="nearest")
            axis.set_title(words, fontsize=7)
            axis.axis("off")
    figure.tight_layout(pad=0.4, h_pad=1.2)
    figure.savefig(out, dpi=140)
    pyplot.close(figure)


def _detail(pixels: Bytes) -> Bytes:
    top, left = ((side - DETAIL) // 2 for side in pixels.shape[:2])
    return pixels[max(top, 0) :, max(left, 0) :][:DETAIL, :DETAIL]
