"""Two-sample tests: their values by brute force, their size, and the power that they must have."""

import numpy as np
import pytest
import scipy.stats

from ali_jax.metrics.two_sample import (
    area_under_curve,
    code_statistics,
    derangement,
    energy_test,
    holm,
    ks_tests,
    mmd_test,
    moment_errors,
    moment_floors,
    nearest_neighbor_test,
    posterior_width,
    use_of_z,
)
from benchmarks import power

TESTS = [mmd_test, energy_test, nearest_neighbor_test]
SIZE = range(7, 37)  # rejections at 5 % in 400 draws: all but 1 in 1,000 of Binomial(400, 0.05)


@pytest.fixture
def rng():
    """Give a generator of fixed seed."""
    return np.random.default_rng(0)


def distances(x, y):
    return np.linalg.norm(x[:, None] - y[None], axis=-1)


def off_diagonal(matrix):
    return matrix[~np.eye(len(matrix), dtype=bool)]


def unbiased(kernel, x, y):
    within = [off_diagonal(kernel(distances(a, a))).mean() for a in (x, y)]
    return sum(within) - 2 * kernel(distances(x, y)).mean()


@pytest.mark.parametrize("test", TESTS)
def test_the_tests_reject_as_often_as_they_say(test, rng):
    draws = (test(*rng.standard_normal((2, 20, 2)), rng, permutations=19).p_value for _ in range(400))
    assert sum(p <= 0.05 for p in draws) in SIZE


def test_kolmogorov_smirnov_over_all_dimensions_rejects_as_often_as_it_says(rng):
    draws = (ks_tests(rng.standard_normal((20, 3))).p_values.min() for _ in range(400))
    assert sum(p <= 0.05 for p in draws) in SIZE


@pytest.mark.parametrize("test", [mmd_test, energy_test])
def test_a_mean_shift_of_a_fifth_in_both_dimensions_is_seen(test, rng):
    for _ in range(10):
        x, z = rng.standard_normal((2, 2_000, 2))
        assert test(x + 0.2, z, rng, permutations=39).p_value <= 0.05


def one_shifted(rng):
    z = rng.standard_normal((2_000, 8))
    z[:, 3] += 0.2
    return z


def octant_missing(rng):
    z = rng.standard_normal((3_000, 3))
    return z[(z < 0).any(axis=1)][:2_000]


def one_narrow(rng):
    z = rng.standard_normal((2_000, 8))
    z[:, 3] *= 0.1
    return z


@pytest.mark.parametrize("draw", [one_shifted, octant_missing, one_narrow])
def test_kolmogorov_smirnov_sees_what_a_coordinate_shows(draw, rng):
    result = [ks_tests(draw(rng)).p_values for _ in range(30)]
    assert sum(p.min() <= 0.05 for p in result) >= 28
    if draw is not octant_missing:
        assert {int(p.argmin()) for p in result} == {3}


def test_a_correlation_shows_to_the_joint_tests_alone(rng):
    z = rng.standard_normal((500, 2))
    twisted = np.stack([z[:, 0], 0.9 * z[:, 0] + np.sqrt(1 - 0.81) * z[:, 1]], axis=1)
    assert ks_tests(twisted).p_values.min() > 0.05
    for test in TESTS:
        assert test(twisted, rng.standard_normal((500, 2)), rng, permutations=199).p_value == 1 / 200


def test_mmd_and_energy_are_the_unbiased_estimates(rng):
    x, y = rng.standard_normal((12, 3)), 100 + rng.standard_normal((9, 3)) * 2
    x += 100
    pooled = np.concatenate([x, y])
    bandwidth = np.median(off_diagonal(distances(pooled, pooled)))
    mmd = unbiased(lambda d: np.exp(-(d**2) / (2 * bandwidth**2)), x, y)
    assert mmd_test(x, y, rng).statistic == pytest.approx(mmd, rel=2e-3)  # of 210 pairs no middle one
    assert energy_test(x, y, rng).statistic == pytest.approx(unbiased(np.negative, x, y), rel=1e-4)


def test_the_nearest_neighbours_are_those_of_brute_force(rng):
    x, y = rng.standard_normal((30, 2)), rng.standard_normal((20, 2)) + 1
    pooled, first = np.concatenate([x, y]), np.arange(50) < 30
    d = distances(pooled, pooled) + np.diag(np.full(50, np.inf))
    expected = np.mean(first == first[d.argmin(axis=1)])
    assert nearest_neighbor_test(x, y, rng).statistic == pytest.approx(expected)


@pytest.mark.parametrize("test", TESTS)
def test_p_values_end_at_one_and_at_the_reciprocal_of_the_permutations(test, rng):
    z = rng.standard_normal((30, 2))
    assert test(z + 10, z, rng).p_value == 1 / 200
    if test is not nearest_neighbor_test:  # whose nearest row of equal ones is the first of all
        assert test(np.ones((30, 2)), np.ones((20, 2)), rng).p_value == 1
    for broken in (np.nan, np.inf):
        assert test(np.full((30, 2), broken), z, rng).p_value == 1 / 200
    with pytest.raises(ValueError, match=r"permutations is 100.*multiple of 20"):
        test(z, z, rng, permutations=100)
    with pytest.raises(ValueError, match="do not go together"):
        test(z, z[:, :1], rng)


