"""A window of a scene as a rasterio dataset in memory, for libraries that take nothing else.

In: an open scene, a window, how large to make it.  Out: a dataset with the scene's place, nodata, mask, alpha, colours
and band names.  Knows GDAL's words for them; the pixels are those of `Scene.read`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import rasterio
from rasterio import Affine
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.io import DatasetReader, MemoryFile

from ditic_stream.doors._pixels import bands_of, is_masked
from ditic_stream.geometry import Window
from ditic_stream.scene import Scene


@contextmanager
def dataset_of(
    scene: Scene, crs: CRS, window: Window, shape: tuple[int, int], bands: list[int] | None = None
) -> Iterator[DatasetReader]:
    """A dataset of `shape` (rows, columns) that shows `window`; the samples are all there, those not in `bands` 0.

    crs: what the scene's own is to rasterio.  bands: the samples to read, counted from 0; all by default.
    """
    assert scene.transform is not None
    same = shape == window.shape
    pixels = scene.read(window, masked=True, out_shape=None if same else shape, bands=bands)
    transform = Affine(*scene.transform) * Affine.translation(window.col, window.row)
    transform *= Affine.scale(window.width / shape[1], window.height / shape[0])
    count, about = scene.shape[2], bands_of(scene)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), MemoryFile() as file:
        with file.open(
            driver="GTiff", height=shape[0], width=shape[1], count=count, dtype=scene.dtype, crs=crs,
            transform=transform, nodata=nodata_for(scene), photometric="MINISBLACK",
        ) as made:  # fmt: skip
            made.write(np.ma.getdata(pixels), [band + 1 for band in (range(count) if bands is None else bands)])
            made.colorinterp = colours_for(scene)
            if has_mask(scene):
                made.write_mask(~np.ma.getmaskarray(pixels).all(axis=0))
            made.descriptions = about.descriptions
            if about.scales is not None:
                made.scales = about.scales
            if about.offsets is not None:
                made.offsets = about.offsets
        with file.open() as dataset:
            yield dataset


def nodata_for(scene: Scene) -> float | int | None:
    """The nodata value; NaN for scenes of floats that hold some and name none."""
    if scene.nodata is None and scene.dtype.kind == "f" and is_masked(scene) and not has_mask(scene):
        return float("nan") if scene.alpha is None else None
    return scene.nodata


def has_mask(scene: Scene) -> bool:
    """Whether the file had a mask of its own."""
    return any(plane["kind"] == "mask" for plane in scene.archive.manifest.radiometry["planes"])


def colours_for(scene: Scene) -> list[ColorInterp]:
    """What GDAL calls the samples: red, green and blue or gray, alpha, and bands without a meaning."""
    photometric = scene.archive.manifest.source.metadata.get("photometric", 1)
    known = {2: [ColorInterp.red, ColorInterp.green, ColorInterp.blue], 5: [
        ColorInterp.cyan, ColorInterp.magenta, ColorInterp.yellow, ColorInterp.black
    ]}.get(photometric, [ColorInterp.gray])  # fmt: skip
    found = (known + [ColorInterp.undefined] * scene.shape[2])[: scene.shape[2]]
    if scene.alpha is not None:
        found[scene.alpha] = ColorInterp.alpha
    return found
