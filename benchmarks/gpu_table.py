"""Measure a GPU: the paper's image experiments at three batch sizes and two precisions, ours and PyTorch.

    python -m benchmarks.gpu_table [--torch-python PYTHON] [--budget SECONDS] [--json FILE] [--tiny]

One process trains ours; the programs of a batch size are compiled together, in threads. Then another trains
the peers: P1 is `torch_textbook`, P3 `torch_best`, and P3c `torch_compiled`, which runs at the paper's batch
size only because it compiles for long. float32 means tf32. A dash marks what failed or exceeded the budget;
the reasons follow the table. `--tiny` tries the command with perceptrons of a few units, on a CPU if need be.
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from ali_jax.config import Config
from ali_jax.program.command import load_config
from benchmarks.compare import has_torch, markdown, task
from benchmarks.roofline import Ceiling, floors, measured_ceiling
from benchmarks.worker import ROOT, Worker, WorkerError

EXPERIMENTS = ("svhn", "cifar10", "celeba", "tiny_imagenet")
FACTORS = (1, 4, 16)  # of the paper's batch
DTYPES = ("float32", "bfloat16")
PEERS = {"torch_textbook": "P1", "torch_best": "P3", "torch_compiled": "P3c"}
SECONDS = 1.0  # of training in each measurement
MEASUREMENTS = 3  # of each cell; the median counts
OURS_SHARE = 0.6  # of the budget, if torch can use the rest


class Cell(NamedTuple):
    """One row of the table."""

    experiment: str
    dtype: str
    factor: int


def make_plan(*, tiny: bool) -> dict[Cell, Config]:
    """Return the rows of the table and their configs, or with `tiny` a few rows of small networks."""
    plan = {}
    for experiment in EXPERIMENTS[:1] if tiny else EXPERIMENTS:
        for dtype in DTYPES:
            for factor in FACTORS[:1] if tiny else FACTORS:
                config = load_config(str(ROOT / "experiments" / f"{experiment}.py"))
                if tiny:
                    shrink(config)
                config.dtype = dtype
                config.batch_size *= factor
                config.steps_per_call = 1 if tiny else 20
                plan[Cell(experiment, dtype, factor)] = config
    return plan


def shrink(config: Config) -> None:
    """Reduce the networks to perceptrons with one hidden layer of four units, and the batch to four rows."""
    for network, keys in (
        (config.encoder, ("layers",)),
        (config.decoder, ("layers",)),
        (config.discriminator, ("x_layers", "z_layers", "joint_layers")),
    ):
        for key in keys:
            network[key] = (4,)
    discriminator = config.discriminator
    for key in ("x_batch_norm", "x_dropout", "x_dropout_after", "z_dropout"):
        discriminator[key] = discriminator[key][-1:]
    config.batch_size = config.latent_dim = 4


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table in Markdown, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_table", description="Print the table of a GPU.", allow_abbrev=False
    )
    parser.add_argument("--torch-python", default=sys.executable, help="a Python with torch")
    parser.add_argument("--budget", type=float, default=450.0, help="seconds for everything")
    parser.add_argument("--json", type=Path, help="file for the seconds per step")
    parser.add_argument("--tiny", action="store_true", help="a trial at tiny sizes")
    options = parser.parse_args(argv)
    start = time.monotonic()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the workers need the memory
    if jax.devices()[0].platform != "gpu" and not options.tiny:
        print("There is no GPU; --tiny tries the command without one.", file=sys.stderr)
        return 2
    try:
        torch = has_torch(options.torch_python)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    plan, notes = make_plan(tiny=options.tiny), []
    cells = sorted(plan, key=lambda cell: cell.factor)  # the paper's batch first
    ceilings = {dtype: measured_ceiling(dtype) for dtype in DTYPES}
    share = OURS_SHARE if torch else 1.0
    seconds = SECONDS if not options.tiny else 0.0
    jobs = [(cell, "ours") for cell in cells]
    times = measure(plan, jobs, sys.executable, start + share * options.budget, seconds, notes)
    if torch:
        jobs = [(cell, peer) for cell in cells for peer in ("torch_textbook", "torch_best")]
        jobs += [(cell, "torch_compiled") for cell in cells if cell.factor == 1 and not options.tiny]
        times |= measure(plan, jobs, options.torch_python, start + options.budget, seconds, notes)
    else:
        notes.append(f"{options.torch_python} has no torch: pip install 'ali_jax[bench]'.")
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}; {_describe(ceilings)}\n")
    print(table(plan, times, ceilings))
    print("\n" + "\n".join(notes) if notes else "")
    print(f"{time.monotonic() - start:.0f} s")
    if options.json:
        rows = [{**cell._asdict(), "variant": name, "seconds": s} for (cell, name), s in times.items()]
        options.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0 if any(name == "ours" for _, name in times) else 1


def measure(
    plan: dict[Cell, Config],
    jobs: Sequence[tuple[Cell, str]],
    python: str,
    deadline: float,
    seconds: float,
    notes: list[str],
) -> dict[tuple[Cell, str], float]:
    """Train each (row, variant) in one process until the deadline (`time.monotonic`).

    Returns:
      The median seconds per step of each pair that was measured; `notes` gets a line for each of the others.
    """
    times: dict[tuple[Cell, str], float] = {}
    with _worker_until(python, deadline) as worker:
        for _, group in itertools.groupby(jobs, key=lambda job: job[0].factor):
            group = list(group)
            for index, ((cell, variant), error) in enumerate(
                zip(group, _prepare(worker, plan, group), strict=True)
            ):
                try:
                    if error is not None:
                        raise WorkerError(error)
                    times[cell, variant] = _seconds_per_step(worker, index, seconds)
                except WorkerError as failure:
                    why = "no time left" if time.monotonic() > deadline else failure
                    notes.append(f"{variant}, {cell.experiment} {cell.dtype} {cell.factor}x: {why}")
    return times


def table(
    plan: dict[Cell, Config], times: dict[tuple[Cell, str], float], ceilings: dict[str, Ceiling]
) -> str:
    """Return the Markdown table; "full run" is the time of `num_steps` steps at the paper's batch size."""
    rows = [
        [
            "experiment",
            "compute",
            "batch",
            "ms/step",
            "images/s",
            "of FLOP floor",
            "of traffic floor",
            "full run",
        ]
        + [f"over {name}" for name in PEERS.values()]
    ]
    rows.append(["---"] * 2 + ["---:"] * (len(rows[0]) - 2))
    for cell, config in plan.items():
        ours = times.get((cell, "ours"))
        row = [cell.experiment, cell.dtype, str(config.batch_size)]
        if ours is None:
            rows.append(row + ["-"] * (len(rows[0]) - 3))
            continue
        floor = floors(config, config.batch_size, ceilings[cell.dtype])
        run = f"{config.num_steps * ours / 3600:.2f} h" if cell.factor == 1 else "-"
        row += [f"{1e3 * ours:.3f}", f"{config.batch_size / ours:.4g}"]
        row += [f"{floor.flops / ours:.0%}", f"{floor.traffic / ours:.0%}", run]
        for peer in PEERS:
            theirs = times.get((cell, peer))
            row.append("-" if theirs is None else f"{theirs / ours:.2f}")
        rows.append(row)
    return markdown(rows)


