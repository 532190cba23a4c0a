"""Sizes: what sized archives say of their chunks is what they hold, saves requests, and finds swapped chunks."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import serving
from test_archive import Shard, content, make, manifest

from ditic_stream import _layout, _zip
from ditic_stream._layout import _of_use
from ditic_stream._shard import ShardReader
from ditic_stream._sizes import largest, pack_sizes, unpack_sizes
from ditic_stream.archive import ShardWriter, create_archive, open_archive, pack_zip
from ditic_stream.config import GridConfig
from ditic_stream.errors import ChecksumError, FormatError, UnsupportedVersionError
from ditic_stream.geometry import TileKey, Window
from ditic_stream.manifest import KEY, Image, Manifest
from ditic_stream.verify import verify


def made(path: Path, *, bands: int = 5, planes: int = 2, height: int = 1100, width: int = 2100) -> Path:
    """A sized archive: 5 x 9 tiles in shards of 1, unless another size gives larger ones."""
    with create_archive(path, replace(manifest(height, width, bands, planes=planes), format=2)) as writer:
        for shard in writer.todo():
            writer.put_shard(shard, *noisy(writer, shard))
        writer.finish()
    return path


def noisy(writer: ShardWriter, shard: TileKey) -> Shard:
    """`content` with masks that no codec makes shorter, each another one, and every fourth of zeros."""
    records, masks, preview = content(writer, shard)
    for key in masks or ():
        assert masks is not None
        rng = np.random.default_rng([key.row, key.col, 2])
        masks[key] = rng.integers(0, 256, masks[key].shape, np.uint8) * np.uint8((key.row + key.col) % 4 > 0)
    return records, masks, preview


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 2 x 2 tiles, two mask planes, five bands."""
    path = made(tmp_path_factory.mktemp("sizes") / "a.ditic", height=2000, width=2100)
    pack_zip(path, path.with_suffix(".ditic.zip"))
    return path


@pytest.fixture
def copy(archive: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(archive, tmp_path / "a.ditic"))


def exchange(one: Path, two: Path) -> None:
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


def test_what_is_read_by_the_sizes_is_what_was_put(archive: Path) -> None:
    for path in (archive, archive.with_suffix(".ditic.zip")):
        assert verify(path).ok
        with open_archive(path) as opened, open_archive(archive) as writer:
            for shard in opened.grid.shards():
                reader = opened.shard(shard)
                sizes = reader.sizes
                assert sizes is not None
                assert sizes == ShardReader(opened.store, opened.layout, shard).measured()
                records, masks, preview = noisy(writer, shard)  # type: ignore[arg-type]
                assert masks is not None
                assert (reader.preview() == preview).all()
                assert (reader.preview([1]) == preview[3:]).all()
                for key, data in records.items():
                    assert opened.store.get(*reader.record_range(key)) == data  # type: ignore[misc]
                    assert opened.record(key).key == key
                    for plane in range(2):
                        assert (reader.mask(key, plane) == masks[key][plane]).all()
                assert reader.sizes is sizes, "they were trusted to the end"


def test_any_zarr_reader_has_the_preview_of_all_bands(archive: Path) -> None:
    group = zarr.open_group(archive, mode="r")
    assert sorted(group.array_keys()) == ["mask", "preview", "records"]
    with open_archive(archive) as opened:
        assert group["preview"].shape == (5, 32, 33)
        np.testing.assert_array_equal(group["preview"][:], opened.preview())


@pytest.mark.parametrize(
    ("image", "planes", "sized"),
    [
        ((700, 900, 3), 0, False),
        ((700, 900, 3), 1, True),
        ((700, 900, 4), 0, True),
        ((700, 900, 2), 0, True),
        ((700, 900, 1), 0, False),
        ((4096, 4096, 1), 0, True),
        ((4096, 3840, 3), 0, False),
    ],
)
def test_an_archive_says_the_sizes_of_its_chunks_where_that_is_of_use(
    image: tuple[int, int, int], planes: int, sized: bool
) -> None:
    height, width, bands = image
    shape = Image(height=height, width=width, bands=bands, dtype="uint8")
    assert _of_use(shape, GridConfig(tile=256), planes) == sized


def test_a_later_format_is_refused_by_its_number(archive: Path) -> None:
    with open_archive(archive) as opened:
        document = {**opened.attributes[KEY], "format": 4}
    with pytest.raises(UnsupportedVersionError, match="archive has format 4; this release reads up to 3"):
        Manifest.from_json(document)


