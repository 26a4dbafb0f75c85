"""A run knows its data: its folder says what they were, and other data are refused or named."""

import json
import shutil

import jax
import numpy as np
import pytest
from test_loop import contents, tiny

from ali_jax import data, game
from ali_jax.data import facts
from ali_jax.game import from_config, states
from ali_jax.program import loop
from ali_jax.records import known_data, workdir


def pixels(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 250, (n, 8, 8, 1), np.uint8)


def dataset(x=None, test=None, label=None, classes: int = 2, **changes) -> data.Dataset:
    """Return 40 training and 10 test images of two classes, with changes."""
    x, test = pixels(40) if x is None else x, pixels(10, 1) if test is None else test
    label = np.arange(len(x), dtype=np.int32) % 2 if label is None else label
    of_test = np.arange(len(test), dtype=np.int32) % 2
    splits = (data.ArraySplit(a, None, labels, classes) for a, labels in ((x, label), (test, of_test)))
    return data.Dataset("pets", *splits, divisor=255.0, num_classes=classes)._replace(**changes)


def changes(new: data.Dataset, **facts_of_new) -> list[str]:
    return facts.differences(facts.describe(dataset()), {**facts.describe(new), **facts_of_new})


def test_the_facts_are_what_a_model_needs_to_be_used_without_its_data():
    known = json.loads(json.dumps(facts.describe(dataset(splits=("train[:40]", "test")))))
    expected = {"name": "pets", "shape": [8, 8, 1], "dtype": "uint8", "divisor": 255.0, "range": [0.0, 1.0]}
    assert {key: known[key] for key in expected} == expected
    assert (known["num_classes"], known["class_names"], known["resize"]) == (2, [], "none")
    assert [(known[p]["part"], known[p]["rows"]) for p in ("train", "test")] == [
        ("train[:40]", 40),
        ("test", 10),
    ]


def test_the_same_data_do_not_differ():
    assert changes(dataset()) == []
    assert facts.slight_differences(facts.describe(dataset()), facts.describe(dataset())) == []


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (dataset(pixels(60)), ["training rows were 40; now 60"]),
        (dataset(pixels(40, 5)), ["training rows have other values"]),
        (dataset(pixels(40)[::-1]), ["training rows have other values"]),
        (dataset(255 - pixels(40)), ["training rows have other values"]),
        (dataset(label=np.arange(1, 41, dtype=np.int32) % 2), ["training rows have other labels"]),
        (dataset(classes=3, num_classes=3), ["classes were 2; now 3"]),
        (dataset(divisor=16.0), ["divisor of pixels was 255; now 16"]),
        (dataset(np.zeros((40, 4, 4, 3), np.uint8)), ["shape was 8x8x1; now 4x4x3"]),
        (dataset(attributes=("hat",)), ["attributes were none; now hat"]),
    ],
)
def test_what_differs_is_named(new, expected):
    assert changes(new) == expected


def test_classes_are_named():
    old, new = (
        {**facts.describe(dataset(classes=len(names), num_classes=len(names))), "class_names": list(names)}
        for names in (("cats", "dogs"), ("cats", "dogs", "birds"))
    )
    assert facts.differences(old, new) == ["classes were cats, dogs; now cats, dogs, birds"]
    assert facts.differences(old, {**old, "class_names": ["dogs", "cats"]}) == [
        "classes were cats, dogs; now dogs, cats"
    ]
    many = {**old, "class_names": [f"c{k}" for k in range(100)]}
    assert facts.differences(old, many)[0].endswith("c10, c11 and 88 more")


def test_images_that_decode_a_little_differently_and_other_test_rows_are_said_but_not_refused():
    old = facts.describe(dataset())
    for new, said in (
        (dataset(pixels(40) + np.uint8(1)), "training rows have slightly different values"),
        (dataset(test=pixels(12, 1)), "test rows were 10; now 12"),
        (dataset(test=pixels(10, 2)), "test rows have other values"),
    ):
        assert changes(new) == []
        assert said in facts.slight_differences(old, facts.describe(new))[0]


