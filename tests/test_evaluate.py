"""The evaluators on models whose results are known: codes that are the image, and a decoder that recalls."""

import contextlib
import importlib
import inspect
import pkgutil
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from ali_jax import data, evaluate, model
from ali_jax.config import base
from ali_jax.data import ArraySplit, Dataset
from ali_jax.evaluate import features, rows, running
from ali_jax.metrics import blocks, divergence, neighbors, reconstruction
from ali_jax.names import public_functions
from ali_jax.networks import Encoder
from ali_jax.types import Networks, Report, Variables

SIGMA = 0.1


class Copy(nn.Module):
    """The encoder whose mean code is the image, and whose standard deviation is SIGMA."""

    latent_dim: int

    @nn.compact
    def __call__(self, x, epsilon, y=None, *, train):
        mu, log_sigma = self.moments(x, y, train=train)
        return mu + jnp.exp(log_sigma) * epsilon

    @nn.compact
    def moments(self, x, y=None, *, train):
        one = self.param("one", nn.initializers.ones, ())
        mu = one * x.reshape(x.shape[0], -1)
        return mu, jnp.full_like(mu, np.log(SIGMA))


class Paste(nn.Module):
    """The decoder that undoes Copy; with y it adds the first attribute."""

    x_shape: tuple[int, ...]

    @nn.compact
    def __call__(self, z, y=None, *, train):
        one = self.param("one", nn.initializers.ones, ())
        if y is not None:
            z = z + y[:, :1]
        return one * z.reshape(-1, *self.x_shape)


class Recall(nn.Module):
    """The decoder that shows one of the images it remembers, each as often as the others."""

    x_shape: tuple[int, ...]
    number: int

    @nn.compact
    def __call__(self, z, y=None, *, train):
        memory = self.param("memory", nn.initializers.zeros, (self.number, *self.x_shape))
        uniform = jax.scipy.stats.norm.cdf(z[:, 0])
        return memory[jnp.clip((uniform * self.number).astype(jnp.int32), 0, self.number - 1)]


class Blind(nn.Module):
    """A discriminator that sees nothing."""

    @nn.compact
    def __call__(self, x, z, y=None, *, train):
        return jnp.zeros(len(x)) + self.param("zero", nn.initializers.zeros, ())


def copier(dataset: Dataset) -> tuple[Networks, Variables]:
    """Give the model that encodes without loss."""
    shape = dataset.train.shape
    ali = Networks(Copy(int(np.prod(shape))), Paste(shape), Blind())
    one = {"one": jnp.ones(())}
    return ali, Variables(Networks(one, one, {"zero": jnp.zeros(())}), Networks({}, {}, {}))


def recaller(dataset: Dataset, x: np.ndarray) -> tuple[Networks, Variables]:
    """Give the model whose samples are the rows of x."""
    ali = Networks(Copy(int(np.prod(x.shape[1:]))), Recall(x.shape[1:], len(x)), Blind())
    params = Networks({"one": jnp.ones(())}, {"memory": jnp.asarray(x)}, {"zero": jnp.zeros(())})
    return ali, Variables(params, Networks({}, {}, {}))


class CountingSplit:
    """A split that counts how often it is read."""

    def __init__(self, split: Any) -> None:
        self.split, self.reads = split, 0

    def __len__(self):
        return len(self.split)

    def __getattr__(self, name):
        return getattr(self.split, name)

    def rows(self, indices):
        self.reads += 1
        return self.split.rows(indices)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module")
def mixture():
    return data.load("mixture")


@pytest.fixture(scope="module")
def faces():
    """Give a conditional data set of small colour images, without labels."""
    rng = np.random.default_rng(0)
    splits = [
        ArraySplit(rng.integers(256, size=(n, 8, 8, 3), dtype=np.uint8), rng.random((n, 2), np.float32))
        for n in (40, 30)
    ]
    return Dataset("faces", *splits, divisor=255.0, attributes=("Bald", "Young"))


@pytest.fixture(scope="module")
def lonely(faces):
    """Give a data set with one test image."""
    return faces._replace(test=faces.test.part(0, 1))


BLOCKWISE = (
    *("reconstruction_error", "error_extremes", "memorisation", "near_duplicates", "neighbours"),
    *("effective_support", "precision_recall"),
)


