"""Compression: the same bytes whoever does it and however often it is stopped; refusals say why."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import tifffile
from pictures import landscape, write_scene

from ditic_stream import compression, regions
from ditic_stream._encoding import EncodeShard, block_means
from ditic_stream._lock import hold, release
from ditic_stream._tasks import translated
from ditic_stream.archive import create_archive, open_archive
from ditic_stream.bitstream import EMPTY
from ditic_stream.compression import Estimate, Result
from ditic_stream.errors import ConfigError, LockedError, SourceError, StorageError, TaskError
from ditic_stream.executors import ProcessExecutor, SerialExecutor
from ditic_stream.geometry import TileKey
from ditic_stream.radiometry import Band, Plane, Radiometry

TILE = 256
Compress = Callable[..., Any]


@pytest.fixture(autouse=True)
def fake_codec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ditic_stream.codec", fakes.module())


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """3 x 4 tiles, each a shard."""
    return write_scene(tmp_path / "scene.tif", landscape(700, 810))


def run(source: Path, target: Path, **options: Any) -> Any:
    return compression.compress(source, target, **{"tile": TILE, "workers": 1, **options})


def content(archive: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        path.relative_to(archive).as_posix(): path.read_bytes() for path in sorted(archive.rglob("*")) if path.is_file()
    }


class Stop(Exception):
    """Not ours and not the system's: raised by a progress callback."""


def stop_after(tiles: int) -> Callable[[int, int], None]:
    """A progress callback that raises at the end of the tile after so many: in a shard of its own, not yet written."""
    before = [0]

    def progress(done: int, total: int) -> None:
        nonlocal tiles
        tiles -= done > before[-1]
        before.append(done)
        if tiles < 0:
            raise Stop

    return progress


def test_result_adds_up(scene: Path, tmp_path: Path) -> None:
    result = run(scene, tmp_path / "a.ditic")
    assert isinstance(result, Result)
    files = content(tmp_path / "a.ditic")
    coded = sum(len(data) for name, data in files.items() if name.startswith("records/c/"))
    assert (result.tiles, result.shards, result.empty, result.resumed) == (12, 12, 0, 0)
    assert (result.bytes, result.bpp) == (coded, 8 * coded / (700 * 810))
    assert result.bytes + result.fixed_bytes == sum(map(len, files.values()))
    assert result.outside == 0


@pytest.mark.parametrize("workers", [2, 3])
def test_worker_count_does_not_change_a_byte(scene: Path, tmp_path: Path, workers: int) -> None:
    run(scene, tmp_path / "one.ditic")
    with ProcessExecutor(workers, initializer=fakes.install) as executor:
        run(scene, tmp_path / "many.ditic", executor=executor)
    assert content(tmp_path / "many.ditic") == content(tmp_path / "one.ditic")


@pytest.mark.parametrize("name", ["scene.ditic", "scene.ditic.zip"])
def test_names_may_be_relative(scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    run(Path("scene.tif"), Path(name))
    with open_archive(tmp_path / name) as archive:
        assert archive.manifest.complete
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] != ".") == [name, "scene.tif"]
    run(Path("scene.tif"), Path(name), quality=30, overwrite=True)


@pytest.mark.parametrize("tiles", range(0, 12, 2))
def test_interrupted_run_resumes_and_matches_uninterrupted_archive(scene: Path, tmp_path: Path, tiles: int) -> None:
    run(scene, tmp_path / "whole.ditic")
    with pytest.raises(Stop):
        run(scene, tmp_path / "a.ditic", progress=stop_after(tiles))
    with open_archive(tmp_path / "a.ditic") as archive:
        assert not archive.manifest.complete
    result = run(scene, tmp_path / "a.ditic")
    assert result.resumed == tiles
    assert content(tmp_path / "a.ditic") == content(tmp_path / "whole.ditic")


def test_finished_shards_are_not_coded_again(scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Stop):
        run(scene, tmp_path / "a.ditic", progress=stop_after(7))
    coded = []
    encode = fakes.FakeCodec.encode
    monkeypatch.setattr(fakes.FakeCodec, "encode", lambda *args: coded.append(1) or encode(*args))
    assert run(scene, tmp_path / "a.ditic").resumed == 7
    assert len(coded) == 5


