"""The command `python -m ali_jax.main`: it reads flags and files, runs one mode and returns an exit status.

0: done. 1: the run failed. 2: wrong usage (flags, config keys or values, missing files). 130 and 143: stopped
by a signal. JAX is imported only after the checks that do not need it, so that mistakes are reported at once.
"""

if __name__ == "__main__":
    from ali_jax.program import terminal

    terminal.set_up()

import contextlib
import functools
import json
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import logging as absl_logging

from ali_jax import cache
from ali_jax import config as configs
from ali_jax.config import Config
from ali_jax.names import printable
from ali_jax.program.command import (
    OF_INPUTS,
    PICTURES,
    UNTRAINED,
    USAGE,
    WITH_INPUTS,
    Options,
    UsageError,
    load_config,
    override,
    parse,
)
from ali_jax.records.workdir import (
    RunError,
    check_same_run,
    check_writable,
    checkpoint_steps,
    is_finished,
    read_config,
    under_way,
    with_known_shape,
    write_text,
)

STARTED = time.monotonic()
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

# Keys that may differ from the config of a finished run: where data lie, and how the model is used.
FREE_AFTER_TRAINING = (*configs.FREE, "dataset.train_split", "dataset.test_split")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (None = those of the process) and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or {"-h", "-help", "--help"} & set(arguments):
        print(USAGE, end="", file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    return guarded(lambda: _main(arguments))


def _main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    with _verbose() if options.verbosity >= absl_logging.DEBUG else contextlib.nullcontext():
        return _run(options)


def guarded(command: Callable[[], int]) -> int:
    """Run a command with libraries silenced; print one message for an error; return the exit status."""
    try:
        with _quiet():
            return command()
    except KeyboardInterrupt:
        return 130
    except ValueError as error:
        return _fail(str(error), 2)
    except RunError as error:
        return _fail(str(error), 1)
    except MemoryError as error:
        return _fail(f"Out of memory: {error}".rstrip(": "), 1)
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), 1)


def _run(options: Options) -> int:
    if options.mode == "compare":
        return _compare(options)
    trained = options.mode not in ("train", "profile", *UNTRAINED)
    config = load_config(options.config_file) if options.config_file else read_config(options.workdir)
    override(config, options.overrides)
    configs.validate(config)
    if options.mode not in UNTRAINED and not (options.mode == "profile" and options.config_file):
        config = with_known_shape(config, options.workdir)
    if options.mode == "train":
        check_same_run(config, options.workdir)
        check_writable(options.workdir)
    if trained:
        _check_trained(config, options)
    path = config.dataset.path
    is_file = path and not path.startswith("hf:")
    if is_file and _needs_data(config, options) and not os.path.exists(os.path.expanduser(path)):
        raise UsageError(f"config.dataset.path is {path!r}: there is no such file or folder.")

    set_up_jax(on_cpu=options.mode in UNTRAINED)
    _connect(options)
    _check_devices()
    from ali_jax.data import DataError

    try:
        return _MODES[options.mode](config, options)
    except DataError as error:
        if path:  # the path exists, so the command is right: its files are wrong
            raise RunError(str(error)) from None
        raise


def _needs_data(config: Config, options: Options) -> bool:
    """Whether the mode opens the data set: not to describe, to sample, or if the run is finished."""
    if options.mode == "train":
        return not is_finished(config, options.workdir)
    if options.inputs is not None:
        return options.mode in ("nearest", "score")  # and edit, for directions that are not known yet
    return options.mode not in UNTRAINED and not _draws_from_prior(config, options)


def _draws_from_prior(config: Config, options: Options) -> bool:
    is_image = len(config.dataset.shape) == 3
    return options.mode == "sample" and is_image and not config.dataset.conditional


def _train(config: Config, options: Options) -> int:
    from ali_jax.networks import has_convolutions

    if has_convolutions(config) and not options.coordinator:
        restart_with_huge_pages()
    from ali_jax.program.loop import run

    return run(config, options.workdir, started=STARTED, verbosity=options.verbosity)


def _describe(config: Config, options: Options) -> int:
    from ali_jax.tools.describe import describe, show

    description = describe(config)
    if options.json:
        print(json.dumps(description))
    else:
        show(description)
    return 0


def _preflight(config: Config, options: Options) -> int:
    from ali_jax.tools.preflight import preflight, show

    report = preflight(config, options.topology)
    if options.json:
        print(json.dumps(report))
    else:
        show(report)
    return 0