def test_kolmogorov_smirnov_is_scipys(rng):
    z = rng.standard_t(3, (40, 3))
    each = [scipy.stats.kstest(column, scipy.stats.norm.cdf) for column in z.T]
    result = ks_tests(z)
    np.testing.assert_allclose(result.statistics, [r.statistic for r in each])
    np.testing.assert_allclose(result.p_values, holm(np.array([r.pvalue for r in each])), rtol=1e-6)


def test_the_statistics_of_codes_are_those_of_the_tests_and_the_worst_dimension():
    seeded = np.random.default_rng
    z = seeded(1).standard_normal((2, 200, 3))
    sigma = np.array([[0.1, 0.3, 1.0]])
    z_hat, prior = z[0] + np.array([[0, 0.6, 0]]), z[1]
    other = z_hat + np.sqrt(2) * sigma * np.resize([1, -1], (200, 1))
    found = code_statistics(z_hat, other, prior, seeded(5))
    each, rng = ks_tests(z_hat), seeded(5)
    assert each.p_values[1] < 1e-6 < 0.01 < each.p_values.max()
    assert (found["code_ks"], found["code_ks_p"]) == (each.statistics[1], each.p_values[1])
    for name, test in zip(("code_mmd", "code_energy", "code_neighbor"), TESTS, strict=True):
        assert (found[name], found[f"{name}_p"]) == test(z_hat, prior, rng)
    widths = [found[f"code_width{end}"] for end in ("_min", "_max", "")]
    assert widths == pytest.approx([0.1, 1.0, np.sqrt((0.01 + 0.09 + 1) / 3)])
    assert found["code_mean_error"] == pytest.approx(np.linalg.norm(z_hat.mean(axis=0)) / np.sqrt(3))
    covariance = np.linalg.norm(np.cov(z_hat.T) - np.eye(3)) / 3
    assert found["code_covariance_error"] == pytest.approx(covariance)
    floors = [found[f"code_{name}_error_floor"] for name in ("mean", "covariance")]
    assert floors == pytest.approx([1 / np.sqrt(200), np.sqrt(4 / (3 * 199))])


def test_holm_multiplies_by_the_hypotheses_that_are_left():
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, 0.9])), [0.04, 0.09, 0.09, 0.9])


def test_moment_errors_of_true_codes_are_their_floors(rng):
    result = np.array([moment_errors(rng.standard_normal((50, 4))) for _ in range(400)])
    np.testing.assert_allclose(np.sqrt(np.mean(result**2, axis=0)), moment_floors(50, 4), rtol=0.05)


def test_moment_errors_of_known_moments():
    z = np.array([[1.0, 1], [1, -1], [-1, 1], [-1, -1]]) * np.sqrt(3 / 4) * np.array([[1, 2]]) + 3
    assert moment_errors(z) == pytest.approx((3, 3 / 2))


def test_the_width_of_the_posterior_is_its_standard_deviation(rng):
    means, sigma = rng.standard_normal((20_000, 3)), np.array([[0.1, 0.5, 1.0]])
    codes = means[None] + sigma[None] * rng.standard_normal((2, 20_000, 3))
    np.testing.assert_allclose(posterior_width(*codes), sigma[0], rtol=0.03)


def test_a_blind_discriminator_does_not_use_z(rng):
    q, p = rng.standard_normal((2, 500))
    assert use_of_z(q, q, p, p)[::2] == (0, 0)


def test_use_of_z_is_all_of_the_auc_where_only_pairs_tell(rng):
    x, noise = rng.standard_normal((2, 2_000, 2))
    z = x[:, 0] + 0.1 * noise[:, 0], noise[:, 1]  # codes of x, and codes that know nothing of x

    def logits(x, z):
        return -np.abs(x - z)

    shuffled = [code[derangement(rng, 2_000)] for code in z]
    result = use_of_z(*(logits(x[:, 0], code) for code in (z[0], shuffled[0], z[1], shuffled[1])))
    assert result.auc > 0.9
    assert result.auc_drop == pytest.approx(result.auc - 0.5, abs=0.03)
    assert result.logit_change > 0.5


def test_the_auc_counts_ties_half(rng):
    positive, negative = rng.integers(5, size=40), rng.integers(4, size=30)
    pairs = np.sign(positive[:, None] - negative[None])
    assert area_under_curve(positive, negative) == pytest.approx((1 + pairs.mean()) / 2)


@pytest.mark.parametrize("n", [2, 3, 50])
def test_a_derangement_is_one_cycle(n, rng):
    moved, i, seen = derangement(rng, n), 0, set()
    while i not in seen:
        seen.add(i)
        i = int(moved[i])
    assert len(seen) == n


def test_the_power_table_is_printed_at_tiny_sizes(capsys):
    assert power.main(["--n", "200", "--z", "3", "--repetitions", "2"]) == 0
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert [row[2] for row in rows[2:]] == list(power.FAULTS)
    assert rows[5] == ["200", "3", "one sd 0.1", "1.00", "1.00", "1.00", "1.00"]
