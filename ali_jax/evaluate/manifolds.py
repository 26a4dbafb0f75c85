"""The evaluator of precision, recall, density and coverage."""

import numpy as np

from ali_jax.data import Dataset
from ali_jax.evaluate.declare import IMAGES, evaluator
from ali_jax.evaluate.features import (
    AUTO,
    NAMES,
    Extractor,
    make_extractor,
    needs_of_features,
    train_features,
)
from ali_jax.evaluate.numbers import N_FEATURES, Number, count
from ali_jax.evaluate.rows import cached_by_data
from ali_jax.evaluate.running import draw_samples
from ali_jax.metrics import manifolds
from ali_jax.types import ALI, Array, Report, Variables

COUNT = "n_manifolds"
FEWEST = max(manifolds.K_PRECISION, manifolds.K_DENSITY) + 1  # rows of each kind


def _numbers_of(extractor: str) -> tuple[Number, ...]:
    """Declare the numbers on the features of one extractor; their meanings are those on any other."""
    precision = Number(
        f"precision_{extractor}",
        "share of n samples that lie in the ball of some of n train rows, which reaches to the row's 3rd "
        "nearest, on the features that the name ends in",
        share_of=COUNT,
    )
    recall = Number(
        f"recall_{extractor}",
        "share of the train rows that lie in the ball of some sample, which reaches to its 3rd nearest",
        share_of=COUNT,
    )
    density = Number(
        f"density_{extractor}",
        "number of train rows in whose balls, to the 5th nearest, a sample lies: the mean over 5; it may "
        "exceed 1",
    )
    coverage = Number(
        f"coverage_{extractor}", "share of the train rows in whose balls, to the 5th nearest, a sample lies"
    )
    of_samples = (precision, recall, density, coverage)
    of_real = [
        number._replace(
            name=f"{number.name}_real",
            meaning=f"{name} of n other train rows in place of samples",
            control=True,
        )
        for name, number in zip(manifolds.Manifolds._fields, of_samples, strict=True)
    ]
    return (*of_samples, *of_real)


@evaluator(
    needs=(IMAGES,),
    needs_of_options=needs_of_features,
    numbers=(
        *(number for extractor in NAMES for number in _numbers_of(extractor)),
        count(COUNT, "n: num_samples, or half the train rows used if that is smaller"),
        N_FEATURES,
    ),
)
def precision_recall(
    ali: ALI,
    variables: Variables,
    key: Array,
    dataset: Dataset,
    *,
    num_samples: int = 10_000,
    features: str = AUTO,
    inception_weights: str = "",
    dinov2_weights: str = "",
) -> Report:
    """Measure how samples and train lie among each other: precision, recall, density and coverage.

    Precision and density fall with samples that are unlike real images, recall and coverage with real images
    that no sample is like; `ali_jax.metrics.manifolds` defines them. An outlier has a large ball, so a few
    outliers among real rows raise precision, and among samples recall; density and coverage suffer less.
    Rows with several duplicates have balls of no size, in which only more duplicates lie. Copies of train
    count as good samples: read `memorisation` beside these numbers. They are NaN with fewer than 6 rows of
    each kind.
    """
    extractor = make_extractor(
        dataset, features, inception_weights=inception_weights, dinov2_weights=dinov2_weights
    )
    return Report(manifold_measurements(ali, variables, key, dataset, extractor, num_samples=num_samples), {})


def manifold_measurements(
    ali: ALI,
    variables: Variables,
    key: Array,
    dataset: Dataset,
    extractor: Extractor,
    *,
    num_samples: int = 10_000,
) -> dict[str, float]:
    """Return the numbers of `precision_recall` by name, on the features of any extractor."""
    n = min(num_samples, len(train_features(dataset, extractor)) // 2)
    scores = controls = manifolds.Manifolds(*[float("nan")] * 4)
    if n >= FEWEST:
        sampled = draw_samples(ali, variables, key, n, dataset, read=extractor.features)
        scores = manifolds.compare(_halves(dataset, extractor, n)[0], sampled)
        controls = _of_real(dataset, extractor, n)
    return {
        **{f"{name}_{extractor.name}": value for name, value in scores._asdict().items()},
        **{f"{name}_{extractor.name}_real": value for name, value in controls._asdict().items()},
        COUNT: float(n),
        "n_features": float(train_features(dataset, extractor).shape[1]),
    }


def _halves(dataset: Dataset, extractor: Extractor, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the features of n train rows and of n others, drawn at random, the same every time."""
    rows = train_features(dataset, extractor)
    drawn = np.random.default_rng(0).permutation(len(rows))
    return rows[drawn[:n]], rows[drawn[n : 2 * n]]


@cached_by_data(maxsize=4)
def _of_real(dataset: Dataset, extractor: Extractor, n: int) -> manifolds.Manifolds:
    return manifolds.compare(*_halves(dataset, extractor, n))
