"""Feed random mistakes to the command: each must get one message, at once, and leave folders unchanged.

    python tests/fuzz.py [--cases 1000] [--seed 0]

Cases are command lines, config files, .npz files, folders of images, damaged workdirs and uses of a trained
model on images (--inputs and the flags that go with it), drawn from a seed.
They run in this process. A case fails if an exception escapes, if the exit status is not 0, 1 or 2, if a
failure prints a traceback or no message, if it takes a minute, or if it changes a folder that it must not
change. A case that passes all checks is prepared but not trained, except for every seventh.
"""

import argparse
import collections
import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
from PIL import Image
from test_loop import contents, tiny
from test_main import write_config

from ali_jax import config as configs
from ali_jax.main import main as command
from ali_jax.program import loop
from ali_jax.program.command import MODES, SUFFIXES_OF_INPUTS, WITH_INPUTS

SECONDS = 60  # the longest that a case may take
TRAINED_EVERY = 7

# fmt: off
VALUES = (
    "0", "-1", "1", "3", "2147483647", "99999999999999999999", "1e400", "nan", "inf", "-0.0", "0.5", "", " ",
    "x",
    "True", "None", "()", "(1,)", "(1,2,3)", "((1,2),)", "((3,1,4),)", "((3,1,4,0,9),)", "((0,0,0),)",
    "((5,1,8),)", "('a',)", "[1]", "{}", "(None,)", "(-3,)", "(1.5,)", "(True,)", "digits", "mixture", "ring",
    "celeb_a", "../..", "/dev/null", "/proc/self/mem", "a\x00b", "\u202e\u0000", "é" * 50, "%s%n", "*", "~",
    "__import__('os').abort()", "(9,9,1)", "(8,8,1)", "(2,)", "(8,8)", "bfloat16", "least_squares", "samples",
    "train[:0]", "train[5:9]", "host",
)
# fmt: on


class Folders(NamedTuple):
    """The files and folders that a case uses."""

    config: str  # a valid config file
    trained: Path  # a finished run, which no case may change
    case: Path  # an empty folder


def command_line(draw: random.Random, folders: Folders) -> list[str]:
    """Draw flags and overrides, most of them wrong."""
    keys = list(configs.flat(tiny()))
    arguments = ["--config", folders.config, "--workdir", str(folders.case / "run")]
    for _ in range(draw.randint(1, 3)):
        key = draw.choice(keys) if draw.random() < 0.9 else draw.choice(keys)[:-1]
        arguments.append(f"--config.{key}={draw.choice(VALUES)}")
    flags = ["--mode", "--out", "--json", "--topology", "--num_processes", "--process_id", "--flagfile", "--"]
    if draw.random() < 0.3:
        arguments.insert(
            draw.randrange(len(arguments)), draw.choice(flags) + draw.choice(["", "=" + draw.choice(VALUES)])
        )
    if draw.random() < 0.1:
        arguments.pop(draw.randrange(len(arguments)))
    return arguments


def config_file(draw: random.Random, folders: Folders) -> list[str]:
    """Draw a config file: with values of any type, or truncated."""
    lines = Path(folders.config).read_text().splitlines()
    objects = (
        "None",
        "1",
        "'a'",
        "1.5",
        "()",
        "[]",
        "{}",
        "object()",
        "b'x'",
        "float('nan')",
        "10**30",
        "(1, (2, 'x'))",
    )
    keys = list(configs.flat(tiny()))
    for _ in range(draw.randint(0, 3)):
        lines.insert(-1, f"    c.{draw.choice(keys)} = {draw.choice(objects)}")
    text = "\n".join(lines) + "\n"
    if draw.random() < 0.3:
        text = text[: draw.randrange(len(text))]
    file = folders.case / "config.py"
    file.write_text(text)
    return ["--config", str(file), "--workdir", str(folders.case / "run")]


def archive(draw: random.Random, folders: Folders) -> list[str]:
    """Draw an .npz, damaged or not: arrays of any type and shape."""
    types = ("uint8", "int8", "float32", "float64", "int64", "bool", "complex64", "U3", "O")
    shapes = (
        (),
        (0,),
        (5,),
        (5, 8, 8),
        (5, 8, 8, 1),
        (5, 8, 8, 3),
        (5, 8, 9, 1),
        (5, 2),
        (0, 8, 8, 1),
        (5, 8, 8, 2),
    )
    arrays = {}
    for part in ("train", "test"):
        for kind in ("image", "label"):
            if draw.random() < (0.9 if kind == "image" else 0.4):
                kind_of = draw.choice(types) if draw.random() < 0.4 else "uint8"
                shape = (
                    draw.choice(shapes)
                    if draw.random() < 0.4
                    else ((5, 8, 8, 1) if kind == "image" else (5,))
                )
                arrays[f"{part}_{kind}"] = np.zeros(shape, kind_of)
    file = folders.case / draw.choice(["data.npz", "data.NPZ", "data.npy"])
    with file.open("wb") as out:
        draw.choice([np.savez, np.savez_compressed])(out, **arrays)
    damage(draw, file)
    return [*_on_data(folders, file), f"--config.dataset.shape={draw.choice(['()', '(8,8,1)'])}"]


