"""Belts and seams, by workers that share no memory: the same file as one process writes, whatever is cut where."""

from __future__ import annotations

import filecmp
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from fakes import install, module
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import landscape, write_scene

import ditic_stream
from ditic_stream._belts import Cut
from ditic_stream.config import GridConfig
from ditic_stream.errors import ChecksumError, StorageError
from ditic_stream.executors import ProcessExecutor, SerialExecutor
from ditic_stream.geometry import Window
from ditic_stream.tiling import Grid


class Apart(SerialExecutor):
    """A serial executor that says its workers share nothing with this process; a stand-in for a cluster of 3."""

    local = False
    workers = 3


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """The codec that shows any window decoded otherwise, in this process."""
    monkeypatch.setitem(sys.modules, "ditic_stream.codec", module())


def archived(folder: Path, pixels: np.ndarray, overlap: int) -> Path:
    write_scene(folder / "scene.tif", pixels)
    ditic_stream.compress(folder / "scene.tif", folder / "scene.ditic", tile=256, overlap=overlap, workers=1)
    return folder / "scene.ditic"


def same(one: Path, other: Path) -> bool:
    if one.is_file():
        return filecmp.cmp(one, other, shallow=False)
    names = [{str(at.relative_to(root)) for at in root.rglob("*") if at.is_file()} for root in (one, other)]
    return names[0] == names[1] and all(filecmp.cmp(one / name, other / name, shallow=False) for name in names[0])


@pytest.mark.parametrize("overlap", [0, 32, 64])
@pytest.mark.parametrize("end", [".tif", ".zarr", ".png", ".npy"])
def test_belts_give_the_bytes_of_one_process(fake: None, tmp_path: Path, end: str, overlap: int) -> None:
    archive = archived(tmp_path, landscape(2300, 300), overlap)
    ditic_stream.decompress(archive, tmp_path / f"one{end}", workers=1)
    ditic_stream.decompress(archive, tmp_path / f"belts{end}", executor=Apart())
    assert same(tmp_path / f"one{end}", tmp_path / f"belts{end}")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"belts{end}", f"one{end}", "scene.ditic", "scene.tif"]


@pytest.mark.parametrize(("row", "height"), [(0, 2300), (250, 1700), (17, 2000), (770, 600), (1010, 800)])
def test_belts_of_a_window_give_its_crop(fake: None, tmp_path: Path, row: int, height: int) -> None:
    archive = archived(tmp_path, landscape(2300, 600), 64)
    window = Window(row=row, col=130, height=height, width=300)
    for name, executor in (("one", None), ("belts", Apart())):
        ditic_stream.decompress(archive, tmp_path / f"{name}.tif", window=window, executor=executor, workers=1)
    assert same(tmp_path / "one.tif", tmp_path / "belts.tif")


def test_belts_keep_masks_and_nodata(fake: None, tmp_path: Path) -> None:
    import tifffile

    pixels = landscape(1800, 300)
    pixels[500:1100, 20:200] = 7
    nodata = [(42113, 2, 2, "7", True)]
    tifffile.imwrite(tmp_path / "scene.tif", pixels, photometric="rgb", metadata=None, extratags=nodata)
    archive = tmp_path / "scene.ditic"
    ditic_stream.compress(tmp_path / "scene.tif", archive, tile=256, overlap=64, workers=1)
    for name, executor in (("one", None), ("belts", Apart())):
        ditic_stream.decompress(archive, tmp_path / f"{name}.zarr", executor=executor, workers=1)
    assert same(tmp_path / "one.zarr", tmp_path / "belts.zarr")
    with ditic_stream.open(archive) as scene:
        assert scene.archive.layout.planes


def test_damage_is_named_or_filled_as_by_one_process(fake: None, tmp_path: Path) -> None:
    archive = archived(tmp_path, landscape(2300, 300), 64)
    shard = sorted((archive / "records" / "c").rglob("0"))[9]
    data = bytearray(shard.read_bytes())
    data[60] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ChecksumError):
        ditic_stream.decompress(archive, tmp_path / "stopped.tif", executor=Apart())
    assert not list(tmp_path.glob("*stopped*"))
    results = [
        ditic_stream.decompress(archive, tmp_path / f"{name}.tif", executor=executor, workers=1, on_error="fill")
        for name, executor in (("one", None), ("belts", Apart()))
    ]
    assert results[0].damaged == results[1].damaged != ()
    assert results[0].degraded == results[1].degraded
    assert same(tmp_path / "one.tif", tmp_path / "belts.tif")


def test_real_workers_without_shared_memory_do_it_too(tmp_path: Path, fake: None) -> None:
    class Processes(ProcessExecutor):
        def __init__(self) -> None:
            super().__init__(2, initializer=install)
            self.local = False

    archive = archived(tmp_path, landscape(2300, 300), 32)
    ditic_stream.decompress(archive, tmp_path / "one.tif", workers=1)
    told: list[tuple[int, int]] = []
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    try:
        with Processes() as executor:
            ditic_stream.decompress(
                archive, tmp_path / "belts.tif", executor=executor, progress=lambda *at: told.append(at)
            )
    finally:
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)
    assert same(tmp_path / "one.tif", tmp_path / "belts.tif")
    assert told[-1] == (2300 * 300, 2300 * 300)


def test_a_leftover_of_a_killed_run_is_swept(fake: None, tmp_path: Path) -> None:
    archive = archived(tmp_path, landscape(1200, 300), 32)
    (tmp_path / ".out.tif.spool").mkdir()
    (tmp_path / ".out.tif.spool" / "block-0").write_bytes(b"old")
    ditic_stream.decompress(archive, tmp_path / "out.tif", executor=Apart())
    assert not (tmp_path / ".out.tif.spool").exists()


def test_no_room_for_the_spool_is_said_in_our_words(
    fake: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = archived(tmp_path, landscape(1200, 300), 32)

    def full(self: Path, *_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(StorageError, match="No space left"):
        ditic_stream.decompress(archive, tmp_path / "out.tif", executor=Apart())


@settings(max_examples=200, deadline=None)
@given(
    height=st.integers(1, 9000),
    tile=st.sampled_from([256, 512, 1024]),
    overlap=st.sampled_from([0, 32, 64]),
    block=st.sampled_from([16, 64, 512]),
    workers=st.integers(1, 9),
    data=st.data(),
)
def test_every_block_has_one_owner(
    height: int, tile: int, overlap: int, block: int, workers: int, data: st.DataObject
) -> None:
    row = data.draw(st.integers(0, height - 1))
    window = Window(row=row, col=0, height=data.draw(st.integers(1, height - row)), width=100)
    grid = Grid(height=height, width=100, config=GridConfig(tile=tile, overlap=overlap))
    cut = Cut(grid=grid, window=window, block=block)
    belts = cut.belts(workers)
    assert [row for belt in belts for row in range(belt.first, belt.end)] == list(cut.rows)
    seams = [block for belt in belts[1:] for block in cut.touched(belt.first)]
    assert len(seams) == len(set(seams))
    tops = [window.row, *(cut.zone(belt.first)[1] for belt in belts[1:])]
    ends = [*(cut.zone(belt.first)[0] for belt in belts[1:]), window.row_end]
    inside = [
        one for one in range(cut.blocks) for top, end in zip(tops, ends, strict=True)
        if top <= cut.rows_of(one)[0] and cut.rows_of(one)[1] <= end
    ]  # fmt: skip
    assert sorted(seams + inside) == list(range(cut.blocks))
