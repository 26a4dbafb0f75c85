"""Many training steps as one call: wrappers around `train_step` that compose.

Four matters are kept apart, each with a wrapper of its own:

    one_step                  a batch from the feed, then `train_step`                    -> GameStep
    over_members              the same for every member of a population                   -> Step
    scan_steps, step_by_step  many steps, in one program or in a Python loop              -> Call
    on_mesh, on_pmap          how a function is compiled: devices, donation, options      -> Compile

`make_train_step` puts them together.
"""

import inspect
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ali_jax.data import Feed
from ali_jax.game import lazy
from ali_jax.gradients import Gradient, game_gradients
from ali_jax.networks import convolutions
from ali_jax.train import train_step
from ali_jax.types import ALI, Array, Augment, Batch, Loss, Metrics, Penalty, PyTree, TrainState

AXIS = "data"  # the mesh axis, or the named axis, over which a batch is split
MEMBERS = TrainState(None, 0, 0, 0, 0)  # pyright: ignore[reportArgumentType]  axes of a population's state

Update: TypeAlias = Callable[..., tuple[TrainState, Metrics]]  # (tx, penalties, state, batch)
GameStep: TypeAlias = Callable[..., tuple[TrainState, Metrics]]  # (tx, penalties, state, first, data)
# (state, first, data), where `first` is the step at which the call began: feeds count from it.
Step: TypeAlias = Callable[[TrainState, Array, PyTree], tuple[TrainState, Metrics]]
Call: TypeAlias = Callable[[TrainState, PyTree], tuple[TrainState, Metrics]]
Compile: TypeAlias = Callable[[Callable], Callable]  # of functions whose first argument is the state


