"""SVHN as in the paper (table 3 of its appendix) and its code: trained on the `extra` split, 100 epochs.

    python -m ali_jax.main --config experiments/svhn.py --workdir runs/svhn

The 531,131 images come from TensorFlow Datasets (`python -m ali_jax.data.prepare svhn_cropped`) or, with
--config.dataset.path, from a folder with the original .mat files or an .npz. Pictures and evaluations use
the `train` split, as the authors' scripts do. 100 epochs are 531,131 updates of a stream without partial
batches; the authors' 531,200 count the last, partial batch of each epoch.
"""

from ml_collections import ConfigDict

from ali_jax import config as defaults


def get_config() -> ConfigDict:
    """Return the configuration of the authors' code."""
    config = defaults.base()
    config.batch_size = 100
    config.num_steps = 531_131  # 100 epochs
    config.steps_per_call = 100
    config.log_every = 100
    config.checkpoint_every = 5_000
    config.evaluate_every = 50_000
    config.latent_dim = 256

    config.dataset.name = "svhn_cropped"
    config.dataset.train_split = "extra"
    config.dataset.test_split = "train"
    config.dataset.shape = (32, 32, 3)

    config.encoder.layers = ((5, 1, 32), (4, 2, 64), (4, 1, 128), (4, 2, 256), (4, 1, 512), 512)
    config.decoder.layers = ((4, 1, 256), (4, 2, 128), (4, 1, 64), (4, 2, 32), (5, 1, 32), (1, 1, 32))
    config.discriminator.x_layers = ((5, 1, 32), (4, 2, 64), (4, 1, 128), (4, 2, 256), (4, 1, 512))
    config.discriminator.x_batch_norm = (False, True, True, True, True)
    config.discriminator.x_dropout = (0.2,)
    config.discriminator.z_layers = (512, 512)
    config.discriminator.z_dropout = (0.2,)
    config.discriminator.joint_layers = (1024, 1024)
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
