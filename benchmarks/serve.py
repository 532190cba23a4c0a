"""The server under load: latency of warm tiles, fairness, and the most memory it ever takes.

    python benchmarks/serve.py                                     # makes a scene of 4096 x 4096 with tiny
    python benchmarks/serve.py --archive scene.ditic --threads 2   # any archive

Starts `ditic-stream serve` as a process and reads /proc/*/smaps_rollup ten times a second (PSS, summed over it and its
children) while real HTTP clients, each from a loopback address of its own, ask one thing after the other:

    alone    one client, tiles it has asked for before
    cold     CLIENTS at once for --seconds, windows of 256 x 256 anywhere that nobody has asked for
    warm     CLIENTS at once for --seconds, tiles that are kept; whatever they wait is the server's and the clients' CPU

Prints a line of JSON a phase; CPU an answer is what other work on the machine changes least.  Fails when an answer is
neither 200 nor 503 with Retry-After, when a picture is not of the right size, when a client starves in the cold phase,
or when the peak passes --limit.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import imagecodecs
import numpy as np
from memory import family, pss, write_scene


class Watch(threading.Thread):
    """Samples the memory of a process and its children."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.peak, self.now, self.going = pid, 0, 0, True
        self.start()

    def run(self) -> None:
        while self.going:
            self.now = sum(pss(one) for one in family(self.pid))
            self.peak = max(self.peak, self.now)
            time.sleep(0.1)


def cpu(pid: int) -> float:
    """Seconds of CPU a process has used, all its threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def client(number: int, seconds: float, addresses: object, results: list[tuple[int, int, float]]) -> None:
    """One client: ask, wait, ask again.  results: (client, status, seconds)."""
    transport = httpx.AsyncHTTPTransport(verify=False, local_address=f"127.0.{1 + number // 200}.{1 + number % 200}")
    async with httpx.AsyncClient(transport=transport, timeout=600) as http:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            began = time.monotonic()
            answer = await http.get(next(addresses))  # type: ignore[call-overload]
            results.append((number, answer.status_code, time.monotonic() - began))
            if answer.status_code == 503:
                await asyncio.sleep(int(answer.headers["retry-after"]))


def percentiles(values: list[float]) -> dict[str, float]:
    found = np.percentile(values, [50, 95, 99]) if values else [float("nan")] * 3
    return {
        name: round(1000 * float(value), 1) for name, value in zip(("p50_ms", "p95_ms", "p99_ms"), found, strict=True)
    }


async def phase(name: str, clients: int, seconds: float, addresses: object, watch: Watch) -> dict[str, object]:
    results: list[tuple[int, int, float]] = []
    began, used, watch.peak = time.monotonic(), cpu(watch.pid), 0
    await asyncio.gather(*(client(number, seconds, addresses, results) for number in range(clients)))
    spent = time.monotonic() - began
    answered = Counter(number for number, status, _ in results if status == 200)
    row = {
        "phase": name, "clients": clients, "answers": len(results),
        "statuses": dict(Counter(status for _, status, _ in results)),
        "per_second": round(sum(answered.values()) / spent, 1),
        **percentiles([took for _, status, took in results if status == 200]),
        "server_cpu_ms_an_answer": round(1000 * (cpu(watch.pid) - used) / max(len(results), 1), 2),
        "answers_of_a_client": [min(answered.get(n, 0) for n in range(clients)), max(answered.values(), default=0)],
        "peak_mb": round(watch.peak / 1e6),
    }  # fmt: skip
    print(json.dumps(row), flush=True)
    return row


def windows(base: str, width: int, height: int) -> object:
    """Endless windows nobody has asked for; one generator for all clients."""
    rng = random.Random(1)
    while True:
        yield f"{base}region?window={rng.randrange(width - 256)},{rng.randrange(height - 256)},256,256&format=webp"


def tiles(addresses: list[str]) -> object:
    rng = random.Random(2)
    while True:
        yield rng.choice(addresses)


async def load(base: str, options: argparse.Namespace, watch: Watch) -> list[dict[str, object]]:
    async with httpx.AsyncClient(timeout=600) as http:
        facts = (await http.get(f"{base}info")).json()
        width, height = facts["width"], facts["height"]
        top = (max(width, height) - 1).bit_length()
        known = [
            f"{base}image_files/{top}/{col}_{row}.webp"
            for row in range(min(4, -(-height // 512)))
            for col in range(min(4, -(-width // 512)))
        ]
        for address in known:
            answer = await http.get(address)
            answer.raise_for_status()
        shape = imagecodecs.webp_decode(answer.content).shape
        if max(shape[:2]) > 514 or min(shape[:2]) < 1:
            sys.exit(f"a tile of {shape}")
    print(json.dumps({"at_rest_mb": round(watch.now / 1e6)}), flush=True)
    return [
        await phase("alone", 1, min(options.seconds, 5), tiles(known), watch),
        await phase("cold", options.clients, options.seconds, windows(base, width, height), watch),
        await phase("warm", options.clients, options.seconds, tiles(known), watch),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=Path, help="what to serve; by default a scene is made")
    parser.add_argument("--model", default="tiny", help="of the scene that is made")
    parser.add_argument("--size", type=int, default=4096, help="side of the scene that is made")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", default="512MB")
    parser.add_argument("--timeout", type=float, default=300, help="of the server, seconds: lower, and it answers 503")
    parser.add_argument("--limit", type=float, default=2.0, help="GB the peak may not pass")
    options = parser.parse_args()
    tool = str(Path(sys.executable).with_name("ditic-stream"))
    with tempfile.TemporaryDirectory() as name:
        archive = options.archive
        if archive is None:
            scene, archive = Path(name) / "scene.tif", Path(name) / "scene.ditic"
            write_scene(scene, options.size, options.size)
            subprocess.run(
                [tool, "compress", str(scene), str(archive), "--model", options.model, "--quiet"], check=True
            )
        process = subprocess.Popen(
            [tool, "serve", str(archive), "--port", "0", "--threads", str(options.threads), "--cache", options.cache,
             "--timeout", str(options.timeout),
             "--json"],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            base = next(iter(json.loads(process.stdout.readline())["archives"].values()))
            watch = Watch(process.pid)
            rows = asyncio.run(load(base, options, watch))
            health = httpx.get(base.rsplit("/", 2)[0] + "/healthz").json()
            print(json.dumps({"health": health}), flush=True)
            watch.going = False
        finally:
            process.send_signal(signal.SIGINT)
            process.wait()
    problems = []
    for row in rows:
        if set(row["statuses"]) - {200, 503}:  # type: ignore[call-overload]
            problems.append(f"{row['phase']}: statuses {row['statuses']}")
        if row["peak_mb"] > 1000 * options.limit:  # type: ignore[operator]
            problems.append(f"{row['phase']}: peak {row['peak_mb']} MB")
    if rows[1]["answers_of_a_client"][0] == 0 and 503 not in rows[1]["statuses"]:  # type: ignore[index, operator]
        problems.append("cold: a client got nothing")
    sys.exit("; ".join(problems) or 0)


if __name__ == "__main__":
    main()