def _profile(config: Config, options: Options) -> int:
    from ali_jax.networks import has_convolutions
    from ali_jax.tools.profile import profile, show

    if options.out is not None and options.out.exists() and not options.out.is_dir():
        raise UsageError(f"--out {options.out} is a file; --mode profile keeps the trace in a folder.")
    every = config.penalties.get("r1", {}).get("every", 1)  # it divides config.steps_per_call
    if options.steps % every:
        raise UsageError(
            f"--steps is {options.steps}; it must be a multiple of config.penalties.r1.every = {every}."
        )
    if has_convolutions(config):
        restart_with_huge_pages()
    found = profile(config, options.steps, options.out)
    if options.json:
        print(json.dumps(found))
    else:
        show(found)
    return 0


def _picture(config: Config, options: Options) -> int:
    from ali_jax.evaluate.figures import save_picture
    from ali_jax.game import evaluate

    if options.inputs is not None:
        return _use(config, options)
    game, state = _restore(config, options)
    with under_way():
        report = evaluate(game, state, PICTURES[options.mode])
    for name, image in report.images.items():
        path = options.out or _images(options) / f"{name}_{int(state.step)}.png"
        save_picture(path, image)
        print(path)
    return 0


def _use(config: Config, options: Options) -> int:
    """Use the model on the images at --inputs."""
    from ali_jax.program.new_images import run

    return run(config, options)


def _evaluate(config: Config, options: Options) -> int:
    from ali_jax.evaluate.figures import save_png
    from ali_jax.game import evaluate
    from ali_jax.records.writers import json_numbers, print_table

    game, state = _restore(config, options)
    step, scalars = int(state.step), {}
    for name in config.evaluators:
        with under_way():
            report = evaluate(game, state, name, raw_beside=True)
        scalars |= report.scalars
        for picture, image in report.images.items():
            save_png(_images(options) / f"{picture}_{step}.png", image)
    text = json.dumps({"step": step, "metrics": json_numbers(scalars)}, indent=2) + "\n"
    write_text(options.out or options.workdir / "evaluation.json", text)
    if options.json:
        print(text, end="")
    else:
        print_table(f"Evaluation at step {step}", scalars)
    return 0


def _report(config: Config, options: Options) -> int:
    from ali_jax.report.write import write_report

    game, state = _restore(config, options)
    with under_way():
        print(write_report(game, state, options.workdir, options.out))
    return 0


def _export(config: Config, options: Options) -> int:
    from ali_jax.tools.export import export

    folder = options.out or options.workdir / "export"
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out {folder} is a file; --mode export writes into a folder.")
    game, state = _restore(config, options)
    with under_way():
        for path in export(game, state, folder, options.workdir):
            print(path)
    return 0


def _compare(options: Options) -> int:
    from ali_jax.report.compare import write_comparison

    out = options.out or Path("compare.html")
    _check_out(out)
    print(write_comparison(options.workdirs, out))
    return 0


_MODES = {
    "train": _train,
    "evaluate": _evaluate,
    "report": _report,
    "export": _export,
    "describe": _describe,
    "preflight": _preflight,
    "profile": _profile,
    **dict.fromkeys(OF_INPUTS, _use),
    **dict.fromkeys(PICTURES, _picture),
}


def _restore(config: Config, options: Options) -> tuple:
    """Return the game of a trained run, and the state of its newest readable checkpoint."""
    from ali_jax.game import blank_data, prepare, trained_state
    from ali_jax.records import known_data

    if options.mode in PICTURES:
        with config.unlocked():
            config.evaluators = (PICTURES[options.mode],)
    if _draws_from_prior(config, options):
        game = prepare(config, blank_data(config, known_data.read(options.workdir)), trained=True)
    else:
        check = functools.partial(_check_data, config, options.workdir)
        game = prepare(config, check=check, trained=True)
    state, damaged = trained_state(game, options.workdir)
    for step, error in damaged.items():
        print(f"The checkpoint of step {step} cannot be read: {error}", file=sys.stderr)
    return game, state


def _check_data(config: Config, workdir: Path, dataset: Any) -> None:
    """Raise a ValueError if a trained model cannot be given these data; say how else they differ."""
    from ali_jax.records import known_data

    if changes := known_data.check_used(workdir, config, dataset):
        print(f"The data are not those that the run was trained on: {'; '.join(changes)}.", file=sys.stderr)


