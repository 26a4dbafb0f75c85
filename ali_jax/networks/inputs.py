"""What the networks take: data and codes that do not fit are one sentence with the cure."""

import math
from collections.abc import Sequence

import jax.numpy as jnp

from ali_jax.types import ALI, Array


def latent_dim(ali: ALI) -> int:
    """Return Z, the encoder's attribute `latent_dim`; raise a ValueError if it has none."""
    size = getattr(ali.encoder, "latent_dim", None)
    if size is None:
        raise ValueError(
            f"The encoder {type(ali.encoder).__name__} says nothing of the length of its codes: give it the "
            "field `latent_dim: int`."
        )
    return size


def check_x(ali: ALI, x: Array) -> None:
    """Raise a ValueError for data that the networks do not take: no array, no floats, or of another shape.

    The shape of one x is known where the decoder has the attribute `x_shape`.
    """
    if not hasattr(x, "dtype"):
        raise ValueError(f"x is a {type(x).__name__}: give an array, as np.asarray(x, np.float32) makes it.")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"x is {x.dtype}, and the networks take floats, images in [0, 1]: divide by the largest value of "
            "a pixel, as in x / np.float32(255)."
        )
    shape = getattr(ali.decoder, "x_shape", None)
    if shape is not None and tuple(x.shape[1:]) != tuple(shape):
        raise ValueError(wrong_shape("x", x.shape, shape))


def check_codes(ali: ALI, z: Array) -> None:
    """Raise a ValueError for codes that are not an array [B, Z]."""
    if getattr(z, "ndim", None) != 2 or z.shape[1] != latent_dim(ali):
        given = list(z.shape) if hasattr(z, "shape") else f"that of a {type(z).__name__}"
        raise ValueError(
            f"The shape of z is {given}: codes of this model are an array [N, {latent_dim(ali)}]."
        )


def wrong_shape(what: str, given: Sequence[int], shape: Sequence[int]) -> str:
    """Return the message that an array is not [N, *shape], with the cure where it can be told."""
    given, shape = tuple(given), tuple(shape)
    if given == shape:
        cure = f"add the axis of rows, {what}[None]"
    elif (*given[1:], 1) == shape:
        cure = f"add the axis of channels, {what}[..., None]"
    elif len(given) == 4 and (*given[2:], given[1]) == shape:
        cure = f"put the channels last, np.moveaxis({what}, 1, -1)"
    elif len(given) > 1 and math.prod(given[1:]) == math.prod(shape):
        cure = f"reshape it, {what}.reshape(-1, {', '.join(map(str, shape))})"
    else:
        cure = _images_cure(what, given, shape) if len(shape) == 3 else "bring the data to this shape"
    wanted = ", ".join(map(str, ("N", *shape)))
    return f"{what} has the shape {list(given)}, and this model takes [{wanted}]: {cure}."


def _images_cure(what: str, given: tuple[int, ...], shape: tuple[int, ...]) -> str:
    """Return how one image or many come to the size and the channels of `shape`, (H, W, C)."""
    height, width, channels = shape
    if given[-2:] == (height, width) and len(given) in (2, 3) and channels > 1:  # grey
        cure = f"repeat the channel, np.repeat({what}[..., None], {channels}, axis=-1)"
        if given[0] == channels and len(given) == 3:
            return f"for one image put the channels last, np.moveaxis({what}, 0, -1); for grey images {cure}"
        return cure
    if len(given) in (3, 4) and given[-3:-1] == (height, width):
        return _channels_cure(what, given[-1], channels)
    if len(given) in (3, 4):
        return f"resize the images to {height}x{width} pixels with {channels} channel{'s' * (channels > 1)}"
    return "bring the data to this shape"


def _channels_cure(what: str, given: int, channels: int) -> str:
    """Return how images come to another number of channels; the second of 2 and the fourth of 4 is alpha."""
    if (given, channels) in ((2, 1), (4, 3)):
        return f"leave the transparency out, {what}[..., :{channels}]"
    if (given, channels) == (1, 3):
        return f"repeat the channel, np.repeat({what}, 3, axis=-1)"
    if given in (3, 4) and channels == 1:
        return f"make the images grey, {what}[..., :3].mean(axis=-1, keepdims=True).astype({what}.dtype)"
    return f"bring their {given} channels to {channels}"
