"""How many modes a model has, and how many different things it makes: estimates that say what they estimate.

A count of modes rises with the number of samples and falls with the errors of whoever reads the modes off, so
that a bare count means little. Three questions have an answer with an interval each:

    expected_modes    how many modes do n samples hit, on average over samples?
    frequent_modes    how many modes have at least a given probability?
    chao              how many modes are there at all, seen or not?

Intervals are of nominal coverage `level` or more. The percentile bootstrap is not among them: modes that were
not seen are never drawn again, so that it misses the truth nearly always.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import beta, chi2, norm

from ali_jax.metrics.blocks import map_blocks
from ali_jax.metrics.neighbors import nearest
from ali_jax.types import Array

LEVEL = 0.95


class Interval(NamedTuple):
    """An estimate between the ends of its confidence interval."""

    estimate: float
    low: float
    high: float


def expected_modes(counts: np.ndarray, *, level: float = LEVEL) -> Interval:
    """Estimate sum_k P(n samples hit mode k) from counts [R, K] of R independent batches of n samples.

    Clopper and Pearson's interval for the R K indicators of a hit. They have K different probabilities, and
    are negatively dependent within a batch: both make their sum less dispersed than a binomial one (Hoeffding
    1956), so that the interval is conservative. Errors in reading the modes off are not accounted for.
    """
    hits: Any = np.asarray(counts) > 0
    if hits.ndim != 2 or not hits.size:
        raise ValueError(f"The counts have shape {hits.shape}: give [R, K], a row for each batch of samples.")
    low, high = _binomial(hits.sum(), hits.size, 1 - level)
    size = hits.shape[1]
    return Interval(float(size * hits.mean()), float(size * low), float(size * high))


class Reading(NamedTuple):
    """Bounds, all at once, on how a classifier reads K modes."""

    kept: np.ndarray  # [K] at least this share of a mode is read as that mode
    inflow: np.ndarray  # [K] at most this share of any other mode is read as it


def reading_bounds(confusion: np.ndarray, *, level: float = LEVEL) -> Reading:
    """Bound a classifier's errors from counts [K, K] of (true, read) labels that it was not trained on.

    Exact binomial bounds with Bonferroni's correction: half of the error for `kept`, half for `inflow`.
    """
    confusion = np.asarray(confusion)
    size, totals = len(confusion), confusion.sum(axis=1)
    if confusion.shape != (size, size) or size < 2 or (totals == 0).any():
        raise ValueError(
            f"A confusion matrix of shape {confusion.shape} with row sums {totals}: give [K, K], K at least "
            "2, with a labelled example of every mode."
        )
    alpha = 1 - level
    kept, _ = _binomial(np.diagonal(confusion), totals, alpha / size)  # of two tails one is used: alpha / 2
    _, read = _binomial(confusion, totals[:, None], alpha / (size * (size - 1)))
    return Reading(kept, np.where(np.eye(size, dtype=bool), 0.0, read).max(axis=0))


def frequent_modes(
    counts: np.ndarray,
    n: int,
    least: float,
    *,
    confusion: np.ndarray | None = None,
    level: float = LEVEL,
) -> Interval:
    """Estimate how many modes have probability `least` or more, from counts [K] among n samples.

    Exact bounds for each mode's probability, at once by Bonferroni's correction: `low` modes surely have it,
    and no more than `high` can. With `confusion`, held-out counts [K, K] of (true, read) labels, half of the
    error goes into `reading_bounds`, and a mode's probability p follows from that of being read, r:
    (r - inflow) / (1 - inflow) <= p <= r / kept.
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
    low = (low - reading.inflow) / (1 - reading.inflow)
    with np.errstate(divide="ignore"):
        high = high / reading.kept
    frequent = [float(np.sum(bound >= least)) for bound in (counts / n, low, high)]
    return Interval(*frequent)


