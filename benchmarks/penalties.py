"""Compare the time of a training step with the gradient penalty in all its forms, and without it.

    python -m benchmarks.penalties [--config FILE] [--batch-size B] [--rounds N] [--seconds S]
        [--forms none,encoder,...] [--json FILE] [--config.KEY=VALUE ...]

Without --config: the digits, images of 32x32 at batch 16, and the stable mixture. All forms are compiled in
one process. In every round each of them trains for about S seconds; the order reverses from round to round.
The result is the median, least and greatest ratio within a round of the time of a step to that of the form
`encoder`, by wall time and by CPU seconds. Trust the latter if other programs run on the machine.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from ali_jax import config as configs
from ali_jax.config import Config
from ali_jax.game import parts
from ali_jax.program.command import load_config, override
from ali_jax.types import ALI, Array, Losses, Metrics, Pairs, Penalty, Variables
from benchmarks.compare import Run, in_turn, load, markdown, speedups
from benchmarks.jax_variants import Ours

WORK = (  # configs and batch sizes
    ("experiments/digits.py", 64),
    ("experiments/images.py:32", 16),
    ("experiments/mixture_stable.py", 256),
)
REFERENCE = "encoder"
STEPS = 16  # of a call: each lazy penalty is taken in it


class Form(NamedTuple):
    """A way to penalise."""

    at: str = ""  # no penalty
    every: int = 1
    shared: bool = False  # whether it uses the game's pass through D


FORMS = {
    "none": Form(),
    "encoder": Form("encoder"),
    "decoder": Form("decoder"),
    "both": Form("both"),
    "encoder shared": Form("encoder", shared=True),
    "both shared": Form("both", shared=True),
    "both shared every 4": Form("both", 4, shared=True),
    "both shared every 16": Form("both", 16, shared=True),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table for each config in Markdown, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.penalties",
        description="Compare the forms of the gradient penalty.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", default="", help="FILE or FILE:VARIANT, instead of the three")
    parser.add_argument("--batch-size", type=int, default=0, help="instead of the config's")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="per form and round")
    parser.add_argument("--forms", default=",".join(FORMS), help="rows of the table, separated by commas")
    parser.add_argument("--json", type=Path, help="file for the times of every round")
    options, overrides = parser.parse_known_args(argv)
    try:
        work = []
        for path, batch_size in ((options.config, 0),) if options.config else WORK:
            config = load_config(path)
            override(config, overrides)
            work.append((path, config, options.batch_size or batch_size or config.batch_size))
        forms = choose(options.forms)
        if options.rounds < 1 or options.batch_size < 0 or not options.seconds > 0:
            raise ValueError("--rounds and --seconds must be positive, and --batch-size too if given.")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    records = []
    for path, config, batch_size in work:
        rounds = measure(config, batch_size, forms, options.rounds, options.seconds)
        print(
            f"\n{path}, batch {batch_size}, {len(rounds)} rounds, load {load()}\n\n{table(rounds)}",
            flush=True,
        )
        record = {"config": path, "batch_size": batch_size, "load": load()}
        records.append({**record, "rounds": [{k: r._asdict() for k, r in row.items()} for row in rounds]})
    if options.json:
        options.json.write_text(json.dumps(records, indent=2) + "\n")
    return 0


def choose(names: str) -> dict[str, Form]:
    """Return the forms of these names, with the one that all are compared with first.

    Raises:
      ValueError: there is no such form.
    """
    chosen = dict.fromkeys([REFERENCE, *names.split(",")])
    for name in chosen:
        if name not in FORMS:
            raise ValueError(f"--forms: {name!r} is unknown; there are {', '.join(FORMS)}.")
    return {name: FORMS[name] for name in FORMS if name in chosen}


def measure(
    config: Config, batch_size: int, forms: Mapping[str, Form], rounds: int, seconds: float
) -> list[dict[str, Run]]:
    """Compile all forms, then let them train in turn; return the work of every round."""
    trainers, calls = {}, {}
    for name, form in forms.items():
        trainers[name] = trainer(config, batch_size, form)
        trainers[name].start()
        calls[name] = math.ceil(seconds / _timed(trainers[name], STEPS).wall)
        print(f"{name}: {calls[name] * STEPS} steps a round", file=sys.stderr)
    done = []
    for index in range(rounds):
        runs = {name: _timed(trainers[name], calls[name] * STEPS) for name in in_turn(list(forms), index)}
        done.append({name: runs[name] for name in forms})
        print(f"round {index + 1} of {rounds}, load {load()}", file=sys.stderr)
    return done


def trainer(config: Config, batch_size: int, form: Form) -> Ours:
    """Make the program's step with a penalty of this form, of constant weight."""
    changes: dict[str, Any] = {"penalties.r1.gamma": float(bool(form.at)), "penalties.r1.gamma_z": -1.0}
    changes |= {"penalties.r1.gamma_final": -1.0, "penalties.r1.every": form.every, "steps_per_call": STEPS}
    config = configs.with_values(config, changes | ({"penalties.r1.at": form.at} if form.at else {}))
    penalties = parts.make_penalties(config)
    return Ours(config, batch_size, penalties if form.shared else [anew(penalty) for penalty in penalties])


def anew(penalty: Penalty) -> Penalty:
    """Return a penalty that is not offered what the game has computed, so that it calls D itself."""

    def call(ali: ALI, variables: Variables, pairs: Pairs, key: Array, step: Array) -> tuple[Losses, Metrics]:
        return penalty(ali, variables, pairs, key, step)

    return call


def table(rounds: Sequence[Mapping[str, Run]]) -> str:
    """Return the Markdown table: the time of a step of each form, and its ratio to that of `REFERENCE`."""
    rows = [
        ["penalty", "ms/step", "CPU ms/step", f"wall over {REFERENCE}", "CPU seconds over it"],
        ["---"] + ["---:"] * 4,
    ]
    for name in rounds[0]:
        runs = [r[name] for r in rounds]
        times = [1e3 * median(getattr(run, what) / run.steps for run in runs) for what in ("wall", "cpu")]
        ratios = [speedups(rounds, REFERENCE, name, what) for what in ("wall", "cpu")]
        rows.append([name, *(f"{t:.3g}" for t in times), *(str(ratio) for ratio in ratios)])
    return markdown(rows)


def _timed(trainer: Ours, steps: int) -> Run:
    wall, cpu = time.perf_counter(), time.process_time()
    trainer.run(steps)
    return Run(steps, time.perf_counter() - wall, time.process_time() - cpu)


if __name__ == "__main__":
    sys.exit(main())
