"""Detect a digit that was left out of the training, with ALI and with simple detectors.

    python -m benchmarks.anomaly --config experiments/digits.py --steps 3000 --digits 0 1 8
    python -m benchmarks.anomaly --config experiments/mnist_stable.py:ali --path mnist.npz --steps 1500

For every digit and seed, the training rows of the other nine digits are split at random into three parts. The
model and the simple detectors train on the first; the second calibrates all thresholds; the third counts
false alarms on rows from the same source. False alarms are also counted on the nine digits of the test split,
which in MNIST were written by other people. AUROC and AUPRC compare the left-out digit with the other nine in
the test split. No choice depends on test rows. The averaged parameters are used if the config keeps them.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.ensemble import IsolationForest

from ali_jax import data, game
from ali_jax.config import Config
from ali_jax.metrics import conformal, detection
from ali_jax.metrics.neighbors import nearest
from ali_jax.metrics.probes import pca
from ali_jax.program.command import load_config, override
from ali_jax.tools.anomaly import anomaly_scores
from ali_jax.tools.trained import model_of
from benchmarks.compare import markdown

HELD_OUT_SHARE = 0.15  # of the nine digits' training rows, for calibration and again for counting
MOST_HELD_OUT = 2_000

# Options of `anomaly_scores` for each row of the table.
MODEL_SCORES = {
    "ALI, reconstruction": {"kind": "egbad", "weight": 1.0},
    "ALI, EGBAD with features": {"kind": "egbad"},
    "ALI, EGBAD with logit": {"kind": "egbad_logit"},
    "ALI, ladder of 20 steps": {"kind": "ladder", "steps": 20},
}


class Parts(NamedTuple):
    """The rows of one digit and seed, x as stored."""

    fit: np.ndarray
    calibration: np.ndarray
    held_out: np.ndarray
    normal: np.ndarray  # of the test split
    anomalous: np.ndarray  # of the test split


class Outcome(NamedTuple):
    """The performance of one detector in one run."""

    auroc: detection.Estimate
    auprc: detection.Estimate
    held_out_alarms: float  # share of the held-out training rows
    test_alarms: float  # share of the normal test rows


def main(argv: Sequence[str] | None = None) -> int:
    """Run all digits and seeds, print a table in Markdown for each digit, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.anomaly",
        description="Detect a digit that the training did not see.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, help="FILE or FILE:VARIANT")
    parser.add_argument("--path", default="", help="of the data, like config.dataset.path")
    parser.add_argument("--steps", type=int, default=0, help="instead of the config's num_steps")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--digits", type=int, nargs="+", default=[0], help="the classes to leave out in turn")
    parser.add_argument("--rows", type=int, default=5_000, help="maximum number of test rows")
    parser.add_argument("--alpha", type=float, default=0.05, help="the false-alarm rate of the thresholds")
    parser.add_argument("--json", type=Path, help="file for the numbers of every run")
    options, overrides = parser.parse_known_args(argv)
    try:
        config = load_config(options.config)
        override(config, overrides)
        config.dataset.path = options.path or config.dataset.path
        config.num_steps = options.steps or config.num_steps
        config.evaluators = ()
        dataset = game.load_data(config)
        check(options, dataset)
        record = {}
        for digit in options.digits:
            runs = []
            for seed in range(options.seeds):
                started = time.monotonic()
                config.seed = seed
                parts = divide(dataset, digit, seed, options.rows)
                runs.append(run(config, dataset, parts, options.alpha))
                print(f"digit {digit}, seed {seed}: {time.monotonic() - started:.0f} s", file=sys.stderr)
            print(
                f"\n{caption(config, digit, parts, options.seeds, options.alpha)}\n\n{table(runs)}",
                flush=True,
            )
            record[digit] = [{name: outcome._asdict() for name, outcome in one.items()} for one in runs]
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    return 0


def check(options: argparse.Namespace, dataset: data.Dataset) -> None:
    """Raise a ValueError for impossible numbers and for digits that the data do not have."""
    if min(options.seeds, options.rows) < 1 or options.steps < 0:
        raise ValueError("--seeds and --rows must be positive, and --steps too if given.")
    if dataset.num_classes < 2 or not set(options.digits) <= set(range(dataset.num_classes)):
        raise ValueError(
            f"--digits {options.digits}: {dataset.name} has the classes 0 to {dataset.num_classes - 1}."
        )


