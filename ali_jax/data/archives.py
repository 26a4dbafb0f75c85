"""An .npz file of the user's: which of its arrays are images and labels, and whether they are usable."""

import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from ali_jax.data import images, survey
from ali_jax.data.dataset import ArraySplit, DataError, LoadOptions, Note, class_order
from ali_jax.data.folders import FEWEST, HELD_OUT, PART_OF, held_out_tenth
from ali_jax.data.pictures import Contents

KINDS = {
    **dict.fromkeys(("image", "images", "x"), "image"),
    **dict.fromkeys(("label", "labels", "y"), "label"),
}
MAX_CLASSES = 10_000  # matrices of classes by classes are made


class _Part(NamedTuple):
    """The names of the arrays of a part."""

    image: str
    label: str | None


def read_npz(path: Path, options: LoadOptions) -> Contents:
    """Read images or vectors and, where there are, labels, of the parts train, validation and test.

    Their names are train_image and train_label, or Keras' or MedMNIST's. A single array without a part is
    divided: a random tenth of it is test.

    Raises:
        DataError: the file is damaged, or its arrays are not usable.
    """
    scale = options.scale
    shapes = _shapes(path)
    names = _names(path, shapes)
    arrays = _arrays(path, [name for part in names.values() for name in part if name])
    labelled = [part for part, name in names.items() if name.label]
    if labelled and len(labelled) < len(names):
        raise DataError(
            f"{path}: only {' and '.join(labelled)} has labels; give labels for both splits or for neither"
        )
    x = {part: _check_x(f"{path}: {name.image}", arrays[name.image], scale) for part, name in names.items()}
    label = {
        part: _check_labels(f"{path}: {name.label}", arrays[name.label], len(x[part]))
        for part, name in names.items()
        if name.label
    }
    label, class_names = _recoded(path, label)
    parts = {part: ArraySplit(x[part], None, label.get(part), len(class_names)) for part in names}
    if list(names) == [""]:
        parts = _divided(path, parts[""])
    used = {name for part in names.values() for name in part}
    notes = [note for note in (_unused_note(path, sorted(set(shapes) - used)),) if note]
    stored = [arrays[name.image] for name in names.values()]
    if stored[0].dtype == np.uint8:
        low, high = min(int(a.min()) for a in stored), max(int(a.max()) for a in stored)
        notes += survey.range_notes(low, high, 255, scale)
    return Contents(parts, class_names, notes)


def _names(path: Path, shapes: Mapping[str, str]) -> dict[str, _Part]:
    """Return the names of the arrays of each part; a single array without parts has the part "".

    Raises:
        DataError: there is nothing to train or to test on.
    """
    roles: dict[tuple[str, str], str] = {}
    for name in sorted(shapes, key=lambda name: (not name.endswith(("_image", "_label")), name)):
        if role := _role(name):
            roles.setdefault(role, name)
    parts = [part for part in ("train", *HELD_OUT) if (part, "image") in roles]
    if not any(part for part, _ in roles):
        inputs = [name for name in shapes if (_role(name) or ("", "image"))[1] == "image"]
        single = roles.get(("", "image")) or (inputs[0] if len(inputs) == 1 else None)
        if single:
            return {"": _Part(single, roles.get(("", "label")))}
    if "train" not in parts or len(parts) < 2:
        missing = "train_image" if "train" not in parts else "test_image"
        if not parts:
            missing = "train_image or test_image"
        there = ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "none"
        raise DataError(
            f"{path}: no array {missing}; its arrays are: {there}. It must hold train_image and test_image, "
            "and may hold train_label and test_label, or x_train, x_test, y_train and y_test in their place, "
            "or a single array of images"
        )
    return {part: _Part(roles[part, "image"], roles.get((part, "label"))) for part in parts}


def _role(name: str) -> tuple[str, str] | None:
    """Return the part and the kind that the name of an array says, in either order; the part may lack."""
    words = name.lower().split("_")
    if len(words) == 1 and words[0] in KINDS:
        return "", KINDS[words[0]]
    for part, kind in (words, words[::-1]) if len(words) == 2 else ():
        if part in PART_OF and kind in KINDS:
            return PART_OF[part], KINDS[kind]
    return None


def _unused_note(path: Path, names: Sequence[str]) -> Note | None:
    return Note(f"Of {path.name} these arrays are not used: {survey.listed(names)}.") if names else None


