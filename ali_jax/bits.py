"""Cheap pseudo-random bits: for the order of the data, dropout masks, and the keys within a step.

JAX derives each key with threefry, a kernel of its own for every `fold_in` and `split`. `HASHED` derives them
with a few multiplications instead.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import random

_GOLDEN = np.uint32(0x9E3779B9)  # 2^32 over the golden ratio
_SPLIT = np.uint32(0x73706C69)  # separates the keys of `split` from those of `fold_in`


def mix(h: Any) -> Any:
    """Mix uint32 values, numpy's or JAX's: a bijection in which every bit affects every other.

    The constants are those of Wellons' "lowbias32".
    """
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x7FEB352D)
    h = (h ^ (h >> np.uint32(15))) * np.uint32(0x846CA68B)
    return h ^ (h >> np.uint32(16))


def fold(a: Any, b: Any, number: Any) -> tuple[Any, Any]:
    """Fold a number into a key of two words, all uint32, by three rounds of a Feistel network.

    A bijection of the keys for each number. For each key, different numbers give different keys.
    """
    h = mix(number + _GOLDEN)
    a = a ^ mix(b + h)
    b = b ^ mix(a + (h ^ _GOLDEN))
    return a ^ mix(b), b


def hashed(words: Any, position: Any) -> Any:
    """Return 32 bits for each position, all uint32, given the two words of a key."""
    return mix(mix(position ^ words[0]) + words[1])


def _fold_in(key: jax.Array, number: Any) -> jax.Array:
    return _whole(*fold(key[0], key[1], jnp.asarray(number).astype(jnp.uint32)))


def _split(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    index = jax.lax.iota(jnp.uint32, int(np.prod(shape))).reshape(shape)
    return _whole(*fold(key[0], key[1], index ^ _SPLIT))


def _whole(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return keys [..., 2] that are computed once: XLA would derive them again in all that reads them."""
    return jax.lax.optimization_barrier(jnp.stack([a, b], axis=-1))


# For `jax.random.wrap_key_data(words, impl=HASHED)`: keys of which `jax.random` draws as of threefry's, with
# threefry, but from which it derives other keys by `fold`.
HASHED = random.define_prng_impl(
    key_shape=(2,),
    seed=random.threefry_prng_impl.seed,
    split=_split,
    random_bits=random.threefry_prng_impl.random_bits,
    fold_in=_fold_in,
    name="threefry2x32 with hashed keys",
    tag="ali",
)
