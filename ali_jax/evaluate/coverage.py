"""Evaluators of coverage: how many modes the model generates, and how many different samples."""

import jax
import numpy as np

from ali_jax import model
from ali_jax.data import Dataset, stacked_label, unit
from ali_jax.evaluate.declare import SINGLE_IMAGES, STACKS, Need, evaluator
from ali_jax.evaluate.numbers import N_TEST, Number, count, with_interval
from ali_jax.evaluate.rows import (
    cached_by_data,
    is_given_y,
    labelled,
    over_x,
    read_rows,
    reference_predict,
    test_rows,
    train_rows,
)
from ali_jax.evaluate.running import draw_samples, over_rows
from ali_jax.metrics import coverage
from ali_jax.metrics.classes import class_kl_floor
from ali_jax.metrics.modes import (
    count_statistics,
    mode_counts,
    mode_kept,
    mode_statistics,
    paper_mode_count,
)
from ali_jax.types import ALI, Array, Report, Variables

MODE_SAMPLES = 2_500  # modes, modes_strict and reverse_kl are quoted at this number in the literature
PAPER_MODE_SAMPLES = 10_000  # for modes_paper
STACKED_SAMPLES = 26_000  # the literature's, for the 1,000 modes of stacked MNIST
READER_LENGTH = (
    3.0  # of the classifier's training: a stack needs three right labels, so its errors weigh more
)
COVERAGE_BATCHES = 8  # of MODE_SAMPLES samples each
SUPPORT_SAMPLES = 2_000  # among which near duplicates are counted


@evaluator(
    needs=(Need("known modes", lambda data, _: data.modes is None),),
    numbers=(
        Number(
            "modes",
            "number of modes with at least one sample of high quality: within 3 standard deviations",
        ),
        Number(
            "modes_strict",
            "number of modes with at least a fifth of their fair share of high-quality samples",
            headline="modes, strictly counted",
        ),
        Number("reverse_kl", "KL(high-quality samples over modes || uniform)"),
        Number(
            "high_quality",
            "share of the samples that are of high quality",
            headline="samples of high quality",
        ),
        Number(
            "mode_spread",
            "deviation of the high-quality samples from their mode, over the true one; 0.974 for the data",
        ),
        Number("modes_paper", "number of modes by the paper's lenient count, with 10,000 samples"),
        Number(
            "mode_kept",
            "share of test rows whose sampled reconstruction stays with their mode; not for models that are "
            "given y",
            share_of="n_test",
            headline="mode kept",
        ),
        N_TEST,
    ),
)
def modes(ali: ALI, variables: Variables, key: Array, dataset: Dataset) -> Report:
    """Measure the coverage of a mixture with 2,500 samples, as `metrics.modes.mode_statistics` does.

    A model that is given y has no mode_kept, since its reconstructions are told the mode.
    """
    assert dataset.modes is not None
    key_samples, key_paper, key_codes = jax.random.split(key, 3)
    test = test_rows(dataset)
    x_tilde = draw_samples(ali, variables, key_samples, MODE_SAMPLES, dataset)
    many = draw_samples(ali, variables, key_paper, PAPER_MODE_SAMPLES, dataset)
    scalars = {
        **mode_statistics(x_tilde, dataset.modes, dataset.mode_std),
        "modes_paper": float(paper_mode_count(many, dataset.modes)),
        "n_test": float(len(test.x)),
    }
    if not is_given_y(dataset):
        x_hat = over_rows(model.reconstruct, ali, variables, test, dataset.divisor, key=key_codes)
        scalars["mode_kept"] = mode_kept(test.x, x_hat, dataset.modes)
    return Report(scalars, {})


@evaluator(
    needs=(STACKS,),
    numbers=(
        Number(
            "stacked_modes_strict",
            "number of classes with at least a fifth of their fair share of samples (26 for digits)",
            headline="classes of stacks, strictly counted",
            scale=("stacked_modes_strict_real", "for real stacks"),
        ),
        Number(
            "stacked_modes",
            "number of classes with at least one sample; errors of the classifier add to it",
        ),
        Number("stacked_kl", "KL(classes of the samples || uniform)"),
        Number(
            "stacked_kl_floor", "expectation of stacked_kl for perfect samples, (K - 1) / 2n", control=True
        ),
        *(
            Number(
                f"{name}_real", f"{name} of all test rows, read in the same way: the ceiling", control=True
            )
            for name in ("stacked_modes_strict", "stacked_modes")
        ),
        Number("stacked_kl_real", "stacked_kl of all test rows, read in the same way", control=True),
        Number(
            "classifier_error",
            "share of single test images that the reference classifier labels wrongly",
            share_of="n_test_single",
            control=True,
        ),
        count("n_stacked", "samples drawn"),
        count("n_stacked_real", "test rows, all of them"),
        count("n_test_single", "single test images that the classifier is tested on"),
    ),
)
def stacked_modes(ali: ALI, variables: Variables, key: Array, dataset: Dataset) -> Report:
    """Measure how many of the K classes of stacks (1,000 for digits) occur among 26,000 samples.

    The reference classifier labels one channel after the other. It is trained on single images of train,
    three times as long as for the other evaluators.
    """
    assert dataset.parts is not None
    x_tilde = draw_samples(ali, variables, key, STACKED_SAMPLES, dataset)
    _, accuracy = reference_predict(dataset.parts, READER_LENGTH)
    scalars = {
        **_stacked_statistics(x_tilde, dataset),
        "stacked_kl_floor": class_kl_floor(dataset.num_classes, STACKED_SAMPLES),
        **{f"{name}_real": value for name, value in _real_stacks(dataset).items()},
        "classifier_error": 1 - accuracy,
        "n_stacked": float(STACKED_SAMPLES),
        "n_stacked_real": float(len(dataset.test)),
        "n_test_single": float(len(labelled(test_rows(dataset.parts)).x)),
    }
    return Report(scalars, {})


