"""What a run remembers of its data: how to give a model rows of the same kind, and how to know these again.

`describe` makes the facts, as a JSON object; `differences` compares two of them.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ali_jax.data.dataset import Dataset, Split

ROWS, VALUES = 32, 8  # of a split: rows of its digest, and values per row that are recorded
CLOSE = 0.02  # of the range: root mean square by which the values of the same images may differ when decoded
LISTED = 12  # the most names that a message lists


def describe(dataset: Dataset) -> dict[str, Any]:
    """Return the facts about a data set, as a JSON object.

    A model's input is x = stored / `divisor`, of this `shape`; images are in `range`. `resize` says how they
    were brought to one size: none, crop, pad or stretch. A split has its number of rows, digests of the x and
    of the labels of up to 32 rows at equal distances, and some of their values. Only these rows are read.
    """
    is_image = np.issubdtype(dataset.train.dtype, np.integer)
    return {
        "name": dataset.name,
        "shape": list(dataset.train.shape),
        "dtype": str(dataset.train.dtype),
        "divisor": float(dataset.divisor),
        "range": [0.0, 1.0] if is_image else None,
        "resize": dataset.resize,
        "num_classes": dataset.num_classes,
        "class_names": list(dataset.class_names),
        "attributes": list(dataset.attributes),
        "train": _describe_split(dataset.train, dataset.splits[0]),
        "test": _describe_split(dataset.test, dataset.splits[1]),
    }


def _describe_split(split: Split, part: str) -> dict[str, Any]:
    index = np.unique(np.linspace(0, len(split) - 1, ROWS).astype(int))
    x, y, label = (None if a is None else np.asarray(a) for a in split.rows(index))
    assert x is not None
    flat = x.reshape(len(index), -1)
    places = np.unique(np.linspace(0, flat.shape[1] - 1, VALUES + 2).astype(int)[1:-1])
    return {
        "part": part,
        "rows": len(split),
        "digest": _digest(x),
        "labels": _digest(y, label),
        "values": " ".join(f"{value:.6g}" for value in flat[:, places].ravel()),
    }


def _digest(*arrays: np.ndarray | None) -> str:
    """Return a checksum of arrays, with their shapes and types; None counts too."""
    checksum = hashlib.sha256()
    for a in arrays:
        checksum.update(b"none" if a is None else f"{a.shape} {a.dtype} ".encode() + a.tobytes())
    return checksum.hexdigest()[:16]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return how the training data of two descriptions differ, each in a few words.

    Facts that one of them lacks are not compared, as those of an export lack digests. Images that another
    version of a library decodes a little differently are the same; `slight_differences` tells of them.
    """
    return [*kind_differences(old, new), *_split_differences("training", old, new)]


def kind_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return how two descriptions differ in what a model can be given: shape, units, classes, attributes."""
    changes = [
        f"{name} was {_shown(old[key])}; now {_shown(new[key])}"
        for key, name in (("shape", "shape"), ("dtype", "type"), ("divisor", "divisor of pixels"))
        if key in old and old[key] != new[key]
    ]
    if old.get("class_names") and new["class_names"]:
        changes += _names_differ("classes", old["class_names"], new["class_names"])
    elif "num_classes" in old and old["num_classes"] != new["num_classes"]:
        changes.append(f"classes were {old['num_classes']}; now {new['num_classes']}")
    of_classes = [str(k) for k in range(new["num_classes"])]  # they say nothing more than the classes do
    if "attributes" in old and new["attributes"] not in (of_classes, new["class_names"]):
        changes += _names_differ("attributes", old["attributes"], new["attributes"])
    return changes


def slight_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return what differs without making the training data others: decoding, and the test rows."""
    changes = _split_differences("test", old, new)
    if not changes and not _split_differences("training", old, new):
        changed = _differs("digest", {"digest": "", **old.get("train", {})}, new["train"])
        changes = ["training rows have slightly different values, as from another decoder"] if changed else []
    return changes


def _split_differences(what: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    part = {"training": "train", "test": "test"}[what]
    if part not in old or kind_differences(old, new):
        before, now = old.get(part, new[part]), new[part]
        return [f"{what} rows were {before['rows']}; now {now['rows']}"] * (before["rows"] != now["rows"])
    before, now = old[part], new[part]
    if before["rows"] != now["rows"]:
        return [f"{what} rows were {before['rows']}; now {now['rows']}"]
    if _differs("digest", before, now) and _distance(before, now, new) > CLOSE:
        return [f"{what} rows have other values"]
    return [f"{what} rows have other labels"] * _differs("labels", before, now)


def _differs(fact: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    return "" not in (before[fact], now[fact]) and before[fact] != now[fact]


def _distance(before: Mapping[str, Any], now: Mapping[str, Any], facts: Mapping[str, Any]) -> float:
    """Return the root mean square difference of the recorded values, relative to their range."""
    a, b = (np.array(split["values"].split(), float) for split in (before, now))
    if a.shape != b.shape:
        return np.inf
    size = facts["divisor"] if facts["range"] else max(np.abs(a).max(initial=0), 1e-30)
    return float(np.sqrt(np.mean(np.square((a - b) / size))))


def _names_differ(what: str, old: Sequence[str], new: Sequence[str]) -> list[str]:
    return [f"{what} were {_shown(old)}; now {_shown(new)}"] * (list(old) != list(new))


def _shown(value: Any) -> str:
    """Show numbers as a shape, and names as a list that is not too long."""
    if not isinstance(value, (list, tuple)):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if value and all(isinstance(v, int) for v in value):
        return "x".join(map(str, value))
    more = f" and {len(value) - LISTED} more" if len(value) > LISTED else ""
    return (", ".join(map(str, value[:LISTED])) or "none") + more
