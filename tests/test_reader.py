"""Windows of every ordinary picture equal the crop of a whole read by another library; damage gives one clear error."""

from __future__ import annotations

import hashlib
import io
import os
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image

from ditic_stream import _tiff_segments
from ditic_stream.errors import SourceError, WindowError
from ditic_stream.geometry import Window
from ditic_stream.reader import open_source

Array = npt.NDArray[Any]
HEIGHT, WIDTH = 150, 170


def picture(samples: int = 3, dtype: str = "uint8") -> Array:
    """A seeded picture (rows, columns, samples) with gradients, edges and a little noise."""
    rows, cols = np.mgrid[:HEIGHT, :WIDTH]
    planes = [(rows * (n + 1) + cols * (3 - n % 3)) % 251 for n in range(samples)]
    values = np.stack(planes, -1) + np.random.default_rng(7).integers(0, 5, (HEIGHT, WIDTH, samples))
    if dtype == "float32":
        return (values / 7 - 10).astype(dtype)
    return (values * {"uint16": 200, "int16": 100}.get(dtype, 1) - (9000 if dtype == "int16" else 0)).astype(dtype)


def windows(height: int, width: int, count: int = 12) -> list[Window]:
    """Seeded windows of all sorts, the whole and single pixels among them."""
    rnd = random.Random(height * width)
    out = [Window(row=0, col=0, height=height, width=width), Window(row=height - 1, col=width - 1, height=1, width=1)]
    for _ in range(count):
        rows, cols = rnd.randint(1, height), rnd.randint(1, width)
        out.append(Window(row=rnd.randint(0, height - rows), col=rnd.randint(0, width - cols), height=rows, width=cols))
    return out


def assert_windows_equal(path: Path, whole: Array, **options: bool) -> None:
    """Every window read from `path` equals the crop of `whole` (bands, rows, columns)."""
    with open_source(path, **options) as source:
        assert (source.bands, source.height, source.width) == whole.shape
        assert source.dtype == str(whole.dtype)
        for window in windows(source.height, source.width):
            pixels = source.read(window)
            rows, cols = slice(window.row, window.row_end), slice(window.col, window.col_end)
            np.testing.assert_array_equal(pixels, whole[:, rows, cols])
            assert pixels.dtype == whole.dtype


def bands_first(values: Array) -> Array:
    return values[None] if values.ndim == 2 else np.moveaxis(values, -1, 0)


LOSSLESS = ["none", "lzw", "zlib", "zstd", "lzma", "packbits", "jpeg2000", "jpegxl", "webp", "lerc"]


@pytest.mark.parametrize("codec", [*LOSSLESS, "jpeg"])
@pytest.mark.parametrize("cut", [{"tile": (64, 48)}, {"rowsperstrip": 16}], ids=["tiles", "strips"])
def test_windows_equal_the_crop_of_the_whole_for_every_codec(tmp_path: Path, codec: str, cut: dict[str, Any]) -> None:
    pixels = picture()
    arguments = {"webp": {"lossless": True}, "jpegxl": {"lossless": True}, "jpeg2000": {"reversible": True}}
    tifffile.imwrite(
        tmp_path / "a.tif", pixels, photometric="rgb", compression=None if codec == "none" else codec,
        compressionargs=arguments.get(codec), metadata=None, **cut,
    )  # fmt: skip
    whole = tifffile.imread(tmp_path / "a.tif")
    if codec in LOSSLESS:
        np.testing.assert_array_equal(whole, pixels)
    assert_windows_equal(tmp_path / "a.tif", bands_first(whole))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
@pytest.mark.parametrize("big", [False, True], ids=["classic", "bigtiff"])
@pytest.mark.parametrize("codec", [None, "zlib"])
def test_every_type_order_and_predictor_is_read(
    tmp_path: Path, dtype: str, order: Any, big: bool, codec: str | None
) -> None:
    pixels = picture(2, dtype)
    predictor = None if codec is None else 3 if dtype == "float32" else 2
    for planar, values in (("contig", pixels), ("separate", np.moveaxis(pixels, -1, 0).copy())):
        path = tmp_path / f"{planar}.tif"
        tifffile.imwrite(
            path, values, photometric="minisblack", planarconfig=planar, compression=codec, predictor=predictor,
            byteorder=order, bigtiff=big, tile=(32, 64), metadata=None,
        )  # fmt: skip
        assert_windows_equal(path, bands_first(pixels))


