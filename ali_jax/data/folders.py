"""A directory of images: which files are images, to which part and class each belongs, what is skipped."""

import os
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ali_jax.data import images, pictures, survey
from ali_jax.data.dataset import DataError, LoadOptions, Note, class_order, stratified
from ali_jax.data.pictures import Contents, ImageFile

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


def read_folder(root: Path, options: LoadOptions) -> Contents:
    """Read a directory of images: its folders of parts or, without them, a random tenth as test.

    The images are not decoded. Labels are the folders in which all images of a part lie, if there are two or
    more. A folder that alone wraps others is looked through.

    Raises:
        DataError: there are no images, or they are unusable.
    """
    found, skipped = find_images(root)
    return arranged(root, {path.relative_to(root).parts: path for path in found}, skipped, options)


def arranged(
    root: Path, found: Mapping[Names, images.Source], skipped: Counter[str], options: LoadOptions
) -> Contents:
    """Read images whose folders say their part and their class, as `read_folder` does.

    Args:
        root: the directory or the archive that holds them.
        found: the images, by the names that lead to them.
        skipped: how many other files there are, by reason.
        options: of `load`.
    """
    if not found:
        suffixes = ", ".join(IMAGE_SUFFIXES)
        reasons = f"; skipped: {pictures.counted(skipped)}" if skipped else ""
        raise DataError(f"{root}: has no images; their names must end in {suffixes}{reasons}")
    of_part = _parts(root, dict(zip(_looked_through(list(found)), found.values(), strict=True)))
    held_out = [name for name in HELD_OUT if name in of_part]
    if held_out:
        skipped.update({f"image outside the folders {', '.join(of_part)}": len(found) - _total(of_part)})
    classes = _classes(of_part)
    rows = {name: _labelled(part, classes) for name, part in of_part.items()}
    if not held_out:
        rows = divided(root, rows["train"])
    notes = [*_unlabelled_notes(rows, classes), *_no_classes_note(of_part, classes)]
    shelf = pictures.Shelf(root.name, len(found), skipped)
    return pictures.contents(shelf, rows, classes, options, notes)


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
    return no_image(suffix)


def no_image(suffix: str) -> str:
    """Return what a file with this suffix is, or "" for an image."""
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


def _parts(root: Path, found: dict[Names, images.Source]) -> dict[str, dict[Names, images.Source]]:
    """Return the images by part, their names without its folder; without parts all are of train.

    Raises:
        DataError: there is a part, but nothing to train or to test on; two folders are the same part.
    """
    folders = sorted({names[0] for names in found if len(names) > 1 and _part_of(names[0])})
    of_part: dict[str, dict[Names, images.Source]] = {}
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


def _total(of_part: dict[str, dict[Names, images.Source]]) -> int:
    return sum(map(len, of_part.values()))


def _classes(of_part: dict[str, dict[Names, images.Source]]) -> list[str]:
    """Return the folders that name classes: those of every part that has two or more."""
    folders = [{names[0] for names in part if len(names) > 1} for part in of_part.values()]
    names = {name for part in folders if len(part) > 1 for name in part}
    return sorted(names, key=class_order)


def _labelled(part: dict[Names, images.Source], classes: Sequence[str]) -> list[ImageFile]:
    number = {name: i for i, name in enumerate(classes)}
    return [
        ImageFile(path, number.get(names[0], -1) if len(names) > 1 else -1) for names, path in part.items()
    ]


def divided(root: Path, rows: list[ImageFile]) -> dict[str, list[ImageFile]]:
    """Hold out a tenth of image files as test, with equal class proportions."""
    if len(rows) < FEWEST:
        raise DataError(f"{root}: too few images ({len(rows)}); training and testing need {FEWEST}")
    train, test = held_out_tenth(np.array([row.label for row in rows]))
    return {"train": [rows[i] for i in train], "test": [rows[i] for i in test]}


def held_out_tenth(label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Divide rows with labels [N] into train and a tenth, but two at least, to test on."""
    return stratified(label, max(2, len(label) // 10))


def _unlabelled_notes(rows: dict[str, list[ImageFile]], classes: Sequence[str]) -> Iterable[Note]:
    for name, part in rows.items() if classes else ():
        number = sum(row.label < 0 for row in part)
        if number:
            yield Note(f"{number} of {len(part)} images of {name} lie in no class folder: no label.", True)


def _no_classes_note(of_part: dict[str, dict[Names, images.Source]], classes: Sequence[str]) -> list[Note]:
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
