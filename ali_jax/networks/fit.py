"""Whether the layers of a config fit its data."""

from collections.abc import Mapping, Sequence
from typing import Any

from ali_jax.networks.layers import is_convolutional, output_size


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
