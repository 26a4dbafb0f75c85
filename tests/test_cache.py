"""What is kept in the user's cache is computed once, and only for equal arguments and the same code."""

import os

import numpy as np
import pytest
from test_evaluate import copier

from ali_jax import cache, data, evaluate
from ali_jax.evaluate import classes
from ali_jax.metrics import classifier


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Give the cache a folder of its own."""
    monkeypatch.setenv("ALI_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Counted:
    """A function that counts its calls."""

    def __init__(self, result=3):
        self.calls, self.result = 0, result

    def __call__(self):
        self.calls += 1
        return self.result


def test_a_result_is_computed_once_for_equal_arguments(place):
    compute, x = Counted({"a": np.arange(3)}), np.arange(4)
    for about in (("n", x, 1), ("n", x.copy(), 1)):
        np.testing.assert_array_equal(cache.kept(compute, *about)["a"], np.arange(3))
    assert compute.calls == 1
    others = [("m", x, 1), ("n", x + 1, 1), ("n", x.astype(np.uint8), 1), ("n", x, 2), ("n", x[None], 1)]
    for about in others:
        cache.kept(compute, *about)
    assert compute.calls == 1 + len(others)


def test_other_code_or_other_libraries_compute_it_again(place, monkeypatch):
    compute = Counted()
    cache.kept(compute, "n")
    monkeypatch.setattr(cache, "_versions", lambda: "another")
    cache.kept(compute, "n")
    assert compute.calls == 2


def test_a_damaged_result_is_computed_again_without_a_word(place, recwarn, capfd):
    compute = Counted()
    cache.kept(compute, "n")
    files = [path for path in place.rglob("*") if path.is_file()]
    assert files
    for path in files:
        path.write_bytes(b"\x80")
    assert (cache.kept(compute, "n"), compute.calls) == (3, 2)
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("given", ["off", os.devnull, "/proc/never"])
def test_without_a_folder_nothing_is_kept(monkeypatch, given):
    monkeypatch.setenv("ALI_JAX_CACHE", given)
    compute = Counted()
    assert [cache.kept(compute, "n") for _ in range(2)] == [3, 3]
    assert compute.calls == 2
    assert cache.folder() is None


def test_the_folder_is_that_of_the_user(tmp_path, monkeypatch):
    monkeypatch.delenv("ALI_JAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.folder() == tmp_path / "ali_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.folder() == tmp_path / "home" / ".cache" / "ali_jax"


def test_the_reference_classifier_is_trained_once_for_the_same_rows(place, monkeypatch):
    rng = np.random.default_rng(0)
    x, label = rng.integers(0, 17, (40, 8, 8, 1)).astype(np.uint8), np.arange(40) % 2
    trained, train = [], classifier._trained

    def noted(*arguments):
        trained.append(arguments)
        return train(*arguments)

    monkeypatch.setattr(classifier, "_trained", noted)
    options = {"divisor": 16.0, "length": 0.01}
    first, second = (classifier.fit_classifier(x, label, 2, **options) for _ in range(2))
    assert len(trained) == 1
    np.testing.assert_array_equal(first.probabilities(x / 16), second.probabilities(x / 16))
    classifier.fit_classifier(x, 1 - label, 2, **options)
    classifier.fit_classifier(x, label, 2, **options, seed=1)
    assert len(trained) == 3


def test_controls_of_probes_are_asked_for_and_kept(place, monkeypatch, key):
    few = data.load("digits", train_split="train[:60]", test_split="test[:30]")
    ali, variables = copier(few)
    without = evaluate.probes(ali, variables, key, few, controls=False).scalars
    assert without.keys() == {"knn_accuracy", "linear_probe_accuracy", "n_train_labelled", "n_test_labelled"}
    computed, accuracies = [], classes._accuracies

    def noted(*arguments):
        computed.append(arguments)
        return accuracies(*arguments)

    monkeypatch.setattr(classes, "_accuracies", noted)
    found = []
    for split in ("test[:30]", "test[:30]", "test[:29]"):
        again = data.load("digits", train_split="train[:60]", test_split=split)
        found.append(evaluate.probes(ali, variables, key, again).scalars)
    assert found[0] == found[1]
    assert found[0].items() >= without.items()
    assert len(computed) == 4 + 1 + 4  # the codes each time, and three controls where rows are new