@pytest.mark.parametrize("rows", [1, 7, 150, 2**32 - 1])
def test_uncompressed_strips_are_read_in_any_height(tmp_path: Path, rows: int) -> None:
    pixels = picture(3, "uint16")
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", rowsperstrip=min(rows, HEIGHT), metadata=None)
    if rows > HEIGHT:
        with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as file:
            file.pages.first.tags[278].overwrite(rows, dtype="I")
    assert_windows_equal(tmp_path / "a.tif", bands_first(pixels))


def test_ycbcr_jpeg_in_tiff_comes_as_rgb(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    pixels = np.full((64, 64, 3), (200, 30, 60), np.uint8)
    profile = {"driver": "GTiff", "height": 64, "width": 64, "count": 3, "dtype": "uint8"}
    profile["transform"] = rasterio.Affine(1, 0, 7, 0, -1, 9)  # without one, rasterio warns
    with rasterio.open(tmp_path / "a.tif", "w", **profile, compress="jpeg", photometric="ycbcr") as file:
        file.write(np.moveaxis(pixels, -1, 0))
    with open_source(tmp_path / "a.tif") as source:
        read = source.read(Window(row=0, col=0, height=64, width=64))
        assert source.metadata["photometric"] == 2
    assert (
        np.abs(read.astype(int) - np.moveaxis(pixels, -1, 0)).max() <= 2
    )  # a flat colour survives JPEG but for rounding


@pytest.mark.parametrize("bits", [9, 10, 12, 15])
def test_packed_samples_come_in_words_of_16_bits(tmp_path: Path, bits: int) -> None:
    pixels = (picture(1, "uint16")[..., 0] % (1 << bits)).astype(np.uint16)
    packed = imagecodecs.packints_encode(pixels, bits, runlen=WIDTH)
    write_raw(tmp_path / "a.tif", bytes(packed), height=HEIGHT, width=WIDTH, bits=bits)
    assert_windows_equal(tmp_path / "a.tif", pixels[None])
    with open_source(tmp_path / "a.tif") as source:
        assert any(f"{bits} bits" in note for note in source.warnings)


def write_raw(path: Path, data: bytes, **changes: int) -> None:
    """A one-strip little-endian TIFF by hand: the tests' own writer, for what no library writes."""
    tags = {256: changes["width"], 257: changes["height"], 258: changes.get("bits", 8), 259: 1, 262: 1, 273: 8, 277: 1,
            278: changes["height"], 279: len(data)}  # fmt: skip
    tags |= {int(key[1:]): value for key, value in changes.items() if key.startswith("t")}
    body = struct.pack("<H", len(tags)) + b"".join(
        struct.pack("<HHII", code, 4, 1, tags[code]) for code in sorted(tags)
    )
    path.write_bytes(struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + body + bytes(4))


def test_bits_in_reverse_order_are_read(tmp_path: Path) -> None:
    pixels = picture(1)[..., 0]
    write_raw(
        tmp_path / "a.tif", bytes(imagecodecs.bitorder_encode(pixels.tobytes())), height=HEIGHT, width=WIDTH, t266=2
    )
    assert_windows_equal(tmp_path / "a.tif", pixels[None])


def test_absent_tiles_read_as_nodata(tmp_path: Path) -> None:
    tile = np.full((64, 64), 9, np.uint8)
    tifffile.imwrite(
        tmp_path / "a.tif", iter([tile, None, None, tile]), shape=(128, 128), dtype="uint8", tile=(64, 64),
        compression="zlib", photometric="minisblack", metadata=None, extratags=[(42113, "s", 0, "77", True)],
    )  # fmt: skip
    whole = np.full((1, 128, 128), 77, np.uint8)
    whole[0, :64, :64] = whole[0, 64:, 64:] = 9
    assert_windows_equal(tmp_path / "a.tif", whole)


def channels(count: int, dtype: str) -> Array:
    """A seeded picture (bands, rows, columns)."""
    return np.ascontiguousarray(bands_first(picture(count, dtype)))


@pytest.mark.parametrize("kind", ["ome", "imagej"])
@pytest.mark.parametrize("codec", [None, "zlib"])
@pytest.mark.parametrize("cut", [{"tile": (128, 128)}, {"rowsperstrip": 16}], ids=["tiles", "strips"])
@pytest.mark.parametrize(("count", "dtype"), [(2, "uint8"), (3, "uint16"), (5, "uint8")])
def test_channels_in_pages_of_their_own_are_read_as_bands(
    tmp_path: Path, kind: str, codec: str | None, cut: dict[str, Any], count: int, dtype: str
) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif", channels(count, dtype), photometric="minisblack", compression=codec,
        metadata={"axes": "CYX"}, **{kind: True}, **cut,
    )  # fmt: skip
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert len(file.pages) == count
    assert_windows_equal(tmp_path / "a.tif", tifffile.imread(tmp_path / "a.tif"))


