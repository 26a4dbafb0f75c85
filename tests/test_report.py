"""The pages: what they show is what the files say, escaped; nothing is loaded; a browser agrees."""

import html
import json
import re
from types import SimpleNamespace

import browser
import jax
import numpy as np
import pages
import pytest
from test_evaluate import copier, recaller
from test_loop import tiny
from test_pages import over_two_members

from ali_jax import evaluate
from ali_jax.data import ArraySplit, Dataset, Note
from ali_jax.main import main
from ali_jax.metrics.neighbors import nearest_few
from ali_jax.program import loop
from ali_jax.records import read
from ali_jax.records.writers import Spread, spreads
from ali_jax.report import write
from ali_jax.types import Networks, Report, Variables

EVIL = "<script>alert(1)</script>&\"'"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Give the folder of a run with its report, whose name and files want escaping."""
    folder = tmp_path_factory.mktemp("report") / "a<b>&"
    config = tiny(report=True, num_steps=30, evaluators=("samples", "reconstruction_error", "posterior"))
    assert loop.run(config, folder) == 0
    return folder


@pytest.fixture(scope="module")
def population(whole, tmp_path_factory):
    """Give a folder as a population of two would leave it."""
    folder = tmp_path_factory.mktemp("population") / "two"
    folder.mkdir()
    (folder / "config.json").write_text((whole / "config.json").read_text())
    rows = (json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines())
    (folder / "metrics.jsonl").write_text("".join(json.dumps(over_two_members(row)) + "\n" for row in rows))
    return folder


def test_members_are_gathered_under_their_name():
    scalars = {
        "r1/x": 1.0,
        "k": 2.0,
        "k/std": 0.1,
        "k/low": 1.9,
        "k/high": 2.1,
        "k/1": 3.0,
        "k/0": 1.0,
        "raw/k": 5.0,
    }
    found = spreads(scalars)
    assert list(found) == ["r1/x", "k", "raw/k"]
    assert found["k"] == (2.0, 0.1, 1.9, 2.1, (1.0, 3.0))
    assert found["r1/x"].members == ()


def test_members_that_diverged_are_a_concern():
    last = {"step": 9, "loss/generator": 1.4, "loss/generator/0": None, "loss/generator/1": 1.4}
    (found,) = read.concerns({}, last, 0, 0)
    assert found.what == "1 of 2 members have diverged: 0."
    assert read.concerns({}, {**last, "loss/generator/0": 1.3}, 0, 0) == []


GOOD = {
    "class_share_min": 0.08,
    "class_kept": 0.9,
    "modes_strict": 25.0,
    "reconstruction_mse": 0.02,
    "reconstruction_mse_random_pair": 0.15,
    "mode_kept": 0.9,
    "posterior_sigma": 0.4,
    "memorisation": 1.1,
    "near_duplicates": 0.005,
    "batch_norm_gap_encoder": 0.01,
    "batch_norm_gap_decoder": 0.01,
}
LAST = {"step": 9, "accuracy/data": 0.6, "accuracy/sample": 0.6}


def test_good_numbers_raise_no_concern_and_missing_ones_neither():
    assert read.concerns(GOOD, LAST, 10, 25) == []
    assert read.concerns({}, {}, 10, 25) == []
    assert read.concerns({"posterior_sigma": None}, {}, 0, 0) == []


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("class_share_min", 0.01, "class"),
        ("class_kept", 0.13, "forget"),
        ("modes_strict", 24.0, "modes"),
        ("reconstruction_mse", 0.14, "random image"),
        ("mode_kept", 0.04, "forget"),
        ("posterior_sigma", 0.005, "deterministic"),
        ("posterior_sigma", 0.99, "prior"),
        ("memorisation", 0.2, "nearer"),
        ("near_duplicates", 0.02, "also in train"),
        ("batch_norm_gap_decoder", 0.5, "decoder"),
    ],
)
def test_each_bad_number_raises_its_own_concern(name, value, word):
    (concern,) = read.concerns({**GOOD, name: value}, LAST, 10, 25)
    assert word in concern.what


def test_a_discriminator_that_wins_is_a_concern():
    last = {**LAST, "accuracy/data": 0.999, "accuracy/sample": 0.995}
    (concern,) = read.concerns(GOOD, last, 10, 25)
    assert "tells nearly all pairs apart: 99.9% and 99.5%" in concern.what


def test_the_page_has_the_notes_on_the_data_and_the_names_of_classes(whole):
    run = read.read_run(whole)
    notes = (Note("2 .txt <files> are skipped."), Note("The images are dark.", True))
    split = ArraySplit(np.zeros((3, 2, 2, 1), np.uint8))
    dataset = Dataset("x", split, split, 255.0, 2, class_names=("cats", "<dogs>"), notes=notes)
    variables = Variables(Networks({}, {}, {}), Networks({}, {}, {}))
    copies = Report({"near_duplicates": 2 / 3, "n_near_duplicates": 3.0, "n_train": 1400.0}, {})
    look = SimpleNamespace(
        dataset=dataset,
        shape=(2, 2, 1),
        variables=variables,
        weights="raw",
        report=lambda name: copies if name == "near_duplicates" else None,
    )
    concerns = write._concerns(run, look)
    assert "<p><strong>The data.</strong> The images are dark.</p>" in concerns
    assert "66.7% of the test images are also in train, or nearly." in concerns
    assert "No warnings" not in concerns
    assert "skipped" not in concerns
    table = "".join(write._what_was_run(run, look))
    cells = dict(re.findall(r'<tr><th scope="row">(.*?)</th><td>(.*?)</td>', table))
    assert cells["classes"] == "0 cats, 1 &lt;dogs&gt;"
    assert cells["near-duplicates"] == (
        "2 of 3 test images differ by at most 2% of the range (root mean square over pixels) from one of "
        "1,400 training images"
    )
    assert cells["about the data"] == "2 .txt &lt;files&gt; are skipped."
    numbered = dataset._replace(class_names=("0", "1"), notes=())
    look.dataset = numbered
    cells = dict(
        re.findall(r'<tr><th scope="row">(.*?)</th><td>(.*?)</td>', "".join(write._what_was_run(run, look)))
    )
    assert cells["classes"] == "0 to 1"
    assert "about the data" not in cells
    assert "The data." not in write._concerns(run, look)


def test_the_few_nearest_are_those_of_a_full_sort():
    rng = np.random.default_rng(0)
    queries, references = (
        rng.normal(size=(7, 5)).astype(np.float32),
        rng.normal(size=(40, 5)).astype(np.float32),
    )
    distance = np.linalg.norm(queries[:, None] - references[None], axis=-1)
    index, found = nearest_few(queries, references, 3)
    np.testing.assert_array_equal(index, np.argsort(distance, axis=1)[:, :3])
    np.testing.assert_allclose(found, np.sort(distance, axis=1)[:, :3], rtol=1e-5)
    with pytest.raises(ValueError, match="41 neighbours"):
        nearest_few(queries, references, 41)


def images(number: int, seed: int = 0) -> Dataset:
    """Give 2x2 images of distinct grey levels, with two classes."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (number, 2, 2, 1), dtype=np.uint8)
    split = ArraySplit(x, None, (np.arange(number) % 2).astype(np.int32), 2)
    return Dataset("grey", split, split, 255.0, 2)


