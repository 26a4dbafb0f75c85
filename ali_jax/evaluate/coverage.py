"""Evaluators of coverage: which modes the model has, how many of them, and how much that is different."""

import jax
import numpy as np

from ali_jax import model
from ali_jax.data import Dataset, stacked_label, unit
from ali_jax.evaluate.needs import SINGLE_IMAGES, STACKS, Need, needs
from ali_jax.evaluate.rows import (
    cached_by_data,
    labelled,
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

MODE_SAMPLES = 2_500  # the number that modes, modes_strict and reverse_kl are quoted at in the literature
PAPER_MODE_SAMPLES = 10_000  # the paper's own
STACKED_SAMPLES = 26_000  # the literature's, for the 1,000 modes of stacked MNIST
READER_LENGTH = 3.0  # of the classifier's training: a stack is read right where all three images are
COVERAGE_BATCHES = 8  # of MODE_SAMPLES samples each
SUPPORT_SAMPLES = 2_000  # among which twins are looked for


@needs(Need("known modes", lambda data, _: data.modes is None))
def modes(ali: ALI, variables: Variables, key: Array, dataset: Dataset) -> Report:
    """Measure the coverage of a mixture, with 2,500 samples as `metrics.modes.mode_statistics` does.

    modes         number of modes with at least one sample of high quality: within 3 standard deviations
    modes_strict  number of modes with at least a fifth of their fair share of those
    high_quality  share of the samples that are of high quality
    reverse_kl    KL(high-quality samples over modes || uniform)
    mode_spread   spread of the high-quality samples about their mode, over the true one; 0.974 for the data
    modes_paper   the paper's lenient count, with 10,000 samples
    mode_kept     share of test rows, at most 10,000, whose sampled reconstruction stays with their mode
    """
    assert dataset.modes is not None
    key_samples, key_paper, key_codes = jax.random.split(key, 3)
    test = test_rows(dataset)
    x_hat = over_rows(model.reconstruct, ali, variables, test, dataset.divisor, key=key_codes)
    x_tilde = draw_samples(ali, variables, key_samples, MODE_SAMPLES, dataset)
    many = draw_samples(ali, variables, key_paper, PAPER_MODE_SAMPLES, dataset)
    scalars = {
        **mode_statistics(x_tilde, dataset.modes, dataset.mode_std),
        "modes_paper": float(paper_mode_count(many, dataset.modes)),
        "mode_kept": mode_kept(test.x, x_hat, dataset.modes),
        "n_test": float(len(test.x)),
    }
    return Report(scalars, {})


@needs(STACKS)
def stacked_modes(ali: ALI, variables: Variables, key: Array, dataset: Dataset) -> Report:
    """Measure how many of the K classes of stacks there are among 26,000 samples (1,000 for digits).

    The reference classifier reads one channel after the other. It is trained on single images of train, three
    times as long as for those.

    stacked_modes_strict       number of classes with at least a fifth of their fair share (26 for digits)
    stacked_modes              number of classes with at least one sample; the classifier's errors add to it
    stacked_kl                 KL(classes of the samples || uniform)
    stacked_kl_floor           its expectation for perfect samples, (K - 1) / 2n
    stacked_modes_strict_real, stacked_modes_real, stacked_kl_real
                               the same of all rows of test, read in the same way: the ceiling
    classifier_error           share of single test images, at most 10,000, that are given a wrong label
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
        "n_test_labelled": float(len(labelled(test_rows(dataset.parts)).x)),
    }
    return Report(scalars, {})


@needs(
    Need("known modes or labels", lambda data, _: data.modes is None and data.num_classes < 2), SINGLE_IMAGES
)
def mode_coverage(ali: ALI, variables: Variables, key: Array, dataset: Dataset) -> Report:
    """Estimate how many of the known modes, or else classes, the model covers; 95 % intervals (_low, _high).

    coverage_expected  modes hit by 2,500 samples, on average over such samples (`metrics.coverage`)
    coverage_frequent  modes with at least a fifth of their fair share of all samples; where the reference
                       classifier reads them off, its errors on test are accounted for

    20,000 samples are drawn (n_samples). A sample hits a known mode within three standard deviations.
    """
    x_tilde = draw_samples(ali, variables, key, COVERAGE_BATCHES * MODE_SAMPLES, dataset)
    confusion = None
    if dataset.modes is not None:
        batches = x_tilde.reshape(COVERAGE_BATCHES, MODE_SAMPLES, -1)
        counts = np.stack([mode_counts(batch, dataset.modes, dataset.mode_std) for batch in batches])
    else:
        predict, _ = reference_predict(dataset)
        test = labelled(test_rows(dataset))
        confusion = np.zeros((dataset.num_classes, dataset.num_classes), int)
        np.add.at(confusion, (test.label, predict(unit(test.x, dataset.divisor))), 1)
        read = predict(x_tilde).reshape(COVERAGE_BATCHES, MODE_SAMPLES)
        counts = np.stack([np.bincount(labels, minlength=dataset.num_classes) for labels in read])
    fair_fifth = 0.2 / counts.shape[1]
    frequent = coverage.frequent_modes(counts.sum(axis=0), len(x_tilde), fair_fifth, confusion=confusion)
    scalars = {
        **_with_ends("coverage_expected", coverage.expected_modes(counts)),
        **_with_ends("coverage_frequent", frequent),
        "n_samples": float(len(x_tilde)),
    }
    return Report(scalars, {})


def effective_support(ali: ALI, variables: Variables, key: Array, dataset: Dataset) -> Report:
    """Estimate how many different things the model makes, from the twins among 2,000 samples.

    effective_support        1 / sum p^2, with a 95 % interval (_low, _high), as `metrics.coverage` does
    effective_support_real   the same of real data, twins between test and train, as scale

    Twins are rows closer than 99 % of test rows (at most 2,000) are to their nearest row of train.
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
    """Score stacks [N, H, W, C], stored or as networks see them."""
    assert dataset.parts is not None
    predict, _ = reference_predict(dataset.parts, READER_LENGTH)
    channels = np.split(x, x.shape[-1], axis=-1)
    read = np.stack([predict(unit(channel, dataset.divisor)) for channel in channels], axis=-1)
    label = stacked_label(read, dataset.parts.num_classes)
    found = count_statistics(np.bincount(label, minlength=dataset.num_classes), len(label))
    names = {"modes_strict": "stacked_modes_strict", "modes": "stacked_modes", "reverse_kl": "stacked_kl"}
    return {name: found[key] for key, name in names.items()}


@cached_by_data(maxsize=2)
def _real_support(dataset: Dataset) -> tuple[float, float]:
    """Return the distance below which rows are twins, and the effective support of real data."""
    train, test = (unit(rows.x, dataset.divisor) for rows in (train_rows(dataset), test_rows(dataset)))
    test = test[np.arange(min(len(test), SUPPORT_SAMPLES)) * len(test) // min(len(test), SUPPORT_SAMPLES)]
    threshold = coverage.duplicate_threshold(test, train)
    return threshold, coverage.cross_support(coverage.twins(test, threshold, train), len(train)).estimate


def _with_ends(name: str, interval: coverage.Interval) -> dict[str, float]:
    return {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}
