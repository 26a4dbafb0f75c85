"""The weights of a trained model by name, and in a safetensors file: what an exported folder holds.

Reading and writing files needs the package safetensors, of the extra `export`.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from ali_jax.records.workdir import RunError
from ali_jax.types import Networks, Variables

FILE = "weights.safetensors"  # in the folder of `--mode export`


def flat_weights(variables: Variables) -> dict[str, np.ndarray]:
    """Return the arrays of all networks by names such as encoder/params/mu/kernel."""
    named = {
        f"{network}/{kind}": tree
        for kind, trees in variables._asdict().items()
        for network, tree in trees._asdict().items()
    }
    flat = traverse_util.flatten_dict(named, sep="/")
    return {name: np.asarray(flat[name]) for name in sorted(flat)}


def nested_weights(weights: dict[str, np.ndarray]) -> Variables:
    """Return weights by the names of `flat_weights` as variables."""
    tree: Any = traverse_util.unflatten_dict(weights, sep="/")
    of_networks = [
        [tree.get(role, {}).get(kind, {}) for role in Networks._fields] for kind in Variables._fields
    ]
    return Variables(*(Networks(*trees) for trees in of_networks))


def is_exported(folder: Path) -> bool:
    """Whether a folder is one of `--mode export`: it has weights and no checkpoints."""
    return (folder / FILE).is_file() and not (folder / "checkpoints").is_dir()


def write(folder: Path, variables: Variables, step: int) -> Path:
    """Write the weights of a model after a number of steps into a folder; return the path of the file."""
    from safetensors.numpy import save_file

    save_file(flat_weights(variables), folder / FILE, metadata={"step": str(step)})
    return folder / FILE


def read(folder: Path, expected: Variables) -> tuple[Variables, int]:
    """Read the weights in an exported folder; return them and the number of steps of their training.

    Args:
      folder: the folder of `--mode export`.
      expected: the shapes that the networks of its config have.

    Raises:
      ValueError: safetensors is not installed.
      RunError: the file is damaged, or holds weights of other networks.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise ValueError(f"Reading {folder} needs safetensors: pip install 'ali_jax[export]'.") from None

    path = folder / FILE
    try:
        with safe_open(path, framework="numpy") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            step = int((file.metadata() or {}).get("step", 0))
    except (OSError, SafetensorError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}. Export the model again.") from None
    variables = nested_weights(weights)
    if jax.tree.map(np.shape, variables) != jax.tree.map(np.shape, expected):
        raise RunError(
            f"{path} holds the weights of other networks than {folder / 'config.json'} describes: export the "
            "model again."
        )
    return variables, step
