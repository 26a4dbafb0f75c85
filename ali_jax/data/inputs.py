"""Images that a trained model is given, from whatever training accepts, brought to the model's shape.

Unlike a data set, they have no parts here: all rows are read in the order of the files, by name.
"""

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ali_jax.data import archives, files, folders, hub, images, packed, pictures, sizes, tables
from ali_jax.data.dataset import THREADS, DataError, LoadOptions, Note, joined


class Rule(NamedTuple):
    """How files become rows of a model's shape."""

    shape: tuple[int, ...]  # (H, W, C) or (D,)
    fit: str = "crop"  # how images of another size are brought to it: crop, pad, stretch
    background: int = 255  # grey level behind transparent pixels and beside padded images
    scale: float = 1.0  # factor on the pixels of files

    @property
    def sizing(self) -> sizes.Sizing:
        """How images are resized."""
        height, width, _ = self.shape
        return sizes.Sizing((height, width), self.fit, self.background)


class Inputs(NamedTuple):
    """Rows, as stored."""

    x: np.ndarray  # [N, *X]; of files uint8 from 0 to 255
    names: tuple[str, ...]
    labels: tuple[str, ...]  # "" for none
    are_files: bool
    note: str  # what was read, and what was done to it
    broken: tuple[str, ...] = ()  # a message for every file that was skipped


def read(path: Path, rule: Rule, *, classes: Sequence[str] = (), skip_broken: bool = False) -> Inputs:
    """Read the images or vectors at a path.

    The label of an image file is the name of the folder that it lies in, below `path`; the folder at `path`
    itself, or the one around a single file, counts if it is one of `classes`.

    Args:
      path: whatever training accepts, or one image.
      rule: how images become rows of the model.
      classes: names of the model's classes.
      skip_broken: whether files that cannot be read are left out.

    Raises:
      DataError: there are none, they do not fit the model, or a file is broken and `skip_broken` is not set.
    """
    if not is_on_hub(path) and not path.exists():
        raise DataError(f"{path}: no such file or folder; give a folder of images, an .npz or an image")
    if path.is_file() and path.suffix.lower() == ".npz":
        return _read_npz(path, rule)
    if len(rule.shape) != 3:
        raise DataError(f"{path}: this model takes vectors of {rule.shape[0]} numbers; give them as an .npz")
    found = _find(path, classes)
    return _read_data(path, rule) if found is None else _read_images(path, found, rule, skip_broken)


def is_on_hub(path: Path) -> bool:
    """Whether a path is hf:NAME, an image set of the Hugging Face hub."""
    return str(path).startswith(hub.PREFIX)


class _Found(NamedTuple):
    """Encoded images at a path."""

    images: Sequence[pictures.NamedImage]
    skipped: Counter[str]  # number of other files, by reason
    notes: Sequence[Note] = ()


def _find(path: Path, classes: Sequence[str]) -> _Found | None:
    """Return the encoded images at a path in the order of their files, or None where there are none."""
    if is_on_hub(path):
        found, notes = hub.read_rows(str(path).removeprefix(hub.PREFIX))
        return _Found(found, Counter(), notes)
    given = Path(os.path.abspath(path))  # its name is the one that was given, also of a link
    if path.is_file() and packed.is_archive(path):
        members, skipped = packed.members(path)
        return _Found(_labelled(members, "", classes), skipped)
    if path.is_file() and path.suffix.lower() in folders.IMAGE_SUFFIXES:
        return _Found(_labelled({(path.name,): path}, given.parent.name, classes), Counter())
    image_files, skipped = folders.find_images(path) if path.is_dir() else ([], Counter())
    if image_files:
        by_name = {file.relative_to(path).parts: file for file in image_files}
        return _Found(_labelled(by_name, given.name, classes), skipped)
    if tables.find_tables(path):
        found, notes = tables.read_rows(path)
        return _Found(found, Counter(), notes)
    return None


