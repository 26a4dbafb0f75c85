"""The parts of `benchmarks.gpu`; each runs in a process of its own.

    python -m benchmarks.gpu_parts PART --out DIR --seconds S [--path DATA] [--torch-python PYTHON] [--tiny]

A part writes each result as soon as it has it, the most useful ones first: its process is ended when its time
is up.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp

from ali_jax.config import Config
from ali_jax.networks import convolutions
from ali_jax.networks.layers import Convolution
from ali_jax.program.command import load_config
from ali_jax.tools import profile
from benchmarks import compare, gpu_semi, roofline
from benchmarks.cudnn import step_of
from benchmarks.gpu_records import NO_GPU, Results
from benchmarks.jax_variants import Ours
from benchmarks.worker import ROOT, WorkerError

# In order of worth. Peers exist for those with tables of layers.
EXPERIMENTS = ("svhn", "celeba", "cifar10", "images:32", "tiny_imagenet", "images:64")
DTYPES = ("float32", "bfloat16")  # float32 means tf32 where the GPU has it
FACTORS = (1, 4)  # of the paper's batch
FURTHER = tuple(f"gpu+{form}" for form in convolutions.FORMS)
FORMS = ("native", "gpu", *FURTHER)
PEERS = ("torch_textbook", "torch_best", "torch_compiled")
ROUNDS = 3  # in which the programs of a group take turns
SECONDS = 0.5  # of training in each
CALLS = 10  # of each layer in a trace
MEASURED = "ms"  # what each result of a measurement has
MARGIN = 0.97  # of its time without it: the most that a form may take to be chosen


class Run(NamedTuple):
    """What a part is given."""

    results: Results
    out: Path
    seconds: float
    path: Path | None
    torch_python: str
    tiny: bool


class Cell(NamedTuple):
    """An experiment, the type in which its networks compute, and its batch."""

    experiment: str
    dtype: str
    factor: int


Job: TypeAlias = tuple[Cell, str]  # and the form of its convolutions
TINY = (Cell("svhn", "float32", 1), Cell("svhn", "bfloat16", 1), Cell("images:8", "float32", 1))


def cells(*, tiny: bool, factors: Sequence[int] = FACTORS) -> list[Cell]:
    """Return what is measured, in order of worth."""
    every = [Cell(e, dtype, factor) for factor in factors for e in EXPERIMENTS for dtype in DTYPES]
    return list(TINY) if tiny else every


def config_of(cell: Cell, *, tiny: bool, lowering: str = "auto") -> Config:
    """Return the config of a cell, for calls of a few steps."""
    name, _, variant = cell.experiment.partition(":")
    config = load_config(str(ROOT / "experiments" / f"{name}.py") + (f":{variant}" if variant else ""))
    if tiny:
        shrink(config)
    config.dtype, config.lowering = cell.dtype, lowering
    config.batch_size *= cell.factor
    config.steps_per_call = 2 if tiny else 20
    return config


def shrink(config: Config) -> None:
    """Reduce the networks to two small layers a stack on images of 8x8, and the batch to four rows."""
    config.dataset.shape = (8, 8, 3)
    config.batch_size = config.latent_dim = 4
    config.discriminator.z_layers = config.discriminator.joint_layers = (4,)
    if config.encoder.width:
        config.encoder.width = config.decoder.width = config.discriminator.width = 4
        return
    config.encoder.layers = config.discriminator.x_layers = ((3, 2, 4), (3, 1, 4))
    config.decoder.layers = ((3, 1, 4), (4, 2, 4))
    for network in (config.encoder, config.decoder, config.discriminator):
        for key, value in network.items():
            if key.endswith(("batch_norm", "dropout", "dropout_after", "noise")):
                network[key] = value[-1:]


class Outcomes:
    """A plugin of pytest that records how each test ends."""

    def __init__(self, results: Results) -> None:
        self._results = results

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Record a test once: its call, or its setup where there is no call."""
        if report.when == "call" or (report.when == "setup" and report.outcome != "passed"):
            self._results.add(test=report.nodeid, outcome=report.outcome, seconds=report.duration)


def tests(run: Run) -> None:
    """Run the tests with the mark `gpu`; a test that fails does not end the part."""
    import pytest

    marked = [str(path) for path in (ROOT / "tests").glob("test_*.py") if "mark.gpu" in path.read_text()]
    arguments = ["-m", "gpu", "-q", "-p", "no:cacheprovider", *marked]
    status = pytest.main(arguments, [Outcomes(run.results)])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"pytest ended with status {int(status)}")