def pictures(draw: random.Random, folders: Folders) -> list[str]:
    """Draw a folder of images of several modes and sizes, and of files that are not images."""
    root = _drawn_pictures(draw, folders.case / "pictures")
    return [*_on_data(folders, root), "--config.dataset.shape=()"]


def _drawn_pictures(draw: random.Random, root: Path) -> Path:
    root.mkdir()
    subs = draw.choice(
        [[""], ["a", "b"], ["train", "test"], ["train"], ["train/0", "train/1", "test/0"], ["a/b", "."]]
    )
    for i in range(draw.randint(0, 12)):
        folder = root / draw.choice(subs)
        folder.mkdir(parents=True, exist_ok=True)
        mode = (
            draw.choice(["L", "RGB", "P", "1", "RGBA", "I;16", "F", "CMYK"]) if draw.random() < 0.3 else "L"
        )
        suffix = (
            draw.choice([".png", ".tif", ".gif", ".jpg", ".bmp", ".webp", ".txt"])
            if draw.random() < 0.3
            else ".png"
        )
        size = draw.choice([(8, 8), (9, 8), (1, 1), (8, 1)]) if draw.random() < 0.1 else (8, 8)
        file = folder / f"{i}{suffix}"
        with contextlib.suppress(OSError, KeyError, ValueError):
            Image.new(mode, size).save(file)
        if draw.random() < 0.1:
            file.write_bytes(draw.randbytes(draw.randrange(300)))
        elif file.exists() and draw.random() < 0.1:
            damage(draw, file, 1.0)
    if draw.random() < 0.1:
        (root / "link.png").symlink_to("/dev/zero")
    return root


def folder_of_a_run(draw: random.Random, folders: Folders) -> list[str]:
    """Draw a damaged copy of a run, to resume or to evaluate."""
    run = folders.case / "copy"
    shutil.copytree(folders.trained, run)
    files = [path for path in sorted(run.rglob("*")) if path.is_file()]
    for _ in range(draw.randint(1, 3)):
        file = draw.choice(files)
        if draw.random() < 0.2:
            file.unlink(missing_ok=True)
        elif file.exists():
            damage(draw, file, 1.0)
    if draw.random() < 0.3:
        values = json.loads((folders.trained / "config.json").read_text())
        values[draw.choice(list(values))] = draw.choice([None, [], {}, 1e30, "x", [[[]]], {"a": 1}, True])
        (run / "config.json").write_text(json.dumps(values))
    mode = draw.choice(["train", "sample", "evaluate", "reconstruct"])
    given = ["--config", folders.config] if mode == "train" else []
    return ["--mode", mode, "--workdir", str(run), *given]


def new_images(draw: random.Random, folders: Folders) -> list[str]:
    """Draw a use of a trained model on images: a mode, what it is given, and flags, some of them wrong."""
    run = folders.case / "copy"
    shutil.copytree(folders.trained, run)
    some, others = (_drawn_pictures(draw, folders.case / name) for name in ("some", "others"))
    array = folders.case / "x.npz"
    shape = draw.choice([(3, 8, 8), (2, 8, 8, 1), (2, 9, 8, 3), (2, 8, 8, 4), (0, 8, 8), (4, 64), (3,)])
    np.savez(array, image=np.ones(shape, draw.choice(["uint8", "float32", "float64", "bool", "O", "U1"])))
    damage(draw, array, 0.1)
    lone = next((str(path) for path in sorted(some.rglob("*.*"))), "absent.png")
    paths = (
        str(some),
        str(some),
        str(others),
        str(others),
        str(array),
        lone,
        "absent",
        "",
        folders.config,
        str(run),
    )
    wrong = (f"hf:{folders.case}/absent", "hf:", "/dev/null", "a\x00b", "~", ".")

    def path() -> str:
        return draw.choice(wrong if draw.random() < 0.1 else paths)

    mode = draw.choice(WITH_INPUTS if draw.random() < 0.97 else MODES)
    arguments = ["--mode", mode, "--workdir", str(run), f"--inputs={path()}"]
    outs = [f"x{suffix}" for suffix in SUFFIXES_OF_INPUTS.get(mode, ())]
    flags = {
        "--direction": ("3", "4:7", "pc1", "pc2", ":", "3:", "4:4", "pc0", "pc99", "x", "", "../x", "\u202e"),
        "--amount": ("-2..2", "0,1", "0..0", "-1e30..1e30", "nan", "1..", "", "1e400", "a"),
        "--out": (*outs, *outs, "out", "out", "", ".", "x.txt", "a/b.png", "copy/config.json"),
        "--from": paths,
        "--to": paths,
    }
    of_mode = {"edit": ("--direction", "--amount", "--out")}.get(mode, ("--out",))
    for flag, values in flags.items():
        if draw.random() < (0.7 if flag in of_mode else 0.03):
            arguments.append(f"{flag}={draw.choice(VALUES if draw.random() < 0.05 else values)}")
    if mode == "edit" and draw.random() < 0.3:
        arguments += [f"--from={draw.choice(paths)}", f"--to={draw.choice(paths)}"]
    likely = {"--skip-broken": 0.3, "--pairs": 0.3 if mode == "interpolate" else 0.02, "--json": 0.02}
    arguments += [flag for flag, chance in likely.items() if draw.random() < chance]
    if draw.random() < 0.1:
        arguments.append(f"--config.dataset.path={path()}")
    return arguments


