"""Evaluators by labels: which classes the model makes and keeps, and how well codes tell them apart."""

import functools
from collections.abc import Callable

import jax
import numpy as np

from ali_jax import model
from ali_jax.data import Dataset, Split, unit
from ali_jax.evaluate.needs import CLASS_CONDITIONS, CLASSES, Need, needs
from ali_jax.evaluate.rows import (
    Rows,
    all_labels,
    cached_by_data,
    labelled,
    read_rows,
    reference_classifier,
    reference_predict,
    test_rows,
    train_rows,
)
from ali_jax.evaluate.running import compiled, decode, draw_samples, over_rows, platform_of
from ali_jax.metrics import classes, svm
from ali_jax.metrics.intervals import wilson_interval
from ali_jax.metrics.probes import knn_accuracy, linear_probe_accuracy, pca
from ali_jax.types import ALI, Array, Report, Variables

CLASS_LOGITS = Need(
    "a discriminator of K classes, as for the loss 'semi_supervised'",
    lambda _, ali: getattr(ali.discriminator, "num_classes", 1) < 2,
    of_data=False,
)
HIDDEN_LAYERS = Need(
    "an encoder with hidden layers",
    lambda _, ali: not getattr(ali.encoder, "layers", ()),
    of_data=False,
)
UNTRAINED_SEED = 2017  # of the encoder that the probes are compared with


@needs(*CLASSES)
def class_balance(
    ali: ALI, variables: Variables, key: Array, dataset: Dataset, *, num_samples: int = 10_000
) -> Report:
    """Measure which classes the model makes and keeps, as the reference classifier sees them.

    class_kl                          KL(classes of `num_samples` samples || classes of train)
    class_kl_floor                    its expectation for perfect samples, (K - 1) / 2n
    class_share_min, class_share_max  the smallest and the largest share among the samples
    class_score, class_score_data     the inception score of the samples and of test, by that classifier
    class_kept, class_kept_sampled    share of test images whose reconstruction, from the mean code and from
                                      a sampled one, is given their true label
    classifier_accuracy               of the classifier on test; it is trained on train only

    Of train at most 60,000 rows are used and of test 10,000, those of them that are labelled.
    """
    key_samples, key_codes = jax.random.split(key)
    predict, accuracy = reference_predict(dataset)
    test = labelled(test_rows(dataset))
    frequencies = classes.class_histogram(labelled(train_rows(dataset)).label, dataset.num_classes)
    samples = draw_samples(ali, variables, key_samples, num_samples, dataset)
    of_samples = reference_classifier(dataset).probabilities(samples)
    sampled = of_samples.argmax(axis=-1)
    shares = classes.class_histogram(sampled, dataset.num_classes)

    def kept(key: Array | None) -> float:
        x_hat = over_rows(model.reconstruct, ali, variables, test, dataset.divisor, key=key)
        return float(np.mean(predict(x_hat) == test.label))

    scalars = {
        "class_kl": classes.class_kl(sampled, frequencies),
        "class_kl_floor": classes.class_kl_floor(dataset.num_classes, num_samples),
        "class_share_min": float(shares.min()),
        "class_share_max": float(shares.max()),
        "class_score": classes.class_score(of_samples),
        "class_score_data": _class_score_data(dataset),
        "class_kept": kept(None),
        "class_kept_sampled": kept(key_codes),
        "classifier_accuracy": accuracy,
        "n_samples": float(num_samples),
        "n_test_labelled": float(len(test.x)),
    }
    return Report(scalars, {})


@needs(*CLASSES, CLASS_CONDITIONS)
def condition_agreement(
    ali: ALI, variables: Variables, key: Array, dataset: Dataset, *, num_samples: int = 10_000
) -> Report:
    """Measure how often samples G_x(z, y) are of the class y that they were asked to be.

    condition_agreement      share of `num_samples` samples, as many of each class, that the reference
                             classifier gives the class y
    condition_agreement_min  the same of the class where it is smallest
    classifier_accuracy      of the classifier on test; it is trained on train only
    """
    predict, accuracy = reference_predict(dataset)
    label = np.arange(num_samples) % dataset.num_classes
    z = np.asarray(jax.random.normal(key, (num_samples, model.latent_dim(ali))))
    x_tilde = decode(ali, variables, z, np.eye(dataset.num_classes, dtype=np.float32)[label])
    right = predict(x_tilde) == label
    scalars = {
        "condition_agreement": float(right.mean()),
        "condition_agreement_min": float(min(right[label == k].mean() for k in range(dataset.num_classes))),
        "classifier_accuracy": accuracy,
        "n_samples": float(num_samples),
    }
    return Report(scalars, {})


