"""ALI on your own images: convolutional networks that adapt to the image size, with `config.stable_recipe`.

    python -m ali_jax.main --config experiments/images.py --workdir runs/mine --config.dataset.path=DIR

DIR is a directory, a zip or a tar of images, a Parquet file, or an .npz with `train_image` and `test_image`.
Images are grey or in colour, 8 to 256 pixels a side, the longer side at most four times the shorter;
`config.dataset.resize` brings others to one size. `images.py:SIZE`, `images.py:SIZExCHANNELS` or
`images.py:HEIGHTxWIDTHxCHANNELS` states the shape in advance, for `--mode describe`. The discriminator has a
gradient penalty instead of batch norm; parameters are averaged.
"""

from ml_collections import ConfigDict

from ali_jax import config as defaults


def get_config(shape: str = "") -> ConfigDict:
    """Return the configuration for a shape such as "64", "32x1" or "90x120x3", or for that of the data."""
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
        config.dataset.shape = _shape(shape)

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
        "near_duplicates",
        "precision_recall",
    )
    return config


def _shape(text: str) -> tuple[int, ...]:
    """Return the shape that SIZE, SIZExCHANNELS or HEIGHTxWIDTHxCHANNELS states; colour if not said."""
    parts = text.split("x")
    if len(parts) > 3 or not all(part.isdigit() for part in parts):
        raise ValueError(
            f"images.py:{text}: the shape must be SIZE, SIZExCHANNELS or HEIGHTxWIDTHxCHANNELS, such as 64, "
            "32x1 or 90x120x3."
        )
    numbers = tuple(map(int, parts))
    if len(numbers) == 3:
        return numbers
    return numbers[0], numbers[0], numbers[1] if len(numbers) > 1 else 3
