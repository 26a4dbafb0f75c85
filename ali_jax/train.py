"""Training: the game's gradients, one simultaneous update of both players, many updates per dispatch.

`game_gradients` is the paper's Algorithm 1, `train_step` the update, `make_train_step` what a loop calls.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ali_jax import losses as loss_functions
from ali_jax import model
from ali_jax import penalties as penalty_functions
from ali_jax.config import Config
from ali_jax.names import public_functions
from ali_jax.networks import convolutions
from ali_jax.types import (
    ALI,
    Array,
    Augment,
    Batch,
    Logits,
    Loss,
    Losses,
    Metrics,
    Networks,
    Noise,
    Pairs,
    Penalty,
    PyTree,
    TrainState,
    Variables,
)

Gradient = Literal["auto", "one_pass", "two_pullbacks"]
AXIS = "data"  # the mesh axis, or the named axis, over which a batch is split

# The smallest weight that the one pass pulls back: far below Adam's epsilon, far above float32's underflow.
SMALLEST = 1e-20

WEIGHTS = ("gamma", "gamma_z", "weight")  # the arguments of penalties of which one is positive where it is on


class Aux(NamedTuple):
    """What the gradients leave behind."""

    losses: Losses
    batch_stats: Networks[PyTree]
    metrics: Metrics


def game_gradients(
    ali: ALI,
    variables: Variables,
    loss: Loss,
    penalties: Sequence[Penalty],
    batch: Batch,
    noise: Noise,
    step: Array | int = 0,
    *,
    gradient: Gradient = "auto",
    augment: Augment | None = None,
) -> tuple[Networks[PyTree], Aux]:
    """Return the vector field of the game: each network's gradient of its own player's loss.

    Both players' gradients are taken at the same point, from one evaluation of D on the joined pairs, with
    the same noise and dropout masks (Algorithm 1 of the paper):

        pairs  = (x, z_hat), (x_tilde, z)        from encoder and decoder
        logits = D(pairs)
        encoder, decoder: d losses.generator / d (their parameters), through D and the pairs
        discriminator:    d losses.discriminator / d (its parameters)

    Args:
      ali: the networks.
      variables: parameters and batch statistics.
      loss: `(logits, batch) -> (Losses, metrics)`.
      penalties: functions `(ali, variables, pairs, key, step) -> (Losses, metrics)`, added to the losses.
      batch: data.
      noise: all randomness, from `model.draw_noise`.
      step: for penalties that are annealed.
      gradient: how the two gradients are pulled back through D. `one_pass` needs a D whose logits, one per
        pair, do not depend on other pairs; `auto` takes it where D declares so (`coupled = False`).
      augment: what D is shown instead of the pairs, such as `model.instance_noise`; it must change each row
        by itself. Penalties get the pairs as they are.

    Returns:
      The gradients, and the losses, batch statistics and metrics that were found on the way.

    Raises:
      ValueError: `one_pass` for a D to which it does not apply.
    """
    params, batch_stats = variables

    def generate(encoder: PyTree, decoder: PyTree) -> tuple[Pairs, tuple[PyTree, PyTree]]:
        moved = params._replace(encoder=encoder, decoder=decoder)
        return model.generate(ali, moved, batch_stats, batch, noise)

    def judge(discriminator: PyTree, pairs: Pairs) -> tuple[Logits, PyTree]:
        if augment is not None:
            key = jax.random.fold_in(noise.key_discriminator, 2**31 - 1)
            pairs = augment(pairs, key, jnp.asarray(step))
        return model.judge(ali, discriminator, batch_stats.discriminator, pairs, noise.key_discriminator)

    pairs, pull_generate, (stats_e, stats_d) = jax.vjp(generate, params.encoder, params.decoder, has_aux=True)
    logits, pull_judge, stats = jax.vjp(judge, params.discriminator, pairs, has_aux=True)
    losses, pull_loss, metrics = jax.vjp(lambda s: loss(s, batch), logits, has_aux=True)

    one, zero = jnp.ones_like(losses.generator), jnp.zeros_like(losses.generator)
    (of_generator,) = pull_loss(Losses(one, zero))
    (of_discriminator,) = pull_loss(Losses(zero, one))
    pull = _one_pass if _takes_one_pass(ali, logits, gradient) else _two_pullbacks
    discriminator, of_pairs = pull(pull_judge, of_generator, of_discriminator)

    direct = []  # what penalties give parameters without going through D or the pairs
    for penalty in penalties:
        added, pull_penalty, more = jax.vjp(
            lambda v, p, penalty=penalty: penalty(
                ali, variables._replace(params=v), p, noise.key_penalties, jnp.asarray(step)
            ),
            params,
            pairs,
            has_aux=True,
        )
        by_params, by_pairs = pull_penalty(Losses(one, zero))
        of_pairs = jax.tree.map(jnp.add, of_pairs, by_pairs)
        direct.append(by_params._replace(discriminator=pull_penalty(Losses(zero, one))[0].discriminator))
        losses, metrics = Losses(*map(jnp.add, losses, added)), {**metrics, **more}

    encoder, decoder = pull_generate(of_pairs)
    grads = Networks(encoder, decoder, discriminator)
    grads = jax.tree.map(lambda *terms: sum(terms), grads, *direct)
    return grads, Aux(losses, Networks(stats_e, stats_d, stats), metrics)


def _two_pullbacks(pull: Callable, of_generator: Logits, of_discriminator: Logits) -> tuple[PyTree, Pairs]:
    """Pull both players' cotangents of the logits back through D: D's gradient, the pairs' cotangent."""
    return pull(of_discriminator)[0], pull(of_generator)[1]


