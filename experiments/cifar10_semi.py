r"""Semi-supervised ALI on CIFAR-10: a discriminator of K + 1 classes (paper, section 4.4 and its table 2).

    python -m ali_jax.main --config experiments/cifar10_semi.py --workdir runs/cifar10_semi
    python -m ali_jax.main --config experiments/cifar10_semi.py:1000 --workdir runs/cifar10_semi_1000

`cifar10_semi.py:LABELS` sets the number of labels, equally many per class; the paper has 1000, 2000, 4000
(the default) and 8000. `cifar10_semi.py:narrow` has 4,000 labels and a third of the maps, for a few CPU
cores. The authors published neither code nor hyper-parameters. One of them said that the
experiment was based on OpenAI's script for feature matching, which `config.semi_supervised_recipe` follows.
The networks of the paper's appendix need a tenth of the operations:

    python -m ali_jax.main --config experiments/cifar10.py --workdir runs/k_classes \
        --config.loss=semi_supervised --config.dataset.labelled=4000 \
        --config.discriminator.num_classes=10 --config.ema_decay=0.999

Penalties for few labels are off here, and none of them was tried on these images yet:

    --config.penalties.virtual_adversarial.weight=1 --config.penalties.virtual_adversarial.radius=2
    --config.penalties.entropy.weight=1
    --config.penalties.manifold.weight=0.1 --config.penalties.manifold.size=1
    --config.penalties.feature_matching.weight=1

Their authors used: a radius of 10 on whitened images, which are not ours, both weights 1 (Miyato et al.,
2018); the weight 1e-3 and the size 1e-5, which makes the term tiny (Lecouat et al., 2018);
feature matching in place of the decoder's game (Salimans et al., 2016). With `stride=2` a penalty leaves
out the rows with labels, which are half of a batch.
"""

from ml_collections import ConfigDict

from ali_jax import config as defaults


def get_config(variant: str = "4000") -> ConfigDict:
    """Return the configuration for a number of labels, or that of the narrow networks."""
    if not variant.isdigit() and variant != "narrow":
        raise ValueError(
            f"cifar10_semi.py:{variant}: the variant must be narrow, or a number of labels, such as 4000."
        )
    config = defaults.base()
    if variant == "narrow":
        defaults.semi_supervised_recipe(config, maps=32, generator_maps=44)
    else:
        defaults.semi_supervised_recipe(config, maps=96)
    config.batch_size = 100
    config.num_steps = 600_000  # 1200 epochs of the 50,000 unlabelled images
    config.steps_per_call = 100
    config.log_every = 100
    config.checkpoint_every = 5_000
    config.evaluate_every = 25_000

    config.dataset.name = "cifar10"
    config.dataset.shape = (32, 32, 3)
    config.dataset.labelled = 4000 if variant == "narrow" else int(variant)
    config.discriminator.num_classes = 10

    config.evaluators = ("samples", "reconstructions", "label_error", "precision_recall")
    return config
