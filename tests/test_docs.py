"""What README and docs/ show works as it stands there.

The Python blocks of a page run in order, in one namespace, in a folder that holds the experiments. A block
that begins with a comment that names a file is also written there. Every command is parsed by the program
that it names (`shown`), and those of the first page of the guide run, shortened. Links and anchors lead
somewhere. To write the generated tables anew: `python tests/test_docs.py`.
"""

import importlib
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import jax
import numpy as np
import pytest
import shown
import small
from PIL import Image
from test_architecture import LAYERS
from test_loop import tiny

import ali_jax
from ali_jax import class_penalties, evaluate, losses, main, penalties
from ali_jax import config as configs
from ali_jax.names import public_functions
from ali_jax.program import command, loop

DOCS = small.ROOT / "docs"
PAGES = {
    str(path.relative_to(small.ROOT)): path
    for path in (small.ROOT / "README.md", *sorted(DOCS.rglob("*.md")))
}
TEXT = {name: path.read_text() for name, path in PAGES.items()}
NOT_FILES = ("experiments/FILE.py",)  # stand for others
LINK = re.compile(r"\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Work in a folder with the experiments, and on one device, which is fastest for what is so small."""
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: devices)
    for name in ("experiments", "benchmarks"):
        shutil.copytree(small.ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    """Give the folder of a run of digits that is as small as can be, for pages that use one."""
    folder = tmp_path_factory.mktemp("docs") / "digits"
    changes = {"latent_dim": 16, "num_steps": 2, "steps_per_call": 2, "log_every": 2, "checkpoint_every": 2}
    assert loop.run(tiny(**changes, evaluators=()), folder) == 0
    return folder


def write_files(page, folder):
    for _, code in shown.blocks(TEXT[page], "python"):
        if named := re.match(r"# (\S+\.py)\n", code):
            (folder / named[1]).write_text(code)


@pytest.mark.parametrize("page", [page for page in PAGES if shown.blocks(TEXT[page], "python")])
def test_the_python_blocks_of_a_page_run(page, folder, request):
    write_files(page, folder)
    if '"runs/digits"' in "".join(code for _, code in shown.blocks(TEXT[page], "python")):
        shutil.copytree(request.getfixturevalue("digits_run"), folder / "runs" / "digits")
    names = {"__name__": page}
    for line, code in shown.blocks(TEXT[page], "python"):
        exec(compile("\n" * line + code, str(PAGES[page]), "exec"), names)
    if page == "README.md":
        assert int(names["state"].step) == 1
        assert names["x_hat"].shape == (64, 8, 8, 1)
        assert np.isfinite(names["x_hat"]).all()
        assert {"loss/generator", "loss/discriminator", "r1/x"} <= names["metrics"].keys()


@pytest.mark.parametrize("page", [page for page in PAGES if shown.commands(TEXT[page])])
def test_the_commands_of_a_page_are_right(page, folder, monkeypatch):
    write_files(page, folder)
    for words in shown.commands(TEXT[page]):
        shown.check(words, monkeypatch)


@pytest.mark.parametrize("page", PAGES)
def test_the_flags_of_a_page_are_right(page, folder):
    write_files(page, folder)
    for span in shown.inline(TEXT[page]):
        if span.startswith("--"):
            shown.check_end(span)


def test_a_wrong_command_is_found(folder, monkeypatch):
    for wrong in (
        "python -m ali_jax.main --config experiments/digits.py --workdir a --config.num_stepz=1",
        "python -m ali_jax.main --config experiments/digits.py --workdir a --config.batch_size=0",
        "python -m ali_jax.reproduce mixtures",
        "python -m benchmarks.compare --config experiments/digits.py --round 3",
        "python -m benchmarks.power --m 3",
        "python tests/faults.py --kill 4",
        'pip install ".[gpu]"',
    ):
        (words,) = shown.words_of(wrong)
        with pytest.raises((AssertionError, ValueError, pytest.fail.Exception)):
            shown.check(words, monkeypatch)
    with pytest.raises(AssertionError):
        shown.check_end("--budgets short")


def test_variables_comments_and_nested_commands_are_seen():
    script = """
        run="python -m a --x=1"  # a comment
        $run --y \\
            2 && pip install . > log
        gcloud --command='cd b &&
          python -m c'
    """
    assert shown.words_of(script) == [
        ["python", "-m", "a", "--x=1", "--y", "2"],
        ["pip", "install", "."],
        ["gcloud", "--command=cd b &&\n          python -m c"],
        ["cd", "b"],
        ["python", "-m", "c"],
    ]


def test_every_placeholder_is_used():
    words = {word for text in TEXT.values() for words in shown.commands(text) for word in words}
    words |= {word for text in TEXT.values() for span in shown.inline(text) for word in span.split()}
    assert set(shown.PLACEHOLDERS) <= words


def test_the_commands_of_the_first_page_run(folder, capsys):
    """Each with a training of two steps, networks of few layers and evaluators that cost little."""
    shorter = ["num_steps=2", "steps_per_call=1", "log_every=1", "report=False"]
    shorter.append("evaluators=('reconstruction_error',)")
    shorter += ["encoder.layers=(8,)", "decoder.layers=(8,)"]
    shorter += [f"discriminator.{of}_layers=(8,)" for of in ("x", "z", "joint")]
    for words in shown.commands(TEXT["docs/guide/getting_started.md"]):
        if words[:3] == ["python", "-m", "ali_jax.main"]:
            training = "--config" in words and "--mode" not in words
            more = [f"--config.{change}" for change in shorter if training]
            assert main.main([*words[3:], *more]) == 0, capsys.readouterr().err
    written = {"samples.png", "pairs.png", "lines.png", "compare.html", "runs/digits/evaluation.json"}
    assert all((folder / name).stat().st_size for name in written)


def test_the_commands_on_new_images_run_as_they_are_shown(folder, digits_run, capsys):
    """After the first, which trains. The lines that the page shows are among what they print."""
    shutil.copytree(digits_run, folder / "runs" / "digits")
    for name, brightest in (("day", 256), ("night", 99)):
        (folder / "my_images" / name).mkdir(parents=True)
        for i in range(3):
            pixels = np.random.default_rng(i).integers(0, brightest, (90, 120, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "my_images" / name / f"{i}.jpg")
    page = TEXT["docs/guide/use.md"]
    for words in shown.commands(page):
        if words[:3] == ["python", "-m", "ali_jax.main"] and "--config" not in words:
            assert main.main(words[3:]) == 0, capsys.readouterr().err
    printed = "".join(capsys.readouterr()).splitlines()
    for _, text in shown.blocks(page, "text"):
        assert set(text.splitlines()) <= set(printed)


def test_the_page_of_the_command_line_has_all_flags_and_modes():
    text = TEXT["docs/reference/command_line.md"]
    code = {word.partition("=")[0] for span in shown.inline(text) for word in span.split()}
    assert set(re.findall(r"--\w[\w.-]*", command.USAGE)) <= code
    assert set(command.MODES) <= code


def anchors(path):
    """Return the anchors of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.+)$", shown.FENCE.sub("", path.read_text()), flags=re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", heading.lower()).strip() for heading in headings)
    return {re.sub(r"[-\s]+", "-", heading) for heading in plain}


@pytest.mark.parametrize("page", PAGES)
def test_the_links_of_a_page_lead_somewhere(page):
    for link in LINK.finditer(shown.FENCE.sub("", TEXT[page])):
        target, _, anchor = (link[1] or link[2]).partition("#")
        if target.startswith(("http://", "https://")):
            continue
        path = (PAGES[page].parent / target).resolve() if target else PAGES[page]
        assert path.is_file(), link[0]
        assert not anchor or anchor in anchors(path), link[0]


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_exists(page, folder):
    write_files(page, folder)
    text = TEXT[page]
    named = re.findall(
        r"\b(?:experiments|ali_jax|tests|benchmarks|docs|examples)/[\w/]+\.(?:py|md|ipynb)\b", text
    )
    for path in set(named) - set(NOT_FILES):
        assert (small.ROOT / path).exists() or (folder / path).exists(), path
    keys = configs.flat(configs.base())
    code = " ".join(shown.inline(text)) + " ".join(re.findall(r"--config\.[\w.]+", text))
    for key in re.findall(r"(?<![\w.])config\.([a-zA-Z]\w*(?:\.\w+)*)", code):
        known = key in keys or any(name.startswith(key + ".") for name in keys) or hasattr(configs, key)
        assert known or key in ("py", "json", "KEY"), key
    modules = re.findall(r"^::: (\S+)", text, flags=re.MULTILINE)
    for name in (*re.findall(r"`(ali_jax(?:\.\w+)+)`", text), *modules):
        module, _, last = name.rpartition(".")
        assert hasattr(importlib.import_module(module), last) or importlib.util.find_spec(name), name


def test_the_files_of_the_project_name_pages_that_exist():
    folders = ("ali_jax", "benchmarks", "examples", "experiments", "tests")
    for path in (path for name in folders for path in (small.ROOT / name).rglob("*.py")):
        for page in re.findall(r"\bdocs/[\w/]+\.md\b", path.read_text()):
            assert (small.ROOT / page).exists(), f"{path}: {page}"


def test_the_index_names_every_page_of_guide_and_reference_and_that_of_the_lab_the_others():
    linked = re.findall(r"\]\(((?:guide|reference)/\w+\.md)\)", TEXT["docs/index.md"])
    pages = [*DOCS.glob("guide/*.md"), *DOCS.glob("reference/*.md")]
    assert sorted(set(linked)) == sorted(str(path.relative_to(DOCS)) for path in pages)
    in_lab = re.findall(r"\]\((\w+\.md)\)", TEXT["docs/lab/index.md"])
    assert sorted([*in_lab, "index.md"]) == sorted(path.name for path in DOCS.glob("lab/*.md"))


@pytest.mark.parametrize("page", [page for page in PAGES if re.match(r"docs/lab/(?!index)", page)])
def test_a_page_of_the_lab_begins_with_its_date_and_machine(page):
    first = re.match(r"# .+\n\n\*20\d\d-\d\d-\d\d[^*]+\*\n", TEXT[page])
    assert first, page
    assert re.search("CPU cores|cores of", first[0]), page


def test_a_page_of_the_guide_ends_with_the_next():
    order = re.findall(r"^\d+\. \[.+\]\(guide/(\w+\.md)\)", TEXT["docs/index.md"], flags=re.MULTILINE)
    assert len(order) == len(list(DOCS.glob("guide/*.md")))
    for page, following in pairwise(order):
        last = TEXT[f"docs/guide/{page}"].rstrip().splitlines()[-1]
        assert re.fullmatch(rf"Next: \[.+\]\({following}\)", last), page


def test_the_readme_is_short():
    prose = [line for line in shown.FENCE.sub("", TEXT["README.md"]).splitlines() if not line.startswith("|")]
    assert len(" ".join(prose).split()) <= 900


def first_cells(page, heading):
    """Return the code in the first cell of each row of the first table below a heading."""
    section = TEXT[page].partition(f"\n## {heading}\n")[2]
    rows = re.findall(r"^\|(.*?)\|", section[: section.index("|\n\n") + 1], flags=re.MULTILINE)
    return [re.findall(r"`([^`]+)`", cell) for cell in rows[2:]]


def test_the_map_of_the_readme_is_the_tree():
    package = small.ROOT / "ali_jax"
    shown_there = {name for cell in first_cells("README.md", "The code") for name in cell}
    folders = {f"{path.parent.name}/" for path in package.glob("*/*.py")}
    assert shown_there == folders | {path.name for path in package.glob("*.py")} - {"__init__.py"}


def test_the_readme_names_every_experiment():
    named = [name for cell in first_cells("README.md", "Experiments") for name in cell]
    assert sorted(named) == sorted(path.name for path in (small.ROOT / "experiments").glob("*.py"))


def test_the_layers_of_the_design_are_those_that_imports_are_held_to():
    assert first_cells("docs/reference/design.md", "Layers") == LAYERS


def evaluators_page():
    """Return the page of the evaluators with their table as it is now."""
    pattern = r"(<!-- numbers -->\n).*(\n<!-- /numbers -->)"
    before, start, end, after = re.split(pattern, TEXT["docs/reference/evaluators.md"], flags=re.DOTALL)
    return "".join((before, start, evaluate.table(), end, after))


GENERATED: dict[str, Callable[[], str]] = {"docs/reference/evaluators.md": evaluators_page}


@pytest.mark.parametrize("page", GENERATED)
def test_a_generated_page_is_up_to_date(page):
    assert TEXT[page] == GENERATED[page](), "write it anew: python tests/test_docs.py"


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("compose", ["--steps", "3"], "shapes (100, 8, 8, 1) (4, 11, 8, 8, 1)"),
        ("anomaly_detection", ["--steps", "20"], "AUROC"),
        ("mixture_in_two_minutes", ["--steps", "4", "--out", "panel.png"], "modes_strict"),
    ],
)
def test_an_example_runs(name, arguments, says, folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(small.ROOT / "examples" / f"{name}.py"), run_name="__main__")
    assert says in capsys.readouterr().out
    assert (folder / "panel.png").exists() == ("panel.png" in arguments)


class Loads(HTMLParser):
    """What a page of HTML loads: scripts, styles, images and the like, but no links to click on."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag != "a":
            self.found += [value or "" for name, value in attrs if name in ("src", "srcset", "href", "data")]


def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("mkdocs", reason='needs pip install ".[docs]"')
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    made = subprocess.run(build, cwd=small.ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) == len(PAGES)  # without README, and with 404.html
    for page in pages:
        loads = Loads()
        loads.feed(page.read_text())
        assert len(loads.found) > 3, page
        assert not [url for url in loads.found if re.match(r"(https?:)?//", url)], page
    api = [page.read_text() for page in tmp_path.glob("api/*/*.html")]
    described = [re.findall(r'<h\d id="ali_jax\.[\w.]*?(\w+)"', page) for page in api]
    assert all(described)
    public = {name for name in ali_jax.__all__ if callable(getattr(ali_jax, name))}
    public -= {"ALI", "Loss", "Penalty"}  # names of types
    assert public | set(evaluate.names()) <= set().union(*described)
    for style in tmp_path.rglob("*.css"):
        assert not re.search(r"url\(\W?(https?:)?//|@import", style.read_text()), style


def test_the_page_of_losses_names_every_loss_and_penalty():
    text = (small.ROOT / "docs/reference/losses.md").read_text()
    for module in (losses, penalties, class_penalties):
        for name in public_functions(module):
            assert re.search(rf"\b{name}\b", text), name


if __name__ == "__main__":
    for page, made in GENERATED.items():
        Path(PAGES[page]).write_text(made())
