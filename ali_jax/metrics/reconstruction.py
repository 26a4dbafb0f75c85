"""Errors between images, and distances from samples to the training set."""

import numpy as np

from ali_jax.data.dataset import unit
from ali_jax.metrics.blocks import rows_per_block
from ali_jax.metrics.neighbors import nearest, nearest_few


def mean_squared_error(x: np.ndarray, x_hat: np.ndarray) -> float:
    """Return the mean over rows and pixels of (x - x_hat)^2 for two arrays [N, *X] of one shape."""
    if x.shape != x_hat.shape:
        raise ValueError(f"x has shape {x.shape} and x_hat {x_hat.shape}: they must be the same.")
    return float(np.mean(row_errors(x, x_hat)))


def row_errors(x: np.ndarray, x_hat: np.ndarray) -> np.ndarray:
    """Return the mean over pixels of (x - x_hat)^2 for each row, [N] float64."""
    return np.asarray(np.mean(np.square(x - x_hat), axis=tuple(range(1, x.ndim)), dtype=np.float64))


def random_pair_error(x: np.ndarray, *, divisor: float = 1.0) -> float:
    """Return the mean squared error between two distinct rows of x [N, *X], averaged over all such pairs.

    Over all ordered pairs i != j this is twice the unbiased variance of a pixel, averaged over pixels. It is
    the scale for `mean_squared_error`: the error of an unrelated image. x of an integer type is first divided
    by `divisor`. The sums are merged block by block (Chan et al., 1979).
    """
    if len(x) < 2:
        raise ValueError(f"x has {len(x)} rows: give at least two, to form a pair.")
    count, size = 0, rows_per_block(x.shape[1:])
    mean, scatter = np.zeros(x.shape[1:]), np.zeros(x.shape[1:])
    for start in range(0, len(x), size):
        block = unit(x[start : start + size], divisor)
        of_block = block.mean(axis=0, dtype=np.float64)
        apart, total = of_block - mean, count + len(block)
        scatter += len(block) * np.var(block, axis=0, dtype=np.float64)
        scatter += np.square(apart) * (count * len(block) / total)
        mean, count = mean + apart * (len(block) / total), total
    return float(2 * np.mean(scatter) / (count - 1))


def memorisation_ratio(samples: np.ndarray, test: np.ndarray, train: np.ndarray) -> float:
    """Return the median distance from samples to the nearest row of train, over `unseen_distance` of test.

    The arrays are [N, *X] with the same X; the distance is Euclidean. It is about 1 for samples as far
    from the training set as unseen data are, and near 0 for copies of training images.
    """
    return distance_ratio(median_distance(samples, train), unseen_distance(test, train))


def distance_ratio(samples: float, unseen: float) -> float:
    """Return the samples' distance over that of unseen data; NaN where the latter is 0."""
    return samples / unseen if unseen else float("nan")


def median_distance(x: np.ndarray, train: np.ndarray, *, divisor: float = 1.0) -> float:
    """Return the median over rows of x [N, *X] of the distance to the nearest row of train [M, *X].

    Rows of train of an integer type are first divided by `divisor`.
    """
    return float(np.median(nearest_distances(x, train, divisor=divisor)))


def unseen_distance(
    test: np.ndarray, train: np.ndarray, *, divisor: float = 1.0, distances: np.ndarray | None = None
) -> float:
    """Return the median distance of test [N, *X] to the nearest row of train [M, *X], without repeated rows.

    Test rows that also occur in train take no part. Where all of them do, the distances are those of at most
    N distinct rows of train to the nearest other one. Where train has a single distinct row, the result is 0.
    Rows of train of an integer type are first divided by `divisor`. `distances` [N] are those of
    `nearest_distances` from test to train, where they are known already.
    """
    distances = nearest_distances(test, train, divisor=divisor) if distances is None else distances
    if distances.any():
        return float(np.median(distances[distances != 0]))
    distinct = np.unique(train.reshape(len(train), -1), axis=0)
    if len(distinct) < 2:
        return 0.0
    number = min(len(test), len(distinct))
    some = distinct[np.arange(number) * len(distinct) // number]
    return float(np.median(nearest_few(unit(some, divisor), distinct, 2, divisor=divisor)[1][:, 1]))


def nearest_distances(x: np.ndarray, train: np.ndarray, *, divisor: float = 1.0) -> np.ndarray:
    """Return the distance [N] of each row of x [N, *X] to the nearest row of train [M, *X].

    Rows of an integer type are first divided by `divisor`.
    """
    return nearest(x.reshape(len(x), -1), train.reshape(len(train), -1), divisor=divisor)[1]
