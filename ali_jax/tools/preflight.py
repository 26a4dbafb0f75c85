"""Predict what a training step needs of a TPU slice, without one: libtpu compiles on any machine.

All numbers come from the compiler and from data sheets; none is a measurement. Neither data nor a workdir is
read.
"""

import importlib.util
import math
import os
import re
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.console import Console

from ali_jax import networks
from ali_jax.config import Config
from ali_jax.game import compile, parts, population
from ali_jax.tools.describe import abstract_batch, data_shape, training_step
from ali_jax.types import PyTree


class Chip(NamedTuple):
    """A TPU's data sheet."""

    hbm: float  # bytes
    flops: float  # per second in bfloat16, the default precision of float32 products too
    bandwidth: float  # of HBM, bytes per second
    interconnect: float  # bytes per second that a chip sends over all its links in a slice
    dimensions: int  # of the torus
    pod: int  # chips in the largest slice
    options: dict[str, str]  # of `get_topology_desc`


# cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e. Two cores of v4 are one device, as on a real slice.
CHIPS = {
    "v4": Chip(32 * 2**30, 275e12, 1.228e12, 300e9, 3, 4096, {"chip_config_name": "megacore"}),
    "v5e": Chip(16 * 2**30, 197e12, 0.819e12, 200e9, 2, 256, {}),
    "v5p": Chip(95 * 2**30, 459e12, 2.765e12, 600e9, 3, 8960, {}),
    "v6e": Chip(32 * 2**30, 918e12, 1.64e12, 400e9, 2, 256, {}),
}

# Compiling needs no TPU: keep libtpu from searching for one and from locking the machine.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_MIN_LOG_LEVEL": "4",
    "TPU_STDERR_LOG_LEVEL": "4",
}

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s64": 8, "u64": 8, "f64": 8}
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


def preflight(config: Config, topology: str) -> dict[str, Any]:
    """Compile the training step for a slice such as "v5e:16x16" and report what each chip needs.

    Returns:
      topology, chips, batch_size, batch_per_chip.
      memory: bytes per chip: `arguments` (the state and the chip's share of the batch), `temporaries`,
        `code`, their sum `peak`, the chip's `hbm`, and what is `left`, for instance for a resident data set.
      flops, bytes: per chip and step, from XLA's cost analysis. `bytes` includes traffic that stays on the
        chip, so the time for `memory` is not a strict bound.
      collectives: `count` and `bytes` of their operands, by kind.
      seconds: lower bounds on the time of a step from `compute`, `memory` and `interconnect`: the counts over
        the data sheet's peaks, without latencies. Collectives run in a ring: an all-reduce of V bytes over N
        chips sends 2 V (N - 1) / N from each.
      bound: the name of the largest of the three; `step_seconds` is its time, if all three overlap.
      efficiency: the speed as a share of that of the same program without communication, as [low, high]: low
        if communication overlaps with nothing, high if with everything. A program for a single chip may move
        fewer bytes: compare the step_seconds of both at the same batch per chip.
      compile_seconds.

    Raises:
      ValueError: the topology does not exist, the number of chips does not divide the batch, the step does
        not fit, or libtpu is not installed.
    """
    chip, dimensions = parse(topology)
    if population.size(config):
        raise ValueError("--mode preflight compiles the step of a single run: leave config.population empty.")
    chips = math.prod(dimensions)
    _check_batch(config, topology, chips)
    mesh = Mesh(np.asarray(_devices(topology, chip, dimensions)), (compile.AXIS,))
    began = time.monotonic()
    compiled = _compile(config, topology, mesh)
    seconds = time.monotonic() - began
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    held = {
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
    }
    new_outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    peak = sum(held.values()) + new_outputs
    if peak > chip.hbm:
        sizes = f"each chip needs {peak / 2**30:.1f} GiB and has {chip.hbm / 2**30:.0f}."
        raise _does_not_fit(config, topology, sizes)
    found = collectives(compiled.as_text())
    return {
        "topology": topology,
        "chips": chips,
        "batch_size": config.batch_size,
        "batch_per_chip": config.batch_size // chips,
        "memory": {**held, "peak": peak, "hbm": int(chip.hbm), "left": int(chip.hbm - peak)},
        **bounds(chip, chips, float(cost["flops"]), float(cost["bytes accessed"]), found),
        "compile_seconds": seconds,
    }


def parse(topology: str) -> tuple[Chip, tuple[int, ...]]:
    """Parse a name such as "v5e:16x16" into chip and sides; a ValueError lists the possible names."""
    kind, _, sides = topology.partition(":")
    if kind not in CHIPS or not re.fullmatch(r"[1-9]\d{0,2}(x[1-9]\d{0,2})*", sides):
        raise ValueError(
            f"--topology is {topology!r}; it must be KIND:SIDES, such as v5e:16x16 or v5p:4x4x4, with one of "
            f"the kinds {', '.join(CHIPS)}."
        )
    dimensions = tuple(map(int, sides.split("x")))
    if len(dimensions) != CHIPS[kind].dimensions:
        raise ValueError(
            f"--topology is {topology!r}; slices of {kind} have {CHIPS[kind].dimensions} sides, such as "
            f"{kind}:{'x'.join('4' * CHIPS[kind].dimensions)}."
        )
    if math.prod(dimensions) > CHIPS[kind].pod:
        raise ValueError(
            f"--topology is {topology!r}, {math.prod(dimensions)} chips; a pod of {kind} has "
            f"{CHIPS[kind].pod}."
        )
    return CHIPS[kind], dimensions


