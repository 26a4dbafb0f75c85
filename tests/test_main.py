"""The command: its modes, and a clear message with the right exit status for every mistake."""

import json
import os
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
from test_loop import contents, signalling, tiny

from ali_jax import config as configs
from ali_jax.evaluate import figures
from ali_jax.main import HUGE_PAGES, main, restart_with_huge_pages

DIGITS = str(ROOT / "experiments" / "digits.py")


def write_config(folder: Path, text: str = "", **changes) -> str:
    """Write a config file with this text or, by default, with the tiny run."""
    path = folder / "config.py"
    values = {key: value for key, (_, value) in configs.differences(configs.base(), tiny(**changes)).items()}
    path.write_text(
        text
        or f"from ali_jax import config\n\n\ndef get_config():\n    c = config.base()\n"
        f"    c.update_from_flattened_dict({values!r})\n    return c\n"
    )
    return str(path)


def message(capsys, arguments, status: int) -> str:
    """Run the command, which must fail with this status, and return its single line on stderr."""
    assert main(arguments) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ali_jax: ")
    assert err.count("\n") == 1
    return err


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Give the folder of a run that the command trained."""
    folder = tmp_path_factory.mktemp("main")
    assert main(["--config", write_config(folder, num_steps=10), "--workdir", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture
def pictures(tmp_path):
    """Give a folder of five identical images."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(5):
        Image.new("L", (8, 8), 99).save(folder / f"{i}.png")
    return folder


def strict_json(text: str):
    """Read JSON, and refuse the NaN and Infinity that only Python allows."""

    def refuse(token):
        raise AssertionError(token)

    return json.loads(text, parse_constant=refuse)


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_trained_models_need_only_the_workdir(trained, tmp_path, capsys):
    assert main(["--mode", "sample", "--workdir", str(trained), "--out", str(tmp_path / "s.png")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "s.png")
    assert (
        main(["--mode", "reconstruct", "--workdir", str(trained), "--config.evaluation.grid=(10, 10)"]) == 0
    )
    assert main(["--mode", "interpolate", "--workdir", str(trained)]) == 0
    samples = size_of(tmp_path / "s.png")
    assert samples[0] == samples[1]  # 2 x 2
    reconstructions = size_of(trained / "images" / "reconstructions_10.png")
    assert 1.9 < reconstructions[0] / reconstructions[1] <= 2.1  # 10 rows of 10 pairs
    assert (trained / "images" / "interpolations_10.png").is_file()


def test_evaluate_writes_and_prints_the_numbers_of_the_summary(trained, capsys):
    assert main(["--mode", "evaluate", "--workdir", str(trained), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((trained / "evaluation.json").read_text())
    assert printed == {"step": 10, "metrics": json.loads((trained / "summary.json").read_text())["metrics"]}


def test_describe_prints_one_json_object_without_data_or_workdir(capsys):
    assert main(["--mode", "describe", "--json", "--config", DIGITS, "--config.dataset.name=absent"]) == 0
    out, _ = capsys.readouterr()
    description = json.loads(out)
    assert description["parameters"] == {"encoder": 90_656, "decoder": 86_592, "discriminator": 265_729}
    for role, layers in description["layers"].items():
        assert sum(layer["parameters"] for layer in layers) == description["parameters"][role]
    assert description["layers"]["decoder"][-1] == {"name": "untied", "output": [8, 8, 1], "parameters": 64}
    # Parameters, their average and two moments of Adam, counters beside.
    assert 0 <= description["state_bytes"] - 4 * 4 * 442_977 < 100
    # Forward and backward through every weight, for 64 pairs, both kinds through D; and the penalty's.
    once = 2 * 3 * 64 * (90_656 + 86_592 + 2 * 265_729)
    assert once < description["flops_per_step"] < 2 * once


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config.batch_siz=3"], "Did you mean batch_size?"),
        (["--config.optimizer.generator.learning_rat=3"], "Did you mean optimizer.generator.learning_rate?"),
        (["--config.dataset=digits"], "It is a section: set one of "),
        (
            ["--config.batch_size=abc"],
            "--config.batch_size=abc is not of type int; the value in the config is 64.",
        ),
        (["--config.encoder.center=perhaps"], "is not of type bool"),
        (["--config.batch_size=0"], "config.batch_size is 0; it must be positive"),
        (
            ["--config.penalties.elbo.weight=-1.0"],
            "config.penalties.elbo.weight is -1.0; it must be at least 0 and finite",
        ),
        (["--config.penalties.elbo.sigma=0.0"], "config.penalties.elbo.sigma is 0.0; it must be positive"),
        (["--config.num_steps=-5"], "config.num_steps is -5"),
        (["--config.steps_per_call=0"], "config.steps_per_call is 0"),
        (["--config.latent_dim=0"], "config.latent_dim is 0"),
        (["--config.log_every=100"], "e.g. --config.steps_per_call=50"),
        (["--config.dtype=float16"], "it must be one of float32, bfloat16"),
        (["--config.optimizer.generator.b1=1.0"], "it must be in [0, 1)"),
        (["--config.evaluation.grid=(3,)"], "two positive numbers"),
        (["--config.loss=alo"], "ali_jax.losses has ali"),
        (["--config.evaluators=('sampls',)"], "Did you mean samples?"),
        (["--config.evaluators=('modes',)"], "needs known modes"),
        (["--config.encoder.name=Encodr"], "ali_jax.networks has "),
        (["--config.dataset.name=digit"], "Did you mean digits?"),
        (["--config.dataset.path=/absent/data.npz"], "there is no such file or folder"),
        (["--config.dataset.shape=(16, 16, 1)"], "8x8x1"),
        (["--config.discriminator.x_batch_norm=(True,)"], "without batch norm"),
        (
            ["--mode", "trai"],
            "train|evaluate|sample|reconstruct|interpolate|encode|edit|nearest|score|report|compare|export|describe|preflight",
        ),
        (["--mod=train"], "There is no flag --mod. Did you mean --mode?"),
        (["here"], "Unexpected argument 'here'"),
        (["--json"], "--json goes with"),
        (["--out=x.png"], "--out goes with"),
    ],
)
def test_a_usage_error_is_one_message_and_status_2(tmp_path, capsys, arguments, expected):
    workdir = tmp_path / "run"
    assert expected in message(capsys, ["--config", DIGITS, "--workdir", str(workdir), *arguments], 2)
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def get_config(:\n", "config.py, line 1: invalid syntax"),
        ("x = 1\n", "does not define a function get_config()"),
        ("def get_config():\n    return {}\n", "returned dict, not a ConfigDict"),
        ("def get_config(variant):\n    return None\n", "takes a variant"),
        ("import absent_module\n", "line 1: ModuleNotFoundError"),
        ("def get_config():\n\n    return 1 / 0\n", "line 3: ZeroDivisionError"),
        (
            "from ali_jax import config\ndef get_config():\n    c = config.base()\n    c.batchsize = 3\n",
            "line 4",
        ),
        (
            "from ml_collections import ConfigDict as C\ndef get_config():\n    return C({'batchsize': 3})\n",
            "There is no config key 'batchsize'. Did you mean batch_size?",
        ),
        (
            "from ml_collections import ConfigDict as C\ndef get_config():\n    return C({'seed': '3'})\n",
            "config.seed is '3'; it must be of type int",
        ),
    ],
)
def test_a_config_file_that_returns_no_config_is_refused_with_the_line(tmp_path, capsys, text, expected):
    file = write_config(tmp_path, text)
    assert expected in message(capsys, ["--config", file, "--workdir", str(tmp_path / "run")], 2)


