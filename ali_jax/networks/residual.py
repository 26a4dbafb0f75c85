"""Residual networks without normalisation: encoder, decoder and joint discriminator of images.

They are those of R3GAN (Huang et al., 2024), brought to pairs of data and code: `networks.stages` has their
blocks. No example is seen beside another, so the gradients of both players take one pass through D.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ali_jax.networks import convolutions, layers
from ali_jax.networks.decoder import OUTPUTS, log_odds_of_mean
from ali_jax.networks.layers import Affine, Bias, Dense, Embedding, Stack, check_choice, join
from ali_jax.networks.stages import LINEAR, Downward, Upward
from ali_jax.types import Array, PyTree

HEADS = ("projection", "concatenation")


class ResidualEncoder(nn.Module):
    """The Gaussian encoder q(z | x) as a residual network: z = mu(x) + sigma(x) epsilon.

    Images become maps by one convolution, of 3x3 or, with `patch` 2, of 4x4 and stride 2. Each stage is
    `blocks` residual blocks; between stages maps are blurred, halved, and changed in number by a 1x1
    convolution. The grid at the end is flattened and goes through dense layers.

    Attributes:
      latent_dim: Z.
      maps: of each stage, from the image to the grid. In a config `width` makes the table follow the size.
      layers: widths of the dense layers after the grid.
      blocks: of each stage.
      expansion: maps within a block, as a multiple of the stage's.
      patch: 1 for a first stage at the image's own size, 2 for one at half of it.
      blur: whether maps are blurred before they are halved.
      activation, slope, log_sigma_clip, log_sigma_bias, log_sigma_init, center, embedding, embedding_learned,
        lowering, dtype: as in `Encoder`.
    """

    latent_dim: int
    maps: tuple[int, ...]
    layers: tuple[int, ...] = (256,)
    blocks: int = 1
    expansion: int = 1
    patch: int = 1
    blur: bool = True
    activation: str = "leaky_relu"
    slope: float = 0.2
    log_sigma_clip: tuple[float, ...] = ()
    log_sigma_bias: float = 0.0
    log_sigma_init: float = 1.0
    center: bool = False
    embedding: int = 0
    embedding_learned: bool = False
    lowering: convolutions.Lowering = "native"
    dtype: Any = jnp.float32

    def setup(self) -> None:
        act = layers.activation(self.activation, slope=self.slope)
        self.act = act
        self.down = Downward(*_shared(self, act))
        self.stack = Stack(self.layers, activation=act, init_std=0.0, dtype=self.dtype)
        self.embed = Embedding(self.embedding, self.embedding_learned, self.dtype)
        self.mu = Affine(self.latent_dim, 0.0, LINEAR, dtype=self.dtype)
        self.log_sigma = Affine(
            self.latent_dim, 0.0, LINEAR * self.log_sigma_init, self.log_sigma_bias, self.dtype
        )

    def __call__(self, x: Array, epsilon: Array, y: Array | None = None, *, train: bool = False) -> Array:
        """Map data [B, H, W, C], noise [B, Z] and conditions [B, A] to codes [B, Z]."""
        mu, log_sigma = self.moments(x, y, train=train)
        return mu + jnp.exp(log_sigma) * epsilon

    def moments(self, x: Array, y: Array | None = None, *, train: bool = False) -> tuple[Array, Array]:
        """Return mu and log sigma of the Gaussian posterior, [B, Z] each."""
        grid = self.act(self.down(layers.centered(x) if self.center else x))
        h = join(self.stack(join(grid, None), train=train), self.embed(y))
        log_sigma = self.log_sigma(h)
        if self.log_sigma_clip:
            log_sigma = jnp.clip(log_sigma, *self.log_sigma_clip)
        return self.mu(h), log_sigma


class ResidualDecoder(nn.Module):
    """The deterministic decoder as a residual network: `ResidualEncoder` in reverse.

    Dense layers and a linear map make the grid; maps are doubled by interpolation. With `patch` 2 they are
    doubled once more before the last convolution, so that no pixel of the image is one of a block. The output
    bias is one number per channel. One per pixel, which `Decoder` has, learns a lattice from the strides of
    D, and all samples show it.

    Attributes:
      x_shape: (H, W, C).
      layers: widths of the dense layers before the grid.
      output: sigmoid, for data in [0, 1], or linear.
      maps, blocks, expansion, patch, blur, activation, slope, embedding, embedding_learned, lowering,
        dtype: as in `ResidualEncoder`; `blur = False` repeats each pixel.
    """

    x_shape: tuple[int, ...]
    maps: tuple[int, ...]
    layers: tuple[int, ...] = ()
    blocks: int = 1
    expansion: int = 1
    patch: int = 1
    blur: bool = True
    activation: str = "leaky_relu"
    slope: float = 0.2
    output: str = "sigmoid"
    embedding: int = 0
    embedding_learned: bool = False
    lowering: convolutions.Lowering = "native"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: Array, y: Array | None = None, *, train: bool = False) -> Array:
        """Map codes [B, Z] and conditions [B, A] to data [B, H, W, C], in (0, 1) with a sigmoid."""
        check_choice("output", self.output, OUTPUTS)
        act = layers.activation(self.activation, slope=self.slope)
        h = join(z, Embedding(self.embedding, self.embedding_learned, self.dtype, name="embed")(y))
        h = Stack(self.layers, activation=act, init_std=0.0, dtype=self.dtype)(h, train=train)
        h = Upward(*_shared(self, act), x_shape=self.x_shape)(h)
        h = h.astype(jnp.promote_types(self.dtype, jnp.float32))
        logits = Bias(self.x_shape[-1:], name="output_bias")(h)
        return jax.nn.sigmoid(logits) if self.output == "sigmoid" else logits

    def fit_bias(self, params: PyTree, x: Array) -> PyTree:
        """Set the output bias to the log-odds of the mean pixel of x [N, H, W, C]; see `Decoder.fit_bias`."""
        if self.output != "sigmoid":
            return params
        return {**params, "output_bias": {"bias": log_odds_of_mean(x, axis=(0, 1, 2))}}


class ResidualDiscriminator(nn.Module):
    """The joint discriminator with D(x) as a residual network: logit of "(x, z) comes from the encoder".

    h_x = D(x) is the stages of `ResidualEncoder` and dense layers, h_z = D(z) a perceptron. They are joined
    by one of two heads, of which the second is that of `Discriminator`:

        projection     a' h_x + b' h_z + c + h_x' V h_z / sqrt(F)    (after Miyato and Koyama, 2018)
        concatenation  a perceptron of [h_x, h_z]

    for h_x of F dimensions. Nothing couples pairs, and nothing is random.

    Attributes:
      x_layers: widths of the dense layers after the grid of maps.
      z_layers: widths of D(z).
      joint_layers: widths of the perceptron of `concatenation`.
      head: projection or concatenation.
      num_classes: K, as in `Discriminator`.
      maps, blocks, expansion, patch, blur, activation, slope, center, embedding, embedding_learned, lowering,
        dtype: as in `ResidualEncoder`; conditions go into D(z).
    """

    maps: tuple[int, ...]
    x_layers: tuple[int, ...] = (256,)
    z_layers: tuple[int, ...] = (256, 256)
    joint_layers: tuple[int, ...] = ()
    head: str = "projection"
    blocks: int = 1
    expansion: int = 1
    patch: int = 1
    blur: bool = True
    activation: str = "leaky_relu"
    slope: float = 0.2
    center: bool = False
    num_classes: int = 1
    embedding: int = 0
    embedding_learned: bool = False
    lowering: convolutions.Lowering = "native"
    dtype: Any = jnp.float32

    coupled = False  # whether a logit depends on other pairs
    random = False  # whether it depends on a key

    @nn.compact
    def __call__(self, x: Array, z: Array, y: Array | None = None, *, train: bool = False) -> Array:
        """Map data [B, H, W, C], codes [B, Z] and conditions [B, A] to logits [B] or, for K > 1, [B, K]."""
        check_choice("head", self.head, HEADS)
        act = layers.activation(self.activation, slope=self.slope)
        stack = partial(Stack, activation=act, init_std=0.0, dtype=self.dtype)
        grid = act(Downward(*_shared(self, act), name="down")(layers.centered(x) if self.center else x))
        h_x = stack(self.x_layers, name="x")(join(grid, None), train=train)
        z = join(z, Embedding(self.embedding, self.embedding_learned, self.dtype, name="embed")(y))
        h_z = stack(self.z_layers, name="z")(z, train=train)
        h = join(h_x, h_z)
        if self.head == "concatenation":
            h = stack(self.joint_layers, name="joint")(h, train=train)
        logits = Affine(self.num_classes, 0.0, LINEAR, dtype=self.dtype, name="logit")(h)
        if self.head == "projection":
            projected = Dense(h_x.shape[-1], 0.0, self.dtype, init_factor=LINEAR, name="projection")(h_z)
            product = jnp.sum((h_x * projected).astype(logits.dtype), axis=-1, keepdims=True)
            logits = logits + product / math.sqrt(h_x.shape[-1])
        return logits if self.num_classes > 1 else logits[:, 0]


def _shared(
    network: ResidualEncoder | ResidualDecoder | ResidualDiscriminator, act: Callable[[Array], Array]
) -> tuple[Any, ...]:
    """Return the fields of `Stages`, in their order."""
    if network.patch not in (1, 2):
        raise ValueError(f"patch is {network.patch}; it must be 1 or 2.")
    return (
        network.maps,
        network.blocks,
        network.expansion,
        network.patch,
        network.blur,
        act,
        network.lowering,
        network.dtype,
    )
