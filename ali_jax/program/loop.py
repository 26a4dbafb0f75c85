"""A run of the program: train or resume, evaluate, record.

Only this module writes the files of a run, handles signals and reads the clock.
"""

import contextlib
import datetime
import functools
import importlib.metadata
import json
import platform
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from clu import parameter_overview

import ali_jax
from ali_jax import config as configs
from ali_jax import data
from ali_jax.config import Config
from ali_jax.game import (
    Game,
    abstract_state,
    check_names,
    evaluate,
    initial_state,
    make_call,
    make_feed,
    population,
    prepare,
)
from ali_jax.program import cost, devices, hosts, terminal
from ali_jax.records import checkpoint, known_data
from ali_jax.records.trackers import Trackers
from ali_jax.records.trackers import check as check_trackers
from ali_jax.records.workdir import (
    RunError,
    absolute,
    check_same_run,
    check_writable,
    checkpoint_steps,
    is_finished,
    locked,
    note_sitting,
    read_config,
    remove_leftovers,
    under_way,
    with_known_shape,
    write_text,
)
from ali_jax.records.writers import Records, Terminal, evaluation_at
from ali_jax.report.write import write_report
from ali_jax.types import Array, TrainState


class NonFiniteError(RunError):
    """A loss or a parameter became NaN or infinite; the message names the step."""


def run(config: Config, workdir: Path, *, started: float | None = None, verbosity: int = logging.INFO) -> int:
    """Train, or resume the run in the same folder; evaluate; write the summary.

    Args:
      config: what to train.
      workdir: the folder of the run. It is made after all checks of the input.
      started: the `time.monotonic()` at which the program started.
      verbosity: which messages are printed, a level of absl: logging.INFO, WARNING or ERROR.

    Returns:
      0, or 128 + the number of the signal that stopped the run, after a checkpoint.

    Raises:
      ValueError: bad input; the folder is unchanged.
      RunError: the folder cannot be written, another process trains there, or the run failed later.
      NonFiniteError: the training diverged; the last good checkpoint is kept.
      checkpoint.CheckpointError: no checkpoint of the run can be read.
    """
    clock = _Clock(time.monotonic() if started is None else started)
    configs.validate(config)
    check_names(config)
    check_trackers(config.trackers)
    check_writable(workdir)
    config = with_known_shape(config, workdir)
    with contextlib.ExitStack() as stack:
        if exists := workdir.exists():
            stack.enter_context(_lock(workdir))
            check_same_run(config, workdir)
            if is_finished(config, workdir):
                if verbosity >= logging.INFO:
                    print(f"The run in {workdir} is finished: nothing to do. {_where(workdir)}")
                return 0
        if config.init_from and not checkpoint_steps(workdir):
            _check_source(Path(config.init_from).expanduser())
        game = prepare(config, check=functools.partial(known_data.check_resumed, workdir, config))
        if not exists:
            workdir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_lock(workdir))
            check_same_run(config, workdir)  # another process may have started a run there meanwhile
        with under_way(), hosts.device_errors():
            status = _train(game, workdir, clock, verbosity)
    if status == 0 and jax.process_index() == 0 and verbosity >= logging.INFO:
        print(f"Trained {config.num_steps} steps. {_where(workdir)}")
    return status


def _check_source(folder: Path) -> None:
    """Raise a ValueError if config.init_from names no run."""
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"config.init_from is {str(folder)!r}, which holds no run (no config.json there): name the "
            "folder of a trained run, or leave it empty."
        )
    read_config(folder)


def _lock(workdir: Path) -> contextlib.AbstractContextManager[None]:
    """Lock the folder, in the first of the processes that share the run."""
    return locked(workdir) if jax.process_index() == 0 else contextlib.nullcontext()


class _Clock:
    """Wall time over all sittings of a run, and the speed of the calls that did not compile first."""

    def __init__(self, started: float) -> None:
        self.started = started
        self.progress = {"wall_seconds": 0.0, "timed_seconds": 0.0, "timed_images": 0.0}
        self.images_per_second: float | None = None  # of the last call
        self.first_call = True
        self.has_estimated = False  # whether the time to go was said
        self._last = started

    def now(self) -> dict[str, float]:
        """Return the progress that a checkpoint stores."""
        return {**self.progress, "wall_seconds": self.wall_seconds()}

    def wall_seconds(self) -> float:
        return self.progress["wall_seconds"] + time.monotonic() - self.started

    def restart(self) -> None:
        """Do not count the time since the last call ended."""
        self._last = time.monotonic()

    def tick(self, images: int, *, timed: bool) -> None:
        """Record the end of a call; `timed` is False if it was compiled first."""
        seconds, self._last = time.monotonic() - self._last, time.monotonic()
        if timed:
            self.progress["timed_seconds"] += seconds
            self.progress["timed_images"] += images
            self.images_per_second = images / seconds


