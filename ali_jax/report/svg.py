"""Plots as SVG text: curves with bands, and points in the plane. Colours are classes of style.css.

Written by hand because matplotlib's SVG of the same charts is six times as long (8 kB a chart), takes two
seconds a report, and follows the page's fonts and its light and dark colours only if its output is rewritten.
Its choice of round numbers is used.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

import numpy as np

from ali_jax.evaluate.figures import Panel

COLOURS = 6  # of lines, in style.css: s0 to s5
CLASS_COLOURS = 10  # of points, in style.css: c0 to c9
LINE_HEIGHT = 14  # least distance between labels, in units of the drawing
CHARACTER = 6.6  # approximate width of a label's character, in the same units
LONGEST_NAME = 24  # characters of a curve's label
MANY_POINTS = 40  # a curve of more measurements is drawn without a dot at each
LARGEST = 1e100  # numbers beyond it count as infinite, and below its inverse as 0 on logarithmic axes


class Line(NamedTuple):
    """One curve."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]  # None and non-finite values leave a gap
    low: Sequence[float | None] = ()  # of a band around it
    high: Sequence[float | None] = ()
    colour: int = 0
    dashed: bool = False


class _Axes(NamedTuple):
    """How data map to places on the drawing."""

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

    def can_show(self, y: float | None) -> bool:
        return _can_show(y, self.log)


def chart(
    lines: Sequence[Line], title: str, *, log: bool = False, width: int = 640, height: int = 250
) -> str:
    """Draw curves over the step, each named at its end; return "" where no curve has a value to show.

    Args:
      lines: curves; those without a value to show are left out.
      title: for people who do not see the picture.
      log: a logarithmic y axis; values that are not positive leave a gap.
      width, height: of the drawing, in its own units.
    """
    lines = [line for line in lines if any(_can_show(y, log) for y in line.y)]
    if not lines:
        return ""
    axes = _axes(lines, log, width, height)
    parts = [*_grid(axes, height), *(_band(line, axes) for line in lines)]
    parts += [_curve(line, axes) for line in lines]
    parts += _end_labels(lines, axes)
    return _svg("chart", width, height, title, "".join(parts))


def points(panel: Panel, *, size: int = 300, name_classes: bool = False) -> str:
    """Draw points in the plane, coloured by class; with `name_classes` each class is named at its median."""
    limit = panel.limit if np.isfinite(panel.limit) and panel.limit > 0 else 1.0
    inside = (np.abs(panel.points) <= limit).all(axis=1)  # false for points that are not finite
    place = np.rint((panel.points[inside] * [1, -1] / limit + 1) * size * 5).astype(int)
    labels = np.full(len(place), -1) if panel.labels is None else np.asarray(panel.labels)[inside]
    parts = [f'<rect class="frame" width="{10 * size}" height="{10 * size}"/>']
    parts += [f'<path class="axis" d="M0 {5 * size}H{10 * size}M{5 * size} 0V{10 * size}"/>']
    for label in np.unique(labels):
        colour = "ink" if label < 0 else f"c{label % CLASS_COLOURS}"
        dots = "".join(f"M{x} {y}h0" for x, y in place[labels == label])
        parts.append(f'<path class="dots {colour}" d="{dots}"/>')
    if name_classes:
        for label in np.unique(labels[labels >= 0]):
            x, y = np.median(place[labels == label], axis=0).astype(int)
            parts.append(f'<text class="class" x="{x}" y="{y}" dy=".35em">{_class_name(panel, label)}</text>')
    title = f"{panel.title}: {len(place)} points"
    return _svg("points", 10 * size, 10 * size, title, "".join(parts))


def _class_name(panel: Panel, label: int) -> str:
    return escape(_shortened(panel.names[label])) if panel.names else str(label)


def ticks(low: float, high: float, count: int = 5, *, whole: bool = False) -> list[float]:
    """Return about `count` round numbers in [low, high], low < high: at least two, `whole` ones if asked for.

    They are multiples of 1, 2 or 5 times a power of 10. Whole numbers need a range that holds two.
    """
    from matplotlib.ticker import MaxNLocator  # imported late: not needed until a report is written

    values = MaxNLocator(count, steps=[1, 2, 5, 10], integer=whole).tick_values(low, high)
    slack = 1e-9 * (high - low)
    return [float(value) for value in values if low - slack <= value <= high + slack]


def log_ticks(low: float, high: float) -> list[float]:
    """Return round numbers in [low, high], 0 < low < high, for a logarithmic axis: at least two.

    They are powers of ten, or 1, 2 and 5 times those. A range too short for these has the ticks of a linear
    axis.
    """
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    decades = [10.0**i for i in exponents if low <= 10.0**i <= high]
    if len(decades) > 2:
        return decades[:: math.ceil(len(decades) / 6)]
    steps = [m * 10.0**i for i in exponents for m in (1, 2, 5) if low <= m * 10.0**i <= high]
    return steps if len(steps) > 1 else ticks(low, high)


def _axes(lines: Sequence[Line], log: bool, width: int, height: int) -> _Axes:
    xs = [x for line in lines for x in line.x]
    x = (min(xs), max(xs)) if min(xs) < max(xs) else (xs[0] - 1, xs[0] + 1)
    ys = [
        y for line in lines for y in (*line.y, *line.low, *line.high) if y is not None and _can_show(y, log)
    ]
    y = _widened([math.log10(y) for y in ys] if log else ys, log)
    labels = _labels(_levels(y, log))
    longest = min(max(len(line.name) for line in lines), LONGEST_NAME)
    return _Axes(
        x=x,
        y=y,
        log=log,
        left=10 + CHARACTER * max(len(label) for label in labels),
        right=width - 24 - CHARACTER * longest,
        top=10,
        bottom=height - 26,
    )


