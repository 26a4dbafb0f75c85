"""Kill runs at random moments, many times, and show that nothing is lost.

    python tests/faults.py [--kills 20] [--feed device] [--processes 2] [--seed 0]

A run is started and killed with SIGKILL --kills times; then it may finish. Its final state and every row of
its metrics must equal, bit for bit, those of a run that was not interrupted. Saves are slowed down, so that
many kills happen during one. A table shows the results; the exit status is 0 if nothing was lost. 20 kills
take two minutes of one core per feed.

Then several processes on this machine train one run, as on a pod. They must agree with a single process, end
when one of them is killed, resume when all are started again, and stop together when one gets SIGTERM.
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "ali_jax_test_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax
import numpy as np
import orbax.checkpoint as ocp
import quick
from test_loop import tiny

from ali_jax import config as configs
from ali_jax.program import loop
from ali_jax.records import checkpoint, workdir

FEEDS = ("device", "host", "population")  # population: three members, on the device
SAVES = 3  # the most saves between two kills
SLOW = 0.1  # seconds by which a save is slowed down


class Tally(NamedTuple):
    """The kills of one feed, and what they lost."""

    feed: str
    kills: int
    while_starting: int
    while_saving: int
    lost: list[str]


def config(feed: str, kills: int) -> Any:
    """Return a config with all kinds of state: Adam's moments, averages, dequantisation, an annealed penalty.

    The run is too long to end before that many kills.
    """
    return tiny(
        num_steps=10 * (SAVES * kills + 1),
        steps_per_call=5,
        log_every=5,
        checkpoint_every=10,
        evaluate_every=5 * SAVES * kills,
        evaluators=("reconstruction_error",),
        penalties__r1__gamma=1.0,
        penalties__r1__gamma_final=0.1,
        optimizer__constant_fraction=0.5,
        dataset__dequantize=1 / 66,
        dataset__feed="device" if feed == "population" else feed,
        population__seeds=3 if feed == "population" else 0,
    )


def start(config: Any, folder: Path, *, slow: bool = False) -> tuple[int, int]:
    """Run in a child process; return its id, and a pipe that receives a byte when a save begins."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    status = 70
    with contextlib.suppress(BaseException), (folder.parent / "log").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        _hook(writing, slow)
        status = loop.run(config, folder)
    os._exit(status)


def _hook(pipe: int, slow: bool) -> None:
    save, seal = checkpoint.save, checkpoint._seal

    def noted(manager: Any, state: Any, progress: Any) -> None:
        os.write(pipe, b".")
        save(manager, state, progress)

    def slowly(directory: Path) -> None:
        time.sleep(SLOW / 2)
        seal(directory)
        time.sleep(SLOW / 2)

    checkpoint.save = noted
    if slow:
        checkpoint._seal = slowly


