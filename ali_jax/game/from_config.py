"""From a config to a game: load the data, build the parts, check that they fit.

Nothing here writes files.
"""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ali_jax import config as configs
from ali_jax import data, networks, train
from ali_jax import evaluate as evaluators
from ali_jax.config import Config
from ali_jax.game import compile, parts, population
from ali_jax.game.game import Game, abstract_state

INIT_ROWS = 500  # training rows that the networks are initialised from, as in the authors' code


def check_names(config: Config) -> None:
    """Raise a ValueError for the first loss or evaluator that does not exist."""
    parts.make_loss(config)
    for name in config.evaluators:
        evaluators.named(name)


def prepare(
    config: Config,
    dataset: data.Dataset | None = None,
    *,
    check: Callable[[data.Dataset], object] = lambda _: None,
    trained: bool = False,
) -> Game:
    """Load the data, make the parts of the game, and check that they fit together; nothing is written.

    Args:
      config: describes the game.
      dataset: used instead of the one that the config names.
      check: called with the data before the networks are built; it may raise a ValueError to refuse them.
      trained: whether the game was trained already and will only be used: on one device, and known to fit.

    Raises:
      ValueError: a value is not allowed, or the data are missing or do not fit. The message says which.
    """
    configs.validate(config)
    population.validate(config)
    check_names(config)
    members = population.members(config) if population.size(config) else [config]
    first = load_data(members[0]) if dataset is None else dataset
    check(first)
    devices = jax.devices()[:1] if trained else jax.devices()
    if not population.size(config):
        return _prepare_one(config, first, devices, checked=trained)
    drawn = dataset is None and data.depends_on_seed(config.dataset.name)
    device = jax.devices()[:1]  # a member's batch is not split
    if not trained:
        _prepare_one(population.at_most(config), first, device)  # the checks hold for all members
    games = [
        _prepare_one(member, load_data(member) if drawn and k else first, device, checked=True)
        for k, member in enumerate(members)
    ]
    mesh = make_mesh(len(games), devices, "members")
    return games[0]._replace(config=config, mesh=mesh, members=tuple(games))


def _prepare_one(
    config: Config, dataset: data.Dataset, devices: Sequence[Any], *, checked: bool = False
) -> Game:
    """Prepare a single run on some devices; `checked` means that its parts are known to fit together."""
    mesh = make_mesh(config.batch_size, devices)
    axis_name = compile.AXIS if config.parallel == "pmap" else None
    platform = compile.platform_of(mesh)
    ali = networks.build(config, dataset.train.shape, platform=platform, axis_name=axis_name)
    for name in config.evaluators:
        evaluators.check_applicable(name, dataset, ali, config.evaluation.to_dict())
    _check_labels(config, dataset)
    _check_images(config, dataset)
    tx = parts.make_optimizer(config, platform=platform)
    game = Game(
        config,
        dataset,
        mesh,
        ali,
        tx,
        parts.make_loss(config, axis_name=axis_name),
        parts.make_penalties(config, axis_name=axis_name),
        data.scaled(dataset.train.rows(np.arange(min(INIT_ROWS, len(dataset.train)))), dataset.divisor),
        jax.jit(parts.make_init(config, ali, tx)),
        parts.make_augment(config),
        _labelled_rows(config, dataset),
    )
    _check_conditions(config, dataset)
    _check_range(config, dataset, np.asarray(game.first_rows.x))
    if not checked:
        _check_step(game, axis_name)
    return game


