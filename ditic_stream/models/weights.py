"""Weights files: find, check and load them.  safetensors only, never a pickle.

What archives name is a file's sha256.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ditic_stream.errors import ConfigError, WeightsError
from ditic_stream.models.config import ModelConfig
from ditic_stream.models.folder import NAME, find
from ditic_stream.models.names import FOLDER, PUBLISHED, WEIGHTS_FORMAT

NOT_STATED, LICENCE_LENGTH = "not stated", 200
"""What a set says of its licence unless who trained it said one, and how long that may be (manifests hold 256)."""
FLOAT32 = ("codec.log_gain", "codec.feature_std")
"""Tables kept in float32; all other floats of a file are bfloat16."""
INTEGER = ("codec.synthesis", "codec.near", "codec.context", "codec.log_scale")
"""Parts of a network that a file holds as integers alone, under `entropy.`."""
MAX_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Weights:
    """A loaded set: `sha256` of its file in hex, tensors by name (networks as float32, `entropy.*` as integers)."""

    name: str
    config: ModelConfig
    licence: str
    sha256: str
    tensors: dict[str, Tensor]


def load_weights(name: str) -> Weights:
    """The set that `name` stands for: a model ("small"), a set ("small-6", or one of the model folder), or the path of
    a safetensors file.

    Raises ConfigError for a name nobody published, WeightsError for a file that is absent, damaged or of another
    format.
    """
    path = Path(name) if name.endswith(".safetensors") else FOLDER / f"{PUBLISHED.get(name, name)}.safetensors"
    if not path.is_file() and NAME.fullmatch(name) and (stored := find(name)) is not None:
        path = stored[0]
    if not path.is_file():
        known = sorted(p.stem for p in FOLDER.glob("*.safetensors"))
        raise ConfigError(
            f"no weights are named {name!r}; this release has {', '.join(known) or 'none'}, and sets of your own come "
            "in with `ditic-stream models import weights.safetensors --name NAME`"
        )
    if path.stat().st_size > MAX_BYTES:
        raise WeightsError(f"{path.name} has {path.stat().st_size} bytes, more than {MAX_BYTES}; it is no set of ours")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a mapping)
        if metadata.get("format") != WEIGHTS_FORMAT:
            raise WeightsError(
                f"{path.name} is of format {metadata.get('format')!r}; this release reads {WEIGHTS_FORMAT!r}"
            )
        config = ModelConfig(**json.loads(metadata["config"]))
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise WeightsError(f"{path.name} cannot be read as weights ({error}); fetch the set again") from error
    floats = {k: v.float() if v.dtype == torch.bfloat16 else v for k, v in tensors.items()}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Weights(path.stem, config, metadata.get("licence", "unknown"), digest, floats)
