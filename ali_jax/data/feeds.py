"""The order of the data, and the feeds that bring batches of a split to the devices in that order.

Position p of the endless stream is row pi_e(p mod N) in epoch e = p // N, where pi_e is a permutation that
depends on the seed and e alone. A batch of B rows takes the next B positions, also across the end of an
epoch, so that every row is used exactly once per epoch, there is no partial batch, and a run that resumes at
any step sees what an uninterrupted one sees. There is nothing to save.
"""

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from ali_jax.bits import mix
from ali_jax.data.dataset import THREADS, DataError, Split, scaled
from ali_jax.types import Array, Batch, PyTree

ROUNDS = 8  # of the Feistel network
PREFETCH_BYTES = 2**30  # of x, that a HostFeed reads ahead at most
_NOISE = np.uint32(0x6E6F6973)  # sets the keys of dequantisation apart from others of the same seed

Shard = tuple[Array | int, int]


def shuffled_rows(words: Any, epoch: Any, offset: Any, size: int, xp: ModuleType = np) -> Any:
    """Return the rows [n] that stand at `offset` in the order of `epoch`: a permutation of range(size).

    A Feistel network on pairs (l, r) in Z_a x Z_b, with a * b barely more than `size`: each round adds a
    hash of one half to the other, which is undone by subtracting it. A value beyond `size` is sent through
    again ("cycle walking"). There are a * b - size such values, none for most sizes and rarely ten, and a
    walk meets each at most once, so that as many passes suffice: no loop depends on data, nothing is sorted,
    and the cost is O(n).

    Args:
        words: [2] uint32, the seed.
        epoch: [n] uint32.
        offset: [n] uint32, below `size`.
        size: the number of rows, at most 2^31.
        xp: the array module, numpy or jax.numpy; they agree exactly.
    """
    a, b = _sides(size)
    key = mix(mix(epoch ^ words[0]) ^ words[1])
    rows = _feistel(key, offset, a, b)
    for _ in range(a * b - size):
        rows = xp.where(rows < np.uint32(size), rows, _feistel(key, rows, a, b))
    return rows


