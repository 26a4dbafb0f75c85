"""Semi-supervised ALI on SVHN: a discriminator of K + 1 classes (paper, section 4.4 and its table 1).

    python -m ali_jax.main --config experiments/svhn_semi.py --workdir runs/svhn_semi

1,000 labels, equally many per class, or `svhn_semi.py:LABELS`. See cifar10_semi.py for what is known of the
authors' unpublished script. As in OpenAI's script, the discriminator is narrower and the training shorter
than for CIFAR-10, and the 73,257 images of `train` are the unlabelled data.
"""

from ml_collections import ConfigDict

from ali_jax import config as defaults


def get_config(labels: str = "1000") -> ConfigDict:
    """Return the configuration for a number of labels."""
    if not labels.isdigit():
        raise ValueError(f"svhn_semi.py:{labels}: the variant must be a number of labels, such as 1000.")
    config = defaults.base()
    defaults.semi_supervised_recipe(config, maps=64)
    config.batch_size = 100
    config.num_steps = 659_313  # 900 epochs of the 73,257 unlabelled images
    config.steps_per_call = 100
    config.log_every = 100
    config.checkpoint_every = 5_000
    config.evaluate_every = 25_000

    config.dataset.name = "svhn_cropped"
    config.dataset.shape = (32, 32, 3)
    config.dataset.labelled = int(labels)
    config.discriminator.num_classes = 10

    config.evaluators = ("samples", "reconstructions", "label_error", "precision_recall")
    return config
