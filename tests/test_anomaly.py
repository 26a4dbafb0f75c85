"""Anomaly scores of a known model, the law of conformal false alarms, and the metrics of detection."""

import dataclasses
from collections import Counter

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

from ali_jax import model
from ali_jax.metrics import conformal, detection
from ali_jax.networks import Discriminator
from ali_jax.tools.anomaly import AnomalyScorer, alad, anomaly_scores, egbad, ladder_error
from ali_jax.tools.trained import Model
from ali_jax.types import Networks, Variables

SHAPE = (3, 3, 2)


class Corner(nn.Module):
    """An encoder that returns the first two pixels of the first channel, each off by 0.1."""

    latent_dim: int = 2

    @nn.compact
    def __call__(self, x, epsilon, y=None, *, train):
        return x[:, 0, :2, 0] + 0.1


class Fill(nn.Module):
    """A decoder that puts a code where Corner reads it, and 0.5 elsewhere."""

    @nn.compact
    def __call__(self, z, y=None, *, train):
        x = jnp.full((len(z), *SHAPE), 0.5)
        return x.at[:, 0, :2, 0].set(z)


class Sum(nn.Module):
    """The discriminator whose logit is the sum of a pair's codes; it has no joint layers."""

    @nn.compact
    def __call__(self, x, z, y=None, *, train):
        return z.sum(axis=1)


ALI = Networks(Corner(), Fill(), Sum())
EMPTY = Variables(Networks({}, {}, {}), Networks({}, {}, {}))
MODEL = Model(ALI, EMPTY, SHAPE)


@pytest.fixture
def rng():
    """Give a generator of fixed seed."""
    return np.random.default_rng(0)


@pytest.fixture
def normal(rng):
    """Give rows that the decoder can produce, up to a little noise."""
    x = np.full((99, *SHAPE), 0.5) + 0.01 * rng.standard_normal((99, *SHAPE))
    x[:, 0, :2, 0] = 0.9 * rng.random((99, 2))
    return x.astype(np.float32)


@pytest.fixture
def odd(normal):
    """Give the same rows with one pixel that no code can produce."""
    x = normal.copy()
    x[:, 2, 1] = 0.9
    return x


def test_the_scores_of_egbad_are_their_formula(odd):
    error = np.abs(odd - np.asarray(Fill().apply({}, odd[:, 0, :2, 0] + 0.1, train=False))).sum((1, 2, 3))
    logit = odd[:, 0, :2, 0].sum(axis=1) + 0.2
    for weight in (0.9, 0.5):
        expected = weight * error + (1 - weight) * np.log1p(np.exp(-logit))
        result = egbad(ALI, EMPTY, jnp.asarray(odd), weight=weight, match_features=False)
        np.testing.assert_allclose(result, expected, rtol=1e-5)
        np.testing.assert_allclose(
            anomaly_scores(MODEL, odd, kind="egbad_logit", weight=weight), expected, rtol=1e-5
        )


def test_features_are_those_of_the_last_joint_layer(odd, key):
    d = Discriminator((4,), (), (5, 3), x_batch_norm=False)
    z = jnp.asarray(odd[:, 0, :2, 0] + 0.1)
    params = d.init(key, odd, z)["params"]
    variables = Variables(Networks({}, {}, params), EMPTY.batch_stats)

    def hidden(x):
        """Read the last layer's three numbers off three logits with unit weights."""
        rows = []
        for i in range(3):
            logit = {"kernel": jnp.eye(3)[:, i : i + 1], "bias": jnp.zeros(1)}
            rows.append(d.apply({"params": {**params, "logit": logit}}, x, z))
        active = jnp.stack(rows, axis=1)
        return jnp.where(active < 0, active / d.slope, active)  # before the leaky ReLU

    x_hat = Fill().apply({}, z, train=False)
    expected = jnp.abs(hidden(jnp.asarray(odd)) - hidden(x_hat)).sum(axis=1)
    result = egbad(ALI._replace(discriminator=d), variables, jnp.asarray(odd), weight=0.0)
    assert expected.max() > 0
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(
        ValueError, match="this discriminator does not have: take kind='egbad_logit' or 'ladder'"
    ):
        egbad(ALI, EMPTY, jnp.asarray(odd))


