"""The whole system as one module: pixels to symbols, symbols to pixels.

Knows networks and their order; knows no bytes, no files and no tiles.  Float throughout: that two machines agree on the
table indexes is the business of a fixed-point twin, not of this module.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditic_stream.errors import ConfigError, WeightsError
from ditic_stream.models.paper import backbones, layout, one_step
from ditic_stream.models.paper.condition import Projector
from ditic_stream.models.paper.config import ALIGN, OFFICIAL, PaperConfig
from ditic_stream.models.paper.elic import ElicAnalysis
from ditic_stream.models.paper.entropy import Decoded
from ditic_stream.models.paper.latent_codec import LatentCodec

ENTROPY_NETWORKS = ("h_s", "g_c", "adapter_in", "adapter_out", "LRP")
"""Parts of the latent codec that choose tables."""


@dataclass(frozen=True)
class Encoded:
    """The encoder's tensors before rounding: `latent` (B, 32, h, w) at 1/32, `aux` (B, 320, 2h, 2w) at 1/16, `y`
    (B, 320, h/2, w/2) at 1/64, `z` (B, 160, h/8, w/8) at 1/256."""

    latent: Tensor
    aux: Tensor
    y: Tensor
    z: Tensor


@dataclass(frozen=True)
class Heads:
    """What is read off the decoded latent, all at 1/32: `mean` (the noisy latent), `log_variance` and `correction`, 32
    channels each, and `prompt`, 320 channels."""

    mean: Tensor
    log_variance: Tensor
    correction: Tensor
    prompt: Tensor


@dataclass(frozen=True)
class Denoised:
    """The step: condition `tokens` (B, 77, caption), the `velocity` and the denoised `latent` (B, 32, h, w)."""

    tokens: Tensor
    velocity: Tensor
    latent: Tensor


class PaperNetwork(nn.Module):
    """DC-AE, SANA, the ELIC analysis, the latent codec and the projector, in evaluation mode, weights as built.

    Attributes are named as the parts of a checkpoint are.  Raises ConfigError without diffusers.
    """

    def __init__(self, config: PaperConfig) -> None:
        super().__init__()
        self.config = config
        self.vae = backbones.autoencoder(config)
        self.DiT = backbones.transformer(config)
        self.codec = LatentCodec()
        self.prompter = Projector(config.caption)
        self.aux_codec = ElicAnalysis()
        self.eval()

    @classmethod
    def of(
        cls,
        config: PaperConfig,
        tensors: Mapping[str, Tensor],
        dtype: torch.dtype = torch.float32,
        *,
        precise: Collection[str] = (),
    ) -> PaperNetwork:
        """The network with the tensors of a checkpoint, all of them; second names and coding tables are passed over.

        dtype: what floats are held in; tensors that have it already are taken as they are, not copied.  precise: parts
        (vae, DiT, codec, prompter, aux_codec) that are held in float32 all the same.
        Raises WeightsError when a tensor is missing, unknown or of another shape.
        """
        with torch.device("meta"):  # so that nothing is drawn that is thrown away
            network = cls(config)
        wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        given = {name: tensor for name, tensor in tensors.items() if layout.used(name)}
        wrong = sorted(name for name, shape in wanted.items() if name not in given or tuple(given[name].shape) != shape)
        wrong += sorted(given.keys() - wanted.keys())
        if wrong:
            raise WeightsError(
                f"the weights do not fit the configuration: {len(wrong)} tensors are missing, unknown or of another "
                f"shape ({', '.join(wrong[:3])}{', ...' if len(wrong) > 3 else ''})"
            )
        types = {name: torch.float32 if name.partition(".")[0] in precise else dtype for name in wanted}
        network.load_state_dict({name: given[name].to(types[name]) for name in wanted}, assign=True)
        return network.requires_grad_(False)

    @staticmethod
    def type_of(part: nn.Module) -> torch.dtype:
        """What a part is held in."""
        return next(part.parameters()).dtype

    def drop_entropy_networks(self) -> None:
        """Let go of what the fixed-point networks stand in for: 104 M parameters.  `entropy.run_passes` is gone with
        them."""
        for name in ENTROPY_NETWORKS:
            delattr(self.codec, name)

    def analyse(self, pixels_B3HW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels in -1..1, sides multiples of 64 -> `latent`, `aux` and `y` of `Encoded`."""
        latent = backbones.encode_pixels(self.vae, pixels_B3HW.to(self.type_of(self.vae)), self.config.scaling)
        aux = self.aux_codec((pixels_B3HW + 1) / 2)
        return latent, aux, self.codec.g_a(latent.to(aux.dtype), aux)

    def encode(self, pixels_B3HW: Tensor) -> Encoded:
        """Pixels in -1..1, sides multiples of 256 (`pad` makes them so) -> everything up to rounding."""
        if any(side % ALIGN for side in pixels_B3HW.shape[2:]):
            raise ConfigError(f"sides {tuple(pixels_B3HW.shape[2:])} are no multiples of {ALIGN}; pad the picture")
        latent, aux, y = self.analyse(pixels_B3HW)
        return Encoded(latent, aux, y, self.codec.h_a(y))

    def heads(self, decoded: Decoded) -> Heads:
        """What the decoder reads off the latent that was coded."""
        codec = self.codec
        return Heads(
            mean=codec.g_s(decoded.latent),
            log_variance=codec.scale(decoded.scales),
            correction=codec.aux(decoded.latent),
            prompt=codec.prompt(decoded.latent),
        )

    def denoise(self, heads: Heads) -> Denoised:
        """The one diffusion step, in the type of `heads`; the networks in theirs."""
        dtype = self.type_of(self.DiT)
        tokens = self.prompter(heads.prompt.to(dtype))
        velocity = backbones.velocity(self.DiT, heads.mean.to(dtype), tokens, one_step.TIMESTEP).to(heads.mean.dtype)
        latent = one_step.step(heads.mean, velocity, heads.log_variance, heads.correction)
        return Denoised(tokens, velocity, latent)

    def decode(self, latent_BChw: Tensor) -> Tensor:
        """The denoised latent -> pixels in -1..1, (B, 3, 32h, 32w)."""
        return backbones.decode_latent(self.vae, latent_BChw, self.config.scaling).clamp(-1, 1)


