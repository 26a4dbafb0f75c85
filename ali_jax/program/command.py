"""The command line: its flags, the config file that it names, and the config values that it overrides.

Every mistake in it is a `UsageError` with one message. This module does not import JAX.
"""

import inspect
import math
import os
import re
import runpy
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from ali_jax import config as configs
from ali_jax.config import Config
from ali_jax.names import did_you_mean

USAGE = """\
usage: python -m ali_jax.main --config FILE[:VARIANT] --workdir DIR [--config.KEY=VALUE ...]
       python -m ali_jax.main --mode MODE --workdir DIR [--out FILE] [--json] [--config.KEY=VALUE ...]

modes:
  train        train, or resume the run in DIR (default)
  evaluate     print the numbers of config.evaluators and write them to a file
  sample, reconstruct, interpolate
               draw a picture; the last two of your own images, with --inputs
  encode       write the codes of your images (--inputs) as codes.npz and codes.csv
  edit         move your images along a direction of codes, and draw them
  nearest      draw the training images that are nearest to yours, by codes and by pixels
  score        write anomaly scores of your images, with p-values
  report       write report.html, one page about the whole run
  compare      write one page that shows runs side by side: --workdirs DIR DIR ... --out FILE
  export       write encoder, decoder, weights and a model card into the folder --out DIR, for use without
               this package
  describe     print layers, parameters, operations per step and bytes of state; give --config, no --workdir
  preflight    compile the training step for a TPU slice and print what each chip needs; give --config and
               --topology, no --workdir
  profile      trace some training steps, and print the time on the device by layer and kind; give --config,
               or --workdir for the config of a run

flags:
  --config FILE[:VARIANT]
               the config file, and which variant of it
  --workdir DIR
               the folder of the run
  --config.KEY=VALUE
               set a value of the config; python -m ali_jax.config lists the keys
  --out FILE   where to write the picture (.png, .jpg, .webp), the page (.html) or the numbers (.json),
               instead of into the folder of the run
  --inputs PATH
               your images: a folder, an .npz, one file or hf:NAME (encode, reconstruct, interpolate, edit,
               nearest, score). --out is then a file, also .csv, .npz or .parquet for numbers and .gif or
               .webp for moving pictures, or a folder for single files
  --skip-broken
               leave out files that cannot be read, and name them
  --pairs      interpolate between the first and the second image, the third and the fourth, and so on,
               instead of between the first and the last
  --direction NAME
               of edit: a class, A:B from class A to class B, an attribute, or a principal axis such as pc1
  --from DIR --to DIR
               of edit: two folders of images, whose codes differ by the direction
  --amount A..B
               of edit: nine amounts from A to B (default -2..2), or amounts such as -1,0,1
  --json       print one JSON object (evaluate, describe, preflight, profile)
  --topology SLICE
               the TPU slice of preflight, such as v5e:16x16
  --steps N    how many steps profile traces, instead of config.steps_per_call; --out DIR keeps the trace
  --verbosity LEVEL
               debug (with the logs and warnings of libraries), info (default), warning, error or fatal, or
               the number that absl gives to one of these
  --coordinator_address HOST:PORT --num_processes N --process_id I
               train together with other processes; this is number I, from 0. On TPU pods and under Slurm,
               --coordinator_address auto is enough
"""

PICTURES = {"sample": "samples", "reconstruct": "reconstructions", "interpolate": "interpolations"}
UNTRAINED = ("describe", "preflight")  # modes that need only a config
OF_INPUTS = ("encode", "edit", "nearest", "score")  # modes that need --inputs
WITH_INPUTS = (*OF_INPUTS, "reconstruct", "interpolate")  # modes that may have it
MODES = ("train", "evaluate", *PICTURES, *OF_INPUTS, "report", "compare", "export", *UNTRAINED, "profile")
OF_EDIT = ("direction", "amount", "from", "to")  # flags
AMOUNTS, AMOUNT_STEPS = "-2..2", 9

# Suffixes of --out that say what a mode writes; a name without suffix is allowed too.
SUFFIXES = {
    **dict.fromkeys(PICTURES, (".png", ".jpg", ".jpeg", ".webp")),
    **dict.fromkeys(("report", "compare"), (".html", ".htm")),
    "evaluate": (".json",),
}

