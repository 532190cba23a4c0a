"""The figures by which decoded pictures are judged, checked against pytorch-msssim and against themselves in pieces."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditic_stream import metrics


def pair(seed: int, height: int, width: int, noise: float = 12.0) -> tuple[np.ndarray, np.ndarray]:
    """A smooth random picture with some texture, and a noisy copy; uint8 (3, height, width)."""
    rng = np.random.default_rng(seed)
    rows, cols = np.mgrid[0:height, 0:width]
    waves = [np.sin(rows / rng.uniform(5, 60)) * np.cos(cols / rng.uniform(5, 60)) for _ in range(3)]
    source = np.stack([128 + 90 * wave for wave in waves]) + rng.normal(0, 6, (3, height, width))
    source = np.clip(source, 0, 255).round().astype(np.uint8)
    decoded = np.clip(source + rng.normal(0, noise, source.shape), 0, 255).round().astype(np.uint8)
    return source, decoded


@pytest.mark.parametrize(("height", "width"), [(176, 192), (256, 320)])
def test_ms_ssim_agrees_with_pytorch_msssim(height: int, width: int) -> None:
    torch = pytest.importorskip("torch")
    reference = pytest.importorskip("pytorch_msssim")
    source, decoded = pair(1, height, width, noise=40)
    expected = reference.ms_ssim(
        torch.from_numpy(source[None].astype(np.float32)), torch.from_numpy(decoded[None].astype(np.float32)),
        data_range=255, size_average=True,
    )  # fmt: skip
    value = metrics.ms_ssim(source, decoded, peak=255)
    # Both sum in float32, in another order: the fifth digit is all that may differ.
    assert value == pytest.approx(float(expected), abs=2e-5)
    assert 0.2 < value < 0.99


def test_ms_ssim_of_equal_pictures_is_one() -> None:
    source, _ = pair(2, 200, 170)
    assert metrics.ms_ssim(source, source, peak=255) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(("height", "width", "present"), [(160, 400, False), (400, 160, False), (161, 161, True)])
def test_ms_ssim_is_none_below_161_pixels_a_side(height: int, width: int, present: bool) -> None:
    source, decoded = pair(3, height, width)
    value = metrics.ms_ssim(source, decoded, peak=255)
    assert (value is not None) is present


@settings(max_examples=10, deadline=None)
@given(
    height=st.integers(161, 300),
    width=st.integers(161, 300),
    cut_row=st.integers(1, 12),
    cut_col=st.integers(1, 12),
)
def test_ms_ssim_from_blocks_equals_ms_ssim_of_the_whole(height: int, width: int, cut_row: int, cut_col: int) -> None:
    source, decoded = pair(4, height, width)
    x, y = source / np.float32(255), decoded / np.float32(255)
    whole = metrics.Structure(3)
    whole.add(x, y)
    pieces = metrics.Structure(3)
    row_cuts, col_cuts = cut_row * metrics.ALIGN, cut_col * metrics.ALIGN
    for row, row_end in metrics.blocks(height, row_cuts):
        for col, col_end in metrics.blocks(width, col_cuts):
            rows = None if row_end == height else row_end - row
            cols = None if col_end == width else col_end - col
            block = (slice(None), slice(row, row_end + metrics.REACH), slice(col, col_end + metrics.REACH))
            pieces.add(x[block], y[block], rows=rows, cols=cols)
    assert pieces.counts.tolist() == whole.counts.tolist()
    np.testing.assert_allclose(pieces.sums, whole.sums, rtol=1e-6)


def test_ms_ssim_stays_near_pytorch_msssim_on_odd_sides() -> None:
    torch = pytest.importorskip("torch")
    reference = pytest.importorskip("pytorch_msssim")
    source, decoded = pair(6, 333, 421, noise=40)
    x, y = (torch.from_numpy(pixels[None].astype(np.float32)) for pixels in (source, decoded))
    # The two pad an odd side differently (edge against zeros), which moves the third digit.
    assert metrics.ms_ssim(source, decoded, peak=255) == pytest.approx(float(reference.ms_ssim(x, y)), abs=5e-3)


@pytest.mark.parametrize("side", [161, 176, 333])
def test_ms_ssim_of_flat_pictures_is_the_luminance_term_whatever_the_side(side: int) -> None:
    source, decoded = np.full((1, side, side), 128, np.uint8), np.full((1, side, side), 153, np.uint8)
    x, y, c = 128 / 255, 153 / 255, 0.01**2
    luminance = (2 * x * y + c) / (x * x + y * y + c)
    # The last scale alone weighs luminance, by 0.1333.
    assert metrics.ms_ssim(source, decoded, peak=255) == pytest.approx(luminance**0.1333, abs=1e-4)


def test_psnr_counts_only_valid_samples() -> None:
    source = np.zeros((1, 4, 4), np.uint8)
    decoded = source.copy()
    decoded[0, 0, 0] = 200
    decoded[0, 1, 1] = 10
    errors = metrics.Errors(255.0)
    errors.add(source, decoded, valid=decoded < 100)
    assert errors.largest == 10
    assert errors.count == 15
    assert errors.psnr == pytest.approx(10 * math.log10(255**2 / (100 / 15)))


def test_psnr_of_equal_pictures_is_none_and_unsigned_types_do_not_wrap() -> None:
    low, high = np.zeros((1, 2, 2), np.uint16), np.full((1, 2, 2), 65535, np.uint16)
    assert metrics.psnr(low, low, peak=65535) is None
    assert metrics.psnr(low, high, peak=65535) == pytest.approx(0.0)


def test_errors_merge_to_the_errors_of_the_whole() -> None:
    source, decoded = pair(5, 40, 60)
    whole, left, right = (metrics.Errors(255.0) for _ in range(3))
    whole.add(source, decoded)
    left.add(source[:, :, :17], decoded[:, :, :17])
    right.add(source[:, :, 17:], decoded[:, :, 17:])
    left.merge(right)
    assert (left.count, left.largest) == (whole.count, whole.largest)
    assert left.squared == pytest.approx(whole.squared)
