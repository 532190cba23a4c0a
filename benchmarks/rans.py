"""Speed and overhead of the rANS coder on one core: symbols a second by lanes, and bits above the entropy.

    OMP_NUM_THREADS=1 python benchmarks/rans.py [SYMBOLS]          (default 400 000)

Symbols are drawn from 64 two-sided exponential tables from nearly certain to 8 bits wide, as a hyperprior has them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np

from ditic_stream.rans import TOTAL, Decoder, Tables, encode, lanes_for


def tables(number: int = 64) -> Tables:
    counts, lows = [], []
    for scale in 0.15 * 1.1 ** np.arange(number):
        reach = int(6 * scale) + 1
        weights = np.exp(-np.abs(np.arange(-reach, reach + 1)) / scale)
        row = 1 + np.floor(weights / weights.sum() * (TOTAL - 2 * reach - 2)).astype(np.int64)
        row[reach] += TOTAL - 1 - row.sum()
        counts.append(np.append(row, 1))
        lows.append(-reach)
    return Tables(counts, lows)


def best_of(runs: int, call: Callable[[], object]) -> float:
    """Seconds of processor time, so that a busy machine does not show."""
    times = []
    for _ in range(runs):
        began = time.process_time()
        call()
        times.append(time.process_time() - began)
    return min(times)


def main() -> None:
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 400_000
    rng, found = np.random.default_rng(0), tables()
    counts, sizes, lows = (array.astype(np.int64) for array in found.arrays())
    first = np.cumsum(sizes) - sizes
    indexes = rng.integers(0, sizes.size, number).astype(np.uint8)
    slots = indexes.astype(np.int64) * TOTAL + rng.integers(0, TOTAL, number)
    entries = np.searchsorted(np.cumsum(counts), slots, "right")
    entries -= entries - first[indexes] == sizes[indexes] - 1  # no escapes: the value below instead
    symbols = (entries - first[indexes] + lows[indexes]).astype(np.int32)
    bits = -np.log2(counts[entries] / TOTAL).sum()
    print(f"{number} symbols of {bits / number:.3f} bits; lanes_for gives {lanes_for(number)}")
    print("lanes  encode Msym/s  decode Msym/s  over entropy  (without the states)")
    for lanes in (1, 4, 16, 32, 64):
        words, escapes = encode([(symbols, indexes)], found, lanes)

        def decode(words: bytes = words, escapes: bytes = escapes, lanes: int = lanes) -> None:
            decoder = Decoder(words, escapes, found, lanes)
            if not (decoder.pull(indexes) == symbols).all():
                raise SystemExit("the symbols did not come back")
            decoder.finish()

        decode()
        coding = best_of(5, lambda lanes=lanes: encode([(symbols, indexes)], found, lanes))
        decoding = best_of(5, decode)
        over, bare = 8 * len(words) / bits - 1, 8 * (len(words) - 4 * lanes) / bits - 1
        print(f"{lanes:5} {number / coding / 1e6:14.2f} {number / decoding / 1e6:14.2f} {over:13.4%} {bare:10.4%}")


if __name__ == "__main__":
    main()
