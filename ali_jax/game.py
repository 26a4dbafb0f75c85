"""The game that a config describes: its data, devices, networks and losses, made and checked together.

Nothing here writes files.
"""

import contextlib
import functools
import inspect
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ali_jax import config as configs
from ali_jax import data, losses, networks, train
from ali_jax import evaluate as evaluators
from ali_jax.config import Config
from ali_jax.registry import public_functions
from ali_jax.types import ALI, Array, Batch, Loss, Penalty, Report, TrainState, Variables

INIT_ROWS = 500  # training rows that the networks are initialised from, as in the authors' code


class Game(NamedTuple):
    """All that a config describes."""

    config: Config
    dataset: data.Dataset
    mesh: Mesh
    ali: ALI
    tx: optax.GradientTransformation
    loss: Loss
    penalties: tuple[Penalty, ...]
    first_rows: Batch  # what the networks are initialised from

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of the state: whole on every device."""
        return NamedSharding(self.mesh, PartitionSpec())


def check_names(config: Config) -> None:
    """Raise a ValueError for the first loss or evaluator that does not exist."""
    named_loss(config.loss)
    for name in config.evaluators:
        evaluators.named(name)


def prepare(config: Config, dataset: data.Dataset | None = None) -> Game:
    """Load the data, make the networks and check that the parts fit together; nothing is written.

    Args:
      config: what is described.
      dataset: instead of the one that the config names.

    Raises:
      ValueError: a value that is not allowed, data that are absent or do not fit; the message says which.
    """
    configs.validate(config)
    check_names(config)
    dataset = load_data(config) if dataset is None else dataset
    mesh = make_mesh(config.batch_size, jax.devices())
    axis_name = train.AXIS if config.parallel == "pmap" else None
    build = functools.partial(
        networks.build, config, x_shape=dataset.train.shape, platform=mesh.devices.flat[0].platform
    )
    ali = build(axis_name=axis_name)
    for name in config.evaluators:
        evaluators.check_applicable(name, dataset, ali)
    game = Game(
        config,
        dataset,
        mesh,
        ali,
        train.make_optimizer(config),
        named_loss(config.loss),
        train.make_penalties(config),
        data.scaled(dataset.train.rows(np.arange(min(INIT_ROWS, len(dataset.train)))), dataset.scale),
    )
    step = functools.partial(
        train.train_step, build(), game.tx, game.loss, game.penalties, gradient=config.gradient
    )
    jax.eval_shape(step, abstract_state(game), game.first_rows)
    return game


def load_data(config: Config) -> data.Dataset:
    """Load the data set that a config names; a DataError says what is wrong with it."""
    source = config.dataset
    return data.load(
        source.name,
        path=source.path,
        directory=source.directory,
        train_split=source.train_split,
        test_split=source.test_split,
        seed=config.seed,
        scale=source.scale,
        conditional=source.conditional,
    )


def blank_data(config: Config) -> data.Dataset:
    """Make black images of the config's shape, for what needs a model but no data."""
    split = data.ArraySplit(np.zeros((2, *config.dataset.shape), np.uint8))
    return data.Dataset(config.dataset.name, split, split, 255.0)


def make_mesh(batch_size: int, devices: Sequence[Any]) -> Mesh:
    """Make the mesh with the axis "data": of as many devices as divide the batch.

    Raises:
      ValueError: the devices are those of several processes, and do not divide the batch.
    """
    count = len(devices)
    if batch_size % count and len({d.process_index for d in devices}) > 1:
        below, above = batch_size // count * count, (batch_size // count + 1) * count
        sizes = f"{below} or {above}" if below else f"{above}"
        raise ValueError(
            f"config.batch_size is {batch_size}, no multiple of the {count} devices: set it to {sizes}."
        )
    used = max(n for n in range(1, count + 1) if batch_size % n == 0)
    if used < count:
        print(f"{batch_size} images a step over {count} devices: {used} are used.", file=sys.stderr)
    return Mesh(np.asarray(devices[:used]), (train.AXIS,))