def _check_trained(config: Config, options: Options) -> None:
    """Raise a UsageError unless the folder has a checkpoint that this config can use."""
    differences = configs.differences(read_config(options.workdir), config)
    changed = [key for key in differences if not configs.is_free(key, FREE_AFTER_TRAINING)]
    if changed:
        raise UsageError(
            f"{options.workdir} was trained with another {', '.join(changed)}. After training you may change "
            f"{', '.join(FREE_AFTER_TRAINING)}."
        )
    if not checkpoint_steps(options.workdir):
        _check_exported(options)
    if options.out is not None and options.mode != "export":
        _check_out(options.out, may_be_folder=options.inputs is not None)


def _check_exported(options: Options) -> None:
    """Raise a UsageError unless a folder without checkpoints is an exported model that the mode can use."""
    from ali_jax.records.weights import is_exported

    folder = options.workdir
    if not is_exported(folder):
        raise UsageError(f"{folder} has no checkpoint yet: train first (--mode train).")
    if options.inputs is None:
        raise UsageError(
            f"{folder} holds an exported model: --mode {options.mode} needs the folder of its run. Exported "
            f"models are read by --mode {', '.join(WITH_INPUTS)}, with --inputs, and by ali_jax.load."
        )


def _check_out(out: Path, *, may_be_folder: bool = False) -> None:
    if (out.is_dir() and not may_be_folder) or not out.absolute().parent.is_dir():
        raise UsageError(f"--out {out} must be the name of a file, in a folder that exists.")


def _images(options: Options) -> Path:
    folder = options.workdir / "images"
    folder.mkdir(exist_ok=True)
    return folder


def set_up_jax(*, on_cpu: bool = False) -> None:
    """Choose the platform, and keep compiled programs in the user's cache folder."""
    import jax

    if on_cpu:
        jax.config.update("jax_platforms", "cpu")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and (folder := cache.folder()):
        jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def restart_with_huge_pages() -> None:
    """On a CPU, restart this process so that malloc uses huge pages; otherwise return.

    XLA:CPU allocates the intermediate results of a step with malloc. Where Linux gives huge pages only to
    programs that ask for them ("madvise"), glibc decides when a process starts whether it asks. Convolutional
    networks train 1.13 to 1.22 times as fast with huge pages, perceptrons no faster: see
    docs/reference/performance.md.
    """
    import jax

    try:
        left_to_programs = "[madvise]" in HUGE_PAGES.read_text()
    except OSError:  # not Linux, or without huge pages
        return
    already_set, our_process = "GLIBC_TUNABLES" in os.environ, "ali_jax.main" in sys.orig_argv
    if already_set or not our_process:
        return
    if left_to_programs and jax.default_backend() == "cpu":
        environment = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _connect(options: Options) -> None:
    """Connect to the other processes of the run, if there are any."""
    if options.coordinator:
        from ali_jax.program import hosts

        together = hosts.Hosts(options.coordinator, options.num_processes, options.process_id)
        hosts.check(together)
        hosts.join(together)


def _check_devices() -> None:
    """Raise a UsageError if JAX finds no device, for example because JAX_PLATFORMS names a missing one."""
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        platforms = os.environ.get("JAX_PLATFORMS", "")
        why = (str(error) or f"this installation of JAX cannot use {platforms!r}").splitlines()[0].rstrip(".")
        raise UsageError(
            f"JAX has no device to run on (JAX_PLATFORMS={platforms!r}): {why}. Unset JAX_PLATFORMS to use "
            "what there is; for a GPU or TPU, see pip install '.[cuda13]' or '.[tpu]'."
        ) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the warnings and logs of libraries, about which a user can do nothing."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    absl_logging.set_verbosity(absl_logging.FATAL)  # orbax logs tracebacks of errors that we report
    # Errors in threads, after a failed save or on a full disk, are hidden, too.
    hooks = sys.unraisablehook, threading.excepthook
    sys.unraisablehook = threading.excepthook = lambda _: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.unraisablehook, threading.excepthook = hooks


def _leave(status: int) -> None:
    """End the process. If it failed as one of several, do not wait for the others, which may be gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    if status == 1 and "jax" in sys.modules and sys.modules["jax"].process_count() > 1:
        os._exit(status)
    sys.exit(status)


@contextlib.contextmanager
def _verbose() -> Iterator[None]:
    """Show the warnings and logs of libraries."""
    absl_logging.set_verbosity(absl_logging.DEBUG)
    yield


def _fail(message: str, status: int) -> int:
    print(printable(f"ali_jax: {message}"), file=sys.stderr)
    return status


if __name__ == "__main__":
    _leave(main())
