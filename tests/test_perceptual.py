"""Distances of features: zero for equal pictures, growing with damage, kind to texture, with slopes that lead back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from critics import write_features
from safetensors.torch import load_file, save_file

from ditic_stream.errors import WeightsError
from ditic_stream.training.perceptual import Features, feature_distance, texture_distance


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Features:
    return Features(write_features(tmp_path_factory.mktemp("features") / "tiny.safetensors"))


def pictures() -> torch.Tensor:
    noise = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    return F.avg_pool2d(noise, 3, 1, 1) * 1.5 - 0.25


def test_distance_is_zero_for_equal_pictures_and_grows_with_blur(features: Features) -> None:
    x = pictures()
    soft = F.avg_pool2d(x, 3, 1, 1)
    softer = F.avg_pool2d(soft, 7, 1, 3)
    equal, some, more = (features.distance(x, y) for y in (x, soft, softer))
    assert equal.shape == (2,) and float(equal.abs().max()) < 1e-6
    assert bool((equal < some).all()) and bool((some < more).all())


def test_texture_distance_forgives_other_grass_more_than_features_do(features: Features) -> None:
    """The same statistics in other places, against their loss by blur: each in parts of the distance."""
    x = pictures()
    other, soft = x.flip(0), F.avg_pool2d(x, 7, 1, 3)
    taps = [features.taps(y) for y in (x, other, soft)]
    place = [float(feature_distance(taps[0], t).mean()) for t in taps[1:]]
    texture = [float(texture_distance(taps[0], t).mean()) for t in taps[1:]]
    assert texture[0] / texture[1] < place[0] / place[1]


def test_following_the_slope_brings_a_picture_nearer(features: Features) -> None:
    x = pictures()
    y = F.avg_pool2d(x, 5, 1, 2).requires_grad_()
    optimiser = torch.optim.Adam([y], lr=0.01)
    found = []
    for _ in range(24):
        loss = features.distance(x, y).sum()
        found.append(float(loss.detach()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert found[-1] < 0.8 * found[0]


def test_a_flat_picture_has_a_finite_slope(features: Features) -> None:
    y = torch.full((1, 3, 64, 64), 0.5, requires_grad=True)
    features.distance(pictures()[:1, :, :64, :64], y).sum().backward()
    assert y.grad is not None and bool(torch.isfinite(y.grad).all())


def test_a_file_that_holds_no_features_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be read"):
        Features(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("no features here")
    with pytest.raises(WeightsError, match="cannot be read"):
        Features(tmp_path / "text.safetensors")
    tensors = load_file(write_features(tmp_path / "whole.safetensors"))
    other = {**tensors, "features.4.squeeze.weight": torch.zeros(4, 5, 1, 1)}
    save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="other shapes"):
        Features(tmp_path / "other.safetensors")
    del tensors["features.9.squeeze.bias"]
    save_file(tensors, tmp_path / "part.safetensors")
    with pytest.raises(WeightsError, match=r"lack features\.9\.squeeze\.bias"):
        Features(tmp_path / "part.safetensors")
