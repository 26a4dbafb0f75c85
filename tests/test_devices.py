"""The number of devices changes nothing but the order of float32 sums."""

from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from test_checkpoint import assert_same_bits

from ali_jax import losses, model, train
from ali_jax.game import parts
from ali_jax.records import checkpoint
from ali_jax.tools.preflight import collectives
from ali_jax.types import Batch

DEVICES = (1, 2, 4, 8)
STEPS = 50


def papers_adam(config):
    """Take the paper's Adam, weights large enough for logits that differ, and one layer of each kind."""
    config.encoder.layers, config.decoder.layers = config.encoder.layers[:1], config.decoder.layers[-1:]
    for key in ("x_layers", "z_layers", "joint_layers"):
        config.discriminator[key] = config.discriminator[key][:1]
    for network in (config.encoder, config.decoder, config.discriminator):
        network.init_std = network.init_std and 0.3
    for adam in (config.optimizer.generator, config.optimizer.discriminator):
        adam.learning_rate, adam.b1, adam.b2 = 1e-4, 0.5, 0.999
    config.optimizer.constant_fraction = 1.0
    config.penalties.r1.gamma = 0.0  # test_train.py has it; its second derivatives take long to compile


class Sharded:
    """The digits' step on so many devices."""

    def __init__(self, devices: int) -> None:
        self.ali, config, _ = small.game("digits", batch_size=8, edit=papers_adam)
        self.tx = parts.make_optimizer(config)
        self.mesh = Mesh(jax.devices()[:devices], ("data",))
        self.whole, self.split = (NamedSharding(self.mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
        self.data = np.random.default_rng(3).random((STEPS, 8, *config.dataset.shape), np.float32)

    def start(self):
        first = Batch(jnp.asarray(self.data[0]))
        init = partial(train.init_state, self.ali, self.tx, ema=True)
        return jax.device_put(jax.jit(init)(jax.random.PRNGKey(0), first), self.whole)

    def step(self, state, x):
        """Take a step, inside jit."""
        batch = Batch(jax.lax.with_sharding_constraint(x, self.split))
        state, metrics = train.train_step(self.ali, self.tx, losses.ali, (), state, batch, ema_decay=0.9)
        return state, jnp.stack([metrics["loss/generator"], metrics["loss/discriminator"]])

    @cached_property
    def run(self):
        """Return the compiled (state, x [n, B, ...]) -> (state, states [n, ...], losses [n, 2])."""

        def run(state, data):
            def one(state, x):
                moved, found = self.step(state, x)
                return moved, (state, found)

            state, (states, found) = jax.lax.scan(one, state, data)
            return state, states, found

        return jax.jit(run, out_shardings=self.whole)

    def losses_from(self, states):
        """Return the losses of one step from each of the states."""
        steps = jax.jit(lambda *args: jax.lax.map(lambda s: self.step(*s)[1], args), out_shardings=self.whole)
        return steps(*jax.device_put((states, self.data), self.whole))


@pytest.fixture(scope="module")
def sharded():
    """Give the step by the number of devices."""
    return {devices: Sharded(devices) for devices in DEVICES}


def test_fifty_steps_agree_each_from_the_same_state_and_free_running(sharded):
    _, states, expected = jax.device_get(sharded[1].run(sharded[1].start(), sharded[1].data))
    for devices in DEVICES[1:]:
        each = sharded[devices]
        np.testing.assert_allclose(each.losses_from(states), expected, rtol=1e-5, err_msg=f"{devices}")
        found = each.run(each.start(), each.data)[2]
        np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=f"{devices}, free-running")


def test_a_checkpoint_goes_on_on_another_number_of_devices_and_back(sharded, tmp_path):
    def through_a_file(state, step: int, devices: int):
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharded[devices].whole), state
        )
        manager = checkpoint.open_manager(tmp_path, keep=9, create=True)
        checkpoint.save(manager, state, {})
        checkpoint.wait(manager)
        found = checkpoint.restore(manager, like)[0]
        checkpoint.close(manager, failed=False)
        assert int(found.step) == step
        assert len(found.key.sharding.device_set) == devices
        assert_same_bits(found, state)
        return found

    state, before, data = sharded[8].start(), 8, sharded[8].data
    uninterrupted = state
    for i, devices in enumerate((1, 8, 2, 8, 4, 8)):
        state, _, found = sharded[before].run(state, data)
        uninterrupted, _, expected = sharded[8].run(uninterrupted, data)
        np.testing.assert_allclose(found, expected, rtol=1e-4)
        state, before = through_a_file(state, STEPS * (i + 1), devices), devices


def test_devices_exchange_gradients_by_all_reduces_and_nothing_else(sharded):
    each, state = sharded[4], sharded[4].start()
    step = jax.jit(each.step, out_shardings=each.whole)
    found = collectives(step.lower(state, each.data[0]).compile().as_text())
    gradients = [4 * sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in state.variables.params]
    of_penalty = gradients[2]  # D's gradient of the penalty is summed by itself
    assert set(found) == {"all-reduce"}
    assert (
        sum(gradients) <= found["all-reduce"]["bytes"] <= sum(gradients) + of_penalty + 200
    )  # metrics beside


def test_pmap_equals_shard_map_bit_for_bit(sharded):
    ali, *_ = small.game("digits", batch_size=8, edit=papers_adam, axis_name="data")
    tx, state = optax.sgd(1.0), sharded[1].start()
    state = jax.device_get(state._replace(opt_state=tx.init(state.variables.params)))
    noise = model.draw_noise(ali, jax.random.PRNGKey(5), 8)
    rows = (jnp.asarray(sharded[1].data[0]), noise.z, noise.epsilon)

    def step(x, z, epsilon):
        local = noise._replace(z=z, epsilon=epsilon)
        game = (ali, tx, losses.ali, ())
        return train.train_step(*game, state, Batch(x), axis_name="data", noise=local)[0].variables

    mesh, axis = Mesh(jax.devices()[:4], ("data",)), PartitionSpec("data")
    shard_map = jax.shard_map(step, mesh=mesh, in_specs=axis, out_specs=PartitionSpec(), check_vma=False)
    split = jax.tree.map(lambda v: v.reshape(4, 2, *v.shape[1:]), rows)
    pmap = jax.pmap(step, "data", devices=jax.devices()[:4])(*split)
    a, b = jax.device_get(jax.jit(shard_map)(*rows)), jax.device_get(jax.tree.map(lambda v: v[0], pmap))
    jax.tree.map(np.testing.assert_array_equal, a, b)