def test_images_in_small_blocks_give_the_numbers_and_pictures_of_all_at_once(faces, key, monkeypatch):
    """Blocks of 20 rows of x and parts of 25 rows of train; sampled codes depend on the block."""
    dataset = faces._replace(attributes=())
    dataset = dataset._replace(train=ArraySplit(faces.train.x), test=ArraySplit(faces.test.x))
    of_row = 4 * 8 * 8 * 3
    found = []
    for block, part in ((2**27, 2**28), (20 * of_row, 25 * of_row)):
        monkeypatch.setattr(blocks, "BLOCK_BYTES", block)
        monkeypatch.setattr(neighbors, "PART_BYTES", part)
        fresh = dataset._replace(train=ArraySplit(faces.train.x))  # results are cached by data set
        ali, variables = recaller(fresh, faces.test.x[:10] / np.float32(255))
        found.append([getattr(evaluate, name)(ali, variables, key, fresh) for name in BLOCKWISE])
    for whole, parted in zip(*found, strict=True):
        for name in whole.scalars.keys() - {"reconstruction_mse_sampled"}:
            assert parted.scalars[name] == pytest.approx(whole.scalars[name], rel=1e-5), name
        for name, picture in whole.images.items():
            np.testing.assert_array_equal(parted.images[name], picture)


def test_large_images_have_blocks_of_128_mib_and_a_gibibyte_of_train():
    assert blocks.rows_per_block((32, 32, 3)) == blocks.rows_per_block((128, 128, 3)) == 500
    assert blocks.rows_per_block((256, 256, 3)) == 170
    assert 170 * 4 * 256 * 256 * 3 <= 2**27 < 171 * 4 * 256 * 256 * 3

    class Large(ArraySplit):
        """A split that says it has 60,000 large rows."""

        shape = (256, 256, 3)
        __len__ = lambda self: 60_000  # noqa: E731
        rows = lambda self, indices: data.dataset.host_batch(np.zeros((len(indices), 1)))  # noqa: E731

    large = Large(np.zeros((1, 1), np.uint8))
    assert len(rows.train_rows(Dataset("large", large, large, 255.0)).x) == 2**30 // (256 * 256 * 3) == 5461


def test_a_lossless_code_reconstructs_up_to_its_noise(digits, key):
    found = evaluate.reconstruction_error(*copier(digits), key, digits).scalars
    x = digits.test.x / 16
    assert found["reconstruction_mse"] < 1e-12
    assert found["reconstruction_mse_sampled"] == pytest.approx(SIGMA**2, rel=0.05)
    assert found["reconstruction_mse_random_pair"] == pytest.approx(np.mean((x[:-1] - x[1:]) ** 2), rel=0.05)
    assert found["n_test"] == 397


def test_the_ladder_of_a_lossless_code_has_no_gaps(digits, key):
    found = evaluate.reconstruction_ladder(*copier(digits), key, digits, ladder_rows=40).scalars
    assert found["ladder_mean"] < 1e-12
    assert found["ladder_refined"] <= found["ladder_mean"]
    assert found["ladder_code"] < 1e-12
    assert found["ladder_sample"] == pytest.approx(SIGMA**2, rel=0.1)
    assert 0.6 * SIGMA**2 < found["ladder_best_of_k"] < found["ladder_sample"]
    assert found["ladder_searched"] < 1e-3  # from codes that have nothing to do with the image
    assert found["ladder_encoder_gap"] + found["ladder_decoder_gap"] == found["ladder_mean"]
    assert found["n_ladder"] == 40


def test_posterior_sigma_is_the_encoders(digits, key):
    assert evaluate.posterior(*copier(digits), key, digits).scalars["posterior_sigma"] == pytest.approx(SIGMA)


def test_a_lossless_code_probes_as_its_pixels_do(digits, key):
    found = evaluate.probes(*copier(digits), key, digits).scalars
    for name in ("knn_accuracy", "linear_probe_accuracy"):
        assert found[name] == found[f"{name}_pixels"] == found[f"{name}_untrained"] > 0.95
    assert found["knn_accuracy_pca"] == pytest.approx(
        found["knn_accuracy"], abs=0.003
    )  # a rotation of pixels
    assert 0.9 < found["linear_probe_accuracy_pca"] < 1
    assert (found["n_train_labelled"], found["n_test_labelled"]) == (1400, 397)