def chao(counts: np.ndarray, *, level: float = LEVEL) -> Interval:
    """Estimate the number of modes, seen or not, from counts [K] of those that may be seen (Chao 1987).

    S + f1^2 / 2 f2 for S modes seen, f1 of them once and f2 twice, with her log-normal interval. What it
    estimates is a lower bound, reached where the unseen modes are as likely as those seen once.
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
    factor = np.exp(norm.ppf((1 + level) / 2) * np.sqrt(np.log1p(max(variance, 0.0) / unseen**2)))
    return Interval(seen + unseen, float(seen + unseen / factor), float(seen + unseen * factor))


def duplicate_threshold(test: np.ndarray, train: np.ndarray, *, share: float = 0.01) -> float:
    """Return the distance below which two rows count as one: such that `share` of test has a twin in train.

    It is that quantile of the Euclidean distances from test [N, *X] to the nearest row of train [M, *X].
    """
    _, distances = nearest(test.reshape(len(test), -1), train.reshape(len(train), -1))
    return float(np.quantile(distances, share))


def twins(rows: np.ndarray, threshold: float, references: np.ndarray | None = None) -> np.ndarray:
    """Count for each row [N, *X] the rows of references [M, *X] within the threshold.

    Without references: the other rows. What is no number has no twin.
    """
    own = references is None
    others = jnp.asarray((rows if own else references).reshape(len(rows if own else references), -1))
    half_squares = jnp.sum(others**2, axis=1) / 2
    counts = map_blocks(
        lambda block: _close(others, half_squares, block, threshold), rows.reshape(len(rows), -1)
    )
    return np.maximum(counts - 1, 0) if own else counts


@jax.jit
def _close(references: Array, half_squares: Array, rows: Array, threshold: float | Array) -> Array:
    products = jnp.matmul(rows, references.T, precision="highest")
    squares = jnp.sum(rows**2, axis=1)[:, None] + 2 * (half_squares[None] - products)
    return jnp.sum(squares <= threshold**2, axis=1)


def effective_support(twins: np.ndarray, *, level: float = LEVEL) -> Interval:
    """Estimate 1 / sum_k p_k^2 by the birthday paradox: how many equally likely things would repeat as often.

    Args:
      twins: [n] how many of the other samples each one repeats, from `twins`.
      level: of the interval.

    D pairs among n (n - 1) / 2 are expected to be n (n - 1) / 2 sum_k p_k^2. The interval is Poisson's for D,
    widened where few things repeat often: then Var D / E D exceeds 1 by 2 (n - 2)(s3 / s2 - s2), with
    s_j = sum_k p_k^j, estimated from pairs and triples of twins. Without twins it has no upper end.
    """
    degrees = np.asarray(twins, np.float64)
    n = len(degrees)
    if n < 3:
        raise ValueError(f"There are {n} samples: give three or more.")
    compared, close = n * (n - 1) / 2, degrees.sum() / 2
    dispersion = 1.0
    if close:
        s2, s3 = close / compared, np.sum(degrees * (degrees - 1)) / (n * (n - 1) * (n - 2))
        dispersion = max(1.0, 1 - s2 + 2 * (n - 2) * (s3 / s2 - s2))
    low, high = (dispersion * end for end in _poisson(close / dispersion, 1 - level))
    return Interval(*(compared / end if end else np.inf for end in (close, high, low)))


def cross_support(twins: np.ndarray, references: int, *, level: float = LEVEL) -> Interval:
    """Estimate the same from twins [N] of each row among as many references of a second sample."""
    compared, close = len(twins) * references, float(np.sum(twins))
    low, high = _poisson(close, 1 - level)
    return Interval(*(compared / end if end else np.inf for end in (close, high, low)))


def _binomial(successes: np.ndarray, n: np.ndarray | int, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Return Clopper and Pearson's exact interval, alpha / 2 beyond either end."""
    failures = n - successes
    low = np.where(successes > 0, beta.ppf(alpha / 2, np.maximum(successes, 1), failures + 1), 0.0)
    high = np.where(failures > 0, beta.ppf(1 - alpha / 2, successes + 1, np.maximum(failures, 1)), 1.0)
    return low, high


def _poisson(count: float, alpha: float) -> tuple[float, float]:
    """Return Garwood's exact interval for the expectation, alpha / 2 beyond either end."""
    low = chi2.ppf(alpha / 2, 2 * count) / 2 if count else 0.0
    return float(low), float(chi2.ppf(1 - alpha / 2, 2 * count + 2) / 2)
