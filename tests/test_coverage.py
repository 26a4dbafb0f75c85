"""Intervals for mode counts: they cover the truth as often as they say, which the bootstrap does not."""

import numpy as np
import pytest
import scipy.stats

from ali_jax.metrics.coverage import (
    chao,
    cross_support,
    duplicate_threshold,
    effective_support,
    expected_modes,
    frequent_modes,
    reading_bounds,
    twins,
)

DRAWS, ENOUGH = 300, 272  # of 300 intervals at 95 %: with probability 0.999 at least so many cover the truth

UNIFORM = np.full(100, 0.01)
UNEVEN = 1 / np.arange(1, 101) / np.sum(1 / np.arange(1, 101))
PROBABILITIES = {"uniform": UNIFORM, "uneven": UNEVEN}


@pytest.fixture
def rng():
    """Give a generator of fixed seed."""
    return np.random.default_rng(0)


def number_covering(truth, intervals):
    return sum(interval.low <= truth <= interval.high for interval in intervals)


@pytest.mark.parametrize("p", PROBABILITIES.values(), ids=PROBABILITIES)
@pytest.mark.parametrize("batches", [1, 10])
def test_intervals_cover_the_expected_number_of_modes(p, batches, rng):
    truth = np.sum(1 - (1 - p) ** 150)
    intervals = [expected_modes(rng.multinomial(150, p, size=batches)) for _ in range(DRAWS)]
    assert number_covering(truth, intervals) >= ENOUGH
    assert np.mean([interval.estimate for interval in intervals]) == pytest.approx(truth, rel=0.01)
    assert np.mean([interval.high - interval.low for interval in intervals]) < 22 / np.sqrt(batches)


def test_the_bootstrap_does_not_cover_it(rng):
    truth, covered = np.sum(1 - (1 - UNEVEN) ** 150), 0
    for _ in range(DRAWS):
        counts = rng.multinomial(150, UNEVEN)
        again = (rng.multinomial(150, counts / 150, size=100) > 0).sum(axis=1)
        covered += np.quantile(again, 0.025) <= truth <= np.quantile(again, 0.975)
    assert covered < 10


@pytest.mark.parametrize("p", PROBABILITIES.values(), ids=PROBABILITIES)
def test_intervals_cover_the_number_of_frequent_modes(p, rng):
    least = 0.005
    intervals = [frequent_modes(counts, 2_000, least) for counts in rng.multinomial(2_000, p, size=DRAWS)]
    assert number_covering(np.sum(p >= least), intervals) >= ENOUGH
    assert max(interval.high - interval.low for interval in intervals) < 100


def test_errors_of_the_classifier_widen_the_interval_until_it_covers(rng):
    p = np.r_[np.full(5, 0.2), np.zeros(5)]  # half of the modes are missing
    errors = np.full((10, 10), 0.02 / 9) + np.eye(10) * (0.98 - 0.02 / 9)
    naive, aware = [], []
    for _ in range(DRAWS):
        counts = rng.multinomial(20_000, p @ errors)
        confusion = np.stack([rng.multinomial(1_000, row) for row in errors])
        naive.append(frequent_modes(counts, 20_000, 1e-3))
        aware.append(frequent_modes(counts, 20_000, 1e-3, confusion=confusion))
    assert number_covering(5, naive) == 0
    assert number_covering(5, aware) >= ENOUGH
    assert {interval.low for interval in aware} == {5}


def test_bounds_on_the_classifiers_errors_hold_simultaneously(rng):
    errors = np.full((5, 5), 0.02) + np.eye(5) * 0.9
    right = 0
    for _ in range(DRAWS):
        recall, inflow = reading_bounds(np.stack([rng.multinomial(200, row) for row in errors]))
        right += (recall <= 0.92).all() and (inflow >= 0.02).all()
    assert right >= ENOUGH
    with pytest.raises(ValueError, match="with a labelled example"):
        reading_bounds(np.diag([0, 0]))


