"""Run each measured variant in its own process; requests and replies are lines of JSON.

    {"prepare": [TASK, ...]}  compile what can be compiled in advance  -> {"errors": [null or text, ...]}
    {"start": i}              make the i-th task's state, warm up      -> {"device", "parameters", "unit"}
    {"run": [i, steps]}       train `steps` steps, wait for the result -> {"wall", "cpu", "loss"}

A task is {"variant", "config" (nested dict), "batch_size"}. The child needs neither JAX nor ali_jax for the
torch variants, and no torch for the JAX variants. `cpu` is user and system time of all threads of the
process.
"""

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TextIO

ROOT = Path(__file__).resolve().parent.parent

# Variant -> the module whose `make(task)` knows it.
MODULES = {
    "ours": "benchmarks.jax_variants",
    "flax_textbook": "benchmarks.jax_variants",
    "torch_textbook": "benchmarks.torch_peers",
    "torch_best": "benchmarks.torch_peers",
    "torch_compiled": "benchmarks.torch_peers",
}


class Trainer(Protocol):
    """One variant's training of a config; the modules in `MODULES` make it."""

    unit: int  # `run` takes multiples of this many steps

    def compile(self) -> None:
        """Compile in advance what needs no state; called in a thread, concurrently with other trainers."""
        ...

    def start(self) -> dict[str, Any]:
        """Make the state, take the first steps, and describe device and networks."""
        ...

    def run(self, steps: int) -> float:
        """Train for `steps` steps, wait until they are done, and return D's last loss."""
        ...

    def stop(self) -> None:
        """Release the state."""
        ...


class WorkerError(RuntimeError):
    """A worker's request failed; the message is the worker's error."""


class Worker:
    """A child process that measures, seen from the parent."""

    def __init__(self, python: str = sys.executable) -> None:
        """Start the child under a Python interpreter.

        All variants get huge pages, as `python -m ali_jax.main` has them for convolutions on a CPU. torch
        gets our number of threads and no spin-waits.
        """
        environment = {
            "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
            "OMP_WAIT_POLICY": "PASSIVE",
            "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # several workers share a GPU
            **os.environ,
        }
        self._child = subprocess.Popen(
            [python, "-m", "benchmarks.worker"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._requests: Any = self._child.stdin
        self._replies: Any = self._child.stdout

    def prepare(self, tasks: Sequence[Mapping[str, Any]]) -> list[str | None]:
        """Send the tasks and compile them; return the error of each, or None."""
        return self._ask({"prepare": list(tasks)})["errors"]

    def start(self, index: int = 0) -> dict[str, Any]:
        """Make a task ready to run; it replaces the previous one."""
        return self._ask({"start": index})

    def run(self, steps: int, index: int = 0) -> dict[str, float]:
        """Train for `steps` steps and return wall and CPU seconds."""
        return self._ask({"run": [index, steps]})

    def kill(self) -> None:
        """Kill the child; a pending request raises WorkerError."""
        self._child.kill()

    def close(self) -> None:
        """End the child and wait for it."""
        self._requests.close()
        self._child.wait()
        self._replies.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            self._requests.write(json.dumps(request) + "\n")
            self._requests.flush()
        except BrokenPipeError:
            raise WorkerError("the process has ended") from None
        line = self._replies.readline()
        if not line:
            raise WorkerError(f"the process ended with status {self._child.wait()}")
        reply = json.loads(line)
        if "error" in reply:
            raise WorkerError(reply["error"])
        return reply


def serve(requests: Iterable[str], replies: TextIO) -> None:
    """Answer requests until they end; an error becomes a reply."""
    trainers: list[Trainer] = []
    for line in requests:
        try:
            reply = _answer(json.loads(line), trainers)
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {str(error).strip()[:500]}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def _answer(request: Mapping[str, Any], trainers: list[Trainer]) -> dict[str, Any]:
    if "prepare" in request:
        trainers[:] = [_make(task) for task in request["prepare"]]
        return {"errors": _compile(trainers)}
    if "start" in request:
        for trainer in trainers:
            trainer.stop()
        trainer = trainers[request["start"]]
        return {**trainer.start(), "unit": trainer.unit}
    index, steps = request["run"]
    wall, cpu = time.perf_counter(), time.process_time()
    loss = trainers[index].run(steps)
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "loss": loss}


def _make(task: Mapping[str, Any]) -> Trainer:
    return importlib.import_module(MODULES[task["variant"]]).make(task)


def _compile(trainers: Sequence[Trainer]) -> list[str | None]:
    with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)) // 2)) as pool:
        futures = [pool.submit(trainer.compile) for trainer in trainers]
        errors = [future.exception() for future in futures]
    return [None if error is None else f"{type(error).__name__}: {str(error)[:500]}" for error in errors]


if __name__ == "__main__":
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keep output of libraries out of the replies
    serve(sys.stdin, channel)
