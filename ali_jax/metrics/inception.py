"""The Inception-v3 of published FIDs, with weights from a local file.

It is the network of 2015-12-05 as in pytorch-fid and torch-fidelity: average pools exclude the padding,
and the last block has a maximum pool. Both distribute the file `pt_inception-2015-12-05-6726825d.pth`.
Convert it once, where torch is installed, so that no pickle is read here:

    state = torch.load("pt_inception-2015-12-05-6726825d.pth", weights_only=True)
    numpy.savez("inception.npz", **{name: value.numpy() for name, value in state.items()})
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ali_jax.types import Array

RESIZE = "bilinear to 299, no antialiasing"
SIZE = 299
NUM_FEATURES = 2048
EPSILON = 1e-3  # of batch norm

STATISTICS = ("weight", "bias", "running_mean", "running_var")


class Layer(NamedTuple):
    """A convolution with its batch norm folded in."""

    kernel: Array  # [h, w, C, F]
    scale: Array  # [F]
    offset: Array  # [F]


Params: TypeAlias = dict[str, Layer]
# (x, name, maps, kernel, stride, padded) -> the layer's output
_Conv: TypeAlias = Callable[[Array, str, int, tuple[int, int], int, bool], Array]


def load(path: str | Path) -> Params:
    """Read the weights from an .npz file with the names and shapes of `file_shapes`; others are ignored.

    Raises:
      ValueError: the file is missing or not an .npz file of arrays, or a name is missing or a shape is wrong.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            weights = {name: file[name] for name in file_shapes() if name in file}
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} is not an .npz file of arrays ({error}): convert the weights as the docstring of "
            "ali_jax.metrics.inception says."
        ) from None
    for name, shape in file_shapes().items():
        given = weights[name].shape if name in weights else "none"
        if given != shape:
            raise ValueError(
                f"{path}: {name} has shape {given}; in pt_inception-2015-12-05 it is {shape}. Convert that "
                "file, as the docstring of ali_jax.metrics.inception says."
            )
    return {name: _folded(weights, name) for name in kernel_shapes()}


