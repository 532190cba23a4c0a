"""What tests of the doors share: archives of placed scenes by the fake codec, and what decompress makes of them."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import rasterio

from ditic_stream import compression, regions

NAMES = ("coast", "blue", "green", "red")
PLACE = rasterio.Affine(10, 0, 500000, 0, -10, 4600000)


def geo_archive(
    folder: Path,
    *,
    height: int = 600,
    width: int = 700,
    bands: int = 3,
    dtype: str = "uint8",
    crs: str | None = "EPSG:32633",
    transform: rasterio.Affine | None = PLACE,
    nodata: float | None = None,
    mask: bool = False,
    alpha: bool = False,
) -> Path:
    """An archive of slopes and noise, in tiles of 256; a disc of it is hidden where nodata, mask or alpha ask so."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng([height, width, bands])
    slope = np.add.outer(np.linspace(20, 150, height), np.linspace(0, 60, width))
    pixels = (slope + rng.integers(0, 10, (bands, height, width))).astype(dtype)
    rows, cols = np.mgrid[0:height, 0:width]
    hidden = (rows - height // 3) ** 2 + (cols - width // 3) ** 2 < (min(height, width) // 5) ** 2
    if nodata is not None:
        pixels[:, hidden] = nodata
    if alpha:
        pixels = np.concatenate([pixels, np.where(hidden, 0, 255)[None].astype(dtype)])
    profile: dict[str, Any] = {
        "driver": "GTiff", "height": height, "width": width, "count": len(pixels), "dtype": dtype, "nodata": nodata,
        "tiled": True, "crs": crs, "photometric": "rgb" if bands == 3 else "minisblack",
    }  # fmt: skip
    if alpha:
        profile["alpha"] = "yes"
    if transform is not None:
        profile["transform"] = transform
    with warnings.catch_warnings(), rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        file = rasterio.open(folder / "scene.tif", "w", **profile)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), file:
        file.write(pixels)
        if mask:
            file.write_mask(~hidden)
        if bands == 4:
            file.descriptions = NAMES
            file.scales, file.offsets = (0.5,) * 4, (10.0, 10.0, 10.0, 10.0 if dtype == "uint16" else 20.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "ditic_stream.codec", fakes.module())
        compression.compress(folder / "scene.tif", folder / "scene.ditic", tile=256, overlap=32, workers=1)
        regions.decompress(folder / "scene.ditic", folder / "scene.cog.tif", workers=1)
    return folder / "scene.ditic"


def decoded(archive: Path) -> Path:
    """The COG that `decompress` made of an archive."""
    return archive.with_name("scene.cog.tif")
