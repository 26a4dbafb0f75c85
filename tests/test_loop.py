"""A run can be stopped anywhere and resumed as if it had not stopped; its files say what happened."""

import json
import re
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax._src.array import ArrayImpl
from small import experiment
from test_checkpoint import assert_same_bits, damage

from ali_jax import config as configs
from ali_jax import game, train
from ali_jax.program import loop
from ali_jax.records import checkpoint, workdir, writers


def tiny(**changes):
    """Return digits with networks a few units wide, for 30 steps; keywords are keys with __ for the dots."""
    config = experiment("digits")
    config.update_from_flattened_dict(
        {
            "batch_size": 11,  # a prime number: it runs on one device
            "num_steps": 30,
            "steps_per_call": 10,
            "log_every": 10,
            "checkpoint_every": 10,
            "evaluate_every": 20,
            "latent_dim": 3,
            "ema_decay": 0.9,
            "evaluators": ("samples", "reconstruction_error"),
            "report": False,
            "evaluation.grid": (2, 2),
            "encoder.layers": (8,),
            "decoder.layers": (8,),
            "discriminator.x_layers": (8,),
            "discriminator.z_layers": (8,),
            "discriminator.joint_layers": (8,),
            "dataset.dequantize": 0.0,
            "penalties.r1.gamma": 0.0,
            "optimizer.constant_fraction": 1.0,
            **{key.replace("__", "."): value for key, value in changes.items()},
        }
    )
    return config


def restored(config, folder: Path, *, trained: bool = True):
    the_game = game.prepare(config, trained=trained)
    manager = checkpoint.open_manager(folder / "checkpoints")
    return checkpoint.restore(manager, game.abstract_state(the_game))[0]


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def contents(folder: Path) -> dict:
    """Return what is in a folder: names, times of change and sizes."""
    paths = sorted(folder.rglob("*"))
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in [folder, *paths]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Give the folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    assert loop.run(tiny(), folder) == 0
    return folder


@pytest.fixture(scope="module")
def last_state(whole):
    """Give the last state of that run."""
    return restored(tiny(), whole)


def signalling(monkeypatch, step: int, number: int) -> None:
    """Send this process a signal when the row of a step is written."""
    write = writers.Records.scalars

    def scalars(self, at, values, **more):
        write(self, at, values, **more)
        if at == step and writers.TRAINING in values:
            signal.raise_signal(number)

    monkeypatch.setattr(writers.Records, "scalars", scalars)


