"""The model run over many rows in blocks, with results on the host: encode, decode, sample, pairs, judge."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ali_jax import model
from ali_jax.data import Dataset, unit
from ali_jax.evaluate.rows import Rows, test_rows
from ali_jax.metrics.blocks import map_blocks, rows_per_block
from ali_jax.networks.convolutions import compiler_options, platform_of
from ali_jax.types import ALI, Array, Pairs, PyTree, Variables

BATCH_STATISTICS_ROWS = 100  # samples per batch for a decoder that normalises by the batch


def over_rows(
    function: Callable[..., PyTree],
    ali: ALI,
    variables: Variables,
    rows: Rows,
    divisor: float,
    *,
    key: Array | None = None,
    read: Callable[[np.ndarray, PyTree], PyTree] | None = None,
) -> PyTree:
    """Apply a function (ali, variables, x, y) to rows in blocks; with a key, each block has its own noise.

    With `read`, a function of x and of the result on the host, return what it makes of each block: many large
    images need not be in memory at once.
    """
    run = compiled(function, platform_of(variables))

    def on_block(index: np.ndarray, x: np.ndarray, y: np.ndarray | None) -> PyTree:
        noise = {} if key is None else {"key": jax.random.fold_in(key, index[0])}
        x = unit(x, divisor)
        result = run(ali, variables, x, y, **noise)
        return result if read is None else read(x, jax.tree.map(np.asarray, result))

    return map_blocks(on_block, np.arange(len(rows.x)), rows.x, rows.y, size=rows_per_block(rows.x.shape[1:]))


def decode(
    ali: ALI,
    variables: Variables,
    z: np.ndarray,
    y: np.ndarray | None,
    *,
    key: Array | None = None,
    read: Callable[[np.ndarray], PyTree] | None = None,
) -> PyTree:
    """Decode in blocks; with a key, a decoder that draws noise draws it anew in each block.

    With `read`, a function of the decoded x on the host, return what it makes of each block.
    """
    run = compiled(model.decode, platform_of(variables))

    def on_block(index: np.ndarray, z: np.ndarray, y: np.ndarray | None) -> PyTree:
        noise = {} if key is None else {"key": jax.random.fold_in(key, index[0])}
        x = run(ali, variables, z, y, **noise)
        return x if read is None else read(np.asarray(x))

    size = rows_per_block(getattr(ali.decoder, "x_shape", ()))
    return map_blocks(on_block, np.arange(len(z)), z, y, size=size)


def draw_samples(
    ali: ALI,
    variables: Variables,
    key: Array,
    number: int,
    dataset: Dataset,
    *,
    read: Callable[[np.ndarray], PyTree] | None = None,
) -> PyTree:
    """Draw x_tilde [number, *X] in blocks; conditions are those of the test rows in order, repeated.

    `read` is as that of `decode`.
    """
    y = test_rows(dataset).y
    z = np.asarray(jax.random.normal(key, (number, model.latent_dim(ali))))
    y = None if y is None else y[np.arange(number) % len(y)]
    return decode(ali, variables, z, y, key=jax.random.fold_in(key, 1), read=read)


def draw_samples_by_batch(
    ali: ALI,
    variables: Variables,
    key: Array,
    number: int,
    dataset: Dataset,
    *,
    read: Callable[[np.ndarray], np.ndarray] = lambda x: x,
) -> np.ndarray:
    """Decode the codes of `draw_samples` in full batches, with the batch statistics of each.

    Return what `read` makes of the samples of each batch.
    """
    z = np.asarray(jax.random.normal(key, (number, model.latent_dim(ali))))
    rows = np.arange(-(-number // BATCH_STATISTICS_ROWS) * BATCH_STATISTICS_ROWS)
    y = test_rows(dataset).y
    run = functools.partial(compiled(_decode_by_batch, platform_of(variables)), ali, variables, key)
    conditions = None if y is None else y[rows % number % len(y)]

    def on_batch(z: np.ndarray, y: np.ndarray | None) -> np.ndarray:
        return read(np.asarray(run(z, y)))

    return map_blocks(on_batch, z[rows % number], conditions, size=BATCH_STATISTICS_ROWS)[:number]


def _decode_by_batch(ali: ALI, variables: Variables, key: Array, z: Array, y: Array | None) -> Array:
    """Decode in training mode; dropout and noise are the same in every batch."""
    collections = model.collections(variables.params.decoder, variables.batch_stats.decoder)
    streams = {"dropout": key, "noise": key}
    x, _ = ali.decoder.apply(collections, z, y, train=True, rngs=streams, mutable=["batch_stats"])
    return x


def draw_pairs(ali: ALI, variables: Variables, key: Array, rows: Rows, divisor: float) -> Pairs:
    """Draw z_hat ~ q(z | x) for every row, and as many pairs of the decoder, as arrays on the host."""
    key_codes, key_prior, key_decoder = jax.random.split(key, 3)
    z_hat = over_rows(model.encode, ali, variables, rows, divisor, key=key_codes)
    z: Any = np.asarray(jax.random.normal(key_prior, z_hat.shape))
    x: Any = unit(rows.x, divisor)
    y: Any = rows.y
    x_tilde: Any = decode(ali, variables, z, y, key=key_decoder)
    return Pairs(x, z_hat, x_tilde, z, y)


def judge(ali: ALI, variables: Variables, x: Any, z: Any, y: Any) -> np.ndarray:
    """Return D's logits [N] of "from the encoder" for pairs x [N, *X], z [N, Z], y [N, A] of one kind.

    For a D that judges packs of m pairs they are [N // m]; the last N % m pairs are left out.
    """
    m = model.packing(ali)
    packs = jax.tree.map(lambda array: array[: len(x) // m * m].reshape(-1, m, *array.shape[1:]), (x, z, y))
    run = functools.partial(compiled(_judge_packs, platform_of(variables)), ali, variables)
    return map_blocks(run, *packs, size=max(rows_per_block(x.shape[1:]) // m, 1))


def _judge_packs(ali: ALI, variables: Variables, x: Array, z: Array, y: Array | None) -> Array:
    x, z, y = jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), (x, z, y))
    return model.encoder_logit(ali, variables, x, z, y)


@functools.cache
def compiled(
    function: Callable[..., PyTree], platform: str, *, static: tuple[int, ...] = (0,)
) -> Callable[..., PyTree]:
    """Compile a function of (ali, ...) for a platform, once; `static` are the positions of non-arrays."""
    return jax.jit(function, static_argnums=static, compiler_options=compiler_options(platform))
