"""The page that compares runs, from their files alone: configs, curves, numbers and samples."""

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ali_jax import config as configs
from ali_jax import evaluate as evaluators
from ali_jax.records.read import Run, read_run
from ali_jax.records.workdir import write_text
from ali_jax.records.writers import spreads
from ali_jax.report import html
from ali_jax.report.curves import compared_curves
from ali_jax.report.html import Cell, TableRow

IMPRINT = "Made by ali_jax. This page is one file: it loads nothing and can be sent as it is."
PNG = b"\x89PNG\r\n\x1a\n"
PICTURES = ("samples", "reconstructions", "interpolations")


def write_comparison(workdirs: Sequence[Path], out: Path) -> Path:
    """Write the page that compares runs, return its path; raise a ValueError for a folder without a run."""
    runs = dict(zip(_labels(workdirs), map(read_run, workdirs), strict=True))
    sections = {
        "configs": ("Configs", list(_configs(runs))),
        "numbers": ("Numbers", list(_numbers(runs))),
        "curves": ("Curves", list(_curves(runs))),
        "pictures": ("Pictures", list(_pictures(runs))),
    }
    sections = {name: value for name, value in sections.items() if value[1]}
    body = [
        f"<header><h1>{escape(' · '.join(runs))}</h1>",
        html.paragraph(f"{len(runs)} runs of ALI side by side, from their files.", "lead"),
        "</header>",
        html.contents({name: title for name, (title, _) in sections.items()}),
        *(html.section(name, title, *parts) for name, (title, parts) in sections.items()),
        f"<footer>{html.paragraph(IMPRINT)}</footer>",
    ]
    write_text(out, html.page("Runs compared - ali_jax", body))
    return out


def _labels(workdirs: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths, in whole folder names, that tell the runs apart."""
    parts = [path.resolve().parts for path in workdirs]
    if len(set(parts)) < len(parts):
        raise ValueError("The same folder was given twice to compare: give each run once.")
    for depth in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(p[-depth:]) for p in parts]
        if len(set(labels)) == len(labels):
            return labels
    raise AssertionError("different paths have different names")


def _configs(runs: dict[str, Run]) -> Iterator[str]:
    flat = [configs.flat(run.config) for run in runs.values()]
    keys = dict.fromkeys(key for values in flat for key in values)
    rows = [
        TableRow((Cell(key, code=True), *(Cell(repr(values.get(key)), code=True) for values in flat)))
        for key in keys
        if len({repr(_plain(values.get(key))) for values in flat}) > 1
    ]
    if rows:
        yield html.paragraph("The keys that do not have the same value in all runs.")
        yield html.table(("key", *runs), rows)
    else:
        yield html.paragraph("The runs have the same config.")
    facts = [
        TableRow(("step", *(html.number(run.step, 9) for run in runs.values()))),
        TableRow(("members", *(html.number(run.members) for run in runs.values()))),
        TableRow(
            ("seconds of wall time", *(html.number(_fact(run, "wall_seconds")) for run in runs.values()))
        ),
        TableRow(
            ("images per second", *(html.number(_fact(run, "images_per_second")) for run in runs.values()))
        ),
    ]
    yield html.heading("Length and speed")
    yield html.table(("", *(Cell(label, "number") for label in runs)), facts)


def _numbers(runs: dict[str, Run]) -> Iterator[str]:
    by_run = [spreads(run.metrics) for run in runs.values()]
    names = dict.fromkeys(name for numbers in by_run for name in numbers)
    rows = [
        TableRow(
            (Cell(name, code=True), *(_number(numbers, name) for numbers in by_run)),
            "control" if evaluators.is_control(name) else "",
        )
        for name in sorted(names, key=lambda name: name.startswith("raw/"))
    ]
    if rows:
        yield html.table(("metric", *(Cell(label, "number") for label in runs)), rows)
        yield html.paragraph(
            "From the last evaluation of each run. For populations the mean and its 95 % interval over the "
            "members are given. Grey rows are controls: they do not depend on the trained weights.",
            "note",
        )


def _number(numbers: dict[str, Any], name: str) -> Cell:
    if name not in numbers:
        return html.number(None)
    spread = numbers[name]
    text = html.format_number(spread.mean)
    if spread.low is not None and spread.high is not None:
        text += f" ({spread.low:.3g} to {spread.high:.3g})"
    return Cell(text, "number")


def _curves(runs: dict[str, Run]) -> Iterator[str]:
    charts = compared_curves(runs)
    if charts:
        yield html.figure(
            html.group("panels wide", charts),
            "Training metrics, and the numbers of runs with at least two evaluations. Bands are 95 % "
            "intervals of the mean over the members of a population.",
        )


def _pictures(runs: dict[str, Run]) -> Iterator[str]:
    for name in PICTURES:
        newest = {label: _newest(run, name) for label, run in runs.items()}
        pictures = [
            html.titled(label, html.picture(data, f"{name} of {label}"))
            for label, data in newest.items()
            if data is not None
        ]
        if pictures:
            yield html.heading(name.capitalize())
            yield html.figure(html.group("panels", pictures), "The newest pictures in the runs' folders.", "")


def _newest(run: Run, name: str) -> bytes | None:
    """Return the PNG file of a picture at the latest step, or None if there is no valid one."""
    files = {
        int(path.stem.removeprefix(f"{name}_")): path
        for path in (run.workdir / "images").glob(f"{name}_*.png")
        if path.stem.removeprefix(f"{name}_").isdigit()
    }
    data = files[max(files)].read_bytes() if files else b""
    return data if data.startswith(PNG) else None


def _fact(run: Run, key: str) -> float | None:
    value = run.summary.get(key)
    return value if isinstance(value, (int, float)) else None


def _plain(value: Any) -> Any:
    """Turn tuples into lists, which mean the same in a config."""
    return list(map(_plain, value)) if isinstance(value, (list, tuple)) else value
