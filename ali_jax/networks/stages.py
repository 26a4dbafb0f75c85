"""The stages of residual networks: from images to a grid of maps, and back.

The ingredients are those of R3GAN (Huang et al., 2024): blocks of 1x1, 3x3 and 1x1 convolutions, Fix-up
initialisation (Zhang et al., 2019), smooth resampling. R3GAN's convolutions are grouped; these are plain.
Its filter is [1, 2, 1]; this one is [1, 3, 3, 1]. The former keeps every second pixel as it is and makes the
others means of two, which vary less: a lattice. Maps are halved, sides rounded up, so that images of any size
have a grid of maps at the end.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from ali_jax.networks import convolutions
from ali_jax.networks.layers import Bias, Convolution, Dense, over_pixels, scaled_initializer
from ali_jax.types import Array

LINEAR = math.sqrt(0.5)  # factor on He initialisation where no activation follows
BLUR = np.array([1, 3, 3, 1]) / 8


class Halving(nn.Module):
    """Blur maps by [1, 3, 3, 1] / 8, halve them and map them linearly, as one convolution of 4x4.

    [B, H, W, C] becomes [B, ceil(H / 2), ceil(W / 2), maps]; beyond the border there are zeros.
    """

    maps: int
    blur: bool
    lowering: convolutions.Lowering
    dtype: Any

    @nn.compact
    def __call__(self, h: Array) -> Array:
        init = scaled_initializer(0.0, LINEAR)
        kernel = self.param("kernel", init, (1, 1, h.shape[-1], self.maps)).astype(self.dtype)
        if self.blur:
            kernel = jnp.asarray(np.outer(BLUR, BLUR)[:, :, None, None], self.dtype) * kernel
            h = jnp.pad(h, [(0, 0), *((0, side % 2) for side in h.shape[1:3]), (0, 0)])
        padding = 1 if self.blur else 0
        return convolutions.conv(
            h.astype(self.dtype), kernel, stride=2, padding=padding, lowering=self.lowering
        )


class Doubling(nn.Module):
    """Put zeros between maps, blur them by [1, 3, 3, 1] / 4, convolve them, and cut them at a size.

    It is one transposed convolution of stride 2, whose kernel is the convolution's, of 1x1 or 3x3, blurred.
    [B, H, W, C] becomes [B, *size, maps]. Without blur, each pixel is repeated.
    """

    maps: int
    size: tuple[int, int]
    kernel: int
    blur: bool
    lowering: convolutions.Lowering
    dtype: Any

    @nn.compact
    def __call__(self, h: Array) -> Array:
        init = scaled_initializer(0.0, LINEAR)
        kernel = self.param("kernel", init, (self.kernel, self.kernel, h.shape[-1], self.maps))
        spread = jnp.asarray(_composed(2 * BLUR if self.blur else np.ones(2), self.kernel), self.dtype)
        kernel = jnp.einsum("ai,bj,ijcf->abcf", spread, spread, kernel.astype(self.dtype))
        h = convolutions.conv_transpose(h.astype(self.dtype), kernel, stride=2, lowering=self.lowering)
        rows, columns = self.size
        first = (self.kernel + 1) // 2 if self.blur else self.kernel // 2
        return h[:, first : first + rows, first : first + columns]


def _composed(blur: np.ndarray, taps: int) -> np.ndarray:
    """Return the matrix [taps', taps] that makes one transposed kernel of a blur and a convolution."""
    columns = [np.pad(blur, (taps - 1 - j, j)) for j in range(taps)]
    return np.stack(columns, axis=1)


def sides_of(image: Sequence[int], stages: int, patch: int) -> list[tuple[int, int]]:
    """Return the height and width of each stage's maps, from the image to the grid."""
    height, width = (-(-side // patch) for side in image[:2])
    return [(-(-height // 2**i), -(-width // 2**i)) for i in range(stages)]


class Stages(nn.Module):
    """What the stages of a residual network share."""

    maps: tuple[int, ...]
    blocks: int
    expansion: int
    patch: int
    blur: bool
    activation: Callable[[Array], Array]
    lowering: convolutions.Lowering
    dtype: Any

    def conv(
        self,
        kernel: int,
        maps: int,
        name: str,
        *,
        stride: int = 1,
        odd: tuple[int, int] = (0, 0),
        factor: float = LINEAR,
    ) -> nn.Module:
        """Return a convolution that keeps the size of maps, or halves it with a kernel of 4 and stride 2."""
        return Convolution(
            kernel,
            stride,
            maps,
            (kernel - 1) // 2,
            odd,
            init_std=0.0,
            init_factor=factor,
            lowering=self.lowering,
            dtype=self.dtype,
            name=name,
        )

    def stage(self, h: Array, maps: int, name: str) -> Array:
        """Apply the blocks of a stage: h + f(h), where f is initially zero.

        With L blocks in the network, the first two convolutions of each are scaled by L^(-1/4) (Fix-up).
        """
        inner, factor = self.expansion * maps, (self.blocks * len(self.maps)) ** -0.25
        for i in range(self.blocks):
            f = self.conv(1, inner, f"{name}_{i}_enter", factor=factor)(h)
            f = self.biased(f, f"{name}_{i}_bias_1", self.activation)
            f = self.conv(3, inner, f"{name}_{i}_space", factor=factor)(f)
            f = self.biased(f, f"{name}_{i}_bias_2", self.activation)
            h = h + self.conv(1, maps, f"{name}_{i}_leave", factor=0.0)(f)
        return h

    def biased(self, h: Array, name: str, activation: Callable[[Array], Array] = lambda h: h) -> Array:
        return activation(over_pixels(Bias(h.shape[-1:], name=name), h, self.lowering))


class Downward(Stages):
    """From images [B, H, W, C] to a grid of maps [B, h, w, maps[-1]]; see `ResidualEncoder`."""

    @nn.compact
    def __call__(self, h: Array) -> Array:
        if self.patch == 1:
            h = self.conv(3, self.maps[0], "input")(h)
        else:
            odd = h.shape[1] % 2, h.shape[2] % 2
            h = self.conv(4, self.maps[0], "input", stride=2, odd=odd)(h)
        h = self.biased(h, "input_bias")
        for i, maps in enumerate(self.maps):
            if i:
                h = Halving(maps, self.blur, self.lowering, self.dtype, name=f"transition_{i}")(h)
            h = self.stage(h, maps, f"stage_{i}")
        self.sow("intermediates", "pre_activation", h)
        return h


class Upward(Stages):
    """From vectors [B, F] to images [B, *x_shape]; see `ResidualDecoder`."""

    x_shape: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, h: Array) -> Array:
        sides = sides_of(self.x_shape, len(self.maps), self.patch)
        size = math.prod(sides[-1]) * self.maps[-1]
        h = Dense(size, 0.0, self.dtype, init_factor=LINEAR, name="grid")(h)
        h = self.biased(h.reshape(-1, *sides[-1], self.maps[-1]), "grid_bias")
        for i in reversed(range(len(self.maps))):
            h = self.stage(h, self.maps[i], f"stage_{i}")
            if i:
                h = self.doubled(h, self.maps[i - 1], sides[i - 1], 1, f"transition_{i}")
        if self.patch > 1:
            return self.doubled(h, self.x_shape[-1], self.x_shape[:2], 3, "output")
        return self.conv(3, self.x_shape[-1], "output")(h)

    def doubled(self, h: Array, maps: int, size: Sequence[int], kernel: int, name: str) -> Array:
        rows, columns = size
        sizes = maps, (rows, columns), kernel
        return Doubling(*sizes, self.blur, self.lowering, self.dtype, name=name)(h)