@evaluator(
    needs=(
        Need("known modes or labels", lambda data, _: data.modes is None and data.num_classes < 2),
        SINGLE_IMAGES,
    ),
    numbers=(
        *with_interval(
            Number("coverage_expected", "number of modes hit by 2,500 samples, on average over such samples"),
            "see metrics.coverage",
        ),
        *with_interval(
            Number(
                "coverage_frequent",
                "number of modes with at least a fifth of their fair share of all samples; where the "
                "reference classifier labels the samples, its errors on test are accounted for",
            ),
            "see metrics.coverage",
        ),
        count("n_coverage", "samples drawn"),
    ),
)
def mode_coverage(ali: ALI, variables: Variables, key: Array, dataset: Dataset) -> Report:
    """Estimate how many of the known modes, or else of the classes, the model covers, with 20,000 samples.

    A sample hits a known mode within three standard deviations of it. Without known modes it hits the class
    that the reference classifier gives it.
    """
    number, confusion = COVERAGE_BATCHES * MODE_SAMPLES, None
    if dataset.modes is not None:
        x_tilde = draw_samples(ali, variables, key, number, dataset)
        batches = x_tilde.reshape(COVERAGE_BATCHES, MODE_SAMPLES, -1)
        counts = np.stack([mode_counts(batch, dataset.modes, dataset.mode_std) for batch in batches])
    else:
        predict, _ = reference_predict(dataset)
        test = labelled(test_rows(dataset))
        confusion = np.zeros((dataset.num_classes, dataset.num_classes), int)
        np.add.at(confusion, (test.label, over_x(predict, test, dataset.divisor)), 1)
        read = draw_samples(ali, variables, key, number, dataset, read=predict)
        batches = read.reshape(COVERAGE_BATCHES, MODE_SAMPLES)
        counts = np.stack([np.bincount(labels, minlength=dataset.num_classes) for labels in batches])
    fair_fifth = 0.2 / counts.shape[1]
    frequent = coverage.frequent_modes(counts.sum(axis=0), number, fair_fifth, confusion=confusion)
    scalars = {
        **_with_ends("coverage_expected", coverage.expected_modes(counts)),
        **_with_ends("coverage_frequent", frequent),
        "n_coverage": float(number),
    }
    return Report(scalars, {})


@evaluator(
    numbers=(
        *with_interval(
            Number(
                "effective_support",
                "effective number of different samples, 1 / sum p^2, from near duplicates among 2,000",
            ),
            "see metrics.coverage",
        ),
        Number(
            "effective_support_real",
            "the same of real data, from near duplicates between test and train",
            control=True,
        ),
        count("n_support", "samples drawn"),
    )
)
def effective_support(ali: ALI, variables: Variables, key: Array, dataset: Dataset) -> Report:
    """Estimate how many different samples the model generates, from the near duplicates among 2,000.

    Rows are near duplicates if their distance is below the first percentile of the distances of test rows (at
    most 2,000) to their nearest train row.
    """
    threshold, real = _real_support(dataset)
    twins = coverage.twins(draw_samples(ali, variables, key, SUPPORT_SAMPLES, dataset), threshold)
    scalars = {
        **_with_ends("effective_support", coverage.effective_support(twins)),
        "effective_support_real": real,
        "n_support": float(SUPPORT_SAMPLES),
    }
    return Report(scalars, {})


@cached_by_data(maxsize=2)
def _real_stacks(dataset: Dataset) -> dict[str, float]:
    return _stacked_statistics(read_rows(dataset.test, np.arange(len(dataset.test))).x, dataset)


def _stacked_statistics(x: np.ndarray, dataset: Dataset) -> dict[str, float]:
    """Count the classes of stacks [N, H, W, C], as stored or in [0, 1]."""
    assert dataset.parts is not None
    predict, _ = reference_predict(dataset.parts, READER_LENGTH)
    channels = np.split(x, x.shape[-1], axis=-1)
    digits = np.stack([predict(unit(channel, dataset.divisor)) for channel in channels], axis=-1)
    label = stacked_label(digits, dataset.parts.num_classes)
    statistics = count_statistics(np.bincount(label, minlength=dataset.num_classes), len(label))
    names = {"modes_strict": "stacked_modes_strict", "modes": "stacked_modes", "reverse_kl": "stacked_kl"}
    return {name: statistics[key] for key, name in names.items()}


@cached_by_data(maxsize=2)
def _real_support(dataset: Dataset) -> tuple[float, float]:
    """Return the distance below which rows are near duplicates, and the effective support of real data."""
    train, test, divisor = train_rows(dataset).x, test_rows(dataset).x, dataset.divisor
    number = min(len(test), SUPPORT_SAMPLES)
    test = unit(test[np.arange(number) * len(test) // number], divisor)
    threshold = coverage.duplicate_threshold(test, train, divisor=divisor)
    twins = coverage.twins(test, threshold, train, divisor=divisor)
    return threshold, coverage.cross_support(twins, len(train)).estimate


def _with_ends(name: str, interval: coverage.Interval) -> dict[str, float]:
    return {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}
