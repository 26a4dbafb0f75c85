"""The game that a config describes: its data, devices, networks and losses, made and checked together.

Nothing here writes files.
"""

import contextlib
import functools
import inspect
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ali_jax import config as configs
from ali_jax import data, networks, train
from ali_jax import evaluate as evaluators
from ali_jax.config import Config
from ali_jax.game import population
from ali_jax.records import checkpoint
from ali_jax.records.workdir import read_config
from ali_jax.types import ALI, Array, Augment, Batch, Loss, Penalty, PyTree, Report, TrainState, Variables

INIT_ROWS = 500  # training rows that the networks are initialised from, as in the authors' code


class Game(NamedTuple):
    """All that a config describes."""

    config: Config
    dataset: data.Dataset
    mesh: Mesh
    ali: ALI
    tx: optax.GradientTransformation
    loss: Loss
    penalties: tuple[Penalty, ...]
    first_rows: Batch  # what the networks are initialised from
    augment: Augment | None = None  # what D sees instead of the pairs
    labelled: np.ndarray | None = None  # rows of train whose labels are kept, where only some are
    members: tuple["Game", ...] = ()  # of a population, whose own parts are those of the first

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of what is whole on every device: data, and the state of a single run."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def state_sharding(self) -> Any:
        """The shardings of the state, as a prefix of it: a population's members are divided among devices."""
        split = NamedSharding(self.mesh, PartitionSpec(*(train.AXIS,) * bool(self.members)))
        return train.MEMBERS._replace(
            step=self.replicated, key=split, variables=split, ema=split, opt_state=split
        )


def check_names(config: Config) -> None:
    """Raise a ValueError for the first loss or evaluator that does not exist."""
    train.make_loss(config)
    for name in config.evaluators:
        evaluators.named(name)


def prepare(config: Config, dataset: data.Dataset | None = None) -> Game:
    """Load the data, make the networks and check that the parts fit together; nothing is written.

    Args:
      config: what is described.
      dataset: instead of the one that the config names.

    Raises:
      ValueError: a value that is not allowed, data that are absent or do not fit; the message says which.
    """
    configs.validate(config)
    population.validate(config)
    check_names(config)
    if config.init_from:
        read_config(pathlib.Path(config.init_from).expanduser())
    if not population.size(config):
        return _prepare_one(config, load_data(config) if dataset is None else dataset, jax.devices())
    drawn = dataset is None and data.depends_on_seed(config.dataset.name)
    members = population.members(config)
    first = load_data(members[0]) if dataset is None else dataset
    device = jax.devices()[:1]  # of a member: its batch is whole
    _prepare_one(population.at_most(config), first, device)  # for its checks
    games = [
        _prepare_one(member, load_data(member) if drawn and k else first, device, checked=True)
        for k, member in enumerate(members)
    ]
    mesh = make_mesh(len(games), jax.devices(), "members")
    return games[0]._replace(config=config, mesh=mesh, members=tuple(games))


def _prepare_one(
    config: Config, dataset: data.Dataset, devices: Sequence[Any], *, checked: bool = False
) -> Game:
    """Prepare a single run on devices, `checked` if another one of the same networks was."""
    mesh = make_mesh(config.batch_size, devices)
    axis_name = train.AXIS if config.parallel == "pmap" else None
    platform = mesh.devices.flat[0].platform
    build = functools.partial(networks.build, config, x_shape=dataset.train.shape, platform=platform)
    ali = build(axis_name=axis_name)
    for name in config.evaluators:
        evaluators.check_applicable(name, dataset, ali)
    _check_labels(config, dataset)
    game = Game(
        config,
        dataset,
        mesh,
        ali,
        train.make_optimizer(config, platform=platform),
        train.make_loss(config, axis_name=axis_name),
        train.make_penalties(config),
        data.scaled(dataset.train.rows(np.arange(min(INIT_ROWS, len(dataset.train)))), dataset.divisor),
        train.make_augment(config),
        _labelled_rows(config, dataset),
    )
    if not checked:
        _check_conditions(config, dataset)
        loss = train.make_loss(config)  # outside the named axis, as the networks
        step = functools.partial(
            train.train_step,
            build(),
            game.tx,
            loss,
            game.penalties,
            gradient=config.gradient,
            augment=game.augment,
        )
        batch = jax.tree.map(
            lambda v: jax.ShapeDtypeStruct((config.batch_size, *v.shape[1:]), v.dtype), game.first_rows
        )
        jax.eval_shape(step, abstract_state(game), batch)
    return game