def ome_xml(blocks: str, *, size_c: int = 3, size_z: int = 1, size_t: int = 1) -> str:
    return (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
        f'<Pixels ID="Pixels:0" DimensionOrder="XYZTC" Type="uint8" SizeX="{WIDTH}" SizeY="{HEIGHT}" '
        f'SizeC="{size_c}" SizeZ="{size_z}" SizeT="{size_t}">{blocks}</Pixels></Image></OME>'
    )


def write_pages(path: Path, pages: list[Array], description: str) -> None:
    with tifffile.TiffWriter(path) as file:
        for number, page in enumerate(pages):
            said = description if number == 0 else None
            file.write(page, photometric="minisblack", description=said, metadata=None)


def test_ome_channels_are_taken_from_the_pages_that_tiff_data_names(tmp_path: Path) -> None:
    planes = channels(3, "uint8")
    blocks = "".join(f'<TiffData FirstC="{channel}" IFD="{page}"/>' for channel, page in enumerate((2, 0, 1)))
    write_pages(tmp_path / "a.tif", [planes[1], planes[2], planes[0]], ome_xml(blocks))
    assert_windows_equal(tmp_path / "a.tif", planes)
    with open_source(tmp_path / "a.tif") as source:
        assert any("description is not kept" in note for note in source.warnings)
        assert "pages" not in source.metadata


@pytest.mark.parametrize(
    ("description", "words"),
    [
        (ome_xml("", size_c=1, size_z=3), "3 planes in depth"),
        (ome_xml("", size_c=1, size_t=3), "3 moments in time"),
        (ome_xml("", size_c=4), "4 channels"),
        (ome_xml('<TiffData IFD="1" PlaneCount="3"/>'), "3 channels"),
        (ome_xml('<TiffData IFD="one"/>'), "numbers"),
        (ome_xml("", size_c=3)[:-9], "OME-XML cannot be read"),
        ("<!DOCTYPE OME [<!ENTITY a 'b'>]>" + ome_xml(""), "entities"),
        (ome_xml("").replace("</OME>", '<Image ID="Image:1"><Pixels/></Image></OME>'), "3 pictures"),
        ("ImageJ=1.53\nimages=3\nslices=3\n", "3 planes in depth"),
        ("ImageJ=1.53\nimages=3\nframes=3\n", "3 moments in time"),
        ("ImageJ=1.53\nimages=9\nchannels=9\n", "9 pictures, 3 are listed"),
        ("ImageJ=1.53\nimages=3\n", "3 pictures"),
        ("", "3 pictures"),
    ],
)
def test_pages_that_are_not_channels_of_one_picture_are_refused_with_advice(
    tmp_path: Path, description: str, words: str
) -> None:
    write_pages(tmp_path / "a.tif", list(channels(3, "uint8")), description)
    with pytest.raises(SourceError, match=words) as caught:
        open_source(tmp_path / "a.tif")
    assert len(str(caught.value)) < 300


def test_channels_of_unlike_pages_are_refused_with_advice(tmp_path: Path) -> None:
    planes = channels(3, "uint8")
    write_pages(tmp_path / "a.tif", [planes[0], planes[1], planes[2, 1:]], ome_xml(""))
    with pytest.raises(SourceError, match="channel 2 is stored unlike"):
        open_source(tmp_path / "a.tif")


