"""Data sets by name or from the user's own files, and feeds that bring them to the devices.

`load` returns a `Dataset` of two `Split`s, whose rows are as stored; `make_feed` turns a split into an
endless shuffled stream of batches. Only `python -m ali_jax.data.prepare` downloads anything.
"""

from collections.abc import Sequence

import numpy as np

from ali_jax.data import facts, files, hub, sizes, sources, survey, tfds
from ali_jax.data.dataset import (
    ArraySplit,
    DataError,
    Dataset,
    LoadOptions,
    Note,
    Relabelled,
    SourceSplit,
    Split,
    class_balanced,
    known_labels,
    scaled,
    unit,
)
from ali_jax.data.feeds import (
    DeviceFeed,
    Feed,
    HostFeed,
    PopulationFeed,
    SemiSupervisedFeed,
    make_feed,
)
from ali_jax.data.order import shuffled_rows
from ali_jax.data.stacks import Stacked, stacked, stacked_label
from ali_jax.names import public_functions

__all__ = [
    "ArraySplit",
    "DataError",
    "Dataset",
    "DeviceFeed",
    "Feed",
    "HostFeed",
    "LoadOptions",
    "Note",
    "PopulationFeed",
    "Relabelled",
    "SemiSupervisedFeed",
    "SourceSplit",
    "Split",
    "Stacked",
    "class_balanced",
    "depends_on_seed",
    "facts",
    "known_labels",
    "load",
    "make_feed",
    "names",
    "scaled",
    "shuffled_rows",
    "stacked",
    "stacked_label",
    "unit",
]


def load(
    name: str = "",
    *,
    path: str = "",
    directory: str = "",
    train_split: str = "train",
    test_split: str = "test",
    seed: int = 0,
    scale: float = 1.0,
    conditional: bool = False,
    stack: int = 0,
    background: str = "white",
    resize: int | Sequence[int] = (),
    fit: str = "crop",
) -> Dataset:
    """Load a data set by its name, or from `path` if given.

    Args:
        name: a public function of `ali_jax.data.sources`, a TensorFlow Datasets name, or hf:NAME for a data
            set of the Hugging Face hub; unused with `path`.
        path: a directory, a zip or a tar of images, a Parquet file or a directory of them, an .npz file, a
            directory of SVHN's `*_32x32.mat` files; or hf:NAME.
        directory: where TensorFlow Datasets keeps its data; empty for its default.
        train_split: the part to train on, such as `extra` or `train[:45000]`; for files see `files.load`.
        test_split: the part to test on.
        seed: of the points of synthetic data.
        scale: factor on vectors and points; of the user's own images on their pixels, which end at white.
        conditional: whether rows have y: the attributes of the data or, without any, the one-hot class.
        stack: the number of images that form one x, one per channel; 0 for no stacks. See `stacked`.
        background: what is behind transparent pixels and beside padded images: white, black, or a grey level
            such as "128".
        resize: the size of images, (H, W) or one number for squares; () for the size that they have.
        fit: how images of another shape are resized: `crop` about the centre, `pad` or `stretch`.

    Raises:
        DataError: the name is unknown, the data are missing, a file is unusable, or the data cannot be
            conditional or stacked.
    """
    grey = survey.GREY_LEVELS[background] if background in survey.GREY_LEVELS else int(background)
    size = sizes.size_of(resize)
    options = LoadOptions(directory, train_split, test_split, seed, scale, conditional, grey, size, fit)
    path = path or (name if name.startswith(hub.PREFIX) else "")
    dataset = files.load(path, options) if path else _by_name(name, options)
    if size and dataset.train.shape[:2] != size:
        dataset = sizes.resized(dataset, sizes.Sizing(size, fit, grey))
    dataset = dataset._replace(resize=fit if size else "none")
    if scale != 1.0 and not path and dataset.train.dtype == np.uint8:
        raise DataError(
            f"scale is {scale:g}, but {dataset.name} has images, whose range is always [0, 1]: leave it at 1"
        )
    if dataset.splits[0] == dataset.splits[1]:
        same = Note(f"Training and test rows are the same: both are {dataset.splits[0]}.", True)
        dataset = dataset._replace(notes=(*dataset.notes, same))
    dataset = stacked(dataset, stack) if stack else dataset
    return _conditional(dataset) if conditional and not dataset.attributes else dataset


def _conditional(dataset: Dataset) -> Dataset:
    """Return the data set with the one-hot class of each row as y."""
    if dataset.num_classes < 2:
        raise DataError(
            f"config.dataset.conditional is set, but {dataset.name} has neither attributes nor labels: set "
            "it to False, or take data that have them, such as celeb_a or mnist"
        )
    train, test = (Relabelled(split, one_hot=True) for split in (dataset.train, dataset.test))
    for split in (dataset.train, dataset.test):
        label = known_labels(split)
        label = split.rows(np.arange(min(len(split), 1_000))).label if label is None else label
        if label is None or np.min(label) < 0:
            raise DataError(f"config.dataset.conditional needs a label for every row of {dataset.name}")
    names = dataset.class_names or tuple(str(k) for k in range(dataset.num_classes))
    return dataset._replace(train=train, test=test, attributes=names)


def depends_on_seed(name: str) -> bool:
    """Tell whether the rows of a data set are drawn at random, and so depend on the seed."""
    return name in sources.DRAWN


def names() -> list[str]:
    """List the data sets that `load` knows by name."""
    return sorted([*public_functions(sources), *tfds.NAMES])


def _by_name(name: str, options: LoadOptions) -> Dataset:
    functions = public_functions(sources)
    if name in functions:
        return functions[name](options)
    if name == files.NAME:
        raise DataError("give your images: --config.dataset.path=DIR or an .npz")
    if (builder := tfds.find(name, options.directory)) is not None:
        return tfds.load(name, builder, options)
    raise tfds.unknown(name, names())