def test_alad_compares_the_last_features_of_the_pair_discriminator(odd, key):
    d = Discriminator((4,), (), (5,), x_batch_norm=False, pair_layers=((3, 1, 6), 4), init_std=0.3)
    x = jnp.asarray(odd)
    params = d.init(key, x, x[:, 0, :2, 0])["params"]
    ali, variables = ALI._replace(discriminator=d), Variables(Networks({}, {}, params), EMPTY.batch_stats)
    x_hat = model.reconstruct(ali, variables, x)

    def hidden(x_prime):
        """Read the last layer's four numbers off four logits with unit weights."""
        rows = []
        for i in range(4):
            logit = {"kernel": jnp.eye(4)[:, i : i + 1], "bias": jnp.zeros(1)}
            rows.append(d.apply({"params": {**params, "pair_logit": logit}}, x, x_prime, method="pair"))
        return jnp.stack(rows, axis=1)

    expected = jnp.abs(hidden(x) - hidden(x_hat)).sum(axis=1)
    assert expected.min() > 0
    np.testing.assert_allclose(alad(ali, variables, x), expected, rtol=1e-4)
    scorer = AnomalyScorer(Model(ali, variables, SHAPE), kind="alad", false_alarm_rate=0.1).fit(odd)
    np.testing.assert_allclose(scorer.score_samples(odd), -expected, rtol=1e-4)
    assert scorer.predict(odd[:5]).shape == (5,)


def test_a_model_that_reproduces_its_data_has_no_alad_score(normal, key):
    class Copy(Corner):
        def __call__(self, x, epsilon, y=None, *, train):
            return x.reshape(len(x), -1)

    class Paste(Fill):
        def __call__(self, z, y=None, *, train):
            return z.reshape(-1, *SHAPE)

    d = Discriminator((4,), (), (5,), x_batch_norm=False, pair_layers=((3, 1, 4),))  # a convolution
    params = d.init(key, normal, normal.reshape(99, -1))["params"]
    variables = Variables(Networks({}, {}, params), EMPTY.batch_stats)
    scores = alad(Networks(Copy(18), Paste(), d), variables, jnp.asarray(normal))
    np.testing.assert_array_equal(scores, np.zeros(99, np.float32))


def test_egbads_logit_of_classes_is_their_logsumexp(odd):
    class Classes(Sum):
        @nn.compact
        def __call__(self, x, z, y=None, *, train):
            return z.sum(axis=1)[:, None] + jnp.log(jnp.array([[0.2, 0.3, 0.5]]))

    result, expected = (
        egbad(ALI._replace(discriminator=d), EMPTY, jnp.asarray(odd), match_features=False)
        for d in (Classes(), Sum())
    )
    np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_a_discriminator_of_packs_scores_no_single_row(normal):
    ali = ALI._replace(discriminator=Discriminator(packing=3, pair_layers=(4,)))
    for kind in ("egbad", "egbad_logit", "alad"):
        with pytest.raises(ValueError, match=r"judges 3 at once .*: take kind='ladder'"):
            AnomalyScorer(Model(ali, EMPTY, SHAPE), kind=kind).fit(normal)


def test_the_ladder_forgives_the_encoder_but_not_the_decoder(normal, odd):
    plain = anomaly_scores(MODEL, normal, steps=0)
    climbed, of_odd = (anomaly_scores(MODEL, x, kind="ladder", steps=30) for x in (normal, odd))
    cost = 2 * 0.1**2 / np.prod(SHAPE)  # of the encoder's offset
    np.testing.assert_allclose(plain - climbed, np.full(99, cost), rtol=0.1)
    np.testing.assert_allclose(of_odd - climbed, np.full(99, 2 * 0.4**2 / np.prod(SHAPE)), rtol=0.2)
    result = jax.jit(lambda x: ladder_error(ALI, EMPTY, x, steps=30))(jnp.asarray(odd))
    np.testing.assert_allclose(of_odd, result.error, rtol=1e-3)


