"""Distances of features: what the published packages give, zero for equal pictures, growing with damage, kind to
texture, with slopes that lead back."""

from __future__ import annotations

import io
import json
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from critics import looked_at, seeded, write_features
from safetensors.torch import load_file, save_file

from ditic_stream.errors import WeightsError
from ditic_stream.training.perceptual import Features, feature_distance, fitted, texture_distance

GOLDEN = json.loads((Path(__file__).parent / "golden/perceptual.json").read_text())
"""LPIPS and DISTS by the packages that publish them, through networks of seeded values: golden/make_perceptual.py."""


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
    for _ in range(12):
        loss = features.distance(x, y).sum()
        found.append(float(loss.detach()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert found[-1] < 0.9 * found[0]


def test_a_flat_picture_has_a_finite_slope(features: Features) -> None:
    y = torch.full((1, 3, 64, 64), 0.5, requires_grad=True)
    features.distance(pictures()[:1, :, :64, :64], y).sum().backward()
    assert y.grad is not None and bool(torch.isfinite(y.grad).all())


@pytest.mark.parametrize("network", ["VGG16", "AlexNet", "SqueezeNet 1.1"])
def test_distances_and_their_slopes_are_those_of_the_published_packages(network: str, tmp_path: Path) -> None:
    """In float64, where no sum's order matters; LPIPS holds its means in float32, which is 1e-8 of them."""
    path = write_features(tmp_path / "f.safetensors", network, caffe=False)
    features = Features(path, dtype=torch.float64)
    x, y = looked_at()
    names = ("lpips", "dists") if network == "VGG16" else ("lpips", "texture")
    assert features.names == names
    for number, name in enumerate(names):
        if name == "texture":
            continue
        moved = y.clone().requires_grad_()
        found = features.judge(x, moved)[number]
        found.sum().backward()
        golden = GOLDEN[f"{name} {network}"]
        np.testing.assert_allclose(found.detach().numpy(), golden["distance"], rtol=1e-6)
        assert moved.grad is not None and float(moved.grad.norm()) == pytest.approx(golden["slope"], rel=1e-6)
        single = Features(path).judge(x.float(), y.float())[number]
        np.testing.assert_allclose(single.numpy(), golden["distance"], rtol=1e-4)


def test_what_is_fitted_to_lpips_is_what_was_published_elsewhere(shared: Path) -> None:
    other = load_file(shared / "data/metrics/lpips_v0.1_linear.safetensors")
    ours = {name: value for name, value in fitted().items() if name.startswith("lpips.")}
    assert len(ours) == len(other) == 17
    for name, value in ours.items():
        _, network, tap = name.split(".")
        assert torch.equal(value, other[f"{network}.lin{tap}.weight"].flatten())


def test_with_values_for_caffe_the_form_gives_what_was_measured(shared: Path) -> None:
    features = Features(shared / "data/metrics/squeezenet1_1_caffe_fp16.safetensors")
    assert features.names == ("likeness", "texture") and "neither LPIPS nor DISTS" in features.words
    picture = imagecodecs.imread(shared / "data/eval/kodim05.png")
    for quality, measured in ((75, 0.102), (15, 0.520)):
        file = io.BytesIO()
        image = pytest.importorskip("PIL.Image")
        image.fromarray(picture).save(file, "JPEG", quality=quality)
        x, y = (
            torch.from_numpy(pixels.astype(np.float32).transpose(2, 0, 1)[None] / 255)
            for pixels in (picture, imagecodecs.jpeg_decode(file.getvalue()))
        )
        assert float(features.judge(x, y)[0]) == pytest.approx(measured, abs=0.002)


def test_a_place_where_no_feature_fires_has_a_finite_slope(tmp_path: Path) -> None:
    tensors = seeded("AlexNet")
    tensors["features.10.bias"] -= 100  # nothing fires in the last tap
    save_file(tensors, tmp_path / "f.safetensors")
    x, y = looked_at()
    y = y.float().requires_grad_()
    Features(tmp_path / "f.safetensors").judge(x.float(), y)[0].sum().backward()
    assert y.grad is not None and bool(torch.isfinite(y.grad).all()) and float(y.grad.norm()) > 0


def test_a_state_dict_of_torch_with_its_classifier_is_read_without_running_what_it_holds(tmp_path: Path) -> None:
    tensors = {**seeded("AlexNet"), "classifier.1.weight": torch.zeros(8, 8)}
    for legacy in (False, True):
        torch.save(tensors, tmp_path / "f.pth", _use_new_zipfile_serialization=not legacy)
        assert Features(tmp_path / "f.pth").words.startswith("LPIPS v0.1 through AlexNet; of DISTS")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "f.pth")
    with pytest.raises(WeightsError, match="hold more than tensors"):
        Features(tmp_path / "f.pth")
    torch.save([1, 2], tmp_path / "f.pth")
    with pytest.raises(WeightsError, match="hold a list"):
        Features(tmp_path / "f.pth")


def test_a_file_that_holds_no_features_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be read"):
        Features(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("no features here")
    with pytest.raises(WeightsError, match="cannot be read"):
        Features(tmp_path / "text.safetensors")
    tensors = seeded("SqueezeNet 1.1")

    def refused(changes: dict[str, torch.Tensor | None], match: str) -> None:
        held = {name: value for name, value in (tensors | changes).items() if value is not None}
        save_file(held, tmp_path / "f.safetensors")
        with pytest.raises(WeightsError, match=match):
            Features(tmp_path / "f.safetensors")

    refused({"features.4.squeeze.weight": torch.zeros(4, 5, 1, 1)}, r"as SqueezeNet 1.1, features.4.squeeze.weight is")
    refused({"features.9.squeeze.bias": None}, r"features\.9\.squeeze\.bias is missing")
    refused({"features.13.weight": torch.zeros(3)}, r"features\.13\.weight is no part of it")
    refused({"features.0.bias": torch.full((64,), torch.nan)}, "not finite")
    tensors = {"conv1.weight": torch.zeros(3)}
    refused({}, "hold none of VGG16, AlexNet, SqueezeNet 1.1")
