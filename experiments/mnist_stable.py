"""ALI on MNIST with perceptrons that do not know which pixels are neighbours, and `config.stable_recipe`.

    python -m ali_jax.main --config experiments/mnist_stable.py --workdir runs/mnist_stable

The benchmark is BiGAN's (Donahue et al., 2017, table 1): accuracy of the nearest neighbour on the encoder's
last hidden layer, with all 60,000 training rows as references and all 10,000 test rows as queries. BiGAN's
published accuracy is 97.39 %.

Not run to its end yet. With --config.num_steps=3000, seed 0, averaged parameters: 0.964 (pixels 0.969,
untrained encoder 0.960). 20,000 steps take 11 minutes on two quiet cores.
"""

from ml_collections import ConfigDict

from ali_jax import config as defaults


def get_config() -> ConfigDict:
    """Return the configuration."""
    config = defaults.base()
    defaults.stable_recipe(config)
    config.batch_size = 128
    config.num_steps = 20_000
    config.steps_per_call = 100
    config.log_every = 500
    config.checkpoint_every = 2_500
    config.latent_dim = 50

    config.dataset.name = "mnist"
    config.dataset.shape = (28, 28, 1)
    config.dataset.dequantize = 1 / 512

    config.encoder.layers = config.decoder.layers = (512, 512)
    config.discriminator.x_layers = config.discriminator.joint_layers = (512, 512)
    config.discriminator.z_layers = (128, 128)

    config.optimizer.generator.learning_rate = 5e-4
    config.optimizer.discriminator.learning_rate = 7.5e-4
    config.optimizer.constant_fraction = 0.4

    config.evaluators = (
        "samples",
        "reconstructions",
        "interpolations",
        "reconstruction_error",
        "class_balance",
        "hidden_probe",
        "posterior",
        "memorisation",
    )
    return config