class _Call(NamedTuple):
    """A call that was dispatched and may still be running."""

    step: int  # after the call
    count: int  # of its steps
    metrics: Any  # on the device
    timed: bool  # whether its time counts as speed: it was compiled before


class _Sitting(NamedTuple):
    """The open resources and the state of one sitting of a run."""

    game: Game
    manager: Any
    records: Records
    reporter: Terminal
    clock: _Clock
    facts: dict[str, Any]  # about the data
    stops: list[int]  # signals received
    diverged: set[int]  # members of a population whose losses are no longer finite


def _train(game: Game, workdir: Path, clock: _Clock, verbosity: int) -> int:
    """Train in a locked folder and return the exit status."""
    config, main = game.config, jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        reporter = Terminal(config.num_steps, quiet=not main, verbosity=verbosity)
        stack.callback(reporter.close)
        used = list(game.mesh.devices.flat)
        reporter.say(devices.describe(used, config.dtype))
        if warning := devices.unseen_gpu(used[0].platform):
            reporter.say(warning, logging.WARNING)
        reporter.say(_sources(game.dataset))
        for note in game.dataset.notes:
            reporter.say(note.text, logging.WARNING if note.is_warning else logging.INFO)
        facts = data.facts.describe(game.dataset)
        if changes := data.facts.slight_differences(known_data.read(workdir), facts):
            reporter.say(f"The data have changed: {'; '.join(changes)}.", logging.WARNING)
        manager = checkpoint.open_manager(workdir / "checkpoints", config.keep_checkpoints, create=True)
        stack.push(lambda *error: checkpoint.close(manager, failed=error[0] is not None))
        state = _first_state(game, manager, reporter, clock)
        step = int(state.step)
        if main:
            remove_leftovers(workdir)
            known_data.write(workdir, facts)
            write_text(workdir / "config.json", configs.to_json(_resolved(game)))
            (workdir / "summary.json").unlink(missing_ok=True)  # it is about fewer steps
            note_sitting(workdir, from_step=step, **_circumstances(game))
        records = _open_records(stack, config, workdir, step, reporter)
        feed = stack.enter_context(contextlib.closing(make_feed(game)))
        # Several processes must stop at the same step, which `hosts.preempted` sees to.
        signals = terminal.STOP_SIGNALS if jax.process_count() == 1 else ()
        stops = stack.enter_context(terminal.signals_noted(signals))
        if left := config.num_steps - step:
            rows, members = len(game.dataset.train), max(len(game.members), 1)
            reporter.say(cost.before(left, config.batch_size, rows, members=members))
        sitting = _Sitting(game, manager, records, reporter, clock, facts, stops, set())
        reporter.start(step)

        state, step = _take_steps(sitting, state, step, feed)
        _save(sitting, state)
        if not sitting.stops:
            _evaluate(sitting, state)
        checkpoint.wait(manager)
        if main:
            end = f"signal {sitting.stops[0]}" if sitting.stops else "done"
            note_sitting(workdir, to_step=step, end=end, seconds=time.monotonic() - clock.started)
        if sitting.stops:
            reporter.say(f"Stopped by a signal. Step {step} is saved; run the same command to resume.")
            return 128 + sitting.stops[0]
        if main:
            _write_summary(sitting, workdir)
            if config.report:
                _write_report(sitting, state, workdir)
    return 0


def _open_records(
    stack: contextlib.ExitStack, config: Config, workdir: Path, step: int, reporter: Terminal
) -> Records:
    """Open what the sitting writes to, its trackers too; the stack closes it."""
    main = jax.process_index() == 0
    warn = functools.partial(reporter.say, level=logging.WARNING)
    trackers = Trackers(config.trackers if main else (), workdir, config, warn)
    stack.push(lambda *error: trackers.close(failed=error[0] is not None))
    return stack.enter_context(contextlib.closing(Records(workdir, step, write=main, trackers=trackers)))


