"""Streams decoded together: each as alone, whatever their lengths, lanes and tables."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ditic_stream._lockstep import pull_together
from ditic_stream.errors import FormatError
from ditic_stream.rans import TOTAL, Decoder, Tables, encode

TABLES = Tables([[TOTAL - 3, 1, 1, 1], [16384, 32768, 16384], [65000, 536]], [-1, -1, 4])


def stream(seed: int, lanes: int, sizes: list[int]) -> tuple[bytes, bytes, list[tuple[np.ndarray, np.ndarray]]]:
    rng = np.random.default_rng(seed)
    parts = [(rng.integers(-3, 9, size).astype(np.int32), rng.integers(0, 3, size).astype(np.uint8)) for size in sizes]
    return *encode(parts, TABLES, lanes), parts


@settings(max_examples=80, deadline=None)
@example([(4, [0, 0, 0]), (4, [0, 0, 1])], 0)  # no words at all
@given(
    st.lists(
        st.tuples(st.sampled_from([1, 4, 4, 64]), st.lists(st.integers(0, 300), min_size=3, max_size=3)),
        min_size=1,
        max_size=7,
    ),
    st.integers(0, 99),
)
def test_each_stream_is_what_it_is_alone(cases: list[tuple[int, list[int]]], seed: int) -> None:
    streams = [stream(seed + place, lanes, sizes) for place, (lanes, sizes) in enumerate(cases)]
    decoders = [
        Decoder(words, escapes, TABLES, lanes) for (words, escapes, _), (lanes, _) in zip(streams, cases, strict=True)
    ]
    for part in range(3):
        found = pull_together(decoders, [parts[part][1] for *_, parts in streams])
        for got, (*_, parts) in zip(found, streams, strict=True):
            assert got.dtype == np.int32
            assert (got == parts[part][0]).all()
    for decoder in decoders:
        decoder.finish()


@pytest.mark.parametrize("cut", [2, 10, 40])
def test_a_stream_that_ends_early_is_an_error(cut: int) -> None:
    streams = [stream(seed, 4, [200]) for seed in range(3)]
    decoders = [Decoder(words, escapes, TABLES, 4) for words, escapes, _ in streams[:2]]
    words, escapes, _ = streams[2]
    decoders.append(Decoder(words[:-cut], escapes, TABLES, 4))
    with pytest.raises(FormatError, match="end before"):
        pull_together(decoders, [parts[0][1] for *_, parts in streams])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(min_size=16, max_size=60), min_size=2, max_size=4))
def test_any_bytes_decode_or_raise_format_error(words: list[bytes]) -> None:
    try:
        decoders = [Decoder(one[: len(one) // 2 * 2], b"\x80" * 40, TABLES, 4) for one in words]
        found = pull_together(decoders, [np.zeros(50, np.uint8)] * len(words))
    except FormatError:
        return
    assert all(one.size == 50 for one in found)
