"""The joint discriminator."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from ali_jax.networks import convolutions, layers
from ali_jax.networks.layers import (
    Affine,
    Dropout,
    Embedding,
    GaussianNoise,
    Layer,
    Stack,
    centered,
    join,
    per_layer,
)
from ali_jax.types import Array


class Discriminator(nn.Module):
    """The joint discriminator: logit of "(x, z) comes from the encoder".

    x goes through the stack D(x) and z through the stack D(z). Their outputs and y, joined, go through
    D(x, z) to the logit. Without x_layers and z_layers D is one perceptron of [x, z].

    Attributes:
      x_layers, z_layers, joint_layers: layers of D(x), D(z) and D(x, z), as `Encoder.layers`. The logit's
        linear layer is added.
      activation, slope, pieces: relu, leaky_relu with this slope, or maxout over this many pieces.
      x_batch_norm: whether layers of D(x) have batch norm: one answer for all, or one per layer.
      x_dropout, z_dropout, joint_dropout: dropout rates on the inputs of layers, one for all or one per
        layer. joint_dropout has one more, for the layer of the logit.
      x_dropout_after: dropout rates between a layer of D(x) and its activation.
      x_noise, joint_noise: standard deviations of Gaussian noise on the inputs of layers in training, one for
        all or one per layer; joint_noise has one more, as joint_dropout. That on x is in units of what the
        first layer sees: of 2x - 1, if `center`.
      z_bias: whether D(z) has biases.
      x_pool: whether D(x)'s maps are averaged over space before they are joined.
      blind: whether D does not see z. ALI is then a GAN, whose encoder learns nothing.
      num_classes: K. Above 1 there is a logit per class; the logit of "from the decoder" is fixed at 0
        (paper, section 4.4).
      spectral_norm: whether the kernel of every linear map is divided by its largest singular value.
      packing: m pairs are judged at once, their x and their z side by side in the last dimension. There is
        one logit, or one row of logits, for every m consecutive pairs (PacGAN).
      z_everywhere: whether a linear map of z is added before every nonlinearity of D(x) and D(x, z) (BiGAN).
      unary_scores: whether D(x) and D(z) have a linear score each; see `unary`. Excludes `z_everywhere`.
      pair_layers: layers of a second, separate discriminator of pairs of data; see `pair`.
      center, init_std, embedding, embedding_learned, lowering, axis_name, dtype: as in `Encoder`.
    """

    x_layers: tuple[Layer, ...] = ()
    z_layers: tuple[int, ...] = ()
    joint_layers: tuple[int, ...] = ()
    activation: str = "leaky_relu"
    slope: float = 0.01
    pieces: int = 2
    x_batch_norm: bool | tuple[bool, ...] = True
    x_dropout: float | tuple[float, ...] = 0.0
    x_dropout_after: float | tuple[float, ...] = 0.0
    z_dropout: float | tuple[float, ...] = 0.0
    z_bias: bool = False
    joint_dropout: float | tuple[float, ...] = 0.0
    x_noise: float | tuple[float, ...] = 0.0
    joint_noise: float | tuple[float, ...] = 0.0
    init_std: float = 0.01
    center: bool = False
    x_pool: bool = False
    blind: bool = False
    num_classes: int = 1
    spectral_norm: bool = False
    packing: int = 1
    z_everywhere: bool = False
    unary_scores: bool = False
    pair_layers: tuple[Layer, ...] = ()
    embedding: int = 0
    embedding_learned: bool = False
    lowering: convolutions.Lowering = "native"
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @property
    def coupled(self) -> bool:
        """Whether a logit depends on other pairs than those that it judges, which it does by batch norm."""
        return any(per_layer(self.x_batch_norm, len(self.x_layers), "x_batch_norm"))

    @property
    def random(self) -> bool:
        """Whether a logit depends on a key, which it does by dropout and by noise."""
        rates = (self.x_dropout, self.x_dropout_after, self.z_dropout, self.joint_dropout)
        return any(map(np.any, (*rates, self.x_noise, self.joint_noise)))

    def setup(self) -> None:
        if self.blind and (self.z_everywhere or self.unary_scores):
            raise ValueError(
                "A blind discriminator sees no z: unset z_everywhere and unary_scores, or blind."
            )
        if self.z_everywhere and self.unary_scores:
            raise ValueError("A score of x alone must not see z: unset z_everywhere, or unary_scores.")
        shared = {"init_std": self.init_std, "dtype": self.dtype, "spectral_norm": self.spectral_norm}
        stack = partial(
            Stack,
            activation=layers.activation(self.activation, slope=self.slope, pieces=self.pieces),
            lowering=self.lowering,
            axis_name=self.axis_name,
            **shared,
        )
        count = len(self.joint_layers) + 1
        rates = per_layer(self.joint_dropout, count, "joint_dropout")
        noise = per_layer(self.joint_noise, count, "joint_noise")
        self.x = stack(
            self.x_layers,
            batch_norm=self.x_batch_norm,
            dropout=self.x_dropout,
            dropout_after=self.x_dropout_after,
            noise=self.x_noise,
        )
        self.z = stack(self.z_layers, dropout=self.z_dropout, bias=self.z_bias)
        self.joint = stack(self.joint_layers, dropout=rates[:-1], noise=noise[:-1])
        self.last_noise, self.last_dropout = GaussianNoise(noise[-1]), Dropout(rates[-1])
        self.logit = Affine(self.num_classes, **shared)
        self.embed = Embedding(self.embedding, self.embedding_learned, self.dtype)
        if self.unary_scores:
            self.x_score, self.z_score = Affine(1, **shared), Affine(1, **shared)
        if self.pair_layers:
            self.pairs, self.pair_logit = stack(self.pair_layers), Affine(1, **shared)

    def __call__(self, x: Array, z: Array, y: Array | None = None, *, train: bool = False) -> Array:
        """Map data [B, *X], codes [B, Z] and conditions [B, A] to logits [B] or, of K > 1 classes, [B, K]."""
        h_x, h_z = self._towers(x, z, train)
        h = join(join(h_x, h_z), self._conditions(y))
        beside = _packed(z, self.packing) if self.z_everywhere else None
        h = self.last_noise(self.joint(h, train=train, beside=beside), train=train)
        h = self.last_dropout(h, train=train)
        logits = self.logit(h, train=train)
        if self.is_initializing() or self.spectral_norm:  # their parameters, and their power iteration
            self._other_scores(h_x, h_z, x, y, train)
        return logits if self.num_classes > 1 else logits[:, 0]

    def unary(self, x: Array, z: Array, y: Array | None = None, *, train: bool = False) -> Array:
        """Return the scores of x and of z alone, [B, 2], for a D with `unary_scores` (BigBiGAN)."""
        del y
        return self._unary(*self._towers(x, z, train), train)

    def _unary(self, h_x: Array, h_z: Array | None, train: bool) -> Array:
        assert h_z is not None  # setup refuses a blind one
        scores = [self.x_score(join(h_x, None), train=train), self.z_score(h_z, train=train)]
        return jnp.concatenate(scores, axis=-1)

    def pair(self, x: Array, x_prime: Array, y: Array | None = None, *, train: bool = False) -> Array:
        """Return the logits [B] of "x_prime is x itself", for a D with `pair_layers` (ALICE)."""
        h = jnp.concatenate([_packed(x, self.packing), _packed(x_prime, self.packing)], axis=-1)
        h = self.pairs(centered(h) if self.center else h, train=train)
        return self.pair_logit(join(h, self._conditions(y)), train=train)[:, 0]

    def _towers(self, x: Array, z: Array, train: bool) -> tuple[Array, Array | None]:
        """Return D(x) and D(z)."""
        x, z = _packed(x, self.packing), _packed(z, self.packing)
        h_x = self.x(centered(x) if self.center else x, train=train, beside=z if self.z_everywhere else None)
        if self.x_pool:
            if h_x.ndim != 4:
                raise ValueError(
                    "config.discriminator.x_pool averages maps over space, but D(x) makes no maps here: "
                    "unset it, or let config.discriminator.x_layers end in a convolution."
                )
            h_x = jnp.mean(h_x, axis=(1, 2))
        return h_x, None if self.blind else self.z(z, train=train)

    def _conditions(self, y: Array | None) -> Array | None:
        return self.embed(None if y is None else _packed(y, self.packing))

    def _other_scores(self, h_x: Array, h_z: Array | None, x: Array, y: Array | None, train: bool) -> None:
        if self.unary_scores:
            self._unary(h_x, h_z, train)
        if self.pair_layers:
            self.pair(x, x, y, train=train)


def _packed(rows: Array, m: int) -> Array:
    """Put m consecutive rows side by side in the last dimension: [B, ..., C] -> [B / m, ..., m C]."""
    if len(rows) % m:
        raise ValueError(f"packing is {m}, which does not divide {len(rows)} rows: change one of them.")
    if m == 1:
        return rows
    groups = jnp.moveaxis(rows.reshape(-1, m, *rows.shape[1:]), 1, -2)
    return groups.reshape(*groups.shape[:-2], -1)
