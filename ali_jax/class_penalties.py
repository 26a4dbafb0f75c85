"""Penalties for few labels: regularisers of a discriminator of K + 1 classes, and feature matching.

They are functions as those of `penalties`, and `config.penalties` may name them, too. All but
`feature_matching` concern D alone. They see its K logits l; the logit of "from the decoder" stays fixed at 0.
The class of a pair has the probabilities softmax(l): those of K classes, given that the pair is the
encoder's, as in the test rule. Whether it is, the game decides.

Each of them calls D itself, in training mode. Calls that are compared with each other have the same masks and
the same noise.
"""

from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

from ali_jax import model
from ali_jax.types import ALI, Array, Losses, Metrics, Pairs, Variables, Weight

Ramp: TypeAlias = tuple[float, float]
CODES = {"prior": ("z",), "encoder": ("z_hat",), "both": ("z", "z_hat")}  # fields of `Pairs`
ALWAYS = (0.0, 0.0)  # the ramp of a weight that is full from the start


def manifold(
    ali: ALI,
    variables: Variables,
    pairs: Pairs,
    key: Array,
    step: Array,
    *,
    weight: Weight,
    size: float = 0.1,
    at: Literal["prior", "encoder", "both"] = "prior",
    ramp: Ramp = ALWAYS,
    num_steps: int = 1,
    stride: int = 1,
) -> tuple[Losses, Metrics]:
    """Return manifold regularisation: D's logits change little along the decoder's manifold, for D.

    weight E |l(G(z), z) - l(G(z + size d), z + size d)|^2, d uniform on the unit sphere (Lecouat et al.,
    2018). The published D sees no z; a joint one sees the code that moved, and so a pair of the decoder's
    own. The square is summed over the logits. It shrinks with size^2. The authors' size of 1e-5, which
    float32 logits hardly resolve, and weight of 1e-3 make it 1e-13 times the squared derivative along d.

    Args:
      weight: of the term.
      size: length of the step in the latent space.
      at: the codes where the steps begin: z of the prior, the encoder's codes z_hat of data, or both.
      ramp: shares of num_steps between which the weight rises linearly from 0; (0, 0): it is full at once.
      num_steps: of the run.
      stride: every stride-th row of the batch is used, from the first.
    """
    if at not in CODES:
        raise ValueError(f"manifold: at is {at!r}; it must be one of {', '.join(CODES)}.")
    key_delta, key_decoder, key = jax.random.split(key, 3)
    pairs = jax.lax.stop_gradient(pairs)
    params, stats = variables.params.decoder, variables.batch_stats.decoder
    y = None if pairs.y is None else pairs.y[::stride]

    def logits(z: Array) -> Array:
        x, _ = model.run_training(ali.decoder, params, stats, (z, y), key_decoder)
        return _logits(ali, variables, jax.lax.stop_gradient(x), z, y, key)

    total = jnp.zeros(())
    for i, field in enumerate(CODES[at]):
        z = getattr(pairs, field)[::stride]
        delta = _unit(jax.random.normal(jax.random.fold_in(key_delta, i), z.shape, z.dtype))
        change = logits(z + size * delta) - logits(z)
        total += _sum_of_squares(change) / len(change)
    return _of_discriminator(_weight(weight, ramp, step, num_steps), total, "manifold")


