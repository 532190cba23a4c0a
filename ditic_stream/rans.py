"""Interleaved range asymmetric numeral systems (rANS): integer symbols to bytes and back, under integer tables.

In: symbols with the index of the table each is coded by.  Out: 16-bit words, and the bits of what no table holds.
Knows integers only; nothing of latents, records or models.  Written down in docs/format.md, section "Words".

    state   32 bits, at rest in [2^16, 2^32)          lanes   symbol i of a part belongs to lane i mod lanes
    word    16 bits, at most one a symbol             parts   coded one after the other, so that the tables of a part
    table   counts >= 1 that sum to 2^16                      may depend on the symbols of the parts before it

A decoder reads forward, so the encoder runs backward, as in J. Duda, "Asymmetric numeral systems" (arXiv:1311.2540);
lanes after F. Giesen, "Interleaved entropy coders" (arXiv:1402.3392).  The loops below do one step for all lanes
at once: the time goes into calling numpy, so they count calls, not elements.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ditic_stream.errors import ConfigError, FormatError

PRECISION = 16
TOTAL = 1 << PRECISION
"""Sum of the counts of every table."""
MAX_TABLES = 256
"""Table indexes are uint8."""
MAX_LANES = 64
"""Sixty-four lanes keep numpy busy; each more costs 4 bytes a record."""
SYMBOLS_PER_LANE = 4096
STATE_BYTES = 4
MAX_ESCAPE_ZEROS = 32
"""Zeros before the leading one of an escape code: 32 reach the largest int32."""
_LOW, _HIGH = -(2**31), 2**31 - 1

Part = tuple[ArrayLike, ArrayLike]
Array = NDArray[Any]


def lanes_for(coded: int) -> int:
    """Lanes for a record of `coded` symbols: min(64, max(1, 2^floor(log2(coded / 4096))))."""
    return min(MAX_LANES, max(1, 1 << max((coded // SYMBOLS_PER_LANE).bit_length() - 1, 0)))


class Tables:
    """Frozen integer frequency tables.

    counts: a table each: 2 to 65536 counts >= 1 that sum to 65536; the last belongs to the escape symbol, the others to
    the values low, low + 1, ...   lows: the lowest value of each table.  1 to 256 tables.
    Raises ConfigError when a count, a sum or a range is out of bounds.
    """

    def __init__(self, counts: Sequence[ArrayLike], lows: Sequence[int]) -> None:
        rows = [np.asarray(row, dtype=np.int64).reshape(-1) for row in counts]
        if not 1 <= len(rows) <= MAX_TABLES or len(lows) != len(rows):
            raise ConfigError(f"{len(rows)} tables with {len(lows)} lows; give 1 to {MAX_TABLES} of both")
        for number, (row, low) in enumerate(zip(rows, lows, strict=True)):
            if row.size < 2 or row.size > TOTAL or int(row.min()) < 1 or int(row.sum()) != TOTAL:
                raise ConfigError(
                    f"table {number}: {row.size} counts of sum {row.sum()}; give 2 or more, all >= 1, of sum {TOTAL}"
                )
            if not _LOW <= int(low) <= int(low) + row.size - 2 <= _HIGH:
                raise ConfigError(f"table {number}: values {low}..{int(low) + row.size - 2} leave int32")
        self._counts = np.concatenate(rows).astype(np.int32)
        self._sizes = np.array([row.size for row in rows], dtype=np.int32)
        self._lows = np.array([int(low) for low in lows], dtype=np.int32)
        for array in (self._counts, self._sizes, self._lows):
            array.flags.writeable = False

    @classmethod
    def from_arrays(cls, counts: ArrayLike, sizes: ArrayLike, lows: ArrayLike) -> Tables:
        """Build from flat arrays, as `arrays` gives them: all counts in a row, the entries a table has, the lows."""
        flat, lengths = np.asarray(counts).reshape(-1), np.asarray(sizes, dtype=np.int64).reshape(-1)
        if lengths.size < 1 or int(lengths.min()) < 1 or int(lengths.sum()) != flat.size:
            raise ConfigError(f"{flat.size} counts for tables of {lengths.sum()} entries together; give as many")
        return cls(np.split(flat, np.cumsum(lengths)[:-1]), [int(low) for low in np.asarray(lows).reshape(-1)])

    def arrays(self) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
        """counts (all tables in a row), sizes (entries a table), lows: int32, read-only."""
        return self._counts, self._sizes, self._lows

    def __len__(self) -> int:
        return int(self._sizes.size)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tables) and all(map(np.array_equal, self.arrays(), other.arrays()))

    def __hash__(self) -> int:
        return hash(tuple(array.tobytes() for array in self.arrays()))

    def __reduce__(self) -> tuple[Any, ...]:
        return (Tables.from_arrays, self.arrays())  # leaves the look-up rows behind: 384 KB a table

    @cached_property
    def _first(self) -> NDArray[np.int64]:
        """Where each table begins in the flat counts."""
        return (np.cumsum(self._sizes) - self._sizes).astype(np.int64)

    @cached_property
    def _starts(self) -> NDArray[np.uint32]:
        """Cumulative count before each entry, within its table."""
        total = np.cumsum(self._counts, dtype=np.int64) - self._counts
        return (total - np.repeat(np.arange(len(self)) * TOTAL, self._sizes)).astype(np.uint32)

    @cached_property
    def slots(self) -> NDArray[np.uint32]:
        """What a decoder needs of each slot of each table: count << 16 | slot - start.  256 KB a table."""
        slots = np.arange(len(self) * TOTAL, dtype=np.uint32) & np.uint32(TOTAL - 1)
        return (np.repeat(self._counts.astype(np.uint32), self._counts) << np.uint32(16)) | (
            slots - np.repeat(self._starts, self._counts)
        )

    @cached_property
    def _entries(self) -> NDArray[np.uint16]:
        """The entry each slot of each table belongs to."""
        entries = np.arange(self._counts.size) - np.repeat(self._first, self._sizes)
        return np.repeat(entries.astype(np.uint16), self._counts)

    def checked(self, indexes: ArrayLike) -> NDArray[np.int64]:
        """Table indexes as int64, flat; ConfigError when one names no table."""
        flat = np.asarray(indexes).reshape(-1)
        if flat.size and not 0 <= int(flat.min()) <= int(flat.max()) < len(self):
            raise ConfigError(
                f"table indexes {flat.min()}..{flat.max()} leave 0..{len(self) - 1}, the tables there are"
            )
        return flat.astype(np.int64)


def encode(parts: Sequence[Part], tables: Tables, lanes: int) -> tuple[bytes, bytes]:
    """Code `parts`, each (symbols int32[n], table indexes uint8[n]), under `tables` in `lanes` (1..64) lanes.

    Returns (words: the states, then little-endian uint16, at most 4 * lanes + 2 * symbols bytes; escapes: bits of the
    values no table holds).  `Decoder` with the same tables and lanes gives the symbols back, part by part.
    """
    _check_lanes(lanes)
    prepared: list[tuple[Array, Array]] = []
    escaped: list[Array] = []
    for symbols, indexes in parts:
        chosen = tables.checked(indexes)
        values = np.asarray(symbols).reshape(-1)
        if values.size != chosen.size or (values.size and not _LOW <= int(values.min()) <= int(values.max()) <= _HIGH):
            raise ConfigError(f"{values.size} symbols for {chosen.size} table indexes; give as many, inside int32")
        entry = values.astype(np.int64) - tables._lows[chosen]
        last = tables._sizes[chosen].astype(np.int64) - 1
        outside = (entry < 0) | (entry >= last)
        escaped.append(values[outside].astype(np.int64))
        entry = np.where(outside, last, entry) + tables._first[chosen]
        prepared.append((tables._counts[entry].astype(np.uint32), tables._starts[entry]))
    words = np.empty(2 * lanes + sum(counts.size for counts, _ in prepared), dtype="<u2")
    at = words.size
    state = np.full(lanes, TOTAL, dtype=np.uint32)
    for counts, starts in reversed(prepared):
        at = _push(state, counts, starts, words, at, lanes)
    at -= 2 * lanes
    words[at : at + 2 * lanes] = state.astype("<u4").view("<u2")
    return words[at:].tobytes(), _pack_escapes(np.concatenate(escaped) if escaped else np.empty(0, dtype=np.int64))


def _push(state: Array, counts: Array, starts: Array, words: Array, at: int, lanes: int) -> int:
    """Code one part backward into `words`, filling them from the end; returns the new first used word."""
    sixteen = np.uint32(PRECISION)
    complements = np.uint32(TOTAL) - counts
    size = counts.size
    high, quotient, full = np.empty_like(state), np.empty_like(state), np.empty(lanes, dtype=bool)
    low = _low_halves(state)
    shift, compare, divide, multiply, add, copy = (
        np.right_shift, np.greater_equal, np.floor_divide, np.multiply, np.add, np.copyto,
    )  # fmt: skip
    for first in range((size - 1) // lanes * lanes, -1, -lanes):
        step = slice(first, first + lanes)
        count, rest, start = counts[step], complements[step], starts[step]
        if count.size < lanes:  # the ragged last step of a part: the first lanes alone
            x, h, q, f, lo = (array[: count.size] for array in (state, high, quotient, full, low))
        else:
            x, h, q, f, lo = state, high, quotient, full, low
        shift(x, sixteen, h)
        compare(h, count, f)  # such a state would leave 32 bits: it gives its low half away first
        out = lo[f]
        if out.size:
            words[at - out.size : at] = out
            at -= out.size
            copy(x, h, where=f)
        # x' = (x div count) * 2^16 + x mod count + start, with the remainder written out
        divide(x, count, q)
        multiply(q, rest, q)
        add(x, q, x)
        add(x, start, x)
    return at


class Decoder:
    """Give symbols back part by part, in the order they were coded.

    words, escapes: as `encode` made them; hostile input raises FormatError, here, in `pull` or in `finish`.
    """

    def __init__(self, words: bytes, escapes: bytes, tables: Tables, lanes: int) -> None:
        _check_lanes(lanes)
        if len(words) % 2 or len(words) < STATE_BYTES * lanes:
            raise FormatError(f"{len(words)} bytes of words are not whole words with {lanes} states before them")
        self.tables, self.lanes = tables, lanes
        self.state: Array = np.frombuffer(words, dtype="<u4", count=lanes).astype(np.uint32)
        if int(self.state.min()) < TOTAL:
            raise FormatError(f"a state starts at {self.state.min()}, below {TOTAL}")
        self.words = np.frombuffer(words, dtype="<u2", offset=STATE_BYTES * lanes).astype(np.uint32)
        self.at = 0
        self._escapes = _EscapeReader(escapes)

    def pull(self, indexes: ArrayLike) -> NDArray[np.int32]:
        """The next part: as many symbols (int32) as there are table indexes (uint8), in their order."""
        chosen = self.tables.checked(indexes)
        keys = chosen << PRECISION
        self._pull(keys)
        return self.symbols(chosen, keys)

    def symbols(self, chosen: NDArray[np.int64], keys: NDArray[np.int64]) -> NDArray[np.int32]:
        """The symbols of a part: `chosen`, its tables, and table << 16 plus slot of each; escapes are read."""
        tables = self.tables
        entries = tables._entries.take(keys)
        values = tables._lows.take(chosen) + entries
        for position in np.flatnonzero(entries == tables._sizes.take(chosen) - 1).tolist():
            values[position] = self._escapes.read()
        return values.astype(np.int32, copy=False)

    def _pull(self, keys: NDArray[np.int64]) -> None:
        """Step through one part; `keys` comes with table << 16 and leaves with the slot added."""
        lanes, words, at, end = self.lanes, self.words, self.at, self.words.size
        state: Array = self.state
        sixteen, mask, bottom = np.uint32(PRECISION), np.uint32(TOTAL - 1), np.uint32(TOTAL)
        high, found, offset = np.empty_like(state), np.empty_like(state), np.empty_like(state)
        empty: Array = np.empty(lanes, dtype=bool)
        low: Array
        low, take = _low_halves(state), self.tables.slots.take
        right, left, both, multiply, add, less = (
            np.right_shift, np.left_shift, np.bitwise_and, np.multiply, np.add, np.less,
        )  # fmt: skip
        for first in range(0, keys.size, lanes):
            key = keys[first : first + lanes]
            if key.size < lanes:
                state, high, found, offset, empty, low = (
                    array[: key.size] for array in (state, high, found, offset, empty, low)
                )
            # x' = count * (x div 2^16) + x mod 2^16 - start
            add(key, low, key)
            take(key, None, found, "clip")
            both(found, mask, offset)
            right(found, sixteen, found)
            right(state, sixteen, high)
            multiply(found, high, state)
            add(state, offset, state)
            less(state, bottom, empty)
            (needy,) = empty.nonzero()
            if needy.size:
                if at + needy.size > end:
                    raise FormatError(f"the {end} words end {keys.size - first} symbols before the part does")
                state[needy] = left(state[needy], sixteen) | words[at : at + needy.size]
                at += needy.size
        self.at = at

    def finish(self) -> None:
        """Check that all words and escapes are used and the states are back at their start; FormatError if not."""
        if self.at != self.words.size:
            raise FormatError(f"{self.words.size - self.at} words are left over")
        if bool((self.state != TOTAL).any()):
            raise FormatError("the states do not return to their start: words or tables are not those of the encoder")
        self._escapes.finish()


def _check_lanes(lanes: int) -> None:
    if lanes not in (1, 2, 4, 8, 16, 32, 64):
        raise ConfigError(f"{lanes} lanes are not a power of two in 1..{MAX_LANES}")


def _low_halves(state: Array) -> NDArray[np.uint16]:
    """The low 16 bits of each state, as a view that follows it."""
    return state.view(np.uint16)[::2] if np.little_endian else state.view(np.uint16)[1::2]


def _pack_escapes(values: NDArray[np.int64]) -> bytes:
    """Exp-Golomb codes of order 0 of zigzag(value), most significant bit first, zeros up to the last byte."""
    codes = [bin(((value << 1) ^ (value >> 63)) + 1)[2:] for value in values.tolist()]
    bits = "".join("0" * (len(code) - 1) + code for code in codes)
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big") if bits else b""


class _EscapeReader:
    """A cursor over the bits `_pack_escapes` made."""

    def __init__(self, data: bytes) -> None:
        self._bits = (np.unpackbits(np.frombuffer(data, dtype=np.uint8)) + 48).tobytes()
        self._at = 0

    def read(self) -> int:
        lead = self._bits.find(b"1", self._at, self._at + MAX_ESCAPE_ZEROS + 1)
        end = 2 * lead - self._at + 1
        if lead < 0 or end > len(self._bits):
            raise FormatError(f"no escape code at bit {self._at} of {len(self._bits)}")
        folded = int(self._bits[lead:end], 2) - 1
        if folded > 2**32 - 1:
            raise FormatError(f"the escape code at bit {self._at} leaves int32")
        self._at = end
        return (folded >> 1) ^ -(folded & 1)

    def finish(self) -> None:
        if len(self._bits) - self._at >= 8 or b"1" in self._bits[self._at :]:
            raise FormatError(f"{len(self._bits) - self._at} bits of escape codes are left over")
