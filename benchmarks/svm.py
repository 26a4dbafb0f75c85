"""Compare our L2-SVMs with scikit-learn's LinearSVC, which the paper's protocol uses, on the same draws.

    python -m benchmarks.svm [--features FILE.npz] [--labels N] [--draws D] [--peer-fits P] [--rounds R]
        [--log-c X] [--threads T] [--json FILE]
    python -m benchmarks.svm --config experiments/svhn.py [--config.KEY=VALUE ...] [...]

Features come from a file (train_features [N, F], train_labels [N], test_features, test_labels), from the
untrained encoder of a config on its data, or from a random network on scikit-learn's digits. Every round fits
all D draws with ours and P / R of them with LinearSVC, one after the other; the order reverses from round to
round. LinearSVC has scikit-learn's defaults except for C, as in the authors' script, and its time for D draws
is extrapolated from P. The protocol chooses C.
"""

import argparse
import functools
import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_limits

from ali_jax import data, model
from ali_jax.game import initial_state, prepare
from ali_jax.game.compile import platform_of
from ali_jax.metrics import svm
from ali_jax.metrics.blocks import map_blocks
from ali_jax.networks.convolutions import compiler_options
from ali_jax.program.command import load_config, override
from ali_jax.types import Batch
from benchmarks.compare import load, markdown

RANDOM_FEATURES = 5376  # the number of features of the SVHN networks
HIDDEN = 512
SETTLING_STEPS = 60  # batches of 100; 5 % of the initial running statistics are left after them


class Features(NamedTuple):
    """The rows that machines are fitted to, tuned with and tested on."""

    pool: svm.Labelled
    validation: svm.Labelled
    test: svm.Labelled
    num_classes: int


class Times(NamedTuple):
    """Seconds of one round."""

    wall: float
    cpu: float  # user and system, all threads


