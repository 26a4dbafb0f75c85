"""The game: its gradients, the update, and that scanning, sharding and named axes change nothing."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ali_jax import config as configs
from ali_jax import data as data_module
from ali_jax import gradients, losses, model, scale_by_adam_for, train
from ali_jax.data import ArraySplit
from ali_jax.game import compile, parts
from ali_jax.networks import convolutions
from ali_jax.records import checkpoint
from ali_jax.types import Batch, Logits, Losses, Networks, TrainState, Variables


def distance(a, b):
    """Return |a - b| / |b| over whole trees: a bias before batch norm has a true gradient of zero.

    A norm below 1e-9 counts as zero: that of a discriminator which is right beyond float32's resolution.
    """
    a, b = jax.device_get((a, b))
    return small.norm(jax.tree.map(np.subtract, a, b)) / max(small.norm(b), 1e-9)


def separate_gradients(ali, variables, loss, batch, noise):
    """Differentiate each player's loss on its own, with `jax.grad`: what `game_gradients` must equal."""

    def player_loss(params, player):
        pairs, _ = model.generate(ali, params, variables.batch_stats, batch, noise)
        stats = variables.batch_stats.discriminator
        logits, _ = model.judge(ali, params.discriminator, stats, pairs, noise.key_discriminator)
        return getattr(loss(logits, batch)[0], player)

    by_generator = jax.grad(player_loss)(variables.params, "generator")
    by_discriminator = jax.grad(player_loss)(variables.params, "discriminator")
    return by_generator._replace(discriminator=by_discriminator.discriminator)


def saturate(variables, factor):
    """Scale D's last layer, so that its logits are large."""
    params = variables.params
    logit = jax.tree.map(lambda w: factor * w, params.discriminator["logit"])
    discriminator = {**params.discriminator, "logit": logit}
    return variables._replace(params=params._replace(discriminator=discriminator))


def wide(config):
    """Cut the networks short, and draw weights large enough for logits that differ."""
    small.shallow(config)
    for network in (config.encoder, config.decoder, config.discriminator):
        network.init_std = network.init_std and 0.3


def compared(name, factor=1.0):
    """Compare the game's gradients in both precisions with separate ones, in float64.

    Returns the distances in float32 and in float64, and the largest logit.
    """
    ali, config, batch = small.game(name, edit=small.shallow)
    given = (
        saturate(small.draw(ali, batch.x, batch.y), factor),
        batch,
        model.draw_noise(ali, jax.random.PRNGKey(2), 4),
    )
    own_loss = parts.make_loss(config)
    # Optimising the machine code takes longer than running it once.
    options = convolutions.compiler_options("cpu") | {"xla_backend_optimization_level": 0}
    jit = partial(jax.jit, compiler_options=options)

    def loss(logits, batch):
        largest = jnp.maximum(jnp.abs(logits.q).max(), jnp.abs(logits.p).max())
        return own_loss(logits, batch)[0], {"largest": largest}

    def ours(dtype, variables, batch, noise):
        networks = Networks(*(module.clone(dtype=dtype) for module in ali))
        found, aux = gradients.game_gradients(networks, variables, loss, (), batch, noise)
        assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(dtype)}
        return found, aux.metrics["largest"]

    def theirs(variables, batch, noise):
        networks = Networks(*(module.clone(dtype="float64") for module in ali))
        return separate_gradients(networks, variables, loss, batch, noise)

    single = jax.device_get(jit(partial(ours, "float32"))(*given))[0]
    with jax.enable_x64(True):
        wide = jax.tree.map(
            lambda v: np.asarray(v, "float64") if v.dtype == jnp.float32 else v, jax.device_get(given)
        )
        (double, largest), expected = jit(lambda *args: (ours("float64", *args), theirs(*args)))(*wide)
        errors = [
            max(distance(a, b) for a, b in zip(found, expected, strict=True)) for found in (single, double)
        ]
    return *errors, float(largest)


def unlike_each_other():
    """Return the experiments without those whose narrow networks another one has.

    Residual ones, which `test_residual` compares, are too deep for this.
    """
    found = {}
    for name in small.EXPERIMENTS:
        if "residual" not in name:
            found.setdefault(small.game(name, edit=small.shallow)[0], name)
    return list(found.values())


@pytest.mark.parametrize("name", unlike_each_other())
def test_game_gradients_equal_two_separate_gradients(name):
    single, double, _ = compared(name)
    assert single < 1e-5
    assert double < 1e-10