def virtual_adversarial(
    ali: ALI,
    variables: Variables,
    pairs: Pairs,
    key: Array,
    step: Array,
    *,
    weight: Weight,
    radius: float = 2.0,
    ramp: Ramp = ALWAYS,
    num_steps: int = 1,
    stride: int = 1,
) -> tuple[Losses, Metrics]:
    """Return virtual adversarial training of the classes at the encoder's pairs, for D (Miyato et al., 2018).

    weight E KL(p(x, z_hat) || p(x + r, z_hat)), p = softmax(l). The first p is a constant. r has the length
    `radius` and the direction in which the divergence grows fastest, by one step of power iteration from a
    random one: r ~ H d with H the divergence's Hessian in r at 0. The authors take H d as a difference of
    gradients over xi = 1e-6. Here it is exact, at the same cost: H d = J' (diag p - p p') J d, with J the
    derivative of l in x. There is no xi.

    Args:
      weight: of the term.
      radius: length of r, in units of x in [0, 1], over all of x. The authors have 2 on MNIST.
      ramp, num_steps: see `manifold`.
      stride: every stride-th row is used, from the first. With the loss `semi_supervised` rows without and
        with a label alternate, so that 2 leaves those without.

    Raises:
      ValueError: D has one logit only.
    """
    key_direction, key = jax.random.split(key)
    x, z_hat, y = _encoder_pairs(jax.lax.stop_gradient(pairs), stride)
    fixed = jax.lax.stop_gradient(variables)

    def logits(x: Array, variables: Variables = fixed) -> Array:
        return _class_logits(ali, variables, x, z_hat, y, key, "virtual_adversarial")

    direction = _unit(jax.random.normal(key_direction, x.shape, x.dtype))
    clean, pull = jax.vjp(logits, x)
    _, push = jax.vjp(lambda u: pull(u)[0], jnp.zeros_like(clean))  # J, as convolutions have no `jax.jvp`
    (change,) = push(direction)
    p = jax.nn.softmax(clean)
    (ascent,) = pull((p * (change - jnp.sum(p * change, axis=-1, keepdims=True))).astype(clean.dtype))
    r = radius * _unit(jax.lax.stop_gradient(ascent))
    log_p, log_moved = jax.nn.log_softmax(clean), jax.nn.log_softmax(logits(x + r, variables))
    divergence = jnp.mean(jnp.sum(p * (log_p - log_moved), axis=-1))
    return _of_discriminator(_weight(weight, ramp, step, num_steps), divergence, "virtual_adversarial")


def entropy(
    ali: ALI,
    variables: Variables,
    pairs: Pairs,
    key: Array,
    step: Array,
    *,
    weight: Weight,
    ramp: Ramp = ALWAYS,
    num_steps: int = 1,
    stride: int = 1,
) -> tuple[Losses, Metrics]:
    """Return the entropy of the classes at the encoder's pairs, for D (Grandvalet and Bengio, 2005).

    weight E H(softmax(l(x, z_hat))), in nats. With `virtual_adversarial`, both of weight 1, it is Miyato's
    "VAT + EntMin".

    Args:
      weight: of the term.
      ramp, num_steps: see `manifold`. A D that is made sure of its classes before it knows them stays wrong.
      stride: see `virtual_adversarial`.

    Raises:
      ValueError: D has one logit only.
    """
    _, key = jax.random.split(key)  # the masks of `virtual_adversarial`, whose call of D this then is
    inputs = _encoder_pairs(jax.lax.stop_gradient(pairs), stride)
    log_p = jax.nn.log_softmax(_class_logits(ali, variables, *inputs, key, "entropy"))
    value = -jnp.mean(jnp.sum(jnp.exp(log_p) * log_p, axis=-1))
    return _of_discriminator(_weight(weight, ramp, step, num_steps), value, "entropy")


def feature_matching(
    ali: ALI,
    variables: Variables,
    pairs: Pairs,
    key: Array,
    step: Array,
    *,
    weight: Weight,
    layer: str = "joint",
    stride: int = 1,
    axis_name: str | None = None,
) -> tuple[Losses, Metrics]:
    """Return feature matching, for encoder and decoder (Salimans et al., 2016).

    weight |E f(x, z_hat) - E f(x_tilde, z)|^2, f the output of a layer of D, flattened, and E the mean over
    the batch. Improved GAN's generator minimises it alone, which is the limit of a large weight. Each kind
    of pairs has its own masks and noise.

    Args:
      weight: of the term.
      layer: the submodule of D whose output is f. `joint` is its last hidden layer, which sees x and z; `x`
        is D(x), which tells the decoder about x alone and the encoder nothing.
      stride: every stride-th of the encoder's pairs is used, from the first; see `virtual_adversarial`.
      axis_name: the named axis over which the batch is split; the means are over all of its devices.

    Raises:
      ValueError: D has no submodule of that name, or does not call it.
    """
    key_q, key_p = jax.random.split(key)
    x, z_hat, y = _encoder_pairs(pairs, stride)
    q = _mean_features(ali, variables, (x, z_hat, y), key_q, layer)
    p = _mean_features(ali, variables, (pairs.x_tilde, pairs.z, pairs.y), key_p, layer)
    difference = q - p
    if axis_name is not None:
        difference = jax.lax.pmean(difference, axis_name)
    distance = _sum_of_squares(difference)
    value = _weight(weight, ALWAYS, step, 1) * distance
    return Losses(value, jnp.zeros(())), {"feature_matching": distance}


