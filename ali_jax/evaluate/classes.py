"""Evaluators that use labels: which classes the model generates and keeps, how well codes separate them."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np

from ali_jax import cache, model
from ali_jax.data import Dataset, Split, unit
from ali_jax.evaluate.declare import CLASS_CONDITIONS, CLASSES, CODES_OF_CLASSES, Need, evaluator
from ali_jax.evaluate.numbers import (
    N_SAMPLES,
    N_TEST_LABELLED,
    N_TRAIN_LABELLED,
    Number,
    count,
    with_interval,
)
from ali_jax.evaluate.rows import (
    Rows,
    all_labels,
    cached_by_data,
    is_given_y,
    labelled,
    over_x,
    read_rows,
    reference_classifier,
    reference_predict,
    test_rows,
    train_rows,
)
from ali_jax.evaluate.running import compiled, decode, draw_samples, over_rows, platform_of
from ali_jax.metrics import classes, svm
from ali_jax.metrics.intervals import wilson_interval
from ali_jax.metrics.probes import knn_accuracy, linear_probe_accuracy, principal_codes
from ali_jax.types import ALI, Array, Report, Variables

T = TypeVar("T")

CLASS_LOGITS = Need(
    "a discriminator of K classes, as for the loss 'semi_supervised'",
    lambda _, ali: getattr(ali.discriminator, "num_classes", 1) < 2,
    of_data=False,
)


def _sows_nothing(dataset: Dataset, ali: ALI) -> bool:
    """Tell whether the encoder has no hidden layers that `model.features` can see."""
    x = jax.ShapeDtypeStruct((1, *dataset.test.shape), np.float32)
    z = jax.ShapeDtypeStruct((1, model.latent_dim(ali)), np.float32)
    run = functools.partial(ali.encoder.init, train=False, mutable=True)
    sown = jax.eval_shape(lambda key, x, z: run(model.streams(key), x, z, None), jax.random.key(0), x, z)
    return not jax.tree.leaves(sown.get("intermediates", {}))


HIDDEN_LAYERS = Need(
    "an encoder that sows its hidden layers as `intermediates`, as `networks.Encoder` does",
    _sows_nothing,
    of_data=False,
)
UNTRAINED_SEED = 2017  # of the encoder that the probes are compared with

CLASSIFIER_ACCURACY = Number(
    "classifier_accuracy",
    "test accuracy of the reference classifier, which is trained on train only",
    share_of="n_test_labelled",
    control=True,
)
KNN_ACCURACY_PIXELS = Number(
    "knn_accuracy_pixels",
    "knn_accuracy of raw pixels in place of codes",
    share_of="n_test_labelled",
    control=True,
)


@evaluator(
    needs=CLASSES,
    numbers=(
        Number(
            "class_kl",
            "KL(classes of num_samples samples || classes of train)",
            headline="class KL",
            scale=("class_kl_floor", "for perfect samples"),
        ),
        Number("class_kl_floor", "expectation of class_kl for perfect samples, (K - 1) / 2n", control=True),
        Number("class_share_min", "share of the rarest class among the samples"),
        Number("class_share_max", "share of the most frequent class among the samples"),
        Number("class_score", "inception score of the samples, by the reference classifier"),
        Number("class_score_data", "inception score of test, by the reference classifier", control=True),
        Number(
            "class_kept",
            "share of test images whose reconstruction from the mean code is classified as their true label; "
            "not for models that are given y",
            share_of="n_test_labelled",
            headline="class kept",
        ),
        Number(
            "class_kept_sampled",
            "the same share for reconstructions from a sampled code",
            share_of="n_test_labelled",
        ),
        CLASSIFIER_ACCURACY,
        N_SAMPLES,
        N_TEST_LABELLED,
    ),
)
def class_balance(
    ali: ALI, variables: Variables, key: Array, dataset: Dataset, *, num_samples: int = 10_000
) -> Report:
    """Measure which classes the model generates and keeps, as labelled by the reference classifier.

    Only labelled rows are used: at most 60,000 of train and 10,000 of test. A model that is given y has no
    class_kept and class_kept_sampled, since its reconstructions are told the class.
    """
    key_samples, key_codes = jax.random.split(key)
    predict, accuracy = reference_predict(dataset)
    test = labelled(test_rows(dataset))
    frequencies = classes.class_histogram(labelled(train_rows(dataset)).label, dataset.num_classes)
    probabilities = reference_classifier(dataset).probabilities
    of_samples = draw_samples(ali, variables, key_samples, num_samples, dataset, read=probabilities)
    sampled = of_samples.argmax(axis=-1)
    shares = classes.class_histogram(sampled, dataset.num_classes)

    def share_kept(key: Array | None) -> float:
        label_of = lambda _, x_hat: predict(x_hat)  # noqa: E731
        label = over_rows(model.reconstruct, ali, variables, test, dataset.divisor, key=key, read=label_of)
        return float(np.mean(label == test.label))

    scalars = {
        "class_kl": classes.class_kl(sampled, frequencies),
        "class_kl_floor": classes.class_kl_floor(dataset.num_classes, num_samples),
        "class_share_min": float(shares.min()),
        "class_share_max": float(shares.max()),
        "class_score": classes.class_score(of_samples),
        "class_score_data": _class_score_data(dataset),
        "classifier_accuracy": accuracy,
        "n_samples": float(num_samples),
        "n_test_labelled": float(len(test.x)),
    }
    if not is_given_y(dataset):
        scalars |= {"class_kept": share_kept(None), "class_kept_sampled": share_kept(key_codes)}
    return Report(scalars, {})


@evaluator(
    needs=(*CLASSES, CLASS_CONDITIONS),
    numbers=(
        Number("condition_agreement", "share of samples G_x(z, y) that are classified as their condition y"),
        Number("condition_agreement_min", "that share for the class where it is smallest"),
        CLASSIFIER_ACCURACY,
        N_SAMPLES,
    ),
)
def condition_agreement(
    ali: ALI, variables: Variables, key: Array, dataset: Dataset, *, num_samples: int = 10_000
) -> Report:
    """Measure how often samples G_x(z, y) are of the class y, as labelled by the reference classifier.

    Of the `num_samples` samples equally many are drawn for each class.
    """
    predict, accuracy = reference_predict(dataset)
    label = np.arange(num_samples) % dataset.num_classes
    z = np.asarray(jax.random.normal(key, (num_samples, model.latent_dim(ali))))
    y = np.eye(dataset.num_classes, dtype=np.float32)[label]
    agrees = decode(ali, variables, z, y, read=predict) == label
    scalars = {
        "condition_agreement": float(agrees.mean()),
        "condition_agreement_min": float(min(agrees[label == k].mean() for k in np.unique(label))),
        "classifier_accuracy": accuracy,
        "n_samples": float(num_samples),
    }
    return Report(scalars, {})


@evaluator(
    needs=(*CODES_OF_CLASSES, CLASS_LOGITS),
    numbers=(
        Number(
            "label_error",
            "test error of argmax_k l_k(x, z) at the mean code z",
            share_of="n_test_labelled",
        ),
        Number(
            "label_error_sampled",
            "test error of the class with the largest probability, averaged over num_codes sampled codes",
            share_of="n_test_labelled",
        ),
        N_TEST_LABELLED,
    ),
)
def label_error(
    ali: ALI, variables: Variables, key: Array, dataset: Dataset, *, num_codes: int = 10
) -> Report:
    """Measure the classification error of a discriminator of K classes on test."""
    test = labelled(test_rows(dataset))
    logits = functools.partial(over_rows, _class_probabilities, ali, variables, test, dataset.divisor)
    sampled = sum(logits(key=k) for k in jax.random.split(key, num_codes))
    scalars = {
        "label_error": float(np.mean(np.argmax(logits(), axis=-1) != test.label)),
        "label_error_sampled": float(np.mean(np.argmax(sampled, axis=-1) != test.label)),
        "n_test_labelled": float(len(test.x)),
    }
    return Report(scalars, {})


@evaluator(
    needs=CODES_OF_CLASSES,
    numbers=(
        Number(
            "knn_accuracy",
            "test accuracy of 1-nearest neighbour on mean codes, Euclidean, unscaled",
            share_of="n_test_labelled",
            headline="1-NN accuracy of codes",
            scale=("knn_accuracy_pixels", "for raw pixels"),
        ),
        Number(
            "linear_probe_accuracy",
            "test accuracy of logistic regression on mean codes, standardised, C = 1, all labels of train",
            share_of="n_test_labelled",
        ),
        KNN_ACCURACY_PIXELS,
        *(
            Number(f"{probe}_{suffix}", f"{probe} of {what}", share_of="n_test_labelled", control=True)
            for probe, suffix, what in (
                ("linear_probe_accuracy", "pixels", "raw pixels in place of codes"),
                ("knn_accuracy", "pca", "as many principal components as the code has dimensions"),
                ("linear_probe_accuracy", "pca", "as many principal components as the code has dimensions"),
                ("knn_accuracy", "untrained", "the untrained encoder's codes"),
                ("linear_probe_accuracy", "untrained", "the untrained encoder's codes"),
            )
        ),
        N_TRAIN_LABELLED,
        N_TEST_LABELLED,
    ),
)
def probes(ali: ALI, variables: Variables, key: Array, dataset: Dataset, *, controls: bool = True) -> Report:
    """Measure how well mean codes separate the classes: probes are fitted to train and scored on test.

    The same probes of pixels, of principal components and of the untrained encoder's codes are the
    `controls`. They do not depend on the trained weights, and are kept in the user's cache.
    Only labelled rows are used: at most 60,000 of train and 10,000 of test. `key` is not used.
    """
    del key
    scalars = {
        **_code_accuracies(ali, variables, dataset),
        **(_control_accuracies(ali, dataset) if controls else {}),
        "n_train_labelled": float(len(labelled(train_rows(dataset)).x)),
        "n_test_labelled": float(len(labelled(test_rows(dataset)).x)),
    }
    return Report(scalars, {})


@evaluator(
    needs=(*CODES_OF_CLASSES, HIDDEN_LAYERS),
    numbers=(
        *with_interval(
            Number(
                "hidden_knn_accuracy",
                "test accuracy of 1-nearest neighbour on the last hidden layer, Euclidean, unscaled",
                share_of="n_test_labelled",
            ),
            "Wilson's, from the number of test rows",
        ),
        Number(
            "hidden_knn_accuracy_untrained",
            "hidden_knn_accuracy of the untrained encoder",
            share_of="n_test_labelled",
            control=True,
        ),
        KNN_ACCURACY_PIXELS,
        N_TRAIN_LABELLED,
        N_TEST_LABELLED,
    ),
)
def hidden_probe(
    ali: ALI, variables: Variables, key: Array, dataset: Dataset, *, controls: bool = True
) -> Report:
    """Measure how well the encoder's last hidden layer separates the classes; `probes` does so for codes.

    The layer is taken before its nonlinearity, as in `model.features`. The rows and the `controls` are those
    of `probes`. `key` is not used.
    """
    del key
    accuracy = _hidden_knn_accuracy(ali, variables, dataset)
    number = len(labelled(test_rows(dataset)).x)
    low, high = wilson_interval(accuracy * number, number)
    scalars = {
        "hidden_knn_accuracy": accuracy,
        "hidden_knn_accuracy_low": low,
        "hidden_knn_accuracy_high": high,
        **(_hidden_controls(ali, dataset) if controls else {}),
        "n_train_labelled": float(len(labelled(train_rows(dataset)).x)),
        "n_test_labelled": float(number),
    }
    return Report(scalars, {})


@evaluator(
    needs=CODES_OF_CLASSES,
    numbers=(
        *with_interval(
            Number(
                "svm_error",
                "mean test error of machines fitted to svm_draws draws of svm_labels rows, balanced by class",
                share_of="n_svm_test",
            ),
            "Wilson's, from the number of test rows; it leaves out the variation between draws",
        ),
        Number("svm_error_std", "standard deviation of the test error over the draws"),
        Number("svm_validation_error", "mean validation error over ten other draws, at the same C"),
        Number("svm_log_c", "natural logarithm of C, chosen on validation rows with one more draw"),
        Number("svm_gap", "largest relative duality gap of the machines; above 1e-8 one has not converged"),
        count("n_svm_labels", "labelled rows in a draw"),
        count("n_svm_draws", "draws"),
        count("n_svm_pool", "labelled train rows that draws are from"),
        count("n_svm_validation", "validation rows"),
        count("n_svm_test", "labelled test rows, all of them"),
    ),
)
def l2_svm(
    ali: ALI,
    variables: Variables,
    key: Array,
    dataset: Dataset,
    *,
    svm_labels: int = 1000,
    svm_draws: int = 100,
) -> Report:
    """Measure the error of linear L2-SVMs on few labels, by the protocol of the paper (section 4.4).

    Features are `model.features`: the code at epsilon = 0 and the encoder's last three layers before their
    nonlinearity, unscaled. The last labelled rows of train are for validation: 10,000 of 60,000 or more, 3 in
    17 of fewer. Labels are drawn from the rows before them. All labelled rows of test are scored. For the
    paper's number on SVHN choose its `train` and `test` splits, whichever split the networks were trained on.
    """
    train_labels, test_labels = (all_labels(dataset, name) for name in ("train", "test"))
    known = np.flatnonzero(train_labels >= 0)
    rows_pool, rows_validation = np.split(known, [len(known) - svm.validation_size(len(known))])
    seed = int(jax.random.bits(key))
    draws = svm.protocol_draws(seed, train_labels[rows_pool], dataset.num_classes, svm_labels, svm_draws)
    used, within = np.unique(np.concatenate(draws), return_inverse=True)
    draws = svm.Draws(*np.split(within, np.cumsum([len(rows) for rows in draws[:-1]])))

    def labelled_features(split: Split, indices: np.ndarray) -> svm.Labelled:
        rows = read_rows(split, indices)
        return svm.Labelled(over_rows(model.features, ali, variables, rows, dataset.divisor), rows.label)

    pool, validation = (labelled_features(dataset.train, r) for r in (rows_pool[used], rows_validation))
    test = labelled_features(dataset.test, np.flatnonzero(test_labels >= 0))
    result = svm.svm_protocol(pool, validation, test, draws, dataset.num_classes)
    error, number = float(np.mean(result.test_errors)), len(test.labels)
    low, high = wilson_interval(error * number, number)
    scalars = {
        "svm_error": error,
        "svm_error_std": float(np.std(result.test_errors)),
        "svm_error_low": low,
        "svm_error_high": high,
        "svm_validation_error": float(np.mean(result.validation_errors)),
        "svm_log_c": float(np.log(result.c)),
        "svm_gap": result.gap,
        "n_svm_labels": float(svm_labels),
        "n_svm_draws": float(svm_draws),
        "n_svm_pool": float(len(rows_pool)),
        "n_svm_validation": float(len(rows_validation)),
        "n_svm_test": float(number),
    }
    return Report(scalars, {})


@cached_by_data(maxsize=2)
def _class_score_data(dataset: Dataset) -> float:
    probabilities = reference_classifier(dataset).probabilities
    return classes.class_score(over_x(probabilities, labelled(test_rows(dataset)), dataset.divisor))


def _class_probabilities(
    ali: ALI, variables: Variables, x: Array, y: Array | None = None, *, key: Array | None = None
) -> Array:
    z = model.encode(ali, variables, x, y, key=key)
    return jax.nn.softmax(model.discriminate(ali, variables, x, z, y), axis=-1)


def _code_accuracies(ali: ALI, variables: Variables, dataset: Dataset) -> dict[str, float]:
    train, test = _of_labelled_rows(model.encode, ali, variables, dataset)
    return _accuracies(dataset, train, test)


def _control_accuracies(ali: ALI, dataset: Dataset) -> dict[str, float]:
    return {
        **_with_suffix(_pixel_accuracies(dataset), "pixels"),
        **_with_suffix(_component_accuracies(dataset, model.latent_dim(ali)), "pca"),
        **_with_suffix(_untrained_accuracies(dataset, ali), "untrained"),
    }


def _hidden_controls(ali: ALI, dataset: Dataset) -> dict[str, float]:
    return {
        "hidden_knn_accuracy_untrained": _untrained_hidden_knn_accuracy(dataset, ali),
        "knn_accuracy_pixels": _pixel_accuracies(dataset)["knn_accuracy"],
    }


@cached_by_data(maxsize=2)
def _pixel_accuracies(dataset: Dataset) -> dict[str, float]:
    return _kept(lambda: _accuracies(dataset, *_pixels(dataset)), dataset, "pixels")


@cached_by_data(maxsize=2)
def _component_accuracies(dataset: Dataset, size: int) -> dict[str, float]:
    def compute() -> dict[str, float]:
        return _accuracies(dataset, *principal_codes(*_pixels(dataset), size, divisor=dataset.divisor))

    return _kept(compute, dataset, "components", size)


@cached_by_data(maxsize=2)
def _untrained_accuracies(dataset: Dataset, ali: ALI) -> dict[str, float]:
    def compute() -> dict[str, float]:
        return _code_accuracies(ali, _untrained(dataset, ali), dataset)

    return _kept(compute, dataset, "untrained", repr(ali))


@cached_by_data(maxsize=2)
def _untrained_hidden_knn_accuracy(dataset: Dataset, ali: ALI) -> float:
    def compute() -> float:
        return _hidden_knn_accuracy(ali, _untrained(dataset, ali), dataset)

    return _kept(compute, dataset, "hidden", repr(ali))


def _kept(compute: Callable[[], T], dataset: Dataset, *about: Any) -> T:
    """Keep a control in the user's cache: it depends on the labelled rows, and on `about`."""
    return cache.kept(compute, *about, _digest(dataset), dataset.divisor, dataset.num_classes, platform_of())


