"""Lapped transforms and the attention door."""

from __future__ import annotations

import logging
import sys

import numpy as np
import pytest
import torch

from ditic_stream.models import layers
from ditic_stream.models.layers import attention, lap, lapped_basis, unlap


@pytest.mark.parametrize("stretch", [1.0, 1.6])
def test_lapped_transform_reconstructs_exactly(stretch: float) -> None:
    analysis, synthesis = lapped_basis(8, stretch)
    x = np.random.default_rng(0).standard_normal(96)
    y = np.zeros_like(x)
    for block in range(1, 11):
        part = slice(block * 8 - 4, block * 8 + 12)
        y[part] += synthesis.T @ (analysis @ x[part])
    np.testing.assert_allclose(y[16:-16], x[16:-16], atol=1e-12)


def test_lapped_transform_without_stretch_is_orthogonal() -> None:
    analysis, _ = lapped_basis(8, 1.0)
    np.testing.assert_allclose(analysis @ analysis.T, np.eye(8), atol=1e-12)


def test_unlap_undoes_lap_in_every_channel() -> None:
    x = torch.randn(2, 5, 8, 12, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(unlap(lap(x)), x, atol=1e-5, rtol=0)
    assert torch.equal(lap(x)[:, 3:], x[:, 3:])


def test_ramp_survives_when_only_block_means_are_kept() -> None:
    ramp = torch.arange(16.0).expand(1, 3, 4, 16)
    means = lap(ramp).unflatten(-1, (-1, 2)).mean(-1, keepdim=True).expand(-1, -1, -1, -1, 2).flatten(-2)
    steps = unlap(means)[0, 0, 0].diff()
    # Away from the ends, where there is no border to lap, no step is twice another; bare means would give 0 and 2.
    assert float(steps[4:-4].min()) > 0.9 and float(steps[4:-4].max()) < 1.1


def test_attention_ignores_masked_keys() -> None:
    random = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(1, 4, 2, 8, generator=random) for _ in range(3))
    mask = torch.tensor([True, True, False, True]).reshape(1, 1, 1, 4)
    expected = attention(q, k[:, [0, 1, 3]], v[:, [0, 1, 3]])
    torch.testing.assert_close(attention(q, k, v, mask), expected)


def test_broken_xformers_is_said_once_and_passed_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "xformers.ops", None)  # what an import of a missing module meets
    layers.xformers_kernel.cache_clear()
    with caplog.at_level(logging.INFO, "ditic_stream"):
        assert layers.xformers_kernel() is None and layers.xformers_kernel() is None
    layers.xformers_kernel.cache_clear()
    assert sum("xformers" in message for message in caplog.messages) == 1
