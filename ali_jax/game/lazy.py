"""Which penalties a step takes, where some are taken every n-th step only.

A penalty says so by its argument `every`, as `penalties.r1` does. It is 0 at all other steps, so programs
leave it out there.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ali_jax.types import Penalty

T = TypeVar("T")


def every(penalty: Penalty) -> int:
    """Return the n of a penalty that is taken every n-th step: its argument `every`, or 1."""
    return getattr(penalty, "keywords", {}).get("every", 1)


def due(penalties: Sequence[Penalty], step: int) -> tuple[Penalty, ...]:
    """Return the penalties that a step takes, which are those whose n divides step + 1."""
    return tuple(penalty for penalty in penalties if (step + 1) % every(penalty) == 0)


def cycle(penalties: Sequence[Penalty], make: Callable[[int], T]) -> tuple[T, ...]:
    """Return `make(step)` for the steps after which all is repeated: 0 up to the least common multiple of n.

    Steps that take the same penalties share one result.
    """
    period = math.lcm(*map(every, penalties))
    made: dict[tuple[Any, ...], T] = {}
    for step in range(period):
        if due(penalties, step) not in made:
            made[due(penalties, step)] = make(step)
    return tuple(made[due(penalties, step)] for step in range(period))
