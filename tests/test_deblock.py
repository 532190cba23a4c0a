"""Deblocking: steps between cells go, slopes and texture stay."""

import pytest
import torch

from ditic_stream.models.deblock import deblock

LOW, HIGH = torch.tensor([0.0]), torch.tensor([7.0])


def across(x: torch.Tensor, place: int) -> float:
    """Mean absolute step over row and column `place`, grey levels."""
    return 255 * float(x.diff(dim=2)[:, :, place - 1].abs().mean() + x.diff(dim=3)[..., place - 1].abs().mean()) / 2


def stairs(place: int, height: float = 1 / 255) -> torch.Tensor:
    """A step in rows and in columns, at `place`."""
    step = (torch.arange(128) >= place) * height
    return (0.4 + step[:, None] + step).expand(1, 3, 128, 128).contiguous()


@pytest.mark.parametrize(("place", "left"), [(32, 1 / 24), (64, 1 / 24), (48, 1 / 16), (112, 1 / 16)])
def test_a_step_between_cells_or_their_quarters_becomes_a_ramp(place: int, left: float) -> None:
    x = stairs(place)
    assert across(x, place) == pytest.approx(1, rel=1e-3)
    assert across(deblock(x, LOW), place) == pytest.approx(left, abs=0.02)


@pytest.mark.parametrize("place", [8, 24, 37, 40])
def test_a_step_elsewhere_stays(place: int) -> None:
    x = stairs(place)
    assert across(deblock(x, LOW), place) == pytest.approx(1, abs=0.1)


def test_slopes_stay_as_they_are() -> None:
    position = torch.arange(96) / 255
    x = (0.1 + 2 * position[:, None] + 0.5 * position).expand(1, 3, 96, 96).contiguous()
    torch.testing.assert_close(deblock(x, LOW), x, atol=2e-6, rtol=0)


def test_texture_stays_and_the_more_so_at_a_high_rate() -> None:
    x = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    changed = [float((deblock(x, level) - x).square().mean().sqrt() / x.std()) for level in (LOW, HIGH)]
    assert changed[1] < changed[0] < 0.001


def test_levels_of_a_batch_are_their_own_and_the_input_is_untouched() -> None:
    x = stairs(64, 8 / 255) + torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0)) / 64
    kept = x.clone()
    both = deblock(x, torch.tensor([0.0, 7.0]))
    assert torch.equal(x, kept)
    torch.testing.assert_close(both[:1], deblock(x[:1], LOW))
    torch.testing.assert_close(both[1:], deblock(x[1:], HIGH))
    assert across(both[:1], 64) < across(both[1:], 64)


def test_one_cell_is_enough() -> None:
    assert deblock(torch.rand(1, 3, 32, 32), LOW).shape == (1, 3, 32, 32)
