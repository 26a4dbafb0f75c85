"""The numbers and pictures of evaluators on small cases that are alike in no two ways, by hand.

Classes have unequal shares, test lacks a class, splits differ, codes are noisy and images are all different:
so a number of one split, kind or class that is reported for another is seen.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from test_evaluate import Blind, Copy, Paste, Recall, copier
from test_figures import cells, flat_images

from ali_jax import evaluate, model
from ali_jax.data import ArraySplit, Dataset
from ali_jax.evaluate import reconstruction, rows, running
from ali_jax.metrics import classifier, divergence, inception, modes
from ali_jax.types import Networks, Variables

TRAIN = np.repeat([0, 1, 2, 3], [60, 24, 8, 8])  # the classes of train
TEST = np.array([0, 0, 1, 0, -1, 0, 1, 3, -1, 0])  # of test, which lacks class 2; -1 is no label
EMPTY = Variables(Networks({}, {}, {}), Networks({}, {}, {}))


class Shown(nn.Module):
    """The encoder whose code is x + sigma epsilon."""

    latent_dim: int
    sigma: float = 0.0

    @nn.compact
    def __call__(self, x, epsilon, y=None, *, train):
        return x.reshape(len(x), -1) + self.sigma * epsilon


class Largest(nn.Module):
    """The decoder that shows the class of the largest number of z; class 3 becomes 0."""

    @nn.compact
    def __call__(self, z, y=None, *, train):
        return jnp.eye(4)[jnp.argmax(z, axis=1) % 3]


class Constant(nn.Module):
    """The decoder that shows one class."""

    label: int

    @nn.compact
    def __call__(self, z, y=None, *, train):
        return jnp.tile(jnp.eye(4)[self.label], (len(z), 1))


class Classes(nn.Module):
    """The discriminator whose class logits are twice z."""

    num_classes: int = 4

    @nn.compact
    def __call__(self, x, z, y=None, *, train):
        return 2 * z


def quick(shape, num_classes, lowering):
    """Give a recipe for a reference classifier that learns to read coins in a moment."""
    return classifier._Recipe((), (16,), num_classes, 0.0, 0, 60, 5e-2, lowering)


@pytest.fixture(autouse=True)
def _quick_classifier(monkeypatch):
    monkeypatch.setattr(classifier, "_recipe_for", quick)


@pytest.fixture(scope="module")
def coins():
    """Give vectors that show their class: the row of the identity."""
    train, test = (
        ArraySplit(np.eye(4, dtype=np.float32)[np.maximum(label, 0)], None, label, 4)
        for label in (TRAIN, TEST)
    )
    return Dataset("coins", train, test, divisor=1.0, num_classes=4)


def grey(values):
    """Give a split of 2x2 images of one grey each."""
    return ArraySplit(np.round(255 * flat_images(values, 2, 2)).astype(np.uint8))


# Classes.


def test_shares_of_classes_are_compared_with_those_of_train(coins, key):
    ali = Networks(Shown(4), Constant(1), Blind())
    found = evaluate.class_balance(ali, EMPTY, key, coins, num_samples=50).scalars
    assert found["class_kl"] == pytest.approx(-np.log(24 / 100))
    assert found["class_kl_floor"] == pytest.approx(3 / 100)
    assert (found["class_share_min"], found["class_share_max"]) == (0, 1)
    assert found["class_score"] == pytest.approx(1)
    entropy = scipy.stats.entropy([5 / 8, 2 / 8, 1 / 8])  # of the labelled test rows
    assert found["class_score_data"] == pytest.approx(np.exp(entropy), rel=0.1)
    assert found["class_kept"] == found["class_kept_sampled"] == 2 / 8
    assert (found["n_test_labelled"], found["n_samples"], found["classifier_accuracy"]) == (8, 50, 1)


def test_classes_are_kept_by_the_mean_code_and_lost_by_a_noisy_one(coins, key):
    ali = Networks(Shown(4, sigma=100.0), Largest(), Blind())
    found = evaluate.class_balance(ali, EMPTY, key, coins, num_samples=50).scalars
    assert found["class_kept"] == 7 / 8  # class 3 becomes 0
    assert found["class_kept_sampled"] < 7 / 8
    ali = ali._replace(discriminator=Classes())
    found = evaluate.label_error(ali, EMPTY, key, coins, num_codes=1).scalars
    assert found["label_error"] == 0
    assert found["label_error_sampled"] > 0.3
    z = model.encode(
        ali,
        EMPTY,
        jnp.asarray(coins.test.x[TEST >= 0]),
        key=jax.random.fold_in(jax.random.split(key, 1)[0], 0),
    )
    assert found["label_error_sampled"] == np.mean(np.argmax(z, axis=1) != TEST[TEST >= 0])
    assert found["n_test_labelled"] == 8


def test_coverage_accounts_for_test_images_of_one_class_that_are_read_as_another(coins, key):
    """Of 200 test images of class 1, 80 show class 0: a third of samples of class 0 may be of class 1."""
    label = np.repeat([0, 1, 2, 3], 200)
    shown = np.where((np.arange(800) >= 200) & (np.arange(800) < 280), 0, label)
    test = ArraySplit(np.eye(4, dtype=np.float32)[shown], None, label, 4)
    ali = Networks(Shown(4), Recall((4,), 25), Blind())
    memory = {"memory": jnp.eye(4)[jnp.repeat(jnp.arange(4), jnp.array([8, 12, 1, 4]))]}
    variables = EMPTY._replace(params=Networks({}, memory, {}))
    found = evaluate.mode_coverage(ali, variables, key, coins._replace(test=test)).scalars
    # A fifth of the fair share is 0.05. Class 2 has 0.04. The 0.32 of class 0 may all be misread class 1.
    assert (found["coverage_frequent"], found["coverage_frequent_low"]) == (3, 2)
    assert found["coverage_frequent_high"] == 3
    assert found["coverage_expected"] == 4
    lacking = evaluate.mode_coverage(ali, variables, key, coins).scalars  # whose test has no class 2
    assert (lacking["coverage_frequent"], lacking["coverage_frequent_high"]) == (3, 4)
    assert lacking["coverage_frequent_low"] == 0


def test_agreement_with_a_condition_is_that_of_the_class_that_was_asked_for(coins, key):
    """Class 3 is always shown as 0, and class 1 where the first number of z is positive."""

    class Half(Largest):
        @nn.compact
        def __call__(self, z, y=None, *, train):
            label = jnp.argmax(y, axis=1)
            wrong = (label == 3) | ((label == 1) & (z[:, 0] < 0))
            return jnp.eye(4)[jnp.where(wrong, 0, label)]

    dataset = coins._replace(attributes=tuple("abcd"))
    ali = Networks(Shown(4), Half(), Blind())
    found = evaluate.condition_agreement(ali, EMPTY, key, dataset, num_samples=42).scalars
    z, label = np.asarray(jax.random.normal(key, (42, 4))), np.arange(42) % 4
    right = (label % 2 == 0) | ((label == 1) & (z[:, 0] >= 0))
    assert found["condition_agreement"] == np.mean(right)
    assert found["condition_agreement_min"] == 0
    few = evaluate.condition_agreement(ali, EMPTY, key, dataset, num_samples=1).scalars
    assert few["condition_agreement_min"] == 1  # of the one class that was drawn


def test_probes_project_and_standardise_test_as_train(coins, key):
    """All test rows are of class 1: by their own mean they would be nothing."""
    label = np.full(7, 1)
    dataset = coins._replace(test=ArraySplit(np.eye(4, dtype=np.float32)[label], None, label, 4))
    found = evaluate.probes(*copier(dataset), key, dataset).scalars
    assert (found.pop("n_train_labelled"), found.pop("n_test_labelled")) == (100, 7)
    assert found == dict.fromkeys(found, 1.0)
    assert len(found) == 8


def test_the_error_of_machines_on_test_is_not_that_on_validation(coins, key):
    """A quarter of the test labels is wrong, and none of those of train."""
    order = np.random.default_rng(0).permutation(100)
    label = np.resize([0, 1, 2, 3], 40)
    given = np.where(np.arange(40) % 8 < 2, (label + 1) % 4, label)
    x = np.eye(4, dtype=np.float32)
    train = ArraySplit(x[np.resize(np.arange(4), 100)][order], None, np.resize(np.arange(4), 100)[order], 4)
    dataset = coins._replace(train=train, test=ArraySplit(x[label], None, given, 4))
    ali = Networks(Shown(4), Constant(1), Blind())
    found = evaluate.l2_svm(ali, EMPTY, key, dataset, svm_labels=8, svm_draws=3).scalars
    assert (found["svm_error"], found["svm_validation_error"], found["svm_error_std"]) == (0.25, 0, 0)
    assert [found[f"n_svm_{part}"] for part in ("labels", "draws", "pool", "validation", "test")] == [
        8,
        3,
        83,
        17,
        40,
    ]


# Joints.


def test_a_critic_is_scored_on_test_and_stopped_by_a_part_of_train(key, monkeypatch):
    """Train's x lie far from the samples and test's do not: a critic of train is blind on test."""
    monkeypatch.setattr(divergence, "PATIENCE", 1)
    monkeypatch.setattr(divergence, "CHECK_EVERY", 20)
    rng = np.random.default_rng(0)
    train, test = (
        ArraySplit((shift + rng.standard_normal((n, 1))).astype(np.float32))
        for shift, n in ((9, 500), (0, 60))
    )
    dataset = Dataset("line", train, test, 1.0)
    found = evaluate.joint_divergence(Networks(Fixed(), Fixed(), Blind()), EMPTY, key, dataset).scalars
    assert found["joint_accuracy"] < 0.75
    assert found["joint_jsd"] < 0
    assert found["n_test"] == 60


class Fixed(nn.Module):
    """An encoder and a decoder whose output is the noise alone."""

    latent_dim: int = 1

    @nn.compact
    def __call__(self, *inputs, train):
        return inputs[1] if len(inputs) == 3 else inputs[0]


def test_every_block_of_rows_has_its_own_noise(key, monkeypatch):
    x = np.zeros((1_300, 1), np.float32)
    dataset = Dataset("zeros", ArraySplit(x), ArraySplit(x), 1.0)
    ali = Networks(Shown(1, sigma=1.0), Paste((1,)), Blind())
    z = running.over_rows(model.encode, ali, EMPTY, rows.test_rows(dataset), 1.0, key=key)
    assert len(np.unique(z)) > 1_290
    monkeypatch.setattr(
        reconstruction, "LADDER_ROWS_PER_BLOCK", 1
    )  # else a block would average its own noise
    variables = EMPTY._replace(params=Networks({}, {"one": jnp.ones(())}, {}))
    found = evaluate.reconstruction_ladder(
        ali, variables, key, dataset, ladder_rows=200, ladder_steps=1
    ).scalars
    assert found["ladder_sample"] == pytest.approx(1, rel=0.3)
    assert found["ladder_best_of_k"] < 0.1


def test_the_scale_of_the_ladder_is_that_of_its_errors(key):
    x = np.array([[0, 255], [51, 255], [153, 0]], np.uint8)
    dataset = Dataset("bytes", ArraySplit(x[:1]), ArraySplit(x), 255.0)
    networks, one = Networks(Copy(2), Paste((2,)), Blind()), {"one": jnp.ones(())}
    variables = EMPTY._replace(params=Networks(one, one, {}))
    found = evaluate.reconstruction_ladder(networks, variables, key, dataset, ladder_steps=1).scalars
    squares = [0.2**2, 0.6**2 + 1, 0.4**2 + 1]  # of the three pairs; in [0, 1] and over two pixels
    assert found["ladder_random_pair"] == pytest.approx(sum(squares) / 6)


def test_the_posteriors_sigma_is_the_median_one(key):
    class Varied(Copy):
        def moments(self, x, y=None, *, train):
            return x, x

    x = np.log([[0.1, 0.2], [0.3, 50.0], [0.4, 90.0]]).astype(np.float32)  # the middle two: 0.3 and 0.4
    dataset = Dataset("sigmas", ArraySplit(x[:1]), ArraySplit(x), 1.0)
    found = evaluate.posterior(Networks(Varied(2), Paste((2,)), Blind()), EMPTY, key, dataset).scalars
    assert found == pytest.approx({"posterior_sigma": np.sqrt(0.3 * 0.4), "n_test": 3})


# Distances.


def test_distances_of_features_are_from_samples_to_train_and_floors_from_test(key):
    train, test = grey([0, 1, 1, 0, 1]), grey([0, 0.2, 0.4])
    dataset = Dataset("greys", train, test, 255.0)
    seen = []
    extractor = evaluate.Extractor("pixels", "none", lambda x: seen.append(x) or x[:, 0, 0] * 2)
    ali = Networks(Copy(4), Recall((2, 2, 1), 1), Blind())
    variables = EMPTY._replace(params=Networks({}, {"memory": jnp.full((1, 2, 2, 1), 0.9)}, {}))
    found = evaluate.frechet_measurements(ali, variables, key, dataset, extractor, num_samples=50)
    assert found["fid_pixels"].value == pytest.approx((1.8 - 1.2) ** 2 + 4 * 0.3)
    spread = (2 * np.sqrt(0.3) - 2 * 0.2) ** 2  # of standard deviations
    assert found["fid_pixels_floor"].value == pytest.approx((1.2 - 0.4) ** 2 + spread)
    assert found["fid_pixels"].provenance.count == 3
    np.testing.assert_allclose(seen[0][:, 0, 0, 0], [0, 1, 1, 0, 1])
    np.testing.assert_allclose(seen[1][:, 0, 0, 0], [0, 0.2, 0.4], rtol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_inception_sees_images_between_minus_one_and_one(channels, monkeypatch):
    monkeypatch.setattr(inception, "SIZE", 4)
    monkeypatch.setattr(inception, "_network", lambda conv, x: x)
    x = np.zeros((1, 2, 2, channels), np.float32)
    x[0, :, 1, -1] = 1
    seen = np.asarray(inception.features({}, jnp.asarray(x)))
    np.testing.assert_allclose(seen[0, 0, :, -1], [-1, -0.5, 0.5, 1])  # pixels in between are interpolated
    np.testing.assert_allclose(seen[0, 0, :, 0], [-1, -1, -1, -1] if channels == 3 else [-1, -0.5, 0.5, 1])


def test_memorisation_is_of_medians_and_against_test(key):
    train = ArraySplit(np.array([[0.0], [10]], np.float32))
    test = ArraySplit(np.array([[1.0], [8], [5]], np.float32))  # 1, 2 and 5 away
    dataset = Dataset("line", train, test, 1.0)
    ali = Networks(Copy(1), Recall((1,), 3), Blind())
    variables = EMPTY._replace(params=Networks({}, {"memory": jnp.array([[10.5], [10.5], [90]])}, {}))
    found = evaluate.memorisation(ali, variables, key, dataset).scalars
    assert found == pytest.approx({"memorisation": 0.5 / 2, "n_memorisation": 2_000, "n_train": 2})


# Batch norm.


class Centred(nn.Module):
    """A decoder that subtracts the running mean or, in training, the batch's and then halves."""

    @nn.compact
    def __call__(self, z, y=None, *, train):
        mean = self.variable("batch_stats", "mean", jnp.zeros, (1,)).value
        return (z - z.mean(axis=0)[None]) / 2 if train else z - mean[None]


