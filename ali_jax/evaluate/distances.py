"""Evaluators of distances between samples and training data: Frechet and kernel distances, memorisation."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from ali_jax.data import Dataset, unit
from ali_jax.evaluate.needs import CLASSES, IMAGES, needs
from ali_jax.evaluate.rows import (
    TEST_ROWS,
    cached_by_data,
    reference_classifier,
    test_rows,
    train_rows,
)
from ali_jax.evaluate.running import draw_samples, draw_samples_by_batch
from ali_jax.metrics import frechet, inception, reconstruction
from ali_jax.metrics.blocks import map_blocks
from ali_jax.types import ALI, Array, Report, Variables

MEMORISATION_ROWS = 2_000  # samples, and test rows, whose median distance is taken


@needs(*CLASSES)
def frechet_distance(
    ali: ALI, variables: Variables, key: Array, dataset: Dataset, *, num_samples: int = 10_000
) -> Report:
    """Measure how far samples are from train in the features of the reference classifier.

    fid_classifier              Frechet distance of n samples to train, on the last hidden layer's features
    kid_classifier              kernel distance, unbiased
    kid_classifier_error        its standard error over ten blocks
    fid_classifier_floor, kid_classifier_floor
                                the same for n real test rows instead of samples
    n_fid                       n: `num_samples` or, if those are fewer, the number of test rows
    fid_classifier_batch_norm   with the decoder normalising by batches of 100, where it has batch norm
    warn_fid_batch_norm         1 where that and the value with running statistics disagree, else 0

    The numbers compare at one data set, extractor and n only: `frechet_measurements` gives them with their
    provenance.
    """
    return _frechet_report(ali, variables, key, dataset, classifier_extractor(dataset), num_samples)


@needs(IMAGES)
def inception_distance(
    ali: ALI,
    variables: Variables,
    key: Array,
    dataset: Dataset,
    *,
    num_samples: int = 10_000,
    inception_weights: str = "",
) -> Report:
    """Measure what `frechet_distance` does with Inception-v3: fid_inception, kid_inception and so on.

    `inception_weights` names the .npz file of the weights, which `ali_jax.metrics.inception` describes.
    """
    if not inception_weights:
        raise ValueError(
            "The evaluator 'inception_distance' needs the weights of Inception-v3: set "
            "config.evaluation.inception_weights to an .npz file, as ali_jax.metrics.inception describes."
        )
    extractor = inception_extractor(inception_weights)
    return _frechet_report(ali, variables, key, dataset, extractor, num_samples)


def memorisation(ali: ALI, variables: Variables, key: Array, dataset: Dataset) -> Report:
    """Measure memorisation: the median distance of 2,000 samples to the nearest training row, over test's.

    About 1 for samples as far from the training data as test data are, near 0 for copies; infinite where half
    of the test rows stand in train as well. Of train at most 60,000 rows are used, and of test 2,000.
    """
    train = train_rows(dataset)
    x_tilde = draw_samples(ali, variables, key, MEMORISATION_ROWS, dataset)
    distance = reconstruction.median_distance(x_tilde, unit(train.x, dataset.divisor))
    scalars = {
        "memorisation": reconstruction.distance_ratio(distance, _test_distance(dataset)),
        "n_memorisation": float(MEMORISATION_ROWS),
        "n_train": float(len(train.x)),
    }
    return Report(scalars, {})


class Extractor(NamedTuple):
    """Features of images, and what they are called in the provenance; any callable will do."""

    name: str  # fid_NAME
    resize: str  # the rule that brings images to the extractor's size
    features: Callable[[np.ndarray], np.ndarray]  # x [N, *X] in [0, 1] -> [N, F]


def classifier_extractor(dataset: Dataset) -> Extractor:
    """Return the reference classifier's last hidden layer; it is trained once per data set and process."""
    return Extractor("classifier", "none", reference_classifier(dataset).features)


@functools.lru_cache(maxsize=1)
def inception_extractor(path: str) -> Extractor:
    """Return Inception-v3 with the weights of an .npz file; a ValueError says what is wrong with it."""
    run = functools.partial(jax.jit(inception.features), inception.load(path))
    return Extractor("inception", inception.RESIZE, lambda x: map_blocks(run, x, size=50))


