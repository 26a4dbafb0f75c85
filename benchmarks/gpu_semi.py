"""Few labels on a GPU: as many steps of `experiments/cifar10_semi.py` as there is time for.

The part `semi` of `benchmarks.gpu`. Steps per second come first, and from them a number of steps that fits
the time. Learning rates follow a schedule of that length. Nothing sees the test images before the last step.
"""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ali_jax import config as configs
from ali_jax import game as games
from ali_jax.config import Config
from ali_jax.metrics.intervals import wilson_interval
from ali_jax.program.command import load_config
from ali_jax.records.workdir import read_metrics
from benchmarks.worker import ROOT

EXPERIMENT = ROOT / "experiments" / "cifar10_semi.py"
CALLS = 3  # that are timed
SHARE = 0.75  # of the time that is left, for training; the rest is for the start and the test
# Test errors in % with 4,000 labels of CIFAR-10 and no augmentation, as published.
PUBLISHED = {
    "ALI (Dumoulin et al., 2017)": "17.99 ± 1.62",
    "improved GAN (Salimans et al., 2016)": "18.63 ± 2.32",
    "manifold regularisation (Lecouat et al., 2018)": "14.45",
    "Bad GAN (Dai et al., 2017)": "14.41",
    "VAT with entropy (Miyato et al., 2018)": "13.15",
}


def config_for(path: Path | None, shrink: Callable[[Config], None] | None = None) -> Config:
    """Return the experiment's config for a file of images or, to try it, a tiny one that trains on digits."""
    config = load_config(str(EXPERIMENT))
    config.evaluators, config.report, config.evaluate_every = ("label_error",), False, 0
    if shrink is not None:
        shrink(config)
        config.dataset.name, config.dataset.shape, config.dataset.labelled = "digits", (8, 8, 1), 100
        config.steps_per_call = config.log_every = config.checkpoint_every = 2
    else:
        config.dataset.path = str(path)
    return config


def steps_per_second(config: Config) -> tuple[float, list[float]]:
    """Return the seconds until the first call is done, and the steps per second of some further calls."""
    began = time.monotonic()
    game, rates = games.prepare(config), []
    with contextlib.closing(games.make_feed(game)) as feed:
        call, state = games.make_call(game, feed, config.steps_per_call), games.initial_state(game)
        for k in range(CALLS + 1):
            if k == 1:
                first = time.monotonic()
            start = time.monotonic()
            state, metrics = call(state, feed.load(k * config.steps_per_call, config.steps_per_call))
            float(metrics["loss/discriminator"])  # waits for it
            rates.append(config.steps_per_call / (time.monotonic() - start))
    return first - began, rates[1:]


def steps_in(seconds: float, rates: Sequence[float], per_call: int) -> int:
    """Return a number of steps, whole calls and at least one, that takes about so long."""
    return max(1, int(seconds * sorted(rates)[len(rates) // 2] / per_call)) * per_call


def flags_of(config: Config) -> list[str]:
    """Return the flags of the command that make this config of the experiment's."""
    changed = configs.differences(load_config(str(EXPERIMENT)), config)
    return [f"--config.{k}={v if isinstance(v, str) else repr(v)}" for k, (_, v) in changed.items()]


def train(config: Config, workdir: Path, seconds: float) -> dict[str, float] | None:
    """Train and test; return the numbers, or None where a signal had to end it before."""
    command = [sys.executable, "-m", "ali_jax.main", "--workdir", str(workdir), "--config", str(EXPERIMENT)]
    child = subprocess.Popen([*command, *flags_of(config)], cwd=ROOT)
    try:
        status = child.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGINT)  # it saves its state
        child.wait()
        return None
    if status:
        raise RuntimeError(f"the training ended with status {status}")
    return read_metrics(workdir)


def taken(workdir: Path) -> int:
    """Return how many steps a run has taken."""
    return json.loads((workdir / "sittings.json").read_text())[-1]["to_step"]


def lossy_images(path: Path | None) -> int:
    """Return how many test images the file marks as decoded from a lossy format (`test_is_lossless`)."""
    if path is None:
        return 0
    with np.load(path) as arrays:
        return int((~arrays["test_is_lossless"]).sum()) if "test_is_lossless" in arrays else 0


def table(row: dict[str, Any]) -> list[list[str]]:
    """Return our test error with its Wilson interval, below the published ones; a trial is named as such."""
    low, high = wilson_interval(row["label_error"] * row["test_images"], row["test_images"])
    ours = f"{100 * row['label_error']:.2f} (95 %: {100 * low:.2f} to {100 * high:.2f})"
    return [
        ["CIFAR-10, 4,000 labels", "test error, %"],
        ["---", "---:"],
        *([name, error] for name, error in PUBLISHED.items()),
        [f"here, {row['steps']:,} steps{', a trial on digits' * row['tiny']}", ours],
    ]
