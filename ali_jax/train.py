"""One simultaneous update of both players: the state, where it comes from, and the step.

The gradients are `gradients.game_gradients`; many steps as one program are `game.compile`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ali_jax import model
from ali_jax.bits import HASHED
from ali_jax.gradients import Aux, Gradient, game_gradients
from ali_jax.types import (
    ALI,
    Array,
    Augment,
    Batch,
    Loss,
    Metrics,
    Networks,
    Noise,
    Penalty,
    PyTree,
    TrainState,
    Variables,
)


def init_state(
    ali: ALI, tx: optax.GradientTransformation, key: Array, batch: Batch, *, ema: bool = False
) -> TrainState:
    """Make the state before the first step.

    Args:
      ali: the networks.
      tx: over `Networks` of parameters, from `make_optimizer` or `optax.multi_transform`.
      key: the run's PRNG key.
      batch: data to initialise from, as `model.init` takes them.
      ema: whether an exponential moving average of the variables is kept.

    Returns:
      The state at step 0.
    """
    variables = model.init(ali, jax.random.fold_in(key, 2**31 - 1), batch.x, batch.y)
    average = jax.tree.map(jnp.copy, variables) if ema else None
    return TrainState(jnp.zeros((), jnp.int32), key, variables, average, tx.init(variables.params))


def train_step(
    ali: ALI,
    tx: optax.GradientTransformation,
    loss: Loss,
    penalties: Sequence[Penalty],
    state: TrainState,
    batch: Batch,
    *,
    ema_decay: float | Callable[[Array], Array] = 0.0,
    axis_name: str | None = None,
    gradient: Gradient = "auto",
    augment: Augment | None = None,
    noise: Noise | None = None,
    gradients_of: Callable[..., tuple[Networks[PyTree], Aux]] = game_gradients,
) -> tuple[TrainState, Metrics]:
    """Update both players at once from one minibatch.

    Args:
      ali, tx, loss, penalties: the game; see `game_gradients`.
      state: from `init_state`.
      batch: this step's data, or in a named axis this device's share of them.
      ema_decay: of the averaged variables, if the state has them. A number has a warm-up: after t steps the
        decay is min(ema_decay, (1 + t) / (10 + t)). A function of t gives it as it is.
      axis_name: the named axis to average over, under `jax.pmap`, `jax.shard_map(..., check_vma=False)` or
        `jax.vmap`; None in a single program.
      gradient, augment: see `game_gradients`.
      noise: this step's noise; None: drawn from the state's key, the step and the device's index.
      gradients_of: takes the place of `game_gradients`; it has the same arguments and results.

    Returns:
      The new state, and metrics: `loss/generator`, `loss/discriminator` and those of loss and penalties.
    """
    if noise is None:
        key = jax.random.wrap_key_data(jax.random.key_data(state.key), impl=HASHED)
        key = jax.random.fold_in(key, state.step)
        if axis_name is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
        noise = model.draw_noise(ali, key, batch.x.shape[0])
    grads, aux = gradients_of(
        ali, state.variables, loss, penalties, batch, noise, state.step, gradient=gradient, augment=augment
    )
    metrics = {
        "loss/generator": aux.losses.generator,
        "loss/discriminator": aux.losses.discriminator,
        **aux.metrics,
    }
    if axis_name is not None:
        _check_axis(ali, state.variables.batch_stats, axis_name)
        grads, metrics = jax.lax.pmean((grads, metrics), axis_name)

    with jax.named_scope("optimizer"):
        updates, opt_state = tx.update(grads, state.opt_state, state.variables.params)
        params: Any = optax.apply_updates(state.variables.params, updates)
    variables = Variables(params, aux.batch_stats)
    step = state.step + 1
    ema: Any = state.ema
    if ema is not None:
        with jax.named_scope("average"):
            decay = (
                ema_decay(step) if callable(ema_decay) else jnp.minimum(ema_decay, (1 + step) / (10 + step))
            )
            ema = optax.incremental_update(variables, ema, 1 - decay)
    return TrainState(step, state.key, variables, ema, opt_state), metrics


def _check_axis(ali: ALI, batch_stats: Networks[PyTree], axis_name: str) -> None:
    """Refuse batch statistics that are not synchronised over the devices: gradients would be wrong.

    The statistics of a module that declares `coupled = False` do not depend on the batch, as spectral norm's.
    """
    for role, module, stats in zip(Networks._fields, ali, batch_stats, strict=True):
        own = getattr(module, "axis_name", None)
        if jax.tree.leaves(stats) and getattr(module, "coupled", True) and own != axis_name:
            raise ValueError(
                f"The {role} has batch statistics, which must be synchronised over {axis_name!r}, but "
                f"its axis_name is {own!r}: make the networks with build(config, axis_name={axis_name!r})."
            )
