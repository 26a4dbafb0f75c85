"""A game's feed, its compiled calls, and the shortest loop that trains it."""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ali_jax import config as configs
from ali_jax import data
from ali_jax.game import compile, parts, population
from ali_jax.game.game import Game
from ali_jax.game.states import initial_state
from ali_jax.types import Array, TrainState


def make_feed(game: Game) -> data.Feed:
    """Make the feed of a run: of all rows, of labelled rows beside them, or of a population."""
    if game.members:
        return _population_feed(game)
    if game.labelled is None:
        return _feed_of(game, game.dataset.train)
    return data.SemiSupervisedFeed(
        _feed_of(game, data.Relabelled(game.dataset.train, hidden=True)),
        _feed_of(game, data.Relabelled(game.dataset.train, game.labelled)),
    )


def _population_feed(game: Game) -> data.Feed:
    feeds: list[Any] = []
    for member in game.members:
        drawn = data.depends_on_seed(member.config.dataset.name)
        shared = feeds[0].data if feeds and not drawn else None
        feeds.append(_feed_of(member, member.dataset.train, game.replicated, shared))
    return data.PopulationFeed(feeds)


def _feed_of(
    game: Game, split: data.Split, sharding: NamedSharding | None = None, resident: Any = None
) -> data.Feed:
    """Make the feed of a split.

    For a member of a population, `sharding` says where its rows lie, and `resident` are rows that lie there.
    """
    config = game.config
    spec = PartitionSpec(None, compile.AXIS) if config.parallel == "mesh" else PartitionSpec()
    return data.make_feed(
        split,
        batch_size=config.batch_size,
        seed=config.seed,
        divisor=game.dataset.divisor,
        dequantize=config.dataset.dequantize,
        flip=config.dataset.flip,
        kind=config.dataset.feed if sharding is None else "device",
        device_bytes=config.dataset.device_bytes,
        sharding=sharding or game.replicated,
        batch_sharding=NamedSharding(game.mesh, spec) if sharding is None else None,
        resident=resident,
    )


def make_call(game: Game, feed: data.Feed, steps: int) -> Any:
    """Make the compiled `(state, data) -> (state, metrics)` of `steps` steps; see `make_train_step`."""
    config = game.config
    return compile.make_train_step(
        game.ali,
        game.tx,
        game.loss,
        game.penalties,
        feed=feed,
        steps=steps,
        mesh=game.mesh,
        parallel=config.parallel,
        ema_decay=configs.average_decay(config),
        gradient=config.gradient,
        population=_population(game, feed) if game.members else None,
        augment=game.augment,
    )


def _population(game: Game, feed: Any) -> compile.Population:
    config, platform = game.config, compile.platform_of(game.mesh)

    def make(values: dict[str, Array]) -> tuple[Any, Any]:
        member = configs.with_values(config, values)
        return parts.make_optimizer(member, platform=platform), parts.make_penalties(member)

    values = {key: jnp.asarray(numbers) for key, numbers in population.of_steps(config).items()}
    return compile.Population(values, make, feed.axes)


def fit(game: Game) -> TrainState:
    """Train for `config.num_steps`, and return the last state on one device; nothing is written.

    `program.loop.run` does the same with records, checkpoints and evaluations.

    Raises:
      ValueError: a loss is not finite any more.
    """
    config, state, step, calls = game.config, initial_state(game), 0, {}
    with contextlib.closing(make_feed(game)) as feed:
        while step < config.num_steps:
            count = min(config.steps_per_call, config.num_steps - step)
            if count not in calls:
                calls[count] = make_call(game, feed, count)
            state, metrics = calls[count](state, feed.load(step, count))
            if (np.asarray(metrics["finite_steps"]) < count).all():
                raise ValueError(f"The training diverged between steps {step} and {step + count}.")
            step += count
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), state)
