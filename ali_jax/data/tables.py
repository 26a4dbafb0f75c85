"""Tables of images with labels: Parquet files as the Hugging Face hub stores image sets, read by pyarrow.

A row has an encoded image, as a struct with `bytes` or as bytes alone, and perhaps a label. Which column is
which, and the names of the classes, follow from what the hub's library writes into the schema, or else from
the usual names.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ali_jax.data import folders, pictures
from ali_jax.data.archives import MAX_CLASSES, check_fits
from ali_jax.data.dataset import DataError, LoadOptions, Note, class_order
from ali_jax.data.images import Stored
from ali_jax.data.packed import check_size
from ali_jax.data.pictures import Contents, ImageFile, NamedImage

SUFFIX = ".parquet"
IMAGES = ("image", "img", "images")  # usual names of columns, the most usual first
LABELS = ("label", "labels", "class", "target", "fine_label")


class Column(NamedTuple):
    """A column of a table."""

    name: str
    kind: str  # image, label (of a class), or other
    classes: tuple[str, ...] = ()  # the names of labels 0, 1, ..., where the table lists them


class Rows(NamedTuple):
    """The rows of a part."""

    images: Sequence[Stored]
    labels: Sequence[Any]  # numbers or names, None or -1 for none; empty where there is no column
    paths: Sequence[str | None] = ()  # that are stored beside the images; empty where they were not read


def find_tables(root: Path) -> list[Path]:
    """Return a Parquet file itself, or those below a directory, without hidden ones."""
    if root.is_file():
        return [root] if root.suffix.lower() == SUFFIX else []
    return sorted(
        path
        for path in root.rglob(f"*{SUFFIX}")
        if path.is_file() and not any(name.startswith(".") for name in path.relative_to(root).parts)
    )


def read_tables(root: Path, options: LoadOptions) -> Contents:
    """Read a Parquet file or all of a directory: its parts or, where none is to test on, a tenth as test.

    The part is the first word of a file's name, as in train-00000-of-00002.parquet, or a folder around it.
    The images are not decoded; as they are encoded, they are kept in memory.

    Raises:
        DataError: a file is damaged or has no images, or they would take more memory than there is.
    """
    of_part: dict[str, list[Path]] = {}
    for path in find_tables(root):
        of_part.setdefault(_part_of(path, root), []).append(path)
    others = of_part.pop("", []) if len(of_part) > 1 else []
    files = [path for paths in of_part.values() for path in paths]
    image, label, unused = chosen(files[0], _columns(files[0]))
    check_fits(root, sum(_on_file(path, _image_bytes, image) for path in files))
    rows = {
        part: _joined([_on_file(path, _rows, image, label) for path in paths])
        for part, paths in of_part.items()
    }
    notes = unused_notes(root.name, unused)
    skipped = Counter({f"{SUFFIX} file of another part": len(others)})
    return in_parts(root, rows, label, options, notes, skipped)


def read_rows(root: Path) -> tuple[list[NamedImage], list[Note]]:
    """Read all rows of a Parquet file, or of all files of a directory in the order of their names.

    Names are those of `named`. The images are not decoded; as they are encoded, they are kept in memory.

    Raises:
        DataError: as `read_tables`; parts and their sizes do not matter.
    """
    files = find_tables(root)
    image, label, unused = chosen(files[0], _columns(files[0]))
    check_fits(root, sum(_on_file(path, _image_bytes, image) for path in files))
    folder = root if root.is_dir() else root.parent
    rows = {
        path.relative_to(folder).as_posix(): _on_file(path, _rows, image, label, with_paths=True)
        for path in files
    }
    return named(root, rows, label), unused_notes(root.name, unused)


def named(root: Path, rows: Mapping[str, Rows], label: Column | None) -> list[NamedImage]:
    """Return the rows of tables, by name, one after the other.

    The name of an image is the path that is stored with it. Where there is none, or another row has the same,
    it is that of the table and the number of the row: train[3].

    Raises:
        DataError: a label has no name.
    """
    number = Counter(path for of in rows.values() for path in of.paths)
    found = []
    for table, of in rows.items():
        columns = (of.images, of.labels or [None] * len(of.images), of.paths or [None] * len(of.images))
        for i, (source, value, path) in enumerate(zip(*columns, strict=True)):
            name = path if path and number[path] == 1 else f"{table}[{i}]"
            found.append(NamedImage(source, name, _class_name(root, label, value)))
    return found


def _class_name(root: Path, label: Column | None, value: Any) -> str:
    if label is None or value in (None, -1):
        return ""
    if not label.classes:
        return str(value)
    if not 0 <= value < len(label.classes):
        raise DataError(_unnamed(root, label, value))
    return label.classes[value]


def _unnamed(root: Path, label: Column, value: Any) -> str:
    return f"{root}: column {label.name} has the label {value}, which has no name"


def unused_notes(name: str, columns: Sequence[str]) -> list[Note]:
    """Say which columns are not used, if some are not."""
    return [Note(f"Of {name} these columns are not used: {', '.join(columns)}.")] if columns else []


def in_parts(
    root: Path,
    rows: Mapping[str, Rows],
    label: Column | None,
    options: LoadOptions,
    notes: Sequence[Note] = (),
    skipped: Counter[str] | None = None,
) -> Contents:
    """Make the contents of tables from their rows by part, where "" says no part.

    Raises:
        DataError: there is nothing to train on, or the labels are no classes.
    """
    codes, classes = _coded(root, rows, label)
    files = {part: list(map(ImageFile, of.images, codes[part])) for part, of in rows.items() if of.images}
    held_out = [part for part in folders.HELD_OUT if part in files]
    if held_out and "train" not in files:
        raise DataError(f"{root}: has a part {held_out[0]} but none named train")
    number = sum(map(len, files.values()))
    if not held_out:
        if "train" in files:
            notes = [*notes, Note(f"{root.name} has no part to test on: a tenth of train is held out.")]
        files = folders.divided(root, [file for part in files.values() for file in part])
    shelf = pictures.Shelf(root.name, number, skipped or Counter())
    return pictures.contents(shelf, files, classes, options, notes)


def chosen(source: object, columns: Sequence[Column]) -> tuple[Column, Column | None, list[str]]:
    """Choose the columns of images and of labels; return them, and the names of all others.

    Raises:
        DataError: no column has images.
    """

    def first(kind: str, usual: Sequence[str]) -> Column | None:
        order = {name: place for place, name in enumerate(usual)}
        fitting = [column for column in columns if column.kind == kind]
        return min(fitting, key=lambda c: order.get(c.name, len(order)), default=None)

    image, label = first("image", IMAGES), first("label", LABELS)
    if image is None:
        names = ", ".join(column.name for column in columns)
        raise DataError(
            f"{source}: no column holds images, which are structs with `bytes`, or bytes; its columns are "
            f"{names}"
        )
    return image, label, [column.name for column in columns if column not in (image, label)]


def _coded(
    root: Path, rows: Mapping[str, Rows], label: Column | None
) -> tuple[dict[str, list[int]], tuple[str, ...]]:
    """Return the labels of each part as 0 to K - 1, -1 for none, and the names of the K classes."""
    if label is None:
        return {part: [-1] * len(of.images) for part, of in rows.items()}, ()
    found = {value for of in rows.values() for value in of.labels} - {None, -1}
    if label.classes:
        number: dict[Any, int] = {code: code for code in range(len(label.classes))}
        if unknown := found - number.keys():
            raise DataError(_unnamed(root, label, min(unknown)))
        classes = label.classes
    else:
        classes = tuple(sorted(map(str, found), key=class_order))
        number = {value: classes.index(str(value)) for value in found} if len(classes) <= MAX_CLASSES else {}
    if len(classes) > MAX_CLASSES:
        raise DataError(
            f"{root}: column {label.name} has {len(classes)} different values, and {MAX_CLASSES} classes are "
            "the limit; leave it out if they are not classes"
        )
    return {part: [number.get(value, -1) for value in of.labels] for part, of in rows.items()}, classes


def _part_of(path: Path, root: Path) -> str:
    """Return the part that a file's name or one of its folders says, or "" ."""
    if path == root:
        return ""
    names = [re.split(r"[-_.]", path.stem)[0], *reversed(path.relative_to(root).parts[:-1])]
    return next((folders.PART_OF[name.lower()] for name in names if name.lower() in folders.PART_OF), "")


