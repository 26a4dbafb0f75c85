"""Terms added to the losses: functions `(ali, variables, pairs, key, step, **options) -> (Losses, metrics)`.

The public functions of this module are what `config.penalties` may name. A penalty's generator loss is
differentiated in the encoder's and decoder's parameters and in the pairs, its discriminator loss in the
discriminator's parameters only.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from ali_jax.types import ALI, Array, Losses, Metrics, Pairs, Variables

Placement = Literal["encoder", "decoder", "both", "prior"]


def r1(
    ali: ALI,
    variables: Variables,
    pairs: Pairs,
    key: Array,
    step: Array,
    *,
    gamma: float | None,
    gamma_z: float | None = None,
    gamma_final: float | None = None,
    num_steps: int = 1,
    at: Placement = "encoder",
) -> tuple[Losses, Metrics]:
    """Return the zero-centred gradient penalty on the joint discriminator.

    R = 1/2 mean_i(gamma |ds_i/dx_i|^2 + gamma_z |ds_i/dz_i|^2), s the logit (of K classes: their
    logsumexp), (x, z) constants. At the
    encoder's pairs (x, z_hat) it is R1, at the decoder's (x_tilde, z) R2; `prior` is (x, z).

    Args:
      gamma: weight of the x part, in units of x in [0, 1]: scaling x by c means gamma c^2.
      gamma_z: weight of the z part; None: gamma.
      gamma_final: both weights fall (or rise) geometrically by one factor over num_steps, after which the
        larger of them is gamma_final; None: they stay.
      at: where the gradient is taken; `both` adds R1 and R2.

    Raises:
      ValueError: a discriminator with batch statistics: the gradient of the summed logits would mix examples.
    """
    if jax.tree.leaves(variables.batch_stats.discriminator):
        raise ValueError(
            "A gradient penalty needs a discriminator without batch norm, which would mix examples: set "
            "config.discriminator.x_batch_norm = (False,), or config.penalties.r1.gamma = 0."
        )

    def logit_sum(x: Array, z: Array) -> Array:
        held = {
            "params": variables.params.discriminator,
            "batch_stats": variables.batch_stats.discriminator,
        }
        logits = ali.discriminator.apply(held, x, z, pairs.y, train=True, rngs={"dropout": key})
        return jnp.sum(logits if logits.ndim == 1 else jax.nn.logsumexp(logits, axis=-1))

    places = {
        "encoder": [(pairs.x, pairs.z_hat)],
        "decoder": [(pairs.x_tilde, pairs.z)],
        "both": [(pairs.x, pairs.z_hat), (pairs.x_tilde, pairs.z)],
        "prior": [(pairs.x, pairs.z)],
    }
    if at not in places:
        raise ValueError(f"r1: at is {at!r}; it must be one of {', '.join(places)}.")
    squared = jnp.zeros(2)
    for x, z in places[at]:
        gradients = jax.grad(logit_sum, argnums=(0, 1))(jax.lax.stop_gradient(x), jax.lax.stop_gradient(z))
        squared += jnp.stack([jnp.sum(jnp.square(g.astype(jnp.float32))) / g.shape[0] for g in gradients])
    gamma = 0.0 if gamma is None else gamma
    weights = jnp.array([gamma, gamma if gamma_z is None else gamma_z])
    anneal = 1.0
    if gamma_final is not None:
        if not isinstance(gamma_final, jax.Array) and gamma_final <= 0:
            raise ValueError(
                f"r1: gamma_final is {gamma_final}; weights that fall geometrically end above 0."
            )
        anneal = jnp.exp(jnp.clip(step / num_steps, 0, 1) * jnp.log(gamma_final / weights.max()))
    penalty = 0.5 * anneal * jnp.sum(weights * squared)
    return Losses(jnp.zeros(()), penalty), {"r1/x": squared[0], "r1/z": squared[1]}


def elbo(
    ali: ALI,
    variables: Variables,
    pairs: Pairs,
    key: Array,
    step: Array,
    *,
    weight: float,
    sigma: float = 1.0,
) -> tuple[Losses, Metrics]:
    """Return a variational autoencoder's loss, the negative evidence lower bound (Kingma & Welling, 2014).

    mean_i(|x_i - G_x(z_hat_i)|^2 / (2 sigma^2) + KL(q(z | x_i) || N(0, I))), in nats up to a constant: the
    likelihood is Gaussian with the fixed deviation `sigma`. With config.loss = "none" nothing else is
    minimised. Needs a Gaussian encoder, with `moments`.

    Raises:
      ValueError: another encoder.
    """
    del step
    if not hasattr(ali.encoder, "moments") or getattr(ali.encoder, "posterior", "gaussian") != "gaussian":
        raise ValueError("elbo needs a Gaussian encoder: set config.encoder.posterior = 'gaussian'.")
    key_encoder, key_decoder = jax.random.split(key)

    def held(role: str) -> dict[str, Any]:
        params, stats = (getattr(tree, role) for tree in variables)
        return {"params": params, "batch_stats": stats}

    (mu, log_sigma), _ = ali.encoder.apply(
        held("encoder"),
        pairs.x,
        pairs.y,
        train=True,
        rngs={"dropout": key_encoder},
        mutable=["batch_stats"],
        method="moments",
    )
    x_hat, _ = ali.decoder.apply(
        held("decoder"),
        pairs.z_hat,
        pairs.y,
        train=True,
        rngs={"dropout": key_decoder},
        mutable=["batch_stats"],
    )
    size = len(mu)
    error = jnp.sum(jnp.square(pairs.x - x_hat)) / (2 * sigma**2 * size)
    kl = jnp.sum(jnp.square(mu) + jnp.exp(2 * log_sigma) - 1 - 2 * log_sigma) / (2 * size)
    return Losses(weight * (error + kl), jnp.zeros(())), {"elbo/error": error, "elbo/kl": kl}