def _labelled_rows(config: Config, dataset: data.Dataset) -> np.ndarray | None:
    if not config.dataset.labelled:
        return None
    label = np.asarray(dataset.train.rows(np.arange(len(dataset.train))).label)
    return data.class_balanced(label, dataset.num_classes, config.dataset.labelled, config.seed)


def _check_conditions(config: Config, dataset: data.Dataset) -> None:
    size, found = config.condition.size, len(dataset.attributes)
    if config.dataset.conditional and size and size != found:
        raise ValueError(
            f"config.condition.size is {size}, but {dataset.name} has {found} conditions: set it to that."
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
    )


def blank_data(config: Config) -> data.Dataset:
    """Make black images of the config's shape, for what needs a model but no data."""
    split = data.ArraySplit(np.zeros((2, *config.dataset.shape), np.uint8))
    return data.Dataset(config.dataset.name, split, split, 255.0)


def make_mesh(batch_size: int, devices: Sequence[Any], what: str = "images a step") -> Mesh:
    """Make the mesh with the axis "data": of as many devices as divide the batch, or the population.

    Raises:
      ValueError: the devices are those of several processes, and do not divide the batch.
    """
    count = len(devices)
    if batch_size % count and len({d.process_index for d in devices}) > 1:
        below, above = batch_size // count * count, (batch_size // count + 1) * count
        sizes = f"{below} or {above}" if below else f"{above}"
        raise ValueError(
            f"config.batch_size is {batch_size}, no multiple of the {count} devices: set it to {sizes}."
        )
    used = max(n for n in range(1, count + 1) if batch_size % n == 0)
    if used < count:
        print(f"{batch_size} {what} over {count} devices: {used} are used.", file=sys.stderr)
    return Mesh(np.asarray(devices[:used]), (train.AXIS,))


def initial_state(game: Game) -> TrainState:
    """Make the state before the first step, on all devices of the mesh."""
    first: dict[ALI, Any] = {}  # compiled, by the networks that members share
    states = []
    for member in game.members or (game,):
        init = first.setdefault(member.ali, jax.jit(functools.partial(_init, member)))
        states.append(init(jax.random.PRNGKey(member.config.seed), member.first_rows))
    state = states[0]
    if game.members:
        state = jax.tree.map(lambda *leaves: np.stack(leaves), *map(jax.device_get, states))
        state = state._replace(step=states[0].step)
    if game.config.init_from:
        state = _with_decoder_of(game, state)
    return jax.device_put(state, game.state_sharding)


def abstract_state(game: Game) -> TrainState:
    """Return the shapes, types and shardings of a state."""
    one = jax.eval_shape(functools.partial(_init, game), jax.random.PRNGKey(0), game.first_rows)
    axes = (len(game.members),) if game.members else ()
    _, *split = game.state_sharding

    def shaped(tree: PyTree, axes: tuple[int, ...], sharding: NamedSharding) -> PyTree:
        return jax.tree.map(lambda s: jax.ShapeDtypeStruct(axes + s.shape, s.dtype, sharding=sharding), tree)

    parts = (shaped(tree, axes, sharding) for tree, sharding in zip(one[1:], split, strict=True))
    return TrainState(shaped(one.step, (), game.replicated), *parts)


