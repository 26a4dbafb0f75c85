"""Stacks of images: which images are in them, who refuses them, and which of their classes a model has."""

import json

import jax
import numpy as np
import pytest
import small
from test_evaluate import copier, recaller
from test_feeds import assert_equal, feeds, run
from test_loop import tiny

from ali_jax import config as configs
from ali_jax import data, evaluate, game, model, networks
from ali_jax.data import ArraySplit, DataError, Stacked
from ali_jax.evaluate import coverage, rows
from ali_jax.metrics.classifier import Classifier
from ali_jax.program import loop
from ali_jax.records import read
from ali_jax.tools import describe


@pytest.fixture(scope="module")
def stacks():
    """Give the stacks of three digits."""
    return data.load("digits", stack=3)


class Noted:
    """A split that notes which rows are read."""

    def __init__(self, split):
        self.split, self.read = split, []

    def __getattr__(self, name):
        return getattr(self.split, name)

    def rows(self, indices):
        self.read.append(indices)
        return self.split.rows(indices)


def test_a_stack_has_an_image_in_each_channel_and_their_labels_as_its_class(stacks):
    x, y, label = stacks.train.rows(np.array([7, 0, 7]))
    assert (x.shape, x.dtype, y, label.dtype) == ((3, 8, 8, 3), np.uint8, None, np.int32)
    digits = stacks.parts.train
    for row, at in enumerate((7, 0, 7)):
        images = digits.rows(stacks.train.index[at])
        np.testing.assert_array_equal(x[row], np.moveaxis(images.x[..., 0], 0, -1))
        assert f"{label[row]:03d}" == "".join(map(str, images.label))


def test_train_and_test_are_stacks_of_their_own_images_the_same_for_every_seed(stacks):
    assert (stacks.name, stacks.num_classes, stacks.divisor) == ("stacked digits", 1000, 16)
    assert (len(stacks.train), len(stacks.test)) == (128_000, 26_000)
    assert (stacks.train.shape, stacks.train.nbytes) == ((8, 8, 3), 128_000 * 192)
    other = data.load("digits", stack=3, seed=1)
    for name, number in (("train", 1400), ("test", 397)):
        split = getattr(stacks, name)
        assert split.split is getattr(stacks.parts, name)
        np.testing.assert_array_equal(np.unique(split.index), np.arange(number))  # each image is used
        np.testing.assert_array_equal(split.index, getattr(other, name).index)
        assert np.abs(np.corrcoef(split.index.T) - np.eye(3)).max() < 0.03  # channels are independent


def test_images_of_a_part_of_the_data_alone_are_stacked():
    few = data.load("digits", stack=3, train_split="train[:9]")
    assert (few.train.index.max(), len(few.parts.train), few.splits) == (8, 9, ("train[:9]", "test"))


def test_every_image_is_read_once_however_many_stacks_it_is_in():
    noted = Noted(data.load("digits").train.part(0, 5))
    stack = Stacked(noted, np.random.default_rng(0).integers(5, size=(100, 3)))
    stack.rows(np.arange(100))
    assert [list(read) for read in noted.read] == [list(range(5))]


def test_a_stack_with_an_unlabelled_image_is_unlabelled():
    label = np.array([3, -1, 2], np.int32)
    split = ArraySplit(np.zeros((3, 8, 8, 1), np.uint8), None, label, 4)
    stack = Stacked(split, np.array([[0, 2, 0], [0, 1, 2]]))
    assert stack.num_classes == 64
    assert list(stack.rows(np.arange(2)).label) == [3 * 16 + 2 * 4 + 3, -1]