def test_hidden_probe_is_the_nearest_neighbour_of_the_encoders_last_layer(digits, key):
    ali = Networks(Encoder(64, (16, 8), batch_norm=False, init_std=0.0), Paste((8, 8, 1)), Blind())
    x = {
        name: getattr(digits, name).rows(np.arange(len(getattr(digits, name)))) for name in ("train", "test")
    }
    params = ali.encoder.init(key, jnp.ones((1, 64)), jnp.zeros((1, 64)))["params"]
    held = Variables(Networks(params, {"one": jnp.ones(())}, {}), Networks({}, {}, {}))
    found = evaluate.hidden_probe(ali, held, key, digits).scalars

    def hidden(rows):
        first, second = (params["stack"][f"layer_{i}"]["kernel"] for i in range(2))
        h = rows[0].reshape(-1, 64) / 16 @ first
        return np.asarray(np.maximum(h, 0.01 * h) @ second)  # the biases are zero

    reference, queries = hidden(x["train"]), hidden(x["test"])
    nearest = np.argmin(((queries[:, None] - reference[None]) ** 2).sum(-1), axis=1)
    expected = np.mean(x["train"][2][nearest] == x["test"][2])
    assert found["hidden_knn_accuracy"] == pytest.approx(expected, abs=2 / 397)
    assert found["hidden_knn_accuracy_low"] < expected < found["hidden_knn_accuracy_high"]
    assert found["hidden_knn_accuracy_untrained"] != found["hidden_knn_accuracy"]
    with pytest.raises(ValueError, match="an encoder that sows its hidden layers"):
        evaluate.check_applicable("hidden_probe", digits, copier(digits)[0])


class Sowing(nn.Module):
    """An encoder of one's own: it has no attribute `layers`."""

    latent_dim: int = 2

    @nn.compact
    def __call__(self, x, epsilon, y=None, *, train=False):
        h = nn.Dense(3)(x.reshape(len(x), -1))
        self.sow("intermediates", "hidden", h)
        return nn.Dense(2)(nn.relu(h))


def test_hidden_probe_takes_any_encoder_that_sows_its_layers(digits, key):
    ali = copier(digits)[0]._replace(encoder=Sowing())
    evaluate.check_applicable("hidden_probe", digits, ali)
    params = ali.encoder.init(key, jnp.ones((1, 8, 8, 1)), None)["params"]
    held = Variables(Networks(params, {"one": jnp.ones(())}, {}), Networks({}, {}, {}))
    assert evaluate.hidden_probe(ali, held, key, digits, controls=False).scalars["hidden_knn_accuracy"] > 0.3


def test_an_encoder_without_the_length_of_its_codes_is_named(digits):
    class Bare(nn.Module):
        pass

    with pytest.raises(ValueError, match="The encoder Bare says nothing of the length"):
        model.latent_dim(copier(digits)[0]._replace(encoder=Bare()))


def test_controls_are_what_the_weights_have_no_part_in(digits, key):
    ali, variables = copier(digits)
    other = jax.tree.map(lambda array: 0.5 + 0 * array, variables)
    for name in ("probes", "class_balance", "reconstruction_error", "posterior", "memorisation"):
        a, b = (evaluate.named(name)(ali, held, key, digits).scalars for held in (variables, other))
        controls = {scalar for scalar in a if evaluate.is_control(scalar)}
        assert {scalar for scalar in controls if a[scalar] != b[scalar]} == set()
        assert controls >= {scalar for scalar in a if scalar.startswith("n_")}
        if name == "probes":
            assert a.keys() - controls == {"knn_accuracy", "linear_probe_accuracy"}
    assert evaluate.is_control("reconstruction_mse_random_pair")
    assert not evaluate.is_control("reconstruction_mse_sampled")


def test_recalled_training_data_are_balanced_kept_by_copies_and_found_out(digits, key):
    ali, variables = recaller(digits, digits.train.x / np.float32(16))
    found = evaluate.class_balance(ali, variables, key, digits, num_samples=5_000).scalars
    assert found["class_kl_floor"] == pytest.approx(9e-4)
    assert found["class_kl"] < 5e-3
    assert 9 < found["class_score"] <= found["class_score_data"] + 0.3 <= 10.3
    assert 0.08 < found["class_share_min"] < 0.1 < found["class_share_max"] < 0.12
    assert found["classifier_accuracy"] > 0.97
    assert evaluate.memorisation(ali, variables, key, digits).scalars["memorisation"] == 0

    copied = evaluate.class_balance(*copier(digits), key, digits, num_samples=100).scalars
    assert copied["class_kept"] == copied["classifier_accuracy"] == found["classifier_accuracy"]
    assert copied["class_kept_sampled"] > 0.9


def test_near_duplicates_are_test_images_that_train_has_but_for_little_noise(faces, key):
    """Of 30 test images, one is in train, two differ by under 2 % of the range, two by more, 25 wholly."""
    x, some = faces.test.x.copy(), faces.train.x
    for row, by in enumerate((0, 3, 5, 6, 8)):  # of 255: 2 % are 5.1
        x[row] = np.where(some[row] < 128, some[row] + by, some[row] - by)
    changed = faces._replace(attributes=(), test=ArraySplit(x), train=ArraySplit(some))
    found = evaluate.near_duplicates(*copier(changed), key, changed).scalars
    assert found == pytest.approx({"near_duplicates": 3 / 30, "n_near_duplicates": 30, "n_train": 40})
    assert evaluate.is_control("near_duplicates")