def member_of(state: TrainState, k: int) -> TrainState:
    """Return the state of one member of a population."""
    return jax.tree.map(lambda leaf: leaf[k], state._replace(step=None))._replace(step=state.step)


def make_feed(game: Game) -> data.Feed:
    """Make the feed of a run: of all rows, of all and of the labelled ones, or of every member."""
    if game.members:
        return _population_feed(game)
    if game.labelled is None:
        return _feed_of(game, game.dataset.train)
    return data.SemiSupervisedFeed(
        _feed_of(game, data.Relabelled(game.dataset.train, hidden=True)),
        _feed_of(game, data.Relabelled(game.dataset.train, game.labelled)),
    )


def _population_feed(game: Game) -> data.Feed:
    feeds: list[Any] = []
    for member in game.members:
        drawn = data.depends_on_seed(member.config.dataset.name)
        shared = feeds[0].data if feeds and not drawn else None
        feeds.append(_feed_of(member, member.dataset.train, game.replicated, shared))
    return data.PopulationFeed(feeds)


def _feed_of(
    game: Game, split: data.Split, sharding: NamedSharding | None = None, resident: Any = None
) -> data.Feed:
    """Make the feed of a split; of a population's member, with where its rows lie, or the rows themselves."""
    config = game.config
    spec = PartitionSpec(None, train.AXIS) if config.parallel == "mesh" else PartitionSpec()
    return data.make_feed(
        split,
        batch_size=config.batch_size,
        seed=config.seed,
        divisor=game.dataset.divisor,
        dequantize=config.dataset.dequantize,
        kind=config.dataset.feed if sharding is None else "device",
        device_bytes=config.dataset.device_bytes,
        sharding=sharding or game.replicated,
        batch_sharding=NamedSharding(game.mesh, spec) if sharding is None else None,
        resident=resident,
    )


def make_call(game: Game, feed: data.Feed, steps: int) -> Any:
    """Make the compiled `(state, data) -> (state, metrics)` of so many steps; see `train.make_train_step`."""
    config = game.config
    return train.make_train_step(
        game.ali,
        game.tx,
        game.loss,
        game.penalties,
        feed=feed,
        steps=steps,
        mesh=game.mesh,
        parallel=config.parallel,
        ema_decay=config.ema_decay,
        gradient=config.gradient,
        population=_population(game, feed) if game.members else None,
        augment=game.augment,
    )


def _population(game: Game, feed: Any) -> train.Population:
    config, platform = game.config, game.mesh.devices.flat[0].platform

    def make(values: dict[str, Array]) -> tuple[Any, Any]:
        member = configs.with_values(config, values)
        return train.make_optimizer(member, platform=platform), train.make_penalties(member)

    values = {key: jnp.asarray(numbers) for key, numbers in population.of_steps(config).items()}
    return train.Population(values, make, feed.axes)


def fit(game: Game) -> TrainState:
    """Train for all of `config.num_steps`, and return the last state on one device; nothing is written.

    What `loop.run` does with records, checkpoints and evaluations around it.

    Raises:
      ValueError: a loss stopped being a number.
    """
    config, state, step, calls = game.config, initial_state(game), 0, {}
    with contextlib.closing(make_feed(game)) as feed:
        while step < config.num_steps:
            count = min(config.steps_per_call, config.num_steps - step)
            if count not in calls:
                calls[count] = make_call(game, feed, count)
            state, metrics = calls[count](state, feed.load(step, count))
            if (np.asarray(metrics["finite_steps"]) < count).all():
                raise ValueError(f"The training diverged between steps {step} and {step + count}.")
            step += count
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), state)