def test_ome_tiff_of_one_page_is_read_with_its_overviews_left(tmp_path: Path) -> None:
    planes = channels(3, "uint8")
    tifffile.imwrite(
        tmp_path / "one.ome.tif", planes, photometric="minisblack", planarconfig="separate", metadata={"axes": "CYX"}
    )
    assert_windows_equal(tmp_path / "one.ome.tif", planes)
    with tifffile.TiffWriter(tmp_path / "levels.ome.tif") as file:
        file.write(picture(), photometric="rgb", tile=(64, 64), subifds=1, metadata={"axes": "YXS"})
        file.write(picture()[::2, ::2], photometric="rgb", tile=(64, 64), subfiletype=1)
    assert_windows_equal(tmp_path / "levels.ome.tif", bands_first(picture()))
    with open_source(tmp_path / "levels.ome.tif") as source:
        assert any("overviews" in note for note in source.warnings)


def test_a_first_page_marked_as_reduced_is_refused_for_the_scene_lies_elsewhere(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "raw.dng.tif") as file:  # the layout of a DNG
        file.write(picture()[::8, ::8], photometric="rgb", subfiletype=1, subifds=1, metadata=None)
        file.write(picture(), photometric="rgb", metadata=None)
    with pytest.raises(SourceError, match="marked as a reduced one"):
        open_source(tmp_path / "raw.dng.tif")


@pytest.mark.parametrize("place", ["page", "subifd"])
@pytest.mark.parametrize("marked", [True, False], ids=["marked", "unmarked"])
def test_a_picture_that_can_be_no_overview_is_not_left_behind(tmp_path: Path, place: str, marked: bool) -> None:
    small = picture()[::8, ::8]
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(small, photometric="rgb", subifds=int(place == "subifd"), metadata=None)
        file.write(picture(1)[..., 0], photometric="minisblack", subfiletype=int(marked), metadata=None)
    words = "no overview" if marked or place == "subifd" else "2 pictures"
    with pytest.raises(SourceError, match=words):
        open_source(tmp_path / "a.tif")


