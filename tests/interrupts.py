"""Interrupt trainings at random moments: no interrupt is swallowed, lost, or shown as a traceback.

    python tests/interrupts.py [--count 40] [--within 15] [--seed 0]

Half of the interrupts arrive as Ctrl-C does under `2>&1 | tee log`: the reader of the output ends first. Each
run must end with the status of SIGINT. If it had logged a step, that step must be saved. The first 0.2 s are
left out: Python itself starts then. The exit status is 0 if nothing is wrong.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from test_main import write_config

PYTHON_STARTS = 0.2  # seconds


def python(*, interrupts: str = "SIG_DFL", hang_ups: str = "SIG_DFL") -> list[str]:
    """Return a command that becomes a Python with these actions of SIGINT and SIGHUP, whatever ours are.

    A shell makes the programs that it starts in the background ignore SIGINT, and children inherit that.
    """
    code = (
        f"import os, signal, sys; signal.signal(signal.SIGINT, signal.{interrupts}); "
        f"signal.signal(signal.SIGHUP, signal.{hang_ups}); "
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    return [sys.executable, "-c", code]


def problems(seconds: float, *, under_pipe: bool, folder: Path) -> tuple[list[str], bool]:
    """Interrupt one training after some seconds; return what is wrong, and whether it had logged a step."""
    run = folder / "run"
    file = write_config(folder, num_steps=10_000_000)
    process = subprocess.Popen(
        [*python(), "-m", "ali_jax.main", "--config", file, "--workdir", str(run)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    time.sleep(seconds)
    output = ""
    if under_pipe:
        process.stdout.close()
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
    else:
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    wrong = []
    if process.returncode not in (-signal.SIGINT, 128 + signal.SIGINT):
        wrong.append(f"status {process.returncode} after {seconds:.2f} s")
    if "Traceback" in output:
        wrong.append(f"a traceback after {seconds:.2f} s")
    metrics = run / "metrics.jsonl"
    rows = metrics.read_text().splitlines() if metrics.exists() else []
    if rows:
        saved = [int(path.name) for path in (run / "checkpoints").glob("[0-9]*") if path.name.isdigit()]
        if max(saved, default=-1) < json.loads(rows[-1])["step"]:
            wrong.append(f"a step that was logged is lost after {seconds:.2f} s")
    return wrong, bool(rows)


def main() -> int:
    """Print what was wrong and return the exit status."""
    parser = argparse.ArgumentParser(description="Interrupt trainings at random moments.", allow_abbrev=False)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--within", type=float, default=15.0, help="seconds after the start")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator, wrong, trained = random.Random(options.seed), [], 0
    for i in range(options.count):
        with tempfile.TemporaryDirectory() as folder:
            seconds = generator.uniform(PYTHON_STARTS, options.within)
            more, logged = problems(seconds, under_pipe=i % 2 == 1, folder=Path(folder))
        wrong, trained = wrong + more, trained + logged
    trouble = "; ".join(wrong) or "nothing wrong"
    print(f"{options.count} interrupts, {trained} of them during training: {trouble}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
