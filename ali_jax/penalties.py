"""Terms added to the losses: functions `(ali, variables, pairs, key, step, **options) -> (Losses, metrics)`.

The public functions of this module are what `config.penalties` may name. A penalty's generator loss is
differentiated in the parameters of encoder and decoder and in the pairs. Its discriminator loss is
differentiated in the parameters of D alone.

A weight is a number, which may be traced, or a function of the step, such as a schedule of optax.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from ali_jax import losses, model
from ali_jax.types import ALI, Array, Batch, InputGradients, Logits, Losses, Metrics, Pairs, Variables, Weight

Placement = Literal["encoder", "decoder", "both", "prior"]
Masks = Literal["own", "game"]
Schedule = Literal["geometric", "cosine"]
PLACES = {  # by placement: the inputs of D, as fields of `Pairs`
    "encoder": [("x", "z_hat")],
    "decoder": [("x_tilde", "z")],
    "both": [("x", "z_hat"), ("x_tilde", "z")],
    "prior": [("x", "z")],
}


def r1(
    ali: ALI,
    variables: Variables,
    pairs: Pairs,
    key: Array,
    step: Array,
    *,
    gamma: Weight | None,
    gamma_z: Weight | None = None,
    gamma_final: Weight | None = None,
    num_steps: int = 1,
    schedule: Schedule = "geometric",
    at: Placement = "encoder",
    every: int = 1,
    masks: Masks = "own",
    input_gradients: InputGradients | None = None,
) -> tuple[Losses, Metrics]:
    """Return the zero-centred gradient penalty on the joint discriminator.

    R = 1/2 mean_i(gamma |ds_i/dx_i|^2 + gamma_z |ds_i/dz_i|^2)

    s_i is the logit of pair i, and (x, z) are constants. Of K logits s is the logsumexp. A pack of pairs
    counts as one pair. At the encoder's pairs (x, z_hat) the penalty is R1, at the decoder's (x_tilde, z) it
    is R2; `prior` means (x, z).

    Args:
      gamma: weight of the x part, in units of x in [0, 1]: scaling x by c means gamma c^2; None: 0.
      gamma_z: weight of the z part; None: gamma.
      gamma_final: the larger of the two weights after num_steps, to which both change by the same factors.
        None: they are constant, and so are two weights of 0.
      schedule: geometric, with the same factor each step, or along half a cosine.
      at: where the gradient is taken. `both` adds R1 and R2.
      every: n, to take the penalty with n times its weight at steps n - 1, 2 n - 1 and so on, and not at
        others: the same mean over steps, but another estimator of it (Karras et al., 2020).
      masks: of D's dropout: drawn anew, for a call of D of its own; or those of the game.
      input_gradients: of the pairs, as the game offers them. They are used where no masks differ, at all
        places but `prior`: the penalty then costs no forward pass, and `both` no more than one of them.

    Raises:
      ValueError: D has batch statistics and does not declare `coupled = False`. The gradient of the summed
        logits would mix examples.
    """
    if jax.tree.leaves(variables.batch_stats.discriminator) and model.couples(ali):
        raise ValueError(
            "A gradient penalty needs a discriminator without batch norm, which would mix examples: set "
            "config.discriminator.x_batch_norm = (False,), or config.penalties.r1.gamma = 0."
        )
    if at not in PLACES:
        raise ValueError(f"r1: at is {at!r}; it must be one of {', '.join(PLACES)}.")
    same_masks = masks == "game" or not model.is_random(ali)
    if input_gradients is not None and same_masks and at != "prior":
        of_game = input_gradients(variables.params.discriminator)
        gradients = [(getattr(of_game, x), getattr(of_game, z)) for x, z in PLACES[at]]
    else:
        inputs = [(getattr(pairs, x), getattr(pairs, z)) for x, z in PLACES[at]]
        gradients = [_gradients_anew(ali, variables, x, z, pairs.y, key) for x, z in inputs]
    count = len(pairs.x) // model.packing(ali)
    squares = jnp.array([[_sum_of_squares(g) for g in of_pairs] for of_pairs in gradients])
    by_x, by_z = squared = jnp.sum(squares, axis=0) / count
    gamma, gamma_z, gamma_final = (_at(step, weight) for weight in (gamma, gamma_z, gamma_final))
    weights = _weights(gamma, gamma_z, gamma_final, step / num_steps, schedule)
    if every > 1:
        weights *= jnp.where((step + 1) % every == 0, every, 0)
    penalty = 0.5 * jnp.sum(weights.astype(squared.dtype) * squared)
    return Losses(jnp.zeros(()), penalty), {"r1/x": by_x, "r1/z": by_z}


def _gradients_anew(
    ali: ALI, variables: Variables, x: Array, z: Array, y: Array | None, key: Array
) -> tuple[Array, Array]:
    """Return the gradients of the logits of (x, z) in x and in z, from a call of D of its own."""

    def logit_sum(x: Array, z: Array) -> Array:
        params, batch_stats = variables.params.discriminator, variables.batch_stats.discriminator
        flax_variables = model.collections(params, batch_stats)
        logits = ali.discriminator.apply(flax_variables, x, z, y, train=True, rngs={"dropout": key})
        return jnp.sum(model.of_encoder(logits))

    return jax.grad(logit_sum, argnums=(0, 1))(jax.lax.stop_gradient(x), jax.lax.stop_gradient(z))


def _sum_of_squares(g: Array) -> Array:
    return jnp.sum(jnp.square(g.astype(jnp.promote_types(g.dtype, jnp.float32))))


def _at(step: Array, weight: Weight | None) -> Any:
    """Return a weight at a step."""
    return weight(step) if callable(weight) else weight


def _weights(
    gamma: Any, gamma_z: Any, gamma_final: Any, progress: Array | float, schedule: Schedule
) -> Array:
    """Return `r1`'s weights of x and z, [2], after a share `progress` of the steps."""
    gamma = 0.0 if gamma is None else gamma
    weights = jnp.stack([jnp.asarray(w, float) for w in (gamma, gamma if gamma_z is None else gamma_z)])
    if gamma_final is None:
        return weights
    if not isinstance(gamma_final, jax.Array) and gamma_final <= 0:
        raise ValueError(
            f"r1: gamma_final is {gamma_final}; it must be positive, since weights change by a factor."
        )
    largest = weights.max()
    ratio = jnp.where(largest > 0, gamma_final / jnp.where(largest > 0, largest, 1.0), 1.0)
    progress = jnp.clip(progress, 0, 1)
    if schedule == "cosine":
        return weights * (ratio + (1 - ratio) * (1 + jnp.cos(jnp.pi * progress)) / 2)
    return weights * jnp.exp(progress * jnp.log(ratio))