def test_both_feeds_give_the_same_stacks(stacks):
    part = Stacked(stacks.train.split, stacks.train.index[:50])
    device, host = feeds(part, divisor=16.0, dequantize=0.01)
    assert device.data.x.shape == (50, 8, 8, 3)
    assert_equal(run(device, 5, 4), run(host, 5, 4))  # into the second epoch
    host.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 3}, "has x of 8x8x3 uint8, not grey-scale images: take labelled grey-scale images"),
        ({"labels": False}, "mine has no labels: .* or set config.dataset.stack=0"),
    ],
)
def test_files_that_cannot_be_stacked_are_refused(tmp_path, changes, message):
    given = {"channels": 1, "labels": True} | changes
    arrays = {f"{part}_image": np.zeros((4, 8, 8, given["channels"]), np.uint8) for part in ("train", "test")}
    if given["labels"]:
        arrays |= {f"{part}_label": np.arange(4) for part in ("train", "test")}
    np.savez(tmp_path / "mine.npz", **arrays)
    with pytest.raises(DataError, match=message):
        data.load("", path=str(tmp_path / "mine.npz"), stack=3)


def test_points_cannot_be_stacked():
    with pytest.raises(DataError, match="stack is 3, but mixture has x of 2 float32, not grey-scale images"):
        data.load("mixture", stack=3)


def test_files_of_grey_images_can_be_stacked(tmp_path):
    x = np.arange(4 * 64, dtype=np.uint8).reshape(4, 8, 8)
    images = {f"{part}_image": x for part in ("train", "test")}
    labels = {f"{part}_label": np.arange(4) % 2 for part in ("train", "test")}
    np.savez(tmp_path / "mine.npz", **images, **labels)
    found = data.load("", path=str(tmp_path / "mine.npz"), stack=3)
    assert (found.name, found.train.shape, found.num_classes) == ("stacked mine", (8, 8, 3), 8)
    np.testing.assert_array_equal(found.test.rows(np.array([3])).x[0, ..., 2], x[found.test.index[3, 2]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset__stack": 2}, "config.dataset.stack is 2; it must be 3, one image per channel, or 0"),
        ({"dataset__conditional": True}, "config.dataset.conditional must be False"),
        (
            {"dataset__labelled": 1000, "loss": "semi_supervised"},
            "few labels: .* config.dataset.labelled must be 0",
        ),
    ],
)
def test_configs_that_do_not_go_with_stacks_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        configs.validate(tiny(**{"dataset__stack": 3} | changes))


@pytest.mark.parametrize(
    "name",
    ["class_balance", "probes", "hidden_probe", "l2_svm", "frechet_distance", "label_error", "mode_coverage"],
)
def test_evaluators_of_single_images_refuse_stacks(stacks, name):
    message = f"'{name}' needs classes of single images .*'stacked_modes'.*'stacked digits' .*leave it out"
    with pytest.raises(ValueError, match=message):
        evaluate.check_applicable(name, stacks, copier(stacks)[0], {"features": "classifier"})


def test_stacked_modes_needs_stacks_and_the_classifier_has_single_images_alone(stacks):
    with pytest.raises(ValueError, match=r"'stacked_modes' needs stacks of images \(config.dataset"):
        evaluate.check_applicable("stacked_modes", stacks.parts, copier(stacks.parts)[0])
    with pytest.raises(ValueError, match=r"'stacked digits' has stacks: give the data set's `parts`"):
        rows.reference_classifier(stacks)


def test_the_reader_of_stacks_is_trained_longer_and_each_classifier_once(stacks, monkeypatch):
    lengths = []

    def fit(x, label, num_classes, *, divisor, length):
        del label, num_classes, divisor
        lengths.append(length)
        return Classifier(*3 * (lambda x: np.zeros(len(x), int),))

    parts = stacks.parts._replace(test=ArraySplit(*stacks.parts.test.rows(np.arange(20))))
    test = ArraySplit(*stacks.test.rows(np.arange(20)))  # as for the parts' test: what is in no cache
    monkeypatch.setattr(rows, "fit_classifier", fit)
    rows.reference_predict(parts)
    rows.reference_classifier(parts)
    rows.reference_classifier(parts, length=1.0)
    assert lengths == [1]
    evaluate.stacked_modes(*copier(stacks), jax.random.key(0), stacks._replace(parts=parts, test=test))
    assert lengths == [1, 3]


