"""COG: rio-cogeo and GDAL accept it, over HTTP too; overviews are means of what is in sight; no field is lost."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import numpy.typing as npt
import pytest
import rasterio
import tifffile
import zarr
from doors import geo_archive
from pictures import write_strips
from rio_cogeo.cogeo import cog_validate
from servers import serving
from test_formats import assert_same_about, bring_back

from ditic_stream import _cog_output, cli
from ditic_stream.errors import ConfigError, StorageError
from ditic_stream.geometry import Window
from ditic_stream.radiometry import survey
from ditic_stream.reader import open_source
from ditic_stream.writer import format_of, not_kept

Array = npt.NDArray[Any]
PLAIN: dict[str, Any] = {
    "photometric": 1, "extrasamples": [], "planar": False, "alpha": None, "mask": False, "fields": [],
}  # fmt: skip
GEO = [
    {"code": 33550, "kind": 12, "values": [10.0, 10.0, 0.0]},
    {"code": 33922, "kind": 12, "values": [0.0, 0.0, 0.0, 500000.0, 4600000.0, 0.0]},
    {"code": 34735, "kind": 3, "values": [1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32633]},
]


def picture(samples: int, height: int, width: int, dtype: str = "uint8") -> Array:
    slope = np.add.outer(np.linspace(0, 120, height), np.linspace(0, 60, width))
    noise = np.random.default_rng(3).integers(0, 40, (samples, height, width))
    return (slope + noise).astype(dtype)


def write(path: Path, pixels: Array, mask: Array | None = None, *, rows: int = 300, **changes: Any) -> None:
    options = {name: changes.pop(name) for name in ("format", "lossy", "overwrite") if name in changes}
    meta = {**PLAIN, "photometric": 2 if len(pixels) >= 3 else 1, "fields": GEO, "mask": mask is not None, **changes}
    write_strips(path, pixels, meta, rows=rows, mask=mask, **options)


def valid(path: Path) -> None:
    good, errors, warnings = cog_validate(path, strict=True, quiet=True)
    assert good, (errors, warnings)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize(("samples", "height", "width"), [(1, 1, 1), (3, 1100, 601), (5, 37, 1100), (2, 1025, 512)])
def test_rio_cogeo_accepts_what_is_written_and_the_pixels_are_those(
    tmp_path: Path, dtype: str, samples: int, height: int, width: int
) -> None:
    pixels = picture(samples, height, width, dtype)
    write(tmp_path / "a.cog.tif", pixels)
    valid(tmp_path / "a.cog.tif")
    with rasterio.open(tmp_path / "a.cog.tif") as file:
        np.testing.assert_array_equal(file.read(), pixels)
        assert file.crs.to_epsg() == 32633 and file.transform[2] == 500000
        assert file.overviews(1) == [2**level for level in range(1, 8) if max(height, width) > 512 * 2 ** (level - 1)]
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    with open_source(tmp_path / "a.cog.tif") as source:
        np.testing.assert_array_equal(source.read(Window(row=0, col=0, height=height, width=width)), pixels)


def test_overviews_are_means_of_four_pixels(tmp_path: Path) -> None:
    pixels = picture(3, 1024, 1200, "uint16")
    write(tmp_path / "a.cog.tif", pixels)
    with rasterio.open(tmp_path / "a.cog.tif", OVERVIEW_LEVEL=0) as file:
        means = pixels.reshape(3, 512, 2, 600, 2).mean(axis=(2, 4))
        np.testing.assert_array_equal(file.read(), np.rint(means))
        first = file.read()
    with rasterio.open(tmp_path / "a.cog.tif", OVERVIEW_LEVEL=1) as file:
        np.testing.assert_array_equal(file.read(), np.rint(first.reshape(3, 256, 2, 300, 2).mean(axis=(2, 4))))


def test_overviews_leave_out_what_is_not_in_sight(tmp_path: Path) -> None:
    """Nodata, a mask and alpha: a mean of two valid pixels and two others is that of the valid ones."""
    nodata = [{"code": 42113, "kind": 2, "text": "7"}]
    pixels = np.full((1, 600, 600), 7, np.uint8)
    pixels[0, :, ::2] = 100
    pixels[0, 300:] = 7
    pixels[0, 0, 0:2], pixels[0, 1, 0:2] = (6, 8), (6, 8)  # a mean that would be nodata
    write(tmp_path / "n.cog.tif", pixels, fields=[*GEO, *nodata])
    with rasterio.open(tmp_path / "n.cog.tif", OVERVIEW_LEVEL=0) as file:
        small = file.read(1)
        assert small[0, 0] == 8 and (small[2:150] == 100).all() and (small[150:] == 7).all()
        assert file.nodata == 7
    colours = picture(3, 600, 600)
    mask = np.zeros((600, 600), np.uint8)
    mask[::2, :400:2] = 255
    write(tmp_path / "m.cog.tif", colours, mask)
    with rasterio.open(tmp_path / "m.cog.tif", OVERVIEW_LEVEL=0) as file:
        np.testing.assert_array_equal(file.read(), colours[:, ::2, ::2])  # where none is in sight, the first of four
        assert (file.dataset_mask()[:, :200] == 255).all() and (file.dataset_mask()[:, 200:] == 0).all()
    clear = np.concatenate([colours, np.where(mask, 200, 0)[None].astype(np.uint8)])
    write(tmp_path / "a.cog.tif", clear, alpha=3, extrasamples=[2])
    with rasterio.open(tmp_path / "a.cog.tif", OVERVIEW_LEVEL=0) as file:
        np.testing.assert_array_equal(file.read()[:3, :, :200], colours[:, ::2, :400:2])
        assert (file.read(4)[:, :200] == 50).all()
        assert file.colorinterp[3] == rasterio.enums.ColorInterp.alpha
    for name in "nma":
        valid(tmp_path / f"{name}.cog.tif")


def test_not_a_number_stays_where_it_is_and_spreads_to_no_overview(tmp_path: Path) -> None:
    pixels = picture(1, 600, 600, "float32")
    pixels[0, 1::2], pixels[0, 400:] = np.nan, np.nan
    pixels[0, 0, 0] = np.inf
    write(tmp_path / "a.cog.tif", pixels, fields=[*GEO, {"code": 42113, "kind": 2, "text": "nan"}])
    with rasterio.open(tmp_path / "a.cog.tif") as file:
        np.testing.assert_array_equal(file.read(), pixels)
    with rasterio.open(tmp_path / "a.cog.tif", OVERVIEW_LEVEL=0) as file:
        small = file.read(1)
    assert np.isfinite(small[:200]).all() and np.isnan(small[200:]).all()
    assert small[0, 0] == pixels[0, 0, 1]


def test_a_mask_is_read_with_its_tiles_over_http(tmp_path: Path) -> None:
    """GDAL trusts the ghost area: it reads a tile and its mask by one range, and finds the right bytes there."""
    pixels, mask = picture(3, 1500, 1300), np.where(picture(1, 1500, 1300)[0] > 90, 255, 0).astype(np.uint8)
    write(tmp_path / "a.cog.tif", pixels, mask)
    valid(tmp_path / "a.cog.tif")
    options = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_HTTP_MULTIRANGE": "SINGLE_GET", "VSI_CACHE": False}
    with (
        serving(tmp_path) as server,
        rasterio.Env(**options),
        rasterio.open(f"/vsicurl/{server.url}/a.cog.tif") as file,
    ):
        opened = len(server.requests)
        part = rasterio.windows.Window(512, 512, 512, 512)
        np.testing.assert_array_equal(file.read(window=part), pixels[:, 512:1024, 512:1024])
        np.testing.assert_array_equal(file.dataset_mask(window=part), mask[512:1024, 512:1024])
        assert len(server.requests) - opened <= 2
        np.testing.assert_array_equal(file.read(), pixels)
        np.testing.assert_array_equal(file.dataset_mask(), mask)


def test_fields_exif_and_the_lossy_mark_are_in_a_cog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = [
        *GEO, {"code": 305, "kind": 2, "text": "a camera"}, {"code": 700, "kind": 1, "base64": "PHg+"},
        {"code": 42112, "kind": 2, "text": '<GDALMetadata><Item name="A">b</Item></GDALMetadata>'},
    ]  # fmt: skip
    exif = [{"code": 33434, "kind": 5, "values": [1, 200]}]
    pixels = picture(3, 700, 600)
    for limit, name in ((2**32, "a.cog.tif"), (1000, "b.cog.tif")):
        monkeypatch.setattr(_cog_output, "CLASSIC_LIMIT", limit)
        write(tmp_path / name, pixels, fields=fields, exif=exif, lossy="by <x>")
        valid(tmp_path / name)
        assert (tmp_path / name).read_bytes()[2] == (42 if limit > 1000 else 43)
        with rasterio.open(tmp_path / name) as file:
            assert file.tags()["DITIC_LOSSY"] == "by <x>" and file.tags()["A"] == "b"
            np.testing.assert_array_equal(file.read(), pixels)
        with tifffile.TiffFile(tmp_path / name) as tiff:
            tags = tiff.pages.first.tags
            assert tags[34665].value == {"ExposureTime": (1, 200)}
            assert tags[305].value == "a camera" and tags[700].value == b"<x>"


@pytest.mark.parametrize("rows", [1, 511, 2000])
def test_the_bytes_of_a_cog_do_not_depend_on_the_height_of_the_strips(tmp_path: Path, rows: int) -> None:
    pixels, mask = picture(3, 1100, 601), np.where(picture(1, 1100, 601)[0] > 90, 255, 0).astype(np.uint8)
    write(tmp_path / "a.cog.tif", pixels, mask)
    write(tmp_path / "b.cog.tif", pixels, mask, rows=rows)
    assert (tmp_path / "a.cog.tif").read_bytes() == (tmp_path / "b.cog.tif").read_bytes()


def test_many_bands_get_smaller_tiles(tmp_path: Path) -> None:
    pixels = picture(17, 300, 520, "float32")
    write(tmp_path / "a.cog.tif", pixels)
    with rasterio.open(tmp_path / "a.cog.tif") as file:
        assert file.block_shapes[0] == (256, 256)
        np.testing.assert_array_equal(file.read(), pixels)
    valid(tmp_path / "a.cog.tif")


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cog_output._Level, "append", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(StorageError, match="make room"):
        write(tmp_path / "a.cog.tif", picture(1, 600, 600))
    assert list(tmp_path.iterdir()) == []


def test_a_format_is_named_by_the_ending_or_beside_it(tmp_path: Path) -> None:
    names = {"a.tif": "tif", "a.COG.TIF": "cog", "a.cog.tiff": "cog", "a.btf": "bigtiff", "a.ome.zarr": "ome-zarr",
             "a.b.zarr": "zarr", "a.png": "png"}  # fmt: skip
    assert {name: format_of(Path(name)) for name in names} == names
    assert format_of(Path("a.tif"), "cog") == "cog" and format_of(Path("a.zarr"), "ome-zarr") == "ome-zarr"
    for name, kind in (("a.png", "cog"), ("a.zarr", "tif"), ("a.jpg", None), ("a.tif", "jpg")):
        with pytest.raises(ConfigError, match=r"use|let its name end in"):
            format_of(Path(name), kind)
    pixels = picture(1, 30, 40)
    write(tmp_path / "a.tif", pixels, format="bigtiff")
    write(tmp_path / "b.tf8", pixels)
    for name in ("a.tif", "b.tf8"):
        assert (tmp_path / name).read_bytes()[2] == 43
        with rasterio.open(tmp_path / name) as file:
            np.testing.assert_array_equal(file.read(), pixels)


def test_every_output_of_an_archive_holds_the_same_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ditic_stream.codec", fakes.module())
    archive = geo_archive(tmp_path / "a", mask=True)
    plain, folder = archive.with_name("plain.tif"), archive.parent

    def run(*arguments: str | Path) -> int:
        with pytest.raises(SystemExit) as leaving:
            cli.main([str(one) for one in (*arguments, "--workers", "1")])
        return int(leaving.value.code or 0)

    assert run("decompress", archive, plain) == 0
    assert run("decompress", archive, "--format", "cog") == 0
    assert run("decompress", archive, folder / "b.tif", "--format", "cog") == 0
    assert run("decompress", archive, folder / "b.ome.zarr") == 0
    assert run("decompress", archive, folder / "b.btf") == 0
    assert run("region", archive, folder / "c.tif", "--format", "cog", "--window", "30,40,200,100") == 0
    valid(folder / "scene.decoded.cog.tif")
    assert (folder / "scene.decoded.cog.tif").read_bytes() == (folder / "b.tif").read_bytes()
    with rasterio.open(plain) as expected:
        pixels, mask = expected.read(), expected.dataset_mask()
        for name in ("b.tif", "b.btf"):
            with rasterio.open(folder / name) as file:
                np.testing.assert_array_equal(file.read(), pixels)
                np.testing.assert_array_equal(file.dataset_mask(), mask)
                assert file.tags() == expected.tags() and "fake" in file.tags()["DITIC_LOSSY"]
                assert (file.crs, file.transform) == (expected.crs, expected.transform)
    group = zarr.open_group(folder / "b.ome.zarr", mode="r")
    np.testing.assert_array_equal(group["0"][...], pixels)
    np.testing.assert_array_equal(group["labels/mask/0"][...], mask)
    assert "fake" in group.attrs["ditic_lossy"]
    with rasterio.open(folder / "c.tif") as file:
        np.testing.assert_array_equal(file.read(), pixels[:, 40:140, 30:230])
    capsys.readouterr()
    assert run("decompress", archive, folder / "c.png", "--format", "cog") == 1
    assert "cannot be of format cog" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    [
        "cog__goes.tif", "geo__RGBA.uint16.tif", "gcp__cog_gcps_ovr.tif", "geo__image_with_offsets.tif",
        "planar__tiff_strip_planar_raw_with_overviews.tif", "ome__test_image.ome.tif", "float__cog_gradient.tif",
        "geo__dataset_namespace_metadata.tif",
    ],
)  # fmt: skip
def test_a_real_file_says_the_same_as_a_cog_as_it_does_as_a_tif(shared: Path, tmp_path: Path, name: str) -> None:
    """Without the codec between: GDAL sees the same pixels, masks, place, bands and tags."""
    with open_source(shared / "data" / "scenes" / name) as source:
        radiometry = survey(source)
        for target in ("a.tif", "a.cog.tif"):
            bring_back(source, tmp_path / target, radiometry)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        valid(tmp_path / "a.cog.tif")
        assert_same_about(tmp_path / "a.tif", tmp_path / "a.cog.tif")
        with rasterio.open(tmp_path / "a.tif") as plain, rasterio.open(tmp_path / "a.cog.tif") as file:
            np.testing.assert_array_equal(file.read(), plain.read())
            np.testing.assert_array_equal(file.dataset_mask(), plain.dataset_mask())


def test_channels_with_pages_of_their_own_become_bands_and_lose_what_described_the_pages(tmp_path: Path) -> None:
    pixels = picture(2, 600, 520)
    fields = [{"code": 270, "kind": 2, "text": "<OME><Image/></OME>"}, {"code": 305, "kind": 2, "text": "a scope"}]
    meta = {"pages": True, "fields": [*GEO, *fields]}
    write(tmp_path / "a.cog.tif", pixels, **meta)
    valid(tmp_path / "a.cog.tif")
    with open_source(tmp_path / "a.cog.tif") as source:
        np.testing.assert_array_equal(source.read(Window(row=0, col=0, height=600, width=520)), pixels)
    with tifffile.TiffFile(tmp_path / "a.cog.tif") as tiff:
        assert tiff.pages.first.description == "" and tiff.pages.first.tags[305].value == "a scope"
    (sentence,) = not_kept(tmp_path / "a.tif", meta, "cog")
    assert "the description of their pages" in sentence and not_kept(tmp_path / "a.tif", meta) == ()
