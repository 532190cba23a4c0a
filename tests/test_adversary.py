"""It learns to tell decoded from source, pulls the decoder as hard as asked, and goes on after a stop."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ditic_stream.training.adversary import RISING, SILENT, Adversary, told_apart


def pair(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    return x, F.avg_pool2d(x, 5, 1, 2)


def learn(adversary: Adversary, steps: int, replicas: int = 1) -> list[float]:
    found = []
    for _ in range(steps):
        for replica in range(replicas):
            x, y = pair(replica)
            y.requires_grad_()
            _, apart = adversary.pull(replica, x, y, torch.ones(2), (y * 0).sum(), y)
        adversary.step()
        found.append(float(apart))
    return found


def test_a_discriminator_learns_to_tell_blurred_from_sharp() -> None:
    found = learn(Adversary(1, 1e-3), 12)
    assert found[0] > 1.5 and found[-1] < 0.5 * found[0]


def test_replicas_share_what_they_learn() -> None:
    adversary = Adversary(2, 1e-3)
    learn(adversary, 2, replicas=2)
    for mine, other in zip(adversary.twins[0].parameters(), adversary.twins[1].parameters(), strict=True):
        assert torch.equal(mine, other)


def test_the_pull_is_as_strong_as_all_other_terms_at_the_last_layer() -> None:
    adversary = Adversary(1, 1e-3)
    learn(adversary, 4)
    last = nn.Parameter(torch.ones(3, 1, 1))
    x, soft = pair()
    for part, expected in ((SILENT, 0.0), (SILENT + RISING / 2, 0.5), (1.0, 1.0)):
        adversary.part = part
        y = soft * last
        rest = (x - y).square().mean() * 1000
        pull, _ = adversary.pull(0, x, y, torch.ones(2), rest, last)
        (others,) = torch.autograd.grad(rest, last, retain_graph=True)
        ours = torch.autograd.grad(pull, last)[0] if pull.requires_grad else torch.zeros(1)
        assert float(ours.norm() / others.norm()) == pytest.approx(expected, abs=1e-4)
        adversary.optimiser.zero_grad()


def test_the_pull_leads_towards_what_looks_like_a_source() -> None:
    adversary = Adversary(1, 1e-3)
    learn(adversary, 12)
    adversary.part = 1.0
    x, soft = pair()
    y = soft.clone().requires_grad_()
    pull, _ = adversary.pull(0, x, y, torch.ones(2), y.sum() / y.numel(), y)
    pull.backward()
    assert y.grad is not None
    with torch.no_grad():
        before, after = (float(adversary.twins[0](p).mean()) for p in (soft, soft - 0.02 * y.grad.sign()))
    assert after > before


def test_a_restored_adversary_learns_on_as_it_would_have() -> None:
    whole = Adversary(1, 1e-3)
    learn(whole, 2)
    again = Adversary(1, 1e-3, seed=7)
    again.restore(copy.deepcopy(whole.state()))
    assert learn(whole, 2) == learn(again, 2)


def test_hinge_loss_is_two_for_no_opinion_and_zero_beyond_the_margin() -> None:
    assert float(told_apart(torch.zeros(4), torch.zeros(4))) == 2
    assert float(told_apart(torch.full((4,), 1.5), torch.full((4,), -1.5))) == 0
