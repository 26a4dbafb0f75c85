"""The model object: what it takes, what it returns, what it refuses, and that it is the run's model."""

import dataclasses
import pickle
from pathlib import Path

import jax
import numpy as np
import pytest
import small
from PIL import Image
from test_loop import restored, tiny

import ali_jax
from ali_jax import game, model
from ali_jax.evaluate import running
from ali_jax.metrics.blocks import map_fixed_blocks
from ali_jax.networks.inputs import wrong_shape
from ali_jax.tools.trained import Model, model_of


@pytest.fixture(scope="module")
def digits():
    """Give ten images as they are stored, uint8 [10, 8, 8, 1]."""
    return game.load_data(tiny()).test.rows(np.arange(10)).x


def test_it_is_the_averaged_model_of_the_newest_checkpoint(run, trained, digits):
    state = restored(tiny(num_steps=10), run)
    assert state.ema is not None
    ali = game.prepare(tiny()).ali
    z = model.encode(ali, jax.device_get(state.ema), digits / np.float32(16))
    np.testing.assert_allclose(trained.encode(digits), z, atol=1e-5)
    np.testing.assert_allclose(trained.decode(z), model.decode(ali, state.ema, z), atol=1e-5)
    np.testing.assert_allclose(trained.reconstruct(digits), trained.decode(z), atol=1e-6)
    assert repr(trained) == "Model(digits, x: 8x8x1, z: 3, step: 10)"
    assert trained.classes == tuple("0123456789")
    assert (trained.shape, trained.conditions) == ((8, 8, 1), ())


def test_one_image_is_given_in_every_form_with_one_result(trained, digits, tmp_path):
    """Bytes, floats, with and without channels and rows, a picture, a file: the same code."""
    x = np.where(digits[0] > 7, 16, 0).astype(np.uint8)  # black or white, as it can be in a file
    picture = Image.fromarray((x[..., 0] > 0).astype(np.uint8) * 255)
    picture.save(tmp_path / "x.png")
    forms = [x, x[..., 0], x / 16, x.astype(int), picture, picture.convert("RGB"), tmp_path / "x.png"]
    codes = [trained.encode(form) for form in (*forms, str(tmp_path / "x.png"))]
    assert codes[0].shape == (3,)
    assert np.ptp(codes, axis=0).max() < 1e-6
    many = [x[None], x[None, ..., 0], [x, x], [picture, tmp_path / "x.png"], (x / 16)[None]]
    assert [trained.encode(form).shape for form in many] == [(1, 3), (1, 3), (2, 3), (2, 3), (1, 3)]
    assert trained.decode(codes[0]).shape == (8, 8, 1)
    assert trained.score_samples(x).shape == ()


def test_files_of_another_size_are_fitted_if_the_run_resized_its_own(trained, tmp_path):
    Image.new("L", (24, 12), 99).save(tmp_path / "x.png")
    fitting = dataclasses.replace(trained, fit="crop")
    grey = np.full((8, 8), 99 / 255)
    np.testing.assert_allclose(fitting.encode(tmp_path / "x.png"), trained.encode(grey), atol=1e-5)


def test_draws_depend_on_the_seed_alone(trained, digits):
    mean, sigma = trained.posterior(digits)
    np.testing.assert_allclose(trained.encode(digits), mean, atol=1e-6)
    draws = np.stack([trained.encode(digits, sample=True, seed=k) for k in range(40)])
    np.testing.assert_array_equal(draws[3], trained.encode(digits, sample=True, seed=3))
    standard = (draws - mean[None]) / sigma[None]
    assert abs(standard.mean()) < 0.1
    assert abs(standard.std() - 1) < 0.1
    np.testing.assert_allclose(trained.sample(3, seed=1), trained.sample(9, seed=1)[:3], atol=1e-6)
    assert np.abs(trained.sample(3, seed=1) - trained.sample(3, seed=2)).max() > 1e-4


