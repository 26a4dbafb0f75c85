"""Augmentation of what the discriminator sees: random changes T of x and of x_tilde alike, never of z.

With few images the discriminator learns them by heart. If both kinds of pairs pass through the same T before
it, it cannot, and the decoder still learns the data (Zhao et al., 2020; Karras et al., 2020). The encoder
sees clean x.

Each transformation below acts on an image with probability p, by itself and independently of z. So on the
joints it acts as the operator (1 - p) I + p K, where K averages over the draws of the transformation, and
several act one after the other. Joints that are equal after an operator are equal before it if and only if
the operator is injective. For p < 1/2 it is: p K makes every signed measure smaller than (1 - p) I leaves it.
For larger p it may not be: at p = 1/2 for a mirror image, at 3/4 for shifts by -1, 0 or 1 of images that
repeat.

A transformation is a function `(x [B, H, W, C] in [0, 1], key) -> x`, row by row.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from ali_jax.types import Array, Pairs

SHIFT = 1 / 8  # of a side: the largest translation
HOLE = 1 / 2  # of a side: what is cut out
GREY = 0.5  # what takes the place of pixels that are gone


def augment(
    pairs: Pairs,
    key: Array,
    step: Array,
    *,
    probabilities: Mapping[str, float],
    final: float = 1.0,
    num_steps: int = 1,
) -> Pairs:
    """Change the x and x_tilde that D sees by transformations drawn for each image; z is left alone.

    Args:
      pairs: both kinds.
      key: a PRNG key.
      step: the number of this step.
      probabilities: p by the name of the transformation, a function of this module; they act in this order.
      final: factor on all p at `num_steps`; they change linearly from step 0 on.
      num_steps: see `final`.

    Returns:
      The pairs that D sees.
    """
    factor = 1 + (final - 1) * jnp.clip(step / num_steps, 0, 1)

    def changed(x: Array, key: Array) -> Array:
        for name, p in probabilities.items():
            key, key_chosen, key_transform = jax.random.split(key, 3)
            chosen = jax.random.bernoulli(key_chosen, jnp.clip(p * factor, 0, 1), (len(x), 1, 1, 1))
            x = jnp.where(chosen, TRANSFORMATIONS[name](x, key_transform), x)
        return x

    key_x, key_x_tilde = jax.random.split(key)
    return pairs._replace(x=changed(pairs.x, key_x), x_tilde=changed(pairs.x_tilde, key_x_tilde))


def translation(x: Array, key: Array) -> Array:
    """Move each image by up to an eighth of its sides; what comes in from outside is grey."""
    height, width = x.shape[1:3]
    for axis, side in ((1, height), (2, width)):
        key, key_shift = jax.random.split(key)
        most = max(1, round(SHIFT * side))
        shift = jax.random.randint(key_shift, (len(x),), -most, most + 1)
        x = shifted(x, shift, axis)
    return x


def shifted(x: Array, shift: Array, axis: int) -> Array:
    """Move images [B, H, W, C] along axis 1 or 2 by `shift` [B] pixels, by a product with 0s and 1s.

    The product is exact, and its gradient is one too: gathers and scatters are slow on accelerators.
    """
    place = jnp.arange(x.shape[axis])
    moves = (place[None, :, None] == place[None, None, :] + shift[:, None, None]).astype(x.dtype)
    form = "bij,bjwc->biwc" if axis == 1 else "bij,bhjc->bhic"
    return GREY + jnp.einsum(form, moves, x - GREY, precision="highest")


def cutout(x: Array, key: Array) -> Array:
    """Make a rectangle of each image grey: of half its sides, about a centre anywhere in the image."""
    inside = jnp.ones((1, 1, 1), bool)
    for axis in (0, 1):
        key, key_centre = jax.random.split(key)
        side, place = x.shape[1 + axis], jnp.arange(x.shape[1 + axis])
        length = max(1, round(HOLE * side))
        first = jax.random.randint(key_centre, (len(x), 1), 0, side + 1) - length // 2
        within = (place[None] >= first) & (place[None] < first + length)
        inside = inside & jnp.expand_dims(within, 2 - axis)
    return jnp.where(inside[..., None], jnp.asarray(GREY, x.dtype), x)


def colour(x: Array, key: Array) -> Array:
    """Change each image's brightness by up to 1/4, its saturation up to twofold, its contrast by up to half.

    Values may leave [0, 1], which only D sees.
    """
    brightness, saturation, contrast = jax.random.uniform(key, (3, len(x), 1, 1, 1), x.dtype)
    x = x + (brightness - 0.5) / 2
    grey = jnp.mean(x, axis=3, keepdims=True)
    x = grey + (x - grey) * (2 * saturation)
    mean = jnp.mean(x, axis=(1, 2, 3), keepdims=True)
    return mean + (x - mean) * (contrast + 0.5)


TRANSFORMATIONS: dict[str, Callable[[Array, Array], Array]] = {
    "translation": translation,
    "cutout": cutout,
    "colour": colour,
}
