"""The paper's mixture of 25 Gaussians (its section 4.3), with the networks of the authors' code.

    python -m ali_jax.main --config experiments/mixture.py --workdir runs/mixture

The encoder takes its noise as an input, z = f(x, epsilon). The authors used the Adam of Blocks in 2016, whose
"beta1 = 0.8" corresponds to b1 = 0.2 today. `mixture.py:VARIANT` has the comparisons of the paper's section,
all with the same networks:

    b1_0.8      the same line of code, read as today's Adam
    gan         D sees only x, so the encoder learns nothing
    inverse     an encoder of that GAN's decoder, which minimises E |z - G_z(G_x(z))|^2
    posthoc     ALI's encoder and a new D for that GAN's decoder
    vae         a variational autoencoder: a Gaussian encoder, a likelihood with the deviation of the data
    search, gan_search
                ten members with random learning rate, b1 and initial deviation, the same for both

`inverse` and `posthoc` take the run of the GAN by --config.init_from=DIR. The paper does not state the ranges
of its random search or how it trained `inverse`, `posthoc` and `vae`: those choices are ours.
"""

import random
from typing import Any

from ml_collections import ConfigDict

from ali_jax import config as defaults

VARIANTS = ("code", "b1_0.8", "gan", "inverse", "posthoc", "vae", "search", "gan_search")

# Of the random search: what is drawn uniformly, on a logarithmic scale for the first and the last.
LEARNING_RATES = (1e-5, 1e-3)
B1 = (0.0, 0.9)
INIT_STD = (0.005, 0.1)
DRAWS = 10


def get_config(variant: str = "code") -> ConfigDict:
    """Return the configuration of the authors' code, or that of a comparison."""
    if variant not in VARIANTS:
        raise ValueError(f"mixture.py:{variant}: the variants are {', '.join(VARIANTS)}.")
    config = defaults.base()
    config.batch_size = 100
    config.num_steps = 200_000  # 200 epochs
    config.steps_per_call = 500
    config.log_every = 500
    config.checkpoint_every = 10_000
    config.evaluate_every = 20_000
    config.latent_dim = 2

    config.dataset.name = "mixture"
    config.dataset.shape = (2,)

    config.encoder.posterior = "noise"
    config.encoder.layers = (400, 400)
    config.encoder.activation = "relu"
    config.decoder.layers = (400, 400, 400, 400)
    config.decoder.activation = "relu"
    config.decoder.output = "linear"
    config.discriminator.joint_layers = (1000, 1000, 1000)
    config.discriminator.activation = "maxout"
    config.discriminator.pieces = 5
    for network in (config.encoder, config.decoder, config.discriminator):
        network.init_std = 0.02
    for adam in (config.optimizer.generator, config.optimizer.discriminator):
        adam.b1 = 0.8 if variant == "b1_0.8" else 0.2

    config.discriminator.blind = variant in ("gan", "gan_search")
    if variant in ("inverse", "posthoc"):
        config.frozen = ("decoder",)
    if variant in ("inverse", "vae"):
        _without_game(config)
    if variant == "inverse":
        config.penalties.cycle_z.weight = 1.0
    if variant == "vae":
        config.encoder.posterior = "gaussian"
        config.penalties.elbo.weight = 1.0
        config.penalties.elbo.sigma = 0.05
    if variant in ("search", "gan_search"):
        config.population.vary = _random_draws()

    config.evaluators = ("samples", "reconstructions", "modes")
    return config


def _without_game(config: Any) -> None:
    """Turn the game off: D is one linear unit and minimises no loss."""
    config.loss = "none"
    config.discriminator.blind = True
    config.discriminator.joint_layers = ()


def _random_draws() -> tuple:
    """Draw the hyper-parameters of the search from a fixed seed, so that ALI and GAN get the same."""
    generator = random.Random(2017)

    def logarithmic(low: float, high: float) -> float:
        return low * (high / low) ** generator.random()

    draws = [
        (logarithmic(*LEARNING_RATES), generator.uniform(*B1), logarithmic(*INIT_STD)) for _ in range(DRAWS)
    ]
    rates, b1s, stds = zip(*draws, strict=True)
    players, networks = ("generator", "discriminator"), ("encoder", "decoder", "discriminator")
    return (
        *((f"optimizer.{player}.learning_rate", rates) for player in players),
        *((f"optimizer.{player}.b1", b1s) for player in players),
        *((f"{network}.init_std", stds) for network in networks),
    )
