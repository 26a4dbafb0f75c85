"""ALI on MNIST (28x28): convolutional networks with `config.stable_recipe`.

    python -m ali_jax.main --config experiments/mnist.py --workdir runs/mnist

The 60,000 images come from TensorFlow Datasets (`python -m ali_jax.data.prepare mnist`) or, with
--config.dataset.path=mnist.npz, from a file. The paper has no MNIST experiment. `mnist.py:conditional` gives
all three networks the one-hot class of an image. They are then perceptrons as in digits.py, because the
convolutional networks had not learnt to use the class after 1,000 steps.

Result of one run, seed 0, averaged parameters, all 10,000 test images: class_kl 0.013, class_kept 0.80,
knn_accuracy 0.87 and linear_probe_accuracy 0.81 (raw pixels 0.969 and 0.922, untrained encoder 0.79 and
0.68), reconstruction_mse 0.047 (a random pair: 0.135). Ten to twenty minutes on two cores.
"""

from typing import Any

from ml_collections import ConfigDict

from ali_jax import config as defaults


def get_config(variant: str = "") -> ConfigDict:
    """Return the configuration, or that of the conditional model."""
    if variant not in ("", "conditional"):
        raise ValueError(f"mnist.py:{variant}: the only variant is conditional.")
    config = defaults.base()
    defaults.stable_recipe(config)
    config.batch_size = 100
    config.num_steps = 18_000  # 30 epochs
    config.steps_per_call = 50
    config.log_every = 100
    config.checkpoint_every = 1_000
    config.evaluate_every = 6_000
    config.latent_dim = 32

    config.dataset.name = "mnist"
    config.dataset.shape = (28, 28, 1)

    config.encoder.layers = ((4, 2, 32), (5, 2, 64), 256)  # 28 -> 13 -> 5
    config.decoder.layers = ((5, 1, 64), (5, 2, 32), (4, 2, 16))  # 1 -> 5 -> 13 -> 28
    config.discriminator.x_layers = ((4, 2, 32), (5, 2, 64), 256)
    config.discriminator.z_layers = (128, 128)
    config.discriminator.joint_layers = (256,)

    config.optimizer.generator.learning_rate = 5e-4
    config.optimizer.discriminator.learning_rate = 7.5e-4
    config.optimizer.constant_fraction = 0.3
    config.optimizer.final_fraction = 0.05

    config.evaluators = (
        "samples",
        "reconstructions",
        "interpolations",
        "reconstruction_error",
        "class_balance",
        "probes",
        "posterior",
        "memorisation",
        "near_duplicates",
        "precision_recall",
    )
    if variant == "conditional":
        _conditional_perceptrons(config)
    return config


def _conditional_perceptrons(config: Any) -> None:
    """Condition on the class, with the perceptrons and learning rates of experiments/digits.py."""
    config.dataset.conditional = True
    config.condition.size = 10
    config.batch_size = 64
    config.num_steps = 10_000
    config.steps_per_call = config.log_every = 250
    config.checkpoint_every = 2_500
    config.evaluate_every = 5_000
    config.latent_dim = 16
    config.encoder.layers = config.decoder.layers = (256, 256)
    config.discriminator.x_layers = config.discriminator.joint_layers = (256, 256)
    config.discriminator.z_layers = (128, 128)
    config.penalties.r1.gamma_final = 0.3
    config.optimizer.generator.learning_rate = 1e-3
    config.optimizer.discriminator.learning_rate = 1.5e-3
    config.optimizer.constant_fraction = 1.0
    unconditional = {"probes"}  # an encoder that is told the class shows it in its codes
    kept = tuple(name for name in config.evaluators if name not in unconditional)
    config.evaluators = (*kept, "conditional_samples", "condition_agreement")
