"""Where a run's numbers and pictures go: metrics.jsonl, TensorBoard, PNG files and the console."""

import json
import math
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rich.box
from absl import logging
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from tensorboardX import SummaryWriter

from ali_jax.evaluate.figures import save_png
from ali_jax.names import printable
from ali_jax.records.trackers import Trackers
from ali_jax.records.workdir import write_text

MetricsRow = dict[str, Any]
TRAINING = "loss/generator"  # every row of training metrics has it, and no row of an evaluation


def read_rows(path: Path, last_step: int) -> list[MetricsRow]:
    """Return the rows of a metrics.jsonl up to a step, without lines that a crash left incomplete."""
    rows = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(step := row.get("step"), int) and step <= last_step:
            rows.append(row)
    return rows


def evaluation_at(rows: list[MetricsRow], step: int) -> dict[str, float] | None:
    """Return the numbers of the evaluation that was recorded at a step, or None if there was none."""
    for row in rows:
        if row["step"] == step and TRAINING not in row:
            return {key: value for key, value in row.items() if key != "step"}
    return None


class Spread(NamedTuple):
    """A number and its spread over the members of a population; for a single run only `mean` is set."""

    mean: float | None
    std: float | None = None
    low: float | None = None  # of the 95 % interval of the mean
    high: float | None = None
    members: tuple[float | None, ...] = ()


def spreads(scalars: Mapping[str, float | None]) -> dict[str, Spread]:
    """Group NAME, NAME/std, NAME/low, NAME/high and NAME/0, NAME/1, ... under NAME, in order."""
    by_name: dict[str, dict[str, float | None]] = {}
    for name, value in scalars.items():
        match = re.fullmatch(r"(.+)/(std|low|high|\d+)", name)
        owner, part = match.groups() if match and match[1] in scalars else (name, "mean")
        by_name.setdefault(owner, {})[part] = value
    return {
        name: Spread(
            parts["mean"],
            parts.get("std"),
            parts.get("low"),
            parts.get("high"),
            tuple(parts[i] for i in sorted(filter(str.isdigit, parts), key=int)),
        )
        for name, parts in by_name.items()
    }


