"""A network that tells decoded crops from source crops, trained against the decoder.

In: source and decoded crops (B, 3, H, W), 0..1.  Out: a term of the decoder's loss, and the discriminator's own
gradients.  Knows nothing of rates, and keeps its own optimiser and state.

Patches are judged each for itself (Isola et al., CVPR 2017) under hinge losses.  How hard the decoder is pulled follows
Esser et al., CVPR 2021 (equation 7): the term is scaled so that its gradient at the decoder's last layer is as large as
that of all other terms together, whatever the discriminator's own scale; the caller takes a share of it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 48
GROUPS = 8
REACH = 4
"""Halvings: a judgement sees about 70 pixels, two cells."""
PULL_MAX = 1e4
"""Largest scale of the term, for decoders that have nothing else to learn."""
SILENT, RISING = 0.1, 0.1
"""Parts of a run in which the discriminator learns alone, and in which its pull then rises to what was asked for."""


class Discriminator(nn.Module):
    """Pixels -> one judgement per 16 x 16 pixels, positive for a source.  Group norm, which unlike spectral norm keeps
    no state, so replicas on threads stay equal."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for step in range(1, REACH):
            before, after = width * min(2 ** (step - 1), 4), width * min(2**step, 4)
            layers += [nn.Conv2d(before, after, 4, 2, 1), nn.GroupNorm(GROUPS, after), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(after, 1, 3, 1, 1))

    def forward(self, x_B3HW: Tensor) -> Tensor:
        """(B, 1, H / 16, W / 16)."""
        return self.layers(x_B3HW * 2 - 1)


def told_apart(real: Tensor, decoded: Tensor) -> Tensor:
    """Hinge loss of the discriminator; 0 when every judgement is right by a margin of one, 2 when it knows nothing."""
    return F.relu(1 - real).mean() + F.relu(1 + decoded).mean()


class Adversary:
    """A discriminator, its optimiser, and twins on the same parameters for replicas that run at once."""

    def __init__(self, replicas: int, rate: float, device: torch.device | str = "cpu", seed: int = 0) -> None:
        """rate: learning rate of the discriminator."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = Discriminator()
        self.twins = [network.to(device)]
        for _ in range(replicas - 1):
            twin = copy.deepcopy(network)
            for mine, other in zip(twin.parameters(), network.parameters(), strict=True):
                mine.data = other.data
            self.twins.append(twin)
        self.optimiser = torch.optim.Adam(network.parameters(), lr=rate, betas=(0.5, 0.9))
        self.part = 0.0
        """How far the run is, 0..1; set before each step."""

    def pull(
        self, replica: int, x_B3HW: Tensor, y_B3HW: Tensor, weight_B: Tensor, rest: Tensor, last: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The decoder's term, and the discriminator's own loss, whose gradient is left in the twin of `replica`.

        weight_B: how much each crop counts; rest: the sum of all other terms; last: the decoder's last parameter.
        The term's value is the judgement; its gradient reaches what made `y` and nothing else.
        """
        twin = self.twins[replica]
        apart = told_apart(twin(x_B3HW), twin(y_B3HW.detach()))
        apart.backward()
        share = min(1.0, max(0.0, (self.part - SILENT) / RISING))
        if not share:
            return torch.zeros_like(rest), apart.detach()
        leaf = y_B3HW.detach().requires_grad_()
        judged = -(twin(leaf).float().mean((1, 2, 3)) * weight_B).mean()
        (slope,) = torch.autograd.grad(judged, leaf)
        (ours,) = torch.autograd.grad(y_B3HW, last, slope.to(y_B3HW.dtype), retain_graph=True)
        (others,) = torch.autograd.grad(rest, last, retain_graph=True)
        scale = (others.norm() / (ours.norm() + 1e-8)).clamp(max=PULL_MAX) * share
        linear = (slope * y_B3HW).sum()
        return scale * (linear - linear.detach() + judged.detach()), apart.detach()

    def step(self) -> None:
        """Move the discriminator by the mean of what its twins found."""
        for several in zip(*(twin.parameters() for twin in self.twins), strict=True):
            found = [p.grad for p in several if p.grad is not None]
            several[0].grad = torch.stack(found).mean(0) if found else None
            for p in several[1:]:
                p.grad = None
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"network": self.twins[0].state_dict(), "optimiser": self.optimiser.state_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`; twins share the parameters, so they follow."""
        self.twins[0].load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
