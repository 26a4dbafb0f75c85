"""From a config to the parts of a game: optimiser, loss, penalties, what D sees instead of the pairs."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ali_jax import class_penalties, model, train
from ali_jax import config as configs
from ali_jax import losses as loss_functions
from ali_jax import penalties as penalty_functions
from ali_jax.augmentation import augment
from ali_jax.config import Config
from ali_jax.names import did_you_mean, public_functions
from ali_jax.networks import convolutions
from ali_jax.optimizers import scale_by_adam_for
from ali_jax.types import ALI, Array, Augment, Batch, Loss, Networks, Pairs, Penalty, PyTree, TrainState

WEIGHTS = ("gamma", "gamma_z", "weight")  # a penalty is on if one of these arguments is positive


def make_optimizer(config: Config, *, platform: str = "gpu") -> optax.GradientTransformation:
    """Make one Adam per player, over trees of `Networks`: encoder and decoder are one player.

    Args:
      config: reads `optimizer`, `num_steps`, `lowering`, and `frozen`, the networks that are not updated.
      platform: what the program will be compiled for, as in `networks.build`. It changes the order in which
        Adam goes through memory, not what Adam computes.

    Returns:
      The transformation, for `init_state` and `train_step`.
    """
    scale_by_adam = partial(scale_by_adam_for, convolutions.lowering_for(platform, config.lowering))
    players: dict[Any, Any] = {"frozen": optax.set_to_zero()}
    for player in ("generator", "discriminator"):
        adam = config.optimizer[player]
        rate = _schedule(adam.learning_rate, config)
        scale = _with_b2(partial(scale_by_adam, b1=adam.b1, eps=adam.eps), adam.b2, config)
        if config.optimizer.packed_size:
            scale = _packed(scale, config.optimizer.packed_size)
        players[player] = optax.chain(scale, optax.scale_by_learning_rate(rate))
    labels = Networks("generator", "generator", "discriminator")
    labels = Networks(
        *("frozen" if n in config.frozen else label for n, label in zip(labels._fields, labels, strict=True))
    )
    return optax.multi_transform(players, labels)


def _with_b2(
    scale_by_adam: Callable[..., optax.GradientTransformation], b2: Any, config: Config
) -> optax.GradientTransformation:
    """Return an Adam whose b2 is constant, or goes to `optimizer.b2_final` along half a cosine."""
    final = config.optimizer.b2_final
    if final < 0:
        return scale_by_adam(b2=b2)

    share_left = optax.cosine_decay_schedule(1.0, config.num_steps)

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, Any]:
        now = final + (b2 - final) * share_left(state.count)
        return scale_by_adam(b2=now).update(updates, state, params)

    return optax.GradientTransformation(scale_by_adam(b2=b2).init, update)


class Packed(NamedTuple):
    """The leaves of a tree, the small ones joined to one vector."""

    small: Array | None  # [N]; None: there are none
    large: tuple[Array, ...]


def _packed(inner: optax.GradientTransformation, size: int) -> optax.GradientTransformation:
    """Return an elementwise transformation that works on all leaves of at most `size` elements at once.

    A GPU then has one kernel for them instead of many. No bit of the result changes. The state of `inner` is
    that for a `Packed` tree.
    """

    def is_small(leaf: Array) -> bool:
        return leaf.size <= size and leaf.dtype == jnp.float32

    def pack(tree: PyTree) -> Any:  # a `Packed`, which is no tree to optax's types
        leaves = jax.tree.leaves(tree)
        small = [leaf.ravel() for leaf in leaves if is_small(leaf)]
        large = tuple(leaf for leaf in leaves if not is_small(leaf))
        return Packed(jnp.concatenate(small) if small else None, large)

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, Any]:
        leaves, structure = jax.tree.flatten(updates)
        packed: Any
        packed, state = inner.update(pack(updates), state, None if params is None else pack(params))
        large, start, unpacked = iter(packed.large), 0, []
        for leaf in leaves:
            if is_small(leaf):
                unpacked.append(packed.small[start : start + leaf.size].reshape(leaf.shape))
                start += leaf.size
            else:
                unpacked.append(next(large))
        return structure.unflatten(unpacked), state

    return optax.GradientTransformation(lambda params: inner.init(pack(params)), update)


def _schedule(rate: float, config: Config) -> float | optax.Schedule:
    """Return a rate that is constant, or constant for a fraction of the steps and then a cosine."""
    fraction = config.optimizer.constant_fraction
    if fraction >= 1:
        return rate
    constant = int(fraction * config.num_steps)
    decay = optax.cosine_decay_schedule(
        rate, max(config.num_steps - constant, 1), config.optimizer.final_fraction
    )
    return optax.join_schedules([optax.constant_schedule(rate), decay], [constant])


def make_init(
    config: Config, ali: ALI, tx: optax.GradientTransformation
) -> Callable[[Array, Batch], TrainState]:
    """Make the `(key, first rows) -> state before the first step`, with an average if the config has one."""
    return partial(train.init_state, ali, tx, ema=configs.average_decay(config) > 0)


def make_loss(config: Config, *, axis_name: str | None = None) -> Loss:
    """Make the loss that `config.loss` names, with the options that it takes.

    Raises:
      ValueError: there is no such loss.
    """
    known = public_functions(loss_functions)
    if config.loss not in known:
        hint = did_you_mean(config.loss, known)
        raise ValueError(f"config.loss is {config.loss!r}.{hint} ali_jax.losses has {', '.join(known)}.")
    accepted = inspect.signature(known[config.loss]).parameters
    options = {"weight": config.labelled_weight, "axis_name": axis_name}
    return partial(known[config.loss], **{k: v for k, v in options.items() if k in accepted})


def make_penalties(config: Config, *, axis_name: str | None = None) -> tuple[Penalty, ...]:
    """Make the penalties of `config.penalties` that have a positive weight, with their arguments.

    A negative number stands for "not given". `num_steps` is the config's.

    Args:
      config: reads `penalties` and `num_steps`.
      axis_name: the named axis over which the batch is split, for penalties that need the whole batch.

    Returns:
      The penalties, for `train_step`.

    Raises:
      ValueError: there is no such penalty, or it has no such argument.
    """
    known = public_functions(penalty_functions) | public_functions(class_penalties)
    given = {"num_steps": config.num_steps, "axis_name": axis_name}
    made = []
    for name, section in config.penalties.items():
        if name not in known:
            hint = did_you_mean(name, known)
            raise ValueError(f"config.penalties.{name}:{hint} ali_jax has {', '.join(sorted(known))}.")
        arguments = inspect.signature(known[name]).parameters.values()
        accepted = [a.name for a in arguments if a.kind is a.KEYWORD_ONLY and a.name != "input_gradients"]
        options = {k: None if isinstance(v, float) and v < 0 else v for k, v in section.items()}
        for option in options:
            if option not in accepted:
                raise ValueError(
                    f"config.penalties.{name}.{option}: its arguments are {', '.join(accepted)}."
                )
        options |= {option: value for option, value in given.items() if option in accepted}
        if any(_is_positive(options.get(weight)) for weight in WEIGHTS):
            made.append(partial(known[name], **options))
    return tuple(made)


def _is_positive(weight: Any) -> bool:
    """Whether a weight is positive; one that is traced, as in a population, counts as positive."""
    return isinstance(weight, jax.Array) or (weight or 0) > 0


def make_augment(config: Config) -> Augment | None:
    """Make what D sees instead of the pairs: first `config.augment`, then `config.instance_noise`.

    Both may change over `config.num_steps`. None where neither is on.
    """
    stages: list[Augment] = []
    if probabilities := configs.augmented(config):
        final, num_steps = config.augment.final, config.num_steps
        stages.append(partial(augment, probabilities=probabilities, final=final, num_steps=num_steps))
    if std := config.instance_noise:
        stages.append(partial(model.instance_noise, std=std, num_steps=config.num_steps))
    if len(stages) < 2:
        return stages[0] if stages else None

    def both(pairs: Pairs, key: Array, step: Array) -> Pairs:
        keys = jax.random.split(key, len(stages))
        for stage, key_stage in zip(stages, keys, strict=True):
            pairs = stage(pairs, key_stage, step)
        return pairs

    return both
