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
    defaults.residual_recipe(config, small=bool(variant))
    config.num_steps = 40_000
    config.steps_per_call = 50
    config.log_every = 250
    config.checkpoint_every = 2_500
    config.evaluate_every = 10_000

    config.dataset.name = "mnist"
    config.dataset.shape = (28, 28, 1)

    config.penalties.cycle_x.weight = 20 / 784

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
    return config
