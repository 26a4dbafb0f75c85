"""Pictures as uint8 arrays [H, W, 3]: the paper's grids, and scatter plots for data in the plane.

This module lays pictures out and saves them; it does not decide what they show. Only scatter plots need
Matplotlib, whose global state stays unchanged.
"""

import math
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

TARGET_SIZE = 800  # pixels: small images are enlarged until the longer side of the grid is near this
PAD = 2  # white pixels around each image
NAMED_CLASSES = 10  # a scatter plot names its classes if they are so many or fewer


def image_grid(images: np.ndarray, rows: int, cols: int, *, pad: int = PAD) -> np.ndarray:
    """Lay out images [N, H, W, C] in [0, 1], row by row, as one picture.

    C is 1 or 3. Small images are enlarged by a whole factor. Cells without an image are white, values outside
    [0, 1] are clipped, NaN is black. Raises a ValueError for other shapes and for more images than cells.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"A grid is made of images [N, H, W, C] with C = 1 or 3; the shape given is {images.shape}."
        )
    if len(images) > rows * cols:
        raise ValueError(f"{len(images)} images do not fit into {rows} rows of {cols}: ask for more cells.")
    pixels = _pixels(images)
    factor = max(1, round(TARGET_SIZE / max(rows * images.shape[1], cols * images.shape[2])))
    pixels = pixels.repeat(factor, axis=1).repeat(factor, axis=2).repeat(3 // images.shape[-1], axis=3)
    height, width = pixels.shape[1] + pad, pixels.shape[2] + pad
    grid = np.full((rows * height + pad, cols * width + pad, 3), 255, np.uint8)
    for i, image in enumerate(pixels):
        top, left = i // cols * height + pad, i % cols * width + pad
        grid[top : top + image.shape[0], left : left + image.shape[1]] = image
    return grid


def reconstruction_grid(
    x: np.ndarray, x_hat: np.ndarray, rows: int, cols: int, *, pad: int = PAD
) -> np.ndarray:
    """Lay out originals x and reconstructions x_hat, both [N, H, W, C], as the paper does.

    There are `rows` rows of `cols` pairs; fewer images make fewer and even rows. Odd columns are originals,
    even columns their reconstructions.
    """
    if 0 < len(x) < rows * cols:
        rows = -(-len(x) // cols)
        cols = -(-len(x) // rows)
    pairs = np.stack([x, x_hat], axis=1)
    return image_grid(pairs.reshape(-1, *pairs.shape[2:]), rows, 2 * cols, pad=pad)


def interpolation_grid(x0: np.ndarray, path: np.ndarray, x1: np.ndarray, *, pad: int = PAD) -> np.ndarray:
    """Lay out one row per pair: original x0 [B, H, W, C], path [B, steps, H, W, C], original x1."""
    rows = np.concatenate([x0[:, None], path, x1[:, None]], axis=1)
    return image_grid(rows.reshape(-1, *rows.shape[2:]), rows.shape[0], rows.shape[1], pad=pad)


class Panel(NamedTuple):
    """One scatter plot: points in the plane, coloured by class."""

    title: str
    points: np.ndarray  # [N, 2]
    labels: np.ndarray | None = None  # [N] int
    limit: float = 4.0  # both axes go from -limit to limit
    names: tuple[str, ...] = ()  # of the classes; empty for their numbers


def scatter(panels: Sequence[Sequence[Panel]]) -> np.ndarray:
    """Draw rows of scatter plots; the rows may differ in length. Points that are not finite are left out."""
    for panel in (panel for row in panels for panel in row):
        if panel.points.ndim != 2 or panel.points.shape[1] != 2:
            raise ValueError(
                f"Points {panel.title!r} have shape {panel.points.shape}; a scatter plot needs [N, 2]."
            )
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cols = max(len(row) for row in panels)
    figure = Figure(figsize=(3 * cols, 3 * len(panels)), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for i, row in enumerate(panels):
        for j, panel in enumerate(row):
            axes = figure.add_subplot(len(panels), cols, i * cols + j + 1)
            colors = {} if panel.labels is None else {"c": panel.labels, "cmap": "gist_rainbow"}
            axes.scatter(*panel.points.T, s=2, linewidths=0, **colors)
            for name, (x, y) in class_centers(panel).items():
                axes.text(x, y, name, ha="center", va="center", fontsize=7, parse_math=False)
            limit = panel.limit if np.isfinite(panel.limit) and panel.limit > 0 else 1.0
            axes.set(title=panel.title, aspect="equal", xlim=(-limit, limit), ylim=(-limit, limit))
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def class_centers(panel: Panel) -> dict[str, tuple[float, float]]:
    """Return the median of each class that a panel names and shows; none where there are many classes."""
    if panel.labels is None or not 1 < len(panel.names) <= NAMED_CLASSES:
        return {}
    centers = {}
    for label, name in enumerate(panel.names):
        points = panel.points[(panel.labels == label) & np.isfinite(panel.points).all(axis=1)]
        if len(points):
            x, y = np.median(points, axis=0)
            centers[name] = (float(x), float(y))
    return centers


def with_row_names(grid: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Write a name to the left of each row of a picture [H, W, 3] of equally high rows."""
    font = ImageFont.load_default(max(8, min(16, len(grid) // len(names) - 2)))
    margin = 2 * PAD + max(math.ceil(font.getlength(name)) for name in names)
    page = Image.new("RGB", (margin + grid.shape[1], grid.shape[0]), "white")
    page.paste(Image.fromarray(grid), (margin, 0))
    draw = ImageDraw.Draw(page)
    for i, name in enumerate(names):
        middle = (i + 0.5) * len(grid) / len(names)
        draw.text((PAD, middle), name, fill="black", font=font, anchor="lm")
    return np.asarray(page)


def limit_of(points: np.ndarray) -> float:
    """Return the limit of the axes for data [N, 2]: 1.5 times its largest value, which is the paper's 6."""
    return 1.5 * float(np.abs(points).max())


def mixture_panels(
    x: np.ndarray,
    x_hat: np.ndarray,
    x_tilde: np.ndarray,
    z_hat: np.ndarray,
    z: np.ndarray,
    *,
    labels: np.ndarray | None = None,
) -> tuple[tuple[Panel, ...], ...]:
    """Return the panels of the paper's figure for data in the plane; all arguments are [N, 2].

    The first row has data x, reconstructions x_hat and samples x_tilde; the second has codes z_hat and prior
    draws z. Data, codes and reconstructions are coloured by `labels` [N]. The axes of codes end at 4, as in
    the paper.
    """
    limit = limit_of(x)
    return (
        (
            Panel("x", x, labels, limit),
            Panel("x_hat", x_hat, labels, limit),
            Panel("x_tilde", x_tilde, None, limit),
        ),
        (Panel("z_hat", z_hat, labels), Panel("z", z)),
    )


def save_png(path: str | os.PathLike[str], image: np.ndarray) -> None:
    """Write a uint8 picture [H, W, 3] as a PNG file, atomically."""
    _save(pathlib.Path(path), image, "PNG")


def save_picture(path: str | os.PathLike[str], image: np.ndarray) -> None:
    """Write a uint8 picture [H, W, 3] in the format of the file's suffix, atomically; PNG if it has none.

    Raises:
      ValueError: the suffix is none of .png, .jpg, .jpeg and .webp.
    """
    path = pathlib.Path(path)
    formats = {"": "PNG", ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
    if path.suffix.lower() not in formats:
        raise ValueError(f"{path}: pictures are written as .png, .jpg, .jpeg or .webp.")
    _save(path, image, formats[path.suffix.lower()])


def save_single(path: str | os.PathLike[str], image: np.ndarray) -> None:
    """Write one image [H, W, C] in [0, 1] as a PNG file in its own size, atomically."""
    pixels = _pixels(image)
    _save(pathlib.Path(path), pixels[..., 0] if pixels.shape[-1] == 1 else pixels, "PNG")


def save_moving(path: str | os.PathLike[str], frames: Sequence[np.ndarray], milliseconds: int) -> None:
    """Write uint8 pictures [H, W, 3] as a .gif or a .webp that shows each for so long, again and again."""
    path = pathlib.Path(path)
    first, *others = map(Image.fromarray, frames)
    form = {".gif": "GIF", ".webp": "WEBP"}[path.suffix.lower()]
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    first.save(partial, format=form, save_all=True, append_images=others, duration=milliseconds, loop=0)
    os.replace(partial, path)


def _pixels(images: np.ndarray) -> np.ndarray:
    """Return images in [0, 1] as uint8; values outside are clipped, NaN is black."""
    return np.rint(255 * np.clip(np.nan_to_num(images.astype(np.float32)), 0, 1)).astype(np.uint8)


def _save(path: pathlib.Path, image: np.ndarray, form: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(form, {})
    Image.fromarray(image).save(partial, format=form, **options)
    os.replace(partial, path)
