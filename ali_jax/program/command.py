"""The command line: what it says, the config file that it names, and the values that it overrides.

Every mistake in it becomes a `UsageError` with one message. JAX is not imported here.
"""

import inspect
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
  train        train, or go on with the run in DIR (default)
  evaluate     print and write the numbers of config.evaluators
  sample, reconstruct, interpolate
               make a picture
  report       write report.html, one page with all that is known of the run
  compare      write one page that lays runs side by side: --workdirs DIR DIR ... --out FILE
  export       write encoder, decoder and weights for use without this package, into the folder --out DIR
  describe     print layers, parameters, operations per step, bytes of state; needs --config, no --workdir
  preflight    compile the training step for a TPU slice and print what each chip needs; likewise

--topology T   the slice of preflight, such as v5e:16x16
--out FILE     where the picture, the page or the numbers go, instead of into DIR
--verbosity L  debug (with the libraries' logs and warnings) | info (default) | warning | error | fatal, or
               absl's numbers for these
--json         print one JSON object (evaluate, describe, preflight)
--coordinator_address HOST:PORT --num_processes N --process_id I
               train together with other processes, of which this is the I-th from 0; on TPU pods and under
               Slurm --coordinator_address auto is enough
--config.KEY   overrides a value of the config; ali_jax/config.py lists the keys
"""

PICTURES = {"sample": "samples", "reconstruct": "reconstructions", "interpolate": "interpolations"}
UNTRAINED = ("describe", "preflight")  # modes that need a config alone
MODES = ("train", "evaluate", *PICTURES, "report", "compare", "export", *UNTRAINED)

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
    workdir: Path  # of no use where a config is only described
    out: Path | None
    json: bool
    config_file: str | None
    overrides: list[str]
    topology: str = ""
    coordinator: str = ""  # where the processes of the run meet; "" for one process
    num_processes: int | None = None
    process_id: int | None = None
    workdirs: tuple[Path, ...] = ()  # of the runs that are compared
    verbosity: int = logging.INFO  # absl's


def parse(arguments: Sequence[str]) -> Options:
    """Read the command line.

    Raises:
      UsageError: it is wrong.
    """
    values = flags.FlagValues()
    values.set_gnu_getopt(True)
    flags.DEFINE_string("config", None, "the config's file", flag_values=values)
    flags.DEFINE_string("workdir", None, "the run's folder", flag_values=values)
    flags.DEFINE_string("workdirs", None, "the folders of runs to compare", flag_values=values)
    flags.DEFINE_enum("mode", "train", MODES, "what to do", flag_values=values)
    flags.DEFINE_string("out", None, "where the result goes", flag_values=values)
    flags.DEFINE_string("verbosity", "info", "how much is said", flag_values=values)
    flags.DEFINE_bool("json", False, "print JSON", flag_values=values)
    flags.DEFINE_string("topology", "", "a TPU slice", flag_values=values)
    flags.DEFINE_string("coordinator_address", "", "where processes meet", flag_values=values)
    flags.DEFINE_integer("num_processes", None, "how many", flag_values=values)
    flags.DEFINE_integer("process_id", None, "which one this is", flag_values=values)
    try:
        rest = values(["ali_jax", *arguments], known_only=True)[1:]
    except flags.Error as error:
        raise UsageError(str(error)) from None
    for argument in rest:
        name = argument.partition("=")[0]
        if argument.startswith("-") and not _override_key(argument):
            own = [flag for flag in values if flag != "flagfile" and flag != "undefok"]
            hint = did_you_mean(name, [f"--{flag}" for flag in own])
            raise UsageError(f"There is no flag {name}.{hint}")
    if values.json and values.mode not in (*UNTRAINED, "evaluate"):
        raise UsageError(f"--json goes with --mode describe, preflight or evaluate, not with {values.mode}.")
    if bool(values.topology) != (values.mode == "preflight"):
        raise UsageError("--mode preflight and --topology, such as --topology v5e:16x16, go together.")
    if values.out is not None and values.mode in ("train", *UNTRAINED):
        raise UsageError(f"--out goes with evaluate and the modes that draw, not with {values.mode}.")
    if (values.workdirs is not None) != (values.mode == "compare"):
        raise UsageError(
            "--mode compare goes with --workdirs DIR DIR ..., and --workdirs with no other mode."
        )
    verbosity = _verbosity(values.verbosity)
    if values.mode == "compare":
        return _comparison(values.workdirs, values.out, rest, verbosity)
    if values.mode == "train" and not values.config:
        raise UsageError("Give --config, such as --config experiments/digits.py.")
    if values.coordinator_address and values.mode != "train":
        raise UsageError(f"--coordinator_address goes with --mode train, not with {values.mode}.")
    if not values.coordinator_address and (values.num_processes, values.process_id) != (None, None):
        raise UsageError("--num_processes and --process_id need --coordinator_address HOST:PORT.")
    if values.mode == "preflight" and not values.config:
        raise UsageError("Give --config, such as --config experiments/svhn.py.")
    if not values.workdir and not (values.mode in UNTRAINED and values.config):
        raise UsageError("Give --workdir, the folder of the run.")
    out = _path(values.out) if values.out else None
    workdir = _path(values.workdir or ".")
    return Options(
        values.mode,
        workdir,
        out,
        values.json,
        values.config,
        rest,
        values.topology,
        values.coordinator_address,
        values.num_processes,
        values.process_id,
        verbosity=verbosity,
    )


def _verbosity(text: str) -> int:
    """Return absl's level of a name such as warning, or of its number."""
    by_number = {str(level): level for level in VERBOSITY.values()}
    if text.lower() not in {**VERBOSITY, **by_number}:
        raise UsageError(f"--verbosity is {text!r}; it must be one of {', '.join([*VERBOSITY, *by_number])}.")
    return {**VERBOSITY, **by_number}[text.lower()]


def _comparison(first: str, out: str | None, rest: Sequence[str], verbosity: int) -> Options:
    """Return the options of a comparison: --workdirs has taken the first folder, the rest are the others."""
    if options := [argument for argument in rest if argument.startswith("-")]:
        raise UsageError(f"{options[0]} goes with a run, not with --mode compare.")
    folders = tuple(map(_path, (first, *rest)))
    if len(folders) < 2:
        raise UsageError("--workdirs needs two folders or more, such as --workdirs runs/a runs/b.")
    page = _path(out or "compare.html")
    return Options("compare", folders[0], page, False, None, [], workdirs=folders, verbosity=verbosity)


def _path(text: str) -> Path:
    """Return a path with ~ resolved, which no shell does after an = sign; unknown users stay as they are."""
    return Path(os.path.expanduser(text))


def load_config(spec: str) -> Config:
    """Call `get_config` of FILE, or with a variant of FILE:VARIANT, and check what it returns.

    Raises:
      UsageError: there is no such file, or it gives no configuration; the message says where it fails.
    """
    file, colon, variant = (spec, "", "") if Path(spec).is_file() else spec.partition(":")
    if not Path(file).is_file():
        raise UsageError(f"There is no config file {file!r} in {Path.cwd()}.")
    try:
        get_config = runpy.run_path(file).get("get_config")
        if not callable(get_config):
            raise UsageError(f"{file} defines no function get_config().")
        variants = (variant,) if colon else ()
        try:
            inspect.signature(get_config).bind(*variants)
        except TypeError:
            raise UsageError(
                f"get_config of {file} takes {'no' if colon else 'a'} variant (FILE:VARIANT)."
            ) from None
        config = get_config(*variants)
    except UsageError:
        raise
    except SyntaxError as error:
        raise UsageError(f"{error.filename}, line {error.lineno}: {error.msg}.") from None
    except Exception as error:
        lines = [
            frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file
        ]
        where = f"{file}, line {lines[-1]}" if lines else file
        raise UsageError(f"{where}: {type(error).__name__}: {error}") from None
    if not isinstance(config, ConfigDict):
        raise UsageError(f"get_config of {file} returned {type(config).__name__}, not a ConfigDict.")
    try:
        configs.check_keys(config)
    except ValueError as error:
        raise UsageError(f"{file}: {error}") from None
    return config.lock()


def override(config: Config, arguments: Sequence[str]) -> None:
    """Set the values that arguments such as `--config.optimizer.generator.b1=0.5` give.

    Raises:
      UsageError: an unknown key, a value of the wrong type, or something else than overrides.
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
    """Say of what type the value must be that a message of absl's or ml_collections' rejects."""
    match = re.match(r"flag (--config\.([\w.]+)=.*?): ", message)
    if match is None or match.group(2) not in known:
        return message.splitlines()[0]
    old = known[match.group(2)]
    return f"{match.group(1)} is no {type(old).__name__}; the value in the config is {old!r}."


def _override_key(argument: str) -> str:
    """Return the key of an argument such as `--config.batch_size=32`, or "" for another argument."""
    match = re.match(r"--?(?:no)?config\.([^=]*)", argument)
    return match.group(1) if match else ""
