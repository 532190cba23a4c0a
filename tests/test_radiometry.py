"""Pixels to network units and back: exact where promised, never nodata by accident, whatever the type."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditic_stream.errors import FormatError, WindowError
from ditic_stream.geometry import Window
from ditic_stream.radiometry import (
    NETWORK_HIGH,
    NETWORK_LOW,
    Band,
    Plane,
    Radiometry,
    all_masked,
    alpha_of,
    blocks,
    from_network,
    join_alpha,
    mask_of,
    needs_survey,
    outside,
    planes,
    read_window,
    survey,
    to_network,
)

Array = npt.NDArray[Any]


@dataclass
class Alpha:
    index: int


class Scene:
    """A source in memory."""

    def __init__(
        self,
        pixels: Array,
        *,
        nodata: float | int | None = None,
        alpha: Array | None = None,
        mask: Array | None = None,
    ) -> None:
        self.bands, self.height, self.width = pixels.shape
        self.dtype = str(pixels.dtype)
        self.nodata = None if nodata is None else (nodata,) * self.bands
        self.alpha = None if alpha is None else Alpha(self.bands)
        self.has_mask = mask is not None
        self.reads = 0
        self._pixels, self._alpha, self._mask = pixels, alpha, mask

    @property
    def whole(self) -> Window:
        return Window(row=0, col=0, height=self.height, width=self.width)

    def read(self, window: Window) -> Array:
        self.reads += 1
        return self._pixels[:, window.row : window.row_end, window.col : window.col_end]

    def read_alpha(self, window: Window) -> Array | None:
        return None if self._alpha is None else self._alpha[window.row : window.row_end, window.col : window.col_end]

    def read_mask(self, window: Window) -> Array | None:
        return None if self._mask is None else self._mask[window.row : window.row_end, window.col : window.col_end]


def there_and_back(scene: Scene) -> tuple[Array, Array, Radiometry]:
    radiometry = survey(scene)
    pixels, beside = read_window(scene, scene.whole, radiometry)
    return from_network(to_network(pixels, beside, radiometry), beside, radiometry), beside, radiometry


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
@pytest.mark.parametrize("bands", [1, 2, 3, 4, 7])
def test_integers_come_back_exactly_when_nothing_is_coded_between(dtype: str, bands: int) -> None:
    limits = np.iinfo(dtype)
    pixels = np.random.default_rng(1).integers(limits.min, limits.max + 1, (bands, 40, 50)).astype(dtype)
    got, _, radiometry = there_and_back(Scene(pixels))
    np.testing.assert_array_equal(got, pixels)
    assert radiometry.groups == -(-bands // 3)


def test_floats_come_back_to_the_precision_of_their_range() -> None:
    pixels = np.random.default_rng(1).normal(250, 30, (2, 40, 50)).astype(np.float32)
    got, _, radiometry = there_and_back(Scene(pixels))
    # float32 units carry 24 bits; one step at u near 1 is 2^-24 of the scale, and the result rounds once more.
    bound = 2.0**-23 * radiometry.bands[0].scale + 2.0**-16
    assert np.abs(got - pixels).max() <= bound


def test_plain_8_bit_pictures_are_never_read_for_a_survey_and_never_stretched() -> None:
    scene = Scene(np.full((3, 8, 8), 100, np.uint8))
    radiometry = survey(scene)
    assert scene.reads == 0
    assert not needs_survey(scene)
    assert radiometry.bands == (Band(),) * 3
    units = to_network(scene.read(scene.whole), np.zeros((0, 8, 8), np.uint8), radiometry)
    np.testing.assert_array_equal(units, np.float32(100) / np.float32(255))


def test_8_bit_scenes_with_nodata_are_not_stretched_either() -> None:
    radiometry = survey(Scene(np.arange(64, dtype=np.uint8).reshape(1, 8, 8), nodata=0))
    assert (radiometry.bands[0].offset, radiometry.bands[0].scale) == (0, 255)
    assert (radiometry.bands[0].low, radiometry.bands[0].high) == (1, 63)


def test_a_16_bit_scene_of_few_values_fills_the_range_of_the_network() -> None:
    pixels = np.random.default_rng(1).integers(1000, 1010, (1, 64, 64)).astype(np.uint16)
    radiometry = survey(Scene(pixels))
    units = to_network(pixels, np.zeros((0, 64, 64), np.uint8), radiometry)
    assert units.min() == 0
    assert units.max() == 1


def test_a_few_extreme_values_do_not_squeeze_the_rest_and_are_counted() -> None:
    pixels = np.random.default_rng(1).integers(100, 200, (1, 200, 200)).astype(np.uint16)
    pixels[0, 3, 3:7] = 60000
    scene = Scene(pixels)
    radiometry = survey(scene)
    assert radiometry.bands[0].scale <= 100
    assert radiometry.bands[0].high == 60000
    assert outside(*read_window(scene, scene.whole, radiometry), radiometry) == 4
    assert to_network(*read_window(scene, scene.whole, radiometry), radiometry).max() == NETWORK_HIGH


@pytest.mark.parametrize("bands", [1, 3, 32, 224, 1024])
def test_blocks_are_bounded_by_the_bytes_of_all_bands(bands: int) -> None:
    pixels = np.broadcast_to(np.float32(0), (bands, 1500, 2100))
    cut = list(blocks(Scene(pixels)))
    assert sum(window.height * window.width for window in cut) == 1500 * 2100
    assert max(window.height * window.width * bands * 4 for window in cut) <= (2**25 if bands <= 32 else 2**27)


def test_the_survey_of_a_small_scene_does_not_depend_on_how_it_is_cut() -> None:
    pixels = np.random.default_rng(1).integers(0, 5000, (2, 300, 200)).astype(np.uint16)
    scene = Scene(pixels, nodata=7)
    cuts = [list(blocks(scene, rows=rows, limit=limit)) for rows, limit in ((512, 2**25), (16, 2**10))]
    assert sum(window.height * window.width for window in cuts[1]) == 300 * 200
    assert survey(scene, cuts[0]) == survey(scene, cuts[1])


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [
        ("uint8", 0),
        ("uint8", 255),
        ("uint8", 77),
        ("uint16", 0),
        ("int16", -1000),
        ("float32", -9999.0),
        ("float32", math.nan),
    ],
)
def test_nodata_comes_back_exactly_and_only_where_it_was(dtype: str, nodata: float) -> None:
    rng = np.random.default_rng(2)
    pixels = rng.integers(1, 250, (3, 64, 64)).astype(dtype)
    holes = rng.random((3, 64, 64)) < 0.3
    pixels[holes] = nodata
    scene = Scene(pixels, nodata=nodata)
    radiometry = survey(scene)
    beside = planes(scene, scene.whole, radiometry)
    noisy = rng.normal(0.2, 1, (1, 3, 64, 64)).astype(np.float32)  # a codec that loses everything
    got = from_network(noisy, beside, radiometry)
    if math.isnan(nodata):
        np.testing.assert_array_equal(np.isnan(got), np.isnan(pixels))
    else:
        np.testing.assert_array_equal(got == np.array(nodata, dtype), pixels == np.array(nodata, dtype))


@given(
    st.sampled_from(["uint8", "uint16", "int16", "float32"]),
    st.integers(0, 200),
    st.lists(st.floats(-2, 3, width=32), min_size=1, max_size=30),
)
@settings(max_examples=200, deadline=None)
def test_a_coded_pixel_never_becomes_nodata_and_never_leaves_the_true_range(
    dtype: str, nodata: int, units: list[float]
) -> None:
    value: Any = float(nodata) if dtype == "float32" else nodata
    low, high = (0.0, 255.0) if dtype == "float32" else (0, 255)
    low, high = (low + 1, high) if nodata == 0 else (low, high)
    band = Band(offset=0.0, scale=255.0, low=low, high=high, nodata=value)
    radiometry = Radiometry(dtype=dtype, bands=(band,))
    exact = np.array([*units, nodata / 255], np.float32)
    got = from_network(
        np.broadcast_to(exact, (1, 3, 1, len(exact))), np.zeros((0, 1, len(exact)), np.uint8), radiometry
    )
    assert not (got == np.array(nodata, dtype)).any()
    assert got.min() >= low
    assert got.max() <= high
    ideal = np.clip(exact.astype(np.float64) * 255, low, high)
    assert np.abs(got[0, 0].astype(np.float64) - ideal).max() <= 1.5


def test_nan_and_infinities_come_back_exactly() -> None:
    pixels = np.random.default_rng(3).normal(0, 1, (2, 32, 32)).astype(np.float32)
    pixels[0, 2, 3:6] = [np.nan, np.inf, -np.inf]
    pixels[1, 8] = np.nan
    got, _, radiometry = there_and_back(Scene(pixels, nodata=-1e30))
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(pixels))
    np.testing.assert_array_equal(got[~np.isfinite(pixels)], pixels[~np.isfinite(pixels)])
    assert [plane.bands for plane in radiometry.planes] == [(0,), (1,)]


def test_one_validity_plane_serves_all_bands_that_agree() -> None:
    pixels = np.random.default_rng(3).integers(1, 99, (3, 32, 32)).astype(np.uint8)
    pixels[:, :5] = 0
    assert survey(Scene(pixels, nodata=0)).planes == (Plane(kind="validity", bands=(0, 1, 2)),)
    pixels[1, 20, 20] = 0
    assert [plane.bands for plane in survey(Scene(pixels, nodata=0)).planes] == [(0,), (1,), (2,)]
    assert survey(Scene(pixels + 1, nodata=0)).planes == ()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_alpha_comes_back_with_all_its_levels(dtype: str) -> None:
    rng = np.random.default_rng(4)
    bits = rng.integers(0, 2**32, (40, 40), dtype=np.uint64)
    alpha = bits.astype(f"u{np.dtype(dtype).itemsize}").view(dtype)
    if dtype == "float32":
        alpha = np.nan_to_num(alpha)
    pixels = rng.integers(0, 100, (3, 40, 40)).astype(dtype)
    scene = Scene(pixels, alpha=alpha)
    radiometry = survey(scene)
    _, beside = read_window(scene, scene.whole, radiometry)
    np.testing.assert_array_equal(alpha_of(beside, radiometry), alpha)
    joined = join_alpha(pixels, beside, radiometry)
    np.testing.assert_array_equal(joined, np.concatenate([pixels, alpha[None]]))


def test_pixels_under_the_mask_come_back_exactly_when_they_share_a_value_and_are_coded_when_not() -> None:
    rng = np.random.default_rng(5)
    pixels = rng.integers(20, 99, (3, 64, 64)).astype(np.uint16)
    mask = np.full((64, 64), 255, np.uint8)
    mask[:, :30] = 0
    pixels[:2, :, :30] = 0
    scene = Scene(pixels, mask=mask)
    radiometry = survey(scene)
    assert [band.hidden for band in radiometry.bands] == [0, 0, None]
    assert radiometry.bands[0].low >= 20
    _, beside = read_window(scene, scene.whole, radiometry)
    noisy = rng.normal(0.5, 0.4, (1, 3, 64, 64)).astype(np.float32)
    got = from_network(noisy, beside, radiometry)
    np.testing.assert_array_equal(got[:2, :, :30], 0)
    assert got[2, :, :30].std() > 0
    np.testing.assert_array_equal(mask_of(beside, radiometry), mask)


def test_pixels_under_alpha_0_come_back_exactly_when_they_share_a_value() -> None:
    rng = np.random.default_rng(5)
    pixels = rng.integers(20, 99, (3, 64, 64)).astype(np.uint8)
    alpha = rng.integers(1, 256, (64, 64)).astype(np.uint8)
    alpha[:9] = 0
    pixels[:, :9] = 255
    scene = Scene(pixels, alpha=alpha)
    radiometry = survey(scene)
    assert [band.hidden for band in radiometry.bands] == [255, 255, 255]
    beside = planes(scene, scene.whole, radiometry)
    got = from_network(np.full((1, 3, 64, 64), 0.5, np.float32), beside, radiometry)
    np.testing.assert_array_equal(got[:, :9], 255)
    assert got[:, 9:].max() < 255
    assert all_masked(beside[:, :9], radiometry)


def test_a_tile_without_a_coded_pixel_is_known_and_restored_from_planes_alone() -> None:
    pixels = np.random.default_rng(6).integers(1, 99, (2, 64, 64)).astype(np.uint8)
    pixels[:, :32] = 0
    scene = Scene(pixels, nodata=0)
    radiometry = survey(scene)
    upper, lower = (Window(row=row, col=0, height=32, width=64) for row in (0, 32))
    beside = planes(scene, upper, radiometry)
    assert all_masked(beside, radiometry)
    assert not all_masked(planes(scene, lower, radiometry), radiometry)
    got = from_network(np.full((1, 3, 32, 64), 0.7, np.float32), beside, radiometry)
    np.testing.assert_array_equal(got, 0)
    assert not all_masked(np.zeros((0, 32, 64), np.uint8), survey(Scene(pixels)))


def test_filled_pixels_continue_their_surroundings_and_leave_coded_ones_alone() -> None:
    pixels = np.full((1, 96, 96), 100, np.uint8)
    pixels[0, :, 48:] = 140
    holed = pixels.copy()
    holed[0, 20:76, 10:90] = 0
    scene = Scene(holed, nodata=0)
    radiometry = survey(scene)
    units = to_network(*read_window(scene, scene.whole, radiometry), radiometry)[0, 0]
    known = holed[0] != 0
    np.testing.assert_array_equal(units[known], (pixels[0] / np.float32(255)).astype(np.float32)[known])
    assert units.min() >= 99.9 / 255  # nothing darker than what is known: no trace of the nodata value
    assert units.max() <= 140.1 / 255
    steps = max(np.abs(np.diff(units, axis=axis))[20:75, 11:89].max() for axis in (0, 1))
    assert steps < 15 / 255


@pytest.mark.parametrize("shape", [(1, 1), (1, 37), (33, 1), (5, 64)])
def test_filling_works_in_any_shape(shape: tuple[int, int]) -> None:
    pixels = np.zeros((1, *shape), np.uint8)
    pixels[0, -1, -1] = 9
    scene = Scene(pixels, nodata=0)
    radiometry = survey(scene)
    units = to_network(*read_window(scene, scene.whole, radiometry), radiometry)
    np.testing.assert_allclose(units, 9 / 255, rtol=1e-5)  # one known pixel: its value everywhere, but for rounding


def test_units_are_finite_and_bounded_whatever_the_pixels() -> None:
    pixels = np.array([[[np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-40, 0, 1]]], np.float32)
    scene = Scene(pixels)
    units = to_network(*read_window(scene, scene.whole, survey(scene)), survey(scene))
    assert np.isfinite(units).all()
    assert units.min() >= NETWORK_LOW
    assert units.max() <= NETWORK_HIGH


def test_output_of_a_network_gone_wrong_stays_inside_the_range() -> None:
    radiometry = survey(Scene(np.arange(64, dtype=np.uint16).reshape(1, 8, 8)))
    wild = np.resize(np.array([np.nan, np.inf, -np.inf, 1e30], np.float32), (1, 3, 8, 8))
    got = from_network(wild, np.zeros((0, 8, 8), np.uint8), radiometry)
    assert got.min() >= 0
    assert got.max() <= 63


def test_the_last_group_repeats_its_last_band() -> None:
    pixels = np.stack([np.full((4, 4), value, np.uint8) for value in (51, 102, 153, 204)])
    units = to_network(pixels, np.zeros((0, 4, 4), np.uint8), survey(Scene(pixels)))
    np.testing.assert_allclose(units[:, :, 0, 0], [[0.2, 0.4, 0.6], [0.8, 0.8, 0.8]], rtol=1e-6)


def test_json_gives_the_same_value_back() -> None:
    band = Band(offset=-1.5, scale=0.1, low=-3.25, high=1e30, nodata=math.inf, hidden=2.0)
    value = Radiometry(
        dtype="float32",
        bands=(band, replace(band, nodata=-9999.0)),
        planes=(
            Plane(kind="validity", bands=(0, 1)),
            Plane(kind="mask"),
            *(Plane(kind=f"alpha_{n}") for n in range(4)),
        ),
        alpha=1,
    )
    text = json.dumps(value.to_json(), allow_nan=False)
    assert Radiometry.from_json(json.loads(text)) == value
    nan = Radiometry(dtype="float32", bands=(replace(band, nodata=math.nan),))
    assert math.isnan(Radiometry.from_json(json.loads(json.dumps(nan.to_json(), allow_nan=False))).bands[0].nodata or 0)


GOOD: dict[str, Any] = {
    "dtype": "uint8",
    "bands": [{"offset": 0.0, "scale": 255.0, "low": 0, "high": 255, "nodata": None, "hidden": None}],
    "planes": [],
    "alpha": None,
}


@pytest.mark.parametrize(
    "damage",
    [
        {"dtype": "object"}, {"dtype": 3}, {"bands": []}, {"bands": 7}, {"bands": [{}] * 2000}, {"alpha": 5},
        {"alpha": True}, {"bands": [{"scale": 0.0}]}, {"bands": [{"scale": "inf"}]}, {"bands": [{"offset": "nan"}]},
        {"bands": [{"low": 300}]}, {"bands": [{"low": 9, "high": 3}]}, {"bands": [{"nodata": 0.5}]},
        {"bands": [{"nodata": "x"}]}, {"bands": [{"x": 1}]}, {"bands": [{"low": [1]}]},
        {"planes": [{"kind": "alpha_0", "bands": []}]}, {"planes": [{"kind": "x", "bands": []}]},
        {"planes": [{"kind": "validity", "bands": [1]}]}, {"planes": [{"kind": "validity", "bands": [0, 0]}]},
        {"planes": [{"kind": "validity", "bands": ["0"]}]}, {"planes": [{"kind": "mask", "bands": []}] * 2},
        {"planes": [{"kind": "mask"}]}, {"planes": None},
    ],
)  # fmt: skip
def test_hostile_radiometry_is_a_format_error(damage: dict[str, Any]) -> None:
    assert Radiometry.from_json(GOOD).bands == (Band(),)
    with pytest.raises(FormatError):
        Radiometry.from_json({**GOOD, **damage})


def test_planes_of_another_scene_are_refused() -> None:
    radiometry = survey(Scene(np.zeros((2, 8, 8), np.uint8)))
    with pytest.raises(WindowError):
        to_network(np.zeros((2, 8, 8), np.uint8), np.zeros((1, 8, 8), np.uint8), radiometry)
    marked = Radiometry(dtype="uint8", bands=(Band(),), planes=(Plane(kind="validity", bands=(0,)),))
    with pytest.raises(FormatError):  # code 2, NaN, means nothing in 8 bits
        from_network(np.zeros((1, 3, 4, 4), np.float32), np.full((1, 4, 4), 2, np.uint8), marked)