def _joined(parts: Sequence[Rows]) -> Rows:
    return Rows(
        [image for part in parts for image in part.images], [v for part in parts for v in part.labels]
    )


def _on_file(path: Path, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call a function with an open Parquet file; a DataError says what is wrong with the file."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            return function(path, file, *arguments, **options)
    except (pyarrow.ArrowException, OSError) as error:
        reason = next(iter(str(error).splitlines()), "")
        raise DataError(f"{path}: not a readable Parquet file, or damaged ({reason})") from error


def _columns(path: Path) -> list[Column]:
    return _on_file(path, lambda _, file: [*_described(file.schema_arrow)])


def _described(schema: Any) -> Iterator[Column]:
    """Describe the columns of a schema of pyarrow."""
    from pyarrow import types

    features = _features(schema.metadata or {})
    for field in schema:
        feature = features.get(field.name) or {}
        named = feature.get("_type") == "ClassLabel"
        if is_binary(field.type) or (types.is_struct(field.type) and _has_bytes(field.type)):
            yield Column(field.name, "image")
        elif types.is_integer(field.type) and named:
            yield Column(field.name, "label", tuple(map(str, feature.get("names") or ())))
        elif (types.is_integer(field.type) or _is_text(field.type)) and field.name.lower() in LABELS:
            yield Column(field.name, "label")
        else:
            yield Column(field.name, "other")


def _features(metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
    """Return what the hub's library says of the columns, by name; {} if it did not write the file."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return {k: v for k, v in features.items() if isinstance(v, dict)} if isinstance(features, dict) else {}


def is_binary(kind: Any) -> bool:
    """Whether a type of pyarrow is bytes of any length."""
    from pyarrow import types

    return types.is_binary(kind) or types.is_large_binary(kind)


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_string(kind) or types.is_large_string(kind)


def _has_bytes(struct: Any) -> bool:
    return any(field.name == "bytes" and is_binary(field.type) for field in struct)


def _has_paths(struct: Any) -> bool:
    return any(field.name == "path" and _is_text(field.type) for field in struct)


def _image_bytes(path: Path, file: Any, image: Column) -> int:
    """Return the size of a file's images in memory, as its footer states it."""
    del path
    groups = (file.metadata.row_group(i) for i in range(file.metadata.num_row_groups))
    chunks = (group.column(j) for group in groups for j in range(group.num_columns))
    names = (image.name, f"{image.name}.bytes")
    return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in names)


def _rows(path: Path, file: Any, image: Column, label: Column | None, *, with_paths: bool = False) -> Rows:
    import pyarrow.compute
    import pyarrow.types

    compute: Any = pyarrow.compute  # whose functions are made when it is imported
    names = file.schema_arrow.names
    if missing := [column.name for column in (image, label) if column and column.name not in names]:
        raise DataError(f"{path}: lacks the column {missing[0]}, which other files have")
    kind = file.schema_arrow.field(image.name).type
    is_struct = pyarrow.types.is_struct(kind)
    with_paths = with_paths and is_struct and _has_paths(kind)
    wanted = [f"{image.name}.bytes" if is_struct else image.name, *([label.name] if label else [])]
    wanted += [f"{image.name}.path"] if with_paths else []
    images: list[Stored] = []
    labels: list[Any] = []
    paths: list[str | None] = []
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, columns=wanted)
        labels += table.column(label.name).to_pylist() if label else ()
        for chunk in table.column(image.name).chunks:
            content = compute.struct_field(chunk, "bytes") if is_struct else chunk
            paths += compute.struct_field(chunk, "path").to_pylist() if with_paths else ()
            start = len(images)
            if content.null_count:
                row = start + content.is_null().to_pylist().index(True)
                raise DataError(f"{path}: row {row} has no bytes of an image; write the images into the file")
            check_size(f"an image of {path}", compute.max(compute.binary_length(content)).as_py() or 0)
            images += [
                Stored(f"{path} row {start + i}", partial(_encoded, content, i)) for i in range(len(content))
            ]
    return Rows(images, labels, paths)


def _encoded(content: Any, i: int) -> bytes:
    return content[i].as_py()
