"""Write a scene strip by strip, in bounded memory, so that it comes back as what it was.

In: strips of pixels from top to bottom and the metadata of the source.  Out: a GeoTIFF (BigTIFF where it has to be), a
COG, a PNG, a Zarr group, an OME-Zarr or a .npy, published whole or not at all.  Knows formats; knows nothing of
networks or archives.

    with open_output(path, height=..., width=..., bands=..., dtype=..., metadata=source.metadata) as output:
        for window, pixels, planes in strips:
            output.write(window, join_alpha(pixels, planes, radiometry), mask_of(planes, radiometry))
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ditic_stream._cog_output import CogOutput
from ditic_stream._halving import NODATA_FIELD
from ditic_stream._npy_output import NpyOutput
from ditic_stream._ome_output import OmeZarrOutput
from ditic_stream._output import Output, checked
from ditic_stream._png_output import PngOutput
from ditic_stream._tiff_geo import DESCRIPTION, KEYS, RPC, SCALE, TIEPOINTS, TRANSFORM, crop_fields, geo_of
from ditic_stream._tiff_output import BigTiffOutput, TiffOutput
from ditic_stream._tiff_tags import fields_from_json
from ditic_stream._zarr_output import ZarrOutput
from ditic_stream.config import DTYPES
from ditic_stream.errors import ConfigError, FormatError
from ditic_stream.geometry import Window

FORMATS: dict[str, type[Output]] = {
    "tif": TiffOutput, "bigtiff": BigTiffOutput, "cog": CogOutput, "zarr": ZarrOutput,
    "ome-zarr": OmeZarrOutput, "png": PngOutput, "npy": NpyOutput,
}  # fmt: skip
ENDINGS = {
    ".cog.tif": "cog", ".cog.tiff": "cog", ".ome.zarr": "ome-zarr", ".tif": "tif", ".tiff": "tif", ".btf": "bigtiff",
    ".tf8": "bigtiff", ".zarr": "zarr", ".png": "png", ".npy": "npy",
}  # fmt: skip
"""What is written, by the end of the name; the first that fits."""
ALIKE = ({"tif", "bigtiff", "cog"}, {"zarr", "ome-zarr"}, {"png"}, {"npy"})
"""Formats that one ending may stand for, where the format is named too."""


def format_of(path: Path, format: str | None = None) -> str:
    """What `path` is written as: `format` where it is given, else by the end of its name.

    Raises ConfigError when neither is known, or when the two do not go together.
    """
    name = path.name.lower()
    found = next((kind for end, kind in ENDINGS.items() if name.endswith(end)), None)
    if found is None:
        raise ConfigError(f"{path}: no format is known by that ending; use {', '.join(ENDINGS)}")
    if format is None:
        return found
    if format not in FORMATS:
        raise ConfigError(f"format {format!r:.40} is not known; use {', '.join(FORMATS)}")
    if not any({format, found} <= kinds for kinds in ALIKE):
        ends = [end for end, kind in ENDINGS.items() if any({format, kind} <= kinds for kinds in ALIKE)]
        raise ConfigError(f"{path} cannot be of format {format}; let its name end in {', '.join(ends)}")
    return format


def open_output(
    path: str | Path,
    *,
    height: int,
    width: int,
    bands: int,
    dtype: str,
    metadata: dict[str, Any],
    format: str | None = None,
    overwrite: bool = False,
    lossy: str | None = None,
) -> Output:
    """Start a file; strips follow by `write`, and it appears under its name when the context is left in order.

    bands: without alpha; `metadata` says where alpha lies and whether there is a mask.
    format: one of FORMATS; None: by the end of the name.
    lossy: a line that stays in the file for good, naming model, weights and rate.
    Raises ConfigError when the file exists and `overwrite` is False, or the format cannot hold the scene; FormatError
    when the metadata is not what a reader wrote; StorageError when the disk refuses.
    """
    path = Path(path)
    format = format_of(path, format)
    if dtype not in DTYPES or min(height, width, bands) < 1:
        raise ConfigError(
            f"{bands} bands of {height} x {width} {dtype} cannot be written; types are {', '.join(DTYPES)}"
        )
    if path.is_dir() and not format.endswith("zarr"):
        raise ConfigError(f"{path} is a folder; name a file")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"the folder {path.absolute().parent} does not exist; make it first")
    if not isinstance(metadata, dict):
        raise FormatError("the metadata of the source is not an object; distrust the archive")
    samples = bands + (checked(metadata, "alpha", (int, type(None)), None) is not None)
    return FORMATS[format](
        path,
        height=height,
        width=width,
        samples=samples,
        dtype=dtype,
        metadata=metadata,
        lossy=lossy,
        overwrite=overwrite,
    )


def not_kept(path: Path, metadata: dict[str, Any], format: str | None = None) -> tuple[str, ...]:
    """What of a scene has no place in the format of `path` (.npy is one too), in a sentence that says what has."""
    format = format_of(path, format)
    if format == "cog" and checked(metadata, "pages", (bool,), False):
        return (f"{path.name} has its channels as bands, and not the description of their pages; a .tif has both",)
    if format not in ("png", "npy"):
        return ()
    has_mask = bool(checked(metadata, "mask", (bool,), False))
    has_alpha = checked(metadata, "alpha", (int, type(None)), None) is not None
    fields = fields_from_json(metadata.get("fields", []))
    nodata = next((data for code, _, _, data in fields if code == NODATA_FIELD), None)
    lost = []
    if nodata is not None:
        lost.append(f"the nodata value {nodata.decode('ascii', 'replace').strip(chr(0) + ' '):.40}")
    if has_mask and (has_alpha or path.suffix.lower() == ".npy"):
        lost.append("the mask")
    if any(code in (SCALE, TIEPOINTS, TRANSFORM, KEYS, RPC) for code, *_ in fields):
        lost.append("coordinates")
    if not lost:
        return ()
    listed = " and ".join(filter(None, (", ".join(lost[:-1]), lost[-1])))
    return (f"{path.name} does not keep {listed}; a .tif or .zarr does",)


def crop_metadata(metadata: dict[str, Any], window: Window) -> dict[str, Any]:
    """The metadata of the part of a scene that `window` cuts out: coordinates move, what states the old size goes."""
    fields = checked(metadata, "fields", (list,), [])
    try:
        moved = crop_fields(fields, row=window.row, col=window.col)
        cut = {**metadata, "fields": moved, "geo": geo_of(moved)}
        if not any(field["code"] == DESCRIPTION for field in moved):
            cut.pop("pages", None)  # without the description that says what they are, pages would be several pictures
        return cut
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise FormatError("the kept TIFF fields are not readable; distrust the archive") from error


__all__ = ["ENDINGS", "FORMATS", "Output", "crop_metadata", "format_of", "not_kept", "open_output"]
