"""Penalties that are taken every n-th step: their weights, their programs, their metrics, what is refused."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from ali_jax import config as configs
from ali_jax import losses, model, penalties, train
from ali_jax.game import compile, lazy, parts
from ali_jax.types import Batch, TrainState

EVERY, STEPS = 3, 6
compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Fixed:
    """A feed of batches that lie ready, [steps, B, ...]."""

    def take(self, data, step, i, *, shard=None):
        return Batch(data[step])


@pytest.fixture(scope="module")
def run():
    """Give perceptrons with their optimiser, a penalty of every third step, a state and the data."""

    def edit(config):
        config.encoder.layers = config.decoder.layers = (5,)
        config.discriminator.update({"x_layers": (6,), "z_layers": (4,), "joint_layers": (6,)})
        config.num_steps = config.steps_per_call = STEPS
        config.penalties.r1.gamma_final, config.penalties.r1.every = -1.0, EVERY

    ali, config, _ = small.game("digits", edit=edit)
    data = jax.random.uniform(jax.random.PRNGKey(3), (STEPS, 4, *config.dataset.shape))
    tx, variables = parts.make_optimizer(config), small.draw(ali, data[0])
    key = jax.random.PRNGKey(0)
    state = TrainState(jnp.zeros((), jnp.int32), key, variables, None, tx.init(variables.params))
    return (ali, tx, losses.ali, parts.make_penalties(config)), state, data


@pytest.fixture(scope="module")
def singly(run):
    """Take the steps one by one, each with the penalty, which is 0 where it is not due."""
    game, state, data = run
    step, rows = compiled(partial(train.train_step, *game)), []
    for x in data:
        state, metrics = step(state, Batch(x))
        rows.append(metrics)
    return state, rows


@pytest.mark.parametrize("slow_in_loops", [False, True])
def test_a_call_leaves_the_penalty_out_where_it_is_not_due(run, singly, slow_in_loops, monkeypatch):
    """In one program of runs of steps, and in steps that the host chooses, as for convolutions on a CPU."""
    game, state, data = run
    monkeypatch.setattr(compile, "has_kernels", lambda *_, **__: slow_in_loops)
    call = compile.make_train_step(*game, feed=Fixed(), steps=STEPS)
    state, metrics = call(jax.tree.map(jnp.copy, state), data)
    expected, rows = singly
    for one, other in zip(*map(jax.tree.leaves, (state, expected)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    assert metrics.pop("finite_steps") == STEPS
    assert set(metrics) == set(rows[0])
    for name, value in metrics.items():
        having = rows[EVERY - 1 :: EVERY] if name.startswith("r1/") else rows
        np.testing.assert_allclose(value, np.mean([row[name] for row in having]), rtol=1e-4)


def test_steps_that_take_the_same_penalties_are_made_once():
    often, seldom = partial(penalties.r1), partial(penalties.r1, every=3)
    made = []

    def make(index):
        made.append(index)
        return lazy.due((often, seldom), index)

    assert lazy.cycle((often, seldom), make) == ((often,), (often,), (often, seldom))
    assert made == [0, 2]
    both = (partial(penalties.r1, every=2), seldom)
    assert [len(due) for due in lazy.cycle(both, partial(lazy.due, both))] == [0, 1, 1, 1, 0, 2]


def test_a_penalty_of_every_nth_step_has_n_times_its_weight_there_and_none_elsewhere(run):
    (ali, *_), state, data = run
    noise = model.draw_noise(ali, state.key, 4)

    @compiled
    def values(steps):
        pairs, _ = model.generate(ali, *state.variables, Batch(data[0]), noise)
        arguments = (ali, state.variables, pairs, noise.key_penalties)
        often = penalties.r1(*arguments, jnp.zeros((), jnp.int32), gamma=0.7)
        seldom = jax.vmap(lambda step: penalties.r1(*arguments, step, gamma=0.7, every=EVERY)[0])(steps)
        return often[0].discriminator, seldom.discriminator

    often, seldom = values(jnp.arange(STEPS))
    np.testing.assert_allclose(seldom, EVERY * often * np.array([0, 0, 1, 0, 0, 1]), rtol=1e-5)


def test_calls_that_would_end_within_a_cycle_are_refused(run):
    game, *_ = run
    with pytest.raises(ValueError, match="every 3 steps, which do not divide 4 steps"):
        compile.make_train_step(*game, feed=Fixed(), steps=4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"steps_per_call": 10},
            "is 4; it must divide .*steps_per_call = 10 .* Set it to 2, or change",
        ),
        ({"num_steps": 1002, "steps_per_call": 4}, "num_steps = 1002. Set it to 2, or change"),
        ({"steps_per_call": 25}, "every is 4; .*steps_per_call = 25 .* Change these"),
    ],
)
def test_an_interval_that_does_not_divide_the_steps_of_a_call_is_refused(values, message):
    config = configs.with_values(configs.base(), {"penalties.r1.every": 4, "log_every": 1000, **values})
    with pytest.raises(ValueError, match=message):
        configs.validate(config)
