"""The state that a run starts from: made anew, from another run's networks, or from a checkpoint."""

import contextlib
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ali_jax.game.from_config import blank_data, prepare
from ali_jax.game.game import Game, abstract_state, member_of
from ali_jax.records import checkpoint, known_data, weights
from ali_jax.records.workdir import read_config
from ali_jax.types import ALI, TrainState, Variables


def initial_state(game: Game) -> TrainState:
    """Make the state before the first step, on all devices of the mesh."""
    first: dict[ALI, Any] = {}  # the initialisation, by networks: members may share them
    states = []
    for member in game.members or (game,):
        init = first.setdefault(member.ali, member.init)
        states.append(init(jax.random.PRNGKey(member.config.seed), member.first_rows))
    state = states[0]
    if game.members:
        state = jax.tree.map(lambda *leaves: np.stack(leaves), *map(jax.device_get, states))
        state = state._replace(step=states[0].step)
    if game.config.init_from:
        state = _with_trained_networks(game, state)
    return jax.device_put(state, game.state_sharding)


def trained_state(game: Game, workdir: pathlib.Path) -> tuple[TrainState, dict[int, str]]:
    """Read the newest sound checkpoint of a run; return it and what is wrong with newer ones, by step."""
    with contextlib.closing(checkpoint.open_manager(workdir / "checkpoints")) as manager:
        state, _, damaged = checkpoint.restore(manager, abstract_state(game))
    return state, damaged


def _with_trained_networks(game: Game, state: TrainState) -> TrainState:
    """Return the state with the networks `config.init_networks` of the run that `config.init_from` names.

    Their weights are the averaged ones where that run has them, also as the start of this run's average.
    """
    folder = pathlib.Path(game.config.init_from).expanduser()
    trained = _trained_variables(game, folder)
    params, stats = state.variables
    for role in game.config.init_networks:
        given, own = ([getattr(tree, role) for tree in variables] for variables in (trained, state.variables))
        if jax.tree.map(np.shape, given) != jax.tree.map(np.shape, own):
            raise ValueError(
                f"config.init_from is {folder}: its {role}, or its number of members, differs from this "
                "run's. Give both runs the same networks, or leave it out of config.init_networks."
            )
        params, stats = params._replace(**{role: given[0]}), stats._replace(**{role: given[1]})
    variables = Variables(params, stats)
    return state._replace(variables=variables, ema=None if state.ema is None else variables)


def trained_run(workdir: pathlib.Path) -> tuple[Game, TrainState]:
    """Return the game of the run in a folder, on one device and with blank data, and its newest state.

    Of an exported folder, the state has the weights that were exported and the step; key and optimiser state
    are only shapes.

    Raises:
      ValueError: the folder holds no run and no exported model.
      RunError: it has no checkpoint, or no weights, that can be read.
    """
    config, facts = read_config(workdir), known_data.read(workdir)
    with config.unlocked():
        config.evaluators = ()
    needs_data = config.dataset.conditional and not facts  # to know the size of y
    game = prepare(config, None if needs_data else blank_data(config, facts), trained=True)
    if weights.is_exported(workdir):
        return game, _exported_state(game, workdir)
    return game, trained_state(game, workdir)[0]


def _exported_state(game: Game, folder: pathlib.Path) -> TrainState:
    state = abstract_state(game)
    variables, step = weights.read(folder, state.variables)
    return state._replace(step=jnp.asarray(step), variables=variables, ema=None)


def _trained_variables(game: Game, folder: pathlib.Path) -> Variables:
    """Return the trained variables of the run in a folder: of all members, or of one for a single run."""
    other, trained = trained_run(folder)
    if other.members and not game.members:
        if not 0 <= game.config.init_member < len(other.members):
            raise ValueError(
                f"config.init_member is {game.config.init_member}; {folder} has the members 0 to "
                f"{len(other.members) - 1}."
            )
        trained = member_of(trained, game.config.init_member)
    return jax.device_get(trained.variables if trained.ema is None else trained.ema)
