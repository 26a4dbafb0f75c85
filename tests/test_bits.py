"""Hashed keys: as good as threefry's to draw from, and one call of threefry per step is left."""

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
import small
from scipy import stats

from ali_jax import model
from ali_jax.bits import HASHED, fold, hashed
from ali_jax.data import ArraySplit, make_feed
from benchmarks import cudnn

WORDS = np.random.default_rng(0).integers(0, 2**32, (3, 4096), np.uint32)


def ones(words):
    """Return how many bits of uint32 words are set."""
    return np.bitwise_count(words).sum()


@pytest.mark.parametrize("argument", [0, 1, 2], ids=["first word", "second word", "number"])
def test_every_bit_of_key_and_number_changes_half_of_the_new_key(argument):
    """Of 2 x 32 bits, over 4,096 keys: 2^18 bits, of which half change, give or take five deviations."""
    before = fold(*WORDS)
    for bit in range(32):
        changed = WORDS.copy()
        changed[argument] ^= np.uint32(1 << bit)
        for a, b in zip(before, fold(*changed), strict=True):
            assert abs(ones(a ^ b) / (32 * 4096) - 0.5) < 5 * 0.5 / (32 * 4096) ** 0.5


def test_steps_and_small_seeds_have_keys_of_their_own():
    """The keys that runs begin with: seeds 0 to 63, steps 0 to 8,191, each with eight streams."""
    seeds, steps, streams = (np.arange(n, dtype=np.uint32) for n in (64, 8192, 8))
    seeds, steps, streams = np.meshgrid(seeds[:8], steps, streams, indexing="ij")
    a, b = fold(*fold(np.zeros_like(seeds), seeds, steps), streams)
    assert len(np.unique(a.astype(np.uint64) << 32 | b)) == a.size
    # The words look uniform: 256 cells by their upper and by their lower bits.
    for bits in (a >> 24, a & 255, b >> 24, b & 255):
        counts = np.bincount(bits.ravel(), minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-4


def test_a_number_folds_into_keys_by_a_bijection_and_a_key_tells_numbers_apart():
    few = np.arange(2**16, dtype=np.uint32)
    a, b = fold(few & 255, few >> 8, np.full_like(few, 7))
    assert len(np.unique(a.astype(np.uint64) << 32 | b)) == few.size
    a, b = fold(np.uint32([5]), np.uint32([9]), few)
    assert len(np.unique(a.astype(np.uint64) << 32 | b)) == few.size


def test_keys_of_one_step_draw_independently():
    """Streams of neighbouring steps, of one step, and dropout masks: no correlation beyond chance."""
    key = jax.random.wrap_key_data(jax.random.PRNGKey(0), impl=HASHED)

    @jax.jit
    def draws(key):
        steps = [jax.random.fold_in(key, i) for i in range(3)]
        keys = [*steps, *jax.random.split(steps[0], 3), jax.random.fold_in(steps[1], 0)]
        position = jnp.arange(2**14, dtype=jnp.uint32)
        normal = [jax.random.normal(k, (2**14,)) for k in keys]
        return jnp.stack(normal), jnp.stack([hashed(jax.random.key_data(k), position) for k in keys])

    normal, bits = map(np.asarray, draws(key))
    for row in normal:
        assert stats.kstest(row, "norm").pvalue > 1e-4
    masks = bits > np.uint32(0.2 * 2**32)
    for rows in (normal, masks, bits & 1):
        correlation = np.corrcoef(rows)
        assert np.abs(correlation - np.eye(len(rows))).max() < 5 / 2**7


def test_hashed_keys_split_and_fold_under_vmap_as_alone():
    keys = jax.random.wrap_key_data(jnp.arange(8, dtype=jnp.uint32).reshape(4, 2), impl=HASHED)
    both = lambda key: jnp.stack(  # noqa: E731
        [jax.random.key_data(jax.random.fold_in(key, 3)), *jax.random.key_data(jax.random.split(key))]
    )
    together, alone = jax.jit(lambda keys: (jax.vmap(both)(keys), [both(keys[k]) for k in range(4)]))(keys)
    np.testing.assert_array_equal(together, alone)
    assert len(np.unique(together.reshape(-1, 2), axis=0)) == 12


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


def threefry_calls(function, *arguments):
    """Return the names of the operations of a program that call threefry."""
    found = equations(jax.make_jaxpr(function)(*arguments).jaxpr)
    random = [e for e in found if e.primitive.name in ("random_bits", "random_fold_in", "random_split")]
    of_threefry = lambda e: e.primitive.name == "random_bits" or "fry" in str(e.invars[0].aval.dtype)  # noqa: E731
    return [e.primitive.name for e in random if of_threefry(e)]


@pytest.mark.parametrize("name", ["svhn", "digits"])
def test_a_step_draws_all_of_its_noise_by_one_call(name):
    """SVHN has dropout on the inputs of nine layers, the digits have a feed that dequantises."""
    config = small.narrow(small.experiment(name))
    small.shallow(config)
    step = cudnn.step_of(config)
    rows = ArraySplit(np.zeros((config.batch_size, *config.dataset.shape), np.uint8))
    feed = make_feed(rows, batch_size=config.batch_size, seed=0, divisor=16.0, dequantize=1 / 66)

    def with_batch(state, data):
        return step.function(state, feed.take(data, state.step, jnp.zeros((), jnp.int32)))

    assert threefry_calls(with_batch, step.state, feed.load(0, 1)) == ["random_bits"]


def test_threefry_calls_are_counted():
    """What the test above looks for would be found: JAX's keys call threefry each time."""
    ali, _, batch = small.game("svhn")
    draw = lambda key: model.draw_noise(ali, key, len(batch.x))  # noqa: E731
    calls = threefry_calls(draw, jax.random.PRNGKey(0))
    assert sorted(calls) == ["random_bits", "random_split"]
