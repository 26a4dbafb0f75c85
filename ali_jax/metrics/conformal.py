"""Split-conformal p-values, which give a threshold on any score a known false-alarm rate.

Scores are anomaly scores: large is anomalous. Calibration scores are those of normal rows that were not
used to train the scorer, to scale it or to stop it early. Then a new normal row has p <= alpha with
probability at most alpha, for any score and any distribution of the data, if it and the calibration rows
are exchangeable.
"""

from typing import Any

import numpy as np
from scipy.special import betaincinv


def p_values(calibration: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return p [M] = (1 + #{calibration [N] >= s}) / (N + 1) for every s of scores [M].

    A score that is NaN counts as larger than all others; a calibration score that is NaN is an error.
    """
    ordered = np.sort(_checked(calibration))
    below = np.searchsorted(ordered, np.asarray(scores, np.float64), side="left")
    return (1 + len(ordered) - below) / (len(ordered) + 1)


def allowed_exceedances(n: int, alpha: float) -> int:
    """Return k = floor(alpha (n + 1)), the rank of the threshold among n calibration scores.

    Raises ValueError where k would be 0: with n scores no p-value is below 1 / (n + 1).
    """
    if not 0 < alpha < 1:
        raise ValueError(f"The false-alarm rate alpha is {alpha}: it must lie between 0 and 1.")
    k = int(np.floor(alpha * (n + 1) * (1 + 1e-12)))  # 0.07 * 100 is just above 7, 0.29 * 100 just below 29
    if k < 1:
        raise ValueError(
            f"A false-alarm rate of {alpha} is below 1 / (n + 1) for n = {n} calibration rows: give at least "
            f"{int(np.ceil(1 / alpha)) - 1} rows, or a rate of at least {1 / (n + 1):.2g}."
        )
    return k


def threshold(calibration: np.ndarray, alpha: float) -> float:
    """Return the score above which, strictly, p <= alpha: the k-th largest calibration score [N]."""
    ordered = np.sort(_checked(calibration))
    return float(ordered[-allowed_exceedances(len(ordered), alpha)])


def false_alarm_interval(n: int, alpha: float, *, level: float = 0.95) -> tuple[float, float]:
    """Return the bounds of the false-alarm rate that one calibration set of n scores gives.

    Alpha is the mean rate over calibration sets. The rate of a single set follows Beta(k, n + 1 - k), with k
    as in `allowed_exceedances`, and lies between the bounds with probability `level`.
    """
    k = allowed_exceedances(n, alpha)
    low, high = betaincinv(k, n + 1 - k, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def count_law(n: int, m: int, alpha: float) -> Any:
    """Return the distribution of the number of false alarms among m new normal rows, a frozen one of SciPy.

    It is Beta-binomial(m, k, n + 1 - k), over calibration sets of n scores and new rows, for scores without
    ties.
    """
    from scipy.stats import betabinom

    k = allowed_exceedances(n, alpha)
    return betabinom(m, k, n + 1 - k)


def _checked(calibration: np.ndarray) -> np.ndarray:
    calibration = np.asarray(calibration, np.float64)
    if calibration.ndim != 1 or not len(calibration) or np.isnan(calibration).any():
        raise ValueError(
            f"The calibration scores have shape {calibration.shape}, and {np.isnan(calibration).sum()} of "
            "them are NaN: give one number for each of at least one normal row."
        )
    return calibration
