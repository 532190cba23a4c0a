"""Archives: what is put comes back, to Zarr too; kills, second writers, full disks and hostile files do not harm."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numcodecs import zstd

from ditic_stream import _destination, _shard, _store, _zip
from ditic_stream.archive import (
    Archive,
    ArchiveWriter,
    ShardWriter,
    create_archive,
    open_archive,
    pack_mask,
    pack_zip,
)
from ditic_stream.bitstream import CODED, EMPTY, Record, crc32c, pack_record
from ditic_stream.config import GridConfig
from ditic_stream.errors import (
    ChecksumError,
    ConfigError,
    DiticError,
    FormatError,
    LockedError,
    MissingTileError,
    SourceError,
    StorageError,
)
from ditic_stream.geometry import TileKey, Window
from ditic_stream.manifest import KEY, Manifest
from ditic_stream.tiling import Grid

GOLDEN = Path(__file__).parent / "golden" / "manifest-1.json"
Shard = tuple[dict[TileKey, bytes], dict[TileKey, np.ndarray] | None, np.ndarray]


def manifest(height: int = 700, width: int = 1100, bands: int = 2, tile: int = 256, planes: int = 1) -> Manifest:
    attributes = json.loads(GOLDEN.read_text())
    base = Manifest.from_json(attributes.pop(KEY), attributes)
    grid = GridConfig(tile=tile, overlap=64)
    return replace(
        base,
        image=replace(base.image, height=height, width=width, bands=bands),
        grid=grid,
        shard=Grid(height=height, width=width, config=grid).shard,
        radiometry={
            **base.radiometry,
            "bands": base.radiometry["bands"][:1] * bands,
            "planes": base.radiometry["planes"] * planes,
        },
    )


def content(writer: ShardWriter, shard: TileKey) -> Shard:
    """What a shard of `writer`'s archive holds: any bytes for words, but the same ones every time."""
    layout, records, masks = writer.layout, {}, {}
    for key in layout.grid.tiles_of(shard):
        rng = np.random.default_rng([key.row, key.col])
        masks[key] = np.zeros((layout.planes, *layout.grid.core(key).shape), np.uint8)
        if (key.row + key.col) % 3 == 2:
            records[key] = pack_record(Record(kind=EMPTY, key=key, archive_id=layout.archive_id))
            masks[key][:] = 1
        else:
            words = bytes(4) + rng.bytes(2 * int(rng.integers(1, 40)))
            record = Record(kind=CODED, key=key, archive_id=layout.archive_id, words=words, coded=40, symbols_crc=7)
            records[key] = pack_record(record)
            if (key.row + key.col) % 3:
                masks[key][-1:, :3, 5:] = 2
    rng = np.random.default_rng([shard.row, shard.col, 1])
    preview = rng.integers(0, 256, layout.preview_part(shard), dtype=np.uint8)
    return records, masks if layout.planes else None, preview


def make(path: Path, settings: Manifest | None = None) -> Path:
    """A complete archive at `path`."""
    with create_archive(path, settings or manifest()) as writer:
        for shard in writer.todo():
            writer.put_shard(shard, *content(writer, shard))
        writer.finish()
    return path


def peek_manifest(path: Path) -> Manifest | None:
    """The manifest of the archive at `path`, complete or not; None when there is none that can be read."""
    try:
        with open_archive(path) as archive:
            return archive.manifest
    except (SourceError, FormatError):
        return None


def tiles(archive: Archive) -> Iterator[TileKey]:
    return archive.grid.keys()


