"""How long a run will take, from tiles that were coded in its workers.

In: pixels and seconds of those tiles, the seconds it took to begin, workers and pixels in all.  Out: seconds with
bounds.  Knows numbers; knows nothing of scenes or executors.

What differs from tile to tile is known from them, and so is a part of what else the machine does.  How that will change
until the run is not: the bounds leave room for a load that rises or falls by LOAD.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

NORMAL = 1.645
"""Standard errors of an interval that holds 9 times of 10."""
LOAD = 0.15
"""Relative standard deviation of the pace of the same work at another time, on a machine that others use too."""


def seconds_of_run(
    pixels: int, tiles: Sequence[tuple[int, float]], *, workers: int, start: float
) -> tuple[float, float, float]:
    """Expected, least and most seconds of a run over `pixels`.

    tiles: (pixels, seconds) of at least one tile, in the order in which they were finished: the first of each worker
    warms it up, and is left out where more than half of them remain.  start: seconds until the first tile begins, which
    the run will take too.
    """
    counted = tiles[workers:] if len(tiles) > 2 * workers else tiles
    coded, took = sum(size for size, _ in counted), sum(seconds for _, seconds in counted)
    pace, count = took / coded, len(counted)
    off = sum((seconds - pace * size) ** 2 for size, seconds in counted)
    work = pixels * pace / workers
    error = work / (start + work) * math.sqrt(off * count / max(count - 1, 1)) / took
    width = 1 + NORMAL * math.hypot(error, LOAD)
    return start + work, (start + work) / width, (start + work) * width
