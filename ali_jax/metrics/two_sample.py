"""Two-sample tests, distances between samples, and how much a discriminator uses z.

`mmd_test`, `energy_test` and `nearest_neighbor_test` are exact at every sample size: their p-values come
from permutations of the pooled rows. They need memory for a few matrices of all distances, 4 (N + M)^2
bytes each. Read the statistic, at a fixed sample size, for how far apart the samples are, and the p-value
for whether that is more than noise. If rows are not finite, the statistic is NaN and the p-value the
smallest possible.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtr

from ali_jax.types import Array

PERMUTATIONS = 199


class TwoSampleTest(NamedTuple):
    """The result of a test."""

    statistic: float  # larger: further apart
    p_value: float  # (1 + #{null >= statistic}) / (permutations + 1)


def mmd_test(
    x: np.ndarray, y: np.ndarray, rng: np.random.Generator, *, permutations: int = PERMUTATIONS
) -> TwoSampleTest:
    """Test x [N, Z] against y [M, Z] by the squared maximum mean discrepancy, unbiased (Gretton et al. 2012).

    MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y), k(a, b) = exp(-|a - b|^2 / 2 h^2), h^2 the median squared
    distance of the pooled rows. The estimate may be negative: its mean is 0 for equal distributions.

    Raises:
      ValueError: the samples do not fit together, or permutations + 1 is no multiple of 20.
    """
    squares = _squared_distances(_pooled(x, y))
    return _kernel_test(_gaussian(squares, _median(squares)), len(x), rng, permutations)


def energy_test(
    x: np.ndarray, y: np.ndarray, rng: np.random.Generator, *, permutations: int = PERMUTATIONS
) -> TwoSampleTest:
    """Test x [N, Z] against y [M, Z] by the energy distance, unbiased (Szekely and Rizzo 2004).

    2 E|x - y| - E|x - x'| - E|y - y'|, in units of x. Errors are those of `mmd_test`.
    """
    return _kernel_test(-jnp.sqrt(_squared_distances(_pooled(x, y))), len(x), rng, permutations)


def nearest_neighbor_test(
    x: np.ndarray, y: np.ndarray, rng: np.random.Generator, *, permutations: int = PERMUTATIONS
) -> TwoSampleTest:
    """Test x [N, Z] against y [M, Z] by how often the nearest other pooled row is of the same sample.

    That share is the leave-one-out accuracy of 1-NN: near 1/2 for equal distributions and N = M, 1 for
    samples that lie apart. Errors are those of `mmd_test`.
    """
    squares = _squared_distances(_pooled(x, y))
    neighbor = np.asarray(jnp.argmin(jnp.fill_diagonal(squares, jnp.inf, inplace=False), axis=1))
    first = _labels(rng, len(x), len(squares), permutations)
    share = np.mean(first == first[neighbor], axis=0)
    return _compared(share if jnp.isfinite(squares).all() else np.full_like(share, np.nan))


def _pooled(x: np.ndarray, y: np.ndarray) -> Array:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(
            f"Samples of shape {x.shape} and {y.shape} do not go together: give [N, Z] and [M, Z], both of "
            "two rows or more."
        )
    pooled = np.concatenate([x, y]).astype(np.float64)
    with np.errstate(invalid="ignore"):
        centered = pooled - pooled.mean(axis=0, keepdims=True)  # keeps the squares small
    return jnp.asarray(centered, jnp.float32)


@jax.jit
def _squared_distances(rows: Array) -> Array:
    """Return [N, N], exactly 0 on the diagonal."""
    squares = jnp.sum(rows**2, axis=1)
    products = jnp.matmul(rows, rows.T, precision="highest")
    distances = jnp.maximum(squares[:, None] + squares[None] - 2 * products, 0)
    return jnp.fill_diagonal(distances, 0, inplace=False)


def _median(squares: Array) -> float:
    """Return the upper median off the diagonal, whose zeros are the smallest of [N, N]."""
    n = len(squares)
    middle = n + n * (n - 1) // 2
    return float(np.partition(np.asarray(squares), middle, axis=None)[middle])


@jax.jit
def _gaussian(squares: Array, bandwidth: float | Array) -> Array:
    """Return exp(-squares / 2 bandwidth); at bandwidth 0, where most pairs coincide: 1 for those, else 0."""
    return jnp.exp(-squares / jnp.maximum(2 * bandwidth, jnp.finfo(jnp.float32).tiny))


def _kernel_test(kernel: Array, n: int, rng: np.random.Generator, permutations: int) -> TwoSampleTest:
    """Test by the U-statistic of a kernel matrix whose first n rows are the first sample's.

    One product of the kernel with all indicator vectors gives every permutation's sums.
    """
    total = len(kernel)
    m = total - n
    first = _labels(rng, n, total, permutations)
    columns = np.concatenate([first, np.ones((total, 1), bool)], axis=1)
    products = np.asarray(_product(kernel, jnp.asarray(columns, jnp.float32)), np.float64)
    to_first, to_all = products[:, :-1], products[:, -1]
    diagonal = np.asarray(jnp.diagonal(kernel), np.float64)

    # For every permutation, the sums over the blocks of the kernel.
    within_first = np.sum(to_first * first, axis=0)
    across = to_all @ first - within_first
    within_second = to_all.sum() - within_first - 2 * across
    on_first = diagonal @ first
    statistics = (
        (within_first - on_first) / (n * (n - 1))
        + (within_second - (diagonal.sum() - on_first)) / (m * (m - 1))
        - 2 * across / (n * m)
    )
    return _compared(statistics)


@jax.jit
def _product(kernel: Array, columns: Array) -> Array:
    return jnp.matmul(kernel, columns, precision="highest")


def _labels(rng: np.random.Generator, n: int, total: int, permutations: int) -> np.ndarray:
    """Return which rows are in the first sample [N, permutations + 1]: as given, then in random orders."""
    if permutations < 1 or (permutations + 1) % 20:
        raise ValueError(f"permutations is {permutations}; permutations + 1 must be a multiple of 20.")
    given = np.arange(total) < n
    permuted = rng.permuted(np.tile(given, (permutations, 1)), axis=1)
    return np.concatenate([given[:, None], permuted.T], axis=1)


def _compared(statistics: np.ndarray) -> TwoSampleTest:
    """Compare the first statistic with the others; NaN counts as different."""
    observed, null = statistics[0], statistics[1:]
    return TwoSampleTest(float(observed), float((1 + np.sum(null >= observed)) / len(statistics)))


class KolmogorovSmirnov(NamedTuple):
    """One test per dimension."""

    statistics: np.ndarray  # [Z] largest distance between the distribution functions
    p_values: np.ndarray  # [Z] after Holm's correction; the smallest tests whether any dimension differs


def ks_tests(z: np.ndarray, cdf: Callable[[np.ndarray], np.ndarray] = ndtr) -> KolmogorovSmirnov:
    """Test each column of z [N, Z] against a distribution function, by default the standard normal's."""
    if z.ndim != 2 or not len(z):
        raise ValueError(f"z has shape {z.shape}: give [N, Z] with N at least 1.")
    from scipy.stats import ks_1samp

    test: Any = ks_1samp(np.asarray(z, np.float64), cdf, axis=0, method="exact")
    return KolmogorovSmirnov(test.statistic, holm(test.pvalue))