def test_bounds_on_errors_are_those_of_rows_of_true_and_columns_of_predicted_modes():
    recall, inflow = reading_bounds(np.array([[90, 10, 0], [0, 50, 0], [1, 0, 19]]))

    def bound(successes, n, tail):  # 5 %: half for three recalls, half for six entries off the diagonal
        return scipy.stats.beta.ppf(tail, successes + (tail > 0.5), n - successes + (tail < 0.5))

    lower, upper = 0.05 / 2 / 3, 1 - 0.05 / 2 / 6
    np.testing.assert_allclose(recall, [bound(90, 100, lower), bound(50, 50, lower), bound(19, 20, lower)])
    into = [max(bound(0, 50, upper), bound(1, 20, upper)), bound(10, 100, upper), bound(0, 50, upper)]
    into[1] = max(into[1], bound(0, 20, upper))
    np.testing.assert_allclose(inflow, into)


def test_a_mode_that_test_lacks_may_be_read_as_any_other():
    recall, inflow = reading_bounds(np.array([[30, 0], [0, 0]]))
    assert (recall[1], inflow[0]) == (0, 1)
    assert recall[0] > 0.8
    assert inflow[1] < 0.2
    counts = np.array([400, 600])
    assert frequent_modes(counts, 1_000, 0.1, confusion=np.array([[30, 0], [0, 0]])) == (2, 1, 2)
    assert frequent_modes(np.array([0, 1_000]), 1_000, 0.1, confusion=np.diag([0, 30])) == (1, 0, 2)


def test_chaos_interval_covers_the_number_of_equal_modes(rng):
    intervals = [chao(counts) for counts in rng.multinomial(150, UNIFORM, size=DRAWS)]
    assert number_covering(100, intervals) >= ENOUGH
    assert np.median([interval.estimate for interval in intervals]) == pytest.approx(100, rel=0.05)


def test_chaos_estimate_by_hand():
    assert chao(np.array([0, 1, 1, 1, 2, 5])).estimate == 5 + 9 / 2
    assert chao(np.array([1, 1, 1, 4])).estimate == 4 + 3
    assert chao(np.array([0, 3, 4])) == (2, 2, 2)


@pytest.mark.parametrize("p", [np.full(2_000, 1 / 2_000), UNEVEN], ids=["uniform", "uneven"])
def test_intervals_cover_the_effective_support(p, rng):
    intervals = []
    for _ in range(DRAWS):
        things = rng.choice(len(p), size=500, p=p)
        intervals.append(effective_support(np.bincount(things)[things] - 1))
    assert number_covering(1 / np.sum(p**2), intervals) >= ENOUGH


def test_a_sample_without_repetition_has_a_lower_bound_alone():
    estimate, low, high = effective_support(np.zeros(100))
    assert estimate == high == np.inf
    assert low == pytest.approx(4_950 / 3.689, rel=1e-3)


def test_twins_are_counted_within_the_threshold(rng):
    x = rng.standard_normal((700, 2, 3)).astype(np.float32)
    distance = np.linalg.norm((x[:, None] - x[None]).reshape(700, 700, 6), axis=-1)
    np.testing.assert_array_equal(twins(x, 1.5), (distance < 1.5).sum(axis=1) - 1)
    np.testing.assert_array_equal(twins(x[:50], 1.5, x[50:]), (distance[:50, 50:] < 1.5).sum(axis=1))


def test_a_twentieth_of_the_test_rows_has_a_twin_at_that_threshold(rng):
    train, test = rng.standard_normal((1_000, 3)), rng.standard_normal((400, 3))
    train, test = train.astype(np.float32), test.astype(np.float32)
    threshold = duplicate_threshold(test, train, share=0.05)
    assert np.mean(twins(test, threshold, train) > 0) == pytest.approx(0.05, abs=0.003)
    assert cross_support(np.array([0, 2, 0, 0]), 10).estimate == 20


def test_counts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"give \[R, K\]"):
        expected_modes(np.zeros(3))
    with pytest.raises(ValueError, match="at most n = 5"):
        frequent_modes(np.array([3, 3]), 5, 0.1)
