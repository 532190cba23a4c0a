"""Real Ray clusters of several nodes on this machine, for tests; small, and quick to notice a lost node."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent
STORE = 80 << 20
FAST = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 4,
    "metrics_report_interval_ms": 1000,
}


@contextlib.contextmanager
def cluster(cpus: int = 2, **head: Any) -> Iterator[Any]:
    """A cluster whose head has so many CPUs, not connected to; `add_node` makes it larger."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    # Workers are started by the raylets, which know nothing of pytest's paths.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    from ray.cluster_utils import Cluster

    made = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": cpus, "object_store_memory": STORE, "include_dashboard": False, "_system_config": FAST, **head,
        },
    )  # fmt: skip
    try:
        yield made
    finally:
        made.shutdown()


def wait_for(what: Callable[[], Any], seconds: float = 60) -> Any:
    """The first true value of `what`; AssertionError when none comes in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = what()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"nothing came within {seconds} s")


def keep() -> None:
    """Run a cluster until stdin is closed; prints its address and the process of its control plane."""
    import sys

    with cluster(2) as made, contextlib.suppress(Exception):
        sys.stdout.write(f"{made.address} {made.head_node.all_processes['gcs_server'][0].process.pid}\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    keep()
