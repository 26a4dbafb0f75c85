"""What the config may say about a network: values, and whether its layers fit the data."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ali_jax.networks.decoder import OUTPUTS
from ali_jax.networks.encoder import POSTERIORS
from ali_jax.networks.layers import check_choice, is_convolutional, output_size


def check_values(role: str, section: Mapping[str, Any]) -> None:
    """Raise a ValueError for the first value that no network can use; whether layers fit is not looked at."""
    for key, value in section.items():
        if key in _RULES and not _RULES[key].holds(value):
            raise ValueError(f"config.{role}.{key} is {value!r}; {_RULES[key].text}.")
    # Maxout is for the network that says of how many pieces.
    activations = ("relu", "leaky_relu", "maxout") if "pieces" in section else ("relu", "leaky_relu")
    for key, choices in (("activation", activations), ("posterior", POSTERIORS), ("output", OUTPUTS)):
        if key in section:
            check_choice(f"config.{role}.{key}", section[key], choices)


class _Rule(NamedTuple):
    holds: Callable[[Any], bool]
    text: str


def _is_count(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_layer(layer: Any) -> bool:
    if not isinstance(layer, tuple):
        return _is_count(layer)
    return len(layer) in (3, 4) and all(map(_is_count, layer[:3])) and _is_count((*layer, 0)[3], 0)


def _is_number(value: Any, least: float = -math.inf) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value >= least


def _is_clip(value: Any) -> bool:
    return value == () or (all(map(_is_number, value)) and len(value) == 2 and value[0] < value[1])


def _is_frequencies(value: Any) -> bool:
    return value == () or (len(value) == 2 and _is_count(value[0]) and _is_number(value[1], 0))


def _each(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Return the test of a setting that is one value, or a tuple with one per layer."""
    return lambda value: all(map(holds, value if isinstance(value, tuple) else (value,)))


_LAYERS = _Rule(
    _each(_is_layer),
    "each layer must be a positive width, or (kernel, stride, maps) or (kernel, stride, maps, padding) of "
    "positive numbers, where the padding may be 0; for example ((4, 2, 64), (4, 1, 128, 1), 256)",
)
_WIDTHS = _Rule(_each(_is_count), "it must be positive widths, for example (512, 512)")
_NORMS = _Rule(_each(lambda value: isinstance(value, bool)), "it must be True or False, for all or per layer")
_RATES = _Rule(_each(lambda value: _is_number(value, 0) and value < 1), "a rate must lie in [0, 1)")
_FINITE = _Rule(_is_number, "it must be finite")
_NOT_NEGATIVE = _Rule(lambda value: _is_number(value, 0), "it must be finite and not negative")

# What the keys of a network's section may be, beside the choices of `_check_values`.
_RULES = {
    "layers": _LAYERS,
    "x_layers": _LAYERS,
    "pair_layers": _LAYERS,
    "z_layers": _WIDTHS,
    "joint_layers": _WIDTHS,
    "batch_norm": _NORMS,
    "x_batch_norm": _NORMS,
    "x_dropout": _RATES,
    "x_dropout_after": _RATES,
    "z_dropout": _RATES,
    "joint_dropout": _RATES,
    "slope": _NOT_NEGATIVE,
    "init_std": _NOT_NEGATIVE,
    "log_sigma_bias": _FINITE,
    "log_sigma_init": _FINITE,
    "log_sigma_clip": _Rule(_is_clip, "it must be (), or (low, high) with low < high"),
    "frequencies": _Rule(_is_frequencies, "it must be (), or (count, std), such as (64, 3.0)"),
    "width": _Rule(lambda value: _is_count(value, 0), "it must not be negative"),
    "num_classes": _Rule(_is_count, "it must be positive"),
    "packing": _Rule(_is_count, "it must be positive"),
    "pieces": _Rule(_is_count, "it must be positive"),
}


def check_fit(sections: Mapping[str, dict[str, Any]], shape: tuple[int, ...]) -> None:
    """Refuse data that the tables of layers do not fit, and say which do."""
    tables = {
        "encoder": sections["encoder"]["layers"],
        "discriminator": sections["discriminator"].get("x_layers", ()),
        "discriminator.pair_layers": sections["discriminator"].get("pair_layers", ()),
    }
    convolutional = [role for role, table in tables.items() if is_convolutional(table)]
    if sections["encoder"].get("frequencies") and "encoder" in convolutional:
        raise ValueError("config.encoder.frequencies are for perceptrons; its layers are convolutions.")
    decoder = sections["decoder"]["layers"]
    if not convolutional and not is_convolutional(decoder):
        return
    if len(shape) != 3 or shape[0] != shape[1]:
        raise ValueError(f"Convolutional networks need square images; the data are {by(shape)}.")
    made = output_size(1, decoder, transpose=True) if is_convolutional(decoder) else shape[0]
    if made != shape[0]:
        raise ValueError(
            f"The decoder's layers make images of {made}x{made}; the data are {by(shape)}. Resize them "
            f"to {made}x{made}, or use experiments/images.py, whose networks follow the size."
        )
    for role in convolutional:
        if output_size(shape[0], tables[role]) < 1:
            raise ValueError(f"The images, {by(shape)}, are smaller than the layers of config.{role} need.")


def by(shape: Sequence[int]) -> str:
    """Return a shape as 32x32x3."""
    return "x".join(str(n) for n in shape)
