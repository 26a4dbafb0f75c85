"""The user's own data: an .npz file, a directory of images, or a directory of SVHN's .mat files.

Any problem with a file raises a `DataError` that names the file.
"""

import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ali_jax.data import images
from ali_jax.data.dataset import (
    THREADS,
    ArraySplit,
    DataError,
    Dataset,
    LoadOptions,
    SourceSplit,
    host_batch,
    parse_split,
    select,
    stratified,
)
from ali_jax.types import Batch

# fmt: off
IMAGE_SUFFIXES = (
    ".avif", ".bmp", ".dib", ".gif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pcx",
    ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".sgi", ".tga", ".tif", ".tiff", ".webp",
)
# fmt: on
EAGER_BYTES = 2**30  # directories with more decoded bytes are decoded on request, row by row
_MAT_SUFFIX = "_32x32.mat"
PARTS = ("train", "test")  # of an .npz file or a directory of images
_KERAS = (("image", "x"), ("label", "y"))  # Keras' files call train_image x_train and train_label y_train
NAME = "images"  # the data set name in configs for the user's own images
_FEWEST = 4  # images of a directory without parts: two to train on and two to test


class _ImageFile(NamedTuple):
    path: Path
    label: int  # -1 without class folders


def load(path: str, options: LoadOptions) -> Dataset:
    """Load the data set at `path`; its kind follows from the files.

    An .npz file or a directory of images has the parts train and test. The splits of `options` select from
    them if both exist and differ. Otherwise, as with SVHN's "extra", the parts train and test are used.

    Raises:
        DataError: there is nothing at `path`, or something in it is unusable.
    """
    root = Path(path).expanduser()
    if not root.exists():
        raise DataError(f"{root}: no such file or directory; give an .npz file or a directory of images")
    if root.is_file() and root.suffix.lower() != ".npz":
        raise DataError(f"{root}: unsupported file type; give an .npz file or a directory of images")
    wanted = (options.train_split, options.test_split)
    if any(root.glob("*" + _MAT_SUFFIX)):
        names = list(dict.fromkeys(parse_split(split)[0] for split in wanted))
        parts = {name: _read_mat(root / (name + _MAT_SUFFIX)) for name in names}
    else:
        parts = _read_npz(root, options.scale) if root.is_file() else _read_folder(root)
        wanted = wanted if _are_there(parts, wanted) else PARTS
    train, test = (select(parts, split) for split in wanted)
    if train.shape != test.shape:
        raise DataError(f"{root}: x is {train.shape} in train but {test.shape} in test; they must agree")
    divisor = 255.0 if train.dtype == np.uint8 else 1.0
    return Dataset(root.stem, train, test, divisor, train.num_classes, splits=wanted)


def _are_there(parts: Mapping[str, ArraySplit | SourceSplit], wanted: tuple[str, str]) -> bool:
    """Tell whether the parts hold both splits, and the two differ."""
    try:
        return wanted[0] != wanted[1] and all(len(select(parts, split)) for split in wanted)
    except DataError:
        return False


def _read_npz(path: Path, scale: float) -> dict[str, ArraySplit]:
    """Read train_image, test_image and, if present, train_label and test_label, or Keras' names for them."""
    wanted = {f"{name}_{kind}": f"{xy}_{name}" for name in PARTS for kind, xy in _KERAS}
    arrays = _npz_arrays(path, wanted)
    missing = [f"{name}_image" for name in PARTS if f"{name}_image" not in arrays]
    if missing:
        raise DataError(
            f"{path}: no array {' or '.join(missing)}; it must hold train_image and test_image, and may hold "
            "train_label and test_label, or x_train, x_test, y_train and y_test in their place"
        )
    labels = [name for name in PARTS if f"{name}_label" in arrays]
    if labels and len(labels) < len(PARTS):
        raise DataError(f"{path}: only {labels[0]} has labels; give labels for both splits or for neither")
    num_classes = 0
    for name in labels:
        _check_labels(f"{path}: {name}_label", arrays[f"{name}_label"], len(arrays[f"{name}_image"]))
        num_classes = max(num_classes, int(arrays[f"{name}_label"].max()) + 1)
    splits = {}
    for name in PARTS:
        x = _check_x(f"{path}: {name}_image", arrays[f"{name}_image"], scale)
        label = arrays[f"{name}_label"].astype(np.int32) if num_classes else None
        splits[name] = ArraySplit(x, None, label, num_classes)
    return splits