def _take_steps(sitting: _Sitting, state: TrainState, step: int, feed: Any) -> tuple[TrainState, int]:
    """Train from this step to the end or to a signal; return the last state and its step.

    While a call runs on the device, the metrics of the call before it are read.
    """
    game, config = sitting.game, sitting.game.config
    calls: dict[int, Any] = {}  # compiled, by number of steps
    pending: _Call | None = None
    while step < config.num_steps and not sitting.stops:
        if _is_due(config, "evaluate_every", step):
            _evaluate(sitting, state)
        count = min(config.steps_per_call - step % config.steps_per_call, config.num_steps - step)
        if hosts.preempted(step, count):
            sitting.stops.append(signal.SIGTERM)
            break
        new = count not in calls
        if new:
            _settle(sitting, pending)
            pending = None
            calls[count] = make_call(game, feed, count)
        state, metrics = calls[count](state, feed.load(step, count))
        _settle(sitting, pending)
        step += count
        pending = _Call(step, count, metrics, timed=not new)
        if any(_is_due(config, key, step) for key in ("log_every", "checkpoint_every", "evaluate_every")):
            _settle(sitting, pending)
            pending = None
        if _is_due(config, "checkpoint_every", step):
            _save(sitting, state)
    _settle(sitting, pending)
    return state, step


def _sources(dataset: data.Dataset) -> str:
    """Return a sentence with the data sets that are trained and tested on."""
    train, test = (
        f"{len(split)} rows ({name})"
        for split, name in zip((dataset.train, dataset.test), dataset.splits, strict=True)
    )
    return f"{dataset.name} trains on {train} and tests on {test}."


def _resolved(game: Game) -> Config:
    """Return the config with what later modes need: absolute paths, and the shape of the data."""
    config = game.config.copy_and_resolve_references()
    config.dataset.path = absolute(config.dataset.path)
    config.init_from = absolute(config.init_from)
    config.dataset.shape = game.dataset.train.shape
    return config


def _first_state(game: Game, manager: Any, reporter: Terminal, clock: _Clock) -> TrainState:
    """Restore the newest readable checkpoint or, without checkpoints, make the initial state."""
    if not manager.all_steps():
        state = initial_state(game)
        reporter.say(parameter_overview.get_parameter_overview(state.variables.params._asdict()))
        return state
    state, progress, damaged = checkpoint.restore(manager, abstract_state(game))
    for step, error in damaged.items():
        reporter.say(f"The checkpoint of step {step} cannot be read: {error}", logging.WARNING)
    checkpoint.delete(manager, damaged)
    clock.progress.update({key: progress[key] for key in clock.progress if key in progress})
    reporter.say(f"Resuming from step {int(state.step)}.")
    return state


def _settle(sitting: _Sitting, call: _Call | None) -> None:
    """Wait for a call, show its metrics, log them where due, and raise if a loss is not finite."""
    if call is None:
        return
    config, clock, reporter = sitting.game.config, sitting.clock, sitting.reporter
    values = jax.device_get(call.metrics)
    clock.tick(call.count * _images_per_step(sitting.game), timed=call.timed)
    finite_steps = np.atleast_1d(values.pop("finite_steps"))
    if (finite_steps < call.count).all():
        lost = [k for k, v in values.items() if k.startswith("loss/") and not np.isfinite(v).any()]
        bad = ", ".join(f"{k} is {np.ravel(values[k])[0]}" for k in lost)
        _fail(sitting, call.step - call.count + int(finite_steps.max()) + 1, bad)
    for k in set(np.flatnonzero(finite_steps < call.count).tolist()) - sitting.diverged:
        sitting.diverged.add(k)
        reporter.say(f"Member {k} has diverged by step {call.step}; the others continue.")
    metrics = {key: float(np.nanmean(value)) for key, value in values.items()}
    if clock.first_call:
        clock.first_call = False
        seconds = time.monotonic() - clock.started
        reporter.say(
            f"The first {call.count} steps were done {seconds:.1f} s after the start, including compilation."
        )
    left = (config.num_steps - call.step) * _images_per_step(sitting.game)
    if clock.images_per_second and left and not clock.has_estimated:
        clock.has_estimated = True
        held = cost.memory(sitting.game.mesh.local_devices)
        reporter.say(cost.after(left, clock.images_per_second, held))
    reporter.progress(call.step, metrics, clock.images_per_second)
    if _is_due(config, "log_every", call.step):
        logged = metrics
        if sitting.game.members:
            members = range(len(sitting.game.members))
            logged = population.spread([{key: value[k] for key, value in values.items()} for k in members])
        sitting.records.scalars(call.step, logged, images_per_second=clock.images_per_second)
        reporter.log(call.step, metrics, clock.images_per_second, left)


