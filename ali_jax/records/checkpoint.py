"""Checkpoints: a run's TrainState and what else it must remember, saved and restored by orbax.

A checkpoint holds two items: `state`, every leaf bit for bit, and `progress`, a small JSON object. Beside
them stand the checksums of all files, written last, before the checkpoint gets its name. So a folder with a
step for its name is whole when it appears, and damage that comes later is seen and named.
"""

import contextlib
import errno
import gc
import hashlib
import json
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from ali_jax.records.workdir import RunError, checkpoint_steps, sync_folder, write_text
from ali_jax.types import PyTree, TrainState

CHECKSUMS = "checksums.json"  # {file: [bytes, sha256]}
_UNFINISHED = ".orbax-checkpoint-tmp"  # ends the names of checkpoints that are being written
_NOTES = ("_CHECKPOINT_METADATA", "commit_success.txt")  # orbax's own, written after the checksums


class CheckpointError(RunError):
    """There is no checkpoint that can be read; the message says where and what to do."""


class _Manager(ocp.CheckpointManager):
    """A manager that leaves it to `hosts` to ask whether the run is preempted.

    Orbax asks too, for older steps and from another thread of the first process alone, after which the
    processes are given different answers.
    """

    def reached_preemption(self, step: int) -> bool:
        """Answer no."""
        del step
        return False


