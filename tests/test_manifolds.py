"""Precision, recall, density and coverage against brute force in float64, and where the answer is known."""

import numpy as np
import pytest

from ali_jax.metrics import blocks, manifolds


def brute(real, fake, k_precision=3, k_density=5):
    """Work the four numbers out from their definitions."""
    real, fake = np.asarray(real, np.float64), np.asarray(fake, np.float64)

    def squares(a, b):
        return ((a[:, None] - b[None]) ** 2).sum(-1)

    def radius(rows, k):
        own = squares(rows, rows)
        return np.array([np.sort(np.delete(own[i], i))[k - 1] for i in range(len(rows))])

    between = squares(real, fake)
    dense = between <= radius(real, k_density)[:, None]
    return (
        (between <= radius(real, k_precision)[:, None]).any(0).mean(),
        (between <= radius(fake, k_precision)[None]).any(1).mean(),
        dense.sum() / (k_density * len(fake)),
        dense.any(1).mean(),
    )


def cases():
    """Give real rows and samples with ties, with copies within and between the sets, and with neither."""
    rng = np.random.default_rng(0)
    copies = np.repeat(rng.normal(size=(30, 6)), 4, axis=0)
    return {
        "far from 0": (10 + rng.normal(size=(120, 6)), 10.4 + 0.8 * rng.normal(size=(90, 6))),
        "a grid, with ties": (rng.integers(0, 4, (120, 3)), rng.integers(0, 6, (90, 3))),
        "copies": (copies, rng.permutation(copies)[:90]),
    }


@pytest.mark.parametrize("name", cases())
def test_the_numbers_are_those_of_brute_force(name, monkeypatch):
    real, fake = (np.asarray(rows, np.float32) for rows in cases()[name])
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 4 * 210 * 32)  # blocks of 32 rows or more, the last not full
    assert manifolds.compare(real, fake) == pytest.approx(brute(real, fake), abs=1e-12)


def test_the_numbers_on_a_line_are_known():
    """Ten points, 1 apart; of the samples two lie among them, one of these on a point, and two far away."""
    real, fake = np.arange(10.0)[:, None], np.array([[0.5], [2.0], [20.0], [21.0]])
    found = manifolds.compare(real, fake, k_precision=1, k_density=1)
    assert found == (2 / 4, 4 / 10, 5 / 4, 4 / 10)  # that at 2 lies on the edge of two balls


def test_a_row_is_not_its_own_neighbour_and_its_copies_are():
    """The ball of either copy at 0 has no size, and holds the sample at 0 alone."""
    real, fake = np.array([[0.0], [0.0], [5.0]]), np.array([[0.0], [1.0], [0.5]])
    found = manifolds.compare(real, fake, k_precision=1, k_density=1)
    assert found == (1.0, 2 / 3, (2 + 3) / 3, 1.0)  # the ball of 5 reaches to 0


def test_rows_that_are_not_finite_lie_in_no_ball():
    real = np.arange(10.0)[:, None]
    fake = np.where(np.arange(10) < 4, np.nan, real[:, 0])[:, None]
    assert manifolds.compare(real, fake, k_precision=1, k_density=1) == (0.6, 0.7, (6 * 3 - 1) / 10, 0.7)
    assert manifolds.compare(real, np.full((10, 1), np.inf)) == (0, 0, 0, 0)
    few = np.where(np.arange(10) < 8, np.inf, real[:, 0])[:, None]
    assert manifolds.compare(real, few, k_precision=3, k_density=1).recall == 0  # no third neighbour


def test_features_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match=r"shape \(9, 2\) and \(9, 3\) do not go together"):
        manifolds.compare(np.zeros((9, 2)), np.zeros((9, 3)))
    with pytest.raises(ValueError, match=r"5 real rows and 9 samples; for the 5 nearest .* at least 6"):
        manifolds.compare(np.zeros((5, 2)), np.zeros((9, 2)))