@contextlib.contextmanager
def _worker_until(python: str, deadline: float) -> Iterator[Worker]:
    """Give a worker that is killed at the deadline."""
    worker = Worker(python)
    timer = threading.Timer(max(deadline - time.monotonic(), 0.0), worker.kill)
    timer.start()
    try:
        yield worker
    finally:
        timer.cancel()
        worker.close()


def _prepare(worker: Worker, plan: dict[Cell, Config], jobs: Sequence[tuple[Cell, str]]) -> list[str | None]:
    """Compile the jobs together; return the error of each, or None."""
    try:
        return worker.prepare([task(variant, plan[cell], plan[cell].batch_size) for cell, variant in jobs])
    except WorkerError as error:
        return [str(error)] * len(jobs)


def _seconds_per_step(worker: Worker, index: int, seconds: float) -> float:
    unit = worker.start(index)["unit"]
    steps = unit * math.ceil(max(seconds / worker.run(unit, index)["wall"], 1.0))
    walls = sorted(worker.run(steps, index)["wall"] for _ in range(MEASUREMENTS))
    return walls[MEASUREMENTS // 2] / steps


def _describe(ceilings: dict[str, Ceiling]) -> str:
    return ", ".join(
        f"{dtype} {ceiling.flops / 1e12:.4g} TFLOP/s and {ceiling.bandwidth / 1e9:.4g} GB/s measured"
        for dtype, ceiling in ceilings.items()
    )


if __name__ == "__main__":
    sys.exit(main())
