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
from ali_jax.data.pictures import Contents

PREFIX = "hf:"
INSTALL = "pip install 'ali_jax[hf]'"


def read_hub(name: str, options: LoadOptions) -> Contents:
    """Read the image set NAME, NAME:CONFIGURATION, or a folder that the library saved.

    Images and labels are chosen as in `tables`; the images are read when they are decoded.

    Raises:
        DataError: the library is not installed, there is no such set, or it has no images.
    """
    if importlib.util.find_spec("datasets") is None:
        raise DataError(f"{PREFIX}{name} needs the library `datasets`: {INSTALL}")
    splits = _splits(name)
    first = next(iter(splits.values()))
    image, label, unused = tables.chosen(
        f"{PREFIX}{name}", [*map(_column, *zip(*first.features.items(), strict=True))]
    )
    rows, others = {}, []
    for split, part in splits.items():
        known = folders.PART_OF.get(split.lower())
        if known is None and len(splits) > 1:
            others.append(split)
        else:
            rows[known or ""] = _rows(f"{PREFIX}{name} {split}", part, image.name, label and label.name)
    notes = [Note(f"Of {name} these columns are not used: {', '.join(unused)}.")] if unused else []
    notes += [Note(f"Of {name} these splits are not used: {', '.join(others)}.")] if others else []
    return tables.in_parts(Path(name), rows, label, options, notes)


def _library() -> Any:
    """Import the library, which takes a second, only when it is needed."""
    return importlib.import_module("datasets")


def _splits(name: str) -> Mapping[str, Any]:
    """Load a set by its name or its folder; return its splits."""
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


def _encoded(split: Any, i: int, image: str) -> bytes:
    """Return the encoded image of a row, which holds it or names a file."""
    row = split[i][image]
    return row["bytes"] if row["bytes"] is not None else Path(row["path"]).read_bytes()
