"""Feeds: endless streams of batches of a split, in the order of `order.py`, on the devices.

A `DeviceFeed` keeps the whole split on the devices; a `HostFeed` reads blocks of steps ahead on the host.
Both give the same batches.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from ali_jax.bits import HASHED, hashed, mix
from ali_jax.data.dataset import THREADS, DataError, Split, scaled
from ali_jax.data.order import Order
from ali_jax.types import Array, Batch, PyTree

PREFETCH_BYTES = 2**30  # of x, that a HostFeed reads ahead at most
_NOISE = np.uint32(0x6E6F6973)  # separates the keys of dequantisation from others of the same seed
_FLIP = np.uint32(0x666C6970)  # and those of mirroring

Shard = tuple[Array | int, int]  # index and count


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
    """Everything but the rows themselves that decides a batch; both kinds of feed follow it."""

    order: Order
    divisor: float  # x = stored / divisor
    dequantize: float  # half width of the uniform noise on x
    batch_sharding: NamedSharding | None  # over [steps, B]
    flip: bool = False  # whether images are mirrored half of the time

    def finish(self, batch: Batch, words: Any, step: Array, shard: Shard | None) -> Batch:
        """Shard a batch of stored values, mirror images, scale them to floats and dequantise them."""
        if shard is None and self.batch_sharding is not None:
            layout = NamedSharding(
                self.batch_sharding.mesh, PartitionSpec(*tuple(self.batch_sharding.spec)[1:])
            )
            batch = jax.tree.map(lambda a: jax.lax.with_sharding_constraint(a, layout), batch)
        if self.flip:
            mirrored = jax.random.bernoulli(_key(words ^ _FLIP, step, shard), 0.5, (len(batch.x), 1, 1, 1))
            batch = batch._replace(x=jnp.where(mirrored, batch.x[:, :, ::-1], batch.x))
        batch = scaled(batch, self.divisor)
        if not self.dequantize:
            return batch
        noise = _uniform(batch.x, _key(words ^ _NOISE, step, shard))
        return batch._replace(x=batch.x + self.dequantize * noise)


def _key(words: Any, step: Array, shard: Shard | None) -> Array:
    """Return the key of a step, and of a shard, for a purpose that `words` [2] stand for."""
    key = jax.random.wrap_key_data(mix(words), impl=HASHED)
    key = jax.random.fold_in(key, step)
    return key if shard is None else jax.random.fold_in(key, shard[0])


def _uniform(x: Array, key: Array) -> Array:
    """Return hashes of the positions as noise that is uniform on [-1, 1], of the shape and type of x."""
    position = jax.lax.iota(jnp.uint32, x.size).reshape(x.shape)
    return hashed(jax.random.key_data(key), position).astype(x.dtype) * 2.0**-31 - 1


class DeviceFeed:
    """A feed that keeps the split on the device, as stored; each step gathers its rows there."""

    def __init__(
        self, split: Split, plan: Plan, sharding: Sharding | None = None, *, data: Batch | None = None
    ):
        """Move the split to the device, or to all devices of a replicated sharding.

        `data` are the rows where they are on the device already.
        """
        self.batch_size = plan.order.batch_size
        self.data = _put(split.rows(np.arange(plan.order.size)), sharding) if data is None else data
        self._plan = plan
        self._sharding = sharding
        self.words = jax.device_put(plan.order.words, sharding)

    def load(self, step: int, steps: int) -> Resident:
        """Return the resident arrays and the position of `step`; only its eight bytes are moved.

        Raises:
            ValueError: one call would take more than 2^32 rows.
        """
        order = self._plan.order
        if steps * self.batch_size + order.size >= 2**32:
            raise ValueError(
                f"{steps} steps of {self.batch_size} rows are too many for one call: lower steps_per_call"
            )
        start = np.array(order.start(step), np.uint32)
        return Resident(self.data, jax.device_put(start, self._sharding), self.words)

    def take(self, data: Resident, step: Array, i: Array, *, shard: Shard | None = None) -> Batch:
        """Gather the rows of a step; see `Feed.take`."""
        order, (index, count) = self._plan.order, (0, 1) if shard is None else shard
        n = order.rows_per_shard(count)
        first = jnp.uint32(i) * np.uint32(self.batch_size) + jnp.uint32(index) * np.uint32(n)
        position = data.start[1] + first + jnp.arange(n, dtype=jnp.uint32)
        rows = order.rows(data.words, data.start[0], position, jnp)
        return self._plan.finish(jax.tree.map(lambda a: a[rows], data.rows), data.words, step, shard)

    def close(self) -> None:
        """Do nothing: the arrays go with the feed."""


class HostFeed:
    """A feed that streams blocks of steps from the host, in the same order as `DeviceFeed`.

    Threads read ahead (grain). Each process reads only those rows of the global batch that its devices hold.
    """

    def __init__(self, split: Split, plan: Plan):
        """Prepare to read; nothing is read before the first `load`."""
        self.batch_size = plan.order.batch_size
        self._split = split
        self._plan = plan
        self._columns = _local_columns(plan)
        self._iterator: Any = None
        self._next = -1  # the step that the iterator is at

    def load(self, step: int, steps: int) -> Batch:
        """Return the rows of the steps as a batch with leading axes [steps, B].

        Without a sharding B is the number of rows of this process.
        """
        if step != self._next:
            self.close()
            self._iterator = self._read_from(step, steps)
        try:
            rows = [next(self._iterator) for _ in range(steps)]
        except DataError:
            raise
        except Exception as error:  # a source may raise anything when its files are gone
            raise DataError(f"the rows from step {step} on cannot be read: {error}") from error
        self._next = step + steps
        return jax.tree.map(lambda *blocks: self._put(np.stack(blocks)), *rows)

    def take(self, data: Batch, step: Array, i: Array, *, shard: Shard | None = None) -> Batch:
        """Return the i-th step of the block; see `Feed.take`.

        A block holds the rows of the global batch, or those of this process, or those of this shard.
        """
        batch = jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, i, keepdims=False), data)
        if shard is not None:
            index, count = shard
            n = self._plan.order.rows_per_shard(count)
            first = index * n % batch.x.shape[0]
            batch = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, first, n), batch)
        return self._plan.finish(batch, self._plan.order.words, step, shard)

    def close(self) -> None:
        """Stop reading ahead; the next `load` starts anew."""
        if self._iterator is not None:
            self._iterator.close()
        self._iterator, self._next = None, -1

    def _read_from(self, step: int, steps: int) -> Any:
        import grain  # slow to import, and most data sets fit the device

        step_bytes = self._split.nbytes // self._plan.order.size * len(self._columns)
        ahead = max(1, min(2 * steps, PREFETCH_BYTES // step_bytes))
        options = grain.ReadOptions(num_threads=min(THREADS, ahead), prefetch_buffer_size=ahead)
        return iter(grain.MapDataset.range(step, 2**62).map(self._read).to_iter_dataset(options))

    def _read(self, step: int) -> Batch:
        """Read this process's rows of a step."""
        order = self._plan.order
        epoch, offset = order.start(step)
        position = offset + np.array(self._columns, np.uint32)
        rows = order.rows(order.words, np.uint32(epoch), position, np)
        return self._split.rows(rows.astype(np.int64))

    def _put(self, block: np.ndarray) -> Array:
        sharding = self._plan.batch_sharding
        if sharding is None:
            return jnp.asarray(block)
        shape = (block.shape[0], self.batch_size, *block.shape[2:])
        return jax.make_array_from_process_local_data(sharding, block, shape)