def _widened(values: Sequence[float], log: bool) -> tuple[float, float]:
    """Return the range of values, logarithms where `log`, with a margin; equal values lie in its middle."""
    low, high = min(values), max(values)
    size = max(abs(low), abs(high))
    if high - low > 1e-9 * max(size, 1.0 if log else 1 / LARGEST):  # less is rounding
        margin = 0.06 * (high - low)
    else:
        margin = 0.1 if log else 0.1 * size if size > 1 / LARGEST else 1.0
    return low - margin, high + margin


def _grid(axes: _Axes, height: int) -> Iterator[str]:
    """Draw horizontal lines with their numbers, and the steps below."""
    levels = _levels(axes.y, axes.log)
    lines = "".join(f"M{axes.left:.1f} {axes.up(value):.1f}H{axes.right:.1f}" for value in levels)
    yield f'<path class="grid" d="{lines}"/>'
    at = f'x="{axes.left - 7:.1f}" dy=".35em" text-anchor="end"'
    for value, label in zip(levels, _labels(levels), strict=True):
        yield f'<text class="tick" {at} y="{axes.up(value):.1f}">{label}</text>'
    yield f'<path class="axis" d="M{axes.left:.1f} {axes.bottom}H{axes.right:.1f}"/>'
    for step in ticks(*axes.x, count=max(2, int((axes.right - axes.left) / 110)), whole=True):
        x = axes.across(step)
        yield f'<path class="axis" d="M{x:.1f} {axes.bottom}v4"/>'
        yield f'<text class="tick" x="{x:.1f}" y="{height - 8}" text-anchor="middle">{step:,.0f}</text>'


def _levels(y: tuple[float, float], log: bool) -> list[float]:
    return log_ticks(10 ** y[0], 10 ** y[1]) if log else ticks(*y)


def _labels(levels: Sequence[float]) -> list[str]:
    """Write numbers with 4 digits, or as many as tell neighbours apart."""
    ratios = [max(abs(a), abs(b)) / (b - a) for a, b in itertools.pairwise(levels)]
    digits = max(4, 1 + math.ceil(math.log10(max(ratios))))
    return [f"{value:.{digits}g}" for value in levels]


def _curve(line: Line, axes: _Axes) -> str:
    path, pen_down, dots = [], False, []
    for x, y in zip(line.x, line.y, strict=True):
        if y is None or not axes.can_show(y):
            pen_down = False
            continue
        place = f"{axes.across(x):.1f} {axes.up(y):.1f}"
        path.append(f"{'L' if pen_down else 'M'}{place}")
        dots.append(f"M{place}h0")
        pen_down = True
    dash = " dashed" if line.dashed else ""
    colour = f"s{line.colour % COLOURS}"
    curve = f'<path class="curve {colour}{dash}" d="{"".join(path)}"/>'
    knots = f'<path class="knots {colour}" d="{"".join(dots)}"/>'
    return curve + (knots if len(dots) <= MANY_POINTS else "")


def _band(line: Line, axes: _Axes) -> str:
    """Draw the band of a curve; on a logarithmic axis, ends that are not positive lie at its bottom."""
    there, back = [], []
    for x, low, high in zip(line.x, line.low, line.high, strict=False):
        if low is None or high is None or not axes.can_show(high):
            continue
        bottom = axes.up(low) if axes.can_show(low) else axes.bottom
        there.append(f"{axes.across(x):.1f} {axes.up(high):.1f}")
        back.append(f"{axes.across(x):.1f} {bottom:.1f}")
    if len(there) < 2:
        return ""
    return f'<path class="band s{line.colour % COLOURS}" d="M{"L".join([*there, *reversed(back)])}Z"/>'


def _end_labels(lines: Sequence[Line], axes: _Axes) -> Iterator[str]:
    """Name each curve at its last value; names that would touch are moved apart."""
    ends: list[tuple[float, float, Line]] = []
    for line in (line for line in lines if line.name):
        shown = [(x, y) for x, y in zip(line.x, line.y, strict=True) if y is not None and axes.can_show(y)]
        x, y = shown[-1]
        ends.append((axes.up(y), axes.across(x), line))
    ends.sort(key=lambda end: end[0])
    places: list[float] = []
    for y, _, _ in ends:
        places.append(max(y, places[-1] + LINE_HEIGHT) if places else y)
    excess = max(0.0, places[-1] - axes.bottom + 4) if places else 0.0
    for (y, x, line), place in zip(ends, places, strict=True):
        place = max(place - excess, axes.top)
        dash = " dashed" if line.dashed else ""
        leader = f"M{x:.1f} {y:.1f}L{axes.right + 14:.1f} {place:.1f}"
        yield f'<path class="leader s{line.colour % COLOURS}{dash}" d="{leader}"/>'
        at = f'x="{axes.right + 18:.1f}" y="{place:.1f}" dy=".35em"'
        yield f'<text class="name" {at}>{escape(_shortened(line.name))}</text>'


def _shortened(name: str) -> str:
    """Leave out the middle of a long name: the ends of a path are what tells it apart."""
    if len(name) <= LONGEST_NAME:
        return name
    half = LONGEST_NAME // 2
    return f"{name[: half - 1]}\N{HORIZONTAL ELLIPSIS}{name[-half:]}"


def _can_show(y: float | None, log: bool) -> bool:
    return y is not None and abs(y) <= LARGEST and (not log or y >= 1 / LARGEST)  # not NaN, which is neither


def _svg(kind: str, width: float, height: float, title: str, inside: str) -> str:
    title = escape(title)
    return (
        f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{title}">'
        f"<title>{title}</title>{inside}</svg>"
    )
