"""Scenes that tests make for themselves, and how they write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

GEO_TAGS = [
    (33550, "d", 3, (10.0, 10.0, 0.0), True),  # pixels of 10 m
    (33922, "d", 6, (0.0, 0.0, 0.0, 400000.0, 5650000.0, 0.0), True),  # upper left corner
    (34735, "H", 16, (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32633), True),  # EPSG:32633
]


def landscape(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A made-up picture with slow waves, edges and noise; uint8 (rows, columns, 3)."""
    rng = np.random.default_rng(seed)
    rows, cols = np.mgrid[0:height, 0:width].astype(np.float32)
    waves = 50 * np.sin(rows / 90 + np.cos(cols / 70)) + 20 * np.sin(cols / 13) * np.cos(rows / 17)
    fields = 25.0 * ((rows // 60 + cols // 85) % 3)
    picture = (100 + waves + fields)[..., None] * np.array([1.0, 0.9, 0.7], np.float32)
    return np.clip(picture + rng.normal(0, 4, picture.shape), 0, 255).astype(np.uint8)


def write_scene(path: Path, pixels: np.ndarray, nodata: int | None = None) -> Path:
    """(rows, columns, bands) as a GeoTIFF placed in UTM zone 33N."""
    import tifffile

    rgb = pixels.ndim == 3 and pixels.shape[2] == 3
    tifffile.imwrite(
        path, pixels, tile=(128, 128), photometric="rgb" if rgb else "minisblack", planarconfig="contig",
        compression="deflate", metadata=None,
        extratags=[*GEO_TAGS, *([] if nodata is None else [(42113, "s", 0, str(nodata), True)])],
    )  # fmt: skip
    return path


def write_strips(
    path: Path,
    pixels: np.ndarray,
    meta: dict[str, Any],
    *,
    rows: int = 100,
    mask: np.ndarray | None = None,
    **options: Any,
) -> None:
    """Give a whole picture, (samples, rows, columns), to an output by strips of `rows`."""
    from ditic_stream.geometry import Window
    from ditic_stream.writer import open_output

    samples, height, width = pixels.shape
    bands = samples - (meta["alpha"] is not None)
    with open_output(
        path, height=height, width=width, bands=bands, dtype=str(pixels.dtype), metadata=meta, **options
    ) as output:
        for row in range(0, height, rows):
            window = Window(row=row, col=0, height=min(rows, height - row), width=width)
            part = None if mask is None else mask[row : row + window.height]
            output.write(window, pixels[:, row : row + window.height], part)
