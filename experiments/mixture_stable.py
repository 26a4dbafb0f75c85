"""The mixture of 25 Gaussians, or of 100, with `config.stable_recipe`.

    python -m ali_jax.main --config experiments/mixture_stable.py --workdir runs/mixture_stable

The training set is the 100,000 fixed points of `mixture`. The encoder has random Fourier features, and
ALICE's cycle on x is added with a small weight. Learning rates are constant for 20 % of the steps, then fall
to 0 along a cosine.

Result over seeds 0 to 7 (--config.population.seeds=8), mean +- standard deviation, 2,500 samples;
modes_strict counts modes with a fifth of their fair share. The recipe was chosen among about fifty settings
on seeds 100 to 103; its length and its averaging were chosen after seeing two other runs of seeds 0 to 7:

    weights   modes_strict  high_quality    reverse_kl      mode_spread   mode_kept
    averaged  25 on all     0.960 +- 0.008  0.006 +- 0.002  0.91 +- 0.03  0.991 +- 0.003
    raw       25 on all     0.953 +- 0.011  0.006 +- 0.002  0.96 +- 0.01  0.987 +- 0.005

The lowest high_quality of a seed is 0.946 (raw 0.936), the lowest mode_spread 0.87 (raw 0.94); the data have
0.989 and 0.974. A seed takes 150 CPU seconds. Without the penalty, --config.penalties.r1.gamma=0, four of
these seeds lose modes (18 to 25, mean 23.1), and mode_kept is 0.92 +- 0.10.

`mixture_stable.py:100` has the 100 Gaussians of `mixture_100`, a grid of 10 by 10, and the same settings, of
which none was chosen for it. Result of one run, seed 0, 2,500 samples, averaged parameters: 99 modes by the
strict count and 100 by single samples, high_quality 0.884, reverse_kl 0.045, mode_spread 0.89 and mode_kept
0.964 (raw ones agree to 0.01). It took 220 CPU seconds.

    python -m ali_jax.main --config experiments/mixture_stable.py:100 --workdir runs/mixture_100
"""

from ml_collections import ConfigDict

from ali_jax import config as defaults


def get_config(variant: str = "") -> ConfigDict:
    """Return the configuration, or that of the grid of 100 Gaussians."""
    if variant not in ("", "100"):
        raise ValueError(f"mixture_stable.py:{variant}: the only variant is 100.")
    config = defaults.base()
    defaults.stable_recipe(config)
    config.batch_size = 256
    config.num_steps = 45_000
    config.steps_per_call = 500
    config.log_every = 500
    config.checkpoint_every = 5_000
    config.latent_dim = 2
    config.ema_decay = 0.9993

    config.dataset.name = "mixture_100" if variant == "100" else "mixture"
    config.dataset.shape = (2,)

    config.encoder.layers = (64, 64, 64)
    config.encoder.frequencies = (64, 3.0)
    config.decoder.layers = (128, 128, 128, 128)
    config.decoder.output = "linear"
    config.discriminator.joint_layers = (128, 128, 128)
    config.encoder.center = config.discriminator.center = False

    config.penalties.r1.gamma_final = 0.005
    config.penalties.cycle_x.weight = 0.003
    config.optimizer.generator.learning_rate = 1e-3
    config.optimizer.discriminator.learning_rate = 3e-3
    config.optimizer.constant_fraction = 0.2

    config.evaluators = ("samples", "reconstructions", "modes")
    return config
