"""Real files go through and come back as GDAL saw them, or are refused in one sentence; docs/formats.md says which."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
import tifffile

from ditic_stream.errors import SourceError
from ditic_stream.geometry import Window
from ditic_stream.radiometry import Radiometry, from_network, join_alpha, mask_of, read_window, survey, to_network
from ditic_stream.reader import Source, open_source
from ditic_stream.writer import crop_metadata, open_output

Array = npt.NDArray[Any]
ROOT = Path(__file__).resolve().parents[1]
SCENES = Path(os.environ.get("DITIC_SHARED", ROOT.parent / "shared")) / "data" / "scenes"
FILES = sorted(path.name for path in SCENES.iterdir() if path.suffix != ".csv") if SCENES.is_dir() else []
LARGE = {"big__cog_world.tif"}
"""648 million pixels: half a minute."""
JPEG_IN_TIFF = {
    "cog__cogeo.tif", "cog__goes.tif", "cog__image_geos.tif", "cog__cog_hirise_mars.tif", "codec__quad-tile.jpg.tiff",
    "codec__old-style-jpeg-compression.tif",
}  # fmt: skip
"""YCbCr at half resolution, which GDAL interpolates differently: pixels are compared with tifffile, masks with GDAL."""
GDAL_CANNOT = {"ome__OS-1-detail.ome.tif"}
"""GDAL opens it and fails to read it."""

REFUSED = {
    "bits__tiled-gray-i1.tif", "cmyk__tiled-cmyk-i8.tif", "complex__slc.tif", "float__image_nan.tif",
    "lab__hopper.Lab.tif", "multipage__multipage.tiff", "orient__g4_orientation_5.tif", "palette__cog_cmap.tif",
    "palette__image_colormap.tif", "palette__palette-1c-8b.tiff", "tile__tiled-oversize-gray-i8.tif",
}  # fmt: skip
"""Kinds that could not come back.  Hostile files are refused but for one, whose strips say too much of their height."""
HARMLESS = "hostile__tiff_overflow_rows_per_strip.tif"


def as_parameters(names: list[str]) -> list[Any]:
    return [pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else []) for name in names]


def bring_back(source: Source, target: Path, radiometry: Radiometry) -> None:
    """Source to network units and back into a file, without the codec between: what is lost here is lost for good."""
    metadata = json.loads(json.dumps(source.metadata, allow_nan=False))
    with open_output(
        target,
        height=source.height,
        width=source.width,
        bands=source.bands,
        dtype=source.dtype,
        metadata=metadata,
        lossy="x",
    ) as output:
        for row in range(0, source.height, 700):
            window = Window(row=row, col=0, height=min(700, source.height - row), width=source.width)
            pixels, planes = read_window(source, window, radiometry)
            got = from_network(to_network(pixels, planes, radiometry), planes, radiometry)
            output.write(window, join_alpha(got, planes, radiometry), mask_of(planes, radiometry))


def clipped(source: Source, radiometry: Radiometry) -> bool:
    """True when some extreme values lie where the network input is clipped."""
    return any(
        band.high > band.offset + 1.5 * band.scale or band.low < band.offset - 0.5 * band.scale
        for band in radiometry.bands
    )


@pytest.mark.parametrize("name", as_parameters(FILES))
def test_a_real_file_comes_back_as_gdal_saw_it_or_is_refused_in_one_sentence(
    shared: Path, tmp_path: Path, name: str
) -> None:
    path = shared / "data" / "scenes" / name
    if name in REFUSED or (name.startswith("hostile") and name != HARMLESS):
        with pytest.raises(SourceError) as caught:
            open_source(path)
        text = str(caught.value)
        assert text.startswith(f"{name}: ")
        assert "\n" not in text
        assert len(text) < 300
        return
    with open_source(path) as source:
        radiometry = survey(source)
        bring_back(source, tmp_path / "a.tif", radiometry)
        exact = source.dtype != "float32" and not clipped(source, radiometry)
        scale = max(band.scale for band in radiometry.bands)
    assert_same_about(path, tmp_path / "a.tif")
    if name.startswith(("big__", "hostile")):
        return  # too many pixels to hold, or damage that others refuse
    assert_same_masks(path, tmp_path / "a.tif")
    old, new = pixels_of(path), pixels_of(tmp_path / "a.tif")
    if exact:
        np.testing.assert_array_equal(new, old)
    elif not clipped(source, radiometry):
        np.testing.assert_allclose(new, old, rtol=0, atol=scale * 2.0**-22)  # 24 bits of the range, twice rounded


def pixels_of(path: Path) -> Array:
    with tifffile.TiffFile(path) as file:
        return bands_first(file.pages.first)


def bands_first(page: Any) -> Array:
    pixels: Array = page.asarray()
    if page.samplesperpixel > 1 and page.planarconfig == 1:
        pixels = np.moveaxis(pixels, -1, 0)
    return pixels.reshape(page.samplesperpixel, *pixels.shape[-2:])


def assert_same_about(old_path: Path, new_path: Path) -> None:
    """GDAL says the same about both files, their pixels aside."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(old_path) as old, rasterio.open(new_path) as new:
            names = ("width", "height", "count", "dtypes", "crs", "transform", "colorinterp", "mask_flag_enums")
            for name in (*names, "descriptions", "scales", "offsets", "units"):
                assert getattr(new, name) == getattr(old, name), name
            assert repr(new.nodatavals) == repr(old.nodatavals)
            assert [p.asdict() | {"id": ""} for p in new.gcps[0]] == [p.asdict() | {"id": ""} for p in old.gcps[0]]
            assert new.gcps[1] == old.gcps[1]
            assert (new.rpcs and new.rpcs.to_gdal()) == (old.rpcs and old.rpcs.to_gdal())
            assert new.tags() == {**old.tags(), "DITIC_LOSSY": "x"}
            for band in old.indexes:
                assert new.tags(band) == old.tags(band)
            for domain in set(old.tag_namespaces()) - {"IMAGE_STRUCTURE", "SUBDATASETS", "DERIVED_SUBDATASETS"}:
                assert new.tags(ns=domain) == old.tags(ns=domain), domain
    if old_path.name.startswith("hostile"):
        return
    with tifffile.TiffFile(old_path) as old_file, tifffile.TiffFile(new_path) as new_file:
        for code in (34675, 274, 282, 283, 296, 270, 305, 306, 34735, 34736, 34737, 42113):
            tags = [file.pages.first.tags.get(code) for file in (old_file, new_file)]
            assert (tags[0] and tags[0].value) == (tags[1] and tags[1].value), code