def test_an_unprepared_data_set_is_refused_at_once_with_the_command_that_prepares_it(tmp_path, capsys):
    arguments = ["--config", DIGITS, "--workdir", str(tmp_path / "run"), "--config.dataset.name=svhn_cropped"]
    began = time.monotonic()
    assert main([*arguments, f"--config.dataset.directory={tmp_path}"]) == 2
    assert time.monotonic() - began < 10
    assert f"ali_jax.data.prepare svhn_cropped --directory {tmp_path}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_missing_arguments_and_files(tmp_path, capsys):
    run = str(tmp_path / "run")
    assert "Give --config" in message(capsys, ["--workdir", run], 2)
    assert "Give --workdir" in message(capsys, ["--config", DIGITS], 2)
    assert "Give --workdir" in message(capsys, ["--mode=sample"], 2)
    assert "Missing value" in message(capsys, ["--workdir"], 2)
    assert "There is no config file 'absent.py'" in message(
        capsys, ["--config=absent.py", "--workdir", run], 2
    )
    assert "takes no variant" in message(capsys, ["--config", f"{DIGITS}:big", "--workdir", run], 2)
    for mode in ("evaluate", "sample", "reconstruct", "interpolate"):
        assert "holds no run" in message(capsys, ["--mode", mode, "--workdir", run], 2)
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("usage: ")
    assert main(["--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: ")


def test_a_run_without_checkpoint_can_make_no_picture(tmp_path, capsys):
    (tmp_path / "config.json").write_text(configs.to_json(tiny()))
    assert "has no checkpoint yet" in message(capsys, ["--mode", "sample", "--workdir", str(tmp_path)], 2)


def test_a_result_is_written_as_its_suffix_says(trained, tmp_path):
    for name, kind in (
        ("a.jpg", "JPEG"),
        ("a.JPEG", "JPEG"),
        ("a.webp", "WEBP"),
        ("a.png", "PNG"),
        ("a", "PNG"),
    ):
        figures.save_picture(tmp_path / name, np.full((9, 7, 3), 200, np.uint8))
        with Image.open(tmp_path / name) as image:
            assert (image.format, image.size) == (kind, (7, 9))
            assert np.ptp(np.asarray(image)) <= 2
    with pytest.raises(ValueError, match=r"a\.bmp: pictures are written as"):
        figures.save_picture(tmp_path / "a.bmp", np.zeros((2, 2, 3), np.uint8))
    assert main(["--mode", "sample", "--workdir", str(trained), "--out", str(tmp_path / "s.jpg")]) == 0
    assert Image.open(tmp_path / "s.jpg").format == "JPEG"


@pytest.mark.parametrize(
    ("mode", "out", "writes"),
    [
        ("sample", "x.gif", ".png or .jpg or .jpeg or .webp"),
        ("interpolate", "x.html", ".png"),
        ("report", "x.pdf", ".html or .htm"),
        ("evaluate", "x.csv", ".json"),
    ],
)
def test_a_suffix_that_the_mode_does_not_write_is_refused(trained, capsys, mode, out, writes):
    found = message(capsys, ["--mode", mode, "--workdir", str(trained), "--out", out], 2)
    assert f"--out is '{out}'; --mode {mode} writes {writes}" in found


def test_data_that_the_model_does_not_take_are_refused_with_its_own_shape(trained, tmp_path, capsys):
    x = np.arange(4 * 16 * 16 * 3, dtype=np.uint32).astype(np.uint8).reshape(4, 16, 16, 3)
    np.savez(tmp_path / "large.npz", train_image=x, test_image=x)
    options = ["--workdir", str(trained), f"--config.dataset.path={tmp_path / 'large.npz'}"]
    for mode in ("reconstruct", "evaluate"):
        found = message(capsys, ["--mode", mode, *options], 2)
        assert f"The model in {trained} takes data of shape 8x8x1; the data are 16x16x3" in found
        assert "experiments" not in found


def test_other_data_than_the_runs_are_used_and_named(trained, tmp_path, capsys):
    x = np.arange(4 * 8 * 8, dtype=np.uint8).reshape(4, 8, 8, 1)
    np.savez(tmp_path / "own.npz", train_image=x, test_image=x)
    own = [f"--config.dataset.path={tmp_path / 'own.npz'}", "--out", str(tmp_path / "r.png")]
    assert main(["--mode", "reconstruct", "--workdir", str(trained), *own]) == 0
    err = capsys.readouterr().err
    assert "The data are not those that the run was trained on: " in err
    assert "training rows were 1400; now 4" in err


def test_a_key_of_the_training_cannot_change_afterwards(trained, capsys):
    arguments = ["--mode", "sample", "--workdir", str(trained), "--config.latent_dim=4"]
    assert "another latent_dim" in message(capsys, arguments, 2)


def test_the_folder_of_another_run_is_refused_and_unchanged(trained, capsys):
    before = contents(trained)
    arguments = ["--config", str(trained.parent / "config.py"), "--workdir", str(trained), "--config.seed=3"]
    assert "seed was 0 and is 3" in message(capsys, arguments, 2)
    assert contents(trained) == before


def test_broken_data_and_folders_that_cannot_be_used_have_status_1(tmp_path, capsys):
    (tmp_path / "broken.npz").write_bytes(b"no zip")
    np.savez(tmp_path / "keys.npz", images=np.zeros((2, 8, 8, 1), np.uint8))
    for name in ("broken.npz", "keys.npz"):
        arguments = ["--config", DIGITS, "--workdir", str(tmp_path / "run")]
        assert name in message(capsys, [*arguments, f"--config.dataset.path={tmp_path / name}"], 1)
    below_a_file = str(tmp_path / "broken.npz" / "run")
    assert "is not a folder" in message(capsys, ["--config", DIGITS, "--workdir", below_a_file], 1)
    assert not (tmp_path / "run").exists()


def test_a_damaged_image_or_archive_is_named(pictures, tmp_path, capsys):
    (pictures / "3.png").write_bytes((pictures / "3.png").read_bytes()[:50])
    x = np.zeros((4, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "cut.npz", train_image=x, test_image=x)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:-50])
    for path, named in ((pictures, "3.png"), (tmp_path / "cut.npz", "cut.npz")):
        arguments = ["--config", DIGITS, "--workdir", str(tmp_path / "run"), f"--config.dataset.path={path}"]
        assert named in message(capsys, arguments, 1)
    assert not (tmp_path / "run").exists()