def open_manager(directory: Path, keep: int = 1, *, create: bool = False) -> ocp.CheckpointManager:
    """Open a directory of checkpoints, named by their steps, of which the newest `keep` stay.

    Saving is asynchronous. Only with `create`, for who saves, is a missing directory made, and what a killed
    process left of an unfinished save deleted.
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
    """Save a state under its step, in the background; a step that is already there stays as it is.

    The arrays are copied before this returns, so that the state may be donated to the next call.

    Raises:
      CheckpointError: this save, or the one before it, could not be written; older checkpoints stay.
    """
    step = int(state.step)
    if step not in manager.all_steps():
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress))
        with _writing(manager):
            manager.save(step, args=items, force=True)


def wait(manager: ocp.CheckpointManager) -> None:
    """Wait until all that was saved is on disk; raise a CheckpointError if it could not be written."""
    with _writing(manager):
        manager.wait_until_finished()


def close(manager: ocp.CheckpointManager, *, failed: bool) -> None:
    """Release the manager, whatever became of its last save; call `wait` before, to know.

    Where one of several processes `failed` it waits for none of the others, which may be gone.
    """
    if failed and jax.process_count() > 1:
        return
    with contextlib.suppress(Exception):
        manager.close()


@contextlib.contextmanager
def _writing(manager: ocp.CheckpointManager) -> Iterator[None]:
    """Make CheckpointErrors of what goes wrong while a checkpoint is written."""
    try:
        yield
    except Exception as error:  # tensorstore raises ValueErrors, threads whatever met them
        kept = checkpoint_steps(Path(manager.directory).parent)
        stays = f"The last good one, of step {kept[-1]}, stays" if kept else "There is none yet"
        raise CheckpointError(
            f"A checkpoint could not be written to {manager.directory}: {_first_line(error)}. {stays}: see "
            "to the disk (space, permission), then give the same command to go on."
        ) from error


def _seal(directory: Path) -> None:
    """Put the checkpoint that is about to be committed on disk, with the checksums of its files."""
    for folder in directory.glob(f"*{_UNFINISHED}"):
        found = {}
        for path in _files(folder):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
            found[str(path.relative_to(folder))] = [path.stat().st_size, digest]
        for inner in (path for path in folder.rglob("*") if path.is_dir()):
            sync_folder(inner)
        write_text(folder / CHECKSUMS, json.dumps(found, indent=1) + "\n")


def _files(folder: Path) -> list[Path]:
    """Return the files of a checkpoint whose checksums are kept."""
    own = [folder / name for name in (CHECKSUMS, *_NOTES)]
    return sorted(path for path in folder.rglob("*") if path.is_file() and path not in own)


def damage(folder: Path) -> str:
    """Return what is wrong with the files of a checkpoint, by name, or "" where they are as saved."""
    try:
        wanted = json.loads((folder / CHECKSUMS).read_text())
        wanted = {str(name): (int(size), str(digest)) for name, (size, digest) in wanted.items()}
    except FileNotFoundError:
        return f"it has no {CHECKSUMS}: part of it was deleted."
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return f"{CHECKSUMS} is damaged."
    found = {str(path.relative_to(folder)): path for path in _files(folder)}
    for name, (size, digest) in wanted.items():
        if name not in found:
            return f"{name} is missing."
        if found[name].stat().st_size != size:
            return f"{name} has {found[name].stat().st_size} bytes, not {size}."
        with found[name].open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                return f"{name} was changed: its checksum is another."
    return ""


def restore(
    manager: ocp.CheckpointManager, like: TrainState
) -> tuple[TrainState, dict[str, Any], dict[int, str]]:
    """Restore the newest checkpoint that can be read.

    Args:
      manager: from `open_manager`.
      like: a state of `jax.ShapeDtypeStruct`s, with the shardings that the arrays shall have.

    Returns:
      The state, the progress, and what was wrong with each newer checkpoint, by step.

    Raises:
      CheckpointError: there is none, or none can be read.
    """
    failures: dict[int, str] = {}
    for step in sorted(manager.all_steps(), reverse=True):
        found = _damage(Path(manager.directory) / str(step))
        held = found or _read(manager, step, like)
        if not isinstance(held, str):
            return held.state, held.progress, failures
        failures[step] = held
    if not failures:
        raise CheckpointError(f"There is no checkpoint in {manager.directory}: train first (--mode train).")
    newest = max(failures)
    raise CheckpointError(
        f"No checkpoint in {manager.directory} can be read. Of step {newest}: {failures[newest]} "
        "Restore the files from a copy, or delete the directory to train anew."
    )


def delete(manager: ocp.CheckpointManager, damaged: Iterable[int]) -> None:
    """Delete checkpoints that `restore` could not read, so that they can be saved again."""
    for step in damaged:
        manager.delete(step)


def _damage(folder: Path) -> str:
    """Return what is wrong with a checkpoint; of several processes the first looks at it for all."""
    if jax.process_count() == 1:
        return damage(folder)
    text = damage(folder).encode()[:200] if jax.process_index() == 0 else b""
    shared = np.frombuffer(text.ljust(200), np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(shared))).decode(errors="replace").strip()


def _read(manager: ocp.CheckpointManager, step: int, like: TrainState) -> Any:
    """Return the items of a step, or as a string what is wrong with them."""
    items = ocp.args.Composite(state=ocp.args.StandardRestore(like), progress=ocp.args.JsonRestore())
    with _without_debris():
        try:
            held: Any = manager.restore(step, args=items)
        except Exception as error:  # orbax raises bare Exceptions for truncated files
            failure = _first_line(error)
        else:
            failure = _difference(held.state, like, step)
    return held if not failure else failure[:200].rstrip(".") + "."


def _first_line(error: BaseException) -> str:
    """Return what an error says, on one line; of a failed save, what made it fail."""
    while str(error) == "" and error.__cause__ is not None:
        error = error.__cause__
    if "No space left on device" in str(error):  # at the end of a text that names inner files
        return os.strerror(errno.ENOSPC)
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300].rstrip(".")


@contextlib.contextmanager
def _without_debris() -> Iterator[None]:
    """Keep from the user what a failed read leaves: coroutines never awaited, callbacks to a closed loop."""
    hook = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
            gc.collect()
    finally:
        sys.unraisablehook = hook


def _difference(state: PyTree, like: PyTree, step: int) -> str:
    """Return how a restored state differs from what was asked for, or "": orbax lets some damage pass."""
    if jax.tree.structure(state) != jax.tree.structure(like):
        return "it holds another kind of state."
    for found, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(like), strict=True):
        if found.shape != wanted.shape or found.dtype != wanted.dtype:
            kinds = [f"{a.dtype}{list(a.shape)}" for a in (found, wanted)]
            return f"it holds an array {kinds[0]}, not {kinds[1]}."
    return "" if int(state.step) == step else f"it holds the state of step {int(state.step)}."
