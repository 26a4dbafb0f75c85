"""Frechet and kernel distances between features of two sets of images (FID and KID), with their provenance.

The caller extracts the features. Distances are comparable only for the same extractor, resizing, sample count
and other fields of `Provenance`: `table` refuses numbers that differ in them. Statistics are float64, on the
host. Those of the parts of a set merge into those of the whole.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Moments(NamedTuple):
    """The first two moments of N feature rows."""

    count: int
    mean: np.ndarray  # [F] float64
    scatter: np.ndarray  # [F, F] float64, sum over rows of (f - mean)(f - mean)^T

    @property
    def covariance(self) -> np.ndarray:
        """The unbiased covariance [F, F]."""
        if self.count < 2:
            raise ValueError(f"A covariance needs two rows of features, and there are {self.count}.")
        return self.scatter / (self.count - 1)


class KernelDistance(NamedTuple):
    """The kernel distance and its standard error."""

    value: float
    error: float


class Provenance(NamedTuple):
    """What a distance depends on besides the two sets of images."""

    extractor: str  # such as "classifier" or "inception"
    resize: str  # how images are resized for the extractor
    count: int  # of samples
    split: str  # data set and split that the samples are compared with
    seed: str  # of the samples: the PRNG key's numbers
    weights: str  # such as raw or ema
    batch_norm: str  # running | batch | none: the statistics in the decoder


class Measurement(NamedTuple):
    """A distance with its provenance, as tables show it."""

    value: float
    provenance: Provenance


def moments(features: np.ndarray) -> Moments:
    """Return the moments of features [N, F]."""
    features = _checked(features)
    mean = features.mean(axis=0)
    centered = features - mean[None]
    return Moments(len(features), mean, centered.T @ centered)


def merge(a: Moments, b: Moments) -> Moments:
    """Return the moments of the union of two sets (Chan et al., 1979)."""
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"Moments of {len(a.mean)} and of {len(b.mean)} features do not merge: use one extractor."
        )
    count = a.count + b.count
    offset = b.mean - a.mean
    scatter = a.scatter + b.scatter + np.outer(offset, offset) * (a.count * b.count / count)
    return Moments(count, a.mean + offset * (b.count / count), scatter)


def stream(blocks: Iterable[np.ndarray]) -> Moments:
    """Return the moments of all blocks of features [n, F], with one block at a time in memory."""
    return functools.reduce(merge, map(moments, blocks))


def frechet_distance(a: Moments, b: Moments) -> float:
    """Return the Frechet distance of two Gaussians with these moments, the square of the 2-Wasserstein one.

        |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^{1/2} C_b C_a^{1/2})^{1/2})

    The last trace is the sum of the singular values of C_a^{1/2} C_b^{1/2}, which avoids the square root of a
    matrix whose eigenvalues are zero up to rounding. Moments that are not finite give NaN. The distance is
    biased upwards, and less for more samples: compare at equal numbers of samples.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"Moments of {len(a.mean)} and of {len(b.mean)} features have no distance: use one extractor."
        )
    covariances = a.covariance, b.covariance
    if not all(np.isfinite(array).all() for array in (a.mean, b.mean, *covariances)):
        return float("nan")
    root_a, root_b = map(_root, covariances)
    overlap = np.linalg.svd(root_a @ root_b, compute_uv=False).sum()
    means = np.sum((a.mean - b.mean) ** 2)
    return float(max(means + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * overlap, 0.0))


def kernel_distance(a: np.ndarray, b: np.ndarray, *, blocks: int = 10) -> KernelDistance:
    """Return KID of features a [N, F] and b [M, F]: the unbiased squared MMD of the kernel (x.y / F + 1)^3.

    The value is the mean over `blocks` disjoint parts of both sets; its standard error is their standard
    deviation / sqrt(blocks). It is unbiased: for two samples of one distribution the expectation is 0 at
    any number of samples, and the value may be negative. Rows must be in random order. Rows that do not
    fill a part are left out.
    """
    a, b = _checked(a), _checked(b)
    size = min(len(a), len(b)) // blocks
    if blocks < 2 or size < 2 or a.shape[1] != b.shape[1]:
        raise ValueError(
            f"Features of shape {a.shape} and {b.shape} cannot be divided into {blocks} blocks: give equally "
            "many features, two or more blocks, and two or more rows per block."
        )
    parts = [
        _squared_mmd(x, y)
        for x, y in zip(
            np.array_split(a[: len(a) // blocks * blocks], blocks),
            np.array_split(b[: len(b) // blocks * blocks], blocks),
            strict=True,
        )
    ]
    return KernelDistance(float(np.mean(parts)), float(np.std(parts, ddof=1) / np.sqrt(blocks)))


def disagree(a: float, b: float, floor: float) -> bool:
    """Whether two distances of one model differ by more than sampling explains.

    A rule of thumb: they do if the difference exceeds half of the smaller one plus `floor`, the distance
    between two real sets. At equal numbers of samples, distances are reproducible within a few per cent.
    """
    return abs(a - b) > 0.5 * min(a, b) + max(floor, 0.0)


def table(rows: Mapping[str, Measurement], *, compared: Sequence[str] = ()) -> str:
    """Return a Markdown table of distances, with their common provenance below it.

    Args:
      rows: measurements by the names in the first column.
      compared: fields of the provenance that may differ; each becomes a column.

    Raises:
      ValueError: the provenance differs in another field, which the message names.
    """
    if unknown := set(compared) - set(Provenance._fields):
        raise ValueError(f"Provenance has no {', '.join(unknown)}, but {', '.join(Provenance._fields)}.")
    first = next(iter(rows.values())).provenance._asdict()
    for name, row in rows.items():
        other = row.provenance._asdict()
        differing = [key for key in first if key not in compared and other[key] != first[key]]
        if differing:
            fields = "; ".join(f"{key}: {first[key]} and {other[key]}" for key in differing)
            raise ValueError(
                f"{next(iter(rows))!r} and {name!r} cannot be in one table, as their provenance differs "
                f"({fields}): measure them alike, or name these fields in `compared`."
            )
    lines = [["", *compared, "distance"], ["---", *["---"] * len(compared), "---:"]]
    for name, row in rows.items():
        own = [str(getattr(row.provenance, key)) for key in compared]
        lines.append([name, *own, f"{row.value:.4g}"])
    common = ", ".join(f"{key}: {value}" for key, value in first.items() if key not in compared)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{common}"


def _checked(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or not features.size:
        raise ValueError(f"Features of shape {features.shape} were given: they must be [N, F], not empty.")
    return features


def _root(covariance: np.ndarray) -> np.ndarray:
    """Return the symmetric square root of a positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0.0))[None]) @ vectors.T


def _squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def off_diagonal(k: np.ndarray) -> float:
        return (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))

    return off_diagonal(kernel(x, x)) + off_diagonal(kernel(y, y)) - 2 * kernel(x, y).mean()