def test_the_folder_holds_what_the_run_did(whole):
    assert configs.differences(workdir.read_config(whole), tiny()) == {}
    assert [row["step"] for row in rows(whole)] == [10, 20, 20, 30, 30]
    assert {"loss/generator", "loss/discriminator"} <= rows(whole)[0].keys()
    assert {path.name for path in (whole / "images").iterdir()} == {"samples_20.png", "samples_30.png"}
    assert workdir.checkpoint_steps(whole) == [20, 30]
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["step"] == 30
    assert summary["images_seen"] == 330
    assert summary["images_per_second"] > 0
    assert summary["wall_seconds"] > 0
    assert summary["metrics"] == {key: value for key, value in rows(whole)[-1].items() if key != "step"}
    assert {"reconstruction_mse", "raw/reconstruction_mse"} <= summary["metrics"].keys()
    assert list(whole.glob("events.out.tfevents.*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_resumes_bit_for_bit(whole, last_state, tmp_path, monkeypatch, number):
    with monkeypatch.context() as patch:
        signalling(patch, 20, number)
        assert loop.run(tiny(checkpoint_every=30), tmp_path) == 128 + number
    assert workdir.checkpoint_steps(tmp_path) == [20]
    assert not (tmp_path / "summary.json").exists()
    assert loop.run(tiny(dataset__feed="host", keep_checkpoints=1), tmp_path) == 0  # streamed from now on
    assert_same_bits(restored(tiny(), tmp_path), last_state)
    assert rows(tmp_path) == rows(whole)
    assert workdir.read_config(tmp_path).dataset.feed == "host"


def test_a_killed_run_resumes_from_its_last_checkpoint_without_duplicate_rows(
    whole, last_state, tmp_path, monkeypatch
):
    def killed(self, at, values):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writers.Records, "images", killed)  # at the evaluation of step 20, after its row
        with pytest.raises(KeyboardInterrupt):
            loop.run(tiny(checkpoint_every=20), tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "loss/generator": 9}\n{"step": 40, "lo')
    assert loop.run(tiny(), tmp_path) == 0
    assert rows(tmp_path) == rows(whole)
    assert_same_bits(restored(tiny(), tmp_path), last_state)


def test_calls_of_another_length_and_a_longer_run_follow_the_same_path(tmp_path, monkeypatch):
    lengths = call_lengths(monkeypatch)
    assert loop.run(tiny(num_steps=15, evaluators=()), tmp_path / "a") == 0
    assert loop.run(tiny(num_steps=30, evaluators=()), tmp_path / "a") == 0
    assert lengths == [10, 5, 5, 10]  # from the odd step on, calls end at multiples of 10 again
    trained = [row["step"] for row in rows(tmp_path / "a") if "loss/generator" in row]
    assert trained == [10, 15, 20, 30]
    assert loop.run(tiny(num_steps=30, steps_per_call=5, evaluators=()), tmp_path / "b") == 0
    a, b = (restored(tiny(), tmp_path / name) for name in "ab")
    assert int(a.step) == int(b.step) == 30
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def call_lengths(monkeypatch) -> list[int]:
    """Return a list that receives the number of steps of each call that a run makes."""
    lengths, make_call = [], loop.make_call

    def noted(the_game, feed, steps):
        call = make_call(the_game, feed, steps)

        def counted(*arguments):
            lengths.append(steps)
            return call(*arguments)

        return counted

    monkeypatch.setattr(loop, "make_call", noted)
    return lengths


def test_the_last_step_is_logged_saved_and_evaluated_whatever_is_due(tmp_path):
    never = {"log_every": 20, "checkpoint_every": 40, "evaluate_every": 0}
    assert loop.run(tiny(num_steps=25, **never), tmp_path) == 0
    assert [(row["step"], "loss/generator" in row) for row in rows(tmp_path)] == [
        (20, True),
        (25, True),
        (25, False),
    ]
    assert workdir.checkpoint_steps(tmp_path) == [25]


def test_time_and_speed_are_those_of_all_sittings_without_compilation_and_evaluation(tmp_path, monkeypatch):
    late, monotonic, evaluate = [0.0], time.monotonic, loop.evaluate

    def slowly(*arguments, **options):
        late[0] += 1_000
        return evaluate(*arguments, **options)

    def compiled(*arguments):
        late[0] += 100
        return make_call(*arguments)

    make_call = loop.make_call
    monkeypatch.setattr(loop, "evaluate", slowly)
    monkeypatch.setattr(loop, "make_call", compiled)
    monkeypatch.setattr(loop.time, "monotonic", lambda: monotonic() + late[0])
    config = tiny(num_steps=60, evaluate_every=20, evaluators=("samples",))
    with monkeypatch.context() as patch:
        signalling(patch, 30, signal.SIGTERM)
        assert loop.run(config, tmp_path, started=monotonic() - 7) == 143
    assert loop.run(config, tmp_path) == 0
    first, second = workdir.read_sittings(tmp_path)
    assert (first["from_step"], first["to_step"], first["end"]) == (0, 30, "signal 15")
    assert (second["from_step"], second["to_step"], second["end"]) == (30, 60, "done")
    assert 1_107 < first["seconds"] < 1_200  # an evaluation, compilation, 7 s before the start
    assert 2_100 < second["seconds"] < 2_200
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert 3_207 < summary["wall_seconds"] < 3_400
    manager = checkpoint.open_manager(tmp_path / "checkpoints")
    progress = checkpoint.restore(manager, game.abstract_state(game.prepare(config)))[1]
    assert progress["timed_images"] == 4 * 110  # of six calls, the first of either sitting is not timed
    assert progress["timed_seconds"] < 60
    speed = progress["timed_images"] / progress["timed_seconds"]
    assert summary["images_per_second"] == pytest.approx(speed)


def test_a_resumed_run_has_no_summary_until_its_end(tmp_path, monkeypatch):
    unstated = {"evaluators": (), "dataset__shape": ()}
    assert loop.run(tiny(num_steps=10, **unstated), tmp_path) == 0
    assert (tmp_path / "summary.json").exists()
    with monkeypatch.context() as patch:
        signalling(patch, 20, signal.SIGTERM)
        assert loop.run(tiny(**unstated), tmp_path) == 143
    assert not (tmp_path / "summary.json").exists()
    assert workdir.read_config(tmp_path).dataset.shape == (8, 8, 1)


def test_the_initialisation_is_traced_once(monkeypatch):
    traced, init_state = [], train.init_state
    monkeypatch.setattr(
        train, "init_state", lambda *given, **options: traced.append(1) or init_state(*given, **options)
    )
    the_game = game.prepare(tiny())
    state = game.initial_state(the_game)
    assert jax.tree.structure(state) == jax.tree.structure(game.abstract_state(the_game))
    assert len(traced) == 1


def test_evaluations_use_the_averaged_parameters_and_show_the_raw_beside():
    the_game = game.prepare(tiny())
    state = game.initial_state(the_game)
    average = jax.tree.map(lambda leaf: 3 * leaf + 0.1, state.variables)

    def error(variables, ema=None, **options) -> dict[str, float]:
        held = state._replace(variables=variables, ema=ema)
        return game.evaluate(the_game, held, "reconstruction_error", **options).scalars

    raw, averaged = error(state.variables), error(average)
    assert raw["reconstruction_mse"] != averaged["reconstruction_mse"]
    assert error(state.variables, average) == averaged
    beside = {f"raw/{key}": raw[key] for key in ("reconstruction_mse", "reconstruction_mse_sampled")}
    assert error(state.variables, average, raw_beside=True) == {**averaged, **beside}
    assert error(state.variables, raw_beside=True) == raw


def test_a_finished_run_is_unchanged(whole, capsys):
    before = contents(whole)
    assert loop.run(tiny(log_every=30), whole) == 0
    assert contents(whole) == before
    assert "nothing to do" in capsys.readouterr().out


def test_a_run_without_its_evaluation_is_evaluated_only(whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        signalling(patch, 30, signal.SIGTERM)
        assert loop.run(tiny(), tmp_path) == 143
    assert not (tmp_path / "summary.json").exists()
    assert loop.run(tiny(), tmp_path) == 0
    assert rows(tmp_path) == rows(whole)
    a, b = (json.loads((folder / "summary.json").read_text()) for folder in (tmp_path, whole))
    assert a["metrics"] == b["metrics"]


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(
    whole, last_state, tmp_path, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        signalling(patch, 20, signal.SIGTERM)
        loop.run(tiny(), tmp_path)
    damage(tmp_path / "checkpoints", 20)
    capsys.readouterr()
    assert loop.run(tiny(), tmp_path) == 0
    said = capsys.readouterr().err
    assert "The checkpoint of step 20 cannot be read" in said
    assert "Resuming from step 10." in said
    assert workdir.checkpoint_steps(tmp_path) == [20, 30]
    assert checkpoint.damage(tmp_path / "checkpoints" / "20") == ""  # it was deleted and saved again
    assert_same_bits(restored(tiny(), tmp_path), last_state)
    assert rows(tmp_path) == rows(whole)


def test_a_loss_that_is_not_finite_stops_the_run_and_is_named_with_its_step(tmp_path):
    config = tiny(optimizer__generator__learning_rate=1e30)
    with pytest.raises(
        loop.NonFiniteError, match=r"at step [2-9] loss/discriminator is nan, .*No checkpoint"
    ):
        loop.run(config, tmp_path)
    assert workdir.checkpoint_steps(tmp_path) == []


def test_a_state_that_is_not_finite_is_never_saved(tmp_path):
    # The penalty's weight grows until the squares in Adam overflow, which no loss shows.
    config = tiny(penalties__r1__gamma=1.0, penalties__r1__gamma_final=1e38)
    with pytest.raises(loop.NonFiniteError, match="The last good checkpoint, of step 10, is kept"):
        loop.run(config, tmp_path)
    assert workdir.checkpoint_steps(tmp_path) == [10]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(restored(config, tmp_path)))


def test_another_config_is_refused_with_both_values_and_changes_nothing(whole):
    before = contents(whole)
    with pytest.raises(ValueError, match="seed was 0 and is 1") as error:
        loop.run(tiny(seed=1, batch_size=13), whole)
    assert "batch_size was 11 and is 13" in str(error.value)
    with pytest.raises(ValueError, match="num_steps was 30 and is 20"):
        loop.run(tiny(num_steps=20), whole)
    assert contents(whole) == before


def test_a_folder_in_use_is_refused(whole):
    with workdir.locked(whole), pytest.raises(workdir.RunError, match="Another process is training"):
        loop.run(tiny(), whole)


@pytest.mark.parametrize("parallel", ["mesh", "pmap"])
def test_a_run_over_eight_devices_finishes(tmp_path, parallel):
    config = tiny(batch_size=16, num_steps=3, parallel=parallel, evaluators=("samples",))
    assert loop.run(config, tmp_path) == 0
    assert len(restored(config, tmp_path, trained=False).key.sharding.device_set) == 8


def test_the_mesh_uses_as_many_devices_as_divide_the_batch(capsys):
    assert [game.make_mesh(size, jax.devices()).size for size in (16, 12, 11, 1)] == [8, 6, 1, 1]
    assert "6 are used" in capsys.readouterr().err


def test_several_hosts_must_be_given_a_batch_that_divides():
    devices = [SimpleNamespace(process_index=i // 4) for i in range(8)]
    with pytest.raises(ValueError, match="set it to 96 or 104"):
        game.make_mesh(100, devices)


def test_an_error_during_the_run_is_a_run_error_not_a_usage_error(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ValueError("an image changed")

    monkeypatch.setattr(loop, "evaluate", fail)
    with pytest.raises(workdir.RunError, match="an image changed"):
        loop.run(tiny(num_steps=10), tmp_path)


def test_a_run_prints_what_it_trains_and_tests_on(tmp_path, capsys):
    config = tiny(
        num_steps=4,
        steps_per_call=1,
        dataset__train_split="train[:900]",
        dataset__test_split="train[900:]",
    )
    assert loop.run(config, tmp_path) == 0
    sentence = "digits trains on 900 rows (train[:900]) and tests on 500 rows (train[900:]).\n"
    said = capsys.readouterr().err
    assert sentence in said
    assert "Trains on 1 x cpu; networks compute in float32, their matrix products in float32.\n" in said
    assert "To do: 4 steps of 11 images. That is 44 images: 0.049 passes over train.\n" in said
    assert re.search(r"\nTo go: about 0:00:0\d \(h:mm:ss\) at [\d,]+ images/s, .* in this process\.\n", said)
    assert said.count("To go") == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder__name": "Encodr"}, "config.encoder.name is 'Encodr'. Did you mean Encoder?"),
        ({"evaluators": ("modes",)}, "The evaluator 'modes' needs known modes, and the data set 'digits'"),
        (
            {"evaluators": ("posterior",), "encoder__posterior": "noise"},
            "'posterior' needs a Gaussian encoder",
        ),
        (
            {"evaluators": ("reconstruction_error",), "dataset__test_split": "test[:1]"},
            "'reconstruction_error' needs two test rows or more",
        ),
        ({"dataset__labelled": 100}, "the loss 'semi_supervised' needs labelled rows"),
        (
            {"dataset__labelled": 55, "loss": "semi_supervised", "discriminator__num_classes": 10},
            "a positive multiple of the 10 classes",
        ),
        (
            {"dataset__labelled": 100, "loss": "semi_supervised", "discriminator__num_classes": 9},
            "num_classes is 9; for the loss",
        ),
        ({"dataset__conditional": True, "condition__size": 9}, "size is 9, but digits has 10 conditions"),
        ({"frozen": ("decoder",)}, "a decoder that is not trained needs config.init_from"),
        ({"init_from": "nowhere"}, "'nowhere', which holds no run"),
        ({"dataset__name": "digit"}, "There is no data set 'digit'. Did you mean digits?"),
        (
            {"discriminator__x_batch_norm": (True,), "penalties__r1__gamma": 1.0},
            "A gradient penalty needs a discriminator without batch norm",
        ),
        ({"dataset__shape": (9, 9, 1)}, "shape 9x9x1 (config.dataset.shape); the data are 8x8x1"),
        ({"loss": "alo"}, "config.loss is 'alo'. Did you mean ali? ali_jax.losses has ali, "),
    ],
)
def test_bad_input_is_named_and_makes_no_folder(tmp_path, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        loop.run(tiny(**changes), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_call_fetches_its_metrics_and_nothing_else(tmp_path, monkeypatch):
    """Count arrays that become host values; on a CPU no transfer guard sees them."""
    fetched, value = [], ArrayImpl._value

    def counted(array):
        fetched.append(array.shape)
        return value.fget(array)

    def fetches(calls: int) -> int:
        fetched.clear()
        at_the_end = {"log_every": 1000, "checkpoint_every": 1000, "evaluate_every": 0, "evaluators": ()}
        assert loop.run(tiny(num_steps=10 * calls, **at_the_end), tmp_path / str(calls)) == 0
        return len(fetched)

    monkeypatch.setattr(ArrayImpl, "_value", property(counted))
    metrics = 2 + 4 + 1  # losses, accuracy and confidence on either kind of pair, finite_steps
    assert fetches(8) - fetches(3) == 5 * metrics
