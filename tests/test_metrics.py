"""The metrics against closed forms, brute force and scikit-learn."""

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from ali_jax.metrics import classifier, probes
from ali_jax.metrics.blocks import map_blocks
from ali_jax.metrics.classes import class_histogram, class_kl, class_kl_floor, class_score
from ali_jax.metrics.classifier import train_classifier
from ali_jax.metrics.modes import count_statistics, mode_kept, mode_statistics, paper_mode_count
from ali_jax.metrics.neighbors import nearest
from ali_jax.metrics.probes import knn_accuracy, linear_probe_accuracy, logistic_regression, pca
from ali_jax.metrics.reconstruction import mean_squared_error, memorisation_ratio, random_pair_error

SIDE = np.arange(-4.0, 5.0, 2.0)
MODES = np.stack(np.meshgrid(SIDE, SIDE), axis=-1).reshape(-1, 2)
STD = 0.05


@pytest.fixture
def rng():
    """Give a generator of fixed seed."""
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def digits():
    """Give 1,400 and 397 digits as flat float32 rows in [0, 1], and their labels."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.data))
    x, label = (data.data[order] / 16).astype(np.float32), data.target[order]
    return x[:1400], label[:1400], x[1400:], label[1400:]


def true_samples(rng, n):
    return MODES[rng.integers(25, size=n)] + STD * rng.standard_normal((n, 2))


def test_true_samples_have_all_modes_and_the_spread_of_a_truncated_gaussian(rng):
    result = mode_statistics(true_samples(rng, 20_000), MODES, STD)
    assert (result["modes"], result["modes_strict"]) == (25, 25)
    assert result["high_quality"] == pytest.approx(1 - np.exp(-4.5), abs=3e-3)
    assert result["mode_spread"] == pytest.approx(0.974, abs=5e-3)
    assert result["reverse_kl"] == pytest.approx(24 / 40_000, abs=6e-4)


def test_shrunk_modes_show_in_the_spread_alone(rng):
    index = rng.integers(25, size=5_000)
    result = mode_statistics(MODES[index] + 0.2 * STD * rng.standard_normal((5_000, 2)), MODES, STD)
    assert (result["modes_strict"], result["high_quality"]) == (25, 1)
    assert result["mode_spread"] == pytest.approx(0.2, rel=0.05)


def test_one_mode_is_at_the_largest_reverse_kl():
    result = mode_statistics(np.repeat(MODES[:1], 100, axis=0), MODES, STD)
    assert (result["modes"], result["modes_strict"], result["mode_spread"]) == (1, 1, 0)
    assert result["reverse_kl"] == pytest.approx(np.log(25))


def test_a_strict_mode_has_a_fifth_of_its_fair_share():
    counts = np.full(25, 100)
    counts[0], counts[1], counts[2] = 20, 19, 261  # of 2,500 samples; the fair share is 100
    result = mode_statistics(np.repeat(MODES, counts, axis=0), MODES, STD)
    assert (result["modes"], result["modes_strict"]) == (25, 24)


def test_counts_are_scored_exactly():
    counts = np.zeros(1000, int)
    counts[:5] = 5, 6, 1, 0, 25_988  # of 26,000; a fifth of the fair share is 5.2
    result = count_statistics(counts, 26_000)
    shares = np.array([5, 6, 1, 25_988]) / 26_000
    assert result.keys() == {"modes", "modes_strict", "reverse_kl"}
    assert (result["modes"], result["modes_strict"]) == (4, 2)
    assert result["reverse_kl"] == pytest.approx(np.sum(shares * np.log(1000 * shares)))
    fair = count_statistics(np.full(1000, 26), 26_000)
    assert fair == pytest.approx({"modes": 1000, "modes_strict": 1000, "reverse_kl": 0}, abs=1e-12)
    assert count_statistics(np.array([5, 0]), 52)["modes_strict"] == 0  # 47 samples are of no mode


def test_misread_digits_add_modes_to_the_lenient_count_above_all(rng):
    """The example of docs/reference/evaluators.md: 16 modes of three digits, an error of 1 % for each."""
    digits = rng.integers(10, size=(16, 3))[rng.integers(16, size=26_000)]
    misread = np.where(rng.random(digits.shape) < 0.01, rng.integers(1, 10, size=digits.shape), 0)
    counts = np.bincount((digits + misread) % 10 @ np.array([100, 10, 1]), minlength=1000)
    result = count_statistics(counts, 26_000)
    assert result["modes"] == pytest.approx(320, rel=0.1)
    assert result["modes_strict"] == pytest.approx(30, abs=10)


@pytest.mark.parametrize(("counts", "number"), [([[1]], 1), ([3, 4], 6), ([-1, 2], 3), ([0, 0], 0)])
def test_counts_that_cannot_be_are_refused(counts, number):
    with pytest.raises(ValueError, match=r"give \[K\], none negative, of at least one sample"):
        count_statistics(np.array(counts), number)


def test_samples_away_from_all_modes_count_only_for_the_paper():
    far = MODES + 1.0  # between the modes, or outside
    result = mode_statistics(far, MODES, STD)
    assert (result["modes"], result["high_quality"], result["mode_spread"]) == (0, 0, 0)
    assert result["reverse_kl"] == pytest.approx(np.log(25))
    assert paper_mode_count(MODES * 1.1, MODES) == 25
    assert paper_mode_count(np.array([[100.0, 100.0], [90.0, 80.0]]), MODES) == 1


def test_samples_that_are_no_numbers_belong_to_no_mode():
    broken = np.full((10, 2), np.nan)
    assert mode_statistics(broken, MODES, STD)["modes"] == 0
    assert paper_mode_count(broken, MODES) == 0
    assert mode_kept(np.repeat(MODES[:1], 10, axis=0), broken, MODES) == 0


def test_mode_kept_is_the_share_that_stays():
    x_hat = MODES.copy()
    x_hat[:5] += 2.0
    assert mode_kept(MODES, x_hat + 0.3, MODES) == pytest.approx(0.8, abs=1e-9)


def test_modes_of_another_dimension_are_refused():
    with pytest.raises(ValueError, match="do not go together"):
        mode_statistics(np.zeros((4, 3)), MODES, STD)


def test_class_kl_of_known_histograms():
    reference = np.array([0.5, 0.25, 0.25])
    assert class_kl(np.array([0, 0, 1, 2]), reference) == 0
    assert class_kl(np.array([0, 0, 0]), reference) == pytest.approx(np.log(2))
    assert class_kl(np.array([1]), np.array([1.0, 0.0])) == np.inf


def test_class_kl_of_true_labels_is_the_floor(rng):
    frequencies = np.arange(1, 11) / 55
    draws = [class_kl(rng.choice(10, size=2_000, p=frequencies), frequencies) for _ in range(300)]
    assert np.mean(draws) == pytest.approx(class_kl_floor(10, 2_000), rel=0.1)


def test_class_score_counts_clear_and_evenly_shared_classes():
    assert class_score(np.tile(np.eye(4), (5, 1))) == pytest.approx(4)
    assert class_score(np.eye(4)[[0, 0, 1, 1]]) == pytest.approx(2)
    assert class_score(np.full((6, 4), 0.25)) == pytest.approx(1)
    p = np.array([[0.9, 0.1], [0.3, 0.7]])
    mean = p.mean(axis=0)
    assert class_score(p) == pytest.approx(np.exp(np.mean(np.sum(p * np.log(p / mean), axis=1))))


@pytest.mark.parametrize("labels", [[], [0, 3], [-1, 0]])
def test_labels_outside_the_classes_are_refused(labels):
    with pytest.raises(ValueError, match="from 0 to 2"):
        class_histogram(np.array(labels, int), 3)


@pytest.mark.parametrize("total", [1, 7, 8, 9, 20])
def test_blocks_have_one_shape_and_leave_no_trace(total):
    shapes = set()

    def double(x, y):
        shapes.add(x.shape)
        assert y is None
        return 2 * x, x.sum(axis=1)

    x = np.arange(3.0 * total).reshape(total, 3)
    doubled, sums = map_blocks(double, x, None, size=8)
    assert shapes == {(min(total, 8), 3)}
    np.testing.assert_array_equal(doubled, 2 * x)
    np.testing.assert_array_equal(sums, x.sum(axis=1))


def test_nearest_equals_brute_force_far_from_the_origin(rng):
    references = (1000 + rng.standard_normal((300, 5))).astype(np.float32)
    queries = (1000 + rng.standard_normal((1203, 5))).astype(np.float32)
    exact = np.linalg.norm(queries[:, None].astype(float) - references[None].astype(float), axis=-1)
    index, distance = nearest(queries, references)
    np.testing.assert_allclose(exact[np.arange(1203), index], exact.min(axis=1), rtol=1e-4)
    np.testing.assert_allclose(distance, exact.min(axis=1), rtol=1e-4)


def test_the_distance_to_a_copy_is_zero(digits):
    index, distance = nearest(digits[0][:600], digits[0])
    assert distance.max() == 0
    np.testing.assert_array_equal(digits[0][index], digits[0][:600])


def test_knn_accuracy_is_scikit_learns(digits):
    x, label, x_test, label_test = digits
    ours = knn_accuracy(x, label, x_test, label_test)
    theirs = KNeighborsClassifier(1, algorithm="brute").fit(x, label).score(x_test, label_test)
    assert ours == pytest.approx(theirs, abs=0.003)  # one tie may fall differently
    assert ours > 0.97


def test_knn_accuracy_of_mnist_pixels_is_the_published_one(real_data):
    with np.load(real_data / "mnist.npz") as mnist:
        train, test = (
            mnist[f"{part}_image"].reshape(-1, 784) / np.float32(255) for part in ("train", "test")
        )
        result = knn_accuracy(train, mnist["train_label"], test, mnist["test_label"])
    assert result == pytest.approx(0.9691, abs=2e-4)  # LeCun et al. 1998: 3.09 % error


def test_logistic_regression_is_scikit_learns(digits):
    x, label, x_test, label_test = digits[0][:500], digits[1][:500], *digits[2:]
    model = logistic_regression(x, label, 10)
    theirs = LogisticRegression(C=1.0, max_iter=2_000).fit(x, label)
    logits = x_test @ model.weights + np.asarray(model.bias)[None]
    prediction = np.argmax(logits, axis=1)
    assert np.mean(prediction == theirs.predict(x_test)) > 0.995
    assert abs(np.mean(prediction == label_test) - theirs.score(x_test, label_test)) < 0.005

    def objective(weights, bias):
        log_p = jax.nn.log_softmax(x @ weights + bias[None])
        return 0.5 * np.sum(weights**2) - np.sum(np.asarray(log_p)[np.arange(len(x)), label])

    exact = objective(theirs.coef_.T.astype(np.float32), theirs.intercept_.astype(np.float32))
    assert objective(np.asarray(model.weights), np.asarray(model.bias)) == pytest.approx(exact, rel=1e-3)


def test_linear_probe_ignores_scale_offset_and_constant_features(digits):
    x, label, x_test, label_test = digits
    plain = linear_probe_accuracy(x, label, x_test, label_test, 10)

    def stretched(x):
        scale = np.geomspace(1e-3, 1e3, x.shape[1], dtype=np.float32)[None]
        return np.concatenate([x * scale + scale, np.full((len(x), 2), 7.7, np.float32)], axis=1)

    assert linear_probe_accuracy(stretched(x), label, stretched(x_test), label_test, 10) == pytest.approx(
        plain, abs=0.006
    )
    assert plain > 0.93


def test_pca_is_scikit_learns(digits):
    x = digits[0]
    mean, components = pca(x, 5)
    theirs = PCA(5).fit(x)
    np.testing.assert_allclose(np.abs(components.T @ theirs.components_.T), np.eye(5), atol=1e-3)
    np.testing.assert_allclose(
        np.var((x - mean[None]) @ components, axis=0), theirs.explained_variance_, rtol=1e-2
    )
    with pytest.raises(ValueError, match="65 components"):
        pca(x, 65)


def test_more_features_than_rows_are_probed_in_the_span_of_the_rows(digits, monkeypatch):
    """The coordinates keep all inner products with train's rows, so that both probes are the same."""
    monkeypatch.setattr(probes, "CHUNK_BYTES", 4 * 70 * 9)  # nine features at a time
    x, x_test = (np.rint(16 * rows).astype(np.uint8) for rows in (digits[0][:40], digits[2][:30]))
    a, b = (rows / np.float32(16) for rows in (x, x_test))
    for standardised, change in ((False, probes._centred), (True, probes._standardised)):
        train, test = change(a, b)
        z, z_test = probes.in_span(x, x_test, divisor=16.0, standardised=standardised)
        assert z.shape[1] <= 39
        np.testing.assert_allclose(z @ z.T, train @ train.T, atol=1e-3)
        np.testing.assert_allclose(z_test @ z.T, test @ train.T, atol=1e-2 if standardised else 1e-3)
    mean, components = pca(a, 5)
    found = probes.principal_codes(x, x_test, 5, divisor=16.0)
    for rows, codes in zip((a, b), found, strict=True):
        np.testing.assert_allclose(np.abs(codes), np.abs((rows - mean[None]) @ components), atol=1e-3)
    given = []
    answer = probes.LinearClassifier(np.zeros((z.shape[1], 10), np.float32), np.eye(10, dtype=np.float32)[3])
    monkeypatch.setattr(probes, "logistic_regression", lambda f, *_: given.append(np.asarray(f)) or answer)
    accuracy = linear_probe_accuracy(x, digits[1][:40], x_test, digits[3][:30], 10, divisor=16.0)
    assert accuracy == np.mean(digits[3][:30] == 3)
    np.testing.assert_array_equal(given[0], z)
    nearer = knn_accuracy(a, digits[1][:40], b, digits[3][:30])
    assert knn_accuracy(x, digits[1][:40], x_test, digits[3][:30], divisor=16.0) == nearer


