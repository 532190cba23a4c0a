"""Sizes and constants of the paper's system.

In: nothing, or a JSON file with the keys `vae` and `transformer`.  Out: a frozen value.  The two backbones come in
sizes, since tests run on small ones; everything between them has the one size of the released model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ditic_stream.errors import ConfigError

MODEL = "ditic-0.6b"
"""What users call it; a rate follows after a colon (ditic-0.6b:q3)."""

LATENT = 32
"""Channels of DC-AE's latent, at 1/32."""
AUX = 320
"""Channels of the ELIC analysis, at 1/16."""
CODED = 320
"""Channels of the latent that is coded, at 1/64."""
HYPER = 160
"""Channels of its hyper-latent, at 1/256."""
PROMPT = 320
"""Channels that the condition tokens are pooled from, at 1/32."""
PASSES = 4
"""Passes the coded latent is sent in, and groups its channels fall into."""
ALIGN = 256
"""Pictures are padded to a multiple of this, pixels."""

SCALES = 64
SCALE_MIN, SCALE_MAX = 0.11, 256.0
"""The Gaussian widths the entropy coder knows: exp(linspace(log SCALE_MIN, log SCALE_MAX, SCALES)), in steps."""

POOLED, LEARNED = 48, 29
"""Condition tokens that are pooled from the picture, and that are always the same: 77 together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperConfig:
    """The two backbones' settings, under the names their diffusers classes give them, each as canonical JSON text."""

    vae_json: str
    """Of DC-AE (`AutoencoderDC`); `latent_channels` has to be 32 and its stages have to make 1/32."""
    transformer_json: str
    """Of SANA (`SanaTransformer2DModel`); 32 channels in and out, patch size 1."""

    def __post_init__(self) -> None:
        vae, transformer = self.vae, self.transformer
        wanted: list[tuple[str, Mapping[str, Any], str, object]] = [
            ("vae", vae, "latent_channels", LATENT),
            ("transformer", transformer, "in_channels", LATENT),
            ("transformer", transformer, "out_channels", LATENT),
            ("transformer", transformer, "patch_size", 1),
        ]
        for part, settings, name, value in wanted:
            if settings.get(name) != value:
                raise ConfigError(f"{part}.{name} is {settings.get(name)!r}; this system needs {value!r}")
        for name in ("encoder_block_out_channels", "decoder_block_out_channels"):
            stages = vae.get(name)
            if not isinstance(stages, list) or len(stages) != 6:
                raise ConfigError(f"vae.{name} is {stages!r}; six stages make the latent at 1/32")
        for part, settings, name in (
            ("vae", vae, "scaling_factor"),
            ("transformer", transformer, "caption_channels"),
        ):
            value = settings.get(name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ConfigError(f"{part}.{name} is {value!r}; give a positive number")

    @classmethod
    def of(cls, vae: Mapping[str, Any], transformer: Mapping[str, Any]) -> PaperConfig:
        """Build from the settings themselves; keys that begin with "_" (a class name, a version) are left out."""
        plain = ({k: v for k, v in part.items() if not k.startswith("_")} for part in (vae, transformer))
        return cls(**dict(zip(("vae_json", "transformer_json"), map(_canonical, plain), strict=True)))

    @classmethod
    def from_json(cls, data: object) -> PaperConfig:
        """Build from parsed JSON with the keys `vae` and `transformer`; other keys are not looked at."""
        if not isinstance(data, dict) or not all(isinstance(data.get(k), dict) for k in ("vae", "transformer")):
            raise ConfigError("a configuration is a JSON object with the objects `vae` and `transformer`")
        return cls.of(data["vae"], data["transformer"])

    @classmethod
    def load(cls, path: Path) -> PaperConfig:
        """Read a JSON file.  Raises ConfigError when it is absent, is no JSON, or its sizes do not fit."""
        try:
            data = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read as a configuration ({error}); give a JSON file") from error
        return cls.from_json(data)

    @property
    def vae(self) -> dict[str, Any]:
        """Settings of DC-AE, a fresh dict."""
        return _object(self.vae_json)

    @property
    def transformer(self) -> dict[str, Any]:
        """Settings of SANA, a fresh dict."""
        return _object(self.transformer_json)

    @property
    def scaling(self) -> float:
        """Factor between DC-AE's latent and the one the networks see."""
        return float(self.vae["scaling_factor"])

    @property
    def caption(self) -> int:
        """Width of a condition token."""
        return int(self.transformer["caption_channels"])

    def to_json(self) -> str:
        """The canonical text that files keep; `from_json` of it gives this value again."""
        return _canonical({"vae": self.vae, "transformer": self.transformer})


def _canonical(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _object(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    return found


_ATTENDS = ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3
_WIDTHS = [128, 256, 512, 512, 1024, 1024]
_SCALES: list[list[int]] = [[], [], [], [5], [5], [5]]

OFFICIAL = PaperConfig.of(
    vae={
        "in_channels": 3,
        "latent_channels": LATENT,
        "attention_head_dim": 32,
        "encoder_block_types": _ATTENDS,
        "decoder_block_types": _ATTENDS,
        "encoder_block_out_channels": _WIDTHS,
        "decoder_block_out_channels": _WIDTHS,
        "encoder_layers_per_block": [2, 2, 2, 3, 3, 3],
        "decoder_layers_per_block": [3, 3, 3, 3, 3, 3],
        "encoder_qkv_multiscales": _SCALES,
        "decoder_qkv_multiscales": _SCALES,
        "upsample_block_type": "interpolate",
        "downsample_block_type": "Conv",
        "decoder_norm_types": "rms_norm",
        "decoder_act_fns": "silu",
        "scaling_factor": 0.41407,
    },
    transformer={
        "attention_bias": False,
        "attention_head_dim": 32,
        "caption_channels": 2304,
        "cross_attention_dim": 1152,
        "cross_attention_head_dim": 72,
        "dropout": 0.0,
        "in_channels": LATENT,
        "mlp_ratio": 2.5,
        "norm_elementwise_affine": False,
        "norm_eps": 1e-06,
        "num_attention_heads": 36,
        "num_cross_attention_heads": 16,
        "num_layers": 28,
        "out_channels": LATENT,
        "patch_size": 1,
        "sample_size": 32,
    },
)
"""The released model: 312 M parameters of DC-AE, 592 M of SANA, 146 M between them."""
