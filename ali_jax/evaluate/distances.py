"""Evaluators of distances to training data: Frechet and kernel distances, memorisation, near-duplicates."""

import functools

import jax
import numpy as np

from ali_jax.data import Dataset
from ali_jax.evaluate.declare import IMAGES, evaluator
from ali_jax.evaluate.features import (
    AUTO,
    NAMES,
    Extractor,
    inception_extractor,
    make_extractor,
    needs_of_features,
    test_features,
    train_features,
)
from ali_jax.evaluate.numbers import N_FEATURES, Number, count
from ali_jax.evaluate.rows import TEST_ROWS, cached_by_data, test_rows, train_rows
from ali_jax.evaluate.running import draw_samples, draw_samples_by_batch
from ali_jax.metrics import frechet, reconstruction
from ali_jax.types import ALI, Array, Report, Variables

MEMORISATION_ROWS = 2_000  # samples, and at most as many test rows, whose median distance is taken
NEAR = 0.02  # of the range: root mean square over pixels by which near-duplicates differ at most
N_TRAIN = count("n_train", "train rows searched")


def _frechet_numbers(*extractors: str) -> tuple[Number, ...]:
    return (
        *(number for extractor in extractors for number in _numbers_of(extractor)),
        count("n_fid", "n: num_samples, or the number of test rows used if that is smaller"),
        N_FEATURES,
    )


def _numbers_of(extractor: str) -> tuple[Number, ...]:
    """Declare the numbers on the features of one extractor; their meanings are those on any other."""
    fid, kid = f"fid_{extractor}", f"kid_{extractor}"
    return (
        Number(fid, "Frechet distance of n samples to train, on the features that the name ends in"),
        Number(kid, "kernel distance of the samples to train, unbiased, on the same features"),
        Number(f"{kid}_error", "standard error of the kernel distance, over ten blocks"),
        Number(f"{fid}_floor", "Frechet distance of n real test rows in place of samples", control=True),
        Number(f"{kid}_floor", "kernel distance of n real test rows in place of samples", control=True),
        Number(
            f"{fid}_batch_norm",
            "Frechet distance where the decoder normalises by batches of 100, if it has batch norm",
        ),
        Number(
            f"warn_{fid}_batch_norm", "1 where the Frechet distances with and without that disagree, else 0"
        ),
        Number(
            f"warn_{fid}_raw_ema",
            "1 where the Frechet distances of the raw and of the averaged weights disagree, else 0",
        ),
    )


@evaluator(numbers=_frechet_numbers(*NAMES), needs_of_options=needs_of_features)
def frechet_distance(
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
    """Measure the distance of samples to train in the features that `config.evaluation.features` names.

    Distances are comparable only for the same data set, extractor and n; `frechet_measurements` returns them
    together with these facts, and takes any extractor.
    """
    extractor = make_extractor(
        dataset, features, inception_weights=inception_weights, dinov2_weights=dinov2_weights
    )
    return _frechet_report(ali, variables, key, dataset, extractor, num_samples)


@evaluator(
    numbers=_frechet_numbers("inception"),
    needs_of_options=functools.partial(needs_of_features, features="inception"),
)
def inception_distance(
    ali: ALI,
    variables: Variables,
    key: Array,
    dataset: Dataset,
    *,
    num_samples: int = 10_000,
    inception_weights: str = "",
) -> Report:
    """Measure the distance of samples to train in the features of Inception-v3, whatever `features` names.

    `inception_weights` is the path of an .npz file with its weights, in the format that
    `ali_jax.metrics.inception` describes.
    """
    extractor = inception_extractor(inception_weights)
    return _frechet_report(ali, variables, key, dataset, extractor, num_samples)


@evaluator(
    numbers=(
        Number(
            "memorisation",
            "median distance of 2,000 samples to the nearest train row, over the same of the first 2,000 of "
            "at most 10,000 test rows, spread evenly, without those that train has; near 0 for copies",
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
    most 60,000 rows of train are used, of images above 77x77 pixels fewer (1 GiB), spread evenly. Of test
    they are the first 2,000 of at most 10,000 that are spread evenly: of 10,000 rows or fewer, the first
    2,000.
    """
    unseen = _test_distance(dataset)
    train = train_rows(dataset)
    search = functools.partial(reconstruction.nearest_distances, train=train.x, divisor=dataset.divisor)
    distances = draw_samples(ali, variables, key, MEMORISATION_ROWS, dataset, read=search)
    scalars = {
        "memorisation": reconstruction.distance_ratio(float(np.median(distances)), unseen),
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
        count(
            "n_near_duplicates",
            "test images compared with train: the first 2,000 of at most 10,000, spread evenly",
        ),
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
    moments = _train_moments(dataset, extractor)
    train, test = train_features(dataset, extractor), test_features(dataset, extractor)
    n = min(num_samples, len(test))
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
    kernel, kernel_floor = (_kernel_distance(rows, train) for rows in (sampled, test[:n]))
    floor = frechet.frechet_distance(frechet.moments(test[:n]), moments)
    of_real = provenance._replace(seed="none", weights="none", batch_norm="none")
    pairs = {
        fid: (frechet.frechet_distance(frechet.moments(sampled), moments), provenance),
        kid: (kernel.value, provenance),
        f"{kid}_error": (kernel.error, provenance),
        f"{fid}_floor": (floor, of_real),
        f"{kid}_floor": (kernel_floor.value, of_real),
    }
    if has_batch_norm:
        by_batch = draw_samples_by_batch(ali, variables, key, n, dataset, read=extractor.features)
        distance = frechet.frechet_distance(frechet.moments(by_batch), moments)
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
    scalars["n_fid"] = float(measurements[fid].provenance.count)
    scalars["n_features"] = float(train_features(dataset, extractor).shape[1])
    return Report(scalars, {})


@cached_by_data(maxsize=2)
def _train_moments(dataset: Dataset, extractor: Extractor) -> frechet.Moments:
    train = train_features(dataset, extractor)
    return frechet.stream(np.array_split(train, 1 + len(train) // TEST_ROWS))


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
    return test_rows(dataset).x[:MEMORISATION_ROWS]
