"""The stages of residual networks: from images to a grid of maps, and back.

The ingredients are those of R3GAN (Huang et al., 2024): blocks of 1x1, 3x3 and 1x1 convolutions, Fix-up
initialisation (Zhang et al., 2019), smooth resampling by [1, 2, 1]. R3GAN's convolutions are grouped; these
are plain. Maps are halved, sides rounded up, so that images of any size have a grid of maps at the end.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ali_jax.networks import convolutions
from ali_jax.networks.layers import Bias, Convolution, Dense
from ali_jax.types import Array

LINEAR = math.sqrt(0.5)  # factor on He initialisation where no activation follows


def halved(h: Array) -> Array:
    """Blur the maps [B, H, W, C] by [1, 2, 1] / 4 and take every second: [B, ceil(H / 2), ceil(W / 2), C]."""
    for axis in (1, 2):
        size = h.shape[axis]
        padded = jnp.pad(h, [(1, 1) if n == axis else (0, 0) for n in range(4)], mode="edge")
        before, here, after = (
            jax.lax.slice_in_dim(padded, start, start + 2 * -(-size // 2) - 1, 2, axis) for start in range(3)
        )
        h = 0.25 * (before + 2 * here + after)
    return h


def doubled(h: Array, size: Sequence[int]) -> Array:
    """Put means between neighbouring rows and columns, as zeros blurred by [1, 2, 1] / 2, and cut at `size`.

    The maps [B, H, W, C] become [B, *size, C], with 2 H - 1 or 2 H rows, and likewise columns.
    """
    for axis, length in zip((1, 2), size, strict=True):
        n = h.shape[axis]
        after = jnp.concatenate(
            [jax.lax.slice_in_dim(h, 1, n, 1, axis), jax.lax.slice_in_dim(h, n - 1, n, 1, axis)], axis
        )
        pairs = jnp.stack([h, 0.5 * (h + after)], axis + 1)
        pairs = pairs.reshape(*h.shape[:axis], 2 * n, *h.shape[axis + 1 :])
        h = jax.lax.slice_in_dim(pairs, 0, length, 1, axis)
    return h


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
        self, kernel: int, maps: int, name: str, *, stride: int = 1, factor: float = LINEAR
    ) -> nn.Module:
        """Return a convolution that keeps the size of maps, or halves it with a kernel of 4 and stride 2."""
        padding = (kernel - 1) // 2
        return Convolution(
            kernel,
            stride,
            maps,
            padding,
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
        rows = convolutions.cut(h.reshape(-1, h.shape[-1]), self.lowering)
        rows = Bias(rows.shape[-1:], name=name)(rows)
        return activation(convolutions.cut(rows, self.lowering).reshape(h.shape))


class Downward(Stages):
    """From images [B, H, W, C] to a grid of maps [B, h, w, maps[-1]]; see `ResidualEncoder`."""

    @nn.compact
    def __call__(self, h: Array) -> Array:
        if self.patch == 1:
            h = self.conv(3, self.maps[0], "input")(h)
        else:
            odd = [(0, side % 2) for side in h.shape[1:3]]
            h = self.conv(4, self.maps[0], "input", stride=2)(jnp.pad(h, [(0, 0), *odd, (0, 0)]))
        h = self.biased(h, "input_bias")
        for i, maps in enumerate(self.maps):
            if i:
                h = halved(h) if self.blur else h[:, ::2, ::2]
                h = self.conv(1, maps, f"transition_{i}")(h)
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
                h = self.conv(1, self.maps[i - 1], f"transition_{i}")(h)
                h = self.enlarged(h, sides[i - 1])
        if self.patch > 1:
            h = self.enlarged(h, self.x_shape[:2])
        return self.conv(3, self.x_shape[-1], "output")(h)

    def enlarged(self, h: Array, size: Sequence[int]) -> Array:
        if self.blur:
            return doubled(h, size)
        h = jnp.repeat(jnp.repeat(h, 2, axis=1), 2, axis=2)
        return h[:, : size[0], : size[1]]
