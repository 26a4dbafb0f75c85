"""Export a trained model: encoder and decoder as programs that run without this package, and the weights.

The programs are `jax.export` artefacts: they take any batch size, contain the weights, and run on several
platforms. The encoder takes images as uint8, as they are stored. Golden outputs, the config, and a model card
(`README.md`) accompany them. Needs the packages of the extra `export`.
"""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from ali_jax import config as configs
from ali_jax import data, model, networks
from ali_jax.config import Config
from ali_jax.game import Game, member_of
from ali_jax.networks.convolutions import compiler_options, platform_of
from ali_jax.records import known_data
from ali_jax.records import weights as weights_file
from ali_jax.records.read import read_run
from ali_jax.records.workdir import RunError, write_text
from ali_jax.tools import card
from ali_jax.types import ALI, Array, TrainState, Variables

PLATFORMS = ("cpu", "cuda", "tpu")
PACKAGES = ("flatbuffers", "safetensors", "yaml")  # jax.export serialises with flatbuffers
TEXTS = ("config.json", "data.json", "README.md")
GOLDEN_ROWS = 4
TOLERANCE = 1e-4  # of golden outputs, absolute and relative, as platforms round differently


class _Program(NamedTuple):
    """A function to export, and the shape and type of one row of each argument."""

    name: str
    function: Callable[..., Array]
    rows: tuple[jax.ShapeDtypeStruct, ...]


def export(game: Game, state: TrainState, folder: Path, workdir: Path | None = None) -> list[Path]:
    """Write the model of a run into a folder: programs, golden outputs, weights, card; return their paths.

    The weights are the averaged ones if the run has them. Of a population the first member is exported.
    `ali_jax.load` reads the folder.

    Args:
      game: the run, with its data.
      state: its trained model.
      folder: where to write; it is made if there is none.
      workdir: the folder of the run, whose last evaluation stands in the card; None leaves the numbers out.

    Raises:
      ValueError: a required package is not installed.
      RunError: the output of an exported program differs from the model's.
    """
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise ValueError(f"Exporting needs {' and '.join(missing)}: pip install 'ali_jax[export]'.")
    members = len(game.members)
    if members:
        game, state = game.members[0], member_of(state, 0)
    config = game.config.copy_and_resolve_references()
    config.lowering = "native"  # the CPU's forms would be slow on the other platforms
    split = game.dataset.test
    ali = networks.build(config, x_shape=split.shape)
    weights = state.variables if state.ema is None else state.ema
    variables = jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0)), weights)
    batch = split.rows(np.arange(min(GOLDEN_ROWS, len(split))))
    y = () if batch.y is None else (np.asarray(batch.y),)
    x = np.asarray(batch.x)

    folder.mkdir(parents=True, exist_ok=True)
    rows = tuple(jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for a in (x, *y))
    z_row = jax.ShapeDtypeStruct((model.latent_dim(ali),), jnp.float32)
    encoder = _Program("encoder", _encoder(ali, variables, game.dataset.divisor), rows)
    decoder = _Program("decoder", _decoder(ali, variables), (z_row, *rows[1:]))
    paths = [folder / f"{program.name}.jax" for program in (encoder, decoder)]
    for program, path in zip((encoder, decoder), paths, strict=True):
        path.write_bytes(export_program(program.function, program.rows))
    z = _checked(encoder, paths[0], x, *y)
    x_hat = _checked(decoder, paths[1], z, *y)

    golden: dict[str, Any] = {"x": x, "z": z, "x_hat": x_hat, **dict(zip(("y",), y, strict=False))}
    np.savez(folder / "golden.npz", **golden)
    weights_file.write(folder, variables, int(state.step))
    write_text(folder / "config.json", configs.to_json(_published(game.config)))
    known_data.write(folder, _kind_of(game.dataset))
    program = card.Program(golden, _platforms(paths[0]), TOLERANCE)
    run = None if workdir is None else read_run(workdir)
    text = card.model_card(game.config, game.dataset, variables, int(state.step), program, run, members)
    write_text(folder / "README.md", text)
    return [*paths, *(folder / name for name in ("golden.npz", weights_file.FILE, *TEXTS))]


def _published(config: Config) -> Config:
    """Return a config without what only its own machine and its training need: paths, and frozen networks."""
    return configs.with_values(
        config,
        {
            "dataset.path": "",
            "dataset.directory": "",
            "evaluation.inception_weights": "",
            "evaluation.dinov2_weights": "",
            "init_from": "",
            "frozen": (),
        },
    )


def _kind_of(dataset: data.Dataset) -> dict[str, Any]:
    """Return the facts about data that say what a model takes, without values of their rows."""
    facts = data.facts.describe(dataset)
    without = {"digest": "", "labels": "", "values": ""}
    return {**facts, **{part: {**facts[part], **without} for part in ("train", "test")}}


def _platforms(path: Path) -> tuple[str, ...]:
    return tuple(jax_export.deserialize(bytearray(path.read_bytes())).platforms)


def export_program(function: Callable[..., Array], rows: Sequence[jax.ShapeDtypeStruct]) -> bytes:
    """Serialise a function of arrays that share a batch axis, which may have any length.

    The program is for all of `PLATFORMS` or, if it cannot be lowered for all together, for those it can be
    lowered for one by one.

    Args:
      function: what is exported, with the arrays that it closes over.
      rows: shape and type of one row of each argument.

    Raises:
      ValueError: it cannot be lowered for any platform.
    """
    (batch,) = jax_export.symbolic_shape("b")
    arguments = [jax.ShapeDtypeStruct((batch, *row.shape), row.dtype) for row in rows]

    def lowered(names: Sequence[str]) -> jax_export.Exported:
        return jax_export.export(jax.jit(function), platforms=names)(*arguments)

    try:
        return bytes(lowered(PLATFORMS).serialize())
    except (NotImplementedError, ValueError):
        usable = [name for name in PLATFORMS if _succeeds(lowered, [name])]
        if not usable:
            raise
        return bytes(lowered(usable).serialize())


def _encoder(ali: ALI, variables: Variables, divisor: float) -> Callable[..., Array]:
    def encode(x: Array, y: Array | None = None) -> Array:
        return model.encode(ali, variables, data.unit(x, divisor), y)

    return encode


def _decoder(ali: ALI, variables: Variables) -> Callable[..., Array]:
    def decode(z: Array, y: Array | None = None) -> Array:
        return model.decode(ali, variables, z, y)

    return decode


def _checked(program: _Program, path: Path, *arguments: np.ndarray) -> np.ndarray:
    """Call the program in a file and return its output, if it agrees with the function's."""
    platform = platform_of()
    exported = np.asarray(jax_export.deserialize(bytearray(path.read_bytes())).call(*arguments))
    run = jax.jit(program.function, compiler_options=compiler_options(platform))
    expected = np.asarray(run(*arguments))
    if not np.allclose(exported, expected, rtol=TOLERANCE, atol=TOLERANCE):
        error = float(np.abs(exported - expected).max())
        raise RunError(
            f"The output of the exported {program.name} differs from the model's by {error:.3g}: do not use "
            f"{path}."
        )
    return exported


def _succeeds(function: Callable[[Sequence[str]], Any], names: Sequence[str]) -> bool:
    try:
        function(names)
    except (NotImplementedError, ValueError):
        return False
    return True
