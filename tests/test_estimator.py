"""The estimators keep to scikit-learn's conventions, by its own checks, and what they compute is the model's.

`python tests/estimator_checks.py` runs every check, on networks of the usual size.
"""

import pickle
import warnings

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

from ali_jax.tools import estimator
from ali_jax.tools.anomaly import AnomalyScorer, anomaly_scores
from ali_jax.tools.estimator import ALIEstimator

SMALL = ALIEstimator(2, hidden=(4,), num_steps=2, batch_size=4, random_state=0)
COMPILING = {  # for 1, 4, 5 or 10 features
    "check_dtype_object",
    "check_estimators_dtypes",
    "check_fit2d_1feature",
    "check_n_features_in_after_fitting",
    "check_positive_only_tag_during_fit",
}


@pytest.fixture(scope="module", autouse=True)
def _quick():
    """Leave out R1, whose second derivatives take most of the time to compile."""
    make = estimator._config

    def without_penalty(recipe):
        config = make(recipe)
        config.penalties.r1.gamma = 0.0
        return config

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimator, "_config", without_penalty)
        estimator._programs.cache_clear()
        yield
    estimator._programs.cache_clear()


@pytest.fixture(scope="module")
def rows():
    """Give vectors in the plane, far from 0."""
    return np.random.default_rng(0).normal((30, -5), (3, 1), (80, 2))


@pytest.fixture(scope="module")
def fitted(rows):
    """Give an estimator that has learned these."""
    return ALIEstimator(2, hidden=(32,), num_steps=300, batch_size=32, random_state=0).fit(rows)


@pytest.mark.parametrize("checked", [SMALL, AnomalyScorer(SMALL, steps=1, false_alarm_rate=0.5)], ids=repr)
def test_scikit_learns_checks_pass(checked):
    """Those that need no package and no setting that may be missing."""
    names = set()
    for one, check in estimator_checks_generator(checked, mark="skip"):
        name = getattr(check, "func", check).__name__
        if name in COMPILING or name in ("check_array_api_input", "check_classifier_data_not_an_array"):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check(one)
        names.add(name)
    assert {"check_estimators_nan_inf", "check_estimators_pickle", "check_fit_idempotent"} < names
    assert len(names) > 30


def test_reconstructions_and_samples_are_in_the_units_of_the_rows(fitted, rows):
    z = fitted.transform(rows)
    assert z.shape == (80, 2)
    x_hat = fitted.inverse_transform(z)
    np.testing.assert_allclose(fitted.score_samples(rows), -np.mean((rows - x_hat) ** 2, axis=1), rtol=1e-3)
    assert fitted.score(rows) > -0.5 * np.mean((rows - rows.mean(axis=0)[None]) ** 2)
    x_tilde = fitted.sample(200, random_state=0)
    assert np.abs(x_tilde.mean(axis=0) - rows.mean(axis=0)).max() < 2
    np.testing.assert_array_equal(fitted.get_feature_names_out(), ["aliestimator0", "aliestimator1"])
    assert fitted.transform(rows.astype(np.float32)).dtype == np.float32
    with pytest.raises(ValueError, match="Expected 2D array, got 1D array instead"):
        fitted.inverse_transform(z[0])
    with pytest.raises(ValueError, match=r"give numbers \[N, 2\]"):
        fitted.inverse_transform(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="The rows have masked values, 1 of them"):
        fitted.transform(np.ma.array(rows, mask=np.arange(160).reshape(80, 2) == 7))


def test_the_number_of_rows_compiles_nothing(rows):
    for n in (3, 20, 80):
        (fitted := SMALL.fit(rows[:n])).transform(rows[:n])
    programs = estimator._programs(estimator.Recipe(**fitted.recipe_), "cpu")
    assert (programs.init._cache_size(), programs.steps._cache_size()) == (1, 1)


def test_it_works_in_a_pipeline_under_cross_validation(rows):
    assert np.isfinite(cross_val_score(make_pipeline(StandardScaler(), SMALL), rows, cv=2)).all()


def test_images_keep_their_shape_and_bytes_their_range():
    images = np.random.default_rng(0).integers(0, 256, (9, 3, 2), dtype=np.uint8)
    of_bytes = SMALL.fit(images)
    assert of_bytes.n_features_in_ == 6
    codes = of_bytes.transform(images)
    np.testing.assert_array_equal(codes, of_bytes.transform(images.reshape(9, 6)))
    x_hat = of_bytes.inverse_transform(codes)
    assert x_hat.shape == images.shape
    assert 20 < x_hat.min() < x_hat.max() < 255
    of_floats = SMALL.fit(images / 255)
    np.testing.assert_allclose(
        of_floats.inverse_transform(of_floats.transform(images / 255)), x_hat / 255, rtol=1e-4
    )
    with pytest.raises(ValueError, match="where white is 1: give uint8 from 0 to 255, or floats"):
        SMALL.fit(images.astype(float))


def test_a_pickle_is_arrays_and_plain_values(fitted, rows):
    state = {k: v for k, v in fitted.__getstate__().items() if k.endswith("_")}
    kinds = {
        type(v) for value in state.values() for v in (value.values() if isinstance(value, dict) else [value])
    }
    assert kinds <= {np.ndarray, tuple, int, float}
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.transform(rows), fitted.transform(rows))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_components": 0}, "n_components is 0; it must be a positive integer"),
        ({"hidden": ()}, r"hidden is \(\); it must be"),
        (
            {"hidden": 64},
            r"hidden is 64; it must be a tuple of one positive width or more, such as",
        ),
        ({"learning_rate": -1.0}, "learning_rate is -1.0; it must be positive"),
        ({"learning_rate": 1e38}, "The training diverged: lower learning_rate"),
    ],
)
def test_wrong_parameters_are_named(wrong, message, rows):
    with pytest.raises(ValueError, match=message):
        ALIEstimator(**{**SMALL.get_params(), **wrong}).fit(rows)


def test_the_scorer_trains_on_one_half_and_calibrates_on_the_other(rows):
    scorer = AnomalyScorer(SMALL, steps=1, false_alarm_rate=0.1, random_state=0).fit(rows)
    assert scorer.estimator_ is not SMALL
    scores = anomaly_scores(scorer.estimator_.model_, scorer.estimator_.rows(rows), steps=1)
    order = np.random.RandomState(0).permutation(80)
    np.testing.assert_allclose(scorer.calibration_scores_, np.sort(scores[order[40:]]), rtol=1e-5)
    alone = SMALL.fit(rows[order[:40]])
    np.testing.assert_array_equal(alone.transform(rows), scorer.estimator_.transform(rows))
    assert (scorer.fit_predict(rows) == -1).mean() < 0.3


def test_the_scorer_leaves_a_frozen_estimator_trained(fitted, rows):
    scorer = AnomalyScorer(FrozenEstimator(fitted), steps=1, false_alarm_rate=0.1).fit(rows)
    assert len(scorer.calibration_scores_) == 80
    np.testing.assert_array_equal(scorer.estimator_.transform(rows), fitted.transform(rows))
    assert (scorer.predict(rows + 40) == -1).all()
    with pytest.raises(NotFittedError):
        AnomalyScorer(FrozenEstimator(ALIEstimator())).fit(rows)
