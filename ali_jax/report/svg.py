"""Plots as SVG text: curves with bands, and points in the plane. Colours are classes of style.css."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np

from ali_jax.evaluate.figures import Panel

COLOURS = 6  # of lines, in style.css: s0 to s5
CLASS_COLOURS = 10  # of points, there: c0 to c9
LINE_HEIGHT = 14  # least distance between labels, in units of the drawing
CHARACTER = 6.6  # width of a label's character, about


class Line(NamedTuple):
    """One curve."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]  # None and what is not finite leave a gap
    low: Sequence[float | None] = ()  # of a band around it
    high: Sequence[float | None] = ()
    colour: int = 0
    dashed: bool = False


class _Axes(NamedTuple):
    """Where data lie on the drawing."""

    x: tuple[float, float]
    y: tuple[float, float]  # logarithms, base 10, where `log`
    log: bool
    left: float
    right: float
    top: float
    bottom: float

    def across(self, x: float) -> float:
        return self.left + (x - self.x[0]) / (self.x[1] - self.x[0]) * (self.right - self.left)

    def up(self, y: float) -> float:
        y = math.log10(y) if self.log else y
        return self.bottom - (y - self.y[0]) / (self.y[1] - self.y[0]) * (self.bottom - self.top)


def chart(
    lines: Sequence[Line], title: str, *, log: bool = False, width: int = 640, height: int = 250
) -> str:
    """Draw curves over the step, each named at its end.

    Args:
      lines: at least one, with at least one finite value among them.
      title: for people who do not see the picture.
      log: a logarithmic y axis; values that are not positive leave a gap.
      width, height: of the drawing, in its own units.

    Raises:
      ValueError: there is nothing to draw.
    """
    shown = [line for line in lines if any(_drawn(y, log) for y in line.y)]
    if not shown:
        raise ValueError(f"{title}: there is no finite value to draw.")
    axes = _axes(shown, log, width, height)
    parts = [*_grid(axes, height), *(_band(line, axes) for line in shown)]
    parts += [_curve(line, axes) for line in shown]
    parts += _end_labels(shown, axes)
    return _svg("chart", width, height, title, "".join(parts))


def points(panel: Panel, *, size: int = 300, name_classes: bool = False) -> str:
    """Draw points in the plane, coloured by class; with `name_classes` each class is named at its median."""
    scale = size / (2 * panel.limit)
    finite = np.isfinite(panel.points).all(axis=1) & (np.abs(panel.points) <= panel.limit).all(axis=1)
    place = np.rint((panel.points[finite] * [1, -1] + panel.limit) * scale * 10).astype(int)
    labels = np.full(len(place), -1) if panel.labels is None else np.asarray(panel.labels)[finite]
    parts = [f'<rect class="frame" width="{10 * size}" height="{10 * size}"/>']
    parts += [f'<path class="axis" d="M0 {5 * size}H{10 * size}M{5 * size} 0V{10 * size}"/>']
    for label in np.unique(labels):
        colour = "ink" if label < 0 else f"c{label % CLASS_COLOURS}"
        dots = "".join(f"M{x} {y}h0" for x, y in place[labels == label])
        parts.append(f'<path class="dots {colour}" d="{dots}"/>')
    if name_classes:
        for label in np.unique(labels[labels >= 0]):
            x, y = np.median(place[labels == label], axis=0).astype(int)
            parts.append(f'<text class="class" x="{x}" y="{y}" dy=".35em">{label}</text>')
    title = f"{panel.title}: {len(place)} points"
    return _svg("points", 10 * size, 10 * size, title, "".join(parts))


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round numbers in [low, high]: multiples of 1, 2 or 5 times a power of 10."""
    step = 10 ** math.floor(math.log10((high - low) / count))
    step *= next(m for m in (1, 2, 5, 10) if m * step >= (high - low) / count)
    return [step * i for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _axes(lines: Sequence[Line], log: bool, width: int, height: int) -> _Axes:
    xs = [x for line in lines for x in line.x]
    ys = [y for line in lines for y in (*line.y, *line.low, *line.high) if y is not None and _drawn(y, log)]
    ys = [math.log10(y) for y in ys] if log else ys
    y_low, y_high = min(ys), max(ys)
    margin = 0.06 * (y_high - y_low) or 0.1 * abs(y_high) or 1.0
    names = max(len(line.name) for line in lines)
    return _Axes(
        x=(min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1),
        y=(y_low - margin, y_high + margin),
        log=log,
        left=10
        + CHARACTER * max(len(f"{value:.4g}") for value in _levels(y_low - margin, y_high + margin, log)),
        right=width - 24 - CHARACTER * names,
        top=10,
        bottom=height - 26,
    )


def _grid(axes: _Axes, height: int) -> list[str]:
    """Draw horizontal lines with their numbers, and the steps below."""
    levels = [(axes.up(value), value) for value in _levels(*axes.y, axes.log)]
    lines = "".join(f"M{axes.left:.1f} {y:.1f}H{axes.right:.1f}" for y, _ in levels)
    parts = [f'<path class="grid" d="{lines}"/>']
    at = f'x="{axes.left - 7:.1f}" dy=".35em" text-anchor="end"'
    parts += [f'<text class="tick" {at} y="{y:.1f}">{value:.4g}</text>' for y, value in levels]
    parts.append(f'<path class="axis" d="M{axes.left:.1f} {axes.bottom}H{axes.right:.1f}"/>')
    for step in ticks(*axes.x, count=max(2, int((axes.right - axes.left) / 110))):
        x = axes.across(step)
        parts.append(f'<path class="axis" d="M{x:.1f} {axes.bottom}v4"/>')
        label = f"{step:,.0f}"
        parts.append(f'<text class="tick" x="{x:.1f}" y="{height - 8}" text-anchor="middle">{label}</text>')
    return parts


def _levels(low: float, high: float, log: bool) -> list[float]:
    return _log_ticks(low, high) if log else ticks(low, high)


def _log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten between two logarithms, or where there are few of those, round numbers."""
    decades = [10.0**i for i in range(math.ceil(low), math.floor(high) + 1)]
    if len(decades) > 2:
        return decades[:: math.ceil(len(decades) / 6)]
    steps = [m * 10.0**i for i in range(math.floor(low), math.ceil(high) + 1) for m in (1, 2, 5)]
    return [value for value in steps if low <= math.log10(value) <= high]