@pytest.mark.parametrize(("name", "factor"), [("digits", 5e3), ("mixture", 1e5)])
def test_one_pass_holds_where_the_discriminator_is_sure_of_itself(name, factor):
    single, double, largest = compared(name, factor)
    assert largest > 500
    assert single < 1e-5
    assert double < 1e-10


def two_dimensional(coupled):
    """Return a game in float32 with a D that is coupled by batch norm, or not."""

    def edit(config):
        config.discriminator.x_layers = (20, 20)
        config.discriminator.x_batch_norm = (coupled,)

    return small.game("mixture", edit=edit)


def test_the_shortcut_is_refused_where_it_would_be_wrong(key):
    ali, _, batch = two_dimensional(coupled=True)
    variables, noise = small.draw(ali, batch.x), model.draw_noise(ali, key, 4)

    def one_pass(ali):
        run = partial(gradients.game_gradients, ali, loss=losses.ali, penalties=(), gradient="one_pass")
        return jax.eval_shape(lambda: run(variables=variables, batch=batch, noise=noise))

    with pytest.raises(ValueError, match="two_pullbacks"):
        one_pass(ali)

    class Undeclared:  # a discriminator of one's own that says nothing about coupling
        apply = ali.discriminator.apply

    own = ali._replace(discriminator=Undeclared())
    with pytest.raises(ValueError, match="declares coupled = False"):
        one_pass(own)


def test_a_coupled_discriminator_would_get_wrong_gradients_from_one_pass(key, monkeypatch):
    ali, _, batch = two_dimensional(coupled=True)
    variables, noise = small.draw(ali, batch.x), model.draw_noise(ali, key, 4)
    variables = jax.tree.map(lambda v: 20 * v, variables)
    right = jax.jit(lambda v: separate_gradients(ali, v, losses.ali, batch, noise))(variables)
    monkeypatch.setattr(gradients, "_takes_one_pass", lambda *_: True)
    wrong, _ = jax.jit(lambda v: gradients.game_gradients(ali, v, losses.ali, (), batch, noise))(variables)
    assert distance(wrong.decoder, right.decoder) > 1e-3
    assert distance(wrong.discriminator, right.discriminator) < 1e-5


def test_one_pass_compiles_to_fewer_flops_than_two_pullbacks(key):
    ali, _, batch = small.game("digits")
    variables, noise = small.draw(ali, batch.x), model.draw_noise(ali, key, 4)

    def flops(gradient):
        run = partial(gradients.game_gradients, ali, loss=losses.ali, penalties=(), gradient=gradient)
        compiled = jax.jit(lambda v: run(variables=v, batch=batch, noise=noise)[0]).lower(variables).compile()
        return compiled.cost_analysis()["flops"]

    assert flops("one_pass") < flops("two_pullbacks")


