"""What the server shows: levels, stretch, sizes, formats, and the original beside the decoded."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from leveled import InMemory
from pictures import landscape, write_scene

from ditic_stream.doors.server import deepzoom
from ditic_stream.doors.server.display import MAX_AREA, Picture, TooLargeError, stretch_of
from ditic_stream.doors.server.encoding import checked_format, encode
from ditic_stream.doors.server.original import FINE, BusyError, Original, box_means
from ditic_stream.doors.server.resampling import area, sample
from ditic_stream.errors import ConfigError
from ditic_stream.geometry import Window
from ditic_stream.reader import open_source


def colours(height: int, width: int) -> np.ndarray:
    return landscape(height, width).transpose(2, 0, 1)


def opaque(pixels: np.ndarray) -> np.ndarray:
    """(rows, columns, 3) with alpha 255."""
    return np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])


# --- resampling


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.integers(1, 12), st.booleans(), st.integers(0, 2**16)
)
def test_area_means_equal_sums_over_a_finer_grid(
    height: int, width: int, rows: int, cols: int, clear: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rgba = rng.integers(0, 256, (height, width, 4)).astype(np.uint8)
    rgba[..., 3] = 255 if clear else rng.choice([0, 128, 255], (height, width))
    found = area(rgba, np.linspace(0, height, rows + 1), np.linspace(0, width, cols + 1))
    # Each pixel cut into rows x cols equal parts: then every mean is over whole parts.
    fine = np.repeat(np.repeat(rgba, rows, 0), cols, 1).astype(np.float64)
    parts = fine.reshape(rows, height, cols, width, 4)
    weights = parts[..., 3].sum((1, 3))
    expected = (parts[..., :3] * parts[..., 3:]).sum((1, 3)) / np.maximum(weights, 1)[..., None]
    assert np.abs(found[..., 3] - parts[..., 3].mean((1, 3))).max() <= 0.5 + 1e-6
    seen = weights / (height * width) > 0.5
    assert np.abs(found[..., :3] - expected)[seen].max(initial=0) <= 0.5 + 1e-6


def test_colour_under_transparent_pixels_does_not_bleed() -> None:
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (200, 100, 50, 255)
    rgba[1, 1] = (255, 255, 255, 0)
    assert area(rgba, np.array([0.0, 2]), np.array([0.0, 2]))[0, 0].tolist() == [200, 100, 50, 64]
    assert sample(rgba, np.array([[1.0]]), np.array([[1.0]]))[0, 0].tolist() == [200, 100, 50, 64]


def test_samples_at_pixel_centres_are_the_pixels_and_outside_is_clear() -> None:
    rgba = opaque(landscape(5, 7))
    rows, cols = np.mgrid[0:5, 0:7] + 0.5
    assert (sample(rgba, rows, cols) == rgba).all()
    assert (sample(rgba, rows - 0.4, cols)[0] == rgba[0]).all()
    assert not sample(rgba, np.array([[-0.1, np.nan, 5.1]]), np.ones((1, 3))).any()


# --- display


def test_a_picture_at_the_scenes_own_size_is_its_pixels() -> None:
    pixels = colours(300, 200)
    picture = Picture(InMemory(pixels), stretch_of(InMemory(pixels)))
    found = picture.render((20, 10, 180, 290), 160, 280)
    assert (found == opaque(pixels[:, 10:290, 20:180].transpose(1, 2, 0))).all()


@pytest.mark.parametrize(
    ("size", "level"), [((1000, 800), 0), ((600, 480), 0), ((500, 400), 1), ((130, 104), 2), ((126, 100), 3)]
)
def test_no_finer_level_is_read_than_the_size_needs(size: tuple[int, int], level: int) -> None:
    levels = InMemory(colours(800, 1000))
    picture = Picture(levels, stretch_of(levels))
    assert picture.render((0, 0, 1000, 800), *size).shape == (size[1], size[0], 4)
    assert {one for _, one in levels.asked} == {level}


@pytest.mark.parametrize("width", [333, 1001, 1024])
def test_levels_rounded_up_are_read_as_such(width: int) -> None:
    levels = InMemory(colours(64, width))
    picture = Picture(levels, stretch_of(levels))
    for level, (wide, high) in enumerate(levels.level_dimensions):
        levels.asked.clear()
        picture.render((0, 0, width, 64), wide, high)
        assert {one for _, one in levels.asked} == {level}


def test_strips_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = InMemory(colours(400, 300))
    picture = Picture(levels, stretch_of(levels))
    box = (3.0, 5.0, 290.0, 399.0)
    whole = picture.render(box, 111, 173)
    monkeypatch.setattr("ditic_stream.doors.server.display.STRIP_AREA", 2000)
    levels.asked.clear()
    assert (picture.render(box, 111, 173) == whole).all()
    assert len(levels.asked) > 10


def test_strips_are_bounded_by_the_picture_too() -> None:
    levels = InMemory(colours(8, 8))
    calls = []
    Picture(levels, stretch_of(levels)).render((0, 0, 8, 8), 2048, 2048, lambda: calls.append(1))
    assert len(calls) >= 4


def test_ranges_that_no_float32_holds_do_no_harm() -> None:
    levels = InMemory(colours(8, 8).astype(np.uint16))
    for ends in [(-1e308, 1e308), (0.0, 1e-320), (0.0, 1e300)]:
        assert Picture(levels, stretch_of(levels, None, (ends,))).render((0, 0, 8, 8), 8, 8).shape == (8, 8, 4)


def test_checks_between_strips_can_stop_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ditic_stream.doors.server.display.STRIP_AREA", 2000)
    levels = InMemory(colours(400, 300))

    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        Picture(levels, stretch_of(levels)).render((0, 0, 300, 400), 300, 400, stop)
    assert not levels.asked


def test_what_leaves_the_scene_or_is_too_large_is_refused() -> None:
    picture = Picture(InMemory(colours(40, 50)), stretch_of(InMemory(colours(40, 50))))
    for box in [(0, 0, 51, 40), (10, 0, 10, 40), (-1, 0, 10, 10)]:
        with pytest.raises(ConfigError, match="50 x 40"):
            picture.render(box, 5, 5)
    for size in [(4097, 1), (4096, 1025)]:
        with pytest.raises(TooLargeError, match=str(MAX_AREA)):
            picture.render((0, 0, 50, 40), *size)
    with pytest.raises(ConfigError, match="1 x 1 at least"):
        picture.render((0, 0, 50, 40), 0, 3)


def test_sixteen_bits_are_stretched_by_percentiles_of_what_is_valid() -> None:
    pixels = np.broadcast_to(np.linspace(2800, 3200, 200, dtype=np.uint16)[:, None], (5, 200, 220)).copy()
    valid = np.full((200, 220), 255, np.uint8)
    valid[:, :60] = 0
    pixels[:, :, :60] = 65535
    levels = InMemory(pixels, valid)
    stretch = stretch_of(levels)
    assert stretch.bands == (0, 1, 2) and "percentiles" in stretch.source
    assert all(2800 < low < 2820 and 3180 < high < 3200 for low, high in zip(stretch.low, stretch.high, strict=True))
    shown = Picture(levels, stretch).render((0, 0, 220, 200), 220, 200)
    assert not shown[:, :60, 3].any() and (shown[:, 60:, 3] == 255).all()
    assert 120 < shown[:, 60:, :3].mean() < 135


def test_bands_and_ranges_can_be_chosen() -> None:
    pixels = np.stack([np.full((4, 4), value, np.int16) for value in (-100, 0, 100, 200)])
    levels = InMemory(pixels)
    shown = Picture(levels, stretch_of(levels, (3, 2, 1), ((0, 200),))).render((0, 0, 4, 4), 1, 1)
    assert shown[0, 0].tolist() == [255, 128, 0, 255]
    shown = Picture(levels, stretch_of(levels, (0,), ((-200, 0),))).render((0, 0, 4, 4), 1, 1)
    assert shown[0, 0].tolist() == [128, 128, 128, 255]
    for bands, ranges in [((4,), None), ((0, 1), None), ((0,), ((1.0, 1.0),)), ((0, 1, 2), ((0.0, 1.0), (0.0, 2.0)))]:
        with pytest.raises(ConfigError):
            stretch_of(levels, bands, ranges)


def test_one_band_is_grey_and_alpha_is_kept() -> None:
    pixels = np.stack([np.full((3, 3), 70, np.uint8), np.full((3, 3), 128, np.uint8)])
    levels = InMemory(pixels, alpha=1)
    assert stretch_of(levels).bands == (0,)
    assert Picture(levels, stretch_of(levels)).at_level(Window(row=0, col=0, height=1, width=1), 0)[0, 0].tolist() == [
        70, 70, 70, 128,
    ]  # fmt: skip


def test_nan_is_shown_as_nothing() -> None:
    pixels = np.ones((1, 4, 4), np.float32)
    pixels[0, 0, 0] = np.nan
    valid = np.where(np.isnan(pixels[0]), 0, 255).astype(np.uint8)
    shown = Picture(InMemory(pixels, valid), stretch_of(InMemory(pixels, valid))).render((0, 0, 4, 4), 4, 4)
    assert shown[0, 0, 3] == 0 and (shown[1:, 1:, 3] == 255).all()


# --- deep zoom


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000))
def test_deep_zoom_tiles_cover_each_level_once_but_for_their_overlap(width: int, height: int) -> None:
    top = deepzoom.top_level(width, height)
    assert 2**top >= max(width, height) > 2**top // 2
    for level in range(top + 1):
        wide, high = -(-width // 2 ** (top - level)), -(-height // 2 ** (top - level))
        right = 0
        for col in range(-(-wide // deepzoom.TILE)):
            window, down = deepzoom.tile_window(width, height, level, col, 0)
            assert down == top - level and window.col == max(right - 2 * deepzoom.OVERLAP, 0) * (col > 0)
            right = window.col_end
        assert right == wide and window.height <= high
        with pytest.raises(ConfigError):
            deepzoom.tile_window(width, height, level, -(-wide // deepzoom.TILE), 0)
    with pytest.raises(ConfigError):
        deepzoom.tile_window(width, height, top + 1, 0, 0)


def test_levels_below_the_coarsest_come_down_to_one_pixel() -> None:
    levels = InMemory(colours(130, 200))
    picture = Picture(levels, stretch_of(levels))
    top = deepzoom.top_level(200, 130)
    for level in range(top + 1):
        window, down = deepzoom.tile_window(200, 130, level, 0, 0)
        assert picture.tile(window, down).shape == (*window.shape, 4)
    one = picture.tile(*deepzoom.tile_window(200, 130, 0, 0, 0))
    assert np.abs(one[0, 0, :3] - colours(130, 200).mean((1, 2))).max() < 2  # rounded at every level on the way


# --- formats


def test_png_is_exact_and_as_small_as_its_channels_allow() -> None:
    rgb, grey = landscape(20, 30), np.repeat(landscape(20, 30)[..., :1], 3, 2)
    clear = opaque(rgb)
    clear[:5, :5, 3] = 0
    assert (imagecodecs.png_decode(encode(opaque(rgb), "png")) == rgb).all()
    assert imagecodecs.png_decode(encode(opaque(grey), "png")).shape == (20, 30)
    assert (imagecodecs.png_decode(encode(clear, "png")) == clear).all()


def test_jpeg_has_white_where_nothing_is_and_webp_keeps_it_clear() -> None:
    clear = opaque(landscape(64, 64))
    clear[:32, :, 3] = 0
    jpeg = imagecodecs.jpeg8_decode(encode(clear, "jpg"))
    assert jpeg[:28].min() > 240
    webp = imagecodecs.webp_decode(encode(clear, "webp"))
    assert not webp[:32, :, 3].any() and (webp[32:, :, 3] == 255).all()


@pytest.mark.parametrize("form", ["png", "jpg", "webp"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1)])
def test_pictures_one_pixel_wide_or_high_are_made(form: str, shape: tuple[int, int]) -> None:
    assert encode(np.full((*shape, 4), 255, np.uint8), form)


def test_formats_have_several_names_and_others_are_refused() -> None:
    assert [checked_format(name) for name in ("PNG", "jpeg", "jpg", "WebP")] == ["png", "jpg", "jpg", "webp"]
    with pytest.raises(ConfigError, match="tiff"):
        checked_format("tiff")


# --- the original


def test_means_of_boxes_count_valid_pixels_alone() -> None:
    pixels = np.array([[[10, 20, 7], [30, 99, 7], [1, 1, 9]]], np.uint8)
    valid = np.array([[255, 255, 255], [255, 0, 255], [0, 0, 255]], np.uint8)
    means, seen = box_means(pixels, valid, 2)
    assert means.tolist() == [[[20, 7], [0, 9]]] and seen.tolist() == [[255, 255], [0, 255]]


def test_the_original_has_the_levels_of_its_file(tmp_path: Path) -> None:
    pixels = landscape(500, 1300)
    path = write_scene(tmp_path / "scene.tif", pixels)
    original = Original(open_source(path))
    expected = InMemory(pixels.transpose(2, 0, 1))
    assert original.level_dimensions == expected.level_dimensions
    coarse = Window(row=0, col=0, height=1, width=2)
    with pytest.raises(BusyError, match="0%"):
        original.read(coarse, level=FINE + 1)
    original.prepare()
    assert original.done == 1
    for level, (width, height) in enumerate(original.level_dimensions):
        window = Window(row=0, col=0, height=height, width=width)
        exact = box_means(expected.levels[0][0], expected.levels[0][1], 2**level)[0]
        found = original.read(window, level=level).astype(int)
        # Coarser levels come of means that were rounded before; at the edge, boxes that are cut count as whole ones.
        assert np.abs(found - exact)[:, :-1, :-1].max(initial=0) <= (0 if level <= FINE + 1 else 1)
        assert np.abs(found - exact).max() <= (0 if level <= FINE + 1 else 12)
        assert (original.valid(window, level=level) == 255).all()
    original.close()


def test_nodata_of_the_original_is_not_shown(tmp_path: Path) -> None:
    import tifffile

    pixels = np.full((40, 50), 500, np.uint16)
    pixels[:10] = 0
    tifffile.imwrite(tmp_path / "n.tif", pixels, metadata=None, extratags=[(42113, "s", 2, "0", True)])
    original = Original(open_source(tmp_path / "n.tif"))
    valid = original.valid(Window(row=0, col=0, height=40, width=50), level=0)
    assert not valid[:10].any() and (valid[10:] == 255).all()
    original.close()