def _on_data(folders: Folders, path: Path) -> list[str]:
    return [
        "--config",
        folders.config,
        "--workdir",
        str(folders.case / "run"),
        f"--config.dataset.path={path}",
    ]


def damage(draw: random.Random, file: Path, chance: float = 0.4) -> None:
    """Truncate a file, flip bits in it, or append bytes to it."""
    if draw.random() >= chance:
        return
    content = bytearray(file.read_bytes())
    way = draw.choice(["cut", "flip", "add", "empty"])
    if way == "cut" and content:
        content = content[: draw.randrange(len(content))]
    elif way == "flip" and content:
        for _ in range(draw.randint(1, 20)):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    elif way == "add":
        content += draw.randbytes(50)
    else:
        content = bytearray()
    file.write_bytes(bytes(content))


KINDS: tuple[Callable[[random.Random, Folders], list[str]], ...] = (
    command_line,
    config_file,
    archive,
    pictures,
    folder_of_a_run,
    new_images,
)


def run_case(number: int, seed: int, folders: Folders) -> tuple[str, int | None, str]:
    """Run a case in an empty folder; return its kind, its status, and what is wrong with it or ""."""
    draw = random.Random(f"{seed}/{number}")
    make = KINDS[number % len(KINDS)]
    arguments = make(draw, folders)
    out, err = io.StringIO(), io.StringIO()
    status, wrong = None, ""
    untouched = {path.name for path in folders.case.iterdir()}
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _deadline(), _in(folders.case):
        try:
            status = command(arguments)
        except SystemExit as error:
            wrong = f"SystemExit {error.code}"
        except BaseException as error:
            import traceback

            frame = traceback.extract_tb(error.__traceback__)[-1]
            wrong = f"{type(error).__name__}: {str(error)[:150]} ({Path(frame.filename).name}:{frame.lineno})"
    if not wrong and status not in (0, 1, 2):
        wrong = f"status {status}"
    if not wrong and "Traceback" in err.getvalue():
        wrong = "a traceback was printed"
    if not wrong and status and not err.getvalue().strip():
        wrong = "a failure without a message"
    new = {path.name for path in folders.case.iterdir()} - untouched
    if not wrong and status == 2 and new:
        wrong = f"a usage error made {', '.join(sorted(new))}"
    return make.__name__, status, f"{wrong} <- {' '.join(arguments)}" if wrong else ""


@contextlib.contextmanager
def _deadline() -> Iterator[None]:
    def late(*_: Any) -> None:
        raise TimeoutError(f"no answer after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def fuzz(cases: range, seed: int, root: Path) -> tuple[collections.Counter, list[str]]:
    """Run cases; return the number of each kind and status, and a description of every failure."""
    small = {"num_steps": 2, "evaluate_every": 0, "evaluators": (), "dataset__shape": ()}
    file = write_config(root, **small)
    trained = root / "trained"
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        assert command(["--config", file, "--workdir", str(trained)]) == 0
    before, train = contents(trained), loop._train
    tally: collections.Counter = collections.Counter()
    wrong = []
    for number in cases:
        case = root / "case"
        shutil.rmtree(case, ignore_errors=True)
        case.mkdir()
        loop._train = train if number % TRAINED_EVERY == 0 else lambda *_: 0
        try:
            kind, status, what = run_case(number, seed, Folders(file, trained, case))
        finally:
            loop._train = train
        tally[kind, status] += 1
        if contents(trained) != before:
            what = f"{what} the finished run was changed"
        if what:
            wrong.append(f"case {number}: {what}")
            print(wrong[-1], file=sys.stderr, flush=True)
    return tally, wrong


def main() -> int:
    """Run the cases and print a table; return 0 if none failed."""
    parser = argparse.ArgumentParser(description="Feed random mistakes to the command.", allow_abbrev=False)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as root:
        tally, wrong = fuzz(range(options.first, options.first + options.cases), options.seed, Path(root))
    print("| kind | status | cases |\n|---|---:|---:|")
    for (kind, status), count in sorted(tally.items(), key=str):
        print(f"| {kind} | {status} | {count} |")
    print(f"\n{len(wrong)} of {options.cases} failed.")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
