"""Intervals for fractions."""

from scipy.special import ndtri


def wilson_interval(successes: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval for the probability behind `successes` among n independent trials.

    Its ends are the probabilities p with |successes / n - p| = quantile * sqrt(p (1 - p) / n); they lie
    within [0, 1] also at 0 or n successes. `successes` need not be an integer, as SciPy's `binomtest`
    requires: it may be a mean over several runs.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(
            f"{successes} successes among {n} trials: there must be a trial, and 0 to {n} successes."
        )
    if not 0 < level < 1:
        raise ValueError(f"The level is {level}: it must lie between 0 and 1, such as 0.95.")
    quantile = float(ndtri(0.5 + level / 2))
    share, weight = successes / n, quantile**2 / n
    center = (share + weight / 2) / (1 + weight)
    half = quantile * (share * (1 - share) / n + weight / (4 * n)) ** 0.5 / (1 + weight)
    return max(center - half, 0.0), min(center + half, 1.0)