def _npz_arrays(path: Path, wanted: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Return the arrays in the file that are listed in `wanted`, a table of names and alternative names."""
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: not an .npz file, or truncated; write it again with numpy.savez")
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = {key: key if key in archive.files else other for key, other in wanted.items()}
            found = {key: name for key, name in names.items() if name in archive.files}
            _check_sizes(path, tuple(found.values()))
            return {key: archive[name] for key, name in found.items()}
    except DataError:
        raise
    except Exception as error:  # zip, zlib, header and pickle errors share no base class
        reason = "holds Python objects" if "Object arrays" in str(error) else f"is damaged ({error})"
        raise DataError(f"{path}: {reason}; write it again with numpy.savez and plain arrays") from error


def _check_sizes(path: Path, wanted: Sequence[str]) -> None:
    """Raise a DataError if an array is larger than its archive member, or all arrays exceed the memory.

    This keeps a small file from unpacking to more than the machine can hold.
    """
    needed = 0
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.filename.removesuffix(".npy") not in wanted:
                continue
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else None
                shape, _, dtype = (read or np.lib.format.read_array_header_2_0)(file)
            size = math.prod(shape) * dtype.itemsize
            if size > member.file_size and not dtype.hasobject:
                raise DataError(
                    f"{path}: {member.filename} is damaged: its header says {size} bytes, the file has "
                    f"{member.file_size}; write it again with numpy.savez"
                )
            needed += size
    _check_fits(path, needed)


def _check_fits(path: Path, needed: int) -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise DataError(
            f"{path}: unpacked it takes {needed / 2**30:.1f} GiB, but this machine has {memory / 2**30:.1f}; "
            "give a part of it, or a directory of images, which can be streamed"
        )


def _check_x(what: str, x: np.ndarray, scale: float) -> np.ndarray:
    """Return images as uint8 [N, H, W, C] or vectors as scaled float32 [N, D]."""
    if x.size == 0:
        raise DataError(f"{what} is empty: its shape is {x.shape}")
    if x.dtype.kind == "f" and x.ndim == 2:
        x = x.astype(np.float32) * np.float32(scale)
        if not np.isfinite(x).all():
            raise DataError(f"{what} has values that are NaN or infinite; remove those rows")
        return x
    if x.dtype != np.uint8 or x.ndim not in (3, 4):
        raise DataError(
            f"{what} is {x.dtype} {list(x.shape)}; images must be uint8 [N, H, W, C] or [N, H, W] from 0 to "
            "255, vectors floats [N, D]"
        )
    x = x[..., None] if x.ndim == 3 else x
    if x.shape[1] != x.shape[2] or x.shape[3] not in (1, 3):
        raise DataError(f"{what} is {list(x.shape)}; images must be square, with 1 or 3 channels last")
    return x


def _check_labels(what: str, label: np.ndarray, count: int) -> None:
    if label.dtype.kind not in "iu" or label.ndim != 1:
        raise DataError(f"{what} is {label.dtype} {list(label.shape)}; labels must be integers [N]")
    if len(label) != count:
        raise DataError(f"{what} has {len(label)} entries for {count} images; give one label per image")
    if count and (label.min() < -1 or label.max() < 0 or label.max() >= 2**31 - 1):
        raise DataError(
            f"{what} runs from {label.min()} to {label.max()}; classes count from 0, and -1 means no label"
        )


def _read_mat(path: Path) -> ArraySplit:
    """Read a file of the original SVHN: X [32, 32, 3, N] and y [N, 1], where 10 stands for the digit 0."""
    from scipy.io import loadmat, whosmat

    if not path.exists():
        raise DataError(f"{path}: no such file; download it from SVHN's page, or choose another split")
    try:
        _check_fits(path, sum(math.prod(shape) for name, shape, _ in whosmat(path) if name in ("X", "y")))
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


def _read_folder(root: Path) -> dict[str, ArraySplit] | dict[str, SourceSplit]:
    """Read a directory of images: its folders train and test or, without them, a random tenth as test."""
    present = [name for name in PARTS if (root / name).is_dir()]
    if present and len(present) < len(PARTS):
        absent = next(name for name in PARTS if name not in present)
        raise DataError(
            f"{root}: has a folder {present[0]} but none named {absent}; add it, or rename {present[0]}"
        )
    if present:
        found = {name: _image_paths(root / name) for name in PARTS}
        classes = sorted({c for name in PARTS for c in _class_folders(root / name, found[name])})
        parts = {name: _labelled(root / name, found[name], classes) for name in PARTS}
    else:
        paths = _image_paths(root)
        rows = _labelled(root, paths, _class_folders(root, paths))
        if len(rows) < _FEWEST:
            raise DataError(f"{root}: too few images ({len(rows)}); training and testing need {_FEWEST}")
        divided = stratified(np.array([row.label for row in rows]), max(2, len(rows) // 10))
        parts = {name: [rows[i] for i in index] for name, index in zip(PARTS, divided, strict=True)}
    every = [row for part in parts.values() for row in part]
    shape = _common_shape([row.path for row in every])
    num_classes = 1 + max(row.label for row in every)
    lazy = {
        name: SourceSplit(part, lambda row: _decode(row, shape), shape, np.dtype(np.uint8), num_classes)
        for name, part in parts.items()
    }
    if sum(split.nbytes for split in lazy.values()) > EAGER_BYTES:
        return lazy
    return {name: split.in_memory() for name, split in lazy.items()}


def _image_paths(root: Path) -> list[Path]:
    """Return all image files below root, sorted by path, without hidden ones."""
    paths = sorted(
        path
        for path in root.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
        and path.is_file()
    )
    if not paths:
        raise DataError(f"{root}: has no images; their names must end in {', '.join(IMAGE_SUFFIXES)}")
    return paths


def _class_folders(root: Path, paths: Sequence[Path]) -> list[str]:
    """Return the folders that name classes; none if there is only one, or if an image lies outside."""
    folders = {path.relative_to(root).parts[0] for path in paths if path.parent != root}
    loose = any(path.parent == root for path in paths)
    return [] if loose or len(folders) < 2 else sorted(folders)


def _labelled(root: Path, paths: Sequence[Path], classes: Sequence[str]) -> list[_ImageFile]:
    number = {name: i for i, name in enumerate(classes)}
    return [_ImageFile(path, number.get(path.relative_to(root).parts[0], -1)) for path in paths]


def _common_shape(paths: Sequence[Path]) -> tuple[int, int, int]:
    """Read the common shape (S, S, C) of all images from their headers; C is 1 if all are grey.

    Raises:
        DataError: an image is unreadable, not square, or differs in size from the first.
    """
    all_grey = True
    first = (0, 0)
    with ThreadPoolExecutor(THREADS) as pool:
        for path, (size, grey) in zip(paths, pool.map(_header, paths), strict=True):
            first = size if path == paths[0] else first
            if size[0] != size[1] or size != first:
                pool.shutdown(cancel_futures=True)
                given = f"{path} is {size[0]}x{size[1]} pixels"
                wanted = "square" if path == paths[0] else f"{first[0]}x{first[1]} like {paths[0]}"
                raise DataError(f"{given} but must be {wanted}; crop and resize all to one square size")
            all_grey = all_grey and grey
    return first[1], first[0], 1 if all_grey else 3


def _header(path: Path) -> tuple[tuple[int, int], bool]:
    """Return width and height, and whether the image is grey, without decoding it."""
    with images.opened(path) as image:
        return image.size, images.is_grey(image)


def _decode(row: _ImageFile, shape: tuple[int, ...]) -> Batch:
    with images.opened(row.path) as image:
        x = images.to_uint8(images.upright(image), shape[-1])
    if x.shape != shape:
        raise DataError(f"{row.path} changed after the start: it is now {x.shape}, not {shape}")
    return host_batch(x, label=row.label)