def _sides(size: int) -> tuple[int, int]:
    """Return a <= b, not too unequal, with the least a * b >= size."""
    root = math.isqrt(size)
    return min(
        ((a, -(-size // a)) for a in range(root, root // 4, -1)), key=lambda sides: sides[0] * sides[1]
    )


def _feistel(key: Any, value: Any, a: int, b: int) -> Any:
    left, right = value // np.uint32(b), value % np.uint32(b)
    for i in range(0, ROUNDS, 2):
        left = (left + mix(right ^ (key + _round(i))) % np.uint32(a)) % np.uint32(a)
        right = (right + mix(left ^ (key + _round(i + 1))) % np.uint32(b)) % np.uint32(b)
    return left * np.uint32(b) + right


def _round(i: int) -> np.uint32:
    return np.uint32(i * 0x9E3779B9 % 2**32)  # 2^32 over the golden ratio


class Feed(Protocol):
    """A stream of shuffled batches; a training step needs `load` outside jit and `take` inside."""

    batch_size: int  # of the global batch

    def load(self, step: int, steps: int) -> PyTree:
        """Return what `take` needs for steps `step` to `step + steps - 1`: arrays, as arguments for jit."""
        ...

    def take(self, data: PyTree, step: Array, i: Array, *, shard: Shard | None = None) -> Batch:
        """Return the batch of absolute step `step`, the i-th since `load`; pure, for use inside jit.

        With shard=(index, count) it is the index-th of `count` contiguous slices of the global batch, as in
        code that is mapped over a named axis; the index may be traced.
        """
        ...

    def close(self) -> None:
        """Release threads and buffers."""
        ...


class Resident(NamedTuple):
    """What `DeviceFeed.load` returns."""

    rows: Batch  # the whole split, as stored
    start: Array  # [2] uint32, epoch and offset of the first step's first row
    words: Array  # [2] uint32, the seed: an argument of the program, so that it can differ in a population


class Plan(NamedTuple):
    """What decides the batches besides the rows themselves; both kinds of feed follow it."""

    batch_size: int  # of the global batch
    size: int  # of the split
    seed: int
    divisor: float
    dequantize: float
    batch_sharding: NamedSharding | None  # over [steps, B]

    @property
    def words(self) -> np.ndarray:
        """Return the seed, any integer, as two uint32 words [2]."""
        return np.array([self.seed % 2**32, (self.seed >> 32) % 2**32], np.uint32)

    def start(self, step: int) -> tuple[int, int]:
        """Return epoch (mod 2^32) and offset of a step's first row, from Python's unbounded integers."""
        epoch, offset = divmod(step * self.batch_size, self.size)
        return epoch % 2**32, offset

    def rows(self, words: Any, epoch: Any, position: Any, xp: ModuleType) -> Any:
        """Return the rows at positions [n] uint32, counted from the start of an epoch (a uint32)."""
        size = np.uint32(self.size)
        return shuffled_rows(words, epoch + position // size, position % size, self.size, xp)

    def share(self, count: int) -> int:
        """Return how many rows each of `count` shards has.

        Raises:
            ValueError: the batch cannot be shared out equally.
        """
        if self.batch_size % count:
            raise ValueError(f"batch_size {self.batch_size} is no multiple of the {count} that share it")
        return self.batch_size // count

    def finish(self, batch: Batch, words: Any, step: Array, shard: Shard | None) -> Batch:
        """Lay out a batch of stored values, make floats of them and dequantise."""
        if shard is None and self.batch_sharding is not None:
            layout = NamedSharding(
                self.batch_sharding.mesh, PartitionSpec(*tuple(self.batch_sharding.spec)[1:])
            )
            batch = jax.tree.map(lambda a: jax.lax.with_sharding_constraint(a, layout), batch)
        batch = scaled(batch, self.divisor)
        if not self.dequantize:
            return batch
        key = jax.random.wrap_key_data(mix(words ^ _NOISE), impl="threefry2x32")
        key = jax.random.fold_in(key, step)
        key = key if shard is None else jax.random.fold_in(key, shard[0])
        noise = jax.random.uniform(key, batch.x.shape, minval=-self.dequantize, maxval=self.dequantize)
        return batch._replace(x=batch.x + noise)


class DeviceFeed:
    """A feed whose split lies on the device as stored; each step gathers its rows there."""

    def __init__(
        self, split: Split, plan: Plan, sharding: Sharding | None = None, *, data: Batch | None = None
    ):
        """Move the split to the device, or to all of a replicated sharding, unless its `data` lie there."""
        self.batch_size = plan.batch_size
        self.data = _put(split.rows(np.arange(plan.size)), sharding) if data is None else data
        self._plan = plan
        self._sharding = sharding
        self.words = jax.device_put(plan.words, sharding)

    def load(self, step: int, steps: int) -> Resident:
        """Return the resident arrays and the position of `step`, the only eight bytes that are moved.

        Raises:
            ValueError: one call would take more than 2^32 rows.
        """
        if steps * self.batch_size + self._plan.size >= 2**32:
            raise ValueError(f"{steps} steps of {self.batch_size} rows are too many for one call; use fewer")
        start = np.array(self._plan.start(step), np.uint32)
        return Resident(self.data, jax.device_put(start, self._sharding), self.words)

    def take(self, data: Resident, step: Array, i: Array, *, shard: Shard | None = None) -> Batch:
        """Gather the rows of a step; see `Feed.take`."""
        index, count = (0, 1) if shard is None else shard
        n = self._plan.share(count)
        first = jnp.uint32(i) * np.uint32(self.batch_size) + jnp.uint32(index) * np.uint32(n)
        position = data.start[1] + first + jnp.arange(n, dtype=jnp.uint32)
        rows = self._plan.rows(data.words, data.start[0], position, jnp)
        return self._plan.finish(jax.tree.map(lambda a: a[rows], data.rows), data.words, step, shard)

    def close(self) -> None:
        """Do nothing: the arrays go with the feed."""


class HostFeed:
    """A feed that streams blocks of steps from the host, in the same order as `DeviceFeed`.

    Threads read ahead (grain). Each process reads only the rows of the global batch that its devices hold.
    """

    def __init__(self, split: Split, plan: Plan):
        """Prepare to read; nothing is read before the first `load`."""
        self.batch_size = plan.batch_size
        self._split = split
        self._plan = plan
        self._columns = _local_columns(plan)
        self._iterator: Any = None
        self._next = -1  # the step that the iterator is at

    def load(self, step: int, steps: int) -> Batch:
        """Return the rows of the steps as a batch with leading axes [steps, B].

        Without a sharding B counts this process's rows alone.
        """
        if step != self._next:
            self.close()
            self._iterator = self._read_from(step, steps)
        try:
            rows = [next(self._iterator) for _ in range(steps)]
        except DataError:
            raise
        except Exception as error:  # whatever a source raises whose files are gone
            raise DataError(f"the rows of step {step} and on cannot be read: {error}") from error
        self._next = step + steps
        return jax.tree.map(lambda *blocks: self._put(np.stack(blocks)), *rows)

    def take(self, data: Batch, step: Array, i: Array, *, shard: Shard | None = None) -> Batch:
        """Return the i-th step of the block; see `Feed.take`.

        A block may hold the rows of the global batch, those of this process, or those of this shard alone.
        """
        batch = jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, i, keepdims=False), data)
        if shard is not None:
            index, count = shard
            n = self._plan.share(count)
            first = index * n % batch.x.shape[0]
            batch = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, first, n), batch)
        return self._plan.finish(batch, self._plan.words, step, shard)

    def close(self) -> None:
        """Stop reading ahead; the next `load` starts anew."""
        if self._iterator is not None:
            self._iterator.close()
        self._iterator, self._next = None, -1

    def _read_from(self, step: int, steps: int) -> Any:
        import grain  # slow to import, and most data sets fit the device

        step_bytes = self._split.nbytes // self._plan.size * len(self._columns)
        ahead = max(1, min(2 * steps, PREFETCH_BYTES // step_bytes))
        options = grain.ReadOptions(num_threads=min(THREADS, ahead), prefetch_buffer_size=ahead)
        return iter(grain.MapDataset.range(step, 2**62).map(self._read).to_iter_dataset(options))

    def _read(self, step: int) -> Batch:
        """Read this process's rows of a step."""
        epoch, offset = self._plan.start(step)
        position = offset + np.array(self._columns, np.uint32)
        rows = self._plan.rows(self._plan.words, np.uint32(epoch), position, np)
        return self._split.rows(rows.astype(np.int64))

    def _put(self, block: np.ndarray) -> Array:
        sharding = self._plan.batch_sharding
        if sharding is None:
            return jnp.asarray(block)
        shape = (block.shape[0], self.batch_size, *block.shape[2:])
        return jax.make_array_from_process_local_data(sharding, block, shape)


class SemiSupervisedFeed:
    """Two feeds side by side: rows without labels and, as many, rows with labels, alternating.

    A batch has 2B rows, of which B come from each; the labelled ones are few and come round more often.
    """

    def __init__(self, unlabelled: Feed, labelled: Feed):
        """Join two feeds of one batch size."""
        self.batch_size = unlabelled.batch_size
        self._feeds = (unlabelled, labelled)

    def load(self, step: int, steps: int) -> tuple[PyTree, PyTree]:
        """Return what both feeds need."""
        unlabelled, labelled = (feed.load(step, steps) for feed in self._feeds)
        return unlabelled, labelled

    def take(
        self, data: tuple[PyTree, PyTree], step: Array, i: Array, *, shard: Shard | None = None
    ) -> Batch:
        """Return both batches of a step, row by row in turn, so that shards stay where they are."""
        parts = [feed.take(d, step, i, shard=shard) for feed, d in zip(self._feeds, data, strict=True)]
        return jax.tree.map(lambda *a: jnp.stack(a, axis=1).reshape(-1, *a[0].shape[1:]), *parts)

    def close(self) -> None:
        """Close both."""
        for feed in self._feeds:
            feed.close()


class PopulationFeed:
    """The feeds of a population's members, which share the rows on the device where they are the same.

    `take` gives one member's batch: it is for code under `jax.vmap` over `axes`.
    """

    def __init__(self, members: Sequence[DeviceFeed]):
        """Join feeds of one plan; their seeds, and perhaps their rows, differ."""
        self.batch_size = members[0].batch_size
        self._first = members[0]
        rows = [feed.data for feed in members]
        shared = all(r is rows[0] for r in rows)
        self._rows = rows[0] if shared else jax.tree.map(lambda *a: jnp.stack(a), *rows)
        self._words = jnp.stack([feed.words for feed in members])
        self.axes = Resident(None if shared else 0, None, 0)  # pyright: ignore[reportArgumentType]

    def load(self, step: int, steps: int) -> Resident:
        """Return the rows, the position of `step` and the members' seeds [K, 2]."""
        return self._first.load(step, steps)._replace(rows=self._rows, words=self._words)

    def take(self, data: Resident, step: Array, i: Array, *, shard: Shard | None = None) -> Batch:
        """Return the batch of the member whose slice of the data is given."""
        return self._first.take(data, step, i, shard=shard)

    def close(self) -> None:
        """Do nothing: the arrays go with the feed."""


def make_feed(
    split: Split,
    *,
    batch_size: int,
    seed: int,
    divisor: float,
    dequantize: float = 0.0,
    kind: str = "auto",
    device_bytes: int = 4 * 2**30,
    sharding: Sharding | None = None,
    batch_sharding: NamedSharding | None = None,
    resident: Batch | None = None,
) -> Feed:
    """Build the feed of a split.

    Args:
        split: the rows.
        batch_size: of the global batch.
        seed: of the order and of dequantisation.
        divisor: x = stored / divisor where the split holds integers.
        dequantize: half width of uniform noise added to x.
        kind: "device" (resident), "host" (streamed), or "auto": resident up to `device_bytes` of x.
        device_bytes: see `kind`.
        sharding: of resident arrays, replicated over all devices that use them; None: the default device.
        batch_sharding: over [steps, B], such as P(None, "data"), of streamed blocks and, without its first
            axis, of the batches that `take` returns outside named-axis code.
        resident: the rows, where another feed of the same split has moved them to the device (`data`).

    Raises:
        ValueError: `kind` is none of the three, or the batch or the split is empty.
    """
    if kind not in ("auto", "device", "host"):
        raise ValueError(f"feed is {kind!r}; it must be auto, device or host")
    if batch_size < 1 or len(split) < 1:
        raise ValueError(
            f"batch_size is {batch_size}, the split has {len(split)} rows; both must be positive"
        )
    plan = Plan(batch_size, len(split), seed, divisor, dequantize, batch_sharding)
    if kind == "device" or (kind == "auto" and split.nbytes <= device_bytes):
        return DeviceFeed(split, plan, sharding, data=resident)
    return HostFeed(split, plan)


def _put(batch: Batch, sharding: Sharding | None) -> Batch:
    """Move a batch to the default device or, being the same on every process, to a sharding's devices."""
    if sharding is None:
        return jax.tree.map(jnp.asarray, batch)
    return jax.tree.map(
        lambda a: jax.make_array_from_callback(a.shape, sharding, lambda index: a[index]), batch
    )


def _local_columns(plan: Plan) -> range:
    """Return which rows of each global batch this process's devices hold."""
    every = range(plan.batch_size)
    if plan.batch_sharding is None:
        n = plan.share(jax.process_count())
        return every[jax.process_index() * n : (jax.process_index() + 1) * n]
    parts = plan.batch_sharding.addressable_devices_indices_map((1, plan.batch_size)).values()
    held = [every[index[1]] for index in parts if index is not None]
    return range(min(part.start for part in held), max(part.stop for part in held))