def _check_step(game: Game, axis_name: str | None) -> None:
    """Trace one step: parts that do not fit together raise here, before anything is written."""
    config = game.config
    step = functools.partial(
        train.train_step,
        game.ali,
        game.tx,
        game.loss,
        game.penalties,
        gradient=config.gradient,
        augment=game.augment,
        axis_name=axis_name,
    )
    shape: tuple[int, ...] = (config.batch_size,)
    if axis_name is not None:
        step = jax.vmap(step, in_axes=(None, 0), axis_name=axis_name)
        shape = (game.mesh.size, config.batch_size // game.mesh.size)
    batch = jax.tree.map(lambda v: jax.ShapeDtypeStruct((*shape, *v.shape[1:]), v.dtype), game.first_rows)
    jax.eval_shape(step, abstract_state(game), batch)


def _labelled_rows(config: Config, dataset: data.Dataset) -> np.ndarray | None:
    if not config.dataset.labelled:
        return None
    label = np.asarray(dataset.train.rows(np.arange(len(dataset.train))).label)
    return data.class_balanced(label, dataset.num_classes, config.dataset.labelled, config.seed)


def _check_conditions(config: Config, dataset: data.Dataset) -> None:
    size, attributes = config.condition.size, len(dataset.attributes)
    if config.dataset.conditional and size and size != attributes:
        raise ValueError(
            f"config.condition.size is {size}, but {dataset.name} has {attributes} conditions: set it to "
            "that."
        )


def _check_range(config: Config, dataset: data.Dataset, x: np.ndarray) -> None:
    """Refuse data that no network can learn: gaps, and images that a sigmoid cannot make."""
    if not np.isfinite(x).all():
        raise ValueError(f"{dataset.name} has values that are not finite among its first rows: remove them.")
    if x.ndim == 4 and config.decoder.output == "sigmoid" and (x.min() < 0 or x.max() > 1):
        raise ValueError(
            f"The images of {dataset.name} run from {x.min():.3g} to {x.max():.3g}, after the division by "
            f"{dataset.divisor:g} (Dataset.divisor); the networks take [0, 1]. Give the divisor that makes "
            "white 1, or scale floats to [0, 1]."
        )


def _check_labels(config: Config, dataset: data.Dataset) -> None:
    classes = config.discriminator.num_classes
    if config.dataset.labelled and dataset.num_classes != classes:
        raise ValueError(
            f"config.discriminator.num_classes is {classes}; for the loss {config.loss!r} it must be the "
            f"number of classes of the data, {dataset.num_classes}."
        )
    if config.dataset.labelled and config.discriminator.packing > 1:
        raise ValueError(
            f"config.discriminator.packing is {config.discriminator.packing}; with labelled rows, each of a "
            "class of its own, it must be 1."
        )
    if classes > 1 and config.loss != "semi_supervised":
        raise ValueError(
            f"config.discriminator.num_classes is {classes}; with the loss {config.loss!r} it must be 1."
        )


def _check_images(config: Config, dataset: data.Dataset) -> None:
    """Refuse keys that change images where the data are vectors."""
    on = ["dataset.flip"] * config.dataset.flip + [f"augment.{name}" for name in configs.augmented(config)]
    if on and len(dataset.train.shape) != 3:
        raise ValueError(
            f"config.{on[0]} is {configs.flat(config)[on[0]]}, and it changes images; {dataset.name} has "
            "vectors: leave it at its default."
        )


def load_data(config: Config) -> data.Dataset:
    """Load the data set that a config names; a DataError says what is wrong with it."""
    source = config.dataset
    return data.load(
        source.name,
        path=source.path,
        directory=source.directory,
        train_split=source.train_split,
        test_split=source.test_split,
        seed=config.seed,
        scale=source.scale,
        conditional=source.conditional,
        stack=source.stack,
        background=source.background,
        resize=source.resize,
        fit=source.fit,
    )


def blank_data(config: Config, facts: Mapping[str, Any] | None = None) -> data.Dataset:
    """Make data of the config's shape that are all 0, where a model is needed but not its data.

    `facts` are those that the run recorded, if it did (`data.facts.describe`): units, classes, attributes.
    """
    facts, shape = facts or {}, tuple(config.dataset.shape)
    rows = max(2, config.discriminator.get("packing", 1), config.dataset.labelled)
    dtype = np.dtype(facts.get("dtype", "uint8" if len(shape) == 3 else "float32"))
    classes = facts.get("num_classes", config.discriminator.num_classes if config.dataset.labelled else 0)
    attributes = tuple(facts.get("attributes", ()))
    y = np.zeros((rows, len(attributes)), np.float32) if config.dataset.conditional else None
    label = np.arange(rows, dtype=np.int32) % classes if classes else None
    split = data.ArraySplit(np.zeros((rows, *shape), dtype), y, label, classes)
    divisor = facts.get("divisor", 255.0 if dtype == np.uint8 else 1.0)
    names = tuple(facts.get("class_names", ()))
    return data.Dataset(
        facts.get("name", config.dataset.name),
        split,
        split,
        divisor,
        classes,
        attributes=attributes,
        class_names=names,
    )


def make_mesh(batch_size: int, devices: Sequence[Any], what: str = "images a step") -> Mesh:
    """Make the mesh, with the axis "data", of as many devices as divide the batch or the population.

    Raises:
      ValueError: the devices belong to several processes and do not divide the batch.
    """
    count = len(devices)
    if batch_size % count and len({d.process_index for d in devices}) > 1:
        below, above = batch_size // count * count, (batch_size // count + 1) * count
        sizes = f"{below} or {above}" if below else f"{above}"
        raise ValueError(
            f"config.batch_size is {batch_size}, not a multiple of the {count} devices: set it to {sizes}."
        )
    used = max(n for n in range(1, count + 1) if batch_size % n == 0)
    if used < count:
        print(f"{batch_size} {what} over {count} devices: {used} are used.", file=sys.stderr)
    return Mesh(np.asarray(devices[:used]), (compile.AXIS,))