def cycle_x(
    ali: ALI, variables: Variables, pairs: Pairs, key: Array, step: Array, *, weight: Weight
) -> tuple[Losses, Metrics]:
    """Return ALICE's explicit cycle, weight E_q |x - G_x(z_hat)|^2, on encoder and decoder (Li et al., 2017).

    The square is summed over the D dimensions of x and averaged over the batch; weight 1 / D makes it a mean.
    The decoder runs as in training.
    """
    x_hat = _decoded(ali, variables, pairs.z_hat, pairs.y, key)
    distance = _squared_distance(pairs.x, x_hat)
    return Losses(_at(step, weight) * distance, jnp.zeros(())), {"cycle/x": distance}


def cycle_z(
    ali: ALI,
    variables: Variables,
    pairs: Pairs,
    key: Array,
    step: Array,
    *,
    weight: Weight,
    sampled: bool = False,
) -> tuple[Losses, Metrics]:
    """Return the cycle weight E_p |z - G_z(x_tilde)|^2, on encoder and decoder.

    The square is summed over the dimensions of z and averaged over the batch. With a frozen decoder and the
    loss `none` it is the learnt inverse mapping of section 4.3 of the paper. Encoder and decoder run as in
    training.

    Args:
      weight: of the term.
      sampled: whether the code is a sample of q(z | x_tilde), as in ALICE. The variance of q is then part of
        the distance, so the term drives it to zero. Otherwise the code is the one at epsilon = 0.
    """
    key_epsilon, key = jax.random.split(key)
    epsilon = jax.random.normal(key_epsilon, pairs.z.shape) if sampled else jnp.zeros_like(pairs.z)
    z_hat, _ = model.run_training(
        ali.encoder,
        variables.params.encoder,
        variables.batch_stats.encoder,
        (pairs.x_tilde, epsilon, pairs.y),
        key,
    )
    distance = _squared_distance(pairs.z, z_hat)
    return Losses(_at(step, weight) * distance, jnp.zeros(())), {"cycle/z": distance}


def adversarial_cycle(
    ali: ALI, variables: Variables, pairs: Pairs, key: Array, step: Array, *, weight: Weight
) -> tuple[Losses, Metrics]:
    """Return ALICE's implicit cycle: weight times `losses.ali` of the logits of (x, x) and (x, x_hat).

    x_hat = G_x(z_hat). The logits come from D's method `pair`. Only (x, x_hat) moves encoder and decoder.

    Raises:
      ValueError: D has no `pair_layers`.
    """
    _require(ali, "pair_layers", "(64, 64)", "adversarial_cycle")
    key_decoder, key = jax.random.split(key)
    x_hat = _decoded(ali, variables, pairs.z_hat, pairs.y, key_decoder)
    compared = Pairs(pairs.x, pairs.x, pairs.x, x_hat, pairs.y)
    logits = _scores(ali, variables, compared, key, "pair")
    added, metrics = losses.ali(logits, Batch(pairs.x))
    return Losses(*(_at(step, weight) * a for a in added)), _named("adversarial_cycle", metrics)


