"""Curves of a training run as a picture.

In: the `log.jsonl` of a run.  Out: `curves.png` beside it; nothing where matplotlib (the extra `train`) is absent.
"""

from __future__ import annotations

import logging
from pathlib import Path

from ditic_stream.training.evaluation import REPORTED
from ditic_stream.training.keeping import read_lines

PANELS = (("log_j", "log of rate plus distortion"), ("bpp", "bits per pixel"), ("psnr", "PSNR dB"))
"""Figures of the held-out crops that are drawn, a line for each reported level."""


def draw(log: Path) -> Path | None:
    """Draw a log anew; returns where, or None: without matplotlib (said once), or while there is one report."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        logging.getLogger("ditic_stream").info("no curves.png without matplotlib: pip install 'ditic-stream[train]'")
        return None
    lines = read_lines(log)
    if len(lines) < 2:
        return None
    minutes = [line["seconds"] / 60 for line in lines]
    figure = Figure(figsize=(4 * (len(PANELS) + 2), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    first, *others, last = figure.subplots(1, len(PANELS) + 2)
    trained = [(minute, line["train"]["log_j"]) for minute, line in zip(minutes, lines, strict=True) if "train" in line]
    if trained:
        first.plot(*zip(*trained, strict=True))
    first.set_title("training: log of rate plus distortion", fontsize=9)
    for axis, (figure_of, title) in zip(others, PANELS, strict=True):
        for index, level in enumerate(REPORTED):
            axis.plot(minutes, [line["validation"][index][figure_of] for line in lines], label=f"level {level:g}")
        axis.set_title(f"held-out crops: {title}", fontsize=9)
    for index, level in enumerate(REPORTED):
        last.plot(minutes, [line["smooth"][index]["32"] for line in lines], label=f"level {level:g}")
    last.set_title("gradient across 32 px borders over that elsewhere", fontsize=9)
    last.legend(fontsize=7)
    for axis in (first, *others, last):
        axis.set_xlabel("minutes")
        axis.grid(alpha=0.3)
    out = log.with_name("curves.png")
    figure.savefig(out, dpi=100)
    return out
