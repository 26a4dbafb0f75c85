"""ALI on stacked MNIST (28x28x3), a random digit in each channel: 1,000 modes; `config.stable_recipe`.

    python -m ali_jax.main --config experiments/stacked_mnist.py --workdir runs/stacked_mnist

The images come from TensorFlow Datasets or from a file, as for mnist.py. The training set has 128,000 stacks,
as in PacGAN's experiment; modes are counted over 26,000 samples, as in VEEGAN's. The networks are perceptrons
with the learning rates of mnist_stable.py; `stacked_mnist.py:convolutions` takes layers and rates from
mnist.py.

VEEGAN reports 16 modes and a KL of 5.4 for ALI, with other networks and another classifier; there a mode
counts if it has a single sample (`stacked_modes`, not `stacked_modes_strict`).

Result of the perceptrons with --config.dataset.path=mnist.npz, averaged parameters (raw ones agree), 26,000
samples, --config.seed=0 to 2: 999, 1,000 and 1,000 modes by the strict count, 1,000 each by single samples,
and a KL of 0.061, 0.057 and 0.060, of which perfect samples would have 0.019. Real stacks have 1,000 modes
and a KL of 0.026. The classifier errs on 0.41, 0.48 and 0.48 % of single digits. Reconstructions keep little:
their reconstruction_mse is 0.062 to 0.063, that of random pairs 0.135. A step takes 35 ms on two cores with
AVX-512, and twice that without. The convolutional networks have not been run.
"""

from typing import Any

from ml_collections import ConfigDict

from ali_jax import config as defaults


def get_config(variant: str = "") -> ConfigDict:
    """Return the configuration of perceptrons or of convolutional networks."""
    if variant not in ("", "convolutions"):
        raise ValueError(f"stacked_mnist.py:{variant}: the only variant is convolutions.")
    config = defaults.base()
    defaults.stable_recipe(config)
    config.batch_size = 100
    config.num_steps = 40_000
    config.steps_per_call = 100
    config.log_every = 500
    config.checkpoint_every = 2_500
    config.latent_dim = 64
    config.penalties.r1.gamma_final = 0.3
    config.optimizer.generator.learning_rate = 5e-4
    config.optimizer.discriminator.learning_rate = 7.5e-4

    config.dataset.name = "mnist"
    config.dataset.stack = 3
    config.dataset.shape = (28, 28, 3)
    config.dataset.dequantize = 1 / 512

    if variant == "convolutions":
        _convolutions(config)
    else:
        _perceptrons(config)
    config.evaluators = (
        "samples",
        "reconstructions",
        "reconstruction_error",
        "stacked_modes",
        "precision_recall",
    )
    return config


def _perceptrons(config: Any) -> None:
    config.encoder.layers = config.decoder.layers = (512, 512)
    config.discriminator.x_layers = config.discriminator.joint_layers = (512, 512)
    config.discriminator.z_layers = (128, 128)
    config.optimizer.constant_fraction = 0.4


def _convolutions(config: Any) -> None:
    config.encoder.layers = ((4, 2, 32), (5, 2, 64), 256)  # 28 -> 13 -> 5
    config.decoder.layers = ((5, 1, 64), (5, 2, 32), (4, 2, 16))  # 1 -> 5 -> 13 -> 28
    config.discriminator.x_layers = ((4, 2, 32), (5, 2, 64), 256)
    config.discriminator.z_layers = (128, 128)
    config.discriminator.joint_layers = (256,)
    config.optimizer.constant_fraction = 0.3
    config.optimizer.final_fraction = 0.05
