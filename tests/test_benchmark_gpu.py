"""The command for the day a GPU is at hand: nothing that was measured is lost, and all of it is told."""

import json
import sys
import tomllib

import numpy as np
import pytest
import small
from test_pages import wilson

from ali_jax.networks import convolutions
from ali_jax.program.command import load_config, override
from benchmarks import gpu, gpu_parts, gpu_records, gpu_semi
from benchmarks.gpu_parts import Cell
from benchmarks.gpu_records import Results

SVHN = Cell("svhn", "float32", 1)


@pytest.fixture
def run(tmp_path):
    """Give what a part is given for a trial."""
    results = Results(tmp_path, "steps", device="cpu", jax="0")
    return gpu_parts.Run(results, tmp_path, 10.0, None, sys.executable, tiny=True)


def test_a_line_that_a_killed_process_left_costs_no_other(tmp_path):
    Results(tmp_path, "steps").add(ms=[1.0])
    with (tmp_path / gpu_records.FILE).open("a") as file:
        file.write('{"part": "steps", "ms": [2.')  # and no end of the line
    Results(tmp_path, "kernels").add(busy_ms=3.0)
    assert [row.get("ms", row.get("busy_ms")) for row in gpu_records.read(tmp_path)] == [[1.0], 3.0]


def test_parts_have_their_share_of_the_time_and_what_others_leave(monkeypatch):
    clock = iter([0.0, 10.0, 100.0, 400.0])
    monkeypatch.setattr(gpu.time, "monotonic", lambda: next(clock))
    shares = list(gpu._shares(["layers", "tests", "steps", "training"], 220.0))
    assert [name for name, _ in shares] == ["tests", "steps", "layers", "training"]  # the order of worth
    assert [seconds for _, seconds in shares] == pytest.approx([220 * 3 / 13, 210 * 4 / 10, 120 * 3 / 6, 0])


def test_a_part_without_time_is_ended_and_noted_and_what_there_was_is_told(tmp_path, capsys):
    Results(tmp_path, "steps", device="H", jax="1").add(
        experiment="svhn", dtype="float32", batch=100, form="gpu", ms=[2.0, 1.0, 4.0], floor_ms=0.5
    )
    arguments = ["--out", str(tmp_path), "--tiny", "--budget", "0.5", "--only", "kernels", "steps"]
    assert gpu.main(arguments) == 1
    printed = capsys.readouterr().out
    assert "| steps | out of time | " in printed
    assert "| kernels | out of time | " in printed
    assert "| svhn | float32 | 100 | 2.000 [1.000-4.000] | 5e+04 | 25% |" in printed
    assert gpu.main(["--report", str(tmp_path)]) == 0
    assert capsys.readouterr().out == printed


def test_a_part_that_fails_is_noted_with_its_reason(tmp_path, capsys):
    arguments = ["--out", str(tmp_path), "--tiny", "--only", "peers", "--torch-python", "/absent/python"]
    assert gpu.main(arguments) == 1
    printed = capsys.readouterr().out
    assert "| peers | failed | " in printed
    assert "- peers: ValueError: --torch-python /absent/python: No such file or directory." in printed


