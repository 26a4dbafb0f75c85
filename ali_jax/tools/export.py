"""Export a trained model: encoder and decoder as programs that run without this package, and the weights.

The programs are `jax.export` artefacts: they take any batch size, contain the weights, and run on several
platforms. The encoder takes images as uint8, as they are stored. Golden outputs and a README accompany them.
Needs the packages of the extra `export`.
"""

import importlib.metadata
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import export as jax_export

from ali_jax import data, model, networks
from ali_jax.game import Game, member_of
from ali_jax.networks.convolutions import compiler_options, platform_of
from ali_jax.records.workdir import RunError, write_text
from ali_jax.types import ALI, Array, TrainState, Variables

PLATFORMS = ("cpu", "cuda", "tpu")
PACKAGES = ("flatbuffers", "safetensors")  # jax.export serialises with flatbuffers
GOLDEN_ROWS = 4
TOLERANCE = 1e-4  # of golden outputs, absolute and relative, as platforms round differently


class _Program(NamedTuple):
    """A function to export, and the shape and type of one row of each argument."""

    name: str
    function: Callable[..., Array]
    rows: tuple[jax.ShapeDtypeStruct, ...]


def export(game: Game, state: TrainState, folder: Path) -> list[Path]:
    """Write the model of a run into a folder: programs, golden outputs, weights, README; return their paths.

    The weights are the averaged ones if the run has them. Of a population the first member is exported.

    Raises:
      ValueError: a required package is not installed.
      RunError: the output of an exported program differs from the model's.
    """
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise ValueError(f"Exporting needs {' and '.join(missing)}: pip install 'ali_jax[export]'.")
    from safetensors.numpy import save_file

    if game.members:
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
    save_file(flat_weights(variables), folder / "weights.safetensors")
    write_text(folder / "README.md", _readme(game, int(state.step), golden, paths[0]))
    return [*paths, *(folder / name for name in ("golden.npz", "weights.safetensors", "README.md"))]


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


def flat_weights(variables: Variables) -> dict[str, np.ndarray]:
    """Return the arrays of all networks by names such as encoder/params/mu/kernel."""
    named = {
        f"{network}/{kind}": tree
        for kind, trees in variables._asdict().items()
        for network, tree in trees._asdict().items()
    }
    flat = traverse_util.flatten_dict(named, sep="/")
    return {name: np.asarray(flat[name]) for name in sorted(flat)}


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


def _readme(game: Game, step: int, golden: dict[str, Any], encoder: Path) -> str:
    exported = jax_export.deserialize(bytearray(encoder.read_bytes()))
    shapes = {name: f"{a.dtype} [B, {', '.join(map(str, a.shape[1:]))}]" for name, a in golden.items()}
    y_in = ", golden['y']" if "y" in golden else ""
    condition = f"\n- `y`, the condition, {shapes['y']}, is the second argument of both" if y_in else ""
    unit = (
        f"images as stored, 0 to {game.dataset.divisor:g}"
        if golden["x"].dtype == np.uint8
        else "data as stored"
    )
    range_of_x = ", in [0, 1]" if golden["x"].dtype == np.uint8 else ""
    return f"""# {game.dataset.name}: encoder and decoder of ALI after {step:,} steps

Needs `jax` (exported with {importlib.metadata.version("jax")}), `flatbuffers` and `numpy`, but not ali_jax.

```python
import jax, numpy as np
load = lambda name: jax.export.deserialize(bytearray(open(name, "rb").read()))
golden = np.load("golden.npz")
z = load("encoder.jax").call(golden["x"]{y_in})
x_hat = load("decoder.jax").call(z{y_in})
```

- `encoder.jax`: x, {shapes["x"]}, {unit}, to the mean code z, {shapes["z"]}
- `decoder.jax`: z to x_hat, {shapes["x_hat"]}{range_of_x}; samples are decodings of z ~ N(0, I){condition}
- B is any batch size; platforms: {", ".join(exported.platforms)}
- `weights.safetensors`: parameters and batch statistics of all three networks, float32

`golden.npz` holds inputs and the outputs of the programs. On other platforms they agree up to rounding:

```python
np.testing.assert_allclose(z, golden["z"], rtol={TOLERANCE}, atol={TOLERANCE})
np.testing.assert_allclose(x_hat, golden["x_hat"], rtol={TOLERANCE}, atol={TOLERANCE})
```
"""
