"""A directory of images: which files are images, to which part and class each belongs, what is skipped."""

import os
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ali_jax.data import images, survey
from ali_jax.data.dataset import (
    THREADS,
    DataError,
    Note,
    SourceSplit,
    class_order,
    host_batch,
    joined,
    stratified,
)
from ali_jax.types import Batch

# fmt: off
IMAGE_SUFFIXES = (
    ".avif", ".bmp", ".dib", ".gif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pcx",
    ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".sgi", ".tga", ".tif", ".tiff", ".webp",
)
# fmt: on
PART_OF = {  # names of folders, in any case, and of splits
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
HELD_OUT = ("test", "validation")  # one of them stands beside train
FEWEST = 4  # images of a directory without parts: two to train on and two to test

Names = tuple[str, ...]  # of the folders that lead to an image, and of the image


class ImageFile(NamedTuple):
    """An image on disk and its class."""

    path: Path
    label: int  # -1 for none


class Contents(NamedTuple):
    """What a file or a directory of the user's holds."""

    parts: dict[str, SourceSplit]
    class_names: tuple[str, ...]
    notes: list[Note]


def read_folder(root: Path, *, background: int, scale: float) -> Contents:
    """Read a directory of images: its folders of parts or, without them, a random tenth as test.

    The images are not decoded. Labels are the folders in which all images of a part lie, if there are two or
    more. A folder that alone wraps others is looked through.

    Raises:
        DataError: there are no images, or they are unusable.
    """
    found, skipped = find_images(root)
    if not found:
        suffixes = ", ".join(IMAGE_SUFFIXES)
        reasons = f"; skipped: {_counted(skipped)}" if skipped else ""
        raise DataError(f"{root}: has no images; their names must end in {suffixes}{reasons}")
    of_part = _parts(root, _named(root, found))
    held_out = [name for name in HELD_OUT if name in of_part]
    if held_out:
        skipped.update({f"image outside the folders {', '.join(of_part)}": len(found) - _total(of_part)})
    classes = _classes(of_part)
    rows = {name: _labelled(part, classes) for name, part in of_part.items()}
    if not held_out:
        rows = _divided(root, rows["train"])
    notes = [
        *_skipped_note(root, skipped, len(found)),
        *_unlabelled_notes(rows, classes),
        *_no_classes_note(of_part, classes),
    ]
    every = sorted(row.path for part in rows.values() for row in part)
    shape, with_alpha = _common_shape(every)

    def decode(row: ImageFile) -> Batch:
        with images.opened(row.path) as image:
            upright = images.upright(image)
            x = images.to_uint8(upright, shape[-1], background=background, scale=scale)
        if x.shape != shape:
            raise DataError(f"{row.path} changed after the start: it is now {x.shape}, not {shape}")
        return host_batch(x, label=row.label)

    parts = {
        name: SourceSplit(
            part,
            decode,
            shape,
            np.dtype(np.uint8),
            len(classes),
            label=np.array([row.label for row in part], np.int32) if classes else None,
        )
        for name, part in rows.items()
    }
    notes += survey.transparency_notes(with_alpha, shape[-1], background, scale)
    notes += survey.file_range_notes(every, background, scale)
    return Contents(parts, tuple(classes), notes)


def find_images(root: Path) -> tuple[list[Path], Counter[str]]:
    """Return all images below root, sorted by path, and how many files are skipped, by reason.

    Links are followed, after all other folders; each folder is read once. Hidden files and folders are
    skipped.
    """
    seen = {_identity(folder) for folder in (root, *root.resolve().parents)}
    found: list[Path] = []
    skipped: Counter[str] = Counter()
    folders, links = deque([root]), deque[Path]()
    while folders or links:
        folder = folders.popleft() if folders else links.popleft()
        is_link = folder != root and folder.is_symlink()
        if is_link and _identity(folder) in seen:
            skipped["link to a folder that is read elsewhere"] += 1
            continue
        seen.add(_identity(folder))
        for entry in _entries(folder):
            path = Path(entry.path)
            is_folder = os.path.isdir(entry.path)  # no error where a link leads to itself
            if entry.name.startswith("."):
                skipped["hidden folder" if is_folder else "hidden file"] += 1
            elif is_folder:
                (links if entry.is_symlink() else folders).append(path)
            elif reason := _unusable(entry, path.suffix):
                skipped[reason] += 1
            else:
                found.append(path)
    return sorted(found), skipped


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from error


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _unusable(entry: os.DirEntry[str], suffix: str) -> str:
    """Return why a file is no image, or "" if its name says that it is one."""
    if not os.path.isfile(entry.path):
        return "link to nothing" if entry.is_symlink() and not os.path.exists(entry.path) else "device"
    if suffix.lower() in IMAGE_SUFFIXES:
        return ""
    return f"{suffix.lower()} file" if suffix else "file without a suffix"


def _part_of(folder: str) -> str | None:
    """Return the part that a folder's name says, in any case and with spaces around it, or None."""
    return PART_OF.get(folder.strip().lower())


def _looked_through(names: Sequence[Names]) -> list[Names]:
    """Leave out a folder that all images lie in, while it has folders itself and is no part."""
    while (
        len({n[0] for n in names}) == 1
        and all(len(n) > 1 for n in names)
        and any(len(n) > 2 for n in names)
        and _part_of(names[0][0]) is None
    ):
        names = [n[1:] for n in names]
    return list(names)


def _parts(root: Path, found: dict[Names, Path]) -> dict[str, dict[Names, Path]]:
    """Return the images by part, their names without its folder; without parts all are of train.

    Raises:
        DataError: there is a part, but nothing to train or to test on; two folders are the same part.
    """
    folders = sorted({names[0] for names in found if len(names) > 1 and _part_of(names[0])})
    of_part: dict[str, dict[Names, Path]] = {}
    for folder in folders:
        part = PART_OF[folder.strip().lower()]
        if part in of_part:
            same = " and ".join(name for name in folders if _part_of(name) == part)
            raise DataError(f"{root}: the folders {same} both mean {part}; join them, or rename one")
        inside = {names[1:]: path for names, path in found.items() if names[0] == folder}
        of_part[part] = dict(zip(_looked_through(list(inside)), inside.values(), strict=True))
    if not of_part:
        return {"train": found}
    absent = "train" if "train" not in of_part else "" if set(HELD_OUT) & set(of_part) else "test"
    if absent:
        raise DataError(
            f"{root}: has a folder {folders[0]} but none named {absent}; add it, or rename {folders[0]}"
        )
    return {part: of_part[part] for part in ("train", "validation", "test") if part in of_part}


def _named(root: Path, found: Sequence[Path]) -> dict[Names, Path]:
    names = _looked_through([path.relative_to(root).parts for path in found])
    return dict(zip(names, found, strict=True))


def _total(of_part: dict[str, dict[Names, Path]]) -> int:
    return sum(map(len, of_part.values()))


def _classes(of_part: dict[str, dict[Names, Path]]) -> list[str]:
    """Return the folders that name classes: those of every part that has two or more."""
    folders = [{names[0] for names in part if len(names) > 1} for part in of_part.values()]
    names = {name for part in folders if len(part) > 1 for name in part}
    return sorted(names, key=class_order)


def _labelled(part: dict[Names, Path], classes: Sequence[str]) -> list[ImageFile]:
    number = {name: i for i, name in enumerate(classes)}
    return [
        ImageFile(path, number.get(names[0], -1) if len(names) > 1 else -1) for names, path in part.items()
    ]


def _divided(root: Path, rows: list[ImageFile]) -> dict[str, list[ImageFile]]:
    if len(rows) < FEWEST:
        raise DataError(f"{root}: too few images ({len(rows)}); training and testing need {FEWEST}")
    train, test = held_out_tenth(np.array([row.label for row in rows]))
    return {"train": [rows[i] for i in train], "test": [rows[i] for i in test]}


def held_out_tenth(label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Divide rows with labels [N] into train and a tenth, but two at least, to test on."""
    return stratified(label, max(2, len(label) // 10))


def _skipped_note(root: Path, skipped: Counter[str], images_used: int) -> list[Note]:
    skipped = +skipped
    if not skipped:
        return []
    return [Note(f"{root.name} has {images_used} images. Skipped: {_counted(skipped)}.")]


def _counted(skipped: Counter[str]) -> str:
    """Return the reasons with their numbers, the most frequent first: "50 .heic files, 1 hidden file"."""
    return ", ".join(f"{number} {_plural(what, number)}" for what, number in skipped.most_common())


def _plural(what: str, number: int) -> str:
    first, _, rest = what.partition(" ")
    if number == 1:
        return what
    if first in ("link", "file", "image", "device"):
        return f"{first}s {rest}".rstrip()
    return f"{what}s"


def _unlabelled_notes(rows: dict[str, list[ImageFile]], classes: Sequence[str]) -> Iterable[Note]:
    for name, part in rows.items() if classes else ():
        number = sum(row.label < 0 for row in part)
        if number:
            yield Note(f"{number} of {len(part)} images of {name} lie in no class folder: no label.", True)


def _no_classes_note(of_part: dict[str, dict[Names, Path]], classes: Sequence[str]) -> list[Note]:
    """Warn that images lie in several folders, none of which names a class."""
    folders = {"/".join(names[:-1]) for part in of_part.values() for names in part if len(names) > 1}
    if classes or len(folders) < 2:
        return []
    return [
        Note(
            f"The folders {survey.listed(sorted(folders))} are not taken as classes. Those must lie beside "
            "each other, two or more, and not under a folder that lies beside images.",
            True,
        )
    ]


def _common_shape(paths: Sequence[Path]) -> tuple[tuple[int, int, int], list[Path]]:
    """Read the common shape (S, S, C) of all images from their headers; C is 1 if all are grey.

    Returns:
        The shape, and the images that may be transparent.

    Raises:
        DataError: images are unreadable, not square, or differ in size from the first.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        headers = list(pool.map(_header, paths))
    if errors := [header for header in headers if isinstance(header, DataError)]:
        raise joined(errors)
    good = [header for header in headers if not isinstance(header, DataError)]
    width, height = good[0].size
    if width != height:
        others = sum(header.size[0] != header.size[1] for header in good[1:])
        raise _wrong_size(paths[0], good[0].size, "square", others)
    wrong = [i for i, header in enumerate(good) if header.size != (width, height)]
    if wrong:
        wanted = f"{width}x{height} like {paths[0]}"
        raise _wrong_size(paths[wrong[0]], good[wrong[0]].size, wanted, len(wrong) - 1)
    with_alpha = [path for path, header in zip(paths, good, strict=True) if header.has_alpha]
    return (height, width, 1 if all(header.is_grey for header in good) else 3), with_alpha


def _wrong_size(path: Path, size: tuple[int, int], wanted: str, others: int) -> DataError:
    too = f" ({others} other images are of a wrong size too)" if others else ""
    return DataError(
        f"{path} is {size[0]}x{size[1]} pixels but must be {wanted}{too}; crop and resize all to one square "
        "size"
    )


class _Header(NamedTuple):
    size: tuple[int, int]  # width and height
    is_grey: bool
    has_alpha: bool


def _header(path: Path) -> _Header | DataError:
    """Read what can be known of an image without decoding it; return the error if that fails."""
    try:
        with images.opened(path) as image:
            return _Header(image.size, images.is_grey(image), image.has_transparency_data)
    except DataError as error:
        return error
