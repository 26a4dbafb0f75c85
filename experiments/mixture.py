"""The paper's mixture of 25 Gaussians (section 4.3 there), with the networks of the authors' code.

    python -m ali_jax.main --config experiments/mixture.py --workdir runs/mixture

The encoder takes its noise as an input, z = f(x, epsilon). The authors' Adam was that of Blocks in 2016,
whose "beta1 = 0.8" is today's b1 = 0.2.
"""

from ml_collections import ConfigDict

from ali_jax import config as defaults


def get_config() -> ConfigDict:
    """Return the configuration of the authors' code."""
    config = defaults.base()
    config.batch_size = 100
    config.num_steps = 200_000  # 200 epochs
    config.steps_per_call = 500
    config.log_every = 500
    config.checkpoint_every = 10_000
    config.evaluate_every = 20_000
    config.latent_dim = 2

    config.dataset.name = "mixture"
    config.dataset.shape = (2,)

    config.encoder.posterior = "noise"
    config.encoder.layers = (400, 400)
    config.encoder.activation = "relu"
    config.decoder.layers = (400, 400, 400, 400)
    config.decoder.activation = "relu"
    config.decoder.output = "linear"
    config.discriminator.joint_layers = (1000, 1000, 1000)
    config.discriminator.activation = "maxout"
    config.discriminator.pieces = 5
    for network in (config.encoder, config.decoder, config.discriminator):
        network.init_std = 0.02
    for adam in (config.optimizer.generator, config.optimizer.discriminator):
        adam.b1 = 0.2

    config.evaluators = ("samples", "reconstructions", "modes")
    return config