class Peer(NamedTuple):
    """LinearSVC's result for one draw."""

    machine: svm.LinearSVM
    converged: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Print the comparison in Markdown and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.svm",
        description="Compare our L2-SVMs with scikit-learn's.",
        allow_abbrev=False,
    )
    parser.add_argument("--features", type=Path, help="an .npz file")
    parser.add_argument("--config", help="FILE or FILE:VARIANT, for features of its untrained encoder")
    parser.add_argument("--labels", type=int, default=1000, help="labelled examples of each draw")
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--peer-fits", type=int, default=100, help="number of draws that LinearSVC fits")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--log-c", type=float, help="natural logarithm of C, instead of choosing it")
    parser.add_argument("--threads", type=int, help="of BLAS (default: all cores)")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    options, overrides = parser.parse_known_args(argv)
    try:
        if not 1 <= options.rounds <= options.peer_fits <= options.draws:
            raise ValueError("There must be 1 <= --rounds <= --peer-fits <= --draws.")
        if overrides and not options.config:
            raise ValueError(f"{overrides[0]} has no meaning without --config.")
        features = _load(options.features, options.config, overrides)
        draws = svm.protocol_draws(
            0, features.pool.labels, features.num_classes, options.labels, options.draws
        )
    except (ValueError, OSError, KeyError) as error:
        print(error, file=sys.stderr)
        return 2
    with threadpool_limits(limits=options.threads, user_api="blas"):
        found = compare(features, draws, options.peer_fits, options.rounds, options.log_c)
    _show(features, draws, found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


def compare(
    features: Features, draws: svm.Draws, peer_fits: int, rounds: int, log_c: float | None = None
) -> dict[str, Any]:
    """Fit the same draws with both in interleaved rounds; return times, errors and objectives."""
    pool, validation, test, num_classes = features
    if log_c is None:
        first = svm.Labelled(*(array[draws.selection[0]] for array in pool))
        log_c = float(np.log(svm.select_c(first, validation, num_classes, np.exp(svm.LOG_C)).c))
    c, rows = float(np.exp(log_c)), draws.test
    ours, peers, times = None, {}, []
    for index, share in enumerate(np.array_split(np.arange(peer_fits), rounds)):
        taken = {}
        for name in ("ours", "peer")[:: -1 if index % 2 else 1]:
            if name == "ours":
                ours, taken[name] = _timed(lambda: svm.fit_draws(*pool, rows, num_classes, c))
            else:
                found, taken[name] = _timed(lambda share=share: [_peer(pool, rows[i], c) for i in share])
                peers |= dict(zip(share.tolist(), found, strict=True))
                taken[name] = Times(*(seconds * len(rows) / len(share) for seconds in taken[name]))
        times.append(taken)
    assert ours is not None
    ratios = {
        what: [getattr(taken["peer"], what) / getattr(taken["ours"], what) for taken in times]
        for what in Times._fields
    }
    our_errors = svm.error_rates(ours, test)
    theirs = svm.LinearSVM(
        *(np.stack(arrays) for arrays in zip(*(peers[i].machine for i in range(peer_fits)), strict=True))
    )
    differences = our_errors[:peer_fits] - svm.error_rates(theirs, test)
    excess = [
        _objectives(theirs, i, pool, row, c) / _objectives(ours, i, pool, row, c) - 1
        for i, row in enumerate(rows[:peer_fits])
    ]
    return {
        "log_c": log_c,
        "rounds": [{name: taken[name]._asdict() for name in ("ours", "peer")} for taken in times],
        "ratios": ratios,
        "peer_fits": peer_fits,
        "error": float(np.mean(our_errors)),
        "error_std": float(np.std(our_errors)),
        "error_same_draws": float(np.mean(our_errors[:peer_fits])),
        "error_peer": float(np.mean(our_errors[:peer_fits] - differences)),
        "largest_difference": float(np.max(np.abs(differences))),
        "gap": float(np.max(ours.gap)),
        "excess_objective": [float(np.min(excess)), float(np.max(excess))],
        "peer_not_converged": sum(not peer.converged for peer in peers.values()),
    }


def _show(features: Features, draws: svm.Draws, found: dict[str, Any]) -> None:
    number, size = draws.test.shape
    width, tests = features.pool.features.shape[1], len(features.test.labels)
    print(f"{number} draws of {size} labels, {width} features, {tests} test rows; C = e^{found['log_c']:.3f}")
    print(f"load {load()}; LinearSVC's times are {number} times the mean of its fits\n")
    rows = [["seconds", "wall", "CPU"], ["---", "---:", "---:"]]
    for name in ("ours", "peer"):
        cells = [f"{median(taken[name][what] for taken in found['rounds']):.4g}" for what in Times._fields]
        rows.append(["ours" if name == "ours" else "LinearSVC", *cells])
    ratios = [found["ratios"][what] for what in Times._fields]
    rows.append(["ratio", *(f"{median(r):.3g} ({min(r):.3g} to {max(r):.3g})" for r in ratios)])
    print(markdown(rows) + "\n")
    low, high = found["excess_objective"]
    print(
        f"error, all draws          {100 * found['error']:.3f} % +- {100 * found['error_std']:.3f} (std)\n"
        f"error, draws of both      ours {100 * found['error_same_draws']:.3f} %, LinearSVC "
        f"{100 * found['error_peer']:.3f} % ({found['peer_fits']} draws)\n"
        f"largest difference        {100 * found['largest_difference']:.3f} points in one draw\n"
        f"LinearSVC's objective     {low:+.1e} to {high:+.1e} of ours; {found['peer_not_converged']} of its "
        f"{found['peer_fits']} fits did not converge\n"
        f"our largest duality gap   {found['gap']:.1e}, relative"
    )


def _load(file: Path | None, config_name: str | None, overrides: Sequence[str]) -> Features:
    if file is not None:
        with np.load(file) as arrays:
            names = ("train_features", "train_labels", "test_features", "test_labels")
            return _split(*(arrays[name] for name in names))
    return _split(*(_untrained(config_name, overrides) if config_name else _random_network()))


def _split(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray
) -> Features:
    pool = len(train) - svm.validation_size(len(train))
    return Features(
        svm.Labelled(train[:pool], train_labels[:pool]),
        svm.Labelled(train[pool:], train_labels[pool:]),
        svm.Labelled(test, test_labels),
        int(train_labels.max()) + 1,
    )


def _random_network() -> tuple[np.ndarray, ...]:
    """Return digits' features, from a random leaky layer and a linear layer above it, and labels."""
    rng = np.random.default_rng(0)
    digits = data.load("digits")
    first = rng.standard_normal((64, HIDDEN), np.float32) / 8
    second = rng.standard_normal((HIDDEN, RANDOM_FEATURES), np.float32) / HIDDEN**0.5

    def features(x: np.ndarray) -> np.ndarray:
        h = (x.reshape(len(x), -1) / np.float32(8) - 1) @ first
        return np.maximum(h, 0.1 * h) @ second

    train, test = (split.rows(np.arange(len(split))) for split in (digits.train, digits.test))
    assert train.label is not None
    assert test.label is not None
    return (
        features(np.asarray(train.x)),
        np.asarray(train.label),
        features(np.asarray(test.x)),
        np.asarray(test.label),
    )


def _untrained(name: str, overrides: Sequence[str]) -> tuple[np.ndarray, ...]:
    """Return features of a config's untrained encoder with settled running statistics, and the labels."""
    config = load_config(name)
    override(config, overrides)
    config.evaluators = ("l2_svm",)  # so that data without labels are refused
    game = prepare(config)
    ali, variables = game.ali, initial_state(game).variables
    options = compiler_options(platform_of(game.mesh))

    @jax.jit
    def settle(stats: Any, params: Any, x: jax.Array, epsilon: jax.Array) -> Any:
        held = {"params": params, "batch_stats": stats}
        _, new = ali.encoder.apply(held, x, epsilon, None, train=True, mutable=["batch_stats"])
        return new.get("batch_stats", {})

    train, test = game.dataset.train, game.dataset.test
    stats = variables.batch_stats.encoder
    for step in range(SETTLING_STEPS):
        rows = (np.arange(100) + 100 * step) % len(train)
        x = data.scaled(train.rows(rows), game.dataset.divisor).x
        epsilon = jax.random.normal(jax.random.key(step), (len(rows), model.latent_dim(ali)))
        stats = settle(stats, variables.params.encoder, jnp.asarray(x), epsilon)
    settled = variables._replace(batch_stats=variables.batch_stats._replace(encoder=stats))
    features = jax.jit(functools.partial(model.features, ali, settled), compiler_options=options)
    found = []
    for split in (train, test):
        x, _, labels = split.rows(np.arange(len(split)))
        assert labels is not None
        blocks = map_blocks(lambda x: features(data.scaled(Batch(x), game.dataset.divisor).x), np.asarray(x))
        found += [blocks, np.asarray(labels)]
    return tuple(found)


def _peer(pool: svm.Labelled, rows: np.ndarray, c: float) -> Peer:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        fitted = LinearSVC(C=c).fit(pool.features[rows], pool.labels[rows])
    weights, bias = fitted.coef_.T, np.atleast_1d(fitted.intercept_)
    if weights.shape[1] == 1:  # two classes have one machine; the other is its negative
        weights, bias = np.concatenate([-weights, weights], axis=1), np.concatenate([-bias, bias])
    return Peer(svm.LinearSVM(weights, bias, np.full(len(bias), np.nan)), not caught)


def _objectives(
    machines: svm.LinearSVM, i: int, pool: svm.Labelled, rows: np.ndarray, c: float
) -> np.ndarray:
    """Return liblinear's primal objective [K] of the i-th machines."""
    weights, bias = machines.weights[i], machines.bias[i]
    scores = pool.features[rows].astype(np.float64) @ weights + bias[None]
    signs = np.where(pool.labels[rows][:, None] == np.arange(len(bias))[None], 1, -1)
    slack = np.maximum(0, 1 - signs * scores)
    return 0.5 * (np.sum(weights**2, axis=0) + bias**2) + c * np.sum(slack**2, axis=0)


def _timed(function: Callable[[], Any]) -> tuple[Any, Times]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    return result, Times(time.perf_counter() - wall, time.process_time() - cpu)


if __name__ == "__main__":
    sys.exit(main())
