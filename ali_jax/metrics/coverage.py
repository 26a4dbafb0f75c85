"""Estimates, with intervals, of how many modes a model covers and how many different samples it makes.

A bare count of modes means little: it rises with the number of samples, and errors of the classifier
change it. Each function answers a question that does not depend on these:

    expected_modes    how many modes do n samples hit, on average?
    frequent_modes    how many modes have at least a given probability?
    chao              how many modes are there in all, seen or unseen?

Intervals have at least the nominal coverage `level`. A percentile bootstrap would hardly ever cover the
truth, since it cannot draw modes that were not seen.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import betaincinv, gammaincinv, ndtri

from ali_jax.metrics.blocks import map_blocks, rows_per_block
from ali_jax.metrics.neighbors import nearest, parts
from ali_jax.types import Array

LEVEL = 0.95


class Interval(NamedTuple):
    """An estimate between the ends of its confidence interval."""

    estimate: float
    low: float
    high: float


def expected_modes(counts: np.ndarray, *, level: float = LEVEL) -> Interval:
    """Estimate sum_k P(n samples hit mode k) from counts [R, K] of R independent batches of n samples.

    The interval is Clopper and Pearson's for the R K indicators of a hit. They have K different probabilities
    and are negatively dependent within a batch. Both make their sum less dispersed than a binomial variable
    (Hoeffding 1956), so that the interval is conservative. It does not account for errors of the classifier.
    """
    hits: Any = np.asarray(counts) > 0
    if hits.ndim != 2 or not hits.size:
        raise ValueError(f"The counts have shape {hits.shape}: give [R, K], a row for each batch of samples.")
    low, high = _binomial(hits.sum(), hits.size, 1 - level)
    size = hits.shape[1]
    return Interval(float(size * hits.mean()), float(size * low), float(size * high))


class Reading(NamedTuple):
    """Simultaneous bounds on the errors of a classifier of K modes."""

    recall: np.ndarray  # [K] at least this share of a mode is classified as that mode
    inflow: np.ndarray  # [K] at most this share of any other mode is classified as it


def reading_bounds(confusion: np.ndarray, *, level: float = LEVEL) -> Reading:
    """Bound a classifier's errors from counts [K, K] of (true, predicted) labels on unseen data.

    The bounds are exact binomial ones with Bonferroni's correction: half of the error goes to `recall`
    and half to `inflow`. A mode without data may be classified as anything: its recall is at least 0, and the
    inflow to all others at most 1.
    """
    confusion = np.asarray(confusion)
    size, totals = len(confusion), confusion.sum(axis=1)
    if confusion.shape != (size, size) or size < 2 or not totals.any():
        raise ValueError(
            f"A confusion matrix of shape {confusion.shape} with row sums {totals}: give [K, K], K at least "
            "2, with a labelled example."
        )
    alpha = 1 - level
    # One of the two tails is used, so that the error of each half is alpha / 2.
    recall, _ = _binomial(np.diagonal(confusion), totals, alpha / size)
    _, predicted = _binomial(confusion, totals[:, None], alpha / (size * (size - 1)))
    return Reading(recall, np.where(np.eye(size, dtype=bool), 0.0, predicted).max(axis=0))


def frequent_modes(
    counts: np.ndarray,
    n: int,
    least: float,
    *,
    confusion: np.ndarray | None = None,
    level: float = LEVEL,
) -> Interval:
    """Estimate how many modes have probability `least` or more, from counts [K] among n samples.

    Each mode's probability has exact bounds, simultaneous by Bonferroni's correction: `low` modes reach
    `least` by their lower bound, `high` modes by their upper bound. With `confusion`, counts [K, K] of
    (true, predicted) labels on held-out data, half of the error goes to `reading_bounds`, and the
    probability p of a mode is bounded by that of being classified as it, r:

        (r - inflow) / (1 - inflow) <= p <= r / recall
    """
    counts = np.asarray(counts)
    if counts.ndim != 1 or not 0 <= counts.sum() <= n or n < 1:
        raise ValueError(f"Counts of shape {counts.shape} and sum {counts.sum()}: give [K], at most n = {n}.")
    alpha = 1 - level
    reading = Reading(np.ones(len(counts)), np.zeros(len(counts)))
    if confusion is not None:
        alpha /= 2
        reading = reading_bounds(confusion, level=1 - alpha)
    low, high = _binomial(counts, n, alpha / len(counts))
    with np.errstate(divide="ignore", invalid="ignore"):  # of modes without data
        low = (low - reading.inflow) / (1 - reading.inflow)
        high = high / reading.recall
    frequent = [float(np.sum(bound >= least)) for bound in (counts / n, low, high)]
    return Interval(*frequent)


def chao(counts: np.ndarray, *, level: float = LEVEL) -> Interval:
    """Estimate the number of modes, seen or unseen, from counts [K] (Chao 1987).

    The estimate is S + f1^2 / 2 f2 for S modes seen, f1 of them once and f2 twice, with her log-normal
    interval. It estimates a lower bound on the number, which is attained if unseen modes are as likely as
    those seen once.
    """
    counts = np.asarray(counts)
    seen, once, twice = (float(np.sum(which)) for which in (counts > 0, counts == 1, counts == 2))
    if twice:
        ratio = once / twice
        unseen = once * ratio / 2
        variance = twice * (ratio**2 / 2 + ratio**3 + ratio**4 / 4)
    else:
        unseen = once * (once - 1) / 2
        total = max(seen + unseen, 1.0)
        variance = unseen + once * (2 * once - 1) ** 2 / 4 - once**4 / (4 * total)
    if not unseen:
        return Interval(seen, seen, seen)
    factor = np.exp(ndtri((1 + level) / 2) * np.sqrt(np.log1p(max(variance, 0.0) / unseen**2)))
    return Interval(seen + unseen, float(seen + unseen / factor), float(seen + unseen * factor))


def duplicate_threshold(
    test: np.ndarray, train: np.ndarray, *, share: float = 0.01, divisor: float = 1.0
) -> float:
    """Return the distance below which two rows count as duplicates.

    It is the quantile `share` of the Euclidean distances from test [N, *X] to the nearest row of train
    [M, *X]: that share of test has a twin in train. Rows of train of an integer type are first divided by
    `divisor`.
    """
    _, distances = nearest(test.reshape(len(test), -1), train.reshape(len(train), -1), divisor=divisor)
    return float(np.quantile(distances, share))


def twins(
    rows: np.ndarray, threshold: float, references: np.ndarray | None = None, *, divisor: float = 1.0
) -> np.ndarray:
    """Count the rows of references [M, *X] within the threshold of each row [N, *X].

    Without references, count the other rows. Rows that are not finite have no twin. References of an integer
    type are first divided by `divisor`.
    """
    others = rows if references is None else references
    queries, counts = rows.reshape(len(rows), -1), np.zeros(len(rows), int)
    for _, part in parts(others.reshape(len(others), -1), divisor):
        flat = jnp.asarray(part)
        half_squares = jnp.sum(flat**2, axis=1) / 2
        close = functools.partial(_close, flat, half_squares)
        size = rows_per_block(queries.shape[1:])
        counts += map_blocks(lambda block, close=close: close(block, threshold), queries, size=size)
    return np.maximum(counts - 1, 0) if references is None else counts


@jax.jit
def _close(references: Array, half_squares: Array, rows: Array, threshold: float | Array) -> Array:
    products = jnp.matmul(rows, references.T, precision="highest")
    squares = jnp.sum(rows**2, axis=1)[:, None] + 2 * (half_squares[None] - products)
    return jnp.sum(squares <= threshold**2, axis=1)


def effective_support(twins: np.ndarray, *, level: float = LEVEL) -> Interval:
    """Estimate the effective support 1 / sum_k p_k^2 from duplicates, as in the birthday problem.

    It is the number of equally likely things that would repeat as often. Among n samples, the expected
    number D of pairs of twins is n (n - 1) / 2 sum_k p_k^2. The interval is that of a Poisson variable D,
    widened where few things repeat often: then Var D / E D exceeds 1 by 2 (n - 2)(s3 / s2 - s2), where
    s_j = sum_k p_k^j is estimated from pairs and triples of twins. Without twins it has no upper end.

    Args:
      twins: [n] number of other samples that are twins of each one, from `twins`.
      level: of the interval.
    """
    degrees = np.asarray(twins, np.float64)
    n = len(degrees)
    if n < 3:
        raise ValueError(f"The number of samples is {n}: give three or more.")
    compared, close = n * (n - 1) / 2, degrees.sum() / 2
    dispersion = 1.0
    if close:
        s2, s3 = close / compared, np.sum(degrees * (degrees - 1)) / (n * (n - 1) * (n - 2))
        dispersion = max(1.0, 1 - s2 + 2 * (n - 2) * (s3 / s2 - s2))
    low, high = (dispersion * end for end in _poisson(close / dispersion, 1 - level))
    return Interval(*(compared / end if end else np.inf for end in (close, high, low)))


def cross_support(twins: np.ndarray, references: int, *, level: float = LEVEL) -> Interval:
    """Estimate the effective support from the twins [N] of each row among the rows of a second sample."""
    compared, close = len(twins) * references, float(np.sum(twins))
    low, high = _poisson(close, 1 - level)
    return Interval(*(compared / end if end else np.inf for end in (close, high, low)))


def _binomial(successes: np.ndarray, n: np.ndarray | int, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Return Clopper and Pearson's exact intervals, with alpha / 2 beyond either end.

    SciPy's `binomtest` gives the same for a single count.
    """
    failures = n - successes
    low = np.where(successes > 0, betaincinv(np.maximum(successes, 1), failures + 1, alpha / 2), 0.0)
    high = np.where(failures > 0, betaincinv(successes + 1, np.maximum(failures, 1), 1 - alpha / 2), 1.0)
    return low, high


def _poisson(count: float, alpha: float) -> tuple[float, float]:
    """Return Garwood's exact interval for the expectation, with alpha / 2 beyond either end."""
    low = gammaincinv(count, alpha / 2) if count else 0.0
    return float(low), float(gammaincinv(count + 1, 1 - alpha / 2))
