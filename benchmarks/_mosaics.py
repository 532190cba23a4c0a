"""Large scenes from small pictures, for measurements that need more pixels than are at hand.

In: uint8 pictures (3, rows, columns).  Out: a scene as an uncompressed tiled TIFF.  Seeded; a scene is made of 2 to 60
unlike pictures, so that some are alike everywhere and some change from block to block.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

BLOCK = 480
"""Side of a block, pixels; each shows a part of one picture, some of them enlarged twice.  No multiple of a window's
side: borders between blocks are hard to code, and would lie at the same place of every second window."""


def write_mosaic(
    path: Path, pictures: Sequence[NDArray[np.uint8]], *, height: int = 4800, width: int = 7200, seed: int = 0
) -> Path:
    """Write a scene of `height` x `width` pixels."""
    import tifffile

    random = np.random.default_rng(seed)
    few = random.choice(len(pictures), min(int(2 * 30 ** random.random()), len(pictures)), replace=False)
    scene = np.empty((height, width, 3), np.uint8)
    for row in range(0, height, BLOCK):
        for col in range(0, width, BLOCK):
            # Neighbours are alike, as on the ground: the picture changes slowly along the rows.
            place = (row / height + 0.3 * random.random()) % 1
            picture = pictures[few[int(place * len(few))]]
            scale = 2 if random.random() < 0.3 or min(picture.shape[1:]) < BLOCK else 1
            part = _part(picture, BLOCK // scale, random).transpose(1, 2, 0)
            into = scene[row : row + BLOCK, col : col + BLOCK]
            into[:] = part.repeat(scale, 0).repeat(scale, 1)[: into.shape[0], : into.shape[1]]
    scene = np.roll(scene, tuple(int(shift) for shift in random.integers(0, BLOCK, 2)), (0, 1))
    tifffile.imwrite(path, scene, tile=(256, 256), photometric="rgb")
    return path


def _part(picture: NDArray[np.uint8], side: int, random: np.random.Generator) -> NDArray[np.uint8]:
    top, left = (int(random.integers(0, length - side + 1)) for length in picture.shape[1:])
    part = picture[:, top : top + side, left : left + side]
    turned = np.rot90(part, int(random.integers(4)), (1, 2))
    return turned if random.random() < 0.5 else turned[:, ::-1]