def test_lines_end_at_the_reconstructions(trained, digits):
    path = trained.interpolate(digits[:2], digits[2:4], steps=5)
    assert path.shape == (2, 5, 8, 8, 1)
    for end, x in ((0, digits[:2]), (4, digits[2:4])):
        np.testing.assert_allclose(path[:, end], trained.reconstruct(x), atol=1e-6)
    middle = trained.decode((trained.encode(digits[0]) + trained.encode(digits[2])) / 2)
    np.testing.assert_allclose(trained.interpolate(digits[0], digits[2], 3)[1], middle, atol=1e-6)


def test_scores_are_minus_the_squared_error(trained, digits):
    error = np.mean((digits / 16 - trained.reconstruct(digits)) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(trained.score_samples(digits), -error, rtol=1e-5)


def test_any_number_of_rows_takes_two_programs(trained, digits):
    run = running.compiled(model.encode, "cpu")
    run.clear_cache()
    codes = trained.encode(digits[np.arange(300) % 10])
    for n in (1, 7, 8, 9, 64, 65, 128, 129, 300):
        np.testing.assert_allclose(trained.encode(digits[np.arange(n) % 10]), codes[:n], atol=1e-5)
    assert run._cache_size() == 2
    sizes = []
    map_fixed_blocks(lambda rows: sizes.append(len(rows)) or rows, np.arange(3))
    map_fixed_blocks(lambda rows: sizes.append(len(rows)) or rows, np.arange(200))
    assert sizes == [8, 128, 128]


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((5, 16, 16, 1)), r"\[5, 16, 16, 1\], and this model takes \[N, 8, 8, 1\]: resize .* 8x8"),
        (np.zeros((5, 8, 8, 3)), r"make the images grey, x\[..., :3\].mean\(axis=-1, keepdims=True\)"),
        (np.zeros((5, 8, 8, 2)), r"leave the transparency out, x\[..., :1\]"),
        (np.zeros((24, 12, 1)), r"resize the images to 8x8 pixels with 1 channel\.$"),
        (
            [np.zeros((8, 8)), np.zeros((9, 8))],
            r"image number 0 is \[8, 8\], of number 1 \[9, 8\]: bring them",
        ),
        ([[[1, 2], [3]]], r"The shape of image number 0 is ragged"),
        ([Image.new("L", (8, 8)), np.zeros((8, 8))], "PIL images and, at 1, one ndarray: give files and PIL"),
        ([np.zeros((8, 8)), "x.png"], "PIL images and, at 0, one ndarray"),
        (np.zeros((5, 1, 8, 8)), r"put the channels last, np.moveaxis\(x, 1, -1\)"),
        (np.zeros((5, 64)), r"reshape it, x.reshape\(-1, 8, 8, 1\)"),
        (np.zeros((0, 8, 8, 1)), "no rows"),
        ([], "There are no rows: give at least one"),
        (None, "x is object: give integers"),
        (
            np.ma.masked_less(np.arange(64).reshape(8, 8) / 64, 0.02),
            "images have masked values, 2 of them",
        ),
        ([np.zeros((8, 8)), np.ma.masked_equal(np.eye(8), 1)], "The images have masked values, 8 of"),
        (np.full((8, 8), 255, np.uint8), "run from 255 to 255, .* from 0 to 16: give floats in"),
        (np.full((8, 8), -1.0), r"between -1 and -1, .* x / 16 for pixels .* \(x \+ 1\) / 2"),
        (np.full((1, 8, 8), np.nan), "1 of 1 rows have numbers that are not finite, the first in row 0"),
        (np.full((8, 8), "x"), "x is <U1: give integers"),
        (
            Image.new("L", (9, 8)),
            r"has 9x8 pixels, and this model takes 8x8: resize it, image.resize\(\(8, 8",
        ),
        ("absent.png", r"^absent.png: there is no such file\.$"),
        ("", "path of the image is empty: give the name of a file"),
        ([Path()], r"^\.: this is a folder; give the paths of the images in it"),
    ],
)
def test_what_the_model_does_not_take_is_refused_with_the_cure(trained, x, message):
    with pytest.raises(ValueError, match=message):
        trained.encode(x)