def test_the_scorer_keeps_to_scikit_learns_conventions(normal, odd):
    scorer = AnomalyScorer(MODEL, steps=5, false_alarm_rate=0.1)
    assert scorer.fit(normal) is scorer
    assert scorer.score_samples(normal).mean() > scorer.score_samples(odd).mean()
    mixed = np.concatenate([normal[:20], odd[:20]])
    predicted, p = scorer.predict(mixed), scorer.p_values(mixed)
    np.testing.assert_array_equal(predicted, np.where(scorer.decision_function(mixed) < 0, -1, 1))
    np.testing.assert_array_equal(predicted, np.where(p <= 0.1, -1, 1))
    assert (predicted[20:] == -1).all()
    assert (scorer.p_values(odd) == 1 / 100).all()
    again = clone(scorer).set_params(false_alarm_rate=0.2)
    assert not hasattr(again, "offset_")
    assert again.get_params()["steps"] == 5
    assert again.fit(normal).offset_ > scorer.offset_


def test_a_frozen_model_is_the_model(normal, odd):
    frozen_model = pytest.importorskip("sklearn.frozen").FrozenEstimator(MODEL)
    plain, frozen = (
        AnomalyScorer(given, steps=0, false_alarm_rate=0.1).fit(normal) for given in (MODEL, frozen_model)
    )
    np.testing.assert_array_equal(frozen.calibration_scores_, plain.calibration_scores_)
    np.testing.assert_array_equal(frozen.p_values(odd), plain.p_values(odd))
    assert clone(frozen).fit(normal).estimator_ is MODEL
    assert vars(frozen).keys() == vars(plain).keys()


def test_the_map_shows_the_odd_pixel(odd):
    for kind in ("ladder", "egbad_logit"):
        result = AnomalyScorer(MODEL, kind=kind, steps=30, false_alarm_rate=0.1).fit(odd).pixel_map(odd)
        assert result.shape == (99, 3, 3)
        assert (result.reshape(99, -1).argmax(axis=1) == 2 * 3 + 1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"kind": "alad"},
            r"'alad' reads a discriminator of pairs .* choose one of egbad, egbad_logit, ladder, or train",
        ),
        ({"kind": "mse"}, "kind is 'mse'; it must be one of egbad, egbad_logit, ladder"),
        ({"false_alarm_rate": 0.005}, r"0.005 is below 1 / \(n \+ 1\) for n = 99 .* at least 199 rows"),
        ({"false_alarm_rate": 5}, "must lie between 0 and 1"),
    ],
)
def test_what_a_scorer_cannot_do_is_refused(options, message, normal):
    with pytest.raises(ValueError, match=message):
        AnomalyScorer(MODEL, **options).fit(normal)


def test_a_scorer_says_what_it_lacks(normal):
    for door in (AnomalyScorer(MODEL).predict, AnomalyScorer(MODEL).p_values, AnomalyScorer(MODEL).pixel_map):
        with pytest.raises(NotFittedError, match="AnomalyScorer instance is not fitted yet"):
            door(normal)
    scorer = AnomalyScorer(MODEL, steps=0, false_alarm_rate=0.1).fit(normal)
    with pytest.raises(ValueError, match="There are no rows"):
        scorer.predict(normal[:0])
    with pytest.raises(ValueError, match=r"\[99, 18\], and this model takes \[N, 3, 3, 2\]: reshape it"):
        scorer.predict(normal.reshape(99, -1))
    with pytest.raises(ValueError, match="estimator is a StandardScaler: give an ALIEstimator"):
        AnomalyScorer(StandardScaler()).fit(normal)
    with pytest.raises(ValueError, match="This model is given conditions"):
        AnomalyScorer(dataclasses.replace(MODEL, conditions=("a", "b"))).fit(normal)


