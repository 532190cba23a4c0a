"""How long a run will take, from tiles that were coded in its workers.

In: pixels and seconds of those tiles, the seconds it took to begin, workers and pixels in all.  Out: seconds with
bounds.  Knows numbers; knows nothing of scenes or executors.

What differs from tile to tile is known from them.  What else the machine will do during the run is not: time in which a
tile had no core may come to nothing, or to a multiple.  So on a machine of one's own the bounds are close, and on one
that others use they are wide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

NORMAL = 1.645
"""Standard errors of an interval that holds 9 times of 10."""
WRITING = 0.03
"""Seconds it takes to write a shard, which a dry run does not: of a few megabytes at most, most of it for the disk to
say that they are there."""
AGAIN, WAITING = 0.1, 1.0
"""Relative standard deviations at another time: of the pace of the same work, and of the time that others take."""


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
    value = start + work
    alone = value * min(busy / took, 1)
    error = math.hypot(math.sqrt(off * count / max(count - 1, 1)) / took * work, AGAIN * value)
    high = value + NORMAL * math.hypot(error, WAITING * (value - alone))
    return value, alone / (1 + NORMAL * error / value), high
