"""The deterministic decoder."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ali_jax.networks import convolutions, layers
from ali_jax.networks.layers import Bias, Dense, Embedding, Layer, Stack, check_choice, join
from ali_jax.types import Array, PyTree

OUTPUTS = ("sigmoid", "linear")


class Decoder(nn.Module):
    """The deterministic decoder x_tilde = G_x(z), with an output bias per pixel and channel.

    Attributes:
      x_shape: (H, W, C) or (D,).
      layers: transposed convolutions (kernel, stride, maps[, padding]) or, of a perceptron, widths.
      output: sigmoid, for data in [0, 1], or linear.
      activation, slope, batch_norm, init_std, embedding, embedding_learned, lowering, axis_name, dtype: as in
        `Encoder`.
    """

    x_shape: tuple[int, ...]
    layers: tuple[Layer, ...]
    activation: str = "leaky_relu"
    slope: float = 0.01
    batch_norm: bool | tuple[bool, ...] = True
    init_std: float = 0.01
    output: str = "sigmoid"
    embedding: int = 0
    embedding_learned: bool = False
    lowering: convolutions.Lowering = "native"
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: Array, y: Array | None = None, *, train: bool = False) -> Array:
        """Map codes [B, Z] and conditions [B, A] to data [B, *X], in (0, 1) where the output is a sigmoid."""
        check_choice("output", self.output, OUTPUTS)
        z = join(z, Embedding(self.embedding, self.embedding_learned, self.dtype, name="embed")(y))
        shared = {"init_std": self.init_std, "dtype": self.dtype}
        h = Stack(
            self.layers,
            transpose=True,
            activation=layers.activation(self.activation, slope=self.slope),
            batch_norm=self.batch_norm,
            lowering=self.lowering,
            axis_name=self.axis_name,
            **shared,
        )(z, train=train)
        if h.ndim == 4:
            maps = self.x_shape[-1]
            h = layers.Convolution(1, 1, maps, lowering=self.lowering, name="output", **shared)(h)
        else:
            h = Dense(math.prod(self.x_shape), name="output", **shared)(h).reshape(-1, *self.x_shape)
        logits = Bias(self.x_shape, name="untied")(h.astype(jnp.promote_types(self.dtype, jnp.float32)))
        return jax.nn.sigmoid(logits) if self.output == "sigmoid" else logits

    def fit_bias(self, params: PyTree, x: Array) -> PyTree:
        """Set the output bias to the log-odds of the mean image of x [N, *X], clipped to [1e-7, 1 - 1e-7].

        The authors use 500 training images. A linear output keeps its zeros.
        """
        if self.output != "sigmoid":
            return params
        return {**params, "untied": {"bias": log_odds_of_mean(x, axis=0)}}


def log_odds_of_mean(x: Array, axis: int | tuple[int, ...]) -> Array:
    """Return log(m / (1 - m)) of the means m of x over some axes, clipped to [1e-7, 1 - 1e-7]."""
    mean = jnp.clip(jnp.mean(x, axis=axis), 1e-7, 1 - 1e-7)
    return jnp.log(mean) - jnp.log1p(-mean)
