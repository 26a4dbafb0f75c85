"""The bound on the divergence of two joints, where quadrature knows the divergence."""

import numpy as np
import pytest
import scipy.stats
from scipy.integrate import quad

from ali_jax.metrics.divergence import jensen_shannon_bound, joint_divergence
from ali_jax.types import Pairs

RHO = 0.9


@pytest.fixture
def rng():
    """Give a generator of fixed seed."""
    return np.random.default_rng(0)


def of_shift(delta):
    """Return JSD(N(0, 1), N(delta, 1)), in any dimension that of means delta apart."""
    q, p = scipy.stats.norm(0), scipy.stats.norm(delta)

    def integrand(t):
        mean = np.logaddexp(q.logpdf(t), p.logpdf(t)) - np.log(2)
        return (q.pdf(t) * (q.logpdf(t) - mean) + p.pdf(t) * (p.logpdf(t) - mean)) / 2

    return quad(integrand, -8, 8 + delta)[0]


def of_correlation(rho):
    """Return the JSD of two standard normals correlated by rho and independent, by the trapezoidal rule."""
    t = np.linspace(-6, 6, 1001)
    x, z = np.meshgrid(t, t)
    q = scipy.stats.multivariate_normal(cov=[[1, rho], [rho, 1]]).pdf(np.stack([x, z], axis=-1))
    p = scipy.stats.norm.pdf(x) * scipy.stats.norm.pdf(z)
    mean = (q + p) / 2
    integrand = (scipy.special.rel_entr(q, mean) + scipy.special.rel_entr(p, mean)) / 2
    return np.trapezoid(np.trapezoid(integrand, t), t)


def shifted(rng, n, delta):
    """Draw pairs of which the encoder's are delta away: x and z have two numbers each."""
    x, z_hat, x_tilde, z = rng.standard_normal((4, n, 2)).astype(np.float32)
    return Pairs(x + delta / 2, z_hat + delta / 2, x_tilde, z)


def tied(rng, n):
    """Draw pairs with the same marginals, of which the encoder's alone belong together."""
    x, noise, x_tilde, z = rng.standard_normal((4, n, 1)).astype(np.float32)
    return Pairs(x, RHO * x + np.sqrt(1 - RHO**2) * noise, x_tilde, z)


def test_the_known_divergences_are_those_of_the_documentation():
    assert of_shift(2.0) == pytest.approx(0.337, abs=5e-4)
    assert of_correlation(0.9) == pytest.approx(0.215, abs=5e-4)


def test_the_exact_log_ratio_attains_the_divergence(rng):
    q, p = rng.standard_normal(200_000) + 1.5, rng.standard_normal(200_000)
    ratio = [1.5 * t - 1.5**2 / 2 for t in (q, p)]
    result = jensen_shannon_bound(*ratio)
    assert result.jensen_shannon == pytest.approx(of_shift(1.5), abs=3 * result.standard_error)
    assert result.accuracy == pytest.approx(scipy.stats.norm.cdf(0.75), abs=0.005)
    for wrong in (0.3, 3.0):
        assert jensen_shannon_bound(*(wrong * s for s in ratio)).jensen_shannon < result.jensen_shannon - 0.02


def test_the_standard_error_is_the_deviation_over_samples(rng):
    draws = [
        jensen_shannon_bound(rng.standard_normal(300) + 1, 2 * rng.standard_normal(200)) for _ in range(500)
    ]
    spread = np.std([d.jensen_shannon for d in draws])
    assert spread == pytest.approx(np.mean([d.standard_error for d in draws]), rel=0.1)


def test_a_blind_critic_bounds_nothing():
    result = jensen_shannon_bound(np.zeros(10), np.zeros(10))
    assert result.accuracy == 0.5
    assert (result.jensen_shannon, result.standard_error) == pytest.approx((0, 0))


@pytest.mark.parametrize(
    ("draw", "divergence"),
    [
        (lambda rng, n: shifted(rng, n, 2.0), of_shift(2.0)),
        (tied, of_correlation(RHO)),
        (lambda rng, n: shifted(rng, n, 0.0), 0.0),
    ],
    ids=["shift", "correlation", "none"],
)
def test_a_fresh_critic_finds_most_of_a_known_divergence(draw, divergence, rng):
    parts = draw(rng, 20_000), draw(rng, 2_000), draw(rng, 10_000)
    result = joint_divergence(*parts, steps=500)
    assert result.jensen_shannon < divergence + 3 * result.standard_error
    assert result.jensen_shannon > 0.93 * divergence - 3 * result.standard_error - 1e-3
    if not divergence:
        assert result.accuracy == pytest.approx(0.5, abs=0.012)


def test_images_beside_conditions_are_seen(rng):
    def draw(n):
        x, x_tilde = rng.random((2, n, 16, 16, 1)).astype(np.float32)
        z_hat, z = rng.standard_normal((2, n, 2)).astype(np.float32)
        x[:, :, :8] += 1
        return Pairs(x, z_hat, x_tilde, z, np.zeros((n, 1), np.float32))

    assert joint_divergence(draw(200), draw(100), draw(200), steps=100).accuracy > 0.9


def test_pairs_that_are_no_numbers_give_none(rng):
    broken = shifted(rng, 200, 0.0)._replace(z_hat=np.full((200, 2), np.nan, np.float32))
    assert np.isnan(joint_divergence(broken, broken, broken).jensen_shannon)