def halves(picture: np.ndarray, rows: int) -> list[np.ndarray]:
    """Cut a grid's rows of images apart, without the white lines between them."""
    height = (len(picture) - 2) // rows
    return [picture[2 + i * height : (i + 1) * height, 2:] for i in range(rows)]


def test_extremes_are_sorted_by_error_and_a_copier_makes_none(key):
    data = images(12)
    ali, variables = copier(data)
    report = evaluate.error_extremes(ali, variables, key, data)
    assert report.scalars["reconstruction_error_worst"] == 0
    above, below = halves(report.images["error_best"], 2)
    np.testing.assert_array_equal(above, below)
    dimmed = variables._replace(params=variables.params._replace(decoder={"one": np.float32(0.5)}))
    found = evaluate.error_extremes(ali, dimmed, key, data).scalars
    errors = np.sort(np.mean((data.test.x / 510) ** 2, axis=(1, 2, 3)))  # half of each image is missing
    names = ("reconstruction_error_best", "reconstruction_error_median", "reconstruction_error_worst")
    np.testing.assert_allclose([found[name] for name in names], errors[[0, 6, 11]], rtol=1e-5)


def test_neighbours_of_a_model_that_recalls_training_images_are_its_samples(key):
    data = images(12)
    ali, variables = recaller(data, data.train.x / np.float32(255))
    first, second, *_ = halves(evaluate.neighbours(ali, variables, key, data).images["neighbours"], 4)
    np.testing.assert_array_equal(first, second)


