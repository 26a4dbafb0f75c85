"""Charts: places on the drawing are those of the numbers, and no series of numbers makes one fail."""

import json
import math
import random
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from ml_collections import ConfigDict

from ali_jax.evaluate.figures import Panel
from ali_jax.records.read import Run
from ali_jax.report import svg
from ali_jax.report.curves import compared_curves, evaluation_curves


def ticks_of(drawing: str) -> tuple[list[str], list[str]]:
    """Return the labels of the y axis and of the x axis."""
    texts = [e for e in ElementTree.fromstring(drawing).iter("text") if e.get("class") == "tick"]
    return tuple([e.text for e in texts if e.get("text-anchor") == anchor] for anchor in ("end", "middle"))


@pytest.mark.parametrize(
    ("rows", "later", "step", "numbers"),
    [
        ([(10, {"a": 1, "b": 2})], (10, {"b": 3, "c": 4}), 10, {"a": 1, "b": 3, "c": 4}),
        ([(10, {"a": 1, "b": 2})], (20, {"b": 3}), 20, {"b": 3}),
        ([(5, {"a": 9}), (30, {"a": 1})], (20, {"b": 3}), 30, {"a": 1}),
        ([], (20, {"b": 3}), 20, {"b": 3}),
        ([(10, {"a": 1})], None, 10, {"a": 1}),
        ([], None, 40, {}),
    ],
)
def test_the_numbers_of_a_run_are_of_one_step(tmp_path, rows, later, step, numbers):
    if later:
        content = dict(zip(("step", "metrics"), later, strict=True))
        (tmp_path / "evaluation.json").write_text(json.dumps(content))
    evaluations = [{"step": step, **values} for step, values in rows]
    run = Run(tmp_path, ConfigDict(), [{"step": 40}], evaluations, {}, [])
    assert (run.evaluated_step, run.metrics) == (step, numbers)


def test_ticks_are_round_and_within():
    assert svg.ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert svg.ticks(-3, 47) == [0, 10, 20, 30, 40]
    for low, high in np.sort(np.random.default_rng(0).uniform(-5, 5, (50, 2))):
        values = svg.ticks(low, high)
        assert 2 <= len(values) <= 7
        assert low <= min(values) < max(values) <= high


def test_ticks_of_a_logarithmic_axis_are_powers_of_ten_where_there_are_several():
    assert svg.log_ticks(0.5, 2e3) == pytest.approx([1, 10, 100, 1000])
    assert svg.log_ticks(0.5, 20) == pytest.approx([0.5, 1, 2, 5, 10, 20])
    assert svg.log_ticks(0.11, 0.13) == pytest.approx([0.11, 0.115, 0.12, 0.125, 0.13])  # 1, 2, 5: none


def test_a_curve_runs_from_corner_to_corner_and_breaks_where_a_value_is_missing():
    drawn = svg.chart([svg.Line("a", [0, 1, 2, 3, 4], [0.0, 1.0, None, float("nan"), 4.0])], "t")
    path = re.search(r'class="curve s0" d="(.*?)"', drawn)[1]
    assert re.findall("[ML]", path) == ["M", "L", "M"]
    places = [tuple(map(float, place.split())) for place in re.split("[ML]", path)[1:]]
    (x0, y0), (x1, y1), (x4, y4) = places
    assert (x1 - x0) * 4 == pytest.approx(x4 - x0, abs=0.5)
    assert (y0 - y1) * 4 == pytest.approx(y0 - y4, abs=0.5)
    assert y0 > y4  # upwards


def test_equal_ratios_are_equal_distances_on_a_logarithmic_axis():
    drawn = svg.chart([svg.Line("a", [0, 1, 2, 3], [0.1, 1, 10, 0])], "t", log=True)
    path = re.search(r'class="curve s0" d="(.*?)"', drawn)[1]
    y = [float(place.split()[1]) for place in re.split("[ML]", path)[1:]]
    assert len(y) == 3  # zero has no place
    assert y[0] - y[1] == pytest.approx(y[1] - y[2], abs=0.2)


def test_a_band_that_reaches_below_zero_ends_at_the_bottom_of_a_logarithmic_axis():
    line = svg.Line("a", [0, 1], [1.0, 2.0], low=[0.5, -1.0], high=[3.0, 4.0])
    drawn = svg.chart([line], "t", log=True, height=250)
    band = re.search(r'class="band s0" d="M(.*?)Z"', drawn)[1]
    y = [float(place.split()[1]) for place in band.split("L")]
    assert y[2] == 250 - 26 > y[3] > y[0] > y[1]  # there along the upper ends, back along the lower ones