def _divided(path: Path, split: ArraySplit) -> dict[str, ArraySplit]:
    if len(split) < FEWEST:
        raise DataError(f"{path}: too few rows ({len(split)}); training and testing need {FEWEST}")
    label = np.zeros(len(split)) if split.label is None else split.label
    rows = zip(("train", "test"), held_out_tenth(label), strict=True)
    return {
        part: ArraySplit(
            split.x[index], None, None if split.label is None else split.label[index], split.num_classes
        )
        for part, index in rows
    }


def _shapes(path: Path) -> dict[str, str]:
    """Return the arrays of the file by name, each with its type and shape as text."""
    shapes = {}
    with _opened(path) as archive:
        for member in archive.infolist():
            if not member.filename.endswith(".npy"):
                continue
            try:
                with archive.open(member) as file:
                    shape, dtype = _header(file)
                text = f"{dtype} {list(shape)}"
            except Exception:  # damaged bytes raise errors of many classes; reading the array reports them
                text = "(damaged)"
            shapes[member.filename.removesuffix(".npy")] = text
    return shapes


def _opened(path: Path) -> zipfile.ZipFile:
    """Open an archive; a DataError says that it is none, or that its table of contents is damaged."""
    try:
        return zipfile.ZipFile(path)
    except OSError:  # such as one without permission
        raise
    except Exception as error:  # damaged bytes raise errors of many classes
        raise DataError(
            f"{path}: not an .npz file, or truncated or damaged; write it again with numpy.savez"
        ) from error


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else None
    shape, _, dtype = (read or np.lib.format.read_array_header_2_0)(file)
    return shape, dtype


