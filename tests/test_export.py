"""Exported models run without this package at any batch size and agree with the model."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from small import game as small_game
from small import init
from test_loop import restored, tiny

import ali_jax
from ali_jax import config as configs
from ali_jax import game, model
from ali_jax.main import main
from ali_jax.program import loop
from ali_jax.records import weights
from ali_jax.records.read import Run, read_run
from ali_jax.records.workdir import RunError, read_config
from ali_jax.tools import card, export

pytest.importorskip("flatbuffers", reason="jax.export serialises with flatbuffers, which is not installed")
safetensors = pytest.importorskip("safetensors.numpy")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Give the folder of a run and the folder of its export."""
    folder = tmp_path_factory.mktemp("export")
    config = tiny(num_steps=10, evaluators=("reconstruction_error",))
    assert loop.run(config, folder / "run") == 0
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
    blocks = [block for block in blocks if "import ali_jax" not in block]
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


def test_load_reads_the_exported_folder_as_the_run(exported):
    run, folder = exported
    of_run, of_export = ali_jax.load(run), ali_jax.load(folder)
    x = np.load(folder / "golden.npz")["x"]
    np.testing.assert_array_equal(of_export.encode(x), of_run.encode(x))
    np.testing.assert_array_equal(of_export.sample(2), of_run.sample(2))
    assert repr(of_export) == repr(of_run) == "Model(digits, x: 8x8x1, z: 3, step: 10)"
    for fact in ("shape", "divisor", "classes", "conditions", "scale", "background", "fit"):
        assert getattr(of_export, fact) == getattr(of_run, fact)
    with pytest.raises(ValueError, match="member is 1; the run has the members 0 to 0"):
        ali_jax.load(folder, member=1)


def test_a_run_can_start_from_an_exported_folder(exported):
    run, folder = exported
    networks = ("encoder", "decoder", "discriminator")
    start = game.initial_state(
        game.prepare(tiny(init_from=str(folder), init_networks=networks, evaluators=()))
    )
    of_export = weights.flat_weights(start.variables)
    for name, array in weights.flat_weights(restored(tiny(num_steps=10), run).ema).items():
        np.testing.assert_array_equal(of_export[name], array)


def test_damaged_or_foreign_weights_are_refused(exported, tmp_path):
    _, folder = exported
    expected = game.abstract_state(game.prepare(tiny(evaluators=()))).variables
    variables, step = weights.read(folder, expected)
    assert step == 10
    weights.write(tmp_path, variables._replace(params=variables.params._replace(encoder={})), 10)
    with pytest.raises(RunError, match=r"holds the weights of other networks than .*config.json describes"):
        weights.read(tmp_path, expected)
    (tmp_path / weights.FILE).write_bytes(b"no weights")
    with pytest.raises(RunError, match=r"weights.safetensors cannot be read: .* Export the model again"):
        weights.read(tmp_path, expected)


def test_the_exported_config_holds_no_path_of_this_machine(exported):
    run, folder = exported
    kept, published = read_config(run), read_config(folder)
    assert configs.differences(kept, published) == {}
    private = tiny(dataset__path="/home/me/x.npz", init_from="/home/me/run", frozen=("decoder",))
    private.evaluation.dinov2_weights = private.evaluation.inception_weights = "/home/me/model"
    assert '"values": ""' in (folder / "data.json").read_text()  # and no values of the data
    text = configs.to_json(export._published(private))
    assert "/home" not in text
    assert configs.from_json(text).frozen == ()


def front_matter(text):
    """Return the metadata of a card, and its text."""
    empty, head, body = text.split("---\n", 2)
    assert empty == ""
    return head, body


def test_the_card_is_in_the_format_of_the_hub(exported):
    """The keys are those of the hub's metadata; it requires type and name of a result's task and data."""
    run, folder = exported
    head, body = front_matter((folder / "README.md").read_text())
    facts = yaml.safe_load(head)
    assert head.startswith("# license: choose one of https://huggingface.co/")
    assert "license" not in facts
    assert facts["library_name"] == "ali_jax"
    assert facts["pipeline_tag"] == "unconditional-image-generation"
    ((result,),) = [model["results"] for model in facts["model-index"]]
    assert result["dataset"] == {"name": "digits", "type": "digits", "split": "test"}
    found = {metric["type"]: metric["value"] for metric in result["metrics"]}
    error = read_run(run).metrics["reconstruction_mse"]
    assert found["reconstruction_mse"] == pytest.approx(error, abs=1e-6)
    assert not [name for name in found if name.startswith("raw/")]
    assert f"| `reconstruction_mse` | {error:.4g} |" in body
    assert "| training rows | 1,400 (train) |" in body
    assert "| steps | 10 of 11 rows: 110 rows, 0.1 passes" in body
    assert "| weights | averaged, decay 0.9 |" in body
    assert "| `latent_dim` | `3` |" in body
    assert "/run" not in body  # no path of this machine


def test_the_card_shows_ali_jax_reading_the_folder(exported):
    _, folder = exported
    (block,) = re.findall(r"```python\n(import ali_jax.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    seen = {"path": folder, "x": np.load(folder / "golden.npz")["x"]}
    exec(block, seen)
    assert seen["x_tilde"].shape == (16, 8, 8, 1)


def test_the_card_names_data_of_the_hub_and_no_path(tmp_path):
    assert card._named_on_the_hub("hf:someone/faces:small") == {"datasets": ["someone/faces"]}
    assert card._named_on_the_hub(f"hf:{tmp_path}") == card._named_on_the_hub(str(tmp_path)) == {}


def recorded(tmp_path, **metrics):
    """Return a run whose only evaluation has these numbers."""
    return Run(tmp_path, tiny(), [], [{"step": 10, **metrics}], {}, [])


def test_numbers_of_the_card_have_their_intervals(tmp_path):
    """Wilson's for 90 of 100 test rows is 0.826 to 0.945; other numbers bring their own."""
    run = recorded(tmp_path, class_kept=0.9, n_test_labelled=100, a=2.0, a_low=1.0, a_high=3.0, b=None)
    rows = {row.name: row for row in card.numbers(run, is_member=False)}
    assert rows.keys() == {"class_kept", "n_test_labelled", "a"}
    assert rows["class_kept"].limits == pytest.approx((0.8256, 0.9448), abs=1e-4)
    assert rows["class_kept"].meaning.startswith("share")
    assert rows["a"].limits == (1, 3)
    assert rows["n_test_labelled"].limits is None


def test_of_a_population_the_card_has_the_first_member(tmp_path):
    spread = {"a": 2.0, "a/std": 1.0, "a/low": 0.0, "a/high": 4.0, "a/0": 1.5, "a/1": 2.5}
    (row,) = card.numbers(recorded(tmp_path, **spread), is_member=True)
    assert (row.value, row.limits) == (1.5, None)