def _mean_features(ali: ALI, variables: Variables, inputs: tuple, key: Array, layer: str) -> Array:
    """Return the mean over the batch of a submodule's output in D, [F]."""
    params = jax.lax.stop_gradient(variables.params.discriminator)
    stats = variables.batch_stats.discriminator
    _, kept = ali.discriminator.apply(
        model.collections(params, stats),
        *inputs,
        train=True,
        rngs=model.streams(key),
        capture_intermediates=lambda module, method: module.name == layer and method == "__call__",
        mutable=["intermediates", "batch_stats"],
    )
    outputs = kept.get("intermediates", {}).get(layer, {}).get("__call__", ())
    if not outputs:
        raise ValueError(
            f"feature_matching: D calls no submodule {layer!r}, whose output could be matched: set "
            "config.penalties.feature_matching.layer to one that it has; `Discriminator` has x and joint."
        )
    h = outputs[0].reshape(len(outputs[0]), -1)
    return jnp.mean(h.astype(jnp.promote_types(h.dtype, jnp.float32)), axis=0)


def _encoder_pairs(pairs: Pairs, stride: int) -> tuple[Array, Array, Array | None]:
    """Return every stride-th row of x, z_hat and y."""
    return pairs.x[::stride], pairs.z_hat[::stride], None if pairs.y is None else pairs.y[::stride]


def _logits(ali: ALI, variables: Variables, x: Array, z: Array, y: Array | None, key: Array) -> Array:
    """Return D's logits in training mode, [B] or [B, K]; its new batch statistics are dropped."""
    params, stats = variables.params.discriminator, variables.batch_stats.discriminator
    logits, _ = model.run_training(ali.discriminator, params, stats, (x, z, y), key)
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def _class_logits(
    ali: ALI, variables: Variables, x: Array, z: Array, y: Array | None, key: Array, name: str
) -> Array:
    """Return D's logits of K > 1 classes, [B, K]."""
    logits = _logits(ali, variables, x, z, y, key)
    if logits.ndim != 2:
        raise ValueError(
            f"{name} needs a discriminator of classes: set config.loss = 'semi_supervised', with "
            "config.dataset.labelled and config.discriminator.num_classes, or "
            f"config.penalties.{name}.weight = 0."
        )
    return logits


def _of_discriminator(weight: Any, value: Array, name: str) -> tuple[Losses, Metrics]:
    return Losses(jnp.zeros(()), weight * value), {name: value}


def _weight(weight: Weight, ramp: Ramp, step: Array, num_steps: int) -> Any:
    """Return a weight at a step: 0 before its ramp, then rising linearly, and full after it."""
    full = weight(step) if callable(weight) else weight
    begin, end = ramp
    if end <= 0:
        return full
    return full * jnp.clip((step / num_steps - begin) / max(end - begin, 1e-9), 0, 1)


def _unit(v: Array) -> Array:
    """Scale each row of v to the length 1, also where its square would underflow; 0 stays 0."""
    axes = tuple(range(1, v.ndim))
    largest = jnp.max(jnp.abs(v), axis=axes, keepdims=True)
    v = v / jnp.where(largest > 0, largest, 1)
    length = jnp.sqrt(jnp.sum(jnp.square(v), axis=axes, keepdims=True))
    return v / jnp.where(largest > 0, length, 1)


def _sum_of_squares(v: Array) -> Array:
    return jnp.sum(jnp.square(v))
