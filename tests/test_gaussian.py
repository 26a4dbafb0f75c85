"""The linear-Gaussian model against Bayes' rule, and its instruments against encoders of known errors."""

import numpy as np
import pytest
import scipy.stats

from benchmarks.gaussian import (
    Gaussian,
    LinearGaussian,
    calibration,
    decoder_joint,
    encoder_joint,
    kl_of_codes,
    kl_of_moments,
    log_ratio,
    logit_fit,
    posterior,
)

DECODER = LinearGaussian(np.array([[1.0, 0.5], [-0.3, 1.2], [0.4, 0.0]]), np.array([0.5, -1.0, 2.0]), 0.6)


@pytest.fixture
def rng():
    """Give a generator of fixed seed."""
    return np.random.default_rng(0)


def draw(rng, n):
    z = rng.standard_normal((n, 2))
    x = z @ DECODER.weights.T + DECODER.bias[None] + DECODER.tau * rng.standard_normal((n, 3))
    return x, z


def true_codes(rng, x, m, stretch=1.0):
    exact = posterior(DECODER, x)
    noise = rng.multivariate_normal(np.zeros(2), exact.covariance, size=(m, len(x)))
    return exact.mean[None] + stretch * noise


def test_the_posterior_is_bayes_rule(rng):
    x, z = draw(rng, 20)
    exact, joint = posterior(DECODER, x), decoder_joint(DECODER)
    log_joint = scipy.stats.multivariate_normal(*joint).logpdf(np.concatenate([x, z], axis=1))
    log_x = scipy.stats.multivariate_normal(joint.mean[:3], joint.covariance[:3, :3]).logpdf(x)
    log_z = scipy.stats.multivariate_normal(np.zeros(2), exact.covariance).logpdf(z - exact.mean)
    np.testing.assert_allclose(log_joint, log_x + log_z)


def test_the_joint_has_the_moments_of_its_draws(rng):
    rows = np.concatenate(draw(rng, 400_000), axis=1)
    np.testing.assert_allclose(rows.mean(axis=0), decoder_joint(DECODER).mean, atol=0.01)
    np.testing.assert_allclose(np.cov(rows.T), decoder_joint(DECODER).covariance, atol=0.02)


def test_the_joints_are_equal_where_the_encoder_is_the_posterior(rng):
    single = DECODER._replace(weights=DECODER.weights[:, :1])
    joint = decoder_joint(single)
    weights = single.weights / (single.tau**2 + np.sum(single.weights**2))
    sigma = np.sqrt(posterior(single, np.zeros((1, 3))).covariance[0])
    data = Gaussian(joint.mean[:3], joint.covariance[:3, :3])
    encoded = encoder_joint(data, weights, -single.bias @ weights, sigma)
    np.testing.assert_allclose(encoded.covariance, joint.covariance, atol=1e-12)
    assert log_ratio(encoded, joint, rng.standard_normal((5, 4))) == pytest.approx(np.zeros(5), abs=1e-9)


def test_the_divergence_of_moments_is_that_of_one_dimension():
    target = Gaussian(np.array([[1.0]]), np.array([[4.0]]))
    by_hand = np.log(2 / 0.5) + (0.25 + 9) / 8 - 0.5
    assert kl_of_moments(np.array([[-2.0]]), np.array([[0.5]]), target) == pytest.approx(by_hand)


@pytest.mark.parametrize("m", [5, 50])
def test_the_estimate_from_codes_is_unbiased(m, rng):
    x, _ = draw(rng, 20_000)
    for stretch in (1.0, 1.3):
        exact = stretch**2 - 1 - 2 * np.log(stretch)  # of two dimensions
        result = kl_of_codes(true_codes(rng, x, m, stretch), posterior(DECODER, x))
        assert result == pytest.approx(exact, abs=0.02)


def test_codes_without_volume_are_far_from_any_posterior(rng):
    x, _ = draw(rng, 50)
    flat = posterior(DECODER, x).mean[None] + rng.standard_normal((30, 50, 1))
    assert kl_of_codes(flat, posterior(DECODER, x)) > 10
    with pytest.raises(ValueError, match="2 codes of each x do not span 2"):
        kl_of_codes(flat[:2], posterior(DECODER, x))


def test_calibration_rejects_the_posterior_as_often_as_it_says(rng):
    p_values = []
    for _ in range(100):
        x, z = draw(rng, 200)
        p_values += calibration(DECODER, x, z, true_codes(rng, x, 19)).values()
    assert len(p_values) == 400
    assert 7 <= np.sum(np.array(p_values) <= 0.05) <= 36


def test_what_coordinates_hide_shows_in_joint_quantities(rng):
    x, z = draw(rng, 2_000)
    exact = posterior(DECODER, x)
    sigma = np.sqrt(np.diag(exact.covariance))
    codes = exact.mean[None] + sigma * rng.standard_normal((19, 2_000, 1))  # one noise for both dimensions
    result = calibration(DECODER, x, z, codes)
    assert min(result["z0"], result["z1"]) > 0.01
    assert result["density"] < 1e-6


def test_the_fit_of_logits_is_that_of_a_line(rng):
    ratios = 3 * rng.standard_normal(5_000)
    logits = np.where(np.abs(ratios) < 4, 0.7 * ratios + 0.1, 100.0)
    assert logit_fit(logits, ratios) == pytest.approx((0.7, 1.0))