def test_encoder_learns_nothing_from_a_discriminator_that_ignores_z(key):
    ali, _, batch = small.game("digits")
    variables = small.draw(ali, batch.x)
    discriminator = variables.params.discriminator
    joint = discriminator["joint"]["layer_0"]["kernel"]
    blind = joint.at[joint.shape[0] // 2 :].set(0)  # the rows that read D(z)
    discriminator = {**discriminator, "joint": {**discriminator["joint"], "layer_0": {"kernel": blind}}}
    variables = variables._replace(params=variables.params._replace(discriminator=discriminator))
    grads, _ = gradients.game_gradients(ali, variables, losses.ali, (), batch, model.draw_noise(ali, key, 4))
    assert optax.tree.norm(grads.encoder) == 0
    assert optax.tree.norm(grads.decoder) > 0


class Fixed:
    """A feed of batches that lie ready, [steps, B, ...]."""

    def take(self, data, step, i, *, shard=None):
        rows = data[step]
        if shard is not None:
            size = rows.shape[0] // shard[1]
            rows = jax.lax.dynamic_slice_in_dim(rows, shard[0] * size, size)
        return Batch(rows)


def setting(name, *, steps=4, batch_size=8, **build):
    """Return what a run needs: networks, optimiser, state, data."""
    ali, config, _ = small.game(name, batch_size=batch_size, edit=wide, **build)
    data = jax.random.uniform(jax.random.PRNGKey(3), (steps, batch_size, *config.dataset.shape))
    tx = parts.make_optimizer(config)

    def start():
        variables = small.draw(ali, data[0])
        step, key = jnp.zeros((), jnp.int32), jax.random.PRNGKey(0)
        return TrainState(step, key, variables, jax.tree.map(jnp.copy, variables), tx.init(variables.params))

    return ali, config, tx, start, data


def test_a_scan_of_steps_equals_the_steps_one_by_one():
    ali, config, tx, start, data = setting("digits")
    penalties = parts.make_penalties(config)
    call = compile.make_train_step(ali, tx, losses.ali, penalties, feed=Fixed(), steps=4, ema_decay=0.9)
    state, metrics = call(start(), data)

    single = jax.jit(partial(train.train_step, ali, tx, losses.ali, penalties, ema_decay=0.9))
    expected, rows = start(), []
    for x in data:
        expected, row = single(expected, Batch(x))
        rows.append(row)
    assert int(state.step) == 4
    assert distance(state.variables.params, expected.variables.params) < 1e-6
    assert distance(state.ema, expected.ema) < 1e-6
    for name, value in metrics.items():
        if name != "finite_steps":
            np.testing.assert_allclose(value, np.mean([row[name] for row in rows]), rtol=1e-5)
    assert metrics["finite_steps"] == 4


def test_convolutions_on_a_cpu_step_singly_and_to_the_same_result():
    ali, _, tx, start, data = setting("svhn")
    call = compile.make_train_step(ali, tx, losses.ali, feed=Fixed(), steps=4)
    assert compile.has_kernels(start().variables.params)
    state, metrics = call(start(), data)
    single = jax.jit(partial(train.train_step, ali, tx, losses.ali, ()))
    expected = start()
    for x in data:
        expected, _ = single(expected, Batch(x))
    assert distance(state.variables.params, expected.variables.params) < 1e-5
    assert metrics["finite_steps"] == 4


def test_both_players_move_at_once_from_the_same_point():
    ali, _, _, start, data = setting("digits")
    state, batch = start(), Batch(data[0])
    noise = model.draw_noise(ali, jax.random.PRNGKey(5), 8)
    sgd = optax.sgd(0.1)
    state = state._replace(opt_state=sgd.init(state.variables.params))

    @jax.jit
    def both(state):
        grads, _ = gradients.game_gradients(ali, state.variables, losses.ali, (), batch, noise)
        moved, _ = train.train_step(ali, sgd, losses.ali, (), state, batch, noise=noise)
        return moved, jax.tree.map(lambda p, g: p - 0.1 * g, state.variables.params, grads)

    moved, expected = both(state)
    assert distance(moved.variables.params, expected) < 1e-6


def test_the_average_warms_up():
    ali, _, tx, start, data = setting("digits")
    state = start()
    step = jax.jit(partial(train.train_step, ali, tx, losses.ali, (), ema_decay=0.999))
    moved, _ = jax.device_get(step(state, Batch(data[0])))
    decay = 2 / 11  # (1 + t) / (10 + t) after the first step
    before = jax.device_get(state.ema)
    expected = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, before, moved.variables)
    assert distance(moved.ema, expected) < 1e-6


def test_a_decay_that_is_a_function_has_no_warm_up():
    ali, _, tx, start, data = setting("digits")
    state = start()._replace(step=jnp.asarray(6))
    decay = optax.linear_schedule(0.0, 0.8, 8)
    step = jax.jit(partial(train.train_step, ali, tx, losses.ali, (), ema_decay=decay))
    moved, _ = jax.device_get(step(state, Batch(data[0])))
    before = jax.device_get(state.ema)
    expected = jax.tree.map(lambda a, b: 0.7 * a + 0.3 * b, before, moved.variables)  # after 7 steps
    assert distance(moved.ema, expected) < 1e-6


def test_a_step_takes_gradients_of_ones_own():
    ali, _, _, start, data = setting("digits")

    def reversed_gradients(*args, **options):
        grads, aux = gradients.game_gradients(*args, **options)
        return jax.tree.map(jnp.negative, grads), aux

    sgd = optax.sgd(0.1)
    state = start()
    state = state._replace(opt_state=sgd.init(state.variables.params))

    def step(**options):
        taken = partial(train.train_step, ali, sgd, losses.ali, (), **options)
        return jax.device_get(jax.jit(taken)(state, Batch(data[0])))

    (there, _), (back, _) = step(), step(gradients_of=reversed_gradients)
    middle = jax.tree.map(lambda a, b: (a + b) / 2, there.variables.params, back.variables.params)
    assert distance(middle, state.variables.params) < 1e-6
    assert distance(there.variables.params, state.variables.params) > 1e-6