def tree(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One archive that no test changes, and its zip beside it."""
    path = make(tmp_path_factory.mktemp("built") / "scene.ditic")
    pack_zip(path, path.with_suffix(".ditic.zip"))
    return path


@pytest.fixture(params=["folder", "zip"])
def opened(request: pytest.FixtureRequest, built: Path) -> Iterator[Archive]:
    with open_archive(built if request.param == "folder" else built.with_suffix(".ditic.zip")) as archive:
        yield archive


# What is put comes back


def test_every_record_mask_and_preview_comes_back(opened: Archive) -> None:
    assert opened.manifest == manifest().finished()
    writer = ShardWriter(Path("nowhere"), manifest())
    whole = opened.preview()
    assert whole.shape == (1, 11, 18)
    for shard in opened.grid.shards():
        records, masks, preview = content(writer, shard)
        assert masks is not None
        for key, data in records.items():
            assert pack_record(opened.record(key)) == data
            found = opened.mask(opened.grid.core(key))
            assert found is not None
            assert (found == masks[key]).all()
        corner = whole[:, shard.row * 4 : shard.row * 4 + 4, shard.col * 4 : shard.col * 4 + 4]
        assert (corner == preview).all()


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_window_of_the_mask_equals_the_crop_of_the_whole(built: Path, data: st.DataObject) -> None:
    row, col = data.draw(st.integers(0, 699)), data.draw(st.integers(0, 1099))
    height, width = data.draw(st.integers(1, 700 - row)), data.draw(st.integers(1, 1100 - col))
    window = Window(row=row, col=col, height=height, width=width)
    with open_archive(built) as archive:
        whole = archive.mask(archive.grid.scene)
        found = archive.mask(window)
        assert whole is not None
        assert found is not None
        assert (found == whole[:, row : row + height, col : col + width]).all()


def test_a_scene_without_planes_has_no_mask(tmp_path: Path) -> None:
    with open_archive(make(tmp_path / "a.ditic", manifest(planes=0))) as archive:
        assert archive.mask(archive.grid.scene) is None
        assert not (tmp_path / "a.ditic" / "mask").exists()


def test_packed_masks_give_the_same_bytes_as_arrays(tmp_path: Path, built: Path) -> None:
    with create_archive(tmp_path / "a.ditic", manifest()) as writer:
        for shard in writer.todo():
            records, masks, preview = content(writer, shard)
            assert masks is not None
            packed = {key: pack_mask(mask, 256) for key, mask in masks.items()}
            assert None in packed[TileKey(0, 0)] if shard == TileKey(0, 0) else True
            writer.put_shard(shard, records, packed, preview)
        writer.finish()
    assert tree(tmp_path / "a.ditic") == tree(built)


@pytest.mark.parametrize(
    "settings",
    [manifest(), manifest(1, 1, 1), manifest(2100, 1900, 3, planes=2), manifest(300, 9000, planes=0)],
    ids=["ragged", "one pixel", "shards of two tiles", "one row of tiles"],
)
def test_zarr_reads_every_array(tmp_path: Path, settings: Manifest) -> None:
    with open_archive(make(tmp_path / "a.ditic", settings)) as archive:
        for group in (zarr.open_group(tmp_path / "a.ditic", mode="r"), zarr.open_group(_zipped(tmp_path), mode="r")):
            assert group.attrs[KEY]["complete"] is True
            assert group.attrs["proj:code"] == "EPSG:32633"
            assert sorted(group.array_keys()) == (["mask"] if archive.layout.planes else []) + ["preview", "records"]
            assert (np.asarray(group["preview"][:]) == archive.preview()).all()
            if archive.layout.planes:
                assert (np.asarray(group["mask"][:]) == archive.mask(archive.grid.scene)).all()
            records = np.asarray(group["records"][:])
            for key in tiles(archive):
                data = archive.shard(archive.grid.shard_of(key)).record_bytes(key)
                assert records[key.row, key.col].tobytes() == data.ljust(records.shape[2], b"\0")
            assert records.any(axis=(0, 1))[-1], "the cap is longer than the longest record"


def _zipped(folder: Path) -> Any:
    pack_zip(folder / "a.ditic", folder / "a.zip", overwrite=True)
    return zarr.storage.ZipStore(folder / "a.zip", mode="r")


def test_zarr_writes_the_records_it_read(tmp_path: Path, built: Path) -> None:
    records = zarr.open_group(built, mode="r")["records"]
    copy = zarr.create_array(
        tmp_path / "copy.zarr",
        data=np.asarray(records[:]),
        chunks=(1, 1, records.shape[2]),
        serializer={"name": "ditic.record"},
        compressors=None,
    )
    assert (np.asarray(copy[:]) == np.asarray(records[:])).all()
    with open_archive(built) as archive:
        stored = (tmp_path / "copy.zarr" / "c" / "0" / "0" / "0").read_bytes()
        assert stored == archive.shard(TileKey(0, 0)).record_bytes(TileKey(0, 0))
    with pytest.raises(FormatError):
        copy[0, 0] = np.ones(records.shape[2], np.uint8)


def test_the_same_content_gives_the_same_bytes(tmp_path: Path, built: Path) -> None:
    assert tree(make(tmp_path / "another.ditic")) == tree(built)
    pack_zip(tmp_path / "another.ditic", tmp_path / "another.zip")
    assert (tmp_path / "another.zip").read_bytes() == built.with_suffix(".ditic.zip").read_bytes()


def test_no_host_time_or_path_is_stored(built: Path) -> None:
    names = [os.uname().nodename, str(built.parent), os.environ.get("USER", "nobody at all")]
    for data in tree(built).values():
        assert not any(name.encode() in data for name in names if len(name) > 3)


def test_metadata_and_index_stay_within_four_kilobytes(tmp_path: Path) -> None:
    # sixteen shards of one tile with a mask, three bands, and a model config of ordinary length
    base = manifest(4096, 4096, 3, 1024)
    model = replace(base.model, config={f"setting_{number}": 128 for number in range(20)})
    source = replace(base.source, metadata={})
    path = make(tmp_path / "a.ditic", replace(base, model=model, source=source))
    files = tree(path)
    documents = sum(len(data) for name, data in files.items() if name.endswith("zarr.json"))
    index = sum(16 + 4 + _shard.SEAL_BYTES for name in files if name.startswith("records/c/"))
    assert documents + index <= 4096


def test_a_record_takes_two_ranges_and_the_next_one_of_its_shard_one(tmp_path: Path) -> None:
    path = make(tmp_path / "a.ditic", manifest(2100, 1900, 3))
    with open_archive(path) as archive:
        assert archive.grid.shard == 2
        asked = []
        get = archive.store.get
        archive.store.get = lambda name, start, length: asked.append(length) or get(name, start, length)  # type: ignore
        first = archive.shard(TileKey(0, 0)).record_bytes(TileKey(0, 0))
        assert asked == [4 * 16 + 4, len(first)]
        archive.record(TileKey(1, 1))
        assert len(asked) == 3


def test_opening_and_verifying_need_neither_zarr_nor_torch(built: Path) -> None:
    code = (
        "import sys; from ditic_stream.verify import verify; from ditic_stream.archive import open_archive\n"
        f"open_archive({str(built)!r}); assert verify({str(built)!r}).ok\n"
        "print([name for name in ('zarr', 'torch', 'scipy', 'tifffile', 'imagecodecs') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# Beginning, resuming, finishing


def test_a_stopped_run_resumes_and_gives_the_bytes_of_one_that_was_not(tmp_path: Path, built: Path) -> None:
    path = tmp_path / "a.ditic"
    for steps in (0, 1, 5, 3):
        with create_archive(path, manifest()) as writer:
            for shard in list(writer.todo())[:steps]:
                writer.put_shard(shard, *content(writer, shard))
        with open_archive(path) as archive:
            assert not archive.manifest.complete
    with create_archive(path, manifest()) as writer:
        assert len(list(writer.todo())) == 15 - 9
    assert tree(make(path)) == tree(built)


def test_an_archive_with_a_shard_missing_is_not_finished(tmp_path: Path) -> None:
    with create_archive(tmp_path / "a.ditic", manifest()) as writer:
        for shard in list(writer.grid.shards())[:-1]:
            writer.put_shard(shard, *content(writer, shard))
        with pytest.raises(MissingTileError, match="2,4"):
            writer.finish()
    manifest_there = peek_manifest(tmp_path / "a.ditic")
    assert manifest_there is not None
    assert not manifest_there.complete


def test_a_complete_archive_is_refused_and_replaced_by_overwrite(tmp_path: Path, built: Path) -> None:
    path = make(tmp_path / "a.ditic", manifest(300, 300))
    before = tree(path)
    with pytest.raises(ConfigError, match="complete archive"):
        create_archive(path, manifest(300, 300))
    assert tree(path) == before
    with create_archive(path, manifest(), overwrite=True) as writer:
        assert len(list(writer.todo())) == 15
    assert tree(make(path)) == tree(built)


def test_a_partial_archive_of_other_settings_is_refused_by_their_names(tmp_path: Path) -> None:
    path = tmp_path / "a.ditic"
    create_archive(path, manifest()).close()
    with pytest.raises(ConfigError, match=r"quality \(50 there, 51 here\)"):
        create_archive(path, replace(manifest(), quality=51))
    with pytest.raises(ConfigError, match="numerics"):
        create_archive(path, replace(manifest(), numerics={"device": "cuda"}))
    with create_archive(path, replace(manifest(), quality=51), overwrite=True) as writer:
        assert writer.manifest.quality == 51


def test_overwriting_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    path = tmp_path / "a.ditic"
    for _ in range(2):
        with create_archive(path, manifest(), overwrite=True) as writer:
            shard = next(writer.todo())
            writer.put_shard(shard, *content(writer, shard))
    with create_archive(path, manifest(), overwrite=True) as writer:
        assert len(list(writer.todo())) == 13


@pytest.mark.parametrize("step", range(12))
def test_no_old_shard_passes_for_a_new_one_when_overwriting_is_killed(
    tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old archive has the same settings, so only the order of the steps keeps its shards out."""
    path = make(tmp_path / "a.ditic", manifest(300, 600))
    left = step

    def kill(*_: Any, **__: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt

    for owner, name in ((Path, "rename"), (os, "replace"), (shutil, "rmtree"), (Path, "unlink")):
        plain = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, plain=plain, **k: kill() or plain(*a, **k))
    with contextlib.suppress(KeyboardInterrupt):
        create_archive(path, manifest(300, 600), overwrite=True).close()
    monkeypatch.undo()
    (path / ".lock").unlink(missing_ok=True)
    with create_archive(path, manifest(300, 600), overwrite=True) as writer:
        assert len(list(writer.todo())) == 6


@pytest.mark.parametrize("step", range(6))
def test_killed_while_it_finishes_the_archive_is_resumed(
    tmp_path: Path, built: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, left, plain = tmp_path / "a.ditic", step, os.replace
    with create_archive(path, manifest()) as writer:
        for shard in writer.todo():
            writer.put_shard(shard, *content(writer, shard))

        def replace_some(*names: Any) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            plain(*names)

        monkeypatch.setattr(os, "replace", replace_some)
        try:
            writer.finish()
        except KeyboardInterrupt:
            found = peek_manifest(path)
            assert found is not None
            assert not found.complete
        monkeypatch.undo()
    if step < 4:
        with create_archive(path, manifest()) as writer:
            assert list(writer.todo()) == []
            writer.finish()
    assert tree(path) == tree(built)


def test_a_damaged_manifest_is_not_resumed_but_can_be_overwritten(tmp_path: Path) -> None:
    path = make(tmp_path / "a.ditic", manifest(300, 300))
    group = path / "zarr.json"
    group.write_bytes(group.read_bytes().replace(b'"q":55', b'"q":56'))
    with pytest.raises(ChecksumError):
        create_archive(path, manifest(300, 300))
    create_archive(path, manifest(300, 300), overwrite=True).close()
    assert peek_manifest(path) == manifest(300, 300)


def test_a_folder_that_is_no_archive_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"dear")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match=r"holiday\.jpg"):
            create_archive(tmp_path, manifest(), overwrite=overwrite)
    assert tree(tmp_path) == {"holiday.jpg": b"dear"}
    with pytest.raises(ConfigError, match="is a file"):
        create_archive(tmp_path / "holiday.jpg", manifest(), overwrite=True)
    with pytest.raises(ConfigError, match="not a folder"):
        create_archive(tmp_path / "no" / "where", manifest())


