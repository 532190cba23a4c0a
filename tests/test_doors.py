"""xarray and dask: lazy, in the right place, the pixels of `decompress` however they are cut; all doors by URI."""

from __future__ import annotations

import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask
import dask.array
import fakes
import numpy as np
import pytest
import rasterio
import rioxarray
import xarray as xr
import zarr
from doors import decoded, geo_archive
from servers import serving

import ditic_stream
from ditic_stream.doors import _pixels
from ditic_stream.doors._shared import scenes
from ditic_stream.doors.rio_tiler import Reader
from ditic_stream.doors.xarray import dataset_of
from ditic_stream.doors.zarr import view
from ditic_stream.errors import ConfigError, SourceError
from ditic_stream.scene import Scene


@pytest.fixture(autouse=True)
def fake_codec(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "sample" not in request.fixturenames:
        monkeypatch.setitem(sys.modules, "ditic_stream.codec", fakes.module())


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return geo_archive(tmp_path_factory.mktemp("geo"), bands=4, dtype="uint16", nodata=0)


# --- xarray


def test_xarray_gives_the_pixels_of_decompress_in_their_place(archive: Path) -> None:
    with xr.open_dataset(archive, engine="ditic") as found, rasterio.open(decoded(archive)) as file:
        np.testing.assert_array_equal(found.band_data.values, file.read())
        np.testing.assert_array_equal(found.valid.values, file.dataset_mask())
        assert found.band_data.dims == ("band", "y", "x") and found.band.values.tolist() == [1, 2, 3, 4]
        assert found.rio.crs == file.crs and found.rio.transform() == file.transform
        assert found.band_data.rio.nodata == 0 and found.band_data.rio.bounds() == file.bounds
        x, y = file.xy(10, 20)
        assert (found.x[20], found.y[10]) == (x, y)
        assert found.band_data.attrs["long_name"] == ("coast", "blue", "green", "red")
        assert found.spatial_ref.attrs["grid_mapping_name"] == "transverse_mercator"
        assert "DITIC_LOSSY" in found.attrs


def test_xarray_agrees_with_rioxarrays_reading_of_the_decoded_file(archive: Path) -> None:
    with xr.open_dataset(archive, engine="ditic") as found, rioxarray.open_rasterio(decoded(archive)) as file:
        np.testing.assert_array_equal(found.band_data.values, file.values)
        for name in ("x", "y", "band"):
            np.testing.assert_allclose(found[name].values, file[name].values, rtol=0, atol=1e-6)
        clipped = found.band_data.rio.clip_box(500300, 4597000, 501900, 4598000)
        np.testing.assert_array_equal(clipped, file.rio.clip_box(500300, 4597000, 501900, 4598000))
        assert clipped.rio.transform() == file.rio.clip_box(500300, 4597000, 501900, 4598000).rio.transform()


def test_xarray_reads_nothing_before_it_is_asked(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Any] = []
    plain = Scene.read

    def watched(self: Scene, window: Any = None, **options: Any) -> Any:
        read.append((window, options))
        return plain(self, window, **options)

    monkeypatch.setattr(Scene, "read", watched)
    with xr.open_dataset(archive, engine="ditic") as found:
        part = found.band_data.isel(y=slice(40, 60), x=slice(500, 300, -3), band=2)
        repr(found)
        assert read == []
        values = part.values
        (window, options) = read[0]
        assert len(read) == 1 and (window.height, window.width, len(options["bands"])) == (20, 199, 1)
        with rasterio.open(decoded(archive)) as file:
            np.testing.assert_array_equal(values, file.read(3)[40:60, 500:300:-3])
        places = found.band_data.sel(x=[500305, 500995], y=[4599005, 4598005], method="nearest")
        assert places.shape == (4, 2, 2)


@pytest.mark.filterwarnings("ignore:The specified chunks separate:UserWarning")  # xarray's, and true of these chunks
@pytest.mark.parametrize("chunks", [{}, {"x": 37, "y": 511}, {"band": 1, "x": 300, "y": 100}])
def test_xarray_with_dask_gives_the_same_pixels(archive: Path, chunks: dict[str, int]) -> None:
    with xr.open_dataset(archive, engine="ditic", chunks=chunks) as found:
        assert isinstance(found.band_data.data, dask.array.Array)
        if not chunks:
            assert found.band_data.chunks == ((4,), (256, 256, 88), (256, 256, 188))
        with rasterio.open(decoded(archive)) as file:
            np.testing.assert_array_equal(found.band_data.compute().values, file.read())


def test_xarray_opens_coarser_levels(archive: Path) -> None:
    with xr.open_dataset(archive, engine="ditic", level=2) as found, ditic_stream.open(archive) as scene:
        np.testing.assert_array_equal(found.band_data.values, scene.read(level=2))
        np.testing.assert_array_equal(found.valid.values, scene.valid(level=2))
        assert found.rio.resolution() == (40, -40) and found.rio.bounds()[0] == 500000
    with pytest.raises(ConfigError, match=r"level 9 is outside 0\.\.4"):
        xr.open_dataset(archive, engine="ditic", level=9)


def test_xarray_masks_and_scales_when_asked(archive: Path, tmp_path: Path) -> None:
    with xr.open_dataset(archive, engine="ditic", mask_and_scale=True, decode_coords="all") as found:
        with rasterio.open(decoded(archive)) as file:
            expected = np.ma.filled(file.read(masked=True) * 0.5 + 10.0, np.nan)
        np.testing.assert_array_equal(found.band_data.values, expected)
        assert np.isnan(found.band_data.values).any() and found.band_data.rio.encoded_nodata == 0
        assert found.valid.dtype == np.uint8
    unlike = geo_archive(tmp_path / "unlike", bands=4, height=64, width=64)
    with xr.open_dataset(unlike, engine="ditic") as found:
        assert found.band_data.attrs["scale_factor"] == 0.5 and found.band_data.attrs["offsets"] == (10, 10, 10, 20)


def test_closing_the_dataset_closes_the_scene(archive: Path) -> None:
    found = xr.open_dataset(archive, engine="ditic")
    found.close()
    with pytest.raises(ConfigError, match="closed"):
        _ = found.band_data.values


def test_xarray_guesses_the_engine_and_errors_stay_ours(archive: Path, tmp_path: Path) -> None:
    with xr.open_dataset(archive) as found:
        assert found.sizes == {"band": 4, "y": 600, "x": 700}
    with pytest.raises(SourceError, match="name an archive that exists"):
        xr.open_dataset(tmp_path / "none.ditic", engine="ditic")
    with xr.open_dataset(archive, engine="ditic", drop_variables="valid") as found:
        assert list(found.data_vars) == ["band_data"]


def test_a_scene_without_a_place_counts_in_pixels_and_a_turned_one_has_its_transform_alone(tmp_path: Path) -> None:
    plain = geo_archive(tmp_path / "plain", transform=None, crs=None)
    with xr.open_dataset(plain, engine="ditic") as found:
        assert (found.x[0], found.y[-1]) == (0.5, 599.5) and found.rio.crs is None
    turned = rasterio.Affine(8, 6, 500000, 6, -8, 4600000)
    with xr.open_dataset(geo_archive(tmp_path / "turned", transform=turned), engine="ditic") as found:
        assert "x" not in found.coords and found.rio.transform() == turned
    degrees = rasterio.Affine(0.001, 0, 10, 0, -0.001, 50)
    with xr.open_dataset(geo_archive(tmp_path / "d", transform=degrees, crs="EPSG:4326"), engine="ditic") as found:
        assert found.x.attrs["units"] == "degrees_east" and found.rio.crs.to_epsg() == 4326


def test_many_threads_read_one_dataset(archive: Path) -> None:
    with xr.open_dataset(archive, engine="ditic") as found, rasterio.open(decoded(archive)) as file:
        expected = file.read()
        places = [(row, col) for row in range(0, 600, 90) for col in range(0, 700, 130)]
        with ThreadPoolExecutor(8) as pool:
            parts = pool.map(lambda at: found.band_data[:, at[0] : at[0] + 90, at[1] : at[1] + 130].values, places)
            for (row, col), part in zip(places, parts, strict=True):
                np.testing.assert_array_equal(part, expected[:, row : row + 90, col : col + 130])


# --- dask


@pytest.mark.parametrize("chunks", [None, (600, 700, 4), (100, 333, 1), (64, 64, 3), ((1, 599), (699, 1), (2, 2))])
def test_a_dask_array_does_not_depend_on_its_chunks(archive: Path, chunks: Any) -> None:
    with ditic_stream.open(archive) as scene, rasterio.open(decoded(archive)) as file:
        array = scene.to_dask(chunks=chunks)
        assert (array.shape, array.dtype) == (scene.shape, scene.dtype)
        np.testing.assert_array_equal(array.compute(scheduler="threads", num_workers=6), file.read().transpose(1, 2, 0))
        np.testing.assert_array_equal(array[5:400:7, ::-11, 1].compute(), file.read(2)[5:400:7, ::-11])


def test_blocks_of_many_bands_are_smaller(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pixels, "CHUNK_BYTES", 128 * 128 * 4 * 2)
    with ditic_stream.open(archive) as scene:
        assert scene.to_dask().chunks[0] == (128, 128, 128, 128, 88)


def test_a_dask_array_of_a_level_is_that_level(archive: Path) -> None:
    with ditic_stream.open(archive) as scene:
        for level in range(scene.level_count):
            found = scene.to_dask(level=level, chunks=(50, 60, 4)).compute()
            np.testing.assert_array_equal(found, scene.read(level=level).transpose(1, 2, 0))


def test_the_name_of_a_dask_array_says_what_is_in_it(archive: Path) -> None:
    with ditic_stream.open(archive) as scene, ditic_stream.open(archive) as again:
        assert scene.to_dask().name == again.to_dask().name
        assert len({scene.to_dask().name, scene.to_dask(level=1).name, scene.to_dask(chunks=100).name}) == 3


def test_dask_in_other_processes_opens_the_archive_there(sample: Any) -> None:
    """By the real codec: a process that is started knows no fake."""
    with ditic_stream.open(sample.archive) as scene:
        found = scene.to_dask(chunks=(300, 700, 3)).compute(scheduler="processes", num_workers=1)
        np.testing.assert_array_equal(found, scene[...])


def test_a_scene_pickles_as_its_name(archive: Path) -> None:
    with ditic_stream.open(archive, on_error="fill") as scene:
        again = pickle.loads(pickle.dumps(scene))
        assert again is not scene and again.shape == scene.shape and again._options == scene._options
        assert pickle.loads(pickle.dumps(scene)) is again
        assert pickle.loads(pickle.dumps(dataset_of(scene))).band_data[0, 0, 0] == scene[0, 0, 0]
        again.close()
        another = pickle.loads(pickle.dumps(scene))
        assert another is not again and another[0, 0].shape == (4,)
        another.close()


def test_a_missing_extra_is_named(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dask", None)
    monkeypatch.setitem(sys.modules, "dask.array", None)
    with ditic_stream.open(archive) as scene, pytest.raises(ConfigError, match=r"ditic-stream\[dask\]"):
        scene.to_dask()


def test_xarray_finds_the_engine_without_loading_networks() -> None:
    code = "import xarray, sys; assert 'ditic' in xarray.backends.list_engines(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- far away


def test_every_door_takes_an_archive_by_its_address(archive: Path) -> None:
    with serving(archive.parent) as server, rasterio.open(decoded(archive)) as file:
        url = f"{server.url}/{archive.name}"
        with xr.open_dataset(url, engine="ditic") as found:
            np.testing.assert_array_equal(found.band_data[:, 40:60, 300:500].values, file.read()[:, 40:60, 300:500])
        with xr.open_dataset(url) as found:  # the engine is known by the ending
            assert found.sizes["band"] == 4
        with ditic_stream.open(url) as scene:
            some = scene.to_dask()[::50, ::60].compute()
            np.testing.assert_array_equal(some, file.read()[:, ::50, ::60].transpose(1, 2, 0))
            np.testing.assert_array_equal(zarr.open_group(view(scene), mode="r")["0"][1, 5:9], file.read(2)[5:9])
        with Reader(url) as reader:
            part = reader.part((500500, 4596000, 503000, 4598500), bounds_crs=file.crs)
            np.testing.assert_array_equal(part.array.data, file.read()[:, 150:400, 50:300])
        scenes.close()
