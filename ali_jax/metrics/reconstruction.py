"""Errors between images, and distances from samples to the training set."""

import numpy as np

from ali_jax.metrics.neighbors import nearest


def mean_squared_error(x: np.ndarray, x_hat: np.ndarray) -> float:
    """Return the mean over rows and pixels of (x - x_hat)^2 for two arrays [N, *X] of one shape."""
    if x.shape != x_hat.shape:
        raise ValueError(f"x has shape {x.shape} and x_hat {x_hat.shape}: they must be the same.")
    return float(np.mean(np.square(x - x_hat), dtype=np.float64))


def random_pair_error(x: np.ndarray) -> float:
    """Return the mean squared error between two distinct rows of x [N, *X], averaged over all such pairs.

    The average needs no draw: over ordered pairs i != j it is twice the unbiased variance of a pixel,
    averaged over pixels. It is the scale on which `mean_squared_error` is read.
    """
    if len(x) < 2:
        raise ValueError(f"A pair needs two rows, and x has {len(x)}.")
    return float(2 * np.mean(np.var(x, axis=0, ddof=1, dtype=np.float64)))


def memorisation_ratio(samples: np.ndarray, test: np.ndarray, train: np.ndarray) -> float:
    """Return the median distance from samples to the nearest row of train, over the same for test.

    All are [N, *X] with one X; the distance is Euclidean. About 1 for samples as far from the training
    set as unseen data are, near 0 for copies of training images.
    """
    return distance_ratio(median_distance(samples, train), median_distance(test, train))


def distance_ratio(samples: float, test: float) -> float:
    """Return the samples' distance over test's; infinite where test repeats train and nothing can be said."""
    return samples / test if test else float("inf")


def median_distance(x: np.ndarray, train: np.ndarray) -> float:
    """Return the median over rows of x [N, *X] of the distance to the nearest row of train [M, *X]."""
    _, distances = nearest(x.reshape(len(x), -1), train.reshape(len(train), -1))
    return float(np.median(distances))