def test_a_preview_of_other_bands_is_named_as_what_it_is(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(picture(1, "uint16")[..., 0], photometric="minisblack", metadata=None)
        file.write(picture()[::8, ::8], photometric="rgb", subfiletype=1, metadata=None)
    with open_source(tmp_path / "a.tif") as source:
        assert source.warnings == ("a small picture of other bands or another type beside the scene is not kept",)


def test_whole_slide_gives_level_0_and_names_what_it_leaves(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "slide.svs") as file:
        base = picture()
        options: dict[str, Any] = {"photometric": "rgb", "metadata": None, "compression": "zlib"}
        file.write(base, tile=(64, 64), description="Aperio Image Library v11\r\n170x150 JPEG/RGB", **options)
        file.write(base[::4, ::4], **options)
        file.write(base[::2, ::2], tile=(64, 64), **options)
        file.write(base[:20, :20], subfiletype=1, **options)
        file.write(base[:30, :40], subfiletype=9, **options)
    assert_windows_equal(tmp_path / "slide.svs", bands_first(base))
    with open_source(tmp_path / "slide.svs") as source:
        assert [word for word in ("thumbnail", "label", "macro", "overviews") if word in " ".join(source.warnings)] == [
            "thumbnail", "label", "macro", "overviews",
        ]  # fmt: skip


def test_alpha_is_apart_from_the_bands_wherever_it_lies(tmp_path: Path) -> None:
    pixels = picture(5, "uint16")
    tifffile.imwrite(
        tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=["assocalpha", "unspecified"], metadata=None
    )
    assert_windows_equal(tmp_path / "a.tif", bands_first(np.delete(pixels, 3, axis=-1)))
    with open_source(tmp_path / "a.tif") as source:
        assert source.alpha is not None
        assert (source.alpha.index, source.alpha.dtype, source.alpha.associated) == (3, "uint16", True)
        window = Window(row=3, col=4, height=50, width=60)
        np.testing.assert_array_equal(source.read_alpha(window), pixels[3:53, 4:64, 3])


def test_mask_in_the_file_is_read(tmp_path: Path) -> None:
    mask = picture(1)[..., 0] > 100
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(picture(), photometric="rgb", metadata=None)
        file.write(mask, photometric="mask", subfiletype=4, compression="zlib", metadata=None)
    with open_source(tmp_path / "a.tif") as source:
        window = Window(row=10, col=20, height=70, width=80)
        np.testing.assert_array_equal(source.read_mask(window), mask[10:80, 20:100] * np.uint8(255))


def test_palette_is_refused_with_advice_and_expanded_on_demand(tmp_path: Path) -> None:
    colours = np.random.default_rng(1).integers(0, 256, (3, 256)).astype(np.uint16)
    indexes = picture(1)[..., 0]
    tifffile.imwrite(
        tmp_path / "a.tif", indexes, photometric="palette", colormap=colours * 257, metadata=None,
        extratags=[(42113, "s", 0, "5", True)],
    )  # fmt: skip
    with pytest.raises(SourceError, match="--expand-palette"):
        open_source(tmp_path / "a.tif")
    assert_windows_equal(tmp_path / "a.tif", colours[:, indexes].astype(np.uint8), expand_palette=True)
    with open_source(tmp_path / "a.tif", expand_palette=True) as source:
        mask = source.read_mask(Window(row=0, col=0, height=HEIGHT, width=WIDTH))
        np.testing.assert_array_equal(mask, np.where(indexes == 5, 0, 255))
        assert source.nodata is None


@pytest.mark.parametrize(
    ("dtype", "words"),
    [("complex64", "complex"), ("float64", "Float32"), ("int8", "int8"), ("uint32", "uint32"), ("int32", "int32")],
)
def test_types_that_could_not_come_back_are_refused_with_advice(tmp_path: Path, dtype: str, words: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((20, 20), dtype), photometric="minisblack")
    with pytest.raises(SourceError, match=words) as caught:
        open_source(tmp_path / "a.tif")
    assert "a.tif" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"photometric": "cielab"}, "L\\*a\\*b"),
        ({"volumetric": True}, "volume"),
        ({"compression": "png"}, "compression"),
    ],
)
def test_pictures_of_other_kinds_are_refused_with_advice(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    pixels = np.zeros((4, 64, 64), np.uint8) if "volumetric" in options else np.zeros((64, 64, 3), np.uint8)
    if "volumetric" in options:
        options = {**options, "tile": (4, 64, 64), "photometric": "minisblack"}
    tifffile.imwrite(tmp_path / "a.tif", pixels, metadata=None, **options)
    with pytest.raises(SourceError, match=words):
        open_source(tmp_path / "a.tif")


def test_a_mask_beside_the_file_is_not_lost_silently(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", picture(), photometric="rgb")
    (tmp_path / "a.tif.msk").write_bytes(b"II*\0")
    with pytest.raises(SourceError, match=r"a\.tif\.msk"):
        open_source(tmp_path / "a.tif")
    (tmp_path / "a.tif.msk").rename(tmp_path / "a.tif.aux.xml")
    with open_source(tmp_path / "a.tif") as source:
        assert any("aux.xml" in note for note in source.warnings)


def test_digest_is_the_sha256_of_the_file(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", picture(), photometric="rgb")
    with open_source(tmp_path / "a.tif") as source:
        assert source.digest() == hashlib.sha256((tmp_path / "a.tif").read_bytes()).hexdigest()
        assert source.size == (tmp_path / "a.tif").stat().st_size


def test_windows_outside_the_scene_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", picture(), photometric="rgb")
    with open_source(tmp_path / "a.tif") as source, pytest.raises(WindowError):
        source.read(Window(row=0, col=100, height=1, width=WIDTH))


@pytest.mark.parametrize("name", ["absent.tif", "folder", "text.tif", "empty.tif"])
def test_what_is_no_picture_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.tif").write_text("a picture of a cat")
    (tmp_path / "empty.tif").write_bytes(b"")
    with pytest.raises(SourceError):
        open_source(tmp_path / name)


# PNG and JPEG


PNG_KINDS: dict[str, Callable[[], Array]] = {
    "gray8": lambda: picture(1)[..., 0],
    "gray16": lambda: picture(1, "uint16")[..., 0],
    "gray_alpha8": lambda: picture(2),
    "rgb8": lambda: picture(3),
    "rgb16": lambda: picture(3, "uint16"),
    "rgba8": lambda: picture(4),
    "rgba16": lambda: picture(4, "uint16"),
}


@pytest.mark.parametrize("kind", PNG_KINDS)
def test_png_pictures_are_read_with_alpha_apart(tmp_path: Path, kind: str) -> None:
    pixels = PNG_KINDS[kind]()
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels)))
    whole = bands_first(pixels)
    alpha = whole[-1] if len(whole) in (2, 4) else None
    assert_windows_equal(tmp_path / "a.png", whole if alpha is None else whole[:-1])
    with open_source(tmp_path / "a.png") as source:
        got = source.read_alpha(Window(row=0, col=0, height=HEIGHT, width=WIDTH))
        assert (got is None) == (alpha is None)
        if alpha is not None:
            np.testing.assert_array_equal(got, alpha)