@needs(*CLASSES, CLASS_LOGITS)
def label_error(
    ali: ALI, variables: Variables, key: Array, dataset: Dataset, *, num_codes: int = 10
) -> Report:
    """Measure the test error of a discriminator of K classes, of at most 10,000 test rows.

    label_error          of argmax_k l_k(x, z) at the mean code z
    label_error_sampled  of the class with the largest probability, averaged over `num_codes` sampled codes
    """
    test = labelled(test_rows(dataset))
    logits = functools.partial(over_rows, _class_probabilities, ali, variables, test, dataset.divisor)
    sampled = sum(logits(key=k) for k in jax.random.split(key, num_codes))
    scalars = {
        "label_error": float(np.mean(np.argmax(logits(), axis=-1) != test.label)),
        "label_error_sampled": float(np.mean(np.argmax(sampled, axis=-1) != test.label)),
        "n_test_labelled": float(len(test.x)),
    }
    return Report(scalars, {})


@needs(*CLASSES)
def probes(ali: ALI, variables: Variables, key: Array, dataset: Dataset) -> Report:
    """Measure how far mean codes tell the classes apart: reference is train, queries are test.

    knn_accuracy           1-nearest neighbour, Euclidean, unscaled
    linear_probe_accuracy  logistic regression, C = 1, standardised, all labels of train

    Of train at most 60,000 rows are used and of test 10,000, those of them that are labelled. Controls stand
    beside; nothing is drawn from `key`.

    knn_accuracy_pixels, linear_probe_accuracy_pixels        the same of raw pixels
    knn_accuracy_pca, linear_probe_accuracy_pca              of as many principal components as Z
    knn_accuracy_untrained, linear_probe_accuracy_untrained  of the untrained encoder's codes
    """
    del key
    scalars = {
        **_code_accuracies(ali, variables, dataset),
        **_with_suffix(_pixel_accuracies(dataset), "pixels"),
        **_with_suffix(_pca_accuracies(dataset, model.latent_dim(ali)), "pca"),
        **_with_suffix(_untrained_accuracies(dataset, ali), "untrained"),
        "n_train_labelled": float(len(labelled(train_rows(dataset)).x)),
        "n_test_labelled": float(len(labelled(test_rows(dataset)).x)),
    }
    return Report(scalars, {})


@needs(*CLASSES, HIDDEN_LAYERS)
def hidden_probe(ali: ALI, variables: Variables, key: Array, dataset: Dataset) -> Report:
    """Measure how far the encoder's last hidden layer tells the classes apart, where `probes` takes codes.

    hidden_knn_accuracy            1-nearest neighbour, Euclidean, unscaled; reference is train, queries test
    hidden_knn_accuracy_low, hidden_knn_accuracy_high
                                   95 % interval (Wilson) for it from the number of test rows
    hidden_knn_accuracy_untrained  the same of the untrained encoder
    knn_accuracy_pixels            the same of raw pixels

    The layer is taken before its nonlinearity, as in `model.features`. Rows are those of `probes`; nothing is
    drawn from `key`.
    """
    del key
    accuracy = _hidden_knn_accuracy(ali, variables, dataset)
    number = len(labelled(test_rows(dataset)).x)
    low, high = wilson_interval(accuracy * number, number)
    scalars = {
        "hidden_knn_accuracy": accuracy,
        "hidden_knn_accuracy_low": low,
        "hidden_knn_accuracy_high": high,
        "hidden_knn_accuracy_untrained": _untrained_hidden_knn_accuracy(dataset, ali),
        "knn_accuracy_pixels": _pixel_accuracies(dataset)["knn_accuracy"],
        "n_train_labelled": float(len(labelled(train_rows(dataset)).x)),
        "n_test_labelled": float(number),
    }
    return Report(scalars, {})


