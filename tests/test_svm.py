"""The L2-SVM protocol: liblinear's optimum, balanced draws, the choice of C, and the interval."""

import json

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binom
from sklearn.svm import LinearSVC

from ali_jax import data, evaluate
from ali_jax.config import base, validate
from ali_jax.data import ArraySplit
from ali_jax.metrics import svm
from ali_jax.metrics.intervals import wilson_interval
from ali_jax.types import Networks, Variables
from benchmarks import svm as benchmark

SIZES = {"wide": (60, 90), "tall": (90, 12)}  # more features than examples, and fewer


def blobs(size, seed=0, num_classes=3):
    """Give features of very different scales that tell overlapping classes apart, and labels."""
    rng = np.random.default_rng(seed)
    number, width = size
    labels = np.arange(number) % num_classes
    centers = 0.5 * np.random.default_rng(99).standard_normal((num_classes, width))
    scale = np.geomspace(0.1, 3, width)
    features = (centers[labels] + rng.standard_normal((number, width)) + 0.3) * scale[None]
    return features.astype(np.float32), labels


def objective(machine, features, labels, c):
    """Work out liblinear's primal objective [K] and the norm [K] of its gradient."""
    x = np.concatenate([features, np.ones((len(features), 1))], axis=1).astype(np.float64)
    w = np.concatenate([machine.weights, machine.bias[None]])
    signs = np.where(labels[:, None] == np.arange(w.shape[1])[None], 1, -1)
    slack = np.maximum(0, 1 - signs * (x @ w))
    gradient = w - 2 * c * x.T @ (signs * slack)
    return 0.5 * np.sum(w**2, axis=0) + c * np.sum(slack**2, axis=0), np.linalg.norm(gradient, axis=0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("log_c", [-20, -6, 0, 4])
def test_a_fit_is_liblinears(size, log_c):
    (features, labels), c = blobs(SIZES[size]), np.exp(log_c)
    ours = svm.fit_l2_svm(features, labels, 3, c)
    theirs = LinearSVC(C=c, tol=1e-10, max_iter=100_000, dual=size == "wide").fit(features, labels)
    reference = svm.LinearSVM(theirs.coef_.T, theirs.intercept_, ours.gap)
    value, _ = objective(ours, features, labels, c)
    np.testing.assert_allclose(value, objective(reference, features, labels, c)[0], rtol=1e-6)
    np.testing.assert_allclose(ours.weights, reference.weights, atol=1e-5 * np.abs(ours.weights).max())
    np.testing.assert_allclose(ours.bias, reference.bias, atol=1e-5 * np.abs(ours.weights).max())
    x, truth = blobs((3000, SIZES[size][1]), seed=1)
    predictions = np.argmax(x @ ours.weights + ours.bias[None], axis=1)
    assert abs(np.mean(predictions != truth) - np.mean(theirs.predict(x) != truth)) < 0.003


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("log_c", [-20, -10, 0, 10, 20])
def test_the_gradient_vanishes_for_every_c_of_the_grid(size, log_c):
    (features, labels), c = blobs(SIZES[size]), np.exp(log_c)
    machine = svm.fit_l2_svm(features, labels, 3, c)
    assert machine.gap.max() <= svm.TOLERANCE
    value, gradient = objective(machine, features, labels, c)
    if size == "tall" or log_c < 5:
        # The primal gap is at most half the gradient's square.
        assert np.all(0.5 * gradient**2 <= 1e-7 * value)
    else:  # Separable: what is left of the hinges is below rounding, which C blows up in the gradient.
        signs = np.where(labels[:, None] == np.arange(3)[None], 1, -1)
        margins = signs * (features @ machine.weights + machine.bias[None])
        np.testing.assert_allclose(margins.min(axis=0), 1, atol=2e-4)


def test_the_gap_bounds_what_is_missing_to_the_optimum(monkeypatch):
    features, labels = blobs(SIZES["wide"])
    best, _ = objective(svm.fit_l2_svm(features, labels, 3, 0.1), features, labels, 0.1)
    for steps in range(2, 5):
        monkeypatch.setattr(svm, "MAX_STEPS", steps)
        machine = svm.fit_l2_svm(features, labels, 3, 0.1)
        value, _ = objective(machine, features, labels, 0.1)
        assert np.all(value - best <= machine.gap * value + 1e-9)


@pytest.mark.parametrize("size", SIZES)
def test_shortened_steps_lead_to_the_same_machine(size, monkeypatch):
    features, labels = blobs(SIZES[size])
    full = svm.fit_l2_svm(features, labels, 3, 20.0)
    monkeypatch.setattr(svm, "FULL_STEPS", 0)
    shortened = svm.fit_l2_svm(features, labels, 3, 20.0)
    assert shortened.gap.max() <= svm.TOLERANCE
    np.testing.assert_allclose(shortened.weights, full.weights, atol=1e-5)


def test_a_hard_margin_does_not_see_that_rows_are_repeated():
    features, labels = blobs((30, 40))
    twice = svm.fit_l2_svm(np.tile(features, (2, 1)), np.tile(labels, 2), 3, np.exp(20))
    once = svm.fit_l2_svm(features, labels, 3, np.exp(20))
    np.testing.assert_allclose(twice.weights, once.weights, atol=1e-4)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("log_c", [-5, 2])
def test_draws_fitted_together_are_those_fitted_alone(size, log_c):
    features, labels = blobs(SIZES[size])
    rows = svm.class_balanced_draws(0, labels, 3, 12, 6)
    together = svm.fit_draws(features, labels, rows, 3, np.exp(log_c))
    for i, draw in enumerate(rows):
        alone = svm.fit_l2_svm(features[draw], labels[draw], 3, np.exp(log_c))
        np.testing.assert_allclose(together.weights[i], alone.weights, atol=1e-7)
        np.testing.assert_allclose(together.bias[i], alone.bias, atol=1e-7)


def test_a_path_gives_the_fits_of_each_c():
    features, labels = blobs(SIZES["wide"])
    cs = np.exp([-8.0, -1.0, 0.0, 12.0])
    path = svm.fit_path(features, labels, 3, cs)
    for i, c in enumerate(cs):
        np.testing.assert_allclose(path.weights[i], svm.fit_l2_svm(features, labels, 3, c).weights, atol=1e-4)


def test_draws_are_balanced_without_repetition_and_differ():
    labels = np.where(np.arange(400) % 5 == 4, -1, np.arange(400) % 5)
    rows = svm.class_balanced_draws(3, labels, 4, 20, 50)
    assert rows.shape == (50, 80)
    for draw in rows:
        np.testing.assert_array_equal(np.bincount(labels[draw], minlength=4), 20)
        assert len(np.unique(draw)) == 80
    assert len({tuple(np.sort(draw)) for draw in rows}) == 50
    counts = np.bincount(rows.ravel(), minlength=400)[labels >= 0]
    assert counts.min() > 0  # 50 draws with probability 1/4 miss a row once in 2 million
    np.testing.assert_array_equal(rows, svm.class_balanced_draws(3, labels, 4, 20, 50))
    assert (rows != svm.class_balanced_draws(4, labels, 4, 20, 50)).any()


def test_equal_validation_errors_choose_the_first_c():
    features, labels = blobs((30, 40), num_classes=2)
    train = svm.Labelled(features, labels)
    cs = np.exp([-1.0, 8.0, 9.0, 10.0])
    selection = svm.select_c(train, train, 2, cs)
    np.testing.assert_array_equal(selection.errors, [0, 0, 0, 0])
    assert selection.c == cs[0]
    few = svm.Labelled(features[:1], labels[:1])  # one class alone: e^-20 is as good as any
    assert svm.select_c(few, train, 2, np.exp(svm.LOG_C)).c == np.exp(-20.0)


@pytest.mark.parametrize(("rows", "size"), [(73_257, 10_000), (60_000, 10_000), (8_500, 1_500), (1_400, 247)])
def test_sizes_of_the_validation_set(rows, size):
    assert svm.validation_size(rows) == size


def test_the_protocol_keeps_its_parts_apart():
    """The choice of C never sees test rows, and errors are those of machines fitted one by one."""
    features, labels = blobs((200, 8))
    pool, validation, test = (
        svm.Labelled(features[part], labels[part]) for part in (slice(100), slice(100, 150), slice(150, 200))
    )
    draws = svm.protocol_draws(5, pool.labels, 3, 15, 4)
    assert [rows.shape for rows in draws] == [(1, 15), (10, 15), (4, 15)]
    result = svm.svm_protocol(pool, validation, test, draws, 3)
    flipped = test._replace(labels=2 - test.labels)
    again = svm.svm_protocol(pool, validation, flipped, draws, 3)
    assert again.c == result.c
    assert result.c == np.exp(svm.LOG_C)[np.argmin(result.selection_errors)]
    np.testing.assert_array_equal(again.validation_errors, result.validation_errors)
    for draw, error in zip(draws.test, result.test_errors, strict=True):
        machine = svm.fit_l2_svm(pool.features[draw], pool.labels[draw], 3, result.c)
        predictions = np.argmax(test.features @ machine.weights + machine.bias[None], axis=1)
        assert np.mean(predictions != test.labels) == error
    assert result.gap <= svm.TOLERANCE


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: svm.class_balanced_draws(0, np.array([0, 0, 1]), 2, 2, 1), "2 labels .* class 1 has 1 in"),
        (lambda: svm.class_balanced_draws(0, np.array([0, 0, 1]), 3, 1, 1), "1 labels .* class 2 has 0 in"),
        (
            lambda: svm.protocol_draws(0, np.array([0, 1]), 2, 3, 1),
            "3 labels cannot be divided equally among 2",
        ),
        (lambda: svm.fit_l2_svm(np.ones((3, 2)), np.zeros(2, int), 2, 1.0), r"\(3, 2\) .* \(2,\) do not go"),
        (lambda: svm.fit_l2_svm(np.ones((2, 2)), np.array([0, 2]), 2, 1.0), "must be 0 to 1"),
        (lambda: svm.fit_l2_svm(np.ones((2, 2)), np.array([0, 1]), 2, 0.0), "C is 0.0"),
        (lambda: wilson_interval(3, 2), "3 successes among 2 trials"),
        (lambda: wilson_interval(1, 2, 95), "level is 95"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("key", ["svm_labels", "svm_draws"])
def test_the_config_wants_positive_numbers(key):
    config = base()
    config.evaluation[key] = 0
    with pytest.raises(ValueError, match=f"evaluation.{key} is 0; it must be positive"):
        validate(config)


def test_wilsons_interval_solves_its_equation():
    assert wilson_interval(10, 100) == pytest.approx((0.05523, 0.17437), abs=1e-5)
    assert wilson_interval(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson_interval(0, 10) == pytest.approx((0, 0.27753), abs=1e-5)
    assert wilson_interval(10, 10) == pytest.approx((0.72247, 1), abs=1e-5)
    for p in wilson_interval(37, 120, level=0.9):
        assert abs(37 / 120 - p) == pytest.approx(1.6448536 * np.sqrt(p * (1 - p) / 120))


@pytest.mark.parametrize(("p", "n"), [(0.05, 300), (0.19, 26_032), (0.5, 40)])
def test_wilsons_interval_covers(p, n):
    counts = np.arange(n + 1)
    weights = binom.pmf(counts, n, p)
    likely = counts[weights > 1e-9]
    inside = [low <= p <= high for low, high in (wilson_interval(int(k), n) for k in likely)]
    assert weights[likely][inside].sum() == pytest.approx(0.95, abs=0.02)


class Pixels(nn.Module):
    """An encoder whose code is the image."""

    latent_dim: int

    @nn.compact
    def __call__(self, x, epsilon, y=None, *, train):
        return x.reshape(len(x), -1) + self.param("zero", nn.initializers.zeros, ())


def test_the_evaluator_reads_what_it_needs_and_reports_the_protocol(key):
    digits = data.load("digits")
    unlabelled = np.where(np.arange(1400) < 100, -1, digits.train.label)
    digits = digits._replace(train=ArraySplit(digits.train.x, None, unlabelled, 10))
    ali = Networks(Pixels(64), None, None)
    variables = Variables(Networks({"zero": jnp.zeros(())}, {}, {}), Networks({}, {}, {}))
    result = evaluate.l2_svm(ali, variables, key, digits, svm_labels=200, svm_draws=5).scalars
    size = 1300 * 3 // 17
    assert (result["n_svm_pool"], result["n_svm_validation"], result["n_svm_test"]) == (
        1300 - size,
        size,
        397,
    )
    assert (result["n_svm_labels"], result["n_svm_draws"]) == (200, 5)
    assert result["svm_gap"] <= svm.TOLERANCE
    assert 0.02 < result["svm_error_low"] < result["svm_error"] < result["svm_error_high"] < 0.2
    assert 0 < result["svm_error_std"] < 0.05
    assert 0.02 < result["svm_validation_error"] < 0.3  # the last rows, of other writers
    assert np.min(np.abs(result["svm_log_c"] - svm.LOG_C)) < 1e-9
    with pytest.raises(ValueError, match="200 labels of each class were asked for"):
        evaluate.l2_svm(ali, variables, key, digits, svm_labels=2000, svm_draws=5)


def test_the_benchmark_finds_the_errors_of_both_equal(tmp_path, capsys):
    file, (train, train_labels), (test, test_labels) = (
        tmp_path / "f.npz",
        blobs((400, 50)),
        blobs((90, 50), 1),
    )
    np.savez(
        file,
        train_features=train,
        train_labels=train_labels,
        test_features=test,
        test_labels=test_labels,
    )
    options = ["--labels", "60", "--draws", "4", "--peer-fits", "3", "--json", str(tmp_path / "result.json")]
    assert benchmark.main(["--features", str(file), *options]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["largest_difference"] <= 1 / 90
    assert result["excess_objective"][0] > -1e-7
    assert len(result["ratios"]["wall"]) == 2
    assert "4 draws of 60 labels, 50 features, 90 test rows" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peer-fits", "200"], "There must be 1 <= --rounds <= --peer-fits <= --draws"),
        (["--config.seed=1"], "--config.seed=1 has no meaning without --config"),
        (["--features", "none.npz"], "none.npz"),
        (["--labels", "2000"], "200 labels of each class were asked for"),
    ],
)
def test_mistakes_in_the_benchmarks_arguments_get_one_message(arguments, message, capsys):
    assert benchmark.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
