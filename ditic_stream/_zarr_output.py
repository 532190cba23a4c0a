"""Write a scene as a Zarr v3 group: `image` (bands, rows, columns), `mask` (rows, columns) when there is one.

In: blocks of rows.  Out: chunks of up to 512 x 512 under bytes and zstd, which every Zarr reader opens; the
geotransform and the code of the reference system after the GeoZarr conventions; all fields under "ditic".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ditic_stream._halving import NODATA_FIELD
from ditic_stream._output import Array, Output
from ditic_stream._tiff_form import colours_of
from ditic_stream._tiff_geo import geo_of
from ditic_stream._tiff_tags import fields_from_json


class ZarrOutput(Output):
    """A Zarr group.  The lossy mark is among the attributes."""

    holds = ("zarr.json", "image", "mask")

    def _prepare(self) -> None:
        colours_of(self.metadata, self.samples)
        fields_from_json(self.metadata.get("fields", []))

    def _start(self) -> None:
        import zarr

        group = zarr.open_group(str(self.partial), mode="w", zarr_format=3, attributes=self._attributes())
        side = min(512, self.width)
        rows = min(self.block, self.height)
        self._image = group.create_array(
            "image", shape=(self.samples, self.height, self.width), chunks=(1, rows, side), dtype=self.dtype,
            dimension_names=("band", "y", "x"),
        )  # fmt: skip
        self._mask = (
            group.create_array(
                "mask", shape=(self.height, self.width), chunks=(rows, side), dtype="uint8", dimension_names=("y", "x")
            )
            if self.has_mask
            else None
        )

    def _attributes(self) -> dict[str, Any]:
        fields = self.metadata.get("fields", [])
        geo, out = geo_of(fields), dict[str, Any](ditic=self.metadata)
        if self.lossy:
            out["ditic_lossy"] = self.lossy
        if geo["transform"]:
            out |= {
                "spatial:dimensions": ["y", "x"],
                "spatial:transform": geo["transform"],
                "spatial:shape": [self.height, self.width],
            }
        if geo["epsg"]:
            out["proj:code"] = f"EPSG:{geo['epsg']}"
        nodata = next((field.get("text") for field in fields if field["code"] == NODATA_FIELD), None)
        return out | ({"nodata": nodata.strip("\0 ")} if nodata else {})

    def coder(self) -> ZarrRows:
        return ZarrRows(str(self.partial), self.has_mask)

    def _put(self, row: int, count: int, pieces: list[bytes]) -> None:
        pass  # the coder has written the chunks where they belong

    def _block(self, row: int, pixels: Array, mask: npt.NDArray[np.uint8] | None) -> None:
        put_rows(self._image, self._mask, row, pixels, mask)

    def _finish(self) -> None:
        pass  # every chunk is a file that zarr has closed

    def _abandon(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class ZarrRows:
    """Writes blocks of rows as whole chunks of the group `partial`: no chunk has two writers."""

    partial: str
    mask: bool

    def code(self, row: int, pixels: Array, mask: npt.NDArray[np.uint8] | None) -> list[bytes]:
        import zarr

        group = zarr.open_group(self.partial, mode="r+", zarr_format=3)
        put_rows(group["image"], group["mask"] if self.mask else None, row, pixels, mask)
        return []


def put_rows(image: Any, masks: Any, row: int, pixels: Array, mask: npt.NDArray[np.uint8] | None) -> None:
    """Write rows chunk by chunk: zarr goes on with the other chunks of a call in its own thread after one has failed,
    and would write into a folder that is being removed."""
    rows, side = slice(row, row + pixels.shape[1]), image.chunks[2]
    for col in range(0, image.shape[2], side):
        cols = slice(col, min(col + side, image.shape[2]))
        for band in range(len(pixels)):
            image[band, rows, cols] = pixels[band, :, cols]
        if masks is not None and mask is not None:
            masks[rows, cols] = mask[:, cols]
