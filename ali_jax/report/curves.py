"""The charts of a run or of several: which names share one, and on what scale."""

from collections.abc import Sequence

from ali_jax import evaluate as evaluators
from ali_jax.records.read import Run, curves
from ali_jax.records.writers import Spread
from ali_jax.report import html
from ali_jax.report.svg import COLOURS, Line, chart

LOGARITHMIC = ("r1", "r2", "penalty", "cycle")  # groups of training metrics that span orders of magnitude


def training_curves(run: Run) -> list[str]:
    """Return a chart for each group of training metrics: those with the same name before the slash."""
    by_name = curves(run.training)
    groups: dict[str, list[str]] = {}
    for name in by_name:
        groups.setdefault(_group(name), []).append(name)
    charts = []
    for group in sorted(groups, key=lambda group: (group != "loss", group != "accuracy")):
        lines = [
            _line(name.partition("/")[2] or name, *by_name[name], colour=i)
            for i, name in enumerate(groups[group])
        ]
        drawing = chart(lines, group, log=group in LOGARITHMIC, width=520, height=240)
        if drawing:
            charts.append(html.titled(_title(group), drawing))
    return charts


def evaluation_curves(run: Run) -> list[str]:
    """Return a chart for each number of the evaluations, or nothing where there is a single evaluation."""
    charts = []
    for name, (steps, values) in curves(run.evaluations).items():
        if not _is_charted(name) or len(steps) < 2:
            continue
        drawing = chart([_line("", steps, values)], name, width=360, height=190)
        if drawing:
            charts.append(html.titled(name, drawing))
    return charts


def compared_curves(runs: dict[str, Run]) -> list[str]:
    """Return a chart for each number of training and evaluations, with a line for each run that has it."""
    training = {label: curves(run.training) for label, run in runs.items()}
    evaluations = {
        label: {name: values for name, values in curves(run.evaluations).items() if len(values[0]) > 1}
        for label, run in runs.items()
    }
    charts = []
    for by_run in (training, evaluations):
        for name in filter(
            _is_charted, dict.fromkeys(name for numbers in by_run.values() for name in numbers)
        ):
            lines = [
                _line(label, *numbers[name], colour=i, dashed=i >= COLOURS)
                for i, (label, numbers) in enumerate(by_run.items())
                if name in numbers
            ]
            drawing = chart(lines, name, log=_group(name) in LOGARITHMIC, width=520, height=240)
            if drawing:
                charts.append(html.titled(name, drawing))
    return charts


def _is_charted(name: str) -> bool:
    """Whether a number has a chart: those of raw weights beside averaged ones and controls have none."""
    return not name.startswith("raw/") and not evaluators.is_control(name)


def _line(
    label: str, steps: Sequence[int], values: Sequence[Spread], *, colour: int = 0, dashed: bool = False
) -> Line:
    low, high = [v.low for v in values], [v.high for v in values]
    return Line(label, steps, [v.mean for v in values], low, high, colour, dashed)


def _group(name: str) -> str:
    return name.partition("/")[0]


def _title(group: str) -> str:
    titles = {
        "loss": "Losses",
        "accuracy": "Accuracy of the discriminator",
        "confidence": "Probability that the discriminator gives to what is right",
    }
    return titles.get(group, group)
