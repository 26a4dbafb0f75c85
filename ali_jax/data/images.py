"""Read image files safely and convert their pixels to uint8."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps

from ali_jax.data.dataset import DataError

MAX_PIXELS = 2**26  # of one image file; a larger one is damaged or malicious


@contextlib.contextmanager
def opened(file: Path | IO[bytes], name: object = None) -> Iterator[Image.Image]:
    """Open an image, given as a path or a binary file.

    Raises:
        DataError: anything failed before the image was closed; it names the file, or `name` if given.
    """
    name = file if name is None else name
    try:
        with Image.open(file) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{image.width}x{image.height} pixels")
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name}: too large ({error}); at most {MAX_PIXELS} pixels are read") from error
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    except Exception as error:  # damaged bytes raise OSError, SyntaxError, ValueError, struct.error, ...
        raise DataError(f"{name}: not a readable image ({error})") from error


def is_grey(image: Image.Image) -> bool:
    """Tell whether the mode of the image has no colours."""
    return image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I")


def upright(image: Image.Image) -> Image.Image:
    """Return the image rotated by its EXIF orientation."""
    image.load()
    with contextlib.suppress(Exception):  # damaged metadata; the pixels are good
        return ImageOps.exif_transpose(image)
    return image


def to_uint8(image: Image.Image, channels: int) -> np.ndarray:
    """Return the pixels of an image in any mode as uint8 [H, W, channels], transparency dropped.

    Raises:
        DataError: the pixels have more than 16 bits.
    """
    if image.mode == "F":
        raise DataError("its pixels are floats of unknown range; convert it to 8 bits")
    if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion to "L" would clip them at 255
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise DataError("its pixels have more than 16 bits; convert it to 8 bits")
        grey = ((wide * 255 + 32767) // 65535).astype(np.uint8)
        return np.repeat(grey[..., None], channels, axis=-1)
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # Pillow warns about transparent palettes if converted to RGB directly
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels[..., None] if channels == 1 else pixels


def crop_celeba(image: Image.Image) -> np.ndarray:
    """Return the paper's crop of an aligned CelebA face: 178x218 pixels to uint8 [64, 64, 3].

    The face is resized to 64 wide and 78 high with antialiasing, and rows 7 to 70 are kept (Fuel's
    `celeba_64`, paper.md 2.3).
    """
    return np.asarray(image.convert("RGB").resize((64, 78), Image.Resampling.LANCZOS))[7:71]
