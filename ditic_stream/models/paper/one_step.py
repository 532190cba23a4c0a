"""The scheduler of one step: a flow of shift 3, evaluated once, at its first time.

In: the noisy latent, the network's velocity, the log-variance and the correction, all (B, 32, h, w).  Out: the denoised
latent.  The paper's variance-guided flow: the step is longer where the decoded variance says that more is missing.
"""

from __future__ import annotations

import torch
from torch import Tensor

TRAINING_STEPS = 1000
SHIFT = 3.0
TIMESTEP = TRAINING_STEPS - 1
"""What the network is told: the last of the times 0..999."""


def first_sigma(shift: float = SHIFT, steps: int = TRAINING_STEPS) -> float:
    """Noise level of the last of `steps` training times under a shifted flow: shift t / (1 + (shift - 1) t) at
    t = (steps - 1) / steps.  (diffusers' one-step schedule begins at t = 1, which is not what was trained.)"""
    time = (steps - 1) / steps
    return shift * time / (1 + (shift - 1) * time)


SIGMA = first_sigma()
"""0.99966644..."""
GAIN_FLOOR, GAIN_SLOPE, GAIN_MAX = 0.4, 0.15, 1.0
LOG_VARIANCE_MIN, LOG_VARIANCE_MAX = -30.0, 20.0


def gain(log_variance: Tensor) -> Tensor:
    """Share of the step that is taken, 0.4..1, per element: min(0.4 + 0.15 s, 1), s the standard deviation."""
    spread = torch.exp(0.5 * log_variance.clamp(LOG_VARIANCE_MIN, LOG_VARIANCE_MAX))
    return (GAIN_FLOOR + GAIN_SLOPE * spread).clamp(max=GAIN_MAX)


def step(noisy: Tensor, velocity: Tensor, log_variance: Tensor, correction: Tensor) -> Tensor:
    """noisy - sigma * gain * velocity + correction, element for element."""
    return noisy - SIGMA * gain(log_variance) * velocity + correction