def test_rows_on_another_scale_or_with_gaps_are_refused_at_every_door(normal):
    scorer = AnomalyScorer(MODEL, steps=0, false_alarm_rate=0.1).fit(normal)
    gaps = normal.copy()
    gaps[[7, 30], 1, 1, 0] = np.nan, np.inf
    cases = (
        (gaps, "2 of 99 rows have numbers that are not finite, the first in row 7"),
        (
            2 * normal - 1,
            r"between -0.* and .*: give x / 255 for pixels .*, \(x \+ 1\) / 2 for \[-1, 1\]",
        ),
        (normal + 0.5, r"lie between 0.* and 1\..*must be in \[0, 1\]"),
    )
    for rows, message in cases:
        for door in (scorer.fit, scorer.score_samples, scorer.predict, scorer.p_values, scorer.pixel_map):
            with pytest.raises(ValueError, match=message):
                door(rows)
    assert scorer.score_samples(np.stack([0 * normal[0], 0 * normal[0] + 1])).shape == (2,)  # the ends are in


def test_vectors_have_any_scale_and_no_gaps():
    class Flat(Fill):
        @nn.compact
        def __call__(self, z, y=None, *, train):
            return z

    class Same(Corner):
        @nn.compact
        def __call__(self, x, epsilon, y=None, *, train):
            return x + 1

    scorer = AnomalyScorer(Model(Networks(Same(), Flat(), Sum()), EMPTY, (2,)), steps=0, false_alarm_rate=0.5)
    x = np.array([[-40.0, 3], [9, 700]])
    np.testing.assert_allclose(scorer.fit(x).score_samples(x), [-1, -1], rtol=1e-4)
    with pytest.raises(ValueError, match=r"1 of 2 rows .* the first in row 1"):
        scorer.fit(np.where(x == 9, np.nan, x))


def test_p_values_are_their_definition(rng):
    calibration, scores = rng.integers(10, size=19).astype(float), np.arange(-1.0, 11.0)
    expected = [(1 + np.sum(calibration >= s)) / 20 for s in scores]
    np.testing.assert_allclose(conformal.p_values(calibration, scores), expected)
    for alpha in (0.05, 0.29, 0.5):
        cut = conformal.threshold(calibration, alpha)
        np.testing.assert_array_equal(scores > cut, conformal.p_values(calibration, scores) <= alpha + 1e-12)
    assert conformal.p_values(calibration, np.array([np.nan])) == 1 / 20
    with pytest.raises(ValueError, match="1 of them are NaN"):
        conformal.p_values(np.array([1.0, np.nan]), scores)


@pytest.mark.parametrize(("n", "alpha", "k"), [(19, 0.05, 1), (99, 0.07, 7), (99, 0.29, 29), (98, 0.05, 4)])
def test_the_rank_of_the_threshold_is_exact(n, alpha, k):
    assert conformal.allowed_exceedances(n, alpha) == k
    with pytest.raises(ValueError, match="give at least 19 rows"):
        conformal.allowed_exceedances(18, 0.05)


def test_false_alarms_follow_the_beta_binomial_law(rng):
    """Compare 200 random splits of one held-out pool and a fixed scorer with the law, at the 0.1 % level."""
    x = load_digits().data[:600]
    pool = np.linalg.norm(x - load_digits().data[600:].mean(axis=0)[None], axis=1)
    n, m, alpha = 99, 200, 0.05
    law = conformal.count_law(n, m, alpha)
    counts = []
    for _ in range(200):
        order = rng.permutation(len(pool))
        p = conformal.p_values(pool[order[:n]], pool[order[n : n + m]])
        counts.append(int(np.sum(p <= alpha)))
    edges = law.ppf([0.1, 0.3, 0.5, 0.7, 0.9])
    observed = np.histogram(counts, [-1, *edges + 0.5, m + 1])[0]
    expected = 200 * np.diff(law.cdf([-1, *edges, m]))
    assert stats.chisquare(observed, expected).pvalue > 1e-3
    assert law.mean() == pytest.approx(m * alpha)
    low, high = conformal.false_alarm_interval(n, alpha)
    assert low < alpha < high
    assert stats.beta.cdf(high, 5, 95) - stats.beta.cdf(low, 5, 95) == pytest.approx(0.95)
    assert np.var(counts) > 1.5 * m * alpha * (1 - alpha)  # a binomial law would be too narrow


