"""How long a run will take, from tiles that were coded in its workers.

In: pixels of those tiles and the time each took, the seconds it took to begin, workers and pixels in all.  Out: seconds
with bounds.  Knows numbers and the clocks of a thread; knows nothing of scenes or executors.

What differs from tile to tile is known from them.  What else the machine will do during the run is not: time in which a
thread was kept from a core may come to nothing, or to a multiple.  So on a machine of one's own the bounds are close,
and on one that others use they are wide.  A few tiles are coded in a second or two, in which a load may pause; how much
of the time goes into waiting for a core is taken from all that a dry run codes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

NORMAL = 1.645
"""Standard errors of an interval that holds 9 times of 10."""
WRITING = 0.03
"""Seconds it takes to write a shard, which a dry run does not: of a few megabytes at most, most of it for the disk to
say that they are there."""
AGAIN, WAITING = 0.12, 1.0
"""Relative standard deviations at another time: of the pace of the same work, and of the time that others take."""


@dataclass(frozen=True, slots=True)
class Spent:
    """What a piece of work took, seconds."""

    seconds: float = 0.0
    """From its begin to its end."""
    busy: float = 0.0
    """Of them with a core."""
    queued: float = 0.0
    """Of them ready to go on, but kept from a core; the rest went into waiting for pixels."""


def total(parts: Iterable[Spent]) -> Spent:
    """The sum of several."""
    many = list(parts)
    return Spent(sum(one.seconds for one in many), sum(one.busy for one in many), sum(one.queued for one in many))


def stopwatch() -> Callable[[], Spent]:
    """Starts to measure this thread; what is called later says what it spent since."""
    began = _clocks()

    def spent() -> Spent:
        seconds, busy, queued = (max(now - then, 0.0) for now, then in zip(_clocks(), began, strict=True))
        return Spent(max(seconds, 1e-6), max(busy, 1e-6), queued)

    return spent


def _clocks() -> tuple[float, float, float]:
    seconds, busy = time.monotonic(), time.thread_time()
    try:
        with open("/proc/thread-self/schedstat") as told:
            return seconds, busy, int(told.read().split()[1]) * 1e-9
    except (OSError, ValueError, IndexError):  # not Linux: all time without a core counts
        return seconds, busy, seconds - busy


def seconds_of_run(
    pixels: int,
    tiles: Sequence[tuple[int, Spent]],
    *,
    others: Spent = Spent(),
    shards: int,
    workers: int,
    start: float,
) -> tuple[float, float, float]:
    """Expected, least and most seconds of a run over `pixels`.

    tiles: pixels of at least one tile and what it took, in the order in which they were finished: the first of each
    worker warms it up, and is left out where more than half of them remain.  others: what all else took that the
    workers coded.  start: seconds until the first tile begins, which the run will take too.
    """
    counted = tiles[workers:] if len(tiles) > 2 * workers else tiles
    alone = [spent.seconds - spent.queued for _, spent in counted]
    coded, count = sum(size for size, _ in counted), len(counted)
    pace = sum(alone) / coded
    off = sum((seconds - pace * size) ** 2 for (size, _), seconds in zip(counted, alone, strict=True))
    whole = total([others, *(spent for _, spent in tiles)])
    work = (pixels * pace + shards * WRITING) / workers
    waiting = pixels / coded * sum(spent.busy for _, spent in counted) * (whole.queued / whole.busy) / workers
    value = start + work + waiting
    least = value - waiting - start * whole.queued / whole.seconds
    error = math.hypot(math.sqrt(off * count / max(count - 1, 1)) / sum(alone) * work, AGAIN * value)
    high = value + NORMAL * math.hypot(error, WAITING * (value - least))
    return value, least / (1 + NORMAL * error / value), high