def test_a_folder_that_cannot_be_made_or_locked_is_a_storage_error_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EROFS, "Read-only file system")

    for owner, name in ((os, "open"), (Path, "mkdir")):
        monkeypatch.setattr(owner, name, refuse)  # root writes where it likes
        with pytest.raises(StorageError, match=r"a\.ditic: Read-only file system; .*run"):
            create_archive(tmp_path / "a.ditic", manifest())


@pytest.mark.parametrize(
    "name",
    ["big-download.partial", "records/my-thesis.partial", "records/data.csv", "mask.partial/notes.txt",
     "preview/c/0/0/photo.partial", "records/c/0/0/0.partial", "zarr.json.partial", "records/thesis/c"],
)  # fmt: skip
def test_files_that_are_not_of_an_archive_are_neither_swept_nor_replaced(tmp_path: Path, name: str) -> None:
    fresh, begun = tmp_path / "fresh", tmp_path / "begun"
    create_archive(begun, manifest()).close()
    for place in (fresh, begun):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("mine")
        before = tree(place)
        for overwrite in (False, True):
            with pytest.raises(ConfigError, match=r"which no archive has; choose another name"):
                create_archive(place, manifest(), overwrite=overwrite)
        assert tree(place) == before


def test_leftovers_are_swept_and_read_by_nobody(tmp_path: Path, built: Path) -> None:
    path = tmp_path / "a.ditic"
    with create_archive(path, manifest()) as writer:
        writer.put_shard(TileKey(0, 0), *content(writer, TileKey(0, 0)))
    for name in ("zarr.json.77.partial", "records/c/0/0/0.77.partial", "mask.partial/c/0/0/0"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(b"half")
    with open_archive(path) as archive:
        assert not any("partial" in name for name in archive.store.names())
    assert tree(make(path)) == tree(built)


def test_a_shard_with_a_flipped_byte_is_written_again(tmp_path: Path) -> None:
    with create_archive(tmp_path / "a.ditic", manifest()) as writer:
        shard = TileKey(0, 1)
        writer.put_shard(shard, *content(writer, shard))
        for name in writer.layout.objects(shard):
            assert writer.done(shard)
            place = tmp_path / "a.ditic" / name
            data = place.read_bytes()
            middle = len(data) // 2
            place.write_bytes(data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :])
            assert not writer.done(shard), name
            place.unlink()
            assert not writer.done(shard), name
            place.write_bytes(data)


