"""What a look at the user's data shows that they should know: range, transparency, classes."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ali_jax.data import images
from ali_jax.data.dataset import THREADS, DataError, Note, Split, known_labels

LOOKED_AT = 500  # images at most, spread evenly over all
DARK = 16  # of 255: images whose brightest pixel is no brighter are all but black
FLAT = 8  # of 255: an image whose pixels differ by less is all but constant
CLASSES_NAMED = 20  # at most, in one sentence
GREY_LEVELS = {"black": 0, "white": 255}


def file_range_notes(paths: Sequence[images.Source], background: int, scale: float) -> list[Note]:
    """Warn where image files are all but black or constant, or where `scale` clips them."""
    chosen = _spread(paths)

    def look(path: images.Source) -> tuple[int, int, int]:
        try:
            with images.opened(path) as image:
                return images.stored_range(image, background)
        except DataError:
            return 255, 0, 255  # reported, with others, when it is decoded

    with ThreadPoolExecutor(THREADS) as pool:
        ranges = np.array(list(pool.map(look, chosen)))
    low, high, full = ranges[:, 0].min(), ranges[:, 1].max(), ranges[:, 2].max()
    return range_notes(int(low), int(high), int(full), scale)


def range_notes(low: int, high: int, full: int, scale: float) -> list[Note]:
    """Warn of pixels from `low` to `high`, of `full` at most, that are all but black, constant or clipped."""
    if low > high:  # nothing could be read
        return []
    pixels = f"the pixels run from {low} to {high} of {full}"
    brightest = high * scale * 255 / full
    if high == 0:
        return [Note(f"The images are black: {pixels}.", True)]
    if brightest <= DARK:
        best = full / (2 ** int(high).bit_length() - 1)
        cure = f"set config.dataset.scale={best:.4g} if {2 ** int(high).bit_length() - 1} is to be white"
        return [Note(f"The images are all but black: {pixels}; {cure}.", True)]
    if brightest > 255.5:
        return [
            Note(
                f"config.dataset.scale={scale:g} clips the brightest pixels: {pixels}, and white is "
                f"{full / scale:.4g}.",
                True,
            )
        ]
    if (high - low) * scale * 255 / full < FLAT:
        return [Note(f"The images are all but constant: {pixels}.", True)]
    return []


def transparency_notes(
    paths: Sequence[images.Source], channels: int, background: int, scale: float
) -> list[Note]:
    """Say that transparent images are composited, and warn where that makes them constant."""
    chosen = _spread(paths)

    def look(path: images.Source) -> tuple[bool, bool]:
        try:
            with images.opened(path) as image:
                if images.opacity(image) is None:
                    return False, False
                x = images.to_uint8(image, channels, background=background, scale=scale)
                return True, int(x.max()) - int(x.min()) < FLAT
        except DataError:
            return False, False

    with ThreadPoolExecutor(THREADS) as pool:
        looks = list(pool.map(look, chosen))
    transparent, constant = (sum(column) for column in zip(*looks, strict=True)) if looks else (0, 0)
    if not transparent:
        return []
    name = {level: name for name, level in GREY_LEVELS.items()}.get(background, f"grey {background}")
    looked_at = "" if len(chosen) == len(paths) else " that were looked at"
    notes = [
        Note(
            f"{transparent} of {len(chosen)} images with an alpha channel{looked_at} are transparent in "
            f"places: they are composited onto {name} (config.dataset.background)."
        )
    ]
    if constant:
        notes.append(
            Note(
                f"{constant} of these images are all but constant on {name}: set config.dataset.background "
                f"to {'black' if background > 127 else 'white'} or another grey level.",
                True,
            )
        )
    return notes


def class_notes(names: Sequence[str], train: Split, test: Split) -> Iterator[Note]:
    """Name the classes with their numbers of rows, and warn of those that a split lacks."""
    labels = [label for split in (train, test) if (label := known_labels(split)) is not None]
    if not names or len(labels) < 2:
        return
    count = len(names)
    counts = [np.bincount(label[label >= 0], minlength=count) for label in labels]
    rows = [f"{name} {a} + {b}" for name, a, b in zip(names, *counts, strict=True)]
    more = f" and {count - CLASSES_NAMED} more" if count > CLASSES_NAMED else ""
    classes = "1 class" if count == 1 else f"{count} classes"
    yield Note(f"{classes} (training + test rows): {', '.join(rows[:CLASSES_NAMED])}{more}.")
    for split, numbers in zip(("training", "test"), counts, strict=True):
        missing = [name for name, number in zip(names, numbers, strict=True) if not number]
        if missing:
            yield Note(f"There are no {split} rows of {listed(missing)}.", True)


def listed(names: Iterable[str]) -> str:
    """Return names as a list with commas, the first few of many."""
    names = list(names)
    more = f" and {len(names) - CLASSES_NAMED} more" if len(names) > CLASSES_NAMED else ""
    return ", ".join(names[:CLASSES_NAMED]) + more


def _spread(paths: Sequence[images.Source]) -> list[images.Source]:
    number = min(len(paths), LOOKED_AT)
    return [paths[i * len(paths) // number] for i in range(number)]
