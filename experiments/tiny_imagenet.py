"""Tiny ImageNet as in the paper (table 6 of its appendix) and its code: all of ImageNet, 1000 epochs.

    python -m ali_jax.main --config experiments/tiny_imagenet.py --workdir runs/tiny_imagenet

The 1,281,167 images of 64x64 come from TensorFlow Datasets
(`python -m ali_jax.data.prepare imagenet_resized/64x64`) or, with --config.dataset.path, from an .npz with
train and validation, or with --config.dataset.test_split=test.
`tiny_imagenet.py:paper` trains for the paper's 125 epochs.
"""

from ml_collections import ConfigDict

from ali_jax import config as defaults


def get_config(variant: str = "code") -> ConfigDict:
    """Return the configuration of the authors' code, or that of the paper."""
    if variant not in ("code", "paper"):
        raise ValueError(f"tiny_imagenet.py:{variant}: the variants are code and paper.")
    config = defaults.base()
    config.batch_size = 128
    config.num_steps = 10_009_117 if variant == "code" else 1_251_140  # 1000 or 125 epochs
    config.steps_per_call = 100
    config.log_every = 100
    config.checkpoint_every = 5_000
    config.evaluate_every = 50_000
    config.latent_dim = 256

    config.dataset.name = "imagenet_resized/64x64"
    config.dataset.test_split = "validation"
    config.dataset.shape = (64, 64, 3)

    convolutions = ((4, 2, 64), (4, 1, 64), (4, 2, 128), (4, 1, 128), (4, 2, 256), (4, 1, 256))
    config.encoder.layers = (*convolutions, 2048, 2048)
    config.decoder.layers = (
        *(2048, 256),
        *((4, 1, 256), (4, 2, 128), (4, 1, 128), (4, 2, 64), (4, 1, 64), (4, 2, 64)),
    )
    config.discriminator.x_layers = convolutions
    config.discriminator.x_batch_norm = (False, True, True, True, True, True)
    config.discriminator.x_dropout = (0.2,)
    config.discriminator.z_layers = (2048, 2048)
    config.discriminator.z_bias = True
    config.discriminator.z_dropout = (0.2,)
    config.discriminator.joint_layers = (4096, 4096)
    config.discriminator.joint_dropout = (0.2,)

    config.evaluators = (
        "samples",
        "reconstructions",
        "interpolations",
        "reconstruction_error",
        "posterior",
        "precision_recall",
    )
    return config
