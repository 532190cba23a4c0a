"""The manifest: it survives JSON, its digest misses nothing, and hostile ones raise FormatError in bounded memory."""

from __future__ import annotations

import base64
import json
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditic_stream import manifest as module
from ditic_stream.config import GridConfig
from ditic_stream.errors import ChecksumError, ConfigError, FormatError, UnsupportedVersionError
from ditic_stream.manifest import KEY, Image, Manifest, canonical_json, digest, parse_json

GOLDEN = Path(__file__).parent / "golden" / "manifest-1.json"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)


def golden() -> Manifest:
    attributes = json.loads(GOLDEN.read_text())
    return Manifest.from_json(attributes.pop(KEY), attributes)


def through_json(manifest: Manifest) -> Manifest:
    return Manifest.from_json(parse_json(canonical_json(manifest.to_json())), manifest.attributes)


def sealed(document: dict[str, Any], attributes: dict[str, Any] | None = None) -> dict[str, Any]:
    """`document` with a digest that fits: what a hostile writer makes."""
    return {**document, "digest": digest(document, attributes or {})}


def test_golden_manifest_keeps_its_bytes() -> None:
    stored = json.loads(GOLDEN.read_text())
    manifest = golden()
    assert canonical_json({**manifest.attributes, KEY: manifest.to_json()}) == canonical_json(stored)
    assert manifest.archive_id.hex() == stored[KEY]["archive_id"]
    assert manifest.image == Image(height=700, width=1100, bands=2, dtype="uint16")
    assert manifest.planes == 1


@settings(deadline=None)
@given(
    st.dictionaries(st.text(max_size=10).map(lambda name: f"x-{name}"), JSON, max_size=5),  # none the schema knows
    st.dictionaries(st.text(max_size=10).filter(lambda name: name != KEY), JSON, max_size=3),
    st.lists(st.text(max_size=30), max_size=3),
    st.booleans(),
)
def test_any_metadata_survives_json(
    metadata: dict[str, Any], attributes: dict[str, Any], warnings: list[str], complete: bool
) -> None:
    manifest = golden()
    source = replace(manifest.source, metadata=metadata, warnings=tuple(warnings))
    manifest = replace(manifest, source=source, attributes=attributes, complete=complete)
    assert through_json(manifest) == manifest


def test_a_source_is_told_by_its_sha256_or_its_etag_and_by_no_other_word() -> None:
    manifest = golden()
    far = replace(manifest, source=replace(manifest.source, sha256=None, etag="33a64df5-2"))
    assert through_json(far) == far
    assert "sha256" not in far.to_json()["source"]
    assert (
        far.archive_id != manifest.archive_id != replace(far, source=replace(far.source, etag="33a64df5-3")).archive_id
    )
    for sha256, etag in ((None, None), (manifest.source.sha256, "a"), (None, 'a"'), (None, "a b"), (None, "")):
        with pytest.raises(ConfigError, match="source"):
            replace(manifest, source=replace(manifest.source, sha256=sha256, etag=etag)).to_json()


def test_long_metadata_is_stored_deflated() -> None:
    manifest = golden()
    long = replace(manifest, source=replace(manifest.source, metadata={"wkt": "PROJCS[...]" * 500}))
    assert len(canonical_json(long.to_json())) < len(canonical_json(manifest.to_json())) + 100
    assert through_json(long) == long


def test_the_digest_misses_no_character() -> None:
    text = canonical_json(golden().to_json()).decode()
    for place, character in enumerate(text):
        changed = text[:place] + ("7" if character != "7" else "3") + text[place + 1 :]
        try:
            document = parse_json(changed.encode())
        except FormatError:
            continue
        with pytest.raises(FormatError):
            Manifest.from_json(document, golden().attributes)


def test_the_digest_covers_the_other_attributes() -> None:
    document = golden().to_json()
    with pytest.raises(ChecksumError, match="digest"):
        Manifest.from_json(document, {"proj:code": "EPSG:32634"})
    with pytest.raises(ChecksumError, match="digest"):
        Manifest.from_json(document)


@pytest.mark.parametrize(
    "change",
    [
        {"image": Image(height=701, width=1100, bands=2, dtype="uint16")},
        {"grid": GridConfig(tile=256, overlap=32)},
        {"shard": 2},
        {"q": 5544},
    ],
)
def test_the_archive_id_changes_with_every_setting(change: dict[str, Any]) -> None:
    manifest = golden()
    assert replace(manifest, **change).archive_id != manifest.archive_id


def test_the_archive_id_does_not_change_when_the_archive_is_complete() -> None:
    manifest = golden()
    assert manifest.finished().complete
    assert manifest.finished().archive_id == manifest.archive_id
    assert manifest.differences(manifest.finished()) == []