def test_transparent_colour_of_a_png_becomes_alpha(tmp_path: Path) -> None:
    gray = picture(1)[..., 0]
    Image.fromarray(gray).save(tmp_path / "a.png", transparency=7)
    with open_source(tmp_path / "a.png") as source:
        got = source.read_alpha(Window(row=0, col=0, height=HEIGHT, width=WIDTH))
    np.testing.assert_array_equal(got, np.where(gray == 7, 0, 255))


def test_palette_png_is_refused_with_advice_and_expanded_on_demand(tmp_path: Path) -> None:
    image = Image.fromarray(picture()).quantize(16)
    image.save(tmp_path / "a.png")
    with pytest.raises(SourceError, match="--expand-palette"):
        open_source(tmp_path / "a.png")
    assert_windows_equal(tmp_path / "a.png", bands_first(np.asarray(image.convert("RGB"))), expand_palette=True)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0, "quality": 95}])
@pytest.mark.parametrize("samples", [1, 3])
def test_jpeg_pictures_are_read_as_pillow_reads_them(tmp_path: Path, options: dict[str, Any], samples: int) -> None:
    pixels = picture(samples)
    Image.fromarray(pixels if samples == 3 else pixels[..., 0]).save(tmp_path / "a.jpg", **options)
    assert_windows_equal(tmp_path / "a.jpg", bands_first(np.asarray(Image.open(tmp_path / "a.jpg"))))


def test_orientation_profile_and_exif_of_a_jpeg_are_kept_and_pixels_stay_as_stored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    exif.get_ifd(34665)[33434] = (1, 200)
    exif.get_ifd(34853)[1] = "N"
    Image.fromarray(picture()).save(tmp_path / "a.jpg", exif=exif, icc_profile=b"profile" * 20000, dpi=(300, 300))
    with open_source(tmp_path / "a.jpg") as source:
        assert (source.height, source.width) == (HEIGHT, WIDTH)
        fields = {field["code"]: field for field in source.metadata["fields"]}
        assert fields[274]["values"] == [6]
        assert fields[282]["values"] == [300, 1]
        assert len(fields[34675]["base64"]) == 140000 // 3 * 4 + 4
        assert [field["code"] for field in source.metadata["exif"]] == [33434]
        assert [field["code"] for field in source.metadata["gps"]] == [1]


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("cmyk.jpg", lambda path: Image.fromarray(picture(4), "CMYK").save(path), "4 components"),
        ("bit.png", lambda path: Image.fromarray(picture(1)[..., 0] > 9).save(path), "line art"),
        ("large.png", lambda path: Image.fromarray(np.zeros((9500, 9500, 3), np.uint8)).save(path), "258 MB"),
        ("a.webp", lambda path: Image.fromarray(picture()).save(path), "neither"),
    ],
)
def test_pictures_that_could_not_come_back_are_refused(
    tmp_path: Path, name: str, make: Callable[[Path], None], words: str
) -> None:
    make(tmp_path / name)
    with pytest.raises(SourceError, match=words):
        open_source(tmp_path / name)


def test_truncated_jpeg_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-100])
    with pytest.raises(SourceError, match="truncated"):
        open_source(tmp_path / "b.jpg")


def noisy(height: int = HEIGHT, width: int = WIDTH, samples: int = 3) -> Array:
    """A seeded picture whose JPEG has many codes."""
    rows, cols = np.mgrid[:height, :width]
    noise = np.random.default_rng(5).integers(0, 60, (height, width, samples))
    return np.clip(noise + (rows + cols)[..., None] % 180, 0, 255).astype(np.uint8)


