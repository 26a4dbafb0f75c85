"""The data that evaluators use: rows of train and test, and a reference classifier that is trained on them.

The rows of a large split are a part of it, spread evenly. Nothing here depends on the trained model; each
process computes it once per data set.
"""

import functools
import hashlib
import inspect
import math
from collections.abc import Callable
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import jax
import numpy as np

from ali_jax.data import ArraySplit, Dataset, Split, unit
from ali_jax.metrics.blocks import map_blocks, rows_per_block
from ali_jax.metrics.classifier import Classifier, Predict, fit_classifier
from ali_jax.types import Array

P = ParamSpec("P")
T = TypeVar("T")
TRAIN_ROWS = 60_000  # of train, at most
TEST_ROWS = 10_000  # of test, at most
TRAIN_BYTES = 2**30  # as they are stored: fewer rows of train are used above 77x77 pixels in colour
PICTURE_ROWS = 5_000  # pictures show rows drawn from the first 5,000 of test, as the authors' scripts do
# Distinct test rows for two-sample tests, whose memory grows with the square of their number.
CODE_ROWS = 2_000


class Rows(NamedTuple):
    """Rows of a split, on the host."""

    x: np.ndarray  # [N, *X] as stored
    y: np.ndarray | None  # [N, A]
    label: np.ndarray  # [N] int, -1 for a row without label


class _ByIdentity:
    """A data set as a key of a cache: equal if its splits are the same objects, which it keeps alive."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _ByIdentity)
            and self.dataset.train is other.dataset.train
            and self.dataset.test is other.dataset.test
        )

    def __hash__(self) -> int:
        return hash((id(self.dataset.train), id(self.dataset.test)))


def cached_by_data(
    maxsize: int,
) -> Callable[[Callable[Concatenate[Dataset, P], T]], Callable[Concatenate[Dataset, P], T]]:
    """Cache the results of a function of a data set; data sets with the same split objects are the same.

    Leaving an argument out and giving its default are one key.
    """

    def with_cache(function: Callable[Concatenate[Dataset, P], T]) -> Callable[Concatenate[Dataset, P], T]:
        @functools.lru_cache(maxsize)
        def cached(data: _ByIdentity, *args: P.args, **kwargs: P.kwargs) -> T:
            return function(data.dataset, *args, **kwargs)

        signature = inspect.signature(function)

        @functools.wraps(function)
        def look_up(dataset: Dataset, *args: P.args, **kwargs: P.kwargs) -> T:
            given = signature.bind(dataset, *args, **kwargs)
            given.apply_defaults()
            return cached(_ByIdentity(dataset), *given.args[1:], **given.kwargs)

        return look_up

    return with_cache


@cached_by_data(maxsize=4)
def _stored(dataset: Dataset, split_name: str, most: int) -> Rows:
    split = getattr(dataset, split_name)
    number = min(len(split), max(most, 1))
    if number == len(split) and isinstance(split, ArraySplit):  # no copy: large images would be there twice
        return _as_rows(split.x, split.y, split.label)
    return read_rows(split, np.arange(number) * len(split) // number)


def train_rows(dataset: Dataset) -> Rows:
    """Return at most TRAIN_ROWS rows of train, and at most TRAIN_BYTES of them, spread evenly."""
    of_row = math.prod(dataset.train.shape) * dataset.train.dtype.itemsize
    return _stored(dataset, "train", min(TRAIN_ROWS, TRAIN_BYTES // of_row))


def test_rows(dataset: Dataset) -> Rows:
    """Return at most TEST_ROWS rows of test, spread evenly."""
    return _stored(dataset, "test", TEST_ROWS)


@cached_by_data(maxsize=4)
def distinct_test_rows(dataset: Dataset) -> Rows:
    """Return at most CODE_ROWS distinct test rows, spread evenly."""
    test = test_rows(dataset)
    first: dict[bytes, int] = {}
    for i, x in enumerate(test.x):
        first.setdefault(hashlib.sha256(x.tobytes()).digest(), i)
    number = min(len(first), CODE_ROWS)
    chosen = np.array(list(first.values()))[np.arange(number) * len(first) // number]
    return jax.tree.map(lambda array: array[chosen], test)


@cached_by_data(maxsize=4)
def is_given_y(dataset: Dataset) -> bool:
    """Whether the rows have y, so that encoder, decoder and discriminator are told it."""
    return bool(dataset.attributes) or dataset.test.rows(np.arange(min(1, len(dataset.test)))).y is not None


def picture_rows(dataset: Dataset, key: Array, number: int) -> Rows:
    """Draw test rows without replacement; return all rows if there are fewer than `number`."""
    candidates = jax.random.permutation(key, min(len(dataset.test), PICTURE_ROWS))
    return read_rows(dataset.test, np.asarray(candidates[:number]))


@cached_by_data(maxsize=4)
def all_labels(dataset: Dataset, split_name: str) -> np.ndarray:
    """Return the label of every row of a split, -1 for none; only a few rows are in memory at a time."""
    split = getattr(dataset, split_name)
    parts = np.array_split(np.arange(len(split)), -(-len(split) // TEST_ROWS))
    return np.concatenate([read_rows(split, indices).label for indices in parts])


def read_rows(split: Split, indices: np.ndarray) -> Rows:
    """Read the rows of a split at some indices."""
    return _as_rows(*split.rows(indices))


def _as_rows(x: Any, y: Any, label: Any) -> Rows:
    label = np.full(len(x), -1) if label is None else np.asarray(label)
    return Rows(np.asarray(x), None if y is None else np.asarray(y), label)


def over_x(function: Callable[[np.ndarray], T], rows: Rows, divisor: float) -> T:
    """Apply a function of x [n, *X], on the host, to rows in blocks; return its arrays, joined."""
    return map_blocks(lambda x: function(unit(x, divisor)), rows.x, size=rows_per_block(rows.x.shape[1:]))


def labelled(rows: Rows) -> Rows:
    """Return the rows that have a label."""
    known = rows.label >= 0
    return rows if known.all() else jax.tree.map(lambda array: array[known], rows)


@cached_by_data(maxsize=2)
def reference_predict(dataset: Dataset, length: float = 1.0) -> tuple[Predict, float]:
    """Return the reference classifier's function from images to labels, and its accuracy on test."""
    test = labelled(test_rows(dataset))
    predict = reference_classifier(dataset, length).predict
    return predict, float(np.mean(over_x(predict, test, dataset.divisor) == test.label))


@cached_by_data(maxsize=2)
def reference_classifier(dataset: Dataset, length: float = 1.0) -> Classifier:
    """Train the reference classifier on the labelled rows of train.

    `length` is that of `fit_classifier`. Raises a ValueError for stacks of images.
    """
    if dataset.parts is not None:
        raise ValueError(
            f"The reference classifier classifies single images, and {dataset.name!r} has stacks: give the "
            "data set's `parts`."
        )
    train = labelled(train_rows(dataset))
    return fit_classifier(train.x, train.label, dataset.num_classes, divisor=dataset.divisor, length=length)
