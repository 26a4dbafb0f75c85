"""The three networks: their classes, the layers that they are made of, and `build`, which reads a config."""

from ali_jax.networks.decoder import Decoder
from ali_jax.networks.discriminator import Discriminator
from ali_jax.networks.encoder import Encoder
from ali_jax.networks.from_config import build, has_convolutions, inverted_pyramid, pyramid, stage_maps
from ali_jax.networks.residual import ResidualDecoder, ResidualDiscriminator, ResidualEncoder

__all__ = [
    "Decoder",
    "Discriminator",
    "Encoder",
    "ResidualDecoder",
    "ResidualDiscriminator",
    "ResidualEncoder",
    "build",
    "has_convolutions",
    "inverted_pyramid",
    "pyramid",
    "stage_maps",
]