@cached_by_data(maxsize=2)
def _digest(dataset: Dataset) -> str:
    """Return a digest of the labelled rows, which takes seconds for large images."""
    train, test = _labelled_rows(dataset)
    return cache.digest(train.x, train.label, test.x, test.label)


def _untrained(dataset: Dataset, ali: ALI) -> Variables:
    train = train_rows(dataset)
    x, y = unit(train.x[:500], dataset.divisor), None if train.y is None else train.y[:500]
    return compiled(model.init, platform_of())(ali, jax.random.key(UNTRAINED_SEED), x, y)


def _hidden_knn_accuracy(ali: ALI, variables: Variables, dataset: Dataset) -> float:
    train, test = _of_labelled_rows(_last_hidden, ali, variables, dataset)
    train_label, test_label = (rows.label for rows in _labelled_rows(dataset))
    return knn_accuracy(train, train_label, test, test_label)


def _of_labelled_rows(
    function: Callable[..., Array], ali: ALI, variables: Variables, dataset: Dataset
) -> tuple[np.ndarray, np.ndarray]:
    """Apply a function of x and y to the labelled rows of train and of test."""
    train, test = (
        over_rows(function, ali, variables, rows, dataset.divisor) for rows in _labelled_rows(dataset)
    )
    return train, test


def _labelled_rows(dataset: Dataset) -> tuple[Rows, Rows]:
    return labelled(train_rows(dataset)), labelled(test_rows(dataset))


def _last_hidden(
    ali: ALI, variables: Variables, x: Array, y: Array | None = None, *, key: Array | None = None
) -> Array:
    del key
    return model.features(ali, variables, x, y, layers=1)[:, model.latent_dim(ali) :]


def _accuracies(dataset: Dataset, train: np.ndarray, test: np.ndarray) -> dict[str, float]:
    train_label, test_label = (rows.label for rows in _labelled_rows(dataset))
    rows, divisor = (train, train_label, test, test_label), dataset.divisor
    return {
        "knn_accuracy": knn_accuracy(*rows, divisor=divisor),
        "linear_probe_accuracy": linear_probe_accuracy(*rows, dataset.num_classes, divisor=divisor),
    }


def _pixels(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return labelled rows as they are stored, [N, F]."""
    train, test = (rows.x.reshape(len(rows.x), -1) for rows in _labelled_rows(dataset))
    return train, test


def _with_suffix(scalars: dict[str, float], suffix: str) -> dict[str, float]:
    return {f"{name}_{suffix}": value for name, value in scalars.items()}
