"""The vision transformers of DINOv2 (Oquab et al., 2024), with weights from a local safetensors file.

The file is `model.safetensors` as facebook/dinov2-small, -base or -large have it on the Hugging Face hub. The
width, the depth and the number of positions follow from the file; heads are 64 wide, patches 14 pixels. The
giant model and those with registers are other networks, and are refused.

Images are resized to 224x224 by cubic interpolation (a = -0.5), smoothed where they shrink, and clipped to
[0, 1]; grey images are repeated in three channels. ImageNet's mean is subtracted, and the result divided by
its deviation. The file's positions are those of 37x37 patches. They are interpolated once, when the file is
read, to the 16x16 patches of an image, by the bicubic interpolation of PyTorch as in the hub's library: a =
-0.75, corners not aligned, borders repeated, no smoothing. The features are the class token after the last
layer norm. The network is tested with random weights, against a forward pass by hand; it has not been run on
the published files.
"""

import functools
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ali_jax.types import Array

RESIZE = "cubic to 224, antialiasing"
SIZE = 224
PATCH = 14
HEAD = 64  # features of a head
EPSILON = 1e-6  # of layer norm
MEAN = (0.485, 0.456, 0.406)  # of ImageNet, as are the deviations
STD = (0.229, 0.224, 0.225)


class Affine(NamedTuple):
    """A dense layer or the end of a layer norm; in a stack of layers with a leading axis."""

    weight: Array  # [F, G], or [F] of a layer norm
    bias: Array  # [G]


class Layer(NamedTuple):
    """The layers of the encoder, each array with a leading axis of the depth L."""

    norm1: Affine
    query: Affine
    key: Affine
    value: Affine
    output: Affine
    scale1: Array  # [L, F]
    norm2: Affine
    fc1: Affine
    fc2: Affine
    scale2: Array  # [L, F]


class Params(NamedTuple):
    """The weights of a transformer of width F."""

    patches: Affine  # from a patch [14 * 14 * 3] to [F]
    token: Array  # [F], the class token with its position
    positions: Array  # [256, F], of the 16x16 patches
    layers: Layer
    norm: Affine


# The names of a layer in the file, by the fields of `Layer`.
AFFINE = {
    "norm1": "norm1",
    "query": "attention.attention.query",
    "key": "attention.attention.key",
    "value": "attention.attention.value",
    "output": "attention.output.dense",
    "norm2": "norm2",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}
SCALES = {"scale1": "layer_scale1.lambda1", "scale2": "layer_scale2.lambda1"}
TOKEN, POSITIONS = "embeddings.cls_token", "embeddings.position_embeddings"
PROJECTION = "embeddings.patch_embeddings.projection"


def load(path: str | Path) -> Params:
    """Read the weights from a safetensors file with the names and shapes of `file_shapes`, and maybe more.

    Raises:
      ValueError: safetensors is not installed; the file is missing or damaged, is of another network, or
        lacks a tensor or has it in another shape.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError:
        raise ValueError(f"Reading {path} needs safetensors: pip install 'ali_jax[export]'.") from None
    try:
        file = load_file(path)
    except (OSError, SafetensorError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is not a safetensors file of arrays that numpy has ({error}): give model.safetensors of "
            "facebook/dinov2-small or -base."
        ) from None
    return params_of(file, str(path))


def params_of(file: dict[str, np.ndarray], path: str = "The file") -> Params:
    """Make the weights from the tensors of a file by name; a ValueError says which of them is wrong."""
    width, positions, depth = _sizes(file, path)
    for name, shape in file_shapes(width, positions, depth).items():
        given = file[name].shape if name in file else "none"
        if given != shape:
            raise _refused(path, f"has {name} of shape {given}, not {shape} as in a DINOv2 of width {width}")

    def read(name: str) -> np.ndarray:
        return np.asarray(file[name], np.float32)

    def affine(name: str) -> Affine:
        return Affine(jnp.asarray(read(f"{name}.weight").T), jnp.asarray(read(f"{name}.bias")))

    def layer(i: int) -> Layer:
        prefix = f"encoder.layer.{i}."
        fields: dict[str, Any] = {field: affine(prefix + name) for field, name in AFFINE.items()}
        fields |= {field: jnp.asarray(read(prefix + name)) for field, name in SCALES.items()}
        return Layer(**fields)

    kernel, table = read(f"{PROJECTION}.weight"), read(POSITIONS)[0]
    return Params(
        patches=Affine(
            jnp.asarray(kernel.transpose(2, 3, 1, 0).reshape(-1, width)),
            jnp.asarray(read(f"{PROJECTION}.bias")),
        ),
        token=jnp.asarray(read(TOKEN)[0, 0] + table[0]),
        positions=jnp.asarray(_resized(table[1:], SIZE // PATCH)),
        layers=jax.tree.map(lambda *arrays: jnp.stack(arrays), *map(layer, range(depth))),
        norm=affine("layernorm"),
    )


def file_shapes(width: int, positions: int, depth: int) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the tensors that the file must contain; its matrices are [out, in]."""
    shapes: dict[str, tuple[int, ...]] = {
        TOKEN: (1, 1, width),
        POSITIONS: (1, positions, width),
        f"{PROJECTION}.weight": (width, 3, PATCH, PATCH),
        f"{PROJECTION}.bias": (width,),
        "layernorm.weight": (width,),
        "layernorm.bias": (width,),
    }
    sizes = {"fc1": (4 * width, width), "fc2": (width, 4 * width), "norm1": (width,), "norm2": (width,)}
    for i in range(depth):
        for field, name in AFFINE.items():
            weight = sizes.get(field, (width, width))
            shapes[f"encoder.layer.{i}.{name}.weight"] = weight
            shapes[f"encoder.layer.{i}.{name}.bias"] = weight[:1]
        shapes |= {f"encoder.layer.{i}.{name}": (width,) for name in SCALES.values()}
    return shapes