def test_recalled_stacks_are_the_modes_that_are_counted(stacks, key):
    predict, accuracy = rows.reference_predict(stacks.parts, coverage.READER_LENGTH)
    digits = stacks.parts.train
    right = predict(digits.x / np.float32(16)) == digits.label
    first = [np.flatnonzero(right & (digits.label == k))[0] for k in range(10)]  # an image of each class
    shown = [(1, 2, 3), (3, 2, 1), (1, 2, 3), (0, 0, 7), (9, 9, 9)]  # four classes, one of them twice
    x = np.stack([digits.x[[first[k] for k in row], :, :, 0] for row in shown]) / np.float32(16)
    found = evaluate.stacked_modes(*recaller(stacks, np.moveaxis(x, 1, -1)), key, stacks).scalars
    assert (found["stacked_modes"], found["stacked_modes_strict"]) == (4, 4)
    shares = np.array([2, 1, 1, 1]) / 5
    assert found["stacked_kl"] == pytest.approx(np.log(1000) + np.sum(shares * np.log(shares)), abs=0.01)
    assert found["stacked_kl_floor"] == pytest.approx(0.0192, abs=1e-4)
    assert found["classifier_error"] == pytest.approx(1 - accuracy)
    assert (found["n_stacked"], found["n_stacked_real"], found["n_test_single"]) == (26_000, 26_000, 397)
    assert found["stacked_modes_strict_real"] <= found["stacked_modes_real"] == 1000
    assert found["stacked_modes_strict_real"] > 990
    assert found["stacked_kl_floor"] < found["stacked_kl_real"] < 2 * found["stacked_kl_floor"]
    assert found.keys() == {number.name for number in evaluate.declared()["stacked_modes"]}
    controls = {name for name in found if evaluate.is_control(name)}
    assert found.keys() - controls == {"stacked_modes_strict", "stacked_modes", "stacked_kl"}


def test_a_run_on_stacks_goes_all_the_way(tmp_path):
    evaluators = ("samples", "reconstructions", "reconstruction_error", "stacked_modes")
    shape = {"dataset__stack": 3, "dataset__shape": ()}
    config = tiny(**shape, num_steps=10, evaluate_every=0, evaluators=evaluators)
    assert loop.run(config, tmp_path) == 0
    metrics = json.loads((tmp_path / "summary.json").read_text())["metrics"]
    assert 1 <= metrics["stacked_modes"] <= 1000
    assert "raw/stacked_modes" in metrics
    assert "raw/stacked_modes_real" not in metrics
    pictures = {path.name for path in (tmp_path / "images").iterdir()}
    assert pictures == {"samples_10.png", "reconstructions_10.png"}


def test_missing_classes_of_stacks_are_a_concern():
    real = {"stacked_modes_strict_real": 999.0}
    few, enough = (
        read.concerns({"stacked_modes_strict": count, **real}, {}, 1000, 0) for count in (998.0, 999.0)
    )
    assert few[0].what.startswith("998 classes of stacks get a fifth of their fair share")
    assert (len(few), enough) == (1, [])


def test_codes_of_stacks_are_not_coloured(stacks):
    panel, _ = evaluate.code_panel(*copier(stacks), stacks)
    assert panel.labels is None


@pytest.mark.parametrize("variant", ["stacked_mnist", "stacked_mnist:convolutions"])
def test_the_experiments_networks_have_three_channels(variant):
    config = small.experiment(variant)
    ali = networks.build(config)
    batch = describe.abstract_batch(config, tuple(config.dataset.shape))

    def samples(key, x):
        return model.sample(ali, model.init(ali, key, x), key, 2)

    assert jax.eval_shape(samples, jax.random.PRNGKey(0), batch.x).shape == (2, 28, 28, 3)
    with pytest.raises(ValueError, match="the only variant is convolutions"):
        small.experiment("stacked_mnist:deep")


def test_the_shape_of_stacks_follows_from_the_data():
    config = tiny(dataset__stack=3, dataset__shape=())
    assert describe.data_shape(config) == (8, 8, 3)
    assert game.load_data(config).train.shape == (8, 8, 3)
