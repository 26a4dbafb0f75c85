"""Penalties for few labels: their definitions, by hand in float64; whom they move; what they refuse."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small

from ali_jax import class_penalties, gradients, losses, model
from ali_jax import config as configs
from ali_jax.game import parts
from ali_jax.types import Batch, Networks, Noise, Pairs, Variables

STEP = jnp.zeros((), jnp.int32)
compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Encoder(nn.Module):
    latent_dim = 2

    @nn.compact
    def __call__(self, x, epsilon, y=None, *, train=False):
        return jnp.tanh(x @ self.param("kernel", nn.initializers.ones, (3, 2))) + 0.1 * epsilon


class Decoder(nn.Module):
    @nn.compact
    def __call__(self, z, y=None, *, train=False):
        return jnp.tanh(z @ self.param("kernel", nn.initializers.ones, (2, 3)))


class Hidden(nn.Module):
    @nn.compact
    def __call__(self, h):
        return jnp.tanh(h @ self.param("kernel", nn.initializers.ones, (5, 4)))


class Discriminator(nn.Module):
    classes: int = 3
    coupled = random = False

    def setup(self):
        self.joint = Hidden()
        self.kernel = self.param("kernel", nn.initializers.ones, (4, self.classes))

    def __call__(self, x, z, y=None, *, train=False):
        logits = self.joint(jnp.concatenate([x, z], axis=-1)) @ self.kernel
        return logits if self.classes > 1 else logits[:, 0]


def encode(params, x, epsilon):
    return jnp.tanh(x @ params.encoder["kernel"]) + 0.1 * epsilon


def decode(params, z):
    return jnp.tanh(z @ params.decoder["kernel"])


def hidden(params, x, z):
    return jnp.tanh(jnp.hstack([x, z]) @ params.discriminator["joint"]["kernel"])


def logits_of(params, x, z):
    return hidden(params, x, z) @ params.discriminator["kernel"]


def probabilities(params, x, z):
    weights = jnp.exp(logits_of(params, x, z))
    return weights / weights.sum(1, keepdims=True)


class Setting:
    """Networks of one hidden layer, numbers for everything that is drawn, and pairs, all in float64."""

    def __init__(self, classes=3):
        self.ali = Networks(Encoder(), Decoder(), Discriminator(classes))
        rng = np.random.default_rng(0)
        draw = lambda *shape: jnp.asarray(rng.normal(size=shape))  # noqa: E731
        joint, kernel = {"kernel": draw(5, 4)}, 2 * draw(4, classes)
        params = Networks({"kernel": draw(3, 2)}, {"kernel": draw(2, 3)}, {"joint": joint, "kernel": kernel})
        self.variables = Variables(params, Networks({}, {}, {}))
        self.batch = Batch(draw(6, 3), label=jnp.asarray([-1, 0, -1, 1, -1, 2]))
        keys = jax.random.split(jax.random.PRNGKey(0), 3)
        self.noise = Noise(draw(6, 2), draw(6, 2), *keys)
        self.pairs = self.pairs_of(params)
        self.directions = {2: draw(6, 2), 3: draw(6, 3)}  # by size: of steps in z and in x

    def pairs_of(self, params):
        z_hat = encode(params, self.batch.x, self.noise.epsilon)
        return Pairs(self.batch.x, z_hat, decode(params, self.noise.z), self.noise.z)

    def drawn(self, key, shape, dtype=None):
        """Stand in for `jax.random.normal`."""
        del key, dtype
        return self.directions[shape[1]][: shape[0]]

    def direction(self, size, rows):
        d = self.directions[size][:rows]
        return d / jnp.linalg.norm(d, axis=1, keepdims=True)


def manifold(setting, params, at, stride=1):
    total = 0.0
    for codes in {"prior": ["z"], "encoder": ["z_hat"], "both": ["z", "z_hat"]}[at]:
        z = getattr(setting.pairs, codes)[::stride]
        moved = z + 0.3 * setting.direction(2, len(z))
        frozen = setting.variables.params
        before, after = (logits_of(params, decode(frozen, c), c) for c in (z, moved))
        total += jnp.sum((after - before) ** 2) / len(z)
    return total


def virtual_adversarial(setting, params, stride=1):
    """Miyato et al., algorithm 1, with their finite difference."""
    x, z = setting.pairs.x[::stride], setting.pairs.z_hat[::stride]
    frozen = setting.variables.params
    p = probabilities(frozen, x, z)

    def divergence(r, params):
        return jnp.sum(p * jnp.log(p / probabilities(params, x + r, z)))

    xi = 1e-6
    g = jax.grad(divergence)(xi * setting.direction(3, len(x)), frozen)
    r = 0.5 * g / jnp.linalg.norm(g, axis=1, keepdims=True)
    return divergence(r, params) / len(x)


def entropy(setting, params, stride=1):
    p = probabilities(params, setting.pairs.x[::stride], setting.pairs.z_hat[::stride])
    return -jnp.mean(jnp.sum(p * jnp.log(p), axis=1))


def feature_matching(setting, params, stride=1):
    frozen, pairs = setting.variables.params, setting.pairs_of(params)
    difference = jnp.mean(hidden(frozen, pairs.x[::stride], pairs.z_hat[::stride]), axis=0)
    difference -= jnp.mean(hidden(frozen, pairs.x_tilde, pairs.z), axis=0)
    return jnp.sum(difference**2)


# What is tested: the penalty, its reference, the options of both, those of the penalty alone, whom it moves.
D, G = ("discriminator",), ("encoder", "decoder")
CASES = {
    "manifold at the prior": ("manifold", manifold, {"at": "prior", "stride": 2}, {"size": 0.3}, D),
    "manifold at codes": ("manifold", manifold, {"at": "encoder", "stride": 2}, {"size": 0.3}, D),
    "manifold at both": ("manifold", manifold, {"at": "both"}, {"size": 0.3}, D),
    "virtual adversarial": ("virtual_adversarial", virtual_adversarial, {}, {"radius": 0.5}, D),
    "the same, half the rows": (
        "virtual_adversarial",
        virtual_adversarial,
        {"stride": 2},
        {"radius": 0.5},
        D,
    ),
    "entropy": ("entropy", entropy, {"stride": 2}, {}, D),
    "feature matching": ("feature_matching", feature_matching, {"stride": 2}, {}, G),
}


def game_of(setting, terms, **options):
    """Return the gradients and the metrics of the game with some penalties."""
    given = (setting.variables, losses.semi_supervised, terms, setting.batch, setting.noise, STEP)
    grads, aux = gradients.game_gradients(setting.ali, *given, **options)
    return grads, aux.metrics


@pytest.fixture(scope="module")
def found():
    """Return the gradients of the game without penalties and with those of weight 0 and, by case, more."""
    with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
        setting = Setting()
        patch.setattr(jax.random, "normal", setting.drawn)
        params = setting.variables.params

        @compiled
        def run():
            results = {}
            idle = []
            for case, (name, reference, both, own, _) in CASES.items():
                penalty = partial(getattr(class_penalties, name), **both, **own)
                idle.append(partial(penalty, weight=0.0))
                grads, metrics = game_of(setting, (partial(penalty, weight=0.7),))
                by_hand = jax.value_and_grad(partial(reference, setting, **both))(params)
                results[case] = metrics[name], grads, *by_hand
            return {**results, "without": game_of(setting, ())[0], "idle": game_of(setting, idle)[0]}

        return jax.device_get(run())


@pytest.mark.parametrize("case", CASES)
def test_a_penalty_is_its_definition_and_moves_its_own_player_only(found, case):
    value, grads, expected, gradient = found[case]
    assert expected > 0.01
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert jax.tree.structure(grads) == jax.tree.structure(found["without"])
    for role in Networks._fields:
        ours, before, theirs = (getattr(tree, role) for tree in (grads, found["without"], gradient))
        added = jax.tree.map(np.subtract, ours, before)
        if role not in CASES[case][-1]:
            assert optax.tree.norm(added) == 0
            continue
        error = optax.tree.norm(jax.tree.map(lambda a, b: a - 0.7 * b, added, theirs))
        assert error < 1e-5 * optax.tree.norm(theirs)


def test_penalties_of_weight_zero_change_nothing(found):
    jax.tree.map(np.testing.assert_array_equal, found["idle"], found["without"])


@pytest.mark.parametrize(("step", "share"), [(0, 0), (30, 0), (35, 0.25), (40, 0.5), (50, 1), (99, 1)])
def test_a_weight_rises_over_its_ramp(step, share):
    weight = class_penalties._weight(0.8, (0.3, 0.5), jnp.asarray(step), 100)
    np.testing.assert_allclose(weight, 0.8 * share, rtol=1e-5, atol=1e-7)


def test_a_ramp_of_no_length_is_a_step_and_a_weight_may_be_a_schedule():
    at = lambda step: float(class_penalties._weight(0.8, (0.3, 0.3), jnp.asarray(step), 100))  # noqa: E731
    assert (at(30), at(31)) == (0, pytest.approx(0.8))
    schedule = optax.linear_schedule(0.0, 1.0, 10)
    assert float(class_penalties._weight(schedule, (0.0, 0.0), jnp.asarray(4), 100)) == pytest.approx(0.4)


def test_the_ramps_of_the_config_reach_the_penalties(key):
    config = small.experiment("digits").unlock()
    config.num_steps = 10
    config.penalties = {"entropy": {"weight": 0.5, "ramp": (0.2, 0.6)}}
    (penalty,) = parts.make_penalties(config)
    setting = Setting()
    at = compiled(lambda s: penalty(setting.ali, setting.variables, setting.pairs, key, s)[0].discriminator)
    found = [float(at(jnp.asarray(step))) for step in (2, 4, 9)]
    np.testing.assert_allclose(np.divide(found, found[-1]), [0, 0.5, 1], rtol=1e-5, atol=1e-7)


def test_a_run_with_a_ramp_cannot_be_resumed_with_more_steps():
    values = {"penalties.entropy.ramp": (0.2, 0.6), "penalties.manifold.weight": 0.5}
    assert configs.schedules(configs.with_values(configs.base(), values)) == []  # it is off
    on = configs.with_values(configs.base(), {**values, "penalties.entropy.weight": 0.5})
    assert configs.schedules(on) == ["penalties.entropy.ramp"]
    assert "num_steps" in configs.conflicts(on, configs.with_values(on, {"num_steps": on.num_steps + 1}))


def test_shards_match_the_features_of_the_whole_batch():
    """Gradients of the shards' losses, averaged over the axis, are the gradient of the whole batch's."""
    setting = Setting()
    params = setting.variables.params

    def loss(params, x, z, epsilon, axis_name=None):
        pairs = Pairs(x, encode(params, x, epsilon), decode(params, z), z)
        given = (setting.ali, setting.variables, pairs, jax.random.PRNGKey(0), STEP)
        return class_penalties.feature_matching(*given, weight=2.0, axis_name=axis_name)[0].generator

    def of_shard(*rows):
        return jax.lax.pmean(jax.value_and_grad(loss)(params, *rows, "data"), "data")

    rows = (setting.batch.x, setting.noise.z, setting.noise.epsilon)

    @compiled
    def both(*rows):
        shards = [v.reshape(3, 2, *v.shape[1:]) for v in rows]
        of_shards = jax.vmap(of_shard, axis_name="data")(*shards)
        return jax.tree.map(lambda v: v[0], of_shards), jax.value_and_grad(loss)(params, *rows)

    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), *both(*rows))


def test_one_pass_and_two_pullbacks_agree_beside_a_penalty_of_each_player():
    setting = Setting(classes=1)
    terms = (
        partial(class_penalties.manifold, weight=0.5),
        partial(class_penalties.feature_matching, weight=0.5),
    )
    forms = ("one_pass", "two_pullbacks")
    found = compiled(lambda: [game_of(setting, terms, gradient=form)[0] for form in forms])()
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), *found)


def test_what_is_compared_has_the_same_masks_and_the_same_noise(key):
    """Without a step nothing changes, though D is random."""
    ali, variables, batch = perceptrons(num_classes=3, x_dropout=(0.5,), joint_noise=(0.5,))

    @compiled
    def values(key, size):
        pairs, _ = model.generate(ali, *variables, batch, model.draw_noise(ali, jax.random.PRNGKey(1), 4))
        given = (ali, variables, pairs, key, STEP)
        options = ({"size": size}, {"radius": size})
        functions = (class_penalties.manifold, class_penalties.virtual_adversarial)
        return [f(*given, weight=1.0, **o)[0].discriminator for f, o in zip(functions, options, strict=True)]

    none, some, other = values(key, 1e-5), values(key, 1.0), values(jax.random.PRNGKey(7), 1.0)
    assert max(np.abs(none)) < 1e-6
    assert min(np.abs(some)) > 1e-3
    assert min(np.abs(np.subtract(some, other))) > 1e-4


def perceptrons(**discriminator):
    """Return narrow networks of the package, their variables and a batch."""

    def edit(config):
        config.encoder.layers = config.decoder.layers = (4,)
        layers = {"x_layers": (5,), "z_layers": (4,), "joint_layers": (5,)}
        config.discriminator.update({**layers, **discriminator})

    ali, _, batch = small.game("digits", edit=edit)
    return ali, small.draw(ali, batch.x), batch


@pytest.mark.parametrize("lowering", ["cpu", "gpu"])
def test_the_worst_direction_goes_through_convolutions(lowering):
    """They have gradients of their own there, and so no forward-mode derivative."""

    def edit(config):
        small.shallow(config)
        config.lowering = lowering

    ali, _, batch = small.game("svhn_semi", edit=edit)
    variables = jax.eval_shape(partial(model.init, ali), jax.random.PRNGKey(0), batch.x)

    def value(variables, key):
        z = jnp.zeros((4, ali.encoder.latent_dim))
        pairs = Pairs(batch.x, z, batch.x, z)
        penalty = partial(class_penalties.virtual_adversarial, weight=0.5)
        return penalty(ali, variables, pairs, key, STEP)[0].discriminator

    assert jax.jit(jax.grad(value)).lower(variables, jax.random.PRNGKey(0)).as_text()


def test_a_direction_has_the_length_one_however_small_it_is():
    v = jnp.asarray([[3e-30, 4e-30], [0.0, 0.0]], jnp.float32)
    np.testing.assert_allclose(class_penalties._unit(v), [[0.6, 0.8], [0, 0]], rtol=1e-6)


@pytest.mark.parametrize("name", ["virtual_adversarial", "entropy"])
def test_a_discriminator_without_classes_is_refused(name, key):
    setting = Setting(classes=1)
    with pytest.raises(ValueError, match=rf"{name} needs a discriminator of classes: .*{name}\.weight = 0"):
        getattr(class_penalties, name)(setting.ali, setting.variables, setting.pairs, key, STEP, weight=1.0)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("manifold", {"at": "data"}, "at is 'data'; it must be one of prior, encoder, both"),
        ("feature_matching", {"layer": "x"}, "D calls no submodule 'x'"),
    ],
)
def test_what_does_not_exist_is_refused(name, options, message, key):
    setting = Setting()
    given = (setting.ali, setting.variables, setting.pairs, key, STEP)
    with pytest.raises(ValueError, match=message):
        getattr(class_penalties, name)(*given, weight=1.0, **options)


def test_the_output_of_dx_is_matched_by_the_decoder_alone(key):
    ali, variables, batch = perceptrons()

    def loss(params):
        moved = variables._replace(params=params)
        pairs, _ = model.generate(ali, *moved, batch, model.draw_noise(ali, key, 4))
        given = (ali, moved, pairs, key, STEP)
        return class_penalties.feature_matching(*given, weight=1.0, layer="x")[0].generator

    by_network = map(optax.tree.norm, compiled(jax.grad(loss))(variables.params))
    assert [norm > 0 for norm in by_network] == [False, True, False]
