"""Image sets by their name on the Hugging Face hub, through its library `datasets`."""

import importlib
import importlib.util
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ali_jax.data import folders, tables
from ali_jax.data.dataset import DataError, LoadOptions, Note
from ali_jax.data.images import Stored
from ali_jax.data.pictures import Contents, NamedImage

PREFIX = "hf:"
INSTALL = "pip install 'ali_jax[hf]'"


def read_hub(name: str, options: LoadOptions) -> Contents:
    """Read the image set NAME, NAME:CONFIGURATION, or a folder that the library saved.

    Images and labels are chosen as in `tables`; the images are read when they are decoded.

    Raises:
        DataError: the library is not installed, there is no such set, or it has no images.
    """
    splits = _splits(name)
    image, label, unused = _chosen(name, splits)
    rows, others = {}, []
    for split, part in splits.items():
        known = folders.PART_OF.get(split.lower())
        if known is None and len(splits) > 1:
            others.append(split)
        else:
            rows[known or ""] = _rows(f"{PREFIX}{name} {split}", part, image.name, label and label.name)
    notes = tables.unused_notes(name, unused)
    notes += [Note(f"Of {name} these splits are not used: {', '.join(others)}.")] if others else []
    return tables.in_parts(Path(name), rows, label, options, notes)


def read_rows(name: str) -> tuple[list[NamedImage], list[Note]]:
    """Read all rows of all splits, one after the other, by the names of `tables.named`.

    Raises:
        DataError: as `read_hub`.
    """
    splits = _splits(name)
    image, label, unused = _chosen(name, splits)
    rows = {}
    for split, part in splits.items():
        of = _rows(f"{PREFIX}{name} {split}".rstrip(), part, image.name, label and label.name)
        rows[split or Path(name).name] = of._replace(paths=_paths(part, image.name))
    return tables.named(Path(name), rows, label), tables.unused_notes(name, unused)


def _library() -> Any:
    """Import the library, which takes a second, only when it is needed."""
    try:
        return importlib.import_module("datasets")
    except (ImportError, OSError) as error:  # one that it needs is absent or damaged
        raise DataError(
            f"the library `datasets` cannot be imported ({error}); install it again: {INSTALL}"
        ) from None


def _splits(name: str) -> Mapping[str, Any]:
    """Load a set by its name or its folder; return its splits, or one of the name "" where it has none."""
    if not name:
        raise DataError(f"{PREFIX} names no set: give {PREFIX}NAME, such as {PREFIX}mnist")
    if importlib.util.find_spec("datasets") is None:
        raise DataError(f"{PREFIX}{name} needs the library `datasets`: {INSTALL}")
    datasets = _library()
    builder, _, configuration = (name, "", "") if Path(name).exists() else name.partition(":")
    try:
        if (Path(builder) / "dataset_dict.json").exists() or (Path(builder) / "state.json").exists():
            loaded = datasets.load_from_disk(builder)
        else:
            loaded = datasets.load_dataset(builder, configuration or None)
    except Exception as error:  # the library, the network and the files raise errors of many classes
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(f"{PREFIX}{name} cannot be loaded: {reason}") from error
    return loaded if isinstance(loaded, Mapping) else {"": loaded}


def _chosen(name: str, splits: Mapping[str, Any]) -> tuple[tables.Column, tables.Column | None, list[str]]:
    """Choose the columns as `tables.chosen` does, of the first split: all have the same."""
    features = next(iter(splits.values())).features
    return tables.chosen(f"{PREFIX}{name}", [_column(*item) for item in features.items()])


def _column(name: str, feature: Any) -> tables.Column:
    datasets = _library()
    if isinstance(feature, datasets.Image):
        return tables.Column(name, "image")
    if isinstance(feature, datasets.ClassLabel):
        return tables.Column(name, "label", tuple(feature.names))
    is_value = isinstance(feature, datasets.Value) and feature.dtype.startswith(("int", "uint", "string"))
    return tables.Column(name, "label" if is_value and name.lower() in tables.LABELS else "other")


def _rows(what: str, split: Any, image: str, label: str | None) -> tables.Rows:
    datasets = _library()
    encoded = split.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    images = [Stored(f"{what} row {i}", partial(_encoded, encoded, i, image)) for i in range(len(split))]
    return tables.Rows(images, list(split[label]) if label else ())


def _paths(split: Any, image: str) -> list[str | None]:
    """Return the paths that are stored beside the images; their bytes are not copied."""
    import pyarrow.compute

    compute: Any = pyarrow.compute
    encoded = split.select_columns([image]).cast_column(image, _library().Image(decode=False))
    batches = encoded.with_format("arrow").iter(batch_size=1_000)
    chunks = (chunk for table in batches for chunk in table.column(image).chunks)
    return [path for chunk in chunks for path in compute.struct_field(chunk, "path").to_pylist()]


def _encoded(split: Any, i: int, image: str) -> bytes:
    """Return the encoded image of a row, which holds it or names a file."""
    row = split[i][image]
    return row["bytes"] if row["bytes"] is not None else Path(row["path"]).read_bytes()
