"""The modes that take `--inputs`: a trained model used on images that are not its own data.

Each mode computes with `ali_jax.tools.trained.Model` and writes one file, or a folder of single files.
"""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ali_jax import data, game, model
from ali_jax.config import Config
from ali_jax.data import inputs, sizes, survey
from ali_jax.evaluate import figures
from ali_jax.evaluate.rows import Rows, test_rows, train_rows
from ali_jax.metrics import conformal, directions
from ali_jax.metrics.neighbors import nearest_few
from ali_jax.names import did_you_mean
from ali_jax.program.command import Options, UsageError
from ali_jax.program.tables import write_table
from ali_jax.records import known_data
from ali_jax.records.workdir import RunError, absolute, write_text
from ali_jax.tools.anomaly import anomaly_scores
from ali_jax.tools.trained import Model, load

ROWS_AT_ONCE = 2_000  # of uint8, made floats
NEIGHBOURS = 5
CALIBRATION_ROWS = 1_000  # of test, at most
SCORES_PRINTED = 20
TABLES = ("encode", "score")  # modes that write no images
MOVING = (".gif", ".webp")
STEPS, FRAMES = 11, 24  # of a line, in a picture and in one that moves
MILLISECONDS = 60  # that a frame is shown


class Given(NamedTuple):
    """The model of a run, and the rows that it is given."""

    config: Config
    options: Options
    trained: Model
    inputs: inputs.Inputs
    x: np.ndarray  # [N, *X] floats, as the methods of the model take them
    y: Any  # [N] names of conditions, or None


def run(config: Config, options: Options) -> int:
    """Run a mode on the images at `options.inputs`; return the exit status."""
    assert options.inputs is not None
    _check_is_apart(options, options.inputs)
    trained = load(options.workdir)
    found = _read(options.inputs, config, trained, options)
    given = Given(config, options, trained, found, _units(trained, found), _conditions(trained, found))
    for path in _MODES[options.mode](given):
        print(path)
    return 0


def _check_is_apart(options: Options, given: Path) -> None:
    """Raise a UsageError if single images would be written among those that are read."""
    out = options.out
    if out is None or options.mode in TABLES or not given.is_dir() or (out.suffix and not out.is_dir()):
        return
    if given.resolve() in (out.resolve(), *out.resolve().parents):
        raise UsageError(
            f"--out {out} lies in {given}, whose images are read, so that the next command would read what "
            "this one writes: give another folder."
        )


def _read(path: Path, config: Config, trained: Model, options: Options) -> inputs.Inputs:
    """Read the images at a path, and say what was done to them."""
    rule = inputs.Rule(trained.shape, config.dataset.fit, trained.background, trained.scale)
    classes = trained.conditions or trained.classes
    if not path.exists() and not inputs.is_on_hub(path):
        raise UsageError(f"{path}: there is no such file or folder.")
    try:
        found = inputs.read(path, rule, classes=classes, skip_broken=options.skip_broken)
    except data.DataError as error:
        raise RunError(str(error)) from None
    print(found.note, file=sys.stderr)
    for message in found.broken:
        print(f"Skipped: {message}", file=sys.stderr)
    return found


