"""An engine for xarray: `xr.open_dataset("scene.ditic", engine="ditic")`.

In: the name of an archive.  Out: a Dataset that decodes what is indexed: `band_data` (band, y, x), `valid` (y, x) where
anything is hidden, coordinates of pixel centres, the reference system after CF in `spatial_ref`.
Knows xarray's and CF's words (those of rioxarray where CF has none); the pixels are those of `Scene.read`.

Found by xarray through the entry point `xarray.backends`; loading this module loads no network.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
from xarray import Dataset, Variable, decode_cf
from xarray.backends import BackendArray, BackendEntrypoint
from xarray.core import indexing

from ditic_stream.doors._pixels import Bands, Pixels, Valid, bands_of, chunk_side, is_masked
from ditic_stream.scene import Scene, open_scene

GRID_MAPPING = "spatial_ref"


class DiticBackend(BackendEntrypoint):
    """Opens archives of ditic-stream."""

    description = "Open ditic-stream archives (.ditic, .ditic.zip), decoding what is read"
    open_dataset_parameters = (
        "filename_or_obj", "drop_variables", "mask_and_scale", "decode_coords", "level", "device", "on_error",
        "cache_bytes", "threads",
    )  # fmt: skip

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        mask_and_scale: bool = False,
        decode_coords: bool | str = True,
        level: int = 0,
        device: str = "cpu",
        on_error: Any = "stop",
        cache_bytes: int | None = None,
        threads: int | None = None,
    ) -> Dataset:
        """A Dataset of one level of a scene; closing it closes the scene.

        filename_or_obj: path or URI of an archive.  mask_and_scale: floats, NaN for nodata, scale and offset applied.
        decode_coords: taken for those who always give it; `spatial_ref` is a coordinate anyway.  level: 0 is the scene,
        each further one half the one before.  The others are those of `ditic_stream.open`.  Raises what that raises.
        """
        limit = {} if cache_bytes is None else {"cache_bytes": cache_bytes}
        scene = open_scene(os.fspath(filename_or_obj), device=device, on_error=on_error, threads=threads, **limit)
        try:
            dataset = dataset_of(scene, level)
        except BaseException:
            scene.close()
            raise
        dropped = [drop_variables] if isinstance(drop_variables, str) else list(drop_variables or ())
        dataset = dataset.drop_vars(dropped, errors="ignore")
        if mask_and_scale:
            dataset = decode_cf(dataset, decode_times=False)
        dataset.set_close(scene.close)
        return dataset

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """True for names that end as archives do."""
        try:
            name = os.fspath(filename_or_obj)
        except TypeError:
            return False
        return isinstance(name, str) and name.rstrip("/").endswith((".ditic", ".ditic.zip"))


def dataset_of(scene: Scene, level: int = 0) -> Dataset:
    """The Dataset of a level of an open scene, nothing of it read."""
    pixels, side = Pixels(scene, level, bands_first=True), chunk_side(scene, level)
    samples, height, width = pixels.shape
    chunks = {"preferred_chunks": {"band": samples, "y": side, "x": side}}
    variables = {"band_data": Variable(("band", "y", "x"), _lazy(pixels), _band_attributes(scene), encoding=chunks)}
    if is_masked(scene):
        values = np.array([0, 255], np.uint8)
        flags = {"flag_values": values, "flag_meanings": "hidden valid", "grid_mapping": GRID_MAPPING}
        chunks = {"preferred_chunks": {"y": side, "x": side}}
        variables["valid"] = Variable(("y", "x"), _lazy(Valid(scene, level)), flags, encoding=chunks)
    coordinates: dict[str, Any] = {"band": ("band", np.arange(1, samples + 1))}
    transform = scene.transform or (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    a, b, c, d, e, f = (value * 2**level if place not in (2, 5) else value for place, value in enumerate(transform))
    geographic = _is_geographic(scene.crs)
    if not b and not d:  # in a turned scene, x and y of a pixel depend on both its row and its column
        coordinates["x"] = Variable(("x",), c + a * (np.arange(width) + 0.5), _axis("x", scene.crs, geographic))
        coordinates["y"] = Variable(("y",), f + e * (np.arange(height) + 0.5), _axis("y", scene.crs, geographic))
    mapping = _crs_attributes(scene.crs) | {"GeoTransform": " ".join(f"{value:.17g}" for value in (c, a, b, f, d, e))}
    coordinates[GRID_MAPPING] = Variable((), np.int64(0), mapping if scene.transform else _crs_attributes(scene.crs))
    return Dataset(variables, coordinates, attrs={**scene.tags(), "source": scene.name})


class _Lazy(BackendArray):
    """What xarray indexes lazily: ints and slices go to the scene, everything else is picked from what they gave."""

    def __init__(self, array: Pixels | Valid) -> None:
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.BASIC, self.array.__getitem__
        )


def _lazy(array: Pixels | Valid) -> Any:
    return indexing.LazilyIndexedArray(_Lazy(array))


def _band_attributes(scene: Scene) -> dict[str, Any]:
    """Nodata, names, scales, offsets and units: as CF says where all bands share one value, else a value each."""
    bands: Bands = bands_of(scene)
    found: dict[str, Any] = {"grid_mapping": GRID_MAPPING}
    if scene.nodata is not None:
        found["_FillValue"] = scene.dtype.type(scene.nodata)
    if any(bands.descriptions):
        names = tuple(name or "" for name in bands.descriptions)
        found["long_name"] = names[0] if len(names) == 1 else names
    for name, several, values in (
        ("scale_factor", "scales", bands.scales),
        ("add_offset", "offsets", bands.offsets),
        ("units", "units", bands.units),
    ):
        if values is not None:
            found |= {name: values[0]} if len(set(values)) == 1 else {several: values}
    return found


def _crs_attributes(crs: str | None) -> dict[str, Any]:
    """CF attributes of a reference system; all of them by pyproj, the WKT by rasterio, or the code as it is."""
    if crs is None:
        return {}
    try:
        from pyproj import CRS

        found: dict[str, Any] = CRS.from_user_input(crs).to_cf()
        return {**found, "spatial_ref": found["crs_wkt"]}
    except ImportError:
        pass
    try:
        from rasterio.crs import CRS as RasterioCRS

        wkt = RasterioCRS.from_user_input(crs).to_wkt()
    except ImportError:
        wkt = crs
    return {"crs_wkt": wkt, "spatial_ref": wkt}


def _is_geographic(crs: str | None) -> bool:
    return "latitude_longitude" in _crs_attributes(crs).values()


def _axis(name: str, crs: str | None, geographic: bool) -> dict[str, Any]:
    if crs is None:
        return {"axis": name.upper()}
    if geographic:
        long = "longitude" if name == "x" else "latitude"
        return {"axis": name.upper(), "long_name": long, "standard_name": long, "units": f"degrees_{_EAST[name]}"}
    return {"axis": name.upper(), "long_name": f"{name} coordinate of projection",
            "standard_name": f"projection_{name}_coordinate"}  # fmt: skip


_EAST = {"x": "east", "y": "north"}