def test_archives_whose_q_is_spelt_alike_in_unlike_steps_have_unlike_ids() -> None:
    best, low = replace(golden(), q=11088, format=1), replace(golden(), q=112, format=3)
    assert best.to_json()["quality"]["q"] == low.to_json()["quality"]["q"] == 112
    assert best.archive_id != low.archive_id
    assert best.archive_id == replace(best, format=2).archive_id


def test_differences_name_what_keeps_a_run_from_going_on() -> None:
    manifest = golden()
    other = replace(manifest, quality=60, q=6608, numerics={"device": "cuda"})
    assert manifest.differences(other) == [
        "quality (50 there, 60 here)",
        "q (5445 there, 6608 here)",
        "numerics ({'device': 'cpu'} there, {'device': 'cuda'} here)",
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"quality": 0},
        {"q": 113 * 99},
        {"q": 11089, "format": 3},
        {"q": -1, "format": 3},
        {"shard": 3},
        {"image": Image(height=0, width=1, bands=2, dtype="uint16")},
        {"image": Image(height=2**24 + 1, width=1, bands=2, dtype="uint16")},
        {"image": Image(height=1, width=1, bands=1025, dtype="uint16")},
        {"image": Image(height=1, width=1, bands=2, dtype="float64")},
        {"image": Image(height=1, width=1, bands=3, dtype="uint16")},
        {"image": Image(height=1, width=1, bands=2, dtype="uint8")},
        {"numerics": {"a": float("nan")}},
        {"attributes": {"x": float("inf")}},
        {"attributes": {"x": object()}},
        {"radiometry": {"bands": [], "planes": []}},
    ],
)
def test_manifest_out_of_bounds_is_not_written(change: dict[str, Any]) -> None:
    with pytest.raises((ConfigError, FormatError)):
        replace(golden(), **change).to_json()


def damaged() -> list[tuple[str, Any]]:
    """Manifests with good digests and bad content."""
    base = replace(golden(), attributes={}).to_json()

    def change(*path: str, to: Any) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(json.dumps(base))
        inner = document
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] = to
        return document

    without = {name: value for name, value in base.items() if name != "grid"}
    return [
        ("no object", []),
        ("nothing", None),
        ("no field", {}),
        ("grid is missing", without),
        ("one field too many", change("surprise", to=1)),
        ("huge", change("image", "height", to=10**30)),
        ("a fraction", change("image", "height", to=700.5)),
        ("negative", change("image", "width", to=-5)),
        ("true is no number", change("image", "width", to=True)),
        ("tile", change("grid", "tile", to=257)),
        ("tile of text", change("grid", "tile", to="256")),
        ("overlap beyond half a tile", change("grid", "overlap", to=160)),
        ("path in a name", change("source", "name", to="../../etc/passwd")),
        ("name of a model with a path", change("model", "name", to="../x")),
        ("sha256", change("source", "sha256", to="00")),
        ("nodata", change("radiometry", "bands", to=[{**base["radiometry"]["bands"][0], "nodata": "NaN"}] * 2)),
        ("another id", change("archive_id", to="0" * 16)),
        ("format 0", change("format", to=0)),
    ]


@pytest.mark.parametrize(("name", "document"), damaged(), ids=[name for name, _ in damaged()])
def test_damaged_manifests_raise_format_error(name: str, document: Any) -> None:
    with pytest.raises(FormatError):
        Manifest.from_json(sealed(document) if isinstance(document, dict) else document)


def test_a_later_format_says_so() -> None:
    with pytest.raises(UnsupportedVersionError, match="format 4"):
        Manifest.from_json({"format": 4, "unknown": []})


def with_packed(packed: str) -> dict[str, Any]:
    document = replace(golden(), attributes={}).to_json()
    source = {name: value for name, value in document["source"].items() if not name.startswith("metadata")}
    return sealed({**document, "source": {**source, "metadata_deflate": packed}})


@pytest.mark.parametrize("plain", [b"[]", b"nonsense", b"\xff\xfe", b'{"a":NaN}', b"[" * 100_000])
def test_packed_metadata_that_is_no_object_raises_format_error(plain: bytes) -> None:
    with pytest.raises(FormatError):
        Manifest.from_json(with_packed(base64.b64encode(zlib.compress(plain)).decode()))