def test_the_gaps_of_batch_norm_are_those_of_each_network(key):
    x = np.arange(130, dtype=np.float32)[:, None]
    dataset = Dataset("line", ArraySplit(x), ArraySplit(x), 1.0)
    ali = Networks(Shown(1), Centred(), Blind())
    variables = EMPTY._replace(batch_stats=Networks({}, {"mean": jnp.array([5.0])}, {}))
    found = evaluate.batch_norm(ali, variables, key, dataset).scalars
    z = np.asarray(model.draw_noise(ali, key, 100).z)
    expected = np.mean(((z - z.mean()) / 2 - (z - 5)) ** 2) / z.var()
    assert found == pytest.approx(
        {"batch_norm_gap_encoder": 0, "batch_norm_gap_decoder": expected, "n_batch_norm": 100}, rel=1e-4
    )
    sampled = running.draw_samples_by_batch(ali, variables, key, 150, dataset)
    z = np.asarray(jax.random.normal(key, (150, 1)))
    np.testing.assert_allclose(sampled[:100], (z[:100] - z[:100].mean()) / 2, atol=1e-5)
    last = np.concatenate([z[100:], z[:50]])
    np.testing.assert_allclose(sampled[100:], (last - last.mean())[:50] / 2, atol=1e-5)


# Pictures.