def test_traversals_change_one_code_dimension_a_row(key):
    data = images(12)
    ali, variables = copier(data)  # a code dimension is a pixel
    picture = evaluate.traversals(ali, variables, key, data).images["traversals"]
    for row in halves(picture, 4):
        width = row.shape[1] // 11
        left, right = row[:, : width - 2].astype(int), row[:, 10 * width : 11 * width - 2].astype(int)
        assert np.mean(left != right) == pytest.approx(0.25, abs=0.03)


def test_codes_in_the_plane_hold_all_their_variance_and_projections_less():
    data = images(50)
    ali, variables = copier(data)
    panel, share = evaluate.code_panel(ali, variables, data)
    assert panel.points.shape == (50, 2)
    assert 0.5 <= share < 1  # the two largest of four
    assert np.abs(panel.points).max() <= panel.limit


def test_networks_without_batch_norm_have_no_gap(key):
    data = images(20)
    ali, variables = copier(data)
    scalars = evaluate.batch_norm(ali, variables, key, data).scalars
    assert scalars["batch_norm_gap_encoder"] == scalars["batch_norm_gap_decoder"] == 0


def test_intervals_are_wilsons_for_shares_of_test_rows_and_the_members_for_a_population():
    metrics = {"class_kept": 0.5, "raw/label_error": 0.5, "n_test_labelled": 100.0, "class_kl": 0.1}
    for name in ("class_kept", "raw/label_error"):
        low, high, over = read.interval(name, Spread(0.5), metrics)
        assert (low, high) == pytest.approx((0.4038, 0.5962), abs=1e-4)
        assert over == "test rows"
    assert read.interval("class_kl", Spread(0.1), metrics) is None
    assert read.interval("class_kept", Spread(0.5), {}) is None  # of how many rows is unknown
    assert read.interval("class_kept", Spread(0.5, 0.1, 0.4, 0.7), metrics) == (0.4, 0.7, "members")


def test_headlines_are_ordered_by_how_much_they_tell():
    names = [number.name for number in evaluate.headlines()]
    images = ["class_kl", "class_kept", "knn_accuracy", "reconstruction_mse", "memorisation"]
    points = ["modes_strict", "high_quality", "mode_kept", "reconstruction_mse", "memorisation"]
    for kind in (images, points):
        assert sorted(kind, key=names.index) == kind


def test_a_report_is_one_file_that_loads_nothing_and_has_a_section_for_each_subject(whole):
    text = (whole / "report.html").read_text()
    page = pages.read(text)
    assert len(text) < 500_000
    assert page.all("script") == []
    assert_loads_nothing(page)
    assert re.findall(r"url\(|@import|https?://", text) == []
    sections = page.all("section")
    links = page.one("nav").all("a")
    titles = ["What was run", "Training", "Samples", "Reconstructions", "Latent space", "Memorisation"]
    assert [part.one("h2").text for part in sections] == [*titles, "Numbers", "History and speed"]
    assert [(a.attributes["href"], a.text) for a in links] == [
        (f"#{part.attributes['id']}", part.one("h2").text) for part in sections
    ]
    assert [len(part.all("img")) for part in sections] == [0, 0, 1, 3, 2, 1, 0, 0]


def test_a_report_shows_the_numbers_and_the_circumstances_of_its_run(whole):
    page = pages.read((whole / "report.html").read_text())
    metrics = json.loads((whole / "summary.json").read_text())["metrics"]
    shown = {row[0]: row[1] for table in page.all("table") for row in pages.cells(table)[1:]}
    for name in ("reconstruction_mse", "posterior_sigma"):
        assert shown[name] == f"{metrics[name]:.4g}"
    facts = dict(pages.cells(pages.section(page, "run").all("table")[0]))
    assert f"jax {jax.__version__}, " in facts["versions"]
    assert facts["device"] == "1 x cpu (cpu)"
    assert facts["training rows"] == "1,400 (train)"


def assert_loads_nothing(page) -> None:
    """Whatever a page links or embeds is inside it."""
    elements = (e.attributes for tag in ("img", "a", "link", "script", "iframe") for e in page.all(tag))
    links = [value for each in elements for name, value in each.items() if name in ("src", "href")]
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)


