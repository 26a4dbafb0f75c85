"""What a GPU must do as a CPU does: gradients, a step, donation, resuming, a population.

On a GPU: JAX_PLATFORMS=cuda,cpu python -m pytest -m gpu. Without one they run on the CPU, with the
convolutions in the form for GPUs, where only rounding is less. Errors are relative to the norm of what is
compared; those of tf32 (10 bits of mantissa) and bfloat16 (7) are what products of them may lose.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ali_jax import config as configs
from ali_jax import data, game, gradients, model, networks
from ali_jax.game import parts
from ali_jax.records import checkpoint
from ali_jax.types import Batch, Networks, TrainState
from benchmarks.gpu_parts import Cell, config_of

pytestmark = pytest.mark.gpu

STEPS = 2  # of a call
ON_GPU = jax.default_backend() == "gpu"
# The largest error of a network's gradient, by the type in which the networks compute.
GRADIENTS = {"float32": 2e-2 if ON_GPU else 2e-6, "bfloat16": 0.1}
STEP = 2e-2 if ON_GPU else 1e-4  # of what a call adds to the parameters


def distance(a, b):
    """Return |a - b| / |b| over whole trees."""
    difference = jax.tree.map(lambda x, y: np.subtract(x, y, dtype=np.float64), a, b)
    return float(optax.tree.norm(difference) / optax.tree.norm(b))


def tiny(name, **values):
    """Return the config of an experiment with small convolutions, as a GPU takes them.

    With its large epsilon Adam is linear in the gradients: an error of theirs is one of the parameters.
    """
    config = config_of(Cell(name, "float32", 1), tiny=True, lowering="gpu")
    with config.unlocked():
        config.evaluators = ()
        if not config.encoder.width:  # compiling is what takes the time
            config.encoder.layers = config.discriminator.x_layers = ((3, 2, 4), 4)
            for network in (config.encoder, config.decoder, config.discriminator):
                network.init_std = 0.3
    for player in ("generator", "discriminator"):
        values |= {f"optimizer.{player}.eps": 1.0, f"optimizer.{player}.learning_rate": 0.1}
    return configs.with_values(config, values).lock()


def images():
    """Return random images of 8x8 as a data set."""
    x = np.random.default_rng(0).integers(256, size=(32, 8, 8, 3), dtype=np.uint8)
    return data.Dataset("noise", data.ArraySplit(x), data.ArraySplit(x), 255.0)


class Training(NamedTuple):
    """A game that can be trained, and its initial state on the host."""

    game: game.Game
    feed: data.Feed
    call: Callable
    first: TrainState

    def start(self):
        """Return the initial state; it can be donated."""
        return jax.device_put(self.first, self.game.state_sharding)


def made_of(made, first=None):
    """Return the training of a game; without `first`, from its own initial state."""
    feed = game.make_feed(made)
    first = jax.device_get(game.initial_state(made)) if first is None else first
    return Training(made, feed, game.make_call(made, feed, STEPS), first)


def on_one_device(config):
    """Return a config's game on the first device."""
    devices = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: devices)
        return game.prepare(config, images())


@pytest.fixture(scope="module")
def here():
    """Give a training with batch norm and dropout on the first device."""
    return made_of(on_one_device(tiny("svhn", seed=1)))


@pytest.fixture(scope="module")
def double():
    """Give networks, what takes their gradients, where, and these gradients in float64 on the CPU."""
    config = tiny("images:8")  # it has a gradient penalty
    ali = networks.build(config, platform="gpu")
    x = jnp.asarray(images().train.x[:8] / np.float32(255))
    variables = jax.jit(partial(model.init, ali))(jax.random.PRNGKey(0), x)
    given = jax.device_get((variables, Batch(x), model.draw_noise(ali, jax.random.PRNGKey(1), len(x))))
    loss, penalties = parts.make_loss(config), parts.make_penalties(config)

    def take(ali, variables, batch, noise):
        return gradients.game_gradients(ali, variables, loss, penalties, batch, noise)[0]

    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        wide = jax.tree.map(lambda v: v.astype("float64") if v.dtype == np.float32 else v, given)
        exact = Networks(*(module.clone(dtype=jnp.float64, lowering="native") for module in ali))
        expected = jax.device_get(jax.jit(partial(take, exact))(*wide))
    assert {leaf.dtype for leaf in jax.tree.leaves(expected)} == {np.dtype("float64")}
    return ali, take, given, expected


@pytest.mark.parametrize("dtype", GRADIENTS)
def test_gradients_equal_those_in_float64_up_to_rounding(double, dtype):
    ali, take, given, expected = double
    narrow = Networks(*(module.clone(dtype=jnp.dtype(dtype)) for module in ali))
    found = jax.device_get(jax.jit(partial(take, narrow))(*given))
    for role, a, b in zip(Networks._fields, found, expected, strict=True):
        assert distance(a, b) < GRADIENTS[dtype], role


def test_steps_equal_those_of_the_cpu(here):
    found, metrics = jax.device_get(here.call(here.start(), here.feed.load(0, STEPS)))
    config = configs.with_values(here.game.config, {"lowering": "cpu"})
    ali = networks.build(config, platform="cpu")
    tx = parts.make_optimizer(config, platform="cpu")
    mesh = game.make_mesh(1, jax.devices("cpu")[:1])
    there = made_of(here.game._replace(config=config, ali=ali, tx=tx, mesh=mesh), here.first)
    expected, expected_metrics = jax.device_get(there.call(there.start(), there.feed.load(0, STEPS)))
    ours, theirs = (
        jax.tree.map(np.subtract, after.variables, here.first.variables) for after in (found, expected)
    )
    for role, a, b in zip(Networks._fields, ours.params, theirs.params, strict=True):
        assert distance(a, b) < STEP, role
    assert distance(ours.batch_stats, theirs.batch_stats) < STEP
    for name, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=STEP, err_msg=name)


def test_the_state_is_donated_and_a_restored_one_goes_on_alike(here, tmp_path):
    state, _ = here.call(here.start(), here.feed.load(0, STEPS))
    manager = checkpoint.open_manager(tmp_path, create=True)
    checkpoint.save(manager, state, {"wall_seconds": 0.0})
    expected, _ = here.call(state, here.feed.load(STEPS, STEPS))
    checkpoint.wait(manager)
    restored, _, _ = checkpoint.restore(manager, game.abstract_state(here.game))
    checkpoint.close(manager, failed=False)
    found, _ = here.call(restored, here.feed.load(STEPS, STEPS))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((restored.variables, restored.opt_state)))
    assert int(found.step) == 2 * STEPS
    # On a GPU, sums of cuDNN may have another order each time.
    tolerance = {"rtol": 1e-3, "atol": 1e-5} if ON_GPU else {"rtol": 0, "atol": 0}
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


def test_a_member_of_a_population_is_the_run_that_it_would_be_alone(here):
    alone, _ = here.call(here.start(), here.feed.load(0, STEPS))
    many = made_of(on_one_device(tiny("svhn", **{"population.seeds": 2})))
    together, metrics = many.call(many.start(), many.feed.load(0, STEPS))
    first, second = (jax.device_get(game.member_of(together, k).variables) for k in (0, 1))
    assert distance(second, jax.device_get(alone.variables)) < STEP
    assert distance(first, second) > 0.1
    assert metrics["loss/generator"].shape == (2,)
