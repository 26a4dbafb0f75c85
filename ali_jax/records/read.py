"""The files of a run, read: its config, curves, numbers and sittings, and warnings about the numbers."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ali_jax import config as configs
from ali_jax import evaluate as evaluators
from ali_jax.config import Config
from ali_jax.metrics.intervals import wilson_interval
from ali_jax.records.workdir import checkpoint_steps, read_config, read_sittings
from ali_jax.records.writers import TRAINING, MetricsRow, Spread, read_rows, spreads

EVERY_STEP = 2**62


class Run(NamedTuple):
    """A run, as its folder records it."""

    workdir: Path
    config: Config
    training: list[MetricsRow]  # the rows of metrics.jsonl that training wrote
    evaluations: list[MetricsRow]  # and those that evaluations wrote
    summary: dict[str, Any]  # empty until the run is finished
    sittings: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.workdir.resolve().name

    @property
    def step(self) -> int:
        """The last step that any file tells of."""
        steps = [row["step"] for row in (*self.training, *self.evaluations)]
        return max([*steps, *checkpoint_steps(self.workdir)], default=0)

    @property
    def metrics(self) -> dict[str, float | None]:
        """The numbers of the last evaluation, all of one step.

        `--mode evaluate` adds to those of the same step. At a later step it takes their place.
        """
        return self._evaluation[1]

    @property
    def evaluated_step(self) -> int:
        """The step of `metrics`; that of the run if it was not evaluated."""
        return self._evaluation[0]

    @property
    def _evaluation(self) -> tuple[int, dict[str, float | None]]:
        last = self.evaluations[-1] if self.evaluations else {}
        step, numbers = last.get("step", -1), {name: v for name, v in last.items() if name != "step"}
        later = _json(self.workdir / "evaluation.json")
        of_later, by_name = later.get("step"), later.get("metrics")
        if isinstance(of_later, int) and isinstance(by_name, dict) and of_later >= step:
            step, numbers = of_later, ({} if of_later > step else numbers) | by_name
        valid: dict[str, float | None] = {
            name: value for name, value in numbers.items() if value is None or isinstance(value, (int, float))
        }
        return (step, valid) if valid else (self.step, {})

    @property
    def members(self) -> int:
        """The number of members of a population; 1 for a single run."""
        rows = (*self.training[-1:], *self.evaluations[-1:])
        return max((len(spread.members) for row in rows for spread in spreads(row).values()), default=0) or 1


class Concern(NamedTuple):
    """A warning: something that a reader should look at before believing the numbers."""

    what: str  # what the numbers show
    why: str  # what that may mean, or what to do


def read_run(workdir: Path) -> Run:
    """Read the run in a folder; raise a ValueError if there is none or if its config is damaged."""
    config = read_config(workdir)
    rows = [row for row in read_rows(workdir / "metrics.jsonl", EVERY_STEP) if isinstance(row["step"], int)]
    training = [row for row in rows if TRAINING in row]
    evaluations = [row for row in rows if TRAINING not in row]
    return Run(
        workdir, config, training, evaluations, _json(workdir / "summary.json"), read_sittings(workdir)
    )


def curves(rows: list[MetricsRow]) -> dict[str, tuple[list[int], list[Spread]]]:
    """Return the steps and the values of each number in rows, in the order of first appearance."""
    by_name: dict[str, tuple[list[int], list[Spread]]] = {}
    for row in rows:
        for name, spread in spreads({k: v for k, v in row.items() if k != "step"}).items():
            steps, values = by_name.setdefault(name, ([], []))
            steps.append(row["step"])
            values.append(spread)
    return by_name


def changed(config: Config) -> dict[str, tuple[Any, Any]]:
    """Return (default, value) of each key that is not at its default."""
    differences = configs.differences(configs.base(), config)
    return {key: values for key, values in differences.items() if key != "dataset.shape"}


def interval(
    name: str, spread: Spread, metrics: Mapping[str, float | None]
) -> tuple[float, float, str] | None:
    """Return the ends of a number's 95 % interval and what it is over, or None if it has no interval.

    For a population it is the interval over members; for a share of test rows, Wilson's over these rows.
    """
    if spread.low is not None and spread.high is not None:
        return spread.low, spread.high, "members"
    number = evaluators.number(name.removeprefix("raw/"))
    n = metrics.get(number.share_of) if number else None
    if spread.mean is None or not n:
        return None
    return *wilson_interval(spread.mean * n, int(n)), "test rows"


class _Check(NamedTuple):
    """A condition under which numbers are a concern; it is skipped if one of them is missing."""

    names: tuple[str, ...]  # of the numbers, or of the facts about the data below
    is_bad: Callable[..., bool]  # of their values
    what: str  # a template for the values
    why: str


_CLASSES, _MODES = "data/classes", "data/modes"  # how many the data have
_CHECKS = (
    _Check(
        ("class_share_min", _CLASSES),
        lambda share, classes: share < 0.2 / classes,
        "A class is nearly missing: the rarest has {0:.2%} of the samples.",
        "Part of the data is not generated (mode collapse). Compare class_kl with its floor.",
    ),
    _Check(
        ("class_kept", _CLASSES),
        lambda share, classes: share < 2 / classes,
        "Reconstructions forget their class: {0:.1%} keep it.",
        "The encoder is ignored, or encoder and decoder do not match, or training has only begun.",
    ),
    _Check(
        ("modes_strict", _MODES),
        lambda count, modes: count < modes,
        "{0:.3g} of {1} modes get a fifth of their fair share of samples.",
        "The others are missing or nearly so (mode collapse), or their samples lie far from them.",
    ),
    _Check(
        ("stacked_modes_strict", "stacked_modes_strict_real"),
        lambda count, real: count < real,
        "{0:.4g} classes of stacks get a fifth of their fair share of samples; of real stacks {1:.4g} do.",
        "The others are missing or nearly so (mode collapse).",
    ),
    _Check(
        ("reconstruction_mse", "reconstruction_mse_random_pair"),
        lambda error, pair: error > 0.8 * pair,
        "Reconstructions are hardly nearer to their originals than a random image: error {0:.3g}, random "
        "pair {1:.3g}.",
        "The encoder is ignored, or encoder and decoder do not match.",
    ),
    _Check(
        ("mode_kept", _MODES),
        lambda share, modes: share < 3 / modes,
        "Reconstructions forget their mode: {0:.1%} stay with it.",
        "The encoder is ignored, or encoder and decoder do not match.",
    ),
    _Check(
        ("posterior_sigma",),
        lambda sigma: sigma < 0.02,
        "The encoder is nearly deterministic: its median sigma is {0:.2g}.",
        "The codes of single images fill no volume, so that draws from the prior may fall between them.",
    ),
    _Check(
        ("posterior_sigma",),
        lambda sigma: sigma > 0.95,
        "The encoder nearly returns the prior: its median sigma is {0:.2g}.",
        "Most dimensions of a code say nothing about the image.",
    ),
    _Check(
        ("memorisation",),
        lambda ratio: ratio < 0.5,
        "Samples lie much nearer to training images than test images do: ratio {0:.2g}.",
        "The decoder may copy training images. Look at the nearest neighbours.",
    ),
    _Check(
        ("near_duplicates",),
        lambda share: share > 0.01,
        "{0:.1%} of the test images are also in train, or nearly.",
        "Numbers of test rows say less about new images: take the copies out of one of the two.",
    ),
    _Check(
        ("accuracy/data", "accuracy/sample"),
        lambda data, sample: min(data, sample) > 0.99,
        "The discriminator tells nearly all pairs apart: {0:.1%} and {1:.1%}.",
        "Encoder and decoder learn little from it. Strengthen the penalty, or lower its learning rate.",
    ),
    *(
        _Check(
            (f"batch_norm_gap_{network}",),
            lambda gap: gap > 0.1,
            f"Running and batch statistics disagree in the {network}: {{0:.2g}} of its output's variance.",
            "The network that is evaluated is not the one that was trained. More steps, or a lower learning "
            "rate, let the statistics settle.",
        )
        for network in ("encoder", "decoder")
    ),
)


def concerns(
    metrics: Mapping[str, float | None], last: MetricsRow, classes: int, modes: int
) -> list[Concern]:
    """Return warnings about the numbers of a run.

    Args:
      metrics: of its last evaluation.
      last: its last row of training metrics; empty if there is none.
      classes, modes: how many the data have; 0 if that is unknown.
    """
    numbers = {**last, **metrics, _CLASSES: classes or None, _MODES: modes or None}
    return [*_diverged(last), *(concern for check in _CHECKS if (concern := _apply(check, numbers)))]


def _diverged(last: MetricsRow) -> list[Concern]:
    members = spreads(last).get("loss/generator", Spread(None)).members
    diverged = [str(k) for k, value in enumerate(members) if value is None]
    if not diverged:
        return []
    what = f"{len(diverged)} of {len(members)} members have diverged: {', '.join(diverged)}."
    return [Concern(what, "Means, deviations and intervals are those of the others.")]


def _apply(check: _Check, numbers: Mapping[str, float | None]) -> Concern | None:
    values = [value for name in check.names if (value := numbers.get(name)) is not None]
    if len(values) < len(check.names) or not check.is_bad(*values):
        return None
    return Concern(check.what.format(*values), check.why)


def _json(path: Path) -> dict[str, Any]:
    """Read a JSON object; return an empty one if the file is missing or holds something else."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