def test_wrong_codes_ends_and_members_are_refused(trained, run, digits, tmp_path):
    for codes in (np.zeros(4), np.zeros((2, 2, 3)), np.zeros((0, 3)), ["a", "b", "c"]):
        with pytest.raises(ValueError, match=r"give numbers \[N, 3\], or \[3\] for one"):
            trained.decode(codes)
    with pytest.raises(ValueError, match="1 of 2 codes have numbers that are not finite, the first in row 1"):
        trained.decode([[0.0, 0, 0], [0, np.nan, 0]])
    with pytest.raises(ValueError, match=r"2 codes have numbers that are beyond float32.* in row 1: leave"):
        trained.decode([[0.0, 0, 0], [0, 1e300, 0]])
    with pytest.raises(
        ValueError, match=r"codes have masked values, 1 of them: fill the gaps, as array\.filled"
    ):
        trained.decode(np.ma.masked_equal([0.0, 1, 2], 1))
    with pytest.raises(
        ValueError, match=r"of code number 0 is .3., of number 1 .2.: bring them to one shape"
    ):
        trained.decode([[0, 0, 0], [0, 0]])
    for n in (0, 2.5, "3"):
        with pytest.raises(ValueError, match=f"n is {n!r}: give a whole number, 1 or more"):
            trained.sample(n)
    with pytest.raises(ValueError, match="2 images at one end and 1 at the other"):
        trained.interpolate(digits[:2], digits[:1])
    with pytest.raises(ValueError, match=r"steps is 2.5: give a whole number, 2 or more"):
        trained.interpolate(digits[0], digits[1], 2.5)
    with pytest.raises(ValueError, match="y is given, but this model has no conditions"):
        trained.encode(digits, y="3")
    for member in (1, -1, "a", 0.0, None):
        with pytest.raises(ValueError, match=f"member is {member!r}; the run has the members 0 to 0"):
            ali_jax.load(run, member=member)
    with pytest.raises(ValueError, match="holds no run"):
        ali_jax.load(tmp_path)


@pytest.mark.parametrize("seed", ["a", None, -1, 1.5, 2**32])
def test_seeds_are_whole_numbers(trained, digits, seed):
    for draw in (
        lambda: trained.encode(digits, sample=True, seed=seed),
        lambda: trained.decode(np.zeros(3), seed=seed),
        lambda: trained.sample(3, seed=seed),
    ):
        with pytest.raises(ValueError, match=f"seed is {seed!r}: give a whole number from 0 to 4294967295"):
            draw()


@pytest.mark.parametrize(
    ("given", "shape"),
    [
        ((3, 6, 5), (6, 5, 3)),  # one image with its channels first, or three grey ones
        ((4, 6, 5), (6, 5, 3)),
        ((6, 5), (6, 5, 3)),
        ((6, 5, 4), (6, 5, 3)),
        ((6, 5, 3), (6, 5, 1)),
        ((4, 6, 5, 1), (6, 5, 3)),
        ((4, 3, 6, 5), (6, 5, 3)),
        ((4, 90), (6, 5, 3)),
    ],
)
def test_the_cure_for_a_shape_cures_it(given, shape):
    """Compute what the message proposes: one image or many of the model's shape."""
    message = wrong_shape("x", given, shape)
    cures = message.split("]: ", 1)[1].rstrip(".").split("; ")
    assert len(cures) == (2 if given == (3, 6, 5) else 1)
    for cure in cures:
        cured = eval(cure.split(", ", 1)[1], {"np": np, "x": np.zeros(given, np.uint8)})
        assert cured.shape in (shape, (len(cured), *shape)), message


