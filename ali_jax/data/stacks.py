"""Stacks: several grey-scale images of a data set as the channels of one x, as in stacked MNIST.

Three digits make 1,000 equally likely classes, which show how many modes a model covers.
"""

from dataclasses import dataclass

import numpy as np

from ali_jax.data.dataset import DataError, Dataset, Split, host_batch
from ali_jax.types import Batch

TRAIN_STACKS = 128_000  # as in PacGAN's experiment
TEST_STACKS = 26_000  # the number of samples over which the literature counts modes


@dataclass(frozen=True)
class Stacked:
    """Stacks of C rows of another split as the channels of one x; only row numbers are stored."""

    split: Split  # of x [H, W, 1], with labels
    index: np.ndarray  # [N, C] rows of `split`

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of one x."""
        return (*self.split.shape[:2], self.index.shape[1])

    @property
    def dtype(self) -> np.dtype:
        """Return the type of x."""
        return self.split.dtype

    @property
    def num_classes(self) -> int:
        """Return the number of classes of stacks: K^C."""
        return self.split.num_classes ** self.index.shape[1]

    @property
    def nbytes(self) -> int:
        """Return the size that x would have in memory."""
        return len(self) * int(np.prod(self.shape)) * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self.index)

    def rows(self, indices: np.ndarray) -> Batch:
        """Return the rows at indices [n], reading each row of `split` at most once.

        A stack has no label (-1) if one of its images has none.
        """
        parts = self.index[indices]
        used, place = np.unique(parts, return_inverse=True)
        found, place = self.split.rows(used), place.reshape(parts.shape)
        x = np.empty((len(parts), *self.shape), self.dtype)
        for channel, where in enumerate(place.T):
            x[..., channel] = np.asarray(found.x)[where, ..., 0]
        label = np.asarray(found.label)[place]
        known = (label >= 0).all(axis=1)
        return host_batch(x, None, np.where(known, stacked_label(label, self.split.num_classes), -1))


def stacked_label(label: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the classes [N] of stacks with classes [N, C] in their channels: 100 a + 10 b + c for digits."""
    weights = num_classes ** np.arange(label.shape[1])[::-1]
    return (label @ weights).astype(np.int32)


def stacked(dataset: Dataset, count: int) -> Dataset:
    """Return the data set of stacks of `count` images, drawn with replacement from train and from test.

    The stacks are the same for every seed. The given data set becomes the `parts` of the result.

    Raises:
        DataError: the data are not grey-scale images with labels.
    """
    *_, channels = dataset.train.shape
    instead = "take labelled grey-scale images, such as digits or mnist, or set config.dataset.stack=0"
    if len(dataset.train.shape) != 3 or channels != 1 or dataset.train.dtype != np.uint8:
        shape = "x".join(map(str, dataset.train.shape))
        raise DataError(
            f"config.dataset.stack is {count}, but {dataset.name} has x of {shape} {dataset.train.dtype}, "
            f"not grey-scale images: {instead}"
        )
    if dataset.num_classes < 2:
        raise DataError(f"config.dataset.stack is {count}, but {dataset.name} has no labels: {instead}")

    def draw(split: Split, stream: int, number: int) -> Stacked:
        rows = np.random.default_rng((count, stream)).integers(len(split), size=(number, count))
        return Stacked(split, rows.astype(np.int32))

    train, test = draw(dataset.train, 0, TRAIN_STACKS), draw(dataset.test, 1, TEST_STACKS)
    name, classes = f"stacked {dataset.name}", train.num_classes
    return Dataset(
        name, train, test, dataset.divisor, classes, splits=dataset.splits, parts=dataset, notes=dataset.notes
    )
