"""Images that a trained model is given: a folder, an .npz or one file, brought to the model's shape.

Unlike a data set they have no parts: all rows are read, in the order of their names.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from ali_jax.data import archives, folders, images
from ali_jax.data.dataset import THREADS, DataError, joined


class Rule(NamedTuple):
    """How files become rows of a model's shape."""

    shape: tuple[int, ...]  # (H, W, C) or (D,)
    fit: str = "crop"  # how images of another size are brought to it: crop, pad, stretch
    background: int = 255  # grey level behind transparent pixels and beside padded images
    scale: float = 1.0  # factor on the pixels of files


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
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; give a folder of images, an .npz or an image")
    if path.is_file() and path.suffix.lower() == ".npz":
        return _read_npz(path, rule)
    if len(rule.shape) != 3:
        raise DataError(f"{path}: this model takes vectors of {rule.shape[0]} numbers; give them as an .npz")
    if path.is_file():
        return _read_files(path, [path], rule, skip_broken)
    found, _ = folders.find_images(path)
    if not found:
        raise DataError(f"{path}: has no images; their names must end in {', '.join(folders.IMAGE_SUFFIXES)}")
    return _read_files(path, found, rule, skip_broken)


class _Decoded(NamedTuple):
    pixels: np.ndarray  # uint8 [H, W, C], of the model's shape
    size: tuple[int, int]  # width and height before
    is_grey: bool


def _read_files(root: Path, paths: list[Path], rule: Rule, skip_broken: bool) -> Inputs:
    with ThreadPoolExecutor(THREADS) as pool:
        results = list(pool.map(lambda path: _decode(path, rule), paths))
    errors = [result for result in results if isinstance(result, DataError)]
    if errors and (not skip_broken or len(errors) == len(paths)):
        more = "" if skip_broken else "; --skip-broken leaves such files out"
        raise DataError(f"{joined(errors)}{more}")
    pairs = zip(paths, results, strict=True)
    kept = [(path, result) for path, result in pairs if not isinstance(result, DataError)]
    decoded = [result for _, result in kept]
    within = [path.relative_to(root).parts if path != root else (path.name,) for path, _ in kept]
    return Inputs(
        np.stack([result.pixels for result in decoded]),
        tuple("/".join(parts) for parts in within),
        tuple(parts[-2] if len(parts) > 1 else "" for parts in within),
        True,
        _note(root, [result.size for result in decoded], [result.is_grey for result in decoded], rule),
        tuple(map(str, errors)),
    )


def _decode(path: Path, rule: Rule) -> _Decoded | DataError:
    try:
        with images.opened(path) as image:
            upright = images.upright(image)
            is_grey = images.is_grey(image)
            channels = rule.shape[-1]
            pixels = images.to_uint8(upright, channels, background=rule.background, scale=rule.scale)
    except DataError as error:
        return error
    return _Decoded(fitted(pixels, rule), (pixels.shape[1], pixels.shape[0]), is_grey)


def fitted(pixels: np.ndarray, rule: Rule) -> np.ndarray:
    """Return an image uint8 [H, W, C] in the size of a rule, resampled with antialiasing (Lanczos)."""
    height, width, channels = rule.shape
    if pixels.shape[:2] == (height, width):
        return pixels
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    size, method = (width, height), Image.Resampling.LANCZOS
    if rule.fit == "stretch":
        image = image.resize(size, method)
    elif rule.fit == "pad":
        color = rule.background if channels == 1 else (rule.background,) * 3
        image = ImageOps.pad(image, size, method, color=color)
    else:
        image = ImageOps.fit(image, size, method)
    return np.asarray(image).reshape(height, width, channels)


def _note(root: Path, sizes: list[tuple[int, int]], grey: list[bool], rule: Rule) -> str:
    """Say how many images were read and what was done to them, in one line."""
    height, width, channels = rule.shape
    other = sum(is_grey != (channels == 1) for is_grey in grey)
    kind = "grey" if channels == 1 else "three equal channels"
    resized = [size for size in sizes if size != (width, height)]
    parts = [f"{root.name}: 1 image" if len(sizes) == 1 else f"{root.name}: {len(sizes)} images"]
    if resized:
        what = {"crop": "cropped about the centre and resized", "pad": "padded and resized"}
        from_size = f" of {resized[0][0]}x{resized[0][1]} pixels" if len(set(resized)) == 1 else ""
        parts.append(f"{len(resized)}{from_size} {what.get(rule.fit, 'stretched')} to {width}x{height}")
    if other:
        parts.append(f"{other} made {kind}")
    return f"{', '.join(parts)}."


def _read_npz(path: Path, rule: Rule) -> Inputs:
    rows = archives.read_rows(path)
    x = rows.x
    note = f"{path.name}: {len(x)} rows."
    if len(rule.shape) == 3 and x.dtype == np.uint8 and x.ndim in (3, 4):
        x = x[..., None] if x.ndim == 3 else x
        if x.shape[-1] != rule.shape[-1] and x.shape[-1] in (1, 3):
            colour = np.repeat(x, 3, axis=-1) if x.shape[-1] == 1 else x
            x = colour if rule.shape[-1] == 3 else np.stack([_grey(image) for image in colour])
            note = f"{path.name}: {len(x)} rows, made {'grey' if rule.shape[-1] == 1 else 'colour'}."
        if x.shape[1:3] != rule.shape[:2]:
            note = _note(path, [(x.shape[2], x.shape[1])] * len(x), [x.shape[-1] == 1] * len(x), rule)
            x = np.stack([fitted(image, rule) for image in x])
    return Inputs(x, rows.names, rows.labels, False, note)


def _grey(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).convert("L"))[..., None]