class Records:
    """The files that a run appends to: metrics.jsonl, TensorBoard's events and images/.

    They are opened at the step that a run continues from. Rows of later steps are cut, since they will be
    written again. If several processes share a run, only one may `write`. `trackers` are told the same.
    """

    def __init__(
        self, workdir: Path, step: int, *, write: bool = True, trackers: Trackers | None = None
    ) -> None:
        self._trackers = trackers
        path = workdir / "metrics.jsonl"
        self.rows = read_rows(path, step)
        self._images = workdir / "images" if write else None
        if self._images is not None:
            self._images.mkdir(exist_ok=True)
            write_text(path, "".join(map(_line, self.rows)))
        self._file = (path if write else Path(os.devnull)).open("a")
        self._events = SummaryWriter(str(workdir), purge_step=step + 1, write_to_disk=write)

    def scalars(self, step: int, values: Mapping[str, float], **only_events: float | None) -> None:
        """Append a row; `only_events`, such as speed, go to TensorBoard alone: equal runs have equal rows."""
        row = {"step": step, **json_numbers(values)}
        self.rows.append(row)
        self._file.write(_line(row))
        self._file.flush()
        finite = {
            key: float(value)
            for key, value in {**values, **only_events}.items()
            if value is not None and math.isfinite(value)
        }
        for key, value in finite.items():
            self._events.add_scalar(key, value, step)
        self._events.flush()
        if self._trackers is not None:
            self._trackers.scalars(step, finite)

    def sync(self) -> None:
        """Flush all rows to disk; call it before a checkpoint that continues after them is written."""
        self._file.flush()
        if self._images is not None:
            os.fsync(self._file.fileno())

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Write pictures, uint8 [H, W, 3], to images/NAME_STEP.png."""
        for name, image in images.items():
            if self._images is not None:
                save_png(self._images / f"{name}_{step}.png", image)
            self._events.add_image(name, image, step, dataformats="HWC")
        if self._trackers is not None and images:
            self._trackers.images(step, images)

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        self._events.close()


class Terminal:
    """What a user sees of a run, on stderr: a progress bar on a terminal, lines otherwise.

    Verbosity is absl's: logging.INFO shows everything, logging.WARNING only warnings, anything lower nothing.
    """

    def __init__(self, total: int, *, quiet: bool = False, verbosity: int = logging.INFO) -> None:
        self._total, self._verbosity = total, verbosity
        self._console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=10),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=self._console,
            auto_refresh=False,
            disable=not self._console.is_terminal or verbosity < logging.INFO,
        )
        self._task = self._progress.add_task("", total=total, start=False)

    def start(self, step: int) -> None:
        """Show the progress bar, beginning at a step."""
        self._progress.start()
        self._progress.reset(self._task, total=self._total, completed=step)

    def progress(self, step: int, metrics: Mapping[str, float], images_per_second: float | None) -> None:
        """Move the progress bar."""
        losses = (f"{key[5].upper()} {value:.3g}" for key, value in _losses(metrics))
        text = f"{_rate(images_per_second)}losses {' '.join(losses)}"  # the whole bar must fit 80 columns
        self._progress.update(self._task, completed=step, description=text)
        self._progress.refresh()

    def log(
        self, step: int, metrics: Mapping[str, float], images_per_second: float | None, left: int
    ) -> None:
        """Print a line of training metrics, with `left` images to go; on a terminal the bar shows them."""
        if not self._console.is_terminal:
            time = f"  {format_seconds(left / images_per_second)} left" if images_per_second else ""
            self.say(f"step {step}/{self._total}  {_summary(metrics, images_per_second)}{time}")

    def say(self, text: str, level: int = logging.INFO) -> None:
        """Print a line, if the verbosity is at least its level."""
        if self._verbosity >= level:
            self._console.print(printable(text), markup=False)

    def table(self, title: str, scalars: Mapping[str, float]) -> None:
        """Print a table of numbers by name."""
        if self._verbosity >= logging.INFO:
            print_table(title, scalars, self._console)

    def close(self) -> None:
        """Stop the progress bar; what it shows stays on the screen."""
        self._progress.stop()


def print_table(title: str, scalars: Mapping[str, float], console: Console | None = None) -> None:
    """Print a table of numbers by name, `raw/NAME` beside NAME, on standard output unless a console is given.

    For a population it has the mean, the standard deviation and the interval of the mean. Counts (`n_`) are
    listed below the table.
    """
    numbers = spreads(scalars)
    raw = {key.removeprefix("raw/"): spread for key, spread in numbers.items() if key.startswith("raw/")}
    shown = {key: spread for key, spread in numbers.items() if not key.startswith(("raw/", "n_"))}
    counts = (f"{key} {spread.mean:,.0f}" for key, spread in numbers.items() if key.startswith("n_"))
    population = any(spread.members for spread in shown.values())
    table = Table(title=title, title_justify="left", box=rich.box.SIMPLE_HEAD)
    table.caption, table.caption_justify = "  ".join(counts), "left"
    table.add_column("name", overflow="fold")  # cut names would be the same for several numbers
    columns = ("mean", "std", "95 % interval") if population else ("value",)
    for column in (*columns, "raw") if raw else columns:
        table.add_column(column, justify="right")
    for name, spread in shown.items():
        limits = "" if spread.low is None else f"{_digits(spread.low)} to {_digits(spread.high)}"
        cells = (_digits(spread.mean), _digits(spread.std), limits)[: len(columns)]
        table.add_row(name, *cells, _digits(raw[name].mean) if name in raw else "")
    (console or Console(file=sys.stdout, highlight=False)).print(table)


def _digits(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"


def format_seconds(seconds: float) -> str:
    """Return a duration as h:mm:ss."""
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"


def _summary(metrics: Mapping[str, float], images_per_second: float | None) -> str:
    losses = (f"{key} {value:.4g}" for key, value in _losses(metrics))
    return _rate(images_per_second) + "  ".join(losses)


def _losses(metrics: Mapping[str, float]) -> list[tuple[str, float]]:
    """Return the losses; for a population, their means."""
    numbers = spreads(metrics).items()
    return [
        (key, spread.mean) for key, spread in numbers if key.startswith("loss/") and spread.mean is not None
    ]


def _rate(images_per_second: float | None) -> str:
    return "" if images_per_second is None else f"{images_per_second:.0f} images/s  "


def json_numbers(values: Mapping[str, float]) -> dict[str, float | None]:
    """Return the numbers with None in place of infinities and NaN, which JSON does not have."""
    return {key: float(value) if math.isfinite(value) else None for key, value in values.items()}


def _line(row: MetricsRow) -> str:
    return json.dumps(row) + "\n"
