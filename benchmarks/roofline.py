"""Compare the time of a training step with the lower bounds that the machine sets.

    python -m benchmarks.roofline --config experiments/svhn.py [--batch-size B] [--seconds S]
        [--config.KEY=VALUE ...]

Operations and bytes are given as the least that the mathematics needs, and as XLA's cost analysis counts them
in the compiled step. A floor is the least count over a ceiling: that of this machine, measured with a matrix
product and a copy, and those of data sheets. A step whose data exceed the caches cannot beat either floor.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ali_jax import networks, train
from ali_jax.config import Config
from ali_jax.game import parts
from ali_jax.networks.layers import Layer, per_layer
from ali_jax.program.command import load_config, override
from ali_jax.tools.describe import compile_step
from ali_jax.types import ALI, Batch, Networks, TrainState
from benchmarks import jax_variants
from benchmarks.compare import load, markdown

# Passes over the output of a layer with batch norm. Kernels fuse everything elementwise and end at matrix
# products, convolutions and sums over the batch. Forward: written, read for the statistics, read to be
# normalised, written, read by the next layer. Backward: its cotangent written, both read for the sums, both
# read to be combined, written, read for the input's gradient; that and the input read for the kernel's.
PASSES_BATCH_NORM = 14
# Without: written, read; cotangent written; both read for the input's gradient; both for the kernel's.
PASSES = 7
ADAM_BYTES = 28  # per parameter: parameter, both moments and gradient read, the first three written, float32


class Cost(NamedTuple):
    """The cost of one layer on one example."""

    macs: int  # multiply-adds of the forward pass
    outputs: int  # values that the linear map returns
    batch_norm: bool


class Ceiling(NamedTuple):
    """The peak rates of a device."""

    flops: float  # per second
    bandwidth: float  # bytes per second


# Dense peaks from data sheets. float32 means tf32 and, on the TPU, products in bfloat16.
DEVICES = {
    "H100 SXM": {"float32": Ceiling(494.7e12, 3.35e12), "bfloat16": Ceiling(989.4e12, 3.35e12)},
    "A100 SXM 80 GB": {"float32": Ceiling(156e12, 2.039e12), "bfloat16": Ceiling(312e12, 2.039e12)},
    "TPU v5e": {"float32": Ceiling(197e12, 0.819e12), "bfloat16": Ceiling(197e12, 0.819e12)},
}


class Floors(NamedTuple):
    """Lower bounds on the time of a step, in seconds."""

    flops: float
    traffic: float


def layer_costs(config: Config) -> Networks[list[Cost]]:
    """Return the costs of the layers of the three networks, for one x, one z and one pair.

    Raises:
      ValueError: a network has `width`, so that its layers follow the image size and are not in a table.
    """
    for role in Networks._fields:
        if config[role].width:
            raise ValueError(f"roofline: config.{role}.width is set; it needs tables of layers.")
    shape, z = tuple(config.dataset.shape), config.latent_dim
    encoder, decoder, discriminator = config.encoder, config.decoder, config.discriminator
    noise = encoder.posterior == "noise"

    size = (prod(shape) + z,) if noise else shape
    stack, size = _stack(encoder.layers, size, encoder.batch_norm)
    of_encoder = [*stack, _dense(prod(size), z if noise else 2 * z)]

    stack, size = _stack(decoder.layers, (z,), decoder.batch_norm, transpose=True)
    pixels = prod(size[:-1])
    of_decoder = [*stack, Cost(pixels * size[-1] * (prod(shape) // pixels), prod(shape), False)]

    pieces = discriminator.pieces if discriminator.activation == "maxout" else 1
    x, x_size = _stack(discriminator.x_layers, shape, discriminator.x_batch_norm, pieces)
    z_stack, z_size = _stack(discriminator.z_layers, (z,), (False,), pieces)
    joint, size = _stack(discriminator.joint_layers, (prod(x_size) + prod(z_size),), (False,), pieces)
    return Networks(of_encoder, of_decoder, [*x, *z_stack, *joint, _dense(prod(size), 1)])


def least_flops(config: Config, batch_size: int) -> float:
    """Return the operations that the gradients of one step need, two per multiply-add of a linear map.

    Forward pass, input gradient and kernel gradient cost the same. Gradients of data and noise are not
    needed. If batch norm couples the pairs in D, its input gradients are needed once for each player.
    """
    costs = layer_costs(config)
    forward = Networks(*(sum(cost.macs for cost in network) for network in costs))
    first = _first_macs(config, costs)
    macs = 3 * forward.encoder - costs.encoder[0].macs + 3 * forward.decoder - costs.decoder[0].macs
    macs += 6 * forward.discriminator - first
    if _coupled(config):
        macs += 2 * forward.discriminator - 2 * first
    return 2.0 * macs * batch_size


def traffic(config: Config, batch_size: int) -> float:
    """Return the least bytes that a step moves, by `PASSES` and `ADAM_BYTES`; one pullback through D."""
    costs, itemsize = layer_costs(config), jnp.dtype(config.dtype).itemsize
    passes = [
        sum(cost.outputs * (PASSES_BATCH_NORM if cost.batch_norm else PASSES) for cost in network)
        for network in costs
    ]
    moved = (passes[0] + passes[1] + 2 * passes[2]) * itemsize * batch_size
    _, state, _ = abstract_step(config, batch_size)
    return float(moved + ADAM_BYTES * sum(leaf.size for leaf in jax.tree.leaves(state.variables.params)))


def floors(config: Config, batch_size: int, ceiling: Ceiling) -> Floors:
    """Return the lower bounds on the time of a step on a device."""
    return Floors(
        least_flops(config, batch_size) / ceiling.flops, traffic(config, batch_size) / ceiling.bandwidth
    )


def compiled_step(config: Config, batch_size: int) -> Any:
    """Compile one step for a CPU, with native convolutions, to count its operations."""
    native = config.copy_and_resolve_references()
    native.lowering = "native"
    return compile_step(config, *abstract_step(native, batch_size))


def measured_ceiling(dtype: str) -> Ceiling:
    """Measure the best of several matrix products and copies on the first device."""
    cpu = jax.devices()[0].platform == "cpu"
    side, length = (1536, 2**25) if cpu else (8192, 2**28)
    a = jax.random.normal(jax.random.PRNGKey(0), (side, side), jnp.dtype(dtype))
    x = jnp.zeros((length,), jnp.float32)
    product = _best(jax.jit(lambda a: a @ a), a)
    copy = _best(jax.jit(lambda x: x + 1), x)
    return Ceiling(2 * side**3 / product, 2 * x.nbytes / copy)


def main(argv: Sequence[str] | None = None) -> int:
    """Print floors and the fraction reached, in Markdown, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.roofline",
        description="Print floors and what a step reaches.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, help="FILE or FILE:VARIANT")
    parser.add_argument("--batch-size", type=int, default=0, help="instead of the config's")
    parser.add_argument("--seconds", type=float, default=5.0, help="for measuring the step")
    options, overrides = parser.parse_known_args(argv)
    try:
        config = load_config(options.config)
        override(config, overrides)
        if options.batch_size < 0 or not options.seconds > 0:
            raise ValueError("--batch-size and --seconds must be positive.")
        batch_size = options.batch_size or config.batch_size
        needed = least_flops(config, batch_size), traffic(config, batch_size)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    cost = compiled_step(config, batch_size).cost_analysis()
    print(f"{options.config}, batch {batch_size}, {config.dtype}\n")
    rows = [
        ["one step", "GFLOP", "GB"],
        ["---", "---:", "---:"],
        ["needed", f"{needed[0] / 1e9:.4g}", f"{needed[1] / 1e9:.4g}"],
        ["compiled", f"{cost['flops'] / 1e9:.4g}", f"{cost['bytes accessed'] / 1e9:.4g}"],
    ]
    print(markdown(rows) + "\n")
    here = measured_ceiling(config.dtype)
    step = _step_seconds(config, batch_size, options.seconds)
    rows = [
        ["device", "TFLOP/s", "GB/s", "FLOP floor, ms", "traffic floor, ms", "step, ms", "of the floors"],
        ["---"] + ["---:"] * 6,
        _row(f"{jax.devices()[0].device_kind}, measured", here, floors(config, batch_size, here), step),
    ]
    for name, ceilings in DEVICES.items():
        ceiling = ceilings[config.dtype]
        rows.append(_row(name, ceiling, floors(config, batch_size, ceiling), None))
    print(f"{markdown(rows)}\n\nload {load()}")
    return 0


