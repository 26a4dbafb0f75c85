"""The three networks: their classes, the layers that they are made of, and `build`, config -> networks."""

from ali_jax.networks.build import (
    Decoder,
    Discriminator,
    Encoder,
    build,
    inverted_pyramid,
    is_convolutional,
    pyramid,
)

__all__ = [
    "Decoder",
    "Discriminator",
    "Encoder",
    "build",
    "inverted_pyramid",
    "is_convolutional",
    "pyramid",
]
