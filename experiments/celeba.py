"""CelebA at 64x64 as in the paper (table 5 of its appendix) and its code: 123 epochs.

    python -m ali_jax.main --config experiments/celeba.py --workdir runs/celeba

The 162,770 training images come from TensorFlow Datasets (`python -m ali_jax.data.prepare celeb_a`) or, with
--config.dataset.path, from an .npz with train and validation, or with
--config.dataset.test_split=test. `celeba.py:paper` has what the paper's table says of D(x): batch norm on
its first layer as well, and no dropout; the code has no batch norm there and drops 0.2 of every input.
"""

from ml_collections import ConfigDict

from ali_jax import config as defaults


def get_config(variant: str = "code") -> ConfigDict:
    """Return the configuration of the authors' code, or that of the paper."""
    if variant not in ("code", "paper"):
        raise ValueError(f"celeba.py:{variant}: the variants are code and paper.")
    config = defaults.base()
    config.batch_size = 100
    config.num_steps = 200_207  # 123 epochs
    config.steps_per_call = 50
    config.log_every = 50
    config.checkpoint_every = 2_500
    config.evaluate_every = 20_000
    config.latent_dim = 256

    config.dataset.name = "celeb_a"
    config.dataset.test_split = "validation"
    config.dataset.shape = (64, 64, 3)

    config.encoder.layers = ((2, 1, 64), (7, 2, 128), (5, 2, 256), (7, 2, 256), (4, 1, 512))
    config.decoder.layers = ((4, 1, 512), (7, 2, 256), (5, 2, 256), (7, 2, 128), (2, 1, 64))
    config.discriminator.x_layers = ((2, 1, 64), (7, 2, 128), (5, 2, 256), (7, 2, 256), (4, 1, 512))
    config.discriminator.x_batch_norm = (False, True, True, True, True)
    config.discriminator.x_dropout = (0.2,)
    config.discriminator.z_layers = (1024, 1024)
    config.discriminator.z_dropout = (0.2,)
    config.discriminator.joint_layers = (2048, 2048)
    config.discriminator.joint_dropout = (0.2,)
    for network in (config.encoder, config.decoder, config.discriminator):
        network.slope = 0.02
    if variant == "paper":
        config.discriminator.x_batch_norm = (True,)
        config.discriminator.x_dropout = (0.0,)

    config.evaluators = (
        "samples",
        "reconstructions",
        "interpolations",
        "reconstruction_error",
        "posterior",
        "precision_recall",
    )
    return config