def _row(name: str, ceiling: Ceiling, floor: Floors, step: float | None) -> list[str]:
    found = ["", ""]
    if step is not None:
        found = [f"{1e3 * step:.4g}", f"{floor.flops / step:.0%}, {floor.traffic / step:.0%}"]
    numbers = (ceiling.flops / 1e12, ceiling.bandwidth / 1e9, 1e3 * floor.flops, 1e3 * floor.traffic)
    return [name, *(f"{number:.4g}" for number in numbers), *found]


def _step_seconds(config: Config, batch_size: int, seconds: float) -> float:
    """Train like the program for about `seconds`, and return the seconds of one step."""
    ours = jax_variants.Ours(config, batch_size)
    ours.start()
    steps, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        ours.run(ours.unit)
        steps += ours.unit
    return spent / steps


def _best(function: Callable, *arguments: Any) -> float:
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(8):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return min(times)


def abstract_step(config: Config, batch_size: int) -> tuple[ALI, TrainState, Batch]:
    """Return the networks, and the shapes of a step's state and batch."""
    ali = networks.build(config)
    x: Any = jax.ShapeDtypeStruct((batch_size, *config.dataset.shape), jnp.float32)
    init = partial(train.init_state, ali, parts.make_optimizer(config), ema=config.ema_decay > 0)
    return ali, jax.eval_shape(init, jax.random.PRNGKey(0), Batch(x)), Batch(x)


