"""Checkpoints: a run's TrainState and what else it must remember, saved and restored by orbax.

A checkpoint holds two items: `state`, every leaf bit for bit, and `progress`, a small JSON object.
"""

import contextlib
import gc
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from ali_jax.types import PyTree, TrainState
from ali_jax.workdir import RunError


class CheckpointError(RunError):
    """There is no checkpoint that can be read; the message says where and what to do."""


def open_manager(directory: Path, keep: int = 1, *, create: bool = False) -> ocp.CheckpointManager:
    """Open a directory of checkpoints, named by their steps, of which the newest `keep` stay.

    Saving is asynchronous. Only with `create` is a missing directory made.
    """
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=create)
    return ocp.CheckpointManager(directory.absolute(), options=options)


def save(manager: ocp.CheckpointManager, state: TrainState, progress: dict[str, Any]) -> None:
    """Save a state under its step, in the background; a step that is already there stays as it is.

    The arrays are copied before this returns, so that the state may be donated to the next call.
    """
    step = int(state.step)
    if step not in manager.all_steps():
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress))
        manager.save(step, args=items, force=True)


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
        held = _read(manager, step, like)
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


def _read(manager: ocp.CheckpointManager, step: int, like: TrainState) -> Any:
    """Return the items of a step, or as a string what is wrong with them."""
    items = ocp.args.Composite(state=ocp.args.StandardRestore(like), progress=ocp.args.JsonRestore())
    with _without_debris():
        try:
            held: Any = manager.restore(step, args=items)
        except Exception as error:  # orbax raises bare Exceptions for truncated files
            failure = (str(error).strip() or type(error).__name__).splitlines()[0]
        else:
            failure = _difference(held.state, like, step)
    return held if not failure else failure[:200]


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