class Population(NamedTuple):
    """The K members of a population: runs of one structure that are trained as one program."""

    values: dict[str, Array]  # [K] by config key: the numbers in which members differ
    make: Callable[[dict[str, Array]], tuple[optax.GradientTransformation, Sequence[Penalty]]]
    data_axes: PyTree  # of what the feed loads, for `jax.vmap`


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
    ema_decay: float | Callable[[Array], Array] = 0.0,
    gradient: Gradient = "auto",
    population: Population | None = None,
    augment: Augment | None = None,
    gradients_of: Callable[..., Any] = game_gradients,
) -> Call:
    """Make the compiled `(state, data) -> (state, metrics)` that takes `steps` steps.

    One dispatch scans all steps. Convolutions on a CPU are the exception and step one by one, since XLA:CPU
    runs the gradients of a convolution 16 to 27 times slower inside a loop. The state is donated, so that its
    buffers are reused.

    Args:
      ali, tx, loss, penalties: the game; see `game_gradients`.
      feed: makes each step's batch from `data` inside the program.
      steps: updates per call. If a penalty is taken every n-th step, n must divide it and the number of the
        step at which a call begins.
      mesh: the devices, along the axis "data"; None: the default device.
      parallel: `mesh`: one program over all devices, the batch sharded, the state replicated; `pmap`: the
        same step along a named axis, under `jax.pmap`; `ali` must have been built with that `axis_name`.
      ema_decay, gradient, augment, gradients_of: see `train_step`.
      population: members that are trained at once, with their own optimiser and penalties instead of `tx`
        and `penalties`. All leaves of the state but its step have a leading axis K, and so have the metrics.
        It is K that is divided among the devices of the mesh.

    Returns:
      The function. Its metrics are means over the steps that have them, with `finite_steps`: the number of
      steps before the first loss that was not finite.

    Raises:
      ValueError: a penalty is taken every n-th step, and n does not divide `steps`.
    """
    mesh = mesh or Mesh(jax.devices()[:1], (AXIS,))
    axis_name = AXIS if parallel == "pmap" else None
    options: dict[str, Any] = {"ema_decay": ema_decay, "axis_name": axis_name, "gradient": gradient}
    options |= {"augment": augment, "gradients_of": gradients_of}

    def update(
        tx: optax.GradientTransformation, penalties: Sequence[Penalty], state: TrainState, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        return train_step(ali, tx, loss, penalties, state, batch, **options)

    if parallel == "pmap":
        step = one_step(update, feed, shards=mesh.size)
    elif mesh.size > 1 and population is None:
        step = one_step(update, feed, sharding=NamedSharding(mesh, PartitionSpec(AXIS)))
    else:
        step = one_step(update, feed)

    def taking(index: int) -> Step:
        taken = partial(_with_due, step, index)
        return partial(taken, tx, penalties) if population is None else over_members(taken, population, mesh)

    if population is not None:
        _, penalties = population.make(jax.tree.map(lambda values: values[0], population.values))
    cycle = lazy.cycle(penalties, taking)
    if steps % len(cycle):
        raise ValueError(f"A penalty is taken every {len(cycle)} steps, which do not divide {steps} steps.")
    summarise = summary if population is None else jax.vmap(summary, in_axes=1)

    compiled = on_pmap(mesh) if parallel == "pmap" else on_mesh(mesh, members=population is not None)
    scanned = compiled(scan_steps(cycle, steps, summarise))
    if platform_of(mesh) != "cpu":
        return scanned
    singly = {step: compiled(step) for step in cycle}
    single = step_by_step([singly[step] for step in cycle], steps, summarise, wait=mesh.size > 1)

    def call(state: TrainState, data: PyTree) -> tuple[TrainState, Metrics]:
        slow_in_loops = has_kernels(state.variables.params, members=population is not None)
        return (single if slow_in_loops else scanned)(state, data)

    return call


def _with_due(
    step: GameStep,
    index: int,
    tx: optax.GradientTransformation,
    penalties: Sequence[Penalty],
    state: TrainState,
    first: Array,
    data: PyTree,
) -> tuple[TrainState, Metrics]:
    """Take a step with those of the penalties that are due at the step `index` of their cycle."""
    return step(tx, lazy.due(penalties, index), state, first, data)


def one_step(
    update: Update, feed: Feed, *, shards: int | None = None, sharding: NamedSharding | None = None
) -> GameStep:
    """Take a step's batch from the feed and update with it.

    Args:
      update: `(tx, penalties, state, batch) -> (state, metrics)`.
      feed: gives the batch of a step from what a call was given as `data`.
      shards: along the named axis `AXIS`, its size: each device takes its own share of the batch.
      sharding: how the batch is laid out over a mesh, in a program over all of its devices.
    """

    def step(
        tx: optax.GradientTransformation,
        penalties: Sequence[Penalty],
        state: TrainState,
        first: Array,
        data: PyTree,
    ) -> tuple[TrainState, Metrics]:
        shard = None if shards is None else (jax.lax.axis_index(AXIS), shards)
        with jax.named_scope("batch"):
            batch = feed.take(data, state.step, state.step - first, shard=shard)
        if sharding is not None:
            batch = jax.lax.with_sharding_constraint(batch, sharding)
        return update(tx, penalties, state, batch)

    return step


def over_members(step: GameStep, population: Population, mesh: Mesh) -> Step:
    """Take the step of every member, each with its own optimiser, penalties, state and data.

    `shard_map` divides the members among the devices of the mesh. So each device sees only its own, and can
    take them one by one, as the convolutions of a GPU do.
    """

    def member(
        values: dict[str, Array], state: TrainState, first: Array, data: PyTree
    ) -> tuple[TrainState, Metrics]:
        return step(*population.make(values), state, first, data)

    axes = (0, MEMBERS, None, population.data_axes)
    members = jax.vmap(member, axes, out_axes=(MEMBERS, 0))
    if mesh.size > 1:
        whole_or_split = jax.tree.map(
            lambda axis: PartitionSpec() if axis is None else PartitionSpec(AXIS),
            (axes, (MEMBERS, 0)),
            is_leaf=lambda axis: axis is None,
        )
        members = jax.shard_map(
            members, mesh=mesh, in_specs=whole_or_split[0], out_specs=whole_or_split[1], check_vma=False
        )
    return partial(members, population.values)


def scan_steps(cycle: Sequence[Step], steps: int, summarise: Callable[[Metrics], Metrics]) -> Call:
    """Take many steps in one program.

    Args:
      cycle: the steps that are repeated: one, or n where a penalty is taken every n-th step.
      steps: how many; a multiple of their number.
      summarise: of metrics with a leading axis of steps.
    """
    runs = [(step, len(list(same))) for step, same in itertools.groupby(cycle)]

    def call(state: TrainState, data: PyTree) -> tuple[TrainState, Metrics]:
        first = state.step

        def scan(step: Step, state: TrainState, count: int) -> tuple[TrainState, Metrics]:
            return jax.lax.scan(lambda s, _: step(s, first, data), state, length=count)

        def once(state: TrainState, _: None) -> tuple[TrainState, Metrics]:
            rows = []
            for step, count in runs:
                state, metrics = scan(step, state, count)
                rows.append(metrics)
            return state, joined(rows, jnp.concatenate)

        if len(cycle) == 1:
            state, metrics = scan(cycle[0], state, steps)
        else:
            state, metrics = jax.lax.scan(once, state, length=steps // len(cycle))
            metrics = jax.tree.map(lambda rows: rows.reshape(-1, *rows.shape[2:]), metrics)
        return state, summarise(metrics)

    return call


def step_by_step(
    cycle: Sequence[Step], steps: int, summarise: Callable[[Metrics], Metrics], *, wait: bool
) -> Call:
    """Take many steps, each a dispatch of a compiled one.

    Args:
      cycle, steps, summarise: as `scan_steps` takes them; the steps are compiled.
      wait: whether each step is waited for. Steps that are queued on several CPU devices can starve each
        other's collectives.
    """
    compiled_summary = jax.jit(lambda metrics: summarise(joined(metrics, jnp.stack)))

    def call(state: TrainState, data: PyTree) -> tuple[TrainState, Metrics]:
        first, metrics = jnp.copy(state.step), []
        for i in range(steps):
            state, of_step = cycle[i % len(cycle)](state, first, data)
            metrics.append(of_step)
            if wait:
                jax.block_until_ready(of_step)
        return state, compiled_summary(metrics)

    return call


def joined(rows: Sequence[Metrics], join: Callable[[Sequence[Array]], Array]) -> Metrics:
    """Join metrics by name, each from those rows that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: join([row[name] for row in rows if name in row]) for name in names}


def on_mesh(mesh: Mesh, *, members: bool = False) -> Compile:
    """Compile one program over the devices of a mesh; with `members`, these are divided among them."""
    whole, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), (AXIS,)))
    members_split: Any = TrainState(whole, split, split, split, split), split  # pyright: ignore
    return partial(
        jax.jit,
        donate_argnums=0,
        out_shardings=(members_split if members else whole) if mesh.size > 1 else None,
        compiler_options=convolutions.compiler_options(platform_of(mesh)),
    )


def on_pmap(mesh: Mesh) -> Compile:
    """Compile for `jax.pmap` over the devices of a mesh, along the named axis `AXIS`.

    State and data are whole on every device. A first argument, of one number per device, is what is mapped.
    """

    def compiled(function: Callable) -> Callable:
        arguments = len(inspect.signature(function).parameters)
        mapped = jax.pmap(
            lambda _, *args: function(*args),
            AXIS,
            in_axes=(0, *(None,) * arguments),
            out_axes=None,
            donate_argnums=1,
            devices=list(mesh.devices.flat),
        )
        return partial(mapped, np.arange(mesh.size))

    return compiled


def platform_of(mesh: Mesh) -> str:
    """Return the platform of a mesh's devices, for which its programs are compiled."""
    return mesh.devices.flat[0].platform


def summary(metrics: Metrics) -> Metrics:
    """Average metrics of shape [steps], and count the steps before the first loss that is not finite.

    A metric has those steps that took its penalty.
    """
    finite = jnp.isfinite(metrics["loss/generator"]) & jnp.isfinite(metrics["loss/discriminator"])
    means = {name: jnp.mean(values) for name, values in metrics.items()}
    return {**means, "finite_steps": jnp.sum(jnp.cumprod(finite))}


def has_kernels(params: PyTree, *, members: bool = False) -> bool:
    """Whether any parameter is the kernel of a convolution: of rank 4, and larger than 1x1.

    `networks.has_convolutions` answers the same of a config; here networks may be anybody's.

    Args:
      params: of the networks.
      members: whether leaves have a leading axis, of a population.
    """
    shapes = [leaf.shape[int(members) :] for leaf in jax.tree.leaves(params)]
    return any(len(shape) == 4 and shape[0] > 1 for shape in shapes)