METADATA = {
    "driver": "tiff", "photometric": 2, "extrasamples": [2], "planar": False, "alpha": 3, "mask": True,
    "fields": [
        {"code": 270, "kind": 2, "text": "a scene"},
        {"code": 33550, "kind": 12, "values": [10.0, 10.0, 0.0]},
        {"code": 700, "kind": 1, "base64": "AAAA"},
    ],
    "exif": [{"code": 33434, "kind": 5, "values": [1, 200]}],
    "geo": {"epsg": 32633, "transform": [10.0, 0.0, 399960.0, 0.0, -10.0, 5900040.0], "gcps": 0},
}  # fmt: skip


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "damage",
    [
        {"geo": "x"},
        {"geo": None},
        {"geo": {"transform": ["x"] * 6}},
        {"geo": {"transform": [1, 2]}},
        {"geo": {"transform": [10**400] * 6}},
        {"geo": {"transform": [True] * 6}},
        {"geo": {"epsg": "4326"}},
        {"geo": {"epsg": [1]}},
        {"fields": 7},
        {"fields": [{"code": 270, "kind": 2, "text": 5}]},
        {"fields": [{"code": 270, "kind": 2}]},
        {"fields": [{"code": -1, "kind": 2, "text": "a"}]},
        {"exif": [{"code": 270, "kind": 99, "text": "a"}]},
        {"gps": {}},
        {"driver": 3},
        {"alpha": "2"},
        {"mask": 1},
    ],
    ids=str,
)
def test_source_metadata_that_no_reader_wrote_raises_format_error(damage: dict[str, Any], packed: bool) -> None:
    whole = replace(golden(), source=replace(golden().source, metadata=METADATA))
    assert through_json(whole) == whole
    metadata = {**METADATA, **damage}
    if packed:
        document = with_packed(base64.b64encode(zlib.compress(canonical_json(metadata))).decode())
    else:
        document = replace(golden(), attributes={}).to_json()
        document = sealed({**document, "source": {**document["source"], "metadata": metadata}})
    with pytest.raises(FormatError, match="source/metadata/"):
        Manifest.from_json(document)
    with pytest.raises(ConfigError, match="source/metadata"):
        replace(whole, source=replace(whole.source, metadata=metadata)).to_json()


@pytest.mark.parametrize("packed", ["", "!!!!", "AAAA", base64.b64encode(zlib.compress(b"{}")[:-1]).decode()])
def test_packed_metadata_that_does_not_inflate_raises_format_error(packed: str) -> None:
    with pytest.raises(FormatError):
        Manifest.from_json(with_packed(packed))


@pytest.mark.parametrize("plain", [bytes(2**26), b'{"a":[' + b"{}," * 5_000_000 + b"1]}"], ids=["zeros", "JSON"])
def test_a_bomb_in_the_metadata_is_not_inflated(plain: bytes) -> None:
    bomb = base64.b64encode(zlib.compress(plain, 9)).decode()
    document = with_packed(bomb)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=rf"longer than {max(2**20, 64 * len(bomb))} bytes"):
            Manifest.from_json(document)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("text", ["0" * 3_000_000, "0" * 900_000])
def test_metadata_that_deflates_beyond_the_bound_is_stored_as_it_is(text: str) -> None:
    manifest = replace(golden(), source=replace(golden().source, metadata={"wkt": text}))
    assert through_json(manifest) == manifest
    assert ("metadata" in manifest.to_json()["source"]) == (len(text) > 2**20)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff", b'{"a":Infinity}', b"[" * 100_000, b'{"a":' * 100_000, b"9" * 10_000]
)
def test_what_is_not_json_raises_format_error(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse_json(data)


def test_metadata_beyond_its_cap_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_MANIFEST", 10)
    with pytest.raises(FormatError, match="at most 10"):
        parse_json(b'{"a":1234567}')


def test_formats_1_and_2_count_q_in_sixteenths_of_a_level() -> None:
    document = golden().to_json()
    assert document["format"] == 1 and document["quality"]["q"] * 99 == golden().q
    with pytest.raises(ConfigError, match="q 5488 is no multiple of 99, which format 1 asks"):
        replace(golden(), q=5488).to_json()
    later = replace(golden(), q=5488, format=3)
    assert through_json(later) == later and later.to_json()["quality"]["q"] == 5488
    beyond = sealed({**document, "quality": {"quality": 50, "q": 113}}, golden().attributes)
    with pytest.raises(FormatError, match="113 is greater than the maximum of 112"):
        Manifest.from_json(beyond, golden().attributes)
    for number, q in ((2, 113), (1, -1), (3, 11089), (3, -1), (3, 5.5), (3, True), (3, "7"), (3, 1e400)):
        hostile = {**later.to_json(), "format": number, "quality": {"quality": 50, "q": q}}
        with pytest.raises(FormatError, match="manifest: quality/q: "):
            Manifest.from_json(hostile, golden().attributes)
