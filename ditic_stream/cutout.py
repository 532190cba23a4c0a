"""Cut one window out of an archive into a file, asked for in pixels or in ground coordinates.

In: an archive, and a window or a box.  Out: any of the outputs of `writer` with the metadata moved to its place.
Which pixels a box touches says _ground; the decoding and the formats are those of `regions`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from ditic_stream._ground import Box, Ground
from ditic_stream._paths import Name, local_path
from ditic_stream.archive import open_archive
from ditic_stream.errors import ConfigError
from ditic_stream.geometry import Window
from ditic_stream.regions import OnError, decompress


@dataclass(frozen=True, slots=True, kw_only=True)
class Cutout:
    """What was written, and from where.  damaged, uncoded, degraded: tiles, as in regions.Result."""

    out: str
    row: int
    col: int
    height: int
    width: int
    bands: int
    dtype: str
    damaged: tuple[str, ...]
    uncoded: tuple[str, ...]
    degraded: tuple[str, ...]
    warnings: tuple[str, ...]
    """What of the scene the file does not keep, one sentence each."""
    seconds: float


def region(
    archive: Name,
    out: str | Path,
    *,
    window: Window | None = None,
    bbox: Box | None = None,
    bbox_crs: str | None = None,
    workers: int = 1,
    device: str = "cpu",
    on_error: OnError = "stop",
    format: str | None = None,
    overwrite: bool = False,
) -> Cutout:
    """Decode one window into the file `out`: the exact crop of what `decompress` gives.

    window: scene pixels.  bbox: (xmin, ymin, xmax, ymax) in the scene's coordinates, or in those of `bbox_crs`; every
    pixel it touches, clipped to the scene.  .npy holds (rows, columns, bands and alpha).  format: as in `decompress`.
    Raises ConfigError when neither or both are given, `out` exists or the scene has no transform; WindowError outside
    the scene; StorageError when `out` cannot be written; and what decoding raises.
    """
    began, target = time.monotonic(), local_path(out)
    if (window is None) == (bbox is None):
        raise ConfigError("a region needs a window or a bbox; give one of the two")
    with open_archive(archive) as opened:
        if bbox is not None:
            window = Ground.of(opened.manifest, opened.path.name).window_of(bbox, bbox_crs)
        assert window is not None
        image = opened.manifest.image
        window = Window.of(window).within(image.height, image.width)
    result = decompress(
        archive, target, window=window, workers=workers, device=device, on_error=on_error, format=format,
        overwrite=overwrite,
    )  # fmt: skip
    return Cutout(
        out=str(target), row=window.row, col=window.col, height=window.height, width=window.width, bands=image.bands,
        dtype=image.dtype, damaged=result.damaged, uncoded=result.uncoded, degraded=result.degraded,
        warnings=result.warnings,
        seconds=round(time.monotonic() - began, 3),
    )  # fmt: skip
