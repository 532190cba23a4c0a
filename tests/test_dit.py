"""The diffusion step: anchored windows, and what spread means."""

from __future__ import annotations

import pytest
import torch

from ditic_stream.models.config import PRESETS
from ditic_stream.models.dit import OneStep, _unwindows, _windows


@pytest.fixture
def step() -> OneStep:
    torch.manual_seed(3)
    step = OneStep(PRESETS["tiny"]).eval()
    with torch.no_grad():
        step.out.weight.normal_(0, 0.1)  # it starts at zero
        step.time[2].weight.normal_(0, 0.1)  # type: ignore[union-attr, operator]
    return step


def _inputs(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(4)
    channels = PRESETS["tiny"].latent
    noisy = torch.randn(1, channels, height, width, generator=random)
    return noisy, torch.rand(1, channels, height, width, generator=random), torch.ones(channels)


@pytest.mark.parametrize("anchor", [(0, 0), (3, 0), (6, 5), (7, 7)])
@pytest.mark.parametrize("shape", [(1, 1), (5, 9), (8, 8), (17, 3)])
def test_windows_come_back_where_they_were(shape: tuple[int, int], anchor: tuple[int, int]) -> None:
    x = torch.arange(2.0 * 3 * shape[0] * shape[1]).reshape(2, 3, *shape)
    tokens, mask = _windows(x, 8, anchor)
    assert torch.equal(_unwindows(tokens, x.shape, 8, anchor), x)
    if mask is not None:
        assert int(mask.sum()) == 2 * shape[0] * shape[1]


@torch.no_grad()
def test_attention_sees_no_further_than_its_anchored_window(step: OneStep) -> None:
    noisy, spread, _ = _inputs(16, 16)
    block = step.blocks[1]
    x = step.embed(torch.cat([noisy, spread], 1))
    before = block._self_attention(x, (0, 0))  # type: ignore[operator]
    x[:, :, 12, 12] += 1
    after = block._self_attention(x, (0, 0))  # type: ignore[operator]
    changed = (before != after).any(1)[0]
    assert changed[8:, 8:].all() and not changed[:8].any() and not changed[:, :8].any()


@torch.no_grad()
def test_cut_window_attends_like_the_whole_grid(step: OneStep) -> None:
    """A window that starts inside the grid gives what the whole gives, in every attention window it holds entirely."""
    noisy, spread, std = _inputs(24, 24)
    whole = step(noisy, spread, std, (0, 0))
    part = step(noisy[:, :, 6:, 6:], spread[:, :, 6:, 6:], std, (6, 6))
    difference = (whole[:, :, 6:, 6:] - part).abs().amax(1)[0]
    assert float(difference[10:, 10:].max()) < 1e-4  # 2 cells of convolution reach beyond the attention window
    other = step(noisy[:, :, 6:, 6:], spread[:, :, 6:, 6:], std, (0, 0))
    assert float((other - part).abs().max()) > 1e-4  # the anchor matters


@torch.no_grad()
def test_certain_elements_do_not_move(step: OneStep) -> None:
    noisy, spread, std = _inputs(8, 8)
    spread[:, ::2] = 0
    moved = step(noisy, spread, std, (0, 0)) - noisy
    assert float(moved[:, ::2].abs().max()) == 0.0 and float(moved[:, 1::2].abs().max()) > 0
