"""The order of the data: which rows of a split each training step takes.

Position p of the endless stream is row pi_e(p mod N) in epoch e = p // N, where pi_e is a permutation that
depends on the seed and on e alone. A batch of B rows takes the next B positions, across the end of an epoch
too. So every row is used exactly once per epoch, there is no partial batch, and a run that resumes at any
step sees what an uninterrupted run sees. There is no state to save.
"""

import math
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from ali_jax.bits import mix

ROUNDS = 8  # of the Feistel network


class Order(NamedTuple):
    """The order of one run's batches."""

    batch_size: int  # of the global batch
    size: int  # number of rows in the split
    seed: int

    @property
    def words(self) -> np.ndarray:
        """The seed, any integer, as two uint32 words [2]."""
        return np.array([self.seed % 2**32, (self.seed >> 32) % 2**32], np.uint32)

    def start(self, step: int) -> tuple[int, int]:
        """Return epoch (mod 2^32) and offset of a step's first row, from Python's unbounded integers."""
        epoch, offset = divmod(step * self.batch_size, self.size)
        return epoch % 2**32, offset

    def rows(self, words: Any, epoch: Any, position: Any, xp: ModuleType) -> Any:
        """Return the rows at positions [n] uint32, which count from the start of an epoch (a uint32)."""
        size = np.uint32(self.size)
        return shuffled_rows(words, epoch + position // size, position % size, self.size, xp)

    def rows_per_shard(self, count: int) -> int:
        """Return how many rows of a batch each of `count` shards has.

        Raises:
            ValueError: the batch cannot be divided equally.
        """
        if self.batch_size % count:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of {count}, the number of shards"
            )
        return self.batch_size // count


def shuffled_rows(words: Any, epoch: Any, offset: Any, size: int, xp: ModuleType = np) -> Any:
    """Return the rows [n] at `offset` in the order of `epoch`: a permutation of range(size).

    A Feistel network on pairs (l, r) in Z_a x Z_b, where a * b is barely more than `size`. Each round adds a
    hash of one half to the other, which subtraction would undo. A value beyond `size` is permuted again
    ("cycle walking"). There are a * b - size such values, none for most sizes and rarely ten. A walk meets
    each of them at most once, so a * b - size passes suffice. No loop depends on data, nothing is sorted, and
    the cost is O(n).

    Args:
        words: [2] uint32, the seed.
        epoch: [n] uint32.
        offset: [n] uint32, below `size`.
        size: the number of rows, at most 2^31.
        xp: the array module, numpy or jax.numpy; the two agree exactly.
    """
    a, b = _sides(size)
    key = mix(mix(epoch ^ words[0]) ^ words[1])
    rows = _feistel(key, offset, a, b)
    for _ in range(a * b - size):
        rows = xp.where(rows < np.uint32(size), rows, _feistel(key, rows, a, b))
    return rows


def _sides(size: int) -> tuple[int, int]:
    """Return a <= b of similar length with the least a * b >= size."""
    root = math.isqrt(size)
    return min(
        ((a, -(-size // a)) for a in range(root, root // 4, -1)), key=lambda sides: sides[0] * sides[1]
    )


def _feistel(key: Any, value: Any, a: int, b: int) -> Any:
    """Permute values [n] of range(a * b)."""
    left, right = value // np.uint32(b), value % np.uint32(b)
    for i in range(0, ROUNDS, 2):
        left = (left + mix(right ^ (key + _round_constant(i))) % np.uint32(a)) % np.uint32(a)
        right = (right + mix(left ^ (key + _round_constant(i + 1))) % np.uint32(b)) % np.uint32(b)
    return left * np.uint32(b) + right


def _round_constant(i: int) -> np.uint32:
    return np.uint32(i * 0x9E3779B9 % 2**32)  # 2^32 over the golden ratio