def evaluate(game: Game, state: TrainState, name: str, *, raw_beside: bool = False) -> Report:
    """Apply an evaluator to a state: to the averaged parameters, where there are any.

    What it draws depends on the run's seed alone, so that evaluations can be compared. Of a population every
    member that has not diverged is evaluated; `population.spread` sums the numbers up, and the pictures are
    those of the first.

    Args:
      game, state: what is evaluated.
      name: of the evaluator.
      raw_beside: whether the numbers of the raw parameters stand beside the averaged ones', named `raw/`;
        controls, which are the same, do not.
    """
    if not game.members:
        return _evaluate_one(game, state, name, raw_beside)
    reports = []
    for k, member in enumerate(game.members):
        own = jax.device_get(member_of(state, k))
        finite = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(own.variables))
        reports.append(_evaluate_one(member, own, name, raw_beside) if finite else Report({}, {}))
    images = next((report.images for report in reports if report.images), {})
    return Report(population.spread([report.scalars for report in reports]), images)


def _evaluate_one(game: Game, state: TrainState, name: str, raw_beside: bool) -> Report:
    if state.ema is None:
        return _evaluate(game, state.variables, name)
    report = _evaluate(game, state.ema, name)
    if not (raw_beside and report.scalars):
        return report
    numbers = _evaluate(game, state.variables, name).scalars
    raw = {f"raw/{key}": value for key, value in numbers.items() if not evaluators.is_control(key)}
    unlike = evaluators.disagreements(report.scalars, numbers)
    return report._replace(scalars={**report.scalars, **raw, **unlike})


def evaluation_key(config: Config) -> Array:
    """Return the key of a run's evaluations, apart from those of its steps."""
    return jax.random.fold_in(jax.random.PRNGKey(config.seed), 2**31 - 2)


def _evaluate(game: Game, variables: Variables, name: str) -> Report:
    variables = jax.tree.map(
        lambda leaf: leaf.addressable_data(0) if isinstance(leaf, jax.Array) else jnp.asarray(leaf),
        variables,
    )
    key = evaluation_key(game.config)
    evaluator = evaluators.named(name)
    accepted = inspect.signature(evaluator).parameters
    options = {name: value for name, value in game.config.evaluation.to_dict().items() if name in accepted}
    return evaluator(game.ali, variables, key, game.dataset, **options)


def trained_state(game: Game, workdir: pathlib.Path) -> tuple[TrainState, dict[int, str]]:
    """Read the newest sound checkpoint of the run in a folder, and what is wrong with newer ones, by step."""
    with contextlib.closing(checkpoint.open_manager(workdir / "checkpoints")) as manager:
        state, _, damaged = checkpoint.restore(manager, abstract_state(game))
    return state, damaged


def _with_decoder_of(game: Game, state: TrainState) -> TrainState:
    """Return the state with the trained decoder of the run that `config.init_from` names."""
    folder = pathlib.Path(game.config.init_from).expanduser()
    other = prepare(read_config(folder))
    trained, _ = trained_state(other, folder)
    if other.members and not game.members:
        if not 0 <= game.config.init_member < len(other.members):
            raise ValueError(
                f"config.init_member is {game.config.init_member}; {folder} has the members 0 to "
                f"{len(other.members) - 1}."
            )
        trained = member_of(trained, game.config.init_member)
    params, stats = jax.device_get(trained.variables if trained.ema is None else trained.ema)
    shapes = [
        jax.tree.map(lambda leaf: leaf.shape, held.decoder)
        for held in (params, state.variables.params, stats, state.variables.batch_stats)
    ]
    if shapes[0] != shapes[1] or shapes[2] != shapes[3]:
        raise ValueError(
            f"config.init_from is {folder}: that run's decoder, or its number of members, is not this one's."
        )
    variables = Variables(
        state.variables.params._replace(decoder=params.decoder),
        state.variables.batch_stats._replace(decoder=stats.decoder),
    )
    return state._replace(variables=variables, ema=None if state.ema is None else variables)


def _init(game: Game, key: Array, batch: Batch) -> TrainState:
    return train.init_state(game.ali, game.tx, key, batch, ema=game.config.ema_decay > 0)