def test_a_torn_shard_is_found_and_coded_again(scene: Path, tmp_path: Path) -> None:
    run(scene, tmp_path / "whole.ditic")
    with pytest.raises(Stop):
        run(scene, tmp_path / "a.ditic", progress=stop_after(5))
    path = tmp_path / "a.ditic/records/c/0/1/0"
    path.write_bytes(path.read_bytes()[:-9])
    assert run(scene, tmp_path / "a.ditic").resumed == 4
    assert content(tmp_path / "a.ditic") == content(tmp_path / "whole.ditic")


def test_the_survey_of_a_stopped_run_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = landscape(600, 600).astype(np.uint16) * 9
    source = write_scene(tmp_path / "scene.tif", pixels)
    run(source, tmp_path / "whole.ditic")
    with pytest.raises(Stop):
        run(source, tmp_path / "a.ditic", progress=stop_after(3))

    def refuse(_: object) -> None:
        raise AssertionError("surveyed again")

    monkeypatch.setattr(compression, "survey", refuse)
    run(source, tmp_path / "a.ditic")
    assert content(tmp_path / "a.ditic") == content(tmp_path / "whole.ditic")


def test_the_survey_of_another_scene_is_not_used(tmp_path: Path) -> None:
    source = write_scene(tmp_path / "scene.tif", landscape(300, 300).astype(np.uint16))
    run(source, tmp_path / "a.ditic")
    write_scene(source, landscape(300, 300).astype(np.uint16) * 99)
    run(source, tmp_path / "a.ditic", overwrite=True)
    run(source, tmp_path / "b.ditic")
    assert content(tmp_path / "a.ditic") == content(tmp_path / "b.ditic")


def test_a_complete_archive_needs_overwrite_and_is_replaced_with_it(scene: Path, tmp_path: Path) -> None:
    run(scene, tmp_path / "a.ditic")
    with pytest.raises(ConfigError, match=r"complete archive of other settings: .*choose another name or overwrite"):
        run(scene, tmp_path / "a.ditic", quality=51)
    assert run(scene, tmp_path / "a.ditic", overwrite=True, quality=51).resumed == 0
    with open_archive(tmp_path / "a.ditic") as archive:
        assert archive.manifest.quality == 51


def test_a_scene_is_never_replaced_by_its_own_archive(scene: Path, tmp_path: Path) -> None:
    source, linked = scene.rename(tmp_path / "scene.zip"), tmp_path / "linked.zip"
    before = source.read_bytes()
    os.link(source, linked)
    for target in (source, linked):
        for named in (source, source.as_uri()):
            with pytest.raises(ConfigError, match=r"made from; choose another name"):
                run(named, target, overwrite=True)
    assert source.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["linked.zip", "scene.zip"]


def test_overwriting_that_was_stopped_goes_on_where_it_was(scene: Path, tmp_path: Path) -> None:
    for name in ("a.ditic", "a.ditic.zip"):
        target = tmp_path / name
        run(scene, target)
        before = target.read_bytes() if target.is_file() else None
        with pytest.raises(Stop):
            run(scene, target, quality=51, overwrite=True, progress=stop_after(4))
        if before is not None:
            assert target.read_bytes() == before  # a zip is replaced at the end, whole
        assert run(scene, target, quality=51, overwrite=True).resumed == 4
        with open_archive(target) as archive:
            assert (archive.manifest.quality, archive.manifest.complete) == (51, True)


@pytest.mark.parametrize("other", [{"quality": 60}, {"tile": 512}, {"overlap": 32}])
def test_a_partial_archive_of_other_settings_is_refused_saying_which(
    scene: Path, tmp_path: Path, other: dict[str, int]
) -> None:
    with pytest.raises(Stop):
        run(scene, tmp_path / "a.ditic", progress=stop_after(3))
    named = "grid" if "quality" not in other else "quality"
    with pytest.raises(ConfigError, match=f"other settings: .*{named}"):
        run(scene, tmp_path / "a.ditic", **other)


@pytest.mark.parametrize("partial", [True, False])
def test_an_archive_of_an_earlier_format_is_not_gone_on_with_and_its_format_is_named(
    scene: Path, tmp_path: Path, partial: bool
) -> None:
    made = compression._manifest
    with pytest.MonkeyPatch.context() as patch, suppress(Stop):
        patch.setattr(compression, "_manifest", lambda *settings: replace(made(*settings), format=1, q=5445))
        run(scene, tmp_path / "a.ditic", progress=stop_after(3) if partial else None)
    with pytest.raises(ConfigError, match=r"other settings: q \(5445 there, 5488 here\), format \(1 there, 3 here\)"):
        run(scene, tmp_path / "a.ditic")


