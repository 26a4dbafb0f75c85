"""Compare the speed of our training step with peers that do the same work.

    python -m benchmarks.compare --config experiments/svhn.py [--batch-size B] [--rounds N] [--seconds S]
        [--variants ours,torch_best,...] [--torch-python PYTHON] [--json FILE] [--config.KEY=VALUE ...]

Each variant runs in its own process, prepared and warmed up before the first round. In every round each
variant trains for about S seconds while the others wait; the order reverses from round to round. The result
is the median, least and greatest ratio within a round, of wall time and of CPU seconds (user and system, all
threads). Trust the latter if other programs run on the machine.
"""

import argparse
import contextlib
import functools
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from ali_jax import config as configs
from ali_jax.config import Config
from ali_jax.program.command import load_config, override
from ali_jax.records.workdir import RunError
from benchmarks.worker import MODULES, Worker, WorkerError

VARIANTS = ("ours", "flax_textbook", "torch_textbook", "torch_best")

# Keys that the peers do not support, and the value that turns each off.
ABSENT = {
    "penalties.r1.gamma": 0.0,
    "ema_decay": 0.0,
    "optimizer.constant_fraction": 1.0,
    "dataset.dequantize": 0.0,
    "encoder.name": "Encoder",
    "encoder.width": 0,
    "encoder.center": False,
    "encoder.log_sigma_clip": (),
    "encoder.log_sigma_bias": 0.0,
    "encoder.log_sigma_init": 1.0,
    "decoder.name": "Decoder",
    "decoder.width": 0,
    "discriminator.name": "Discriminator",
    "discriminator.width": 0,
    "discriminator.center": False,
    "loss": "ali",
}


class Run(NamedTuple):
    """The work of one variant in one round."""

    steps: int
    wall: float  # seconds
    cpu: float  # user and system seconds


class Spread(NamedTuple):
    """The median and the range of paired ratios."""

    median: float
    least: float
    greatest: float

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.least:.2f}-{self.greatest:.2f}]"


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, print the table in Markdown, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description="Compare our training step with peers.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, help="FILE or FILE:VARIANT")
    parser.add_argument("--batch-size", type=int, default=0, help="instead of the config's")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="per variant and round")
    parser.add_argument("--variants", default="", help=f"of {','.join(MODULES)}; the first is compared")
    parser.add_argument("--torch-python", default=sys.executable, help="a Python with torch")
    parser.add_argument("--json", type=Path, help="file for the times of every round")
    options, overrides = parser.parse_known_args(argv)
    try:
        config = load_config(options.config)
        override(config, overrides)
        check_comparable(config)
        variants = choose_variants(options.variants, options.torch_python)
        if options.rounds < 1 or options.batch_size < 0 or not options.seconds > 0:
            raise ValueError("--rounds and --seconds must be positive, and --batch-size too if given.")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    batch_size = options.batch_size or config.batch_size
    try:
        found, rounds = measure(
            config, batch_size, variants, options.rounds, options.seconds, options.torch_python
        )
    except WorkerError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"\n{options.config}, batch {batch_size}, {len(rounds)} rounds, load {load()}\n")
    print(table(rounds, batch_size))
    if options.json:
        record = {"config": options.config, "batch_size": batch_size, "variants": found, "load": load()}
        record["rounds"] = [{name: run._asdict() for name, run in r.items()} for r in rounds]
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    return 0


def check_comparable(config: Config) -> None:
    """Raise a ValueError if a config uses something that the peers do not support."""
    values = configs.flat(config)
    for key, value in ABSENT.items():
        if values[key] != value:
            raise ValueError(
                f"config.{key} is {values[key]!r}, which the peers do not support: "
                f"compare with --config.{key}={value}, or another config."
            )


def choose_variants(text: str, torch_python: str) -> tuple[str, ...]:
    """Return the variants that `text` names, or all; without torch, all that do not need it.

    Raises:
      ValueError: an unknown name, or one that needs torch, which is not installed.
    """
    chosen = tuple(text.split(",")) if text else VARIANTS
    for name in chosen:
        if name not in MODULES:
            raise ValueError(f"--variants: {name!r} is unknown; there are {', '.join(MODULES)}.")
    if not any(map(_needs_torch, chosen)) or has_torch(torch_python):
        return chosen
    hint = f"{torch_python} has no torch: pip install 'ali_jax[bench]', or name one with --torch-python."
    if text:
        raise ValueError(hint)
    print(f"The torch variants are left out: {hint}", file=sys.stderr)
    return tuple(name for name in chosen if not _needs_torch(name))