def test_what_files_say_is_escaped(whole, capsys):
    sittings = json.loads((whole / "sittings.json").read_text())
    assert [(s["from_step"], s["to_step"], s["end"]) for s in sittings] == [(0, 30, "done")]
    sittings[0] |= {"command": EVIL, "device": EVIL, "end": EVIL, "versions": {EVIL: EVIL}}
    (whole / "sittings.json").write_text(json.dumps(sittings))
    out = whole.parent / "escaped.html"
    assert main(["--mode", "report", "--workdir", str(whole), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    text = out.read_text()
    assert "<script" not in text
    page = pages.read(text)
    assert page.one("h1").text == "a<b>&"
    assert pages.section(page, "run").one("pre").words == [EVIL]
    (row,) = pages.cells(pages.section(page, "history").one("table"))[1:]
    assert row[-2:] == [EVIL, EVIL]
    assert text.count(html.escape(EVIL)) >= 4


def test_runs_are_compared_by_their_files(whole, population, tmp_path, capsys):
    out = tmp_path / "compare.html"
    assert main(["--mode", "compare", "--workdirs", str(whole), str(population), "--out", str(out)]) == 0
    page = pages.read(out.read_text())
    assert page.one("h1").text == "a<b>& · two"
    assert pages.section(page, "configs").all("p")[0].text == "The runs have the same config."
    assert list(pages.titled(pages.section(page, "pictures"))) == ["a<b>&"]  # the population has none
    assert page.all("script") == []
    assert_loads_nothing(page)
    assert len(page.all("path", "band")) == len(page.all("svg"))  # of the population alone
    value = json.loads((whole / "summary.json").read_text())["metrics"]["reconstruction_mse"]
    shown = {row[0]: row[1:] for row in pages.cells(pages.section(page, "numbers").one("table"))}
    assert shown["reconstruction_mse"] == [
        f"{value:.4g}",
        f"{value:.4g} ({value - 0.05:.3g} to {value + 0.07:.3g})",
    ]
    assert read.read_run(population).members == 2


def test_comparisons_that_cannot_be_made_say_why(whole, tmp_path, capsys):
    run = str(whole)
    for arguments, expected in (
        (["--mode", "compare", "--workdirs", run, str(tmp_path)], f"{tmp_path} holds no run"),
        (["--mode", "compare", "--workdirs", run], "two folders or more"),
        (["--mode", "compare", "--workdirs", run, run], "same folder was given twice"),
        (["--mode", "compare", "--workdir", run], "--mode compare and --workdirs"),
        (["--mode", "report", "--workdir", str(tmp_path)], "holds no run"),
    ):
        assert main(arguments) == 2
        assert expected in capsys.readouterr().err


def test_a_report_that_fails_leaves_the_run_finished(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(loop, "write_report", fail)
    assert loop.run(tiny(report=True, num_steps=10, evaluators=()), tmp_path / "run") == 0
    assert "The report was not written: no space left" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.skipif(browser.executable() is None, reason="Chromium is not installed")
def test_a_browser_shows_all_of_it_and_asks_for_nothing(whole, population, tmp_path):
    compared = tmp_path / "compare.html"
    assert main(["--mode", "compare", "--workdirs", str(whole), str(population), "--out", str(compared)]) == 0
    report = tmp_path / "report.html"
    report.write_text((whole / "report.html").read_text())
    with browser.browser(tmp_path / "profile") as page:
        for path, width, dark in ((report, 1100, False), (report, 380, True), (compared, 380, False)):
            page.open(path.as_uri(), width=width, dark=dark)
            pictures = page.value("[...document.images].map(i => i.complete && i.naturalWidth > 8)")
            assert len(pictures) >= 1
            assert all(pictures)
            assert (
                page.value("document.documentElement.scrollWidth") <= width
            )  # tables scroll, the page does not
            scrolls = "[...document.querySelectorAll('.scroll')].map(e => e.scrollWidth > e.clientWidth)"
            assert any(page.value(scrolls)) == (width == 380)
            dim = page.value(
                "parseInt(getComputedStyle(document.documentElement).backgroundColor.slice(4)) < 60"
            )
            assert dim == dark
            asked = {r["request"]["url"].split(":")[0] for r in page.of("Network.requestWillBeSent")}
            assert asked <= {"file", "data"}
            assert page.of("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown") == []