def _arrays(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            _check_sizes(path, names)
            return {name: archive[name] for name in names}
    except DataError:
        raise
    except Exception as error:  # zip, zlib, header and pickle errors share no base class
        reason = "holds Python objects" if "Object arrays" in str(error) else f"is damaged ({error})"
        raise DataError(f"{path}: {reason}; write it again with numpy.savez and plain arrays") from error


def _check_sizes(path: Path, names: Sequence[str]) -> None:
    """Raise a DataError if an array is larger than its archive member, or all arrays exceed the memory.

    This keeps a small file from unpacking to more than the machine can hold.
    """
    needed = 0
    with _opened(path) as archive:
        for member in archive.infolist():
            if member.filename.removesuffix(".npy") not in names:
                continue
            with archive.open(member) as file:
                shape, dtype = _header(file)
            size = math.prod(shape) * dtype.itemsize
            if size > member.file_size and not dtype.hasobject:
                raise DataError(
                    f"{path}: {member.filename} is damaged: its header says {size} bytes, the file has "
                    f"{member.file_size}; write it again with numpy.savez"
                )
            needed += size
    check_fits(path, needed)


def check_fits(path: Path, needed: int) -> None:
    """Raise a DataError if a file needs more bytes than the machine has memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise DataError(
            f"{path}: unpacked it takes {needed / 2**30:.1f} GiB, but this machine has {memory / 2**30:.1f}; "
            "give a part of it, or a directory of images, which can be streamed"
        )


def _check_x(what: str, x: np.ndarray, scale: float) -> np.ndarray:
    """Return images as uint8 [N, H, W, C] or vectors as float32 [N, D], times `scale`."""
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
            f"255, vectors floats [N, D]{as_bytes(x)}"
        )
    x = x[..., None] if x.ndim == 3 else x
    if x.shape[3] not in (1, 3):
        first = x.shape[1] in (1, 3)
        cure = "; write np.moveaxis(x, 1, -1) in its place" if first else ""
        raise DataError(f"{what} is {list(x.shape)}; images must have 1 or 3 channels last{cure}")
    return images.scaled_bytes(x, scale)


def as_bytes(x: np.ndarray) -> str:
    """Say which values numbers of images [N, H, W(, C)] have, and the line of NumPy that makes them uint8."""
    if x.ndim not in (3, 4) or x.dtype.kind not in "iufb":
        return ""
    low, high = float(x.min()), float(x.max())
    ranges = f". Its values run from {low:.4g} to {high:.4g}"
    if not np.isfinite([low, high]).all():
        return f"{ranges}: remove those that are not finite"
    if x.dtype.kind in "fb" and low >= 0 and high <= 1:
        return f"{ranges}: write np.rint(255 * x).astype(np.uint8) in its place"
    if -1 <= low < 0 and high <= 1:
        return f"{ranges}: write np.rint(127.5 * (x + 1)).astype(np.uint8) in its place"
    if low >= 0 and high <= 255:
        return f"{ranges}: write np.rint(x).astype(np.uint8) in its place"
    return f"{ranges}: write np.rint(255 * (x - x.min()) / np.ptp(x)).astype(np.uint8) in its place"


def _check_labels(what: str, label: np.ndarray, count: int) -> np.ndarray:
    """Return labels [N], which are integers or names."""
    label = label[:, 0] if label.ndim == 2 and label.shape[1] == 1 else label
    if label.dtype.kind not in "iuUS" or label.ndim != 1:
        raise DataError(
            f"{what} is {label.dtype} {list(label.shape)}; labels must be integers or names, [N] or [N, 1]"
        )
    if len(label) != count:
        raise DataError(f"{what} has {len(label)} entries for {count} images; give one label per image")
    if label.dtype.kind == "S":
        return np.char.decode(label, "utf-8", "replace")
    if label.dtype.kind in "iu" and count and (label.min() < -1 or label.max() < 0):
        raise DataError(
            f"{what} runs from {label.min()} to {label.max()}; classes are at least 0, and -1 means no label"
        )
    if label.dtype.kind == "u" and count and label.max() > np.iinfo(np.int64).max:
        raise DataError(f"{what} runs to {label.max()}; class numbers must be less than 2**63")
    return label.astype(np.int64) if label.dtype.kind in "iu" else label  # joined, mixed types become floats


def _recoded(path: Path, label: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Return the labels of all parts as 0 to K - 1, -1 for none, and the K names that they had."""
    if not label:
        return {}, ()
    values, place = np.unique(np.concatenate(list(label.values())), return_inverse=True)
    classes = [value for value in values.tolist() if value != -1]
    if len(classes) > MAX_CLASSES:
        raise DataError(
            f"{path}: the labels have {len(classes)} different values, and {MAX_CLASSES} classes are the "
            "limit; leave them out if they are not classes"
        )
    names = sorted(map(str, classes), key=class_order)
    number = {name: i for i, name in enumerate(names)}
    code = np.array([number.get(str(value), -1) for value in values.tolist()], np.int32)
    ends = np.cumsum([len(given) for given in label.values()])[:-1]
    return dict(zip(label, np.split(code[place], ends), strict=True)), tuple(names)


class NamedRows(NamedTuple):
    """Rows of all parts of an .npz file."""

    x: np.ndarray  # [N, *X] as stored
    names: tuple[str, ...]  # such as test_image[3]
    labels: tuple[str, ...]  # "" for none


def read_rows(path: Path) -> NamedRows:
    """Read all images or vectors of an .npz file, undivided; the array's names are those of `read_npz`.

    Raises:
        DataError: the file is damaged, or has no such array.
    """
    roles = {name: _role(name) for name in _shapes(path)}
    named = {role: name for name, role in roles.items() if role}
    parts = [part for part in ("", "train", *HELD_OUT) if (part, "image") in named]
    if not parts and len(roles) == 1:
        named["", "image"], parts = next(iter(roles)), [""]
    if not parts:
        raise DataError(
            f"{path}: no array of images; its arrays are {', '.join(roles) or 'none'}. Name it image, or "
            "give a single array"
        )
    wanted = [named[role] for part in parts for role in ((part, "image"), (part, "label")) if role in named]
    arrays = _arrays(path, wanted)
    x = [arrays[named[part, "image"]] for part in parts]
    if len({(a.shape[1:], a.dtype) for a in x}) > 1 or not all(a.ndim and len(a) for a in x):
        raise DataError(f"{path}: its arrays of images must have rows, of one shape and type")
    labels: list[str] = []
    for part, rows in zip(parts, x, strict=True):
        label = arrays.get(named.get((part, "label"), ""), np.full(len(rows), ""))
        if len(label) != len(rows):
            raise DataError(f"{path}: {len(label)} labels for {len(rows)} images; give one label per image")
        labels += ["" if str(value) == "-1" else str(value) for value in label.ravel().tolist()]
    names = [f"{named[part, 'image']}[{i}]" for part, a in zip(parts, x, strict=True) for i in range(len(a))]
    return NamedRows(np.concatenate(x), tuple(names), tuple(labels))