def test_a_partial_archive_of_another_scene_is_refused(scene: Path, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run(scene, tmp_path / "a.ditic", progress=stop_after(3))
    write_scene(scene, landscape(700, 810, seed=1))
    with pytest.raises(ConfigError, match="other settings: source"):
        run(scene, tmp_path / "a.ditic")


def test_a_second_run_at_once_is_refused(scene: Path, tmp_path: Path) -> None:
    def second(done: int, total: int) -> None:
        with pytest.raises(LockedError, match=f"process {os.getpid()}"):
            run(scene, tmp_path / "a.ditic")

    run(scene, tmp_path / "a.ditic", progress=second)


def test_a_zip_holds_the_bytes_of_the_folder_and_leaves_nothing_beside_it(scene: Path, tmp_path: Path) -> None:
    folder = run(scene, tmp_path / "a.ditic")
    zipped = run(scene, tmp_path / "a.ditic.zip")
    assert (zipped.bytes, zipped.fixed_bytes) == (folder.bytes, folder.fixed_bytes)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ditic", "a.ditic.zip", "scene.tif"]
    with open_archive(tmp_path / "a.ditic.zip") as archive:
        names = list(archive.store.names())
        stored = {name: archive.store.get(name, 0, archive.store.size(name) or 0) for name in names}
    assert stored == content(tmp_path / "a.ditic")


def test_a_zip_is_resumed_and_what_a_kill_after_packing_left_is_cleared(scene: Path, tmp_path: Path) -> None:
    target = tmp_path / "a.ditic.zip"
    run(scene, tmp_path / "b.ditic.zip")
    with pytest.raises(Stop):
        run(scene, target, progress=stop_after(4))
    assert not target.exists()
    kept = tmp_path / "kept"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda path: shutil.copytree(path, kept))
        assert run(scene, target).resumed == 4
    assert target.read_bytes() == (tmp_path / "b.ditic.zip").read_bytes()
    assert run(scene, target).resumed == 12
    assert not list(tmp_path.glob("*.partial"))


def test_a_run_that_overwrites_a_zip_is_not_disturbed_by_one_that_may_not(scene: Path, tmp_path: Path) -> None:
    target = tmp_path / "a.ditic.zip"
    run(scene, target)

    def second(done: int, total: int) -> None:
        with pytest.raises(ConfigError, match="complete archive"):
            run(scene, target, quality=52)
        with pytest.raises(LockedError):
            run(scene, target, quality=51, overwrite=True)

    run(scene, target, quality=51, overwrite=True, progress=second)
    with open_archive(target) as archive:
        assert archive.manifest.quality == 51


