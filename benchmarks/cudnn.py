"""Which kind of cuDNN call XLA makes of each convolution of a program, found on any machine.

    python -m benchmarks.cudnn --config experiments/svhn.py [--config.KEY=VALUE ...]

prints them for a training step with plain `lax` convolutions, with those of `config.lowering = "gpu"`, and
with each of its further forms.

A program is lowered for CUDA, which needs no GPU, and XLA's rules are applied to its convolutions
(openxla/xla, `conv_kind_assignment.cc`):

    input gradient   The kernel is reversed along its spatial axes. Stride 1, no window dilation. cuDNN skips
                     the zeros of a base dilation.
    kernel gradient  No base dilation, stride 1, and a window larger than the output, or a dilated one, where
                     the operation does not look forward.
    forward          Everything else. It looks forward if batch and maps stand where they do in one, and the
                     window is no larger than the output. A base dilation is then computed on zeros.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo

from ali_jax import networks, train
from ali_jax.config import Config
from ali_jax.game import parts
from ali_jax.networks.convolutions import FORMS
from ali_jax.program.command import load_config, override
from ali_jax.tools.describe import abstract_batch, data_shape, training_step
from ali_jax.types import ALI, Batch, TrainState


class Convolution(NamedTuple):
    """A convolution of a program, as XLA for GPUs sees it."""

    kind: str  # "forward", "input gradient" or "kernel gradient"
    window: tuple[int, ...]
    output: tuple[int, ...]  # its spatial axes
    strides: tuple[int, ...]
    base_dilation: tuple[int, ...]
    window_dilation: tuple[int, ...]
    grouped: bool
    multiply_adds: int  # without those of a base dilation's zeros in an input gradient

    @property
    def is_on_zeros(self) -> bool:
        """Whether most of its input is zeros that cuDNN multiplies."""
        return self.kind == "forward" and max(self.base_dilation) > 1

    @property
    def is_misplaced_gradient(self) -> bool:
        """Whether it is the kernel gradient of a strided layer that XLA takes for a dilated forward one."""
        return self.kind == "forward" and max(self.window_dilation) > 1


def convolutions(function: Callable, *arguments: Any) -> list[Convolution]:
    """Return the convolutions of a function that its results depend on, in the program for CUDA."""
    lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))
    module: Any = lowered.compiler_ir("stablehlo")
    functions = {operation.name.value: operation for operation in module.body.operations}
    with module.context:
        return [_convolution(operation) for operation in _live(functions["main"], functions)]


def _live(function: Any, functions: dict[str, Any]) -> Iterator[Any]:
    """Yield the convolutions of a function, and of those it calls, that its results depend on."""
    block = function.body.blocks[0]
    todo, seen = [list(block.operations)[-1]], set()
    while todo:
        operation = todo.pop()
        for operand in operation.operands:
            owner = operand.owner
            if isinstance(owner, ir.Block) or owner in seen:
                continue
            seen.add(owner)
            todo.append(owner)
            if owner.name == "stablehlo.convolution":
                yield owner
            elif owner.name == "func.call":
                callee = ir.FlatSymbolRefAttr(owner.attributes["callee"]).value
                yield from _live(functions[callee], functions)


def _convolution(operation: Any) -> Convolution:
    axes = stablehlo.ConvDimensionNumbers(operation.attributes["dimension_numbers"])
    x, w = (tuple(ir.RankedTensorType(o.type).shape) for o in operation.operands)
    y = tuple(ir.RankedTensorType(operation.results[0].type).shape)
    window = tuple(w[axis] for axis in axes.kernel_spatial_dimensions)
    output = tuple(y[axis] for axis in axes.output_spatial_dimensions)
    strides, base, dilation = (
        _numbers(operation, name) for name in ("window_strides", "lhs_dilation", "rhs_dilation")
    )
    groups = [
        ir.IntegerAttr(operation.attributes[f"{name}_group_count"]).value for name in ("feature", "batch")
    ]
    plain = max(groups) == 1 and max(strides) == 1
    looks_forward = (
        x[axes.input_batch_dimension] == y[axes.output_batch_dimension]
        and w[axes.kernel_output_feature_dimension] == y[axes.output_feature_dimension]
        and all(k <= n for k, n in zip(window, output, strict=True))
    )
    exceeds = all(k > n for k, n in zip(window, output, strict=True)) or max(dilation) > 1
    if plain and max(dilation) == 1 and _is_reversed(operation.operands[1], axes):
        kind = "input gradient"
    elif plain and max(base) == 1 and exceeds and not looks_forward:
        kind = "kernel gradient"
    else:
        kind = "forward"
    positions = (
        [x[axis] for axis in axes.input_spatial_dimensions] if kind == "input gradient" else list(output)
    )
    maps = w[axes.kernel_input_feature_dimension] * y[axes.output_feature_dimension]
    multiply_adds = math.prod(positions) * math.prod(window) * maps * y[axes.output_batch_dimension]
    return Convolution(kind, window, output, strides, base, dilation, max(groups) > 1, multiply_adds)


def _numbers(operation: Any, name: str) -> tuple[int, ...]:
    if name not in operation.attributes:
        return (1, 1)
    return tuple(ir.DenseI64ArrayAttr(operation.attributes[name]))


def _is_reversed(kernel: Any, axes: Any) -> bool:
    owner = kernel.owner
    if isinstance(owner, ir.Block) or owner.name != "stablehlo.reverse":
        return False
    return set(ir.DenseI64ArrayAttr(owner.attributes["dimensions"])) == set(axes.kernel_spatial_dimensions)


class Step(NamedTuple):
    """A training step, and the shapes of what it takes."""

    function: Callable
    ali: ALI
    state: TrainState
    batch: Batch


def step_of(config: Config) -> Step:
    """Return the training step that a config describes, as it is made for a GPU; nothing is computed."""
    shape = data_shape(config)
    ali = networks.build(config, shape, platform="cuda")
    batch = abstract_batch(config, shape)
    tx = parts.make_optimizer(config, platform="cuda")
    init = partial(train.init_state, ali, tx, ema=config.ema_decay > 0)
    state = jax.eval_shape(init, jax.random.PRNGKey(0), batch)
    return Step(training_step(config, ali), ali, state, batch)


def kinds(found: list[Convolution]) -> dict[str, list[Convolution]]:
    """Group convolutions by kind; forward ones on zeros, and gradients taken for them, stand apart."""
    groups: dict[str, list[Convolution]] = {}
    for c in found:
        name = "on zeros" if c.is_on_zeros else "gradient as forward" if c.is_misplaced_gradient else c.kind
        groups.setdefault(name, []).append(c)
    return groups


COLUMNS = ("forward", "input gradient", "kernel gradient", "gradient as forward", "on zeros")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and return the exit status."""
    parser = argparse.ArgumentParser(description="Show what cuDNN is given.", allow_abbrev=False)
    parser.add_argument("--config", required=True, help="FILE or FILE:VARIANT")
    options, overrides = parser.parse_known_args(argv)
    print(f"| lowering | {' | '.join(COLUMNS)} |\n|---|{'---:|' * len(COLUMNS)}")
    for lowering in ("native", "gpu", *(f"gpu+{form}" for form in FORMS)):
        config = load_config(options.config)
        override(config, overrides)
        config.lowering = lowering
        step = step_of(config)
        groups = kinds(convolutions(step.function, step.state, step.batch))
        print(f"| {lowering} | {' | '.join(_cell(groups.get(name, [])) for name in COLUMNS)} |", flush=True)
    return 0


def _cell(found: list[Convolution]) -> str:
    """Return how many there are, and their multiply-adds in units of 1e9."""
    return f"{len(found)}, {sum(c.multiply_adds for c in found) / 1e9:.1f} G" if found else "0"


if __name__ == "__main__":
    sys.exit(main())
