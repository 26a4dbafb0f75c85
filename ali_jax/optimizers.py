"""Adam in the order in which each platform runs it fastest, as a transformation of optax."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ali_jax.networks import convolutions
from ali_jax.types import PyTree


def scale_by_adam_for(
    platform: str, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-8
) -> optax.GradientTransformation:
    """Return `optax.scale_by_adam`, for programs on a platform.

    For "cpu" the order is one that XLA:CPU follows without copies; the result is optax's but for rounding.
    XLA:CPU would compute the moments twice, to store them and within the new parameters, and would copy what
    is overwritten before its last reader is done. Here all gradients come first, then the moments, then the
    updates. This takes effect with the options of `networks.convolutions.compiler_options`.

    Args:
      platform: as in `device.platform`. Any other than "cpu" has optax's own order.
      b1: decay of the first moment; as the others it may be traced.
      b2: decay of the second moment.
      eps: added to the root of the second moment.

    Returns:
      The transformation, to be chained with a learning rate.
    """
    adam = optax.scale_by_adam(b1, b2, eps)
    if platform != "cpu":
        return adam
    cut = partial(convolutions.cut, lowering="cpu")

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, Any]:
        _, state = adam.update(cut(updates), state, params)  # the updates are made from the moments below
        state = state._replace(mu=jax.tree.map(cut, state.mu), nu=jax.tree.map(cut, state.nu))
        mu = optax.tree.bias_correction(state.mu, b1, state.count)
        nu = optax.tree.bias_correction(state.nu, b2, state.count)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu), state

    return optax.GradientTransformation(adam.init, update)