def linear(values, test, **fields):
    """Give a data set of grey images, and a model whose code is the image and whose decoder pastes it."""
    dataset = Dataset("greys", grey(values), test, 255.0, **fields)
    ali = Networks(Shown(4), Paste((2, 2, 1)), Blind())
    return ali, EMPTY._replace(params=Networks({}, {"one": jnp.ones(())}, {})), dataset


def shown(image, rows, columns):
    """Read the greys of a grid's cells, in 255ths."""
    return np.asarray(cells(image, rows, columns), int)


def test_samples_show_the_decoder_and_the_conditions_of_test_in_their_order(key):
    class Painter(Paste):
        def __call__(self, z, y=None, *, train):
            return jnp.broadcast_to(y[:, 0, None, None, None], (len(z), *self.x_shape))

    y = np.array([[0.2], [0.4], [0.8]], np.float32)
    test = ArraySplit(grey([0, 0, 0]).x, y)
    ali, variables, dataset = linear([0, 1], test, attributes=("grey",))
    ali = ali._replace(decoder=Painter((2, 2, 1)))
    image = evaluate.samples(ali, variables, key, dataset, grid=(2, 4)).images["samples"]
    np.testing.assert_array_equal(shown(image, 2, 4), [[51, 102, 204, 51], [102, 204, 51, 102]])
    batches = running.draw_samples_by_batch(ali, variables, key, 5, dataset)[:, 0, 0, 0]
    np.testing.assert_allclose(batches, y[[0, 1, 2, 0, 1], 0])


