"""Where a picture lies on the ground, as the kept TIFF fields say, and how that changes when it is cut.

In and out: the JSON list of fields of `_tiff_tags`.  Knows the GeoTIFF and RPC fields; knows no projections.
"""

from __future__ import annotations

from typing import Any

FARTHEST = 1e300
"""Coordinates beyond are no place: a manifest does not hold them, and arithmetic with them ends at infinity."""
TIEPOINTS, SCALE, TRANSFORM, KEYS, RPC, DESCRIPTION = 33922, 33550, 34264, 34735, 50844, 270
GEOGRAPHIC, PROJECTED, PIXEL_IS_POINT, USER_DEFINED = 2048, 3072, 2, 32767


def geo_of(fields: list[dict[str, Any]]) -> dict[str, Any]:
    """{"epsg": code or None, "transform": [a, b, c, d, e, f] or None, "gcps": n}.

    The transform takes (column, row) of a pixel's upper left corner to x = a col + b row + c, y = d col + e row + f.
    """
    values = {field["code"]: field["values"] for field in fields if "values" in field}
    keys = _keys(values.get(KEYS, []))
    epsg = keys.get(PROJECTED, keys.get(GEOGRAPHIC))
    if PROJECTED not in keys and keys.get(1024) == 1:
        epsg = None
    transform: list[float] | None = None
    scale, ties, matrix = values.get(SCALE, []), values.get(TIEPOINTS, []), values.get(TRANSFORM, [])
    if len(matrix) == 16:
        transform = [matrix[0], matrix[1], matrix[3], matrix[4], matrix[5], matrix[7]]
    elif len(scale) >= 2 and len(ties) >= 6 and scale[0] and scale[1]:
        transform = [
            scale[0], 0.0, ties[3] - ties[0] * scale[0],
            0.0, -scale[1], ties[4] + ties[1] * scale[1],
        ]  # fmt: skip
    if transform and keys.get(1025) == PIXEL_IS_POINT:
        a, b, c, d, e, f = transform
        transform = [a, b, c - (a + b) / 2, d, e, f - (d + e) / 2]
    if transform and not all(abs(value) <= FARTHEST for value in transform):
        transform = None
    gcps = len(ties) // 6 if transform is None else 0
    return {
        "epsg": epsg if type(epsg) is int and 0 < epsg < 65536 and epsg != USER_DEFINED else None,
        "transform": [float(value) for value in transform] if transform else None,
        "gcps": gcps,
    }


def _keys(directory: list[int]) -> dict[int, int]:
    """The GeoKeys that hold a number directly."""
    return {
        directory[at]: directory[at + 3]
        for at in range(4, len(directory) - 3, 4)
        if directory[at + 1] == 0 and directory[at + 2] == 1
    }


def crop_fields(fields: list[dict[str, Any]], *, row: int, col: int) -> list[dict[str, Any]]:
    """The fields of a picture cut at `row`, `col`: tie points, transform and RPC move; descriptions that state the old
    size (OME-XML, Aperio) go."""
    out: list[dict[str, Any]] = []
    for field in fields:
        values = list(field.get("values", []))
        if field["code"] == TIEPOINTS:
            for at in range(0, len(values) - 5, 6):
                values[at] -= col
                values[at + 1] -= row
            field = {**field, "values": values}
        elif field["code"] == TRANSFORM and len(values) == 16:
            values[3] += values[0] * col + values[1] * row
            values[7] += values[4] * col + values[5] * row
            field = {**field, "values": values}
        elif field["code"] == RPC and len(values) > 3:
            values[2] -= row
            values[3] -= col
            field = {**field, "values": values}
        elif field["code"] == DESCRIPTION and states_size(str(field.get("text", ""))):
            continue
        out.append(field)
    return out


def states_size(text: str) -> bool:
    """True for an ImageDescription that repeats the size of its picture."""
    head = text[:4096]
    return head.startswith(("Aperio", "{")) or "<OME" in head
