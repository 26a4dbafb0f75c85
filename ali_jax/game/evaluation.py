"""Evaluators applied to a game: to averaged and raw weights, and to every member of a population."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np

from ali_jax import evaluate as evaluators
from ali_jax.config import Config
from ali_jax.game import population
from ali_jax.game.game import Game, member_of
from ali_jax.types import Array, Report, TrainState, Variables


def evaluate(game: Game, state: TrainState, name: str, *, raw_beside: bool = False) -> Report:
    """Apply an evaluator to a state, with the averaged parameters if there are any.

    What the evaluator draws depends on the run's seed alone, so that evaluations can be compared. In a
    population, every member that has not diverged is evaluated. `population.spread` summarises their numbers,
    and the pictures are those of the first.

    Args:
      game, state: what is evaluated.
      name: of the evaluator.
      raw_beside: whether the numbers of the raw parameters are added, named `raw/NAME`. Controls, which do
        not depend on the parameters, are not.
    """
    if not game.members:
        return _evaluate_one(game, state, name, raw_beside)
    reports = []
    for k, member in enumerate(game.members):
        own = jax.device_get(member_of(state, k))
        finite = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(own.variables))
        reports.append(_evaluate_one(member, own, name, raw_beside) if finite else Report({}, {}))
    images = next((report.images for report in reports if report.images), {})
    return Report(population.spread([report.scalars for report in reports]), images)


def _evaluate_one(game: Game, state: TrainState, name: str, raw_beside: bool) -> Report:
    if state.ema is None:
        return _evaluate(game, state.variables, name)
    report = _evaluate(game, state.ema, name)
    if not (raw_beside and report.scalars):
        return report
    numbers = _evaluate(game, state.variables, name).scalars
    raw = {f"raw/{key}": value for key, value in numbers.items() if not evaluators.is_control(key)}
    unlike = evaluators.disagreements(report.scalars, numbers)
    return report._replace(scalars={**report.scalars, **raw, **unlike})


def evaluation_key(config: Config) -> Array:
    """Return the key of a run's evaluations, which differs from the keys of its steps."""
    return jax.random.fold_in(jax.random.PRNGKey(config.seed), 2**31 - 2)


def _evaluate(game: Game, variables: Variables, name: str) -> Report:
    variables = jax.tree.map(
        lambda leaf: leaf.addressable_data(0) if isinstance(leaf, jax.Array) else jnp.asarray(leaf),
        variables,
    )
    key = evaluation_key(game.config)
    evaluator = evaluators.named(name)
    accepted = inspect.signature(evaluator).parameters
    options = {name: value for name, value in game.config.evaluation.to_dict().items() if name in accepted}
    return evaluator(game.ali, variables, key, game.dataset, **options)
