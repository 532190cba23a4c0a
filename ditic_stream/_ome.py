"""What an OME-Zarr says of itself: the attributes of OME-NGFF 0.5, and the GeoZarr ones beside them.

In: the sizes of the levels and the metadata of a source.  Out: attributes of a Zarr group; physical sizes of a pixel.
Knows OME-NGFF, and where TIFF and its descriptions state sizes; knows nothing of arrays and stores.

Units come from OME-XML, ImageJ's and Aperio's descriptions, a resolution in centimetres (one in inches is about paper)
or a transform in metres.  Where several state one, the first of these counts.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from ditic_stream._halving import nodata_of
from ditic_stream._tiff_geo import DESCRIPTION, KEYS, geo_of

VERSION = "0.5"
UNITS = {
    "µm": "micrometer", "μm": "micrometer", "um": "micrometer", "micron": "micrometer", "microns": "micrometer",
    "\\u00B5m": "micrometer", "nm": "nanometer", "mm": "millimeter", "cm": "centimeter", "m": "meter",
    "km": "kilometer", "Å": "angstrom", "pm": "picometer", "in": "inch", "inch": "inch", "ft": "foot",
}  # fmt: skip
XRESOLUTION, YRESOLUTION, RESOLUTION_UNIT, CENTIMETRE = 282, 283, 296, 3
LINEAR_UNIT, METRE, MODEL, PROJECTED = 3076, 9001, 1024, 1
METRIC = ((3857, 3857), (3395, 3395), (25828, 25838), (32601, 32660), (32701, 32760))
"""EPSG codes of systems in metres (Mercator, UTM) that files name without naming their unit."""

Json = dict[str, Any]


def pixel_size(metadata: Json) -> tuple[float, float, str | None]:
    """(height, width, unit) of a pixel on the ground or the slide; (1, 1, None) where the source does not say.

    unit: a name of UDUNITS-2, as OME-NGFF asks for; None where the size is in degrees or in an unknown unit.
    """
    fields = metadata.get("fields", [])
    text = str(next((field.get("text", "") for field in fields if field["code"] == DESCRIPTION), ""))
    values = {field["code"]: field["values"] for field in fields if "values" in field}
    for found in (_of_ome_xml(text), _of_aperio(text), _of_resolution(text, values), _of_transform(fields, values)):
        if found is not None and all(math.isfinite(size) and size > 0 for size in found[:2]):
            return found
    return 1.0, 1.0, None


def _of_ome_xml(text: str) -> tuple[float, float, str | None] | None:
    head = re.search(r"<(?:\w+:)?Pixels\b[^>]*>", text) if "<OME" in text[:4096] else None
    if head is None:
        return None
    found = dict(re.findall(r'\b(PhysicalSize[XY](?:Unit)?)="([^"]*)"', head.group()))
    try:
        height, width = float(found["PhysicalSizeY"]), float(found["PhysicalSizeX"])
    except (KeyError, ValueError):
        return None
    units = {UNITS.get(found.get(f"PhysicalSize{axis}Unit", "µm")) for axis in "XY"}
    return (height, width, units.pop()) if len(units) == 1 else None


def _of_aperio(text: str) -> tuple[float, float, str | None] | None:
    found = re.search(r"\|\s*MPP\s*=\s*([0-9.eE+-]+)", text) if text.startswith("Aperio") else None
    try:
        return (float(found[1]), float(found[1]), "micrometer") if found else None
    except ValueError:
        return None


def _of_resolution(text: str, values: dict[int, list[Any]]) -> tuple[float, float, str | None] | None:
    x, y = values.get(XRESOLUTION, []), values.get(YRESOLUTION, [])
    if len(x) != 2 or len(y) != 2 or 0 in (*x, *y):
        return None
    height, width = y[1] / y[0], x[1] / x[0]
    if text.startswith("ImageJ="):
        named = re.search(r"^unit=(.*)$", text, re.M)
        unit = UNITS.get(named[1].strip()) if named else None
        return (height, width, unit) if unit else None
    if values.get(RESOLUTION_UNIT, [0])[0] == CENTIMETRE:
        return height * 1e4, width * 1e4, "micrometer"
    return None


def _of_transform(fields: list[Json], values: dict[int, list[Any]]) -> tuple[float, float, str | None] | None:
    geo = geo_of(fields)
    if not geo["transform"]:
        return None
    a, b, _, d, e, _ = geo["transform"]
    directory = values.get(KEYS, [])
    keys = {directory[at]: directory[at + 3] for at in range(4, len(directory) - 3, 4) if directory[at + 1] == 0}
    linear = keys.get(LINEAR_UNIT)
    named = geo["epsg"] is not None and any(low <= geo["epsg"] <= high for low, high in METRIC)
    metres = linear == METRE or (linear is None and named)
    return math.hypot(b, e), math.hypot(a, d), "meter" if keys.get(MODEL) == PROJECTED and metres else None


def multiscales(metadata: Json, levels: list[tuple[int, ...]], channels: bool, how: str) -> list[Json]:
    """The entry `multiscales`: level k lies at path "k", each pixel of it over 2**k x 2**k of the scene's.

    levels: the shapes of the arrays.  channels: whether they have an axis "c" before y and x.
    how: a word on how levels are made.
    """
    height, width, unit = pixel_size(metadata)
    space = {"type": "space"} | ({"unit": unit} if unit else {})
    axes = [{"name": "c", "type": "channel"}] * channels + [{"name": "y", **space}, {"name": "x", **space}]
    datasets = []
    for level in range(len(levels)):
        factor = 2**level
        scale = [1.0] * channels + [height * factor, width * factor]
        shift = [0.0] * channels + [height * (factor - 1) / 2, width * (factor - 1) / 2]
        transforms: list[Json] = [{"type": "scale", "scale": scale}]
        if level:
            transforms.append({"type": "translation", "translation": shift})
        datasets.append({"path": str(level), "coordinateTransformations": transforms})
    return [{"axes": axes, "datasets": datasets, "type": how}]


def image_attributes(
    metadata: Json, levels: list[tuple[int, ...]], dtype: np.dtype[Any], *, how: str, lossy: str | None
) -> Json:
    """Attributes of the group of a scene.  levels: shapes (samples, rows, columns).  lossy: the mark, if any."""
    samples, *size = levels[0]
    ome: Json = {"version": VERSION, "multiscales": multiscales(metadata, levels, True, how)}
    colours = _colours(metadata, samples)
    if colours and dtype.kind in "ui":
        low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
        window = {"min": low, "max": high, "start": low, "end": high}
        ome["omero"] = {
            "channels": [
                {"label": label, "color": colour, "window": window, "active": label != "alpha"}
                for label, colour in colours
            ],
            "rdefs": {"model": "color" if len(colours) > 2 else "greyscale"},
        }
    return {"ome": ome, "ditic": metadata} | geo_attributes(metadata, size) | ({"ditic_lossy": lossy} if lossy else {})


def mask_attributes(metadata: Json, levels: list[tuple[int, ...]], how: str) -> Json:
    """Attributes of the group of a mask, 0 or 255, as labels of the image two groups above it."""
    label = {"version": VERSION, "properties": [{"label-value": 255, "valid": True}], "source": {"image": "../../"}}
    return {"ome": {"version": VERSION, "multiscales": multiscales(metadata, levels, False, how), "image-label": label}}


def geo_attributes(metadata: Json, size: list[int]) -> Json:
    """Place and nodata after the GeoZarr conventions, as far as they are known.  size: height, width."""
    geo, out = geo_of(metadata.get("fields", [])), Json()
    if geo["transform"]:
        out |= {
            "spatial:dimensions": ["y", "x"],
            "spatial:transform": geo["transform"],
            "spatial:shape": list(size),
        }
    if geo["epsg"]:
        out["proj:code"] = f"EPSG:{geo['epsg']}"
    nodata = nodata_of(metadata)
    return out if nodata is None else out | {"nodata": str(nodata) if nodata != nodata else nodata}


def _colours(metadata: Json, samples: int) -> list[tuple[str, str]]:
    """Name and colour of each sample of a gray or RGB picture, with or without alpha; [] for other bands."""
    alpha = metadata.get("alpha")
    names = [("red", "FF0000"), ("green", "00FF00"), ("blue", "0000FF")]
    if metadata.get("photometric") != 2:
        names = [("gray", "FFFFFF")]
    if alpha == len(names):
        names.append(("alpha", "FFFFFF"))
    return names if len(names) == samples else []