def test_near_duplicates_and_memorisation_search_train_once(faces, key, monkeypatch):
    dataset = faces._replace(attributes=(), test=ArraySplit(faces.test.x), train=ArraySplit(faces.train.x))
    searched, search = [], reconstruction.nearest
    monkeypatch.setattr(
        reconstruction, "nearest", lambda x, *a, **k: searched.append(len(x)) or search(x, *a, **k)
    )
    for evaluator in (evaluate.near_duplicates, evaluate.memorisation):
        evaluator(*copier(dataset), key, dataset)
    assert searched == [30, *[500] * 4]  # the test rows once, and 2,000 samples in blocks


def test_frechet_distances_tell_copies_of_train_from_a_collapsed_model(digits, key):
    def found(x):
        return evaluate.frechet_distance(*recaller(digits, x), key, digits, num_samples=300).scalars

    train = digits.train.x / np.float32(16)
    good, collapsed = found(train), found(train[:1])
    assert good["n_fid"] == 300
    assert good["fid_classifier"] < 2 * good["fid_classifier_floor"] < 0.1 * collapsed["fid_classifier"]
    assert abs(good["kid_classifier"]) < 5 * good["kid_classifier_error"]
    assert collapsed["kid_classifier"] > 20 * collapsed["kid_classifier_error"]
    assert collapsed["fid_classifier_floor"] == good["fid_classifier_floor"]
    assert "fid_classifier_batch_norm" not in good  # this decoder has none
    assert evaluate.disagreements(good, collapsed) == {"warn_fid_classifier_raw_ema": 1}
    assert evaluate.disagreements(good, good) == {"warn_fid_classifier_raw_ema": 0}


def test_stale_running_statistics_are_warned_of(digits, key):
    ali, variables = copier(digits)
    ali = ali._replace(decoder=Normed())
    for mean, warns in ((0.0, 0.0), (5.0, 1.0)):
        stats = {"BatchNorm_0": {"mean": jnp.full(64, mean), "var": jnp.ones(64)}}
        held = Variables(
            variables.params._replace(decoder={"one": jnp.ones(())}),
            variables.batch_stats._replace(decoder=stats),
        )
        found = evaluate.frechet_distance(ali, held, key, digits, num_samples=300).scalars
        assert found["warn_fid_classifier_batch_norm"] == warns
        assert (found["fid_classifier"] > 2 * found["fid_classifier_batch_norm"]) == bool(warns)
    extractor = evaluate.Extractor("pixels", "none", lambda x: x.reshape(len(x), -1))
    measured = evaluate.frechet_measurements(ali, held, key, digits, extractor, num_samples=50, weights="ema")
    provenance = measured["fid_pixels"].provenance
    assert provenance == ("pixels", "none", 50, "digits train", "0-0", "ema", "running")
    assert measured["fid_pixels_batch_norm"].provenance == provenance._replace(batch_norm="batch")


def test_inception_needs_its_weights(digits, key):
    message = (
        "needs the weights of Inception-v3: set config.evaluation.inception_weights to an existing .npz file"
    )
    with pytest.raises(ValueError, match=message):
        evaluate.inception_distance(*copier(digits), key, digits)


def test_a_collapsed_model_has_one_class(digits, key):
    found = evaluate.class_balance(
        *recaller(digits, digits.train.x[:1] / np.float32(16)), key, digits
    ).scalars
    assert found["class_share_max"] == 1
    assert found["class_kl"] == pytest.approx(np.log(10), rel=0.02)


def test_recalled_points_cover_the_mixture(mixture, key):
    found = evaluate.modes(*recaller(mixture, mixture.train.x[:20_000]), key, mixture).scalars
    assert (found["modes"], found["modes_strict"], found["modes_paper"]) == (25, 25, 25)
    assert found["mode_spread"] == pytest.approx(0.974, abs=0.03)
    assert found["mode_kept"] < 0.1  # it recalls what has nothing to do with the code
    assert evaluate.modes(*copier(mixture), key, mixture).scalars["mode_kept"] == 1


def test_codes_that_are_the_prior_are_told_from_codes_that_are_the_image(mixture, key):
    small = mixture._replace(test=mixture.test.part(0, 600))
    normal = small._replace(test=ArraySplit(np.asarray(jax.random.normal(key, (600, 2)))))
    found = [evaluate.code_distribution(*copier(data), key, data).scalars for data in (normal, small)]
    tests = {"code_mmd_p", "code_energy_p", "code_neighbor_p", "code_ks_p"}
    assert all(found[0][name] > 0.01 for name in tests)
    assert all(found[1][name] <= 0.005 for name in tests)
    error, floor = "code_covariance_error", "code_covariance_error_floor"
    assert found[0][error] < 3 * found[0][floor] < found[1][error]
    assert found[1]["code_width"] == pytest.approx(SIGMA, rel=0.1)


