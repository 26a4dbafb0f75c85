"""Precision, recall, density and coverage: how samples and real data lie to each other among features.

The manifold of a set is the union of a ball about each of its rows, whose radius is the distance to the
k-th nearest other row of the set. The caller extracts the features. The numbers are comparable only for the
same extractor, the same numbers of rows and the same k.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ali_jax.metrics.blocks import rows_per_block
from ali_jax.types import Array

K_PRECISION = 3  # of precision and recall, as in their paper
K_DENSITY = 5  # of density and coverage, as in theirs


class Manifolds(NamedTuple):
    """How samples and real data lie to each other; every number but density is at most 1."""

    precision: float
    recall: float
    density: float
    coverage: float


def compare(
    real: np.ndarray, fake: np.ndarray, *, k_precision: int = K_PRECISION, k_density: int = K_DENSITY
) -> Manifolds:
    """Return precision and recall (Kynkaanniemi et al., 2019), density and coverage (Naeem et al., 2020).

    With R_k(a) the distance of a row a to its k-th nearest other row of its own set, for n real rows r and m
    samples f:

        precision  share of the f with |f - r| <= R_3(r) for some r
        recall     share of the r with |r - f| <= R_3(f) for some f
        density    1 / (5 m) times the number of pairs with |f - r| <= R_5(r)
        coverage   share of the r with |f - r| <= R_5(r) for some f

    A row is left out of its own neighbours by its index, so that its copies count. Squared distances are
    float32, |a|^2 + |b|^2 - 2 ab clipped at 0. A row that is not finite lies in no ball and has none. A block
    of distances is in memory at a time.

    `prdc`, the public code of the second paper, has < in place of <=, and one k for all four numbers.

    An outlier of a set has a large ball, in which much lies: it raises precision if it is real, and recall if
    it is a sample; density and coverage are less sensitive to it. Copies shrink balls to nothing: where k of
    a row's copies are in its set, only further copies lie in its ball.

    Args:
      real: features [n, F].
      fake: features [m, F] of samples.
      k_precision: k of precision and recall.
      k_density: k of density and coverage.

    Raises:
      ValueError: the numbers of features differ, or a set has no more rows than k.
    """
    real, fake = _checked(real, fake, max(k_precision, k_density))
    ks = (k_precision, k_density)  # for both, so that equally many rows need one program
    precise, dense = _balls(real, fake, ks)
    recalled, _ = _balls(fake, real, ks)
    return Manifolds(
        precision=float(np.mean(precise.around > 0)),
        recall=float(np.mean(recalled.around > 0)),
        density=float(np.mean(dense.around) / k_density),
        coverage=float(np.mean(dense.inside > 0)),
    )


class _Balls(NamedTuple):
    """Which points lie in the balls about N centres."""

    inside: np.ndarray  # [N]: points in the ball of each centre
    around: np.ndarray  # [M]: balls that each point lies in


def _balls(centers: np.ndarray, points: np.ndarray, ks: tuple[int, ...]) -> tuple[_Balls, ...]:
    """Count for each k the points [M, F] in the balls about centres [N, F], and the balls around points."""
    rows = np.concatenate([centers, points])
    origin = np.isfinite(rows).all(axis=1).argmax()  # keeps the squares small, and integers exact
    on_device = jnp.asarray(rows) - rows[origin][None]
    squares = jnp.sum(on_device**2, axis=1)
    size = min(rows_per_block((len(rows),)), len(centers))
    inside, around = [], np.zeros((len(ks), len(points)), int)
    for start in range(0, len(centers), size):
        own = np.arange(start, start + size)
        block = _block(on_device, squares, own, number=len(centers), ks=ks)
        inside.append(np.asarray(block[0]))
        around += np.asarray(block[1])
    joined = np.concatenate(inside, axis=1)[:, : len(centers)]
    return tuple(map(_Balls, joined, around))


@functools.partial(jax.jit, static_argnames=("number", "ks"))
def _block(
    rows: Array, squares: Array, own: Array, *, number: int, ks: tuple[int, ...]
) -> tuple[Array, Array]:
    """Return for each k the points in each ball [B], and the balls around each point [M].

    The first `number` rows are the centres, the others the points. The balls are about the rows `own` [B];
    those that are no centres have none.
    """
    row = jnp.minimum(own, number - 1)
    products = jnp.matmul(rows[row], rows.T, precision="highest")
    apart = jnp.maximum(squares[row][:, None] + squares[None] - 2 * products, 0.0)
    apart = jnp.where(jnp.isfinite(apart), apart, jnp.inf)
    to_others = jnp.where(own[:, None] == jnp.arange(number)[None], jnp.inf, apart[:, :number])
    nearest = -jax.lax.top_k(-to_others, max(ks))[0]
    has_ball = jnp.isfinite(nearest) & (own < number)[:, None]
    radius = jnp.where(has_ball, nearest, -1.0)
    within = jnp.stack([apart[:, number:] <= radius[:, k - 1, None] for k in ks])
    return within.sum(axis=2), within.sum(axis=1)


def _checked(real: np.ndarray, fake: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    real, fake = (np.asarray(rows, np.float32) for rows in (real, fake))
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1] or not real.shape[1]:
        raise ValueError(
            f"Features of shape {real.shape} and {fake.shape} do not go together: give [n, F] and [m, F]."
        )
    if min(len(real), len(fake)) <= k:
        raise ValueError(
            f"There are {len(real)} real rows and {len(fake)} samples; for the {k} nearest neighbours of "
            f"each, give at least {k + 1}."
        )
    return real, fake
