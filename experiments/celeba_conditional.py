"""Conditional ALI on CelebA at 64x64, as in the authors' code: y is the 40 attributes of a face.

    python -m ali_jax.main --config experiments/celeba_conditional.py --workdir runs/celeba_conditional

The networks of celeba.py; an embedding of y, 256 wide, is joined to the encoder's last hidden layer, to the
decoder's z and to the outputs of D(x) and D(z). In the code one projection is shared by the three networks
and never trained. `celeba_conditional.py:paper` has the paper's reading, in which each network learns its
own, and the paper's D(x). Both sides of the game see the same y.
"""

from ml_collections import ConfigDict

from ali_jax import config as defaults


def get_config(variant: str = "code") -> ConfigDict:
    """Return the configuration of the authors' code, or that of the paper."""
    if variant not in ("code", "paper"):
        raise ValueError(f"celeba_conditional.py:{variant}: the variants are code and paper.")
    config = defaults.base()
    config.batch_size = 128
    config.num_steps = 156_412  # 123 epochs
    config.steps_per_call = 50
    config.log_every = 50
    config.checkpoint_every = 2_500
    config.evaluate_every = 20_000
    config.latent_dim = 256

    config.dataset.name = "celeb_a"
    config.dataset.test_split = "validation"
    config.dataset.shape = (64, 64, 3)
    config.dataset.conditional = True
    config.condition.size = 40
    config.condition.embedding = 256

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
        config.condition.learned = True
        config.discriminator.x_batch_norm = (True,)
        config.discriminator.x_dropout = (0.0,)

    config.evaluators = (
        "samples",
        "reconstructions",
        "interpolations",
        "attribute_grid",
        "posterior",
        "precision_recall",
    )
    return config