_STILL = (".png", ".jpg", ".jpeg")
SUFFIXES_OF_INPUTS = {  # with --inputs; a name without suffix is a folder
    "encode": (".npz", ".csv", ".parquet"),
    "score": (".csv", ".npz", ".parquet"),
    "reconstruct": (*_STILL, ".webp"),
    "interpolate": (*_STILL, ".gif", ".webp"),
    "edit": (*_STILL, ".gif", ".webp"),
    "nearest": (*_STILL, ".webp", ".csv"),
}

VERBOSITY = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "fatal": logging.FATAL,
}


class UsageError(ValueError):
    """The command line is wrong; the message says how."""


class Options(NamedTuple):
    """What the command line says."""

    mode: str
    workdir: Path  # not used by the modes in UNTRAINED
    out: Path | None
    json: bool
    config_file: str | None
    overrides: list[str]
    topology: str = ""
    coordinator: str = ""  # HOST:PORT where the processes of the run meet; "" = a single process
    num_processes: int | None = None
    process_id: int | None = None
    workdirs: tuple[Path, ...] = ()  # of the runs to compare
    verbosity: int = logging.INFO  # a level of absl
    steps: int = 0  # that profile traces; 0 = config.steps_per_call
    inputs: Path | None = None  # images that the model is used on
    skip_broken: bool = False
    pairs: bool = False
    direction: str = ""
    start: Path | None = None  # folders of images at both ends of a direction
    to: Path | None = None
    amounts: tuple[float, ...] = ()


def parse(arguments: Sequence[str]) -> Options:
    """Read the command line.

    Raises:
      UsageError: a flag is unknown, missing, or does not go with the others.
    """
    values = _flags()
    try:
        rest = values(["ali_jax", *map(_underscored, arguments)], known_only=True)[1:]
    except flags.Error as error:
        raise UsageError(str(error)) from None
    _check_known(rest, values)
    _check_combination(values)
    verbosity = _verbosity(values.verbosity)
    if values.mode == "compare":
        return _comparison(values.workdirs, values.out, rest, verbosity)
    _check_complete(values)
    return Options(
        mode=values.mode,
        workdir=_path(values.workdir or "."),
        out=_path(values.out) if values.out else None,
        json=values.json,
        config_file=values.config,
        overrides=rest,
        topology=values.topology,
        coordinator=values.coordinator_address,
        num_processes=values.num_processes,
        process_id=values.process_id,
        verbosity=verbosity,
        steps=values.steps or 0,
        inputs=_path(values.inputs) if values.inputs else None,
        skip_broken=values.skip_broken,
        pairs=values.pairs,
        direction=values.direction or "",
        start=_path(values["from"].value) if values["from"].value else None,
        to=_path(values.to) if values.to else None,
        amounts=amounts(values.amount or AMOUNTS),
    )


def _flags() -> flags.FlagValues:
    """Define the flags, with their defaults; `USAGE` describes them."""
    values = flags.FlagValues()
    values.set_gnu_getopt(True)
    for name, default in (
        ("config", None),
        ("workdir", None),
        ("workdirs", None),
        ("out", None),
        ("verbosity", "info"),
        ("topology", ""),
        ("coordinator_address", ""),
        *((name, None) for name in ("inputs", "direction", "from", "to", "amount")),
    ):
        flags.DEFINE_string(name, default, "", flag_values=values)
    flags.DEFINE_enum("mode", "train", MODES, "", flag_values=values)
    for name in ("json", "skip_broken", "pairs"):
        flags.DEFINE_bool(name, False, "", flag_values=values)
    for name in ("num_processes", "process_id", "steps"):
        flags.DEFINE_integer(name, None, "", flag_values=values)
    return values


def _check_known(rest: Sequence[str], values: flags.FlagValues) -> None:
    """Raise a UsageError if an argument that absl left over looks like a flag but is not an override."""
    for argument in rest:
        if argument.startswith("-") and not _override_key(argument):
            name = argument.partition("=")[0]
            own = [f"--{flag}" for flag in values if flag not in ("flagfile", "undefok")]  # absl adds these
            raise UsageError(f"There is no flag {name}.{did_you_mean(name, own)}")


