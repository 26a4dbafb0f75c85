"""Checkpoints: a run's TrainState and its progress, saved and restored by Orbax.

A checkpoint has two items: `state`, every leaf bit for bit, and `progress`, a small JSON object that begins
with the format of the checkpoint. Last, before the checkpoint is renamed to its step, the checksums of all
files are written. So a folder named by a step is complete when it appears, and later damage is detected and
reported by file.
"""

import contextlib
import errno
import gc
import hashlib
import json
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from ali_jax import config as configs
from ali_jax.records.workdir import RunError, checkpoint_steps, sync_folder, write_text
from ali_jax.types import PyTree, TrainState

CHECKSUMS = "checksums.json"  # {file: [bytes, sha256]}
_UNFINISHED = ".orbax-checkpoint-tmp"  # suffix of a checkpoint that is being written
_COLLECTIVE = re.compile(r"\b(Gloo|NCCL|coordination service)\b")  # what connects processes
_NOTES = ("_CHECKPOINT_METADATA", "commit_success.txt")  # Orbax writes these after the checksums


class CheckpointError(RunError):
    """A checkpoint cannot be read or written; the message says where, and what to do."""


class _Manager(ocp.CheckpointManager):
    """A manager that does not ask JAX whether the run is preempted; `program.hosts` does.

    Orbax asks about older steps, and from a thread of the first process only. After that JAX gives the
    processes different answers.
    """

    def reached_preemption(self, step: int) -> bool:
        """Return False, without asking."""
        del step
        return False


def open_manager(directory: Path, keep: int = 1, *, create: bool = False) -> ocp.CheckpointManager:
    """Open a directory of checkpoints, which are named by their steps; the newest `keep` are retained.

    Saving is asynchronous. A process that saves must set `create`: it makes a missing directory and deletes
    unfinished checkpoints of a killed process.
    """
    directory = directory.absolute()
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        create=create,
        cleanup_tmp_directories=create,
        async_options=ocp.AsyncOptions(post_finalization_callback=lambda: _seal(directory)),
    )
    return _Manager(directory, options=options)


def save(manager: ocp.CheckpointManager, state: TrainState, progress: dict[str, Any]) -> None:
    """Save a state under its step, in the background; an existing checkpoint of that step is not replaced.

    The arrays are copied before this returns, so that the state may be donated to the next call.

    Raises:
      CheckpointError: this checkpoint or the one before it could not be written. Older ones are intact.
    """
    step = int(state.step)
    if step not in manager.all_steps():
        progress = {"format": configs.FORMAT, **progress}
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress))
        with _writing(manager):
            manager.save(step, args=items, force=True)


def wait(manager: ocp.CheckpointManager) -> None:
    """Wait until all checkpoints are on disk; raise a CheckpointError if one could not be written."""
    with _writing(manager):
        manager.wait_until_finished()


def close(manager: ocp.CheckpointManager, *, failed: bool) -> None:
    """Release the manager and ignore errors of its last save; call `wait` first to see them.

    If this is one of several processes and it `failed`, it does not wait for the others, which may be gone.
    """
    if failed and jax.process_count() > 1:
        return
    with contextlib.suppress(Exception):
        manager.close()


@contextlib.contextmanager
def _writing(manager: ocp.CheckpointManager) -> Iterator[None]:
    """Turn any error that occurs while a checkpoint is written into a CheckpointError.

    Errors of devices stay as they are: they say nothing about the disk. Processes wait for each other at each
    save, and one that is gone is such an error.
    """
    try:
        yield
    except Exception as error:  # TensorStore raises ValueErrors, threads raise anything
        if device_errors := [cause for cause in _causes(error) if is_device_error(cause)]:
            raise jax.errors.JaxRuntimeError(str(device_errors[0])) from error
        steps = checkpoint_steps(Path(manager.directory).parent)
        stays = f"The last good one, of step {steps[-1]}, stays" if steps else "There is none yet"
        raise CheckpointError(
            f"A checkpoint could not be written to {manager.directory}: {_first_line(error)}. {stays}: check "
            "the disk (space, permission), then give the same command to go on."
        ) from error


def is_device_error(error: BaseException) -> bool:
    """Whether an error comes from a device, or from the connection to another process of the run.

    Most are JaxRuntimeErrors. When a program is dispatched and fails later, reading its result may raise a
    ValueError with the same text.
    """
    return isinstance(error, jax.errors.JaxRuntimeError) or bool(_COLLECTIVE.search(str(error)))


def _causes(error: BaseException | None) -> list[BaseException]:
    """Return an error and those that led to it, the last one first."""
    causes = []
    while error is not None:
        causes.append(error)
        error = error.__cause__ or error.__context__
    return causes


def _seal(directory: Path) -> None:
    """Flush the checkpoint that is about to be committed to disk, and add the checksums of its files."""
    for folder in directory.glob(f"*{_UNFINISHED}"):
        checksums = {}
        for path in _files(folder):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
            checksums[str(path.relative_to(folder))] = [path.stat().st_size, digest]
        for inner in (path for path in folder.rglob("*") if path.is_dir()):
            sync_folder(inner)
        write_text(folder / CHECKSUMS, json.dumps(checksums, indent=1) + "\n")


def _files(folder: Path) -> list[Path]:
    """Return the files of a checkpoint that have a checksum."""
    others = [folder / name for name in (CHECKSUMS, *_NOTES)]
    return sorted(path for path in folder.rglob("*") if path.is_file() and path not in others)