def test_a_shard_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with create_archive(tmp_path / "a.ditic", manifest()) as writer:
        shard = TileKey(0, 0)
        records, masks, preview = content(writer, shard)
        assert masks is not None
        other = pack_record(Record(kind=EMPTY, key=shard, archive_id=b"another!"))
        wrong: list[Any] = [
            ({}, masks, preview),
            ({shard: other}, masks, preview),
            ({shard: records[shard][:-1]}, masks, preview),
            (records, None, preview),
            (records, {}, preview),
            (records, {shard: masks[shard][:, :9]}, preview),
            (records, {shard: masks[shard].astype(int)}, preview),
            (records, {shard: []}, preview),
            (records, masks, preview[:, :2]),
        ]
        for arguments in wrong:
            with pytest.raises((ConfigError, FormatError)):
                writer.put_shard(shard, *arguments)
        assert not (tmp_path / "a.ditic" / "records").exists()


# Locks and kills


def test_a_second_writer_is_refused_while_the_first_one_lives(tmp_path: Path) -> None:
    first = create_archive(tmp_path / "a.ditic", manifest())
    with pytest.raises(LockedError, match=f"process {os.getpid()}"):
        create_archive(tmp_path / "a.ditic", manifest())
    with pytest.raises(LockedError):
        create_archive(tmp_path / "a.ditic", manifest(), overwrite=True)
    first.close()
    create_archive(tmp_path / "a.ditic", manifest()).close()
    assert not (tmp_path / "a.ditic" / ".lock").exists()


