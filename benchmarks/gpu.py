"""Measure all that there is to measure on a GPU, in one command and in order of worth.

    python -m benchmarks.gpu --out DIR [--budget SECONDS] [--only PART ...] [--path DATA]
    python -m benchmarks.gpu --report DIR

    tests      the tests with the mark `gpu`
    steps      milliseconds per step: by form of the convolutions, experiment, type and batch
    peers      the same work in PyTorch, in turn with ours; P1 is `torch_textbook`, P3 `torch_best`, P3c
               `torch_compiled`
    kernels    the kernels of a step, summed by layer and kind
    layers     each convolution in each form, and from that DIR/forms.json, from which
               `config.lowering = "auto"` can choose (`ali_jax.networks.convolutions.TABLE`)
    training   short trainings on DATA/svhn.npz and the like, with pictures
    semi       only where --only names it: steps per second of `experiments/cifar10_semi.py`, then as many of
               them on DATA/cifar10.npz as there is time for, and the test error beside published ones

Each part is a process of its own, which appends what it measures to DIR/results.jsonl at once. A part that
fails or has no time left is noted there, and the next one starts. So nothing that was measured is lost.
Repeat the command to go on: what DIR has from this device is not measured again. `--tiny` tries all parts
with small networks, on a CPU if need be: its numbers mean nothing.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.gpu_records import NO_GPU, Results, read, report
from benchmarks.worker import ROOT

# Part -> its share of the time. What a part leaves goes to those after it.
PARTS = {
    "tests": 3.0,
    "steps": 4.0,
    "peers": 3.0,
    "kernels": 2.0,
    "layers": 3.0,
    "training": 3.0,
    "semi": 9.0,
}
ON_REQUEST = ("semi",)  # it wants all the time that there is
GRACE = 5.0  # seconds for a part to end itself after SIGTERM


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the tables, and return the exit status: 1 if a part did not end well."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description="Measure a GPU.", allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--report", type=Path, help="only print the results in this folder")
    parser.add_argument("--budget", type=float, default=480.0, help="seconds for everything")
    usual = [name for name in PARTS if name not in ON_REQUEST]
    parser.add_argument("--only", nargs="+", choices=PARTS, default=usual, help="parts to measure")
    parser.add_argument("--path", type=Path, help="folder with .npz data sets to train on")
    parser.add_argument("--torch-python", default=sys.executable, help="a Python with torch")
    parser.add_argument("--tiny", action="store_true", help="a trial with small networks")
    options = parser.parse_args(argv)
    if (options.out is None) == (options.report is None):
        parser.error("give --out, or --report to print what was measured before")
    try:
        if options.report:
            print(report(read(options.report)), end="")
            return 0
        if options.path and not options.path.is_dir():
            raise ValueError(f"--path {options.path}: there is no such folder.")
        options.out.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    ends = []
    with _stopped_by_sigterm():
        for name, seconds in _shares(options.only, time.monotonic() + options.budget):
            try:
                ends.append(run_part(name, seconds, options))
            except NoGpuError as error:
                print(error, file=sys.stderr)
                return 2
    print(report(read(options.out)), end="")
    return 0 if set(ends) == {"done"} else 1


def _shares(names: Sequence[str], deadline: float) -> Iterator[tuple[str, float]]:
    """Yield each part, in order of worth, and the seconds that it may take when it begins."""
    left = [name for name in PARTS if name in names]
    while left:
        share = PARTS[left[0]] / sum(PARTS[name] for name in left)
        yield left.pop(0), share * max(deadline - time.monotonic(), 0.0)


class NoGpuError(RuntimeError):
    """JAX sees no GPU."""


def run_part(name: str, seconds: float, options: argparse.Namespace) -> str:
    """Run a part until it ends or its time is up; note how it ended, and return that.

    Raises:
      NoGpuError: the part found none.
    """
    out = options.out.absolute()
    (out / "logs").mkdir(exist_ok=True)
    log = out / "logs" / f"{name}.log"
    command = [sys.executable, "-m", "benchmarks.gpu_parts", name, "--out", str(out)]
    command += ["--seconds", str(seconds), "--torch-python", options.torch_python]
    command += ["--path", str(options.path.absolute())] if options.path else []
    command += ["--tiny"] if options.tiny else []
    print(f"{name}: at most {seconds:.0f} s, {log}", file=sys.stderr)
    began = time.monotonic()
    with log.open("w") as file:
        child = subprocess.Popen(
            command,
            cwd=ROOT,
            env=_environment(out, tiny=options.tiny),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,  # so that it ends with the processes that it started
        )
        try:
            status = child.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end(child)
    results, lines = Results(out, name), log.read_text(errors="replace").strip().splitlines()
    if status == NO_GPU:
        raise NoGpuError(lines[-1])
    end = "out of time" if status is None else "failed" if status else "done"
    if end == "failed":
        results.add(error=lines[-1][:500] if lines else f"exit status {status}")
    results.add(end=end, seconds=time.monotonic() - began)
    return end


def _environment(out: Path, *, tiny: bool) -> dict[str, str]:
    """Return the environment of a part: the GPU and the CPU, one cache of compiled programs for all parts."""
    environment = {
        "JAX_PLATFORMS": "cpu" if tiny else "cuda,cpu",
        "JAX_COMPILATION_CACHE_DIR": str(out / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_COMPILATION_CACHE_INCLUDE_METADATA_IN_KEY": "1",  # the names of a profile
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # several processes share the GPU
        **os.environ,
    }
    if tiny:
        environment["XLA_FLAGS"] = f"--xla_backend_optimization_level=0 {os.environ.get('XLA_FLAGS', '')}"
    return environment


def _end(child: subprocess.Popen) -> None:
    """End a part and the processes that it started: first with SIGTERM, then for good."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=GRACE)


@contextlib.contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Turn SIGTERM into SystemExit, so that the part that runs is ended, too."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