def test_each_player_has_its_own_optimiser_and_a_frozen_network_stays(key):
    ali, config, _, start, data = setting("digits")
    config.optimizer.discriminator.learning_rate = 0.0
    config.frozen = ("decoder",)
    tx = parts.make_optimizer(config)
    state = start()
    state = state._replace(opt_state=tx.init(state.variables.params))
    moved, _ = train.train_step(ali, tx, losses.ali, (), state, Batch(data[0]))
    change = Networks(*map(distance, moved.variables.params, state.variables.params))
    assert change.encoder > 0
    assert change.decoder == change.discriminator == 0


def _adam_step(platform, packed_size=0):
    config = small.experiment("svhn")
    config.optimizer.packed_size = packed_size
    tx = parts.make_optimizer(config, platform=platform)

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    options = convolutions.compiler_options("cpu")  # for both, so that Adam's form is all that differs
    return tx, jax.jit(step, donate_argnums=(0, 1), compiler_options=options)


def test_adam_for_a_cpu_is_optax_s_adam(key):
    params = Networks(*(jax.random.normal(jax.random.fold_in(key, i), (5, 3)) for i in range(3)))
    found = {}
    for platform in ("cpu", "gpu"):
        tx, step = _adam_step(platform)
        moved, state = jax.tree.map(jnp.copy, params), tx.init(params)
        for i in range(4):
            grads = jax.tree.map(lambda leaf, i=i: jnp.sin(leaf * (1 + i)), params)
            moved, state = step(moved, state, grads)
        found[platform] = moved, state
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), found["cpu"], found["gpu"])


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_the_public_adam_is_optax_s_in_a_chain_of_one_s_own(platform):
    adams = [
        optax.chain(scale_by_adam_for(platform, 0.5, 0.9, 0.1), optax.scale_by_learning_rate(0.01)),
        optax.adam(0.01, 0.5, 0.9, 0.1),
    ]
    params = {"w": jnp.arange(3.0)}
    states = [adam.init(params) for adam in adams]
    for i in range(3):
        grads = {"w": jnp.sin(params["w"] + i)}
        results = [adam.update(grads, state, params) for adam, state in zip(adams, states, strict=True)]
        (ours, theirs), states = zip(*results, strict=True)
        np.testing.assert_allclose(ours["w"], theirs["w"], rtol=1e-6)
    barriers = str(jax.make_jaxpr(adams[0].update)(grads, states[0], params)).count("optimization_barrier")
    assert barriers == (3 if platform == "cpu" else 0)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_adam_of_small_leaves_in_one_vector_keeps_every_bit(key, platform):
    sizes = ((5, 3), (16,), (2, 2, 4), (17,), ())  # all but one have at most 16 elements
    params = Networks(*({"b": [jax.random.normal(key, size) for size in sizes]} for _ in range(3)))
    found = []
    for packed_size in (0, 16):
        tx, step = _adam_step(platform, packed_size)
        moved, state = jax.tree.map(jnp.copy, params), tx.init(params)
        for i in range(3):
            grads = jax.tree.map(lambda leaf, i=i: jnp.sin(leaf * (1 + i)), params)
            moved, state = step(moved, state, grads)
        found.append((moved, state))
    (moved, _), (packed, state) = found
    jax.tree.map(np.testing.assert_array_equal, packed, moved)
    sizes = sorted(leaf.size for leaf in jax.tree.leaves(state))
    of_generator, of_discriminator = (
        2 * (15 + 16 + 16 + 1),
        15 + 16 + 16 + 1,
    )  # in mu and in nu, beside counts
    assert sizes == sorted([1, 1, *2 * [of_generator, 17, 17, of_discriminator, 17]])


def test_a_run_does_not_go_on_with_another_packing(tmp_path):
    config = small.experiment("svhn")
    states = []
    for size in (0, 16):
        config.optimizer.packed_size = size
        params = Networks(*({"w": jnp.ones(2), "b": jnp.ones(3)} for _ in range(3)))
        opt_state = parts.make_optimizer(config).init(params)
        variables = Variables(params, Networks({}, {}, {}))
        states.append(TrainState(jnp.ones((), jnp.int32), jax.random.PRNGKey(0), variables, None, opt_state))
    manager = checkpoint.open_manager(tmp_path, create=True)
    checkpoint.save(manager, states[0], {})
    checkpoint.wait(manager)
    whole = NamedSharding(Mesh(jax.devices()[:1], ("data",)), PartitionSpec())
    like = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=whole), states[1])
    with pytest.raises(checkpoint.CheckpointError, match=r"holds another model .*opt_state"):
        checkpoint.restore(manager, like)
    checkpoint.close(manager, failed=False)
    changed = configs.with_values(config, {"optimizer.packed_size": 0})
    assert configs.conflicts(config, changed) == {"optimizer.packed_size": (16, 0)}


