"""Edit test images from their class to another: how often it succeeds, and what becomes of the style.

    python -m benchmarks.edit --workdir runs/mnist --rows 2000

Every image is moved from the mean code of its class towards that of another class, by several amounts of this
difference, and beside it by a random direction of the same length. The reference classifier judges the class.
Style is the slant and the stroke width; what is kept of it is their correlation, over images, with those of
the unedited reconstruction. The images are test rows, each with one target, in turn; the directions are those
of `--mode edit --direction A:B`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from ali_jax import game
from ali_jax.data import unit
from ali_jax.evaluate.rows import reference_predict, test_rows, train_rows
from ali_jax.metrics.intervals import wilson_interval
from ali_jax.records.workdir import read_config
from ali_jax.tools.trained import load

AMOUNTS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
INK = 0.5  # brightness of a pixel that belongs to a stroke


class Outcome(NamedTuple):
    """What edits by one amount give."""

    hits: int  # images of the target class
    count: int
    slant: float  # correlation with that of the reconstruction
    width: float


def slant(images: np.ndarray) -> np.ndarray:
    """Return the slant [N] of images [N, H, W]: pixels to the right per pixel upwards, by second moments."""
    rows, columns = np.mgrid[: images.shape[1], : images.shape[2]].astype(np.float64)
    mass = np.maximum(images.sum(axis=(1, 2)), 1e-9)
    y, x = ((images * grid[None]).sum(axis=(1, 2)) / mass for grid in (-rows, columns))
    dy, dx = -rows[None] - y[:, None, None], columns[None] - x[:, None, None]
    return (images * dx * dy).sum(axis=(1, 2)) / np.maximum((images * dy**2).sum(axis=(1, 2)), 1e-9)


def stroke_width(images: np.ndarray) -> np.ndarray:
    """Return the mean width [N] of the strokes of images [N, H, W], in pixels; NaN where there is no ink.

    Across a stroke of width w the distance to its edge is w / 4 on average; images are enlarged four times.
    """
    widths = []
    for image in images:
        enlarged = np.asarray(ndimage.zoom(image, 4, order=1)) > INK
        distance = np.asarray(ndimage.distance_transform_edt(enlarged))
        widths.append(distance[enlarged].mean() if enlarged.any() else np.nan)
    return np.array(widths)


def measure(workdir: Path, path: str, count: int, length: float) -> dict[str, list[Outcome]]:
    """Return the outcomes by amount, of directions between classes and of random ones."""
    config, trained = read_config(workdir), load(workdir)
    if path:
        with config.unlocked():
            config.dataset.path = path
    dataset = game.load_data(config)
    train, test = train_rows(dataset), test_rows(dataset)
    predict, accuracy = reference_predict(dataset, length)
    print(f"The reference classifier is right on {accuracy:.2%} of the test images.", file=sys.stderr)
    chosen = np.arange(min(count, len(test.x))) * len(test.x) // min(count, len(test.x))
    label, classes = test.label[chosen], dataset.num_classes
    target = (label + 1 + np.arange(len(label)) % (classes - 1)) % classes
    z_train = trained.encode(unit(train.x, dataset.divisor))
    means = np.stack([z_train[train.label == k].mean(axis=0) for k in range(classes)])
    toward = means[target] - means[label]
    noise = np.random.default_rng(0).standard_normal(toward.shape)
    random = noise * (np.linalg.norm(toward, axis=1) / np.linalg.norm(noise, axis=1))[:, None]
    z = trained.encode(unit(test.x[chosen], dataset.divisor))
    before = trained.decode(z)
    return {
        name: [outcome(before, trained.decode(z + amount * direction), target, predict) for amount in AMOUNTS]
        for name, direction in (("class", toward), ("random", random))
    }


def outcome(before: np.ndarray, after: np.ndarray, target: np.ndarray, predict) -> Outcome:
    """Compare edited images with their reconstructions, [N, H, W, 1] both."""
    hits = int(np.sum(predict(after) == target))
    styles = [[f(images[..., 0]) for images in (before, after)] for f in (slant, stroke_width)]
    return Outcome(hits, len(target), *(correlation(*style) for style in styles))


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return Pearson's correlation of a [N] and b [N] where both are known."""
    known = np.isfinite(a) & np.isfinite(b)
    return float(np.corrcoef(a[known], b[known])[0, 1])


def table(outcomes: dict[str, list[Outcome]]) -> str:
    """Return the outcomes as a table in Markdown."""
    head = "amount | target class | slant kept | width kept | target, random | slant, random | width, random"
    lines = [f"| {head} |", "|" + "---|" * 7]
    for amount, *both in zip(AMOUNTS, outcomes["class"], outcomes["random"], strict=True):
        cells = [f"{amount:g}"]
        for one in both:
            low, high = wilson_interval(one.hits, one.count)
            cells += [
                f"{one.hits / one.count:.3f} [{low:.3f}, {high:.3f}]",
                f"{one.slant:.2f}",
                f"{one.width:.2f}",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(description="Edit test images from class to class.")
    parser.add_argument("--workdir", required=True, type=Path, help="a run of grey images with labels")
    parser.add_argument("--path", default="", help="where its data are now")
    parser.add_argument("--rows", type=int, default=2_000, help="test images that are edited")
    parser.add_argument("--length", type=float, default=1.0, help="of the classifier's training")
    options = parser.parse_args(arguments)
    try:
        print(table(measure(options.workdir, options.path, options.rows, options.length)))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
