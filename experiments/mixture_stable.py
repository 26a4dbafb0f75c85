"""The mixture of 25 Gaussians with `config.stable_recipe`.

    python -m ali_jax.main --config experiments/mixture_stable.py --workdir runs/mixture_stable

The training set is the 100,000 fixed points of `mixture`. Learning rates are constant for 40 % of the steps,
then fall to 0 along a cosine.

Result over seeds 0 to 7 (--config.population.seeds=8; the recipe was chosen among some twenty settings on
seeds 100 and 101), mean +- standard deviation, 2,500 samples, a fifth of the fair share for the strict count:

    weights   modes_strict    high_quality    reverse_kl      mode_spread   mode_kept
    averaged  25 on all       0.930 +- 0.008  0.008 +- 0.004  0.80 +- 0.03  0.91 +- 0.02
    raw       25 on 7, 24     0.887 +- 0.023  0.023 +- 0.016  1.00 +- 0.08  0.82 +- 0.04

The averaged modes are narrower than the true ones (0.974). 43 CPU seconds a seed.
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
