"""What the two players minimise: functions `(logits, batch) -> (Losses, metrics)`.

`config.loss` names a public function of this module. On logits of shape [B] each loss gives every logit one
cotangent per player, so that one backward pass through D serves both players.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ali_jax.types import Array, Batch, Logits, Losses, Metrics


def ali(logits: Logits, batch: Batch) -> tuple[Losses, Metrics]:
    """Return the losses of ALI's Algorithm 1, each player's in its non-saturating form.

    L_D = mean softplus(-s_q) + mean softplus(s_p), L_G = mean softplus(s_q) + mean softplus(-s_p), for
    logits s of shape [B]. Metrics, for either kind of pair: `accuracy`, how often D is right, and
    `confidence`, the probability that D gives to the right answer, which the authors monitor.
    """
    del batch
    discriminator = jnp.mean(jax.nn.softplus(-logits.q)) + jnp.mean(jax.nn.softplus(logits.p))
    generator = jnp.mean(jax.nn.softplus(logits.q)) + jnp.mean(jax.nn.softplus(-logits.p))
    metrics = {
        **_accuracy(logits.q, logits.p),
        **_confidence(logits.q, logits.p),
    }
    return Losses(generator, discriminator), metrics


def semi_supervised(
    logits: Logits, batch: Batch, *, weight: float = 1.0, axis_name: str | None = None
) -> tuple[Losses, Metrics]:
    """Return the losses of ALI with a discriminator of K + 1 classes (paper, section 4.4).

    Its logits l are [B, K]; the class of decoder pairs has the logit 0. With s = logsumexp_k l_k

        L_D = mean_unlabelled softplus(-s_q) + mean softplus(s_p) + weight mean_labelled(s_q - l_y)
        L_G = mean_unlabelled softplus(s_q) + mean softplus(-s_p)

    Encoder and decoder play the usual game, and the labelled term reaches D only. With K = 1 that term is
    constant, and the rest is `ali`.

    Args:
      logits: of K classes, or [B] for K = 1.
      batch: `label` [B] is the class of each encoder pair, or -1 where it is not labelled.
      weight: of the labelled term. Improved GAN halves the other terms instead, which is weight 2 here.
      axis_name: the named axis over which the batch is split. Each device returns a share whose average
        over the devices is the mean over all rows.

    Raises:
      ValueError: the batch has no labels.
    """
    if batch.label is None:
        raise ValueError("semi_supervised needs batch.label: -1 for rows without a label.")
    q, p = (s if s.ndim == 2 else s[:, None] for s in logits)
    s_q, s_p = (jax.nn.logsumexp(s, axis=-1) for s in (q, p))
    labelled = batch.label >= 0

    def mean(values: Array, chosen: Array) -> Array:
        count, devices = jnp.sum(chosen), 1
        if axis_name is not None:
            count, devices = jax.lax.psum((count, devices), axis_name)
        return jnp.sum(jnp.where(chosen, values, 0)) * devices / jnp.maximum(count, 1)

    def of_unlabelled(values: Array) -> Array:
        return mean(values, ~labelled)

    of_label = jnp.take_along_axis(q, jnp.maximum(batch.label, 0)[:, None], axis=-1)[:, 0]
    supervised = mean(s_q - of_label, labelled)
    discriminator = of_unlabelled(jax.nn.softplus(-s_q)) + jnp.mean(jax.nn.softplus(s_p))
    generator = of_unlabelled(jax.nn.softplus(s_q)) + jnp.mean(jax.nn.softplus(-s_p))
    metrics = {
        **_accuracy(s_q, s_p, of_unlabelled),
        **_confidence(s_q, s_p, of_unlabelled),
        "accuracy/label": mean((jnp.argmax(q, axis=-1) == batch.label).astype(s_q.dtype), labelled),
        "loss/labelled": supervised,
    }
    return Losses(generator, discriminator + weight * supervised), metrics


def hinge(logits: Logits, batch: Batch) -> tuple[Losses, Metrics]:
    """Return the hinge losses (Lim and Ye, 2017) of joint pairs, as BigBiGAN has them.

    L_D = mean max(0, 1 - s_q) + mean max(0, 1 + s_p), L_G = mean s_q - mean s_p.
    """
    del batch
    discriminator = jnp.mean(jax.nn.relu(1 - logits.q)) + jnp.mean(jax.nn.relu(1 + logits.p))
    generator = jnp.mean(logits.q) - jnp.mean(logits.p)
    return Losses(generator, discriminator), _accuracy(logits.q, logits.p)


def least_squares(logits: Logits, batch: Batch) -> tuple[Losses, Metrics]:
    """Return the least-squares losses (Mao et al., 2017), with targets 1 and -1, which the generator swaps.

    L_D = (mean (s_q - 1)^2 + mean (s_p + 1)^2) / 2, L_G = (mean (s_q + 1)^2 + mean (s_p - 1)^2) / 2.
    """
    del batch

    def distance(q: float, p: float) -> Array:
        return 0.5 * (jnp.mean(jnp.square(logits.q - q)) + jnp.mean(jnp.square(logits.p - p)))

    return Losses(distance(-1.0, 1.0), distance(1.0, -1.0)), _accuracy(logits.q, logits.p)


def relativistic(logits: Logits, batch: Batch, *, axis_name: str | None = None) -> tuple[Losses, Metrics]:
    """Return the relativistic average losses (Jolicoeur-Martineau, 2018).

    They are ALI's losses of s_q - mean s_p and s_p - mean s_q in place of s_q and s_p.

    Args:
      logits: of shape [B].
      batch: not used.
      axis_name: the named axis over which the batch is split; the two means are over all of its devices.
    """
    q = logits.q - _mean(logits.p, axis_name)
    p = logits.p - _mean(logits.q, axis_name)
    return ali(Logits(q, p), batch)[0], _accuracy(q, p)


def relativistic_pairs(logits: Logits, batch: Batch) -> tuple[Losses, Metrics]:
    """Return the paired relativistic losses: pair i of one kind against pair i of the other.

    L_D = mean softplus(s_p - s_q), L_G = mean softplus(s_q - s_p) (Jolicoeur-Martineau, 2018).
    """
    del batch
    margin = logits.q - logits.p
    losses = Losses(jnp.mean(jax.nn.softplus(margin)), jnp.mean(jax.nn.softplus(-margin)))
    return losses, _accuracy(margin, -margin)


def none(logits: Logits, batch: Batch) -> tuple[Losses, Metrics]:
    """Return two zeros, for baselines whose losses are penalties alone."""
    del batch
    zero = jnp.zeros((), logits.q.dtype)
    return Losses(zero, zero), {}


def _accuracy(q: Array, p: Array, mean_q: Callable[[Array], Array] = jnp.mean) -> Metrics:
    """Return the share of logits on the right side of zero, for either kind of pair."""
    return {
        "accuracy/data": mean_q((q > 0).astype(q.dtype)),
        "accuracy/sample": jnp.mean((p < 0).astype(p.dtype)),
    }


def _confidence(q: Array, p: Array, mean_q: Callable[[Array], Array] = jnp.mean) -> Metrics:
    """Return the mean probability that D gives to the right answer, for either kind of pair."""
    return {
        "confidence/data": mean_q(jax.nn.sigmoid(q)),
        "confidence/sample": jnp.mean(jax.nn.sigmoid(-p)),
    }


def _mean(s: Array, axis_name: str | None) -> Array:
    """Return the mean over the batch, and over the devices of a named axis if it is split over one."""
    total, count = jnp.sum(s), jnp.asarray(s.size, s.dtype)
    if axis_name is not None:
        total, count = jax.lax.psum((total, count), axis_name)
    return total / count
