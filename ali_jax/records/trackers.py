"""Experiment trackers that a run reports to beside its own files.

A run is complete without them: one that fails is named once and left out, and the training goes on.
"""

import contextlib
import importlib.util
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from ali_jax import config as configs
from ali_jax.config import Config
from ali_jax.records.workdir import write_text

IDS = "trackers.json"  # in the folder of a run: its id in each tracker


class Tracker(Protocol):
    """What a tracker takes while a run is trained. Any method may raise."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Report finite numbers by name."""
        ...

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Report pictures by name, uint8 [H, W, 3]."""
        ...

    def close(self, *, failed: bool) -> None:
        """Report what is left, and whether the sitting failed."""
        ...


class Wandb:
    """Weights & Biases. All sittings of a run are one run there, whose steps go on.

    Its environment variables hold, such as WANDB_MODE=offline, WANDB_PROJECT and WANDB_NAME. What it keeps
    on this machine is in the folder wandb/ of the run.
    """

    def __init__(self, workdir: Path, config: Config) -> None:
        import wandb  # pyright: ignore[reportMissingImports] - an extra

        self._image = wandb.Image
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "ali_jax"),
            name=os.environ.get("WANDB_NAME", workdir.resolve().name),
            id=identity(workdir, "wandb"),
            resume="allow",
            dir=str(workdir),
            config=configs.flat(config),
            settings=wandb.Settings(console="off", silent=True),
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Report numbers."""
        self._run.log(dict(values), step=step)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Report pictures."""
        self._run.log({name: self._image(image) for name, image in images.items()}, step=step)

    def close(self, *, failed: bool) -> None:
        """Upload what is left or, offline, write it."""
        self._run.finish(exit_code=int(failed))


KINDS: dict[str, Callable[[Path, Config], Tracker]] = {"wandb": Wandb}


def check(names: Sequence[str]) -> None:
    """Raise a ValueError for a tracker whose library is not installed."""
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # none, or a folder of that name, as wandb makes one
            raise ValueError(
                f"config.trackers names {name!r}, which is not installed: pip install 'ali_jax[{name}]', or "
                "leave it out."
            )


def identity(workdir: Path, name: str) -> str:
    """Return the id that the run in a folder has in a tracker; the first call draws it."""
    path, known = workdir / IDS, {}
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(path.read_text())
    if not isinstance(known, dict) or not isinstance(known.get(name), str):
        known = {**(known if isinstance(known, dict) else {}), name: secrets.token_hex(4)}
        write_text(path, json.dumps(known, indent=2) + "\n")
    return known[name]


class Trackers:
    """The trackers of one sitting of a run; each is left out from its first failure on."""

    def __init__(
        self, names: Sequence[str], workdir: Path, config: Config, warn: Callable[[str], None]
    ) -> None:
        self._warn = warn
        self._open: dict[str, Tracker] = {}
        for name in dict.fromkeys(names):
            with self._guarded(name):
                self._open[name] = KINDS[name](workdir, config)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Report finite numbers by name."""
        for name, tracker in list(self._open.items()):
            with self._guarded(name):
                tracker.scalars(step, values)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Report pictures by name, uint8 [H, W, 3]."""
        for name, tracker in list(self._open.items()):
            with self._guarded(name):
                tracker.images(step, images)

    def close(self, *, failed: bool = False) -> None:
        """Close all of them."""
        for name, tracker in list(self._open.items()):
            with self._guarded(name):
                tracker.close(failed=failed)

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._open.pop(name, None)
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            self._warn(
                f"The tracker {name} failed and is left out: {reason.rstrip('.')}. The training goes on; its "
                "numbers and pictures are in the folder of the run."
            )