def _labelled(
    found: Mapping[folders.Names, images.Source], around: str, classes: Sequence[str]
) -> list[pictures.NamedImage]:
    """Name images by their path below the folder named `around`, and label them by the folder they lie in.

    If one of the folders is one of `classes`, from `around` to the innermost, the last such is the label.
    """

    def label(names: folders.Names) -> str:
        of_class = [folder for folder in (around, *names[:-1]) if folder in classes]
        return of_class[-1] if of_class else "".join(names[-2:-1])

    return [pictures.NamedImage(source, "/".join(names), label(names)) for names, source in found.items()]


class _Decoded(NamedTuple):
    pixels: np.ndarray  # uint8 [H, W, C], of the model's shape
    header: pictures.Header  # of the file
    size: sizes.Size  # upright, before it was resized


def _read_images(root: Path, found: _Found, rule: Rule, skip_broken: bool) -> Inputs:
    """Decode images, and bring them to the model's shape."""
    if not found.images:
        raise DataError(f"{root}: has no images; their names must end in {', '.join(folders.IMAGE_SUFFIXES)}")
    with ThreadPoolExecutor(THREADS) as pool:
        results = list(pool.map(lambda image: _decode(image.source, rule), found.images))
    errors = [result for result in results if isinstance(result, DataError)]
    if errors and (not skip_broken or len(errors) == len(results)):
        more = "" if skip_broken else "; --skip-broken leaves such files out"
        raise DataError(f"{joined(errors)}{more}")
    pairs = zip(found.images, results, strict=True)
    kept = [(image, result) for image, result in pairs if not isinstance(result, DataError)]
    decoded = [result for _, result in kept]
    headers = [result.header for result in decoded]
    sources = [image.source for image, _ in kept]
    skipped = pictures.skipped_reasons(found.skipped, headers)
    notes = [
        _note(root, [result.size for result in decoded], [header.is_grey for header in headers], rule),
        *([f"Skipped: {skipped}."] if skipped else []),
        *_texts(found.notes),
        *_texts(pictures.pixel_notes(sources, headers, rule.shape[-1], rule.background, rule.scale)),
    ]
    return Inputs(
        np.stack([result.pixels for result in decoded]),
        tuple(image.name for image, _ in kept),
        tuple(image.label for image, _ in kept),
        True,
        " ".join(notes),
        tuple(map(str, errors)),
    )


def _texts(notes: Iterable[Note]) -> list[str]:
    return [note.text for note in notes]


def _decode(source: images.Source, rule: Rule) -> _Decoded | DataError:
    try:
        with images.opened(source) as image:
            upright, header = images.upright(image), pictures.header_of(image)
            channels = rule.shape[-1]
            pixels = images.to_uint8(upright, channels, background=rule.background, scale=rule.scale)
    except DataError as error:
        return error
    height, width = pixels.shape[:2]
    return _Decoded(sizes.fitted(pixels, rule.sizing), header, (height, width))


def _note(root: Path, found: list[sizes.Size], grey: list[bool], rule: Rule) -> str:
    """Say how many images were read and what was done to them, in one line."""
    is_grey = rule.shape[-1] == 1
    other = sum(one != is_grey for one in grey)
    parts = [f"{root.name}: {sizes.images_text(len(found))}."]
    if other:
        parts.append(f"{other} made {'grey' if is_grey else 'coloured'}.")
    return " ".join([*parts, *_texts(sizes.fit_notes(found, rule.sizing))])


def _read_data(path: Path, rule: Rule) -> Inputs:
    """Read what else training accepts, SVHN's .mat files, as training reads it: train, then test."""
    height, width, channels = rule.shape
    options = LoadOptions(scale=rule.scale, background=rule.background, resize=(height, width), fit=rule.fit)
    dataset = files.load(str(path), options)
    batches = [split.rows(np.arange(len(split))) for split in (dataset.train, dataset.test)]
    x = np.concatenate([np.asarray(batch.x) for batch in batches])
    labels = [-np.ones(len(batch.x), int) if batch.label is None else batch.label for batch in batches]
    names = [f"{part}[{i}]" for part, b in zip(dataset.splits, batches, strict=True) for i in range(len(b.x))]
    notes = [f"{path.name}: {sizes.images_text(len(x))}.", *_texts(dataset.notes)]
    return Inputs(
        _with_channels(x, channels),
        tuple(names),
        tuple(dataset.class_names[k] if k >= 0 else "" for k in np.concatenate(labels)),
        True,
        " ".join(notes),
    )


