"""What a worker and the driver tell Ray's metrics: pixels, bytes, busy seconds, retries.

In: amounts as they come.  Out: ray.util.metrics, which every node of a cluster exports for Prometheus, with the prefix
ray_; docs/cluster.md lists them.  Knows nothing of scenes.
"""

from __future__ import annotations

NAMES = {
    "ditic_pixels": "Pixels coded or decoded.",
    "ditic_bytes": "Bytes of records written.",
    "ditic_busy_seconds": "Seconds workers were at work on a key.",
    "ditic_keys": "Keys (shards, belts, scenes) finished.",
    "ditic_retries": "Keys handed out again after a worker died, ran out of memory or failed.",
}


class Meters:
    """Counters with the kind of device as their tag.  They cost nothing where Ray is not running."""

    def __init__(self, device: str) -> None:
        import ray
        from ray.util.metrics import Counter

        tags = {"device": device.partition(":")[0]}
        self._counters = {}
        if ray.is_initialized():
            for name, what in NAMES.items():
                self._counters[name] = Counter(name, description=what, tag_keys=("device",))
                self._counters[name].set_default_tags(tags)

    def pixels(self, count: int) -> None:
        self._add("ditic_pixels", count)

    def wrote(self, count: int) -> None:
        self._add("ditic_bytes", count)
        self._add("ditic_keys", 1)

    def busy(self, seconds: float) -> None:
        self._add("ditic_busy_seconds", seconds)

    def retry(self) -> None:
        self._add("ditic_retries", 1)

    def _add(self, name: str, amount: float) -> None:
        if name in self._counters and amount > 0:  # Ray refuses an increment of nothing
            self._counters[name].inc(amount)
