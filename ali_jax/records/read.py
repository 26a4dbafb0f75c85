"""What the files of a run say: its config, curves, numbers and sittings, and what is suspicious there."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ali_jax import config as configs
from ali_jax.config import Config
from ali_jax.metrics.intervals import wilson_interval
from ali_jax.records.workdir import checkpoint_steps, read_config, read_sittings
from ali_jax.records.writers import TRAINING, MetricsRow, Spread, read_rows, spreads

EVERY_STEP = 2**62

# How many rows or samples the numbers of an evaluator are from, by the names that they are reported under.
COUNTS = {
    "error_extremes": ("n_test",),
    "reconstruction_error": ("n_test",),
    "class_balance": ("n_samples", "n_test_labelled"),
    "hidden_probe": ("n_train_labelled", "n_test_labelled"),
    "probes": ("n_train_labelled", "n_test_labelled"),
    "posterior": ("n_test",),
    "memorisation": ("n_memorisation", "n_train"),
    "modes": ("n_test",),
    "stacked_modes": ("n_stacked", "n_stacked_real", "n_test_labelled"),
    "batch_norm": ("n_batch_norm",),
}

# Numbers that are shares of so many test rows; the intervals beside them are from those rows.
SHARES = {
    "class_kept": "n_test_labelled",
    "class_kept_sampled": "n_test_labelled",
    "classifier_accuracy": "n_test_labelled",
    "classifier_error": "n_test_labelled",
    **{
        f"{probe}_accuracy{of}": "n_test_labelled"
        for probe in ("knn", "linear_probe")
        for of in ("", "_pixels", "_pca", "_untrained")
    },
    "hidden_knn_accuracy": "n_test_labelled",
    "hidden_knn_accuracy_untrained": "n_test_labelled",
    "mode_kept": "n_test",
}


class Run(NamedTuple):
    """A run, as its folder tells it."""

    workdir: Path
    config: Config
    training: list[MetricsRow]  # of metrics.jsonl
    evaluations: list[MetricsRow]  # likewise
    summary: dict[str, Any]  # empty before the end
    sittings: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.workdir.resolve().name

    @property
    def step(self) -> int:
        """The last step that is known of."""
        steps = [row["step"] for row in (*self.training, *self.evaluations)]
        return max([*steps, *checkpoint_steps(self.workdir)], default=0)

    @property
    def metrics(self) -> dict[str, float | None]:
        """The numbers of the last evaluation, and what `--mode evaluate` has found of the same model."""
        last = self.evaluations[-1] if self.evaluations else {}
        numbers = {name: value for name, value in last.items() if name != "step"}
        later = _json(self.workdir / "evaluation.json")
        if later.get("step") == self.step and isinstance(later.get("metrics"), dict):
            numbers |= later["metrics"]
        return {
            name: value for name, value in numbers.items() if value is None or isinstance(value, (int, float))
        }

    @property
    def members(self) -> int:
        """How many runs the population has; 1 for a single run."""
        rows = (*self.training[-1:], *self.evaluations[-1:])
        return max((len(spread.members) for row in rows for spread in spreads(row).values()), default=0) or 1


class Concern(NamedTuple):
    """Something that a reader should look at before believing the numbers."""

    what: str
    why: str


def read_run(workdir: Path) -> Run:
    """Read the run in a folder; a ValueError says that there is none, or what is damaged."""
    config = read_config(workdir)
    rows = [row for row in read_rows(workdir / "metrics.jsonl", EVERY_STEP) if isinstance(row["step"], int)]
    training = [row for row in rows if TRAINING in row]
    evaluations = [row for row in rows if TRAINING not in row]
    return Run(
        workdir, config, training, evaluations, _json(workdir / "summary.json"), read_sittings(workdir)
    )


def curves(rows: list[MetricsRow]) -> dict[str, tuple[list[int], list[Spread]]]:
    """Return the steps and values of each name that rows hold, in the order of their first appearance."""
    found: dict[str, tuple[list[int], list[Spread]]] = {}
    for row in rows:
        for name, spread in spreads({k: v for k, v in row.items() if k != "step"}).items():
            steps, values = found.setdefault(name, ([], []))
            steps.append(row["step"])
            values.append(spread)
    return found


def changed(config: Config) -> dict[str, tuple[Any, Any]]:
    """Return the keys that differ from the defaults, each with its default and its value."""
    found = configs.differences(configs.base(), config)
    return {key: values for key, values in found.items() if key != "dataset.shape"}


def interval(
    name: str, spread: Spread, metrics: Mapping[str, float | None]
) -> tuple[float, float, str] | None:
    """Return a 95 % interval and over what it is: a population's members or, of a share, the test rows."""
    if spread.low is not None and spread.high is not None:
        return spread.low, spread.high, "members"
    n = metrics.get(SHARES.get(name.removeprefix("raw/"), ""))
    if spread.mean is None or not n:
        return None
    return *wilson_interval(spread.mean * n, int(n)), "test rows"


