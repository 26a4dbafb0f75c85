"""The commands that README and docs/ show, and how each is checked without running it.

A command stands in a fenced `sh` block or as inline code. Inline code that begins with a flag is the end of a
command. Shell variables that a block sets are expanded, and placeholders such as HOST:PORT get a value.
"""

import argparse
import importlib
import re
import runpy
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
import small

from ali_jax import config as configs
from ali_jax import evaluate
from ali_jax.program import command

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
PROGRAMS = ("python", "python3", "pip", "mkdocs", "gcloud", ".", "cd")

# What a word in capitals stands for. Every one is used by a page.
PLACEHOLDERS = {
    "DIR": "runs/digits",
    "FILE": "experiments/digits.py",
    "FILE:VARIANT": "experiments/mnist.py:conditional",
    "HOST:PORT": "localhost:1234",
    "I": "0",
    "LEVEL": "info",
    "MODE": "evaluate",
    "A..B": "-1..1",
    "N": "4",
    "NAME": "pc1",
    "PATH": "my_images",
    "SLICE": "v5e:4x4",
    "--config.KEY=VALUE": "--config.seed=1",
    "--config.dataset.resize=S": "--config.dataset.resize=64",
}


def blocks(text: str, kind: str) -> list[tuple[int, str]]:
    """Return (line, code) of the fenced blocks of a kind."""
    return [(text[: m.start(2)].count("\n"), m[2]) for m in FENCE.finditer(text) if m[1] == kind]


def inline(text: str) -> list[str]:
    """Return the pieces of inline code, those of tables too."""
    return INLINE.findall(FENCE.sub("", text))


def commands(text: str) -> list[list[str]]:
    """Return the words of every command of a page."""
    scripts = [code for _, code in blocks(text, "sh")]
    spans = [span for span in inline(text) if span.split()[0] in PROGRAMS[:4] and len(span.split()) > 1]
    return [words for script in (*scripts, *spans) for words in words_of(script)]


def words_of(script: str) -> list[list[str]]:
    """Split a script into the words of its commands, with its own variables expanded."""
    found: list[list[str]] = []
    variables: dict[str, str] = {}
    for line in _lines(script):
        found.append([])
        for word in shlex.split(line, comments=True):
            if word == ">":
                break
            if word in ("&&", "|"):
                found.append([])
            elif not found[-1] and (match := re.match(r"^(\w+)=(.*)$", word)):
                variables[match[1]] = match[2]
            else:
                found[-1] += variables[word[1:]].split() if word.startswith("$") else [word]
    nested = [words_of(word[10:]) for words in found for word in words if word.startswith("--command=")]
    return [words for words in (*found, *(w for inner in nested for w in inner)) if words]


def _lines(script: str) -> list[str]:
    """Return the lines of a script; one goes on after a backslash, or while a quote is open."""
    lines = [""]
    for line in script.replace("\\\n", " ").splitlines():
        lines[-1] += line
        try:
            shlex.split(lines[-1], comments=True)
            lines.append("")
        except ValueError:  # No closing quotation
            lines[-1] += "\n"
    assert not lines[-1].strip(), f"an open quote: {lines[-1]}"
    return lines


class Parsed(Exception):
    """An argument parser was content with a command: what it read, and what it left to others."""


def check(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail unless the program that a command names takes its arguments."""
    words = [PLACEHOLDERS.get(word, word) for word in words]
    match words:
        case ["pip", "install", *targets]:
            _check_pip(targets)
        case ["python" | "python3", "-m", "ali_jax.main" | "ali_jax.config"]:
            pass  # the first is only named, and the second takes no arguments
        case ["python" | "python3", "-m", "ali_jax.main", *arguments]:
            check_main(arguments)
        case ["python" | "python3", "-m", "pytest", *arguments]:
            paths = [argument for argument in arguments if argument.endswith(".py")]
            assert all((small.ROOT / path).exists() for path in paths), words
        case ["python" | "python3", "-m", "venv", _] | ["mkdocs", "serve" | "build", *_] | ["." | "cd", _]:
            pass
        case ["python" | "python3", "-c", code]:
            exec(compile(code, "python -c", "exec"), {})
        case ["python" | "python3", "-m", module, *arguments]:
            check_argparse(module, arguments, monkeypatch)
        case ["python" | "python3", script, *arguments]:
            check_argparse(small.ROOT / script, arguments, monkeypatch)
        case ["gcloud", *_]:
            pass  # the command within it is checked by itself
        case _:
            pytest.fail(f"no check for {shlex.join(words)}")


def check_main(arguments: list[str]) -> None:
    """Fail unless the program's own parser takes the arguments, and the config that they give is right."""
    options = command.parse(arguments)
    config = command.load_config(options.config_file) if options.config_file else configs.base()
    check_config(config, options.overrides, whole=options.mode in ("train", *command.UNTRAINED))


def check_config(config: configs.Config, overrides: list[str], *, whole: bool = True) -> None:
    """Fail unless the keys exist, the values are right, and the evaluators have names."""
    command.override(config, overrides)
    if whole:
        configs.validate(config)
    for name in config.evaluators:
        evaluate.named(name)


def check_argparse(program: str | Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a module or a script up to its argument parser, and check what the parser leaves to the config."""

    def parse_known_args(parser, given=None, namespace=None):
        raise Parsed(*known(parser, given, namespace))

    def parse_args(parser, given=None, namespace=None):
        options, rest = known(parser, given, namespace)
        if rest:
            parser.error(f"unrecognized arguments: {rest}")
        raise Parsed(options, [])

    known = argparse.ArgumentParser.parse_known_args
    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", parse_known_args)
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        patch.setattr(sys, "argv", [str(program), *arguments])
        try:
            if isinstance(program, Path):
                runpy.run_path(str(program), run_name="__main__")
            else:
                importlib.import_module(program).main(arguments)
            pytest.fail(f"{program} parsed nothing")
        except SystemExit:
            pytest.fail(f"{program} refuses {shlex.join(arguments)}")
        except Parsed as parsed:
            options, overrides = parsed.args
    if overrides:
        check_config(command.load_config(options.config), overrides)


def check_end(span: str) -> None:
    """Check inline code that begins with a flag, as the end of a command."""
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(span)]
    flags = [word.partition("=")[0] for word in words if word.startswith("--")]
    if any(flag.startswith("--config.") for flag in flags):
        first = [] if "--config" in flags else ["--config", "experiments/digits.py"]
        check_main([*first, "--workdir", "runs/digits", *words])
    elif flags == ["--config"] and len(words) == 2:
        check_main([*words, "--workdir", "runs/digits"])
    else:
        assert set(flags) <= known_flags(), span
        if flags == ["--mode"] and len(words) == 2:
            assert words[1] in command.MODES, span


def known_flags() -> set[str]:
    """Return every flag of the program and of the scripts beside it."""
    sources = [*small.ROOT.glob("ali_jax/**/*.py"), *small.ROOT.glob("*/*.py")]
    text = "\n".join(path.read_text() for path in sources if path.name != "fuzz.py")
    return set(re.findall(r"--\w[\w-]*", command.USAGE)) | set(
        re.findall(r'add_argument\(\s*"(--[\w-]+)"', text)
    )


def _check_pip(targets: list[str]) -> None:
    """Fail unless the extras that are installed exist."""
    extras = tomllib.loads((small.ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for target in targets:
        match = re.fullmatch(r"\.(?:\[(.+)\])?", target)
        assert match, target
        assert set((match[1] or "test").split(",")) <= set(extras), target