def test_conditions_are_names_or_numbers(digits):
    ali, _, batch = small.game("digits", edit=lambda c: c.update_from_flattened_dict(CONDITIONAL))
    variables = small.draw(ali, batch.x, batch.y)
    conditional = Model(ali, variables, (8, 8, 1), divisor=16.0, conditions=("a", "b", "c"))
    one_hot = np.eye(3)
    named = conditional.encode(digits[:2], ["c", "a"])
    np.testing.assert_array_equal(named, conditional.encode(digits[:2], one_hot[[2, 0]]))
    of_all = conditional.encode(digits[:2], "b")
    np.testing.assert_array_equal(of_all, conditional.encode(digits[:2], one_hot[1]))
    assert np.abs(named - of_all).max() > 1e-3
    column = np.array(["c", "a"], object)  # as one of a table
    np.testing.assert_array_equal(named, conditional.encode(digits[:2], column))
    assert conditional.interpolate(digits[:2], digits[2:4], 3, y=["a", "b"]).shape == (2, 3, 8, 8, 1)
    for y, message in (
        (None, r"pass y, \[N, 3\] numbers for a, b, c"),
        ("d", "no condition 'd': the names are a, b, c"),
        ([[1, 0, 0], [1]], "of condition number 0 is .3., of number 1 .1."),
        (np.zeros((3, 3)), r"y is float64 of the shape \[3, 3\]: give numbers \[2, 3\] or \[3\]"),
        ([3, 4], r"y is int64 of the shape \[2\]: .* names as texts, y='a' for all rows or a list of 2"),
        (3, r"y is int64 of the shape \[\]: .* names as texts"),
        (["c"], r"y is <U1 of the shape \[1\]: .* or a list of 2"),
        (np.eye(3)[:2] * np.nan, "2 of 2 rows of y have numbers that are not finite, the first in row 0"),
        (np.ma.masked_equal(np.eye(3)[:2], 1), "The conditions have masked values, 2 of them"),
    ):
        with pytest.raises(ValueError, match=message):
            conditional.encode(digits[:2], y)


CONDITIONAL = {"dataset.conditional": True, "condition.size": 3}


def test_vectors_keep_their_units(digits):
    ali, _, batch = small.game("mixture_stable")
    trained = Model(ali, small.draw(ali, batch.x), (2,), scale=0.5)
    x = np.array([[4, -6], [20, 1]])
    scaled = 0.5 * x.astype(np.float32)
    z, x_hat = (f(ali, trained.variables, scaled) for f in (model.encode, model.reconstruct))
    np.testing.assert_allclose(trained.encode(x), z, rtol=1e-5)
    np.testing.assert_allclose(trained.reconstruct(x[0]), 2 * x_hat[0], rtol=1e-4)
    with pytest.raises(ValueError, match="takes vectors of 2 numbers, not images"):
        trained.encode(Image.new("L", (2, 1)))


def test_a_model_survives_pickling(trained, digits):
    again = pickle.loads(pickle.dumps(trained))
    np.testing.assert_array_equal(again.encode(digits), trained.encode(digits))


def test_a_model_is_made_of_a_game_in_memory_or_of_a_member(run, trained, digits):
    the_game, state = game.trained_run(run)
    np.testing.assert_array_equal(model_of(the_game, state).encode(digits), trained.encode(digits))
    both = jax.tree.map(lambda leaf: np.stack([0 * leaf, leaf]), state)._replace(step=state.step)
    population = the_game._replace(members=(the_game, the_game))
    zeros, same = (model_of(population, both, member).encode(digits) for member in (0, 1))
    assert not zeros.any()
    np.testing.assert_array_equal(same, trained.encode(digits))
    with pytest.raises(ValueError, match="member is 2; the run has the members 0 to 1"):
        model_of(population, both, 2)


def test_the_pure_functions_say_what_is_wrong_with_a_shape(trained):
    ali, variables, x = trained.ali, trained.variables, np.zeros((2, 8, 8, 1), np.float32)
    for function in (model.encode, model.reconstruct, model.posterior, model.features):
        with pytest.raises(ValueError, match=r"x has the shape \[2, 64\], .* x.reshape\(-1, 8, 8, 1\)"):
            function(ali, variables, x.reshape(2, 64))
        with pytest.raises(ValueError, match=r"add the axis of rows, x\[None\]"):
            function(ali, variables, x[0])
        with pytest.raises(ValueError, match="x is a list: give an array"):
            function(ali, variables, [[0.0]])
    for z in (np.zeros((2, 4)), np.zeros(3), [[0, 0, 0]]):
        with pytest.raises(ValueError, match=r"codes of this model are an array \[N, 3\]"):
            model.decode(ali, variables, z)
