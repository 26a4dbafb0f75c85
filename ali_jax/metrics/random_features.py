"""Features of a convolutional network with random weights: for any images, without labels or a file.

Naeem et al. (2020) find random features a sound choice for images that are unlike ImageNet. They take a
random VGG-16 with 64 features. This network is smaller, and its weights are the same on every machine.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from ali_jax.types import Array

RESIZE = "none"
NUM_FEATURES = 64
MAPS = (32, 64, 128)  # of the first layers; further ones have as many as the last of these
SMALL = 4  # pixels: halved until no side is longer


def features(x: Array) -> Array:
    """Return features [B, 64] of images x [B, H, W, C] in [0, 1]: halving convolutions, then a projection."""
    h = 2 * x - 1
    convolutions, projection = _weights(x.shape[1:])
    for kernel in convolutions:
        h = jax.lax.conv_general_dilated(
            h, jnp.asarray(kernel), (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        h = jax.nn.relu(h)
    return h.reshape(len(h), -1) @ projection


@functools.lru_cache(maxsize=2)
def _weights(shape: tuple[int, ...]) -> tuple[list[np.ndarray], np.ndarray]:
    """Draw normal kernels for images [H, W, C], scaled so that the features of all layers are of one size."""
    rng = np.random.default_rng(0)

    def draw(*kernel: int) -> np.ndarray:
        fan_in = math.prod(kernel[:-1])
        return np.asarray(rng.standard_normal(kernel) * np.sqrt(2 / fan_in), np.float32)

    height, width, maps = shape
    convolutions = []
    while max(height, width) > SMALL:
        deeper = MAPS[min(len(convolutions), len(MAPS) - 1)]
        convolutions.append(draw(3, 3, maps, deeper))
        height, width, maps = -(-height // 2), -(-width // 2), deeper
    return convolutions, draw(height * width * maps, NUM_FEATURES)