def finish(child: int) -> int:
    """Wait for a child and return its exit status; a signal is negative."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def contents(folder: Path) -> dict[str, Any]:
    """Return what must be equal: the rows, the final metrics, and the bytes of every leaf of the state."""
    step = workdir.checkpoint_steps(folder)[-1]
    with ocp.StandardCheckpointer() as reader:
        state = reader.restore(folder / "checkpoints" / str(step) / "state")
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
    return {
        "rows": [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()],
        "metrics": json.loads((folder / "summary.json").read_text())["metrics"],
        **{name: (leaf.dtype, leaf.shape, np.asarray(leaf).tobytes()) for name, leaf in leaves.items()},
    }


def differing(found: Path, wanted: Path) -> list[str]:
    """Return the names of the contents that differ between two runs."""
    a, b = contents(found), contents(wanted)
    return [f"{name} differs" for name in {**a, **b} if a.get(name) != b.get(name)]


def in_child(function: Callable[[], list[str]]) -> list[str]:
    """Call a function in a child process: once JAX starts in this process, it cannot fork runs any more."""
    with tempfile.NamedTemporaryFile("r+") as file:
        child = os.fork()
        if not child:
            try:
                Path(file.name).write_text(json.dumps(function()))
            finally:
                os._exit(0)
        finish(child)
        return json.loads(file.read() or '["the comparison failed"]')


def leftovers(folder: Path) -> list[str]:
    """Return the names of half-written files and checkpoints."""
    names = [path.name for path in folder.rglob("*")]
    return [name for name in names if name.endswith(".part") or "-tmp" in name]


def kill_again_and_again(feed: str, kills: int, draw: random.Random, root: Path) -> Tally:
    """Kill a run `kills` times, let it finish, and compare it with an uninterrupted run."""
    whole, folder, lost = root / "whole" / "run", root / "killed" / "run", []
    for path in (whole, folder):
        path.parent.mkdir()
    run = config(feed, kills)
    if finish(start(run, whole)[0]) != 0:
        return Tally(feed, 0, 0, 0, ["the uninterrupted run failed: " + _log(whole)])
    done = while_starting = while_saving = 0
    while done < kills:
        child, pipe = start(run, folder, slow=True)
        early = draw.random() < 0.2
        if early:
            time.sleep(draw.uniform(0, 3.0))
        else:
            for _ in range(draw.randint(1, SAVES)):
                os.read(pipe, 1)
            time.sleep(draw.uniform(0, 2 * SLOW))
        os.kill(child, signal.SIGKILL)
        status = finish(child)
        os.close(pipe)
        if status != -signal.SIGKILL:
            lost.append(f"after {done} kills the run ended with {status}: {_log(folder)}")
            break
        done, while_starting = done + 1, while_starting + early
        while_saving += any("-tmp" in name for name in leftovers(folder))
        steps = workdir.checkpoint_steps(folder)
        if steps and (what := checkpoint.damage(folder / "checkpoints" / str(steps[-1]))):
            lost.append(f"kill {done}: checkpoint {steps[-1]}: {what}")
    if finish(start(run, folder)[0]) != 0:
        return Tally(feed, done, while_starting, while_saving, [*lost, "it did not finish: " + _log(folder)])
    lost += in_child(lambda: differing(folder, whole))
    lost += [f"{name} was left" for name in leftovers(folder)]
    return Tally(feed, done, while_starting, while_saving, lost)


def together(processes: int, folder: Path, **changes: Any) -> list[subprocess.Popen]:
    """Start processes that train one run, each with its own device and its own rows of every batch."""
    changed = configs.differences(configs.base(), hosts_config(**changes))
    values = {key: new for key, (_, new) in changed.items()}
    file = folder.with_suffix(".py")
    file.write_text(
        "from ali_jax import config\n\n\ndef get_config():\n    c = config.base()\n"
        f"    c.update_from_flattened_dict({values!r})\n    return c\n"
    )
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "ali_jax.main", "--config", str(file), "--workdir", str(folder)]
    command += ["--coordinator_address", address, "--num_processes", str(processes)]
    return [
        subprocess.Popen(
            [*command, "--process_id", str(i)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "XLA_FLAGS": quick.XLA_FLAGS},
            cwd=Path(__file__).parent.parent,
        )
        for i in range(processes)
    ]


def hosts_config(**changes: Any) -> Any:
    """Return a config whose batch two or four processes can share, with the paper's Adam."""
    values = {
        "batch_size": 12,
        "num_steps": 40,
        "evaluators": ("reconstruction_error",),
        "dataset__feed": "host",
        "optimizer__generator__learning_rate": 1e-4,
        "optimizer__discriminator__learning_rate": 1e-4,
        "optimizer__generator__b1": 0.5,
        "optimizer__discriminator__b1": 0.5,
    }
    return tiny(**{**values, **changes})


def ended(processes: list[subprocess.Popen], seconds: float = 300) -> list[tuple[int, str]]:
    """Wait for all processes; return the exit status and the stderr of each."""
    found = [process.communicate(timeout=seconds)[1] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, found, strict=True)]


