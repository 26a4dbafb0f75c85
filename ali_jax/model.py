"""The three networks in use, as pure functions of (ali, variables, ...).

`forward` and its halves `generate` and `judge` run the networks as training does (`run_training`). All other
functions run them as evaluation does: running batch statistics, no dropout.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ali_jax.networks.inputs import check_codes, check_x, latent_dim
from ali_jax.types import ALI, Array, Batch, Logits, Networks, Noise, Pairs, PyTree, Variables


def init(ali: ALI, key: Array, x: Array, y: Array | None = None) -> Variables:
    """Initialise the three networks.

    Args:
      ali: the networks.
      key: a PRNG key.
      x: [N, *X] training data, 500 images in the authors' code. A decoder with `fit_bias(params, x)` sets its
        output bias from their mean.
      y: [N, A] conditions, for networks that take them.

    Returns:
      Parameters and running batch statistics of the three networks.
    """
    check_x(ali, x)
    keys = Networks(*jax.random.split(key, 3))
    rows = packing(ali)
    x1, y1 = x[:rows], None if y is None else y[:rows]
    z1 = jnp.zeros((rows, latent_dim(ali)))
    initial = Networks(
        encoder=ali.encoder.init(streams(keys.encoder), x1, z1, y1, train=False),
        decoder=ali.decoder.init(streams(keys.decoder), z1, y1, train=False),
        discriminator=ali.discriminator.init(streams(keys.discriminator), x1, z1, y1, train=False),
    )
    params = Networks(*(v["params"] for v in initial))
    if hasattr(ali.decoder, "fit_bias"):
        params = params._replace(decoder=ali.decoder.fit_bias(params.decoder, x))
    return Variables(params, Networks(*(v.get("batch_stats", {}) for v in initial)))


def packing(ali: ALI) -> int:
    """Return how many pairs D judges at once: its attribute `packing`, or 1."""
    return getattr(ali.discriminator, "packing", 1)


def couples(ali: ALI) -> bool:
    """Whether a logit may depend on other pairs of the batch. True unless D declares `coupled = False`."""
    return getattr(ali.discriminator, "coupled", True)


def is_random(ali: ALI) -> bool:
    """Whether a logit may depend on a key. True unless D declares `random = False`."""
    return getattr(ali.discriminator, "random", True)


def has_gaussian_encoder(ali: ALI) -> bool:
    """Whether the encoder is Gaussian and has the method `moments(x, y, *, train)`."""
    return hasattr(ali.encoder, "moments") and getattr(ali.encoder, "posterior", "gaussian") == "gaussian"


@jax.named_scope("noise")
def draw_noise(ali: ALI, key: Array, size: int) -> Noise:
    """Draw the noise of a step of `size` pairs.

    Args:
      ali: the networks.
      key: a PRNG key.
      size: B.

    Returns:
      z and epsilon ~ N(0, I), [B, Z] each, and keys for everything else that is random.
    """
    key, *keys = jax.random.split(key, 4)
    z, epsilon = jax.random.normal(key, (2, size, latent_dim(ali)))  # one draw
    return Noise(z, epsilon, *keys)


def generate(
    ali: ALI, params: Networks[PyTree], batch_stats: Networks[PyTree], batch: Batch, noise: Noise
) -> tuple[Pairs, tuple[PyTree, PyTree]]:
    """Draw both kinds of pairs in training mode: z_hat = G_z(x, epsilon) and x_tilde = G_x(z).

    The encoder sees only data, the decoder only draws of the prior.

    Args:
      ali: the networks.
      params, batch_stats: of all three; the discriminator's are not used.
      batch: data.
      noise: from `draw_noise`.

    Returns:
      The pairs, and the new batch statistics of encoder and decoder.
    """
    check_x(ali, batch.x)
    key_e, key_d = jax.random.split(noise.key_generator)
    z_hat, stats_e = run_training(
        ali.encoder, params.encoder, batch_stats.encoder, (batch.x, noise.epsilon, batch.y), key_e
    )
    x_tilde, stats_d = run_training(
        ali.decoder, params.decoder, batch_stats.decoder, (noise.z, batch.y), key_d
    )
    return Pairs(batch.x, z_hat, x_tilde, noise.z, batch.y), (stats_e, stats_d)


def run_training(
    module: Any,
    params: PyTree,
    batch_stats: PyTree,
    inputs: Sequence[Any],
    key: Array,
    method: str | None = None,
) -> tuple[Any, PyTree]:
    """Run one network in training mode; return its output and its new batch statistics."""
    output, stats = module.apply(
        collections(params, batch_stats),
        *inputs,
        train=True,
        rngs=streams(key),
        mutable=["batch_stats"],
        method=method,
    )
    return output, stats.get("batch_stats", {})


def judge(
    ali: ALI, params: PyTree, batch_stats: PyTree, pairs: Pairs, key: Array, *, method: str | None = None
) -> tuple[Logits, PyTree]:
    """Judge the 2B joined pairs in training mode, by one call of D.

    One call, as in the authors' code: batch norm sees data and samples together. The two kinds of pairs are
    interleaved row by row, so that a batch that is sharded over devices stays where it is. A D with
    `packing` = m sees m rows of one kind, then m of the other.

    Args:
      ali: the networks.
      params, batch_stats: D's.
      pairs: both kinds.
      key: of D's dropout masks.
      method: the method of D that is called; None: `__call__`.

    Returns:
      The logits of both kinds, and D's new batch statistics.
    """
    m = packing(ali)
    y = None if pairs.y is None else _interleave(pairs.y, pairs.y, m)
    inputs = (_interleave(pairs.x, pairs.x_tilde, m), _interleave(pairs.z_hat, pairs.z, m), y)
    logits, stats = run_training(ali.discriminator, params, batch_stats, inputs, key, method)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    logits = logits.reshape(-1, 2, *logits.shape[1:])
    return Logits(logits[:, 0], logits[:, 1]), stats


def instance_noise(pairs: Pairs, key: Array, step: Array, *, std: float, num_steps: int) -> Pairs:
    """Add noise N(0, s^2) to the x and x_tilde that D sees (Sonderby et al., 2017).

    s is in the units of `Batch.x` and falls linearly from `std` at step 0 to 0 at `num_steps`. z is left
    alone.
    """
    s = std * jnp.clip(1 - step / num_steps, 0, 1)
    key_x, key_x_tilde = jax.random.split(key)

    def noisy(x: Array, key: Array) -> Array:
        return x + (s * jax.random.normal(key, x.shape)).astype(x.dtype)

    return pairs._replace(x=noisy(pairs.x, key_x), x_tilde=noisy(pairs.x_tilde, key_x_tilde))


def forward(ali: ALI, variables: Variables, key: Array, batch: Batch) -> tuple[Logits, Networks[PyTree]]:
    """Run all three networks in training mode, as a training step does.

    Args:
      ali: the networks.
      variables: their parameters and batch statistics, such as a TrainState's `variables` or `ema`.
      key: a PRNG key, for z, epsilon and dropout masks.
      batch: data.

    Returns:
      Logits of both kinds of pairs, and new batch statistics.
    """
    noise = draw_noise(ali, key, batch.x.shape[0])
    params, batch_stats = variables
    pairs, (stats_e, stats_d) = generate(ali, params, batch_stats, batch, noise)
    logits, stats = judge(
        ali, params.discriminator, batch_stats.discriminator, pairs, noise.key_discriminator
    )
    return logits, Networks(stats_e, stats_d, stats)


def encode(
    ali: ALI, variables: Variables, x: Array, y: Array | None = None, *, key: Array | None = None
) -> Array:
    """Encode data: a sample of q(z | x) or, without a key, the code at epsilon = 0 (a Gaussian's mean).

    Args:
      ali: the networks.
      variables: their parameters and batch statistics, such as a TrainState's `variables` or `ema`.
      x: [B, *X] data as the networks see them; images are floats in [0, 1].
      y: [B, A] conditions, for networks that take them.
      key: a PRNG key of the encoder's noise epsilon ~ N(0, I); None: epsilon = 0.

    Returns:
      Codes z [B, Z].
    """
    check_x(ali, x)
    shape = (x.shape[0], latent_dim(ali))
    epsilon = jnp.zeros(shape) if key is None else jax.random.normal(key, shape)
    flax_variables = collections(variables.params.encoder, variables.batch_stats.encoder)
    return ali.encoder.apply(flax_variables, x, epsilon, y, train=False)


def decode(
    ali: ALI, variables: Variables, z: Array, y: Array | None = None, *, key: Array | None = None
) -> Array:
    """Decode codes; decodings of z ~ N(0, I) are samples of the model.

    Args:
      ali: the networks.
      variables: their parameters and batch statistics, such as a TrainState's `variables` or `ema`.
      z: [B, Z] codes.
      y: [B, A] conditions, for networks that take them.
      key: a PRNG key, for decoders that draw noise of their own (from Flax's stream `noise`).

    Returns:
      x_tilde [B, *X]; images are in [0, 1].
    """
    check_codes(ali, z)
    flax_variables = collections(variables.params.decoder, variables.batch_stats.decoder)
    return ali.decoder.apply(flax_variables, z, y, train=False, rngs=None if key is None else streams(key))


def reconstruct(
    ali: ALI, variables: Variables, x: Array, y: Array | None = None, *, key: Array | None = None
) -> Array:
    """Encode data and decode the codes: x_hat = G_x(z_hat).

    Args:
      ali: the networks.
      variables: their parameters and batch statistics, such as a TrainState's `variables` or `ema`.
      x: [B, *X] data; images are floats in [0, 1].
      y: [B, A] conditions, for networks that take them.
      key: a PRNG key, to sample z_hat as in the paper; None: z_hat is the code at epsilon = 0.

    Returns:
      x_hat [B, *X].
    """
    z_hat = encode(ali, variables, x, y, key=key)
    return decode(ali, variables, z_hat, y, key=None if key is None else jax.random.fold_in(key, 1))


def sample(ali: ALI, variables: Variables, key: Array, n: int, y: Array | None = None) -> Array:
    """Draw samples: decodings of z ~ N(0, I).

    Args:
      ali: the networks.
      variables: their parameters and batch statistics, such as a TrainState's `variables` or `ema`.
      key: a PRNG key.
      n: how many.
      y: [n, A] conditions, for networks that take them.

    Returns:
      x_tilde [n, *X]; images are in [0, 1].
    """
    z = jax.random.normal(key, (n, latent_dim(ali)))
    return decode(ali, variables, z, y, key=jax.random.fold_in(key, 1))


def interpolate(
    ali: ALI,
    variables: Variables,
    x0: Array,
    x1: Array,
    steps: int,
    y: Array | None = None,
    *,
    key: Array | None = None,
) -> Array:
    """Decode codes on the straight lines between those of pairs of data.

    Args:
      ali: the networks.
      variables: their parameters and batch statistics, such as a TrainState's `variables` or `ema`.
      x0: [B, *X] data at one end of each line; images are floats in [0, 1].
      x1: [B, *X] data at the other end.
      steps: codes on each line, both ends included.
      y: [B, A] conditions, one for all decodings of a line, for networks that take them.
      key: a PRNG key, to sample the ends from q(z | x) as in the paper; None: they are at epsilon = 0.

    Returns:
      Decodings [B, steps, *X].
    """
    keys = (None, None) if key is None else jax.random.split(key)
    z0 = encode(ali, variables, x0, y, key=keys[0])
    z1 = encode(ali, variables, x1, y, key=keys[1])
    alpha = jnp.linspace(0, 1, steps)[None, :, None]
    z = (1 - alpha) * z0[:, None] + alpha * z1[:, None]
    ys = None if y is None else jnp.repeat(y, steps, axis=0)
    x = decode(ali, variables, z.reshape(-1, z.shape[-1]), ys)
    return x.reshape(x0.shape[0], steps, *x.shape[1:])


def discriminate(ali: ALI, variables: Variables, x: Array, z: Array, y: Array | None = None) -> Array:
    """Judge pairs (x, z).

    Args:
      ali: the networks.
      variables: their parameters and batch statistics, such as a TrainState's `variables` or `ema`.
      x: [B, *X] data; images are floats in [0, 1].
      z: [B, Z] codes.
      y: [B, A] conditions, for networks that take them.

    Returns:
      Logits [B]; of a D of K classes [B, K]; of a D that packs m pairs [B / m]. Large means that a pair looks
      like one of the encoder's.
    """
    check_x(ali, x)
    flax_variables = collections(variables.params.discriminator, variables.batch_stats.discriminator)
    return ali.discriminator.apply(flax_variables, x, z, y, train=False)


def encoder_logit(ali: ALI, variables: Variables, x: Array, z: Array, y: Array | None = None) -> Array:
    """Return the logits [B] of "(x, z) comes from the encoder", by `of_encoder`."""
    return of_encoder(discriminate(ali, variables, x, z, y))


def of_encoder(logits: Array) -> Array:
    """Reduce logits [B] or [B, K] to those of "from the encoder" [B]: themselves, or their logsumexp."""
    return logits if logits.ndim == 1 else jax.nn.logsumexp(logits, axis=-1)


def posterior(ali: ALI, variables: Variables, x: Array, y: Array | None = None) -> tuple[Array, Array]:
    """Return the moments of a Gaussian q(z | x).

    Args:
      ali: the networks.
      variables: their parameters and batch statistics, such as a TrainState's `variables` or `ema`.
      x: [B, *X] data; images are floats in [0, 1].
      y: [B, A] conditions, for networks that take them.

    Returns:
      mu and log sigma, [B, Z] each.

    Raises:
      ValueError: the encoder is not Gaussian, or has no method `moments`.
    """
    if not has_gaussian_encoder(ali):
        raise ValueError(
            "posterior: this encoder is not a Gaussian with `moments(x, y, *, train)`; sample it instead."
        )
    check_x(ali, x)
    flax_variables = collections(variables.params.encoder, variables.batch_stats.encoder)
    return ali.encoder.apply(flax_variables, x, y, train=False, method="moments")


def features(ali: ALI, variables: Variables, x: Array, y: Array | None = None, *, layers: int = 3) -> Array:
    """Return features for a classifier: the code at epsilon = 0 and the encoder's last hidden layers.

    Hidden layers are taken after batch norm and before the nonlinearity, as in the authors' L2-SVM protocol
    (paper, section 4.4). Three of them give 5376 features on the SVHN networks.

    Args:
      ali: the networks.
      variables: their parameters and batch statistics, such as a TrainState's `variables` or `ema`.
      x: [B, *X] data; images are floats in [0, 1].
      y: [B, A] conditions, for networks that take them.
      layers: the number of hidden layers.

    Returns:
      Features [B, F], flattened.
    """
    check_x(ali, x)
    flax_variables = collections(variables.params.encoder, variables.batch_stats.encoder)
    epsilon = jnp.zeros((x.shape[0], latent_dim(ali)))
    z, sown = ali.encoder.apply(flax_variables, x, epsilon, y, train=False, mutable=["intermediates"])
    hidden = jax.tree.leaves(sown.get("intermediates", {}))[-layers:]
    return jnp.concatenate([z, *(h.reshape(x.shape[0], -1) for h in hidden)], axis=-1)


def collections(params: PyTree, batch_stats: PyTree) -> dict[str, PyTree]:
    """Return the Flax variables of one network."""
    return {"params": params, "batch_stats": batch_stats}


def streams(key: Array) -> dict[str, Array]:
    """Return a module's random streams: `params`, `dropout`, and `noise` for stochastic decoders."""
    key_params, key_dropout, key_noise = jax.random.split(key, 3)
    return {"params": key_params, "dropout": key_dropout, "noise": key_noise}


def _interleave(a: Array, b: Array, m: int) -> Array:
    """Join a and b [B, ...] to [2B, ...], m rows of a and m rows of b alternating."""
    if len(a) % m:
        raise ValueError(f"The discriminator packs {m} pairs, which do not divide a batch of {len(a)}.")
    kinds = [k.reshape(-1, m, *a.shape[1:]) for k in (a, b.astype(a.dtype))]
    return jnp.stack(kinds, axis=1).reshape(-1, *a.shape[1:])
