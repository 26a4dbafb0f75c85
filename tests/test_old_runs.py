"""Runs made by earlier code are read by today's: continued, evaluated, reported, compared and exported.

`fixtures/old_runs/KIND.tar.xz` holds `run`, the folder of a finished run of 20 steps, and `continued.jsonl`,
its metrics after the code that made it had gone on to 40 steps. `fixtures/old_runs/README.md` says which code
that was.
"""

import json
import re
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest
from small import ROOT

from ali_jax import config as configs
from ali_jax import model, train
from ali_jax.data import feeds
from ali_jax.main import main
from ali_jax.types import Noise

FOLDER = Path(__file__).parent / "fixtures" / "old_runs"
KINDS = ("single", "population", "convolutional", "semi_supervised", "format_2")

# Only the last digits of these depend on the processor. Everything else is a share of images or comes from a
# classifier, where a rounding error may move an image or two.
SMOOTH = ("loss/", "r1/", "confidence/", "reconstruction_", "raw/reconstruction_")


def unpack(kind: str, folder: Path) -> Path:
    """Unpack an archive into a folder and return the folder of its run."""
    with tarfile.open(FOLDER / f"{kind}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "run"


@pytest.fixture(params=KINDS)
def old(request, tmp_path):
    """Give the folder of an old run."""
    return unpack(request.param, tmp_path)


def rows(path: Path) -> list[dict]:
    """Read a file of metrics."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_same_numbers(found: dict, expected: dict) -> None:
    """Compare metrics by name; later code may report more of them, and better intervals over a population."""
    assert found.keys() >= expected.keys()
    for name, value in expected.items():
        if name.endswith(("/low", "/high")):
            continue
        tolerance = {"rel": 1e-3} if name.startswith(SMOOTH) else {"rel": 0.02, "abs": 0.01}
        assert found[name] == pytest.approx(value, **tolerance), name


def earlier_draw_noise(ali, key, size):
    key_z, key_epsilon, *keys = jax.random.split(key, 5)
    shape = (size, model.latent_dim(ali))
    return Noise(jax.random.normal(key_z, shape), jax.random.normal(key_epsilon, shape), *keys)


def earlier_uniform(x, key):
    return jax.random.uniform(key, x.shape, minval=-1, maxval=1)


@pytest.fixture
def earlier_streams(monkeypatch):
    """Draw as the code did that made the runs: with keys of threefry, and z apart from epsilon."""
    monkeypatch.setattr(train, "HASHED", "threefry2x32")
    monkeypatch.setattr(model, "draw_noise", earlier_draw_noise)
    monkeypatch.setattr(feeds, "HASHED", "threefry2x32")
    monkeypatch.setattr(feeds, "_uniform", earlier_uniform)


def test_a_finished_run_goes_on_as_the_code_that_made_it_did(old, earlier_streams):
    config = (old / "config.json").read_text()
    text = f"from ali_jax import config\n\n\ndef get_config():\n    return config.from_json({config!r})\n"
    (old.parent / "config.py").write_text(text)
    arguments = ["--config", str(old.parent / "config.py"), "--workdir", str(old)]
    before = (old / "metrics.jsonl").read_text()
    assert main(arguments) == 0
    assert (old / "metrics.jsonl").read_text() == before  # finished: nothing to do
    assert main([*arguments, "--config.num_steps=40"]) == 0
    found, expected = rows(old / "metrics.jsonl"), rows(old.parent / "continued.jsonl")
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for row, wanted in zip(found, expected, strict=True):
        assert_same_numbers(row, wanted)
    sittings = json.loads((old / "sittings.json").read_text())
    assert [(s["from_step"], s["to_step"]) for s in sittings] == [(0, 20), (20, 40)]


def test_its_model_gives_the_numbers_that_were_recorded(old, capsys):
    assert main(["--mode", "evaluate", "--workdir", str(old), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    summary = json.loads((old / "summary.json").read_text())
    assert found["step"] == summary["step"] == 20
    assert_same_numbers(found["metrics"], summary["metrics"])


def refusal(capsys, *arguments: str) -> str:
    """Run the command, which must refuse with one line; return it."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err


MODES = ("evaluate", "sample", "reconstruct", "report", "export")


def test_a_run_of_a_later_format_is_refused_with_both_formats(tmp_path, capsys):
    run = unpack("single", tmp_path)
    values = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({"format": 7, **values, "new": {"key": 1}}))
    commands = [["--mode", mode, "--workdir", str(run)] for mode in MODES]
    commands.append(["--workdir", str(run), "--config", str(ROOT / "experiments" / "digits.py")])
    commands.append(
        ["--mode", "compare", "--workdirs", str(run), str(tmp_path), "--out", str(tmp_path / "c.html")]
    )
    for command in commands:
        message = refusal(capsys, *command)
        assert "config.json: It has format 7" in message
        assert "reads formats up to 2: use the version that wrote it" in message