WRITE = """
import sys
sys.path.insert(0, {tests!r})
import test_archive as t
from pathlib import Path
with t.create_archive(Path({path!r}), t.manifest()) as writer:
    print("ready", flush=True)
    while True:
        for shard in writer.grid.shards():
            writer.put_shard(shard, *t.content(writer, shard))
"""


def test_killed_at_any_moment_the_archive_has_no_torn_object(tmp_path: Path, built: Path) -> None:
    """A process that writes shards over and over is killed; the lock dies with it, and every object is whole."""
    path = tmp_path / "a.ditic"
    code = WRITE.format(tests=str(Path(__file__).parent), path=str(path))
    rng = np.random.default_rng(11)
    seen = 0
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        with child.stdout:
            assert child.stdout.readline() == "ready\n"
            with pytest.raises(LockedError):
                create_archive(path, manifest())
            time.sleep(float(rng.uniform(0, 0.15)))
            child.send_signal(signal.SIGKILL)
            child.wait()
        with open_archive(path) as archive:
            whole = tree(built)
            for name, data in tree(path).items():
                if "/c/" in name and "partial" not in name:
                    assert data == whole[name], name
                    seen += 1
            assert not archive.manifest.complete
    assert seen, "no run lived long enough to write a shard"
    assert tree(make(path)) == tree(built)


STEPS = """
import io, os, shutil, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_archive as t
from ditic_stream import _store

path, whole = Path({path!r}), t.tree(Path({built!r}))

def run(step):
    def tick():
        nonlocal step
        step -= 1
        if step < 0:
            os._exit(9)  # nothing is cleaned up, nothing flushed: a kill

    class Halves(io.FileIO):
        def write(self, data):
            tick()
            super().write(data[: len(data) // 2])
            tick()
            super().write(data[len(data) // 2 :])
            return len(data)

    def ticking(plain):
        return lambda *arguments: (tick(), plain(*arguments))[1]

    _store.open = Halves
    os.fsync, os.replace = ticking(os.fsync), ticking(os.replace)
    with t.create_archive(path, t.manifest()) as writer:
        for shard in list(writer.todo())[:2]:
            writer.put_shard(shard, *t.content(writer, shard))
    os._exit(0)

for step in range(1000):
    shutil.rmtree(path, ignore_errors=True)
    child = os.fork()
    if not child:
        run(step)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    there = [(name, data) for name, data in t.tree(path).items() if "/c/" in name and "partial" not in name]
    torn = [name for name, data in there if data != whole[name]]
    assert not torn, (step, torn)
    assert t.peek_manifest(path) or not (path / "zarr.json").exists(), step
    if code == 0:
        break
print(step)
"""


def test_killed_between_any_two_steps_of_writing_no_object_is_torn(tmp_path: Path, built: Path) -> None:
    code = STEPS.format(tests=str(Path(__file__).parent), path=str(tmp_path / "a.ditic"), built=str(built))
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) > 50, "the steps were not counted"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_full_disk_is_one_storage_error_and_leaves_nothing_behind(
    tmp_path: Path, built: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.ditic"
    with create_archive(path, manifest()) as writer:
        writer.put_shard(TileKey(0, 0), *content(writer, TileKey(0, 0)))
        before = tree(path)

        def full(handle: int) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="run the same command again"):
            writer.put_shard(TileKey(0, 1), *content(writer, TileKey(0, 1)))
        with pytest.raises(StorageError):
            pack_zip(built, tmp_path / "a.zip")
        monkeypatch.undo()
        assert tree(path) == before
        assert not list(tmp_path.glob("a.zip*"))
    assert tree(make(path)) == tree(built)


# Reading what is damaged or hostile