def test_a_chart_of_nothing_is_nothing():
    for values in ([], [None], [float("nan")]):
        assert svg.chart([svg.Line("a", range(len(values)), values)], "t") == ""
    assert svg.chart([svg.Line("a", [0, 1], [0.0, -1.0])], "t", log=True) == ""
    assert svg.chart([], "t") == ""


def test_numbers_on_the_axis_differ_however_near_they_are():
    labels, _ = ticks_of(svg.chart([svg.Line("a", [0, 1], [0.1234567, 0.1234568])], "t"))
    assert len(labels) == len(set(labels)) > 1
    _, steps = ticks_of(svg.chart([svg.Line("a", [100, 101], [0, 1])], "t"))
    assert steps == ["100", "101"]


def test_long_names_keep_their_ends():
    drawn = svg.chart([svg.Line("first/of/many/very/deep/folders/last", [0], [1.0])], "t")
    assert "first/of/ma\N{HORIZONTAL ELLIPSIS}folders/last" in drawn


def number(draw: random.Random) -> float | None:
    """Draw a number of a magnitude that may be anything, or none at all."""
    special = (None, math.nan, math.inf, 0.0, 1.0, math.nextafter(1, 2), 5e-324, 1e308, -1e308, 1e100, 1e-100)
    if draw.random() < 0.3:
        return draw.choice(special)
    return draw.choice((-1, 1, 1)) * 10 ** draw.uniform(-draw.choice((1, 12, 90)), draw.choice((1, 12, 90)))


def series(draw: random.Random, length: int) -> list[float | None]:
    """Draw wild, constant, nearly constant or harmless numbers."""
    constant, width = number(draw), 10 ** draw.uniform(-16, 0)
    near = 10 ** draw.uniform(-9, 9)
    kinds = (
        lambda: number(draw),
        lambda: constant,
        lambda: near * (1 + width * draw.random()),  # short ranges, which hold no power of ten
        lambda: draw.uniform(-3, 3),
    )
    kind = draw.choice(kinds)
    return [kind() for _ in range(length)]


@pytest.mark.parametrize("log", [False, True])
def test_no_series_makes_a_chart_fail(log):
    draw, drawn = random.Random(0), 0
    for _ in range(1_000):
        lines = []
        for i in range(draw.randrange(4)):
            length = draw.choice((0, 1, 2, 10))
            x = sorted(draw.sample(range(draw.choice((20, 10**12))), length))
            band = (series(draw, length), series(draw, length)) if draw.random() < 0.5 else ()
            lines.append(svg.Line(draw.choice(("", "a", 40 * "x")), x, series(draw, length), *band, colour=i))
        drawing = svg.chart(lines, "t", log=log, width=640, height=250)
        if not drawing:
            continue
        drawn += 1
        for labels in ticks_of(drawing):
            assert 2 <= len(set(labels)) == len(labels) <= 15, lines
        for path in ElementTree.fromstring(drawing).iter("path"):
            assert re.fullmatch(r"([MLHvhZ \d.]|-\d)*", path.get("d")), lines  # neither nan nor inf
            places = [float(place) for place in re.findall(r"-?[\d.]+", path.get("d"))]
            assert all(-1 <= place <= 641 for place in places), lines
    assert drawn > 500


@pytest.mark.parametrize("limit", [4.0, 0.0, math.nan, math.inf])
def test_points_outside_the_axes_or_without_a_place_are_left_out(limit):
    xy = np.array([[0.0, 0.0], [math.nan, 0.0], [math.inf, 1.0], [1e30, 0.0]])
    drawing = svg.points(Panel("p", xy, np.array([0, 1, 2, 3]), limit), name_classes=True)
    assert "p: 1 points" in drawing
    assert re.findall(r'class="dots c0" d="(.*?)"', drawing) == ["M1500 1500h0"]
    assert "0 points" in svg.points(Panel("p", np.zeros((0, 2))))


def run_of(evaluations, training=()) -> Run:
    return Run(None, None, list(training), evaluations, {}, [])


def test_compared_runs_are_named_in_full():
    row = {"step": 1, "loss/generator": 1.0}
    (drawing,) = compared_curves({"old/digits": run_of([], [row]), "new/digits": run_of([], [row])})
    assert ">old/digits<" in drawing
    assert ">new/digits<" in drawing


def test_numbers_of_two_evaluations_have_a_chart_unless_they_are_controls_or_never_finite():
    rows = [
        {"step": step, "mode_kept": 0.5, "raw/mode_kept": 0.4, "knn_accuracy_pixels": 0.9, "modes": None}
        for step in (1, 2)
    ]
    assert evaluation_curves(run_of(rows[:1])) == []
    (drawing,) = evaluation_curves(run_of(rows))
    assert "<h4>mode_kept</h4>" in drawing
