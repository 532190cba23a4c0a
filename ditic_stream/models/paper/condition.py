"""Condition tokens from the compressed latent itself (the paper's latent-conditioned guidance).

In: the condition map (B, 320, h, w) at 1/32.  Out: (B, 77, caption) tokens for SANA's cross-attention, no mask.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditic_stream.models.paper.config import LEARNED, POOLED, PROMPT


class Projector(nn.Module):
    """48 tokens pooled from the map in row-major order, then 29 learned ones, through an MLP."""

    def __init__(self, caption: int) -> None:
        super().__init__()
        self.pattern = nn.Parameter(torch.zeros(1, LEARNED, PROMPT))
        self.align = nn.Sequential(
            nn.Linear(PROMPT, caption), nn.SiLU(), nn.Linear(caption, caption), nn.SiLU(), nn.Linear(caption, caption)
        )

    def forward(self, prompt_BChw: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool1d(prompt_BChw.flatten(2), POOLED).transpose(1, 2)
        return self.align(torch.cat([pooled, self.pattern.expand(len(pooled), -1, -1)], 1))
