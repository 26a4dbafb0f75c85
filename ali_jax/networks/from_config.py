"""From a config to the three networks.

`config.encoder.name` and its like name a public class of `networks.encoder`, `decoder` or `discriminator`;
the keys beside `name` are its fields.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ali_jax.config import Config, base, check_value
from ali_jax.data.sizes import by, cure
from ali_jax.names import did_you_mean, public_classes
from ali_jax.networks import convolutions, decoder, discriminator, encoder, residual
from ali_jax.networks.fit import check_fit
from ali_jax.networks.layers import Layer, is_convolutional
from ali_jax.types import ALI, Networks

MODULES = (encoder, decoder, discriminator, residual)  # whose public classes a config may name
SIDES = (8, 256)  # the least and the largest side of images whose size the layers follow
LONGEST = 4  # times the shorter side


def build(
    config: Config,
    x_shape: Sequence[int] | None = None,
    *,
    platform: str = "gpu",
    axis_name: str | None = None,
) -> ALI:
    """Make the three networks that a config describes.

    Args:
      config: reads `latent_dim`, `dtype`, `lowering`, `dataset.shape`, `condition`, and the three networks'.
      x_shape: the shape of one x, (H, W, C) or (D,), as the data have it; None: `config.dataset.shape`.
      platform: what the program will be compiled for; with `config.lowering = "auto"` it chooses the form of
        the convolutions (`ali_jax.networks.convolutions`).
      axis_name: the named axis over which batch statistics are synchronised under pmap or shard_map; None in
        a single program over a mesh.

    Returns:
      The modules, without parameters: `init` or `init_state` makes those.

    Raises:
      ValueError: a name, a field or a value that no network has; an image size that the layers do not fit.
    """
    shape = _data_shape(config, x_shape)
    sections = {role: _section(config, role) for role in Networks._fields}
    _follow_size(sections, shape)
    check_fit(sections, shape)
    check_value("dtype", config.dtype)
    shared = {
        "dtype": jnp.dtype(config.dtype),
        "lowering": convolutions.lowering_for(platform, config.lowering),
        "axis_name": axis_name,
        "embedding": config.condition.embedding,
        "embedding_learned": config.condition.learned,
    }
    made = Networks(
        encoder=_make("encoder", sections["encoder"], latent_dim=config.latent_dim, **shared),
        decoder=_make("decoder", sections["decoder"], x_shape=shape, **shared),
        discriminator=_make("discriminator", sections["discriminator"], **shared),
    )
    return Networks(
        *(Untrained(m) if role in config.frozen else m for role, m in zip(made._fields, made, strict=True))
    )


def _data_shape(config: Config, x_shape: Sequence[int] | None) -> tuple[int, ...]:
    stated = tuple(config.dataset.shape)
    shape = stated if x_shape is None else tuple(x_shape)
    if stated and shape != stated:
        raise ValueError(
            f"The networks of this config take data of shape {by(stated)} (config.dataset.shape); the data "
            f"are {by(shape)}: {cure(shape, stated)}, or start from experiments/images.py, whose new "
            "networks follow the size."
        )
    if not shape:
        raise ValueError("The shape of the data is unknown: set config.dataset.shape, e.g. to (32, 32, 3).")
    if len(shape) not in (1, 3) or min(shape) < 1:
        raise ValueError(f"Data must have the shape (H, W, C) or (D,); this is {shape}.")
    return shape


def _section(config: Config, role: str) -> dict[str, Any]:
    """Return one network's keys as arguments of its class; one that it lacks must be at its default."""
    given, defaults = config[role].to_dict(), base()[role].to_dict()
    cls = _network_class(given["name"], role)
    fields = {field.name for field in dataclasses.fields(cls)} | {"name", "width"}
    for key, value in given.items():
        if key not in fields and value != defaults.get(key):
            hint = did_you_mean(key, sorted(fields))
            raise ValueError(f"config.{role}.{key} is set, but {cls.__name__} has no such field.{hint}")
    section = {key: _hashable(value) for key, value in given.items() if key in fields}
    for key, value in section.items():
        check_value(f"{role}.{key}", value)
    return section


def _network_class(name: str, role: str) -> type[nn.Module]:
    classes: dict[str, Any] = {}
    for module in MODULES:
        classes |= public_classes(module)
    if name not in classes:
        hint = did_you_mean(name, sorted(classes))
        raise ValueError(
            f"config.{role}.name is {name!r}.{hint} ali_jax.networks has {', '.join(sorted(classes))}."
        )
    return classes[name]