def test_a_decoders_noise_is_in_its_samples_and_not_in_its_means(mixture, key):
    class Noisy(Paste):
        @nn.compact
        def __call__(self, z, y=None, *, train):
            mean = z + 0 * self.param("one", nn.initializers.ones, ())
            if not self.has_rng("noise"):
                return mean
            return mean + 3 * jax.random.normal(self.make_rng("noise"), z.shape)

    ali, variables = copier(mixture)
    ali = ali._replace(decoder=Noisy((2,)))
    z = jnp.zeros((1_000, 2))
    assert not model.decode(ali, variables, z).any()
    assert model.decode(ali, variables, z, key=key).std() == pytest.approx(3, rel=0.05)
    assert model.sample(ali, variables, key, 1_000).std() == pytest.approx(np.sqrt(10), rel=0.05)
    pairs = running.draw_pairs(ali, variables, key, rows.test_rows(mixture), 1.0)
    assert len(np.unique(np.round(pairs.x_tilde - pairs.z, 4), axis=0)) > 9_990  # every block has its own


def test_each_distinct_test_row_has_one_code(mixture, key):
    twice = mixture._replace(test=ArraySplit(np.tile(mixture.test.x[:50], (2, 1))))
    assert evaluate.code_distribution(*copier(twice), key, twice).scalars["n_codes"] == 50


class Ignorant(nn.Module):
    """Draws codes and data that have nothing to do with each other."""

    latent_dim: int = 2

    @nn.compact
    def __call__(self, *inputs, train):
        if len(inputs) == 3:
            return inputs[1]  # the encoder's epsilon
        return jax.random.normal(self.make_rng("noise"), inputs[0].shape)


def test_the_joints_of_a_copier_differ_and_those_of_independent_normals_do_not(mixture, key, monkeypatch):
    monkeypatch.setattr(divergence, "PATIENCE", 1)
    normal = mixture._replace(
        train=ArraySplit(np.asarray(jax.random.normal(key, (3_000, 2)))),
        test=ArraySplit(np.asarray(jax.random.normal(jax.random.PRNGKey(1), (1_000, 2)))),
    )
    ali, variables = copier(normal)
    far = evaluate.joint_divergence(ali, variables, key, mixture).scalars
    assert far["joint_jsd"] > 0.4
    assert far["joint_accuracy"] > 0.9
    ignorant = ali._replace(encoder=Ignorant(), decoder=Ignorant())
    near = evaluate.joint_divergence(ignorant, variables, key, normal).scalars
    assert -0.01 < near["joint_jsd"] < 3 * near["joint_jsd_se"]
    assert near["n_test"] == 1_000


def test_a_blind_discriminator_uses_no_z_and_a_seeing_one_does(mixture, key):
    class Distance(Blind):
        @nn.compact
        def __call__(self, x, z, y=None, *, train):
            return -jnp.sum(jnp.abs(x - z), axis=-1) + self.param("zero", nn.initializers.zeros, ())

    small = mixture._replace(test=mixture.test.part(0, 600))
    ali, variables = copier(small)
    blind = evaluate.discriminator_use_of_z(ali, variables, key, small).scalars
    assert (blind["d_logit_change"], blind["d_auc"], blind["d_auc_drop"]) == (0, 0.5, 0)
    seeing = ali._replace(discriminator=Distance(), decoder=Recall((2,), 3))
    params = variables.params._replace(decoder={"memory": jnp.ones((3, 2))})
    found = evaluate.discriminator_use_of_z(seeing, variables._replace(params=params), key, small).scalars
    assert found["d_auc"] > 0.95
    assert found["d_auc_drop"] > 0.4


class Packed(nn.Module):
    """A discriminator of packs of m pairs, or of two classes, whose logits follow from z.x of each pair."""

    packing: int = 1
    classes: int = 1

    @nn.compact
    def __call__(self, x, z, y=None, *, train):
        s = self.param("one", nn.initializers.ones, ()) * jnp.sum(x * z, axis=-1)
        s = s.reshape(-1, self.packing).mean(axis=1)
        return s if self.classes == 1 else jnp.log(jnp.exp(s)[:, None] * jnp.array([[0.3, 0.7]]))