def concerns(
    metrics: Mapping[str, float | None], last: MetricsRow, classes: int, modes: int
) -> list[Concern]:
    """Return what is suspicious about the numbers of a run.

    Args:
      metrics: of its last evaluation.
      last: its last row of training metrics, or nothing.
      classes, modes: how many the data have; 0 where that is unknown.
    """
    known = {name: value for name, value in {**last, **metrics}.items() if value is not None}
    found = []

    def check(names: tuple[str, ...], is_bad: Any, what: str, why: str) -> None:
        if all(name in known for name in names):
            values = [known[name] for name in names]
            if is_bad(*values):
                found.append(Concern(what.format(*values), why))

    members = spreads(last).get("loss/generator", Spread(None)).members
    lost = [str(k) for k, value in enumerate(members) if value is None]
    if lost:
        what = f"{len(lost)} of {len(members)} members have diverged: {', '.join(lost)}."
        found.append(Concern(what, "Means, deviations and intervals are those of the others."))
    if classes:
        check(
            ("class_share_min",),
            lambda share: share < 0.2 / classes,
            "A class is nearly missing: the rarest has {0:.2%} of the samples.",
            "Part of the data is not generated (mode collapse). Compare class_kl with its floor.",
        )
        check(
            ("class_kept",),
            lambda kept: kept < 2 / classes,
            "Reconstructions forget their class: {0:.1%} keep it.",
            "The encoder is ignored, or encoder and decoder do not fit together, or training has only begun.",
        )
    if modes:
        check(
            ("modes_strict",),
            lambda count: count < modes,
            f"{{0:.3g}} of {modes} modes get a fifth of their fair share of samples.",
            "The others are missing or nearly so (mode collapse), or their samples lie far from them.",
        )
    check(
        ("stacked_modes_strict", "stacked_modes_strict_real"),
        lambda count, real: count < real,
        "{0:.4g} classes of stacks get a fifth of their fair share of samples; of real stacks {1:.4g} do.",
        "The others are missing or nearly so (mode collapse).",
    )
    check(
        ("reconstruction_mse", "reconstruction_mse_random_pair"),
        lambda error, pair: error > 0.8 * pair,
        "Reconstructions are hardly nearer to their originals than a random image: error {0:.3g}, pair "
        "{1:.3g}.",
        "The encoder is ignored, or encoder and decoder do not fit together.",
    )
    check(
        ("mode_kept",),
        lambda kept: modes and kept < 3 / modes,
        "Reconstructions forget their mode: {0:.1%} stay with it.",
        "The encoder is ignored, or encoder and decoder do not fit together.",
    )
    check(
        ("posterior_sigma",),
        lambda sigma: sigma < 0.02,
        "The encoder is nearly deterministic: its median sigma is {0:.2g}.",
        "The codes of single images fill no volume, so that the prior may fall between them.",
    )
    check(
        ("posterior_sigma",),
        lambda sigma: sigma > 0.95,
        "The encoder nearly returns the prior: its median sigma is {0:.2g}.",
        "Most dimensions of a code say nothing about the image.",
    )
    check(
        ("memorisation",),
        lambda ratio: ratio < 0.5,
        "Samples lie much nearer to training images than test images do: ratio {0:.2g}.",
        "The decoder may copy training images; see the nearest neighbours.",
    )
    check(
        ("accuracy/data", "accuracy/sample"),
        lambda data, sample: min(data, sample) > 0.99,
        "The discriminator tells nearly all pairs apart: {0:.1%} and {1:.1%}.",
        "Encoder and decoder learn little from it. Strengthen the penalty, or lower its learning rate.",
    )
    for network in ("encoder", "decoder"):
        check(
            (f"batch_norm_gap_{network}",),
            lambda gap: gap > 0.1,
            f"Running and batch statistics disagree in the {network}: {{0:.2g}} of its output's variance.",
            "What is evaluated is not what was trained. More steps, or a lower learning rate, let them "
            "settle.",
        )
    return found


def _json(path: Path) -> dict[str, Any]:
    """Read a JSON object; of a file that is none, or absent, nothing."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
