"""Feature extractors of images by one name, and the features of a data set.

`config.evaluation.features` names one; in Python, an `Extractor` of any function is one, too.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ali_jax.data import Dataset
from ali_jax.evaluate.declare import CLASSES, IMAGES, Need, is_no_image
from ali_jax.evaluate.rows import cached_by_data, over_x, reference_classifier, test_rows, train_rows
from ali_jax.metrics import dinov2, inception, random_features
from ali_jax.metrics.blocks import map_blocks

NAMES = ("classifier", "inception", "dinov2", "random")
AUTO = "auto"  # the classifier where the data have classes, and random features otherwise


class Extractor(NamedTuple):
    """A function that returns features of images, with its name for the provenance of a measurement."""

    name: str  # as in fid_NAME
    resize: str  # how images are brought to the size that the function takes
    features: Callable[[np.ndarray], np.ndarray]  # x [N, *X] in [0, 1] -> [N, F]


def make_extractor(
    dataset: Dataset, name: str = AUTO, *, inception_weights: str = "", dinov2_weights: str = ""
) -> Extractor:
    """Return the extractor of that name; a ValueError says what is wrong with the name or with a file.

    Args:
      dataset: the data that the reference classifier is trained on.
      name: classifier, inception, dinov2, random or auto, as in `config.evaluation.features`.
      inception_weights: the .npz file of `ali_jax.metrics.inception`.
      dinov2_weights: the .safetensors file of `ali_jax.metrics.dinov2`.
    """
    name = _chosen(dataset, name)
    if name == "classifier":
        return classifier_extractor(dataset)
    if name == "inception":
        return inception_extractor(inception_weights)
    if name == "dinov2":
        return dinov2_extractor(dinov2_weights)
    return random_extractor()


def classifier_extractor(dataset: Dataset) -> Extractor:
    """Return the reference classifier's last hidden layer; a process trains it once per data set."""
    return Extractor("classifier", "none", reference_classifier(dataset).features)


@functools.lru_cache(maxsize=1)
def inception_extractor(path: str) -> Extractor:
    """Return Inception-v3 with the weights of an .npz file; a ValueError says what is wrong with the file."""
    return _with_weights("inception", inception, path)


@functools.lru_cache(maxsize=1)
def dinov2_extractor(path: str) -> Extractor:
    """Return DINOv2 with the weights of a .safetensors file; a ValueError says what is wrong with it."""
    return _with_weights("dinov2", dinov2, path)


def _with_weights(name: str, network: Any, path: str) -> Extractor:
    run = functools.partial(jax.jit(network.features), network.load(path))
    return Extractor(name, network.RESIZE, lambda x: map_blocks(run, x, size=50))


@functools.cache
def random_extractor() -> Extractor:
    """Return the convolutional network with random weights of `ali_jax.metrics.random_features`."""
    run = jax.jit(random_features.features)
    return Extractor("random", random_features.RESIZE, lambda x: map_blocks(run, x))


def needs_of_features(
    *, features: str = AUTO, inception_weights: str = "", dinov2_weights: str = "", **_: object
) -> tuple[Need, ...]:
    """Return what the extractor of that name needs of data, and of the files that options name."""
    known = {
        AUTO: (IMAGES_OR_CLASSES,),
        "classifier": CLASSES,
        "random": (IMAGES,),
        "inception": (IMAGES, _weights("Inception-v3", "inception", ".npz", inception_weights)),
        "dinov2": (IMAGES, _weights("DINOv2", "dinov2", ".safetensors", dinov2_weights)),
    }
    if features not in known:
        raise ValueError(f"There are no features {features!r}. There are: {', '.join(known)}.")
    return known[features]


@cached_by_data(maxsize=4)
def train_features(dataset: Dataset, extractor: Extractor) -> np.ndarray:
    """Return the features [N, F] of the rows of train that evaluators use."""
    return over_x(extractor.features, train_rows(dataset), dataset.divisor)


@cached_by_data(maxsize=4)
def test_features(dataset: Dataset, extractor: Extractor) -> np.ndarray:
    """Return the features [N, F] of the rows of test that evaluators use."""
    return over_x(extractor.features, test_rows(dataset), dataset.divisor)


def _has_classes(dataset: Dataset) -> bool:
    return not any(need.is_missing(dataset, None) for need in CLASSES)


def _chosen(dataset: Dataset, name: str) -> str:
    """Return the name of an extractor, with `auto` resolved."""
    needs_of_features(features=name)  # refuses unknown names
    if name != AUTO:
        return name
    return "classifier" if _has_classes(dataset) else "random"


IMAGES_OR_CLASSES = Need(
    "images, or labels of two classes or more",
    lambda data, _: is_no_image(data) and not _has_classes(data),
)


def _weights(network: str, name: str, suffix: str, path: str) -> Need:
    """Need the file of a network's weights."""
    return Need(
        f"the weights of {network}",
        lambda *_: not Path(path).is_file(),
        of_data=False,
        remedy=f"set config.evaluation.{name}_weights to an existing {suffix} file, as "
        f"ali_jax.metrics.{name} describes",
    )