def test_a_workdir_that_cannot_be_written_has_status_1(tmp_path, capsys):
    (tmp_path / "file").touch()
    arguments = ["--config", DIGITS, "--workdir"]
    assert "is not a folder" in message(capsys, [*arguments, str(tmp_path / "file")], 1)
    (tmp_path / "closed").mkdir(mode=0o500)
    if os.access(tmp_path / "closed", os.W_OK):
        pytest.skip("this user may write into folders without permission")
    assert "cannot be written" in message(capsys, [*arguments, str(tmp_path / "closed" / "run")], 1)


def test_a_failure_after_all_checks_has_status_1(trained, tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise ValueError("an image changed")

    monkeypatch.setattr("ali_jax.game.evaluate", fail)
    for mode in ("evaluate", "reconstruct"):
        assert main(["--mode", mode, "--workdir", str(trained)]) == 1
        assert capsys.readouterr().err.endswith("ali_jax: an image changed\n")


def test_a_few_identical_images_train_and_evaluate(pictures, tmp_path, monkeypatch, capsys):
    (pictures / "notes.txt").touch()
    names = (
        "samples",
        "reconstructions",
        "interpolations",
        "reconstruction_error",
        "posterior",
        "memorisation",
    )
    own = {"dataset__shape": (), "dataset__name": "images", "evaluators": names}
    file = write_config(tmp_path, batch_size=8, num_steps=2, **own)
    run = tmp_path / "run"
    assert "give your images: --config.dataset.path=DIR or an .npz" in message(
        capsys, ["--config", file, "--workdir", str(run)], 2
    )
    monkeypatch.chdir(tmp_path)
    command = ["--config", file, "--workdir", str(run)]
    assert main([*command, "--config.dataset.path=pictures"]) == 0
    first_lines = capsys.readouterr().err.splitlines()[1:4]  # after that of the device
    assert first_lines == [
        "pictures trains on 3 rows (train) and tests on 2 rows (test).",
        "pictures has 5 images. Skipped: 1 .txt file.",
        "The images are all but constant: the pixels run from 99 to 99 of 255.",
    ]
    rows = [strict_json(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    summary = strict_json((run / "summary.json").read_text())
    assert rows[-1]["memorisation"] is summary["metrics"]["memorisation"] is None
    assert summary["metrics"]["reconstruction_mse_random_pair"] == 0

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert main(["--mode", "evaluate", "--workdir", str(run), "--json"]) == 0
    assert strict_json(capsys.readouterr().out)["metrics"] == summary["metrics"]
    strict_json((run / "evaluation.json").read_text())

    pictures.rename(tmp_path / "moved")
    assert main(["--mode", "sample", "--workdir", str(run), "--out", "s.png"]) == 0
    assert main([*command, "--config.dataset.path=pictures"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    refused = ["--mode", "interpolate", "--workdir", str(run)]
    assert "there is no such file or folder" in message(capsys, refused, 2)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main([*refused, "--config.dataset.path=~/moved", "--out=~/lines.png"]) == 0
    assert (tmp_path / "lines.png").is_file()
    longer = ["--config", file, "--workdir=~/run", "--config.num_steps=4"]
    assert main([*longer, "--config.dataset.path=~/moved"]) == 0
    assert strict_json((run / "summary.json").read_text())["step"] == 4
    known = json.loads((run / "config.json").read_text())["dataset"]
    assert (known["path"], known["shape"]) == (str(tmp_path / "moved"), [8, 8, 1])
    capsys.readouterr()
    assert "num_steps was 4 and is 3" in message(capsys, [*command, "--config.num_steps=3"], 2)


def test_images_of_another_size_than_the_runs_are_refused(pictures, tmp_path, capsys):
    file = write_config(tmp_path, batch_size=8, num_steps=2, dataset__shape=(), evaluators=())
    command = ["--config", file, "--workdir", str(tmp_path / "run")]
    assert main([*command, f"--config.dataset.path={pictures}"]) == 0
    capsys.readouterr()
    for path in pictures.iterdir():
        Image.new("L", (16, 16)).save(path)
    found = message(capsys, [*command, f"--config.dataset.path={pictures}", "--config.num_steps=4"], 2)
    assert f"{tmp_path / 'run'} was trained on other data: shape was 8x8x1; now 16x16x1" in found
    assert "init_from" not in found


def test_ctrl_c_saves_the_last_step_and_exits_with_130(tmp_path, monkeypatch, capsys):
    signalling(monkeypatch, 20, signal.SIGINT)
    assert main(["--config", write_config(tmp_path), "--workdir", str(tmp_path / "run")]) == 130
    assert "Step 20 is saved" in capsys.readouterr().err


def command(*arguments: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "ali_jax.main", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": quick.XLA_FLAGS, **environment},
    )


def test_a_mistake_is_reported_soon_and_without_a_traceback(tmp_path):
    began = time.monotonic()
    out, err = command("--config", DIGITS, "--workdir", str(tmp_path / "run"), "--config.sed=3").communicate()
    assert time.monotonic() - began < 10
    assert (out, err) == ("", "ali_jax: There is no config key 'sed' to set. Did you mean seed?\n")


@pytest.mark.parametrize(
    ("pages", "tunables", "backend", "module", "restarts"),
    [
        ("always [madvise] never\n", None, "cpu", "ali_jax.main", True),
        ("always [madvise] never\n", None, "gpu", "ali_jax.main", False),
        ("always [madvise] never\n", None, "cpu", "a_notebook", False),
        ("always [madvise] never\n", "", "cpu", "ali_jax.main", False),
        ("[always] madvise never\n", None, "cpu", "ali_jax.main", False),
        ("always madvise [never]\n", None, "cpu", "ali_jax.main", False),
        (None, None, "cpu", "ali_jax.main", False),
    ],
)
def test_the_program_restarts_with_huge_pages_where_linux_leaves_them_to_it(
    tmp_path, monkeypatch, pages, tunables, backend, module, restarts
):
    setting = tmp_path / "enabled"
    if pages is not None:
        setting.write_text(pages)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if tunables is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", tunables)
    monkeypatch.setattr("ali_jax.main.HUGE_PAGES", setting)
    monkeypatch.setattr("jax.default_backend", lambda: backend)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "dev", "-m", module, "--workdir", "a b"])
    calls = []
    monkeypatch.setattr(os, "execve", lambda *arguments: calls.append(arguments))
    restart_with_huge_pages()
    assert len(calls) == restarts
    for program, arguments, environment in calls:
        assert arguments == [program, "-X", "dev", "-m", module, "--workdir", "a b"]
        assert environment == {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


@pytest.mark.parametrize("convolutions", [False, True])
def test_training_of_convolutions_restarts_once_and_goes_on(tmp_path, monkeypatch, convolutions):
    try:
        expected = ["", "glibc.malloc.hugetlb=1"] if "[madvise]" in HUGE_PAGES.read_text() else [""]
    except OSError:
        expected = [""]
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    changes = {"decoder__width": 8, "decoder__layers": ()} if convolutions else {}
    file, log = Path(write_config(tmp_path, **changes, evaluators=("sampls",))), tmp_path / "log"
    note = (
        f"import os\nwith open({str(log)!r}, 'a') as f:\n    print(os.getenv('GLIBC_TUNABLES', ''), file=f)\n"
    )
    file.write_text(note + file.read_text())
    process = command("--config", str(file), "--workdir", str(tmp_path / "run"), JAX_PLATFORMS="cpu")
    _, err = process.communicate()
    assert process.returncode == 2
    assert "Did you mean samples?" in err
    assert log.read_text().split("\n")[:-1] == (expected if convolutions else [""])


def test_training_never_imports_tensorflow(tmp_path):
    (tmp_path / "fake" / "tensorflow").mkdir(parents=True)
    marker = tmp_path / "imported"
    (tmp_path / "fake" / "tensorflow" / "__init__.py").write_text(
        f"open({str(marker)!r}, 'w').close()\nraise ImportError('a fake')\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", "import tensorflow"],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "fake")},
        capture_output=True,
        check=False,
    )
    assert found.returncode == 1
    marker.unlink()  # such an import is noticed
    file = write_config(tmp_path, num_steps=2)
    process = command("--config", file, "--workdir", str(tmp_path / "run"), PYTHONPATH=str(tmp_path / "fake"))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert not marker.exists()


def test_sigterm_saves_the_last_step_and_exits_with_143(tmp_path):
    file, run = write_config(tmp_path, num_steps=1_000_000), tmp_path / "run"
    process = command("--config", file, "--workdir", str(run))
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert "Traceback" not in err
    assert "Warning" not in err
    saved = max(int(path.name) for path in (run / "checkpoints").glob("[0-9]*"))
    assert f"Step {saved} is saved" in err
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert last == saved
    assert out == ""