def jpeg_of(pixels: Array, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(file, "JPEG", **options)
    return file.getvalue()


JPEG_DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[: len(data) // 2],
    "cut, with an end marker": lambda data: data[: len(data) // 2] + b"\xff\xd9",
    "cut, with the thumbnail's end near": lambda data: data[:2] + b"\xff\xe1\x00\x08\xff\xd8\x00\x00\xff\xd9"
    + data[2 : len(data) // 2],
    "second half zeroed": lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2 - 2) + b"\xff\xd9",
    "last bytes lost": lambda data: data[:-6] + b"\xff\xd9",
}  # fmt: skip


@pytest.mark.parametrize("damage", JPEG_DAMAGE)
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("samples", [1, 3])
def test_a_jpeg_whose_codes_do_not_fill_its_pixels_is_refused(
    tmp_path: Path, damage: str, options: dict[str, Any], samples: int
) -> None:
    if damage == "second half zeroed" and "progressive" in options:
        return  # zeros stand for pixels too; see the words about what no one can see
    (tmp_path / "a.jpg").write_bytes(JPEG_DAMAGE[damage](jpeg_of(noisy(samples=samples), **options)))
    with pytest.raises(SourceError, match=r"a\.jpg: .*fetch (it|the file) again"):
        open_source(tmp_path / "a.jpg").read(Window(row=0, col=0, height=1, width=1))
    with pytest.raises(SourceError, match=r"a\.jpg: .*fetch (it|the file) again"):
        open_source(tmp_path / "a.jpg").check()


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("side", [1, 7, 8, 17, 64])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True}, {"restart_marker_blocks": 2}])
def test_a_whole_jpeg_passes_whatever_surrounds_it(
    tmp_path: Path, side: int, subsampling: str, options: dict[str, Any]
) -> None:
    for pixels in (noisy(side, 64), np.full((side, 64, 3), 255, np.uint8)):
        data = jpeg_of(pixels, subsampling=subsampling, **options)
        (tmp_path / "a.jpg").write_bytes(data[:-2] + bytes(7) + b"\xff\xff\xd9" + b"what a phone appends \xff\xd8")
        assert_windows_equal(tmp_path / "a.jpg", bands_first(np.asarray(Image.open(io.BytesIO(data)))))


@pytest.mark.parametrize("damage", [name for name in JPEG_DAMAGE if "thumbnail" not in name])
def test_a_damaged_jpeg_tile_of_a_tiff_is_refused_by_its_place(tmp_path: Path, damage: str) -> None:
    whole = [jpeg_of(noisy(64, 64, 3) + np.uint8(n)) for n in range(4)]
    tiles = [*whole[:2], JPEG_DAMAGE[damage](whole[2]), whole[3]]
    tifffile.imwrite(
        tmp_path / "a.tif", iter(tiles), shape=(128, 128, 3), dtype="uint8", tile=(64, 64), photometric="ycbcr",
        compression="jpeg", metadata=None,
    )  # fmt: skip
    with open_source(tmp_path / "a.tif") as source:
        source.read(Window(row=0, col=0, height=64, width=128))
        with pytest.raises(SourceError, match="tile 2 at row 64, column 0: JPEG data is damaged"):
            source.read(Window(row=64, col=0, height=1, width=1))


# hostile files


def test_coded_pictures_larger_than_their_tile_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    pixels = picture()
    encoders: dict[str, Callable[[Array], bytes]] = {
        "jpeg": imagecodecs.jpeg8_encode, "jpeg2000": imagecodecs.jpeg2k_encode, "webp": imagecodecs.webp_encode,
        "jpegxl": imagecodecs.jpegxl_encode, "lerc": imagecodecs.lerc_encode,
    }  # fmt: skip
    for codec, encode in encoders.items():
        large = bytes(encode(pixels))
        tifffile.imwrite(
            tmp_path / "a.tif", iter([large]), shape=(64, 64, 3), dtype="uint8", tile=(64, 64), photometric="rgb",
            compression=codec, metadata=None,
        )  # fmt: skip
        with open_source(tmp_path / "a.tif") as source, pytest.raises(SourceError, match=r"a\.tif: tile 0"):
            source.read(Window(row=0, col=0, height=64, width=64))


def test_a_strip_too_large_to_decode_is_refused_with_advice(tmp_path: Path) -> None:
    write_raw(tmp_path / "a.tif", b"x" * 100, height=40000, width=40000, t259=8)
    with pytest.raises(SourceError, match="TILED=YES"):
        open_source(tmp_path / "a.tif")