def test_the_reference_classifier_knows_the_digits(digits):
    x, label, x_test, label_test = digits
    predict = train_classifier((16 * x).astype(np.uint8).reshape(-1, 8, 8, 1), label, 10, divisor=16)
    assert np.mean(predict(x_test.reshape(-1, 8, 8, 1)) == label_test) >= 0.97


def test_the_convolutional_classifier_learns_from_labelled_rows_alone(rng):
    label = rng.integers(3, size=600)
    x = 0.3 * rng.random((600, 16, 18, 1))
    for k in range(3):  # a bar whose place tells the class, whatever the translation
        x[label == k, :, 2 + 6 * k : 4 + 6 * k] += 0.6
    given = np.where(np.arange(600) < 200, label, -1)
    predict = train_classifier(x.astype(np.float32), given, 3, length=0.06)
    assert np.mean(predict(x[500:].astype(np.float32)) == label[500:]) > 0.95


def test_a_classifier_without_labels_is_refused():
    with pytest.raises(ValueError, match="0 usable labels"):
        train_classifier(np.zeros((4, 2)), np.full(4, -1), 2)


def test_random_pair_error_is_the_mean_over_all_pairs(rng):
    x = rng.random((7, 2, 3)).astype(np.float32)
    pairs = [np.mean((x[i] - x[j]) ** 2) for i in range(7) for j in range(7) if i != j]
    assert random_pair_error(x) == pytest.approx(np.mean(pairs), rel=1e-5)


