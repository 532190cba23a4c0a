"""What all codecs share: how they describe themselves, and the check of a device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ditic_stream.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What an archive says of its model."""

    name: str
    config: Mapping[str, Any]
    weights: str
    """sha256 of the weights file, hex."""
    licence: str
    encode_halo: int


def usable(device: str) -> torch.device:
    """The device of that name; ConfigError when torch cannot use it here."""
    try:
        found = torch.device(device)
        torch.zeros(1, device=found)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {device!r} is not usable here ({str(error).splitlines()[0]}); use cpu") from error
    return found
