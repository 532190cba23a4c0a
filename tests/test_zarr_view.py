"""The Zarr view: zarr, dask and OME-Zarr tools see ordinary arrays with the pixels of the scene; it is read-only."""

from __future__ import annotations

import asyncio
import pickle
import sys
from pathlib import Path
from typing import Any

import dask.array
import fakes
import numpy as np
import ome_zarr_models
import pytest
import rasterio
import zarr
from doors import decoded, geo_archive
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype

import ditic_stream
from ditic_stream.doors._pixels import Pixels
from ditic_stream.doors.zarr import SceneStore, view
from ditic_stream.errors import ConfigError


@pytest.fixture(autouse=True)
def fake_codec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ditic_stream.codec", fakes.module())


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return geo_archive(tmp_path_factory.mktemp("masked"), mask=True)


@pytest.mark.parametrize(
    ("bands", "dtype", "nodata"),
    [(1, "uint8", 7), (3, "int16", -99), (5, "float32", None), (1, "float32", float("nan"))],
)
def test_zarr_reads_the_pixels_of_every_level(tmp_path: Path, bands: int, dtype: str, nodata: float | None) -> None:
    made = geo_archive(tmp_path / "a", bands=bands, dtype=dtype, nodata=nodata)
    with ditic_stream.open(made) as scene, rasterio.open(decoded(made)) as file:
        group = zarr.open(view(scene))
        assert isinstance(group, zarr.Group) and group.read_only
        np.testing.assert_array_equal(group["0"][...], file.read())
        np.testing.assert_array_equal(group["0"][0, 20:500:9, 3], file.read(1)[20:500:9, 3])
        for level in range(scene.level_count):
            array = group[str(level)]
            np.testing.assert_array_equal(array[...], scene.read(level=level))
            assert array.dtype == scene.dtype
            np.testing.assert_equal(array.fill_value, array.dtype.type(nodata or 0))


def test_ome_zarr_tools_find_the_pyramid_the_mask_and_the_place(archive: Path) -> None:
    with ditic_stream.open(archive) as scene:
        group = zarr.open_group(view(scene), mode="r")
        image = ome_zarr_models.open_ome_zarr(group)
        assert type(image).__module__.startswith("ome_zarr_models.v05") and image.labels is not None
        (entry,) = group.attrs["ome"]["multiscales"]
        assert [part["path"] for part in entry["datasets"]] == [str(level) for level in range(scene.level_count)]
        assert group.attrs["proj:code"] == "EPSG:32633" and "tiny" not in group.attrs["ditic_lossy"]
        for level in range(scene.level_count):
            np.testing.assert_array_equal(group[f"labels/mask/{level}"][...], scene.valid(level=level))
        assert sorted(group.keys()) == sorted([*map(str, range(scene.level_count)), "labels"])


def test_dask_reads_the_view_lazily_as_a_viewer_does(archive: Path) -> None:
    store = view(str(archive), threads=1)
    group = zarr.open_group(store, mode="r")
    levels = [dask.array.from_zarr(group[str(level)]) for level in range(5)]
    assert levels[0].chunks == ((3,), (256, 256, 88), (256, 256, 188))
    with rasterio.open(decoded(archive)) as file:
        np.testing.assert_array_equal(levels[0][:, 250:300, 100:].compute(), file.read()[:, 250:300, 100:])
    store.close()
    with pytest.raises(ConfigError, match="closed"):
        _ = group["0"][...]


def test_the_view_lists_its_keys_and_every_one_of_them_is_there(archive: Path) -> None:
    with ditic_stream.open(archive) as scene:
        store = view(scene)

        async def look() -> None:
            keys = [key async for key in store.list()]
            assert len(keys) == len(set(keys)) > 20
            for key in keys:
                found = await store.get(key, default_buffer_prototype())
                assert found is not None and await store.exists(key) and await store.getsize(key) == len(found)
            walked, folders = [], [""]
            while folders:
                folder = folders.pop()
                for name in [name async for name in store.list_dir(folder)]:
                    path = f"{folder}/{name}".lstrip("/")
                    (walked if path in keys else folders).append(path)
            assert sorted(walked) == sorted(keys)
            assert [key async for key in store.list_prefix("0/c/")] == [key for key in keys if key.startswith("0/c/")]
            for key in ("x", "0/c", "0/c/0/9/0", "0/c/1/0/0", "0/c/0/00/0", "9/zarr.json", "0/c/0/0", "../zarr.json"):
                assert not await store.exists(key) and await store.get(key, default_buffer_prototype()) is None

        asyncio.run(look())


def test_a_part_of_a_chunk_is_that_part(archive: Path) -> None:
    with ditic_stream.open(archive) as scene:
        store = view(scene)
        key, kind = "1/c/0/0/0", default_buffer_prototype()

        async def look() -> None:
            whole = (await store.get(key, kind)).to_bytes()
            asked = [RangeByteRequest(5, 50), OffsetByteRequest(100), SuffixByteRequest(7), None]
            parts = await store.get_partial_values(kind, [(key, part) for part in asked])
            assert [part.to_bytes() for part in parts] == [whole[5:50], whole[100:], whole[-7:], whole]
            corner = np.frombuffer((await store.get("0/c/0/2/2", kind)).to_bytes(), np.uint8).reshape(3, 256, 256)
            assert not corner[:, 88:].any() and not corner[:, :, 188:].any() and corner[:, :88, :188].all()

        asyncio.run(look())


def test_nothing_can_be_written(archive: Path) -> None:
    with ditic_stream.open(archive) as scene:
        store = view(scene)
        group = zarr.open_group(store, mode="r")
        with pytest.raises(ValueError, match="read-only"):
            group["0"][0, 0, 0] = 1
        with pytest.raises(ValueError, match="read-only"):
            group.create_array("more", shape=(3,), dtype="uint8")
        for mode in ("w", "a", "r+"):
            with pytest.raises(ValueError, match="read-only"):
                zarr.open_group(store, mode=mode)


def test_metadata_and_the_sizes_of_chunks_decode_no_pixel(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pixels, "__getitem__", lambda *_: pytest.fail("pixels were read"))
    with ditic_stream.open(archive) as scene:
        group = zarr.open_group(view(scene), mode="r")
        assert group.tree() is not None and group["0"].nbytes == 600 * 700 * 3


def test_a_store_pickles_as_the_name_of_its_archive(archive: Path) -> None:
    with ditic_stream.open(archive) as scene:
        again: Any = pickle.loads(pickle.dumps(view(scene)))
        assert isinstance(again, SceneStore) and again != view(scene) and view(scene) == view(scene)
        np.testing.assert_array_equal(zarr.open_group(again, mode="r")["2"][...], scene.read(level=2))
        again._scene.close()
    with ditic_stream.open(archive) as scene, pytest.raises(ConfigError, match="threads"):
        view(scene, threads=2)