@pytest.mark.parametrize("version", ["2", None, 0, True, [1]])
def test_a_format_that_is_no_number_is_damage(tmp_path, capsys, version):
    run = unpack("single", tmp_path)
    values = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**values, "format": version}))
    assert "the file is damaged" in refusal(capsys, "--mode", "sample", "--workdir", str(run))


def test_a_key_that_only_another_version_has_is_named_with_both_formats(tmp_path, capsys):
    run = unpack("single", tmp_path)
    values = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**values, "optimizer": {**values["optimizer"], "lion": 1}}))
    message = refusal(capsys, "--mode", "evaluate", "--workdir", str(run))
    assert "There is no config key 'optimizer.lion'." in message
    assert "this format 1 (this one writes format 2): use that version" in message


def test_keys_that_are_newer_than_a_run_take_their_defaults(tmp_path):
    values = json.loads((unpack("single", tmp_path) / "config.json").read_text())
    whole = configs.from_json(json.dumps(values))
    assert whole.init_networks == ("decoder",)
    del values["ema_decay"], values["evaluation"], values["optimizer"]["generator"]["b2"]
    config = configs.from_json(json.dumps(values))
    changed = configs.differences(whole, config)
    assert (config.ema_decay, config.optimizer.generator.b2) == (0.0, 0.999)
    removed = ("ema_decay", "optimizer.generator.b2", "evaluation")
    assert all(configs.is_free(key, removed) for key in changed)
    for broken in (3, [1], None):
        with pytest.raises(ValueError, match=r"config\.encoder is .* must be a section"):
            configs.from_json(json.dumps({**values, "encoder": broken}))


def assert_shows_error(page: Path, run: Path) -> None:
    """Find the recorded reconstruction error among the numbers on a page, however it is rounded there."""
    recorded = json.loads((run / "summary.json").read_text())["metrics"]["reconstruction_mse"]
    numbers = np.array(re.findall(r">(0\.\d+)", page.read_text()), float)
    assert np.isclose(numbers, recorded, rtol=1e-3).any(), recorded


def test_it_is_reported(old):
    assert main(["--mode", "report", "--workdir", str(old)]) == 0
    assert_shows_error(old / "report.html", old)


def test_old_runs_are_compared(tmp_path):
    runs = [unpack(kind, tmp_path / kind) for kind in KINDS]
    page = tmp_path / "compare.html"
    assert main(["--mode", "compare", "--workdirs", *map(str, runs), "--out", str(page)]) == 0
    for run in runs:
        assert_shows_error(page, run)


def test_its_model_is_exported(old, tmp_path):
    pytest.importorskip("flatbuffers", reason="exporting needs the extra `export`")
    pytest.importorskip("safetensors", reason="exporting needs the extra `export`")
    out = tmp_path / "export"
    assert main(["--mode", "export", "--workdir", str(old), "--out", str(out)]) == 0
    golden = np.load(out / "golden.npz")
    error = np.square(golden["x_hat"] - golden["x"] / np.float32(16)).mean()
    assert golden["z"].shape == (4, 2)
    assert 0 < error < 0.2  # 0.15 is that of random pairs
