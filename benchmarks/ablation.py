"""Measure the effect of each ingredient of a stable recipe: remove or change one at a time.

    python -m benchmarks.ablation --config experiments/mixture_stable.py --config.population.seeds=8
        [--workdir DIR] [--variants recipe,"no penalty",...] [--config.KEY=VALUE ...]

The seeds of a variant (two by default) train as one population in their own folder under --workdir. Finished
variants are not repeated, so the same command continues a stopped ablation. The table has the mean and the
standard deviation over seeds for the averaged parameters and, in rows marked "raw", for the parameters of the
last step: the raw recipe is the recipe without averaging.
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, TypeVar

from ali_jax import config as configs
from ali_jax.config import Config
from ali_jax.game import population
from ali_jax.program import loop
from ali_jax.program.command import load_config, override
from ali_jax.records.workdir import RunError, read_metrics
from benchmarks.compare import in_one_sentence, markdown

T = TypeVar("T")

EVALUATOR = "modes"
COLUMNS = ("modes_strict", "high_quality", "reverse_kl", "mode_spread", "mode_kept")
SEEDS = 2  # by default
RAW = "raw/"  # prefix of the raw parameters' numbers


@in_one_sentence
def main(argv: Sequence[str] | None = None) -> int:
    """Train the missing variants, print the table in Markdown, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ablation",
        description="Take one ingredient at a time out of a recipe.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, help="FILE or FILE:VARIANT")
    parser.add_argument("--variants", default="", help="names of rows, separated by commas (default: all)")
    parser.add_argument("--workdir", type=Path, default=Path("runs/ablation"), help="the folder of all runs")
    options, overrides = parser.parse_known_args(argv)
    config = load_config(options.config)
    config.population.seeds = population.size(config) or SEEDS
    override(config, overrides)
    variants = choose(make_variants(config), options.variants)
    results = {
        name: measure(variant, options.workdir / name.replace(" ", "_")) for name, variant in variants.items()
    }
    last = config.seed + max(population.size(config), 1) - 1
    print(f"\n{options.config}, {config.num_steps} steps, seeds {config.seed} to {last}\n")
    print(table(results))
    return 0


def make_variants(config: Config) -> dict[str, Config]:
    """Return the recipe and its variants with one ingredient changed, by name.

    Variants that equal the recipe are left out.

    Raises:
      ValueError: the recipe has no gradient penalty.
    """
    gamma, gamma_z = config.penalties.r1.gamma, config.penalties.r1.gamma_z
    if not gamma > 0:
        raise ValueError(
            f"config.penalties.r1.gamma is {gamma}: an ablation starts from a recipe with a penalty, such as "
            "experiments/mixture_stable.py."
        )
    changes: dict[str, dict[str, Any]] = {
        "recipe": {},
        "no penalty": {"penalties.r1.gamma": 0.0, "penalties.r1.gamma_z": 0.0},
        "penalty on x only": {"penalties.r1.gamma_z": 0.0},
        "penalty on z only": {
            "penalties.r1.gamma": 0.0,
            "penalties.r1.gamma_z": gamma_z if gamma_z >= 0 else gamma,
        },
        "penalty at both pairs": {"penalties.r1.at": "both"},
        "penalty not annealed": {"penalties.r1.gamma_final": -1.0},
        "b1 0.5": {"optimizer.generator.b1": 0.5, "optimizer.discriminator.b1": 0.5},
        "b2 0.999": {"optimizer.generator.b2": 0.999, "optimizer.discriminator.b2": 0.999},
        "constant learning rate": {"optimizer.constant_fraction": 1.0},
        "no cycle": {"penalties.cycle_x.weight": 0.0},
        "no Fourier features": {"encoder.frequencies": ()},
    }
    variants = {name: _changed(config, change) for name, change in changes.items()}
    return {
        name: variant
        for name, variant in variants.items()
        if name == "recipe" or configs.differences(variants["recipe"], variant)
    }


def choose(variants: Mapping[str, T], text: str) -> dict[str, T]:
    """Return the variants that `text` names, or all if it is empty.

    Raises:
      ValueError: an unknown name.
    """
    names = text.split(",") if text else list(variants)
    for name in names:
        if name not in variants:
            raise ValueError(f"--variants: {name!r} is unknown; there are {', '.join(variants)}.")
    return {name: variants[name] for name in names}


def measure(variant: Config, workdir: Path) -> dict[str, float]:
    """Train a variant's population in a folder, unless it is finished there, and return its numbers.

    Raises:
      ValueError: bad input, or the folder holds another run.
      RunError: the training failed or was stopped.
    """
    config = variant.copy_and_resolve_references()
    config.evaluators, config.evaluate_every = (EVALUATOR,), 0
    with redirect_stdout(sys.stderr):
        status = loop.run(config, workdir)
    if status:
        raise RunError("The ablation was stopped; the same command continues it.")
    return read_metrics(workdir)


def table(results: Mapping[str, Mapping[str, float]]) -> str:
    """Return the Markdown table: two rows per variant, mean and standard deviation over its seeds."""
    rows = [["variant", "weights", *COLUMNS], ["---"] * 2 + ["---:"] * len(COLUMNS)]
    for name, found in results.items():
        for weights, prefix in (("averaged", ""), ("raw", RAW)):
            columns = [prefix + column for column in COLUMNS]
            if found.keys() >= set(columns):  # without averaging there are no raw numbers
                rows.append([name, weights, *(mean_and_deviation(found, column) for column in columns)])
    return markdown(rows)


def mean_and_deviation(found: Mapping[str, float], column: str) -> str:
    """Format a number over seeds as "mean +- standard deviation" (n - 1), or the number of a single seed."""
    deviation = found.get(f"{column}/std", math.nan)
    return f"{found[column]:.4f}" + ("" if math.isnan(deviation) else f" +- {deviation:.4f}")


def _changed(config: Config, values: Mapping[str, Any]) -> Config:
    """Return a copy of a config with other values, given by dotted keys."""
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(values)
    return config


if __name__ == "__main__":
    sys.exit(main())