def to_network_units(pixels_BHW3: Tensor) -> Tensor:
    """8-bit pixels (B, rows, columns, 3) -> float32 (B, 3, rows, columns) in -1..1."""
    return pixels_BHW3.movedim(-1, 1).float() / 255 * 2 - 1


def pad(pixels_BCHW: Tensor) -> Tensor:
    """Pad right and down to multiples of 256 by reflection, the edge not repeated.

    A side that is shorter than what it lacks is reflected back and forth.
    """
    height, width = pixels_BCHW.shape[2:]
    if not height or not width:
        raise ConfigError("the picture has no pixels; give one with at least one row and column")
    down, right = -height % ALIGN, -width % ALIGN
    if down < height and right < width:
        return F.pad(pixels_BCHW, (0, right, 0, down), mode="reflect")
    rows, cols = _reflected(height, height + down), _reflected(width, width + right)
    return pixels_BCHW[:, :, rows][:, :, :, cols]


def _reflected(size: int, wanted: int) -> Tensor:
    period = max(2 * size - 2, 1)
    index = torch.arange(wanted) % period
    return torch.where(index < size, index, period - index)


def crop(pixels_BCHW: Tensor, height: int, width: int) -> Tensor:
    """Undo `pad`."""
    return pixels_BCHW[:, :, :height, :width]


def shapes_of(config: PaperConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of a checkpoint of that size, sorted by name; builds no weights.

    The official size is known without diffusers; others need it.
    """
    if config == OFFICIAL:
        return layout.official()
    with torch.device("meta"):
        network = PaperNetwork(config)
    return layout.whole({name: tuple(tensor.shape) for name, tensor in network.state_dict().items()})
