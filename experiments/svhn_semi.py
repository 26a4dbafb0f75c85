"""Semi-supervised ALI on SVHN: a discriminator of K + 1 classes (paper, section 4.4 and its table 1).

    python -m ali_jax.main --config experiments/svhn_semi.py --workdir runs/svhn_semi

1,000 labels, equally many per class, or `svhn_semi.py:LABELS`; `svhn_semi.py:narrow` has 1,000 and a third of
the maps. See cifar10_semi.py for what is known of the authors' unpublished script, and for the penalties for
few labels, which are off here too; the authors of virtual adversarial training had a radius of 2.5 on SVHN.
As in OpenAI's script, the discriminator is narrower and the training shorter than for CIFAR-10, and the
73,257 images of `train` are the unlabelled data.
"""

from ml_collections import ConfigDict

from ali_jax import config as defaults


def get_config(variant: str = "1000") -> ConfigDict:
    """Return the configuration for a number of labels, or that of the narrow networks."""
    if not variant.isdigit() and variant != "narrow":
        raise ValueError(
            f"svhn_semi.py:{variant}: the variant must be narrow, or a number of labels, such as 1000."
        )
    config = defaults.base()
    if variant == "narrow":
        defaults.semi_supervised_recipe(config, maps=22, generator_maps=44)
    else:
        defaults.semi_supervised_recipe(config, maps=64)
    config.batch_size = 100
    config.num_steps = 659_313  # 900 epochs of the 73,257 unlabelled images
    config.steps_per_call = 100
    config.log_every = 100
    config.checkpoint_every = 5_000
    config.evaluate_every = 25_000

    config.dataset.name = "svhn_cropped"
    config.dataset.shape = (32, 32, 3)
    config.dataset.labelled = 1000 if variant == "narrow" else int(variant)
    config.discriminator.num_classes = 10

    config.evaluators = ("samples", "reconstructions", "label_error", "precision_recall")
    return config