def assert_same_masks(old_path: Path, new_path: Path) -> None:
    if old_path.name in GDAL_CANNOT:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(old_path) as old, rasterio.open(new_path) as new:
            np.testing.assert_array_equal(new.dataset_mask(), old.dataset_mask())
            np.testing.assert_array_equal(new.read_masks(), old.read_masks())
            difference = np.abs(new.read().astype(np.float64) - old.read().astype(np.float64))
            if old_path.name in JPEG_IN_TIFF:
                assert np.nanmean(difference) < 1  # chroma at edges, nothing else


HOSTILE = """
import sys, time
from ditic_stream.errors import SourceError
from ditic_stream.geometry import Window
from ditic_stream.reader import open_source
for name in sys.argv[1:]:
    start, said = time.monotonic(), "read"
    try:
        with open_source(name) as source:
            source.read(Window(row=0, col=0, height=min(4096, source.height), width=min(4096, source.width)))
    except SourceError as error:
        said = "refused"
    print(said, time.monotonic() - start, sep=",")
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def test_hostile_files_are_refused_or_survived_in_bounded_time_and_memory(shared: Path) -> None:
    files = sorted(str(path) for path in (shared / "data" / "scenes").glob("hostile__*"))
    run = subprocess.run(
        [sys.executable, "-c", HOSTILE, *files], capture_output=True, text=True, check=True, env=os.environ, timeout=100
    )
    *lines, peak = run.stdout.split()
    assert len(lines) == len(files) >= 18
    assert max(float(line.split(",")[1]) for line in lines) < 10
    assert int(peak) < 500 * 1024


WORLD = """
import sys
from ditic_stream.geometry import Window
from ditic_stream.reader import open_source
with open_source(sys.argv[1]) as source:
    source.read(Window(row=9000, col=20000, height=1024, width=1024))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def test_a_window_of_648_million_pixels_takes_less_than_100_mb(shared: Path) -> None:
    path = shared / "data" / "scenes" / "big__cog_world.tif"
    command = [sys.executable, "-c", WORLD, str(path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    assert int(run.stdout) < 100 * 1024


def test_the_table_in_the_docs_is_what_a_fresh_run_finds(shared: Path) -> None:
    path = ROOT / "benchmarks" / "formats.py"
    spec = importlib.util.spec_from_file_location("formats_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    fresh = module.page_with(module.table(shared / "data" / "scenes"))
    assert fresh == (ROOT / "docs" / "formats.md").read_text(encoding="utf-8"), "run python benchmarks/formats.py"


# files as GDAL writes them


def gdal_file(path: Path, pixels: Array, **options: Any) -> None:
    count, height, width = pixels.shape
    transform = rasterio.Affine(10, 0, 500000, 0, -10, 4600000)
    profile = {"driver": "GTiff", "height": height, "width": width, "count": count, "dtype": str(pixels.dtype)}
    with rasterio.open(path, "w", **profile, crs="EPSG:32633", transform=transform, **options) as file:
        file.write(pixels)


def smooth(count: int, dtype: str) -> Array:
    rows, cols = np.mgrid[:300, :270]
    return np.stack([(rows * (band + 1) + cols) % 200 + 20 for band in range(count)]).astype(dtype)


GDAL_KINDS: dict[str, tuple[int, str, dict[str, Any]]] = {
    "deflate": (3, "uint8", {"compress": "deflate", "predictor": 2, "tiled": True}),
    "zstd16": (5, "uint16", {"compress": "zstd", "predictor": 2, "interleave": "band"}),
    "lzw_int16": (1, "int16", {"compress": "lzw", "predictor": 2, "blockysize": 3}),
    "float_predictor": (2, "float32", {"compress": "deflate", "predictor": 3, "tiled": True}),
    "big_endian": (3, "uint16", {"endianness": "big", "compress": "lzw"}),
    "bigtiff": (3, "uint8", {"bigtiff": "yes"}),
    "webp": (4, "uint8", {"compress": "webp", "webp_lossless": True, "tiled": True}),
    "lerc": (1, "float32", {"compress": "lerc", "tiled": True}),
    "lerc_zstd": (3, "uint16", {"compress": "lerc_zstd", "interleave": "pixel"}),
    "lerc_deflate": (1, "int16", {"compress": "lerc_deflate"}),
    "lzma": (1, "uint8", {"compress": "lzma"}),
    "packbits": (3, "uint8", {"compress": "packbits"}),
    "bits12": (1, "uint16", {"nbits": 12, "compress": "deflate"}),
    "jpeg_gray": (1, "uint8", {"compress": "jpeg", "tiled": True}),
    "jpeg_bands": (5, "uint8", {"compress": "jpeg", "interleave": "band"}),
    "jpeg_rgba": (4, "uint8", {"compress": "jpeg", "photometric": "rgb", "alpha": "unspecified"}),
    "cmyk": (4, "uint8", {"photometric": "cmyk", "compress": "lzw"}),
    "minwhite": (1, "uint8", {"photometric": "miniswhite"}),
    "premultiplied": (4, "uint16", {"photometric": "rgb", "alpha": "premultiplied"}),
    "sparse": (1, "uint8", {"sparse_ok": True, "tiled": True, "nodata": 77}),
    "nodata": (2, "int16", {"nodata": 25}),
    "nan": (1, "float32", {"nodata": float("nan"), "compress": "lerc"}),
}


@pytest.mark.parametrize("kind", GDAL_KINDS)
def test_what_gdal_writes_comes_back_as_gdal_saw_it(tmp_path: Path, kind: str) -> None:
    count, dtype, options = GDAL_KINDS[kind]
    pixels = smooth(count, dtype)
    if kind == "sparse":
        pixels[:, 20:] = 77
    if dtype == "float32":
        pixels[:, 5:9, 40:200] = np.nan
    gdal_file(tmp_path / "a.tif", pixels, **options)
    with open_source(tmp_path / "a.tif") as source:
        bring_back(source, tmp_path / "b.tif", survey(source))
    with rasterio.open(tmp_path / "a.tif") as old, rasterio.open(tmp_path / "b.tif") as new:
        np.testing.assert_allclose(new.read(), old.read(), rtol=0, atol=1e-4 if dtype == "float32" else 0)
        np.testing.assert_array_equal(new.read_masks(), old.read_masks())
    assert_same_about(tmp_path / "a.tif", tmp_path / "b.tif")


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_mask_that_gdal_writes_into_the_file_comes_back(tmp_path: Path, dtype: str) -> None:
    pixels, mask = smooth(3, dtype), np.zeros((300, 270), np.uint8)
    mask[40:200, 3:150] = 255
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        gdal_file(tmp_path / "a.tif", pixels, tiled=True)
        with rasterio.open(tmp_path / "a.tif", "r+") as file:
            file.write_mask(mask)
    with open_source(tmp_path / "a.tif") as source:
        assert source.has_mask
        bring_back(source, tmp_path / "b.tif", survey(source))
    assert_same_about(tmp_path / "a.tif", tmp_path / "b.tif")
    assert_same_masks(tmp_path / "a.tif", tmp_path / "b.tif")


@pytest.mark.parametrize("kind", ["ome", "imagej"])
def test_channels_in_pages_come_back_in_pages_with_the_description_that_is_true_of_them(
    tmp_path: Path, kind: str
) -> None:
    pixels, options = smooth(4, "uint16"), {kind: True}
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack", metadata={"axes": "CYX"}, **options)
    with open_source(tmp_path / "a.tif") as source:
        bring_back(source, tmp_path / "b.tif", survey(source))
    with tifffile.TiffFile(tmp_path / "a.tif") as old, tifffile.TiffFile(tmp_path / "b.tif") as new:
        assert len(new.pages) == 4
        assert new.series[0].axes == old.series[0].axes == "CYX"
        assert new.pages.first.description == old.pages.first.description
        np.testing.assert_array_equal(new.asarray(), pixels)
    with open_source(tmp_path / "b.tif") as again:
        assert (again.bands, again.dtype) == (4, "uint16")


def test_a_cut_of_channels_in_pages_is_one_picture_once_its_description_is_gone(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", smooth(3, "uint8"), ome=True, metadata={"axes": "CYX"})
    window = Window(row=9, col=5, height=40, width=50)
    with open_source(tmp_path / "a.tif") as source:
        cut, pixels = crop_metadata(source.metadata, window), source.read(window)
    with open_output(tmp_path / "b.tif", height=40, width=50, bands=3, dtype="uint8", metadata=cut) as output:
        output.write(Window(row=0, col=0, height=40, width=50), pixels)
    with open_source(tmp_path / "b.tif") as again:
        np.testing.assert_array_equal(again.read(Window(row=0, col=0, height=40, width=50)), pixels)
