"""A data set: two splits of rows, and the few facts that models and metrics need about them.

Splits hold rows on the host, as they are stored. `scaled` and the feeds convert them to floats.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from ali_jax.types import Batch

THREADS = min(16, os.cpu_count() or 1)  # for decoding rows; decoders release the interpreter's lock

NAMED_ERRORS = 5  # at most, of the files of a folder


class DataError(ValueError):
    """The data are missing or unusable; the message says what to do."""


class LoadOptions(NamedTuple):
    """The arguments of `load` that a data set may depend on."""

    directory: str = ""  # where TensorFlow Datasets keeps its data
    train_split: str = "train"
    test_split: str = "test"
    seed: int = 0  # of synthetic points
    scale: float = 1.0  # factor on vectors and points, and on the pixels of the user's own images
    conditional: bool = False  # whether rows of data with attributes have them as y
    background: int = 255  # grey level behind transparent pixels and beside padded images
    resize: tuple[int, int] | None = None  # height and width to which images are brought
    fit: str = "crop"  # crop, pad or stretch


class Note(NamedTuple):
    """A sentence about a data set, shown when a run starts and in its report."""

    text: str
    is_warning: bool = False  # whether the user probably wants to change something


class Split(Protocol):
    """Rows of a data set with random access. Implement this protocol to add another kind of data."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one x: (H, W, C) or (D,)."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """The type of the stored x: uint8 for images, float32 for vectors."""
        ...

    @property
    def num_classes(self) -> int:
        """The number of classes K, 0 without labels."""
        ...

    @property
    def nbytes(self) -> int:
        """The size of all x in memory, in bytes."""
        ...

    def __len__(self) -> int: ...

    def rows(self, indices: np.ndarray) -> Batch:
        """Return rows [n] as numpy arrays: x as stored, y float32 [n, A] or None, label int32 [n] or None."""
        ...


class Dataset(NamedTuple):
    """A training and a test split, and facts about the data."""

    name: str
    train: Split
    test: Split
    divisor: float  # x = stored / divisor, in [0, 1]; 1 for floats
    num_classes: int = 0  # K; 0 without labels
    modes: np.ndarray | None = None  # [K, D] means of a mixture
    mode_std: float = 0.0  # standard deviation of its components
    attributes: tuple[str, ...] = ()  # names of the A columns of y
    splits: tuple[str, str] = ("train", "test")  # the parts of the data that `train` and `test` are
    parts: "Dataset | None" = None  # the single images, if x is a stack of them
    class_names: tuple[str, ...] = ()  # of the K classes, where known
    notes: tuple[Note, ...] = ()  # what a user should know about the data
    resize: str = "none"  # how images were brought to one size: none, crop, pad or stretch


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
    """A split read from a random-access source on request, row by row on several threads."""

    source: Sequence[Any]  # of examples, such as paths or records
    decode: Callable[[Any], Batch]  # one example -> one row, without leading axis
    shape: tuple[int, ...]
    dtype: np.dtype
    num_classes: int = 0  # 0: decode returns no label
    num_attributes: int = 0  # 0: decode returns no y
    label: np.ndarray | None = None  # [N] int32, where the labels are known without decoding

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
        label = None if self.label is None else self.label[start:stop]
        return replace(self, source=self.source[start:stop], label=label)

    def _read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        n = len(indices)
        x = np.empty((n, *self.shape), self.dtype)
        y = np.empty((n, self.num_attributes), np.float32) if self.num_attributes else None
        label = np.empty(n, np.int32) if self.num_classes else None

        def fill(positions: np.ndarray) -> list[DataError]:
            errors = []
            for position in positions:
                try:
                    row: list[Any] = list(self.decode(self.source[int(indices[position])]))
                except DataError as error:
                    errors.append(error)
                    continue
                for out, value in zip((x, y, label), row, strict=True):
                    if out is not None:
                        out[position] = value
            return errors

        with ThreadPoolExecutor(THREADS) as pool:  # `map` raises what a thread raised
            errors = [e for part in pool.map(fill, np.array_split(np.arange(n), THREADS)) for e in part]
        if errors:
            raise joined(errors)
        return x, y, label


@dataclass(frozen=True)
class Relabelled:
    """Rows of another split, with hidden labels or with the class as y."""

    split: Split
    index: np.ndarray | None = None  # [n] rows of `split`; None for all
    hidden: bool = False  # whether every label is -1
    one_hot: bool = False  # whether y is the one-hot label [K]

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
        """Return the number of classes, also if the labels are hidden."""
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


def joined(errors: Sequence[DataError]) -> DataError:
    """Make one error of those of several files; the message gives the first five."""
    if len(errors) == 1:
        return errors[0]
    more = len(errors) - NAMED_ERRORS
    shown = "; ".join(sorted(map(str, errors))[:NAMED_ERRORS])
    return DataError(f"{len(errors)} files cannot be used: {shown}{f'; and {more} more' if more > 0 else ''}")


def class_order(name: str) -> tuple[bool, int, str]:
    """Return the key that sorts names of classes: numbers first, as numbers, the others alphabetically."""
    return not name.isdecimal(), int(name) if name.isdecimal() else 0, name


def known_labels(split: Split) -> np.ndarray | None:
    """Return the labels [N] of a split where they are known without reading its rows, -1 for none."""
    label = getattr(split, "label", None)
    return None if label is None else np.asarray(label)


def host_batch(x: Any, y: Any = None, label: Any = None) -> Batch:
    """Build a batch of numpy arrays. `Batch` declares device arrays; on the host these take their place."""
    return Batch(x, y, label)


def scaled(batch: Batch, divisor: float) -> Batch:
    """Return the batch with x in the units that networks take; see `unit`."""
    return batch._replace(x=unit(batch.x, divisor))


def unit(x: Any, divisor: float) -> Any:
    """Convert stored x to the units that networks take: integers become x / divisor, floats stay."""
    return x if np.issubdtype(x.dtype, np.floating) else x.astype(np.float32) / np.float32(divisor)


def parse_split(text: str) -> tuple[str, str, str]:
    """Split "train[:45000]" into name, start and stop; the bounds are text, empty if omitted.

    Raises:
        DataError: the text has another form.
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
        raise DataError(f"there is no split {text!r}; the splits are {', '.join(splits)}")
    split = splits[name]
    n = len(split)
    first, last, _ = slice(_bound(start, n), _bound(stop, n)).indices(n)
    if first >= last:
        raise DataError(f"split {text!r} has no rows: {name} has {n}")
    return split if (first, last) == (0, n) else split.part(first, last)


def stratified(label: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide rows [N] into N - count and `count` rows with equal class proportions, the same in every run.

    Rows are sorted by class, in random order within a class, and every (N / count)-th is held out.
    """
    n = len(label)
    order = np.lexsort((np.random.default_rng(0).permutation(n), label))
    held = np.zeros(n, bool)
    held[order[((np.arange(count) + 0.5) * n / count).astype(int)]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def class_balanced(label: np.ndarray, num_classes: int, count: int, seed: int) -> np.ndarray:
    """Draw `count` rows with equally many of each class 0 to K - 1; return their indices [count].

    Raises:
        DataError: `count` is not a multiple of K, or a class has too few rows.
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