def collectives(program: str) -> dict[str, dict[str, float]]:
    """Count the collectives in the text of a compiled program and the bytes of their operands, by kind."""
    found: dict[str, dict[str, float]] = {}
    for kind, shapes in _collective_lines(program):
        entry = found.setdefault(kind, {"count": 0, "bytes": 0})
        entry["count"] += 1
        entry["bytes"] += sum(shapes) if kind == "all-reduce" else max(shapes)
    return found


def _collective_lines(program: str) -> Iterator[tuple[str, list[int]]]:
    """Yield the kind of each collective and the bytes of each array of its result."""
    pattern = re.compile(rf" = (.*?) ({'|'.join(_COLLECTIVES)})(?:-start)?\(")
    for line in program.splitlines():
        if match := pattern.search(line):
            arrays = re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", match.group(1))
            sizes = [
                _BYTES.get(t, 4) * math.prod(int(n) for n in sides.split(",") if n) for t, sides in arrays
            ]
            yield match.group(2), sizes


def bounds(
    chip: Chip, chips: int, flops: float, moved: float, found: dict[str, dict[str, float]]
) -> dict[str, Any]:
    """Return lower bounds on the time of a step, the largest of them, and the efficiency that follows."""
    share = (chips - 1) / chips
    factor = {"all-reduce": 2 * share, "collective-permute": 1.0}
    sent = sum(entry["bytes"] * factor.get(kind, share) for kind, entry in found.items())
    seconds = {
        "compute": flops / chip.flops,
        "memory": moved / chip.bandwidth,
        "interconnect": sent / chip.interconnect,
    }
    bound = max(seconds, key=lambda name: seconds[name])
    alone = max(seconds["compute"], seconds["memory"])
    return {
        "flops": flops,
        "bytes": moved,
        "collectives": found,
        "seconds": seconds,
        "bound": bound,
        "step_seconds": seconds[bound],
        "efficiency": [alone / (alone + seconds["interconnect"]), alone / seconds[bound]],
    }


def show(report: dict[str, Any]) -> None:
    """Print a report on standard output."""
    console = Console(highlight=False, soft_wrap=True)
    memory, seconds = report["memory"], report["seconds"]
    gib = {name: f"{size / 2**30:.3f}" for name, size in memory.items()}
    console.print(
        f"{report['topology']}: {report['chips']} chips, {report['batch_per_chip']} images a step each"
    )
    console.print(
        f"memory, GiB a chip  {gib['peak']} of {gib['hbm']}: arguments {gib['arguments']}, temporaries "
        f"{gib['temporaries']}, code {gib['code']}; {gib['left']} left for data"
    )
    console.print(f"FLOPs a chip        {report['flops']:.4g}")
    console.print(f"HBM bytes a chip    {report['bytes']:.4g}")
    for kind, entry in report["collectives"].items():
        console.print(f"{kind:<19} {entry['count']:.0f}, of {entry['bytes']:.4g} bytes")
    for name, value in seconds.items():
        holds = "  <- the bound" if name == report["bound"] else ""
        console.print(f"{name:<19} {1e3 * value:.4g} ms at least{holds}")
    low, high = report["efficiency"]
    console.print(f"efficiency          {low:.1%} to {high:.1%} of the speed without communication")
    console.print("These are the compiler's and the data sheet's figures, not measurements.")


def _check_batch(config: Config, topology: str, chips: int) -> None:
    size = config.batch_size
    if size % chips:
        below, above = size // chips * chips, (size // chips + 1) * chips
        sizes = f"{below} or {above}" if below else f"{above}"
        raise ValueError(
            f"config.batch_size is {size}, not a multiple of the {chips} chips of {topology}: set it to "
            f"{sizes}."
        )


def _does_not_fit(config: Config, topology: str, why: str) -> ValueError:
    return ValueError(
        f"The step does not fit {topology} with config.batch_size {config.batch_size}: {why} Take a smaller "
        "batch, more chips, or --config.dtype=bfloat16."
    )


def _devices(topology: str, chip: Chip, dimensions: tuple[int, ...]) -> list[Any]:
    """Return the devices of a topology, which exist only in libtpu."""
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError("--mode preflight compiles with libtpu: pip install 'ali_jax[preflight]'.")
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    options: dict[str, Any] = dict(chip.options)
    if min(dimensions[:2]) < 2:  # smaller than a host
        options["chips_per_host_bounds"] = (*dimensions, 1)[:3]
    try:
        return list(topologies.get_topology_desc(topology, platform="tpu", **options).devices)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"--topology is {topology!r}, which libtpu does not know: {_first(error)}") from None


def _compile(config: Config, topology: str, mesh: Mesh) -> Any:
    """Compile one training step for all devices of a mesh."""
    whole, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), (compile.AXIS,)))
    shape = data_shape(config)
    ali = networks.build(config, x_shape=shape, platform="tpu")
    batch = _placed(abstract_batch(config, shape), split)
    init = parts.make_init(config, ali, parts.make_optimizer(config))
    state = _placed(jax.eval_shape(init, jax.random.PRNGKey(0), batch), whole)
    step = jax.jit(training_step(config, ali), donate_argnums=0, out_shardings=whole)
    try:
        return step.lower(state, batch).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise _does_not_fit(config, topology, _first(error)) from None
        raise ValueError(f"The step does not compile for {topology}: {_first(error)}") from None


def _placed(shapes: PyTree, sharding: NamedSharding) -> PyTree:
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes)


def _first(error: BaseException) -> str:
    return str(error).splitlines()[0][:300]