@pytest.mark.parametrize("quality", [50, 51])
def test_a_zip_that_another_run_packs_while_this_one_starts_is_not_coded_again(
    scene: Path, tmp_path: Path, quality: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, survey = tmp_path / "a.ditic.zip", compression.survey

    def slow(source: Any) -> Radiometry:
        monkeypatch.setattr(compression, "survey", survey)
        run(scene, target, quality=51)
        return survey(source)

    monkeypatch.setattr(compression, "survey", slow)
    with nullcontext() if quality == 51 else pytest.raises(ConfigError, match="complete archive"):
        assert run(scene, target, quality=quality, progress=lambda *_: pytest.fail("coded")).resumed == 12
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ditic.zip", "scene.tif"]


def test_a_complete_archive_is_refused_before_the_scene_is_read(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.ditic", "a.ditic.zip"):
        run(scene, tmp_path / name)
        with monkeypatch.context() as patch:
            patch.setattr(compression, "open_source", lambda *_, **__: pytest.fail("read"))
            for other in ({"quality": 51}, {"tile": 512}, {"overlap": 32}):
                with pytest.raises(ConfigError, match=r"complete archive of other .*another name or overwrite"):
                    run(scene, tmp_path / name, **other)
            with pytest.raises(ConfigError, match=r"complete archive of other settings: source"):
                run(shutil.copy(scene, tmp_path / "copy.tif"), tmp_path / name)


@pytest.mark.parametrize("name", ["a.ditic", "a.ditic.zip"])
@pytest.mark.parametrize("settings", [{}, {"bpp": 0.5}, {"size": 30_000}], ids=["quality", "bpp", "size"])
def test_the_same_call_on_a_complete_archive_finds_it_done_and_leaves_it_alone(
    scene: Path, tmp_path: Path, name: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stamps() -> list[tuple[Path, int]]:
        return [(path, path.stat().st_mtime_ns) for path in sorted(tmp_path.rglob("*"))]

    first = run(scene, tmp_path / name, **settings)
    before = stamps()
    monkeypatch.setattr(compression, "survey", lambda _: pytest.fail("surveyed again"))
    again = run(scene, tmp_path / name, **settings)
    assert again.resumed == again.shards == 12
    assert (again.bytes, again.quality, again.empty) == (first.bytes, first.quality, first.empty)
    assert stamps() == before


def test_the_lock_of_a_run_killed_once_the_archive_was_whole_is_taken_away(scene: Path, tmp_path: Path) -> None:
    archive = tmp_path / "a.ditic"
    run(scene, archive)
    (archive / ".lock").write_text("4711\n")
    run(scene, archive)
    assert not (archive / ".lock").exists()
    handle = hold(archive / ".lock", archive)
    run(scene, archive)
    assert (archive / ".lock").exists()
    release(archive / ".lock", handle)


def test_a_complete_archive_of_a_scene_changed_since_is_refused(scene: Path, tmp_path: Path) -> None:
    run(scene, tmp_path / "a.ditic")
    data = bytearray(scene.read_bytes())
    data[-1] ^= 1
    scene.write_bytes(data)
    with pytest.raises(ConfigError, match=r"complete archive of other settings: source"):
        run(scene, tmp_path / "a.ditic")


def test_a_zip_that_is_no_archive_is_refused(scene: Path, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK mine")
    with pytest.raises(ConfigError, match="not a complete archive; choose another name or overwrite"):
        run(scene, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == b"PK mine"


def test_killed_between_the_last_shard_and_the_zip_a_run_only_packs(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a.ditic.zip"
    with pytest.MonkeyPatch.context() as patch:

        def die(*args: Any, **options: Any) -> None:
            raise Stop

        patch.setattr(compression, "pack_zip", die)
        with pytest.raises(Stop):
            run(scene, target)
    assert run(scene, target).resumed == 12
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ditic.zip", "scene.tif"]


def test_progress_rises_from_what_was_resumed_to_the_whole_area(scene: Path, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run(scene, tmp_path / "a.ditic", progress=stop_after(5))
    calls: list[tuple[int, int]] = []
    run(scene, tmp_path / "a.ditic", progress=lambda *call: calls.append(call))
    done, totals = zip(*calls, strict=True)
    assert set(totals) == {700 * 810}
    assert list(done) == sorted(done)
    assert 0 < done[0] < done[-1] == 700 * 810


def test_a_dry_run_writes_nothing_and_expects_what_comes(scene: Path, tmp_path: Path) -> None:
    estimate = run(scene, tmp_path / "a.ditic", dry_run=True)
    assert isinstance(estimate, Estimate)
    assert [path.name for path in tmp_path.iterdir()] == ["scene.tif"]
    result = run(scene, tmp_path / "a.ditic")
    assert (estimate.tiles, estimate.shards, estimate.sampled) == (result.tiles, result.shards, 12)
    assert abs(estimate.bytes / result.bytes - 1) < 0.01
    assert estimate.bytes_low < estimate.bytes < estimate.bytes_high
    assert estimate.memory > 10**7


def test_a_dry_run_in_workers_counts_their_memory(scene: Path, tmp_path: Path) -> None:
    with ProcessExecutor(2, initializer=fakes.install) as executor:
        many = run(scene, tmp_path / "a.ditic", dry_run=True, executor=executor)
    assert many.memory > run(scene, tmp_path / "a.ditic", dry_run=True).memory


def test_the_manifest_names_no_path_host_or_time(scene: Path, tmp_path: Path) -> None:
    deep = tmp_path / "somewhere" / "else"
    deep.mkdir(parents=True)
    shutil.copy(scene, deep / "scene.tif")
    run(scene, tmp_path / "a.ditic")
    run(deep / "scene.tif", deep / "b.ditic")
    assert content(deep / "b.ditic") == content(tmp_path / "a.ditic")
    text = (tmp_path / "a.ditic/zarr.json").read_text()
    assert str(tmp_path) not in text
    assert os.uname().nodename not in text


def test_other_tools_find_where_the_scene_lies(scene: Path, tmp_path: Path) -> None:
    run(scene, tmp_path / "a.ditic")
    attributes = json.loads((tmp_path / "a.ditic/zarr.json").read_text())["attributes"]
    assert attributes["proj:code"] == "EPSG:32633"
    assert attributes["spatial:transform"] == [10.0, 0.0, 400000.0, 0.0, -10.0, 5650000.0]
    assert attributes["spatial:shape"] == [700, 810]
    with regions.open_scene(tmp_path / "a.ditic") as opened:
        assert (opened.crs, opened.transform) == ("EPSG:32633", (10.0, 0.0, 400000.0, 0.0, -10.0, 5650000.0))


# --- what is coded


def test_every_cell_comes_back_at_its_place(tmp_path: Path) -> None:
    """Cells of one level each: the fake codec moves a level by 0.2 of the range at most, another place by more."""
    levels = np.random.default_rng(0).integers(0, 200, (20, 21, 3), np.uint8)
    pixels = levels.repeat(32, 0).repeat(32, 1)[:637, :650]
    run(write_scene(tmp_path / "scene.tif", pixels), tmp_path / "a.ditic")
    with regions.open_scene(tmp_path / "a.ditic") as scene:
        assert np.abs(scene[...].astype(int) - pixels).max() < 51


def test_tiles_without_a_coded_pixel_are_empty_records(tmp_path: Path) -> None:
    pixels = landscape(512, 512)[..., 0].astype(np.float32)
    pixels[:256, 256:] = np.nan
    result = run(write_scene(tmp_path / "scene.tif", pixels), tmp_path / "a.ditic")
    assert (result.tiles, result.empty) == (4, 1)
    with open_archive(tmp_path / "a.ditic") as archive:
        keys = archive.grid.keys()
        assert [key for key in keys if archive.record(key).kind == EMPTY] == [TileKey(0, 1)]


def test_empty_tiles_are_counted_in_resumed_shards_too(tmp_path: Path) -> None:
    pixels = landscape(512, 1024)[..., 0].astype(np.float32)
    pixels[:, 256:] = np.nan
    source = write_scene(tmp_path / "scene.tif", pixels)
    with pytest.raises(Stop):
        run(source, tmp_path / "a.ditic", progress=stop_after(5))
    assert run(source, tmp_path / "a.ditic").empty == 6


def test_samples_beyond_the_networks_range_are_reported(tmp_path: Path) -> None:
    pixels = landscape(512, 512)[..., 0].astype(np.float32)
    pixels[3, 5] = 1e6
    result = run(write_scene(tmp_path / "scene.tif", pixels), tmp_path / "a.ditic")
    assert result.outside == 1 / pixels.size


def test_preview_is_the_mean_of_blocks_of_64_pixels(scene: Path, tmp_path: Path) -> None:
    run(scene, tmp_path / "a.ditic")
    pixels = landscape(700, 810).astype(np.float64)
    with open_archive(tmp_path / "a.ditic") as archive:
        preview = archive.preview()
    assert preview.shape == (3, 11, 13)
    for row, col in [(0, 0), (5, 4), (10, 12), (3, 12), (10, 0)]:
        block = pixels[64 * row : 64 * row + 64, 64 * col : 64 * col + 64]
        assert (np.abs(preview[:, row, col] - block.mean(axis=(0, 1))) <= 0.51).all()


def test_preview_counts_only_pixels_in_sight() -> None:
    units = np.zeros((1, 3, 64, 130), np.float32)
    units[:, :, :, :32] = 1
    planes = np.zeros((1, 64, 130), np.uint8)
    validity = Radiometry(dtype="uint8", bands=(Band(),), planes=(Plane(kind="validity", bands=(0,)),))
    planes[0, :, 32:128] = 1
    assert block_means(units, planes, validity, 1).tolist() == [[[255, 0, 0]]]
    mask = Radiometry(dtype="uint8", bands=(Band(),) * 3, planes=(Plane(kind="mask"),))
    planes[0] = 0
    planes[0, :, 16:48] = 255
    assert block_means(units, planes, mask, 1)[0].tolist() == [[128, 0, 0]]
    alpha = Radiometry(
        dtype="uint16",
        bands=(Band(low=0, high=9),) * 3,
        planes=(Plane(kind="alpha_0"), Plane(kind="alpha_1")),
        alpha=3,
    )
    both = np.stack([planes[0] * 0, planes[0]])
    assert block_means(units, both, alpha, 1)[0].tolist() == [[128, 0, 0]]


# --- what fails


def test_an_unreadable_tile_of_the_source_is_named_and_the_rest_stays(scene: Path, tmp_path: Path) -> None:
    with tifffile.TiffFile(scene) as file:
        page = file.pages[0]
        offset, size = page.dataoffsets[20], page.databytecounts[20]  # pixels from row 256, column 768
    data = bytearray(scene.read_bytes())
    data[offset + 2 : offset + size] = bytes(size - 2)
    scene.write_bytes(data)
    for _ in range(2):
        with pytest.raises(SourceError, match=r"^tile \d,\d: "):
            run(scene, tmp_path / "a.ditic")
        with open_archive(tmp_path / "a.ditic") as archive:
            assert not archive.manifest.complete
            archive.record(TileKey(0, 0))


def test_a_full_disk_is_one_sentence_and_the_run_goes_on_later(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(scene, tmp_path / "whole.ditic")
    fsync, left = os.fsync, 20

    def full(handle: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device")
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match=r"No space left on device.*run the same command again"):
            run(scene, tmp_path / "a.ditic")
    assert run(scene, tmp_path / "a.ditic").resumed > 0
    assert content(tmp_path / "a.ditic") == content(tmp_path / "whole.ditic")


def test_memory_that_runs_out_is_tried_again_then_named(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(scene, tmp_path / "whole.ditic")
    encode, left = fakes.FakeCodec.encode, 2

    def greedy(self: fakes.FakeCodec, *args: Any) -> Any:
        nonlocal left
        left -= 1
        if left >= 0:
            raise MemoryError
        return encode(self, *args)

    monkeypatch.setattr(fakes.FakeCodec, "encode", greedy)
    run(scene, tmp_path / "a.ditic")
    assert content(tmp_path / "a.ditic") == content(tmp_path / "whole.ditic")
    left = 10**9
    for words in ("[enforce fail] DefaultCPUAllocator: can't allocate memory", "CUDA out of memory. Tried to allocate"):
        error = translated(RuntimeError(words))
        assert isinstance(error, TaskError)
        assert error.message.startswith("out of memory; use fewer --workers")
    with pytest.raises(TaskError, match="tile 0,0: out of memory; use fewer --workers, to compress a smaller --tile"):
        run(scene, tmp_path / "b.ditic")


def test_wrong_arguments_are_refused_before_anything_is_written(scene: Path, tmp_path: Path) -> None:
    for options, words in [
        ({"quality": 0}, r"quality 0 is outside 1\.\.100"),
        ({"tile": 300}, "tile 300 px"),
        ({"overlap": 200}, "overlap 200 px"),
        ({"workers": 0}, "0 workers"),
    ]:
        with pytest.raises(ConfigError, match=words):
            run(scene, tmp_path / "a.ditic", **options)
    with pytest.raises(SourceError):
        run(tmp_path / "nothing.tif", tmp_path / "a.ditic")
    with pytest.raises(ConfigError, match="is not a folder"):
        run(scene, tmp_path / "nowhere" / "a.ditic")
    assert [path.name for path in tmp_path.iterdir()] == ["scene.tif"]


def test_the_callers_executor_is_used_and_left_open(scene: Path, tmp_path: Path) -> None:
    with SerialExecutor() as executor:
        run(scene, tmp_path / "a.ditic", executor=executor)
        run(scene, tmp_path / "b.ditic", executor=executor)
    assert content(tmp_path / "a.ditic") == content(tmp_path / "b.ditic")


def test_shards_of_many_tiles_hold_the_records_of_their_tiles(tmp_path: Path) -> None:
    """A scene large enough for shards of 2 x 2 tiles, against each tile coded on its own."""
    pixels = landscape(256 * 7 + 40, 256 * 7 + 40)
    source = write_scene(tmp_path / "scene.tif", pixels)
    result = run(source, tmp_path / "a.ditic")
    assert (result.tiles, result.shards) == (64, 16)
    with open_archive(tmp_path / "a.ditic") as archive:
        task = EncodeShard(
            source=str(source),
            expand_palette=False,
            archive=None,
            manifest=archive.manifest,
            model="fake",
            device="cpu",
        )
        with task.open(lambda what, units=0: None) as code:
            for key in [TileKey(0, 0), TileKey(7, 7), TileKey(3, 4)]:
                assert code(key).bytes == len(archive.shard(archive.grid.shard_of(key)).record_bytes(key))
        preview = archive.preview()
    assert preview.shape == (3, 29, 29)
    means = pixels[: 64 * 28, : 64 * 28].reshape(28, 64, 28, 64, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
    assert (np.abs(preview[:, :28, :28] - means) <= 0.51).all()


def test_the_lock_is_free_after_any_end(scene: Path, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run(scene, tmp_path / "a.ditic", progress=stop_after(2))
    with open_archive(tmp_path / "a.ditic") as archive:
        manifest = archive.manifest
    create_archive(tmp_path / "a.ditic", manifest).close()
