"""The folder of a run: which process may use it, what is in it, and whether a config continues its run."""

import contextlib
import fcntl
import json
import math
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ali_jax import config as configs
from ali_jax.config import Config

_PARTIAL = ".part"  # suffix of a file that is being written


class RunError(RuntimeError):
    """A run cannot start or continue; the message says why."""


def check_same_run(config: Config, workdir: Path) -> None:
    """Raise a ValueError if a folder has a run that this config does not continue."""
    path = workdir / "config.json"
    if not path.exists():
        if checkpoint_steps(workdir):
            raise ValueError(f"{workdir} has checkpoints but no config.json: choose another --workdir.")
        return
    old = read_config(workdir)
    conflicts = configs.conflicts(old, config)
    if "init_from" in conflicts and len({absolute(path) for path in conflicts["init_from"]}) == 1:
        del conflicts["init_from"]
    if not conflicts:
        return
    keys = "; ".join(f"{key} was {was!r} and is {now!r}" for key, (was, now) in conflicts.items())
    message = f"{workdir} holds a run of another config: {keys}. Choose another --workdir"
    if list(conflicts) == ["num_steps"] and config.num_steps > old.num_steps:
        message = (
            f"{workdir} holds a run of another config: num_steps was {old.num_steps} and is "
            f"{config.num_steps}, and the schedule of {' and of '.join(configs.schedules(old))} follows "
            f"num_steps. To train longer, start a new run from its weights: another --workdir and "
            f"{start_from(workdir)}"
        )
    raise ValueError(f"{message}.")


def start_from(workdir: Path) -> str:
    """Return the flags by which a new run starts from all weights of the run in a folder."""
    networks = "\"('encoder', 'decoder', 'discriminator')\""
    return f"--config.init_from={shlex.quote(str(workdir))} --config.init_networks={networks}"


def absolute(path: str) -> str:
    """Return a path as `config.json` has it; "" and the name of a set on a hub, hf:NAME, stay."""
    return os.path.abspath(os.path.expanduser(path)) if path and not path.startswith("hf:") else path


def with_known_shape(config: Config, workdir: Path) -> Config:
    """Return the config with the data shape of the run in a folder, if the config itself states none."""
    if config.dataset.shape or not (workdir / "config.json").exists():
        return config
    config = config.copy_and_resolve_references()
    config.dataset.shape = read_config(workdir).dataset.shape
    return config


def read_config(workdir: Path) -> Config:
    """Read the config of the run in a folder.

    Raises:
      ValueError: there is no config, or it is damaged.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise ValueError(f"{workdir} holds no run (no config.json there): train one, or correct --workdir.")
    try:
        return configs.from_json(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def checkpoint_steps(workdir: Path) -> list[int]:
    """Return the steps of the run's finished checkpoints, oldest first."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit())


def is_finished(config: Config, workdir: Path) -> bool:
    """Tell whether the run in a folder has a summary of all steps that the config asks for."""
    try:
        return json.loads((workdir / "summary.json").read_text())["step"] >= config.num_steps
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False  # missing or damaged: it is written again


def read_metrics(workdir: Path) -> dict[str, float]:
    """Return the numbers of the last evaluation of a finished run, with NaN for JSON's null."""
    metrics = json.loads((workdir / "summary.json").read_text())["metrics"]
    return {key: math.nan if value is None else value for key, value in metrics.items()}


def read_sittings(workdir: Path) -> list[dict[str, Any]]:
    """Return the facts about each sitting of a run, oldest first; none if they were not recorded."""
    try:
        sittings = json.loads((workdir / "sittings.json").read_text())
    except (OSError, ValueError):  # they are only shown: no run depends on them
        return []
    return (
        [sitting for sitting in sittings if isinstance(sitting, dict)] if isinstance(sittings, list) else []
    )


def note_sitting(workdir: Path, **facts: Any) -> None:
    """Record facts about a sitting: of a new one if they have `started`, or else of the last one."""
    sittings = read_sittings(workdir)
    if "started" in facts or not sittings:
        sittings.append({})
    sittings[-1].update(facts)
    write_text(workdir / "sittings.json", json.dumps(sittings, indent=2) + "\n")


def check_writable(workdir: Path) -> None:
    """Raise a RunError if the folder, or the folder in which it would be created, is not writable."""
    nearest = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise RunError(f"{nearest} is not a folder, so that {workdir} cannot be the --workdir.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise RunError(f"{nearest} cannot be written: choose another --workdir.")


@contextlib.contextmanager
def under_way() -> Iterator[None]:
    """Turn ValueErrors and OSErrors into RunErrors: after validation, failures are not usage errors."""
    try:
        yield
    except ValueError as error:
        raise RunError(str(error)) from error
    except OSError as error:
        raise RunError(
            f"{error.filename or 'A file could not be written'}: {error.strerror or error}. Checkpoints stay "
            "as they are: check the disk (space, permission), then give the same command to go on."
        ) from error


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Lock a folder for this process while the context lasts; nothing is written.

    Raises:
      RunError: another process has locked it.
    """
    folder = os.open(workdir, os.O_RDONLY)
    try:
        _lock(folder, workdir)
        yield
    finally:
        os.close(folder)


def _lock(folder: int, workdir: Path) -> None:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunError(f"Another process is training in {workdir}: wait for it, or choose another.") from None
    except OSError:  # a file system without locks
        return


def write_text(path: Path, text: str) -> None:
    """Write a file atomically, even if the machine stops."""
    partial = path.with_name(f".{path.name}.{os.getpid()}{_PARTIAL}")
    try:
        with partial.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Give a path beside a file, of the same suffix; what is written there replaces the file at the end."""
    partial = path.with_name(f".{os.getpid()}{_PARTIAL}.{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of files to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # not every file system can
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(workdir: Path) -> None:
    """Delete the files that a killed process was writing; the folder must be locked."""
    for folder in (workdir, workdir / "images"):
        for path in folder.glob(f".*{_PARTIAL}"):
            path.unlink(missing_ok=True)
