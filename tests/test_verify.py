"""Verify: any flipped byte of any file, any lost, swapped or shortened piece is found, and named to the tile."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ditic_stream import _shard
from ditic_stream import verify as module
from ditic_stream._layout import group_document
from ditic_stream.archive import create_archive, open_archive, pack_zip
from ditic_stream.bitstream import CODED, EMPTY, Record, pack_record
from ditic_stream.config import GridConfig
from ditic_stream.errors import DesyncError, SourceError
from ditic_stream.geometry import TileKey
from ditic_stream.manifest import KEY, Manifest
from ditic_stream.tiling import Grid
from ditic_stream.verify import Problem, Report, verify

GOLDEN = Path(__file__).parent / "golden" / "manifest-1.json"


def make(path: Path, height: int, width: int, seed: int = 0) -> Path:
    """A complete archive of coded and empty tiles with a mask plane, and its zip beside it."""
    attributes = json.loads(GOLDEN.read_text())
    base = Manifest.from_json(attributes.pop(KEY), attributes)
    grid = GridConfig(tile=256, overlap=64)
    shard = Grid(height=height, width=width, config=grid).shard
    settings = replace(base, image=replace(base.image, height=height, width=width), grid=grid, shard=shard)
    with create_archive(path, settings) as writer:
        layout = writer.layout
        for one in writer.todo():
            records, masks = {}, {}
            for key in layout.grid.tiles_of(one):
                rng = np.random.default_rng([key.row, key.col, seed])
                masks[key] = (rng.random((1, *layout.grid.core(key).shape)) > 0.999).astype(np.uint8)
                record = Record(kind=EMPTY, key=key, archive_id=layout.archive_id)
                if (key.row + key.col) % 3 < 2:
                    words = bytes(4) + rng.bytes(2 * int(rng.integers(4, 20)))
                    record = replace(record, kind=CODED, words=words, escapes=b"\x16", coded=40, symbols_crc=7)
                records[key] = pack_record(record)
            preview = np.random.default_rng([*layout.preview_part(one), one.row, one.col]).integers(0, 256, 9)
            writer.put_shard(one, records, masks, np.resize(preview.astype(np.uint8), layout.preview_part(one)))
        writer.finish()
    pack_zip(path, path.with_suffix(".zip"))
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiles, two shards."""
    return make(tmp_path_factory.mktemp("small") / "scene.ditic", 60, 300)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine by eight tiles in shards of two by two."""
    return make(tmp_path_factory.mktemp("large") / "scene.ditic", 2100, 1900)


@pytest.fixture
def copy(large: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(large, tmp_path / "copy.ditic"))


def objects(path: Path) -> list[Path]:
    return sorted(place for place in path.rglob("*") if place.is_file())


def spans(path: Path) -> Iterator[tuple[str, int, int, TileKey]]:
    """(object, first byte, end, tile) of every byte that a tile cannot be read without: its record and its mask, the
    index of the masks, and the seal, without which no mask can be trusted."""
    with open_archive(path) as archive:
        for shard in archive.grid.shards():
            reader = archive.shard(shard)
            for key in archive.grid.tiles_of(shard):
                yield archive.layout.records(shard), 0, _shard.SEAL_BYTES, key
                mask = archive.layout.mask(shard)
                size = archive.store.size(mask) or 0
                yield mask, size - _shard.index_bytes(archive.grid.shard**2), size, key
                for name, found in (
                    (archive.layout.records(shard), reader._record_spans()),
                    (archive.layout.mask(shard), reader._mask_spans()),
                ):
                    span = found[archive.layout.slot(key)]
                    if span:
                        yield name, span[0], span[0] + span[1], key


def tile_of_object(path: Path) -> dict[str, TileKey]:
    """The tile, by the name of each object but the zarr.json files, of an archive with shards of one tile."""
    with open_archive(path) as archive:
        return {name: shard for shard in archive.grid.shards() for name in archive.layout.objects(shard)}


def check_names(report: Report, tile: TileKey | None, owner: TileKey | None, where: str) -> None:
    """owner: the tile that is damaged, if one is.  tile: the one whose shard is, which every problem has to name."""
    assert not report.ok, where
    assert report.damaged == (() if owner is None else (owner,)), f"{where}: {report.problems}"
    for problem in report.problems:
        if owner is None and tile is not None:
            assert problem.shard == tile, f"{where}: {problem}"
            assert f"(tile {tile})" in problem.message
        elif owner is None:
            assert problem.shard is None, f"{where}: {problem}"


def flip(data: bytes, place: int, bit: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


def test_a_whole_archive_has_no_problem(small: Path, large: Path) -> None:
    for path in (small, large):
        for form in (path, path.with_suffix(".zip")):
            report = verify(form)
            assert report.problems == ()
            assert report.ok
            assert report.bytes == sum(place.stat().st_size for place in objects(path))
    assert report.tiles == 72


every = pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)])
"""Every seventh byte, or each."""


@every
def test_any_flipped_byte_of_a_folder_is_found_and_named(small: Path, tmp_path: Path, step: int) -> None:
    path = Path(shutil.copytree(small, tmp_path / "copy.ditic"))
    owners = {(name, at): key for name, first, end, key in spans(small) for at in range(first, end)}
    tiles = tile_of_object(small)
    rng = np.random.default_rng(1)
    tried = 0
    for place in objects(path):
        name, data = str(place.relative_to(path)), place.read_bytes()
        for at in range(0, len(data), step):
            place.write_bytes(flip(data, at, int(rng.integers(8))))
            report = verify(path)
            check_names(report, tiles.get(name), owners.get((name, at)), f"byte {at} of {name}")
            assert {problem.name for problem in report.problems} == {name}
            tried += 1
        place.write_bytes(data)
    assert tried >= verify(path).bytes // step


@every
def test_any_flipped_byte_of_a_zip_is_found_and_named(small: Path, tmp_path: Path, step: int) -> None:
    whole = small.with_suffix(".zip").read_bytes()
    path = tmp_path / "copy.zip"
    path.write_bytes(whole)
    with open_archive(path) as archive:
        store = archive.store
        owners, tiles = {}, dict[int, TileKey]()
        for name, tile in tile_of_object(path).items():
            size = len(store.get(name, 0, store.size(name) or 0))
            start = store._starts[name]  # type: ignore[attr-defined]
            tiles.update(dict.fromkeys(range(start, start + size), tile))
        for name, first, end, key in spans(path):
            store.get(name, 0, 1)
            start = store._starts[name]  # type: ignore[attr-defined]
            owners.update({start + at: key for at in range(first, end)})
    rng = np.random.default_rng(2)
    for at in range(0, len(whole), step):
        path.write_bytes(flip(whole, at, int(rng.integers(8))))
        report = verify(path)
        check_names(report, tiles.get(at), owners.get(at), f"byte {at}")


def test_every_other_tile_reads_when_a_byte_of_the_zip_wrapper_is_flipped(small: Path, tmp_path: Path) -> None:
    whole = small.with_suffix(".zip").read_bytes()
    path = tmp_path / "copy.zip"
    for at in range(whole.index(b"PK\1\2"), len(whole), 3):
        path.write_bytes(flip(whole, at, 0))
        with open_archive(path) as archive:
            for key in (TileKey(0, 0), TileKey(0, 1)):
                archive.record(key)


def kinds(problems: tuple[Problem, ...]) -> set[tuple[str, str | None]]:
    return {(problem.kind, str(problem.key) if problem.key else None) for problem in problems}


def test_records_exchanged_within_a_shard_are_named(copy: Path) -> None:
    """The index is made anew, so that nothing but the records' own keys can tell."""
    place = copy / "records/c/0/0/0"
    data = place.read_bytes()
    chunks = [data[first:end] for name, first, end, _ in spans(copy) if name == "records/c/0/0/0" and first]
    chunks[1], chunks[3] = chunks[3], chunks[1]
    place.write_bytes(b"".join(_shard.pack_chunks(chunks, data[:8])))
    assert kinds(verify(copy).problems) == {("checksum", "0,1"), ("checksum", "1,1")}