def steps(run: Run) -> None:
    """Time training steps: plain convolutions beside ours first, then the further forms beside ours.

    The programs of an experiment and a batch are compiled together, and take turns.
    """
    ceilings = {} if run.tiny else {dtype: roofline.measured_ceiling(dtype) for dtype in DTYPES}
    for forms in (FORMS[:2], ("gpu", *FURTHER)):
        todo = cells(tiny=run.tiny)
        if run.tiny and forms != FORMS[:2]:
            todo, forms = todo[:1], forms[:2]
        for _, group in itertools.groupby(todo, key=lambda cell: (cell.factor, cell.experiment)):
            jobs = [(cell, form) for cell in group for form in forms]
            if not all(is_measured(run, *job) for job in jobs):
                time_steps(run, jobs, ceilings)


def is_measured(run: Run, cell: Cell, form: str = "") -> bool:
    """Whether the results have a cell, in this form where one is given: the command was repeated."""
    what = _named(cell, config_of(cell, tiny=run.tiny)) | ({"form": form} if form else {})
    return any(what.items() <= row.items() for row in run.results.measured(MEASURED))


def time_steps(run: Run, jobs: Sequence[Job], ceilings: dict[str, roofline.Ceiling]) -> None:
    """Time the steps of some programs in turn; one that fails is noted and does not hinder the others."""
    for (cell, form), (trainer, seconds, walls) in _in_turn(run, _compiled(run, jobs)).items():
        ceiling = ceilings.get(cell.dtype)
        run.results.add(
            **_named(cell, trainer.config),
            form=form,
            ms=[1e3 * wall for wall in walls],
            compile_seconds=seconds,
            floor_ms=_floor(trainer.config, ceiling) if ceiling else None,
        )


def _named(cell: Cell, config: Config) -> dict[str, Any]:
    return {"experiment": cell.experiment, "dtype": cell.dtype, "batch": config.batch_size}


def _floor(config: Config, ceiling: roofline.Ceiling) -> float | None:
    """Return the milliseconds that the operations of a step take at least; None without tables of layers."""
    with contextlib.suppress(ValueError):
        return 1e3 * roofline.least_flops(config, config.batch_size) / ceiling.flops
    return None


def _compiled(run: Run, jobs: Sequence[Job]) -> dict[Job, tuple[Ours, float]]:
    """Compile the programs of some cells in threads; note those that fail, and return the others."""

    def compile(job: Job) -> tuple[Ours, float]:
        config = config_of(job[0], tiny=run.tiny, lowering=job[1])
        began = time.perf_counter()
        trainer = Ours(config, config.batch_size)
        trainer.compile()
        return trainer, time.perf_counter() - began

    with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)) // 2)) as pool:
        futures = {job: pool.submit(compile, job) for job in jobs}
    made = {}
    for (cell, form), future in futures.items():
        with _noted(run, experiment=cell.experiment, dtype=cell.dtype, form=form):
            made[cell, form] = future.result()
    return made


def _in_turn(run: Run, trainers: dict[Job, tuple[Ours, float]]) -> dict[Job, tuple[Ours, float, list[float]]]:
    """Let programs train in turn, in an order that is reversed every round; return seconds per step, too."""
    counts: dict[Job, int] = {}
    walls: dict[Job, list[float]] = {}
    for job, (trainer, _) in trainers.items():
        with _noted(run, experiment=job[0].experiment, dtype=job[0].dtype, form=job[1]):
            trainer.start()
            wall = _timed(trainer, trainer.unit)
            counts[job] = 1 if run.tiny else math.ceil(SECONDS / wall / trainer.unit)
    for index in range(ROUNDS):
        for job in list(counts)[:: -1 if index % 2 else 1]:
            trainer = trainers[job][0]
            walls.setdefault(job, []).append(_timed(trainer, counts[job] * trainer.unit))
    for trainer, _ in trainers.values():
        trainer.stop()
    return {job: (*trainers[job], times) for job, times in walls.items()}


def _timed(trainer: Ours, count: int) -> float:
    """Return the seconds per step of `count` steps."""
    began = time.perf_counter()
    trainer.run(count)
    return (time.perf_counter() - began) / count


@contextlib.contextmanager
def _noted(run: Run, **what: Any) -> Iterator[None]:
    """Note an error as a result, and go on."""
    try:
        yield
    except Exception as error:  # of any kind: memory, compiler, a peer
        run.results.add(error=f"{type(error).__name__}: {str(error).strip()[:300]}", **what)


