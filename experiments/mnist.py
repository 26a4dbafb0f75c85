"""ALI on MNIST (28x28): convolutional networks with the stable recipe.

    python -m ali_jax.main --config experiments/mnist.py --workdir runs/mnist

The 60,000 images come from TensorFlow Datasets (`python -m ali_jax.data.prepare mnist`) or, with
--config.dataset.path=mnist.npz, from a file. The paper has no MNIST experiment; the recipe is that of
experiments/digits.py.
"""

from ml_collections import ConfigDict

from ali_jax import config as defaults


def get_config() -> ConfigDict:
    """Return the configuration."""
    config = defaults.base()
    config.batch_size = 100
    config.num_steps = 15_000  # 25 epochs
    config.steps_per_call = 50
    config.log_every = 100
    config.checkpoint_every = 1_000
    config.evaluate_every = 5_000
    config.latent_dim = 32
    config.ema_decay = 0.999

    config.dataset.name = "mnist"
    config.dataset.shape = (28, 28, 1)

    config.encoder.layers = ((4, 2, 32), (5, 2, 64), 256)  # 28 -> 13 -> 5
    config.encoder.activation = "relu"
    config.encoder.log_sigma_clip = (-6.0, 0.5)
    config.encoder.log_sigma_bias = -1.0
    config.encoder.log_sigma_init = 0.1
    config.decoder.layers = ((5, 1, 64), (5, 2, 32), (4, 2, 16))  # 1 -> 5 -> 13 -> 28
    config.decoder.activation = "relu"
    config.discriminator.x_layers = ((4, 2, 32), (5, 2, 64), 256)
    config.discriminator.z_layers = (128, 128)
    config.discriminator.z_bias = True
    config.discriminator.joint_layers = (256,)
    config.discriminator.slope = 0.2
    config.discriminator.x_batch_norm = (False,)
    config.encoder.batch_norm = config.decoder.batch_norm = (False,)
    config.encoder.center = config.discriminator.center = True
    for network in (config.encoder, config.decoder, config.discriminator):
        network.init_std = 0.0  # He

    config.penalties.r1.gamma = 1.0
    config.penalties.r1.gamma_final = 0.1
    config.optimizer.generator.learning_rate = 5e-4
    config.optimizer.discriminator.learning_rate = 7.5e-4
    for adam in (config.optimizer.generator, config.optimizer.discriminator):
        adam.b1 = 0.0
        adam.b2 = 0.99
    config.optimizer.constant_fraction = 0.3
    config.optimizer.final_fraction = 0.05

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
