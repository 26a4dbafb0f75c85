"""The mixture of 25 Gaussians with `config.stable_recipe`.

    python -m ali_jax.main --config experiments/mixture_stable.py --workdir runs/mixture_stable

The training set is the 100,000 fixed points of `mixture`. Learning rates are constant for 40 % of the steps,
then fall to 0 along a cosine.

Result of two runs, averaged parameters, 2,500 samples. The recipe was chosen among eighteen settings by seed
100, whose numbers are flattered for that; seed 101 had no part in the choice.

    seed  modes_strict  high_quality  reverse_kl  mode_spread  mode_kept
    100   25            0.960         0.004       0.74         0.893
    101   25            0.933         0.013       0.84         0.893

The modes are narrower than the true ones; those of the raw parameters are not (mode_spread 0.96 and 0.99),
but their high_quality is 0.938 and 0.870, with 25 and 24 modes. 40 CPU seconds a run on one core.
"""

from ml_collections import ConfigDict

from ali_jax import config as defaults


def get_config() -> ConfigDict:
    """Return the configuration."""
    config = defaults.base()
    defaults.stable_recipe(config)
    config.batch_size = 128
    config.num_steps = 16_000
    config.steps_per_call = 500
    config.log_every = 500
    config.checkpoint_every = 4_000
    config.latent_dim = 2

    config.dataset.name = "mixture"
    config.dataset.shape = (2,)

    config.encoder.layers = (64, 64, 64)
    config.decoder.layers = (128, 128, 128, 128)
    config.decoder.output = "linear"
    config.discriminator.joint_layers = (128, 128, 128)
    config.encoder.center = config.discriminator.center = False

    config.penalties.r1.gamma_final = 0.01
    config.optimizer.generator.learning_rate = 2e-3
    config.optimizer.discriminator.learning_rate = 3e-3
    config.optimizer.constant_fraction = 0.4

    config.evaluators = ("samples", "reconstructions", "modes")
    return config
