"""Small versions of the experiments for tests: the same structure, a few units wide."""

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ali_jax import model, networks
from ali_jax.types import ALI, Array, Batch, PyTree, Variables

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS = sorted(path.stem for path in (ROOT / "experiments").glob("*.py"))


def experiment(name: str) -> ConfigDict:
    """Load experiments/NAME.py[:variant]."""
    stem, _, variant = name.partition(":")
    spec = importlib.util.spec_from_file_location(stem, ROOT / "experiments" / f"{stem}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(variant) if variant else module.get_config()
    if not config.dataset.shape:
        config.dataset.shape = (16, 16, 3)
    return config


def narrow(config: ConfigDict, maps: int = 4) -> ConfigDict:
    """Give every layer at most `maps` maps (twice that for layers that a maxout will reduce)."""
    pieces = config.discriminator.pieces if config.discriminator.activation == "maxout" else 1

    def cut(layers: tuple, by: int = 1) -> tuple:
        most = maps * by
        return tuple(
            min(la, most) if isinstance(la, int) else (*la[:2], min(la[2], most), *la[3:]) for la in layers
        )

    for network in (config.encoder, config.decoder):
        network.layers = cut(network.layers)
        network.width = min(network.width, maps)
    for key in ("x_layers", "z_layers", "joint_layers"):
        config.discriminator[key] = cut(config.discriminator[key], pieces)
    config.discriminator.width = min(config.discriminator.width, maps)
    config.latent_dim = min(config.latent_dim, 3)
    return config


def shallow(config: ConfigDict) -> None:
    """Cut stacks of convolutions to two layers, on images of 8x8: compiling them is what takes time.

    Kinds of layer stay. Of values that are given layer by layer, the first and the largest other one stay.
    """
    if not config.encoder.layers or isinstance(config.encoder.layers[0], int):
        return
    config.dataset.shape = (8, 8, config.dataset.shape[-1])
    down, up = ((3, 2), (3, 1)), ((3, 1), (4, 2))  # 8 -> 3 -> 1 -> 3 -> 8
    for network, key, sizes in (
        (config.encoder, "layers", down),
        (config.discriminator, "x_layers", down),
        (config.decoder, "layers", up),
    ):
        layers = list(network[key])
        at = [i for i, la in enumerate(layers) if not isinstance(la, int) and la[:2] != (1, 1)]
        two = [(*size, layers[i][2]) for size, i in zip(sizes, (at[0], at[-1]), strict=True)]
        network[key] = (*layers[: at[0]], *two, *layers[at[-1] + 1 :])
    for network in (config.encoder, config.decoder, config.discriminator):
        for key in ("batch_norm", "x_batch_norm", "x_dropout", "x_dropout_after"):
            if len(network.get(key, ())) > 1:
                layers = network["x_layers" if key.startswith("x_") else "layers"]
                network[key] = (network[key][0], *[max(network[key][1:])] * (len(layers) - 1))


def game(
    name: str, *, batch_size: int = 4, maps: int = 4, edit: Callable | None = None, **build
) -> tuple[ALI, ConfigDict, Batch]:
    """Return the narrow networks of an experiment, its config and a batch of random data."""
    config = narrow(experiment(name), maps)
    if edit is not None:
        edit(config)
    ali = networks.build(config, platform="cpu", **build)
    x = jax.random.uniform(jax.random.PRNGKey(1), (batch_size, *config.dataset.shape))
    y = label = None
    if config.dataset.conditional:
        shape = (batch_size, config.condition.size)
        y = jax.random.bernoulli(jax.random.PRNGKey(4), shape=shape).astype(jnp.float32)
    if config.dataset.labelled:
        label = jnp.arange(batch_size, dtype=jnp.int32) % 3 - 1
    return ali, config, Batch(x, y, label)


def draw(ali: ALI, x: Array, y: Array | None = None, *, seed: int = 0) -> Variables:
    """Draw variables on the host, where their distribution does not matter: nothing is compiled."""
    shapes = jax.eval_shape(partial(model.init, ali), jax.random.PRNGKey(0), x, y)
    generator = np.random.default_rng(seed)

    def leaf(path: tuple, shape: jax.ShapeDtypeStruct) -> Array:
        name, noise = path[-1].key, generator.standard_normal(shape.shape)
        fan_in = max(int(np.prod(shape.shape[:-1])), 1)
        drawn = {"kernel": noise * (2 / fan_in) ** 0.5, "gamma": 1 + 0.1 * noise, "std": np.ones(shape.shape)}
        return jnp.asarray(drawn.get(name, 0.1 * noise), shape.dtype)

    return jax.tree.map_with_path(leaf, shapes)


def norm(tree: PyTree) -> float:
    """Return the norm of a whole tree, on the host: JAX would compile a program for every shape."""
    leaves = jax.tree.leaves(jax.device_get(tree))
    return float(np.linalg.norm([np.linalg.norm(np.float64(leaf)) for leaf in leaves]))


@partial(jax.jit, static_argnums=0)
def init(ali: ALI, key: Array, x: Array, y: Array | None = None) -> Variables:
    """Initialise in one program; op by op it takes seconds."""
    return model.init(ali, key, x, y)
