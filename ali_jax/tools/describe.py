"""Describe what a config trains, without training it: layers, shapes, parameters, operations and bytes."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from ali_jax import data, model, networks, train
from ali_jax.config import Config, average_decay
from ali_jax.game import parts
from ali_jax.types import ALI, Batch, Networks, PyTree, TrainState


def describe(config: Config) -> dict[str, Any]:
    """Describe the networks and the training step of a config.

    Returns:
      parameters: the number of trained parameters of each network.
      frozen_parameters: those of the random projection of conditions, which all networks share.
      flops_per_step: floating-point operations of one training step at the config's batch size, from XLA's
        `cost_analysis` of one step compiled for a CPU with XLA's own convolutions.
      state_bytes: the size of the TrainState.
      layers: see `layers`, in the order in which they are called.

    Raises:
      ValueError: the shape of the data is unknown, or the networks do not fit it.
    """
    shape = data_shape(config)
    native = config.copy_and_resolve_references()
    native.lowering = "native"
    ali = networks.build(native, x_shape=shape)
    tx = parts.make_optimizer(config)
    batch = abstract_batch(config, shape)
    state = jax.eval_shape(parts.make_init(config, ali, tx), jax.random.PRNGKey(0), batch)
    return {
        "parameters": {role: _size(params) for role, params in state.variables.params._asdict().items()},
        "frozen_parameters": _frozen_parameters(config),
        "flops_per_step": float(compile_step(config, ali, state, batch).cost_analysis()["flops"]),
        "state_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)),
        "layers": layers(ali, state, batch),
    }


def abstract_batch(config: Config, shape: tuple[int, ...]) -> Batch:
    """Return the shapes of a step's batch for x of this shape.

    Raises:
      ValueError: the networks are conditional, and `config.condition.size` is 0.
    """

    def rows(*axes: int, dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct((config.batch_size * (2 if semi else 1), *axes), dtype)

    semi = config.loss == "semi_supervised"
    conditional, size = config.dataset.conditional, config.condition.size
    if conditional and not size:
        raise ValueError("The networks are conditional: set config.condition.size, the number of conditions.")
    return Batch(rows(*shape), rows(size) if conditional else None, rows(dtype=jnp.int32) if semi else None)


def _frozen_parameters(config: Config) -> int:
    is_frozen = config.dataset.conditional and not config.condition.learned
    return (config.condition.size + 1) * config.condition.embedding if is_frozen else 0


def data_shape(config: Config) -> tuple[int, ...]:
    """Return the shape of one x, from the config or, if it has none, from the data.

    Raises:
      ValueError: the config has no shape and the data cannot be loaded.
    """
    source = config.dataset
    if source.shape:
        return tuple(source.shape)
    try:
        loaded = data.load(
            source.name,
            path=source.path,
            directory=source.directory,
            stack=source.stack,
            resize=source.resize,
            fit=source.fit,
        )
        return loaded.train.shape
    except data.DataError as error:
        raise ValueError(
            "The shape of the data is unknown: set config.dataset.shape, "
            f"e.g. --config.dataset.shape='(32, 32, 3)'. ({error})"
        ) from None


def layers(ali: ALI, state: TrainState, batch: Batch) -> dict[str, list[dict[str, Any]]]:
    """List each network's layers with parameters: name, output shape of one example, parameter count."""
    rows = model.packing(ali)
    x, y = (None if a is None else jnp.zeros((rows, *a.shape[1:])) for a in (batch.x, batch.y))
    z = jnp.zeros((rows, model.latent_dim(ali)))
    arguments = Networks((x, z, y), (z, y), (x, z, y))
    listed = {}
    for role, module, inputs, params, stats in zip(
        Networks._fields, ali, arguments, *state.variables, strict=True
    ):
        calls: list[tuple[tuple[str, ...], list[int]]] = []
        with nn.intercept_methods(partial(_note, calls)):
            flax_variables = model.collections(params, stats)
            jax.eval_shape(partial(module.apply, train=False), flax_variables, *inputs)
        paths = [path for path, _ in calls]
        listed[role] = [
            {"name": "/".join(path), "output": output, "parameters": count}
            for path, output in calls
            if (count := _size(_at(params, path))) and not any(_is_within(other, path) for other in paths)
        ]
    return listed


def compile_step(config: Config, ali: ALI, state: TrainState, batch: Batch) -> Any:
    """Compile one training step for a CPU, to count its operations."""
    # Optimising the machine code would take most of the time and does not change the counts.
    options = {"xla_backend_optimization_level": 0}
    with jax.default_device(jax.devices("cpu")[0]):
        return jax.jit(training_step(config, ali), compiler_options=options).lower(state, batch).compile()


def training_step(config: Config, ali: ALI) -> Callable:
    """Return the training step `(state, batch) -> (state, metrics)` of a config."""
    return partial(
        train.train_step,
        ali,
        parts.make_optimizer(config),
        parts.make_loss(config),
        parts.make_penalties(config),
        ema_decay=average_decay(config),
        gradient=config.gradient,
        augment=parts.make_augment(config),
    )


def show(description: dict[str, Any]) -> None:
    """Print a description as tables on standard output."""
    console = Console(highlight=False, soft_wrap=True)
    for role, rows in description["layers"].items():
        table = Table(title=f"{role}: {description['parameters'][role]:,} parameters", title_justify="left")
        for column in ("layer", "output", "parameters"):
            table.add_column(column, justify="left" if column == "layer" else "right")
        for row in rows:
            table.add_row(row["name"], " x ".join(map(str, row["output"])), f"{row['parameters']:,}")
        console.print(table)
    console.print(f"parameters       {sum(description['parameters'].values()):,}")
    if description["frozen_parameters"]:
        console.print(f"frozen           {description['frozen_parameters']:,}")
    console.print(f"FLOPs per step   {description['flops_per_step']:.4g}")
    console.print(f"bytes of state   {description['state_bytes']:,}")


def _note(calls: list, call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
    """Call a module's method and record its path and the output shape of one example."""
    output = call(*args, **kwargs)
    if context.method_name == "__call__" and context.module.path and output is not None:
        calls.append((context.module.path, list(output.shape[1:])))
    return output


def _is_within(path: tuple[str, ...], outer: tuple[str, ...]) -> bool:
    return len(path) > len(outer) and path[: len(outer)] == outer


def _at(tree: PyTree, path: tuple[str, ...]) -> PyTree:
    for name in path:
        tree = tree.get(name, {})
    return tree


def _size(tree: PyTree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