def _check_combination(values: flags.FlagValues) -> None:
    """Raise a UsageError if a flag does not go with the mode."""
    mode = values.mode
    if values.json and mode not in (*UNTRAINED, "evaluate", "profile"):
        raise UsageError(
            f"--json goes with --mode describe, preflight, evaluate or profile, not with {mode}."
        )
    if values.steps is not None and mode != "profile":
        raise UsageError(f"--steps goes with --mode profile, not with {mode}.")
    if values.steps is not None and values.steps < 1:
        raise UsageError(f"--steps is {values.steps}; it must be 1 or more.")
    if bool(values.topology) != (mode == "preflight"):
        raise UsageError("--mode preflight and --topology, such as --topology v5e:16x16, go together.")
    if values.out is not None and mode in ("train", *UNTRAINED):
        raise UsageError(f"--out goes with the modes that write a result, not with {mode}.")
    _check_inputs(values)
    suffix = Path(values.out or "").suffix.lower()
    suffixes = (SUFFIXES_OF_INPUTS if values.inputs else SUFFIXES).get(mode, (suffix,))
    if suffix and suffix not in suffixes:
        raise UsageError(f"--out is {values.out!r}; --mode {mode} writes {' or '.join(suffixes)}.")
    if (values.workdirs is not None) != (mode == "compare"):
        raise UsageError("--mode compare and --workdirs DIR DIR ... go together.")


def _check_inputs(values: flags.FlagValues) -> None:
    """Raise a UsageError if a flag about the user's images does not go with the others."""
    mode, ends = values.mode, (values["from"].value, values.to)
    if mode in OF_INPUTS and not values.inputs:
        raise UsageError(f"--mode {mode} needs --inputs PATH: a folder of images, an .npz or an image.")
    if values.inputs and mode not in WITH_INPUTS:
        raise UsageError(f"--inputs goes with --mode {', '.join(WITH_INPUTS)}, not with {mode}.")
    for flag, of, given in (
        ("--skip-broken", WITH_INPUTS, values.skip_broken and values.inputs is None),
        ("--pairs", ("interpolate",), values.pairs and not (mode == "interpolate" and values.inputs)),
        *((f"--{name}", ("edit",), values[name].value and mode != "edit") for name in OF_EDIT),
    ):
        if given:
            raise UsageError(f"{flag} goes with --inputs and --mode {' or '.join(of)}.")
    if None in ends and ends != (None, None):
        raise UsageError("--from DIR and --to DIR go together: the folders at both ends of a direction.")
    if mode == "edit" and not (values.direction or ends[0]):
        raise UsageError("--mode edit needs --direction NAME, or --from DIR and --to DIR.")


def _check_complete(values: flags.FlagValues) -> None:
    """Raise a UsageError if a flag is missing, in any mode but compare."""
    mode = values.mode
    if mode == "train" and not values.config:
        raise UsageError("Give --config, such as --config experiments/digits.py.")
    if values.coordinator_address and mode != "train":
        raise UsageError(f"--coordinator_address goes with --mode train, not with {mode}.")
    if not values.coordinator_address and (values.num_processes, values.process_id) != (None, None):
        raise UsageError("--num_processes and --process_id need --coordinator_address HOST:PORT.")
    if mode == "preflight" and not values.config:
        raise UsageError("Give --config, such as --config experiments/svhn.py.")
    if not values.workdir and not (mode in (*UNTRAINED, "profile") and values.config):
        raise UsageError("Give --workdir, the folder of the run.")


def _verbosity(text: str) -> int:
    """Return absl's level from its name, such as warning, or its number."""
    by_number = {str(level): level for level in VERBOSITY.values()}
    if text.lower() not in {**VERBOSITY, **by_number}:
        raise UsageError(f"--verbosity is {text!r}; it must be one of {', '.join([*VERBOSITY, *by_number])}.")
    return {**VERBOSITY, **by_number}[text.lower()]


def _comparison(first: str, out: str | None, rest: Sequence[str], verbosity: int) -> Options:
    """Return the options of a comparison: absl puts one folder into --workdirs, the others into `rest`."""
    if options := [argument for argument in rest if argument.startswith("-")]:
        raise UsageError(f"{options[0]} goes with a single run, not with --mode compare.")
    folders = tuple(map(_path, (first, *rest)))
    if len(folders) < 2:
        raise UsageError("--workdirs needs two folders or more, such as --workdirs runs/a runs/b.")
    page = _path(out or "compare.html")
    return Options("compare", folders[0], page, False, None, [], workdirs=folders, verbosity=verbosity)


