"""ALI on CIFAR-10 (32x32) with residual networks and `config.residual_recipe`.

    python -m ali_jax.main --config experiments/cifar10_residual.py:small --workdir runs/cifar10_residual

The networks are for a GPU; those of `cifar10_residual.py:small` are for two CPU cores.
"""

from ml_collections import ConfigDict

from ali_jax import config as defaults


def get_config(variant: str = "") -> ConfigDict:
    """Return the configuration for a GPU, or that for two cores."""
    if variant not in ("", "small"):
        raise ValueError(f"cifar10_residual.py:{variant}: the only variant is small.")
    config = defaults.base()
    config.dataset.name = "cifar10"
    config.dataset.shape = (32, 32, 3)
    defaults.residual_recipe(config, small=bool(variant))
    config.num_steps = 150_000
    config.evaluate_every = 25_000
    return config
