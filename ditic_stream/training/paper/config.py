"""Settings of a fine-tuning run, one frozen value.  Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ditic_stream.errors import ConfigError
from ditic_stream.models.paper.config import ALIGN, MODEL
from ditic_stream.training import SEED_MAX

STAGES = ("whole", "adversarial")
"""The paper's two: without a discriminator, and with one, from the weights of the first."""
RATE_WEIGHTS = {"q1": 8.0, "q2": 2.0, "q3": 0.6, "q4": 0.3}
"""Weight of rate for the released sets.  Not published: read off the slopes between their measured rates and
distances (docs/train.md)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneConfig:
    """One run."""

    data: tuple[str, ...]
    """Folders, tar files, lists, pictures and scenes to train on, see `training.scenes`."""
    memory: float = 4.0
    """Gigabytes of pictures that are held; of more, windows are drawn."""
    out: str
    """Folder of checkpoint, log and weights; made if absent.  A checkpoint found there is continued."""
    start: str
    """Set to start from: a name in the model folder (ditic-0.6b:q3), or the weights file of a run."""
    stage: str = "whole"
    """One of STAGES."""
    rate_weight: float = 0.0
    """Weight of a bit a pixel against the distortion; 0 takes that of the released set of the start's name."""
    features: str = ""
    """File of features for the perceptual terms; none: they are left out."""
    minutes: float = 60.0
    """Wall time to train."""
    steps: int = 0
    """Steps to train in place of `minutes`, when not 0; counted over all goes at a run."""
    batch: int = 8
    """Crops a step."""
    side: int = 256
    """Side of a crop, pixels; a multiple of 256."""
    rate: float = 1e-4
    """Learning rate of AdamW."""
    rank: int = 32
    """Rank of the adapters."""
    threads: int = 2
    """Of torch, on a CPU."""
    device: str = "cpu"
    precision: str = "auto"
    """Of SANA and DC-AE: "bfloat16", "float32", or "auto", bfloat16 where the hardware multiplies it."""
    seed: int = 0
    report: float = 120.0
    """Seconds between checkpoints and reports."""

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise ConfigError(f"stage {self.stage!r} is not one of {', '.join(STAGES)}, those of {MODEL}; choose one")
        if self.side % ALIGN or self.side < ALIGN:
            raise ConfigError(f"side {self.side} px is not a multiple of {ALIGN}; {ALIGN} is the default")
        if self.precision not in ("auto", "bfloat16", "float32"):
            raise ConfigError(f"precision {self.precision!r} is not one of auto, bfloat16, float32; choose one")
        if self.batch < 1 or self.threads < 1 or self.rank < 1:
            raise ConfigError(f"batch {self.batch}, threads {self.threads} and rank {self.rank}: each is at least 1")
        if not 0 <= self.seed <= SEED_MAX:
            raise ConfigError(f"seed {self.seed} is outside 0..{SEED_MAX}; choose one within")
        if self.rate_weight < 0 or not 0 < self.rate < 1:
            raise ConfigError(f"rate weight {self.rate_weight} and learning rate {self.rate}: take positive ones")
        if not self.rate_weight and self.start.rpartition(":")[2] not in RATE_WEIGHTS:
            raise ConfigError(
                f"{self.start!r} says nothing of its rate; give --rate-weight, such as "
                f"{', '.join(f'{weight:g} ({name})' for name, weight in RATE_WEIGHTS.items())}"
            )

    @property
    def weight(self) -> float:
        """The weight of rate that counts."""
        return self.rate_weight or RATE_WEIGHTS[self.start.rpartition(":")[2]]