def _underscored(argument: str) -> str:
    """Return --skip-broken as absl knows it."""
    return argument.replace("-broken", "_broken", 1) if argument.startswith("--skip-broken") else argument


def amounts(text: str) -> tuple[float, ...]:
    """Return the amounts that a text such as -2..2 or -1,0,1 means.

    Raises:
      UsageError: it means none.
    """
    try:
        start, dots, end = text.partition("..")
        if dots:
            a, b = float(start), float(end)
            numbers = tuple(a + (b - a) * i / (AMOUNT_STEPS - 1) for i in range(AMOUNT_STEPS))
        else:
            numbers = tuple(map(float, text.split(",")))
    except ValueError:
        numbers = ()
    if not numbers or not all(map(math.isfinite, numbers)):
        raise UsageError(f"--amount is {text!r}; give a range such as -2..2, or numbers such as -1,0,1.")
    return numbers


def _path(text: str) -> Path:
    """Return a path with ~ expanded, which shells do not do after an = sign; unknown users stay."""
    return Path(os.path.expanduser(text))


def load_config(spec: str) -> Config:
    """Return what `get_config` of FILE, or of FILE:VARIANT with the variant, returns.

    Raises:
      UsageError: there is no such file, or it does not return a config; the message says where it fails.
    """
    file, colon, variant = (spec, "", "") if Path(spec).is_file() else spec.partition(":")
    if not Path(file).is_file():
        raise UsageError(f"There is no config file {file!r} in {Path.cwd()}.")
    try:
        config = _call_get_config(file, (variant,) if colon else ())
    except UsageError:
        raise
    except SyntaxError as error:
        raise UsageError(f"{error.filename}, line {error.lineno}: {error.msg}.") from None
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == file]
        where = f"{file}, line {lines[-1]}" if lines else file
        raise UsageError(f"{where}: {type(error).__name__}: {error}") from None
    if not isinstance(config, ConfigDict):
        raise UsageError(f"get_config of {file} returned {type(config).__name__}, not a ConfigDict.")
    try:
        configs.check_keys(config)
    except ValueError as error:
        raise UsageError(f"{file}: {error}") from None
    return config.lock()


def _call_get_config(file: str, variants: tuple[str, ...]) -> Any:
    """Run a config file and call its `get_config` with the variant, if one is given."""
    get_config = runpy.run_path(file).get("get_config")
    if not callable(get_config):
        raise UsageError(f"{file} does not define a function get_config().")
    try:
        inspect.signature(get_config).bind(*variants)
    except TypeError:
        takes = "no" if variants else "a"
        raise UsageError(f"get_config of {file} takes {takes} variant (FILE:VARIANT).") from None
    return get_config(*variants)


def override(config: Config, arguments: Sequence[str]) -> None:
    """Set the values that arguments such as `--config.optimizer.generator.b1=0.5` give.

    Raises:
      UsageError: an unknown key, a value of the wrong type, or an argument that is not an override.
    """
    known = configs.flat(config)
    for argument in arguments:
        key = _override_key(argument)
        if key and key not in known:
            keys = [k.removeprefix(key + ".") for k in known if k.startswith(key + ".")]
            hint = f" It is a section: set one of {', '.join(keys)}." if keys else did_you_mean(key, known)
            raise UsageError(f"There is no config key {key!r} to set.{hint}")
    values, argv = flags.FlagValues(), ["ali_jax", *arguments]
    values.set_gnu_getopt(True)
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        unused = values(argv)[1:]
    except (flags.Error, TypeError, ValueError) as error:
        raise UsageError(_wrong_value(str(error), known)) from None
    if unused:
        raise UsageError(f"Unexpected argument {unused[0]!r}: options begin with --.")


def _wrong_value(message: str, known: Mapping[str, Any]) -> str:
    """Return a message with the expected type, from one of absl or ml_collections that rejects a value."""
    match = re.match(r"flag (--config\.([\w.]+)=.*?): ", message)
    if match is None or match.group(2) not in known:
        return message.splitlines()[0]
    old = known[match.group(2)]
    return f"{match.group(1)} is not of type {type(old).__name__}; the value in the config is {old!r}."


def _override_key(argument: str) -> str:
    """Return the key of an argument such as `--config.batch_size=32`, or "" if it is not an override."""
    match = re.match(r"--?(?:no)?config\.([^=]*)", argument)
    return match.group(1) if match else ""
