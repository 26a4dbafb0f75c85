"""Image data sets of TensorFlow Datasets, read from array_record files without TensorFlow.

Nothing is downloaded here: a data set must have been prepared by `ali_jax.data.prepare`.
"""

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from ali_jax.data import images, sizes
from ali_jax.data.dataset import DataError, Dataset, LoadOptions, SourceSplit, host_batch
from ali_jax.names import did_you_mean
from ali_jax.types import Batch

NAMES = ("celeb_a", "cifar10", "imagenet_resized/64x64", "mnist", "svhn_cropped")
PREPARE = "python -m ali_jax.data.prepare"
INSTALL = "pip install 'ali_jax[tfds]'"

# In the order of CelebA's own file, which is the order of the columns of y.
CELEBA_ATTRIBUTES = (
    "5_o_Clock_Shadow",
    "Arched_Eyebrows",
    "Attractive",
    "Bags_Under_Eyes",
    "Bald",
    "Bangs",
    "Big_Lips",
    "Big_Nose",
    "Black_Hair",
    "Blond_Hair",
    "Blurry",
    "Brown_Hair",
    "Bushy_Eyebrows",
    "Chubby",
    "Double_Chin",
    "Eyeglasses",
    "Goatee",
    "Gray_Hair",
    "Heavy_Makeup",
    "High_Cheekbones",
    "Male",
    "Mouth_Slightly_Open",
    "Mustache",
    "Narrow_Eyes",
    "No_Beard",
    "Oval_Face",
    "Pale_Skin",
    "Pointy_Nose",
    "Receding_Hairline",
    "Rosy_Cheeks",
    "Sideburns",
    "Smiling",
    "Straight_Hair",
    "Wavy_Hair",
    "Wearing_Earrings",
    "Wearing_Hat",
    "Wearing_Lipstick",
    "Wearing_Necklace",
    "Wearing_Necktie",
    "Young",
)


def find(name: str, directory: str = "", **kwargs: Any) -> Any:
    """Return TensorFlow Datasets' builder of a data set, or None if the name is unknown.

    Data that a user prepared with their own builder are found by their files in `directory`.
    """
    try:
        with quiet():
            return _library().builder(name, data_dir=directory or None, **kwargs)
    except ValueError:  # unknown data set, unknown variant, or not a valid name
        return None


def unknown(name: str, known: Sequence[str]) -> DataError:
    """Make the error for an unknown data set."""
    registered = _library().list_builders(with_community_datasets=False)
    hint = did_you_mean(name, [*known, *registered])
    return DataError(
        f"There is no data set {name!r}.{hint} Known are {', '.join(known)} and every other data set of "
        "TensorFlow Datasets that has images; give your own files by --config.dataset.path"
    )


def check_images(name: str, builder: Any) -> tuple[int | None, ...]:
    """Return the shape of x for a data set of images; height and width are None where images differ in size.

    Raises:
        DataError: the data set has no images.
    """
    if name == "celeb_a":
        return (64, 64, 3)
    features = dict(builder.info.features.items())
    if "image" not in features:
        raise DataError(f"{name} has no feature 'image' but {', '.join(features)}")
    feature = features["image"]
    shape = feature.shape
    if len(shape) != 3 or shape[2] not in (1, 3) or feature.np_dtype != np.uint8:
        raise DataError(
            f"{name} has images {shape} of {feature.np_dtype}; they must be uint8, grey or in colour"
        )
    return shape


def _check_size(name: str, shape: tuple[int | None, ...], resize: sizes.Size | None) -> tuple[int, ...]:
    """Return a shape of images in full: those that differ in size have that of `resize`."""
    height, width, channels = shape
    assert channels is not None
    if height is not None and width is not None:
        return height, width, channels
    if resize is None:
        raise DataError(
            f"{name} has images of different sizes; set config.dataset.resize, such as 64, to bring all to "
            "one size"
        )
    return (*resize, channels)


