"""From a config to a game: its parts, the compiled steps, a population of members."""

from ali_jax.game.game import (
    Game,
    abstract_state,
    blank_data,
    check_names,
    evaluate,
    evaluation_key,
    fit,
    initial_state,
    load_data,
    make_call,
    make_feed,
    make_mesh,
    member_of,
    prepare,
    trained_state,
)

__all__ = [
    "Game",
    "abstract_state",
    "blank_data",
    "check_names",
    "evaluate",
    "evaluation_key",
    "fit",
    "initial_state",
    "load_data",
    "make_call",
    "make_feed",
    "make_mesh",
    "member_of",
    "prepare",
    "trained_state",
]