def has_torch(python: str) -> bool:
    """Tell whether an interpreter can import torch.

    Raises:
      ValueError: there is no such interpreter.
    """
    try:
        return (
            subprocess.run([python, "-c", "import torch"], capture_output=True, check=False).returncode == 0
        )
    except OSError as error:
        raise ValueError(f"--torch-python {python}: {error.strerror}.") from None


def measure(
    config: Config,
    batch_size: int,
    variants: Sequence[str],
    rounds: int,
    seconds: float,
    torch_python: str = sys.executable,
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Run]]]:
    """Prepare the variants, then let them train in turn.

    Returns:
      What each variant says about itself (device, parameters), and the rounds.

    Raises:
      WorkerError: a variant failed, or its networks differ from the others'.
    """
    with contextlib.ExitStack() as stack:
        workers, found, steps = {}, {}, {}
        for name in variants:
            worker = Worker(torch_python if _needs_torch(name) else sys.executable)
            stack.callback(worker.close)
            workers[name] = worker
            try:
                found[name] = _prepare(worker, task(name, config, batch_size))
            except WorkerError as error:
                raise WorkerError(f"{name}: {error}") from None
            unit = found[name]["unit"]
            steps[name] = unit * math.ceil(seconds / worker.run(unit)["wall"])
            print(f"{name}: {found[name]['device']}, {steps[name]} steps a round", file=sys.stderr)
        if len({tuple(about["parameters"]) for about in found.values()}) > 1:
            counts = {name: about["parameters"] for name, about in found.items()}
            raise WorkerError(f"the variants differ in their numbers of parameters: {counts}")
        done = []
        for index in range(rounds):
            runs = {}
            for name in in_turn(variants, index):
                took = workers[name].run(steps[name])
                runs[name] = Run(steps[name], took["wall"], took["cpu"])
            done.append({name: runs[name] for name in variants})
            print(f"round {index + 1} of {rounds}, load {load()}", file=sys.stderr)
    return found, done


def task(variant: str, config: Config, batch_size: int) -> dict[str, Any]:
    """Return a worker's task, with the config as JSON values."""
    return {"variant": variant, "config": json.loads(configs.to_json(config)), "batch_size": batch_size}


def in_turn(variants: Sequence[str], index: int) -> Sequence[str]:
    """Return the order of a round, the reverse of the previous round's."""
    return variants[::-1] if index % 2 else variants


def speedups(rounds: Sequence[Mapping[str, Run]], one: str, other: str, what: str) -> Spread:
    """Return how many times as fast as `other` a variant was in each round, by "wall" or "cpu" time."""

    def per_step(run: Run) -> float:
        return getattr(run, what) / run.steps

    ratios = [per_step(r[other]) / per_step(r[one]) for r in rounds]
    return Spread(median(ratios), min(ratios), max(ratios))


def table(rounds: Sequence[Mapping[str, Run]], batch_size: int) -> str:
    """Return the Markdown table: the speed of each variant, and the speedup of the first over it."""
    first = next(iter(rounds[0]))
    rows = [
        ["variant", "ms/step", "images/s", "images per CPU-s", f"{first} over it, wall", "CPU-s"],
        ["---"] + ["---:"] * 5,
    ]
    for name in rounds[0]:
        runs = [r[name] for r in rounds]
        wall, cpu = (median(getattr(run, what) / run.steps for run in runs) for what in ("wall", "cpu"))
        speeds = [f"{1e3 * wall:.4g}", f"{batch_size / wall:.4g}", f"{batch_size / cpu:.4g}"]
        ahead = [str(speedups(rounds, first, name, what)) for what in ("wall", "cpu")]
        rows.append([name, *speeds, *(["1", "1"] if name == first else ahead)])
    return markdown(rows)


def in_one_sentence(main: Callable[..., int]) -> Callable[..., int]:
    """Return a `main` that prints the message of a mistake, with status 2, or of a failed run, with 1."""

    @functools.wraps(main)
    def guarded(argv: Sequence[str] | None = None) -> int:
        try:
            return main(argv)
        except (RunError, ValueError) as error:
            print(error, file=sys.stderr)
            return 1 if isinstance(error, RunError) else 2

    return guarded


def markdown(rows: Iterable[Sequence[str]]) -> str:
    """Join the cells of a table whose second row is the rule."""
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def load() -> str:
    """Return the load averages of the machine and its number of cores."""
    averages = " ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"{averages} on {len(os.sched_getaffinity(0))} cores"


def _prepare(worker: Worker, one: Mapping[str, Any]) -> dict[str, Any]:
    (error,) = worker.prepare([one])
    if error is not None:
        raise WorkerError(error)
    return worker.start()


def _needs_torch(variant: str) -> bool:
    return MODULES[variant] == "benchmarks.torch_peers"


if __name__ == "__main__":
    sys.exit(main())