def test_without_a_gpu_it_stops_at_once(tmp_path, capsys):
    assert gpu.main(["--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.splitlines()[1:] == [
        "JAX sees no GPU here (cpu); --tiny tries the command without one."
    ]


def test_a_program_that_fails_does_not_hinder_the_others(run):
    gpu_parts.time_steps(run, [(SVHN, "no such form"), (SVHN, "gpu")], {})
    failed, timed = gpu_records.read(run.out)
    assert (failed["experiment"], failed["form"]) == ("svhn", "no such form")
    assert "unknown lowering 'no such form'" in failed["error"]
    assert (timed["experiment"], timed["form"], timed["batch"]) == ("svhn", "gpu", 4)
    assert len(timed["ms"]) == gpu_parts.ROUNDS
    assert min(timed["ms"]) > 0
    assert gpu_parts.is_measured(run, SVHN, "gpu")  # not again, when the command is repeated
    assert not gpu_parts.is_measured(run, SVHN, "native")
    assert not gpu_parts.is_measured(run, SVHN._replace(dtype="bfloat16"), "gpu")
    elsewhere = run._replace(results=Results(run.out, "steps", device="another"))
    assert not gpu_parts.is_measured(elsewhere, SVHN, "gpu")


def test_layers_are_timed_by_form_and_auto_takes_the_table(run, monkeypatch):
    monkeypatch.setattr(gpu_parts, "TINY", (SVHN,))
    monkeypatch.setattr(gpu_parts, "FORMS", ("gpu", "gpu+kernel_phases"))
    monkeypatch.setattr(gpu_parts, "MARGIN", 1e9)  # so that every form is chosen
    gpu_parts.layers(run)
    strided = {row["layer"]: row for row in gpu_records.read(run.out) if len(row["ms"]) == 2}
    # One of the encoder and of D, and one of the decoder; the others have no phases.
    assert set(strided) == {"8x8x3 k3 s2 p0 4 float32", "8x8x4 k4 s2 p0 4 float32"}
    assert all(min(row["ms"].values()) > 0 for row in strided.values())
    table = run.out / "forms.json"
    assert json.loads(table.read_text())["device"] == "cpu"
    assert convolutions.lowering_for("gpu") == "gpu"  # without the table, as before
    monkeypatch.setattr(convolutions, "TABLE", table)
    assert convolutions.lowering_for("gpu") == "gpu+table"
    forms = [convolutions.forms_of("gpu+table", layer) for layer in sorted(strided)]
    assert forms == [("kernel_phases",)] * 2
    assert convolutions.forms_of("gpu+table", "3x3x4 k3 s1 p0 4 float32") == ()
    count = len(gpu_records.read(run.out))
    gpu_parts.layers(run)  # again: all is measured
    assert len(gpu_records.read(run.out)) == count


def test_the_table_would_be_a_part_of_the_package():
    project = tomllib.loads((small.ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["ali_jax"]
    table = convolutions.TABLE.relative_to(small.ROOT / "ali_jax")
    assert any(table.match(pattern) for pattern in patterns)


def test_every_layer_of_the_networks_is_found_once():
    config = gpu_parts.config_of(Cell("celeba", "bfloat16", 1), tiny=False)
    found = gpu_parts.layers_of(config)
    assert {layer.dtype for layer in found} == {"bfloat16"}
    # D's are like the encoder's, at twice the batch; then the decoder's with its output.
    sides = [(layer.transpose, layer.x[0], layer.kernel[0], layer.x[1], layer.y[1]) for layer in found]
    down = [(2, 64, 63), (7, 63, 29), (5, 29, 13), (7, 13, 4), (4, 4, 1)]
    up = [(4, 1, 4), (7, 4, 13), (5, 13, 29), (7, 29, 63), (2, 63, 64)]
    expected = [(False, 200, *sizes) for sizes in down] + [(True, 100, *sizes) for sizes in up]
    assert sides == [*expected, (False, 100, 1, 64, 64)]
    assert len({layer.name for layer in found}) == len(found)


def test_few_labels_want_all_the_time_and_so_are_measured_on_request(monkeypatch, tmp_path):
    parts = []
    monkeypatch.setattr(gpu, "run_part", lambda name, *_: parts.append(name) or "done")
    monkeypatch.setattr(gpu, "read", lambda _: [])
    for only in ([], ["--only", "semi"]):
        gpu.main(["--out", str(tmp_path), *only])
    assert parts == [*(name for name in gpu.PARTS if name != "semi"), "semi"]


def test_as_many_steps_are_trained_as_there_is_time_for():
    assert gpu_semi.steps_in(60.0, [10.0, 3.0, 20.0], 100) == 600  # the median
    assert gpu_semi.steps_in(0.0, [10.0], 100) == 100
    config = gpu_semi.config_for(small.ROOT / "cifar10.npz")
    config.num_steps = 600
    command = load_config(str(gpu_semi.EXPERIMENT))
    override(command, gpu_semi.flags_of(config))
    assert command.to_dict() == config.to_dict()
    assert (config.dataset.test_split, config.evaluate_every) == ("test", 0)  # once, at the end


def test_a_trial_on_digits_has_its_own_config():
    config = gpu_semi.config_for(None, gpu_parts.shrink)
    command = load_config(str(gpu_semi.EXPERIMENT))
    override(command, gpu_semi.flags_of(config))
    assert command.to_dict() == config.to_dict()
    assert config.dataset.name == "digits"
    assert len(config.discriminator.x_layers) == 2


def test_the_file_says_how_many_test_images_are_lossy(tmp_path):
    path = tmp_path / "images.npz"
    np.savez(path, test_image=np.zeros(3))
    assert (gpu_semi.lossy_images(path), gpu_semi.lossy_images(None)) == (0, 0)
    np.savez(path, test_is_lossless=np.array([True, False, False]))
    assert gpu_semi.lossy_images(path) == 2


def test_a_test_error_stands_below_published_ones_with_its_interval_and_its_images():
    row = {"part": "semi", "steps": 4000, "label_error": 0.459, "test_images": 10_000, "tiny": False}
    rates = {"part": "semi", "steps_per_second": [9.0, 10.0, 12.0]}
    unfinished = {"part": "semi", "steps": 300, "unfinished": 400}
    text = gpu_records.report([rates, row | {"lossy": 21}, unfinished])
    low, high = (100 * end for end in wilson(0.459, 10_000))
    for line in (
        "10.000 [9.000-12.000] steps per second.",
        "| improved GAN (Salimans et al., 2016) | 18.63 ± 2.32 |",
        f"| here, 4,000 steps | 45.90 (95 %: {low:.2f} to {high:.2f}) |",
        "21 of the 10,000 test images are decoded from JPEG.",
        "Stopped after 300 of 400 steps, and so not tested.",
    ):
        assert f"\n{line}\n" in f"{text}\n", line
    assert "JPEG" not in gpu_records.report([row | {"lossy": 0}])
    assert "4,000 steps, a trial on digits |" in gpu_records.report([row | {"lossy": 0, "tiny": True}])


def test_a_report_has_every_part(tmp_path):
    cell = {"experiment": "svhn", "dtype": "float32", "batch": 100}
    parts = {
        "tests": [{"test": "a", "outcome": "passed"}, {"test": "b", "outcome": "failed"}],
        "peers": [
            {
                "experiment": "svhn",
                "dtype": "float32",
                "batch": 100,
                "ms": 3.0,
                "over": {"torch_best": [1.5]},
            },
            {"absent": "no torch"},
        ],
        "kernels": [
            {
                **cell,
                "wall_ms": 3.4,
                "busy_ms": 3.2,
                "kernels": 399.0,
                "rows": [["D/x/layer_0", "backward", "convolution", 0.5, 2.0]] * 20,
            }
        ],
        "layers": [{"layer": "8x8", "batch": 100, "ms": {"gpu": 0.2}, "form": "gpu"}],
        "training": [
            {"experiment": "svhn", "steps": 500, "seconds": 60.0},
            {"picture": "svhn.png"},
        ],
    }
    for part, rows in parts.items():
        for row in rows:
            Results(tmp_path, part, device="H200", jax="0.11").add(**row)
    text = gpu_records.report(gpu_records.read(tmp_path))
    for line in (
        "H200, jax 0.11",
        "1 of 2 passed.\n- b: failed",
        "| svhn | float32 | 100 | 3.000 | 1.500 [1.500-1.500] |\n\nno torch",
        "svhn, float32, batch 100: 3.400 ms a step, busy 3.200 ms, 399 kernels: convolution 10.000 ms in 40.",
        "| D/x/layer_0 | backward | convolution | 0.500 | 2 |",
        "| 4 more |  |  | 2.000 | 8 |",
        "| 8x8 | 100 | 0.2000 | gpu |",
        "- svhn: 500 steps, 60 s in all\n- svhn.png",
    ):
        assert f"\n{line}" in f"\n{text}", line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give --out, or --report"),
        (["--out", "a", "--report", "b"], "give --out, or --report"),
        (["--out", "a", "--only", "step"], "invalid choice: 'step'"),
        (["--report", "absent"], "absent has no results.jsonl: measure first, with --out absent."),
        (["--out", "a", "--path", "absent"], "--path absent: there is no such folder."),
    ],
)
def test_mistakes_get_a_message(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        status = gpu.main(arguments)
    except SystemExit as end:  # of the parser
        status = end.code
    assert status == 2
    assert says in capsys.readouterr().err
