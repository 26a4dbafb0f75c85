"""Nearest neighbours by brute force on the device, in blocks that bound the memory."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ali_jax.metrics.blocks import map_blocks
from ali_jax.types import Array


@jax.jit
def _nearest_block(references: Array, half_squares: Array, queries: Array) -> tuple[Array, Array]:
    products = jnp.matmul(queries, references.T, precision="highest")
    index = jnp.argmin(half_squares[None] - products, axis=1)
    # The expanded square is exact enough for the choice, but small distances are lost to cancellation.
    return index, jnp.linalg.norm(queries - references[index], axis=1)


def nearest(queries: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest row of references [M, F] to each row of queries [N, F], by Euclidean distance.

    Returns its index [N] and the distance [N]. The memory is that of the references and 500 rows of
    distances.
    """
    if queries.ndim != 2 or references.ndim != 2 or queries.shape[1] != references.shape[1]:
        raise ValueError(
            f"Queries of shape {queries.shape} and references of shape {references.shape} do not go "
            "together: give [N, F] and [M, F]."
        )
    return _over_blocks(_nearest_block, queries, references)


@functools.partial(jax.jit, static_argnames="k")
def _few_block(references: Array, half_squares: Array, queries: Array, *, k: int) -> tuple[Array, Array]:
    products = jnp.matmul(queries, references.T, precision="highest")
    _, index = jax.lax.top_k(products - half_squares[None], k)
    return index, jnp.linalg.norm(queries[:, None] - references[index], axis=-1)


def nearest_few(queries: np.ndarray, references: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the k nearest rows of references [M, F] to each row of queries [N, F], the nearest first.

    Returns their indices [N, k] and Euclidean distances [N, k].
    """
    if not 1 <= k <= len(references):
        raise ValueError(f"{k} neighbours among {len(references)} rows: ask for 1 to {len(references)}.")
    return _over_blocks(functools.partial(_few_block, k=k), queries, references)


def _over_blocks(
    search: Callable[[Array, Array, Array], tuple[Array, Array]], queries: np.ndarray, references: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Apply `search` to the references, half their squares and each block of queries, all centred."""
    center = references.mean(axis=0, dtype=np.float64).astype(np.float32)[None]  # keeps the squares small
    on_device = jnp.asarray(references - center, jnp.float32)
    half_squares = 0.5 * jnp.sum(on_device**2, axis=1)
    return map_blocks(
        lambda block: search(on_device, half_squares, jnp.asarray(block - center, jnp.float32)), queries
    )