def damage(folder: Path) -> str:
    """Return what is wrong with the files of a checkpoint, or "" if they are as they were saved."""
    try:
        saved = json.loads((folder / CHECKSUMS).read_text())
        saved = {str(name): (int(size), str(digest)) for name, (size, digest) in saved.items()}
    except FileNotFoundError:
        return f"it has no {CHECKSUMS}: part of it was deleted."
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return f"{CHECKSUMS} is damaged."
    files = {str(path.relative_to(folder)): path for path in _files(folder)}
    for name, (size, digest) in saved.items():
        if name not in files:
            return f"{name} is missing."
        if files[name].stat().st_size != size:
            return f"{name} has {files[name].stat().st_size} bytes, not {size}."
        with files[name].open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                return f"{name} was changed: its checksum differs."
    return ""


def restore(
    manager: ocp.CheckpointManager, like: TrainState
) -> tuple[TrainState, dict[str, Any], dict[int, str]]:
    """Restore the newest checkpoint that can be read.

    Args:
      manager: from `open_manager`.
      like: a state of `jax.ShapeDtypeStruct`s, with the shardings that the arrays will have.

    Returns:
      The state, the progress, and for each newer step what is wrong with its checkpoint.

    Raises:
      CheckpointError: there is no checkpoint, none can be read, or the newest sound one is of a later format
        or holds another model.
    """
    failures: dict[int, str] = {}
    for step in sorted(manager.all_steps(), reverse=True):
        folder = Path(manager.directory) / str(step)
        items = _damage(folder)
        if not items:
            _check_format(folder)
            items = _read(manager, step, like)
        if not isinstance(items, str):
            items.progress.pop("format", None)
            return items.state, items.progress, failures
        failures[step] = items
    if not failures:
        raise CheckpointError(f"There is no checkpoint in {manager.directory}: train first (--mode train).")
    newest = max(failures)
    raise CheckpointError(
        f"No checkpoint in {manager.directory} can be read. Of step {newest}: {failures[newest]} "
        "Restore the files from a copy, or delete the directory to train anew."
    )


def delete(manager: ocp.CheckpointManager, damaged: Iterable[int]) -> None:
    """Delete checkpoints that `restore` could not read, so that their steps can be saved again."""
    for step in damaged:
        manager.delete(step)


def _damage(folder: Path) -> str:
    """Return what is wrong with a checkpoint; if there are several processes, the first checks it for all."""
    if jax.process_count() == 1:
        return damage(folder)
    text = damage(folder).encode()[:200] if jax.process_index() == 0 else b""
    shared = np.frombuffer(text.ljust(200), np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(shared))).decode(errors="replace").strip()


def _check_format(folder: Path) -> None:
    """Raise a CheckpointError if a later version of this package wrote an undamaged checkpoint."""
    progress = json.loads((folder / "progress" / "metadata").read_text())
    try:
        configs.check_format(progress.get("format", 1))
    except ValueError as error:
        raise CheckpointError(f"The checkpoint {folder} cannot be read. {error}") from None


def _read(manager: ocp.CheckpointManager, step: int, like: TrainState) -> Any:
    """Return the items of a step, or a string that says what is wrong with them."""
    arguments = ocp.args.Composite(state=ocp.args.StandardRestore(like), progress=ocp.args.JsonRestore())
    with _without_debris():
        try:
            items: Any = manager.restore(step, args=arguments)
        except Exception as error:  # Orbax raises bare Exceptions for truncated files
            failure = _first_line(error)
            _check_same_model(Path(manager.directory) / str(step), like)
        else:
            failure = _difference(items.state, like, step)
        if failure:
            gc.collect()  # the debris, while nobody hears it
    return items if not failure else failure[:200].rstrip(".") + "."


def _check_same_model(folder: Path, like: TrainState) -> None:
    """Raise a CheckpointError if an undamaged checkpoint has arrays of other shapes than `like`."""
    try:
        with ocp.StandardCheckpointer() as reader:
            saved = _shapes(reader.metadata(folder / "state").item_metadata.tree)
    except Exception:  # what cannot be read is no evidence
        return
    expected = _shapes(like)
    for name in sorted(saved.keys() | expected.keys(), reverse=True):  # variables come before opt_state
        a, b = (shapes.get(name, "missing") for shapes in (saved, expected))
        if a != b:
            raise CheckpointError(
                f"The checkpoint {folder} is not damaged, but holds another model than the config and the "
                f"data describe: {name} is {a} there and {b} here. Give the run its config and its data "
                "again, or choose another --workdir."
            )


def _shapes(tree: PyTree) -> dict[str, str]:
    """Return the shape of every array of a tree by its path, which is the same for tuples and dicts."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): str(leaf.shape) for path, leaf in leaves}


def _first_line(error: BaseException) -> str:
    """Return the message of an error, or of its cause if it has none, on one line."""
    while str(error) == "" and error.__cause__ is not None:
        error = error.__cause__
    if "No space left on device" in str(error):  # it ends a long text about inner files
        return os.strerror(errno.ENOSPC)
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300].rstrip(".")


@contextlib.contextmanager
def _without_debris() -> Iterator[None]:
    """Silence what a failed read leaves behind: coroutines never awaited, callbacks to a closed loop."""
    hook = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.unraisablehook = hook


def _difference(state: PyTree, like: PyTree, step: int) -> str:
    """Return how a restored state differs from `like`, or ""; Orbax does not notice all damage."""
    if jax.tree.structure(state) != jax.tree.structure(like):
        return "it has another kind of state."
    for leaf, expected in zip(jax.tree.leaves(state), jax.tree.leaves(like), strict=True):
        if leaf.shape != expected.shape or leaf.dtype != expected.dtype:
            kinds = [f"{array.dtype}{list(array.shape)}" for array in (leaf, expected)]
            return f"it has an array {kinds[0]}, not {kinds[1]}."
    return "" if int(state.step) == step else f"it has the state of step {int(state.step)}."
