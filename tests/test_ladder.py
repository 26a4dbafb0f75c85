"""The reconstruction ladder on a linear decoder, whose best codes are known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ali_jax.metrics import ladder

N, Z, D = 24, 3, 8
BASIS = np.linalg.qr(np.random.default_rng(0).standard_normal((D, Z)))[0].T.astype(np.float32)  # [Z, D]
SCALE = np.sqrt(D).astype(np.float32)  # so that a code's error is the mean square of its offset times Z


def decode(z):
    return (SCALE * z @ BASIS).reshape(-1, 2, D // 2)


def encode(x):
    """Invert `decode`; of data that it cannot make, take the nearest that it can."""
    return x.reshape(len(x), D) @ BASIS.T / SCALE


climb = jax.jit(partial(ladder.ladder, decode, steps=150))
refine = jax.jit(partial(ladder.refine, decode), static_argnames="steps")
best_of = jax.jit(partial(ladder.best_of, decode))


@pytest.fixture
def x(key):
    """Give data of which the decoder cannot make all: they have a part outside its range."""
    inside, outside = jax.random.normal(key, (N, Z)), 0.1 * jax.random.normal(jax.random.PRNGKey(1), (N, D))
    return decode(inside) + outside.reshape(-1, 2, D // 2)


def residual(x):
    """Return the error of the best code, from the projection onto the decoder's range."""
    flat = np.asarray(x.reshape(N, D))
    return np.mean((flat - flat @ BASIS.T @ BASIS) ** 2, axis=1)


def test_the_gaps_tell_a_bad_encoder_from_a_bad_decoder(x, key):
    codes, starts = encode(x), jax.random.normal(key, (2, N, Z))
    result = climb(x, codes + 0.5, (codes + 0.5)[None], starts)  # the encoder's fault: Z 0.5^2 on top
    np.testing.assert_allclose(result.searched, residual(x), rtol=1e-2, atol=1e-6)
    np.testing.assert_allclose(result.encoder_gap, np.full(N, Z * 0.25), rtol=1e-2)
    np.testing.assert_allclose(result.decoder_gap, residual(x), rtol=1e-2, atol=1e-6)
    np.testing.assert_allclose(result.encoder_gap + result.decoder_gap, result.mean, rtol=1e-5)
    np.testing.assert_allclose(climb(x, codes, codes[None], starts).encoder_gap, np.zeros(N), atol=1e-5)


def test_the_best_iterate_is_kept_the_start_included(x):
    start = encode(x)
    np.testing.assert_allclose(
        refine(x, start, steps=0).error, ladder.squared_error(x, decode(start)), rtol=1e-5
    )
    wild = refine(x, start, steps=7, learning_rate=50.0)  # every step makes it worse
    np.testing.assert_array_equal(wild.z, start)
    some = [refine(x, start + 1, steps=n).error for n in (0, 7)]
    assert (some[1] < some[0]).all()


def test_the_error_that_is_reported_is_that_of_the_code(x):
    result = refine(x, encode(x) + 0.3, steps=7)
    np.testing.assert_allclose(result.error, ladder.squared_error(x, decode(result.z)), rtol=1e-5)


def test_rows_do_not_see_one_another(x):
    start = jnp.zeros((N, Z))
    together = refine(x, start, steps=7).z
    alone = refine(x[3:4], start[3:4], steps=7).z
    np.testing.assert_allclose(together[3:4], alone, rtol=1e-5)


def test_the_best_of_k_is_the_smallest_of_every_row(x, key):
    z = encode(x)[None] + jax.random.normal(key, (5, N, Z))
    errors = np.stack([ladder.squared_error(x, decode(codes)) for codes in z])
    result = best_of(x, z)
    np.testing.assert_allclose(result.error, errors.min(axis=0), rtol=1e-5)
    np.testing.assert_array_equal(result.z[2], z[errors[:, 2].argmin(), 2])


def test_codes_come_back_through_a_decoder_and_its_inverse(key):
    z = jax.random.normal(key, (4_000, Z))
    np.testing.assert_allclose(ladder.code_error(encode, decode, z), np.zeros(4_000), atol=1e-10)
    lost = ladder.code_error(lambda x: jnp.zeros((len(x), Z)), decode, z)
    assert np.mean(lost) == pytest.approx(1, abs=0.05)
    other = jax.random.normal(jax.random.PRNGKey(1), z.shape)
    assert np.mean(ladder.code_error(lambda x: other, decode, z)) == pytest.approx(2, abs=0.1)


def test_shapes_that_differ_are_refused(x):
    with pytest.raises(ValueError, match=r"x has shape \(24, 2, 4\) and x_hat \(24, 8\)"):
        ladder.squared_error(x, x.reshape(N, D))
    with pytest.raises(ValueError, match="steps is -1"):
        ladder.refine(decode, x, encode(x), steps=-1)