def test_what_is_no_archive_is_a_source_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "group").mkdir()
    (tmp_path / "group" / "zarr.json").write_text('{"zarr_format":3,"node_type":"group","attributes":{}}')
    with pytest.raises(SourceError, match="no file or folder"):
        open_archive(tmp_path / "absent")
    with pytest.raises(SourceError, match="File name too long"):
        open_archive("long" * 200)
    with pytest.raises(SourceError, match="not an archive"):
        open_archive(tmp_path / "empty")
    with pytest.raises(FormatError, match="not an archive"):
        open_archive(tmp_path / "group")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(FormatError, match="not a zip"):
        open_archive(tmp_path / "text")
    assert peek_manifest(tmp_path / "group") is None


def copy(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "copy.ditic"))


def test_a_lost_tile_is_named_and_the_others_read(tmp_path: Path, built: Path) -> None:
    path = copy(built, tmp_path)
    (path / "records/c/1/2/0").unlink()
    with open_archive(path) as archive:
        with pytest.raises(MissingTileError, match="tile 1,2"):
            archive.record(TileKey(1, 2))
        archive.record(TileKey(1, 1))
        with pytest.raises(ConfigError, match="leaves the grid"):
            archive.record(TileKey(3, 0))


def test_exchanged_records_are_named(tmp_path: Path, built: Path) -> None:
    path = copy(built, tmp_path)
    one, two = path / "records/c/0/0/0", path / "records/c/0/1/0"
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    with open_archive(path) as archive, pytest.raises(ChecksumError, match="tile 0,0: record is that of tile 0,1"):
        archive.record(TileKey(0, 0))


def test_a_damaged_index_hides_no_record(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = make(tmp_path / "a.ditic", manifest(2100, 1900, 3))
    place = path / "records/c/1/1/0"
    data = bytearray(place.read_bytes())
    data[-30] ^= 1
    place.write_bytes(data)
    with open_archive(path) as archive:
        for key in archive.grid.tiles_of(TileKey(1, 1)):
            archive.record(key)
        assert archive.shard(TileKey(1, 1)).recovered
    assert not caplog.records, "nothing is lost: it is for verify to say, and not on stderr"


def test_a_shard_cut_short_keeps_the_records_before_the_cut(tmp_path: Path) -> None:
    path = make(tmp_path / "a.ditic", manifest(2100, 1900, 3))
    place = path / "records/c/0/0/0"
    with open_archive(path) as archive:
        first = archive.shard(TileKey(0, 0)).record_bytes(TileKey(0, 0))
    place.write_bytes(place.read_bytes()[: 8 + len(first) + 10])
    with open_archive(path) as archive:
        archive.record(TileKey(0, 0))
        with pytest.raises(MissingTileError, match="tile 0,1"):
            archive.record(TileKey(0, 1))


def index(*entries: int) -> bytes:
    data = struct.pack(f"<{len(entries)}Q", *entries)
    return data + struct.pack("<I", crc32c(data))


ABSENT = _shard.ABSENT


@pytest.mark.parametrize(
    "entries",
    [
        (8, 2**40),
        (2**63, 22),
        (0, 30),
        (ABSENT, 22),
        (8, ABSENT),
        (8, 0),
        (9, 22),
        (2**64 - 16, 30),
    ],
)
def test_an_index_that_points_elsewhere_is_not_followed(tmp_path: Path, built: Path, entries: tuple[int, ...]) -> None:
    """Its checksum is good; the record is found by what it says of itself, or not at all."""
    path = copy(built, tmp_path)
    place = path / "records/c/0/0/0"
    body = place.read_bytes()[:-20]
    place.write_bytes(body + index(*entries))
    with open_archive(path) as archive:
        tracemalloc.start()
        archive.record(TileKey(0, 0))
        assert tracemalloc.get_traced_memory()[1] < 10**6
        tracemalloc.stop()
    place.write_bytes(b"\xff" * len(body) + index(*entries))
    with open_archive(path) as archive, pytest.raises(DiticError):
        archive.record(TileKey(0, 0))


def test_overlapping_records_are_refused() -> None:
    data = index(8, 30, 20, 30)
    with pytest.raises(FormatError, match="a chunk at 20 of 30 bytes; 38"):
        _shard.unpack_index(data, 2, start=8, end=50)
    with pytest.raises(FormatError, match="to no chunk"):
        _shard.unpack_index(index(8, 30, ABSENT, ABSENT), 2, start=8, end=50)


def frame_of(pixels: bytes, checksum: bool = True) -> bytes:
    frame = bytes(zstd.compress(pixels, 3))
    return frame + struct.pack("<I", crc32c(frame)) if checksum else frame


@pytest.mark.parametrize(
    "chunk",
    [
        b"",
        b"\0" * 9,
        frame_of(bytes(256 * 256), checksum=False),
        frame_of(bytes(256 * 256 - 1)),
        frame_of(bytes(256 * 256 + 1)),
        frame_of(bytes(2**26)),
        frame_of(b""),
    ],
    ids=["empty", "zeros", "no checksum", "short", "long", "bomb", "nothing"],
)
def test_a_mask_chunk_of_another_size_is_refused_without_memory(chunk: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(FormatError):
        _shard.unpack_chunk(chunk, (256, 256))
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.sampled_from([b"", b"\x28\xb5\x2f\xfd", b"\x28\xb5\x2f\xfd\xa0\0\0\1\0"]))
def test_any_frame_with_a_good_checksum_decodes_or_raises_format_error(body: bytes, start: bytes) -> None:
    frame = start + body
    with contextlib.suppress(FormatError):
        _shard.unpack_chunk(frame + struct.pack("<I", crc32c(frame)), (256, 256))


def test_pipes_links_and_folders_in_place_of_objects_are_survived(tmp_path: Path, built: Path) -> None:
    path = copy(built, tmp_path)
    places = [path / f"records/c/0/{col}/0" for col in range(4)]
    for place in places:
        place.unlink()
    os.mkfifo(places[0])
    places[1].symlink_to("/dev/zero")
    places[2].mkdir()
    places[3].symlink_to(path / "zarr.json")
    with open_archive(path) as archive:
        for col in range(4):
            with pytest.raises(DiticError):
                archive.record(TileKey(0, col))
        archive.record(TileKey(0, 4))


def test_an_absurd_grid_costs_no_memory(tmp_path: Path) -> None:
    create_archive(tmp_path / "a.ditic", manifest(2**24, 2**24, planes=0)).close()
    tracemalloc.start()
    with open_archive(tmp_path / "a.ditic") as archive:
        with pytest.raises(MissingTileError):
            archive.record(TileKey(65535, 65535))
        with pytest.raises(ConfigError, match="at most"):
            archive.preview()
    assert tracemalloc.get_traced_memory()[1] < 10**7
    tracemalloc.stop()


def test_a_mask_window_too_large_to_hold_is_refused(tmp_path: Path) -> None:
    create_archive(tmp_path / "a.ditic", manifest(2**20, 2**20)).close()
    with open_archive(tmp_path / "a.ditic") as archive, pytest.raises(ConfigError, match="read strips"):
        archive.mask(archive.grid.scene)


def test_a_manifest_that_contradicts_its_grid_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="shards of 8"):
        create_archive(tmp_path / "a.ditic", replace(manifest(), shard=8))


