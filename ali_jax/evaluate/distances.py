"""Evaluators of distances to training data: Frechet and kernel distances, memorisation, near-duplicates."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from ali_jax.data import Dataset, unit
from ali_jax.evaluate.declare import CLASSES, IMAGES, evaluator
from ali_jax.evaluate.numbers import Number, count
from ali_jax.evaluate.rows import (
    TEST_ROWS,
    cached_by_data,
    over_x,
    reference_classifier,
    test_rows,
    train_rows,
)
from ali_jax.evaluate.running import draw_samples, draw_samples_by_batch
from ali_jax.metrics import frechet, inception, reconstruction
from ali_jax.metrics.blocks import map_blocks
from ali_jax.types import ALI, Array, Report, Variables

MEMORISATION_ROWS = 2_000  # samples, and at most as many test rows, whose median distance is taken
NEAR = 0.02  # of the range: root mean square over pixels by which near-duplicates differ at most


N_TRAIN = count("n_train", "train rows searched")


def _frechet_numbers(extractor: str, features: str) -> tuple[Number, ...]:
    fid, kid = f"fid_{extractor}", f"kid_{extractor}"
    return (
        Number(fid, f"Frechet distance of n samples to train, on {features}"),
        Number(kid, "kernel distance of the samples to train, unbiased, on the same features"),
        Number(f"{kid}_error", f"standard error of {kid}, over ten blocks"),
        Number(f"{fid}_floor", f"{fid} of n real test rows in place of samples", control=True),
        Number(f"{kid}_floor", f"{kid} of n real test rows in place of samples", control=True),
        Number(
            f"{fid}_batch_norm", f"{fid} where the decoder normalises by batches of 100, if it has batch norm"
        ),
        Number(f"warn_{fid}_batch_norm", f"1 where {fid} and {fid}_batch_norm disagree, else 0"),
        Number(
            f"warn_{fid}_raw_ema", f"1 where {fid} of the raw and of the averaged weights disagree, else 0"
        ),
        count("n_fid", "n: num_samples, or the number of test rows used if that is smaller"),
    )


@evaluator(
    needs=CLASSES,
    numbers=_frechet_numbers("classifier", "features of the reference classifier's last hidden layer"),
)
def frechet_distance(
    ali: ALI, variables: Variables, key: Array, dataset: Dataset, *, num_samples: int = 10_000
) -> Report:
    """Measure the distance of samples to train in the features of the reference classifier.

    Distances are comparable only for the same data set, extractor and n; `frechet_measurements` returns them
    together with these facts.
    """
    return _frechet_report(ali, variables, key, dataset, classifier_extractor(dataset), num_samples)


@evaluator(needs=(IMAGES,), numbers=_frechet_numbers("inception", "features of Inception-v3"))
def inception_distance(
    ali: ALI,
    variables: Variables,
    key: Array,
    dataset: Dataset,
    *,
    num_samples: int = 10_000,
    inception_weights: str = "",
) -> Report:
    """Measure the distance of samples to train in the features of Inception-v3.

    `inception_weights` is the path of an .npz file with its weights, in the format that
    `ali_jax.metrics.inception` describes.
    """
    if not inception_weights:
        raise ValueError(
            "The evaluator 'inception_distance' needs the weights of Inception-v3: set "
            "config.evaluation.inception_weights to an .npz file, as ali_jax.metrics.inception describes."
        )
    extractor = inception_extractor(inception_weights)
    return _frechet_report(ali, variables, key, dataset, extractor, num_samples)


@evaluator(
    numbers=(
        Number(
            "memorisation",
            "median distance of 2,000 samples to the nearest train row, over the same of test rows that "
            "train does not have; near 0 for copies",
            headline="distance to training data",
        ),
        count("n_memorisation", "samples drawn"),
        N_TRAIN,
    )
)
def memorisation(ali: ALI, variables: Variables, key: Array, dataset: Dataset) -> Report:
    """Measure whether samples lie nearer to train rows than test rows do.

    The ratio is about 1 for samples that are as far from train as unseen rows are, and near 0 for copies.
    Test rows that also occur in train are left out; where all do, train rows are compared with each other. At
    most 60,000 rows of train, of images above 77x77 pixels fewer (1 GiB), and 2,000 of test are used.
    """
    unseen = _test_distance(dataset)  # before the samples: large ones would not fit beside the test rows
    train = train_rows(dataset)
    x_tilde = draw_samples(ali, variables, key, MEMORISATION_ROWS, dataset)
    distance = reconstruction.median_distance(x_tilde, train.x, divisor=dataset.divisor)
    scalars = {
        "memorisation": reconstruction.distance_ratio(distance, unseen),
        "n_memorisation": float(MEMORISATION_ROWS),
        "n_train": float(len(train.x)),
    }
    return Report(scalars, {})


@evaluator(
    needs=(IMAGES,),
    numbers=(
        Number(
            "near_duplicates",
            f"share of test images from which some train image differs by at most {NEAR:.0%} of the range "
            "(root mean square over pixels)",
            share_of="n_near_duplicates",
            control=True,
        ),
        count("n_near_duplicates", "test images compared with train"),
        N_TRAIN,
    ),
)
def near_duplicates(ali: ALI, variables: Variables, key: Array, dataset: Dataset) -> Report:
    """Count test images that also occur in train, or nearly: numbers on them are not about new images.

    It finds the same image in other compression or slightly brighter, but not one that was moved, cropped or
    mirrored. Images that are nearly empty count as near-duplicates of each other. Of train and test the rows
    are those of `memorisation`.
    """
    apart = _test_distances(dataset) / np.sqrt(np.prod(dataset.test.shape))  # root mean square
    scalars = {
        "near_duplicates": float(np.mean(apart <= NEAR)),
        "n_near_duplicates": float(len(apart)),
        "n_train": float(len(train_rows(dataset).x)),
    }
    return Report(scalars, {})


class Extractor(NamedTuple):
    """A function that returns features of images, with its name for the provenance of a measurement."""

    name: str  # as in fid_NAME
    resize: str  # how images are brought to the size that the function takes
    features: Callable[[np.ndarray], np.ndarray]  # x [N, *X] in [0, 1] -> [N, F]


def classifier_extractor(dataset: Dataset) -> Extractor:
    """Return the reference classifier's last hidden layer; a process trains it once per data set."""
    return Extractor("classifier", "none", reference_classifier(dataset).features)


