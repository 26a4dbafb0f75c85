"""The nouns of ali_jax: immutable tuples that all modules share.

All of them are NamedTuples and therefore JAX pytrees. Sizes in comments: B batch, H W C image, D vector,
Z latent, A attributes, K classes.
"""

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import jax
import numpy as np

Array: TypeAlias = jax.Array
PyTree: TypeAlias = Any
T = TypeVar("T")


class Networks(NamedTuple, Generic[T]):
    """One of something per network: modules, parameters, batch statistics, gradients, optimiser labels."""

    encoder: T
    decoder: T
    discriminator: T


# The model: three Flax modules. The encoder has an attribute `latent_dim`, the size Z of its code.
# (Any, since a type checker knows neither a module's attributes nor what its `apply` returns.)
ALI: TypeAlias = Networks[Any]


class Variables(NamedTuple):
    """Parameters and running batch statistics of the three networks."""

    params: Networks[PyTree]
    batch_stats: Networks[PyTree]


class Batch(NamedTuple):
    """A minibatch of the empirical distribution q(x)."""

    x: Array  # [B, H, W, C] in [0, 1], or [B, D]
    y: Array | None = None  # [B, A] what the networks are conditioned on
    label: Array | None = None  # [B] int32, -1 = unlabelled; seen by losses only


class Noise(NamedTuple):
    """All randomness of one step."""

    z: Array  # [B, Z] ~ N(0, I), the prior draw
    epsilon: Array  # [B, Z] ~ N(0, I), the encoder's noise
    key_generator: Array  # further random streams of encoder and decoder
    key_discriminator: Array  # dropout masks of D, the same for both players
    key_penalties: Array  # for what penalties draw


class Pairs(NamedTuple):
    """Samples of the two joints: (x, z_hat) ~ q(x, z) and (x_tilde, z) ~ p(x, z)."""

    x: Array  # [B, *X]
    z_hat: Array  # [B, Z]
    x_tilde: Array  # [B, *X]
    z: Array  # [B, Z]
    y: Array | None = None  # [B, A]


class Logits(NamedTuple):
    """The discriminator's output before the sigmoid; large means "from the encoder"."""

    q: Array  # [B] or [B, K], on (x, z_hat)
    p: Array  # [B] or [B, K], on (x_tilde, z)


class Losses(NamedTuple):
    """What each player minimises; scalars."""

    generator: Array
    discriminator: Array


class TrainState(NamedTuple):
    """All that training carries from step to step. Arrays only: what is scanned is what is saved."""

    step: Array  # [] int32, updates done
    key: Array  # [2] uint32, the run's key; the key of step i is fold_in(key, i)
    variables: Variables
    ema: Variables | None  # exponential moving average of the variables, or None
    opt_state: PyTree


class Report(NamedTuple):
    """The result of an evaluator."""

    scalars: dict[str, float]
    images: dict[str, np.ndarray]  # uint8 [H, W, 3]


Metrics: TypeAlias = dict[str, Array]
Weight: TypeAlias = float | Array | Callable[[Array], Array]  # a number, or a function of the step
Loss: TypeAlias = Callable[[Logits, Batch], tuple[Losses, Metrics]]
# (ali, variables, pairs, key, step); with an argument `input_gradients`, also an InputGradients or None.
Penalty: TypeAlias = Callable[..., tuple[Losses, Metrics]]
InputGradients: TypeAlias = Callable[[PyTree], Pairs]  # of D's parameters: each logit's gradient in its pair
Augment: TypeAlias = Callable[[Pairs, Array, Array], Pairs]  # (pairs, key, step), row by row: what D sees
