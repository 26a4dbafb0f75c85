"""The game that a config describes: its data, devices, networks and losses.

`from_config.prepare` makes it.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ali_jax import data
from ali_jax.config import Config
from ali_jax.game import compile
from ali_jax.types import ALI, Augment, Batch, Loss, Penalty, PyTree, TrainState


class Game(NamedTuple):
    """All that a config describes."""

    config: Config
    dataset: data.Dataset
    mesh: Mesh
    ali: ALI
    tx: optax.GradientTransformation
    loss: Loss
    penalties: tuple[Penalty, ...]
    first_rows: Batch  # the rows that the networks are initialised from
    init: Any  # compiled: (key, first_rows) -> the state of a single run before its first step
    augment: Augment | None = None  # what D sees instead of the pairs
    labelled: np.ndarray | None = None  # rows of train that keep their labels, if only some do
    members: tuple["Game", ...] = ()  # of a population; its other fields are those of the first member

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of what every device holds whole: data, and the state of a single run."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def state_sharding(self) -> Any:
        """The shardings of the state, as a prefix of it; a population's members are divided among devices."""
        split = NamedSharding(self.mesh, PartitionSpec(*(compile.AXIS,) * bool(self.members)))
        return compile.MEMBERS._replace(
            step=self.replicated, key=split, variables=split, ema=split, opt_state=split
        )


def abstract_state(game: Game) -> TrainState:
    """Return the shapes, types and shardings of the state, without computing it."""
    one = game.init.eval_shape(jax.random.PRNGKey(0), game.first_rows)
    axes = (len(game.members),) if game.members else ()
    _, *split = game.state_sharding

    def shaped(tree: PyTree, axes: tuple[int, ...], sharding: NamedSharding) -> PyTree:
        return jax.tree.map(lambda s: jax.ShapeDtypeStruct(axes + s.shape, s.dtype, sharding=sharding), tree)

    parts = (shaped(tree, axes, sharding) for tree, sharding in zip(one[1:], split, strict=True))
    return TrainState(shaped(one.step, (), game.replicated), *parts)


def member_of(state: TrainState, k: int) -> TrainState:
    """Return the state of one member of a population."""
    return jax.tree.map(lambda leaf: leaf[k], state._replace(step=None))._replace(step=state.step)
