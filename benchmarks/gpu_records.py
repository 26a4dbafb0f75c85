"""The results of `benchmarks.gpu`: one JSON object a line, on the disk before the next is measured.

Each line has `part` and `time`, and most have the device and the versions. Several processes may append. A
line that a killed process left incomplete is skipped, and costs no other.
"""

import datetime
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

from benchmarks import gpu_semi
from benchmarks.compare import markdown

Row: TypeAlias = dict[str, Any]

FILE = "results.jsonl"
NO_GPU = 3  # exit status of a part that finds none
MOST = 16  # rows of a table of kernels


class Results:
    """The results of a part, in the file of a folder."""

    def __init__(self, folder: Path, part: str, **common: Any) -> None:
        """Open the file for the results of a part; `common` is put into each of them."""
        self.path, self._part, self._common = folder / FILE, part, common

    def add(self, **values: Any) -> None:
        """Append a result and wait until it is on the disk."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        row = {"part": self._part, "time": now, **self._common, **values}
        file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = os.fstat(file).st_size
            torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"
            os.write(file, ("\n" * torn + json.dumps(row) + "\n").encode())
            os.fsync(file)
        finally:
            os.close(file)

    def measured(self, key: str) -> list[Row]:
        """Return what this part has measured before, on this device: its results that have `key`."""
        rows = _rows(self.path) if self.path.is_file() else []
        device = self._common.get("device")
        return [r for r in rows if r["part"] == self._part and r.get("device") == device and key in r]


def read(folder: Path) -> list[Row]:
    """Return the results in a folder, in the order in which they came.

    Raises:
      ValueError: there are none.
    """
    if not (folder / FILE).is_file():
        raise ValueError(f"{folder} has no {FILE}: measure first, with --out {folder}.")
    return _rows(folder / FILE)


def _rows(path: Path) -> list[Row]:
    rows = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "part" in row:
            rows.append(row)
    return rows


def report(rows: Sequence[Row]) -> str:
    """Return all results as Markdown."""
    devices = dict.fromkeys(f"{r['device']}, jax {r['jax']}" for r in rows if "jax" in r)
    sections = ["\n".join(devices) or "No device was reached."]
    for title, make in SECTIONS.items():
        if text := make(rows):
            sections.append(f"## {title}\n\n{text}")
    return "\n\n".join(sections) + "\n"


def _ends(rows: Sequence[Row]) -> str:
    """Return how each part ended, and what failed within it."""
    table = [["part", "end", "seconds"], ["---", "---", "---:"]]
    table += [[r["part"], r["end"], f"{r['seconds']:.0f}"] for r in rows if "end" in r]
    failures = [f"- {r['part']}{_what(r)}: {r['error']}" for r in rows if "error" in r]
    return "\n\n".join(filter(None, [_markdown(table), "\n".join(failures)]))


def _what(row: Row) -> str:
    return "".join(f", {row[key]}" for key in ("experiment", "dtype", "batch", "form", "layer") if key in row)


def _tests(rows: Sequence[Row]) -> str:
    outcomes = [(r["test"], r["outcome"]) for r in rows if r["part"] == "tests" and "outcome" in r]
    bad = [f"- {test}: {outcome}" for test, outcome in outcomes if outcome != "passed"]
    passed = f"{len(outcomes) - len(bad)} of {len(outcomes)} passed." if outcomes else ""
    return "\n".join(filter(None, [passed, *bad]))


def _steps(rows: Sequence[Row]) -> str:
    """Return the table of milliseconds per step, a column per form, peers as ratios."""
    measured = [r for r in rows if r["part"] == "steps" and "ms" in r]
    forms = list(dict.fromkeys(r["form"] for r in measured))
    table = [
        ["experiment", "compute", "batch", *(f"{form}, ms" for form in forms), "images/s", "of the floor"]
    ]
    table.append(["---"] * 2 + ["---:"] * (len(table[0]) - 2))
    for key, cells in _grouped(measured, "experiment", "dtype", "batch"):
        by_form = {r["form"]: r for r in cells}
        shown = [_spread(by_form[form]["ms"]) if form in by_form else "-" for form in forms]
        best = min(median(r["ms"]) for r in cells)
        floors = [r["floor_ms"] / best for r in cells if r.get("floor_ms")]
        floor = f"{floors[0]:.0%}" if floors else "-"
        table.append([*map(str, key), *shown, f"{1e3 * key[2] / best:.4g}", floor])
    return _markdown(table)


def _peers(rows: Sequence[Row]) -> str:
    measured = [r for r in rows if r["part"] == "peers" and "over" in r]
    absent = [r["absent"] for r in rows if r["part"] == "peers" and "absent" in r]
    names = list(dict.fromkeys(name for r in measured for name in r["over"]))
    table = [["experiment", "compute", "batch", "ours, ms", *(f"over {name}" for name in names)]]
    table.append(["---"] * 2 + ["---:"] * (len(table[0]) - 2))
    for r in measured:
        ratios = [_spread(r["over"][name]) if name in r["over"] else "-" for name in names]
        table.append([r["experiment"], r["dtype"], str(r["batch"]), f"{r['ms']:.3f}", *ratios])
    return "\n\n".join(filter(None, [_markdown(table), *absent[-1:]]))


def _kernels(rows: Sequence[Row]) -> str:
    """Return a table per step that was traced: its costliest layers."""
    texts = []
    for r in rows:
        if r["part"] != "kernels" or "kernels" not in r:
            continue
        head = (
            f"{r['experiment']}, {r['dtype']}, batch {r['batch']}: {r['wall_ms']:.3f} ms a step, busy "
            f"{r['busy_ms']:.3f} ms, {r['kernels']:.0f} kernels: {_kinds(r['rows'])}."
        )
        table = [["layer", "pass", "kind", "ms", "kernels"], ["---"] * 3 + ["---:"] * 2]
        for layer, direction, kind, ms, count in r["rows"][:MOST]:
            table.append([layer, direction, kind, f"{ms:.3f}", f"{count:.3g}"])
        rest = r["rows"][MOST:]
        if rest:
            ms, count = (sum(row[i] for row in rest) for i in (3, 4))
            table.append([f"{len(rest)} more", "", "", f"{ms:.3f}", f"{count:.3g}"])
        texts.append(f"{head}\n\n{_markdown(table)}")
    return "\n\n".join(texts)


def _kinds(rows: Sequence[Sequence[Any]]) -> str:
    """Return the milliseconds and the number of kernels of each kind, the costliest first."""
    sums: dict[str, tuple[float, float]] = {}
    for _, _, kind, ms, count in rows:
        before = sums.get(kind, (0.0, 0.0))
        sums[kind] = before[0] + ms, before[1] + count
    ordered = sorted(sums.items(), key=lambda item: -item[1][0])
    return ", ".join(f"{kind} {ms:.3f} ms in {count:.3g}" for kind, (ms, count) in ordered)


def _layers(rows: Sequence[Row]) -> str:
    measured = [r for r in rows if r["part"] == "layers" and "ms" in r]
    forms = list(dict.fromkeys(form for r in measured for form in r["ms"]))
    table = [["layer", "batch", *(f"{form}, ms" for form in forms), "chosen"]]
    table.append(["---"] + ["---:"] * (len(forms) + 1) + ["---"])
    for r in measured:
        times = [f"{r['ms'][form]:.4f}" if form in r["ms"] else "-" for form in forms]
        table.append([r["layer"], str(r["batch"]), *times, r["form"]])
    return _markdown(table)


def _training(rows: Sequence[Row]) -> str:
    lines = []
    for r in rows:
        if r["part"] == "training" and "steps" in r:
            lines.append(f"- {r['experiment']}: {r['steps']} steps, {r['seconds']:.0f} s in all")
        elif r["part"] == "training" and ("picture" in r or "absent" in r):
            lines.append(f"- {r.get('picture') or r['absent']}")
    return "\n".join(lines)


def _semi(rows: Sequence[Row]) -> str:
    """Return steps per second, and the test error beside published ones, with what it was measured on."""
    texts = []
    for r in rows:
        if r["part"] != "semi":
            continue
        if "steps_per_second" in r:
            texts.append(f"{_spread(r['steps_per_second'])} steps per second.")
        elif "unfinished" in r:
            texts.append(f"Stopped after {r['steps']:,} of {r['unfinished']:,} steps, and so not tested.")
        elif "label_error" in r:
            texts.append(_markdown(gpu_semi.table(r)))
            if r["lossy"]:
                texts.append(f"{r['lossy']} of the {r['test_images']:,} test images are decoded from JPEG.")
        elif "absent" in r:
            texts.append(r["absent"])
    return "\n\n".join(texts)


# Title -> the text of all results of that kind, "" without any.
SECTIONS: dict[str, Callable[[Sequence[Row]], str]] = {
    "Tests": _tests,
    "Milliseconds per step": _steps,
    "Beside PyTorch": _peers,
    "Kernels by layer and kind": _kernels,
    "Layers by form": _layers,
    "Short trainings": _training,
    "Few labels": _semi,
    "Parts": _ends,
}


def _grouped(rows: Iterable[Row], *keys: str) -> list[tuple[tuple, list[Row]]]:
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return list(groups.items())


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):.3f} [{min(values):.3f}-{max(values):.3f}]"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    """Join a table whose second row is the rule; "" if it has no other row."""
    return markdown(rows) if len(rows) > 2 else ""
