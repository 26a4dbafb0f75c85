"""The linear-Gaussian model, whose posterior is known: z ~ N(0, I), x = W z + b + tau eta, eta ~ N(0, I).

With such a decoder, a trained encoder can be compared with the exact posterior, and a discriminator's
logit with the exact log ratio of the joints. Without the noise neither exists.
"""

from typing import Any, NamedTuple

import numpy as np
import scipy.stats
from scipy.special import digamma


class LinearGaussian(NamedTuple):
    """A decoder."""

    weights: np.ndarray  # [D, Z]
    bias: np.ndarray  # [D]
    tau: float


class Gaussian(NamedTuple):
    """A normal distribution, or N of them with one covariance."""

    mean: np.ndarray  # [Z] or [N, Z]
    covariance: np.ndarray  # [Z, Z]


def posterior(decoder: LinearGaussian, x: np.ndarray) -> Gaussian:
    """Return p(z | x) for x [N, D]: covariance S = (I + W'W / tau^2)^-1, means S W'(x - b) / tau^2."""
    weights = np.asarray(decoder.weights, np.float64)
    precision = np.eye(weights.shape[1]) + weights.T @ weights / decoder.tau**2
    covariance = np.linalg.inv(precision)
    return Gaussian((x - decoder.bias[None]) @ weights @ covariance / decoder.tau**2, covariance)


def decoder_joint(decoder: LinearGaussian) -> Gaussian:
    """Return the normal distribution p(x, z) of [x, z]: [D + Z]."""
    weights, size = np.asarray(decoder.weights, np.float64), decoder.weights.shape[1]
    marginal = weights @ weights.T + decoder.tau**2 * np.eye(len(weights))
    covariance = np.block([[marginal, weights], [weights.T, np.eye(size)]])
    return Gaussian(np.concatenate([decoder.bias, np.zeros(size)]), covariance)


def encoder_joint(data: Gaussian, weights: np.ndarray, bias: np.ndarray, sigma: np.ndarray) -> Gaussian:
    """Return q(x, z) for x ~ data [D], z = weights' x + bias + sigma epsilon; weights [D, Z], sigma [Z]."""
    across = data.covariance @ weights
    codes = weights.T @ across + np.diag(np.square(sigma))
    covariance = np.block([[data.covariance, across], [across.T, codes]])
    return Gaussian(np.concatenate([data.mean, data.mean @ weights + bias]), covariance)


def log_ratio(q: Gaussian, p: Gaussian, rows: np.ndarray) -> np.ndarray:
    """Return log q - log p at rows [N, D + Z] = [x, z]: the logit of the best discriminator."""
    density: Any = scipy.stats.multivariate_normal.logpdf
    return density(rows, q.mean, q.covariance) - density(rows, p.mean, p.covariance)


def kl_of_moments(mean: np.ndarray, sigma: np.ndarray, target: Gaussian) -> float:
    """Return the average over x of KL(N(mean, diag sigma^2) || target), nats, for mean and sigma [N, Z]."""
    covariances = np.square(sigma)[:, :, None] * np.eye(sigma.shape[1])[None]
    return float(np.mean(_kl(mean, covariances, target)))


def kl_of_codes(codes: np.ndarray, target: Gaussian) -> float:
    """Estimate the average over x of KL(q(z | x) || target) from codes [M, N, Z], M of each x, for normal q.

    The estimate is unbiased: its expected excess is subtracted from the plug-in estimate, which uses the mean
    and covariance of each x's codes. It is infinite or large where the codes of an x span no volume. M must
    exceed Z.
    """
    m, _, size = codes.shape
    if m <= size:
        raise ValueError(f"{m} codes of each x do not span {size} dimensions: give more than {size}.")
    mean = codes.mean(axis=0, dtype=np.float64)
    centered = codes - mean[None]
    covariances = np.einsum("mni,mnj->nij", centered, centered) / (m - 1)
    plug_in = _kl(mean, covariances, target)
    precision = np.linalg.inv(target.covariance)
    of_mean = np.einsum("ij,nji->n", precision, covariances) / m
    of_volume = size * np.log((m - 1) / 2) - np.sum(digamma((m - np.arange(1, size + 1)) / 2))
    return float(np.mean(plug_in - (of_mean + of_volume) / 2))


def _kl(mean: np.ndarray, covariances: np.ndarray, target: Gaussian) -> np.ndarray:
    """Return KL(N(mean, covariance) || target) [N] for mean [N, Z] and covariances [N, Z, Z]."""
    precision = np.linalg.inv(target.covariance)
    off = mean - target.mean
    trace = np.einsum("ij,nji->n", precision, covariances)
    square = np.einsum("ni,ij,nj->n", off, precision, off)
    _, log_volumes = np.linalg.slogdet(covariances)
    _, log_volume = np.linalg.slogdet(target.covariance)
    return (trace + square - mean.shape[1] + log_volume - log_volumes) / 2


def calibration(decoder: LinearGaussian, x: np.ndarray, z: np.ndarray, codes: np.ndarray) -> dict[str, float]:
    """Return p-values of simulation-based calibration (Talts et al. 2018), one per quantity.

    Args:
      decoder: p(x, z).
      x: [N, D] drawn from it.
      z: [N, Z] the draws that x was made from.
      codes: [M, N, Z] drawn from q(z | x), M for each x.

    If q(z | x) = p(z | x), the rank of f(z) among the M values f(code) is uniform for every f. Tested are the
    coordinates (z0, z1, ...) and two functions of all of them, |z|^2 (norm) and log p(z | x) (density). The
    test is chi-squared over the M + 1 ranks, merged into at most 20 bins.
    """
    exact = posterior(decoder, x)
    precision = np.linalg.inv(exact.covariance)

    def density(z: np.ndarray) -> np.ndarray:
        off = z - exact.mean
        return -np.einsum("...i,ij,...j->...", off, precision, off)

    p_values = {f"z{i}": _uniformity(z[:, i], codes[:, :, i]) for i in range(z.shape[1])}
    p_values["norm"] = _uniformity(np.sum(z**2, axis=-1), np.sum(codes**2, axis=-1))
    p_values["density"] = _uniformity(density(z), density(codes))
    return p_values


def _uniformity(truth: np.ndarray, draws: np.ndarray) -> float:
    """Return the p-value of uniform ranks of truth [N] among draws [M, N]."""
    ranks = np.sum(draws < truth[None], axis=0)
    per_bin = -(-(len(draws) + 1) // 20)
    bins = -(-(len(draws) + 1) // per_bin)
    sizes = np.bincount(np.arange(len(draws) + 1) // per_bin, minlength=bins)
    counts = np.bincount(ranks // per_bin, minlength=bins)
    return float(scipy.stats.chisquare(counts, len(truth) * sizes / sizes.sum()).pvalue)


class LogitFit(NamedTuple):
    """How closely a discriminator's logit follows the exact log ratio."""

    slope: float  # of the regression of the logit on the ratio; 1 for the best discriminator
    correlation: float


def logit_fit(logits: np.ndarray, ratios: np.ndarray, *, limit: float = 4.0) -> LogitFit:
    """Regress logits [N] on log ratios [N] where |ratio| < limit; beyond, pairs of one kind are rare."""
    near = np.abs(ratios) < limit
    fit: Any = scipy.stats.linregress(ratios[near], logits[near])
    return LogitFit(float(fit.slope), float(fit.rvalue))