def _read_npz(path: Path, rule: Rule) -> Inputs:
    rows = archives.read_rows(path)
    x, note = rows.x, f"{path.name}: {len(rows.x)} row{'' if len(rows.x) == 1 else 's'}."
    if len(rule.shape) == 3:
        _check_are_many(path, x, rule.shape)
        x = x[..., None] if x.ndim == 3 else x
    if len(rule.shape) == 3 and x.ndim == 4:
        _check_channels(path, x)
        note = _note(path, [x.shape[1:3]] * len(x), [x.shape[-1] == 1] * len(x), rule)
        x = x if x.shape[1:] == rule.shape else _fitted(path, x, rule)
    return Inputs(x, rows.names, rows.labels, False, note)


def _check_are_many(path: Path, x: np.ndarray, shape: tuple[int, ...]) -> None:
    """Raise a DataError if an array of the shape [H, W] or [H, W, C] is a single image."""
    is_grey = x.ndim == 2 and x.shape[1] != math.prod(shape)
    if is_grey or (x.ndim == 3 and x.shape[-1] <= 4 and x.shape[1:] != shape[:2]):
        raise DataError(
            f"{path}: the shape {list(x.shape)} of its array looks like that of a single image; images are "
            "[N, H, W] or [N, H, W, C]: write x[None] in its place for one image"
            + (f", x[..., None] for {len(x)} grey images of {sizes.by(x.shape[1:])}" if x.ndim == 3 else "")
        )


def _check_channels(path: Path, x: np.ndarray) -> None:
    """Raise a DataError unless images [N, H, W, C] are grey or coloured."""
    channels = x.shape[-1]
    if channels in (1, 3):
        return
    cure = "put the channels last, np.moveaxis(x, 1, -1)" if x.shape[1] in (1, 3) else "bring them to 1 or 3"
    if channels in (2, 4):
        cure = "leave out the transparency, x[..., :-1]"
    raise DataError(
        f"{path}: its images {list(x.shape[1:])} have {channels} channels, and must have 1 or 3; {cure}"
    )


def _fitted(path: Path, x: np.ndarray, rule: Rule) -> np.ndarray:
    """Bring images [N, H, W, 1 or 3] of another size or number of channels to the model's shape.

    Integers stay integers, and floats in [0, 1] stay so; both are resized with 8 bits.
    """
    is_float = x.dtype.kind == "f"
    low, high = float(x.min()), float(x.max())
    if x.dtype.kind not in "iuf" or not 0 <= low <= high <= (1 if is_float else 255):
        raise DataError(
            f"{path}: its images are {x.dtype}; to be resized they must be integers from 0 to 255, or floats "
            f"from 0 to 1{archives.as_bytes(x)}"
        )
    pixels = np.rint(255 * x).astype(np.uint8) if is_float else x.astype(np.uint8)
    pixels = _with_channels(pixels, rule.shape[-1])
    fitted = np.stack([sizes.fitted(image, rule.sizing) for image in pixels])
    return fitted.astype(np.float32) / np.float32(255) if is_float else fitted


def _with_channels(x: np.ndarray, channels: int) -> np.ndarray:
    """Return images uint8 [N, H, W, 1 or 3] as grey or coloured ones."""
    if x.shape[-1] == channels:
        return x
    if channels == 3:
        return np.repeat(x, 3, axis=-1)
    return np.stack([np.asarray(Image.fromarray(image).convert("L"))[..., None] for image in x])
