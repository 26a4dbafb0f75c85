"""ALI on your own images: convolutional networks that adapt to the image size, with `config.stable_recipe`.

    python -m ali_jax.main --config experiments/images.py --workdir runs/mine --config.dataset.path=DIR

DIR is a directory of square images (8, 16, 32, 64 or 128 pixels a side, grey or colour), or an .npz with
`train_image` and `test_image`. `images.py:SIZE` or `images.py:SIZExCHANNELS` states the shape in advance, for
`--mode describe`. The discriminator has a gradient penalty instead of batch norm; parameters are averaged.
"""

from ml_collections import ConfigDict

from ali_jax import config as defaults


def get_config(shape: str = "") -> ConfigDict:
    """Return the configuration for a shape such as "64" or "32x1", or for the shape of the data."""
    config = defaults.base()
    defaults.stable_recipe(config)
    config.batch_size = 64
    config.num_steps = 20_000
    config.steps_per_call = 50
    config.log_every = 50
    config.checkpoint_every = 500
    config.evaluate_every = 2_000
    config.latent_dim = 64

    config.dataset.name = "images"
    if shape:
        size, _, channels = shape.partition("x")
        if not size.isdigit() or not (channels or "3").isdigit():
            raise ValueError(
                f"images.py:{shape}: the shape must be SIZE or SIZExCHANNELS, such as 64 or 32x1."
            )
        config.dataset.shape = (int(size), int(size), int(channels or 3))

    config.encoder.width = config.discriminator.width = config.decoder.width = 32
    config.discriminator.z_layers = (256, 256)
    config.discriminator.joint_layers = (512,)

    config.optimizer.generator.learning_rate = 3e-4
    config.optimizer.discriminator.learning_rate = 4e-4
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
