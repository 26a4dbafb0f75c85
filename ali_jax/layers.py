"""Layers of the paper's tables: one stack for convolutional, transposed and dense layers.

A layer is `(kernel, stride, maps[, padding])`, or a width. A 1x1 convolution on 1x1 maps is a width.
Owns what a layer does and in which order; which layers a network has is `networks`' matter.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from ali_jax import convolutions
from ali_jax.types import Array

Layer: TypeAlias = int | tuple[int, ...]
T = TypeVar("T")


def initializer(std: float) -> nn.initializers.Initializer:
    """Return N(0, std^2) (paper: 0.01), or He initialisation where std is 0."""
    return nn.initializers.normal(std) if std else nn.initializers.he_normal()


def maxout(h: Array, pieces: int) -> Array:
    """Take the maximum over groups of adjacent channels: [..., C] -> [..., C / pieces]."""
    if h.shape[-1] % pieces:
        raise ValueError(
            f"maxout over {pieces} pieces needs widths that are multiples of it; got {h.shape[-1]}."
        )
    return h.reshape(*h.shape[:-1], h.shape[-1] // pieces, pieces).max(axis=-1)


def activation(name: str, *, slope: float = 0.01, pieces: int = 2) -> Callable[[Array], Array]:
    """Return relu, leaky_relu (max(h, slope h)) or maxout; other names are a ValueError."""
    functions = {
        "relu": jax.nn.relu,
        "leaky_relu": lambda h: jnp.maximum(h, slope * h),
        "maxout": lambda h: maxout(h, pieces),
    }
    if name not in functions:
        raise ValueError(f"activation is {name!r}; it must be one of {', '.join(functions)}.")
    return functions[name]


def per_layer(value: T | Sequence[T], count: int, what: str) -> tuple[T, ...]:
    """Spread one setting, or a tuple of one, over `count` layers, or check that there is one for each."""
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    values = values * count if len(values) == 1 else values
    if len(values) != count:
        raise ValueError(
            f"{what} has {len(values)} values, {values}, for {count} layers: give one, or {count}."
        )
    return values  # pyright: ignore[reportReturnType]


def output_size(size: int, layers: Sequence[Layer], *, transpose: bool = False) -> int:
    """Return the side of the maps after `layers`; below 1 where a kernel exceeds its input."""
    for layer in layers:
        if isinstance(layer, int):
            size = 1
            continue
        kernel, stride, _, padding = (*layer, 0)[:4]
        if transpose:
            size = stride * (size - 1) + kernel - 2 * padding
        elif size + 2 * padding < kernel:
            return 0
        else:
            size = (size + 2 * padding - kernel) // stride + 1
    return size


class Convolution(nn.Module):
    """A (transposed) convolution without bias: [B, H, W, C] -> [B, H', W', maps]."""

    kernel: int
    stride: int
    maps: int
    padding: int = 0
    transpose: bool = False
    init_std: float = 0.01
    lowering: convolutions.Lowering = "native"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h: Array) -> Array:
        shape = (self.kernel, self.kernel, h.shape[-1], self.maps)
        kernel = self.param("kernel", initializer(self.init_std), shape)
        apply = convolutions.conv_transpose if self.transpose else convolutions.conv
        return apply(
            h.astype(self.dtype),
            kernel.astype(self.dtype),
            stride=self.stride,
            padding=self.padding,
            lowering=self.lowering,
        )


class Dense(nn.Module):
    """A linear map without bias, of all that an example holds: [B, ...] -> [B, width]."""

    width: int
    init_std: float = 0.01
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h: Array) -> Array:
        h = h.reshape(h.shape[0], -1)
        kernel = self.param("kernel", initializer(self.init_std), (h.shape[-1], self.width))
        return h.astype(self.dtype) @ kernel.astype(self.dtype)


class Bias(nn.Module):
    """A learned constant, initially zero, shaped as the last dimensions of what it is added to."""

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self, h: Array) -> Array:
        bias = self.param("bias", nn.initializers.zeros, self.shape)
        return h + bias.astype(h.dtype).reshape((1,) * (h.ndim - bias.ndim) + bias.shape)


class Stack(nn.Module):
    """Layers in order, each: dropout on its input, linear map, batch norm or bias, dropout, activation.

    Batch norm is the paper's (its code: per channel, epsilon 1e-4, running average 0.95); a layer with it has
    no bias. A vector is a 1x1 map to a convolution. What an activation receives is sown as the intermediate
    `pre_activation`.
    """

    layers: tuple[Layer, ...]
    transpose: bool = False
    activation: Callable[[Array], Array] = jax.nn.relu
    batch_norm: bool | tuple[bool, ...] = False
    bias: bool = True
    dropout: float | tuple[float, ...] = 0.0
    dropout_after: float | tuple[float, ...] = 0.0
    init_std: float = 0.01
    lowering: convolutions.Lowering = "native"
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h: Array, *, train: bool) -> Array:
        count = len(self.layers)
        settings = zip(
            self.layers,
            per_layer(self.batch_norm, count, "batch_norm"),
            per_layer(self.dropout, count, "dropout"),
            per_layer(self.dropout_after, count, "dropout_after"),
            strict=True,
        )
        for i, (layer, batch_norm, dropout, dropout_after) in enumerate(settings):
            if h.ndim == 2 and not isinstance(layer, int):
                h = h[:, None, None, :]
            h = nn.Dropout(dropout, deterministic=not train)(h)
            h = self._linear(layer, i)(h)
            if batch_norm:
                h = nn.BatchNorm(
                    use_running_average=not train,
                    momentum=0.95,
                    epsilon=1e-4,
                    axis_name=self.axis_name,
                    dtype=self.dtype,
                    name=f"norm_{i}",
                )(h)
            elif self.bias:
                h = Bias(h.shape[-1:], name=f"bias_{i}")(h)
            h = nn.Dropout(dropout_after, deterministic=not train)(h)
            self.sow("intermediates", "pre_activation", h)
            h = self.activation(h)
        return h

    def _linear(self, layer: Layer, i: int) -> nn.Module:
        shared = {"init_std": self.init_std, "dtype": self.dtype, "name": f"layer_{i}"}
        if isinstance(layer, int):
            return Dense(layer, **shared)
        return Convolution(*layer, transpose=self.transpose, lowering=self.lowering, **shared)
