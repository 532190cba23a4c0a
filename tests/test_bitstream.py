"""Records: every field survives; every truncation, every flipped bit, every wrong place is refused by its name."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import google_crc32c
import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditic_stream import bitstream, rans, schemas, tiling
from ditic_stream.bitstream import (
    CODED,
    EMPTY,
    HEADER_BYTES,
    MAX_RECORD,
    Record,
    crc32c,
    pack_record,
    record_length,
    symbols_checksum,
    unpack_record,
)
from ditic_stream.errors import ChecksumError, ConfigError, FormatError, UnsupportedVersionError
from ditic_stream.geometry import TileKey

GOLDEN = Path(__file__).parent / "golden"
ID = bytes(range(8))
RECORD = Record(
    kind=CODED,
    key=TileKey(3, 513),
    archive_id=ID,
    lanes_log2=1,
    words=bytes.fromhex("0080090000000400"),
    escapes=b"\x16",
    coded=3,
    symbols_crc=0xDEADBEEF,
)


@st.composite
def records(draw: st.DrawFn) -> Record:
    key = TileKey(draw(st.integers(0, 65535)), draw(st.integers(0, 65535)))
    archive_id = draw(st.binary(min_size=8, max_size=8))
    if draw(st.booleans()):
        return Record(kind=EMPTY, key=key, archive_id=archive_id)
    lanes_log2, number = draw(st.integers(0, 6)), draw(st.integers(0, 200))
    return Record(
        kind=CODED,
        key=key,
        archive_id=archive_id,
        lanes_log2=lanes_log2,
        words=bytes(4 << lanes_log2) + bytes(2 * draw(st.integers(0, number))),
        escapes=draw(st.binary(max_size=number)),
        coded=number,
        symbols_crc=draw(st.integers(0, 2**32 - 1)),
    )


@settings(deadline=None)
@given(records(), st.binary(max_size=50))
def test_any_record_survives_and_tells_its_length(record: Record, padding: bytes) -> None:
    data = pack_record(record)
    assert unpack_record(data, archive_id=record.archive_id, key=record.key) == record
    assert record_length(data + padding) == len(data)


def test_golden_records_keep_their_bytes() -> None:
    for name, record in (
        ("record-1-coded", RECORD),
        ("record-1-empty", Record(kind=EMPTY, key=TileKey(65535, 0), archive_id=ID)),
    ):
        stored = bytes.fromhex((GOLDEN / f"{name}.hex").read_text())
        assert pack_record(record) == stored
        assert unpack_record(stored) == record


def test_the_format_page_shows_the_golden_record_and_its_header() -> None:
    page = (Path(__file__).parent.parent / "docs" / "format.md").read_text(encoding="utf-8")
    assert (GOLDEN / "record-1-coded.hex").read_text().strip() in page.replace(" ", "")
    rows = [line.split("|")[1:4] for line in page.split("## 5. Records")[1].splitlines() if line.startswith("| ")]
    fields = [(int(at), int(size)) for at, size, _ in rows if at.strip().isdigit() and size.strip().isdigit()]
    assert [at for at, _ in fields] == [sum(size for _, size in fields[:place]) for place in range(len(fields))]
    assert sum(size for _, size in fields) + 4 == HEADER_BYTES


def test_headers_stay_within_their_budget() -> None:
    assert len(pack_record(RECORD)) - len(RECORD.words) - len(RECORD.escapes) == HEADER_BYTES <= 48
    assert len(pack_record(Record(kind=EMPTY, key=TileKey(0, 0), archive_id=ID))) == 22


@pytest.mark.parametrize("record", [RECORD, Record(kind=EMPTY, key=TileKey(1, 2), archive_id=ID)])
def test_truncated_record_raises_format_error(record: Record) -> None:
    data = pack_record(record)
    for cut in range(len(data)):
        with pytest.raises(FormatError):
            unpack_record(data[:cut])
    with pytest.raises(FormatError):
        unpack_record(data + b"\0")


@pytest.mark.parametrize("record", [RECORD, Record(kind=EMPTY, key=TileKey(1, 2), archive_id=ID)])
def test_any_flipped_bit_raises_format_error_and_names_the_tile(record: Record) -> None:
    data = pack_record(record)
    for place in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[place] ^= 1 << bit
            with pytest.raises(FormatError) as caught:
                unpack_record(bytes(flipped), archive_id=ID, key=record.key)
            assert caught.value.key == str(record.key)


def test_record_of_another_tile_or_archive_is_named() -> None:
    data = pack_record(RECORD)
    with pytest.raises(ChecksumError, match="tile 3,514: record is that of tile 3,513"):
        unpack_record(data, key=TileKey(3, 514))
    with pytest.raises(ChecksumError, match=r"tile 3,513: .* other settings"):
        unpack_record(data, archive_id=b"another!")


def resealed(data: bytearray) -> bytes:
    """`data` with a checksum that fits: what a hostile writer makes."""
    return bytes(data[:-4]) + crc32c(bytes(data[:-4])).to_bytes(4, "little")


def test_record_of_a_later_format_says_so() -> None:
    data = bytearray(pack_record(RECORD))
    data[3] = 2
    with pytest.raises(UnsupportedVersionError):
        unpack_record(resealed(data))


@pytest.mark.parametrize(
    ("place", "value"),
    [(4, 2), (5, 7), (5, 200), (18, 0), (21, 255), (22, 255), (25, 255), (26, 255), (29, 255), (22, 7)],
)
def test_hostile_headers_with_good_checksums_raise_format_error_without_memory(place: int, value: int) -> None:
    data = bytearray(pack_record(RECORD))
    data[place] = value
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            unpack_record(resealed(data))
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


def test_an_empty_record_that_carries_something_is_refused() -> None:
    data = bytearray(pack_record(Record(kind=EMPTY, key=TileKey(0, 0), archive_id=ID)))
    data[5] = 1
    with pytest.raises(FormatError, match="EMPTY record carries"):
        unpack_record(resealed(data))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=100), st.booleans())
def test_any_bytes_raise_format_error(data: bytes, dressed: bool) -> None:
    with pytest.raises(FormatError):
        unpack_record(b"DTR\1\1" + data if dressed else data)


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": 2},
        {"key": TileKey(65536, 0)},
        {"key": TileKey(0, -1)},
        {"archive_id": b"short"},
        {"lanes_log2": 7},
        {"words": b"\0" * 6},
        {"words": b"\0" * 9},
        {"words": b"\0" * 16},
        {"escapes": b"\0" * 30},
        {"coded": bitstream.MAX_CODED + 1},
        {"symbols_crc": 2**32},
        {"kind": EMPTY},
    ],
)
def test_record_with_a_field_out_of_bounds_is_not_built(fields: dict[str, Any]) -> None:
    values = {name: getattr(RECORD, name) for name in Record.__dataclass_fields__}
    with pytest.raises(ConfigError):
        Record(**{**values, **fields})


def test_bounds_are_those_of_coder_and_grid() -> None:
    assert 1 << bitstream.MAX_LANES_LOG2 == rans.MAX_LANES
    assert tiling.MAX_SIDE == (bitstream.MAX_INDEX + 1) * 256
    assert MAX_RECORD < 2**31


def test_symbols_checksum_is_crc32c_of_int16_little_endian() -> None:
    y, z = np.arange(-6, 6, dtype=np.int32).reshape(3, 4), np.array([7, -7])
    joined = np.concatenate([y.ravel(), z]).astype("<i2").tobytes()
    assert symbols_checksum(y, z) == google_crc32c.value(joined)
    assert symbols_checksum(y.T) != symbols_checksum(y)
    assert symbols_checksum() == symbols_checksum(np.empty(0, np.int32)) == 0
    assert crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C (RFC 3720, B.4, and every catalogue)


def test_symbols_that_leave_int16_raise_format_error() -> None:
    for value in (2**15, -(2**15) - 1, 2**31 - 1):
        with pytest.raises(FormatError, match="leave int16"):
            symbols_checksum(np.array([0, value]))


@settings(deadline=None)
@given(records())
def test_record_schema_describes_every_record(record: Record) -> None:
    jsonschema.validate(record.to_json(), schemas.load("record-1"))
