"""The three networks of a model under one roof, as they are trained and stored."""

from __future__ import annotations

from torch import Tensor, nn

from ditic_stream.models.autoencoder import Decoder, Encoder
from ditic_stream.models.config import ModelConfig
from ditic_stream.models.dit import OneStep
from ditic_stream.models.latent_codec import LatentCodec, Quantised


class Network(nn.Module):
    """Encoder, latent codec, one diffusion step, decoder."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.codec = LatentCodec(config)
        self.step = OneStep(config)
        self.decoder = Decoder(config)

    def forward(
        self, x_B3HW: Tensor, level_B: Tensor, anchor: tuple[int, int] = (0, 0)
    ) -> tuple[Tensor, Quantised, Tensor, Tensor]:
        """Pixels and a rate level each -> (pixels, what was coded, the encoder's own latent, the denoised latent)."""
        features = self.encoder(x_B3HW).float()
        coded = self.codec(features, level_B)
        denoised = self.step(coded.noisy, coded.spread, self.codec.feature_std, anchor)
        return self.decoder(denoised, level_B), coded, features, denoised
