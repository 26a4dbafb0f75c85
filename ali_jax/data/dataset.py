"""What a data set is: two splits of rows, and the few facts that models and metrics need about them.

Splits hold rows as they are stored, on the host; `scaled` and the feeds make floats of them.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from ali_jax.types import Batch

THREADS = min(16, os.cpu_count() or 1)  # that decode rows; decoders release the interpreter's lock


class DataError(ValueError):
    """Data that are absent or not what they should be; the message says what to do."""


class LoadOptions(NamedTuple):
    """What a data set may depend on; the arguments of `load`."""

    directory: str = ""  # where TensorFlow Datasets keeps its data
    train_split: str = "train"
    test_split: str = "test"
    seed: int = 0  # of synthetic points
    scale: float = 1.0  # factor on data that are no images
    conditional: bool = False  # whether rows have y, where the data have attributes


class Split(Protocol):
    """Rows of a data set in random access; all one needs to implement for data of another kind."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one x: (H, W, C) or (D,)."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """The type x is stored in: uint8 for images, float32 for vectors."""
        ...

    @property
    def num_classes(self) -> int:
        """The number of classes K, 0 without labels."""
        ...

    @property
    def nbytes(self) -> int:
        """The size of all x in memory."""
        ...

    def __len__(self) -> int: ...

    def rows(self, indices: np.ndarray) -> Batch:
        """Return rows [n] as numpy arrays: x as stored, y float32 [n, A] or None, label int32 [n] or None."""
        ...


class Dataset(NamedTuple):
    """A training and a test split of the same kind of data, and what is known about them."""

    name: str
    train: Split
    test: Split
    divisor: float  # x in [0, 1] is stored / divisor; 1 for floats
    num_classes: int = 0  # 0: no labels
    modes: np.ndarray | None = None  # [K, D] centres of a mixture
    mode_std: float = 0.0  # standard deviation of each of its components
    attributes: tuple[str, ...] = ()  # names of the A columns of y
    splits: tuple[str, str] = ("train", "test")  # which parts of the data are train and test
    parts: "Dataset | None" = None  # of single images, where x is a stack of them


@dataclass(frozen=True)
class ArraySplit:
    """A split held in memory."""

    x: np.ndarray  # [N, H, W, C] uint8, or [N, D] float32
    y: np.ndarray | None = None  # [N, A] float32
    label: np.ndarray | None = None  # [N] int32
    num_classes: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of one x."""
        return self.x.shape[1:]

    @property
    def dtype(self) -> np.dtype:
        """Return the type of x."""
        return self.x.dtype

    @property
    def nbytes(self) -> int:
        """Return the size of x."""
        return self.x.nbytes

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, indices: np.ndarray) -> Batch:
        """Return the rows at indices [n]."""
        y, label = (None if a is None else a[indices] for a in (self.y, self.label))
        return host_batch(self.x[indices], y, label)

    def part(self, start: int, stop: int) -> "ArraySplit":
        """Return the rows from start to stop, without a copy."""
        y, label = (None if a is None else a[start:stop] for a in (self.y, self.label))
        return ArraySplit(self.x[start:stop], y, label, self.num_classes)


@dataclass(frozen=True)
class SourceSplit:
    """A split read from a random-access source, row by row and on several threads, when it is asked for."""

    source: Sequence[Any]  # of examples, such as paths or records
    decode: Callable[[Any], Batch]  # one example -> one row, without leading axis
    shape: tuple[int, ...]
    dtype: np.dtype
    num_classes: int = 0  # 0: decode returns no label
    num_attributes: int = 0  # 0: decode returns no y

    @property
    def nbytes(self) -> int:
        """Return the size that x would have in memory."""
        return len(self) * int(np.prod(self.shape)) * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self.source)

    def rows(self, indices: np.ndarray) -> Batch:
        """Return the rows at indices [n]."""
        return host_batch(*self._read(indices))

    def in_memory(self) -> ArraySplit:
        """Decode all rows."""
        return ArraySplit(*self._read(np.arange(len(self))), self.num_classes)

    def part(self, start: int, stop: int) -> "SourceSplit":
        """Return the rows from start to stop; the source must support slices."""
        return replace(self, source=self.source[start:stop])

    def _read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        n = len(indices)
        x = np.empty((n, *self.shape), self.dtype)
        y = np.empty((n, self.num_attributes), np.float32) if self.num_attributes else None
        label = np.empty(n, np.int32) if self.num_classes else None

        def fill(positions: np.ndarray) -> None:
            for position in positions:
                row: list[Any] = list(self.decode(self.source[int(indices[position])]))
                for out, value in zip((x, y, label), row, strict=True):
                    if out is not None:
                        out[position] = value

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(fill, np.array_split(np.arange(n), THREADS)))  # raises what a thread raised
        return x, y, label


@dataclass(frozen=True)
class Relabelled:
    """Some rows of another split, with other labels, or with their class as y."""

    split: Split
    index: np.ndarray | None = None  # [n] of the other's rows; None: all
    hidden: bool = False  # whether every label is -1
    one_hot: bool = False  # whether y is the label, one-hot [K]

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of one x."""
        return self.split.shape

    @property
    def dtype(self) -> np.dtype:
        """Return the type of x."""
        return self.split.dtype

    @property
    def num_classes(self) -> int:
        """Return the number of classes of the labels, hidden or not."""
        return self.split.num_classes

    @property
    def nbytes(self) -> int:
        """Return the size that x would have in memory."""
        return self.split.nbytes * len(self) // max(len(self.split), 1)

    def __len__(self) -> int:
        return len(self.split) if self.index is None else len(self.index)

    def rows(self, indices: np.ndarray) -> Batch:
        """Return the rows at indices [n]."""
        x, y, label = self.split.rows(indices if self.index is None else self.index[indices])
        if self.one_hot:
            y = np.eye(self.num_classes, dtype=np.float32)[np.asarray(label)]
        if self.hidden:
            label = np.full(len(indices), -1, np.int32)
        return host_batch(x, y, label)


