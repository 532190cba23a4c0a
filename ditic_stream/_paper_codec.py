"""The codec of ditic-0.6b, the paper's own system: imported weights on one device.

    pixels --DC-AE, ELIC, g_a--> y --h_a--> z --fixed-point networks, rANS--> words           encode
    words --rANS, fixed-point networks--> y, scales (exact)                                   decode_symbols
    y, scales --heads, condition tokens, one step of SANA, DC-AE--> pixels                    render

Each set of weights has one rate; q says nothing here.  A cell covers 64 pixels, a core is padded to whole 256 by
reflection.  DC-AE's and SANA's attention and the pooling of the condition tokens see a window whole, so windows are
never moved; see docs/model-paper.md.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from functools import lru_cache
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray

from ditic_stream._codec_parts import ModelInfo, usable
from ditic_stream._paper_entropy import PaperEntropy
from ditic_stream.bitstream import Record
from ditic_stream.config import Q_MAX
from ditic_stream.entropy import Coded
from ditic_stream.errors import ConfigError
from ditic_stream.families import family_of
from ditic_stream.latents import Cells
from ditic_stream.models import folder
from ditic_stream.models.paper import checkpoint, compiled
from ditic_stream.models.paper.config import CODED, MODEL
from ditic_stream.models.paper.entropy import Decoded
from ditic_stream.models.paper.fixed import SCALE_BITS, VALUE_BITS
from ditic_stream.models.paper.lean import PixelDecoder
from ditic_stream.models.paper.lean_encoder import split_analysis
from ditic_stream.models.paper.network import PaperNetwork
from ditic_stream.models.paper.weights_file import Checkpoint

ENCODE_HALO = 128
"""Pixels the encoder sees beyond a core (benchmarks/paper_seams.py)."""
UNITS = family_of(MODEL).units
TOGETHER_PIXELS = 2**22
"""Pixels of the groups of a window that a GPU renders in one pass, at most: what a window of 2048 has anyway.  A
function of the window and the archive alone, so that a region still has the pixels of the whole."""


def load(name: str, device: str) -> PaperCodec:
    """The codec of weights in the model folder, by name; the one loaded last is kept.

    ConfigError for a name that is not there, and without the extra `paper`.
    """
    found = folder.find(name)
    if found is None:
        known = ", ".join(one for one in folder.names() if family_of(one).name == MODEL) or "none of it"
        raise ConfigError(
            f"no weights are named {name!r} in {folder.models_folder()}, which has {known}; bring them in with "
            "`ditic-stream models import`"
        )
    return _loaded(name, found[1].sha256, found[1].licence, device, family_of(MODEL).dtype(device))


@lru_cache(maxsize=1)
def _loaded(name: str, sha256: str, licence: str, device: str, dtype: str) -> PaperCodec:
    opened = checkpoint.load(name)
    info = ModelInfo(name, json.loads(opened.config.to_json()), sha256, licence, ENCODE_HALO)
    return PaperCodec(info, opened, device, getattr(torch, dtype))


class PaperCodec:
    """One set of weights on one device; a TileCodec.

    dtype: of the two backbones and the condition tokens.  The latent codec computes in float32, its entropy networks
    in integers.
    """

    def __init__(
        self,
        info: ModelInfo,
        opened: Checkpoint,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.device, self.info, self.dtype = usable(device), info, dtype
        self.entropy = PaperEntropy(opened.fixed, opened.z, opened.y, self.device)
        network = PaperNetwork.of(opened.config, opened.tensors, dtype, precise=("codec", "aux_codec"))
        network.drop_entropy_networks()
        self.network = network.to(self.device)
        split_analysis(self.network.vae, opened.config.vae, self.network.aux_codec)
        # Two threads may use a codec, and then one decodes symbols while the other renders: on a GPU in a queue of its
        # own, since the wait for a pass must not be one for a window.  Windows are rendered one by one, as memory is
        # dear.
        self._window = Lock()
        self._queue = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.decoder = PixelDecoder(self.network.vae.decoder, opened.config.vae)  # type: ignore[arg-type]
        if compiled.asked():
            self.compile()

    def compile(self) -> None:
        """Render by compiled graphs from now on; see `models.paper.compiled`."""
        self.network.DiT.forward = compiled.Compiled(self.network.DiT.forward)
        self.decoder.deep = compiled.Compiled(self.decoder.deep)
        self.decoder.tail = compiled.Compiled(self.decoder.tail)

    def encode(self, pixels: NDArray[np.float32], core: tuple[slice, slice], q: int) -> Coded:
        """Code the core of a window; see `encode_at`."""
        return self.encode_at(pixels, core, (q,))[0]

    @torch.inference_mode()
    def encode_at(self, pixels: NDArray[np.float32], core: tuple[slice, slice], qs: Sequence[int]) -> list[Coded]:
        """As codec.TileCodec says; the same for each of `qs`."""
        if wrong := [q for q in qs if not 0 <= q <= Q_MAX]:
            raise ConfigError(f"q {wrong[0]} is outside 0..{Q_MAX}; q_of_quality gives one inside")
        inner = tuple(
            slice(part.start // UNITS.cell, part.start // UNITS.cell + UNITS.core_cells(part.stop - part.start))
            for part in core
        )
        pad = [
            (0, max(UNITS.cells(size) * UNITS.cell, cells.stop * UNITS.cell) - size)
            for size, cells in zip(pixels.shape[2:], inner, strict=True)
        ]
        hyper, latent = [], []
        for units in pixels:  # one after the other, as memory is dear
            whole = np.pad(units, [(0, 0), *pad], mode="reflect") * np.float32(2) - np.float32(1)
            y = self.network.analyse(torch.from_numpy(whole[None]).to(self.device))[2][:, :, inner[0], inner[1]]
            z = self.network.codec.h_a(y)
            hyper.append(self.network.codec.entropy_bottleneck.symbols(z)[0].cpu().numpy())
            latent.append(y[0].float().cpu().numpy())
        return [self.entropy.push(hyper, latent)] * len(qs)

    def decode_symbols(self, record: Record, groups: int, height: int, width: int, q: int) -> Cells:
        """As codec.TileCodec says: values in 64ths of a step, scales in 128ths, both int16."""
        return self.decode_many([record], groups, height, width, q)[0]

    def decode_many(
        self, records: Sequence[Record], groups: int, height: int, width: int, q: int, *, coarse: bool = False
    ) -> list[Cells]:
        """As codec.TileCodec says, in lockstep: the integer networks see several tiles in one go, which changes no bit.
        All channels, whatever `coarse` says."""
        coded = [Coded(one.lanes_log2, one.words, one.escapes, one.coded, one.symbols_crc) for one in records]
        with torch.cuda.stream(self._queue) if self._queue is not None else nullcontext():
            return self.entropy.pull_many(coded, groups, height, width)

    def coarse_gain(self, q: int) -> NDArray[np.float32]:
        """This model has no coarse channels."""
        raise ConfigError(f"{MODEL} has no coarse channels that pictures could be read out of")

    def zero_latent(self, groups: int, height: int, width: int) -> Cells:
        """The latents of a tile that is EMPTY, lost or damaged."""
        shape = (groups, CODED, height, width)
        return Cells(np.zeros(shape, np.int16), np.zeros(shape, np.int16))

    @torch.inference_mode()
    def render(
        self, values: NDArray[np.int16], scales: NDArray[np.int16], q: int, anchor: tuple[int, int]
    ) -> NDArray[np.float32]:
        """As codec.TileCodec says; not clipped, which is the business of the scene's radiometry.  The anchor does not
        matter: nothing here is anchored."""
        side = UNITS.cell
        out = np.empty((len(values), 3, values.shape[2] * side, values.shape[3] * side), np.float32)
        fit = max(TOGETHER_PIXELS // (out.shape[2] * out.shape[3]), 1) if self.device.type == "cuda" else 1
        for first in range(0, len(values), fit):
            part = slice(first, first + fit)
            with self._window:
                y, spread = (
                    torch.from_numpy(one[part]).to(self.device).float() * 2.0**-bits
                    for one, bits in ((values, VALUE_BITS), (scales, SCALE_BITS))
                )
                latent = self.network.denoise(self.network.heads(Decoded(y, spread))).latent
                del y, spread
                pixels = self.decoder((latent / self.network.config.scaling).to(self.dtype))
                out[part] = ((pixels.float() + 1) * 0.5).cpu().numpy()
        return out