def exchange(one: Path, two: Path) -> None:
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


def test_shards_exchanged_name_all_their_tiles(copy: Path) -> None:
    exchange(copy / "records/c/0/0/0", copy / "records/c/2/1/0")
    with open_archive(copy) as archive:
        both = {*archive.grid.tiles_of(TileKey(0, 0)), *archive.grid.tiles_of(TileKey(2, 1))}
    assert set(verify(copy).damaged) == both


@pytest.mark.parametrize("names", [("mask/c/0/0/0", "mask/c/0/1/1"), ("preview/c/0/0/0", "preview/c/0/2/2")])
def test_masks_and_previews_exchanged_break_the_seal_of_all_tiles(copy: Path, names: tuple[str, str]) -> None:
    exchange(*(copy / name for name in names))
    report = verify(copy)
    with open_archive(copy) as archive:
        shards = (TileKey(*map(int, name.split("/")[-2:])) for name in names)
        tiles = sorted(key for shard in shards for key in archive.grid.tiles_of(shard))
    assert {problem.kind for problem in report.problems} == {"seal"}
    assert report.damaged == tuple(tiles)


def test_lost_shortened_and_lengthened_objects_are_named(copy: Path) -> None:
    whole = {place: place.read_bytes() for place in objects(copy)}
    for place in (copy / "records/c/1/1/0", copy / "mask/c/0/1/1", copy / "preview/c/0/1/1", copy / "mask/zarr.json"):
        name = str(place.relative_to(copy))
        place.unlink()
        assert name in {problem.name for problem in verify(copy).problems}
        for data in (b"", whole[place][:-1], whole[place][: len(whole[place]) // 2], whole[place] + b"\0"):
            place.write_bytes(data)
            assert name in {problem.name for problem in verify(copy).problems}, f"{name} of {len(data)} bytes"
        place.write_bytes(whole[place])
    assert verify(copy).ok


@pytest.mark.parametrize("name", ["records/c/1/1/0", "mask/c/0/1/1"])
def test_a_lost_shard_or_mask_names_each_of_its_tiles(copy: Path, name: str) -> None:
    (copy / name).unlink()
    report = verify(copy)
    assert kinds(report.problems) == {("missing", name) for name in ("2,2", "2,3", "3,2", "3,3")}
    assert report.tiles == 72


def test_a_damaged_index_names_the_shards_tiles_and_says_which_records_are_left(copy: Path) -> None:
    place = copy / "records/c/1/1/0"
    whole = place.read_bytes()
    place.write_bytes(flip(whole, len(whole) - 30, 0))
    (problem,) = verify(copy).problems
    assert problem.shard == TileKey(1, 1)
    assert problem.message == (
        "the index of the records of shard 1,1 (tiles 2,2 to 3,3) is damaged; the records are there"
    )
    assert verify(copy).to_json()["problems"][0]["shard"] == "1,1"
    place.write_bytes(whole[: len(whole) // 2])
    report = verify(copy)
    assert report.damaged
    assert f"; {4 - len(report.damaged)} of 4 records are found" in report.problems[0].message


def test_a_lost_preview_names_the_shards_tiles_and_damages_none(copy: Path) -> None:
    (copy / "preview/c/0/1/1").unlink()
    (problem,) = verify(copy).problems
    assert (problem.kind, problem.key, problem.shard) == ("missing", None, TileKey(1, 1))
    assert problem.message.startswith("preview of shard 1,1 (tiles 2,2 to 3,3): ")


def test_a_record_of_another_archive_is_named(copy: Path, tmp_path: Path) -> None:
    with open_archive(copy) as archive:
        other = replace(archive.manifest, q=693, complete=False)
    with create_archive(tmp_path / "other.ditic", other) as writer:
        tiles = list(writer.grid.tiles_of(TileKey(0, 0)))
        records = {key: pack_record(Record(kind=EMPTY, key=key, archive_id=writer.layout.archive_id)) for key in tiles}
        masks = {key: np.zeros((1, 256, 256), np.uint8) for key in tiles}
        writer.put_shard(TileKey(0, 0), records, masks, np.zeros((1, 8, 8), np.uint8))
    shutil.copy(tmp_path / "other.ditic/records/c/0/0/0", copy / "records/c/0/0/0")
    report = verify(copy)
    assert report.damaged == tuple(tiles)
    assert "other settings" in report.problems[0].message


def test_a_foreign_object_is_reported_and_a_users_file_is_not(copy: Path) -> None:
    (copy / "README.txt").write_text("mine")
    (copy / "records/notes").write_text("mine")
    assert verify(copy).ok
    (copy / "records/c/70/0").mkdir(parents=True)
    (copy / "records/c/70/0/0").write_bytes(b"x")
    assert kinds(verify(copy).problems) == {("stray", None)}


def test_bytes_behind_the_zip_are_found(small: Path, tmp_path: Path) -> None:
    whole = small.with_suffix(".zip").read_bytes()
    for data in (whole + b"x", b"x" + whole):
        (tmp_path / "a.zip").write_bytes(data)
        assert not verify(tmp_path / "a.zip").ok


def test_a_zip_cut_short_tells_which_tiles_are_left(small: Path, tmp_path: Path) -> None:
    whole = small.with_suffix(".zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(whole[: whole.rindex(b"records/c/0/1/0", 0, whole.index(b"PK\1\2"))])
    report = verify(tmp_path / "a.zip")
    assert kinds(report.problems) == {("missing", "0,1")}
    with open_archive(tmp_path / "a.zip") as archive:
        archive.record(TileKey(0, 0))
    (tmp_path / "a.zip").write_bytes(whole[:100])
    assert kinds(verify(tmp_path / "a.zip").problems) == {("format", None)}


def test_an_archive_that_is_not_complete_says_so(large: Path, tmp_path: Path) -> None:
    with open_archive(large) as archive:
        settings = replace(archive.manifest, complete=False)
    create_archive(tmp_path / "a.ditic", settings).close()
    shutil.copytree(large / "records/c/0/0", tmp_path / "a.ditic/records/c/0/0")
    report = verify(tmp_path / "a.ditic")
    assert ("incomplete", None) in kinds(report.problems)
    assert report.tiles == 4


def test_a_manifest_that_cannot_be_read_is_a_problem_and_no_archive_is_an_error(copy: Path, tmp_path: Path) -> None:
    (copy / "zarr.json").write_bytes((copy / "zarr.json").read_bytes()[:-5])
    assert kinds(verify(copy).problems) == {("format", None)}
    with pytest.raises(SourceError):
        verify(tmp_path / "nothing")


def claiming(large: Path, path: Path, *, complete: bool) -> Path:
    """An archive of nothing but a manifest, that claims 2^24 x 2^24 pixels."""
    with open_archive(large) as archive:
        image = replace(archive.manifest.image, height=2**24, width=2**24)
        settings = replace(archive.manifest, image=image, shard=8, complete=complete)
    attributes = {KEY: settings.to_json(), **settings.attributes}
    path.mkdir()
    (path / "zarr.json").write_bytes(group_document(attributes))
    return path


def test_a_huge_archive_of_nothing_is_seen_at_once_and_its_lost_tiles_are_counted(large: Path, tmp_path: Path) -> None:
    report = verify(claiming(large, tmp_path / "a.ditic", complete=True))
    assert {problem.kind for problem in report.problems} == {"missing"}
    assert len(report.damaged) == module.MAX_PROBLEMS
    assert len(report.damaged) + report.unlisted == report.tiles == 2**32
    assert report.to_json()["unlisted"] == report.unlisted
    report = verify(claiming(large, tmp_path / "b.ditic", complete=False))
    assert kinds(report.problems) == {("incomplete", None)}
    assert report.tiles == 0


def test_problems_without_end_stop_the_search(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PROBLEMS", 6)
    for place in (copy / "records").rglob("c/*/*/0"):
        place.write_bytes(b"")
    report = verify(copy)
    assert report.stopped
    assert len(report.problems) == 6


def test_a_deeper_check_sees_each_coded_record_and_its_errors_name_the_tile(large: Path) -> None:
    seen = []

    def check(key: TileKey, record: Record) -> None:
        seen.append(key)
        assert record.key == key
        if key == TileKey(4, 3):
            raise DesyncError("symbols disagree")

    report = verify(large, check=check)
    assert kinds(report.problems) == {("desync", "4,3")}
    assert seen
    assert all((key.row + key.col) % 3 < 2 for key in seen)


def test_progress_ends_at_the_bytes_of_all_objects(large: Path) -> None:
    calls = []
    verify(large, progress=lambda done, total: calls.append((done, total)))
    assert len(calls) == 20
    assert calls == sorted(calls)
    assert calls[-1][0] <= calls[-1][1] == verify(large).bytes


def test_a_report_is_json(copy: Path) -> None:
    (copy / "records/c/1/1/0").unlink()
    document = json.loads(json.dumps(verify(copy).to_json()))
    assert document["ok"] is False
    assert document["damaged"] == ["2,2", "2,3", "3,2", "3,3"]
    assert document["problems"][0]["kind"] == "missing"