def _units(trained: Model, found: inputs.Inputs) -> np.ndarray:
    if not found.are_files:
        return _unscaled(trained, trained.rows(found.x))
    parts = np.array_split(found.x, -(-len(found.x) // ROWS_AT_ONCE))
    return np.concatenate([part.astype(np.float32) / np.float32(255) for part in parts])


def _unscaled(trained: Model, x: np.ndarray) -> np.ndarray:
    """Return rows that the networks take in the units of the data: the model's methods scale vectors."""
    return x if len(trained.shape) == 3 else x / np.float32(trained.scale)


def _conditions(trained: Model, found: inputs.Inputs) -> list[str] | None:
    """Return the labels of the rows as conditions, where the model is given some."""
    if not trained.conditions:
        return None
    if unknown := sorted(set(found.labels) - set(trained.conditions)):
        raise UsageError(
            f"This model is given the class of an image, and {unknown[0] or 'no class'!r} is none of "
            f"{survey.listed(trained.conditions)}: put the images into folders with these names."
        )
    return list(found.labels)


def _encode(given: Given) -> Iterator[Path]:
    trained = given.trained
    columns: dict[str, Any] = {"name": np.array(given.inputs.names), "label": np.array(given.inputs.labels)}
    if model.has_gaussian_encoder(trained.ali):
        columns["mean"], columns["sigma"] = trained.posterior(given.x, given.y)
    else:
        columns["mean"] = trained.encode(given.x, given.y)
    for path in _tables(given, "codes", (".npz", ".csv")):
        write_table(path, columns)
        yield path


def _score(given: Given) -> Iterator[Path]:
    dataset = _own_data(given)
    held_out = _spread(test_rows(dataset), CALIBRATION_ROWS)
    x_held_out = _stored(given, dataset, held_out)
    normal = anomaly_scores(given.trained, x_held_out, _own_conditions(given, held_out))
    scores = anomaly_scores(given.trained, given.x, given.y)
    p = conformal.p_values(normal, scores)
    columns = {"name": given.inputs.names, "label": given.inputs.labels, "score": scores, "p_value": p}
    for path in _tables(given, "scores", (".csv",)):
        write_table(path, {name: np.asarray(column) for name, column in columns.items()})
        yield path
    print(f"The p-values compare with {len(normal)} test rows of {dataset.name}.", file=sys.stderr)
    for i in np.argsort(p, kind="stable")[:SCORES_PRINTED]:
        print(f"p = {p[i]:.4f}  score {scores[i]:.4g}  {given.inputs.names[i]}", file=sys.stderr)


def _reconstruct(given: Given) -> Iterator[Path]:
    _need_images(given)
    x_hat = given.trained.reconstruct(given.x, given.y)
    if folder := _folder(given.options.out):
        for name, image in zip(_file_names(given.inputs.names), x_hat, strict=True):
            yield _save_single(folder / f"{name}.png", image)
        return
    count = len(given.x)
    columns = _columns(count)
    pairs = figures.reconstruction_grid(given.x, x_hat, -(-count // columns), columns)
    yield _save(given, "reconstruct", pairs)


def _interpolate(given: Given) -> Iterator[Path]:
    _need_images(given)
    x, count = given.x, len(given.x)
    if count < 2 or (given.options.pairs and count % 2):
        raise UsageError(
            f"{given.options.inputs} has {sizes.images_text(count)}: a line takes two, and --pairs an even "
            "number."
        )
    ends = (slice(0, None, 2), slice(1, None, 2)) if given.options.pairs else (slice(0, 1), slice(-1, None))
    moves = _moves(given.options.out)
    y, y_end = (None if given.y is None else given.y[end] for end in ends)
    path = given.trained.interpolate(x[ends[0]], x[ends[1]], FRAMES if moves else STEPS, y, y_end)
    if moves:
        yield _save_moving(given.options.out, path)
    elif folder := _folder(given.options.out):
        for row, name in zip(path, _file_names(given.inputs.names)[ends[0]], strict=True):
            for i, image in enumerate(row):
                yield _save_single(folder / f"{name}_{i:02d}.png", image)
    else:
        yield _save(given, "interpolate", figures.interpolation_grid(x[ends[0]], path, x[ends[1]]))


def _edit(given: Given) -> Iterator[Path]:
    _need_images(given)
    name, vector = direction(given.config, given.options, given.trained)
    amounts = np.array(given.options.amounts, np.float32)
    if moves := _moves(given.options.out):
        amounts = _in_frames(amounts)
    z = given.trained.encode(given.x, given.y)
    moved = z[:, None] + amounts[None, :, None] * vector.astype(np.float32)[None, None]
    y = None if given.y is None else np.repeat(given.y, len(amounts)).tolist()
    images = given.trained.decode(moved.reshape(-1, z.shape[1]), y)
    images = images.reshape(len(z), len(amounts), *given.trained.shape)
    if moves:
        yield _save_moving(given.options.out, images)
    elif folder := _folder(given.options.out):
        for row, image_name in zip(images, _file_names(given.inputs.names), strict=True):
            for amount, image in zip(amounts, row, strict=True):
                yield _save_single(folder / f"{image_name}_{amount:+g}.png", image)
    else:
        shown = np.concatenate([given.x[:, None], images], axis=1)
        grid = figures.image_grid(shown.reshape(-1, *shown.shape[2:]), len(z), len(amounts) + 1)
        yield _save(given, f"edit_{_file_name(name)}", grid)


def _in_frames(amounts: np.ndarray) -> np.ndarray:
    """Return the amounts [FRAMES] that lead through all amounts [n] in their order."""
    at = np.linspace(0, len(amounts) - 1, FRAMES)
    return np.interp(at, np.arange(len(amounts)), amounts).astype(np.float32)


def _nearest(given: Given) -> Iterator[Path]:
    """Draw each input, the training images with the nearest codes, and those with the nearest pixels."""
    as_table = _is_table(given)
    dataset = _own_data(given)
    train = train_rows(dataset)
    x_train = _stored(given, dataset, train)
    few = min(NEIGHBOURS, len(x_train))
    own = _own_conditions(given, train)
    codes = [given.trained.encode(rows, y) for rows, y in ((given.x, given.y), (x_train, own))]
    pixels = [rows.reshape(len(rows), -1) for rows in (given.x, x_train)]
    by_code, by_pixel = (nearest_few(a, b, few) for a, b in (codes, pixels))
    if as_table:
        columns = {
            "name": np.repeat(given.inputs.names, few),
            "rank": np.tile(np.arange(1, few + 1), len(given.x)),
            **{
                f"{what}_{column}": value.ravel()
                for what, (index, distance) in (("code", by_code), ("pixel", by_pixel))
                for column, value in (("row", index), ("label", train.label[index]), ("distance", distance))
            },
        }
        for path in _tables(given, "nearest", (".csv",)):
            write_table(path, columns)
            yield path
        return
    white = np.ones((len(given.x), 1, *given.trained.shape), np.float32)
    shown = [given.x[:, None], white, x_train[by_code[0]], white, x_train[by_pixel[0]]]
    rows = np.concatenate(shown, axis=1)
    grid = figures.image_grid(rows.reshape(-1, *given.trained.shape), len(given.x), rows.shape[1])
    yield _save(given, "nearest", grid)


def _is_table(given: Given) -> bool:
    """Whether neighbours are written as a table; raise a UsageError for a picture of vectors."""
    out = given.options.out
    if out is not None and out.suffix.lower() == ".csv":
        return True
    if out is not None and not _folder(out):
        _need_images(given)
    return len(given.trained.shape) != 3


_MODES = {
    "encode": _encode,
    "score": _score,
    "reconstruct": _reconstruct,
    "interpolate": _interpolate,
    "edit": _edit,
    "nearest": _nearest,
}


def direction(config: Config, options: Options, trained: Model) -> tuple[str, np.ndarray]:
    """Return the name and the vector [Z] of the direction that the flags ask for.

    One between two folders is computed anew each time they are given, and written to `directions.json` in the
    folder of the run, so that its name alone asks for it later. One of the data is read from there if that
    has it for the same step and data.

    Raises:
      UsageError: there is no such direction, its name is taken, or its ends are the same.
    """
    path = options.workdir / "directions.json"
    name = options.direction or f"{options.start} to {options.to}"
    kept = _kept_directions(path, trained.step)
    source = [absolute(str(end)) for end in (options.start, options.to) if end is not None]
    is_of_folders = bool(source)
    if is_of_folders:
        _check_is_free(name, trained)
    else:
        dataset = config.dataset
        source = [dataset.name, absolute(dataset.path), dataset.train_split]
        if name in kept and (kept[name]["source"] == source or len(kept[name]["source"]) == 2):
            return name, np.array(kept[name]["vector"])
    vector = (
        _between_folders(config, options, trained)
        if is_of_folders
        else _of_data(config, name, trained, options.workdir)
    )
    if not np.linalg.norm(vector) > 0:
        raise UsageError(f"The direction {name!r} leads nowhere: its two ends have the same mean code.")
    kept[name] = {"source": source, "vector": vector.tolist()}
    write_text(path, json.dumps({"step": trained.step, "directions": kept}) + "\n")
    return name, vector


def _check_is_free(name: str, trained: Model) -> None:
    """Raise a UsageError if a direction between folders has the name of one of the data."""
    of_data = {*trained.classes, *trained.conditions}
    if name in of_data or re.fullmatch(r"pc\d+", name) or set(name.split(":")) <= of_data:
        raise UsageError(
            f"--direction {name} is a direction of the run's own data: give the one between --from and --to "
            "another name, or leave --direction out."
        )


def _kept_directions(path: Path, step: int) -> dict[str, Any]:
    """Return the directions that were computed for the model of this step."""
    try:
        content = json.loads(path.read_text())
        return dict(content["directions"]) if content["step"] == step else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _between_folders(config: Config, options: Options, trained: Model) -> np.ndarray:
    codes = []
    for folder in (options.start, options.to):
        assert folder is not None
        found = _read(folder, config, trained, options)
        codes.append(trained.encode(_units(trained, found), _conditions(trained, found)))
    is_end = np.repeat([False, True], [len(z) for z in codes])
    return directions.class_direction(np.concatenate(codes), is_end, ~is_end)


def _of_data(config: Config, name: str, trained: Model, workdir: Path) -> np.ndarray:
    """Compute a direction from the mean codes of train: of a class, of an attribute, or a principal axis."""
    dataset, names = _data_with_names(config, workdir)
    train = train_rows(dataset)
    y = train.y if trained.conditions else None
    z = trained.encode(_unscaled(trained, np.asarray(data.unit(train.x, dataset.divisor))), y)
    if axis := re.fullmatch(r"pc(\d+)", name):
        return directions.principal_axis(z, int(axis[1]))
    if dataset.attributes and not dataset.num_classes:
        if name in names:
            return directions.attribute_directions(z, np.asarray(train.y))[names.index(name)]
    else:
        start, _, end = name.rpartition(":")
        if end in names and (not start or start in names):
            label = train.label
            at_start = label == names.index(start) if start else (label >= 0) & (label != names.index(end))
            return directions.class_direction(z, label == names.index(end), at_start)
    raise UsageError(
        f"There is no direction {name!r}.{did_you_mean(name, names)} This run has "
        f"{survey.listed(names) or 'no classes'}; A:B leads from class A to class B; pc1, pc2, ... are the "
        "principal axes; --from DIR --to DIR makes a direction of your images."
    )


def _data_with_names(config: Config, workdir: Path) -> tuple[data.Dataset, list[str]]:
    """Load the data of a run with their classes or, where they have none, with their attributes."""
    dataset = game.load_data(config)
    _note_other_data(workdir, config, dataset)
    if not dataset.num_classes and not dataset.attributes:
        config = config.copy_and_resolve_references()
        with config.unlocked():
            config.dataset.conditional = True
        try:
            dataset = game.load_data(config)
        except data.DataError:  # no attributes either
            return dataset, []
    classes = dataset.class_names or [str(k) for k in range(dataset.num_classes)]
    return dataset, list(classes or dataset.attributes)


def _own_data(given: Given) -> data.Dataset:
    """Load the data of the run; raise a UsageError if they are no longer such as the model takes."""
    dataset = game.load_data(given.config)
    shape, wanted = list(dataset.train.shape), list(given.trained.shape)
    if shape != wanted:
        raise UsageError(
            f"--mode {given.options.mode} reads the data of the run, and those of config.dataset.path "
            f"{given.config.dataset.path!r} are {shape}, while this model takes {wanted}: give the data that "
            "it was trained on."
        )
    _note_other_data(given.options.workdir, given.config, dataset)
    return dataset


def _note_other_data(workdir: Path, config: Config, dataset: data.Dataset) -> None:
    """Say how data differ from those of the run; raise a ValueError if its model does not take them."""
    if changes := known_data.check_used(workdir, config, dataset):
        print(f"The data are not those that the run was trained on: {'; '.join(changes)}.", file=sys.stderr)


def _own_conditions(given: Given, rows: Rows) -> np.ndarray | None:
    return rows.y if given.trained.conditions else None


def _stored(given: Given, dataset: data.Dataset, rows: Rows) -> np.ndarray:
    return _unscaled(given.trained, np.asarray(data.unit(rows.x, dataset.divisor)))


def _spread(rows: Rows, most: int) -> Rows:
    number = min(len(rows.x), most)
    chosen = np.arange(number) * len(rows.x) // number
    return jax.tree.map(lambda array: array[chosen], rows)


def _need_images(given: Given) -> None:
    if len(given.trained.shape) != 3:
        raise UsageError(f"--mode {given.options.mode} draws images, and this model makes vectors.")


def _columns(count: int) -> int:
    """Return in how many columns images form a picture with few empty cells, about as wide as high."""
    most = max(1, min(count, int(np.ceil(np.sqrt(count)))))
    return -(-count // -(-count // most))


def _folder(out: Path | None) -> Path | None:
    """Return the folder that --out names, made if it is new; None for a file."""
    if out is None or (out.suffix and not out.is_dir()):
        return None
    out.mkdir(exist_ok=True)
    return out


def _moves(out: Path | None) -> bool:
    return out is not None and not out.is_dir() and out.suffix.lower() in MOVING


def _tables(given: Given, stem: str, suffixes: tuple[str, ...]) -> list[Path]:
    """Return the files to write: the one that --out names, or those with these suffixes in its folder."""
    out = given.options.out
    if out is not None and not _folder(out):
        return [out]
    return [(out or given.options.workdir) / f"{stem}{suffix}" for suffix in suffixes]


def _save(given: Given, stem: str, image: np.ndarray) -> Path:
    path = _picture_path(given, stem)
    figures.save_picture(path, image)
    return path


def _picture_path(given: Given, stem: str) -> Path:
    out = given.options.out
    if out is None:
        folder = given.options.workdir / "images"
        folder.mkdir(exist_ok=True)
        return folder / f"{stem}_inputs_{given.trained.step}.png"
    folder = _folder(out)
    return out if folder is None else folder / f"{stem}.png"


def _save_single(path: Path, image: np.ndarray) -> Path:
    """Save one image in its own size."""
    figures.save_single(path, image)
    return path


def _file_names(names: Sequence[str]) -> list[str]:
    """Return a name of a file for each row, all different: its own, made short or numbered.

    Names lose their suffixes if they then still differ; rows are numbered if names differ only in what a
    file's name cannot have, or in upper and lower case.
    """
    short = [_file_name(re.sub(r"\.\w+$", "", name)) for name in names]
    whole = [_file_name(name) for name in names]
    for made in (short, whole):
        if len({name.casefold() for name in made}) == len(names):
            return made
    width = len(str(len(names)))
    return [f"{i:0{width}d}_{name}" for i, name in enumerate(whole, 1)]


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", name).strip("_") or "image"


def _save_moving(out: Path | None, images: np.ndarray) -> Path:
    """Save [N, frames, *X] as a picture that moves there and back, its N images side by side."""
    assert out is not None
    columns = _columns(len(images))
    frames = [
        figures.image_grid(images[:, i], -(-len(images) // columns), columns) for i in range(images.shape[1])
    ]
    figures.save_moving(out, [*frames, *frames[-2:0:-1]], MILLISECONDS)
    return out
