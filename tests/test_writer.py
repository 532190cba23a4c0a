"""What is written strip by strip is read back by GDAL and others as what the source was; or nothing is left behind."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest
import rasterio
import rasterio.control
import rasterio.rpc
import tifffile
import zarr
from pictures import write_strips
from rasterio.windows import Window as Part
from rasterio.windows import transform as window_transform

from ditic_stream import _tiff_output
from ditic_stream.errors import ConfigError, FormatError, LockedError, StorageError, WindowError
from ditic_stream.geometry import Window
from ditic_stream.reader import open_source
from ditic_stream.writer import crop_metadata, not_kept, open_output

Array = npt.NDArray[Any]
TRANSFORM = rasterio.Affine(10, 0, 500000, 0, -10, 4600000)
OUTPUTS = ["a.tif", "a.cog.tif", "a.png", "a.zarr", "a.ome.zarr", "a.npy"]
PLAIN: dict[str, Any] = {
    "photometric": 1,
    "extrasamples": [],
    "planar": False,
    "alpha": None,
    "mask": False,
    "fields": [],
}


RPCS = rasterio.rpc.RPC(
    height_off=100.0, height_scale=50.0, lat_off=45.0, lat_scale=1.0, long_off=12.0, long_scale=1.0,
    line_off=30.0, line_scale=30.0, samp_off=35.0, samp_scale=35.0, err_bias=0.5, err_rand=0.25,
    line_num_coeff=[float(n) for n in range(20)], line_den_coeff=[1.0] * 20,
    samp_num_coeff=[2.0] * 20, samp_den_coeff=[3.0] * 20,
)  # fmt: skip


def metadata(samples: int = 3, **changes: Any) -> dict[str, Any]:
    fields = [{"code": 33550, "kind": 12, "values": [10.0, 10.0, 0.0]},
              {"code": 33922, "kind": 12, "values": [0.0, 0.0, 0.0, 500000.0, 4600000.0, 0.0]}]  # fmt: skip
    return {**PLAIN, "photometric": 2 if samples >= 3 else 1, "fields": fields, **changes}


def noise(samples: int, height: int, width: int, dtype: str = "uint8") -> Array:
    return np.random.default_rng(1).integers(0, 250, (samples, height, width)).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize(("samples", "height", "width"), [(1, 1, 1), (3, 37, 1100), (4, 1100, 37), (3, 600, 520)])
def test_every_reader_sees_the_pixels_that_were_written(
    tmp_path: Path, dtype: str, planar: bool, samples: int, height: int, width: int
) -> None:
    pixels = noise(samples, height, width, dtype)
    write_strips(tmp_path / "a.tif", pixels, metadata(samples, planar=planar))
    with rasterio.open(tmp_path / "a.tif") as file:
        np.testing.assert_array_equal(file.read(), pixels)
        assert file.transform == TRANSFORM
    got = tifffile.imread(tmp_path / "a.tif").reshape(pixels.shape if planar else (height, width, samples))
    np.testing.assert_array_equal(got if planar else np.moveaxis(got, -1, 0), pixels)
    with open_source(tmp_path / "a.tif") as source:
        np.testing.assert_array_equal(source.read(Window(row=0, col=0, height=height, width=width)), pixels)


@pytest.mark.parametrize("rows", [1, 7, 512, 513, 2000])
def test_the_bytes_do_not_depend_on_the_height_of_the_strips(tmp_path: Path, rows: int) -> None:
    pixels, mask = noise(3, 1300, 70), np.where(noise(1, 1300, 70)[0] > 99, 255, 0).astype(np.uint8)
    write_strips(tmp_path / "a.tif", pixels, metadata(mask=True), rows=100, mask=mask)
    write_strips(tmp_path / "b.tif", pixels, metadata(mask=True), rows=rows, mask=mask)
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()


def test_bigtiff_is_written_where_classic_tiff_could_overflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, mask = noise(4, 700, 900), np.where(noise(1, 700, 900)[0] > 99, 255, 0).astype(np.uint8)
    meta = metadata(4, extrasamples=[2], alpha=3, mask=True)
    meta["exif"] = [{"code": 33434, "kind": 5, "values": [1, 200]}]
    write_strips(tmp_path / "a.tif", pixels, meta, mask=mask)
    monkeypatch.setattr(_tiff_output, "CLASSIC_LIMIT", 1000)
    write_strips(tmp_path / "b.tif", pixels, meta, mask=mask)
    assert (tmp_path / "a.tif").read_bytes()[2] == 42
    assert (tmp_path / "b.tif").read_bytes()[2] == 43
    for name in ("a.tif", "b.tif"):
        with rasterio.open(tmp_path / name) as file:
            np.testing.assert_array_equal(file.read(), pixels)
        with tifffile.TiffFile(tmp_path / name) as tiff:
            np.testing.assert_array_equal(tiff.pages[1].asarray(), mask != 0)
            assert tiff.pages.first.tags[34665].value == {"ExposureTime": (1, 200)}


def test_gdal_sees_the_mask_and_the_alpha_that_were_written(tmp_path: Path) -> None:
    pixels, mask = noise(3, 300, 600), np.where(noise(1, 300, 600)[0] > 99, 255, 0).astype(np.uint8)
    write_strips(tmp_path / "mask.tif", pixels, metadata(mask=True), mask=mask)
    with rasterio.open(tmp_path / "mask.tif") as file:
        assert file.mask_flag_enums == ([rasterio.enums.MaskFlags.per_dataset],) * 3
        np.testing.assert_array_equal(file.dataset_mask(), mask)
    write_strips(tmp_path / "alpha.tif", noise(4, 300, 600), metadata(4, extrasamples=[2], alpha=3))
    with rasterio.open(tmp_path / "alpha.tif") as file:
        assert file.colorinterp[3] == rasterio.enums.ColorInterp.alpha


def test_everything_gdal_writes_about_a_picture_comes_back(tmp_path: Path) -> None:
    """Reference system, transform, nodata, tags, scales, offsets, units, descriptions and colours."""
    profile = {"driver": "GTiff", "height": 60, "width": 70, "count": 4, "dtype": "int16", "crs": "EPSG:32633"}
    with rasterio.open(tmp_path / "a.tif", "w", **profile, transform=TRANSFORM, nodata=-999, interleave="band") as file:
        file.write(noise(4, 60, 70, "int16"))
        file.update_tags(TITLE="a & b < c", AREA_OR_POINT="Point")
        file.update_tags(2, WAVELENGTH="0.56", STATISTICS_MEAN="1")
        file.update_tags(ns="MINE", KEY="value")
        file.descriptions = ("red", "green", "blue", "near infrared é")
        file.scales, file.offsets, file.units = (0.1, 1, 1, 2), (5, 0, 0, 1), ("m", "", "", "K")
    copied = copy(tmp_path / "a.tif", tmp_path / "b.tif", lossy="tiny-1, 0.25 bpp <q>")
    assert copied == {"TITLE": "a & b < c", "AREA_OR_POINT": "Point", "DITIC_LOSSY": "tiny-1, 0.25 bpp <q>"}


def test_ground_control_points_and_rpcs_come_back(tmp_path: Path) -> None:
    profile = {"driver": "GTiff", "height": 60, "width": 70, "count": 1, "dtype": "uint8"}
    points = [
        rasterio.control.GroundControlPoint(row, col, 10 + col / 7, 50 - row / 9, 3.5)
        for row, col in [(0, 0), (59, 3), (7, 69), (50, 60)]
    ]
    with rasterio.open(tmp_path / "gcp.tif", "w", **profile, gcps=points, crs="EPSG:4326") as file:
        file.write(noise(1, 60, 70))
    copy(tmp_path / "gcp.tif", tmp_path / "gcp2.tif")
    with rasterio.open(tmp_path / "rpc.tif", "w", **profile, rpcs=RPCS, crs="EPSG:4326") as file:
        file.write(noise(1, 60, 70))
    copy(tmp_path / "rpc.tif", tmp_path / "rpc2.tif")


def copy(source: Path, target: Path, lossy: str | None = None) -> dict[str, str]:
    """Copy by reader and writer; GDAL sees the same pixels and metadata.  Returns the tags of the copy."""
    with open_source(source) as scene:
        whole = Window(row=0, col=0, height=scene.height, width=scene.width)
        write_strips(target, scene.read(whole), scene.metadata, lossy=lossy)
    with rasterio.open(source) as old, rasterio.open(target) as new:
        np.testing.assert_array_equal(old.read(), new.read())
        for name in (
            "crs",
            "transform",
            "nodata",
            "dtypes",
            "descriptions",
            "scales",
            "offsets",
            "units",
            "colorinterp",
        ):
            assert getattr(old, name) == getattr(new, name), name
        assert [point.asdict() | {"id": ""} for point in old.gcps[0]] == [p.asdict() | {"id": ""} for p in new.gcps[0]]
        assert old.gcps[1] == new.gcps[1]
        assert (old.rpcs and old.rpcs.to_gdal()) == (new.rpcs and new.rpcs.to_gdal())
        assert old.tags(ns="MINE") == new.tags(ns="MINE")
        assert [old.tags(band) for band in old.indexes] == [new.tags(band) for band in new.indexes]
        tags: dict[str, str] = new.tags()
        assert old.tags() == {key: value for key, value in tags.items() if key != "DITIC_LOSSY"}
        return tags


def test_profile_resolution_and_orientation_come_back(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif", np.moveaxis(noise(3, 60, 70), 0, -1), photometric="rgb", iccprofile=b"icc!" * 99,
        metadata=None,
        resolution=(300, 150.5), resolutionunit="CENTIMETER", description="a slide", software="scanner 1",
        extratags=[(274, "H", 1, 6, True), (65000, "B", 5, b"12345", True), (305, "s", 0, "scanner 1", True)],
    )  # fmt: skip
    with open_source(tmp_path / "a.tif") as scene:
        write_strips(tmp_path / "b.tif", scene.read(Window(row=0, col=0, height=60, width=70)), scene.metadata)
    with tifffile.TiffFile(tmp_path / "a.tif") as old, tifffile.TiffFile(tmp_path / "b.tif") as new:
        for code in (270, 274, 282, 283, 296, 305, 34675, 65000):
            assert old.pages.first.tags[code].value == new.pages.first.tags[code].value, code
            assert old.pages.first.tags[code].dtype == new.pages.first.tags[code].dtype, code


def test_a_mark_of_loss_is_never_taken_away(tmp_path: Path) -> None:
    write_strips(tmp_path / "a.tif", noise(3, 60, 70), metadata(), lossy="first & best")
    tags = copy_tags(tmp_path / "a.tif", tmp_path / "b.tif", "second")
    assert tags["DITIC_LOSSY"] == "first & best | second"


def copy_tags(source: Path, target: Path, lossy: str) -> dict[str, str]:
    with open_source(source) as scene:
        write_strips(target, scene.read(Window(row=0, col=0, height=60, width=70)), scene.metadata, lossy=lossy)
    with rasterio.open(target) as file:
        tags: dict[str, str] = file.tags()
        return tags


@pytest.mark.parametrize("kind", ["affine", "rotated", "gcps", "rpcs"])
def test_a_cut_lies_where_gdal_says_it_lies(tmp_path: Path, kind: str) -> None:
    profile: dict[str, Any] = {"driver": "GTiff", "height": 60, "width": 70, "count": 1, "dtype": "uint8"}
    turned = TRANSFORM * rasterio.Affine.rotation(30)
    points = [
        rasterio.control.GroundControlPoint(row, col, float(col), float(-row), 0.0)
        for row, col in [(0, 0), (9, 3), (7, 60)]
    ]
    extra = {
        "affine": {"crs": "EPSG:32633", "transform": TRANSFORM}, "rotated": {"crs": "EPSG:32633", "transform": turned},
        "gcps": {"crs": "EPSG:4326", "gcps": points}, "rpcs": {"crs": "EPSG:4326", "rpcs": RPCS},
    }  # fmt: skip
    with rasterio.open(tmp_path / "a.tif", "w", **profile, **extra[kind]) as file:
        file.write(noise(1, 60, 70))
    window = Window(row=11, col=22, height=30, width=40)
    with open_source(tmp_path / "a.tif") as scene:
        write_strips(tmp_path / "b.tif", scene.read(window), crop_metadata(scene.metadata, window))
    with rasterio.open(tmp_path / "a.tif") as old, rasterio.open(tmp_path / "b.tif") as new:
        np.testing.assert_array_equal(new.read(), old.read(window=Part(22, 11, 40, 30)))
        assert new.crs == old.crs
        if kind in ("affine", "rotated"):
            assert new.transform.almost_equals(window_transform(Part(22, 11, 40, 30), old.transform), 1e-6)
        assert [(p.row + 11, p.col + 22) for p in new.gcps[0]] == [(p.row, p.col) for p in old.gcps[0]]
        if old.rpcs:
            assert (new.rpcs.line_off + 11, new.rpcs.samp_off + 22) == (old.rpcs.line_off, old.rpcs.samp_off)


def test_geo_summary_agrees_with_gdal(tmp_path: Path) -> None:
    for crs, point in (("EPSG:32633", "Area"), ("EPSG:4326", "Point")):
        profile = {"driver": "GTiff", "height": 60, "width": 70, "count": 1, "dtype": "uint8", "crs": crs}
        with rasterio.open(tmp_path / "a.tif", "w", **profile, transform=TRANSFORM) as file:
            file.write(noise(1, 60, 70))
            file.update_tags(AREA_OR_POINT=point)
        with open_source(tmp_path / "a.tif") as scene, rasterio.open(tmp_path / "a.tif") as file:
            assert f"EPSG:{scene.metadata['geo']['epsg']}" == crs
            np.testing.assert_allclose(scene.metadata["geo"]["transform"], list(file.transform)[:6], rtol=1e-12)


def test_descriptions_that_state_the_old_size_do_not_go_into_a_cut() -> None:
    def texts(text: str) -> list[str]:
        meta = metadata(fields=[{"code": 270, "kind": 2, "text": text}])
        return [field["text"] for field in crop_metadata(meta, Window(row=0, col=0, height=1, width=1))["fields"]]

    assert texts("a street") == ["a street"]
    assert texts("Aperio Image Library\r\n100x200") == []
    assert texts('<?xml version="1.0"?><OME><Pixels SizeX="3"/></OME>') == []


# PNG and Zarr


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("samples", [1, 2, 3, 4])
def test_png_holds_the_pixels_that_were_written(tmp_path: Path, dtype: str, samples: int) -> None:
    pixels = noise(samples, 700, 45, dtype) * np.array(200 if dtype == "uint16" else 1, dtype)
    alpha = samples - 1 if samples in (2, 4) else None
    meta = metadata(samples, alpha=alpha, extrasamples=[2] if alpha else [])
    write_strips(tmp_path / "a.png", pixels, meta, rows=77, lossy="é")
    got = imagecodecs.png_decode((tmp_path / "a.png").read_bytes())
    np.testing.assert_array_equal(np.moveaxis(got.reshape(700, 45, samples), -1, 0), pixels)


def test_a_mask_becomes_alpha_in_a_png(tmp_path: Path) -> None:
    pixels, mask = noise(3, 70, 45), np.where(noise(1, 70, 45)[0] > 99, 255, 0).astype(np.uint8)
    write_strips(tmp_path / "a.png", pixels, metadata(mask=True), mask=mask)
    got = imagecodecs.png_decode((tmp_path / "a.png").read_bytes())
    np.testing.assert_array_equal(got[..., 3], mask)


NODATA = {"code": 42113, "kind": 2, "text": "0"}


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("a.png", {"fields": [NODATA]}, "a.png does not keep the nodata value 0; a .tif or .zarr does"),
        ("a.png", {"mask": True}, ""),
        ("a.png", {"mask": True, "alpha": 3}, "a.png does not keep the mask; a .tif or .zarr does"),
        ("a.npy", {"mask": True}, "a.npy does not keep the mask; a .tif or .zarr does"),
        (
            "a.npy",
            {"mask": True, "fields": [NODATA, {"code": 33550, "kind": 12, "values": [1.0, 1.0, 0.0]}]},
            "a.npy does not keep the nodata value 0, the mask and coordinates; a .tif or .zarr does",
        ),
        ("a.tif", {"mask": True, "alpha": 3, "fields": [NODATA]}, ""),
        ("a.zarr", {"mask": True, "alpha": 3, "fields": [NODATA]}, ""),
    ],
)
def test_what_a_format_does_not_keep_is_said(name: str, changes: dict[str, Any], words: str) -> None:
    assert not_kept(Path(name), {**metadata(), "fields": [], **changes}) == ((words,) if words else ())


@pytest.mark.parametrize(("bands", "dtype"), [(2, "uint8"), (5, "uint8"), (1, "int16"), (3, "float32")])
def test_png_refuses_what_it_cannot_hold(tmp_path: Path, bands: int, dtype: str) -> None:
    with pytest.raises(ConfigError, match=r"\.tif"):
        write_strips(tmp_path / "a.png", noise(bands, 5, 5, dtype), metadata(bands, photometric=1))
    assert not list(tmp_path.iterdir())


def test_zarr_holds_pixels_mask_and_coordinates(tmp_path: Path) -> None:
    pixels, mask = noise(4, 700, 600, "int16"), np.where(noise(1, 700, 600)[0] > 99, 255, 0).astype(np.uint8)
    write_strips(tmp_path / "a.zarr", pixels, metadata(4, mask=True), mask=mask, lossy="tiny")
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="r")
    np.testing.assert_array_equal(group["image"][:], pixels)
    np.testing.assert_array_equal(group["mask"][:], mask)
    assert group.attrs["spatial:transform"] == list(TRANSFORM)[:6]
    assert group.attrs["ditic_lossy"] == "tiny"
    write_strips(tmp_path / "a.zarr", pixels[:, :9], metadata(4), overwrite=True)
    assert "mask" not in zarr.open_group(str(tmp_path / "a.zarr"), mode="r")


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_npy_holds_the_samples_as_numpy_saves_them(tmp_path: Path, dtype: str) -> None:
    pixels, mask = noise(4, 700, 600, dtype), np.full((700, 600), 255, np.uint8)
    write_strips(tmp_path / "a.npy", pixels, metadata(4, extrasamples=[2], alpha=3, mask=True), mask=mask)
    np.save(tmp_path / "b.npy", np.moveaxis(pixels, 0, -1))
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"))
    np.save(tmp_path / "b.npy", np.ascontiguousarray(np.moveaxis(pixels, 0, -1)))
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


@pytest.mark.parametrize("name", ["thesis.txt", "image/notes.txt", "zarr.json", "link"])
def test_overwriting_a_zarr_takes_no_folder_away_that_is_not_one(tmp_path: Path, name: str) -> None:
    place = tmp_path / "a.zarr"
    if name == "link":
        (tmp_path / "b").mkdir()
        place.symlink_to(tmp_path / "b")
    elif name == "zarr.json":
        write_strips(place, noise(3, 5, 5), metadata())
        (place / "thesis.txt").write_text("mine")
    else:
        (place / name).parent.mkdir(parents=True)
        (place / name).write_text("mine")
    before = stamp(tmp_path)
    with pytest.raises(ConfigError, match=r"a\.zarr .*; choose another name"):
        write_strips(place, noise(3, 5, 5), metadata(), overwrite=True)
    assert stamp(tmp_path) == before


def test_overwriting_replaces_a_zarr_or_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "a.zarr").mkdir()
    for size in (5, 6):
        write_strips(tmp_path / "a.zarr", noise(3, size, size), metadata(), overwrite=True)
        assert zarr.open_group(str(tmp_path / "a.zarr"), mode="r")["image"].shape == (3, size, size)


# all or nothing


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_error_leaves_nothing_behind_and_an_old_file_alone(tmp_path: Path, name: str) -> None:
    pixels = noise(3, 100, 50)
    write_strips(tmp_path / name, pixels, metadata())
    before = stamp(tmp_path / name)
    with pytest.raises(ConfigError, match="--overwrite"):
        write_strips(tmp_path / name, pixels, metadata())
    options: dict[str, Any] = {
        "height": 100,
        "width": 50,
        "bands": 3,
        "dtype": "uint8",
        "metadata": metadata(),
        "overwrite": True,
    }
    with pytest.raises(ZeroDivisionError), open_output(tmp_path / name, **options) as output:
        output.write(Window(row=0, col=0, height=60, width=50), pixels[:, : 60 // (1 - 1)])
    with pytest.raises(ConfigError, match="60 of 100 rows"), open_output(tmp_path / name, **options) as output:
        output.write(Window(row=0, col=0, height=60, width=50), pixels[:, :60])
    assert stamp(tmp_path / name) == before
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_second_run_to_the_same_name_is_refused_and_the_first_is_not_disturbed(tmp_path: Path, name: str) -> None:
    options: dict[str, Any] = {"height": 100, "width": 50, "bands": 3, "dtype": "uint8", "metadata": metadata()}
    pixels = noise(3, 100, 50)
    with open_output(tmp_path / name, **options) as output:
        output.write(Window(row=0, col=0, height=60, width=50), pixels[:, :60])
        for overwrite in (False, True):
            with pytest.raises(LockedError, match=rf"process {os.getpid()}\) writes .*{name}"):
                open_output(tmp_path / name, overwrite=overwrite, **options)
        output.write(Window(row=60, col=0, height=40, width=50), pixels[:, 60:])
    assert [path.name for path in tmp_path.iterdir()] == [name]
    write_strips(tmp_path / f"alone-{name}", pixels, metadata())
    assert content(tmp_path / name) == content(tmp_path / f"alone-{name}")


@pytest.mark.parametrize("linking", [True, False], ids=["links", "no links"])
@pytest.mark.parametrize("name", OUTPUTS)
def test_a_file_that_appears_meanwhile_is_left_alone(
    tmp_path: Path, name: str, linking: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "no links here")

    options: dict[str, Any] = {"height": 100, "width": 50, "bands": 3, "dtype": "uint8", "metadata": metadata()}
    pixels = noise(3, 100, 50)
    output = open_output(tmp_path / name, **options)
    output.write(Window(row=0, col=0, height=100, width=50), pixels)
    (tmp_path / name).write_text("mine")
    if not linking:
        monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(ConfigError, match="appeared"):
        output.close()
    monkeypatch.undo()
    assert (tmp_path / name).read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == [name]
    (tmp_path / name).unlink()
    write_strips(tmp_path / name, pixels, metadata())
    assert [path.name for path in tmp_path.iterdir()] == [name]


def content(path: Path) -> list[bytes]:
    return [file.read_bytes() for file in ([path] if path.is_file() else sorted(path.rglob("*"))) if file.is_file()]


def stamp(path: Path) -> list[tuple[str, int]]:
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    return [(str(file), file.stat().st_mtime_ns) for file in files]


FULL = """
import resource, sys
from pathlib import Path
import numpy as np
from ditic_stream.errors import StorageError
from ditic_stream.geometry import Window
from ditic_stream.writer import open_output
pixels = np.random.default_rng(1).integers(0, 255, (3, 2048, 2048)).astype(np.uint8)
import imagecodecs, zarr, zarr.codecs
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
meta = {"photometric": 2, "extrasamples": [], "planar": False, "alpha": None, "mask": False, "fields": []}
try:
    with open_output(sys.argv[1], height=2048, width=2048, bands=3, dtype="uint8", metadata=meta) as output:
        output.write(Window(row=0, col=0, height=2048, width=2048), pixels)
