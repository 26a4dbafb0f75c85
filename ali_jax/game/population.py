"""Populations: runs that differ in their seed and in some numbers, trained at once as one program.

Owns what the members are and how their metrics are summarised, not how they are trained.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import stdtrit

from ali_jax import config as configs
from ali_jax.config import Config

LEVEL = 0.95  # of the intervals for means over members


def size(config: Config) -> int:
    """Return the number of members K, or 0 for a single run."""
    return max([config.population.seeds, *(len(values) for values in varied(config).values())])


def varied(config: Config) -> dict[str, tuple[float, ...]]:
    """Return the numbers in which members differ, [K] by config key."""
    return {key: tuple(values) for key, values in config.population.vary}


def of_steps(config: Config) -> dict[str, tuple[float, ...]]:
    """Return the varied numbers that a training step reads: all but those of the initial state."""
    return {key: values for key, values in varied(config).items() if not key.endswith(".init_std")}


def members(config: Config) -> tuple[Config, ...]:
    """Return the config of each member k as a single run: with seed + k and its own numbers."""
    return tuple(
        _single(config, {"seed": config.seed + k, **{key: v[k] for key, v in varied(config).items()}})
        for k in range(size(config))
    )


def _single(config: Config, values: Mapping[str, Any]) -> Config:
    """Return the config of a single run with these values, by dotted key."""
    return configs.with_values(config, {**values, "population.seeds": 0, "population.vary": ()}).lock()


def validate(config: Config) -> None:
    """Raise a ValueError for a population that cannot be trained at once; `config` itself is valid."""
    for key, values in varied(config).items():
        _check_varied(config, key, values)
    lengths = {config.population.seeds, *map(len, varied(config).values())} - {0}
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


def _check_varied(config: Config, key: str, values: tuple[float, ...]) -> None:
    """Raise a ValueError unless members can differ in this key, with these values."""
    if not isinstance(configs.flat(config).get(key), float) or not _may_vary(key):
        raise ValueError(
            f"config.population.vary names {key!r}; members can differ in the numbers of the players of "
            "config.optimizer, the weights of config.penalties, and init_std."
        )
    if key.startswith("penalties.") and min(values) < 0:
        raise ValueError(
            f"config.population.vary: {key} is {values!r}. A negative number means 'not given', and members "
            "cannot differ in that: use numbers of at least 0. A gamma_final equal to gamma is constant."
        )


def at_most(config: Config) -> Config:
    """Return a single run's config with the largest of the varied numbers: it has every member's terms."""
    return _single(config, {key: max(numbers) for key, numbers in varied(config).items()})


def _may_vary(key: str) -> bool:
    section, _, last = key.rpartition(".")
    return section.startswith(("optimizer.", "penalties.")) or last == "init_std"


def spread(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Summarise metrics over K members.

    Returns, for each NAME, over the members whose number is finite: NAME, their mean; NAME/std, their
    standard deviation; NAME/low and NAME/high, the 95 % interval for the mean over seeds; and NAME/0 to
    NAME/K-1, the numbers themselves. With a single such member, all but the mean are NaN. For numbers of
    rows, n_..., only the mean is returned.

    The interval is Student's, mean +- t std / sqrt(K) with K - 1 degrees of freedom. It is exact for normal
    numbers at every K, and wide for few members: t is 12.7 for two of them and 2.4 for eight. Its ends may
    lie where the number cannot, such as above 1 for a share.
    """
    summary: dict[str, float] = {}
    for name in dict.fromkeys(key for member in values for key in member):
        numbers = np.array([member.get(name, np.nan) for member in values], np.float64)
        finite = numbers[np.isfinite(numbers)]
        mean = float(finite.mean()) if len(finite) else float("nan")
        summary[name] = mean
        if name.rpartition("/")[2].startswith("n_"):
            continue
        std = half = float("nan")
        if len(finite) > 1:
            std = float(finite.std(ddof=1))
            half = float(stdtrit(len(finite) - 1, (1 + LEVEL) / 2)) * std / len(finite) ** 0.5
        summary |= {f"{name}/std": std, f"{name}/low": mean - half, f"{name}/high": mean + half}
        summary |= {f"{name}/{k}": float(number) for k, number in enumerate(numbers)}
    return summary
