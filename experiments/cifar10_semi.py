r"""Semi-supervised ALI on CIFAR-10: a discriminator of K + 1 classes (paper, section 4.4 and its table 2).

    python -m ali_jax.main --config experiments/cifar10_semi.py --workdir runs/cifar10_semi
    python -m ali_jax.main --config experiments/cifar10_semi.py:1000 --workdir runs/cifar10_semi_1000

`cifar10_semi.py:LABELS` sets the number of labels, equally many per class; the paper has 1000, 2000, 4000
(the default) and 8000. The authors published neither code nor hyper-parameters. One of them said that the
experiment was based on OpenAI's script for feature matching, which `config.semi_supervised_recipe` follows.
The networks of the paper's appendix need a tenth of the operations:

    python -m ali_jax.main --config experiments/cifar10.py --workdir runs/k_classes \
        --config.loss=semi_supervised --config.dataset.labelled=4000 \
        --config.discriminator.num_classes=10 --config.ema_decay=0.999
"""

from ml_collections import ConfigDict

from ali_jax import config as defaults


def get_config(labels: str = "4000") -> ConfigDict:
    """Return the configuration for a number of labels."""
    if not labels.isdigit():
        raise ValueError(f"cifar10_semi.py:{labels}: the variant must be a number of labels, such as 4000.")
    config = defaults.base()
    defaults.semi_supervised_recipe(config, maps=96)
    config.batch_size = 100
    config.num_steps = 600_000  # 1200 epochs of the 50,000 unlabelled images
    config.steps_per_call = 100
    config.log_every = 100
    config.checkpoint_every = 5_000
    config.evaluate_every = 25_000

    config.dataset.name = "cifar10"
    config.dataset.shape = (32, 32, 3)
    config.dataset.labelled = int(labels)
    config.discriminator.num_classes = 10

    config.evaluators = ("samples", "reconstructions", "label_error", "precision_recall")
    return config