def test_classes_are_the_rows_and_codes_the_columns_of_conditional_samples(key):
    class Both(Paste):
        def __call__(self, z, y=None, *, train):
            value = 0.2 * jnp.argmax(y, axis=1) + 0.1 * jax.nn.sigmoid(z[:, 0])
            return jnp.broadcast_to(value[:, None, None, None], (len(z), *self.x_shape))

    test = ArraySplit(grey([0, 0]).x, np.eye(3, dtype=np.float32)[:2], np.array([0, 1]), 3)
    ali, variables, dataset = linear([0, 1], test, num_classes=3, attributes=tuple("abc"))
    ali = ali._replace(decoder=Both((2, 2, 1)))
    image = evaluate.conditional_samples(ali, variables, key, dataset, grid=(9, 5)).images
    z = jax.nn.sigmoid(jax.random.normal(key, (5, 4))[:, 0])
    expected = np.rint(255 * (0.2 * np.arange(3)[:, None] + 0.1 * np.asarray(z)[None]))
    np.testing.assert_allclose(shown(image["conditional_samples"], 3, 5), expected, atol=1)


def test_reconstructions_stand_beside_their_originals(key):
    values = np.array([0.1, 0.3, 0.5, 0.7])
    ali, variables, dataset = linear([0, 1], grey(values))
    variables = EMPTY._replace(params=Networks({}, {"one": jnp.asarray(0.5)}, {}))  # half as bright
    image = evaluate.reconstructions(ali, variables, key, dataset, grid=(2, 2)).images["reconstructions"]
    found = shown(image, 2, 4)
    assert sorted(found[:, ::2].ravel()) == sorted(dataset.test.x[:, 0, 0, 0])
    np.testing.assert_allclose(found[:, 1::2], found[:, ::2] / 2, atol=1)


