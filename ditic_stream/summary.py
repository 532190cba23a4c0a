"""What an archive is, in plain values: the content of `info`, the bytes it costs, and the weights at hand.

In: an open archive, or the weights in the package and in the model folder.  Out: dicts that JSON can hold, and lines
for people.  Reads manifests, headers and sizes only; loads neither torch nor zarr.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from ditic_stream.archive import Archive
from ditic_stream.errors import WeightsError
from ditic_stream.families import family_of
from ditic_stream.models import folder as imported

CODED = ("records/c/", "mask/c/", "records/sizes/")
"""Objects that rate counts: records with headers, shard indexes and sizes, and masks."""


def rate(archive: Archive) -> tuple[int, int]:
    """Bytes of records, shard indexes and masks; and all other bytes: Zarr metadata, manifest, preview."""
    coded = fixed = 0
    for name in archive.store.names():
        size = archive.store.size(name) or 0
        if name.startswith(CODED):
            coded += size
        else:
            fixed += size
    return coded, fixed


def bits_per_pixel(size: int, height: int, width: int) -> float:
    """8 x bytes / (rows x columns), whatever the number of bands."""
    return 8 * size / (height * width)


def summary(archive: Archive) -> dict[str, Any]:
    """All that `info` prints, with the keys of `info --json`; keys are added, never renamed."""
    manifest, grid = archive.manifest, archive.grid
    image, source, geo = manifest.image, manifest.source, manifest.source.metadata.get("geo", {})
    coded, fixed = rate(archive)
    raw = (
        image.height
        * image.width
        * image.bands
        * (1 if image.dtype == "uint8" else 4 if image.dtype == "float32" else 2)
    )
    return {
        "format": manifest.format,
        "complete": manifest.complete,
        "archive_id": manifest.archive_id.hex(),
        "height": image.height,
        "width": image.width,
        "bands": image.bands,
        "dtype": image.dtype,
        "nodata": [band.get("nodata") for band in manifest.radiometry["bands"]],
        "mask_planes": [plane["kind"] for plane in manifest.radiometry["planes"]],
        "epsg": geo.get("epsg"),
        "transform": geo.get("transform"),
        "tile": manifest.grid.tile,
        "overlap": manifest.grid.overlap,
        "tiles": grid.rows * grid.cols,
        "shards": grid.shard_rows * grid.shard_cols,
        "model": manifest.model.name,
        "weights": manifest.model.weights,
        "weights_licence": manifest.model.licence,
        "quality": manifest.quality,
        "q": manifest.q,
        "source": {
            "name": source.name,
            "size": source.size,
            "sha256": source.sha256,
            "etag": source.etag,
            "not_kept": list(source.warnings),
        },
        "software": manifest.software,
        "numerics": dict(manifest.numerics),
        "record_bytes": coded,
        "fixed_bytes": fixed,
        "bpp": bits_per_pixel(coded, image.height, image.width),
        "raw_bytes": raw,
    }


def lines(facts: dict[str, Any]) -> list[str]:
    """The summary for people."""
    placed, source = "none", facts["source"]
    identity = f"sha256 {source['sha256'][:16]}..." if source["sha256"] else f"ETag {source['etag']}"
    if facts["epsg"] or facts["transform"]:
        corner = facts["transform"]
        placed = f"EPSG:{facts['epsg']}" if facts["epsg"] else "CRS without an EPSG code, or none"
        placed += f", upper left at {corner[2]:.10g}, {corner[5]:.10g}" if corner else ""
    nodata = sorted({str(value) for value in facts["nodata"] if value is not None})
    kept = ", ".join([*(f"nodata {value}" for value in nodata), *dict.fromkeys(facts["mask_planes"])]) or "none"
    asked = "of one rate" if family_of(facts["model"]).one_rate else f"quality {facts['quality']}"
    ratio = facts["raw_bytes"] / facts["record_bytes"] if facts["record_bytes"] else 0
    return [
        f"image      {facts['width']} x {facts['height']} pixels, {facts['bands']} bands, {facts['dtype']}",
        f"placed     {placed}",
        f"masks      {kept}",
        f"state      {'complete' if facts['complete'] else 'partial: the command that began it goes on with it'}",
        f"rate       {facts['bpp']:.4f} bits per pixel, 1 : {ratio:.0f}: {facts['record_bytes']} bytes of records, "
        "indexes and masks",
        f"container  {facts['fixed_bytes']} bytes of metadata and preview",
        f"grid       {facts['tiles']} tiles of {facts['tile']} px in {facts['shards']} shards, "
        f"overlap {facts['overlap']} px",
        f"model      {facts['model']}, {asked}, weights {facts['weights'][:16]}... ({facts['weights_licence']})",
        f"source     {source['name']}, {source['size']} bytes, {identity}",
        *(f"not kept   {sentence}" for sentence in source["not_kept"]),
        f"written by {facts['software']}, archive {facts['archive_id']}, format {facts['format']}",
    ]


def weight_sets() -> Iterator[dict[str, Any]]:
    """The weights at hand, by name: those in the package, from the headers of their safetensors files, then those in
    the model folder, from their records.  Loads no tensor.

    One of the folder that is damaged has the key `problem`, a sentence, and little else.
    """
    folder = files("ditic_stream").joinpath("weights")
    found = [one for one in folder.iterdir() if one.name.endswith(".safetensors")] if folder.is_dir() else []
    for one in sorted(found, key=lambda each: each.name):
        data = one.read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        notes = header.pop("__metadata__", {})
        yield {
            "name": one.name.removesuffix(".safetensors"),
            "parameters": sum(math.prod(tensor["shape"]) for tensor in header.values()),
            "bytes": len(data),
            "licence": notes.get("licence", "not stated"),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
    for name in imported.names():
        try:
            stored = imported.find(name)
        except WeightsError as error:
            yield {"name": name, "problem": str(error)}
            continue
        if stored is not None:
            yield weight_facts(*stored)


def weight_facts(path: Path, record: imported.Record) -> dict[str, Any]:
    """What `models` prints of weights in the model folder."""
    return {
        "name": record.name,
        "parameters": record.parameters,
        "bytes": record.size,
        "licence": record.licence,
        "sha256": record.sha256,
        "licence_note": record.licence_note,
        "source": record.source,
        "imported": record.imported,
        "path": str(path),
    }