def test_every_changed_byte_of_the_sizes_is_found_and_costs_no_tile(copy: Path) -> None:
    place = copy / "records/sizes/0/0"
    data = place.read_bytes()
    with open_archive(copy) as opened:
        right = opened.mask(Window(row=0, col=0, height=300, width=300))
    for at in range(0, len(data), max(len(data) // 40, 1)):
        place.write_bytes(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :])
        report = verify(copy)
        assert [problem.name for problem in report.problems] == ["records/sizes/0/0"]
        assert not report.damaged
        with open_archive(copy) as opened:
            opened.record(TileKey(3, 3))
            np.testing.assert_array_equal(opened.mask(Window(row=0, col=0, height=300, width=300)), right)
    place.unlink()
    assert [problem.kind for problem in verify(copy).problems] == ["missing"]
    with open_archive(copy) as opened:
        opened.record(TileKey(3, 3))


def test_sizes_of_other_shards_are_found_and_not_trusted(copy: Path) -> None:
    place = copy / "records/sizes/0/0"
    with open_archive(copy) as opened:
        layout, block = opened.layout, TileKey(0, 0)
        found = unpack_sizes(place.read_bytes(), layout, block)
        one, two = TileKey(0, 0), TileKey(1, 1)
        found[one], found[two] = found[two], found[one]
        place.write_bytes(pack_sizes(layout, block, found))
    assert [(problem.kind, problem.name) for problem in verify(copy).problems] == [("metadata", "records/sizes/0/0")]
    with open_archive(copy) as opened:
        _, masks, _ = noisy(opened, one)  # type: ignore[arg-type]
        assert masks is not None
        opened.record(TileKey(1, 1))
        for key in opened.grid.tiles_of(one):
            assert (opened.shard(one).mask(key, 1) == masks[key][1]).all()


def test_exchanged_masks_and_previews_are_found_out_when_they_are_read(copy: Path) -> None:
    exchange(copy / "mask/c/0/0/0", copy / "mask/c/0/1/1")
    exchange(copy / "preview/c/0/0/1", copy / "preview/c/0/2/2")
    with open_archive(copy) as opened:
        with pytest.raises(ChecksumError, match="mask or preview of shard 0,0 belong to other records"):
            opened.mask(Window(row=0, col=256, height=9, width=9))
        with pytest.raises(ChecksumError, match="mask or preview of shard 2,2 belong to other records"):
            opened.shard(TileKey(2, 2)).preview()
        opened.mask(Window(row=1100, col=1100, height=9, width=9))
    report = verify(copy)
    assert {problem.kind for problem in report.problems} == {"seal"}
    assert {key.row // 2 * 10 + key.col // 2 for key in report.damaged} == {0, 11, 1, 22}


def test_an_exchanged_preview_of_a_scene_without_a_mask_is_found_out_too(tmp_path: Path) -> None:
    path = made(tmp_path / "a.ditic", planes=0)
    exchange(path / "preview/c/0/0/1", path / "preview/c/0/2/2")
    with open_archive(path) as opened, pytest.raises(ChecksumError, match="the preview of shard 2,2 belongs to other"):
        opened.preview_of = opened.shard(TileKey(2, 2)).preview()  # type: ignore[attr-defined]


def test_two_chunks_of_one_length_exchanged_in_a_mask_are_found_out(copy: Path) -> None:
    """Their index says the same, and each passes its own checksum."""
    with open_archive(copy) as opened:
        shard = TileKey(0, 0)
        sizes = opened.shard(shard).sizes
        assert sizes is not None
        found = [(place, span) for place, span in enumerate(sizes.masks) if span is not None]
        (place, one), (_, two) = next(
            (a, b) for a in found for b in found if a[1] < b[1] and a[1][1] == b[1][1]
            and sizes.mask_sums[a[0]] != sizes.mask_sums[b[0]]
        )  # fmt: skip
        key = next(key for key in opened.grid.tiles_of(shard) if opened.layout.slot(key) == place % 4)
    path = copy / "mask/c/0/0/0"
    data = bytearray(path.read_bytes())
    data[one[0] : sum(one)], data[two[0] : sum(two)] = data[two[0] : sum(two)], data[one[0] : sum(one)]
    path.write_bytes(data)
    with open_archive(copy) as opened, pytest.raises(ChecksumError, match="belong to other records"):
        opened.shard(shard).mask(key, place // 4)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=400), st.integers(0, 400), st.integers(1, 255))
def test_hostile_sizes_are_refused_and_never_more_than_a_format_error(
    archive: Path, noise: bytes, at: int, change: int
) -> None:
    from ditic_stream.bitstream import crc32c

    with open_archive(archive) as opened:
        layout, block = opened.layout, TileKey(0, 0)
        good = (archive / "records/sizes/0/0").read_bytes()
        assert len(good) <= largest(layout, block)
        body = bytearray(good[:-4])
        body[at % len(body)] ^= change
        for data in (bytes(body), good[:18] + noise, good[: at % len(good)]):
            sealed = data + crc32c(data).to_bytes(4, "little")
            try:
                found = unpack_sizes(sealed, layout, block)
            except FormatError:
                continue
            assert found.keys() == set(layout.grid.shards())


def test_several_blocks_read_in_one_request_more_and_verify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_layout, "BLOCK", 2)
    path = made(tmp_path / "a.ditic", planes=1, bands=1, height=8192, width=8192)
    pack_zip(path, tmp_path / "a.ditic.zip")
    assert len(list((path / "records/sizes").rglob("[0-9]"))) == 2 + 4
    window = Window(row=300, col=300, height=512, width=512)
    with serving(tmp_path) as server, open_archive(path) as near:
        for name in ("a.ditic", "a.ditic.zip"):
            assert verify(tmp_path / name).ok
            server.clear()
            with open_archive(f"{server.url}/{name}") as far:
                assert len(server.requests) <= 2
                server.clear()
                keys = [TileKey(row, col) for row in range(5) for col in range(5)]
                inside = [TileKey(row, col) for row in (1, 2, 3) for col in (1, 2, 3)]
                far.fetch(keys, masks=inside)
                assert len(server.requests) <= 4
                for key in keys:
                    assert far.record(key) == near.record(key)
                np.testing.assert_array_equal(far.mask(window), near.mask(window))
                assert len(server.requests) <= 4


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("few", [5, 100])
@pytest.mark.parametrize("letters", [10, 5000, 60_000])
def test_a_zip_opens_with_two_requests_whatever_its_manifest_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, few: int, letters: int
) -> None:
    monkeypatch.setattr(_zip, "FEW", few)
    chance = np.random.default_rng(0)
    text = "".join(map(chr, chance.integers(97, 123, letters)))
    base = manifest(1100, 2100)
    made = replace(base, format=number, source=replace(base.source, metadata={"driver": "tiff", "note": text}))
    path = make(tmp_path / "a.ditic", made)
    pack_zip(path, tmp_path / "a.zip")
    assert verify(tmp_path / "a.zip").ok
    with serving(tmp_path) as server, open_archive(f"{server.url}/a.zip") as far:
        assert far.manifest.source.metadata["note"] == text
        assert len(server.requests) <= 2
        assert server.sent <= 20_000 + 1.1 * letters
        server.clear()
        far.fetch([TileKey(1, 1)], masks=[TileKey(1, 1)])
        assert len(server.requests) <= (2 if number == 2 else 4)


@pytest.mark.parametrize("number", [1, 2])
def test_a_zip_of_many_objects_opens_with_two_requests(tmp_path: Path, number: int) -> None:
    """Its directory is longer than what is read first."""
    path = make(tmp_path / "a.ditic", replace(manifest(256, 256 * 8 * 70, planes=0), format=number))
    pack_zip(path, tmp_path / "a.zip")
    with serving(tmp_path) as server, open_archive(f"{server.url}/a.zip") as far:
        assert len(server.requests) == 2
        assert len(list(far.store.names())) > 140
        far.record(TileKey(0, 200))


def test_a_run_that_resumes_an_archive_writes_the_same_sizes(archive: Path, tmp_path: Path) -> None:
    with open_archive(archive) as opened:
        settings = replace(opened.manifest, complete=False)
    for stop in (1, 100):
        with create_archive(tmp_path / "a.ditic", settings) as writer:
            for place, shard in enumerate(writer.todo()):
                if place == stop:
                    break
                writer.put_shard(shard, *noisy(writer, shard))
            else:
                writer.finish()
    for place in archive.rglob("*"):
        if place.is_file():
            assert (tmp_path / "a.ditic" / place.relative_to(archive)).read_bytes() == place.read_bytes()