class SemiSupervisedFeed:
    """Two feeds side by side: one of unlabelled rows, one of labelled rows.

    A batch has 2B rows, B of each kind, alternating. The labelled rows are few and come round more often.
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
        """Return both batches of a step with their rows alternating, so that every shard has both kinds."""
        parts = [feed.take(d, step, i, shard=shard) for feed, d in zip(self._feeds, data, strict=True)]
        return jax.tree.map(lambda *a: jnp.stack(a, axis=1).reshape(-1, *a[0].shape[1:]), *parts)

    def close(self) -> None:
        """Close both."""
        for feed in self._feeds:
            feed.close()


class PopulationFeed:
    """The feeds of a population's members, which share the rows on the device if they train on the same.

    `take` gives one member's batch, in code under `jax.vmap` over `axes`.
    """

    def __init__(self, members: Sequence[DeviceFeed]):
        """Join feeds that have the same plan but for their seeds; their rows may differ."""
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
    flip: bool = False,
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
        seed: of the order, of dequantisation and of mirroring.
        divisor: x = stored / divisor where the split holds integers.
        dequantize: half width of uniform noise added to x.
        flip: whether each image is mirrored, left to right, with probability 1/2.
        kind: "device" (resident), "host" (streamed), or "auto": resident if x has at most `device_bytes`.
        device_bytes: see `kind`.
        sharding: of resident arrays, replicated over all devices that use them; None is the default device.
        batch_sharding: over [steps, B], such as P(None, "data"): of streamed blocks and, without its first
            axis, of the batches that `take` returns outside named-axis code.
        resident: the `data` of another DeviceFeed of the same split, to be shared.

    Raises:
        ValueError: `kind` is unknown, or the batch or the split is empty.
    """
    if kind not in ("auto", "device", "host"):
        raise ValueError(f"feed is {kind!r}; it must be auto, device or host")
    if batch_size < 1 or len(split) < 1:
        raise ValueError(
            f"batch_size is {batch_size}, the split has {len(split)} rows; both must be positive"
        )
    if flip and len(split.shape) != 3:
        raise ValueError(f"flip mirrors images, and the rows are {split.shape}: set it to False")
    plan = Plan(Order(batch_size, len(split), seed), divisor, dequantize, batch_sharding, flip)
    if kind == "device" or (kind == "auto" and split.nbytes <= device_bytes):
        return DeviceFeed(split, plan, sharding, data=resident)
    return HostFeed(split, plan)


def _put(batch: Batch, sharding: Sharding | None) -> Batch:
    """Move a batch, the same on every process, to the default device or to the devices of a sharding."""
    if sharding is None:
        return jax.tree.map(jnp.asarray, batch)
    return jax.tree.map(
        lambda a: jax.make_array_from_callback(a.shape, sharding, lambda index: a[index]), batch
    )


def _local_columns(plan: Plan) -> range:
    """Return which rows of each global batch this process's devices hold."""
    batch_size = plan.order.batch_size
    every = range(batch_size)
    if plan.batch_sharding is None:
        n = plan.order.rows_per_shard(jax.process_count())
        return every[jax.process_index() * n : (jax.process_index() + 1) * n]
    parts = plan.batch_sharding.addressable_devices_indices_map((1, batch_size)).values()
    held = [every[index[1]] for index in parts if index is not None]
    return range(min(part.start for part in held), max(part.stop for part in held))
