"""The one face of all models: encode a window of pixels into a record's payload, and render a window of latents.

    pixels --networks--> latent --entropy model--> symbols --rANS--> words       encode
    words --rANS--> symbols --entropy model--> values, scales                    decode_symbols
    values, scales --one diffusion step, decoder--> pixels                       render

Everything between words and values is integer, whatever the model, and so the same on every machine; everything after
is float, and the same arithmetic for every window: one thread, one layout, one picture at a time.

`load_codec` finds the family of a name (families) and the module that makes its codec; nothing else in the package
knows which models there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from ditic_stream._codec_parts import ModelInfo
from ditic_stream.bitstream import Record
from ditic_stream.entropy import Coded
from ditic_stream.families import check_environment, family_of
from ditic_stream.latents import Latent

__all__ = ["Coded", "ModelInfo", "TileCodec", "load_codec"]


class TileCodec(Protocol):
    """One model on one device.  Cells are those of the model's units (families)."""

    @property
    def info(self) -> ModelInfo: ...

    def encode(self, pixels: NDArray[np.float32], core: tuple[slice, slice], q: int) -> Coded:
        """Code the core of a window; see `encode_at`."""
        ...

    def encode_at(self, pixels: NDArray[np.float32], core: tuple[slice, slice], qs: Sequence[int]) -> list[Coded]:
        """Code the core of a window once for each of some rates; the encoder itself runs once.

        pixels: float32 (groups, 3, rows, columns) in network units, 0..1 for black to white; any size.  core: its rows
        and columns inside the window, starting on whole cells.  qs: 0..11088.
        """
        ...

    def decode_symbols(self, record: Record, groups: int, height: int, width: int, q: int) -> Latent:
        """The latents of a record: values and scales (groups, channels, height, width) in cells.  Raises
        DesyncError."""
        ...

    def decode_many(
        self, records: Sequence[Record], groups: int, height: int, width: int, q: int, *, coarse: bool = False
    ) -> Sequence[Latent]:
        """The latents of several records of one size, in less time than one by one where the model can.  DesyncError
        does not say whose.

        coarse: the leading channels alone, in a third of the time; their checksum, which is over all, is not checked.
        """
        ...

    def coarse_gain(self, q: int) -> NDArray[np.float32]:
        """Steps a feature has, for each of the channels that `decode_many` gives as the coarse ones; ConfigError for a
        model that has none."""
        ...

    def zero_latent(self, groups: int, height: int, width: int) -> Latent:
        """The latents of a tile that is EMPTY, lost or damaged."""
        ...

    def render(
        self, values: NDArray[np.int16], scales: NDArray[np.generic], q: int, anchor: tuple[int, int]
    ) -> NDArray[np.float32]:
        """Pixels of a window of latents, float32 (groups, 3, rows, columns) in network units, whole cells.

        anchor: (row, column) of the window on the scene's latent grid.  Safe in several threads.
        """
        ...


def load_codec(name: str, *, device: str = "cpu", weights: Path | None = None) -> TileCodec:
    """The codec of a model or a set of weights ("small", "small-6", "ditic-0.6b:q3"), or of a weights file; ConfigError
    for an unknown name."""
    asked = str(weights) if weights is not None else name
    check_environment(asked, device)
    return cast(TileCodec, import_module(family_of(asked).codec).load(asked, device))
