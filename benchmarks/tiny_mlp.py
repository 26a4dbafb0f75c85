"""A tiny ALI on points of the plane, where dispatch costs more than arithmetic.

    python -m benchmarks.compare --config benchmarks/tiny_mlp.py

Encoder 2-64-64, decoder 2-64-64-2, 128 hidden units in the discriminator, batch 128; no batch norm.
"""

from ml_collections import ConfigDict

from ali_jax import config as defaults


def get_config() -> ConfigDict:
    """Return the configuration."""
    config = defaults.base()
    config.batch_size = 128
    config.steps_per_call = 500
    config.latent_dim = 2

    config.dataset.name = "mixture"
    config.dataset.shape = (2,)

    config.encoder.layers = (64, 64)
    config.decoder.layers = (64, 64)
    config.decoder.output = "linear"
    config.encoder.batch_norm = config.decoder.batch_norm = (False,)
    config.discriminator.joint_layers = (128,)
    for network in (config.encoder, config.decoder, config.discriminator):
        network.init_std = 0.0  # He
    return config