def host_batch(x: Any, y: Any = None, label: Any = None) -> Batch:
    """Build a batch of numpy arrays, which stand for the device arrays that `Batch` declares."""
    return Batch(x, y, label)


def scaled(batch: Batch, divisor: float) -> Batch:
    """Return the batch with x as networks see it."""
    return batch._replace(x=unit(batch.x, divisor))


def unit(x: Any, divisor: float) -> Any:
    """Return x, on host or device, as networks see it: stored / divisor for integers, floats as they are."""
    return x if np.issubdtype(x.dtype, np.floating) else x.astype(np.float32) / np.float32(divisor)


def parse_split(text: str) -> tuple[str, str, str]:
    """Split "train[:45000]" into name, start and stop; the bounds are texts, empty where left out.

    Raises:
        DataError: the text is no split.
    """
    match = re.fullmatch(r"(\w+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?", text.replace(" ", ""))
    if match is None:
        raise DataError(f"split {text!r} is not of the form NAME, NAME[start:stop] or NAME[10%:20%]")
    name, start, stop = match.groups(default="")
    return name, start, stop


def select(splits: Mapping[str, ArraySplit | SourceSplit], text: str) -> ArraySplit | SourceSplit:
    """Return the part of `splits` that a text such as "train" or "train[:45000]" names.

    Raises:
        DataError: there is no such split, or the part has no rows.
    """
    name, start, stop = parse_split(text)
    if name not in splits:
        raise DataError(f"split {text!r} names none of the splits there are: {', '.join(splits)}")
    split = splits[name]
    n = len(split)
    first, last, _ = slice(_bound(start, n), _bound(stop, n)).indices(n)
    if first >= last:
        raise DataError(f"split {text!r} has no rows: {name} has {n}")
    return split if (first, last) == (0, n) else split.part(first, last)


def stratified(label: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide rows [N] into N - count and `count`, every class in proportion; the same rows in every run.

    Rows are sorted by class, in random order within each, and every (N / count)-th is held out.
    """
    n = len(label)
    order = np.lexsort((np.random.default_rng(0).permutation(n), label))
    held = np.zeros(n, bool)
    held[order[((np.arange(count) + 0.5) * n / count).astype(int)]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def class_balanced(label: np.ndarray, num_classes: int, count: int, seed: int) -> np.ndarray:
    """Draw `count` of the rows labelled 0 to K - 1, as many of each class; return their indices [count].

    Raises:
        DataError: the classes do not share `count` equally, or one has too few rows.
    """
    each, rest = divmod(count, num_classes)
    if rest or not each:
        raise DataError(
            f"config.dataset.labelled is {count}: it must be a positive multiple of the {num_classes} classes"
        )
    generator = np.random.default_rng((seed, count))
    rows = [np.flatnonzero(label == k) for k in range(num_classes)]
    fewest = min(len(found) for found in rows)
    if fewest < each:
        raise DataError(
            f"config.dataset.labelled is {count}, {each} of each class, but one class has {fewest} labelled "
            f"rows: set it to {fewest * num_classes} or less"
        )
    return np.concatenate([generator.permutation(found)[:each] for found in rows])


def _bound(text: str, n: int) -> int | None:
    if not text:
        return None
    return int(text[:-1]) * n // 100 if text.endswith("%") else int(text)
