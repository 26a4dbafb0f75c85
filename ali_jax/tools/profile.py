"""Trace some training steps, and sum the time on the device by layer and kind.

`jax.profiler` takes the trace and reads it. Its events name the operations of compiled programs; the text of
these programs says from which layer an operation comes (`op_name`) and what it computes. A fused operation
counts for the layer of its result.
"""

import functools
import gc
import itertools
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import rich.box
from jax.profiler import ProfileData, ProfileOptions
from rich.console import Console
from rich.table import Table

from ali_jax import game as games
from ali_jax.config import Config
from ali_jax.records.workdir import RunError

WARM_UP = 2  # calls before the trace: the first compiles
MOST = 30  # rows of the table that is printed
WIDTH = 120  # characters, where standard output is no terminal

FORWARD, BACKWARD, SECOND = "forward", "backward", "second order"

# Components of an op_name that say how a program is built, not which part of the game an operation serves:
# transformations and loops of JAX, methods of Flax modules, equations of einsum.
_BUILDING = re.compile(
    r"p?jit(\(.*\))?|while|body|cond|closed_call|core_call|scan|checkpoint|remat\w*|shard_map|branch_\d+_fun|"
    r"custom_\w+|\w+\.\w+|.*->.*"
)
_TRANSFORMED = re.compile(r"(?:jvp|transpose|vmap|pmap|remat|checkpoint|custom_\w+)\((.*)\)")
_BACKWARD = re.compile(r"transpose\((?=\w)")  # without an argument it is `jax.linear_transpose`
_MOVES = {
    "bitcast",
    "broadcast",
    "concatenate",
    "constant",
    "copy",
    "copy-done",
    "copy-start",
    "dynamic-slice",
    "dynamic-update-slice",
    "gather",
    "get-tuple-element",
    "iota",
    "pad",
    "parameter",
    "reshape",
    "reverse",
    "slice",
    "transpose",
    "tuple",
}
_APPLYING = {
    "all-reduce",
    "map",
    "reduce",
    "reduce-window",
    "scatter",
    "select-and-scatter",
    "sort",
}  # to pairs
_NEAR = 4  # how far away the scope of an operation without one is looked for
_CONTAINERS = {"call", "conditional", "while", "async-start", "async-done"}  # their contents have own events


class Event(NamedTuple):
    """Something that ran on a device."""

    module: str  # the program, or ""
    operation: str  # its name there, or "" if the trace does not tell
    name: str  # of the kernel
    start_ns: float
    duration_ns: float


class Operation(NamedTuple):
    """An operation of a compiled program."""

    opcode: str
    scope: str  # its `op_name` or, if the compiler made it without one, that of a neighbour
    contents: frozenset[str]  # opcodes, and targets of custom calls, of all that it consists of


class Row(NamedTuple):
    """The time per step of one kind of work in one layer."""

    layer: str
    direction: str  # forward, backward or second order
    kind: str
    ms: float
    kernels: float


class Profile(NamedTuple):
    """What the traced steps took, per step, on the first device."""

    steps: int
    wall_ms: float  # of the steps under the trace
    busy_ms: float  # in which anything ran on the device
    kernels: float
    rows: tuple[Row, ...]  # the costliest first


def profile(config: Config, steps: int = 0, folder: Path | None = None) -> dict[str, Any]:
    """Train a few steps as a run would, from its initial state, and trace the last of them.

    Args:
      config: of the run.
      steps: how many are traced, as one call; 0: `config.steps_per_call`.
      folder: where the trace is kept, for XProf or Perfetto; None: it is not.

    Returns:
      The fields of a `Profile`, with `device`.
    """
    steps = steps or config.steps_per_call
    game = games.prepare(config)
    state = games.initial_state(game)
    with _names_of_today(), closing(games.make_feed(game)) as feed:
        call = games.make_call(game, feed, steps)
        for i in range(WARM_UP):
            state, metrics = call(state, feed.load(i * steps, steps))
        data = feed.load(WARM_UP * steps, steps)
        jax.block_until_ready((state, metrics, data))
        found = measure(lambda: call(state, data), steps, folder)
    device = game.mesh.devices.flat[0]
    return {"device": f"{game.mesh.size} x {device.device_kind}", **_as_json(found)}


@contextmanager
def _names_of_today() -> Iterator[None]:
    """Take from the compilation cache only programs with the same names of operations.

    Usually names are no part of a program's key: an earlier version of the code may have given others.
    """
    flag = "jax_compilation_cache_include_metadata_in_key"
    before = getattr(jax.config, flag)
    jax.config.update(flag, True)
    try:
        yield
    finally:
        jax.config.update(flag, before)


def _as_json(found: Profile) -> dict[str, Any]:
    return {**found._asdict(), "rows": [row._asdict() for row in found.rows]}


def measure(function: Callable[[], Any], steps: int, folder: Path | None = None) -> Profile:
    """Trace one call of a function that takes `steps` steps and is compiled; see `Profile`.

    Raises:
      RunError: the trace shows nothing that ran on a device.
    """
    with tempfile.TemporaryDirectory() as temporary:
        events, wall = trace(function, folder or Path(temporary))
    if not events:
        raise RunError(
            "The trace shows nothing that ran on the device. On a GPU JAX's profiler needs CUPTI, which "
            "pip install '.[cuda13]' brings, and the permission to use it."
        )
    return summarise(events, operations(live_programs()), steps, wall)


