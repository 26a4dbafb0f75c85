"""How well a score ranks anomalous rows above normal ones, with intervals over the rows.

Scores are anomaly scores: large is anomalous. The intervals are those of other test rows from the same
source; what another seed of the training would change is not in them.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats


class Estimate(NamedTuple):
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float


def auroc(normal: np.ndarray, anomalous: np.ndarray, *, level: float = 0.95) -> Estimate:
    """Return the probability that an anomalous score [M] exceeds a normal one [N], ties counting half.

    The interval is that of DeLong et al. (1988), on the logit scale; at 0 or 1 it has no width.
    """
    normal, anomalous = _checked(normal), _checked(anomalous)
    n, m = len(normal), len(anomalous)
    ranks = stats.rankdata(np.concatenate([normal, anomalous]))
    # The share of normal scores that each anomalous one exceeds, and of anomalous ones above each normal one.
    above = (ranks[n:] - stats.rankdata(anomalous)) / n
    beaten = 1 - (ranks[:n] - stats.rankdata(normal)) / m
    value = float(above.mean())
    if not 0 < value < 1:
        return Estimate(value, value, value)
    error = np.sqrt(np.var(above, ddof=1) / m + np.var(beaten, ddof=1) / n)
    half = stats.norm.ppf((1 + level) / 2) * error / (value * (1 - value))
    center = np.log(value / (1 - value))
    low, high = (float(1 / (1 + np.exp(-(center + sign * half)))) for sign in (-1, 1))
    return Estimate(value, low, high)


def average_precision(normal: np.ndarray, anomalous: np.ndarray) -> float:
    """Return the area under precision against recall as a step function, anomalous [M] being the positives.

    sum over thresholds of (recall - recall before) x precision, scikit-learn's. Its value for a useless
    score is M / (N + M), so that numbers at different shares of anomalies do not compare.
    """
    scores = np.concatenate([_checked(normal), _checked(anomalous)])
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(order >= len(normal))
    last = np.append(np.diff(scores[order]) != 0, True)  # of those that share a score
    precision = hits[last] / (np.flatnonzero(last) + 1)
    return float(np.sum(np.diff(hits[last], prepend=0) * precision) / len(anomalous))


def average_precision_interval(
    normal: np.ndarray, anomalous: np.ndarray, *, level: float = 0.95, draws: int = 400, seed: int = 0
) -> Estimate:
    """Return the average precision with the percentiles of a bootstrap over rows, the classes apart."""
    rng = np.random.default_rng(seed)
    values = [
        average_precision(rng.choice(normal, len(normal)), rng.choice(anomalous, len(anomalous)))
        for _ in range(draws)
    ]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(average_precision(normal, anomalous), float(low), float(high))


def _checked(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 1 or len(scores) < 2 or np.isnan(scores).any():
        raise ValueError(
            f"Scores of shape {scores.shape} with {np.isnan(scores).sum()} that are no numbers: give one "
            "number per row, for two rows or more of each kind."
        )
    return scores