except StorageError as error:
    print(error)
"""


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_full_disk_is_one_storage_error_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / name)], capture_output=True, text=True, env=os.environ, check=False
    )
    assert "make room" in run.stdout, run.stderr
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        write_strips(tmp_path / "no" / "a.tif", noise(1, 5, 5), metadata(1))
    (tmp_path / "a.tif.partial").mkdir()
    (tmp_path / "a.tif.partial" / "file").write_text("left by a killed run")
    write_strips(tmp_path / "a.tif", noise(1, 5, 5), metadata(1))
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]
    with pytest.raises(StorageError):
        write_strips(tmp_path / ("n" * 250 + ".tif"), noise(1, 5, 5), metadata(1))


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_folder_that_is_read_only_is_a_storage_error_with_advice(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for owner, verb in ((os, "open"), (os, "unlink"), (os, "rmdir")):  # root writes where it likes
        monkeypatch.setattr(owner, verb, refuse)
    with pytest.raises(StorageError, match=r"a\..*: Read-only file system; .*run"):
        write_strips(tmp_path / name, noise(1, 5, 5), metadata(1))


def test_strips_out_of_order_or_of_another_shape_are_refused(tmp_path: Path) -> None:
    options: dict[str, Any] = {"height": 100, "width": 50, "bands": 3, "dtype": "uint8", "metadata": metadata()}
    strip = noise(3, 10, 50)
    with open_output(tmp_path / "a.tif", **options) as output:
        for row in range(0, 100, 10):
            for wrong in (row + 10, 0 if row else 20):
                with pytest.raises(WindowError):
                    output.write(Window(row=wrong, col=0, height=10, width=50), strip)
            with pytest.raises(ConfigError):
                output.write(Window(row=row, col=0, height=10, width=50), strip[:2])
            with pytest.raises(ConfigError):
                output.write(Window(row=row, col=0, height=10, width=50), strip.astype(np.uint16))
            with pytest.raises(ConfigError):
                output.write(Window(row=row, col=0, height=10, width=50), strip, strip[0])
            output.write(Window(row=row, col=0, height=10, width=50), strip)


@pytest.mark.parametrize("name", ["a.jpg", "a", "folder.tif"])
def test_names_that_say_no_format_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.tif").mkdir()
    with pytest.raises(ConfigError):
        write_strips(tmp_path / name, noise(3, 5, 5), metadata(), overwrite=True)


@pytest.mark.parametrize(
    "damage",
    [
        {"fields": 3}, {"fields": [3]}, {"fields": [{"code": 256, "kind": 3, "values": [1]}]}, {"photometric": "rgb"},
        {"fields": [{"code": 70000, "kind": 3, "values": [1]}]}, {"fields": [{"code": 700, "kind": 99, "values": [1]}]},
        {"fields": [{"code": 700, "kind": 3, "values": [70000]}]}, {"extrasamples": ["a"]},
        {"fields": [{"code": 700, "kind": 3, "values": ["x"]}]},
        {"fields": [{"code": 700, "kind": 3, "values": "12"}]}, {"fields": [{"code": 700, "kind": 3}]},
        {"fields": [{"code": 700, "kind": 1, "base64": "!"}]},
        {"fields": [{"code": 700, "kind": 12, "base64": "AAAA"}]},
        {"fields": [{"code": 700, "kind": 2, "text": "a"}] * 2}, {"photometric": 3}, {"alpha": 2}, {"alpha": "2"},
        {"extrasamples": 5}, {"extrasamples": [99999]}, {"planar": "yes"}, {"mask": 1},
        {"photometric": 1, "extrasamples": [0, 0, 0], "alpha": 3}, {"exif": 7},
        {"gps": [{"code": -1, "kind": 3, "values": [1]}]},
    ],
)  # fmt: skip
def test_hostile_metadata_is_a_format_error_and_leaves_nothing(tmp_path: Path, damage: dict[str, Any]) -> None:
    bands = 2 if damage.get("alpha") == 2 else 3
    with pytest.raises(FormatError):
        open_output(
            tmp_path / "a.tif", height=5, width=5, bands=bands, dtype="uint8", metadata={**metadata(), **damage}
        )
    assert not list(tmp_path.iterdir())


MEASURE = """
import sys
import numpy as np
from ditic_stream.geometry import Window
from ditic_stream.writer import open_output
height = int(sys.argv[2])
meta = {"photometric": 2, "extrasamples": [], "planar": False, "alpha": None, "mask": False, "fields": []}
with open_output(sys.argv[1], height=height, width=4096, bands=3, dtype="uint8", metadata=meta) as output:
    strip = np.random.default_rng(1).integers(0, 9, (3, 512, 4096)).astype(np.uint8)
    for row in range(0, height, 512):
        output.write(Window(row=row, col=0, height=512, width=4096), strip)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.parametrize("ending", [".tif", ".cog.tif", ".ome.zarr"])
def test_memory_does_not_grow_with_the_height_of_the_picture(tmp_path: Path, ending: str) -> None:
    peaks = []
    for height in (1024, 5120):
        run = subprocess.run(
            [sys.executable, "-c", MEASURE, str(tmp_path / f"{height}{ending}"), str(height)],
            capture_output=True, text=True, check=True, env=os.environ,
        )  # fmt: skip
        peaks.append(int(run.stdout))
    assert peaks[1] < peaks[0] + 20 * 1024  # 50 MB of pixels more, 20 for the allocator's moods