def _save(sitting: _Sitting, state: TrainState) -> None:
    if not _finite(state, bool(sitting.game.members)):
        _fail(sitting, int(state.step), "a parameter is not finite")
    sitting.records.sync()
    checkpoint.save(sitting.manager, state, {**sitting.clock.now(), "data": sitting.facts})


def _fail(sitting: _Sitting, step: int, what: str) -> NoReturn:
    """Raise the NonFiniteError of a run that diverged at this step."""
    checkpoint.wait(sitting.manager)
    saved = sitting.manager.latest_step()
    last = "No checkpoint was saved before"
    if saved is not None:
        last = f"The last good checkpoint, of step {saved}, is kept"
    raise NonFiniteError(
        f"The training diverged: at step {step} {what}. {last}. Lower the learning rates or increase "
        "config.penalties.r1.gamma, and choose another --workdir."
    )


@functools.partial(jax.jit, static_argnums=1)
def _finite(state: TrainState, members: bool) -> Array:
    """Whether all numbers of the state are finite; in a population, those of at least one member."""
    leaves = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    finite = [jnp.isfinite(leaf).reshape(leaf.shape[0] if members else 1, -1).all(axis=1) for leaf in leaves]
    return jnp.stack(finite).all(axis=0).any()


def _evaluate(sitting: _Sitting, state: TrainState) -> None:
    """Evaluate and record the results, unless the records have them for this step; a signal ends it early.

    At the last step, numbers of the raw parameters, named `raw/`, stand beside those of the averaged ones.
    """
    game, step = sitting.game, int(state.step)
    if evaluation_at(sitting.records.rows, step) is not None:
        return
    scalars: dict[str, float] = {}
    images: dict[str, np.ndarray] = {}
    for name in game.config.evaluators:
        report = evaluate(game, state, name, raw_beside=step == game.config.num_steps)
        scalars |= report.scalars
        images |= report.images
        if sitting.stops:
            return
    sitting.records.images(step, images)
    sitting.records.scalars(step, scalars)
    if scalars:
        sitting.reporter.table(f"Evaluation at step {step}", scalars)
    sitting.clock.restart()


def _write_summary(sitting: _Sitting, workdir: Path) -> None:
    config, clock = sitting.game.config, sitting.clock.now()
    images = config.num_steps * _images_per_step(sitting.game)
    timed = clock["timed_images"] / clock["timed_seconds"] if clock["timed_seconds"] else None
    summary = {
        "step": config.num_steps,
        "images_seen": images,
        "wall_seconds": clock["wall_seconds"],
        "images_per_second": timed or images / clock["wall_seconds"],
        "metrics": evaluation_at(sitting.records.rows, config.num_steps),
    }
    write_text(workdir / "summary.json", json.dumps(summary, indent=2) + "\n")


def _images_per_step(game: Game) -> int:
    return game.config.batch_size * max(len(game.members), 1)


def _write_report(sitting: _Sitting, state: TrainState, workdir: Path) -> None:
    """Write the report of the finished run; if that fails, warn: the run is complete without it."""
    try:
        write_report(sitting.game, state, workdir)
    except Exception as error:
        reason = str(error) or type(error).__name__
        sitting.reporter.say(
            f"The report was not written: {reason} The run is complete; try --mode report --workdir "
            f"{workdir}.",
            logging.WARNING,
        )


def _circumstances(game: Game) -> dict[str, Any]:
    """Return the time, command, device and package versions of a sitting."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    used = list(game.mesh.devices.flat)
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]]),
        "device": f"{len(used)} x {used[0].device_kind} ({used[0].platform})",
        "versions": {
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in packages},
            "ali_jax": ali_jax.__version__,
        },
    }


def _is_due(config: Config, key: str, step: int) -> bool:
    """Whether an action that is due every config[key] steps (0 = only at the end) is due after this step."""
    return step > 0 and (step == config.num_steps or (config[key] > 0 and step % config[key] == 0))


def _where(workdir: Path) -> str:
    page = workdir / "report.html"
    report = f"Report: {page}, pictures" if page.exists() else "Pictures"
    return f"{report}: {workdir / 'images'}, numbers: {workdir / 'summary.json'}"
