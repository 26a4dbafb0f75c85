"""Exported models run without this package at any batch size and agree with the model."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from small import game as small_game
from small import init
from test_loop import restored, tiny

from ali_jax import model
from ali_jax.main import main
from ali_jax.program import loop
from ali_jax.tools import export

pytest.importorskip("flatbuffers", reason="jax.export serialises with flatbuffers, which is not installed")
safetensors = pytest.importorskip("safetensors.numpy")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Give the folder of a run and the folder of its export."""
    folder = tmp_path_factory.mktemp("export")
    assert loop.run(tiny(num_steps=10, evaluators=()), folder / "run") == 0
    assert main(["--mode", "export", "--workdir", str(folder / "run"), "--out", str(folder / "out")]) == 0
    return folder / "run", folder / "out"


def run_alone(code: str, folder: Path) -> str:
    """Run code in a new process and return its stderr."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    return done.stderr


def test_what_the_readme_shows_runs_without_the_package_and_gives_the_golden_outputs(exported):
    _, folder = exported
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 2
    assert blocks[0].count("\n") == 5
    code = "import sys\nsys.modules['ali_jax'] = None\n" + "".join(blocks)
    code += "assert load('encoder.jax').call(np.zeros((7, 8, 8, 1), np.uint8)).shape == (7, 3)\n"
    assert run_alone(code, folder) == ""
    broken = code.replace(
        'np.load("golden.npz")', 'dict(np.load("golden.npz"), x=np.zeros((4, 8, 8, 1), "u1"))'
    )
    assert "AssertionError" in run_alone(broken, folder)


def test_golden_outputs_and_weights_are_those_of_the_averaged_model(exported):
    run, folder = exported
    state = restored(tiny(num_steps=10), run)
    assert state.ema is not None
    golden = np.load(folder / "golden.npz")
    assert golden["x"].dtype == np.uint8
    config = tiny()
    ali = export.networks.build(config, platform="cpu")
    np.testing.assert_allclose(
        golden["z"], model.encode(ali, state.ema, golden["x"] / np.float32(16)), atol=1e-5
    )
    weights = safetensors.load_file(folder / "weights.safetensors")
    leaves = jax.tree.leaves(state.ema.params)
    assert sum(array.size for array in weights.values()) == sum(leaf.size for leaf in leaves)
    np.testing.assert_array_equal(weights["encoder/params/mu/bias"], state.ema.params.encoder["mu"]["bias"])


def test_convolutional_networks_are_exported_for_three_platforms_and_any_batch():
    ali, _, batch = small_game("mnist", edit=lambda config: config.__setattr__("lowering", "native"))
    variables = init(ali, jax.random.PRNGKey(0), batch.x)
    z = jax.ShapeDtypeStruct((model.latent_dim(ali),), np.float32)
    data = export.export_program(export._decoder(ali, variables), [z])
    program = jax.export.deserialize(bytearray(data))
    assert program.platforms == export.PLATFORMS
    for rows in (1, 3):
        codes = np.full((rows, *z.shape), 0.5, np.float32)
        np.testing.assert_allclose(program.call(codes), model.decode(ali, variables, codes), atol=1e-5)


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_a_program_that_does_not_give_what_the_model_gives_is_refused(
    exported, monkeypatch, tmp_path, capsys, name
):
    """The program that is written is another one by 0.001, of the encoder or of the decoder."""
    programs = iter(["encoder", "decoder"])
    export_program = export.export_program

    def shifted(function, rows):
        by = 0.001 * (next(programs) == name)
        return export_program(lambda *arguments: function(*arguments) + by, rows)

    monkeypatch.setattr(export, "export_program", shifted)
    run, _ = exported
    assert main(["--mode", "export", "--workdir", str(run), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert f"The output of the exported {name} differs from the model's by 0.001: do not use" in said
    assert str(tmp_path / "out" / f"{name}.jax") in said


def test_a_missing_package_is_named(exported, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(export, "PACKAGES", ("absent_package",))
    run, _ = exported
    assert main(["--mode", "export", "--workdir", str(run), "--out", str(tmp_path / "out")]) == 1
    assert "Exporting needs absent_package: pip install 'ali_jax[export]'" in capsys.readouterr().err
