"""Coverage of the components of a known mixture, and of modes that a classifier has assigned samples to.

A point belongs to the component with the nearest mean, which has the largest responsibility when weights and
covariances are equal. Points that are not finite belong to no component.
"""

import numpy as np
from scipy.spatial.distance import cdist
from scipy.special import entr


def _nearest_mode(points: np.ndarray, modes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the index of the nearest mode, -1 for points that are not finite, and the distance to it."""
    if points.ndim != 2 or modes.ndim != 2 or points.shape[1] != modes.shape[1] or not len(modes):
        raise ValueError(
            f"Points of shape {points.shape} and modes of shape {modes.shape} do not go together: "
            "give [N, D] and [K, D] with K at least 1."
        )
    finite = np.asarray(np.isfinite(points).all(axis=1))
    distance = cdist(np.where(finite[:, None], points, 0.0), modes)
    index = distance.argmin(axis=1)
    return np.where(finite, index, -1), np.where(finite, distance.min(axis=1), np.inf)


def mode_statistics(
    samples: np.ndarray, modes: np.ndarray, std: float, *, sigmas: float = 3.0, strict_fraction: float = 0.2
) -> dict[str, float]:
    """Score samples [N, D] against an equal mixture of isotropic Gaussians with means `modes` [K, D].

    A sample is of high quality within `sigmas` standard deviations of the nearest mean. Returns

    modes         number of modes with at least one high-quality sample
    modes_strict  number of modes with at least `strict_fraction` of the fair share N / K of them
    high_quality  share of the samples that are of high quality
    reverse_kl    KL(histogram of the high-quality samples over modes || uniform); log K when there is none
    mode_spread   root mean square deviation of the high-quality samples from their mode, per coordinate,
                  over `std`; 0.974 for true samples in two dimensions; 0 when there is none
    """
    if not len(samples):
        raise ValueError("There are no samples to score: give at least one.")
    index, distance = _nearest_mode(samples, modes)
    good = distance <= sigmas * std
    counts = np.bincount(index[good], minlength=len(modes))
    mean_square = np.sum(distance[good] ** 2) / (max(counts.sum(), 1) * modes.shape[1])
    return {
        **count_statistics(counts, len(samples), strict_fraction=strict_fraction),
        "high_quality": float(np.mean(good)),
        "mode_spread": float(np.sqrt(mean_square) / std),
    }


def count_statistics(counts: np.ndarray, number: int, *, strict_fraction: float = 0.2) -> dict[str, float]:
    """Score the counts [K] of samples on K equally likely modes, of `number` samples in all.

    modes         number of modes with at least one sample
    modes_strict  number of modes with at least `strict_fraction` of the fair share, number / K
    reverse_kl    KL(counts, as shares || uniform); log K when all counts are 0
    """
    if counts.ndim != 1 or not 0 <= counts.sum() <= number or not number or counts.min(initial=0) < 0:
        raise ValueError(
            f"Counts of shape {counts.shape} that sum to {counts.sum()} are not those of {number} samples: "
            "give [K], none negative, of at least one sample."
        )
    reverse_kl = np.log(len(counts)) - np.sum(entr(counts / max(counts.sum(), 1)))
    return {
        "modes": float(np.sum(counts > 0)),
        "modes_strict": float(np.sum(counts >= strict_fraction * number / len(counts))),
        "reverse_kl": float(max(reverse_kl, 0.0)),
    }


def mode_counts(samples: np.ndarray, modes: np.ndarray, std: float, *, sigmas: float = 3.0) -> np.ndarray:
    """Count [K] the samples [N, D] nearest to each of modes [K, D] and within `sigmas` * `std` of it."""
    index, distance = _nearest_mode(samples, modes)
    return np.bincount(index[distance <= sigmas * std], minlength=len(modes))


def paper_mode_count(samples: np.ndarray, modes: np.ndarray) -> int:
    """Count the modes [K, D] that are nearest to at least one of samples [N, D].

    This is the paper's count ("Learning inference jointly"), on 10,000 samples. It is lenient: a sample
    counts however far it is from every mode.
    """
    index, _ = _nearest_mode(samples, modes)
    return len(np.unique(index[index >= 0]))


def mode_kept(x: np.ndarray, x_hat: np.ndarray, modes: np.ndarray) -> float:
    """Return the share of rows of x [N, D] whose reconstructions x_hat [N, D] belong to the same mode."""
    return float(np.mean(_nearest_mode(x, modes)[0] == _nearest_mode(x_hat, modes)[0]))