def frechet_measurements(
    ali: ALI,
    variables: Variables,
    key: Array,
    dataset: Dataset,
    extractor: Extractor,
    *,
    num_samples: int = 10_000,
    weights: str = "given",
) -> dict[str, frechet.Measurement]:
    """Return Frechet and kernel distances to train, each with its provenance.

    Names and numbers are those of `frechet_distance`. `weights` names the variables in the provenance.
    """
    real = _real_features(dataset, extractor)
    n = min(num_samples, len(real.test))
    has_batch_norm = bool(jax.tree.leaves(variables.batch_stats.decoder))
    provenance = frechet.Provenance(
        extractor=extractor.name,
        resize=extractor.resize,
        count=n,
        split=f"{dataset.name} {dataset.splits[0]}",
        seed="-".join(map(str, np.ravel(jax.random.key_data(key)))),
        weights=weights,
        batch_norm="running" if has_batch_norm else "none",
    )
    sampled = extractor.features(draw_samples(ali, variables, key, n, dataset))
    fid, kid = f"fid_{extractor.name}", f"kid_{extractor.name}"
    kernel, kernel_floor = (_kernel_distance(rows, real.train) for rows in (sampled, real.test[:n]))
    floor = frechet.frechet_distance(frechet.moments(real.test[:n]), real.moments)
    of_real = provenance._replace(seed="none", weights="none", batch_norm="none")
    found = {
        fid: (frechet.frechet_distance(frechet.moments(sampled), real.moments), provenance),
        kid: (kernel.value, provenance),
        f"{kid}_error": (kernel.error, provenance),
        f"{fid}_floor": (floor, of_real),
        f"{kid}_floor": (kernel_floor.value, of_real),
    }
    if has_batch_norm:
        by_batch = extractor.features(draw_samples_by_batch(ali, variables, key, n, dataset))
        distance = frechet.frechet_distance(frechet.moments(by_batch), real.moments)
        found[f"{fid}_batch_norm"] = (distance, provenance._replace(batch_norm="batch"))
    return {name: frechet.Measurement(*pair) for name, pair in found.items()}


def disagreements(averaged: dict[str, float], raw: dict[str, float]) -> dict[str, float]:
    """Return warn_fid_NAME_raw_ema: 1 where the Frechet distances of both parameters disagree, else 0."""
    names = [name for name in averaged if f"{name}_floor" in averaged and name.startswith("fid_")]
    return {
        f"warn_{name}_raw_ema": float(frechet.disagree(averaged[name], raw[name], averaged[f"{name}_floor"]))
        for name in names
        if name in raw
    }


def _frechet_report(
    ali: ALI, variables: Variables, key: Array, dataset: Dataset, extractor: Extractor, num_samples: int
) -> Report:
    found = frechet_measurements(ali, variables, key, dataset, extractor, num_samples=num_samples)
    scalars = {name: measurement.value for name, measurement in found.items()}
    fid = f"fid_{extractor.name}"
    if (by_batch := scalars.get(f"{fid}_batch_norm")) is not None:
        unlike = frechet.disagree(scalars[fid], by_batch, scalars[f"{fid}_floor"])
        scalars["warn_fid_batch_norm"] = float(unlike)
    return Report({**scalars, "n_fid": float(found[fid].provenance.count)}, {})


class _RealFeatures(NamedTuple):
    train: np.ndarray  # [N, F]
    test: np.ndarray  # [M, F]
    moments: frechet.Moments  # of train


@cached_by_data(maxsize=2)
def _real_features(dataset: Dataset, extractor: Extractor) -> _RealFeatures:
    divisor = dataset.divisor
    train, test = (
        extractor.features(unit(rows.x, divisor)) for rows in (train_rows(dataset), test_rows(dataset))
    )
    blocks = np.array_split(train, 1 + len(train) // TEST_ROWS)
    return _RealFeatures(train, test, frechet.stream(blocks))


def _kernel_distance(rows: np.ndarray, reference: np.ndarray) -> frechet.KernelDistance:
    """Return the kernel distance in ten blocks of rows in random order; nan where they are too few."""
    rng = np.random.default_rng(0)
    if min(len(rows), len(reference)) < 20:
        return frechet.KernelDistance(float("nan"), float("nan"))
    return frechet.kernel_distance(rng.permutation(rows), rng.permutation(reference))


@cached_by_data(maxsize=2)
def _test_distance(dataset: Dataset) -> float:
    train, test = (unit(rows.x, dataset.divisor) for rows in (train_rows(dataset), test_rows(dataset)))
    return reconstruction.median_distance(test[:MEMORISATION_ROWS], train)
