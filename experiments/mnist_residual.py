"""ALI on MNIST (28x28) with residual networks and `config.residual_recipe`.

    python -m ali_jax.main --config experiments/mnist_residual.py:small --workdir runs/mnist_residual

The networks are for a GPU; those of `mnist_residual.py:small` are for two CPU cores.
"""

from ml_collections import ConfigDict

from ali_jax import config as defaults


def get_config(variant: str = "") -> ConfigDict:
    """Return the configuration for a GPU, or that for two cores."""
    if variant not in ("", "small"):
        raise ValueError(f"mnist_residual.py:{variant}: the only variant is small.")
    config = defaults.base()
    config.dataset.name = "mnist"
    config.dataset.shape = (28, 28, 1)
    defaults.residual_recipe(config, small=bool(variant))
    config.num_steps = 40_000
    config.evaluate_every = 10_000
    config.evaluators = (*config.evaluators, "probes")
    return config