def features(params: Params, x: Array) -> Array:
    """Return the class token [B, F] for images x [B, H, W, 1 or 3] in [0, 1]."""
    if x.ndim != 4 or x.shape[-1] not in (1, 3):
        raise ValueError(f"DINOv2 takes images [B, H, W, 1 or 3]; these have shape {x.shape}.")
    patches = _dense(_patches(_prepared(x)), params.patches) + params.positions[None]
    token = jnp.broadcast_to(params.token[None, None], (len(x), 1, len(params.token)))
    h = jnp.concatenate([token, patches], axis=1)
    h, _ = jax.lax.scan(lambda h, layer: (_block(h, layer), None), h, params.layers)
    return _norm(h[:, 0], params.norm)


def _sizes(file: dict[str, np.ndarray], path: str) -> tuple[int, int, int]:
    """Return the width, the number of positions and the depth of the network that a file is of."""
    token, table = (file[name].shape if name in file else () for name in (TOKEN, POSITIONS))
    layers = {int(found[1]) for name in file if (found := re.match(r"encoder\.layer\.(\d+)\.", name))}
    if "embeddings.register_tokens" in file:
        raise _refused(path, "is of a model with registers")
    if any(".mlp.weights_in." in name for name in file):
        raise _refused(path, "is of the giant model")
    if len(token) != 3 or not token[-1] or token[-1] % HEAD:
        raise _refused(path, f"has {TOKEN} of shape {token or 'none'}, not (1, 1, a multiple of {HEAD})")
    if len(table) != 3 or table[1] < 2 or math.isqrt(table[1] - 1) ** 2 != table[1] - 1:
        raise _refused(
            path, f"has {POSITIONS} of shape {table or 'none'}, not (1, 1 + a square, {token[-1]})"
        )
    if not layers:
        raise _refused(path, "has no tensor encoder.layer.0.norm1.weight")
    return token[-1], table[1], max(layers) + 1


def _refused(path: str, problem: str) -> ValueError:
    return ValueError(f"{path} {problem}: give model.safetensors of facebook/dinov2-small, -base or -large.")


def _prepared(x: Array) -> Array:
    """Return images as the network takes them: [B, 224, 224, 3], standardised."""
    x = jnp.broadcast_to(x, (*x.shape[:3], 3))
    x = jnp.clip(jax.image.resize(x, (len(x), SIZE, SIZE, 3), "cubic"), 0.0, 1.0)
    mean, std = (jnp.asarray(numbers, x.dtype)[None, None, None] for numbers in (MEAN, STD))
    return (x - mean) / std


def _patches(x: Array) -> Array:
    """Cut images [B, 224, 224, 3] into patches [B, 256, 14 * 14 * 3], row by row."""
    side = SIZE // PATCH
    x = x.reshape(len(x), side, PATCH, side, PATCH, 3).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(len(x), side**2, -1)


def _block(h: Array, layer: Layer) -> Array:
    """Apply a layer to tokens [B, T, F]: attention, then a perceptron, each after a layer norm."""
    h = h + layer.scale1[None, None] * _dense(_attention(_norm(h, layer.norm1), layer), layer.output)
    hidden = jax.nn.gelu(_dense(_norm(h, layer.norm2), layer.fc1), approximate=False)
    return h + layer.scale2[None, None] * _dense(hidden, layer.fc2)


def _attention(h: Array, layer: Layer) -> Array:
    heads = (*h.shape[:2], -1, HEAD)
    query, key, value = (_dense(h, part).reshape(heads) for part in (layer.query, layer.key, layer.value))
    return jax.nn.dot_product_attention(query, key, value).reshape(h.shape)


def _dense(h: Array, affine: Affine) -> Array:
    return h @ affine.weight + affine.bias[None, None]


def _norm(h: Array, affine: Affine) -> Array:
    centered = h - h.mean(axis=-1, keepdims=True)
    scaled = centered * jax.lax.rsqrt(jnp.square(centered).mean(axis=-1, keepdims=True) + EPSILON)
    ones = (1,) * (h.ndim - 1)
    return scaled * affine.weight.reshape(*ones, -1) + affine.bias.reshape(*ones, -1)


def _resized(table: np.ndarray, size: int) -> np.ndarray:
    """Interpolate positions [n * n, F] of a square to those [size * size, F] of another."""
    side = round(len(table) ** 0.5)
    along = _bicubic(side, size)
    grid = table.reshape(side, side, -1)
    return np.einsum("ip,jq,pqf->ijf", along, along, grid).reshape(size**2, -1).astype(np.float32)


@functools.cache
def _bicubic(old: int, new: int) -> np.ndarray:
    """Return the matrix [new, old] of PyTorch's bicubic interpolation along one axis."""
    matrix, a = np.zeros((new, old)), -0.75
    for i in range(new):
        at = (i + 0.5) * old / new - 0.5
        for tap in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
            d = abs(at - tap)
            near = ((a + 2) * d - (a + 3)) * d**2 + 1
            far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
            matrix[i, np.clip(tap, 0, old - 1)] += near if d <= 1 else far
    return matrix
