"""Nothing is lost by kills, damaged checkpoints, full or read-only disks, vanished data or a second run."""

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import quick
from PIL import Image
from small import ROOT
from test_checkpoint import abstract, assert_same_bits, make_state, saved
from test_loop import rows, tiny
from test_main import write_config

from ali_jax.data import files
from ali_jax.main import main
from ali_jax.program import loop
from ali_jax.records import checkpoint, workdir, writers


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def largest(folder: Path) -> Path:
    """Return the largest file of a checkpoint's state."""
    return max((p for p in (folder / "state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def script(name: str, *arguments: str) -> None:
    """Run a script of this folder with these arguments; it must find nothing wrong."""
    command = [sys.executable, str(ROOT / "tests" / name), *arguments]
    environment = {**os.environ, "XLA_FLAGS": quick.XLA_FLAGS}
    found = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=600)
    assert found.returncode == 0, found.stdout + found.stderr


def test_a_run_that_is_killed_at_a_random_moment_loses_nothing():
    script("faults.py", "--kills", "1", "--feed", "host", "--processes", "0")


def test_two_processes_train_what_one_trains_and_only_the_first_writes():
    script("faults.py", "--kills", "0", "--processes", "2", "--no-losses")


def test_random_mistakes_get_a_message():
    script("fuzz.py", "--cases", "25", "--seed", "1")


def test_every_file_of_a_checkpoint_is_guarded(tmp_path):
    saved(tmp_path)
    assert checkpoint.damage(tmp_path / "3") == ""
    guarded = json.loads((tmp_path / "3" / checkpoint.CHECKSUMS).read_text())
    files = [path for path in (tmp_path / "3").rglob("*") if path.is_file()]
    assert len(guarded) == len(files) - 3  # without the checksums themselves and two notes of orbax
    assert all((tmp_path / "3" / name).is_file() for name in guarded)


def test_damage_is_named_and_the_newest_sound_checkpoint_is_used(tmp_path):
    copies = saved(tmp_path / "sound")
    newest = tmp_path / "run" / "3"
    damages = {
        "was changed": lambda: flip_a_bit(largest(newest)),
        "bytes, not": lambda: largest(newest).write_bytes(largest(newest).read_bytes()[:-1]),
        "is missing": lambda: largest(newest).unlink(),
        "checksums.json: part of it was deleted": lambda: (newest / checkpoint.CHECKSUMS).unlink(),
        "checksums.json is damaged": lambda: (newest / checkpoint.CHECKSUMS).write_text("[1]"),
    }
    for message, damage in damages.items():
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(tmp_path / "sound", tmp_path / "run")
        damage()
        manager = checkpoint.open_manager(tmp_path / "run")
        state, _, failures = checkpoint.restore(manager, abstract(make_state()))
        assert list(failures) == [3]
        assert message in failures[3]
        assert_same_bits(state, copies[1])


def test_what_is_left_of_an_unfinished_save_is_deleted_and_never_restored(tmp_path):
    saved(tmp_path)
    shutil.copytree(tmp_path / "3", tmp_path / "9.orbax-checkpoint-tmp")
    assert checkpoint.restore(checkpoint.open_manager(tmp_path), abstract(make_state()))[0].step == 3
    manager = checkpoint.open_manager(tmp_path, create=True)
    checkpoint.save(manager, make_state()._replace(step=np.int32(4)), {})
    checkpoint.wait(manager)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["4"]


def test_rows_are_on_disk_before_the_checkpoint_of_their_step(tmp_path, monkeypatch):
    at_sync, at_commit = [], []
    fsync, seal = os.fsync, checkpoint._seal

    def noted(descriptor):
        fsync(descriptor)
        if os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")) == "metrics.jsonl":
            at_sync.append(len(rows(tmp_path)))

    def noted_seal(directory):
        at_commit.append(list(at_sync))
        seal(directory)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(checkpoint, "_seal", noted_seal)
    assert loop.run(tiny(num_steps=20, evaluate_every=0, evaluators=()), tmp_path) == 0
    assert 1 in at_commit[0]
    assert 2 in at_commit[1]


def test_a_disk_that_fills_up_leaves_the_last_good_checkpoint_and_a_clear_message(tmp_path, monkeypatch):
    config = tiny(evaluate_every=0, evaluators=())
    seal, scalars = checkpoint._seal, writers.Records.scalars

    def full(directory):
        if any(path.name.startswith("20.") for path in directory.iterdir()):
            raise OSError(errno.ENOSPC, "No space left on device")
        seal(directory)

    def full_at_30(self, step, values, **more):
        if step == 30:
            raise OSError(errno.ENOSPC, "No space left on device")
        scalars(self, step, values, **more)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_seal", full)
        with pytest.raises(checkpoint.CheckpointError, match=r"No space left on device\. .* step 10, stays"):
            loop.run(config, tmp_path)
    assert workdir.checkpoint_steps(tmp_path) == [10]
    with monkeypatch.context() as patch:
        patch.setattr(writers.Records, "scalars", full_at_30)
        with pytest.raises(workdir.RunError, match=r"No space left on device\. Checkpoints stay"):
            loop.run(config, tmp_path)
    assert workdir.checkpoint_steps(tmp_path) == [10, 20]
    assert loop.run(config, tmp_path) == 0
    assert [row["step"] for row in rows(tmp_path)] == [10, 20, 30, 30]  # the last is the evaluation


def test_an_image_that_disappears_while_it_streams_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "pictures").mkdir()
    for i in range(40):
        Image.new("L", (8, 8), 6 * i).save(tmp_path / "pictures" / f"{i}.png")
    monkeypatch.setattr(files, "EAGER_BYTES", 0)
    begin = writers.Terminal.start

    def vanish(self, step):
        begin(self, step)
        shutil.rmtree(tmp_path / "pictures")

    monkeypatch.setattr(writers.Terminal, "start", vanish)
    file = write_config(tmp_path, dataset__feed="host", dataset__shape=(), evaluate_every=0, evaluators=())
    run = tmp_path / "run"
    arguments = ["--config", file, "--workdir", str(run), f"--config.dataset.path={tmp_path / 'pictures'}"]
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("ali_jax: ")
    assert ".png: not a readable image" in err.splitlines()[-1]


def test_sigterm_with_a_save_under_way_keeps_both(tmp_path, monkeypatch):
    seal = checkpoint._seal

    def slowly(directory):
        if any(path.name.startswith("10.") for path in directory.iterdir()):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)
        seal(directory)

    monkeypatch.setattr(checkpoint, "_seal", slowly)
    assert loop.run(tiny(num_steps=2000, evaluate_every=0, evaluators=()), tmp_path) == 143
    steps = workdir.checkpoint_steps(tmp_path)
    assert steps[0] == 10
    assert len(steps) == 2
    assert all(checkpoint.damage(tmp_path / "checkpoints" / str(step)) == "" for step in steps)
    assert rows(tmp_path)[-1]["step"] == steps[-1]


def test_of_two_processes_that_begin_in_one_folder_the_second_refuses(tmp_path, monkeypatch):
    """Both see no folder; the other one makes it and trains while this one prepares."""
    prepare = loop.prepare

    def meanwhile(config, **options):
        game = prepare(config, **options)
        (tmp_path / "run").mkdir()
        other.enter_context(workdir.locked(tmp_path / "run"))
        return game

    monkeypatch.setattr(loop, "prepare", meanwhile)
    with (
        contextlib.ExitStack() as other,
        pytest.raises(workdir.RunError, match="Another process is training"),
    ):
        loop.run(tiny(), tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


def test_a_folder_on_a_read_only_disk_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(workdir.RunError, match="cannot be written: choose another --workdir"):
        loop.run(tiny(), tmp_path / "run")


def test_half_written_files_are_cleaned_up(tmp_path):
    (tmp_path / "images").mkdir()
    for folder in (tmp_path, tmp_path / "images"):
        (folder / ".x.123.part").touch()
        (folder / "x").touch()
    workdir.remove_leftovers(tmp_path)
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["images", "x", "x"]