def is_prepared(builder: Any) -> bool:
    """Tell whether the files of a builder exist."""
    with quiet():
        return builder.is_prepared()


def load(name: str, builder: Any, options: LoadOptions) -> Dataset:
    """Load a prepared data set; splits may use all of TensorFlow Datasets' notation.

    CelebA is cropped as in the paper and, with `options.conditional`, has its attributes as y. The split
    "test" of ImageNet is its "validation".

    Raises:
        DataError: the data are not prepared, or the split does not exist.
    """
    shape = _check_size(name, check_images(name, builder), options.resize)
    if not is_prepared(builder):
        raise DataError(_not_prepared(name, builder.data_path, options.directory))
    available = list(builder.info.splits)
    held_out = options.test_split
    if held_out == "test" and "test" not in available and "validation" in available:
        held_out = "validation"
    attributes = CELEBA_ATTRIBUTES if name == "celeb_a" and options.conditional else ()
    splits = (options.train_split, held_out)
    train, test = (_split(name, builder, text, shape, len(attributes), options) for text in splits)
    classes = tuple(getattr(_label(builder), "names", ())) if train.num_classes else ()
    return Dataset(
        name,
        train,
        test,
        255.0,
        train.num_classes,
        attributes=attributes,
        splits=splits,
        class_names=classes,
    )


def _label(builder: Any) -> Any:
    return dict(builder.info.features.items()).get("label")


def _split(
    name: str, builder: Any, text: str, shape: tuple[int, ...], num_attributes: int, options: LoadOptions
) -> SourceSplit:
    undecoded = {
        "image": _library().decode.SkipDecoding()
    }  # Pillow decodes them, and its errors name the problem
    try:
        with quiet():
            source = builder.as_data_source(text, decoders=undecoded)
    except NotImplementedError as error:
        raise DataError(
            f"{name} in {builder.data_path} is prepared as {builder.info.file_format.value}, which only "
            f"TensorFlow reads; prepare it in another directory: {PREPARE} {name} --directory DIR"
        ) from error
    except ValueError as error:
        raise DataError(f"split {text!r} of {name}: {str(error).splitlines()[0]}") from error
    if not len(source):
        raise DataError(f"split {text!r} of {name} has no rows")
    if name == "celeb_a":
        return SourceSplit(source, _decode_celeba, shape, np.dtype(np.uint8), 0, num_attributes)
    num_classes = getattr(_label(builder), "num_classes", None) or 0
    is_mixed = None in check_images(name, builder)  # others are resized by `data.load`
    sizing = sizes.Sizing(options.resize, options.fit, options.background)

    def decode(record: dict[str, Any]) -> Batch:
        with images.opened(io.BytesIO(record["image"]), f"an image of {name}") as image:
            x = images.to_uint8(image, shape[-1], background=options.background)
        return host_batch(sizes.fitted(x, sizing) if is_mixed else x, label=record.get("label"))

    return SourceSplit(source, decode, shape, np.dtype(np.uint8), num_classes)


def _decode_celeba(record: dict[str, Any]) -> Batch:
    with images.opened(io.BytesIO(record["image"]), "an image of celeb_a") as image:
        x = images.crop_celeba(image)
    return host_batch(x, np.array([record["attributes"][name] for name in CELEBA_ATTRIBUTES], np.float32))


def _not_prepared(name: str, looked_in: Any, directory: str) -> str:
    where = f" --directory {directory}" if directory else " [--directory DIR]"
    return (
        f"{name} is not prepared: there is nothing in {looked_in}. With a network, run\n"
        f"    {INSTALL}\n"
        f"    {PREPARE} {name}{where} [--manual_dir DIR]\n"
        "once, or give your own files by --config.dataset.path=..."
    )


def _library() -> ModuleType:
    """Import TensorFlow Datasets, which takes a second, only when it is needed."""
    with quiet():
        import tensorflow_datasets
    return tensorflow_datasets


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the library's warnings: what matters in them is raised as an error here."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
