"""Measure what augmentation gains on few images: the same run with and without `config.augment`.

    python -m benchmarks.few_images --data DATA.npz [--images 500] [--probability 0.4] [--workdir DIR]
        [--config experiments/images.py] [--config.KEY=VALUE ...]

The networks are trained on the first images of train alone, three seeds as one population. Samples are
compared with all of train. With labels: class_kl and class_kept, by a classifier that is trained on all of
train. Without: `memorisation`, against the images trained on, and the Frechet distance of the means over an
8x8 grid, which needs neither labels nor weights. Finished runs are not repeated, so the same command
continues a measurement that was stopped.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

import jax
import numpy as np

from ali_jax import evaluate, game
from ali_jax.config import Config
from ali_jax.data import Dataset
from ali_jax.evaluate import Extractor, frechet_measurements
from ali_jax.game import population
from ali_jax.metrics.blocks import map_blocks
from ali_jax.program import loop
from ali_jax.program.command import load_config, override
from ali_jax.records.workdir import RunError
from ali_jax.types import TrainState
from benchmarks.ablation import mean_and_deviation
from benchmarks.compare import in_one_sentence, markdown

SEEDS = 3
TRANSFORMATIONS = ("translation", "cutout", "colour")
COLUMNS = ("class_kl", "class_kept", "memorisation", "fid_grid", "fid_grid_floor")


@in_one_sentence
def main(argv: Sequence[str] | None = None) -> int:
    """Train the missing runs, print the table in Markdown, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.few_images", allow_abbrev=False)
    parser.add_argument("--data", required=True, help="an .npz, or what else config.dataset.path takes")
    parser.add_argument("--images", type=int, default=500, help="training images")
    parser.add_argument("--probability", type=float, default=0.4, help="of each transformation")
    parser.add_argument("--config", default="experiments/images.py", help="FILE or FILE:VARIANT")
    parser.add_argument(
        "--workdir", type=Path, default=Path("runs/few_images"), help="the folder of the runs"
    )
    options, overrides = parser.parse_known_args(argv)
    config = load_config(options.config)
    config.dataset.path, config.dataset.train_split = options.data, f"train[:{options.images}]"
    config.population.seeds, config.evaluators = SEEDS, ()
    override(config, overrides)
    found = {
        name: measure(augmented(config, p), options.workdir / name)
        for name, p in (("plain", 0.0), ("augmented", options.probability))
    }
    print(f"\n{options.images} images of {options.data}, {config.num_steps} steps, {SEEDS} seeds\n")
    print(table(found))
    return 0


def augmented(config: Config, probability: float) -> Config:
    """Return a copy of a config with every transformation at this probability."""
    config = config.copy_and_resolve_references()
    for name in TRANSFORMATIONS:
        config.augment[name] = probability
    return config


def measure(config: Config, workdir: Path) -> dict[str, float]:
    """Train a population in a folder, unless it is finished there; return its numbers over the seeds."""
    with redirect_stdout(sys.stderr):
        if loop.run(config, workdir):
            raise RunError("The measurement was stopped; the same command continues it.")
    made = game.prepare(config)
    state, _ = game.trained_state(made, workdir)
    everything = config.copy_and_resolve_references()
    everything.dataset.train_split = "train"
    whole = game.load_data(everything)
    members = [game.member_of(jax.device_get(state), k) for k in range(SEEDS)]
    return population.spread(
        [_numbers(member, own, whole) for member, own in zip(made.members, members, strict=True)]
    )


def _numbers(made: game.Game, state: TrainState, whole: Dataset) -> dict[str, float]:
    variables = state.variables if state.ema is None else state.ema
    model = made.ali, variables, game.evaluation_key(made.config)
    numbers = dict(evaluate.memorisation(*model, made.dataset).scalars)
    extractor = Extractor("grid", "means over an 8x8 grid", grid_means)
    distances = frechet_measurements(*model, whole, extractor)
    numbers |= {name: measurement.value for name, measurement in distances.items()}
    if whole.num_classes > 1:
        numbers |= evaluate.class_balance(*model, whole).scalars
    return {name: numbers[name] for name in COLUMNS if name in numbers}


def grid_means(x: np.ndarray) -> np.ndarray:
    """Return the means of images [N, H, W, C] over a grid of 8x8, resampled linearly with antialiasing."""
    shrink = jax.jit(lambda x: jax.image.resize(x, (len(x), 8, 8, x.shape[-1]), "linear").reshape(len(x), -1))
    return map_blocks(shrink, x)


def table(found: Mapping[str, Mapping[str, float]]) -> str:
    """Return the Markdown table: mean and standard deviation over the seeds of each run."""
    columns = [name for name in COLUMNS if all(name in numbers for numbers in found.values())]
    rows = [["run", *columns], ["---", *["---:"] * len(columns)]]
    rows += [[name, *map(partial(mean_and_deviation, numbers), columns)] for name, numbers in found.items()]
    return markdown(rows)


if __name__ == "__main__":
    sys.exit(main())