def test_use_of_z_of_classes_is_that_of_their_sum_and_packs_have_one_logit(mixture, key):
    small = mixture._replace(test=mixture.test.part(0, 601))
    ali, variables = copier(small)
    variables = variables._replace(params=variables.params._replace(discriminator={"one": jnp.ones(()) / 9}))

    def found(discriminator):
        judged = ali._replace(discriminator=discriminator)
        return evaluate.discriminator_use_of_z(judged, variables, key, small).scalars

    one, classes, packs = (found(Packed(*fields)) for fields in ((1, 1), (1, 2), (7, 1)))
    assert classes == pytest.approx(one, rel=1e-5)
    assert (one["n_pairs"], packs["n_pairs"]) == (601, 595)
    pairs = running.draw_pairs(ali, variables, key, rows.distinct_test_rows(small), 1.0)
    logits = running.judge(ali._replace(discriminator=Packed(7)), variables, pairs.x, pairs.z_hat, None)
    each = np.sum(pairs.x * pairs.z_hat, axis=-1) / 9
    np.testing.assert_allclose(logits, each[:595].reshape(85, 7).mean(axis=1), rtol=1e-4)
    assert packs["d_auc"] > one["d_auc"] > 0.5  # of seven pairs it is easier to tell
    with pytest.raises(ValueError, match="as many test rows as the discriminator judges at once"):
        found(Packed(602))


def test_coverage_of_recalled_modes_and_classes_is_known(mixture, digits, key):
    few = mixture.train.x[np.isin(mixture.train.label, range(20))][:5_000]
    found = evaluate.mode_coverage(*recaller(mixture, few), key, mixture).scalars
    assert (found["coverage_frequent_low"], found["coverage_frequent_high"]) == (20, 20)
    assert found["coverage_expected_low"] <= found["coverage_expected"] == 20 < 22
    some = digits.train.x[digits.train.label < 7][:700] / np.float32(16)
    found = evaluate.mode_coverage(*recaller(digits, some), key, digits).scalars
    assert found["coverage_frequent_low"] <= 7 <= found["coverage_frequent_high"] <= 10
    assert found["n_coverage"] == 20_000


def test_a_model_that_recalls_fifty_images_has_an_effective_support_of_fifty(digits, key):
    found = evaluate.effective_support(*recaller(digits, digits.train.x[:50] / np.float32(16)), key, digits)
    assert found.scalars["effective_support_low"] < 50 < found.scalars["effective_support_high"]
    assert found.scalars["effective_support_real"] > 10_000


def test_a_grid_has_ten_rows_and_columns_unless_told_otherwise(digits, key):
    model = copier(digits)
    cell = 10 * 8 + 2  # images are enlarged tenfold at ten columns, and two pixels apart
    assert evaluate.samples(*model, key, digits).images["samples"].shape == (10 * cell + 2, 10 * cell + 2, 3)


def test_panels_of_the_plane_show_data_codes_and_samples(mixture, key):
    (x, x_hat, x_tilde), (z_hat, z) = evaluate.plane_panels(*copier(mixture), key, mixture)
    drawn = [panel.points for panel in (x, x_hat, x_tilde, z_hat, z)]
    assert {points.shape for points in drawn} == {(2_500, 2)}
    rows = {row.tobytes(): label for row, label in zip(mixture.test.x, mixture.test.label, strict=True)}
    assert [rows[row.tobytes()] for row in np.asarray(x.points)] == x.labels.tolist()
    assert (x_hat.points - x.points).std() == pytest.approx(SIGMA, rel=0.05)
    np.testing.assert_array_equal(x_hat.points, z_hat.points)  # the decoder copies
    np.testing.assert_array_equal(x_tilde.points, z.points)
    assert z.points.std() == pytest.approx(1, rel=0.05)
    assert (x_tilde.labels, z.labels) == (None, None)
    for panel in (x_hat, z_hat):
        np.testing.assert_array_equal(panel.labels, x.labels)
    assert x.limit == x_hat.limit == x_tilde.limit == 1.5 * np.abs(x.points).max() > z.limit == 4
    assert evaluate.samples(*copier(mixture), key, mixture).images["samples"].shape == (300, 300, 3)


def test_conditions_are_those_of_the_same_rows(faces, key):
    found = evaluate.reconstruction_error(*copier(faces), key, faces).scalars
    assert found["reconstruction_mse"] == pytest.approx(np.mean(faces.test.y[:, 0] ** 2), rel=1e-4)
    images = evaluate.reconstructions(*copier(faces), key, faces).images  # of 30 rows, for 100 cells
    assert not (images["reconstructions"][-20:] == 255).all()


