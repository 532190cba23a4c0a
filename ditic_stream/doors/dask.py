"""A scene as a dask array, each block of it decoded when it is computed.

In: an open scene, chunks.  Out: dask.array.Array (rows, columns, samples) whose values do not depend on the chunks.
Knows dask; the pixels are those of `Scene.read`.
"""

from __future__ import annotations

from typing import Any

from ditic_stream.doors._pixels import Pixels, chunk_side, needing
from ditic_stream.scene import Scene


def to_dask(scene: Scene, *, chunks: Any = None, level: int = 0) -> Any:
    """The scene, or a coarser level of it, as a dask array (rows, columns, samples) in the scene's dtype.

    chunks: as dask takes them; by default a tile of the archive each, all samples.  Blocks are read by as many threads
    as dask has and share what they decode; with processes each opens the archive once.  The scene must stay open.
    Raises ConfigError where dask is not installed, and for a level that is not there.
    """
    with needing("dask"):
        import dask.array
        from dask.base import tokenize
    pixels = Pixels(scene, level)
    if chunks is None:
        side = chunk_side(scene, level)
        chunks = (side, side, -1)
    token = tokenize(scene.archive.manifest.archive_id.hex(), scene.uri, level, chunks)
    return dask.array.from_array(
        pixels, chunks=chunks, name=f"ditic-{token}", lock=False, asarray=False, fancy=False, meta=_meta(pixels)
    )


def _meta(pixels: Pixels) -> Any:
    """An empty array of the type that blocks have, so that dask reads none to find out."""
    import numpy as np

    return np.empty((0, 0, 0), pixels.dtype)
