"""The charts of a run or of several: which names share one, and on what scale."""

from collections.abc import Sequence

from ali_jax import evaluate as evaluators
from ali_jax.records.read import Run, curves
from ali_jax.records.writers import Spread
from ali_jax.report import html
from ali_jax.report.svg import Line, chart

LOGARITHMIC = ("r1", "r2", "penalty", "cycle")  # groups of training metrics that span orders of magnitude
MEMBERS_SHOWN = 16  # a population's members are drawn as faint lines up to this many


def training_curves(run: Run) -> list[str]:
    """Return a chart for each group of training metrics: those with the same name before the slash."""
    found = curves(run.training)
    groups: dict[str, list[str]] = {}
    for name in found:
        groups.setdefault(name.partition("/")[0], []).append(name)
    order = sorted(groups, key=lambda group: (group != "loss", group != "accuracy"))
    return [
        html.titled(_title(group), chart(lines, group, log=group in LOGARITHMIC, width=520, height=240))
        for group in order
        if (lines := [_line(name, *found[name], colour=i) for i, name in enumerate(groups[group])])
        and _drawable(lines, log=group in LOGARITHMIC)
    ]


def evaluation_curves(run: Run) -> list[str]:
    """Return a chart for each number of the evaluations; nothing of a single evaluation."""
    if len(run.evaluations) < 2:
        return []
    found = curves(run.evaluations)
    parts = []
    for name, (steps, values) in found.items():
        if name.startswith("raw/") or evaluators.is_control(name) or len(steps) < 2:
            continue
        lines = [_line(name, steps, values)]
        if _drawable(lines):
            parts.append(html.titled(name, chart([lines[0]._replace(name="")], name, width=360, height=190)))
    return parts


def compared_curves(runs: dict[str, Run]) -> list[str]:
    """Return a chart for each number of training and evaluations, with a line for each run that has it."""
    by_run = {label: (curves(run.training), curves(run.evaluations)) for label, run in runs.items()}
    parts = []
    for kind in (0, 1):
        names = dict.fromkeys(name for found in by_run.values() for name in found[kind])
        for name in names:
            if name.startswith("raw/") or evaluators.is_control(name):
                continue
            lines = [
                _line(label, *found[kind][name], colour=i, dashed=i >= 6)
                for i, (label, found) in enumerate(by_run.items())
                if name in found[kind] and (kind == 0 or len(found[kind][name][0]) > 1)
            ]
            log = name.partition("/")[0] in LOGARITHMIC
            if _drawable(lines, log=log):
                parts.append(html.titled(name, chart(lines, name, log=log, width=520, height=240)))
    return parts


def _line(
    name: str, steps: Sequence[int], values: Sequence[Spread], *, colour: int = 0, dashed: bool = False
) -> Line:
    short = name.partition("/")[2] or name
    low, high = [v.low for v in values], [v.high for v in values]
    banded = any(limit is not None for limit in low)
    return Line(
        short, steps, [v.mean for v in values], low if banded else (), high if banded else (), colour, dashed
    )


def _title(group: str) -> str:
    titles = {
        "loss": "Losses",
        "accuracy": "Accuracy of the discriminator",
        "confidence": "Probability that the discriminator gives to what is right",
    }
    return titles.get(group, group)


def _drawable(lines: Sequence[Line], *, log: bool = False) -> bool:
    return any(y is not None and (y > 0 or not log) for line in lines for y in line.y)