def test_mean_squared_error_is_per_pixel():
    assert mean_squared_error(np.zeros((2, 4, 4, 1)), np.full((2, 4, 4, 1), 0.5)) == 0.25
    with pytest.raises(ValueError, match="must be the same"):
        mean_squared_error(np.zeros((2, 3)), np.zeros((3, 3)))


def test_memorisation_is_0_for_copies_and_1_for_test_data(rng):
    train, test = rng.random((2, 50, 3, 3, 1)).astype(np.float32)
    assert memorisation_ratio(train[:20], test, train) == 0
    assert memorisation_ratio(test, test, train) == 1


def test_memorisation_leaves_out_what_test_repeats_of_train():
    train = np.array([[0.0], [1], [3], [7]])
    samples = np.array([[0.5], [9], [7]])  # 0.5, 2 and 0 away
    for test, unseen in (
        ([[5], [1], [3], [0], [13], [2]], 2),  # 2, 6 and 1 away; the others occur in train
        ([[2], [3]], 1),
        ([[3], [1], [0], [7], [3]], (1 + 2) / 2),  # all do: 1, 1, 2 and 4 between train rows
    ):
        assert memorisation_ratio(samples, np.array(test, float), train) == pytest.approx(0.5 / unseen)
    same = np.zeros((4, 2))
    assert np.isnan(memorisation_ratio(same + 1, same, same))


@pytest.mark.parametrize(("shape", "axes"), [((1100, 5), 0), ((1100, 4, 3, 1), None)])
def test_the_classifier_standardises_by_the_moments_of_all_rows(rng, shape, axes):
    for x in (rng.integers(0, 256, shape).astype(np.uint8), rng.normal(3, 2, shape)):
        for found, of in zip(classifier._moments(x), (np.mean, np.std), strict=True):
            np.testing.assert_allclose(found, of(x, axis=axes, keepdims=True), rtol=1e-9)
