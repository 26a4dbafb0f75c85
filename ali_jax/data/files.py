"""The user's own data: a directory, zip or tar of images, Parquet files, an .npz, or SVHN's .mat files.

Any problem with a file raises a `DataError` that names the file.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from ali_jax.data import archives, folders, hub, packed, sizes, survey, tables
from ali_jax.data.dataset import (
    ArraySplit,
    DataError,
    Dataset,
    LoadOptions,
    Note,
    SourceSplit,
    parse_split,
    select,
)
from ali_jax.data.pictures import Contents

EAGER_BYTES = 2**30  # directories with more decoded bytes are decoded on request, row by row
NAME = "images"  # the data set name in configs for the user's own images
KINDS = "a directory, a zip or a tar of images, a Parquet file or a directory of them, or an .npz file"
_MAT_SUFFIX = "_32x32.mat"
Rows = ArraySplit | SourceSplit
Parts = Mapping[str, Rows]
_DIGITS = tuple(str(digit) for digit in range(10))


def load(path: str, options: LoadOptions) -> Dataset:
    """Load the data set at `path`; its kind follows from the files.

    Every kind but SVHN's has the parts train and test, and may have validation; the splits of `options`
    select from them. Two things are understood: test is validation where there is no other; and
    train stands for SVHN's extra, which only SVHN has.

    Raises:
        DataError: there is nothing at `path`, something in it is unusable, or a split does not exist.
    """
    splits = options.train_split, options.test_split
    root = Path(path.removeprefix(hub.PREFIX)).expanduser()
    parts, class_names, notes = _contents(path, root, options)
    splits, train, test, of_splits = _selected(root, parts, splits)
    notes = list(notes)
    notes += of_splits
    if train.shape != test.shape:
        raise DataError(
            f"{root}: x is {train.shape} in train but {test.shape} in test; they must agree; "
            f"{sizes.cure(test.shape, train.shape)}"
        )
    notes += survey.class_notes(class_names, train, test)
    divisor = 255.0 if train.dtype == np.uint8 else 1.0
    return Dataset(
        root.stem,
        *_in_memory(train, test),
        divisor,
        train.num_classes,
        splits=splits,
        class_names=class_names,
        notes=tuple(notes),
    )


def _contents(path: str, root: Path, options: LoadOptions) -> Contents:
    """Read what is at a path, by the reader of its kind."""
    if path.startswith(hub.PREFIX):
        return hub.read_hub(path.removeprefix(hub.PREFIX), options)
    if not root.exists():
        raise DataError(f"{root}: no such file or directory; give {KINDS}")
    if any(root.glob("*" + _MAT_SUFFIX)):
        asked_for = (options.train_split, options.test_split)
        names = list(dict.fromkeys(parse_split(split)[0] for split in asked_for))
        return Contents({name: _read_mat(root / (name + _MAT_SUFFIX)) for name in names}, _DIGITS, [])
    if tables.find_tables(root) and not (root.is_dir() and folders.find_images(root)[0]):
        return tables.read_tables(root, options)
    if root.is_dir():
        return folders.read_folder(root, options)
    if packed.is_archive(root):
        return packed.read_archive(root, options)
    if root.suffix.lower() == ".npz":
        return archives.read_npz(root, options)
    raise DataError(f"{root}: unsupported file type; give {KINDS}")


def _selected(
    root: Path, parts: Parts, asked_for: tuple[str, str]
) -> tuple[tuple[str, str], Rows, Rows, list[Note]]:
    """Return the names of the splits, their rows, and a note where they are others than asked for."""
    try:
        train, test = map(_by_part, asked_for)
        notes = []
        if _part(train) == "extra" and "extra" not in parts:  # as experiments/svhn.py asks for
            train, test = train.replace("extra", "train", 1), "test" if test == "train" else test
            notes.append(
                Note(f"There is no split extra, which SVHN has: training is on {train}, testing on {test}.")
            )
        if _part(test) == "test" and "test" not in parts and "validation" in parts:
            test = test.replace("test", "validation", 1)
        return (train, test), select(parts, train), select(parts, test), notes
    except DataError as error:
        train, test = asked_for
        known = "" if "the splits are" in str(error) else f"; the splits are {', '.join(parts)}"
        raise DataError(
            f"{root}: config.dataset.train_split is {train!r}, test_split is {test!r}: {error}{known}"
        ) from None


def _by_part(split: str) -> str:
    """Return a split with the usual name of its part: validation[:9] for val[:9]."""
    name = _part(split)
    return folders.PART_OF.get(name, name) + split.strip().removeprefix(name)


def _part(split: str) -> str:
    return parse_split(split)[0]


def _in_memory(train: Rows, test: Rows) -> tuple[Rows, Rows]:
    """Decode both splits if they are small."""
    is_small = train.nbytes + test.nbytes <= EAGER_BYTES
    if not (is_small and isinstance(train, SourceSplit) and isinstance(test, SourceSplit)):
        return train, test
    both = replace(train, source=[*train.source, *test.source])  # so that one error names all broken files
    rows, n = both.in_memory(), len(train)
    return rows.part(0, n), rows.part(n, len(rows))


def _read_mat(path: Path) -> ArraySplit:
    """Read a file of the original SVHN: X [32, 32, 3, N] and y [N, 1], where 10 stands for the digit 0."""
    from scipy.io import loadmat, whosmat

    if not path.exists():
        raise DataError(f"{path}: no such file; download it from SVHN's page, or choose another split")
    try:
        archives.check_fits(
            path, sum(math.prod(shape) for name, shape, _ in whosmat(path) if name in ("X", "y"))
        )
        content = loadmat(path, variable_names=("X", "y"))
    except DataError:
        raise
    except Exception as error:  # damaged bytes make the reader raise errors of many classes
        raise DataError(f"{path}: not a readable .mat file, or truncated ({error})") from error
    x, y = content.get("X"), content.get("y")
    if x is None or y is None or x.dtype != np.uint8 or x.ndim != 4 or x.shape[:3] != (32, 32, 3):
        raise DataError(f"{path}: not an SVHN file, which holds X uint8 [32, 32, 3, N] and y [N, 1]")
    label = y.reshape(-1).astype(np.int32) % 10
    if len(label) != x.shape[3]:
        raise DataError(f"{path}: {len(label)} labels for {x.shape[3]} images")
    return ArraySplit(np.ascontiguousarray(np.moveaxis(x, 3, 0)), None, label, 10)