def test_a_large_set_is_not_read_for_its_facts():
    asked = []

    class Counted(data.ArraySplit):
        def rows(self, indices):
            asked.extend(indices)
            return super().rows(indices)

    split = Counted(pixels(1000))
    facts.describe(data.Dataset("large", split, dataset().test, 255.0))
    assert len(asked) <= 32
    assert {0, 999} <= set(asked)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Give the folder of a finished run, of digits with averaged weights."""
    folder = tmp_path_factory.mktemp("known") / "run"
    assert loop.run(tiny(num_steps=10, evaluators=()), folder) == 0
    return folder


def other_digits(monkeypatch, change) -> None:
    load = from_config.load_data
    monkeypatch.setattr(from_config, "load_data", lambda config: change(load(config)))


def test_folder_and_checkpoint_carry_the_format_and_the_facts(whole):
    digits = facts.describe(from_config.load_data(tiny()))
    assert json.loads((whole / "config.json").read_text())["format"] == 2
    assert json.loads((whole / "data.json").read_text()) == digits
    progress = json.loads((whole / "checkpoints" / "10" / "progress" / "metadata").read_text())
    assert (progress["format"], progress["data"]) == (2, digits)
    assert digits["divisor"] == 16.0


def test_the_facts_of_the_checkpoint_stand_in_for_a_lost_file(whole, tmp_path):
    copy = shutil.copytree(whole, tmp_path / "run")
    (copy / "data.json").write_text('{"shape": 3}')
    assert known_data.read(copy) == known_data.read(whole) != {}
    shutil.rmtree(copy / "checkpoints")
    assert known_data.read(copy) == {}


def test_the_facts_of_the_newest_checkpoint_are_taken(tmp_path):
    for step in (9, 10):
        known = facts.describe(dataset(pixels(30 + step)))
        file = tmp_path / "checkpoints" / str(step) / "progress" / "metadata"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"data": known}))
    assert known_data.read(tmp_path)["train"]["rows"] == 40


def test_a_run_does_not_go_on_with_other_data_and_stays_as_it_is(whole, monkeypatch):
    before = contents(whole)
    other_digits(
        monkeypatch, lambda d: d._replace(train=data.ArraySplit(d.train.x[:99], None, d.train.label[:99], 10))
    )
    with pytest.raises(ValueError, match=r"training rows were 1400; now 99\. .*--config\.init_from=.*/run "):
        loop.run(tiny(num_steps=20, evaluators=()), whole)
    with pytest.raises(ValueError, match=r"training rows were 1400") as error:
        known_data.check_resumed(whole, tiny(), dataset(np.zeros((9, 4, 4, 3), np.uint8)))
    assert "init_from" not in str(error.value)  # its networks do not fit
    assert contents(whole) == before


def test_a_run_without_a_checkpoint_may_begin_with_other_data(whole, tmp_path):
    copy = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(copy / "checkpoints")
    known_data.check_resumed(copy, tiny(), dataset())


def test_a_conditional_model_refuses_other_classes_and_every_model_another_shape(whole):
    conditional = tiny(dataset__conditional=True)
    with pytest.raises(ValueError, match=r"classes were 10; now 2\. Give it data with the same classes"):
        known_data.check_used(whole, conditional, dataset())
    assert "classes were 10; now 2" in known_data.check_used(whole, tiny(), dataset())  # said, not refused
    with pytest.raises(
        ValueError,
        match=(
            r"takes data of shape 8x8x1; the data are 4x4x3: set config\.dataset\.resize=\(8, 8\) and "
            "convert the images to grey"
        ),
    ):
        known_data.check_used(whole, tiny(), dataset(np.zeros((9, 4, 4, 3), np.uint8)))


def test_other_test_data_are_said_when_a_run_goes_on(whole, tmp_path, monkeypatch, capsys):
    copy = shutil.copytree(whole, tmp_path / "run")
    (copy / "summary.json").unlink()
    other_digits(
        monkeypatch, lambda d: d._replace(test=data.ArraySplit(d.test.x[:99], None, d.test.label[:99], 10))
    )
    assert loop.run(tiny(num_steps=10, evaluators=()), copy) == 0
    assert "The data have changed: test rows were 397; now 99." in capsys.readouterr().err
    assert known_data.read(copy)["test"]["rows"] == 99


@pytest.mark.parametrize(
    "values",
    [
        {"dataset__conditional": True},
        {"dataset__labelled": 100, "loss": "semi_supervised", "discriminator__num_classes": 10},
        {"discriminator__packing": 11},
    ],
)
def test_the_state_of_a_model_needs_no_data_but_their_facts(values):
    config = tiny(evaluators=(), **values)
    real = from_config.load_data(config)
    blank = game.blank_data(config, facts.describe(real))
    a, b = (game.abstract_state(game.prepare(config, given)) for given in (real, blank))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), a) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), b
    )
    assert blank.divisor == 16.0


def blank_state(made: game.Game):
    """Return a state of zeros: nothing is compiled."""
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), game.abstract_state(made))


ALL = ("encoder", "decoder", "discriminator")


@pytest.mark.parametrize("networks", [ALL, ("decoder",), ("encoder", "discriminator")])
def test_a_new_run_starts_from_the_averaged_weights_of_the_networks_that_it_names(
    whole, monkeypatch, networks
):
    made = game.prepare(tiny(init_from=str(whole), init_networks=networks))
    trained = game.trained_state(made, whole)[0]
    monkeypatch.setattr(from_config, "load_data", None)  # the old run's data may be gone
    blank = blank_state(made)
    state = states._with_trained_networks(made, blank)
    for role in ALL:
        given = trained.ema if role in networks else blank.variables
        for part in ("params", "batch_stats"):
            expected = getattr(getattr(given, part), role)
            for variables in (state.variables, state.ema):
                found = getattr(getattr(variables, part), role)
                jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_fine_tuning_may_have_other_rows_steps_batches_and_penalties(whole):
    values = {"num_steps": 20, "batch_size": 7, "dataset__train_split": "train[:300]", "ema_decay": 0.0}
    made = game.prepare(tiny(init_from=str(whole), init_networks=ALL, penalties__r1__gamma=0.3, **values))
    assert len(made.dataset.train) == 300
    state = states._with_trained_networks(made, blank_state(made))
    trained = game.trained_state(game.prepare(tiny()), whole)[0].ema
    jax.tree.map(np.testing.assert_array_equal, state.variables.params, trained.params)
    assert state.step == 0
    assert not any(map(np.any, jax.tree.leaves(state.opt_state)))


def test_networks_of_other_shapes_are_refused_by_name(whole):
    made = game.prepare(tiny(init_from=str(whole), init_networks=ALL, discriminator__z_layers=(9,)))
    with pytest.raises(ValueError, match="its discriminator, or its number of members, differs"):
        states._with_trained_networks(made, blank_state(made))


def test_training_longer_under_a_schedule_offers_a_new_run_from_the_weights(whole, tmp_path):
    scheduled = {"optimizer__constant_fraction": 0.5, "instance_noise": 0.1}
    (tmp_path / "config.json").write_text(loop.configs.to_json(tiny(**scheduled)))
    with pytest.raises(ValueError, match="num_steps was 30 and is 60") as error:
        workdir.check_same_run(tiny(num_steps=60, **scheduled), tmp_path)
    assert "the schedule of optimizer.constant_fraction and of instance_noise follows num_steps" in str(
        error.value
    )
    assert f"--config.init_from={tmp_path} --config.init_networks=" in str(error.value)
    with pytest.raises(ValueError, match="num_steps was 30 and is 20") as error:
        workdir.check_same_run(tiny(num_steps=20, **scheduled), tmp_path)
    assert "init_from" not in str(error.value)


def test_a_run_goes_on_when_its_first_weights_are_gone_or_named_from_another_folder(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(loop.configs.to_json(tiny(init_from=str(tmp_path / "gan"))))
    monkeypatch.chdir(tmp_path)
    workdir.check_same_run(tiny(init_from="gan"), tmp_path)
    with pytest.raises(ValueError, match="init_from was"):
        workdir.check_same_run(tiny(init_from="other"), tmp_path)
