"""The rANS coder: any symbols under any tables come back; damaged bytes raise FormatError and nothing else."""

from __future__ import annotations

import contextlib
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditic_stream import rans
from ditic_stream.errors import ConfigError, FormatError
from ditic_stream.rans import Decoder, Tables, encode, lanes_for

INT32 = st.integers(-(2**31), 2**31 - 1)
LANES = st.sampled_from([1, 2, 4, 8, 16, 32, 64])


def counts_of(weights: list[int]) -> list[int]:
    """Positive counts that sum to 2^16, in the proportions of `weights`."""
    total = sum(weights)
    counts = [1 + weight * (rans.TOTAL - len(weights)) // max(total, 1) for weight in weights]
    counts[0] += rans.TOTAL - sum(counts)
    return counts


@st.composite
def tables(draw: st.DrawFn) -> Tables:
    rows = draw(st.lists(st.lists(st.integers(0, 1000), min_size=2, max_size=40), min_size=1, max_size=6))
    lows = [draw(st.integers(-(2**31), 2**31 - len(row) + 1)) for row in rows]
    return Tables([counts_of(row) for row in rows], lows)


@st.composite
def coded(draw: st.DrawFn) -> tuple[Tables, list[tuple[list[int], list[int]]], int]:
    """Tables, parts and lanes; symbols mostly inside their tables, some far outside."""
    found = draw(tables())
    _, sizes, lows = found.arrays()
    parts = []
    for _ in range(draw(st.integers(0, 3))):
        indexes = draw(st.lists(st.integers(0, len(found) - 1), max_size=150))
        symbols = [
            draw(st.one_of(st.integers(int(lows[index]), int(lows[index]) + int(sizes[index]) - 2), INT32))
            for index in indexes
        ]
        parts.append((symbols, indexes))
    return found, parts, draw(LANES)


def decode(words: bytes, escapes: bytes, found: Tables, lanes: int, parts: list[Any]) -> list[list[int]]:
    decoder = Decoder(words, escapes, found, lanes)
    symbols = [decoder.pull(np.array(indexes, dtype=np.uint8)).tolist() for _, indexes in parts]
    decoder.finish()
    return symbols


@settings(max_examples=300, deadline=None)
@given(coded())
def test_symbols_survive_any_table_of_positive_counts(case: tuple[Tables, list[Any], int]) -> None:
    found, parts, lanes = case
    words, escapes = encode(parts, found, lanes)
    assert decode(words, escapes, found, lanes, parts) == [symbols for symbols, _ in parts]
    assert len(words) <= 4 * lanes + 2 * sum(len(symbols) for symbols, _ in parts)


@settings(max_examples=100, deadline=None)
@given(st.lists(INT32, max_size=50), LANES)
def test_values_outside_the_table_survive_to_the_ends_of_int32(values: list[int], lanes: int) -> None:
    found = Tables([[65535, 1]], [0])
    symbols = [*values, -(2**31), 2**31 - 1, 0, 1, -1]
    parts = [(symbols, [0] * len(symbols))]
    words, escapes = encode(parts, found, lanes)
    assert decode(words, escapes, found, lanes, parts) == [symbols]


def test_no_part_and_empty_parts_cost_the_states_alone() -> None:
    found = Tables([[32768, 32768]], [0])
    cases: list[list[Any]] = [[], [([], [])], [([], []), ([], [])]]
    for parts in cases:
        words, escapes = encode(parts, found, 4)
        assert (words, escapes) == (b"\0\0\1\0" * 4, b"")
        assert decode(words, escapes, found, 4, parts) == [[] for _ in parts]


def test_the_tables_of_a_part_may_depend_on_the_part_before() -> None:
    rng = np.random.default_rng(3)
    found = Tables([counts_of([1] * 9), counts_of([90, 5, 1, 1])], [-4, 0])
    first = rng.integers(-4, 4, 333)
    parts = [(first, np.zeros(333, np.uint8)), (np.abs(first) % 3, (first > 0).astype(np.uint8))]
    words, escapes = encode(parts, found, 8)
    decoder = Decoder(words, escapes, found, 8)
    pulled = decoder.pull(np.zeros(333, np.uint8))
    assert (decoder.pull((pulled > 0).astype(np.uint8)) == np.abs(first) % 3).all()
    decoder.finish()


def test_words_stay_within_a_thousandth_of_the_entropy() -> None:
    rng = np.random.default_rng(7)
    row = counts_of([4, 20, 300, 5000, 300, 20, 4, 1])
    found = Tables([row], [-3])
    probabilities = np.array(row[:-1]) / sum(row[:-1])
    symbols = rng.choice(np.arange(-3, 4), 200_000, p=probabilities)
    words, _ = encode([(symbols, np.zeros(symbols.size, np.uint8))], found, 16)
    bits = -np.log2(np.array(row)[symbols + 3] / rans.TOTAL).sum()
    # A thousandth: a state of 16 to 32 bits over counts of 16 bits rounds a little (0.05 % here).
    assert 8 * (len(words) - 4 * 16) < 1.001 * bits


@pytest.mark.parametrize(
    ("number", "lanes"), [(0, 1), (4095, 1), (8191, 1), (8192, 2), (65536, 16), (262143, 32), (262144, 64), (10**9, 64)]
)
def test_lanes_follow_the_number_of_symbols(number: int, lanes: int) -> None:
    assert lanes_for(number) == lanes


def test_a_golden_stream_keeps_its_bytes() -> None:
    """Worked through by hand in docs/format.md: two lanes, three symbols, one of them escaped."""
    found = Tables([[16384, 32768, 16384]], [-1])
    words, escapes = encode([([0, -1, 5], [0, 0, 0])], found, 2)
    assert words.hex() == "0080090000000400"
    assert escapes.hex() == "16"  # zigzag(5) + 1 = 11 = 0b1011, three zeros before it: 0001011 and a zero to fill
    assert decode(words, escapes, found, 2, [([0, -1, 5], [0, 0, 0])]) == [[0, -1, 5]]


def plain_encode(parts: list[Any], found: Tables, lanes: int) -> bytes:
    """The words of docs/format.md, one symbol at a time, in Python's own integers."""
    counts, sizes, lows = (array.tolist() for array in found.arrays())
    states, out = [1 << 16] * lanes, []
    for symbols, indexes in reversed(parts):
        for place in reversed(range(len(symbols))):
            table = indexes[place]
            row = counts[sum(sizes[:table]) : sum(sizes[: table + 1])]
            entry = symbols[place] - lows[table]
            entry = entry if 0 <= entry < len(row) - 1 else len(row) - 1
            count, start, x = row[entry], sum(row[:entry]), states[place % lanes]
            if x >= count << 16:
                out.append(x & 0xFFFF)
                x >>= 16
            states[place % lanes] = (x // count << 16) + x % count + start
    words = [half for x in states for half in (x & 0xFFFF, x >> 16)] + out[::-1]
    return b"".join(word.to_bytes(2, "little") for word in words)


@settings(max_examples=100, deadline=None)
@given(coded())
def test_the_vectorised_coder_gives_the_words_of_the_plain_one(case: tuple[Tables, list[Any], int]) -> None:
    found, parts, lanes = case
    assert encode(parts, found, lanes)[0] == plain_encode(parts, found, lanes)


def stream() -> tuple[Tables, bytes, bytes, list[Any]]:
    rng = np.random.default_rng(5)
    found = Tables([counts_of([50, 9, 3, 1]), counts_of([1] * 20)], [0, -10])
    indexes = rng.integers(0, 2, 300).astype(np.uint8)
    symbols = rng.integers(-12, 12, 300)
    parts = [(symbols[:100], indexes[:100]), (symbols[100:], indexes[100:])]
    return found, *encode(parts, found, 4), parts


def test_truncated_words_and_escapes_raise_format_error() -> None:
    found, words, escapes, parts = stream()
    for cut in range(len(words)):
        with pytest.raises(FormatError):
            decode(words[:cut], escapes, found, 4, parts)
    for cut in range(len(escapes)):
        with pytest.raises(FormatError):
            decode(words, escapes[:cut], found, 4, parts)
    with pytest.raises(FormatError, match="left over"):
        decode(words + b"\0\0", escapes, found, 4, parts)
    with pytest.raises(FormatError, match="left over"):
        decode(words, escapes + b"\0", found, 4, parts)


@settings(max_examples=300, deadline=None)
@given(st.binary(min_size=16, max_size=400), st.binary(max_size=40))
def test_any_bytes_decode_or_raise_format_error(words: bytes, escapes: bytes) -> None:
    found, *_, parts = stream()
    with contextlib.suppress(FormatError):
        decode(words, escapes, found, 4, parts)


def test_tables_of_the_wrong_kind_are_refused() -> None:
    good = [32768, 32768]
    for counts, lows in (
        ([], []),
        ([good] * 257, [0] * 257),
        ([good], []),
        ([[65536]], [0]),
        ([[65535, 0, 1]], [0]),
        ([[-1, 65537]], [0]),
        ([[1, 2]], [0]),
        ([[32768, 16384, 16384]], [2**31 - 1]),
        ([good], [-(2**31) - 1]),
    ):
        with pytest.raises(ConfigError):
            Tables(counts, lows)
    with pytest.raises(ConfigError):
        Tables.from_arrays([32768, 32768, 7], [2], [0])


def test_tables_survive_flat_arrays_and_pickle() -> None:
    found = Tables([counts_of([5, 4, 3]), counts_of([1, 9])], [-1, 7])
    assert Tables.from_arrays(*found.arrays()) == found
    assert pickle.loads(pickle.dumps(found)) == found
    assert hash(Tables.from_arrays(*found.arrays())) == hash(found)
    assert found != Tables([counts_of([5, 4, 3]), counts_of([1, 9])], [-1, 8])
    with pytest.raises(ValueError, match="read-only"):
        found.arrays()[0][0] = 3


def test_symbols_lanes_and_indexes_out_of_bounds_are_refused() -> None:
    found = Tables([[32768, 32768]], [0])
    for symbols, indexes, lanes in (
        ([0], [1], 1),
        ([0, 0], [0], 1),
        ([2**31], [0], 1),
        ([0], [0], 3),
        ([0], [0], 128),
    ):
        with pytest.raises(ConfigError):
            encode([(symbols, indexes)], found, lanes)
    with pytest.raises(ConfigError):
        Decoder(b"\0\0\1\0", b"", found, 1).pull(np.array([1], np.uint8))
