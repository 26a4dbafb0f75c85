"""Pages: each number, picture and curve stands in the row, in the column and under the name that are its own.

The files of the runs are written here, with numbers that are all different, so that nothing can change places
unnoticed.
"""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pages
import pytest
import small
from test_loop import tiny

from ali_jax import config as configs
from ali_jax import evaluate, game
from ali_jax.evaluate import figures
from ali_jax.report import svg
from ali_jax.report.compare import write_comparison
from ali_jax.report.write import write_report

DECLARED = [number for numbers in evaluate.declared().values() for number in numbers]
NAMES = list(dict.fromkeys(number.name for number in DECLARED))
VALUES = {name: 0.1 + 0.002 * i for i, name in enumerate(name for name in NAMES if not name.startswith("n_"))}
COUNTS = {name: 1_000.0 + i for i, name in enumerate(name for name in NAMES if name.startswith("n_"))}
RAW = {f"raw/{name}": value + 0.5 for name, value in VALUES.items() if not evaluate.is_control(name)}
SITTINGS = [
    {"started": "2026-01-02T03:04:05", "from_step": 0, "to_step": 12, "seconds": 60, "end": "signal 15"},
    {"started": "2026-01-02T04:05:06", "from_step": 12, "to_step": 30, "seconds": 3_661, "end": "done"},
]


def training(shift: float = 0.0) -> list[dict]:
    """Give rows of training metrics; every number is another one."""
    return [
        {
            "step": step,
            "loss/generator": 1.0 + shift + step / 100,
            "loss/discriminator": 3.0 + shift - step / 100,
            "accuracy/data": 0.8 - shift / 10 + step / 1000,
            "accuracy/sample": 0.6 - shift / 10 + step / 500,
            "r1/x": 10.0 ** (step / 10) * (1 + shift),
        }
        for step in (10, 20, 30)
    ]


def over_two_members(numbers: dict) -> dict:
    """Give the numbers of a population of two with these means."""
    parts = {"": 0.0, "/std": -0.06, "/low": -0.05, "/high": 0.07, "/0": -0.01, "/1": 0.01}
    counts = {name: value for name, value in numbers.items() if name == "step" or name.startswith("n_")}
    spread = {k + part: v + d for k, v in numbers.items() if k not in counts for part, d in parts.items()}
    return counts | spread


