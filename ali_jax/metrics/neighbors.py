"""Nearest neighbours by brute force on the device, in blocks that bound the memory."""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from ali_jax.data.dataset import unit
from ali_jax.metrics.blocks import map_blocks, rows_per_block
from ali_jax.types import Array

PART_BYTES = 2**28  # of the references as float32, that are searched at once


@jax.jit
def _nearest_block(references: Array, half_squares: Array, queries: Array) -> tuple[Array, Array]:
    products = jnp.matmul(queries, references.T, precision="highest")
    index = jnp.argmin(half_squares[None] - products, axis=1)
    # The expanded square is exact enough for the choice, but small distances are lost to cancellation.
    return index, jnp.linalg.norm(queries - references[index], axis=1)


def nearest(
    queries: np.ndarray, references: np.ndarray, *, divisor: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest row of references [M, F] to each row of queries [N, F], by Euclidean distance.

    Returns its index [N] and the distance [N]. Rows of an integer type are first divided by `divisor`. A part
    of the references of 256 MiB is searched at a time.
    """
    if queries.ndim != 2 or references.ndim != 2 or queries.shape[1] != references.shape[1]:
        raise ValueError(
            f"Queries of shape {queries.shape} and references of shape {references.shape} do not go "
            "together: give [N, F] and [M, F]."
        )
    index, distance = np.zeros(len(queries), int), np.full(len(queries), np.inf, np.float32)
    for start, part in parts(references, divisor):
        found, apart = _over_blocks(_nearest_block, queries, part, divisor)
        nearer = ~(apart >= distance)  # what is not finite stays as it is
        index, distance = np.where(nearer, start + found, index), np.where(nearer, apart, distance)
    return index, distance


def parts(references: np.ndarray, divisor: float) -> Iterator[tuple[int, np.ndarray]]:
    """Yield references [M, F] in units of x, in parts of `PART_BYTES` with the number of their first row."""
    size = max(1, PART_BYTES // (4 * max(references.shape[1], 1)))
    for start in range(0, len(references), size):
        yield start, unit(references[start : start + size], divisor)


@functools.partial(jax.jit, static_argnames="k")
def _few_block(references: Array, half_squares: Array, queries: Array, *, k: int) -> tuple[Array, Array]:
    products = jnp.matmul(queries, references.T, precision="highest")
    _, index = jax.lax.top_k(products - half_squares[None], k)
    return index, jnp.linalg.norm(queries[:, None] - references[index], axis=-1)


def nearest_few(
    queries: np.ndarray, references: np.ndarray, k: int, *, divisor: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Find the k nearest rows of references [M, F] to each row of queries [N, F], the nearest first.

    Returns their indices [N, k] and Euclidean distances [N, k]. The rows are as those of `nearest`.
    """
    if not 1 <= k <= len(references):
        raise ValueError(f"{k} neighbours among {len(references)} rows: ask for 1 to {len(references)}.")
    index, distance = [], []
    for start, part in parts(references, divisor):
        few = functools.partial(_few_block, k=min(k, len(part)))
        found, apart = _over_blocks(few, queries, part, divisor)
        index.append(start + found)
        distance.append(apart)
    if len(index) == 1:
        return index[0], distance[0]
    order = np.argsort(np.concatenate(distance, axis=1), axis=1, kind="stable")[:, :k]
    index, distance = (
        np.take_along_axis(np.concatenate(found, axis=1), order, axis=1) for found in (index, distance)
    )
    return index, distance


def _over_blocks(
    search: Callable[[Array, Array, Array], tuple[Array, Array]],
    queries: np.ndarray,
    references: np.ndarray,
    divisor: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Apply `search` to the references, half their squares and each block of queries, all centred."""
    center = references.mean(axis=0, dtype=np.float64).astype(np.float32)[None]  # keeps the squares small
    on_device = jnp.asarray(references - center, jnp.float32)
    half_squares = 0.5 * jnp.sum(on_device**2, axis=1)
    return map_blocks(
        lambda block: search(
            on_device, half_squares, jnp.asarray(unit(block, divisor) - center, jnp.float32)
        ),
        queries,
        size=rows_per_block(queries.shape[1:]),
    )
