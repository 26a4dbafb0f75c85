"""What the two players minimise: functions `(logits, batch) -> (Losses, metrics)`.

The public functions of this module are what `config.loss` may name.
"""

import jax
import jax.numpy as jnp

from ali_jax.types import Batch, Logits, Losses, Metrics


def ali(logits: Logits, batch: Batch) -> tuple[Losses, Metrics]:
    """Return the losses of ALI's Algorithm 1: each player's in its non-saturating form.

    L_D = mean softplus(-s_q) + mean softplus(s_p), L_G = mean softplus(s_q) + mean softplus(-s_p), for
    logits s of shape [B]. The metrics are the authors': how often D is right, on either kind of pair.
    """
    del batch
    discriminator = jnp.mean(jax.nn.softplus(-logits.q)) + jnp.mean(jax.nn.softplus(logits.p))
    generator = jnp.mean(jax.nn.softplus(logits.q)) + jnp.mean(jax.nn.softplus(-logits.p))
    metrics = {
        "accuracy/data": jnp.mean(jax.nn.sigmoid(logits.q)),
        "accuracy/sample": jnp.mean(jax.nn.sigmoid(-logits.p)),
    }
    return Losses(generator, discriminator), metrics
