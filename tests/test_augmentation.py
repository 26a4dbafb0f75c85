"""What D sees of augmented pairs, and when equal augmented joints mean equal joints."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ali_jax import augmentation, config, data
from ali_jax.game import parts
from ali_jax.types import Pairs

ROWS = 400


@pytest.fixture(scope="module")
def pairs():
    """Give pairs of random images of 8x12 pixels, the same for both kinds."""
    rng = np.random.default_rng(0)
    x, z = (jnp.asarray(rng.random(shape), jnp.float32) for shape in ((ROWS, 8, 12, 3), (ROWS, 2)))
    return Pairs(x, z, x, -z)


def augmented(pairs, step=0, **options):
    return augmentation.augment(pairs, jax.random.PRNGKey(1), jnp.asarray(step), **options)


def share_changed(before, after):
    return float(np.mean(np.any(np.asarray(before != after), axis=(1, 2, 3))))


@pytest.mark.parametrize("name", augmentation.TRANSFORMATIONS)
def test_each_image_changes_with_the_probability_given_and_z_never(pairs, name):
    for p in (0.0, 0.4, 1.0):
        seen = augmented(pairs, probabilities={name: p})
        for kind in ("x", "x_tilde"):
            share = share_changed(getattr(pairs, kind), getattr(seen, kind))
            at_rest = 1 / 15 if name == "translation" else 0.0  # 3 x 5 shifts, one of which is none
            assert abs(share - p * (1 - at_rest)) < 0.08
        assert seen.z is pairs.z
        assert seen.z_hat is pairs.z_hat
    assert share_changed(seen.x, seen.x_tilde) > 0.8  # draws of their own


def test_each_row_is_changed_by_itself(pairs):
    """The one pass of `gradients` is exact only then."""
    probabilities = dict.fromkeys(augmentation.TRANSFORMATIONS, 0.7)
    other = pairs._replace(x=pairs.x.at[0].set(0.1), x_tilde=pairs.x_tilde.at[1].set(0.9))
    a, b = (augmented(p, probabilities=probabilities) for p in (pairs, other))
    np.testing.assert_array_equal(a.x[1:], b.x[1:])
    np.testing.assert_array_equal(a.x_tilde[2:], b.x_tilde[2:])
    np.testing.assert_array_equal(a.x_tilde[0], b.x_tilde[0])


def test_the_probabilities_change_linearly_to_their_final_share(pairs):
    options = {"probabilities": {"cutout": 0.8}, "final": 0.25, "num_steps": 10}
    for step, share in ((0, 0.8), (5, 0.5), (10, 0.2), (20, 0.2)):
        assert abs(share_changed(pairs.x, augmented(pairs, step, **options).x) - share) < 0.08


@pytest.mark.parametrize(("axis", "shift"), [*itertools.product((1, 2), (-3, 0, 2))])
def test_a_shift_moves_pixels_exactly_and_brings_in_grey(pairs, axis, shift):
    x = np.asarray(pairs.x)
    moved = np.asarray(augmentation.shifted(pairs.x, jnp.full(ROWS, shift), axis))
    expected = np.roll(x, shift, axis)
    gone = slice(0, shift) if shift > 0 else slice(x.shape[axis] + shift, None)
    expected[(slice(None),) * axis + (gone,)] = 0.5
    np.testing.assert_allclose(moved, expected, atol=1e-7)


def test_translations_reach_an_eighth_of_the_sides_and_no_further():
    x = jnp.zeros((500, 16, 24, 1)).at[:, 8, 12].set(1.0)
    moved = np.asarray(augmentation.translation(x, jax.random.PRNGKey(0)))
    _, row, column, _ = np.nonzero(moved > 0.9)
    assert set(row - 8) == set(range(-2, 3))
    assert set(column - 12) == set(range(-3, 4))


def test_what_is_cut_out_is_a_grey_rectangle_of_half_the_sides(pairs):
    seen = np.asarray(augmentation.cutout(pairs.x, jax.random.PRNGKey(0)))
    gone = (seen == 0.5).all(axis=-1)
    assert np.array_equal(seen[~gone], np.asarray(pairs.x)[~gone])
    for hole in gone[:50]:
        rows, columns = np.flatnonzero(hole.any(axis=1)), np.flatnonzero(hole.any(axis=0))
        assert hole[np.ix_(rows, columns)].all()
        assert len(rows) in (2, 3, 4)  # half of 8, or less at the border
        assert len(columns) in (3, 4, 5, 6)
    assert gone.any(axis=0).all()  # anywhere


def test_colours_change_their_brightness_saturation_and_contrast_alone(pairs):
    x, seen = np.asarray(pairs.x), np.asarray(augmentation.colour(pairs.x, jax.random.PRNGKey(0)))
    brightness = seen.mean(axis=(1, 2, 3)) - x.mean(axis=(1, 2, 3))
    assert -0.25 <= brightness.min() < -0.2 < 0.2 < brightness.max() <= 0.25
    grey, grey_seen = (a.mean(axis=3) - a.mean(axis=(1, 2, 3))[:, None, None] for a in (x, seen))
    contrast = (grey * grey_seen).sum(axis=(1, 2)) / (grey**2).sum(axis=(1, 2))
    np.testing.assert_allclose(grey_seen, contrast[:, None, None] * grey, atol=1e-5)
    assert 0.5 <= contrast.min() < 0.6 < 1.4 < contrast.max() <= 1.5
    hue, hue_seen = (a - a.mean(axis=3, keepdims=True) for a in (x, seen))
    factor = (hue * hue_seen).sum(axis=(1, 2, 3)) / (hue**2).sum(axis=(1, 2, 3)) / contrast
    assert 0 <= factor.min() < 0.1 < 1.9 < factor.max() <= 2.0


def test_gradients_pass_through_every_transformation(pairs):
    key = jax.random.PRNGKey(2)

    @jax.jit
    def slopes(x):
        functions = augmentation.TRANSFORMATIONS.values()
        return [jax.grad(lambda x, t=t: jnp.sum(t(x, key) ** 2))(x) for t in functions]

    for slope in slopes(pairs.x[:4]):
        assert np.isfinite(slope).all()
        assert np.abs(slope).max() > 0


# Operators on the distributions over images of a few pixels, each of which has a few levels.


def operator(states, maps, p):
    """Return (1 - p) I + p K as a matrix, where K draws one of the maps between states."""
    index = {state: i for i, state in enumerate(states)}
    kernel = np.zeros((len(states),) * 2)
    for move in maps:
        for state in states:
            kernel[index[move(state)], index[state]] += 1 / len(maps)
    return (1 - p) * np.eye(len(states)) + p * kernel


def smallest(states, maps, p):
    return np.linalg.svd(operator(states, maps, p), compute_uv=False)[-1]


ROW_OF_FOUR = list(itertools.product((0.0, 1.0), repeat=4))


def mirrored(state):
    return state[::-1]


def rolled(by):
    return lambda state: tuple(np.roll(state, by))


def test_a_mirror_image_is_singular_at_a_half_and_shifts_at_three_quarters():
    shifts = [rolled(by) for by in (-1, 0, 1)]
    for maps, at in (([mirrored], 0.5), (shifts, 0.75)):
        assert smallest(ROW_OF_FOUR, maps, at) < 1e-9
        for p in (0.0, 0.25, 0.49):
            assert smallest(ROW_OF_FOUR, maps, p) > 0.01
    assert smallest(ROW_OF_FOUR, shifts, 0.6) > 0.01  # that p < 1/2 suffices does not mean that it must be


@pytest.mark.parametrize("name", ["translation", "cutout"])
def test_below_a_half_the_transformations_are_injective_on_all_images_of_a_grid(name):
    """The draws of 300 keys stand for all: images of 1x4 pixels, of three levels, move and lose pixels."""
    states = list(itertools.product((0.0, 0.5, 1.0), repeat=4))
    x = jnp.asarray(states, jnp.float32).reshape(-1, 1, 4, 1)
    # One draw for all states, so that each key gives one map.
    of_key = lambda key: jax.vmap(lambda s: augmentation.TRANSFORMATIONS[name](s[None], key)[0])(x)  # noqa: E731
    images = np.asarray(jax.jit(jax.vmap(of_key))(jax.random.split(jax.random.PRNGKey(0), 300)))
    tables = {tuple(map(tuple, np.round(image.reshape(-1, 4) * 2) / 2)) for image in images}
    maps = [dict(zip(states, table, strict=True)).__getitem__ for table in tables]
    assert len(maps) >= 3
    for p in (0.2, 0.4, 0.49):
        assert smallest(states, maps, p) > 1e-3
        difference = np.linalg.inv(operator(states, maps, p))
        assert np.abs(difference).sum(axis=0).max() <= 1 / (1 - 2 * p) + 1e-6  # the bound of the argument
    if name == "translation":  # at p = 1 it is not: an image may lie outside with every draw
        assert smallest(states, maps, 1.0) < 1e-9


def test_a_config_has_noise_after_augmentation(pairs):
    made = config.base()
    made.augment.cutout, made.instance_noise, made.num_steps = 1.0, 0.1, 10
    seen = parts.make_augment(made)(pairs, jax.random.PRNGKey(0), jnp.asarray(0))
    rest = np.asarray(seen.x - pairs.x).std(axis=(1, 2, 3))
    assert rest.min() > 0.05
    noise = np.sort(np.abs(np.asarray(seen.x) - 0.5).reshape(ROWS, -1), axis=1)[:, :60]
    assert 0 < noise.min() < noise.max() < 0.3  # what is cut out has noise on it
    made.instance_noise = 0.0
    assert np.any(np.asarray(parts.make_augment(made)(pairs, jax.random.PRNGKey(0), jnp.asarray(0)).x) == 0.5)
    made.augment.cutout = 0.0
    assert parts.make_augment(made) is None


def test_a_schedule_of_the_augmentation_ties_a_run_to_its_number_of_steps():
    made = config.base()
    assert not config.schedules(made)
    made.augment.final = 0.5
    assert not config.schedules(made)  # nothing is on
    made.augment.colour = 0.3
    assert config.schedules(made) == ["augment.final"]


@pytest.mark.parametrize("kind", ["device", "host"])
def test_half_of_the_images_of_a_batch_are_mirrored(kind):
    stored = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4, 1)
    split = data.ArraySplit(stored)
    feed = data.make_feed(split, batch_size=200, seed=3, divisor=255.0, flip=True, kind=kind)
    loaded = feed.load(0, 2)
    take = jax.jit(lambda loaded, i: feed.take(loaded, i, i))
    batches = [np.rint(np.asarray(take(loaded, jnp.int32(i)).x) * 255) for i in range(2)]
    feed.close()
    flags = []
    for x in batches:
        as_it_is = (x[:, None] == stored[None]).all(axis=(2, 3, 4)).any(axis=1)
        mirrored = (x[:, None] == stored[None, :, :, ::-1]).all(axis=(2, 3, 4)).any(axis=1)
        assert (as_it_is ^ mirrored).all()
        assert 70 < mirrored.sum() < 130
        flags.append(mirrored)
    assert (flags[0] != flags[1]).any()
    with pytest.raises(ValueError, match="flip mirrors images"):
        data.make_feed(data.ArraySplit(np.zeros((3, 2))), batch_size=1, seed=0, divisor=1.0, flip=True)