def peers(run: Run) -> None:
    """Time the same work in PyTorch, in turn with ours."""
    if not compare.has_torch(run.torch_python):
        run.results.add(absent=f"{run.torch_python} has no torch: pip install 'ali_jax[bench]'.")
        return
    for cell in cells(tiny=run.tiny):
        config = config_of(cell, tiny=run.tiny)
        if config.encoder.width or is_measured(run, cell):
            continue  # networks that follow the image size have no peers
        with _noted(run, **_named(cell, config)):
            variants = PEERS if cell.factor == 1 and not run.tiny else PEERS[:2]
            _beside(run, cell, config, variants)


def _beside(run: Run, cell: Cell, config: Config, variants: Sequence[str]) -> None:
    """Measure ours and some peers; if one of several fails, once more without the last."""
    seconds = 0.0 if run.tiny else SECONDS
    try:
        _, rounds = compare.measure(
            config, config.batch_size, ("ours", *variants), ROUNDS, max(seconds, 1e-9), run.torch_python
        )
    except WorkerError as error:
        run.results.add(**_named(cell, config), error=str(error)[:300])
        if len(variants) > 1:
            _beside(run, cell, config, variants[:-1])
        return
    ours = sorted(1e3 * r["ours"].wall / r["ours"].steps for r in rounds)
    over = {
        name: [r[name].wall / r[name].steps / (r["ours"].wall / r["ours"].steps) for r in rounds]
        for name in variants
    }
    run.results.add(**_named(cell, config), ms=ours[len(ours) // 2], over=over)


def kernels(run: Run) -> None:
    """Trace the steps at the paper's batch, and sum their kernels by layer and kind."""
    for cell in cells(tiny=run.tiny, factors=(1,)):
        config = config_of(cell, tiny=run.tiny)
        if is_measured(run, cell):
            continue
        with _noted(run, **_named(cell, config)):
            jax.clear_caches()  # of the programs before, which have the same names
            trainer = Ours(config, config.batch_size)
            trainer.compile()
            trainer.start()
            found = profile.measure(partial(trainer.run, trainer.unit), trainer.unit)
            values = {**found._asdict(), "rows": [list(row) for row in found.rows]}
            trainer.stop()
            run.results.add(**_named(cell, config), **values, ms=found.wall_ms)
            del trainer


class Layer(NamedTuple):
    """A convolution of an experiment's networks, at its batch."""

    transpose: bool
    kernel: tuple[int, int, int, int]  # [k, k, C, F]
    stride: int
    padding: int
    x: tuple[int, int, int, int]  # [B, H, W, C]
    y: tuple[int, int, int, int]
    dtype: str

    @property
    def name(self) -> str:
        """Its name in `convolutions.TABLE`."""
        image, kernel = self.x[1:], self.kernel
        if self.transpose:
            image, kernel = self.y[1:], (*kernel[:2], kernel[3], kernel[2])
        return convolutions.layer_name(
            image, kernel, stride=self.stride, padding=self.padding, dtype=self.dtype
        )


def layers_of(config: Config) -> list[Layer]:
    """Return the convolutions of a config's networks in training, other than 1x1 ones of 1x1 images.

    Of equal ones it is that with the largest batch: D judges both kinds of pairs at once.
    """
    found: dict[str, Layer] = {}
    config = config.copy_and_resolve_references()
    config.lowering = "native"
    step = step_of(config)

    def note(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        module = context.module
        if isinstance(module, Convolution) and context.method_name == "__call__":
            layer = _layer_of(module, args[0].shape)
            if layer is not None and found.get(layer.name, layer).x[0] <= layer.x[0]:
                found[layer.name] = layer
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(step.function, step.state, step.batch)
    return list(found.values())


def _layer_of(module: Convolution, shape: tuple[int, int, int, int]) -> Layer | None:
    """Return the convolution that a module makes of an input; None if it is a matrix product."""
    size, stride, padding = module.kernel, module.stride, module.padding
    if not isinstance(size, int) or max(size, *shape[1:3]) == 1:
        return None
    batch, *sides, channels = shape
    if module.transpose:
        outputs = [stride * (n - 1) + size - 2 * padding for n in sides]
    else:
        sides = [n + odd for n, odd in zip(sides, module.odd, strict=True)]
        outputs = [(n + 2 * padding - size) // stride + 1 for n in sides]
    return Layer(
        module.transpose,
        (size, size, channels, module.maps),
        stride,
        padding,
        (batch, sides[0], sides[1], channels),
        (batch, outputs[0], outputs[1], module.maps),
        jnp.dtype(module.dtype).name,
    )


def layers(run: Run) -> None:
    """Time each convolution, with both of its gradients, in every form; write the table of forms."""
    times = {row["layer"]: row["ms"] for row in run.results.measured(MEASURED)}
    for cell in cells(tiny=run.tiny, factors=(1,)):
        config = config_of(cell, tiny=run.tiny)
        with _noted(run, **_named(cell, config)):
            fresh = [layer for layer in layers_of(config) if layer.name not in times]
            for layer, ms in _layer_times(run, fresh).items():
                times[layer.name] = ms
                run.results.add(layer=layer.name, batch=layer.x[0], ms=ms, form=" ".join(chosen(ms)) or "gpu")
            about = {"date": datetime.date.today().isoformat(), **device()}
            write_table(run.out / convolutions.TABLE.name, times, about)


def chosen(ms: dict[str, float]) -> list[str]:
    """Return the further forms that make a layer faster, from its times by form."""
    return [f for f in convolutions.FORMS if ms.get(f"gpu+{f}", math.inf) < MARGIN * ms.get("gpu", math.inf)]


def write_table(path: Path, times: dict[str, dict[str, float]], about: dict[str, Any]) -> None:
    """Write the table of forms by layer, as `convolutions.TABLE`, with what it was measured on."""
    table = {**about, "layers": {name: chosen(ms) for name, ms in times.items()}, "ms": times}
    partial_path = path.with_suffix(".part")
    partial_path.write_text(json.dumps(table, indent=1) + "\n")
    partial_path.replace(path)


def _layer_times(run: Run, fresh: Sequence[Layer]) -> dict[Layer, dict[str, float]]:
    """Return the milliseconds on the device of each layer by form, from one trace of all of them.

    A further form that makes the same program as "gpu" is left out.
    """
    programs: dict[str, tuple[Layer, str, Any, tuple]] = {}  # by the name of the module
    jobs: list[tuple[Layer, str, Any, tuple]] = []
    for layer in fresh:
        texts = set()
        for form in FORMS:
            lowered, operands = _lowered_layer(len(jobs), layer, form)
            text = lowered.as_text().replace(f"layer_{len(jobs)}", "")
            if text not in texts or form not in FURTHER:
                jobs.append((layer, form, lowered, operands))
            texts.add(text)
    with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)) // 2)) as pool:
        futures = [pool.submit(lowered.compile) for _, _, lowered, _ in jobs]
    for i, ((layer, form, _, operands), future) in enumerate(zip(jobs, futures, strict=True)):
        with _noted(run, layer=layer.name, form=form):
            compiled = future.result()
            jax.block_until_ready(compiled(*operands))
            programs[f"jit_layer_{i}"] = layer, form, compiled, operands

    def all_of_them() -> None:
        for _, _, compiled, operands in programs.values():
            for _ in range(CALLS):
                jax.block_until_ready(compiled(*operands))

    events, _ = profile.trace(all_of_them, run.out / "traces" / "layers")
    sums: dict[str, float] = {}
    for event in events:
        sums[event.module] = sums.get(event.module, 0.0) + event.duration_ns
    found: dict[Layer, dict[str, float]] = {}
    for module, (layer, form, _, _) in programs.items():
        if module in sums:
            found.setdefault(layer, {})[form] = sums[module] / 1e6 / CALLS
    return found


def _lowered_layer(index: int, layer: Layer, form: str) -> tuple[Any, tuple]:
    """Lower a layer with both of its gradients; return that and operands for it."""
    apply = convolutions.conv_transpose if layer.transpose else convolutions.conv
    apply = partial(apply, stride=layer.stride, padding=layer.padding, lowering=form)

    def value_and_gradients(x: jax.Array, w: jax.Array, ct: jax.Array) -> Any:
        y, pull = jax.vjp(apply, x, w)
        return y, pull(ct)

    value_and_gradients.__name__ = f"layer_{index}"
    shapes = (layer.x, layer.kernel, layer.y)
    keys = jax.random.split(jax.random.PRNGKey(0), 3)
    operands = tuple(
        jax.random.normal(key, shape, layer.dtype) for key, shape in zip(keys, shapes, strict=True)
    )
    return jax.jit(value_and_gradients).lower(*operands), operands


def training(run: Run) -> None:
    """Train shortly on each data set that is at hand, and draw pictures."""
    if run.tiny:
        jobs = [("digits", None)]
    elif run.path is None:
        run.results.add(absent="No --path was given, so nothing was trained.")
        return
    else:
        files = [(name, run.path / f"{name}.npz") for name in ("svhn", "cifar10", "celeba")]
        jobs = [(name, file) for name, file in files if file.exists()]
        if not jobs:
            run.results.add(absent=f"{run.path} has no svhn.npz, cifar10.npz or celeba.npz.")
    for i, (name, file) in enumerate(jobs):
        with _noted(run, experiment=name):
            _train(run, name, file, run.seconds / len(jobs) * (0.8 if i else 0.7))


def _train(run: Run, name: str, file: Path | None, seconds: float) -> None:
    """Train an experiment for some seconds; a signal then makes it save its state."""
    workdir = run.out / "runs" / name
    config = ["--config", str(ROOT / "experiments" / f"{name}.py")]
    if file is not None:
        config += [f"--config.dataset.path={file}", "--config.dataset.train_split=train"]
        config += ["--config.dataset.test_split=test"]
    if run.tiny:
        config += ["--config.num_steps=4", "--config.steps_per_call=2", "--config.batch_size=4"]
        config += ["--config.report=False", "--config.evaluators=()"]
        config += [f"--config.{role}.layers=(8,)" for role in ("encoder", "decoder")]
        config += ["--config.discriminator.x_layers=(8,)"]
    main = [sys.executable, "-m", "ali_jax.main", "--workdir", str(workdir)]
    began = time.monotonic()
    child = subprocess.Popen([*main, *config], cwd=ROOT)
    try:
        child.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGINT)
        child.wait()
    spent = time.monotonic() - began
    sittings = json.loads((workdir / "sittings.json").read_text())
    run.results.add(experiment=name, steps=sittings[-1]["to_step"], seconds=spent, workdir=str(workdir))
    for mode in ("sample", "reconstruct"):
        picture = workdir / f"{mode}.png"
        subprocess.run([*main, "--mode", mode, "--out", str(picture)], cwd=ROOT, check=True)
        run.results.add(experiment=name, picture=str(picture.relative_to(run.out)))


def semi(run: Run) -> None:
    """Train on CIFAR-10 with 4,000 labels for the time that there is, and test once, at the end."""
    began, file = time.monotonic(), None if run.path is None else run.path / "cifar10.npz"
    if not run.tiny and (file is None or not file.exists()):
        run.results.add(absent="No --path with a cifar10.npz was given, so nothing was trained.")
        return
    if run.results.measured("label_error"):
        return
    config = gpu_semi.config_for(file, shrink if run.tiny else None)
    first, rates = gpu_semi.steps_per_second(config)
    run.results.add(experiment="cifar10_semi", steps_per_second=rates, compile_seconds=first)
    print(f"cifar10_semi: {sorted(rates)[len(rates) // 2]:.3g} steps per second", flush=True)
    left = began + run.seconds - time.monotonic()
    seconds = 0.0 if run.tiny else gpu_semi.SHARE * (left - first)
    config.num_steps = gpu_semi.steps_in(seconds, rates, config.steps_per_call)
    workdir = run.out / "runs" / f"cifar10_semi_{config.num_steps}"
    found = gpu_semi.train(config, workdir, 0.95 * left)
    what = {"experiment": "cifar10_semi", "steps": gpu_semi.taken(workdir), "workdir": str(workdir)}
    if found is None:
        run.results.add(**what, unfinished=config.num_steps)
        return
    numbers = {"label_error": found["label_error"], "test_images": int(found["n_test_labelled"])}
    run.results.add(**what, **numbers, lossy=gpu_semi.lossy_images(file), tiny=run.tiny)


def device() -> dict[str, Any]:
    """Return the device and the versions of the packages that decide the speed."""
    names = (
        "jax",
        "jaxlib",
        "jax-cuda12-plugin",
        "jax-cuda13-plugin",
        "nvidia-cudnn-cu12",
        "nvidia-cudnn-cu13",
    )
    versions = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {"device": jax.devices()[0].device_kind, **versions}


PARTS: dict[str, Callable[[Run], None]] = {
    "tests": tests,
    "steps": steps,
    "peers": peers,
    "kernels": kernels,
    "layers": layers,
    "training": training,
    "semi": semi,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a part, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_parts", allow_abbrev=False)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--path", type=Path)
    parser.add_argument("--torch-python", default=sys.executable)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args(argv)
    try:
        common, found = device(), jax.devices()[0].platform
    except RuntimeError as error:
        common, found = {}, str(error).splitlines()[0]
    if found != "gpu" and not options.tiny:
        print(f"JAX sees no GPU here ({found}); --tiny tries the command without one.")
        return NO_GPU
    results = Results(options.out, options.part, **common)
    run = Run(results, options.out, options.seconds, options.path, options.torch_python, options.tiny)
    PARTS[options.part](run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
