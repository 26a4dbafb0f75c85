"""ALI on your own images: convolutional networks that follow their size, with the stable recipe.

    python -m ali_jax.main --config experiments/images.py --workdir runs/mine --config.dataset.path=DIR

DIR is a directory of square images (8, 16, 32, 64 or 128 pixels a side, grey or colour), or an .npz with
`train_image` and `test_image`. `images.py:SIZE` or `images.py:SIZExCHANNELS` states the shape beforehand, for
`--mode describe`. Gradient penalty instead of batch norm in the discriminator; averaged parameters.
"""

from ml_collections import ConfigDict

from ali_jax import config as defaults


def get_config(shape: str = "") -> ConfigDict:
    """Return the configuration, for a shape such as "64" or "28x1", or for that of the data."""
    config = defaults.base()
    config.batch_size = 64
    config.num_steps = 20_000
    config.steps_per_call = 50
    config.log_every = 50
    config.checkpoint_every = 500
    config.evaluate_every = 2_000
    config.latent_dim = 64
    config.ema_decay = 0.999

    config.dataset.name = "images"
    if shape:
        size, _, channels = shape.partition("x")
        if not size.isdigit() or not (channels or "3").isdigit():
            raise ValueError(
                f"images.py:{shape}: the shape must be SIZE or SIZExCHANNELS, such as 64 or 32x1."
            )
        config.dataset.shape = (int(size), int(size), int(channels or 3))

    config.encoder.width = config.discriminator.width = config.decoder.width = 32
    config.encoder.activation = config.decoder.activation = "relu"
    config.encoder.log_sigma_clip = (-6.0, 0.5)
    config.encoder.log_sigma_bias = -1.0
    config.encoder.log_sigma_init = 0.1
    config.discriminator.z_layers = (256, 256)
    config.discriminator.z_bias = True
    config.discriminator.joint_layers = (512,)
    config.discriminator.slope = 0.2
    config.discriminator.x_batch_norm = (False,)
    config.encoder.batch_norm = config.decoder.batch_norm = (False,)
    config.encoder.center = config.discriminator.center = True
    config.encoder.init_std = config.decoder.init_std = config.discriminator.init_std = 0.0  # He

    config.penalties.r1.gamma = 1.0
    config.penalties.r1.gamma_final = 0.1
    config.optimizer.generator.learning_rate = 3e-4
    config.optimizer.discriminator.learning_rate = 4e-4
    for adam in (config.optimizer.generator, config.optimizer.discriminator):
        adam.b1 = 0.0
        adam.b2 = 0.99
    config.optimizer.constant_fraction = 0.5
    config.optimizer.final_fraction = 0.05

    config.evaluators = (
        "samples",
        "reconstructions",
        "interpolations",
        "reconstruction_error",
        "posterior",
        "memorisation",
    )
    return config