def holm(p_values: np.ndarray) -> np.ndarray:
    """Return Holm's adjusted p-values [K].

    With those below alpha rejected, the probability of one false rejection or more is at most alpha.
    """
    order = np.argsort(p_values)
    scaled = np.asarray(p_values)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted


class MomentErrors(NamedTuple):
    """Distances of the first two moments from those of N(0, I)."""

    mean: float  # |mean| / sqrt(Z)
    covariance: float  # |covariance - I|_F / Z


def moment_errors(z: np.ndarray) -> MomentErrors:
    """Return how far the mean and the covariance of z [N, Z] are from 0 and I."""
    size = z.shape[1]
    covariance = np.cov(z.T, ddof=1).reshape(size, size)
    return MomentErrors(
        float(np.linalg.norm(z.mean(axis=0, dtype=np.float64)) / np.sqrt(size)),
        float(np.linalg.norm(covariance - np.eye(size)) / size),
    )


def moment_floors(n: int, size: int) -> MomentErrors:
    """Return the root mean square of `moment_errors` over n true draws of N(0, I), about 1/sqrt(n) each."""
    return MomentErrors(float(1 / np.sqrt(n)), float(np.sqrt((size + 1) / (size * (n - 1)))))


def posterior_width(z_hat: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the root mean square standard deviation [Z] of q(z | x), from two codes [N, Z] of every x.

    It works for any encoder, since E(z - z')^2 = 2 sigma^2. Near 0, the code is a function of x. Near 1, with
    q(z) = p(z), it says nothing about x.
    """
    return np.sqrt(np.mean(np.square(z_hat - other, dtype=np.float64), axis=0) / 2)


def code_statistics(
    z_hat: np.ndarray, other: np.ndarray, z: np.ndarray, rng: np.random.Generator
) -> dict[str, float]:
    """Compare q(z) with p(z) = N(0, I), given two codes of each x, z_hat and other [N, Z], and prior draws z.

    code_mmd, code_energy    squared MMD and energy distance of z_hat from z, both with expectation 0 at q = p
    code_neighbor            share of rows whose nearest neighbour is of their own sample
    code_mmd_p, ..._p        their p-values, from 199 permutations
    code_ks, code_ks_p       largest Kolmogorov-Smirnov distance of a dimension; smallest p-value after Holm
    code_mean_error          |mean| / sqrt(Z), and what true draws have at this N (_floor)
    code_covariance_error    |covariance - I|_F / Z, likewise
    code_width, _min, _max   standard deviation of q(z | x): of all dimensions, of the narrowest, the widest

    The distances are comparable only for the same N. The p-values say whether they are more than noise.
    """
    z_hat, other = (np.where(np.isfinite(codes), codes, np.nan) for codes in (z_hat, other))
    scalars = {}
    for name, test in (
        ("code_mmd", mmd_test),
        ("code_energy", energy_test),
        ("code_neighbor", nearest_neighbor_test),
    ):
        scalars[name], scalars[f"{name}_p"] = test(z_hat, z, rng)
    ks, width = ks_tests(z_hat), posterior_width(z_hat, other)
    errors, floors = moment_errors(z_hat), moment_floors(*z_hat.shape)
    return scalars | {
        "code_ks": float(ks.statistics.max()),
        "code_ks_p": float(ks.p_values.min()),
        "code_mean_error": errors.mean,
        "code_mean_error_floor": floors.mean,
        "code_covariance_error": errors.covariance,
        "code_covariance_error_floor": floors.covariance,
        "code_width": float(np.sqrt(np.mean(width**2))),
        "code_width_min": float(width.min()),
        "code_width_max": float(width.max()),
    }


class UseOfZ(NamedTuple):
    """How much a discriminator uses z; all but `auc` are exactly 0 for one that does not."""

    logit_change: float  # mean |s(x, z) - s(x, z')|
    auc: float  # of q's pairs against p's; 1/2 at the solution of the game
    auc_drop: float  # how much lower it is with z shuffled within each kind of pair


def use_of_z(q: np.ndarray, q_shuffled: np.ndarray, p: np.ndarray, p_shuffled: np.ndarray) -> UseOfZ:
    """Compare the logits [N] of q's and p's pairs with those after z is shuffled among the rows of each."""
    change = np.mean(np.abs(np.concatenate([q - q_shuffled, p - p_shuffled])), dtype=np.float64)
    auc = area_under_curve(q, p)
    return UseOfZ(float(change), auc, auc - area_under_curve(q_shuffled, p_shuffled))


def area_under_curve(positive: np.ndarray, negative: np.ndarray) -> float:
    """Return P(positive score > negative score), ties counted half, for scores [N] and [M]."""
    from scipy.stats import mannwhitneyu

    test: Any = mannwhitneyu(positive, negative, method="asymptotic")
    return float(test.statistic / (len(positive) * len(negative)))


def derangement(rng: np.random.Generator, n: int) -> np.ndarray:
    """Return a random permutation [n] that is one cycle: for n of 2 or more, nothing stays in place."""
    order = rng.permutation(n)
    moved = np.empty(n, order.dtype)
    moved[order] = np.roll(order, 1)
    return moved
