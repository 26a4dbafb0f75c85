"""ALI's losses: known values, symmetry, and no overflow."""

import jax
import jax.numpy as jnp
import numpy as np

from ali_jax import losses
from ali_jax.types import Batch, Logits

BATCH = Batch(jnp.zeros((3, 2)))


def test_both_losses_are_two_log_two_at_zero_logits():
    (generator, discriminator), metrics = losses.ali(Logits(jnp.zeros(3), jnp.zeros(3)), BATCH)
    np.testing.assert_allclose([generator, discriminator], 2 * np.log(2), rtol=1e-6)
    np.testing.assert_allclose([metrics["confidence/data"], metrics["confidence/sample"]], 0.5)


def test_accuracy_is_how_often_d_is_right_under_every_loss():
    """Three data pairs of four are on D's right side of zero, and one sample of four, however sure it is."""
    logits = Logits(jnp.array([0.1, 9.0, 0.2, -0.3]), jnp.array([0.4, -0.1, 0.2, 5.0]))
    batch = Batch(jnp.zeros((4, 2)), label=jnp.full(4, -1))
    for loss in (losses.ali, losses.hinge, losses.least_squares, losses.semi_supervised):
        metrics = loss(logits, batch)[1]
        assert (metrics["accuracy/data"], metrics["accuracy/sample"]) == (0.75, 0.25)
    assert losses.ali(logits, batch)[1]["confidence/data"] == jnp.mean(jax.nn.sigmoid(logits.q))


def test_swapping_the_two_kinds_of_pairs_swaps_the_losses(key):
    q, p = jax.random.normal(key, (2, 3))
    one, _ = losses.ali(Logits(q, p), BATCH)
    other, _ = losses.ali(Logits(p, q), BATCH)
    np.testing.assert_allclose(one, other[::-1], rtol=1e-6)


def test_the_losses_differ_by_the_mean_logits(key):
    """softplus(s) = s + softplus(-s), so L_G = L_D + mean s_q - mean s_p."""
    q, p = jax.random.normal(key, (2, 3))
    (generator, discriminator), _ = losses.ali(Logits(q, p), BATCH)
    np.testing.assert_allclose(generator, discriminator + q.mean() - p.mean(), rtol=1e-5)


def test_saturated_logits_give_finite_losses_and_gradients():
    logits = Logits(jnp.array([500.0, -500.0]), jnp.array([-500.0, 500.0]))
    for player in (0, 1):
        value, gradient = jax.value_and_grad(lambda s, i=player: losses.ali(s, BATCH)[0][i])(logits)
        assert jnp.isfinite(value)
        assert all(bool(jnp.all(jnp.isfinite(g))) for g in gradient)