def test_adam_for_a_cpu_copies_neither_moments_nor_parameters():
    shape = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    params = Networks(shape, shape, shape)
    copies = {}
    for platform in ("cpu", "gpu"):
        tx, step = _adam_step(platform)
        program = step.lower(params, jax.eval_shape(tx.init, params), params).compile().as_text()
        copies[platform] = len(re.findall(r"f32\[64,64\]\S* copy\(", program))
    assert copies["cpu"] == 0 < copies["gpu"]


def test_the_learning_rate_is_constant_then_falls_on_a_cosine():
    config = small.experiment("images")
    config.num_steps, config.optimizer.constant_fraction = 10_000, 0.3
    schedule = parts._schedule(1.0, config)
    found = [float(schedule(step)) for step in (0, 2_999, 6_500, 10_000)]
    np.testing.assert_allclose(found, [1.0, 1.0, 0.525, 0.05], rtol=1e-3)


def test_a_loss_that_is_not_finite_is_located():
    ali, _, tx, start, data = setting("digits")
    call = compile.make_train_step(ali, tx, losses.ali, feed=Fixed(), steps=4)
    _, metrics = call(start(), data.at[2].set(jnp.nan))
    assert metrics["finite_steps"] == 2


@pytest.mark.parametrize(("name", "devices"), [("digits", 2), ("digits", 8), ("svhn", 8)])
def test_each_step_is_the_same_on_one_device_and_on_many(name, devices):
    ali, config, tx, start, data = setting(name)
    penalties = parts.make_penalties(config)
    found = []
    for mesh in (Mesh(jax.devices()[:1], ("data",)), Mesh(jax.devices()[:devices], ("data",))):
        replicated = NamedSharding(mesh, PartitionSpec())
        call = compile.make_train_step(ali, tx, losses.ali, penalties, feed=Fixed(), steps=2, mesh=mesh)
        state, metrics = call(jax.device_put(start(), replicated), jax.device_put(data, replicated))
        found.append((jax.device_get(state.variables), metrics["loss/discriminator"]))
    (one, loss_one), (many, loss_many) = found
    assert distance(many.params, one.params) < 1e-5
    np.testing.assert_allclose(loss_many, loss_one, rtol=1e-5)


@pytest.mark.parametrize("name", ["digits", "svhn"])
def test_named_axes_agree_with_a_single_program(name):
    """Gradients of one SGD step under pmap, shard_map and vmap, with the same noise, by norm."""
    ali, config, _, start, data = setting(name)
    axis_ali, *_ = setting(name, axis_name="data")
    penalties = parts.make_penalties(config)
    tx = optax.sgd(1.0)
    state = start()
    state = state._replace(opt_state=tx.init(state.variables.params), ema=None)
    batch, noise = Batch(data[0]), model.draw_noise(ali, jax.random.PRNGKey(5), 8)
    noise = noise._replace(key_discriminator=jax.random.PRNGKey(6))

    def step(ali, axis_name, x, z, epsilon):
        local = noise._replace(z=z, epsilon=epsilon)
        game = (ali, tx, losses.ali, penalties)
        moved, metrics = train.train_step(*game, state, Batch(x), axis_name=axis_name, noise=local)
        return moved.variables, metrics

    undropped = lambda ali: ali._replace(  # noqa: E731  masks would differ: each device has its own rows
        discriminator=ali.discriminator.clone(x_dropout=(0.0,), z_dropout=(0.0,), joint_dropout=(0.0,))
    )
    expected, _ = jax.jit(partial(step, undropped(ali), None))(batch.x, noise.z, noise.epsilon)
    local = partial(step, undropped(axis_ali), "data")
    split = jax.tree.map(lambda v: v.reshape(4, 2, *v.shape[1:]), (batch.x, noise.z, noise.epsilon))
    mesh = Mesh(jax.devices()[:4], ("data",))
    sharded = jax.shard_map(
        local, mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec(), check_vma=False
    )
    found = {
        "vmap": jax.tree.map(lambda v: v[0], jax.jit(jax.vmap(local, axis_name="data"))(*split)[0]),
        "pmap": jax.tree.map(lambda v: v[0], jax.pmap(local, "data", devices=jax.devices()[:4])(*split)[0]),
        "shard_map": jax.jit(sharded)(batch.x, noise.z, noise.epsilon)[0],
    }
    for way, variables in found.items():
        variables = jax.device_get(variables)
        by_gradient = jax.tree.map(jnp.subtract, variables.params, state.variables.params)
        gradient = jax.tree.map(jnp.subtract, expected.params, state.variables.params)
        assert distance(by_gradient, gradient) < 1e-5, way
        if jax.tree.leaves(expected.batch_stats):
            assert distance(variables.batch_stats, expected.batch_stats) < 1e-5, way