def disagreement(processes: int, root: Path) -> list[str]:
    """Train with several processes; return the differences from a single process."""
    found = ended(together(processes, root / "several"))
    if any(status for status, _ in found):
        return [f"process {i} ended with {s}: {text[-500:]}" for i, (s, text) in enumerate(found)]
    alone = in_child(lambda: [str(loop.run(hosts_config(), root / "alone"))])
    wrong = [] if alone == ["0"] else [f"the single process ended with {alone}"]
    rows = [
        [json.loads(line) for line in (root / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("several", "alone")
    ]
    for a, b in itertools.zip_longest(*rows, fillvalue={}):
        if a.keys() != b.keys() or any(abs(a[k] - b[k]) > 1e-5 * max(1, abs(b[k])) for k in a):
            wrong.append(f"row {a} is not {b}")
    events = list((root / "several").glob("events*"))
    return [*wrong, *([f"{len(events)} processes wrote events"] if len(events) != 1 else [])]


def losing_one(processes: int, root: Path) -> tuple[list[str], float]:
    """Kill one process, restart all, send SIGTERM to one; return failures, and how soon the others ended."""
    folder, wrong = root / "lost", []
    running = together(processes, folder, num_steps=10**6, log_every=10**6)
    _wait_for_checkpoint(folder, 10)
    running[-1].kill()
    began = time.monotonic()
    found = ended(running)
    seconds = time.monotonic() - began
    for i, (status, text) in enumerate(found[:-1]):
        # At the barrier of a save, JAX's own service may notice first and abort the process.
        if status != -signal.SIGABRT and (status == 0 or "lost another process of the run" not in text):
            wrong.append(f"process {i} ended with {status}: {text[-500:]}")
    last = workdir.checkpoint_steps(folder)[-1]
    running = together(processes, folder, num_steps=10**6, log_every=10**6)
    _wait_for_checkpoint(folder, last + 10)
    running[-1].terminate()
    found = ended(running)
    if f"Resuming from step {last}." not in found[0][1]:
        wrong.append(f"it did not resume from step {last}: {found[0][1][-500:]}")
    step = workdir.checkpoint_steps(folder)[-1]
    if {status for status, _ in found} != {143} or f"Step {step} is saved" not in found[0][1]:
        wrong.append(f"SIGTERM: {found}")
    return wrong, seconds


def _wait_for_checkpoint(folder: Path, step: int) -> None:
    while not (steps := workdir.checkpoint_steps(folder)) or steps[-1] < step:
        time.sleep(0.1)


def _log(folder: Path) -> str:
    return (folder.parent / "log").read_text()[-500:]


def main() -> int:
    """Print the table and return the exit status."""
    parser = argparse.ArgumentParser(description="Kill runs at random moments.", allow_abbrev=False)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--feed", choices=FEEDS, action="append")
    parser.add_argument("--processes", type=int, action="append", help="number that train together; 0: skip")
    parser.add_argument("--no-losses", action="store_true", help="do not kill one of several processes")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    failed = False
    print("| feed | kills | while starting | with a save under way | lost | seconds |")
    print("|---|---:|---:|---:|---|---:|", flush=True)
    for feed in options.feed or FEEDS if options.kills else ():
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as root:
            tally = kill_again_and_again(feed, options.kills, random.Random(options.seed), Path(root))
        row = (*tally[:4], "; ".join(tally.lost) or "nothing", f"{time.monotonic() - began:.0f}")
        print(f"| {' | '.join(map(str, row))} |", flush=True)
        failed = failed or bool(tally.lost)
    print("\n| processes | one is killed: the others end after | wrong |\n|---:|---:|---|", flush=True)
    for processes in options.processes or (2, 4):
        if not processes:
            continue
        wrong, seconds = [], math.nan
        with tempfile.TemporaryDirectory() as root:
            if not options.no_losses:
                wrong, seconds = losing_one(processes, Path(root))
            wrong += disagreement(processes, Path(root))
        after = "none was" if options.no_losses else f"{seconds:.1f} s"
        print(f"| {processes} | {after} | {'; '.join(wrong) or 'nothing'} |", flush=True)
        failed = failed or bool(wrong)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
