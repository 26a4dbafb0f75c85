"""What a run tells its trackers; all its sittings are one run there; their failures end nothing.

Weights & Biases is used as it is, offline: its file is read record by record.
"""

import json
import signal
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_loop import rows, signalling, tiny

from ali_jax import config as configs
from ali_jax.program import loop
from ali_jax.records import trackers

SMALL = {"num_steps": 20, "evaluate_every": 0, "evaluators": ("samples", "reconstruction_error")}


class Told:
    """A tracker that keeps what it is told."""

    def __init__(self, workdir, config):
        self.of, self.scalar_rows, self.pictures, self.ends = (workdir, config), [], [], []

    def scalars(self, step, values):
        self.scalar_rows.append({"step": step, **values})

    def images(self, step, images):
        self.pictures += [(step, name, image.dtype, image.shape[-1]) for name, image in images.items()]

    def close(self, *, failed):
        self.ends.append(failed)


@pytest.fixture
def told(monkeypatch):
    """Put trackers that keep what they are told in the place of Weights & Biases; give them."""
    opened = []

    def kind(workdir, config):
        opened.append(Told(workdir, config))
        return opened[-1]

    monkeypatch.setattr(trackers, "KINDS", {"wandb": kind})
    monkeypatch.setattr(loop, "check_trackers", lambda names: None)
    return opened


def test_a_run_tells_its_trackers_what_its_files_say(tmp_path, told):
    config = tiny(trackers=("wandb",), **SMALL)
    assert loop.run(config, tmp_path) == 0
    (tracker,) = told
    assert tracker.of == (tmp_path, config)
    heard = [{k: v for k, v in row.items() if k != "images_per_second"} for row in tracker.scalar_rows]
    assert heard == rows(tmp_path)
    assert "images_per_second" in tracker.scalar_rows[1]
    assert tracker.pictures == [(20, "samples", np.uint8, 3)]
    assert tracker.ends == [False]


FAILED = "The tracker wandb failed and is left out: No route to host. The training goes on; its numbers "


def fail(*_, **__):
    raise OSError("No route to host.\nMore lines.")


def test_a_tracker_that_fails_ends_no_training(tmp_path, told, monkeypatch, capsys):
    monkeypatch.setattr(Told, "scalars", fail)
    assert loop.run(tiny(trackers=("wandb",), **{**SMALL, "num_steps": 10}), tmp_path) == 0
    assert capsys.readouterr().err.count(FAILED) == 1
    assert [row["step"] for row in rows(tmp_path)] == [10, 10]


@pytest.mark.parametrize(
    ("method", "heard"), [("__init__", []), ("scalars", []), ("images", [1]), ("close", [1, 2])]
)
def test_whatever_fails_is_named_once_and_hears_no_more(tmp_path, told, monkeypatch, method, heard):
    said = []
    monkeypatch.setattr(Told, method, fail)
    told_of = trackers.Trackers(("wandb",), tmp_path, tiny(), said.append)
    records = loop.Records(tmp_path, 0, trackers=told_of)
    for step in (1, 2):
        records.scalars(step, {"a": 0.5})
        records.images(step, {"b": np.zeros((2, 2, 3), np.uint8)})
    records.close()
    told_of.close()
    assert len(said) == 1
    assert said[0].startswith(FAILED)
    assert [row["step"] for tracker in told for row in tracker.scalar_rows] == heard
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]


def test_a_run_that_fails_says_so(tmp_path, told, monkeypatch):
    monkeypatch.setattr(loop, "_evaluate", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loop.run(tiny(trackers=("wandb",), **{**SMALL, "num_steps": 10}), tmp_path)
    assert told[0].ends == [True]


def test_numbers_that_are_not_finite_are_left_out(tmp_path, told):
    told_of = trackers.Trackers(("wandb",), tmp_path, tiny(), print)
    records = loop.Records(tmp_path, 0, trackers=told_of)
    records.scalars(1, {"a": 1.0, "b": float("nan")}, speed=None)
    records.close()
    assert told[0].scalar_rows == [{"step": 1, "a": 1.0}]


def test_a_library_that_is_absent_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"names 'wandb', .*pip install 'ali_jax\[wandb\]', or leave it out"):
        loop.run(tiny(trackers=("wandb",)), tmp_path / "run")
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: SimpleNamespace(origin=None))
    with pytest.raises(ValueError, match="not installed"):
        trackers.check(("wandb",))  # a folder wandb/ where the command is given
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=r"config.trackers is \('wand',\); it must be \('wandb',\) or \(\)"):
        configs.validate(tiny(trackers=("wand",)))


def test_the_id_stays_with_the_folder(tmp_path):
    ids = [trackers.identity(tmp_path, name) for name in ("wandb", "other", "wandb")]
    assert ids[0] == ids[2] != ids[1]
    assert ids[0] == json.loads((tmp_path / trackers.IDS).read_text())["wandb"]
    (tmp_path / trackers.IDS).write_text("damaged")
    assert trackers.identity(tmp_path, "wandb") not in ids
    (tmp_path / "b").mkdir()
    assert trackers.identity(tmp_path / "b", "wandb") not in ids


def log_records(path: Path):
    """Yield the records in a file of Weights & Biases: a header of 7 bytes, then LevelDB's log format."""
    content, joined, at = path.read_bytes(), b"", 7
    while at + 7 <= len(content):
        if (left := 2**15 - at % 2**15) < 7:  # the end of a block is filled up
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        joined += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield joined
            joined = b""


def sitting(path: Path):
    """Return the run and the rows of history, by step, that a file of Weights & Biases holds."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = [Record.FromString(record) for record in log_records(path)]
    history = {}
    for record in found:
        if record.HasField("history"):
            items = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            history.setdefault(items["_step"], {}).update(items)
    (run,) = [record.run for record in found if record.HasField("run")][:1]
    return run, history


def test_both_sittings_of_a_resumed_run_are_one_run_of_wandb(tmp_path, monkeypatch):
    """Offline, as a run without network: one id, resume="allow", and steps that go on."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    asked, init = [], wandb.init
    monkeypatch.setattr(wandb, "init", lambda **options: asked.append(options) or init(**options))
    config = tiny(trackers=("wandb",), **SMALL)
    with monkeypatch.context() as stopped:
        signalling(stopped, 10, signal.SIGTERM)
        assert loop.run(config, tmp_path / "run") == 128 + signal.SIGTERM
    assert loop.run(config, tmp_path / "run") == 0
    wandb.teardown()

    files = sorted(
        (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"), key=lambda p: p.stat().st_mtime
    )
    (first, early), (second, late) = map(sitting, files)
    assert first.run_id == second.run_id == trackers.identity(tmp_path / "run", "wandb")
    assert [options["resume"] for options in asked] == ["allow", "allow"]
    assert (first.project, first.display_name) == ("ali_jax", "run")
    assert (list(early), list(late)) == ([10], [20])
    of_config = {update.key: json.loads(update.value_json) for update in first.config.update}
    assert of_config["optimizer.generator.b2"] == config.optimizer.generator.b2
    recorded = {**rows(tmp_path / "run")[1], **rows(tmp_path / "run")[2]}
    assert {name: late[20][name] for name in recorded if name != "step"} == pytest.approx(
        {name: value for name, value in recorded.items() if name != "step"}
    )
    assert late[20]["samples/_type"] == "image-file"
