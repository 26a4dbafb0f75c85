"""What README and docs/ show works as it stands there.

The Python blocks of a page run in order, in one namespace, in a folder that holds the experiments. A block
that begins with a comment that names a file is also written there. The commands of a page are parsed and
their configs checked, not run. A block below a line `<!-- not run: reason -->` is left out. To print the
table of docs/reference/evaluators.md anew: `python tests/test_docs.py`.
"""

import importlib
import re
import runpy
import shlex
import shutil
import sys

import jax
import numpy as np
import pytest
import small

from ali_jax import config as configs
from ali_jax import evaluate
from ali_jax.program import command

PAGES = {path.stem: path for path in (small.ROOT / "README.md", *sorted((small.ROOT / "docs").glob("*.md")))}
FENCE = r"^(<!-- not run: .+ -->\n)?```{kind}\n(.*?)^```$"
PLACEHOLDERS = ("key", "KEY", "experiments/FILE.py")


def blocks(page, kind):
    """Return (line, text) of the blocks of a kind that are not left out."""
    text = PAGES[page].read_text()
    found = re.finditer(FENCE.format(kind=kind), text, flags=re.MULTILINE | re.DOTALL)
    return [(text[: match.start(2)].count("\n"), match[2]) for match in found if not match[1]]


def commands(page):
    """Return the arguments of every command of the program that a page's shell blocks give."""
    lines = "".join(text.replace("\\\n", " ") for _, text in blocks(page, "sh")).splitlines()
    parts = (shlex.split(part, comments=True) for line in lines for part in line.split("&&"))
    return [words[2:] for words in parts if words[:2] == ["python", "-m"]]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Work in a folder with the experiments, and on one device, which is fastest for what is so small."""
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: devices)
    shutil.copytree(small.ROOT / "experiments", tmp_path / "experiments")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_files(page, folder):
    for _, text in blocks(page, "python"):
        if named := re.match(r"# (\S+\.py)\n", text):
            (folder / named[1]).write_text(text)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_the_python_blocks_of_a_page_run(page, folder):
    write_files(page, folder)
    names = {"__name__": page}
    for line, text in blocks(page, "python"):
        exec(compile("\n" * line + text, str(PAGES[page]), "exec"), names)
    if page == "README":
        assert int(names["state"].step) == 10
        assert np.isfinite(names["x_hat"]).all()
        assert names["x_hat"].shape == (128, 5)
        assert {"loss/generator", "loss/discriminator", "r1/x"} <= names["metrics"].keys()


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_the_commands_of_a_page_are_right(page, folder):
    write_files(page, folder)
    for module, *arguments in commands(page):
        if module.partition(".")[0] in ("ali_jax", "benchmarks"):
            assert importlib.util.find_spec(module), module
        if module == "ali_jax.main":
            options = command.parse(arguments)
            config = command.load_config(options.config_file) if options.config_file else configs.base()
            command.override(config, options.overrides)
            if options.mode in ("train", *command.UNTRAINED):
                configs.validate(config)
            for name in config.evaluators:
                evaluate.named(name)


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_exists(page, folder):
    write_files(page, folder)
    text = PAGES[page].read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", text):
        assert (PAGES[page].parent / target).exists(), target
    named = re.findall(r"\b(?:experiments|ali_jax|tests|benchmarks|docs|examples)/[\w/]+\.(?:py|md)\b", text)
    for path in set(named) - set(PLACEHOLDERS):
        assert (small.ROOT / path).exists() or (folder / path).exists(), path
    keys = configs.flat(configs.base())
    inline = " ".join(re.findall(r"`([^`\n]+)`", text)) + " ".join(re.findall(r"--config\.[\w.]+", text))
    for key in re.findall(r"(?<![\w.])config\.([a-zA-Z]\w*(?:\.\w+)*)", inline):
        known = key in keys or any(name.startswith(key + ".") for name in keys) or hasattr(configs, key)
        assert known or key in ("py", "json", *PLACEHOLDERS), key
    for name in re.findall(r"`(ali_jax(?:\.\w+)+)`", text):
        module, _, last = name.rpartition(".")
        assert hasattr(importlib.import_module(module), last) or importlib.util.find_spec(name), name


def test_the_index_names_every_page_once():
    linked = re.findall(r"\]\((\w+)\.md\)", PAGES["index"].read_text())
    assert sorted(linked) == sorted(set(PAGES) - {"README", "index"})


def test_the_table_of_numbers_is_the_evaluators_own():
    assert evaluate.table() in PAGES["evaluating"].read_text(), "print it anew: python tests/test_docs.py"


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


if __name__ == "__main__":
    print(evaluate.table())