@needs(*CLASSES)
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

    svm_error              mean test error of machines fitted to `svm_draws` draws of `svm_labels` rows, as
                           many of every class
    svm_error_std          its standard deviation over the draws
    svm_error_low, svm_error_high
                           95 % interval (Wilson) for svm_error from the number of test rows; the spread over
                           draws is no part of it
    svm_validation_error   mean validation error over ten other draws, at the same C
    svm_log_c              natural logarithm of C, chosen on validation rows with one more draw
    svm_gap                largest relative duality gap of the machines; above 1e-8 a fit did not converge

    Features are `model.features`: the code at epsilon = 0 and the encoder's last three layers before their
    nonlinearity, unscaled. Validation rows are the last of train's labelled rows, 10,000 of 60,000 or more
    and 3 in 17 of fewer; labels are drawn from the rows before them, and all labelled rows of test are
    scored. The paper's number on SVHN needs its `train` and `test` splits, whatever the networks saw.
    """
    train_labels, test_labels = (all_labels(dataset, name) for name in ("train", "test"))
    known = np.flatnonzero(train_labels >= 0)
    rows_pool, rows_held = np.split(known, [len(known) - svm.validation_size(len(known))])
    seed = int(jax.random.bits(key))
    draws = svm.protocol_draws(seed, train_labels[rows_pool], dataset.num_classes, svm_labels, svm_draws)
    used, within = np.unique(np.concatenate(draws), return_inverse=True)
    draws = svm.Draws(*np.split(within, np.cumsum([len(rows) for rows in draws[:-1]])))

    def labelled_features(split: Split, indices: np.ndarray) -> svm.Labelled:
        rows = read_rows(split, indices)
        return svm.Labelled(over_rows(model.features, ali, variables, rows, dataset.divisor), rows.label)

    pool, validation = (labelled_features(dataset.train, r) for r in (rows_pool[used], rows_held))
    test = labelled_features(dataset.test, np.flatnonzero(test_labels >= 0))
    found = svm.svm_protocol(pool, validation, test, draws, dataset.num_classes)
    error, number = float(np.mean(found.test_errors)), len(test.labels)
    low, high = wilson_interval(error * number, number)
    scalars = {
        "svm_error": error,
        "svm_error_std": float(np.std(found.test_errors)),
        "svm_error_low": low,
        "svm_error_high": high,
        "svm_validation_error": float(np.mean(found.validation_errors)),
        "svm_log_c": float(np.log(found.c)),
        "svm_gap": found.gap,
        "n_svm_labels": float(svm_labels),
        "n_svm_draws": float(svm_draws),
        "n_svm_pool": float(len(rows_pool)),
        "n_svm_validation": float(len(rows_held)),
        "n_svm_test": float(number),
    }
    return Report(scalars, {})


@cached_by_data(maxsize=2)
def _class_score_data(dataset: Dataset) -> float:
    x = unit(labelled(test_rows(dataset)).x, dataset.divisor)
    return classes.class_score(reference_classifier(dataset).probabilities(x))


def _class_probabilities(
    ali: ALI, variables: Variables, x: Array, y: Array | None = None, *, key: Array | None = None
) -> Array:
    z = model.encode(ali, variables, x, y, key=key)
    return jax.nn.softmax(model.discriminate(ali, variables, x, z, y), axis=-1)


def _code_accuracies(ali: ALI, variables: Variables, dataset: Dataset) -> dict[str, float]:
    train, test = _of_labelled_rows(model.encode, ali, variables, dataset)
    return _accuracies(dataset, train, test)


@cached_by_data(maxsize=2)
def _pixel_accuracies(dataset: Dataset) -> dict[str, float]:
    return _accuracies(dataset, *_pixels(dataset))


@cached_by_data(maxsize=2)
def _pca_accuracies(dataset: Dataset, size: int) -> dict[str, float]:
    train, test = _pixels(dataset)
    mean, components = pca(train, min(size, train.shape[1]))
    return _accuracies(dataset, (train - mean[None]) @ components, (test - mean[None]) @ components)


@cached_by_data(maxsize=2)
def _untrained_accuracies(dataset: Dataset, ali: ALI) -> dict[str, float]:
    return _code_accuracies(ali, _untrained(dataset, ali), dataset)


@cached_by_data(maxsize=2)
def _untrained_hidden_knn_accuracy(dataset: Dataset, ali: ALI) -> float:
    return _hidden_knn_accuracy(ali, _untrained(dataset, ali), dataset)


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
    linear = linear_probe_accuracy(train, train_label, test, test_label, dataset.num_classes)
    return {
        "knn_accuracy": knn_accuracy(train, train_label, test, test_label),
        "linear_probe_accuracy": linear,
    }


def _pixels(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    train, test = (unit(rows.x, dataset.divisor) for rows in _labelled_rows(dataset))
    return train.reshape(len(train), -1), test.reshape(len(test), -1)


def _with_suffix(scalars: dict[str, float], suffix: str) -> dict[str, float]:
    return {f"{name}_{suffix}": value for name, value in scalars.items()}