class Normed(nn.Module):
    """A decoder of digits with batch normalisation."""

    @nn.compact
    def __call__(self, z, y=None, *, train):
        x = nn.BatchNorm(use_running_average=not train, use_scale=False, use_bias=False)(z[:, :64])
        one = self.param("one", nn.initializers.ones, ())
        return (0.5 + 0.2 * one * x).reshape(-1, 8, 8, 1)


class TenClasses(nn.Module):
    """A discriminator of ten classes that sees nothing."""

    num_classes: int = 10

    @nn.compact
    def __call__(self, x, z, y=None, *, train):
        return jnp.zeros((len(x), 10)) + self.param("zero", nn.initializers.zeros, ())


@pytest.fixture(scope="module")
def settings(digits, mixture):
    """Give models and data sets such that each evaluator applies to one of them."""
    rich = Networks(Encoder(64, (16, 8), batch_norm=False), Normed(), TenClasses())
    variables = small.init(rich, jax.random.PRNGKey(0), jnp.zeros((2, 8, 8, 1)))
    others = (mixture, data.load("digits", conditional=True))
    return [(rich, variables, digits), *((*copier(dataset), dataset) for dataset in others)]


def applicable(name, settings):
    for ali, variables, dataset in settings:
        with contextlib.suppress(ValueError):
            evaluate.check_applicable(name, dataset, ali)
            return ali, variables, dataset
    return None


QUICK = {"num_samples": 100, "svm_labels": 100, "svm_draws": 2, "ladder_rows": 10, "ladder_steps": 2}
ELSEWHERE = {
    "inception_distance",  # needs weights: the next test
    "attribute_grid",  # needs CelebA's attributes and has no numbers: test_conditional
    "stacked_modes",  # slow: test_stacks
}


@pytest.mark.parametrize("name", sorted(set(evaluate.names()) - ELSEWHERE))
def test_a_model_that_has_diverged_has_every_number_that_is_declared(name, settings, key, monkeypatch):
    monkeypatch.setattr(rows, "TRAIN_ROWS", 2_000)
    monkeypatch.setattr(divergence, "PATIENCE", 1)
    ali, variables, dataset = applicable(name, settings)
    broken = jax.tree.map(lambda array: jnp.full_like(array, jnp.nan), variables)
    options = {k: v for k, v in QUICK.items() if k in inspect.signature(evaluate.named(name)).parameters}
    scalars = evaluate.named(name)(ali, broken, key, dataset, **options).scalars
    reported = {*scalars, *evaluate.disagreements(scalars, scalars)}
    assert reported == of_classifier(name)


def of_classifier(name):
    """Return the names of an evaluator's numbers without those on the features of other extractors."""
    numbers = {number.name for number in evaluate.declared()[name]}
    others = set(features.NAMES) - {"classifier"}
    return {n for n in numbers if not any(n.replace(kind, "classifier") in numbers - {n} for kind in others)}


@pytest.mark.parametrize("name", ["frechet_distance", "precision_recall"])
def test_numbers_on_features_differ_by_the_extractor_alone(name):
    declared = {number.name for number in evaluate.declared()[name]}
    kinds = [
        {number.replace("classifier", kind) for number in of_classifier(name)} for kind in features.NAMES
    ]
    assert declared == set().union(*kinds)
    inception = {number.name for number in evaluate.declared()["inception_distance"]}
    assert inception == {
        number.replace("classifier", "inception") for number in of_classifier("frechet_distance")
    }


def test_a_number_that_is_not_declared_is_refused(digits, key):
    @evaluate.evaluator(numbers=(evaluate.Number("a", "a number"),))
    def planted(ali, variables, key, dataset):
        return Report({"a": 1.0, "b": 2.0}, {})

    with pytest.raises(AssertionError, match=r"planted reports numbers that it does not declare: \['b'\]"):
        planted(*copier(digits), key, digits)


def test_what_declarations_refer_to_is_declared():
    """A number means the same wherever it stands: reports and `is_control` look it up by name alone."""
    by_name = {}
    for numbers in evaluate.declared().values():
        names = [number.name for number in numbers]
        assert len(set(names)) == len(names)
        for number in numbers:
            shared = number._replace(meaning="")
            assert by_name.setdefault(number.name, shared) == shared
            assert number.meaning
            assert number.control or not number.is_count
            assert number.scale is None or number.scale[0] in names
    assert {number.share_of for number in by_name.values()} - {""} <= {
        number.name for number in by_name.values() if number.is_count
    }
    assert by_name["label_error"].share_of == "n_test_labelled"


def test_evaluators_repeat_with_a_key_and_vary_with_it(digits, key):
    model = copier(digits)
    first, again, other = (
        evaluate.reconstruction_error(*model, k, digits).scalars["reconstruction_mse_sampled"]
        for k in (key, key, jax.random.PRNGKey(7))
    )
    assert first == again != other