@functools.lru_cache(maxsize=1)
def inception_extractor(path: str) -> Extractor:
    """Return Inception-v3 with the weights of an .npz file; a ValueError says what is wrong with the file."""
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
    """Return the Frechet and kernel distances of `frechet_distance` by name, each with its provenance.

    `weights` says in the provenance which weights `variables` are, as "raw" or "ema".
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
    sampled = draw_samples(ali, variables, key, n, dataset, read=extractor.features)
    fid, kid = f"fid_{extractor.name}", f"kid_{extractor.name}"
    kernel, kernel_floor = (_kernel_distance(rows, real.train) for rows in (sampled, real.test[:n]))
    floor = frechet.frechet_distance(frechet.moments(real.test[:n]), real.moments)
    of_real = provenance._replace(seed="none", weights="none", batch_norm="none")
    pairs = {
        fid: (frechet.frechet_distance(frechet.moments(sampled), real.moments), provenance),
        kid: (kernel.value, provenance),
        f"{kid}_error": (kernel.error, provenance),
        f"{fid}_floor": (floor, of_real),
        f"{kid}_floor": (kernel_floor.value, of_real),
    }
    if has_batch_norm:
        by_batch = draw_samples_by_batch(ali, variables, key, n, dataset, read=extractor.features)
        distance = frechet.frechet_distance(frechet.moments(by_batch), real.moments)
        pairs[f"{fid}_batch_norm"] = (distance, provenance._replace(batch_norm="batch"))
    return {name: frechet.Measurement(*pair) for name, pair in pairs.items()}


def disagreements(averaged: dict[str, float], raw: dict[str, float]) -> dict[str, float]:
    """Return warn_fid_NAME_raw_ema: 1 where the distances of averaged and raw weights disagree, else 0."""
    names = [name for name in averaged if f"{name}_floor" in averaged and name.startswith("fid_")]
    return {
        f"warn_{name}_raw_ema": float(frechet.disagree(averaged[name], raw[name], averaged[f"{name}_floor"]))
        for name in names
        if name in raw
    }


def _frechet_report(
    ali: ALI, variables: Variables, key: Array, dataset: Dataset, extractor: Extractor, num_samples: int
) -> Report:
    measurements = frechet_measurements(ali, variables, key, dataset, extractor, num_samples=num_samples)
    scalars = {name: measurement.value for name, measurement in measurements.items()}
    fid = f"fid_{extractor.name}"
    if (by_batch := scalars.get(f"{fid}_batch_norm")) is not None:
        unlike = frechet.disagree(scalars[fid], by_batch, scalars[f"{fid}_floor"])
        scalars[f"warn_{fid}_batch_norm"] = float(unlike)
    return Report({**scalars, "n_fid": float(measurements[fid].provenance.count)}, {})


class _RealFeatures(NamedTuple):
    train: np.ndarray  # [N, F]
    test: np.ndarray  # [M, F]
    moments: frechet.Moments  # of train


@cached_by_data(maxsize=2)
def _real_features(dataset: Dataset, extractor: Extractor) -> _RealFeatures:
    train, test = (
        over_x(extractor.features, rows, dataset.divisor)
        for rows in (train_rows(dataset), test_rows(dataset))
    )
    blocks = np.array_split(train, 1 + len(train) // TEST_ROWS)
    return _RealFeatures(train, test, frechet.stream(blocks))


def _kernel_distance(rows: np.ndarray, reference: np.ndarray) -> frechet.KernelDistance:
    """Return the kernel distance over ten blocks of shuffled rows; NaN for fewer than 20 rows."""
    rng = np.random.default_rng(0)
    if min(len(rows), len(reference)) < 20:
        return frechet.KernelDistance(float("nan"), float("nan"))
    return frechet.kernel_distance(rng.permutation(rows), rng.permutation(reference))


@cached_by_data(maxsize=2)
def _test_distance(dataset: Dataset) -> float:
    return reconstruction.unseen_distance(
        _compared(dataset),
        train_rows(dataset).x,
        divisor=dataset.divisor,
        distances=_test_distances(dataset),
    )


@cached_by_data(maxsize=2)
def _test_distances(dataset: Dataset) -> np.ndarray:
    """Return the Euclidean distances [n] of some test rows to the nearest train row."""
    train = train_rows(dataset).x
    return reconstruction.nearest_distances(_compared(dataset), train, divisor=dataset.divisor)


def _compared(dataset: Dataset) -> np.ndarray:
    return unit(test_rows(dataset).x[:MEMORISATION_ROWS], dataset.divisor)