def unary_scores(
    ali: ALI, variables: Variables, pairs: Pairs, key: Array, step: Array, *, weight: Weight
) -> tuple[Losses, Metrics]:
    """Return the hinge losses of D's scores of x alone and of z alone, times weight (BigBiGAN, 2019).

    Each score s has its own `losses.hinge`: L_D = mean max(0, 1 - s_q) + mean max(0, 1 + s_p), L_G =
    mean s_q - mean s_p. With the loss `hinge` for the joint logit and weight 1 it is BigBiGAN's objective.

    Raises:
      ValueError: D has no `unary_scores`.
    """
    _require(ali, "unary_scores", "True", "unary_scores")
    q, p = _scores(ali, variables, pairs, key, "unary")
    of_x, metrics_x = losses.hinge(Logits(q[:, 0], p[:, 0]), Batch(pairs.x))
    of_z, metrics_z = losses.hinge(Logits(q[:, 1], p[:, 1]), Batch(pairs.x))
    added = Losses(*(_at(step, weight) * (a + b) for a, b in zip(of_x, of_z, strict=True)))
    return added, {**_named("unary/x", metrics_x), **_named("unary/z", metrics_z)}


def elbo(
    ali: ALI,
    variables: Variables,
    pairs: Pairs,
    key: Array,
    step: Array,
    *,
    weight: Weight,
    sigma: float = 1.0,
) -> tuple[Losses, Metrics]:
    """Return a variational autoencoder's loss, the negative evidence lower bound (Kingma and Welling, 2014).

    weight mean_i(|x_i - G_x(z_hat_i)|^2 / (2 sigma^2) + KL(q(z | x_i) || N(0, I))), in nats up to a constant.
    The likelihood is Gaussian with a fixed standard deviation sigma. With the loss `none` nothing else is
    minimised.

    Raises:
      ValueError: the encoder is not Gaussian, or has no method `moments`.
    """
    if not model.has_gaussian_encoder(ali):
        raise ValueError("elbo needs a Gaussian encoder: set config.encoder.posterior = 'gaussian'.")
    key_encoder, key_decoder = jax.random.split(key)
    params, stats = variables.params.encoder, variables.batch_stats.encoder
    moments, _ = model.run_training(
        ali.encoder, params, stats, (pairs.x, pairs.y), key_encoder, method="moments"
    )
    mu, log_sigma = moments
    x_hat = _decoded(ali, variables, pairs.z_hat, pairs.y, key_decoder)
    error = _squared_distance(pairs.x, x_hat) / (2 * sigma**2)
    kl = jnp.sum(jnp.square(mu) + jnp.exp(2 * log_sigma) - 1 - 2 * log_sigma) / (2 * len(mu))
    return Losses(_at(step, weight) * (error + kl), jnp.zeros(())), {"elbo/error": error, "elbo/kl": kl}


def _decoded(ali: ALI, variables: Variables, z: Array, y: Array | None, key: Array) -> Array:
    """Decode in training mode; the batch statistics that change are dropped: those of the game are kept."""
    params, batch_stats = variables.params.decoder, variables.batch_stats.decoder
    return model.run_training(ali.decoder, params, batch_stats, (z, y), key)[0]


def _scores(ali: ALI, variables: Variables, pairs: Pairs, key: Array, method: str) -> Logits:
    params, batch_stats = variables.params.discriminator, variables.batch_stats.discriminator
    return model.judge(ali, params, batch_stats, pairs, key, method=method)[0]


def _named(prefix: str, metrics: Metrics) -> Metrics:
    return {f"{prefix}/{name}": value for name, value in metrics.items()}


def _squared_distance(a: Array, b: Array) -> Array:
    """Return the squared Euclidean distance of rows, averaged over the batch."""
    return jnp.sum(jnp.square(a.astype(b.dtype) - b)) / len(a)


def _require(ali: ALI, field: str, example: str, penalty: str) -> None:
    if not getattr(ali.discriminator, field, False):
        raise ValueError(
            f"{penalty} needs a discriminator with {field}: set config.discriminator.{field} = {example}, or "
            f"config.penalties.{penalty}.weight = 0."
        )