def test_interpolations_go_from_the_first_image_to_the_second_with_the_conditions_of_the_first(key):
    x0, x1 = (np.asarray(flat_images(v, 2, 2), np.float32) for v in ([0.0, 0.4], [0.3, 0.1]))
    ali, variables, _ = linear([0, 1], grey([0]))
    path = model.interpolate(ali, variables, x0, x1, 4)[..., 0, 0, 0]
    np.testing.assert_allclose(path, [[0, 0.1, 0.2, 0.3], [0.4, 0.3, 0.2, 0.1]], atol=1e-6)
    y = np.array([[0.5], [0.0]], np.float32)
    path = model.interpolate(ali, variables, x0, x1, 4, y)[..., 0, 0, 0]
    np.testing.assert_allclose(path, [[0.5, 0.6, 0.7, 0.8], [0.4, 0.3, 0.2, 0.1]], atol=1e-6)

    ali, variables, dataset = linear([0, 1], grey([0.0, 0.2, 0.4, 0.8]))
    image = evaluate.interpolations(ali, variables, key, dataset, num_pairs=2, num_interpolation_steps=2)
    found = shown(image.images["interpolations"], 2, 5)
    np.testing.assert_array_equal(found[:, 0], found[:, 1])  # the originals and their reconstructions
    np.testing.assert_array_equal(found[:, 4], found[:, 3])
    np.testing.assert_allclose(found[:, 2], found[:, [1, 3]].mean(axis=1), atol=1)
    assert len(np.unique(found[:, [0, 4]])) == 4


