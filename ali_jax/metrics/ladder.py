"""The reconstruction ladder: is the encoder or the decoder to blame for bad reconstructions?

Each rung is the mean squared error per row with a better code than on the rung before: a sample of the
posterior, its mean, the best of several samples, and the result of gradient descent on the code from the
mean. Gradient descent from random codes does not involve the encoder: its error is an upper bound on the
error of the decoder with the best code. All functions take the decoder as a row-wise function of codes.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from ali_jax.types import Array

Decode: TypeAlias = Callable[[Array], Array]  # z [N, Z] -> x [N, *X], each row from its own code alone
Encode: TypeAlias = Callable[[Array], Array]  # x [N, *X] -> z [N, Z]

LEARNING_RATE = 0.1  # of Adam on codes, whose scale is that of the prior N(0, I); falls to 0 as a cosine


class Fit(NamedTuple):
    """Codes and the errors of their decodings."""

    z: Array  # [N, Z]
    error: Array  # [N] mean squared error per pixel


class Ladder(NamedTuple):
    """The rungs, [N] each: mean squared errors per pixel of the rows of x."""

    sample: Array  # from the first of the posterior's samples
    mean: Array  # from the posterior's mean
    best_of_k: Array  # the smallest over the posterior's k samples
    refined: Array  # the mean, then Adam on the code; never above `mean`
    searched: Array  # random codes, then Adam, the best of them

    @property
    def decoder_gap(self) -> Array:
        """The error with the best known code: an upper bound on the decoder's share of the error."""
        return jnp.minimum(self.refined, self.searched)

    @property
    def encoder_gap(self) -> Array:
        """The excess of the mean code over the best known code: a lower bound on the encoder's share.

        The two gaps add up to `mean`.
        """
        return self.mean - self.decoder_gap


def squared_error(x: Array, x_hat: Array) -> Array:
    """Return [N], the mean over pixels of (x - x_hat)^2 for two arrays [N, *X] of one shape."""
    if x.shape != x_hat.shape:
        raise ValueError(f"x has shape {x.shape} and x_hat {x_hat.shape}: they must be the same.")
    return jnp.mean(jnp.square(x - x_hat).reshape(len(x), -1), axis=1)


def best_of(decode: Decode, x: Array, z: Array) -> Fit:
    """Return for each row of x [N, *X] the best of its k codes z [k, N, Z]."""
    error = jnp.stack([squared_error(x, decode(codes)) for codes in z])
    best = jnp.argmin(error, axis=0)
    rows = jnp.arange(len(x))
    return Fit(z[best, rows], error[best, rows])


def refine(decode: Decode, x: Array, z: Array, *, steps: int, learning_rate: float = LEARNING_RATE) -> Fit:
    """Lower the error of each row of x [N, *X] by `steps` Adam steps on its code, from z [N, Z].

    Returns the best iterate, the start included, so that no row's error rises. Rows are independent.
    """
    if steps < 0:
        raise ValueError(f"steps is {steps}: give 0 or more.")
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, max(steps, 1)))

    def total(z: Array) -> tuple[Array, Array]:
        error = squared_error(x, decode(z))
        return jnp.sum(error), error

    def step(_: Array, carry: tuple) -> tuple:
        z, opt_state, best = carry
        slope, error = jax.grad(total, has_aux=True)(z)
        updates, opt_state = optimizer.update(slope, opt_state)
        return optax.apply_updates(z, updates), opt_state, _better(best, Fit(z, error))

    start = Fit(z, jnp.full(len(x), jnp.inf))
    z, _, best = jax.lax.fori_loop(0, steps, step, (z, optimizer.init(z), start))
    return _better(best, Fit(z, squared_error(x, decode(z))))


def search(decode: Decode, x: Array, z: Array, *, steps: int, learning_rate: float = LEARNING_RATE) -> Fit:
    """Refine the code of each row of x [N, *X] from r starts z [r, N, Z], and return the best."""
    fits = [refine(decode, x, start, steps=steps, learning_rate=learning_rate) for start in z]
    return functools.reduce(_better, fits)


def ladder(decode: Decode, x: Array, mean: Array, samples: Array, starts: Array, *, steps: int) -> Ladder:
    """Return all rungs of the ladder for x [N, *X].

    Args:
      decode: the decoder.
      x: data.
      mean: [N, Z] codes at epsilon = 0.
      samples: [k, N, Z] samples of q(z | x).
      starts: [r, N, Z] codes that do not depend on x, such as draws from the prior.
      steps: number of Adam steps from the mean, and from each start.
    """
    return Ladder(
        sample=squared_error(x, decode(samples[0])),
        mean=squared_error(x, decode(mean)),
        best_of_k=best_of(decode, x, samples).error,
        refined=refine(decode, x, mean, steps=steps).error,
        searched=search(decode, x, starts, steps=steps).error,
    )


def code_error(encode: Encode, decode: Decode, z: Array) -> Array:
    """Return [N], the error of z -> x -> z: the mean over dimensions of (z - encode(decode(z)))^2.

    For z ~ N(0, I) it is 2 on average if the encoder returns an independent draw, and 1 if it returns 0.
    """
    return squared_error(z, encode(decode(z)))


def _better(a: Fit, b: Fit) -> Fit:
    """Return the code with the smaller error for each row, that of `a` if they are equal."""
    wins = b.error < a.error
    return Fit(jnp.where(wins[:, None], b.z, a.z), jnp.where(wins, b.error, a.error))