def test_any_flipped_byte_or_cut_gives_pixels_or_a_source_error(tmp_path: Path) -> None:
    seeds = []
    for codec in (*LOSSLESS, "jpeg"):
        tifffile.imwrite(
            tmp_path / f"{codec}.tif", picture(), photometric="rgb", tile=(64, 64), metadata=None,
            compression=None if codec == "none" else codec,
        )  # fmt: skip
        seeds.append((tmp_path / f"{codec}.tif").read_bytes())
    Image.fromarray(picture(4)).save(tmp_path / "a.png", icc_profile=b"p" * 500)
    Image.fromarray(picture()).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0")
    seeds += [(tmp_path / "a.png").read_bytes(), (tmp_path / "a.jpg").read_bytes()]
    rnd, outcomes = random.Random(3), set()
    for _ in range(600):
        data = bytearray(rnd.choice(seeds))
        if rnd.random() < 0.2:
            del data[rnd.randrange(len(data)) :]
        for _ in range(rnd.choice([0, 1, 1, 3, 20])):
            if data:  # the directory of these files lies in front, so that half of the damage goes there
                data[rnd.randrange(min(len(data), rnd.choice([500, len(data)])))] = rnd.randrange(256)
        (tmp_path / "b").write_bytes(data)
        try:
            with open_source(tmp_path / "b") as source:
                window = Window(row=0, col=0, height=min(200, source.height), width=min(200, source.width))
                assert source.read(window).shape == (source.bands, *window.shape)
            outcomes.add("pixels")
        except SourceError as error:
            outcomes.add("a line" if "\n" not in str(error) else "several lines")
    assert outcomes == {"pixels", "a line"}


@pytest.mark.parametrize("codec", ["none", "zlib"])
def test_truncated_tiff_is_refused_when_it_is_opened(tmp_path: Path, codec: str) -> None:
    compression = None if codec == "none" else codec
    tifffile.imwrite(tmp_path / "a.tif", picture(), photometric="rgb", compression=compression, metadata=None)
    (tmp_path / "b.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:-100])
    with pytest.raises(SourceError, match="fetch it again"):
        open_source(tmp_path / "b.tif")


def test_every_prefix_of_a_small_file_is_refused_or_read(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", picture()[:8, :8], photometric="rgb", compression="zlib", metadata=None)
    data = (tmp_path / "a.tif").read_bytes()
    for length in range(len(data)):
        (tmp_path / "b.tif").write_bytes(data[:length])
        with pytest.raises(SourceError), open_source(tmp_path / "b.tif") as source:
            source.read(Window(row=0, col=0, height=8, width=8))


MEASURE = """
import sys
from ditic_stream.reader import open_source
from ditic_stream.geometry import Window
with open_source(sys.argv[1]) as source:
    for row in range(0, source.height - 1023, 1024):
        source.read(Window(row=row, col=0, height=1024, width=1024))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.parametrize("cut", [{"tile": (512, 512)}, {"rowsperstrip": 64}], ids=["tiles", "strips"])
def test_reading_windows_takes_no_more_memory_than_windows(tmp_path: Path, cut: dict[str, Any]) -> None:
    rows = np.broadcast_to(np.arange(8192, dtype=np.uint8)[None, :, None], (8192, 8192, 3))
    tifffile.imwrite(tmp_path / "a.tif", rows, photometric="rgb", compression="zlib", metadata=None, **cut)
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "a.tif")],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
    )
    # The picture takes 192 MB; interpreter, numpy and imagecodecs 45, the cache of segments 64, one window 3.
    assert int(run.stdout) < 150 * 1024


def test_strips_that_leave_memory_are_read_again_from_a_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif", picture(), photometric="rgb", compression="lzw", rowsperstrip=10, metadata=None
    )
    monkeypatch.setattr(_tiff_segments, "CACHE_BYTES", 12000)
    monkeypatch.setattr(_tiff_segments, "SPOOL_BYTES", 40000)
    calls = 0
    decode = _tiff_segments.decode_segment

    def counted(*args: Any) -> Array:
        nonlocal calls
        calls += 1
        return decode(*args)

    monkeypatch.setattr(_tiff_segments, "decode_segment", counted)
    assert_windows_equal(tmp_path / "a.tif", bands_first(picture()))
    calls = 0
    with open_source(tmp_path / "a.tif") as source:
        for col in range(0, 160, 10):
            part = source.read(Window(row=0, col=col, height=80, width=10))
            np.testing.assert_array_equal(part, bands_first(picture())[:, :80, col : col + 10])
    assert calls == 8
