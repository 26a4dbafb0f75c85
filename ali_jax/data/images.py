"""Read image files safely and convert their pixels to uint8."""

import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple, TypeAlias

import numpy as np
from PIL import Image, ImageOps

from ali_jax.data.dataset import DataError

MAX_PIXELS = 2**26  # of one image file; a larger one is damaged or malicious


_ORIENTATION = 0x0112  # EXIF tag
_LIES = (5, 6, 7, 8)  # its values for images that are stored with rows and columns exchanged


class Stored(NamedTuple):
    """An encoded image inside another file, such as an archive."""

    name: str
    read: Callable[[], bytes]

    def __str__(self) -> str:
        return self.name


Source: TypeAlias = Path | Stored


@contextlib.contextmanager
def opened(file: Source | IO[bytes], name: object = None) -> Iterator[Image.Image]:
    """Open an image, given as a path, a binary file, or stored in another file.

    Raises:
        DataError: anything failed before the image was closed; it names the file, or `name` if given.
    """
    name = file if name is None else name
    try:
        with Image.open(io.BytesIO(file.read()) if isinstance(file, Stored) else file) as image:
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


def size(image: Image.Image) -> tuple[int, int]:
    """Return the height and width of an image after its rotation by `upright`."""
    width, height = image.size
    if width != height:
        with contextlib.suppress(Exception):  # damaged metadata, as in `upright`
            if image.getexif().get(_ORIENTATION) in _LIES:
                return width, height
    return height, width


def upright(image: Image.Image) -> Image.Image:
    """Return the image rotated by its EXIF orientation."""
    image.load()
    with contextlib.suppress(Exception):  # damaged metadata; the pixels are good
        return ImageOps.exif_transpose(image)
    return image


def opacity(image: Image.Image) -> np.ndarray | None:
    """Return the alpha channel uint8 [H, W] of an image in any mode, or None where every pixel is opaque.

    The transparent colour of a palette, or of a PNG without an alpha channel, counts.
    """
    if not image.has_transparency_data:
        return None
    if image.mode.startswith("I"):  # Pillow does not convert 16 bits with a transparent grey level
        alpha = np.where(np.asarray(image) == image.info.get("transparency"), 0, 255).astype(np.uint8)
    else:
        image = image.convert("LA") if image.mode == "La" else image
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
    return None if alpha.min() == 255 else alpha


def to_uint8(image: Image.Image, channels: int, *, background: int = 255, scale: float = 1.0) -> np.ndarray:
    """Return the pixels of an image in any mode as uint8 [H, W, channels].

    Pixels are multiplied by `scale` and clipped at 255. Then transparent ones are composited onto the grey
    level `background`.

    Raises:
        DataError: the pixels are floats, or do not lie in 16 bits.
    """
    alpha = opacity(image)
    pixels = _pixels(image, channels, scale)
    if alpha is None:
        return pixels
    weight = alpha[..., None].astype(np.uint16)
    return ((pixels * weight + background * (255 - weight) + 127) // 255).astype(np.uint8)


def _pixels(image: Image.Image, channels: int, scale: float) -> np.ndarray:
    """Return scaled pixels without their transparency."""
    if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion to "L" would clip them at 255
        wide = wide_pixels(image)
        grey = (wide * 255 + 32767) // 65535
        if scale != 1.0:
            grey = np.minimum(np.rint(wide * (scale * 255 / 65535)), 255)
        return np.repeat(grey.astype(np.uint8)[..., None], channels, axis=-1)
    if image.mode == "F":
        raise DataError("its pixels are floats of unknown range; convert it to 8 bits")
    if image.mode in ("P", "PA", "La", "RGBa"):  # Pillow converts none of these to RGB as they look
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return scaled_bytes(pixels[..., None] if channels == 1 else pixels, scale)


def scaled_bytes(pixels: np.ndarray, scale: float) -> np.ndarray:
    """Multiply uint8 pixels by a factor; values above 255 become 255."""
    if scale == 1.0:
        return pixels
    return np.minimum(np.rint(np.arange(256) * scale), 255).astype(np.uint8)[pixels]


def wide_pixels(image: Image.Image) -> np.ndarray:
    """Return the pixels of an image with more than 8 bits as integers from 0 to 65535.

    Raises:
        DataError: they do not lie in that range.
    """
    wide = np.asarray(image).astype(np.int64)
    low, high = int(wide.min()), int(wide.max())
    if low < 0 or high > 65535:
        raise DataError(
            f"its pixels run from {low} to {high}, but 16 bits hold 0 to 65535; convert it to 8 bits"
        )
    return wide


def stored_range(image: Image.Image, background: int) -> tuple[int, int, int]:
    """Return the least and the largest value of the pixels in the file, and the largest possible one.

    Transparent pixels count as composited.
    """
    wide = image.mode.startswith("I") and opacity(image) is None
    channels = 1 if is_grey(image) else 3
    pixels = wide_pixels(image) if wide else to_uint8(image, channels, background=background)
    return int(pixels.min()), int(pixels.max()), 65535 if wide else 255


def crop_celeba(image: Image.Image) -> np.ndarray:
    """Return the paper's crop of an aligned CelebA face: 178x218 pixels to uint8 [64, 64, 3].

    The face is resized to 64 wide and 78 high with antialiasing, and rows 7 to 70 are kept (Fuel's
    `celeba_64`, paper.md 2.3).
    """
    return np.asarray(image.convert("RGB").resize((64, 78), Image.Resampling.LANCZOS))[7:71]
