"""What fine-tuning minimises: a crop through the whole system, and the losses of the paper.

In: the network and crops (B, 3, H, W), 0..1, H and W multiples of 256.  Out: the loss, and figures for the log.

    MSE on -1..1  +  LPIPS  +  0.2 DISTS  +  weight of rate * bits a pixel  +  0.05 self-distillation
    (second stage)  +  0.5 * ratio of gradients * adversarial     (`training.adversary`)

The two perceptual terms look through a network whose weights the user names (`training.perceptual`): both are what they
are called where it is VGG16, the first also through AlexNet and SqueezeNet 1.1; else they have the form alone, and are
logged as `likeness` and `texture`.  Without a file of features they are left out.
Self-distillation is a hinge on the cosine between the denoised latent and the encoder's own, 0.05 relu(1 - 0.5 - cos)
over the channels of a position (alignment 2 of the paper).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ditic_stream.models.paper import backbones
from ditic_stream.models.paper.network import PaperNetwork
from ditic_stream.training.losses import self_distillation
from ditic_stream.training.paper.rate import code
from ditic_stream.training.perceptual import Features


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Weights of the terms; those of the paper, the rate's apart."""

    rate: float = 1.0
    """Of a bit a pixel against the distortion."""
    likeness: float = 1.0
    """Of features compared place by place, LPIPS or its form."""
    texture: float = 0.2
    """Of their means and covariances, DISTS or its form."""
    distillation: float = 0.05
    adversarial: float = 0.5
    """Times the ratio of the gradients at the decoder's last layer."""


@dataclass(frozen=True)
class Shown:
    """A crop that went through: `pixels` (B, 3, H, W) in -1..1, not clamped; `latent`, the encoder's, and `denoised`,
    both (B, 32, h, w); `bpp` (B,)."""

    pixels: Tensor
    latent: Tensor
    denoised: Tensor
    bpp: Tensor


def show(network: PaperNetwork, x_B3HW: Tensor, noise: torch.Generator | None, *, bfloat16: bool = False) -> Shown:
    """Code and decode crops, 0..1; gradients reach all that asks for them.  noise: see `rate.code`.  bfloat16: of the
    two large networks; what lies between them stays in float32."""
    device, pixels = x_B3HW.device.type, x_B3HW * 2 - 1
    large = torch.autocast(device, torch.bfloat16, enabled=bfloat16)
    with torch.no_grad(), large:
        latent = backbones.encode_pixels(network.vae, pixels, network.config.scaling).float()
    with torch.no_grad():
        aux = network.aux_codec(x_B3HW)
    coded = code(network.codec, network.codec.g_a(latent, aux), noise)
    heads = network.heads(coded.decoded)
    with large:
        denoised = network.denoise(heads).latent
        found = backbones.decode_latent(network.vae, denoised, network.config.scaling)
    return Shown(found.float(), latent, denoised.float(), coded.bits / (x_B3HW.shape[2] * x_B3HW.shape[3]))


def objective(
    shown: Shown, x_B3HW: Tensor, weights: Weights, features: Features | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss but for its adversarial term, and its parts."""
    parts = {"mse": (shown.pixels - (x_B3HW * 2 - 1)).square().mean()}
    total = parts["mse"]
    if features is not None:
        likeness, texture = (term.mean() for term in features.judge(x_B3HW, (shown.pixels + 1) / 2))
        parts |= zip(features.names, (likeness, texture), strict=True)
        total = total + weights.likeness * likeness + weights.texture * texture
    parts["bpp"] = shown.bpp.mean()
    one = torch.ones(shown.latent.shape[1], device=x_B3HW.device)
    parts["distillation"] = self_distillation(shown.latent, shown.denoised, one).mean()
    total = total + weights.rate * parts["bpp"] + weights.distillation * parts["distillation"]
    return total, {"loss": total, **parts}
