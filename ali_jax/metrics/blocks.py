"""Apply a function to many rows in blocks of bounded size."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from ali_jax.types import PyTree

ROWS_PER_BLOCK = 500
BLOCK_BYTES = 2**27  # of the rows of a block as float32, at most


def rows_per_block(shape: Sequence[int]) -> int:
    """Return the number of rows in a block: 500, or as many rows of this shape as `BLOCK_BYTES` hold."""
    return max(1, min(ROWS_PER_BLOCK, BLOCK_BYTES // (4 * math.prod(shape))))


def map_blocks(function: Callable[..., PyTree], *arrays: Any, size: int = ROWS_PER_BLOCK) -> PyTree:
    """Apply a row-wise function to blocks of rows, and join its results as numpy arrays.

    `arrays` are arrays or pytrees of arrays with equal lengths; None stays None. Every block has the same
    shape, so that a jitted function compiles once: the last block is padded with copies of the last row,
    whose results are dropped.
    """
    total = len(jax.tree.leaves(arrays)[0])
    if not total:
        raise ValueError("The arrays have no rows: give at least one.")
    size = min(size, total)
    joined = None
    for start in range(0, total, size):
        rows = np.minimum(np.arange(start, start + size), total - 1)
        block = jax.tree.map(lambda array, rows=rows: array[rows], arrays)
        found = jax.tree.map(np.asarray, function(*block))
        if joined is None:  # joined at the end, the results would be there twice
            joined = jax.tree.map(lambda part: np.empty((total, *part.shape[1:]), part.dtype), found)
        for whole, part in zip(jax.tree.leaves(joined), jax.tree.leaves(found), strict=True):
            whole[start : start + size] = part[: total - start]
    return joined


FEW, MANY = 8, 128  # rows


def map_fixed_blocks(function: Callable[..., PyTree], *arrays: Any) -> PyTree:
    """Apply a row-wise function as `map_blocks` does, in blocks of 8 rows or of 128.

    Whatever the number of rows, a jitted function compiles twice at most.
    """
    total = len(jax.tree.leaves(arrays)[0])
    size = MANY if total > MANY // 2 else FEW
    if not 0 < total < size:
        return map_blocks(function, *arrays, size=size)
    rows = np.minimum(np.arange(size), total - 1)
    padded = jax.tree.map(lambda array: array[rows], arrays)
    return jax.tree.map(lambda result: result[:total], map_blocks(function, *padded, size=size))
