"""The stochastic encoder."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ali_jax.networks import convolutions, layers
from ali_jax.networks.layers import Affine, Embedding, Layer, Stack, centered, check_choice, join
from ali_jax.types import Array

POSTERIORS = ("gaussian", "noise", "deterministic")


class Encoder(nn.Module):
    """The stochastic encoder q(z | x).

    `gaussian`: z = mu(x) + sigma(x) epsilon, where the last linear layer gives mu and log sigma (paper,
    section 2.1). `noise`: z = f(x, epsilon), the change of variables of the paper's mixture experiment.
    `deterministic`: z = mu(x), which makes ALI a BiGAN.

    Attributes:
      latent_dim: Z.
      layers: convolutions (kernel, stride, maps[, padding]), then widths of dense layers; a perceptron has
        widths alone.
      activation, slope: relu, or leaky_relu with this slope.
      batch_norm: whether layers have it: one answer for all, or one per layer.
      init_std: standard deviation of the initial weights; 0 = He initialisation.
      posterior: gaussian, noise or deterministic.
      log_sigma_clip: (low, high); () = no limits.
      log_sigma_bias: initial bias of log sigma.
      log_sigma_init: factor on the initial weights of log sigma.
      center: whether the network sees 2x - 1; epsilon stays as it is.
      frequencies: (count, std) of `layers.fourier_features` of a perceptron's input; () = none.
      embedding, embedding_learned: width of the linear embedding of y (0 = y itself), and whether it is
        learned.
      lowering, axis_name, dtype: form of convolutions, named axis of batch norm, type of computations; see
        `networks.build`.
    """

    latent_dim: int
    layers: tuple[Layer, ...]
    activation: str = "leaky_relu"
    slope: float = 0.01
    batch_norm: bool | tuple[bool, ...] = True
    init_std: float = 0.01
    posterior: str = "gaussian"
    log_sigma_clip: tuple[float, ...] = ()
    log_sigma_bias: float = 0.0
    log_sigma_init: float = 1.0
    center: bool = False
    frequencies: tuple[float, ...] = ()
    embedding: int = 0
    embedding_learned: bool = False
    lowering: convolutions.Lowering = "native"
    axis_name: str | None = None
    dtype: Any = jnp.float32

    def setup(self) -> None:
        check_choice("posterior", self.posterior, POSTERIORS)
        self.embed = Embedding(self.embedding, self.embedding_learned, self.dtype)
        self.stack = Stack(
            self.layers,
            activation=layers.activation(self.activation, slope=self.slope),
            batch_norm=self.batch_norm,
            init_std=self.init_std,
            lowering=self.lowering,
            axis_name=self.axis_name,
            dtype=self.dtype,
        )
        self.mu = Affine(self.latent_dim, self.init_std, dtype=self.dtype)
        if self.posterior == "gaussian":
            self.log_sigma = Affine(
                self.latent_dim, self.init_std, self.log_sigma_init, self.log_sigma_bias, self.dtype
            )

    def __call__(self, x: Array, epsilon: Array, y: Array | None = None, *, train: bool = False) -> Array:
        """Map data [B, *X], noise [B, Z] and conditions [B, A] to codes [B, Z]."""
        if self.posterior == "gaussian":
            mu, log_sigma = self.moments(x, y, train=train)
            return mu + jnp.exp(log_sigma) * epsilon
        if self.posterior == "deterministic":
            return self.mu(self._hidden(x, y, train))
        return self.mu(self._hidden(x, y, train, epsilon))

    def moments(self, x: Array, y: Array | None = None, *, train: bool = False) -> tuple[Array, Array]:
        """Return mu and log sigma of the Gaussian posterior, [B, Z] each."""
        h = self._hidden(x, y, train)
        log_sigma = self.log_sigma(h)
        if self.log_sigma_clip:
            log_sigma = jnp.clip(log_sigma, *self.log_sigma_clip)
        return self.mu(h), log_sigma

    def _hidden(self, x: Array, y: Array | None, train: bool, epsilon: Array | None = None) -> Array:
        x = centered(x) if self.center else x
        x = x if epsilon is None else join(x, epsilon)
        if self.frequencies:
            count, std = self.frequencies
            x = layers.fourier_features(x.reshape(x.shape[0], -1), int(count), std)
        return join(self.stack(x, train=train), self.embed(y))
