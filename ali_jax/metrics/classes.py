"""Balance and clarity of the classes among generated images, as a classifier sees them."""

import numpy as np


def class_histogram(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the shares [K] of the classes among labels [N], integers in [0, K)."""
    labels = np.asarray(labels)
    if not labels.size or labels.min() < 0 or labels.max() >= num_classes:
        found = f"between {labels.min()} and {labels.max()}" if labels.size else "none"
        raise ValueError(f"The labels are {found}: give at least one, all from 0 to {num_classes - 1}.")
    return np.bincount(labels, minlength=num_classes) / labels.size


def class_kl(labels: np.ndarray, reference_frequencies: np.ndarray) -> float:
    """Return KL(histogram of labels [N] || reference_frequencies [K]) in nats.

    Infinite where a class occurs that the reference does not have. `class_kl_floor` is its expectation
    for labels that do follow the reference.
    """
    shares = class_histogram(labels, len(reference_frequencies))
    seen = shares > 0
    reference = np.asarray(reference_frequencies, np.float64)[seen]
    if (reference == 0).any():
        return float("inf")
    return float(max(np.sum(shares[seen] * np.log(shares[seen] / reference)), 0.0))


def class_kl_floor(num_classes: int, num_samples: int) -> float:
    """Return (K - 1) / 2n, the leading term of E[class_kl] for n samples drawn from the reference."""
    return (num_classes - 1) / (2 * num_samples)


def class_score(probabilities: np.ndarray) -> float:
    """Return exp(E_x KL(p(y | x) || E_x p(y | x))) of probabilities p(y | x) [N, K], between 1 and K.

    The inception score (Salimans et al., 2016) with the classifier that gave the probabilities: scores by
    different classifiers are not comparable.
    """
    p = np.asarray(probabilities, np.float64)
    ratio = np.where(p > 0, p, 1) / np.where(p > 0, p.mean(axis=0), 1)
    return float(np.exp(np.mean(np.sum(p * np.log(ratio), axis=1))))
