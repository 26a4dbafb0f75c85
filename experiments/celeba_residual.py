"""ALI on CelebA (64x64) with residual networks and `config.residual_recipe`.

    python -m ali_jax.main --config experiments/celeba_residual.py:small --workdir runs/celeba_residual

The networks are for a GPU; those of `celeba_residual.py:small` are for two CPU cores.
"""

from ml_collections import ConfigDict

from ali_jax import config as defaults


def get_config(variant: str = "") -> ConfigDict:
    """Return the configuration for a GPU, or that for two cores."""
    if variant not in ("", "small"):
        raise ValueError(f"celeba_residual.py:{variant}: the only variant is small.")
    config = defaults.base()
    config.dataset.name = "celeb_a"
    config.dataset.test_split = "validation"
    config.dataset.shape = (64, 64, 3)
    defaults.residual_recipe(config, small=bool(variant))
    config.num_steps = 150_000
    config.evaluate_every = 25_000
    config.evaluators = tuple(name for name in config.evaluators if name != "class_balance")  # no classes
    return config
