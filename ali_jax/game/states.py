"""The state that a run starts from: made anew, from another run's decoder, or from a checkpoint."""

import contextlib
import functools
import pathlib
from typing import Any

import jax
import numpy as np

from ali_jax.game.from_config import prepare
from ali_jax.game.game import Game, abstract_state, fresh_state, member_of
from ali_jax.records import checkpoint
from ali_jax.records.workdir import read_config
from ali_jax.types import ALI, TrainState, Variables


def initial_state(game: Game) -> TrainState:
    """Make the state before the first step, on all devices of the mesh."""
    first: dict[ALI, Any] = {}  # the compiled initialisation, by networks: members may share them
    states = []
    for member in game.members or (game,):
        init = first.setdefault(member.ali, jax.jit(functools.partial(fresh_state, member)))
        states.append(init(jax.random.PRNGKey(member.config.seed), member.first_rows))
    state = states[0]
    if game.members:
        state = jax.tree.map(lambda *leaves: np.stack(leaves), *map(jax.device_get, states))
        state = state._replace(step=states[0].step)
    if game.config.init_from:
        state = _with_decoder_of(game, state)
    return jax.device_put(state, game.state_sharding)


def trained_state(game: Game, workdir: pathlib.Path) -> tuple[TrainState, dict[int, str]]:
    """Read the newest sound checkpoint of a run; return it and what is wrong with newer ones, by step."""
    with contextlib.closing(checkpoint.open_manager(workdir / "checkpoints")) as manager:
        state, _, damaged = checkpoint.restore(manager, abstract_state(game))
    return state, damaged


def _with_decoder_of(game: Game, state: TrainState) -> TrainState:
    """Return the state with the trained decoder of the run that `config.init_from` names."""
    folder = pathlib.Path(game.config.init_from).expanduser()
    other = prepare(read_config(folder))
    trained, _ = trained_state(other, folder)
    if other.members and not game.members:
        if not 0 <= game.config.init_member < len(other.members):
            raise ValueError(
                f"config.init_member is {game.config.init_member}; {folder} has the members 0 to "
                f"{len(other.members) - 1}."
            )
        trained = member_of(trained, game.config.init_member)
    params, stats = jax.device_get(trained.variables if trained.ema is None else trained.ema)
    shapes = [
        jax.tree.map(lambda leaf: leaf.shape, tree.decoder)
        for tree in (params, state.variables.params, stats, state.variables.batch_stats)
    ]
    if shapes[0] != shapes[1] or shapes[2] != shapes[3]:
        raise ValueError(
            f"config.init_from is {folder}: its decoder, or its number of members, differs from this run's."
        )
    variables = Variables(
        state.variables.params._replace(decoder=params.decoder),
        state.variables.batch_stats._replace(decoder=stats.decoder),
    )
    return state._replace(variables=variables, ema=None if state.ema is None else variables)