def _one_pass(pull: Callable, of_generator: Logits, of_discriminator: Logits) -> tuple[PyTree, Pairs]:
    """Do the same with one pullback, exact where each logit depends on its own pair only.

    Then the pairs' cotangent is b_i J_i for cotangents b of the logits, so that one pullback of D's own a
    serves both: D's gradient as it is, the pairs' after scaling by b_i / a_i. Where |a_i| would underflow
    (a discriminator that is sure of itself) SMALLEST is pulled back instead: D's gradient is off by less than
    SMALLEST |ds_i / dtheta|, the pairs' stays exact. Under a hinge a_i is zero for every pair that D tells
    apart by its margin; where b_i is zero too nothing is replaced. docs/performance.md has the derivation.

    A discriminator that packs m pairs has a logit for every m rows: their cotangents share its factor.
    """

    def safe(a: Array, b: Array) -> Array:
        return jnp.where(b == 0, a, jnp.where(a < 0, -1, 1) * jnp.maximum(jnp.abs(a), SMALLEST))

    pulled = jax.tree.map(safe, of_discriminator, of_generator)
    ratio = jax.tree.map(lambda b, c: b / jnp.where(b == 0, 1, c), of_generator, pulled)
    discriminator, of_pairs = pull(pulled)

    def scaled(cotangent: Array, by: Array) -> Array:
        by = jnp.repeat(by, len(cotangent) // len(by))
        return cotangent * by.reshape(-1, *(1,) * (cotangent.ndim - 1)).astype(cotangent.dtype)

    return discriminator, of_pairs._replace(
        x=scaled(of_pairs.x, ratio.q),
        z_hat=scaled(of_pairs.z_hat, ratio.q),
        x_tilde=scaled(of_pairs.x_tilde, ratio.p),
        z=scaled(of_pairs.z, ratio.p),
    )


def _takes_one_pass(ali: ALI, logits: Logits, gradient: Gradient) -> bool:
    """Decide between one pass and two pullbacks; what D does not declare counts as coupled."""
    if gradient not in ("auto", "one_pass", "two_pullbacks"):
        raise ValueError(f"gradient is {gradient!r}; it must be auto, one_pass or two_pullbacks.")
    exact = not model.couples(ali) and logits.q.ndim == 1
    if gradient == "one_pass" and not exact:
        raise ValueError(
            "gradient='one_pass' needs a discriminator that gives one logit per pair and declares "
            "coupled = False (no batch norm or other coupling between examples): use two_pullbacks, or auto."
        )
    return exact and gradient != "two_pullbacks"


def make_optimizer(config: Config, *, platform: str = "gpu") -> optax.GradientTransformation:
    """Make one Adam per player, over trees of `Networks`: encoder and decoder are one player.

    Args:
      config: reads `optimizer`, `num_steps`, `lowering`, and in `frozen` the names of networks that are not
        updated.
      platform: what the program will be compiled for, as in `networks.build`; it changes the order in which
        Adam goes through memory, not what it computes.

    Returns:
      The transformation, for `init_state` and `train_step`.
    """
    on_cpu = convolutions.lowering_for(platform, config.lowering) == "cpu"
    scale_by_adam = _scale_by_adam_on_cpu if on_cpu else optax.scale_by_adam
    players: dict[Any, Any] = {"frozen": optax.set_to_zero()}
    for player in ("generator", "discriminator"):
        adam = config.optimizer[player]
        rate = _schedule(adam.learning_rate, config)
        scale = scale_by_adam(b1=adam.b1, b2=adam.b2, eps=adam.eps)
        players[player] = optax.chain(scale, optax.scale_by_learning_rate(rate))
    labels = Networks("generator", "generator", "discriminator")
    labels = Networks(
        *("frozen" if n in config.frozen else label for n, label in zip(labels._fields, labels, strict=True))
    )
    return optax.multi_transform(players, labels)


def _scale_by_adam_on_cpu(b1: Any, b2: Any, eps: Any) -> optax.GradientTransformation:
    """Return `optax.scale_by_adam` in an order that XLA:CPU follows without copies.

    Left to itself it computes the moments twice, to store them and within the new parameters, and copies what
    is overwritten before its last reader is done. Here all gradients of a player come first, then the
    moments, then what is made of them.
    """
    adam = optax.scale_by_adam(b1, b2, eps)
    cut = partial(convolutions.cut, lowering="cpu")

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, Any]:
        _, state = adam.update(cut(updates), state, params)  # what it returns first is found from the moments
        state = state._replace(mu=jax.tree.map(cut, state.mu), nu=jax.tree.map(cut, state.nu))
        mu = optax.tree.bias_correction(state.mu, b1, state.count)
        nu = optax.tree.bias_correction(state.nu, b2, state.count)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu), state

    return optax.GradientTransformation(adam.init, update)


