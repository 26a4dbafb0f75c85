"""Populations: runs that differ in their seed and in some numbers, trained at once as one program.

Owns what the members are and how their numbers are summed up; how they are trained is `train`'s matter.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from ali_jax import config as configs
from ali_jax.config import Config

RESAMPLES = 10_000  # of the bootstrap
LEVEL = 0.95  # of its intervals


def size(config: Config) -> int:
    """Return the number of members K, or 0 for a single run."""
    return max([config.population.seeds, *(len(values) for values in varied(config).values())])


def varied(config: Config) -> dict[str, tuple[float, ...]]:
    """Return the numbers in which members differ, [K] by config key."""
    return {key: tuple(values) for key, values in config.population.vary}


def of_steps(config: Config) -> dict[str, tuple[float, ...]]:
    """Return those of them that a training step reads: all but what only the initial state depends on."""
    return {key: values for key, values in varied(config).items() if not key.endswith(".init_std")}


def members(config: Config) -> tuple[Config, ...]:
    """Return the config of each member as a run of its own: seed + k, and its numbers."""
    return tuple(
        _single(config, {"seed": config.seed + k, **{key: v[k] for key, v in varied(config).items()}})
        for k in range(size(config))
    )


def _single(config: Config, values: Mapping[str, Any]) -> Config:
    """Return the config of a single run, with these values by key."""
    return configs.with_values(config, {**values, "population.seeds": 0, "population.vary": ()}).lock()


def validate(config: Config) -> None:
    """Raise a ValueError for a population that cannot be trained at once."""
    section, known = config.population, configs.flat(config)
    lengths = {section.seeds} - {0}
    for entry in section.vary:
        if not (isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[1], tuple) and entry[1]):
            raise ValueError(
                f"config.population.vary has the entry {entry!r}; each must be a key and its values, such as "
                "('optimizer.generator.learning_rate', (1e-4, 2e-4))."
            )
        key, values = entry
        if not isinstance(known.get(key), float) or not _may_vary(key):
            raise ValueError(
                f"config.population.vary names {key!r}; members can differ in the numbers of the players of "
                "config.optimizer, the weights of config.penalties, and init_std."
            )
        if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
            raise ValueError(f"config.population.vary: the values of {key}, {values!r}, must be numbers.")
        if key.startswith("penalties.") and min(values) < 0:
            raise ValueError(
                f"config.population.vary: the values of {key}, {values!r}, must not be negative, which "
                "stands for 'not given': members cannot differ in that. A gamma_final of gamma is constant."
            )
        lengths.add(len(values))
    if len(lengths) > 1:
        raise ValueError(
            f"config.population has {' and '.join(map(str, sorted(lengths)))} members: population.seeds and "
            "every entry of population.vary must have the same number."
        )
    if lengths and (config.parallel != "mesh" or config.dataset.feed == "host" or config.dataset.labelled):
        raise ValueError(
            "A population needs config.parallel = 'mesh', data on the device (config.dataset.feed) and no "
            "config.dataset.labelled."
        )
    for k, member in enumerate(members(config)):
        try:
            configs.validate(member)
        except ValueError as error:
            raise ValueError(f"Member {k} of the population: {error}") from error


def at_most(config: Config) -> Config:
    """Return the config of one run with the largest of the varied numbers: all terms that any member has."""
    return _single(config, {key: max(numbers) for key, numbers in varied(config).items()})


def _may_vary(key: str) -> bool:
    section, _, last = key.rpartition(".")
    return section.startswith(("optimizer.", "penalties.")) or last == "init_std"


def spread(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Sum up the numbers of K members.

    Returns, for each NAME, of the members whose number is finite: NAME, their mean; NAME/std, their standard
    deviation; NAME/low and NAME/high, a bootstrap interval for the mean over seeds; and NAME/0 to NAME/K-1,
    the numbers themselves. Of a single one, all but the mean are NaN. Of numbers of rows, n_..., the mean
    alone.

    The interval takes percentiles further out than 2.5 and 97.5, as Hesterberg (2015) does for small samples.
    Of normal numbers it then holds the mean in 94 % of cases for K = 8 and in 92 % for 5. No bootstrap
    reaches beyond the members' range, so that it is 88 % for 4, 75 % for 3 and 50 % for 2.
    """
    found: dict[str, float] = {}
    for name in dict.fromkeys(key for member in values for key in member):
        numbers = np.array([member.get(name, np.nan) for member in values], np.float64)
        finite = numbers[np.isfinite(numbers)]
        summary = np.full(4, np.nan)
        if len(finite) == 1:
            summary[0] = finite[0]
        elif len(finite):
            means, tail = finite[_draws(len(finite))].mean(axis=1), _tail(len(finite))
            summary = [finite.mean(), finite.std(ddof=1), *np.quantile(means, [tail, 1 - tail])]
        if name.rpartition("/")[2].startswith("n_"):
            found[name] = float(summary[0])
            continue
        keys = (name, f"{name}/std", f"{name}/low", f"{name}/high")
        found |= {key: float(number) for key, number in zip(keys, summary, strict=True)}
        found |= {f"{name}/{k}": float(number) for k, number in enumerate(numbers)}
    return found


def _tail(count: int) -> float:
    """Return the percentile for which a bootstrap of normal numbers is as wide as their t interval."""
    quantile = stats.t.ppf((1 + LEVEL) / 2, count - 1)
    return float(stats.norm.sf(quantile * (count / (count - 1)) ** 0.5))  # a bootstrap divides by count


@functools.cache
def _draws(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, count, (RESAMPLES, count))


def is_of_member(name: str) -> bool:
    """Tell whether a name of `spread` is that of one member's number."""
    return name.rpartition("/")[2].isdigit()