def test_what_does_not_depend_on_the_model_is_worked_out_once(digits, key):
    counted = digits._replace(train=CountingSplit(digits.train), test=CountingSplit(digits.test))
    first = evaluate.probes(*copier(counted), key, counted)
    reads = counted.train.reads, counted.test.reads
    assert reads == (1, 2)  # of test also one row, to see whether it has y
    again = evaluate.probes(*copier(counted), key, counted._replace(name="renamed"))
    assert (counted.train.reads, counted.test.reads) == reads
    assert first.scalars == again.scalars


def test_a_large_split_is_thinned_evenly(digits, key, monkeypatch):
    monkeypatch.setattr(rows, "TEST_ROWS", 100)
    label = np.sort(digits.test.label)  # as in a folder of folders: the first 100 rows are two classes
    test = digits.test.x[np.argsort(digits.test.label, kind="stable")]
    sorted_digits = digits._replace(test=ArraySplit(test, None, label, 10))
    assert evaluate.posterior(*copier(digits), key, sorted_digits).scalars["n_test"] == 100
    assert len(np.unique(rows.test_rows(sorted_digits).label)) == 10


def test_unlabelled_rows_take_no_part_in_probes(digits, key):
    label = np.where(np.arange(1400) < 700, digits.train.label, -1)
    partly = digits._replace(train=ArraySplit(digits.train.x, None, label, 10))
    assert evaluate.probes(*copier(partly), key, partly).scalars["n_train_labelled"] == 700
    assert evaluate.memorisation(*copier(partly), key, partly).scalars["n_train"] == 1400


def returns_report(function):
    return inspect.signature(function).return_annotation is Report


def test_the_modules_are_the_registry():
    for name in evaluate.names():
        assert evaluate.named(name) is getattr(evaluate, name)
    assert {"samples", "probes"} <= set(dir(evaluate))
    files = pkgutil.iter_modules(evaluate.__path__, "ali_jax.evaluate.")
    functions = [public_functions(importlib.import_module(file.name)) for file in files]
    found = [name for public in functions for name, function in public.items() if returns_report(function)]
    assert sorted(found) == evaluate.names()  # none twice, undeclared, or in another module
    with pytest.raises(ValueError, match=r"no evaluator 'sample'.*mean samples.*batch_norm, class_balance"):
        evaluate.named("sample")
    with pytest.raises(ValueError, match="no evaluator '_test'"):
        evaluate.named("_test")
    with pytest.raises(ValueError, match="no evaluator 'test_rows'"):
        evaluate.named("test_rows")


def test_options_of_evaluators_are_keys_of_the_config():
    keys = set(base().evaluation)
    for name in evaluate.names():
        parameters = list(inspect.signature(evaluate.named(name)).parameters.values())
        assert [p.name for p in parameters[:4]] == ["ali", "variables", "key", "dataset"]
        assert {p.name for p in parameters[4:]} <= keys


@pytest.mark.parametrize(
    ("name", "dataset", "message"),
    [
        ("modes", "digits", "'modes' needs known modes, and the data set 'digits'"),
        ("interpolations", "mixture", "'interpolations' needs images, and the data set 'mixture'"),
        ("probes", "faces", "'probes' needs labels"),
        ("class_balance", "faces", "'class_balance' needs labels"),
        ("interpolations", "lonely", "'interpolations' needs two test rows or more, .*test rows: 1"),
        ("reconstruction_error", "lonely", "'reconstruction_error' needs two test rows or more"),
    ],
)
def test_an_evaluator_that_does_not_apply_says_so(name, dataset, message, request, key):
    dataset = request.getfixturevalue(dataset)
    with pytest.raises(ValueError, match=message):
        evaluate.check_applicable(name, dataset, copier(dataset)[0])
    with pytest.raises(ValueError, match=message):
        evaluate.named(name)(*copier(dataset), key, dataset)


def test_an_encoder_that_is_no_gaussian_has_no_posterior(digits, key):
    class Code(nn.Module):
        latent_dim: int = 64

        @nn.compact
        def __call__(self, x, epsilon, y=None, *, train):
            return epsilon

    ali, variables = copier(digits)
    evaluate.check_applicable("posterior", digits, ali)
    for encoder in (Code(), Encoder(64, (8,), posterior="noise")):
        with pytest.raises(ValueError, match="'posterior' needs a Gaussian encoder"):
            evaluate.check_applicable("posterior", digits, ali._replace(encoder=encoder))
        with pytest.raises(ValueError, match="'posterior' needs a Gaussian encoder"):
            evaluate.posterior(ali._replace(encoder=encoder), variables, key, digits)
