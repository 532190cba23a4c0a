"""The codec of the package's own networks (small, tiny): pixels into a record's payload, a window of latents into
pixels.

    pixels --Encoder--> features --gain, hyperprior--> symbols --rANS--> words           encode
    words --rANS--> symbols --fixed-point hyperprior--> values, scales                   decode_symbols
    values, scales --> noisy latent, spread --OneStep--> latent --Decoder--> pixels      render

Everything between words and values is integer (see `entropy`); everything after is float32, and the same arithmetic
for every window: one thread, one layout, one picture at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ditic_stream._codec_parts import ModelInfo, usable
from ditic_stream.bitstream import Record
from ditic_stream.config import Q_MAX
from ditic_stream.entropy import Coded, EntropyModel, TileLatent
from ditic_stream.errors import ConfigError, WeightsError
from ditic_stream.geometry import CELL, cells
from ditic_stream.models.config import LOG_SCALE_MIN, LOG_SCALE_STEP, Q_STEPS, SCALES
from ditic_stream.models.latent_codec import Z_MAX, spread
from ditic_stream.models.network import Network
from ditic_stream.models.weights import INTEGER, Weights, load_weights

ENCODE_HALO = 32
"""Pixels the encoder sees beyond a core; more changes no picture (benchmarks/seams.py)."""


def load(name: str, device: str) -> SmallCodec:
    """The codec of a published model or set ("small", "small-6"), or of a weights file; ConfigError for an unknown
    name."""
    return SmallCodec(load_weights(name), device)


class SmallCodec:
    """One set of weights on one device; a TileCodec."""

    def __init__(self, weights: Weights, device: str = "cpu") -> None:
        self.device = usable(device)
        self.info = ModelInfo(weights.name, weights.config.to_json(), weights.sha256, weights.licence, ENCODE_HALO)
        self.entropy = EntropyModel(weights.config, weights.tensors, self.device)
        network = Network(weights.config)
        missing, unexpected = network.load_state_dict(
            {k: v for k, v in weights.tensors.items() if not k.startswith("entropy.")}, strict=False
        )
        if unexpected or any(not m.startswith(INTEGER) for m in missing):
            raise WeightsError(
                f"{weights.name} does not fit its own config: missing {missing[:3]}, unexpected {unexpected[:3]}"
            )
        self.network = network.requires_grad_(False).eval().to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        index = torch.arange(SCALES, dtype=torch.float64)
        self._spread = spread((LOG_SCALE_MIN + LOG_SCALE_STEP * index).exp()).float().to(self.device)

    def _gain(self, q: int) -> torch.Tensor:
        return self.network.codec.gain(torch.tensor([q / Q_STEPS], device=self.device))

    def encode(self, pixels: NDArray[np.float32], core: tuple[slice, slice], q: int) -> Coded:
        """Code the core of a window; see `encode_at`."""
        return self.encode_at(pixels, core, (q,))[0]

    @torch.inference_mode()
    def encode_at(self, pixels: NDArray[np.float32], core: tuple[slice, slice], qs: Sequence[int]) -> list[Coded]:
        """Code the core of a window once for each of some rates; the encoder itself runs once.

        pixels: float32 (groups, 3, rows, columns) in network units, 0..1 for black to white; any size, padded here by
        reflection to whole cells.  core: its rows and columns inside the window, starting on multiples of 32.  qs:
        0..11088.
        """
        if wrong := [q for q in qs if not 0 <= q <= Q_MAX]:
            raise ConfigError(f"q {wrong[0]} is outside 0..{Q_MAX}; a rate level is {Q_STEPS}")
        height, width = pixels.shape[2:]
        pad = ((0, 0), (0, -height % CELL), (0, -width % CELL))
        row, col = core[0].start // CELL, core[1].start // CELL
        rows, cols = cells(core[0].stop) - row, cells(core[1].stop) - col
        features = []
        for units in pixels:  # one after the other: a copy of all groups would double the memory of many bands
            group = torch.from_numpy(np.pad(units, pad, mode="reflect")[None]).to(self.device)
            whole = self.network.encoder(group.contiguous(memory_format=torch.channels_last))
            features.append(whole[:, :, row : row + rows, col : col + cols])
        return [self._push(features, q) for q in qs]

    def _push(self, features: list[torch.Tensor], q: int) -> Coded:
        level = torch.tensor([q / Q_STEPS], device=self.device)
        hyper = [
            self.network.codec.hyper(group, level).round().clamp(-Z_MAX, Z_MAX).to(torch.int32).cpu()
            for group in features
        ]
        steps = [(group * (self._gain(q) * 16)).contiguous().cpu() for group in features]
        return self.entropy.push(torch.cat(hyper).contiguous().numpy(), torch.cat(steps).numpy(), q)

    def decode_symbols(self, record: Record, groups: int, height: int, width: int, q: int) -> TileLatent:
        """The latents of a record: values and scales (groups, channels, height, width) in cells.  Raises
        DesyncError."""
        return self.decode_many([record], groups, height, width, q)[0]

    def decode_many(
        self, records: Sequence[Record], groups: int, height: int, width: int, q: int, *, coarse: bool = False
    ) -> list[TileLatent]:
        """The latents of several records of one size, in less time than one by one.  DesyncError does not say whose.

        coarse: the leading channels alone, in a third of the time; their checksum, which is over all, is not checked.
        """
        coded = [Coded(one.lanes_log2, one.words, one.escapes, one.coded, one.symbols_crc) for one in records]
        return self.entropy.pull_many(coded, groups, height, width, q, coarse=coarse)

    @torch.inference_mode()
    def coarse_gain(self, q: int) -> NDArray[np.float32]:
        """Steps a feature has, for each of the channels that `decode_many` gives as the coarse ones."""
        channels = self.network.config.context or self.network.config.latent
        gain: NDArray[np.float32] = self._gain(q).cpu().numpy().reshape(-1)[:channels]
        return gain

    def zero_latent(self, groups: int, height: int, width: int) -> TileLatent:
        """The latents of a tile that is EMPTY, lost or damaged."""
        shape = (groups, self.network.config.latent, height, width)
        return TileLatent(np.zeros(shape, np.int16), np.zeros(shape, np.uint8))

    @torch.inference_mode()
    def render(
        self, values: NDArray[np.int16], scales: NDArray[np.uint8], q: int, anchor: tuple[int, int]
    ) -> NDArray[np.float32]:
        """Pixels of a window of latents, float32 (groups, 3, 32 x rows, 32 x columns) in network units.

        anchor: (row, column) of the window on the scene's latent grid, where attention windows are anchored.
        """
        gain = self._gain(q)
        out = np.empty((len(values), 3, values.shape[2] * CELL, values.shape[3] * CELL), np.float32)
        level = torch.tensor([q / Q_STEPS], device=self.device)
        for group in range(len(values)):
            noisy = torch.from_numpy(values[group : group + 1]).to(self.device).float() / (gain * 16)
            error = self._spread[torch.from_numpy(scales[group : group + 1]).to(self.device).int()] / gain
            noisy, error = (t.contiguous(memory_format=torch.channels_last) for t in (noisy, error))
            latent = self.network.step(noisy, error, self.network.codec.feature_std, anchor)
            out[group] = self.network.decoder(latent, level)[0].cpu().numpy()
        return out
