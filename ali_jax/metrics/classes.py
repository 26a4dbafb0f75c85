"""Balance and clarity of the classes of generated images, as a classifier reads them."""

import numpy as np
from scipy.special import rel_entr


def class_histogram(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the shares [K] of the classes among labels [N], integers in [0, K)."""
    labels = np.asarray(labels)
    if not labels.size or labels.min() < 0 or labels.max() >= num_classes:
        given = f"lie between {labels.min()} and {labels.max()}" if labels.size else "are none"
        raise ValueError(f"The labels {given}: give at least one, all from 0 to {num_classes - 1}.")
    return np.bincount(labels, minlength=num_classes) / labels.size


def class_kl(labels: np.ndarray, reference_frequencies: np.ndarray) -> float:
    """Return KL(histogram of labels [N] || reference_frequencies [K]) in nats.

    Infinite where a class occurs that the reference does not have. `class_kl_floor` is its expectation for
    labels drawn from the reference.
    """
    shares = class_histogram(labels, len(reference_frequencies))
    return float(max(np.sum(rel_entr(shares, reference_frequencies)), 0.0))


def class_kl_floor(num_classes: int, num_samples: int) -> float:
    """Return (K - 1) / 2n, the leading term of E[class_kl] for n samples drawn from the reference."""
    return (num_classes - 1) / (2 * num_samples)


def class_score(probabilities: np.ndarray) -> float:
    """Return exp(E_x KL(p(y | x) || E_x p(y | x))) of probabilities p(y | x) [N, K], between 1 and K.

    It is the inception score (Salimans et al., 2016) with another classifier than Inception: comparable only
    for the same classifier.
    """
    p = np.asarray(probabilities, np.float64)
    return float(np.exp(np.mean(np.sum(rel_entr(p, p.mean(axis=0, keepdims=True)), axis=1))))