def initial_state(game: Game) -> TrainState:
    """Make the state before the first step, on all devices of the mesh."""
    init = jax.jit(functools.partial(_init, game))
    return jax.device_put(init(jax.random.PRNGKey(game.config.seed), game.first_rows), game.replicated)


def abstract_state(game: Game) -> TrainState:
    """Return the shapes, types and shardings of a state."""
    shapes = jax.eval_shape(functools.partial(_init, game), jax.random.PRNGKey(0), game.first_rows)
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=game.replicated), shapes)


def fit(game: Game) -> TrainState:
    """Train for all of `config.num_steps`, and return the last state on one device; nothing is written.

    What `loop.run` does with records, checkpoints and evaluations around it.

    Raises:
      ValueError: a loss stopped being a number.
    """
    config, state, step, calls = game.config, initial_state(game), 0, {}
    feed = data.make_feed(
        game.dataset.train,
        batch_size=config.batch_size,
        seed=config.seed,
        scale=game.dataset.scale,
        dequantize=config.dataset.dequantize,
        kind=config.dataset.feed,
        device_bytes=config.dataset.device_bytes,
        sharding=game.replicated,
    )
    with contextlib.closing(feed):
        while step < config.num_steps:
            count = min(config.steps_per_call, config.num_steps - step)
            if count not in calls:
                calls[count] = train.make_train_step(
                    game.ali,
                    game.tx,
                    game.loss,
                    game.penalties,
                    feed=feed,
                    steps=count,
                    mesh=game.mesh,
                    parallel=config.parallel,
                    ema_decay=config.ema_decay,
                    gradient=config.gradient,
                )
            state, metrics = calls[count](state, feed.load(step, count))
            if int(metrics["finite_steps"]) < count:
                raise ValueError(f"The training diverged between steps {step} and {step + count}.")
            step += count
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), state)


def named_loss(name: str) -> Loss:
    """Return the function of `ali_jax.losses` of that name; an unknown name raises a ValueError."""
    known = public_functions(losses)
    if name not in known:
        raise ValueError(f"config.loss is {name!r}; ali_jax.losses has {', '.join(known)}.")
    return known[name]


def evaluate(game: Game, state: TrainState, name: str, *, raw_beside: bool = False) -> Report:
    """Apply an evaluator to a state: to the averaged parameters, where there are any.

    What it draws depends on the run's seed alone, so that evaluations can be compared.

    Args:
      game, state: what is evaluated.
      name: of the evaluator.
      raw_beside: whether the numbers of the raw parameters stand beside the averaged ones', named `raw/`;
        controls, which are the same, do not.
    """
    if state.ema is None:
        return _evaluate(game, state.variables, name)
    report = _evaluate(game, state.ema, name)
    if not (raw_beside and report.scalars):
        return report
    numbers = _evaluate(game, state.variables, name).scalars
    raw = {f"raw/{key}": value for key, value in numbers.items() if not evaluators.is_control(key)}
    unlike = evaluators.disagreements(report.scalars, numbers)
    return report._replace(scalars={**report.scalars, **raw, **unlike})


def _evaluate(game: Game, variables: Variables, name: str) -> Report:
    variables = jax.tree.map(lambda leaf: leaf.addressable_data(0), variables)
    key = jax.random.fold_in(jax.random.PRNGKey(game.config.seed), 2**31 - 2)
    evaluator = evaluators.named(name)
    accepted = inspect.signature(evaluator).parameters
    options = {name: value for name, value in game.config.evaluation.to_dict().items() if name in accepted}
    return evaluator(game.ali, variables, key, game.dataset, **options)


def _init(game: Game, key: Array, batch: Batch) -> TrainState:
    return train.init_state(game.ali, game.tx, key, batch, ema=game.config.ema_decay > 0)
