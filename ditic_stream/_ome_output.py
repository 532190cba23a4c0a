"""Write a scene as an OME-Zarr 0.5: a Zarr v3 group with the scene and its halves as arrays "0", "1", ...

In: blocks of rows.  Out: arrays (channels, rows, columns) in shards of 512 x 4096 pixels with chunks of 512 x 512
(lower in very wide scenes) under bytes and zstd; the mask as the label image `labels/mask`, as many levels; all fields
of the source under "ditic".  Levels are those of `_halving`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ditic_stream._halving import Block, Pyramid, Sight, sizes
from ditic_stream._ome import VERSION, image_attributes, mask_attributes
from ditic_stream._output import Array, Output
from ditic_stream._tiff_form import colours_of
from ditic_stream._tiff_tags import fields_from_json

SIDE = 512
SHARD = 8
"""Chunks side by side in a shard: one file holds a strip of them."""
HOW = "mean"


class OmeZarrOutput(Output):
    """An OME-Zarr image.  The lossy mark is among the attributes."""

    holds = ("zarr.json", "labels", *map(str, range(25)))

    def _prepare(self) -> None:
        colours_of(self.metadata, self.samples)
        fields_from_json(self.metadata.get("fields", []))
        self._sight = Sight.of(self.metadata, self.dtype)

    def _start(self) -> None:
        import zarr

        levels = sizes(self.height, self.width, SIDE)
        shapes = [(self.samples, *size) for size in levels]
        attributes = image_attributes(self.metadata, list(shapes), self.dtype, how=HOW, lossy=self.lossy)
        group = zarr.open_group(str(self.partial), mode="w", zarr_format=3, attributes=attributes)
        self._pyramid = Pyramid(levels, self.samples, self.dtype, self._sight, self.block, self.has_mask)
        nodata = self._sight.nodata or 0
        self._images = [self._array(group, str(level), shape, nodata) for level, shape in enumerate(shapes)]
        self._masks: list[Any] = []
        if self.has_mask:
            labels = group.create_group("labels", attributes={"ome": {"version": VERSION, "labels": ["mask"]}})
            mask = labels.create_group("mask", attributes=mask_attributes(self.metadata, list(levels), HOW))
            self._masks = [self._array(mask, str(level), size, 0) for level, size in enumerate(levels)]

    def _array(self, group: Any, name: str, shape: tuple[int, ...], fill: float) -> Any:
        rows, cols = min(self.block, shape[-2]), min(SIDE, shape[-1])
        chunk = (1,) * (len(shape) - 2) + (rows, cols)
        shard = (*chunk[:-1], cols * min(SHARD, -(-shape[-1] // cols)))
        return group.create_array(
            name, shape=shape, chunks=chunk, shards=shard, dtype=self.dtype if len(shape) == 3 else np.dtype("uint8"),
            dimension_names=("c", "y", "x")[3 - len(shape) :], fill_value=fill,
        )  # fmt: skip

    def _block(self, row: int, pixels: Array, mask: npt.NDArray[np.uint8] | None) -> None:
        for block in self._pyramid.put(row, pixels, mask):
            self._shards(block)

    def _shards(self, block: Block) -> None:
        # Shard by shard: zarr goes on with the other shards of a call in its own thread after one has failed, and would
        # write into a folder that is being removed.
        image = self._images[block.level]
        rows, width = slice(block.row, block.row + block.pixels.shape[1]), image.shape[2]
        for col in range(0, width, image.shards[2]):
            cols = slice(col, min(col + image.shards[2], width))
            for channel in range(self.samples):
                image[channel, rows, cols] = block.pixels[channel, :, cols]
            if block.mask is not None:
                self._masks[block.level][rows, cols] = block.mask[:, cols]

    def _finish(self) -> None:
        pass  # every shard is a file that zarr has closed

    def _abandon(self) -> None:
        pass
