"""How long a run will take, from tiles that were coded in its workers.

In: pixels and seconds of those tiles, the seconds it took to begin, workers and pixels in all.  Out: seconds with
bounds.  Knows numbers; knows nothing of scenes or executors.

What differs from tile to tile is known from them.  What else the machine will do during the run is not: the bounds
leave room for a load that rises or falls by LOAD, and below for one that ends, where tiles took longer than they were
busy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

NORMAL = 1.645
"""Standard errors of an interval that holds 9 times of 10."""
WRITING = 0.03
"""Seconds it takes to write a shard, which a dry run does not: of a few megabytes at most, most of it for the disk to
say that they are there."""
LOAD = 0.2
"""Relative standard deviation of the pace of the same work at another time, on a machine that others use too."""


def seconds_of_run(
    pixels: int, tiles: Sequence[tuple[int, float, float]], *, shards: int, workers: int, start: float
) -> tuple[float, float, float]:
    """Expected, least and most seconds of a run over `pixels`.

    tiles: (pixels, seconds, seconds with a core) of at least one tile, in the order in which they were finished: the
    first of each worker warms it up, and is left out where more than half of them remain.  start: seconds until the
    first tile begins, which the run will take too.
    """
    counted = tiles[workers:] if len(tiles) > 2 * workers else tiles
    coded, took, busy = (sum(part) for part in zip(*counted, strict=True))
    pace, count = took / coded, len(counted)
    off = sum((seconds - pace * size) ** 2 for size, seconds, _ in counted)
    work = (pixels * pace + shards * WRITING) / workers
    error = work / (start + work) * math.sqrt(off * count / max(count - 1, 1)) / took
    width = 1 + NORMAL * math.hypot(error, LOAD)
    alone = min(busy / took, 1)
    return start + work, (start + work) * alone / width, (start + work) * width
