"""Whether the layers of a config fit its data."""

from collections.abc import Mapping
from typing import Any

from ali_jax.data.sizes import by, cure
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
    if len(shape) != 3:
        raise ValueError(f"Convolutional networks need images; the data are {by(shape)}.")
    made = shape
    if is_convolutional(decoder):
        made = *(output_size(1, decoder, transpose=True, axis=axis) for axis in (0, 1)), shape[2]
    if made != shape:
        raise ValueError(
            f"The decoder's layers make images of {by(made[:2])}; the data are {by(shape)}: "
            f"{cure(shape, made)}, or use experiments/images.py, whose networks follow the size."
        )
    for role in convolutional:
        if min(output_size(shape[axis], tables[role], axis=axis) for axis in (0, 1)) < 1:
            raise ValueError(f"The images, {by(shape)}, are smaller than the layers of config.{role} need.")
