"""A large archive from a small one: its records, masks and previews again and again, under the places of a larger grid.

In: an archive of whole tiles, and a number of tiles.  Out: an archive that is valid and whole, made in seconds where
coding its pixels would take hours.  Every record is a real one; what repeats is the scene.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from ditic_stream.archive import PREVIEW_SCALE, create_archive, open_archive
from ditic_stream.bitstream import pack_record
from ditic_stream.geometry import TileKey
from ditic_stream.manifest import FORMAT, Image
from ditic_stream.tiling import Grid


def repeat(small: Path, out: Path, *, rows: int, cols: int, number: int = FORMAT) -> None:
    """Write the archive `out` of `rows` x `cols` tiles, made of those of `small`, which it is laid out with.

    number: its format; below 3 `small` has to be of quality 1 or 100.
    """
    with open_archive(small) as archive:
        grid, manifest = archive.grid, archive.manifest
        tile, planes = grid.config.tile, archive.layout.planes
        if grid.height % tile or grid.width % tile:
            raise ValueError(f"{small} has ragged tiles: {grid.height} x {grid.width} pixels in tiles of {tile}")
        image = Image(height=rows * tile, width=cols * tile, bands=manifest.image.bands, dtype=manifest.image.dtype)
        shard = Grid(height=image.height, width=image.width, config=grid.config).shard
        large = replace(manifest, complete=False, image=image, shard=shard, format=number)
        preview, side = archive.preview(), tile // PREVIEW_SCALE

        def origin(key: TileKey) -> TileKey:
            return TileKey(key.row % grid.rows, key.col % grid.cols)

        with create_archive(out, large) as writer:
            for shard in writer.grid.shards():
                keys = list(writer.grid.tiles_of(shard))
                records = {
                    key: pack_record(replace(archive.record(origin(key)), key=key, archive_id=writer.layout.archive_id))
                    for key in keys
                }
                masks = None
                if planes:
                    masks = {key: archive.mask(grid.core(origin(key))) for key in keys}
                part = np.zeros(writer.layout.preview_part(shard), np.uint8)
                for key in keys:
                    row, col = (key.row - keys[0].row) * side, (key.col - keys[0].col) * side
                    at = origin(key)
                    part[:, row : row + side, col : col + side] = preview[
                        :, at.row * side : (at.row + 1) * side, at.col * side : (at.col + 1) * side
                    ]
                writer.put_shard(shard, records, masks, part)
            writer.finish()