def _follow_size(sections: Mapping[str, dict[str, Any]], shape: tuple[int, ...]) -> None:
    """Replace the empty table of layers by one that follows the image size, where a width is set."""
    for role, key, table in (
        ("encoder", "layers", pyramid),
        ("decoder", "layers", inverted_pyramid),
        ("discriminator", "x_layers", pyramid),
    ):
        width, section = sections[role].pop("width"), sections[role]
        if "maps" in section:
            key, table = "maps", partial(stage_maps, patch=section["patch"])
        if not width:
            continue
        if section[key]:
            raise ValueError(f"config.{role} sets both width and {key}: give one of them.")
        if len(shape) != 3:
            raise ValueError(f"config.{role}.width is for images; the data are {by(shape)}.")
        section[key] = table(shape[:2], width, what=role)


def _make(role: str, section: dict[str, Any], **given: Any) -> nn.Module:
    cls = _network_class(section["name"], role)
    fields = {field.name for field in dataclasses.fields(cls)}
    arguments = {key: value for key, value in {**section, **given}.items() if key in fields and key != "name"}
    return cls(**arguments)


def _hashable(value: Any) -> Any:
    """Turn lists into tuples, at any depth: Flax fields must be hashable."""
    return tuple(_hashable(v) for v in value) if isinstance(value, (list, tuple)) else value


@dataclasses.dataclass(frozen=True)
class Untrained:
    """A network that is not trained. It always runs with running statistics and without dropout."""

    module: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    def apply(self, *args: Any, train: bool = False, **kwargs: Any) -> Any:
        del train
        return self.module.apply(*args, train=False, **kwargs)


def has_convolutions(config: Config) -> bool:
    """Whether the decoder that a config describes is convolutional; nothing is built."""
    decoder = config.decoder
    return bool(decoder.width) or bool(decoder.get("maps")) or is_convolutional(decoder.layers)


def pyramid(size: int | Sequence[int], width: int, *, what: str) -> tuple[Layer, ...]:
    """Return encoder layers that follow the image size: 4x4 convolutions of stride 2, then one to a vector.

    There are n = max(1, floor(log2(min(H, W) / 4))) of them. Each halves both sides, rounded up, so that the
    last layer spans a grid whose shorter side is 4 to 8. `width` maps at first, doubled per layer up to
    eightfold.

    Args:
      size: H and W, 8 to 256 each, the longer at most four times the shorter; one number for squares.
      width: maps of the first layer.
      what: the network, for messages.
    """
    sides = _sides(size, what)
    maps = _doubling(width, len(sides) - 1)
    halvings = [(4, 2, m, 1, *_odd(before)) for before, m in zip(sides, maps, strict=False)]
    return (*halvings, (_spanning(sides[-1]), 1, 2 * maps[-1]))


def inverted_pyramid(size: int | Sequence[int], width: int, *, what: str) -> tuple[Layer, ...]:
    """Return the decoder layers that mirror `pyramid`: a vector to the grid, then stride 2 up to the size."""
    sides = _sides(size, what)
    maps = _doubling(width, len(sides) - 1)
    doublings = zip(sides[-2::-1], (*maps[-2::-1], width), strict=True)
    return ((_spanning(sides[-1]), 1, maps[-1]), *((4, 2, m, 1, *_odd(after)) for after, m in doublings))


def stage_maps(size: int | Sequence[int], width: int, *, what: str, patch: int = 1) -> tuple[int, ...]:
    """Return the maps of the stages of a residual network that follow the image size, as `pyramid` does.

    Args:
      size, width, what: as `pyramid` takes them.
      patch: 1 for a first stage at the image's own size, 2 for one at half of it.
    """
    return _doubling(width, len(_sides(size, what)) - (patch > 1))


def _doubling(width: int, count: int) -> tuple[int, ...]:
    """Return numbers of maps that double from layer to layer, up to eightfold."""
    return tuple(width * min(2**i, 8) for i in range(count))


def _sides(size: int | Sequence[int], what: str) -> list[tuple[int, int]]:
    """Return the sides of the maps before each halving, and those of the grid at the end."""
    height, width = (size, size) if isinstance(size, int) else size
    short, long = sorted((height, width))
    if not (SIDES[0] <= short and long <= SIDES[1] and long <= LONGEST * short):
        raise ValueError(
            f"The layers of config.{what} follow the image size: {SIDES[0]} to {SIDES[1]} pixels a side, the "
            f"longer at most {LONGEST} times the shorter. The images are {height}x{width}: set "
            "config.dataset.resize, such as 64 or (96, 128), or state layers that fit."
        )
    sides = [(height, width)]
    for _ in range(max(1, int(math.log2(short / 4)))):
        height, width = -(-height // 2), -(-width // 2)
        sides.append((height, width))
    return sides


def _odd(sides: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Return the entry of a layer that halves these sides, where one of them is odd."""
    odd = sides[0] % 2, sides[1] % 2
    return (odd,) if any(odd) else ()


def _spanning(sides: tuple[int, int]) -> int | tuple[int, int]:
    return sides[0] if sides[0] == sides[1] else sides
