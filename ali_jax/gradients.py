"""The gradients of the game: the paper's Algorithm 1.

Owns how both players' gradients follow from one evaluation of the three networks; the update is `train`'s.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from ali_jax import model
from ali_jax.types import (
    ALI,
    Array,
    Augment,
    Batch,
    Logits,
    Loss,
    Losses,
    Metrics,
    Networks,
    Noise,
    Pairs,
    Penalty,
    PyTree,
    Variables,
)

Gradient = Literal["auto", "one_pass", "two_pullbacks"]
Pullback = Callable[..., Any]

# The smallest weight that the one pass pulls back: far below Adam's epsilon, far above float32's underflow.
SMALLEST = 1e-20


class Aux(NamedTuple):
    """By-products of the gradient computation."""

    losses: Losses
    batch_stats: Networks[PyTree]
    metrics: Metrics


def game_gradients(
    ali: ALI,
    variables: Variables,
    loss: Loss,
    penalties: Sequence[Penalty],
    batch: Batch,
    noise: Noise,
    step: Array | int = 0,
    *,
    gradient: Gradient = "auto",
    augment: Augment | None = None,
) -> tuple[Networks[PyTree], Aux]:
    """Return the vector field of the game: each network's gradient of its own player's loss.

    Both gradients are taken at the same point, from one evaluation of D on the joined pairs, with the same
    noise and the same dropout masks (Algorithm 1 of the paper):

        pairs  = (x, z_hat), (x_tilde, z)        from encoder and decoder
        logits = D(pairs)
        encoder, decoder: d losses.generator / d (their parameters), through D and the pairs
        discriminator:    d losses.discriminator / d (its parameters)

    In the code `grad_*` are gradients in parameters. `ct_*` are cotangents: of the logits, one per player,
    and of the pairs, on their way back to encoder and decoder.

    Args:
      ali: the networks.
      variables: parameters and batch statistics.
      loss: `(logits, batch) -> (Losses, metrics)`.
      penalties: functions `(ali, variables, pairs, key, step) -> (Losses, metrics)`, added to the losses. One
        with an argument `input_gradients` is offered those of the game, where pairs are not coupled.
      batch: data.
      noise: all randomness, from `model.draw_noise`.
      step: the number of this step, for penalties that are annealed.
      gradient: how the cotangents are pulled back through D. `one_pass` needs a D with one logit per pair
        that does not depend on other pairs; `auto` takes it where D declares so (`coupled = False`).
      augment: makes what D sees of the pairs, such as `model.instance_noise`. It must change each row by
        itself. Penalties see the pairs as they are.

    Returns:
      The gradients, and the losses, batch statistics and metrics that were computed on the way.

    Raises:
      ValueError: `one_pass` for a D to which it does not apply.
    """
    params, batch_stats = variables

    def generate(encoder: PyTree, decoder: PyTree) -> tuple[Pairs, tuple[PyTree, PyTree]]:
        both = params._replace(encoder=encoder, decoder=decoder)
        return model.generate(ali, both, batch_stats, batch, noise)

    def judge(discriminator: PyTree, pairs: Pairs) -> tuple[Logits, PyTree]:
        if augment is not None:
            key = jax.random.fold_in(noise.key_discriminator, 2**31 - 1)
            pairs = augment(pairs, key, jnp.asarray(step))
        return model.judge(ali, discriminator, batch_stats.discriminator, pairs, noise.key_discriminator)

    # Forward: pairs, logits, losses, each with its pullback.
    pairs, pull_generate, stats_generator = jax.vjp(generate, params.encoder, params.decoder, has_aux=True)
    logits, pull_judge, stats_discriminator = jax.vjp(judge, params.discriminator, pairs, has_aux=True)
    with jax.named_scope("loss"):
        losses, pull_loss, metrics = jax.vjp(lambda s: loss(s, batch), logits, has_aux=True)

    # Backward: each player's cotangent of the logits, both through D, the generator's to its networks.
    of_generator, of_discriminator = _selectors(losses)
    (ct_generator,) = pull_loss(of_generator)
    (ct_discriminator,) = pull_loss(of_discriminator)
    offered = [_asks(penalty) and not model.couples(ali) and augment is None for penalty in penalties]
    if _takes_one_pass(ali, logits, gradient):
        ct = _away_from_zero(ct_discriminator, ct_generator, everywhere=any(offered))
        grad_discriminator, ct_pairs = _one_pass(pull_judge, ct_generator, ct)
    else:
        ct = Logits(*(jnp.ones_like(model.of_encoder(s)) for s in logits))
        grad_discriminator, ct_pairs = pull_judge(ct_discriminator)[0], pull_judge(ct_generator)[1]

    grad_penalties = []
    input_gradients = partial(_input_gradients, judge, pairs, ct)
    for penalty, is_offered in zip(penalties, offered, strict=True):
        given = partial(penalty, input_gradients=input_gradients) if is_offered else penalty
        term = _penalty_term(given, ali, variables, pairs, noise.key_penalties, jnp.asarray(step))
        grad_penalties.append(term.grad)
        ct_pairs = jax.tree.map(jnp.add, ct_pairs, term.ct_pairs)
        losses, metrics = Losses(*map(jnp.add, losses, term.losses)), {**metrics, **term.metrics}

    grad_encoder, grad_decoder = pull_generate(ct_pairs)
    grads = Networks(grad_encoder, grad_decoder, grad_discriminator)
    grads = jax.tree.map(lambda *terms: sum(terms), grads, *grad_penalties)
    return grads, Aux(losses, Networks(*stats_generator, stats_discriminator), metrics)


def _selectors(losses: Losses) -> tuple[Losses, Losses]:
    """Return the cotangents of the losses that select the generator's and the discriminator's."""
    one, zero = jnp.ones_like(losses.generator), jnp.zeros_like(losses.generator)
    return Losses(one, zero), Losses(zero, one)


class _Term(NamedTuple):
    """What a penalty adds."""

    losses: Losses
    grad: Networks[PyTree]  # in parameters, other than through the pairs
    ct_pairs: Pairs  # the generator's cotangent of the pairs
    metrics: Metrics


def _penalty_term(
    penalty: Penalty, ali: ALI, variables: Variables, pairs: Pairs, key: Array, step: Array
) -> _Term:
    """Differentiate a penalty: its generator loss in encoder, decoder and pairs, its D loss in D alone."""

    @jax.named_scope("penalty")
    def added(params: Networks[PyTree], pairs: Pairs) -> tuple[Losses, Metrics]:
        return penalty(ali, variables._replace(params=params), pairs, key, step)

    losses, pull, metrics = jax.vjp(added, variables.params, pairs, has_aux=True)
    of_generator, of_discriminator = _selectors(losses)
    grad, ct_pairs = pull(of_generator)
    grad = grad._replace(discriminator=pull(of_discriminator)[0].discriminator)
    return _Term(losses, grad, ct_pairs, metrics)


def _one_pass(pull_judge: Pullback, ct_generator: Logits, ct: Logits) -> tuple[PyTree, Pairs]:
    """Return D's gradient and the generator's cotangent of the pairs, from one pullback for both players.

    It is exact where each logit depends on its own pair only. The pairs' cotangent is then b_i J_i, for the
    generator's cotangents b of the logits and J_i the gradient of logit i in its pair. So one pullback of D's
    own cotangents a serves both: D's gradient as it is, and the pairs' after scaling row i by b_i / a_i. What
    is pulled back is `_away_from_zero` of a. docs/reference/performance.md has the derivation.

    A discriminator that packs m pairs has one logit for m rows, which then share its factor.
    """
    ratio = jax.tree.map(lambda b, a: b / jnp.where(b == 0, 1, a), ct_generator, ct)
    grad_discriminator, ct_pairs = pull_judge(ct)
    return grad_discriminator, _scaled(ct_pairs, ratio)


def _away_from_zero(ct_discriminator: Logits, ct_generator: Logits, *, everywhere: bool) -> Logits:
    """Return D's cotangents a of the logits with SMALLEST in place of those that are smaller.

    Where |a_i| would underflow (D is sure of the pair), D's gradient is then off by less than SMALLEST
    |ds_i / dtheta|, and the pairs' cotangent stays exact. Under a hinge a_i is zero for every pair beyond D's
    margin. Where the generator's b_i is zero too nothing needs to be replaced, but for `_input_gradients`.
    """

    def safe(a: Array, b: Array) -> Array:
        replaced = jnp.where(a < 0, -1, 1) * jnp.maximum(jnp.abs(a), SMALLEST)
        return replaced if everywhere else jnp.where(b == 0, a, replaced)

    return jax.tree.map(safe, ct_discriminator, ct_generator)


def _input_gradients(judge: Pullback, pairs: Pairs, ct: Logits, discriminator: PyTree) -> Pairs:
    """Return each logit's gradient in its own pair, of K logits that of their logsumexp, as a function of D.

    It is the pullback of ct, without zeros, and row i divided by ct_i. With the ct of the one pass it is that
    same pass, which XLA compiles once.
    """

    _, pull = jax.vjp(lambda w: jax.tree.map(model.of_encoder, judge(discriminator, w)[0]), pairs)
    return _scaled(pull(ct)[0], jax.tree.map(jnp.reciprocal, ct))


def _scaled(pairs: Pairs, by: Logits) -> Pairs:
    """Scale the rows of both kinds of pairs by a number for each logit."""

    def scaled(rows: Array, by: Array) -> Array:
        by = jnp.repeat(by, len(rows) // len(by))
        return rows * by.reshape(-1, *(1,) * (rows.ndim - 1)).astype(rows.dtype)

    x, z_hat = (scaled(rows, by.q) for rows in (pairs.x, pairs.z_hat))
    x_tilde, z = (scaled(rows, by.p) for rows in (pairs.x_tilde, pairs.z))
    return Pairs(x, z_hat, x_tilde, z, pairs.y)


def _asks(penalty: Penalty) -> bool:
    """Whether a penalty has the argument `input_gradients`."""
    return "input_gradients" in inspect.signature(penalty).parameters


def _takes_one_pass(ali: ALI, logits: Logits, gradient: Gradient) -> bool:
    """Whether D allows the one pass and `gradient` asks for it; a D that declares nothing is coupled."""
    if gradient not in ("auto", "one_pass", "two_pullbacks"):
        raise ValueError(f"gradient is {gradient!r}; it must be auto, one_pass or two_pullbacks.")
    exact = not model.couples(ali) and logits.q.ndim == 1
    if gradient == "one_pass" and not exact:
        raise ValueError(
            "gradient='one_pass' needs a discriminator that gives one logit per pair and declares "
            "coupled = False (no batch norm or other coupling between examples): use two_pullbacks, or auto."
        )
    return exact and gradient != "two_pullbacks"
