"""No run is lost when its terminal goes away, and no interrupt is swallowed or shown as a traceback."""

import errno
import json
import os
import signal
import subprocess
import time

import pytest
from interrupts import python
from test_main import write_config

from ali_jax.program import terminal


def start(folder, *, num_steps=1_000_000, **actions):
    """Start a training whose stdout and stderr are one pipe, as under `2>&1 | tee log`."""
    file = write_config(folder, num_steps=num_steps)
    command = [*python(**actions), "-m", "ali_jax.main", "--config", file, "--workdir", str(folder / "run")]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_for_steps(process, run):
    """Wait until the run has logged a step."""
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
        assert process.poll() is None, process.stdout and process.stdout.read()
        time.sleep(0.05)


def last_checkpoint(run):
    return max(int(path.name) for path in (run / "checkpoints").glob("[0-9]*"))


def test_a_run_whose_reader_has_gone_trains_to_its_end(tmp_path):
    process = start(tmp_path, num_steps=20)
    process.stdout.readline()
    process.stdout.close()  # as `| head -1` does
    assert process.wait(timeout=120) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["step"] == 20


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_under_a_closed_pipe_saves_the_last_step(number, tmp_path):
    process = start(tmp_path)
    wait_for_steps(process, tmp_path / "run")
    process.stdout.close()  # Ctrl-C ends `tee` first
    process.send_signal(number)
    assert process.wait(timeout=60) == 128 + number
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert last_checkpoint(tmp_path / "run") == last


def test_nohup_is_respected(tmp_path):
    process = start(tmp_path, hang_ups="SIG_IGN")
    wait_for_steps(process, tmp_path / "run")
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM


@pytest.mark.parametrize("seconds", [0.3, 0.8, 1.6, 3.0])
def test_an_interrupt_at_the_start_ends_the_program_without_a_traceback(seconds, tmp_path):
    process = start(tmp_path)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGINT, 130)  # a shell shows 130 for both
    assert "Traceback" not in output
    assert "Error" not in output


class Broken:
    """A stream whose writes fail."""

    def __init__(self, number, descriptor):
        self.number, self.descriptor = number, descriptor

    def write(self, text):
        raise OSError(self.number, "broken")

    flush = write

    def fileno(self):
        return self.descriptor


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO])
def test_output_to_what_is_gone_vanishes(number, tmp_path):
    with (tmp_path / "file").open("w") as file:
        assert terminal.Unbreakable(Broken(number, file.fileno())).write("text") == 4
        os.write(file.fileno(), b"goes nowhere")
    assert (tmp_path / "file").read_text() == ""


def test_a_full_disk_is_an_error_still(tmp_path):
    with (tmp_path / "file").open("w") as file, pytest.raises(OSError, match="broken"):
        terminal.Unbreakable(Broken(errno.ENOSPC, file.fileno())).write("text")


def test_a_second_signal_has_its_default_action():
    with terminal.signals_noted() as received:
        os.kill(os.getpid(), signal.SIGHUP)
        assert received == [signal.SIGHUP]
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("number", terminal.STOP_SIGNALS)
def test_a_signal_that_is_ignored_stays_ignored(number):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with terminal.signals_noted() as received:
            os.kill(os.getpid(), number)
            assert received == []
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)