def features(params: Params, x: Array) -> Array:
    """Return the input [B, 2048] of the last linear layer for images x [B, H, W, 1 or 3] in [0, 1]."""
    if x.ndim != 4 or x.shape[-1] not in (1, 3):
        raise ValueError(f"Inception takes images [B, H, W, 1 or 3]; these have shape {x.shape}.")
    x = jnp.broadcast_to(x, (*x.shape[:3], 3))
    x = jax.image.resize(x, (len(x), SIZE, SIZE, 3), "bilinear", antialias=False)

    def conv(x: Array, name: str, maps: int, kernel: tuple[int, int], stride: int, padded: bool) -> Array:
        layer = params[name]
        margins = [n // 2 if padded else 0 for n in kernel]
        padding = [(margin, margin) for margin in margins]
        h = lax.conv_general_dilated(
            x, layer.kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jax.nn.relu(h * layer.scale[None, None, None] + layer.offset[None, None, None])

    return _network(conv, 2 * x - 1)


@functools.cache
def kernel_shapes() -> dict[str, tuple[int, int, int, int]]:
    """Return the shapes (h, w, C, F) of all kernels by the names of their layers, in order."""
    shapes = {}

    def conv(x: Array, name: str, maps: int, kernel: tuple[int, int], stride: int, padded: bool) -> Array:
        shapes[name] = (*kernel, x.shape[-1], maps)
        around = [2 * (n // 2) if padded else 0 for n in kernel]
        size = [(n + p - k) // stride + 1 for n, p, k in zip(x.shape[1:3], around, kernel, strict=True)]
        return jnp.zeros((x.shape[0], *size, maps))

    jax.eval_shape(functools.partial(_network, conv), jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32))
    return shapes


def file_shapes() -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the arrays that the file must contain; its kernels are [F, C, h, w]."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (height, width, channels, maps) in kernel_shapes().items():
        shapes[f"{name}.conv.weight"] = (maps, channels, height, width)
        shapes |= {f"{name}.bn.{key}": (maps,) for key in STATISTICS}
    return shapes


def _folded(weights: dict[str, np.ndarray], name: str) -> Layer:
    """Return a layer with its batch norm folded into scale and offset."""
    gain, bias, mean, variance = (weights[f"{name}.bn.{key}"].astype(np.float64) for key in STATISTICS)
    scale = gain / np.sqrt(variance + EPSILON)
    kernel = weights[f"{name}.conv.weight"].transpose(2, 3, 1, 0)
    return Layer(*(jnp.asarray(array, jnp.float32) for array in (kernel, scale, bias - mean * scale)))


def _network(conv: _Conv, x: Array) -> Array:
    """Return the features of x [B, 299, 299, 3] in [-1, 1]; `conv` computes every convolutional layer."""
    x = conv(x, "Conv2d_1a_3x3", 32, (3, 3), 2, False)
    x = conv(x, "Conv2d_2a_3x3", 32, (3, 3), 1, False)
    x = conv(x, "Conv2d_2b_3x3", 64, (3, 3), 1, True)
    x = _max_pool(x, 2)
    x = conv(x, "Conv2d_3b_1x1", 80, (1, 1), 1, False)
    x = conv(x, "Conv2d_4a_3x3", 192, (3, 3), 1, False)
    x = _max_pool(x, 2)
    for name, pooled in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
        x = _block_35(conv, x, name, pooled)
    x = _to_17(conv, x, "Mixed_6a")
    for name, maps in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        x = _block_17(conv, x, name, maps)
    x = _to_8(conv, x, "Mixed_7a")
    x = _block_8(conv, x, "Mixed_7b", _average_pool)
    x = _block_8(conv, x, "Mixed_7c", functools.partial(_max_pool, stride=1))
    return x.mean(axis=(1, 2))


def _chain(conv: _Conv, x: Array, prefix: str, *layers: tuple[int, tuple[int, int]]) -> Array:
    """Apply padded layers of stride 1, each (maps, kernel), whose names are the prefix and 1, 2, ..."""
    for i, (maps, kernel) in enumerate(layers, start=1):
        x = conv(x, f"{prefix}_{i}", maps, kernel, 1, True)
    return x


def _single(conv: _Conv, x: Array, name: str, maps: int) -> Array:
    return conv(x, name, maps, (1, 1), 1, False)


def _block_35(conv: _Conv, x: Array, name: str, pooled: int) -> Array:
    branches = (
        _single(conv, x, f"{name}.branch1x1", 64),
        _chain(conv, x, f"{name}.branch5x5", (48, (1, 1)), (64, (5, 5))),
        _chain(conv, x, f"{name}.branch3x3dbl", (64, (1, 1)), (96, (3, 3)), (96, (3, 3))),
        _single(conv, _average_pool(x), f"{name}.branch_pool", pooled),
    )
    return jnp.concatenate(branches, axis=-1)


def _to_17(conv: _Conv, x: Array, name: str) -> Array:
    double = _chain(conv, x, f"{name}.branch3x3dbl", (64, (1, 1)), (96, (3, 3)))
    branches = (
        conv(x, f"{name}.branch3x3", 384, (3, 3), 2, False),
        conv(double, f"{name}.branch3x3dbl_3", 96, (3, 3), 2, False),
        _max_pool(x, 2),
    )
    return jnp.concatenate(branches, axis=-1)


def _block_17(conv: _Conv, x: Array, name: str, maps: int) -> Array:
    row, column = (1, 7), (7, 1)
    double = ((maps, (1, 1)), (maps, column), (maps, row), (maps, column), (192, row))
    branches = (
        _single(conv, x, f"{name}.branch1x1", 192),
        _chain(conv, x, f"{name}.branch7x7", (maps, (1, 1)), (maps, row), (192, column)),
        _chain(conv, x, f"{name}.branch7x7dbl", *double),
        _single(conv, _average_pool(x), f"{name}.branch_pool", 192),
    )
    return jnp.concatenate(branches, axis=-1)


def _to_8(conv: _Conv, x: Array, name: str) -> Array:
    short = _chain(conv, x, f"{name}.branch3x3", (192, (1, 1)))
    long = _chain(conv, x, f"{name}.branch7x7x3", (192, (1, 1)), (192, (1, 7)), (192, (7, 1)))
    branches = (
        conv(short, f"{name}.branch3x3_2", 320, (3, 3), 2, False),
        conv(long, f"{name}.branch7x7x3_4", 192, (3, 3), 2, False),
        _max_pool(x, 2),
    )
    return jnp.concatenate(branches, axis=-1)


def _block_8(conv: _Conv, x: Array, name: str, pool: Callable[[Array], Array]) -> Array:
    def fork(x: Array, prefix: str) -> tuple[Array, Array]:
        return conv(x, f"{prefix}a", 384, (1, 3), 1, True), conv(x, f"{prefix}b", 384, (3, 1), 1, True)

    single = _chain(conv, x, f"{name}.branch3x3", (384, (1, 1)))
    double = _chain(conv, x, f"{name}.branch3x3dbl", (448, (1, 1)), (384, (3, 3)))
    branches = (
        _single(conv, x, f"{name}.branch1x1", 320),
        *fork(single, f"{name}.branch3x3_2"),
        *fork(double, f"{name}.branch3x3dbl_3"),
        _single(conv, pool(x), f"{name}.branch_pool", 192),
    )
    return jnp.concatenate(branches, axis=-1)


def _max_pool(x: Array, stride: int) -> Array:
    """Take the maximum over 3x3 windows, with padding at stride 1 and without at stride 2."""
    padding = "SAME" if stride == 1 else "VALID"
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, stride, stride, 1), padding)


def _average_pool(x: Array) -> Array:
    """Average over the pixels of 3x3 windows that lie inside the image."""

    def total(x: Array) -> Array:
        return lax.reduce_window(x, 0.0, lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")

    return total(x) / total(jnp.ones((1, *x.shape[1:3], 1), x.dtype))
