"""What an archive says of its scene, in the words of those who know rasterio: nodata, tags, profile, CRS as text.

In: a manifest.  Out: plain values.  Reads no pixels.  rasterio is asked for one thing alone, and only when it is here:
the text of a reference system that has no EPSG code.
"""

from __future__ import annotations

import re
import struct
from html import unescape
from typing import Any

from ditic_stream._ground import Ground
from ditic_stream._tiff_tags import fields_from_json
from ditic_stream.manifest import Manifest
from ditic_stream.radiometry import Radiometry

Number = int | float
GDAL_METADATA, GEO_KEYS, NODATA = 42112, 34735, 42113
PLACE = (33550, 33922, 34264, 34735, 34736, 34737)
"""Fields that say where a picture lies."""
TEXTS = {
    269: "TIFFTAG_DOCUMENTNAME", 270: "TIFFTAG_IMAGEDESCRIPTION", 305: "TIFFTAG_SOFTWARE", 306: "TIFFTAG_DATETIME",
    315: "TIFFTAG_ARTIST", 316: "TIFFTAG_HOSTCOMPUTER", 33432: "TIFFTAG_COPYRIGHT",
}  # fmt: skip
RESOLUTIONS = {282: "TIFFTAG_XRESOLUTION", 283: "TIFFTAG_YRESOLUTION"}
UNIT = 296
UNITS = {1: "1 (unitless)", 2: "2 (pixels/inch)", 3: "3 (pixels/cm)"}
POINT = 2
ITEM = re.compile(r"<Item name=\"([^\"]*)\"([^>]*)>([^<]*)</Item>")
Entry = tuple[int, int, int, bytes]


def nodata_of(radiometry: Radiometry) -> Number | None:
    """The nodata value of the first band, NaN where that is it, None without one."""
    return radiometry.bands[0].nodata


def tags_of(manifest: Manifest) -> dict[str, str]:
    """The scene's tags as GDAL names them, and DITIC_LOSSY: by what the pixels were coded."""
    fields = {entry[0]: entry for entry in _fields(manifest)}
    tags: dict[str, str] = {}
    if GDAL_METADATA in fields:
        for name, rest, value in ITEM.findall(_text(fields[GDAL_METADATA])):
            if "sample=" not in rest and "domain=" not in rest:
                tags[unescape(name)] = unescape(unescape(value))
    tags |= {name: _text(fields[code]) for code, name in TEXTS.items() if code in fields}
    for code, name in RESOLUTIONS.items():
        if code in fields and fields[code][1] == 5:
            over, under = struct.unpack("<2I", fields[code][3][:8])
            tags[name] = f"{over / under if under else 0:.8g}"
    if UNIT in fields:
        unit = int.from_bytes(fields[UNIT][3][:2], "little")
        tags["TIFFTAG_RESOLUTIONUNIT"] = UNITS.get(unit, str(unit))
    if any(code in fields for code in PLACE):
        keys = struct.unpack(f"<{fields[GEO_KEYS][2]}H", fields[GEO_KEYS][3]) if GEO_KEYS in fields else ()
        point = any(keys[at : at + 4] == (1025, 0, 1, POINT) for at in range(4, len(keys) - 3, 4))
        tags["AREA_OR_POINT"] = "Point" if point else "Area"
    model = f"{manifest.software}; {manifest.model.name} {manifest.model.weights[:16]}"
    tags["DITIC_LOSSY"] = f"{tags['DITIC_LOSSY']} | {model}" if "DITIC_LOSSY" in tags else model
    return tags


def profile_of(manifest: Manifest, radiometry: Radiometry, crs: str | None, ground: Ground) -> dict[str, Any]:
    """Driver, size, type, place and blocks under rasterio's names; a block is a tile of the archive."""
    return {
        "driver": "GTiff",
        "dtype": manifest.image.dtype,
        "nodata": nodata_of(radiometry),
        "width": manifest.image.width,
        "height": manifest.image.height,
        "count": radiometry.samples,
        "crs": crs,
        "transform": ground.transform,
        "blockxsize": manifest.grid.tile,
        "blockysize": manifest.grid.tile,
        "tiled": True,
    }


def crs_of(manifest: Manifest, ground: Ground) -> str | None:
    """ "EPSG:code"; else WKT, when the source has GeoKeys and rasterio is here to read them; else None."""
    if ground.epsg:
        return f"EPSG:{ground.epsg}"
    placed = [entry for entry in _fields(manifest) if entry[0] in PLACE]
    if not any(entry[0] == GEO_KEYS for entry in placed):
        return None
    try:
        import rasterio
    except ImportError:
        return None
    try:
        with rasterio.MemoryFile(_one_pixel(placed)) as file, file.open() as picture:
            return picture.crs.to_wkt() if picture.crs else None
    except rasterio.errors.RasterioError:
        return None


def _fields(manifest: Manifest) -> list[Entry]:
    return fields_from_json(manifest.source.metadata.get("fields", []))


def _text(entry: Entry) -> str:
    return entry[3].split(b"\0")[0].decode("utf-8", "replace")


def _one_pixel(fields: list[Entry]) -> bytes:
    """A TIFF of one pixel with these fields."""
    structure = [(256, 1), (257, 1), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 1)]
    entries = sorted([(code, 3, 1, struct.pack("<H", value)) for code, value in structure] + fields)
    at = 10 + 2 + 12 * len(entries) + 4
    directory, tail = struct.pack("<H", len(entries)), b""
    for code, kind, count, data in entries:
        place = data.ljust(4, b"\0") if len(data) <= 4 else struct.pack("<I", at + len(tail))
        tail += b"" if len(data) <= 4 else data + bytes(len(data) % 2)
        directory += struct.pack("<HHI", code, kind, count) + place
    return b"II*\0" + struct.pack("<I", 10) + bytes(2) + directory + bytes(4) + tail