@pytest.mark.parametrize("name", ["digits", "svhn"])
def test_pmap_takes_many_steps_and_donates_the_state(name):
    ali, config, tx, start, data = setting(name, axis_name="data")
    mesh = Mesh(jax.devices()[:4], ("data",))
    call = compile.make_train_step(ali, tx, losses.ali, feed=Fixed(), steps=3, mesh=mesh, parallel="pmap")
    before, _ = call(start(), data)
    state, metrics = call(before, data)
    assert int(state.step) == 6
    assert metrics["finite_steps"] == 3
    assert state.variables.params.encoder["mu"]["bias"].shape == (config.latent_dim,)
    assert before.variables.params.encoder["mu"]["kernel"].is_deleted()


def test_batch_statistics_that_are_not_synchronised_are_refused():
    ali, _, tx, start, data = setting("svhn")
    state = jax.eval_shape(start)
    step = jax.vmap(
        lambda state, x: train.train_step(ali, tx, losses.ali, (), state, Batch(x), axis_name="data"),
        in_axes=(None, 0),
        axis_name="data",
    )
    with pytest.raises(ValueError, match="build\\(config, axis_name='data'\\)"):
        jax.eval_shape(step, state, data)


def test_the_sharded_step_needs_all_reduces_only():
    ali, _, tx, start, data = setting("svhn")
    mesh = Mesh(jax.devices()[:4], ("data",))
    replicated = NamedSharding(mesh, PartitionSpec())
    batch = Batch(jax.device_put(data[0], NamedSharding(mesh, PartitionSpec("data"))))
    state = jax.device_put(start(), replicated)
    step = jax.jit(partial(train.train_step, ali, tx, losses.ali, ()), out_shardings=replicated)
    text = step.lower(state, batch).compile().as_text()
    others = ("all-to-all", "collective-permute", "all-gather", "reduce-scatter")
    assert " all-reduce(" in text
    assert [op for op in others if f" {op}(" in text] == []


def test_the_loop_moves_nothing_between_host_and_device():
    ali, _, tx, start, data = setting("digits")
    rows = np.zeros((30, *data.shape[2:]), np.uint8)
    feed = data_module.make_feed(ArraySplit(rows), batch_size=8, seed=0, divisor=16.0)
    call = compile.make_train_step(ali, tx, losses.ali, feed=feed, steps=2)
    state, _ = call(start(), feed.load(0, 2))
    with jax.transfer_guard("disallow"):
        state, metrics = call(state, feed.load(2, 2))
        jax.block_until_ready(metrics)
    assert int(state.step) == 4


def test_the_state_is_donated():
    ali, _, tx, start, data = setting("digits")
    call = compile.make_train_step(ali, tx, losses.ali, feed=Fixed(), steps=2)
    state = start()
    call(state, data)
    assert state.variables.params.encoder["mu"]["kernel"].is_deleted()


def test_a_game_can_have_losses_of_ones_own(key):
    """A least-squares loss, written by a user: one pass applies as long as D gives one logit per pair."""
    ali, _, batch = small.game("digits")
    variables, noise = small.draw(ali, batch.x), model.draw_noise(ali, key, 4)

    def least_squares(logits: Logits, batch: Batch):
        square = lambda s, t: jnp.mean((s - t) ** 2)  # noqa: E731
        generator = square(logits.q, 0) + square(logits.p, 1)
        return Losses(generator, square(logits.q, 1) + square(logits.p, 0)), {}

    ours, _ = jax.jit(lambda v: gradients.game_gradients(ali, v, least_squares, (), batch, noise))(variables)
    theirs = jax.jit(lambda v: separate_gradients(ali, v, least_squares, batch, noise))(variables)
    assert isinstance(ours, Networks)
    assert isinstance(variables, Variables)
    assert max(distance(a, b) for a, b in zip(ours, theirs, strict=True)) < 1e-5