def divide(dataset: data.Dataset, digit: int, seed: int, most_test_rows: int) -> Parts:
    """Split the other digits' training rows at random, and the test rows by whether they show `digit`."""
    train, test = (split.rows(np.arange(len(split))) for split in (dataset.train, dataset.test))
    x, label = np.asarray(train.x), np.asarray(train.label)
    rng = np.random.default_rng(seed)
    rows = rng.permutation(np.flatnonzero((label != digit) & (label >= 0)))
    held = min(int(HELD_OUT_SHARE * len(rows)), MOST_HELD_OUT)
    number = min(len(dataset.test), most_test_rows)
    used = np.arange(number) * len(dataset.test) // number
    x_test, label_test = np.asarray(test.x)[used], np.asarray(test.label)[used]
    return Parts(
        x[rows[2 * held :]],
        x[rows[:held]],
        x[rows[held : 2 * held]],
        x_test[(label_test != digit) & (label_test >= 0)],
        x_test[label_test == digit],
    )


def run(config: Config, dataset: data.Dataset, parts: Parts, alpha: float) -> dict[str, Outcome]:
    """Train the model and the simple detectors, and score all of them."""
    normal = dataset._replace(train=data.ArraySplit(parts.fit), test=data.ArraySplit(parts.normal))
    trained = game.prepare(config, normal._replace(num_classes=0))
    state = game.fit(trained)
    x = Parts(*(data.unit(part, dataset.divisor) for part in parts))
    model = model_of(trained, state)
    rows, ends = np.concatenate(x[1:]), np.cumsum([len(part) for part in x[1:-1]])
    scores = {
        name: np.split(anomaly_scores(model, rows, **chosen), ends) for name, chosen in MODEL_SCORES.items()
    }
    scores |= simple_scores(Parts(*(part.reshape(len(part), -1) for part in x)), config)
    return {name: assess(found, alpha) for name, found in scores.items()}


def simple_scores(x: Parts, config: Config) -> dict[str, list[np.ndarray]]:
    """Fit simple detectors to the first part [N, F] and score the rows of the others."""
    mean, components = pca(x.fit, min(config.latent_dim, x.fit.shape[1]))
    forest = IsolationForest(random_state=config.seed).fit(x.fit)

    def pca_error(part: np.ndarray) -> np.ndarray:
        centered = part - mean[None]
        return np.sum((centered - centered @ components @ components.T) ** 2, axis=1)

    return {
        f"PCA error, {components.shape[1]} components": [pca_error(part) for part in x[1:]],
        "nearest training row": [nearest(part, x.fit)[1] for part in x[1:]],
        "isolation forest": [-forest.score_samples(part) for part in x[1:]],
    }


def assess(scores: Sequence[np.ndarray], alpha: float) -> Outcome:
    """Evaluate the anomaly scores [N] of every part but the first."""
    calibration, held_out, normal, anomalous = scores
    held_out_alarms, test_alarms = (
        float(np.mean(conformal.p_values(calibration, part) <= alpha)) for part in (held_out, normal)
    )
    return Outcome(
        detection.auroc(normal, anomalous),
        detection.average_precision_interval(normal, anomalous),
        held_out_alarms,
        test_alarms,
    )


def caption(config: Config, digit: int, parts: Parts, seeds: int, alpha: float) -> str:
    """Describe what a table shows."""
    fit, calibration, held_out, normal, anomalous = map(len, parts)
    low, high = conformal.false_alarm_interval(calibration, alpha)
    return (
        f"Left out: {digit}. {config.num_steps} steps on {fit} rows; test: {anomalous} rows of it against "
        f"{normal}. Mean ± standard deviation over {seeds} seeds [mean 95 % interval over test rows]. "
        f"False alarms at alpha = {alpha:g} with {calibration} rows to calibrate: 95 % of such thresholds "
        f"have a rate of {low:.3f} to {high:.3f}; held-out: {held_out} training rows, test: its other digits."
    )


def table(runs: Sequence[Mapping[str, Outcome]]) -> str:
    """Return the Markdown table of the runs of one digit."""
    rows = [
        ["score", "AUROC", "AUPRC", "false alarms, held-out", "false alarms, test"],
        ["---"] + ["---:"] * 4,
    ]
    for name in runs[0]:
        outcomes = [one[name] for one in runs]
        cells = [
            _estimate([outcome.auroc for outcome in outcomes]),
            _estimate([outcome.auprc for outcome in outcomes]),
            _spread([outcome.held_out_alarms for outcome in outcomes]),
            _spread([outcome.test_alarms for outcome in outcomes]),
        ]
        rows.append([name, *cells])
    return markdown(rows)


def _estimate(estimates: Sequence[detection.Estimate]) -> str:
    low = np.mean([estimate.low for estimate in estimates])
    high = np.mean([estimate.high for estimate in estimates])
    return f"{_spread([estimate.value for estimate in estimates])} [{low:.3f}-{high:.3f}]"


def _spread(values: Sequence[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


if __name__ == "__main__":
    sys.exit(main())
