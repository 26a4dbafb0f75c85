"""Compare image recipes that train for the same CPU time: ingredient by ingredient, or file by file.

    python -m benchmarks.recipes --seconds 400 [--config experiments/svhn_residual.py:small]
        [--variants recipe,"no cycle",...] [--seeds 0,1,2] [--workdir DIR] [--config.KEY=VALUE ...]

Each run first measures its CPU seconds per step (user and system, all threads), and its number of steps is
what fits into --seconds; schedules follow. The variants are the recipe with one ingredient changed, and
`images.py`, `images.py` with the recipe's cycle, and the experiment without `_residual`, on the same data.
Finished runs are not repeated, so the same command continues a comparison that was stopped. To choose
settings, leave the test images alone:

    --config.dataset.train_split="train[:7500]" --config.dataset.test_split="train[7500:]"
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, redirect_stdout
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ali_jax import game
from ali_jax.config import Config, flat
from ali_jax.game import population
from ali_jax.program import loop
from ali_jax.program.command import load_config, override
from ali_jax.records.workdir import RunError, read_metrics
from benchmarks.ablation import choose, mean_and_deviation
from benchmarks.compare import in_one_sentence, markdown

EVALUATORS = (
    "samples",
    "reconstructions",
    "reconstruction_error",
    "class_balance",
    "frechet_distance",
    "precision_recall",
    "posterior",
)
COLUMNS = (
    "images",
    "class_kl",
    "class_kept",
    "class_score",
    "fid_classifier",
    "precision_classifier",
    "recall_classifier",
    "reconstruction_mse",
    "posterior_sigma",
)
WARM_UP, TIMED = 1, 2  # calls of the compiled program

Change = Mapping[str, Any]
CHANGES: dict[str, Change] = {
    "recipe": {},
    "losses of ALI": {"loss": "ali"},
    "penalty at the encoder": {"penalties.r1.at": "encoder"},
    "penalty on x only": {"penalties.r1.gamma_z": 0.0},
    "penalty on z only": {"penalties.r1.gamma": 0.0, "penalties.r1.gamma_z": 0.2},
    "R3GAN's penalty": {"penalties.r1.gamma": 0.0125, "penalties.r1.gamma_final": 0.00125},
    "no blur": {f"{role}.blur": False for role in ("encoder", "decoder", "discriminator")},
    "concatenation": {"discriminator.head": "concatenation", "discriminator.joint_layers": (256,)},
    "no cycle": {"penalties.cycle_x.weight": 0.0},
    "two blocks": {f"{role}.blocks": 2 for role in ("encoder", "decoder", "discriminator")},
    "batch 32": {"batch_size": 32},
    "two maps within": {f"{role}.expansion": 2 for role in ("encoder", "decoder", "discriminator")},
}


@in_one_sentence
def main(argv: Sequence[str] | None = None) -> int:
    """Train what is missing, print the table in Markdown, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipes", allow_abbrev=False)
    parser.add_argument("--config", default="experiments/svhn_residual.py:small", help="FILE or FILE:VARIANT")
    parser.add_argument("--seconds", type=float, required=True, help="CPU seconds of training, per run")
    parser.add_argument("--variants", default="recipe", help="names of rows, separated by commas, or all")
    parser.add_argument("--seeds", default="0", help="separated by commas")
    parser.add_argument("--workdir", type=Path, default=Path("runs/recipes"), help="the folder of all runs")
    options, overrides = parser.parse_known_args(argv)
    found: dict[str, list[dict[str, float]]] = {}
    named = "" if options.variants == "all" else options.variants
    variants = choose(make_variants(options.config, overrides), named)
    for seed in map(int, options.seeds.split(",")):
        for name, make in variants.items():
            config = make()
            config.seed = seed
            folder = options.workdir / f"{name.replace(' ', '_')}_{seed}"
            found.setdefault(name, []).append(measure(config, folder, options.seconds))
    print(f"\n{options.config}, {options.seconds:g} CPU seconds a run, seeds {options.seeds}\n")
    print(table(found))
    return 0


def make_variants(recipe: str, overrides: Sequence[str]) -> dict[str, Callable[[], Config]]:
    """Return, by name, what makes the config of each row."""

    def make(path: str, change: Change) -> Config:
        config = load_config(path)
        known = {key: value for key, value in change.items() if key in flat(config)}
        config.update_from_flattened_dict(known)
        override(config, overrides)
        return config

    own = load_config(recipe)
    path, _, _ = recipe.partition(":")
    data = {key: value for key, value in flat(own).items() if key.startswith("dataset.")}
    plain = {**data, "steps_per_call": own.steps_per_call}
    cycle = {"penalties.cycle_x.weight": own.penalties.cycle_x.weight}
    images = str(Path(path).with_name("images.py"))
    variants: dict[str, Callable[[], Config]] = {
        name: lambda change=change: make(recipe, change) for name, change in CHANGES.items()
    }
    variants["images.py"] = lambda: make(images, plain)
    variants["images.py with the cycle"] = lambda: make(images, {**plain, **cycle})
    if path.endswith("_residual.py"):
        paper = path.replace("_residual.py", ".py")
        variants[Path(paper).name] = lambda: make(paper, {**plain, "ema_decay": 0.999})
    return variants


def measure(config: Config, folder: Path, seconds: float) -> dict[str, float]:
    """Train for so many CPU seconds in a folder, unless that is done, and return the run's numbers."""
    config.evaluators, config.evaluate_every = EVALUATORS, 0
    plan = folder.with_name(f"{folder.name}.json")
    if not plan.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        per_step = seconds_per_step(config)
        call = config.steps_per_call
        plan.write_text(json.dumps({"num_steps": max(1, round(seconds / per_step / call)) * call}))
    config.num_steps = json.loads(plan.read_text())["num_steps"]
    config.log_every = config.steps_per_call
    config.checkpoint_every = max(1, config.num_steps // config.steps_per_call // 4) * config.steps_per_call
    with redirect_stdout(sys.stderr):
        if loop.run(config, folder):
            raise RunError("The comparison was stopped; the same command continues it.")
    return {**read_metrics(folder), "images": float(config.num_steps * config.batch_size)}


def seconds_per_step(config: Config) -> float:
    """Return the CPU seconds of a training step: the median of some calls, once it is compiled."""
    made = game.prepare(config)
    times = []
    with closing(game.make_feed(made)) as feed:
        state, count = game.initial_state(made), config.steps_per_call
        call = game.make_call(made, feed, count)
        for i in range(WARM_UP + TIMED):
            began = time.process_time()
            state, _ = jax.block_until_ready(call(state, feed.load(i * count, count)))
            times.append((time.process_time() - began) / count)
    return float(np.median(times[WARM_UP:]))


def table(found: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Return the Markdown table, one row per variant: mean and standard deviation over seeds."""
    every = [numbers for rows in found.values() for numbers in rows]
    columns = [name for name in COLUMNS if all(name in numbers for numbers in every)]
    rows = [["variant", *columns], ["---", *["---:"] * len(columns)]]
    for name, of_seeds in found.items():
        spread = population.spread(of_seeds)
        cells = {column: mean_and_deviation(spread, column) for column in columns}
        rows.append([name, *(cells | {"images": f"{spread['images']:,.0f}"}).values()])
    return markdown(rows)


if __name__ == "__main__":
    sys.exit(main())
