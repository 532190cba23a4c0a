"""The speed of a run: operations as they can be reckoned by hand, crops a second, the share of a known peak."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ditic_stream.training.speed import Operations, Speed, peak_named, peak_of


def test_operations_of_a_layer_forward_and_backward_are_those_of_its_products() -> None:
    layer, x = nn.Linear(5, 7, bias=False), torch.rand(3, 5, requires_grad=True)
    with Operations() as counted:
        layer(x).sum().backward()
    assert counted.total == 3 * 2 * (3 * 5 * 7)  # forward, slope of the weight, slope of the input


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40", 181e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA GeForce RTX 3090", None),
    ],
)
def test_a_peak_is_known_by_a_word_of_the_name(name: str, peak: float | None) -> None:
    assert peak_named(name) == peak


def test_speed_says_crops_and_the_share_of_the_peak() -> None:
    speed = Speed(torch.device("cpu"))
    assert speed.words() == "" and peak_of(torch.device("cpu")) is None
    speed.operations, speed._peak = 1e9, 1e18
    speed.add(8)
    figures = speed.figures()
    assert figures["crops_per_s"] > 0 and figures["gflop_per_crop"] == 1.0
    assert "crops/s" in speed.words() and "of the peak" in speed.words()
    speed.start()
    assert speed.figures() == {}