def trace(function: Callable[[], Any], folder: Path) -> tuple[list[Event], float]:
    """Run a function under the profiler; return what ran on the devices, and the seconds it took."""
    options = ProfileOptions()
    options.python_tracer_level = 0
    with jax.profiler.trace(str(folder), profiler_options=options):
        began = time.perf_counter()
        jax.block_until_ready(function())
        seconds = time.perf_counter() - began
    newest = max(folder.glob("plugins/profile/*/*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    return list(device_events(ProfileData.from_file(str(newest)))), seconds


def device_events(data: Any) -> Iterator[Event]:
    """Yield the events of a trace (`ProfileData`) that ran on the first device.

    Accelerators have planes of their own; a CPU's operations are those events of the host that name one.
    """
    planes = sorted(data.planes, key=lambda plane: plane.name)
    accelerators = [plane for plane in planes if re.match(r"/device:(GPU|TPU)", plane.name)]
    for plane in accelerators[:1] or planes:
        for line in plane.lines:
            if plane.name.startswith("/device:TPU") and line.name != "XLA Ops":
                continue  # modules and steps, which contain the operations
            for event in line.events:
                stats = dict(event.stats)
                operation = str(stats.get("hlo_op", ""))
                if accelerators or (operation and stats.get("device_ordinal", 0) == 0):
                    module = str(stats.get("hlo_module", ""))
                    yield Event(module, operation, event.name, event.start_ns, event.duration_ns)


def live_programs() -> list[str]:
    """Return the text of every compiled program that JAX holds."""
    gc.collect()
    texts = []
    for executable in jax.devices()[0].client.live_executables():
        texts += [module.to_string() for module in executable.hlo_modules()]
    return texts


def operations(programs: Iterable[str]) -> dict[tuple[str, str], Operation]:
    """Return the operations of compiled programs (HLO text) by the names of program and operation."""
    found = {}
    for text in programs:
        module = re.match(r"HloModule ([^\s,]+)", text)
        if module is not None:
            found |= {(module[1], name): operation for name, operation in _operations_of(text).items()}
    return found


class _Line(NamedTuple):
    """A line of a program's text."""

    opcode: str
    scope: str
    operands: list[str]
    called: list[str]  # computations
    targets: list[str]  # of custom calls


def _operations_of(text: str) -> dict[str, Operation]:
    """Return the operations of one program, with what the computations that they call consist of."""
    computations = _parsed(text)

    @functools.cache
    def contents(computation: str) -> frozenset[str]:
        return frozenset().union(*map(within, computations.get(computation, {}).values()))

    def within(line: _Line) -> frozenset[str]:
        own = frozenset({line.opcode, *line.targets})
        return own if line.opcode in _APPLYING else own.union(*map(contents, line.called))

    found = {}
    for lines in computations.values():
        users: dict[str, list[str]] = {}
        for name, line in lines.items():
            for operand in line.operands:
                users.setdefault(operand, []).append(name)
        for name, line in lines.items():
            scope = line.scope if "/" in line.scope else _scope(name, lines, users)
            found[name] = Operation(line.opcode, scope, within(line))
    return found


def _parsed(text: str) -> dict[str, dict[str, _Line]]:
    """Return the lines of a program's text by computation and by name."""
    computations: dict[str, dict[str, _Line]] = {}
    lines: dict[str, _Line] = {}
    for text_line in text.splitlines():
        if header := re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", text_line):
            lines = computations.setdefault(header[1], {})
        elif match := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)", text_line):
            name, rest = match.groups()
            opcode = re.search(r"(?:^|\s)([a-z][a-z0-9\-]*)\(([^)]*)", rest)
            scope = re.search(r'op_name="([^"]*)"', rest)
            lines[name] = _Line(
                opcode[1] if opcode else "",
                scope[1] if scope else "",
                re.findall(r"%([\w.\-]+)", opcode[2]) if opcode else [],
                re.findall(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)", rest),
                re.findall(r'custom_call_target="([^"]+)"', rest),
            )
    return computations


def _scope(name: str, lines: Mapping[str, _Line], users: Mapping[str, list[str]]) -> str:
    """Return the scope of an operation that the compiler made without one.

    It is that of the nearest operand, a backward one first, or else of a user. So a kernel gradient, whose
    name XLA:CPU drops, counts for what follows its layer.
    """
    for neighbours in ({name: line.operands for name, line in lines.items()}, users):
        nearest, seen = [name], {name}
        for _ in range(_NEAR):
            nearest = [
                n for near in nearest for n in neighbours.get(near, ()) if n in lines and n not in seen
            ]
            seen.update(nearest)
            if scopes := [lines[n].scope for n in nearest if "/" in lines[n].scope]:
                return max(scopes, key=lambda scope: len(_BACKWARD.findall(scope)))
    return ""


def summarise(
    events: Iterable[Event], known: Mapping[tuple[str, str], Operation], steps: int, seconds: float
) -> Profile:
    """Sum the events of some steps by layer, direction and kind."""
    sums: dict[tuple[str, str, str], list[float]] = {}
    spans = []
    # A kernel without annotation may have the name of its fusion.
    by_kernel = {re.sub(r"\W", "_", name): operation for (_, name), operation in known.items()}
    for event in events:
        key = (event.module, event.operation)
        operation = known.get(key) if event.operation else by_kernel.get(event.name)
        if operation is not None and operation.opcode in _CONTAINERS:
            continue
        spans.append((event.start_ns, event.start_ns + event.duration_ns))
        where = place(operation)
        if operation is None and event.name.startswith(("Memcpy", "Memset")):
            where = ("unknown", "", "data movement")
        entry = sums.setdefault(where, [0.0, 0])
        entry[0] += event.duration_ns
        entry[1] += 1
    rows = [Row(*key, ns / 1e6 / steps, count / steps) for key, (ns, count) in sums.items()]
    rows.sort(key=lambda row: -row.ms)
    return Profile(steps, 1e3 * seconds / steps, _union(spans) / 1e6 / steps, len(spans) / steps, tuple(rows))


def place(operation: Operation | None) -> tuple[str, str, str]:
    """Return the layer, the direction and the kind of an operation."""
    if operation is None:
        return "unknown", "", "unknown"
    parts = [_plain(part) for part in operation.scope.partition("threefry")[0].split("/")[:-1]]
    parts = [part for part in parts if part and not _BUILDING.fullmatch(part)]
    parts = [part for part, _ in itertools.groupby(parts)]  # a gradient of a gradient repeats some
    layer = "/".join(parts) or ("noise" if "threefry" in operation.scope else "other")
    direction = (FORWARD, BACKWARD, SECOND)[min(len(_BACKWARD.findall(operation.scope)), 2)]
    return layer, direction, kind_of(operation, layer)


def _plain(part: str) -> str:
    """Return a component of an op_name without the transformations around it: jvp(Encoder) is Encoder."""
    while match := _TRANSFORMED.fullmatch(part):
        part = match[1]
    return part


def kind_of(operation: Operation, layer: str) -> str:
    """Return what an operation does: convolution, matrix product, reduction, elementwise or data movement.

    What belongs to the optimiser or draws random numbers is called by that instead.
    """
    text = " ".join(operation.contents)
    if "convolution" in operation.contents or "$conv" in text:
        return "convolution"
    if "dot" in operation.contents or re.search(r"gemm|matmul", text):
        return "matrix product"
    if layer.startswith("optimizer"):
        return "optimizer"
    if layer.startswith("noise") or "threefry" in operation.scope or "rng-bit-generator" in text:
        return "random"
    if operation.contents & {"reduce", "reduce-window", "all-reduce"}:
        return "reduction"
    return "data movement" if operation.contents - {"fusion"} <= _MOVES else "elementwise"


def _union(spans: list[tuple[float, float]]) -> float:
    """Return the length of the union of intervals."""
    total, end = 0.0, float("-inf")
    for first, last in sorted(spans):
        total += max(last - max(first, end), 0.0)
        end = max(end, last)
    return total


def show(found: Mapping[str, Any]) -> None:
    """Print a profile as tables on standard output."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    console.print(
        f"{found['steps']} steps on {found['device']}: {found['wall_ms']:.3f} ms a step under the trace, the "
        f"device busy {found['busy_ms']:.3f} ms, {found['kernels']:.0f} kernels a step"
    )
    rows = [Row(**row) for row in found["rows"]]
    kinds: dict[str, list[float]] = {}
    for row in rows:
        entry = kinds.setdefault(row.kind, [0.0, 0.0])
        entry[0] += row.ms
        entry[1] += row.kernels
    total = sum(row.ms for row in rows) or 1.0
    by_kind, by_layer = (
        Table(title=title, title_justify="left", box=rich.box.SIMPLE) for title in ("By kind", "By layer")
    )
    for table, names in ((by_kind, ("kind",)), (by_layer, ("layer", "pass", "kind"))):
        for name in names:
            table.add_column(name, overflow="fold", no_wrap=name != "layer")
        for name in ("ms", "share", "kernels"):
            table.add_column(name, justify="right")
    for kind, (ms, count) in sorted(kinds.items(), key=lambda item: -item[1][0]):
        by_kind.add_row(kind, *_cells(ms, total, count))
    for row in rows[:MOST]:
        by_layer.add_row(row.layer, row.direction, row.kind, *_cells(row.ms, total, row.kernels))
    if rest := rows[MOST:]:
        numbers = _cells(sum(row.ms for row in rest), total, sum(row.kernels for row in rest))
        by_layer.add_row(f"{len(rest)} more", "", "", *numbers)
    console.print(by_kind)
    console.print(by_layer)


def _cells(ms: float, total: float, kernels: float) -> tuple[str, str, str]:
    return f"{ms:.4f}", f"{ms / total:.1%}", f"{kernels:.3g}"
