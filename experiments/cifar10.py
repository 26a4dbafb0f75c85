"""CIFAR-10 as in the paper (table 4 of its appendix) and its code: maxout discriminator, 6475 epochs.

    python -m ali_jax.main --config experiments/cifar10.py --workdir runs/cifar10

The images come from TensorFlow Datasets (`python -m ali_jax.data.prepare cifar10`) or, with
--config.dataset.path, from an .npz; the training images after the first 45,000 are held out. An .npz with at
most 45,000 of them needs --config.dataset.train_split=train and --config.dataset.test_split=test.
`cifar10.py:paper` has the dropout that the paper states for D(x), 0.5 on the input of layers 2 to 5. The
code, whose networks gave the published numbers, has an off-by-one error: layer 3 has dropout between
convolution and maxout, and layer 4 has none.
"""

from ml_collections import ConfigDict

from ali_jax import config as defaults


def get_config(variant: str = "code") -> ConfigDict:
    """Return the configuration of the authors' code, or that of the paper."""
    if variant not in ("code", "paper"):
        raise ValueError(f"cifar10.py:{variant}: the variants are code and paper.")
    config = defaults.base()
    config.batch_size = 100
    config.num_steps = 2_913_750  # 6475 epochs
    config.steps_per_call = 100
    config.log_every = 100
    config.checkpoint_every = 5_000
    config.evaluate_every = 50_000
    config.latent_dim = 64

    config.dataset.name = "cifar10"
    config.dataset.train_split = "train[:45000]"
    config.dataset.test_split = "train[45000:]"
    config.dataset.shape = (32, 32, 3)

    config.encoder.layers = ((5, 1, 32), (4, 2, 64), (4, 1, 128), (4, 2, 256), (4, 1, 512), 512)
    config.decoder.layers = ((4, 1, 256), (4, 2, 128), (4, 1, 64), (4, 2, 32), (5, 1, 32), (1, 1, 32))
    config.encoder.slope = config.decoder.slope = 0.1
    config.discriminator.x_layers = ((5, 1, 32), (4, 2, 64), (4, 1, 128), (4, 2, 256), (4, 1, 512))
    config.discriminator.activation = "maxout"
    config.discriminator.pieces = 2
    config.discriminator.x_batch_norm = (False,)
    config.discriminator.x_dropout = (0.2, 0.5, 0.0, 0.0, 0.5)
    config.discriminator.x_dropout_after = (0.0, 0.0, 0.5, 0.0, 0.0)
    config.discriminator.z_layers = (512, 512)
    config.discriminator.z_dropout = (0.2, 0.5)
    config.discriminator.joint_layers = (1024, 1024)
    config.discriminator.joint_dropout = (0.5,)
    if variant == "paper":
        config.discriminator.x_dropout = (0.2, 0.5, 0.5, 0.5, 0.5)
        config.discriminator.x_dropout_after = (0.0,)

    config.evaluators = (
        "samples",
        "reconstructions",
        "interpolations",
        "reconstruction_error",
        "posterior",
        "precision_recall",
    )
    return config
