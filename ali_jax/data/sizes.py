"""Bring images to one size, and say what that costs: what is cut off, filled up or distorted."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ali_jax.data.dataset import THREADS, ArraySplit, DataError, Dataset, Note, SourceSplit, Split
from ali_jax.types import Batch

Size = tuple[int, int]  # height and width


class Sizing(NamedTuple):
    """How images are brought to one size."""

    size: Size | None = None  # None: images keep theirs, which must be the same for all
    fit: str = "crop"  # crop, pad or stretch
    background: int = 255  # grey level beside padded images


def size_of(resize: int | Sequence[int]) -> Size | None:
    """Return the height and width that `config.dataset.resize` means: (), (S,), S or (H, W)."""
    sides = (resize,) if isinstance(resize, int) else tuple(resize)
    if len(sides) > 2 or min(sides, default=1) < 1:
        raise DataError(f"resize is {resize!r}: give (H, W), or one number for squares")
    return (sides[0], sides[-1]) if sides else None


def fitted(pixels: np.ndarray, sizing: Sizing) -> np.ndarray:
    """Return an image uint8 [H, W, C] in the size of `sizing`, resampled with antialiasing (Lanczos)."""
    if sizing.size is None or pixels.shape[:2] == sizing.size:
        return pixels
    (height, width), (rows, columns) = pixels.shape[:2], sizing.size
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    if sizing.fit == "pad":
        scale = min(rows / height, columns / width)
        inner = max(1, round(height * scale)), max(1, round(width * scale))
        top, left = (rows - inner[0]) // 2, (columns - inner[1]) // 2
        out = np.full((rows, columns, pixels.shape[-1]), sizing.background, np.uint8)
        out[top : top + inner[0], left : left + inner[1]] = _resampled(image, inner, (0, 0, width, height))
        return out
    box = (0.0, 0.0, float(width), float(height))
    if sizing.fit == "crop":
        scale = max(rows / height, columns / width)
        across, down = (width - columns / scale) / 2, (height - rows / scale) / 2
        box = (across, down, width - across, height - down)
    return _resampled(image, sizing.size, box)


def _resampled(image: Image.Image, size: Size, box: tuple[float, float, float, float]) -> np.ndarray:
    height, width = size
    pixels = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS, box=box))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def resized(dataset: Dataset, sizing: Sizing) -> Dataset:
    """Return a data set whose images have one size already with images of another.

    Raises:
        DataError: the data are not images.
    """
    shape = dataset.train.shape
    if len(shape) != 3 or dataset.train.dtype != np.uint8:
        raise DataError(
            f"config.dataset.resize is set, but {dataset.name} has vectors, which have no height and width: "
            "leave it at ()"
        )
    count = len(dataset.train) + len(dataset.test)
    notes = fit_notes([shape[:2]] * count, sizing)
    white = int(dataset.divisor)
    sizing = sizing._replace(background=round(sizing.background * white / 255))
    train, test = (_resized_split(split, sizing, white) for split in (dataset.train, dataset.test))
    return dataset._replace(train=train, test=test, notes=(*dataset.notes, *notes))


def _resized_split(split: Split, sizing: Sizing, white: int) -> Split:
    """Resize every row of a split; resampling does not make pixels brighter than white."""
    assert sizing.size is not None
    shape = (*sizing.size, split.shape[-1])

    def fit(pixels: np.ndarray) -> np.ndarray:
        return np.minimum(fitted(pixels, sizing), np.uint8(white))

    if isinstance(split, ArraySplit):
        with ThreadPoolExecutor(THREADS) as pool:
            return replace(split, x=np.stack(list(pool.map(fit, split.x))))
    assert isinstance(split, SourceSplit)
    decode = split.decode

    def decode_resized(row: Any) -> Batch:
        batch = decode(row)
        x: Any = fit(np.asarray(batch.x))
        return batch._replace(x=x)

    return replace(split, decode=decode_resized, shape=shape)


def fit_notes(found: Sequence[Size], sizing: Sizing) -> list[Note]:
    """Say in one line from which sizes images are brought to that of `sizing`, and what is lost."""
    if sizing.size is None or set(found) <= {sizing.size}:
        return []
    size = sizing.size
    sides = np.array(found, float)
    rows, columns = size[0] / sides[:, 0], size[1] / sides[:, 1]  # enlargement of both sides
    unevenness = np.maximum(rows, columns) / np.minimum(rows, columns)
    kinds = sorted(set(found), key=lambda s: (s[0] * s[1], s))
    before = f"{by(kinds[0])} (height x width)"
    if len(kinds) > 1:
        before = f"{len(kinds)} sizes ({by(kinds[0])} to {by(kinds[-1])}, height x width)"
    scale = np.minimum(rows, columns) if sizing.fit == "pad" else np.maximum(rows, columns)
    enlarged = int(np.sum(scale > 1))
    verb = "is" if len(found) == 1 else "are"
    return [
        Note(
            f"{images_text(len(found))} of {before} {verb} resized to {by(size)} by {sizing.fit}: "
            f"{_loss(sizing.fit, unevenness)}{f' (enlarged: {enlarged})' if enlarged else ''}."
        )
    ]


def _loss(fit: str, unevenness: np.ndarray) -> str:
    """Say what images lose whose sides would be enlarged unequally by these factors."""
    if unevenness.max() < 1.0001:
        return "nothing is cut off or distorted"
    if fit == "stretch":
        return f"one side is stretched by up to {unevenness.max():.3g} times the other"
    lost = 100 * (1 - 1 / unevenness)
    what = "of an image is cut off" if fit == "crop" else "of the result is background"
    if np.ptp(lost) < 1:
        return f"{lost.mean():.0f} % {what}"
    return f"on average {lost.mean():.0f} % {what}, at most {lost.max():.0f} %"


def cure(given: Sequence[int], wanted: Sequence[int]) -> str:
    """Say how to bring data of shape `given`, such as images [H, W, C], to the shape `wanted`."""
    if len(given) != 3 or len(wanted) != 3:
        return f"give data of shape {by(wanted)}"
    resize = f"set config.dataset.resize=({wanted[0]}, {wanted[1]})"
    convert = "convert the images to grey" if wanted[2] == 1 else "convert the images to colour"
    steps = [resize] * (given[:2] != wanted[:2]) + [convert] * (given[2] != wanted[2])
    return " and ".join(steps)


def images_text(number: int) -> str:
    """Return "1 image", or "2 images"."""
    return "1 image" if number == 1 else f"{number} images"


def by(shape: Sequence[int]) -> str:
    """Return a shape as 32x32x3."""
    return "x".join(map(str, shape))
