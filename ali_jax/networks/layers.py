"""Layers of the paper's tables: one stack for convolutional, transposed and dense layers.

A layer is `(kernel, stride, maps[, padding[, odd]])`, or a width. A 1x1 convolution on 1x1 maps is a width.
A kernel (rows, columns) spans the whole map, and joins it to a vector. `odd` is (rows, columns), 0 or 1 each:
so many are added to the input of a convolution, or cut off the output of a transposed one, so that a side
that is halved need not be even.
This module says what a layer does, and in which order; the networks say which layers they have.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ali_jax.bits import hashed
from ali_jax.networks import convolutions
from ali_jax.types import Array

Layer: TypeAlias = int | tuple[Any, ...]
T = TypeVar("T")

EMBEDDING_STD = 0.01  # of the embedding of conditions, in the authors' code


def initializer(std: float) -> nn.initializers.Initializer:
    """Return N(0, std^2) (paper: 0.01), or He initialisation where std is 0."""
    return nn.initializers.normal(std) if std else nn.initializers.he_normal()


def maxout(h: Array, pieces: int) -> Array:
    """Take the maximum over groups of adjacent channels: [..., C] -> [..., C / pieces]."""
    if h.shape[-1] % pieces:
        raise ValueError(
            f"maxout over {pieces} pieces needs widths that are multiples of it; got {h.shape[-1]}."
        )
    groups = h.reshape(*h.shape[:-1], h.shape[-1] // pieces, pieces)
    # On XLA:CPU `.max(axis=-1)` and its gradient take up to 30 times as long.
    return functools.reduce(lambda a, b: jnp.where(b > a, b, a), jnp.moveaxis(groups, -1, 0))


def activation(name: str, *, slope: float = 0.01, pieces: int = 2) -> Callable[[Array], Array]:
    """Return relu, leaky_relu (slope h where h < 0) or maxout; other names are a ValueError."""
    functions = {
        "relu": jax.nn.relu,
        "leaky_relu": lambda h: jax.nn.leaky_relu(h, slope),
        "maxout": lambda h: maxout(h, pieces),
    }
    if name not in functions:
        raise ValueError(f"activation is {name!r}; it must be one of {', '.join(functions)}.")
    return functions[name]


def per_layer(value: T | Sequence[T], count: int, what: str) -> tuple[T, ...]:
    """Return one setting per layer: a single setting, or a tuple of one, holds for all `count` layers."""
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    values = values * count if len(values) == 1 else values
    if len(values) != count:
        raise ValueError(
            f"{what} has {len(values)} values, {values}, for {count} layers: give one, or {count}."
        )
    return values  # pyright: ignore[reportReturnType]


def output_size(size: int, layers: Sequence[Layer], *, transpose: bool = False, axis: int = 0) -> int:
    """Return a side of the maps after `layers`, or a number below 1 if a kernel exceeds its input.

    Args:
      size: that side before them.
      layers: the table.
      transpose: whether the convolutions are transposed.
      axis: 0 for the height, 1 for the width; only kernels (rows, columns) and odd sides tell them apart.
    """
    for layer in layers:
        if isinstance(layer, int):
            size = 1
            continue
        entries: tuple[Any, ...] = (*layer, *(0, (0, 0))[len(layer) - 3 :])
        kernel, stride, _, padding, odd = entries
        kernel = kernel if isinstance(kernel, int) else kernel[axis]
        if transpose:
            size = stride * (size - 1) + kernel - 2 * padding - odd[axis]
        elif size + odd[axis] + 2 * padding < kernel:
            return 0
        else:
            size = (size + odd[axis] + 2 * padding - kernel) // stride + 1
    return size


class SpectralNorm(nn.Module):
    """Divide a kernel [..., F] by its largest singular value, as one step of power iteration estimates it.

    sigma = v W u with v = W u / |W u| and u = W' v / |W' v|, constants, for W of shape [inputs, F] (Miyato et
    al., 2018). The vector u is kept among the batch statistics, though it does not depend on the batch. It
    moves only where these may change: one step per training step, however often penalties call the network.
    """

    @nn.compact
    def __call__(self, kernel: Array, *, train: bool) -> Array:
        w = kernel.reshape(-1, kernel.shape[-1])
        start = lambda: jax.random.normal(self.make_rng("params"), w.shape[-1:], w.dtype)  # noqa: E731
        state = self.variable("batch_stats", "u", start)
        fixed, u = jax.lax.stop_gradient(w), _unit(state.value)
        v = _unit(fixed @ u)
        if train:
            u = _unit(v @ fixed)
            if self.is_mutable_collection("batch_stats"):
                state.value = u
        return kernel / (v @ (w @ u))


def _unit(v: Array) -> Array:
    return v / jnp.maximum(jnp.linalg.norm(v), 1e-12)


class Convolution(nn.Module):
    """A (transposed) convolution without bias: [B, H, W, C] -> [B, H', W', maps].

    A kernel (rows, columns) is of a map's own size. The layer is then a linear map of all of it to [B, 1, 1,
    maps] or, transposed, one from [B, 1, 1, C] to it.
    """

    kernel: int | tuple[int, int]
    stride: int
    maps: int
    padding: int = 0
    odd: tuple[int, int] = (0, 0)
    transpose: bool = False
    init_std: float = 0.01
    lowering: convolutions.Lowering = "native"
    dtype: Any = jnp.float32
    spectral_norm: bool = False
    init_factor: float = 1.0

    @nn.compact
    def __call__(self, h: Array, *, train: bool = False) -> Array:
        sides = (self.kernel, self.kernel) if isinstance(self.kernel, int) else self.kernel
        initial = scaled_initializer(self.init_std, self.init_factor)
        kernel = self.param("kernel", initial, (*sides, h.shape[-1], self.maps))
        if self.spectral_norm:
            kernel = SpectralNorm(name="spectral")(kernel, train=train)
        h, kernel = h.astype(self.dtype), kernel.astype(self.dtype)
        if not isinstance(self.kernel, int):
            return _from_vector(h, kernel) if self.transpose else _to_vector(h, kernel)
        rows, columns = self.odd
        form: dict[str, Any] = {"stride": self.stride, "padding": self.padding, "lowering": self.lowering}
        if self.transpose:
            h = convolutions.conv_transpose(h, kernel, **form)
            return h[:, : h.shape[1] - rows, : h.shape[2] - columns] if any(self.odd) else h
        if any(self.odd):
            h = jnp.pad(h, ((0, 0), (0, rows), (0, columns), (0, 0)))
        return convolutions.conv(h, kernel, **form)


def _to_vector(h: Array, kernel: Array) -> Array:
    """Map all of h [B, H, W, C] with a kernel [H, W, C, F] to [B, 1, 1, F]."""
    if h.shape[1:] != kernel.shape[:3]:
        raise ValueError(
            f"A kernel of {kernel.shape[:2]} must span maps of its own size, not {h.shape[1:3]}."
        )
    return (h.reshape(h.shape[0], -1) @ kernel.reshape(-1, kernel.shape[-1]))[:, None, None]


def _from_vector(h: Array, kernel: Array) -> Array:
    """Map h [B, 1, 1, C] with a kernel [H, W, C, F] to [B, H, W, F]."""
    if h.shape[1:3] != (1, 1):
        raise ValueError(
            f"A transposed kernel of {kernel.shape[:2]} takes a vector, not maps {h.shape[1:3]}."
        )
    rows, columns, channels, maps = kernel.shape
    matrix = kernel.transpose(2, 0, 1, 3).reshape(channels, -1)
    return (h[:, 0, 0] @ matrix).reshape(h.shape[0], rows, columns, maps)


class Dense(nn.Module):
    """A linear map of the flattened example, without bias: [B, ...] -> [B, width]."""

    width: int
    init_std: float = 0.01
    dtype: Any = jnp.float32
    spectral_norm: bool = False
    init_factor: float = 1.0

    @nn.compact
    def __call__(self, h: Array, *, train: bool = False) -> Array:
        h = h.reshape(h.shape[0], -1)
        kernel = self.param(
            "kernel", scaled_initializer(self.init_std, self.init_factor), (h.shape[-1], self.width)
        )
        if self.spectral_norm:
            kernel = SpectralNorm(name="spectral")(kernel, train=train)
        return h.astype(self.dtype) @ kernel.astype(self.dtype)


class Bias(nn.Module):
    """A learned constant that is added. It is initially zero and has the shape of the last dimensions."""

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self, h: Array) -> Array:
        bias = self.param("bias", nn.initializers.zeros, self.shape)
        return h + bias.astype(h.dtype).reshape((1,) * (h.ndim - bias.ndim) + bias.shape)


class Embedding(nn.Module):
    """An affine map of conditions: [B, A] -> [B, width]. With width 0, or y = None, it is the identity.

    In the authors' code one map is shared by the three networks and belongs to no player. So it keeps its
    initial values, a random projection. Here that map is a constant, the same in all three networks. If
    `learned`, each network has its own.
    """

    width: int
    learned: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, y: Array | None) -> Array | None:
        if y is None or not self.width:
            return y
        shape = (y.shape[-1], self.width)
        if not self.learned:
            return y.astype(self.dtype) @ jnp.asarray(frozen_projection(*shape), self.dtype)
        kernel = self.param("kernel", initializer(EMBEDDING_STD), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        return y.astype(self.dtype) @ kernel.astype(self.dtype) + bias.astype(self.dtype)[None]


@functools.cache
def frozen_projection(attributes: int, width: int) -> np.ndarray:
    """Return the kernel [attributes, width] of the frozen embedding, N(0, 0.01^2); its bias is zero."""
    return EMBEDDING_STD * _normal_matrix(attributes, width)


@functools.cache
def _normal_matrix(rows: int, columns: int) -> np.ndarray:
    """Return a constant matrix of standard normal entries.

    Checkpoints do not hold it, so it comes from a generator whose stream numpy guarantees for ever.
    """
    return np.random.RandomState(0).standard_normal((rows, columns))


def fourier_features(x: Array, count: int, std: float) -> Array:
    """Append sines and cosines of `count` random projections to x: [B, D] -> [B, D + 2 count].

    With them a perceptron resolves detail that is small beside the range of x (Tancik et al., 2020). The
    projections x W, W ~ N(0, std^2), are in radians and the same in every run.
    """
    angles = x @ jnp.asarray(std * _normal_matrix(x.shape[-1], count), x.dtype)
    return jnp.concatenate([x, jnp.sin(angles), jnp.cos(angles)], axis=-1)


class BatchNorm(nn.Module):
    """Normalise each channel over batch and space: gamma (h - m) / s + beta, s = sqrt(var + 1e-4).

    The running averages are those of the paper's code: of m and of s itself, where Flax averages the
    variance. They start at 0 and 1, and each step keeps 0.95 of the old value. Statistics are at least
    float32, and the variance is biased. With an axis_name they are those of the whole batch, over
    all devices of the axis.
    """

    axis_name: str | None = None
    dtype: Any = jnp.float32
    momentum: float = 0.95
    epsilon: float = 1e-4

    @nn.compact
    def __call__(self, h: Array, *, train: bool) -> Array:
        channels = h.shape[-1:]
        gamma = self.param("gamma", nn.initializers.ones, channels)
        beta = self.param("beta", nn.initializers.zeros, channels)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        running_std = self.variable("batch_stats", "std", jnp.ones, channels)
        rows = h.reshape(-1, *channels).astype(jnp.promote_types(h.dtype, jnp.float32))
        mean, std = running_mean.value, running_std.value
        if train:
            mean, square = jnp.mean(rows, axis=0), jnp.mean(jnp.square(rows), axis=0)
            if self.axis_name is not None:
                mean, square = jax.lax.pmean((mean, square), self.axis_name)
            std = jnp.sqrt(jnp.maximum(square - jnp.square(mean), 0) + self.epsilon)
            running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * mean
            running_std.value = self.momentum * running_std.value + (1 - self.momentum) * std
        scale = gamma / std
        rows = rows * scale[None] + (beta - mean * scale)[None]
        return rows.reshape(h.shape).astype(self.dtype)


class Dropout(nn.Module):
    """Set elements to zero with probability `rate` in training, and scale the others by 1 / (1 - rate).

    Masks are hashes of the position and the key of the stream `dropout`. Drawing them with threefry, as
    `flax.linen.Dropout` does, takes 7 % of a step of the SVHN networks on a CPU.
    """

    rate: float

    @nn.compact
    def __call__(self, h: Array, *, train: bool) -> Array:
        if not train or self.rate == 0:
            return h
        mask = _bits(self, h.shape) >= np.uint32(self.rate * 2**32)
        return jnp.where(mask, h / (1 - self.rate), 0)


class GaussianNoise(nn.Module):
    """Add N(0, std^2) to each element in training.

    It is a hash of the position and the key of the stream `dropout`, through the inverse of the normal
    distribution function. So it is cheap, as the masks of `Dropout` are; it ends at 5.4 standard deviations.
    """

    std: float

    @nn.compact
    def __call__(self, h: Array, *, train: bool) -> Array:
        if not train or self.std == 0:
            return h
        bits = _bits(self, h.shape)
        centred = ((bits >> np.uint32(9)).astype(jnp.float32) + 0.5) * 2.0**-22 - 1  # in (-1, 1), 2^23 values
        return h + (self.std * np.sqrt(2) * jax.lax.erf_inv(centred)).astype(h.dtype)


def _bits(module: nn.Module, shape: tuple[int, ...]) -> Array:
    """Return 32 random bits per element: hashes of its position and the key of the stream `dropout`."""
    words = jax.random.key_data(module.make_rng("dropout"))
    return hashed(words, jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape))


def over_pixels(function: Callable[[Array], Array], h: Array, lowering: convolutions.Lowering) -> Array:
    """Apply to the pixels of maps [B, H, W, C], as rows, what keeps the shape; other h as they are.

    Batch norm and biases then sum over one axis alone.
    """
    if h.ndim != 4:
        return function(h)
    rows = function(convolutions.cut(h.reshape(-1, h.shape[-1]), lowering))
    return convolutions.cut(rows, lowering).reshape(h.shape)


class Stack(nn.Module):
    """Layers in order, each: noise and dropout, linear map, batch norm or bias, dropout, activation.

    A layer with batch norm has no bias. To a convolution a vector is a 1x1 map. The input `beside` [B, F], if
    there is one, reaches every layer: a linear map of it is added after batch norm or bias. The input of
    every activation is sown as the intermediate `pre_activation`.
    """

    layers: tuple[Layer, ...]
    transpose: bool = False
    activation: Callable[[Array], Array] = jax.nn.relu
    batch_norm: bool | tuple[bool, ...] = False
    bias: bool = True
    dropout: float | tuple[float, ...] = 0.0
    dropout_after: float | tuple[float, ...] = 0.0
    noise: float | tuple[float, ...] = 0.0
    init_std: float = 0.01
    lowering: convolutions.Lowering = "native"
    axis_name: str | None = None
    dtype: Any = jnp.float32
    spectral_norm: bool = False

    @nn.compact
    def __call__(self, h: Array, *, train: bool, beside: Array | None = None) -> Array:
        count = len(self.layers)
        settings = zip(
            self.layers,
            per_layer(self.batch_norm, count, "batch_norm"),
            per_layer(self.dropout, count, "dropout"),
            per_layer(self.dropout_after, count, "dropout_after"),
            per_layer(self.noise, count, "noise"),
            strict=True,
        )
        for i, (layer, batch_norm, dropout, dropout_after, noise) in enumerate(settings):
            if h.ndim == 2 and not isinstance(layer, int):
                h = h[:, None, None, :]
            h = GaussianNoise(noise)(h, train=train)
            h = Dropout(dropout)(h, train=train)
            h = self._linear(layer, f"layer_{i}")(h, train=train)
            h = over_pixels(self._shift(i, h.shape[-1], batch_norm, train), h, self.lowering)
            if beside is not None:
                added = self._linear(h.shape[-1], f"beside_{i}")(beside, train=train)
                h = h + added.reshape(-1, *(1,) * (h.ndim - 2), h.shape[-1])
            h = Dropout(dropout_after)(h, train=train)
            self.sow("intermediates", "pre_activation", h)
            h = self.activation(h)
        return h

    def _shift(self, i: int, width: int, batch_norm: bool, train: bool) -> Callable[[Array], Array]:
        if batch_norm:
            norm = BatchNorm(self.axis_name, self.dtype, name=f"norm_{i}")
            return functools.partial(norm, train=train)
        return Bias((width,), name=f"bias_{i}") if self.bias else lambda h: h

    def _linear(self, layer: Layer, name: str) -> nn.Module:
        shared = {
            "init_std": self.init_std,
            "dtype": self.dtype,
            "spectral_norm": self.spectral_norm,
            "name": name,
        }
        if isinstance(layer, int):
            return Dense(layer, **shared)
        return Convolution(*layer, transpose=self.transpose, lowering=self.lowering, **shared)


class Affine(nn.Module):
    """A linear output layer with bias: [B, F] -> [B, width]. Its output is at least float32."""

    width: int
    init_std: float
    init_factor: float = 1.0
    init_bias: float = 0.0
    dtype: Any = jnp.float32
    spectral_norm: bool = False

    @nn.compact
    def __call__(self, h: Array, *, train: bool = False) -> Array:
        kernel = self.param(
            "kernel", scaled_initializer(self.init_std, self.init_factor), (h.shape[-1], self.width)
        )
        if self.spectral_norm:
            kernel = SpectralNorm(name="spectral")(kernel, train=train)
        bias = self.param("bias", nn.initializers.constant(self.init_bias), (self.width,))
        outputs = h.astype(self.dtype) @ kernel.astype(self.dtype)
        return outputs.astype(jnp.promote_types(self.dtype, jnp.float32)) + bias[None]


def scaled_initializer(std: float, factor: float) -> nn.initializers.Initializer:
    """Return `initializer(std)`, whose values are multiplied by a factor."""
    init = initializer(std)
    return lambda key, shape, dtype=jnp.float32: factor * init(key, shape, dtype)


def centered(x: Array) -> Array:
    """Map x in [0, 1] to [-1, 1]."""
    return 2 * x - 1


def join(h: Array, other: Array | None) -> Array:
    """Flatten h [B, ...] to [B, F] and append `other`, flattened, if there is any."""
    if other is None:
        return h if h.ndim == 2 else h.reshape(h.shape[0], -1)
    parts = (h.reshape(h.shape[0], -1), other.reshape(other.shape[0], -1).astype(h.dtype))
    return jnp.concatenate(parts, axis=-1)


def check_choice(what: str, value: Any, choices: Sequence[str]) -> None:
    """Raise a ValueError unless the value of `what` is one of the choices."""
    if value not in choices:
        raise ValueError(f"{what} is {value!r}; it must be one of {', '.join(choices)}.")


def is_convolutional(table: Sequence[Layer]) -> bool:
    """Whether any of the layers is a convolution."""
    return any(not isinstance(layer, int) for layer in table)
