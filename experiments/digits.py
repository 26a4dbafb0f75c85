"""ALI with a gradient penalty on scikit-learn's digits (8x8, bundled): the default, two minutes on a CPU.

    python -m ali_jax.main --config experiments/digits.py --workdir runs/digits

Perceptrons without normalisation, He initialisation, R1 annealed from 1 to 0.3, Adam with b1 = 0, dequantised
pixels, averaged parameters.
"""

from ml_collections import ConfigDict

from ali_jax import config as defaults


def get_config() -> ConfigDict:
    """Return the configuration."""
    config = defaults.base()
    config.batch_size = 64
    config.num_steps = 10_000
    config.steps_per_call = 250
    config.log_every = 250
    config.checkpoint_every = 2_500
    config.evaluate_every = 5_000
    config.latent_dim = 16
    config.ema_decay = 0.999

    config.dataset.name = "digits"
    config.dataset.shape = (8, 8, 1)
    config.dataset.dequantize = 1 / 66

    config.encoder.layers = (256, 256)
    config.encoder.activation = "relu"
    config.encoder.log_sigma_clip = (-6.0, 0.5)
    config.encoder.log_sigma_bias = -1.0
    config.encoder.log_sigma_init = 0.1
    config.decoder.layers = (256, 256)
    config.decoder.activation = "relu"
    config.discriminator.x_layers = (256, 256)
    config.discriminator.z_layers = (128, 128)
    config.discriminator.joint_layers = (256, 256)
    config.discriminator.z_bias = True
    config.discriminator.slope = 0.2
    config.discriminator.x_batch_norm = (False,)
    config.encoder.batch_norm = config.decoder.batch_norm = (False,)
    config.encoder.center = config.discriminator.center = True
    for network in (config.encoder, config.decoder, config.discriminator):
        network.init_std = 0.0  # He

    config.penalties.r1.gamma = 1.0
    config.penalties.r1.gamma_final = 0.3
    config.optimizer.generator.learning_rate = 1e-3
    config.optimizer.discriminator.learning_rate = 1.5e-3
    for adam in (config.optimizer.generator, config.optimizer.discriminator):
        adam.b1 = 0.0
        adam.b2 = 0.99

    config.evaluators = (
        "samples",
        "reconstructions",
        "interpolations",
        "reconstruction_error",
        "class_balance",
        "probes",
        "posterior",
        "memorisation",
    )
    return config
