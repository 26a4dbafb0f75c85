"""Image files with their labels, from wherever they come: which shape they have, and how they are decoded."""

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image

from ali_jax.data import images, sizes, survey
from ali_jax.data.dataset import (
    THREADS,
    ArraySplit,
    DataError,
    LoadOptions,
    Note,
    SourceSplit,
    host_batch,
    joined,
)
from ali_jax.types import Batch

ONE_PICTURE = ("MPO", "ICO")  # formats whose other frames are the same picture: a preview, other sizes


class ImageFile(NamedTuple):
    """An encoded image and its class."""

    source: images.Source
    label: int  # -1 for none


class NamedImage(NamedTuple):
    """An encoded image, its name, and the name of its class."""

    source: images.Source
    name: str
    label: str  # "" for none


class Contents(NamedTuple):
    """What a file or a directory of the user's holds."""

    parts: Mapping[str, ArraySplit | SourceSplit]
    class_names: tuple[str, ...]
    notes: list[Note]


class Shelf(NamedTuple):
    """Where image files lie, and what else lies there."""

    name: str
    number: int  # of images
    skipped: Counter[str]  # number of other files, by reason


class Header(NamedTuple):
    """What can be known of an image without decoding it."""

    size: sizes.Size
    is_grey: bool
    has_alpha: bool
    has_frames: bool  # beside the first


def contents(
    shelf: Shelf,
    rows: Mapping[str, Sequence[ImageFile]],
    classes: Sequence[str],
    options: LoadOptions,
    notes: Sequence[Note] = (),
) -> Contents:
    """Make the splits of image files by part; the images are not decoded.

    x has one channel if all images are grey. All have one size, or `options.resize` gives it. `notes` follow
    the one that says what is skipped.

    Raises:
        DataError: images are unreadable, or differ in size though `options.resize` is not set.
    """
    every = sorted((row.source for part in rows.values() for row in part), key=str)
    headers = _headers(every)
    sizing = sizes.Sizing(options.resize, options.fit, options.background)
    channels = 1 if all(header.is_grey for header in headers) else 3
    shape = (*(sizing.size or _common_size(every, headers)), channels)

    def decode(row: ImageFile) -> Batch:
        x = sizes.fitted(read(row.source, channels, options), sizing)
        if x.shape != shape:
            changed = f"it is now {sizes.by(x.shape)}, not {sizes.by(shape)}"
            raise DataError(f"{row.source} changed after the start: {changed}")
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
    found = [
        *skipped_note(shelf, headers),
        *notes,
        *sizes.fit_notes([header.size for header in headers], sizing),
        *pixel_notes(every, headers, channels, options.background, options.scale),
    ]
    return Contents(parts, tuple(classes), found)


def pixel_notes(
    files: Sequence[images.Source], headers: Sequence[Header], channels: int, background: int, scale: float
) -> list[Note]:
    """Say what lies under transparency, and whether the pixels use their range."""
    with_alpha = [file for file, header in zip(files, headers, strict=True) if header.has_alpha]
    return [
        *survey.transparency_notes(with_alpha, channels, background, scale),
        *survey.file_range_notes(files, background, scale),
    ]


def read(source: images.Source, channels: int, options: LoadOptions) -> np.ndarray:
    """Decode an image upright, in the size that it has, as uint8 [H, W, channels]."""
    with images.opened(source) as image:
        upright = images.upright(image)
        return images.to_uint8(upright, channels, background=options.background, scale=options.scale)


def counted(skipped: Counter[str]) -> str:
    """Return the reasons with their numbers, the most frequent first: "50 .heic files, 1 hidden file"."""
    return ", ".join(f"{number} {_plural(what, number)}" for what, number in skipped.most_common())


def _plural(what: str, number: int) -> str:
    first, _, rest = what.partition(" ")
    if number == 1:
        return what
    if first in ("link", "file", "image", "device"):
        return f"{first}s {rest}".rstrip()
    return f"{what}s"


def _headers(files: Sequence[images.Source]) -> list[Header]:
    """Read the headers of images; a DataError names those that are unreadable."""
    with ThreadPoolExecutor(THREADS) as pool:
        headers = list(pool.map(_header, files))
    if errors := [header for header in headers if isinstance(header, DataError)]:
        raise joined(errors)
    return [header for header in headers if not isinstance(header, DataError)]


def _header(file: images.Source) -> Header | DataError:
    try:
        with images.opened(file) as image:
            return header_of(image)
    except DataError as error:
        return error


def header_of(image: Image.Image) -> Header:
    """Return what the header of an opened image says."""
    has_frames = getattr(image, "is_animated", False) and image.format not in ONE_PICTURE
    return Header(images.size(image), images.is_grey(image), image.has_transparency_data, has_frames)


def _common_size(files: Sequence[images.Source], headers: Sequence[Header]) -> sizes.Size:
    """Return the size of all images; a DataError names the first of another size."""
    size = headers[0].size
    wrong = [i for i, header in enumerate(headers) if header.size != size]
    if wrong:
        others = f" ({len(wrong) - 1} other images are of a wrong size too)" if len(wrong) > 1 else ""
        raise DataError(
            f"{files[wrong[0]]} is {sizes.by(headers[wrong[0]].size)} pixels (height x width) but must be "
            f"{sizes.by(size)} like {files[0]}{others}; set config.dataset.resize, such as 64, to bring all "
            "images to one size"
        )
    return size


def skipped_note(shelf: Shelf, headers: Sequence[Header]) -> list[Note]:
    """Say which files and frames are not read, by reason; nothing where all are."""
    if reasons := skipped_reasons(shelf.skipped, headers):
        return [Note(f"{shelf.name} has {sizes.images_text(shelf.number)}. Skipped: {reasons}.")]
    return []


def skipped_reasons(skipped: Counter[str], headers: Sequence[Header]) -> str:
    """Return which files and frames are not read, by reason; "" where all are."""
    skipped, animated = +skipped, sum(header.has_frames for header in headers)
    reasons = [counted(skipped)] if skipped else []
    if animated:
        reasons.append(f"all but the first frame of {sizes.images_text(animated)}")
    return ", ".join(reasons)