def _schedule(rate: float, config: Config) -> float | optax.Schedule:
    """Return a constant, or: constant for a fraction of the steps, then cosine to a fraction of the rate."""
    fraction = config.optimizer.constant_fraction
    if fraction >= 1:
        return rate
    constant = int(fraction * config.num_steps)
    decay = optax.cosine_decay_schedule(
        rate, max(config.num_steps - constant, 1), config.optimizer.final_fraction
    )
    return optax.join_schedules([optax.constant_schedule(rate), decay], [constant])


def make_loss(config: Config, *, axis_name: str | None = None) -> Loss:
    """Make the loss that `config.loss` names, with those of its options filled in that it takes.

    Raises:
      ValueError: there is no such loss.
    """
    known = public_functions(loss_functions)
    if config.loss not in known:
        raise ValueError(f"config.loss is {config.loss!r}; ali_jax.losses has {', '.join(known)}.")
    accepted = inspect.signature(known[config.loss]).parameters
    options = {"weight": config.labelled_weight, "axis_name": axis_name}
    return partial(known[config.loss], **{k: v for k, v in options.items() if k in accepted})


def make_penalties(config: Config) -> tuple[Penalty, ...]:
    """Make the penalties of `config.penalties` that have a positive weight, with their arguments filled in.

    A negative number stands for "not given". `num_steps` is the config's.

    Args:
      config: reads `penalties` and `num_steps`.

    Returns:
      The penalties, for `train_step`.

    Raises:
      ValueError: there is no such penalty, or it has no such argument.
    """
    known = public_functions(penalty_functions)
    made = []
    for name, section in config.penalties.items():
        if name not in known:
            raise ValueError(f"config.penalties.{name}: ali_jax.penalties has {', '.join(known)}.")
        accepted = [
            p.name for p in inspect.signature(known[name]).parameters.values() if p.kind is p.KEYWORD_ONLY
        ]
        options = {k: None if isinstance(v, float) and v < 0 else v for k, v in section.items()}
        for option in options:
            if option not in accepted:
                raise ValueError(
                    f"config.penalties.{name}.{option}: its arguments are {', '.join(accepted)}."
                )
        if "num_steps" in accepted:
            options["num_steps"] = config.num_steps
        if any(_is_positive(options.get(weight)) for weight in WEIGHTS):
            made.append(partial(known[name], **options))
    return tuple(made)


def _is_positive(weight: Any) -> bool:
    """Tell whether a weight is; one that is traced, as in a population, is taken to be."""
    return isinstance(weight, jax.Array) or (weight or 0) > 0