def _curve(line: Line, axes: _Axes) -> str:
    path, pen_down, dots = [], False, []
    for x, y in zip(line.x, line.y, strict=True):
        if y is None or not _drawn(y, axes.log):
            pen_down = False
            continue
        place = f"{axes.across(x):.1f} {axes.up(y):.1f}"
        path.append(f"{'L' if pen_down else 'M'}{place}")
        dots.append(f"M{place}h0")
        pen_down = True
    dash = " dashed" if line.dashed else ""
    colour = f"s{line.colour % COLOURS}"
    curve = f'<path class="curve {colour}{dash}" d="{"".join(path)}"/>'
    few = len(dots) <= 40  # few enough to see that the curve is made of measurements
    return curve + (f'<path class="knots {colour}" d="{"".join(dots)}"/>' if few else "")


def _band(line: Line, axes: _Axes) -> str:
    rows = [
        (x, low, high)
        for x, low, high in zip(line.x, line.low, line.high, strict=False)
        if low is not None and high is not None and _drawn(low, axes.log) and _drawn(high, axes.log)
    ]
    if len(rows) < 2:
        return ""
    there = [f"{axes.across(x):.1f} {axes.up(high):.1f}" for x, _, high in rows]
    back = [f"{axes.across(x):.1f} {axes.up(low):.1f}" for x, low, _ in reversed(rows)]
    return f'<path class="band s{line.colour % COLOURS}" d="M{"L".join([*there, *back])}Z"/>'


def _end_labels(lines: Sequence[Line], axes: _Axes) -> list[str]:
    """Name each curve at its last value; names that would touch are moved apart."""
    ends = []
    for line in (line for line in lines if line.name):
        x, y = [(x, y) for x, y in zip(line.x, line.y, strict=True) if y is not None and _drawn(y, axes.log)][
            -1
        ]
        ends.append([axes.up(y), axes.across(x), line])
    if not ends:
        return []
    ends.sort(key=lambda end: end[0])
    places: list[float] = []
    for y, _, _ in ends:
        places.append(max(y, places[-1] + LINE_HEIGHT) if places else y)
    over = max(0.0, places[-1] - axes.bottom + 4)
    parts = []
    for (y, x, line), place in zip(ends, places, strict=True):
        place = max(place - over, axes.top)
        dash = " dashed" if line.dashed else ""
        leader = f"M{x:.1f} {y:.1f}L{axes.right + 14:.1f} {place:.1f}"
        parts.append(f'<path class="leader s{line.colour % COLOURS}{dash}" d="{leader}"/>')
        at = f'x="{axes.right + 18:.1f}" y="{place:.1f}" dy=".35em"'
        parts.append(f'<text class="name" {at}>{escape(line.name)}</text>')
    return parts


def _drawn(y: float | None, log: bool) -> bool:
    return y is not None and math.isfinite(y) and (y > 0 or not log)


def _svg(kind: str, width: float, height: float, title: str, inside: str) -> str:
    title = escape(title)
    return (
        f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{title}">'
        f"<title>{title}</title>{inside}</svg>"
    )