def _stack(
    table: Sequence[Layer],
    size: tuple[int, ...],
    batch_norm: Any,
    pieces: int = 1,
    *,
    transpose: bool = False,
) -> tuple[list[Cost], tuple[int, ...]]:
    """Return the costs of a table's layers on inputs of `size`, (H, W, C) or (F,), and the last size."""
    costs = []
    for layer, norm in zip(table, per_layer(batch_norm, len(table), "batch_norm"), strict=True):
        if isinstance(layer, int):
            costs.append(_dense(prod(size), layer)._replace(batch_norm=norm))
            size = (layer // pieces,)
            continue
        kernel, stride, maps, padding = (*layer, 0)[:4]
        side, channels = (size[0], size[-1]) if len(size) == 3 else (1, size[0])
        if transpose:
            taken, side = side, stride * (side - 1) + kernel - 2 * padding
        else:
            taken = side = (side + 2 * padding - kernel) // stride + 1
        costs.append(Cost(taken**2 * kernel**2 * channels * maps, side**2 * maps, norm))
        size = (side, side, maps // pieces)
    return costs, size


def _dense(features: int, width: int) -> Cost:
    return Cost(features * width, width, False)


def _first_macs(config: Config, costs: Networks[list[Cost]]) -> int:
    """Return the multiply-adds of the layers through which x and z enter D."""
    heads = [0] if config.discriminator.x_layers or not config.discriminator.z_layers else []
    heads += [len(config.discriminator.x_layers)] if config.discriminator.z_layers else []
    return sum(costs.discriminator[i].macs for i in heads)


def _coupled(config: Config) -> bool:
    return networks.build(config).discriminator.coupled


if __name__ == "__main__":
    sys.exit(main())
