"""Features by one name, and precision, recall, density and coverage of models whose samples are known."""

import jax.numpy as jnp
import numpy as np
import pytest
import small
from test_evaluate import copier, recaller

from ali_jax import data, evaluate, game
from ali_jax.data import ArraySplit, Dataset
from ali_jax.metrics import random_features


@pytest.fixture(scope="module")
def digits():
    """Give the digits with those of train in the order of their classes, as in a folder of folders."""
    loaded = data.load("digits")
    order = np.argsort(loaded.train.label, kind="stable")
    return loaded._replace(train=ArraySplit(loaded.train.x[order], None, loaded.train.label[order], 10))


@pytest.fixture(scope="module")
def faces():
    """Give a data set of small colour images without labels."""
    x = np.random.default_rng(0).integers(256, size=(70, 8, 8, 3), dtype=np.uint8)
    return Dataset("faces", ArraySplit(x[:40]), ArraySplit(x[40:]), divisor=255.0)


def measured(dataset, x, key, **options):
    """Return the numbers of a model whose samples are the rows of x, by the name of the number alone."""
    found = evaluate.precision_recall(
        *recaller(dataset, x), key, dataset, features="random", **options
    ).scalars
    return {name.replace("_random", ""): value for name, value in found.items()}


def test_samples_like_train_score_as_train_does_and_others_lose_what_they_lack(digits, key):
    x, rng = digits.train.x / np.float32(16), np.random.default_rng(0)
    copies = measured(digits, x, key)
    assert (copies["n_manifolds"], copies["n_features"]) == (700, 64)
    for name in ("precision", "recall", "density", "coverage"):
        assert copies[name] == pytest.approx(copies[f"{name}_real"], abs=0.15)
        assert 0.75 < copies[f"{name}_real"] < (1.2 if name == "density" else 1)
    noise = measured(digits, rng.random(x.shape).astype(np.float32), key)
    assert max(noise[name] for name in ("precision", "density", "coverage")) < 0.02
    ones = measured(digits, x[digits.train.label == 1], key)
    assert ones["precision"] > 0.75 > 0.3 > max(ones["recall"], ones["coverage"])
    assert {name for name in noise if noise[name] == ones[name]} >= {
        name for name in noise if name.endswith("_real")
    }


def test_half_of_train_is_compared_with_as_many_samples_or_with_fewer(digits, key):
    x = digits.train.x / np.float32(16)
    assert measured(digits, x, key, num_samples=60)["n_manifolds"] == 60
    few = digits._replace(train=digits.train.part(0, 11))
    found = measured(few, x, key)
    assert found.pop("n_manifolds") == 5
    assert found.pop("n_features") == 64
    assert np.isnan(list(found.values())).all()
    assert len(found) == 8


def test_any_function_of_images_gives_features(faces, key):
    pixels = evaluate.Extractor("pixels", "none", lambda x: x.reshape(len(x), -1))
    model = recaller(faces, faces.train.x / np.float32(255))
    found = evaluate.manifold_measurements(*model, key, faces, pixels)
    assert set(found) == {
        *(
            f"{name}_pixels{end}"
            for name in ("precision", "recall", "density", "coverage")
            for end in ("", "_real")
        ),
        "n_manifolds",
        "n_features",
    }
    assert found["n_features"] == 8 * 8 * 3


def test_auto_takes_the_classifier_where_there_are_classes(digits, faces, monkeypatch):
    monkeypatch.setattr(evaluate.features, "classifier_extractor", lambda _: "the classifier")
    assert evaluate.make_extractor(digits) == "the classifier"
    assert evaluate.make_extractor(faces) is evaluate.random_extractor()
    assert evaluate.make_extractor(digits, "random") is evaluate.random_extractor()
    with pytest.raises(
        ValueError, match=r"no features 'vgg'. There are: auto, classifier, random, inception, dinov2"
    ):
        evaluate.make_extractor(digits, "vgg")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": "classifier"}, "'precision_recall' needs labels of two classes or more, .*'faces'"),
        ({"features": "inception"}, r"set config.evaluation.inception_weights to an existing .npz file"),
        (
            {"features": "dinov2", "dinov2_weights": "none.safetensors"},
            r"set config.evaluation.dinov2_weights to an existing .safetensors file",
        ),
    ],
)
def test_features_that_are_not_to_be_had_are_refused(options, message, faces, key):
    for name in ("precision_recall", "frechet_distance"):
        with pytest.raises(ValueError, match=message.replace("precision_recall", name)):
            evaluate.check_applicable(name, faces, copier(faces)[0], options)
    evaluate.check_applicable("precision_recall", faces, copier(faces)[0])


def test_a_game_is_refused_before_it_begins(digits):
    config = small.experiment("digits")
    config.evaluation.features = "dinov2"
    with pytest.raises(
        ValueError, match=r"'precision_recall' needs the weights of DINOv2: set config.evaluation"
    ):
        game.prepare(config, digits)


@pytest.mark.parametrize("shape", [(8, 8, 1), (5, 90, 3)])
def test_random_features_are_the_same_every_time_and_of_one_size(shape):
    x = np.random.default_rng(0).random((3, *shape)).astype(np.float32)
    first, again = (np.asarray(random_features.features(jnp.asarray(x))) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (3, 64)
    assert 0.1 < first.std() < 10