def make_augment(config: Config) -> Augment | None:
    """Make the instance noise of `config.instance_noise`, annealed over `config.num_steps`; None for 0."""
    if not config.instance_noise:
        return None
    return partial(model.instance_noise, std=config.instance_noise, num_steps=config.num_steps)


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
    ema_decay: float = 0.0,
    axis_name: str | None = None,
    gradient: Gradient = "auto",
    augment: Augment | None = None,
    noise: Noise | None = None,
) -> tuple[TrainState, Metrics]:
    """Update both players at once from one minibatch.

    Args:
      ali, tx, loss, penalties: the game; see `game_gradients`.
      state: from `init_state`.
      batch: this step's data, or in a named axis this device's share of them.
      ema_decay: of the averaged variables, where the state has them: min(ema_decay, (1 + t) / (10 + t)).
      axis_name: the named axis to average over, under `jax.pmap`, `jax.shard_map(..., check_vma=False)` or
        `jax.vmap`; None in a single program.
      gradient, augment: see `game_gradients`.
      noise: this step's noise; None: drawn from the state's key, the step and the device's index.

    Returns:
      The new state, and metrics: `loss/generator`, `loss/discriminator` and those of loss and penalties.
    """
    if noise is None:
        key = jax.random.fold_in(state.key, state.step)
        if axis_name is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
        noise = model.draw_noise(ali, key, batch.x.shape[0])
    grads, aux = game_gradients(
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

    updates, opt_state = tx.update(grads, state.opt_state, state.variables.params)
    params: Any = optax.apply_updates(state.variables.params, updates)
    variables = Variables(params, aux.batch_stats)
    step = state.step + 1
    ema: Any = state.ema
    if ema is not None:
        decay = jnp.minimum(ema_decay, (1 + step) / (10 + step))
        ema = optax.incremental_update(variables, ema, 1 - decay)
    return TrainState(step, state.key, variables, ema, opt_state), metrics


def _check_axis(ali: ALI, batch_stats: Networks[PyTree], axis_name: str) -> None:
    """Refuse batch statistics that would differ between devices: their gradients would be wrong.

    Those of a module that declares `coupled = False` come from its parameters, as spectral norm's do.
    """
    for role, module, stats in zip(Networks._fields, ali, batch_stats, strict=True):
        found = getattr(module, "axis_name", None)
        if jax.tree.leaves(stats) and getattr(module, "coupled", True) and found != axis_name:
            raise ValueError(
                f"The {role} has batch statistics, which must be synchronised over {axis_name!r}, but "
                f"its axis_name is {found!r}: make the networks with build(config, axis_name={axis_name!r})."
            )


MEMBERS = TrainState(None, 0, 0, 0, 0)  # pyright: ignore[reportArgumentType]  axes of a population's state


class Population(NamedTuple):
    """What differs between the K members of a population: runs of one structure, trained as one program."""

    values: dict[str, Array]  # [K] by config key
    make: Callable[[dict[str, Array]], tuple[optax.GradientTransformation, Sequence[Penalty]]]
    data_axes: PyTree  # of what the feed loads, for `jax.vmap`


class Feed(Protocol):
    """Where `make_train_step` gets its batches from; ali_jax.data has one on the device and one streaming."""

    def take(self, data: PyTree, step: Array, i: Array, *, shard: tuple[Array, int] | None = None) -> Batch:
        """Return the batch of a step (the i-th of a call) from what the call was given; pure, traced."""
        ...


def make_train_step(
    ali: ALI,
    tx: optax.GradientTransformation,
    loss: Loss,
    penalties: Sequence[Penalty] = (),
    *,
    feed: Feed,
    steps: int,
    mesh: Mesh | None = None,
    parallel: Literal["mesh", "pmap"] = "mesh",
    ema_decay: float = 0.0,
    gradient: Gradient = "auto",
    population: Population | None = None,
    augment: Augment | None = None,
) -> Callable[[TrainState, PyTree], tuple[TrainState, Metrics]]:
    """Make the compiled `(state, data) -> (state, metrics)` that takes `steps` steps.

    One dispatch scans all steps, except that convolutions on a CPU step singly: XLA:CPU runs the gradients of
    a convolution 16 to 27 times slower inside a loop. The state is donated, so that its buffers are reused.

    Args:
      ali, tx, loss, penalties: the game; see `game_gradients`.
      feed: makes each step's batch from `data` inside the program.
      steps: updates per call.
      mesh: the devices, along the axis "data"; None: the default device.
      parallel: `mesh`: one program over all devices, the batch sharded, the state replicated; `pmap`: the
        same step along a named axis, under `jax.pmap`; `ali` must have been built with that `axis_name`.
      ema_decay, gradient, augment: see `train_step`.
      population: members that are trained at once, with their own optimiser and penalties instead of `tx`
        and `penalties`. All leaves of the state but its step have a leading axis K, and so have the metrics;
        it is K that is divided among the devices of the mesh.

    Returns:
      The function. Its metrics are means over the steps, with `finite_steps`: how many steps went by before
      the first loss that was not finite.
    """
    mesh = mesh or Mesh(jax.devices()[:1], (AXIS,))
    platform = mesh.devices.flat[0].platform
    axis_name = AXIS if parallel == "pmap" else None

    def one_member(
        tx: optax.GradientTransformation,
        penalties: Sequence[Penalty],
        state: TrainState,
        first: Array,
        data: PyTree,
    ) -> tuple[TrainState, Metrics]:
        shard = None if axis_name is None else (jax.lax.axis_index(AXIS), mesh.size)
        batch = feed.take(data, state.step, state.step - first, shard=shard)
        if axis_name is None and mesh.size > 1 and population is None:
            batch = jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, PartitionSpec(AXIS)))
        return train_step(
            ali,
            tx,
            loss,
            penalties,
            state,
            batch,
            ema_decay=ema_decay,
            axis_name=axis_name,
            gradient=gradient,
            augment=augment,
        )

    def one(state: TrainState, first: Array, data: PyTree) -> tuple[TrainState, Metrics]:
        of_members = population
        if of_members is None:
            return one_member(tx, penalties, state, first, data)

        def member(values: dict[str, Array], state: TrainState, data: PyTree) -> tuple[TrainState, Metrics]:
            return one_member(*of_members.make(values), state, first, data)

        axes = (0, MEMBERS, of_members.data_axes)
        return jax.vmap(member, axes, out_axes=(MEMBERS, 0))(of_members.values, state, data)

    summarise = _summarise if population is None else jax.vmap(_summarise, in_axes=1)

    def all_at_once(state: TrainState, data: PyTree) -> tuple[TrainState, Metrics]:
        first = state.step
        state, metrics = jax.lax.scan(lambda s, _: one(s, first, data), state, length=steps)
        return state, summarise(metrics)

    def singly(state: TrainState, data: PyTree) -> tuple[TrainState, Metrics]:
        first, metrics = jnp.copy(state.step), []
        for _ in range(steps):
            state, more = compiled_one(state, first, data)
            metrics.append(more)
            if mesh.size > 1:  # steps queued on several CPU devices can starve each other's collectives
                jax.block_until_ready(more)
        return state, compiled_summary(metrics)

    def compiled_for_devices(function: Callable) -> Callable:
        if parallel == "pmap":
            mapped = jax.pmap(
                lambda _, *args: function(*args),
                AXIS,
                in_axes=(0, *(None,) * len(inspect.signature(function).parameters)),
                out_axes=None,
                donate_argnums=1,
                devices=list(mesh.devices.flat),
            )
            return partial(mapped, np.arange(mesh.size))
        return jax.jit(
            function,
            donate_argnums=0,
            out_shardings=(split_state if population else replicated) if mesh.size > 1 else None,
            compiler_options=convolutions.compiler_options(platform),
        )

    replicated, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), (AXIS,)))
    split_state: Any = TrainState(replicated, split, split, split, split), split  # pyright: ignore
    compiled_one, compiled = compiled_for_devices(one), compiled_for_devices(all_at_once)
    compiled_summary = jax.jit(lambda m: summarise(jax.tree.map(lambda *v: jnp.stack(v), *m)))

    def call(state: TrainState, data: PyTree) -> tuple[TrainState, Metrics]:
        loops_slowly = platform == "cpu" and has_convolutions(state.variables.params, population is not None)
        return (singly if loops_slowly else compiled)(state, data)

    return call


def has_convolutions(params: PyTree, members: bool = False) -> bool:
    """Tell whether any parameter, of the members of a population, is a kernel: of rank 4, larger than 1x1."""
    shapes = [leaf.shape[int(members) :] for leaf in jax.tree.leaves(params)]
    return any(len(shape) == 4 and shape[0] > 1 for shape in shapes)


def _summarise(metrics: Metrics) -> Metrics:
    """Average metrics of shape [steps], and count the steps before the first loss that is not finite."""
    finite = jnp.isfinite(metrics["loss/generator"]) & jnp.isfinite(metrics["loss/discriminator"])
    means = {k: jnp.mean(v) for k, v in metrics.items()}
    return {**means, "finite_steps": jnp.sum(jnp.cumprod(finite))}
