"""Compare the CPU's forms of convolutions with plain `lax`, layer by layer.

    taskset -c 1 python -m benchmarks.cpu_forms [--batch 16] [--rounds 5] [--only TEXT] [--penalty]

A layer is its forward pass and both gradients, compiled as a training step is; with --penalty also the
gradients of the squared norm of the image's gradient, as gradient penalties need them. Native and CPU's
programs run in turn, in rounds of at least 20 ms each. The table has the median over rounds of the ratio of
their CPU seconds, of all threads, and its quartiles: below 1 the CPU's forms are faster. The last column is
what `lowering = "cpu"` takes, by `convolutions.is_faster_natively`.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from ali_jax.networks import convolutions
from benchmarks.compare import markdown

SECONDS = 0.02  # that a round takes, at least
MAPS, PIXELS = (16, 64), (32, 16, 8, 4)
MORE_MAPS = (32, 128)  # of the most frequent layers
CONVOLUTIONS = ((1, 2, 0), (3, 1, 0), (3, 1, 1), (3, 2, 1), (4, 1, 0), (4, 1, 1), (4, 2, 1))
CONVOLUTIONS += ((5, 1, 0), (5, 1, 2), (5, 2, 2), (7, 1, 3))  # kernel, stride, padding
TRANSPOSED = ((3, 1, 1), (3, 2, 1), (4, 1, 0), (4, 1, 1), (4, 2, 1), (5, 1, 0), (5, 1, 2), (5, 2, 2))
FREQUENT = ((False, 3, 1, 1), (False, 3, 2, 1), (False, 4, 2, 1), (False, 5, 1, 2))


class Layer(NamedTuple):
    """A convolution, or a transposed one, of square images."""

    transpose: bool
    kernel: int
    stride: int
    padding: int
    pixels: int  # of its input
    maps: int
    features: int

    @property
    def name(self) -> str:
        """Such as "16x16x32 k3 s1 p1 32", or "... transposed"."""
        size = f"{self.pixels}x{self.pixels}x{self.maps}"
        name = f"{size} k{self.kernel} s{self.stride} p{self.padding} {self.features}"
        return f"{name} transposed" if self.transpose else name

    @property
    def is_native(self) -> bool:
        """Whether `lowering = "cpu"` computes it natively."""
        shape = (self.maps, self.features) if self.transpose else (self.features, self.maps)
        pixels = (
            self.stride * (self.pixels - 1) + self.kernel - 2 * self.padding
            if self.transpose
            else self.pixels
        )
        image, kernel = (pixels, pixels, shape[1]), (self.kernel, self.kernel, *shape)
        return convolutions.is_faster_natively(
            image, kernel, stride=self.stride, padding=self.padding, transpose=self.transpose
        )


class Ratio(NamedTuple):
    """CPU seconds of the CPU's forms over those of plain `lax`."""

    median: float
    low: float  # quartiles
    high: float


def layers() -> Iterator[Layer]:
    """Yield the layers of the table: convolutional networks of usual shapes."""
    kinds = [(False, *kind) for kind in CONVOLUTIONS] + [(True, *kind) for kind in TRANSPOSED]
    for kind in kinds:
        for maps, pixels in itertools.product(MAPS + MORE_MAPS * (kind in FREQUENT), PIXELS):
            layer = Layer(*kind, pixels, maps, maps)
            if pixels + 2 * layer.padding >= layer.kernel and (pixels < 32 or not layer.transpose):
                yield layer
    for kernel, stride, padding in ((3, 1, 1), (4, 2, 1), (5, 1, 0), (5, 1, 2)):  # from and to colours
        yield Layer(False, kernel, stride, padding, 32, 3, 32)
        yield Layer(True, kernel, stride, padding, 16, 32, 3)


def compare(layer: Layer, batch: int, rounds: int, *, penalty: bool = False) -> Ratio:
    """Time a layer natively and in the CPU's forms, in turn."""
    rng = np.random.default_rng(0)
    shapes = (
        (batch, layer.pixels, layer.pixels, layer.maps),
        (layer.kernel, layer.kernel, layer.maps, layer.features),
    )
    x, w = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes)
    with mock.patch.object(convolutions, "is_faster_natively", return_value=False):
        runs = [_compiled(layer, lowering, x, w, penalty) for lowering in ("native", "cpu")]
    once = min(_seconds(run, 1) for run in runs for _ in range(2))
    number = max(1, round(SECONDS / max(once, 1e-6)))
    seconds = np.array([[_seconds(run, number) for run in runs] for _ in range(rounds)])
    low, median, high = np.quantile(seconds[:, 1] / seconds[:, 0], (0.25, 0.5, 0.75))
    return Ratio(float(median), float(low), float(high))


def _compiled(layer: Layer, lowering: str, x: jax.Array, w: jax.Array, penalty: bool) -> Callable[[], object]:
    form = convolutions.conv_transpose if layer.transpose else convolutions.conv
    apply = partial(form, stride=layer.stride, padding=layer.padding, lowering=lowering)

    def squared_norm(x: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.sum(jax.grad(lambda x: jnp.sum(jnp.sin(apply(x, w))))(x) ** 2)

    def with_gradients(x: jax.Array, w: jax.Array) -> tuple[jax.Array, ...]:
        y, pullback = jax.vjp(apply, x, w)
        return y, *pullback(y), *(jax.grad(squared_norm, (0, 1))(x, w) if penalty else ())

    program = jax.jit(with_gradients, compiler_options=convolutions.compiler_options("cpu"))
    compiled = program.lower(x, w).compile()
    return lambda: jax.block_until_ready(compiled(x, w))


def _seconds(run: Callable[[], object], number: int) -> float:
    start = time.process_time()
    for _ in range(number):
        run()
    return (time.process_time() - start) / number


def main(argv: Sequence[str] | None = None) -> int:
    """Time the layers and print the table in Markdown; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu_forms", allow_abbrev=False)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="a part of the layers' names, such as ' k3 s1'")
    parser.add_argument("--penalty", action="store_true", help="with second gradients")
    options = parser.parse_args(argv)
    rows = [["layer", "cpu / native", "quartiles", "chosen"], ["---", "---:", "---:", "---"]]
    for layer in layers():
        if options.only in layer.name:
            ratio = compare(layer, options.batch, options.rounds, penalty=options.penalty)
            spread, chosen = f"{ratio.low:.2f} to {ratio.high:.2f}", "native" if layer.is_native else "cpu"
            rows.append([layer.name, f"{ratio.median:.2f}", spread, chosen])
            print(rows[-1], file=sys.stderr, flush=True)
    print(markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