def write_run(folder, config, rows, *, sittings=(), wall_seconds=0.0, images_per_second=0.0):
    """Write the files of a finished run and return its folder."""
    (folder / "images").mkdir(parents=True)
    (folder / "config.json").write_text(configs.to_json(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    metrics = {name: value for name, value in rows[-1].items() if name != "step"}
    speed = {"wall_seconds": wall_seconds, "images_per_second": images_per_second}
    (folder / "summary.json").write_text(json.dumps({"step": rows[-1]["step"], "metrics": metrics, **speed}))
    (folder / "sittings.json").write_text(json.dumps(list(sittings)))
    return folder


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """Give the page of a run with averaged weights, and its game and state."""
    made = game.prepare(tiny(loss="hinge", seed=5))
    state = game.initial_state(made)
    state = state._replace(step=np.int32(30), ema=jax.tree.map(lambda leaf: 2 * leaf + 0.1, state.variables))
    versions = {"command": "python -m ali_jax.main --workdir 'a b' --json", "device": "2 x lamp (cpu)"}
    sittings = [SITTINGS[0], {**SITTINGS[1], **versions, "versions": {"jax": "1.2", "numpy": "3.4"}}]
    rows = [*training(), {"step": 20, "class_kept": 0.9}, {"step": 30, **VALUES, **COUNTS, **RAW}]
    folder = write_run(
        tmp_path_factory.mktemp("single") / "one",
        made.config,
        rows,
        sittings=sittings,
        wall_seconds=3_725,
        images_per_second=4_321,
    )
    text = write_report(made, state, folder).read_text()
    return SimpleNamespace(page=pages.read(text), text=text, game=made, state=state)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Give the page of a population of two with raw weights, and its game and state."""
    made = game.prepare(tiny(population__seeds=2, ema_decay=0.0))
    state = game.initial_state(made)._replace(step=np.int32(30))
    rows = [*map(over_two_members, training()), over_two_members({"step": 30, **VALUES, **COUNTS})]
    folder = write_run(tmp_path_factory.mktemp("two") / "two", made.config, rows)
    text = write_report(made, state, folder).read_text()
    return SimpleNamespace(page=pages.read(text), text=text, game=made, state=state)


def tables(page, name: str) -> list[list[list[str]]]:
    """Return the cells of the tables of a section."""
    return [pages.cells(table) for table in pages.section(page, name).all("table")]


def wilson(share: float, n: float) -> tuple[float, float]:
    """Return the two roots p of (share - p)^2 = 1.96^2 p (1 - p) / n."""
    z2 = 1.959964**2 / n
    return tuple(sorted(np.roots([1 + z2, -2 * share - z2, share**2])))


def test_every_number_of_a_run_has_its_row_with_its_interval_and_raw_value(single):
    shown = {}
    for table in tables(single.page, "numbers"):
        head, *rows = table
        shown |= {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    assert shown.keys() == VALUES.keys()
    for number in (number for number in DECLARED if number.name in VALUES):
        row, value = shown[number.name], VALUES[number.name]
        assert float(row["value"]) == pytest.approx(value, rel=1e-3)
        raw = RAW.get(f"raw/{number.name}")
        assert row.get("raw", "") == ("" if raw is None else f"{raw:.4g}"), number.name
        limits = wilson(value, COUNTS[number.share_of]) if number.share_of else ()
        interval = row.get("95 % interval", "")
        assert [float(end) for end in interval.split(" to ") if end] == pytest.approx(limits, rel=1e-2)


def test_every_evaluator_has_its_numbers_their_meanings_and_its_counts_below_its_name(single):
    shown = pages.below_headings(pages.section(single.page, "numbers"))
    seen = set()
    for name, numbers in sorted(evaluate.declared().items()):
        values = {number.name for number in numbers} & VALUES.keys() - seen
        seen |= values
        if not values:  # those of inception_distance are frechet_distance's too, and stand there
            continue
        (box,) = shown[name.replace("_", " ").capitalize()]
        meanings = {number.name: number.meaning for number in numbers}
        assert all(row[-1] == meanings[row[0]] for row in pages.cells(box)[1:])
        counts = [f"{n.name} = {COUNTS[n.name]:,.0f}" for n in numbers if n.is_count]
        assert [caption.text for caption in box.all("caption")] == ([", ".join(counts)] if counts else [])


def test_controls_alone_are_grey(single):
    rows = [
        row for table in pages.section(single.page, "numbers").all("table") for row in table.all("tr")[1:]
    ]
    grey = {row.all("th")[0].text for row in rows if row.attributes.get("class") == "control"}
    assert grey == {name for name in VALUES if evaluate.is_control(name)}


def test_the_numbers_of_a_population_are_mean_deviation_and_interval(two):
    for head, *rows in tables(two.page, "numbers"):
        assert head[:4] == ["metric", "mean", "std", "95 % interval"]
        for name, mean, std, limits, *_ in rows:
            value = VALUES[name]
            assert float(mean) == pytest.approx(value, rel=1e-3)
            assert float(std) == pytest.approx(value - 0.06, rel=0.05)
            assert [float(end) for end in limits.split(" to ")] == pytest.approx(
                [value - 0.05, value + 0.07], rel=1e-2
            )


def test_headlines_are_the_most_telling_numbers_under_their_own_titles(single):
    boxes = single.page.one("dl", "headlines").all("div")
    expected = evaluate.headlines()[: len(boxes)]
    assert len(boxes) == 4
    for box, number in zip(boxes, expected, strict=True):
        assert box.one("dt").text == number.headline
        value = next(child for child in box.one("dd").children if isinstance(child, str))
        assert float(value) == pytest.approx(VALUES[number.name], rel=1e-2)
        beside = [small.text for small in box.all("small")]
        if number.scale:
            assert beside.pop(0) == f"{VALUES[number.scale[0]]:.3g} {number.scale[1]}"
        if number.share_of:
            low, high = wilson(VALUES[number.name], COUNTS[number.share_of])
            assert beside.pop(0) == f"95 %: {low:.3g} to {high:.3g} over test rows"
        assert beside == []


def test_what_was_run_is_told_fact_by_fact(single, two):
    facts, changed = ({row[0]: row[1:] for row in table} for table in tables(single.page, "run"))
    sizes = (
        8 * 8 * 8 + 8 + 2 * (8 * 3 + 3),
        3 * 8 + 8 + 8 * 64 + 64,
        8 * 64 + 8 + 3 * 8 + 8 + 16 * 8 + 8 + 9,
    )
    assert facts == {
        "data": ["digits, 8x8x1 pixels, 10 classes"],
        "classes": ["0 to 9"],
        "training rows": ["1,400 (train)"],
        "test rows": ["397 (test)"],
        "near-duplicates": [
            "0 of 397 test images differ by at most 2% of the range (root mean square over pixels) from one "
            "of 1,400 training images"
        ],
        "parameters": ["encoder {}, decoder {}, discriminator {}".format(*sizes)],
        "loss": ["hinge"],
        "weights shown": ["averaged (decay 0.9)"],
        "device": ["2 x lamp (cpu)"],
        "versions": ["jax 1.2, numpy 3.4"],
    }
    assert changed["key"] == ["value", "default"]
    assert changed["seed"] == ["5", "0"]
    assert changed["loss"] == ["'hinge'", "'ali'"]
    assert "num_steps" in changed
    command = pages.section(single.page, "run").one("pre").text
    assert command == "python -m ali_jax.main \\ --workdir 'a b' \\ --json"
    assert single.page.one("p", "lead").text == "ALI on digits: 30 steps of 11 images."
    assert two.page.one("p", "lead").text == "ALI on digits: 30 steps of 11 images, 2 members."
    facts = dict(tables(two.page, "run")[0])
    assert facts["weights shown"] == "raw, first member"
    assert facts["device"] == facts["versions"] == "not recorded"


def test_sittings_are_rows_in_order_with_where_they_began_and_ended(single):
    (table,) = tables(single.page, "history")
    assert table == [
        ["started (UTC)", "from step", "to step", "h:mm:ss", "end", "device"],
        ["2026-01-02 03:04:05", "0", "12", "0:01:00", "signal 15", ""],
        ["2026-01-02 04:05:06", "12", "30", "1:01:01", "done", "2 x lamp (cpu)"],
    ]
    said = pages.section(single.page, "history").one("p").text
    assert "took 1:02:05 (h:mm:ss)" in said
    assert "4,321 images per second" in said


@pytest.mark.parametrize("run", ["single", "two"])
def test_curves_of_training_bear_their_own_names(run, request):
    page = request.getfixturevalue(run).page
    charts = pages.titled(pages.section(page, "curves"))
    rows = training()
    for title, group in (("Losses", "loss"), ("Accuracy of the discriminator", "accuracy"), ("r1", "r1")):
        log = group == "r1"
        shown = pages.curves(charts[title], log=log)
        names = [name for name in rows[0] if name.startswith(group + "/")]
        assert list(shown) == [name.partition("/")[2] for name in names]
        for name in names:
            places = [(row["step"], row[name]) for row in rows]
            np.testing.assert_allclose(shown[name.partition("/")[2]], places, rtol=0.02)
    caption = pages.section(page, "curves").all("figcaption")[0].text
    assert "Each point is the mean over the last steps up to it, at most 10." in caption  # those of a call
    bands = pages.curves(charts["Losses"], "band")
    assert bool(bands) == (run == "two")
    for name in bands:
        ends = [(row["step"], row[f"loss/{name}"]) for row in rows]
        edges = [(x, y + 0.07) for x, y in ends] + [(x, y - 0.05) for x, y in reversed(ends)]
        np.testing.assert_allclose(bands[name], edges, rtol=0.02)


def test_a_curve_over_the_evaluations_has_the_numbers_of_each(single):
    charts = pages.titled(pages.section(single.page, "curves"))
    shown = pages.curves(charts["class_kept"])[""]
    np.testing.assert_allclose(shown, [(20, 0.9), (30, VALUES["class_kept"])], rtol=0.02)
    assert set(charts) == {"Losses", "Accuracy of the discriminator", "r1", "class_kept"}


def evaluate_with(a_game, variables, name: str):
    """Apply an evaluator to these weights."""
    options = {"grid": (2, 2)} if name == "samples" else {}
    return evaluate.named(name)(
        a_game.ali,
        jax.device_get(variables),
        game.evaluation_key(a_game.config),
        a_game.dataset,
        **options,
    )


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("samples", "samples"),
        ("Interpolations", "interpolations"),
        ("Traversals", "traversals"),
        ("memorisation", "neighbours"),
    ],
)
def test_pictures_are_those_of_the_averaged_weights(single, place, name):
    drawn = evaluate_with(single.game, single.state.ema, name).images[name]
    raw = evaluate_with(single.game, single.state.variables, name).images[name]
    assert (drawn != raw).any()
    parts = pages.below_headings(pages.section(single.page, "latent"))
    part = parts[place][0] if place in parts else pages.section(single.page, place)
    np.testing.assert_array_equal(pages.pixels(part), drawn)


def test_codes_are_those_of_the_averaged_weights_too(single):
    """Codes are drawn as points, not as a picture."""
    drawn, raw = (
        svg.points(
            evaluate.code_panel(single.game.ali, variables, single.game.dataset)[0],
            size=600,
            name_classes=True,
        )
        for variables in (single.state.ema, single.state.variables)
    )
    assert drawn in single.text
    assert raw != drawn


def test_the_panels_of_data_in_the_plane_bear_their_own_names(tmp_path):
    config = small.narrow(small.experiment("mixture"))
    config.population.vary, config.evaluators = (), ()
    made = game.prepare(config.lock())
    folder = write_run(tmp_path / "plane", made.config, training())
    page = pages.read(write_report(made, game.initial_state(made), folder).read_text())
    panels = pages.titled(pages.section(page, "samples"))
    assert {title: panel.attributes["aria-label"].partition(":")[0] for title, panel in panels.items()} == {
        "Data x": "x",
        "Reconstructions of x": "x_hat",
        "Samples": "x_tilde",
        "Codes of x": "z_hat",
        "Prior draws z": "z",
    }


def test_the_best_the_median_and_the_worst_reconstructions_bear_their_names_and_errors(single):
    report = evaluate_with(single.game, single.state.ema, "error_extremes")
    strips = pages.titled(pages.section(single.page, "reconstructions"))
    caption = pages.section(single.page, "reconstructions").one("figcaption").text
    assert "the best of 397" in caption
    assert "Weights: averaged (decay 0.9)." in caption
    for name in ("best", "median", "worst"):
        error = report.scalars[f"reconstruction_error_{name}"]
        np.testing.assert_array_equal(
            pages.pixels(strips[f"{name.capitalize()}, error {error:.3g}"]), report.images[f"error_{name}"]
        )


def test_the_pictures_of_a_population_are_those_of_its_first_member(two):
    drawn, other = (
        evaluate_with(two.game.members[k], game.member_of(two.state, k).variables, "samples").images[
            "samples"
        ]
        for k in (0, 1)
    )
    assert (drawn != other).any()
    part = pages.section(two.page, "samples")
    np.testing.assert_array_equal(pages.pixels(part), drawn)
    assert part.one("figcaption").text.partition(" Look for")[0].endswith("Weights: raw.")


def picture_of(value: int) -> np.ndarray:
    return np.full((9, 9, 3), value, np.uint8)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Give the folder of three runs, and the page that compares them: b is a population."""
    folder = tmp_path_factory.mktemp("compared")
    for i, name in enumerate("abc"):
        rows = [*training(i), {"step": 20, "class_kept": 0.3 + i / 10}, {"step": 30, **shifted(i)}]
        rows = [over_two_members(row) for row in rows] if name == "b" else rows
        config = tiny(latent_dim=3 + i, population__seeds=2 * (name == "b"))
        run = write_run(folder / name, config, rows, wall_seconds=100 + i, images_per_second=2_000 + i)
        for j, kind in enumerate(("samples", "reconstructions", "interpolations")):
            figures.save_png(run / "images" / f"{kind}_9.png", picture_of(1))
            figures.save_png(run / "images" / f"{kind}_30.png", picture_of(100 + 10 * i + j))
    page = write_comparison([folder / name for name in "abc"], folder / "compare.html")
    return pages.read(page.read_text())


def shifted(i: int) -> dict[str, float]:
    """Give the numbers of run i."""
    return {name: value + i for name, value in (VALUES | COUNTS | RAW).items()}


def test_each_run_has_its_own_column(compared):
    keys, facts = tables(compared, "configs")
    assert keys[0] == ["key", "a", "b", "c"]
    assert keys[1:] == [["latent_dim", "3", "4", "5"], ["population.seeds", "0", "2", "0"]]
    assert facts == [
        ["", "a", "b", "c"],
        ["step", "30", "30", "30"],
        ["members", "1", "2", "1"],
        ["seconds of wall time", "100", "101", "102"],
        ["images per second", "2,000", "2,001", "2,002"],
    ]


def test_each_number_of_each_run_stands_in_its_row_and_column(compared):
    ((head, *rows),) = tables(compared, "numbers")
    assert head == ["metric", "a", "b", "c"]
    assert [row[0] for row in rows] == [*VALUES | COUNTS, *RAW]
    for name, *shown in rows:
        expected = [shifted(i)[name] for i in range(3)]
        assert [float(text.split()[0].replace(",", "")) for text in shown] == pytest.approx(
            expected, rel=1e-3
        )
        if name not in COUNTS:
            low, _, high = shown[1].partition(" (")[2].rstrip(")").split()
            assert [float(low), float(high)] == pytest.approx(
                [expected[1] - 0.05, expected[1] + 0.07], rel=1e-2
            )


def test_each_curve_bears_the_name_of_its_run(compared):
    charts = pages.titled(pages.section(compared, "curves"))
    assert list(charts) == [*(name for name in training()[0] if name != "step"), "class_kept"]
    for name in training()[0]:
        if name == "step":
            continue
        shown = pages.curves(charts[name], log=name == "r1/x")
        assert list(shown) == ["a", "b", "c"]
        for i, run in enumerate("abc"):
            places = [(row["step"], row[name]) for row in training(i)]
            np.testing.assert_allclose(shown[run], places, rtol=0.03)
    kept = pages.curves(charts["class_kept"])
    for i, run in enumerate("abc"):
        places = [(20, 0.3 + i / 10), (30, shifted(i)["class_kept"])]
        np.testing.assert_allclose(kept[run], places, atol=0.05)


def test_each_picture_stands_below_the_name_of_its_run_and_is_the_newest(compared):
    shown = pages.below_headings(pages.section(compared, "pictures"))
    for j, kind in enumerate(("Samples", "Reconstructions", "Interpolations")):
        pictures = pages.titled(shown[kind][0])
        assert list(pictures) == ["a", "b", "c"]
        for i, run in enumerate("abc"):
            np.testing.assert_array_equal(pages.pixels(pictures[run]), picture_of(100 + 10 * i + j))