# One file


def test_a_zip_that_is_not_packed_yet_says_where_its_folder_is(tmp_path: Path) -> None:
    create_archive(tmp_path / "a.ditic.zip.partial", manifest()).close()
    with pytest.raises(SourceError, match=r"a\.ditic\.zip is not finished; .* name .*a\.ditic\.zip\.partial"):
        open_archive(tmp_path / "a.ditic.zip")
    open_archive(tmp_path / "a.ditic.zip.partial").close()


def test_zipfile_reads_the_zip_and_finds_each_object_stored(built: Path) -> None:
    with zipfile.ZipFile(built.with_suffix(".ditic.zip")) as file:
        assert file.testzip() is None
        assert {entry.filename: file.read(entry) for entry in file.infolist()} == tree(built)
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in file.infolist())
        assert {entry.date_time for entry in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert file.namelist()[:2] == ["zarr.json", "mask/zarr.json"]
        assert file.namelist()[4:] == sorted(file.namelist()[4:])


def test_the_zip_holds_no_lock_no_leftover_and_no_stranger(tmp_path: Path, built: Path) -> None:
    path = copy(built, tmp_path)
    for name in (".lock", "zarr.json.9.partial", ".DS_Store", "records/notes.txt"):
        (path / name).write_bytes(b"x")
    pack_zip(path, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == built.with_suffix(".ditic.zip").read_bytes()


def test_an_incomplete_archive_is_not_packed_and_no_file_is_replaced_unasked(tmp_path: Path, built: Path) -> None:
    create_archive(tmp_path / "a.ditic", manifest()).close()
    with pytest.raises(ConfigError, match="not complete"):
        pack_zip(tmp_path / "a.ditic", tmp_path / "a.zip")
    (tmp_path / "b.zip").write_bytes(b"dear")
    with pytest.raises(ConfigError, match="exists"):
        pack_zip(built, tmp_path / "b.zip")
    assert (tmp_path / "b.zip").read_bytes() == b"dear"


def test_zips_of_other_packers_are_read(tmp_path: Path, built: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_STORED) as file:
        file.mkdir("records")
        for name, data in reversed(tree(built).items()):
            file.writestr(name, data)
        file.comment = b"packed by hand"
    with open_archive(tmp_path / "a.zip") as archive, open_archive(built) as plain:
        for key in tiles(plain):
            assert archive.record(key) == plain.record(key)


def test_many_entries_and_far_offsets_use_zip64(tmp_path: Path, built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_zip, "LIMIT16", 10)
    pack_zip(built, tmp_path / "many.zip")
    with zipfile.ZipFile(tmp_path / "many.zip") as file:
        assert file.testzip() is None
        assert len(file.namelist()) == len(tree(built)) > 10
    monkeypatch.setattr(_zip, "LIMIT32", 3000)
    pack_zip(built, tmp_path / "far.zip")
    with open_archive(tmp_path / "far.zip") as archive, open_archive(built) as plain:
        for key in tiles(plain):
            assert archive.record(key) == plain.record(key)


def hostile(entries: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as packed:
        for name, data in entries:
            packed.writestr(zipfile.ZipInfo(name) if method == zipfile.ZIP_STORED else name, data)
    return file.getvalue()


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK",
        b"PK\5\6" + b"\0" * 18,
        b"PK\5\6" + b"\xff" * 18,
        b"PK\5\6" + struct.pack("<4H2IH", 0, 0, 9, 9, 10**9, 0, 0),
        b"PK\6\7" + struct.pack("<IQI4s4H2IH", 0, 2**63, 1, b"PK\5\6", 0, 0, 65535, 65535, 0, 0, 0),
        hostile([("../zarr.json", b"{}")]),
        hostile([("/zarr.json", b"{}")]),
        hostile([("a\\..\\zarr.json", b"{}")]),
        hostile([("zarr.json/../../x", b"{}")]),
        hostile([("zarr.json", bytes(2**26))], zipfile.ZIP_DEFLATED),
        hostile([("zarr.json", b"{" * 1000)]),
        hostile([(f"{number}", b"") for number in range(5000)]),
    ],
)
def test_hostile_zips_are_refused_without_memory(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.zip").write_bytes(data)
    before = set(tmp_path.parent.rglob("*"))
    tracemalloc.start()
    with pytest.raises((FormatError, SourceError)):
        open_archive(tmp_path / "a.zip")
    assert tracemalloc.get_traced_memory()[1] < 10**7
    tracemalloc.stop()
    assert set(tmp_path.parent.rglob("*")) == before


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("directory", ["whole", "damaged", "gone"])
@pytest.mark.parametrize(
    "name", ["../../evil", "/etc/x", "records/../../x", "a\\..\\x", "zarr.json", "records/c/0/0/0"]
)
def test_a_good_zip_with_a_bad_name_more_is_refused(tmp_path: Path, built: Path, name: str, directory: str) -> None:
    data = hostile([*tree(built).items(), (name, b"{}")])
    start = data.index(b"PK\1\2")
    data = {"whole": data, "gone": data[:start], "damaged": data[: start + 1] + b"?" + data[start + 2 :]}[directory]
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(FormatError, match="leaves the archive or comes twice"):
        open_archive(tmp_path / "a.zip")


def test_a_good_zip_of_another_packer_reads_without_its_directory(tmp_path: Path, built: Path) -> None:
    data = hostile([("records/", b""), *tree(built).items()])
    (tmp_path / "a.zip").write_bytes(data[: data.index(b"PK\1\2")])
    with open_archive(tmp_path / "a.zip") as archive:
        archive.record(TileKey(0, 0))


def test_a_name_that_climbs_in_the_directory_alone_is_refused(tmp_path: Path, built: Path) -> None:
    data = hostile(list(tree(built).items()))
    place = data.index(b"preview/zarr.json", data.index(b"PK\1\2"))
    (tmp_path / "a.zip").write_bytes(data[:place] + b"../../../evil.txt" + data[place + 17 :])
    with pytest.raises(FormatError, match="leaves the archive"):
        open_archive(tmp_path / "a.zip")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_damage_to_a_zip_raises_our_errors_alone(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.zip"
    base = tmp_path_factory.getbasetemp() / "base.ditic"
    if not base.exists():
        make(base, manifest(300, 500))
        pack_zip(base, base.with_suffix(".zip"))
    whole = bytearray(base.with_suffix(".zip").read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        place = data.draw(st.integers(0, len(whole) - 9))
        whole[place : place + 4] = data.draw(
            st.sampled_from([b"\0\0\0\0", b"\xff\xff\xff\xff", b"PK\1\2", b"\1\0\0\0"])
        )
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))] if data.draw(st.booleans()) else whole)
    try:
        with open_archive(path) as archive:
            for key in tiles(archive):
                try:
                    archive.record(key)
                    archive.mask(archive.grid.core(key))
                except DiticError:
                    pass
            archive.preview()
    except DiticError:
        pass


def test_the_lock_is_free_again_whatever_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise StorageError("no room")

    monkeypatch.setattr(_destination, "write_object", fail)
    with pytest.raises(StorageError):
        create_archive(tmp_path / "a.ditic", manifest())
    monkeypatch.undo()
    assert isinstance(create_archive(tmp_path / "a.ditic", manifest()), ArchiveWriter)
    assert _store.LOCK in os.listdir(tmp_path / "a.ditic")
