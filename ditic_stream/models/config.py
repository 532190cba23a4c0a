"""Sizes of the networks: one frozen value, stored whole in every archive."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ditic_stream.config import Q_MAX
from ditic_stream.errors import ConfigError

Q_STEPS = 1584
"""Steps of q between two rate levels: 16 x 99, so that sixteenths of a level and the 99 steps of quality are whole."""
LEVELS = Q_MAX // Q_STEPS + 1
"""Rate levels whose tables are trained; between them tables are interpolated."""
SCALES = 64
"""Scale indexes: the Gaussian widths the entropy coder knows, log-spaced."""
LOG_SCALE_MIN, LOG_SCALE_MAX = -2.8, 5.5
"""Natural logarithms of the narrowest and the widest scale, in quantisation steps."""
LOG_SCALE_STEP = (LOG_SCALE_MAX - LOG_SCALE_MIN) / (SCALES - 1)
CODED_FROM = 7
"""Elements whose scale index is lower (standard deviation under 0.153 steps) are not coded: their symbol is 0."""
ATTENTION_CELLS = 8
"""Side of an attention window, latent cells; windows are anchored at multiples of it on the scene's latent grid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Widths and depths.  Resolutions are those of the paper's f32 latent; names count from the pixel side."""

    c8: int
    """Channels at 1/8."""
    c16: int
    """Channels at 1/16."""
    latent: int
    """Latent channels at 1/32."""
    enc8: int
    """Residual blocks of the encoder at 1/8."""
    enc16: int
    """Residual blocks of the encoder at 1/16."""
    dec8: int
    """Residual blocks of the decoder at 1/8."""
    dec16: int
    """Residual blocks of the decoder at 1/16."""
    hyper: int
    """Channels of the entropy-parameter networks."""
    hyper_z: int
    """Channels of the hyper-latent at 1/64."""
    dim: int
    """Token width of the diffusion transformer."""
    depth: int
    """Blocks of the diffusion transformer; every second one attends."""
    heads: int
    """Attention heads."""
    context: int = 0
    """Leading latent channels that are coded first and help to predict the others; 0: all are coded in one pass."""
    overlap: int = 0
    """Leading latent channels analysed and drawn beyond their own cell at 1/32; 0: none but the lapped means."""

    passing: int = 0
    """Last channels at 1/16, the finest details, that go past the residual blocks; 0: none."""

    unguided: int = 0
    """1: the step is as long everywhere, and blind to the decoded variance (DiT-IC's first alignment is off)."""
    unconditioned: int = 0
    """1: no cross-attention to condition tokens of the latent (its third alignment is off, as in `small`)."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, int) or not 0 <= value <= 4096:
                raise ConfigError(f"{name} {value!r} is not an integer in 0..4096; use a preset of {sorted(PRESETS)}")
        if max(self.context, self.overlap) >= self.latent:
            raise ConfigError(
                f"context {self.context} or overlap {self.overlap} is not below {self.latent}, the latent's channels"
            )
        if self.passing >= max(self.c16, 1):
            raise ConfigError(f"passing {self.passing} is not below {self.c16}, the channels at 1/16")
        if self.dim % (4 * self.heads):
            raise ConfigError(f"dim {self.dim} is not a multiple of 4 x heads ({self.heads}); rotary positions need it")

    def to_json(self) -> dict[str, int]:
        """All fields, but those of LATER that are 0: sets from before them keep their description, byte for byte."""
        return {name: value for name, value in asdict(self).items() if value or name not in LATER}


LATER = ("context", "overlap", "passing", "unguided", "unconditioned")
"""Fields that the first sets did not have."""
PRESETS: dict[str, ModelConfig] = {}
PRESETS["small"] = ModelConfig(
    c8=96, c16=256, latent=768, enc8=1, enc16=3, dec8=2, dec16=2, hyper=128, hyper_z=32, dim=256, depth=4, heads=4,
    context=64, overlap=64, passing=64, unconditioned=1,
)  # fmt: skip
PRESETS["tiny"] = ModelConfig(
    c8=48, c16=64, latent=128, enc8=1, enc16=1, dec8=1, dec16=1, hyper=48, hyper_z=16, dim=64, depth=2, heads=2
)
