"""Semi-supervised ALI on MNIST with perceptrons and a discriminator of K + 1 classes."""

from ml_collections import ConfigDict

from ali_jax import config as defaults


def get_config(labels: str = "100") -> ConfigDict:
    """Return the configuration for a number of labels."""
    if not labels.isdigit():
        raise ValueError(f"mnist_semi.py:{labels}: the variant must be a number of labels, such as 100.")
    config = defaults.base()
    defaults.stable_recipe(config)
    config.batch_size = 64
    config.num_steps = 10_000
    config.steps_per_call = 100
    config.log_every = 500
    config.checkpoint_every = 2_500
    config.latent_dim = 50
    config.loss = "semi_supervised"
    config.penalties.r1.gamma = 0.0
    config.penalties.r1.gamma_final = -1.0

    config.dataset.name = "mnist"
    config.dataset.shape = (28, 28, 1)
    config.dataset.dequantize = 1 / 512
    config.dataset.labelled = int(labels)

    config.encoder.layers = config.decoder.layers = (512, 512)
    config.discriminator.x_layers = config.discriminator.joint_layers = (512, 512)
    config.discriminator.z_layers = (128, 128)
    config.discriminator.num_classes = 10

    config.optimizer.generator.learning_rate = 5e-4
    config.optimizer.discriminator.learning_rate = 7.5e-4
    config.optimizer.constant_fraction = 0.4

    config.evaluators = ("samples", "label_error")
    return config