def test_images_are_ranked_by_their_errors_and_the_median_is_the_middle_one(key):
    ali, variables, dataset = linear([0, 1], grey([0.4, 1.0, 0.2, 0.6, 0.0]))
    variables = EMPTY._replace(params=Networks({}, {"one": jnp.zeros(())}, {}))  # black reconstructions
    report = evaluate.error_extremes(ali, variables, key, dataset)
    named = {"best": 0.0, "median": 0.16, "worst": 1.0}
    assert report.scalars == pytest.approx(
        {**{f"reconstruction_error_{name}": value for name, value in named.items()}, "n_test": 5}, abs=1e-6
    )
    expected = [[0, 51, 102, 153, 255], [0] * 5]
    np.testing.assert_array_equal(shown(report.images["error_worst"], 2, 5), expected)


def test_traversals_begin_with_the_dimension_that_changes_most_and_at_its_lower_end(key):
    class Weighted(Paste):
        def __call__(self, z, y=None, *, train):
            value = 0.5 + z @ jnp.array([0.02, 0.0, 0.1, -0.05])
            return jnp.broadcast_to(value[:, None, None, None], (len(z), *self.x_shape))

    ali, variables, dataset = linear([0, 1], grey([0.0]))
    ali = ali._replace(decoder=Weighted((2, 2, 1)))
    image = evaluate.traversals(ali, variables, key, dataset).images["traversals"]
    slopes = np.array([0.1, -0.05, 0.02, 0.0])[:, None] * np.linspace(-2.5, 2.5, 11)[None]
    np.testing.assert_allclose(shown(image, 4, 11), np.rint(255 * (0.5 + slopes)), atol=1)


def test_samples_stand_above_their_nearest_training_images_the_nearest_sample_first(key):
    ali, variables, dataset = linear([0.0, 0.2, 0.4, 0.8], grey([0.5]))
    ali = ali._replace(decoder=Recall((2, 2, 1), 2))
    memory = jnp.asarray(flat_images([0.27, 0.81], 2, 2), jnp.float32)
    variables = EMPTY._replace(params=Networks({}, {"memory": memory}, {}))
    found = shown(evaluate.neighbours(ali, variables, key, dataset).images["neighbours"], 4, 10)
    np.testing.assert_array_equal(found, np.tile([[207], [204], [102], [51]], (1, 10)))  # of 0.81 alone


