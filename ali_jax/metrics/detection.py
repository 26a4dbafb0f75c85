"""How well a score ranks anomalous rows above normal ones, with intervals over the rows.

Scores are anomaly scores: large is anomalous. The intervals are for the choice of the test rows. They do not
contain the variation over training seeds.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats
from sklearn.metrics import average_precision_score


class Estimate(NamedTuple):
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float


def auroc(normal: np.ndarray, anomalous: np.ndarray, *, level: float = 0.95) -> Estimate:
    """Return the probability that an anomalous score [M] exceeds a normal one [N], ties counting half.

    The interval is that of DeLong et al. (1988), on the logit scale; at 0 or 1 it has no width. The area
    itself, which equals scikit-learn's, is the mean of the terms whose variance the interval needs.
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
    """Return the average precision of scores, normal [N] and anomalous [M], the latter being the positives.

    It is the sum over thresholds of (recall - previous recall) x precision. A useless score has M / (N + M):
    numbers are comparable only for the same share of anomalies.
    """
    scores = np.concatenate([_checked(normal), _checked(anomalous)])
    truth = np.repeat([0, 1], [len(normal), len(anomalous)])
    return float(average_precision_score(truth, stats.rankdata(scores)))  # ranks, for scores may be infinite


def average_precision_interval(
    normal: np.ndarray, anomalous: np.ndarray, *, level: float = 0.95, draws: int = 400, seed: int = 0
) -> Estimate:
    """Return the average precision with a percentile bootstrap over rows, normal and anomalous ones apart."""
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
            f"Scores of shape {scores.shape}, {np.isnan(scores).sum()} of them NaN: give one number per row, "
            "for two or more rows of each kind."
        )
    return scores
