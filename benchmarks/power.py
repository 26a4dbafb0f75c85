"""Measure how often the tests of `ali_jax.metrics.two_sample` detect codes that are not N(0, I).

    python -m benchmarks.power [--n N ...] [--z Z ...] [--repetitions R]

A row is a fault of the codes, a column a test, and a cell the share of R draws that the test rejects at 5 %.
The first row, without a fault, is the size of the tests. With 39 permutations the smallest p-value is 0.025.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from ali_jax.metrics.two_sample import energy_test, ks_tests, mmd_test, nearest_neighbor_test
from benchmarks.compare import markdown

Draw: TypeAlias = Callable[[np.random.Generator, int, int], np.ndarray]  # (rng, N, Z) -> codes [N, Z]

LEVEL = 0.05
PERMUTATIONS = 39
KERNEL_TESTS = {"MMD": mmd_test, "energy": energy_test, "1-NN": nearest_neighbor_test}


def true_codes(rng: np.random.Generator, n: int, size: int) -> np.ndarray:
    """Draw from N(0, I)."""
    return rng.standard_normal((n, size))


def shifted(rng: np.random.Generator, n: int, size: int) -> np.ndarray:
    """Shift every dimension by 0.2 standard deviations."""
    return true_codes(rng, n, size) + 0.2


def one_shifted(rng: np.random.Generator, n: int, size: int) -> np.ndarray:
    """Shift the first dimension by 0.2."""
    return true_codes(rng, n, size) + 0.2 * np.eye(size)[:1]


def one_narrow(rng: np.random.Generator, n: int, size: int) -> np.ndarray:
    """Shrink the first dimension to a standard deviation of 0.1."""
    return true_codes(rng, n, size) * (1 - 0.9 * np.eye(size)[:1])


def octant_missing(rng: np.random.Generator, n: int, size: int) -> np.ndarray:
    """Leave out codes whose first three coordinates (both, if there are only two) are positive."""
    z = true_codes(rng, 2 * n + 100, size)
    return z[(z[:, :3] < 0).any(axis=1)][:n]


def correlated(rng: np.random.Generator, n: int, size: int) -> np.ndarray:
    """Correlate the first two dimensions by 0.5."""
    z = true_codes(rng, n, size)
    z[:, 1] = 0.5 * z[:, 0] + np.sqrt(0.75) * z[:, 1]
    return z


FAULTS: dict[str, Draw] = {
    "none (size)": true_codes,
    "all means 0.2": shifted,
    "one mean 0.2": one_shifted,
    "one sd 0.1": one_narrow,
    "an octant missing": octant_missing,
    "a correlation of 0.5": correlated,
}


def rejections(draw: Draw, n: int, size: int, repetitions: int) -> list[float]:
    """Return the share of draws that each test rejects: the kernel tests in their order, then KS."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(repetitions):
        z_hat, z = draw(rng, n, size), true_codes(rng, n, size)
        p_values = [test(z_hat, z, rng, permutations=PERMUTATIONS).p_value for test in KERNEL_TESTS.values()]
        found.append([*p_values, ks_tests(z_hat).p_values.min()])
    return [float(share) for share in np.mean(np.array(found) <= LEVEL, axis=0)]


def table(ns: Sequence[int], sizes: Sequence[int], repetitions: int) -> str:
    """Return the table in Markdown."""
    rows = [
        [str(n), str(size), name, *(f"{share:.2f}" for share in rejections(draw, n, size, repetitions))]
        for n in ns
        for size in sizes
        for name, draw in FAULTS.items()
    ]
    head = ["n", "Z", "fault", *KERNEL_TESTS, "KS, Holm"]
    return markdown([head, ["---"] * len(head), *rows])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.power")
    parser.add_argument("--n", type=int, nargs="+", default=[400, 2_000], help="rows of either sample")
    parser.add_argument("--z", type=int, nargs="+", default=[2, 16, 64], help="dimensions of the code")
    parser.add_argument("--repetitions", type=int, default=20, help="draws per cell")
    given = parser.parse_args(arguments)
    print(table(given.n, given.z, given.repetitions))
    return 0


if __name__ == "__main__":
    sys.exit(main())
