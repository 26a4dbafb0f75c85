"""Images that a trained model is given, from whatever training accepts, brought to the model's shape.

Unlike a data set, a folder, an archive and an .npz have no parts here: all rows are read, by name.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ali_jax.data import archives, files, folders, hub, images, packed, pictures, sizes
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


def read(path: Path, rule: Rule, *, skip_broken: bool = False) -> Inputs:
    """Read the images or vectors at a path.

    Raises:
      DataError: there are none, they do not fit the model, or a file is broken and `skip_broken` is not set.
    """
    if is_on_hub(path):
        _check_takes_images(path, rule)
        return _read_data(path, rule)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; give a folder of images, an .npz or an image")
    if path.is_file() and path.suffix.lower() == ".npz":
        return _read_npz(path, rule)
    _check_takes_images(path, rule)
    if path.is_file() and packed.is_archive(path):
        return _read_files(path, *packed.members(path), rule, skip_broken)
    if path.is_file() and path.suffix.lower() in folders.IMAGE_SUFFIXES:
        return _read_files(path, {(path.name,): path}, Counter(), rule, skip_broken)
    found, skipped = folders.find_images(path) if path.is_dir() else ([], Counter())
    if found:
        by_name = {image.relative_to(path).parts: image for image in found}
        return _read_files(path, by_name, skipped, rule, skip_broken)
    return _read_data(path, rule)


def is_on_hub(path: Path) -> bool:
    """Whether a path is hf:NAME, an image set of the Hugging Face hub."""
    return str(path).startswith(hub.PREFIX)


def _check_takes_images(path: Path, rule: Rule) -> None:
    if len(rule.shape) != 3:
        raise DataError(f"{path}: this model takes vectors of {rule.shape[0]} numbers; give them as an .npz")


class _Decoded(NamedTuple):
    pixels: np.ndarray  # uint8 [H, W, C], of the model's shape
    header: pictures.Header  # of the file
    size: sizes.Size  # upright, before it was resized


def _read_files(
    root: Path,
    found: Mapping[folders.Names, images.Source],
    skipped: Counter[str],
    rule: Rule,
    skip_broken: bool,
) -> Inputs:
    if not found:
        raise DataError(f"{root}: has no images; their names must end in {', '.join(folders.IMAGE_SUFFIXES)}")
    with ThreadPoolExecutor(THREADS) as pool:
        results = list(pool.map(lambda source: _decode(source, rule), found.values()))
    errors = [result for result in results if isinstance(result, DataError)]
    if errors and (not skip_broken or len(errors) == len(found)):
        more = "" if skip_broken else "; --skip-broken leaves such files out"
        raise DataError(f"{joined(errors)}{more}")
    pairs = zip(found, results, strict=True)
    kept = [(names, result) for names, result in pairs if not isinstance(result, DataError)]
    decoded = [result for _, result in kept]
    headers = [result.header for result in decoded]
    sources = [found[names] for names, _ in kept]
    notes = [
        _note(root, [result.size for result in decoded], [header.is_grey for header in headers], rule),
        *_texts(pictures.skipped_note(pictures.Shelf(root.name, len(decoded), skipped), headers)),
        *_texts(pictures.pixel_notes(sources, headers, rule.shape[-1], rule.background, rule.scale)),
    ]
    return Inputs(
        np.stack([result.pixels for result in decoded]),
        tuple("/".join(names) for names, _ in kept),
        tuple(names[-2] if len(names) > 1 else "" for names, _ in kept),
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
    parts = [f"{root.name}: 1 image." if len(found) == 1 else f"{root.name}: {len(found)} images."]
    if other:
        parts.append(f"{other} made {'grey' if is_grey else 'coloured'}.")
    return " ".join([*parts, *_texts(sizes.fit_notes(found, rule.sizing))])


def _read_data(path: Path, rule: Rule) -> Inputs:
    """Read what else training accepts, such as Parquet files, as training reads it: train, then test."""
    height, width, channels = rule.shape
    options = LoadOptions(scale=rule.scale, background=rule.background, resize=(height, width), fit=rule.fit)
    dataset = files.load(str(path), options)
    batches = [split.rows(np.arange(len(split))) for split in (dataset.train, dataset.test)]
    x = np.concatenate([np.asarray(batch.x) for batch in batches])
    labels = [-np.ones(len(batch.x), int) if batch.label is None else batch.label for batch in batches]
    names = [f"{part}[{i}]" for part, b in zip(dataset.splits, batches, strict=True) for i in range(len(b.x))]
    notes = [f"{path.name}: {len(x)} images.", *_texts(dataset.notes)]
    return Inputs(
        _with_channels(x, channels),
        tuple(names),
        tuple(dataset.class_names[k] if k >= 0 else "" for k in np.concatenate(labels)),
        True,
        " ".join(notes),
    )


def _read_npz(path: Path, rule: Rule) -> Inputs:
    rows = archives.read_rows(path)
    x, note = rows.x, f"{path.name}: {len(rows.x)} rows."
    if len(rule.shape) == 3 and x.dtype == np.uint8 and x.ndim in (3, 4):
        x = x[..., None] if x.ndim == 3 else x
        if x.shape[-1] in (2, 4):
            raise DataError(
                f"{path}: its images {list(x.shape[1:])} have {x.shape[-1]} channels, and must have 1 or 3; "
                "leave out the transparency, x[..., :-1]"
            )
        if x.shape[-1] in (1, 3):
            found, grey = [x.shape[1:3]] * len(x), [x.shape[-1] == 1] * len(x)
            note = _note(path, found, grey, rule)
            x = _with_channels(x, rule.shape[-1])
            x = np.stack([sizes.fitted(image, rule.sizing) for image in x])
    return Inputs(x, rows.names, rows.labels, False, note)


def _with_channels(x: np.ndarray, channels: int) -> np.ndarray:
    """Return images uint8 [N, H, W, 1 or 3] as grey or coloured ones."""
    if x.shape[-1] == channels:
        return x
    if channels == 3:
        return np.repeat(x, 3, axis=-1)
    return np.stack([np.asarray(Image.fromarray(image).convert("L"))[..., None] for image in x])