def test_the_random_pair_and_the_sampled_error_are_told_from_the_error_of_the_mean_code(key):
    ali, variables, dataset = linear([0, 1], grey([0.0, 0.2, 1.0]))
    ali = ali._replace(encoder=Shown(4, sigma=2.0))
    found = evaluate.reconstruction_error(ali, variables, key, dataset).scalars
    assert found["reconstruction_mse"] == 0
    assert found["reconstruction_mse_random_pair"] == pytest.approx((0.2**2 + 0.8**2 + 1) / 3)
    epsilon = np.asarray(jax.random.normal(jax.random.fold_in(key, 0), (3, 4)))
    assert found["reconstruction_mse_sampled"] == pytest.approx(4 * np.mean(epsilon**2), rel=1e-5)


def test_a_fair_share_is_one_of_all_samples_and_not_of_the_good_ones():
    means = np.array([[0.0, 0.0], [10.0, 0.0]])
    samples = np.repeat([[0.0, 0.1], [10.0, 0.1], [5.0, 50.0]], [5, 1, 14], axis=0)
    found = modes.mode_statistics(samples, means, 0.1)  # a fifth of the fair share of 20 samples: 2
    assert (found["modes"], found["modes_strict"]) == (2, 1)
    assert found["high_quality"] == pytest.approx(6 / 20)


def test_modes_are_counted_near_them_and_by_the_paper_wherever_they_are(key):
    places = np.array([[-2.0], [0], [2], [5]])
    split = ArraySplit(np.float32([[-2.1], [0.1], [2.1], [4.9], [5.1]]))
    dataset = Dataset("four", split, split, 1.0, modes=places, mode_std=0.1)
    ali = Networks(Shown(1, sigma=0.2), Recall((1,), 4), Blind())
    memory = jnp.array([[2.2], [2.2], [2.2], [-2.5]])  # two deviations from a mode, and five
    variables = EMPTY._replace(params=Networks({}, {"memory": memory}, {}))
    found = evaluate.modes(ali, variables, key, dataset).scalars
    x_tilde = running.draw_samples(ali, variables, jax.random.split(key, 3)[0], 2_500, dataset)
    assert (found["modes"], found["modes_strict"], found["modes_paper"]) == (1, 1, 2)
    assert found["high_quality"] == np.mean(x_tilde > 0)
    assert found["high_quality"] == pytest.approx(0.75, abs=0.03)
    assert found["mode_spread"] == pytest.approx(2, rel=1e-5)
    assert found["reverse_kl"] == pytest.approx(np.log(4))
    kept = evaluate.modes(
        ali._replace(decoder=Paste((1,))), EMPTY._replace(params=Networks({}, {"one": 2.0}, {})), key, dataset
    )
    assert kept.scalars["mode_kept"] == 4 / 5  # doubled, all stay but 2.1, which becomes 4.2
    assert found["n_test"] == 5


def test_the_support_of_real_data_is_from_pairs_of_a_test_and_a_train_row(key):
    train, test = (ArraySplit(np.float32(x)[:, None]) for x in ([0, 10, 20, 30], [0.1, 15, 14]))
    dataset = Dataset("line", train, test, 1.0)
    ali = Networks(Shown(1), Recall((1,), 3), Blind())
    memory = jnp.array([[3.0], [3.1], [9.0]])  # nearer than a hundredth of the test rows is to train: 0.178
    found = evaluate.effective_support(
        ali, EMPTY._replace(params=Networks({}, {"memory": memory}, {})), key, dataset
    ).scalars
    assert found["effective_support_real"] == 3 * 4 / 1
    assert found["effective_support"] == pytest.approx(1 / ((2 / 3) ** 2 + (1 / 3) ** 2), rel=0.05)
    assert found["effective_support_low"] < found["effective_support"] < found["effective_support_high"]
    assert found["n_support"] == 2_000