def test_areas_are_scikit_learns(rng):
    normal, anomalous = rng.integers(12, size=200) * 1.0, 2 + rng.integers(12, size=70) * 1.0  # with ties
    truth, scores = np.repeat([0, 1], [200, 70]), np.concatenate([normal, anomalous])
    assert detection.auroc(normal, anomalous).value == pytest.approx(roc_auc_score(truth, scores))
    ours = detection.average_precision_interval(normal, anomalous)
    assert ours.value == pytest.approx(average_precision_score(truth, scores))
    assert ours.low < ours.value < ours.high
    assert detection.auroc(normal, normal.max() + anomalous) == (1, 1, 1)
    by_hand = (1 / 2) * 1 + (1 / 2) * (2 / 3)  # one of one above 2, two of three above 1
    for largest in (3.0, np.inf):
        result = detection.average_precision(np.array([1.0, 2.0]), np.array([1.5, largest]))
        assert result == pytest.approx(by_hand)
    with pytest.raises(ValueError, match="1 of them NaN"):
        detection.auroc(normal, np.array([1, np.nan]))


def test_delongs_interval_is_that_of_its_paper():
    """Against the definition, with many more normal rows than anomalous ones."""
    normal, anomalous = np.array([1.0, 2, 3, 4, 5, 6, 7, 8, 2, 3]), np.array([2.5, 7, 9])
    kernel = (anomalous[:, None] > normal[None]) + 0.5 * (anomalous[:, None] == normal[None])
    of_anomalous, of_normal = kernel.mean(axis=1), kernel.mean(axis=0)
    area = kernel.mean()
    variance = np.var(of_anomalous, ddof=1) / 3 + np.var(of_normal, ddof=1) / 10
    half = 1.959964 * np.sqrt(variance) / (area * (1 - area))
    ends = [1 / (1 + np.exp(-(np.log(area / (1 - area)) + sign * half))) for sign in (-1, 1)]
    assert detection.auroc(normal, anomalous) == pytest.approx((area, *ends), rel=1e-6)


@pytest.mark.parametrize("shift", [0.5, 2.0])
def test_delongs_intervals_cover_the_truth(shift, rng):
    truth = stats.norm.cdf(shift / np.sqrt(2))
    result = [detection.auroc(rng.standard_normal(80), shift + rng.standard_normal(40)) for _ in range(300)]
    assert sum(low <= truth <= high for _, low, high in result) >= 272


def quick_average_precision(truth, scores):
    """Do what scikit-learn's average_precision_score does, without its checks, which take its time."""
    order = np.argsort(-scores)
    scores, hits = scores[order], np.cumsum(truth[order])
    last = np.flatnonzero(np.append(np.diff(scores) != 0, True))  # of the rows with equal scores
    return np.sum(np.diff(hits[last], prepend=0) / hits[-1] * hits[last] / (last + 1))


def test_bootstrap_intervals_of_the_average_precision_cover_the_truth(rng, monkeypatch):
    def draw(n, m):
        return rng.standard_normal(n), 1.5 + rng.standard_normal(m)

    truth, scores = np.random.default_rng(1).integers(((2,), (20,)), size=(2, 50))
    assert quick_average_precision(truth, scores) == pytest.approx(average_precision_score(truth, scores))
    monkeypatch.setattr(detection, "average_precision_score", quick_average_precision)
    truth = detection.average_precision(*draw(200_000, 50_000))
    result = [detection.average_precision_interval(*draw(160, 40), draws=60) for _ in range(300)]
    covered = Counter(low <= truth <= high for _, low, high in result)
    assert covered[True] >= 272
