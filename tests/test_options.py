"""Options of networks, penalties and steps, each against numbers worked out by hand with numpy."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ali_jax import losses, networks, penalties, train
from ali_jax.game import compile
from ali_jax.networks.layers import BatchNorm
from ali_jax.types import Batch, Logits, Losses, Networks, Pairs, TrainState, Variables

X = np.array([[0.5, -1.0], [2.0, 0.25], [-0.75, 1.5]], np.float32)
EPSILON = np.array([[1.0, -2.0], [0.5, 0.25], [-1.0, 3.0]], np.float32)
KERNEL = np.array([[1.0, -2.0], [0.5, 3.0]], np.float32)


def affine(kernel, bias=None):
    kernel = jnp.asarray(kernel, jnp.float32)
    return {"kernel": kernel, "bias": jnp.zeros(kernel.shape[1]) if bias is None else jnp.asarray(bias)}


def relu(h):
    return np.maximum(h, 0)


# The encoder.


def test_log_sigma_is_clipped_on_both_sides():
    encoder = networks.Encoder(2, (), log_sigma_clip=(-1.0, 0.5))
    log_sigma = affine(np.zeros((2, 2)), np.array([-3.0, 2.0]))
    params = {"params": {"mu": affine(KERNEL), "log_sigma": log_sigma}}
    z = encoder.apply(params, X, EPSILON)
    np.testing.assert_allclose(z, X @ KERNEL + np.exp([-1.0, 0.5]) * EPSILON, rtol=1e-5)
    found = encoder.apply(params, X, method="moments")
    np.testing.assert_allclose(found[1], np.tile([-1.0, 0.5], (3, 1)), rtol=1e-6)


def test_the_deviation_of_fourier_features_multiplies_their_angles():
    encoder = networks.Encoder(1, (), posterior="deterministic", frequencies=(3, 2.5))
    kernel = np.arange(1.0, 9.0)[:, None]
    found = encoder.apply({"params": {"mu": affine(kernel)}}, X, EPSILON[:, :1])
    angles = X @ (2.5 * np.random.RandomState(0).standard_normal((2, 3)))
    features = np.concatenate([X, np.sin(angles), np.cos(angles)], axis=1)
    np.testing.assert_allclose(found, features @ kernel, rtol=1e-4)


def test_the_encoder_centres_x_and_not_its_noise():
    gaussian = networks.Encoder(2, (), center=True)
    params = {"mu": affine(KERNEL), "log_sigma": affine(np.zeros((2, 2)))}
    found = gaussian.apply({"params": params}, X, EPSILON)
    np.testing.assert_allclose(found, (2 * X - 1) @ KERNEL + EPSILON, rtol=1e-5)
    noise = networks.Encoder(2, (), posterior="noise", center=True)
    kernel = np.concatenate([KERNEL, 2 * KERNEL])
    found = noise.apply({"params": {"mu": affine(kernel)}}, X, EPSILON)
    np.testing.assert_allclose(found, (2 * X - 1) @ KERNEL + EPSILON @ (2 * KERNEL), rtol=1e-5)


# Conditions.

Y = np.array([[1.0, 0.0], [0.0, 2.0], [-1.0, 1.0]], np.float32)
TALL = np.concatenate([KERNEL, np.array([[-3.0, 1.0], [0.5, 0.25]], np.float32)])  # of x or z, then y


def test_conditions_enter_the_encoder_beside_its_last_hidden_layer():
    encoder = networks.Encoder(2, (2,), "relu", batch_norm=False, posterior="deterministic")
    stack = {"layer_0": {"kernel": KERNEL}, "bias_0": {"bias": jnp.zeros(2)}}
    found = encoder.apply({"params": {"stack": stack, "mu": affine(TALL)}}, X, EPSILON, Y)
    np.testing.assert_allclose(found, np.concatenate([relu(X @ KERNEL), Y], 1) @ TALL, rtol=1e-5)


def test_conditions_enter_the_decoder_beside_z_before_its_first_nonlinearity():
    decoder = networks.Decoder((2,), (2,), "relu", batch_norm=False, output="linear")
    stack = {"layer_0": {"kernel": TALL}, "bias_0": {"bias": jnp.zeros(2)}}
    params = {"Stack_0": stack, "output": {"kernel": KERNEL}, "untied": {"bias": jnp.ones(2)}}
    found = decoder.apply({"params": params}, X, Y)
    np.testing.assert_allclose(found, relu(np.concatenate([X, Y], 1) @ TALL) @ KERNEL + 1, rtol=1e-5)


def test_conditions_enter_the_discriminator_before_the_joint_nonlinearity():
    d = networks.Discriminator((), (), (2,), "relu", x_batch_norm=False)
    kernel = np.concatenate([KERNEL, TALL])
    joint = {"layer_0": {"kernel": kernel}, "bias_0": {"bias": jnp.zeros(2)}}
    params = {"joint": joint, "logit": affine([[1.0], [-2.0]])}
    found = d.apply({"params": params}, X, EPSILON, Y)
    hidden = relu(np.concatenate([X, EPSILON, Y], 1) @ kernel)
    np.testing.assert_allclose(found, hidden @ [1.0, -2.0], rtol=1e-5)


# The discriminator.


def test_z_enters_every_layer_before_its_nonlinearity():
    d = networks.Discriminator((2,), (), (2,), "relu", x_batch_norm=False, z_everywhere=True)
    joint = np.concatenate([KERNEL, -KERNEL])

    def layer(kernel, beside, bias):
        return {
            "layer_0": {"kernel": kernel},
            "bias_0": {"bias": jnp.full(2, bias)},
            "beside_0": {"kernel": beside},
        }

    params = {"x": layer(KERNEL, 2 * KERNEL.T, 0.5), "joint": layer(joint, KERNEL.T, -0.5)}
    found = d.apply({"params": {**params, "logit": affine([[1.0], [-2.0]])}}, X, EPSILON)
    h = relu(X @ KERNEL + 0.5 + EPSILON @ (2 * KERNEL.T))
    h = relu(np.concatenate([h, EPSILON], 1) @ joint - 0.5 + EPSILON @ KERNEL.T)
    np.testing.assert_allclose(found, h @ [1.0, -2.0], rtol=1e-5)


def test_the_discriminator_centres_x_and_both_data_of_a_pair_and_not_z():
    d = networks.Discriminator(x_batch_norm=False, center=True, pair_layers=(1,))
    weights = np.array([1.0, -2.0, 0.5, 3.0], np.float32)
    pairs = {"layer_0": {"kernel": weights[:, None]}, "bias_0": {"bias": jnp.full(1, 100.0)}}
    params = {"logit": affine(weights[:, None]), "pairs": pairs, "pair_logit": affine([[1.0]])}
    found = d.apply({"params": params}, X, EPSILON)
    np.testing.assert_allclose(found, (2 * X - 1) @ weights[:2] + EPSILON @ weights[2:], rtol=1e-5)
    found = d.apply({"params": params}, X, EPSILON, method="pair")
    both = (2 * X - 1) @ weights[:2] + (2 * EPSILON - 1) @ weights[2:]
    np.testing.assert_allclose(found, both + 100, rtol=1e-5)


def test_maps_are_averaged_over_both_axes_of_space():
    d = networks.Discriminator(((1, 1, 2),), blind=True, x_batch_norm=False, x_pool=True)
    x = np.array([[[1.0, 2.0], [3.0, 6.0]], [[0.0, 1.0], [-1.0, 4.0]]], np.float32)[..., None]
    stack = {"layer_0": {"kernel": np.float32([[[[1, 10]]]])}, "bias_0": {"bias": jnp.full(2, 20.0)}}
    found = d.apply({"params": {"x": stack, "logit": affine([[1.0], [2.0]])}}, x, np.zeros((2, 1)))
    np.testing.assert_allclose(found, [(3 + 20) + 2 * (30 + 20), (1 + 20) + 2 * (10 + 20)], rtol=1e-6)


def shares_of(logits):
    """Return how often each value occurs."""
    values, counts = np.unique(np.round(np.asarray(logits, np.float64), 2), return_counts=True)
    return dict(zip(values.tolist(), counts / len(logits), strict=True))


def layers_of_one_unit(kernel, bias, first=((1.0,),)):
    """Return two layers of one unit, the first with a kernel of its own shape."""
    return {
        "layer_0": {"kernel": kernel * jnp.array(first)},
        "layer_1": {"kernel": jnp.full((1, 1), kernel)},
        "bias_0": {"bias": jnp.full(1, bias)},
        "bias_1": {"bias": jnp.full(1, bias)},
    }


BEFORE = {1.0: 3 / 4, 9.0: 1 / 8, 41.0: 1 / 8}  # 1 + 2 b (1 + 2 a), for a of 0 or 2 and b of 0 or 4
AFTER = {0.0: 3 / 4, 4.0: 1 / 8, 52.0: 1 / 8}  # b (1 + 2 a (1 + 2)), the same


@pytest.mark.parametrize(
    ("field", "shares"), [("x_dropout", BEFORE), ("x_dropout_after", AFTER), ("z_dropout", BEFORE)]
)
def test_every_layer_has_its_own_dropout_rate(field, shares):
    """What is not dropped at rates 1/2 and 3/4 is times a = 2 and b = 4."""
    d = networks.Discriminator(
        (1, 1), (1, 1), (), "relu", x_batch_norm=False, z_bias=True, **{field: (0.5, 0.75)}
    )
    stacks = {"x": layers_of_one_unit(0.0, 0.0), "z": layers_of_one_unit(0.0, 0.0)}
    stacks[field[0]] = layers_of_one_unit(2.0, 1.0)
    params = {"params": {**stacks, "logit": affine([[1.0], [1.0]])}}
    ones = jnp.ones((4000, 1))
    found = d.apply(params, ones, ones, train=True, rngs={"dropout": jax.random.PRNGKey(0)})
    assert shares_of(found) == pytest.approx(shares, abs=0.03)


def test_the_last_of_the_joint_dropout_rates_is_that_of_the_logit():
    """1 + 2 b (1 + 2 a) as above, dropped at a rate of 7/8 before the logit or times 8."""
    d = networks.Discriminator((), (), (1, 1), "relu", x_batch_norm=False, joint_dropout=(0.5, 0.75, 0.875))
    joint = layers_of_one_unit(2.0, 1.0, first=((1.0,), (0.0,)))
    ones = jnp.ones((4000, 1))
    params = {"params": {"joint": joint, "logit": affine([[1.0]])}}
    found = d.apply(params, ones, ones, train=True, rngs={"dropout": jax.random.PRNGKey(0)})
    shares = {0.0: 7 / 8, **{8 * value: share / 8 for value, share in BEFORE.items()}}
    assert shares_of(found) == pytest.approx(shares, abs=0.015)


def test_every_layer_has_its_own_noise():
    """l = 3 (h + c), h = 2 (2 (x + a) + a') + b + b', each letter but x noise with a deviation of its own."""
    d = networks.Discriminator(
        (1, 1),
        (),
        (1, 1),
        slope=1.0,
        x_batch_norm=False,
        blind=True,
        x_noise=(0.1, 0.3),
        joint_noise=(0.3, 0.2, 0.5),
    )
    stacks = {"x": layers_of_one_unit(2.0, 0.0), "joint": layers_of_one_unit(1.0, 0.0)}
    params = {"params": {**stacks, "logit": affine([[3.0]])}}
    ones = jnp.ones((40_000, 1))
    noisy = d.apply(params, ones, ones, train=True, rngs={"dropout": jax.random.PRNGKey(0)})
    expected = 9 * (16 * 0.1**2 + 4 * 0.3**2 + 0.3**2 + 0.2**2 + 0.5**2)
    assert float(jnp.var(noisy)) == pytest.approx(expected, rel=0.02)
    np.testing.assert_array_equal(d.apply(params, ones[:2], ones[:2]), [12.0, 12.0])
    assert d.random
    assert not d.clone(x_noise=0.0, joint_noise=0.0).random


# Penalties.


class Identity(nn.Module):
    """A network whose output is its input, with a deviation or batch norm where asked for."""

    latent_dim: int = 2
    sigma: float = 0.0
    norm: bool = False

    @nn.compact
    def __call__(self, x, epsilon=None, y=None, *, train=False):
        del y
        x = BatchNorm(name="norm")(x, train=train) if self.norm else x
        return x if epsilon is None else x + self.sigma * epsilon


class IdentityDecoder(Identity):
    """The same of z alone."""

    @nn.compact
    def __call__(self, z, y=None, *, train=False):
        del y
        return BatchNorm(name="norm")(z, train=train) if self.norm else z


def identities(x, z, **encoder):
    """Return networks that are identities, with batch norm if asked for, their variables, and pairs."""
    norm = encoder.get("norm", False)
    ali = Networks(Identity(**encoder), IdentityDecoder(norm=norm), None)
    scaled = {"norm": {"gamma": jnp.array([1.0, 2.0]), "beta": jnp.array([0.5, 0.0])}} if norm else {}
    stats = {"norm": {"mean": jnp.full(2, 7.0), "std": jnp.full(2, 9.0)}} if norm else {}
    variables = Variables(Networks(scaled, scaled, {}), Networks(stats, stats, {}))
    return ali, variables, Pairs(x, z, x, z)


def test_r1_counts_packs():
    d = networks.Discriminator(x_batch_norm=False, packing=2)
    weights = np.arange(1.0, 9.0, dtype=np.float32)  # of x of both pairs, then of z of both
    variables = Variables(Networks({}, {}, {"logit": affine(weights[:, None])}), Networks({}, {}, {}))
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2)), jnp.float32)
    arguments = (Networks(None, None, d), variables, Pairs(rows, rows, rows, rows))
    added, _ = penalties.r1(*arguments, jax.random.PRNGKey(0), 0, gamma=2.0, gamma_z=0.5)
    np.testing.assert_allclose(added.discriminator, (2 * (1 + 4 + 9 + 16) + 0.5 * (25 + 36 + 49 + 64)) / 2)


def test_the_cycle_of_sampled_codes_has_the_posteriors_variance():
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(20_000, 2)), jnp.float32)
    arguments = (*identities(rows, rows, sigma=0.5), jax.random.PRNGKey(0), 0)
    at_the_mean, _ = penalties.cycle_z(*arguments, weight=3.0)
    sampled, _ = penalties.cycle_z(*arguments, weight=3.0, sampled=True)
    assert at_the_mean.generator == 0
    assert float(sampled.generator) == pytest.approx(3 * 2 * 0.5**2, rel=0.03)


def test_cycles_normalise_by_the_batch_that_they_run_on():
    x, z = np.float32([[1, 4], [3, 0], [5, -1]]), np.float32([[0, 1], [1, -1], [4, 2]])
    arguments = (*identities(x, z, norm=True), jax.random.PRNGKey(0), 0)

    def normalised(h):
        return (h - h.mean(0)) / np.sqrt(h.var(0) + 1e-4) * [1.0, 2.0] + [0.5, 0.0]

    for cycle, expected in (
        (penalties.cycle_x, np.sum((x - normalised(z)) ** 2) / 3),  # |x - G_x(z_hat)|^2, and z_hat = z
        (penalties.cycle_z, np.sum((z - normalised(x)) ** 2) / 3),  # |z - G_z(x_tilde)|^2, and x_tilde = x
    ):
        added, _ = cycle(*arguments, weight=2.0)
        np.testing.assert_allclose(added.generator, 2 * expected, rtol=1e-4)


# Steps.


def one_step(*, axis_name=None, terms=(), loss=losses.none, batch=None, ema_decay=0.0, norm=False):
    """Take a step of identities and a linear D; with an axis, the batch's first axis is that of devices."""
    ali, variables, _ = identities(None, None, norm=norm, sigma=1.0)
    ali = ali._replace(discriminator=networks.Discriminator(x_batch_norm=False))
    d = {"logit": affine(np.ones((4, 1)))}
    variables = variables._replace(params=variables.params._replace(discriminator=d))
    tx = optax.sgd(0.0)
    average = variables if ema_decay else None
    state = TrainState(
        jnp.zeros((), jnp.int32), jax.random.PRNGKey(3), variables, average, tx.init(variables.params)
    )
    step = partial(train.train_step, ali, tx, loss, terms, state, axis_name=axis_name, ema_decay=ema_decay)
    return jax.jit(step if axis_name is None else jax.vmap(step, axis_name=axis_name))(batch)


def test_devices_draw_noise_of_their_own():
    def shown(ali, variables, pairs, key, step):
        drawn = {"z": pairs.z, "epsilon": pairs.z_hat, "key": jax.random.normal(key, (3,))}
        return Losses(0.0 * pairs.z.sum(), 0.0 * pairs.z.sum()), {
            name: jax.lax.all_gather(value, "data") for name, value in drawn.items()
        }

    x = jnp.tile(X, (4, 1, 1))  # the same on four devices
    _, metrics = one_step(axis_name="data", terms=(shown,), batch=Batch(x))
    for name in ("z", "epsilon", "key"):
        of_devices = np.asarray(metrics[name])[0].reshape(4, -1)
        assert len(np.unique(of_devices)) == of_devices.size, name


def test_the_average_is_also_over_batch_statistics():
    x = jnp.asarray(X)
    state, _ = one_step(batch=Batch(x), ema_decay=0.9, norm=True)
    running = 0.95 * 7 + 0.05 * X.mean(0)
    np.testing.assert_allclose(state.variables.batch_stats.encoder["norm"]["mean"], running, rtol=1e-5)
    decay = 2 / 11  # (1 + t) / (10 + t) at t = 1
    np.testing.assert_allclose(
        state.ema.batch_stats.encoder["norm"]["mean"], decay * 7 + (1 - decay) * running, rtol=1e-5
    )


def test_metrics_of_labelled_rows_are_means_over_all_rows_however_devices_share_them():
    q = np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [-4.0, -4.0], [0.0, 5.0], [-6.0, -5.0]])
    label = np.array([0, 0, 1, -1, -1, -1])  # of three devices with two rows each
    q = q.astype(np.float32)
    p = -q[::-1]

    def local(q, p, label):
        batch = Batch(jnp.zeros((2, 1)), label=label)
        values = losses.semi_supervised(Logits(q, p), batch, weight=3.0, axis_name="data")
        return jax.lax.pmean(values, "data")

    shards = (
        jnp.asarray(v.reshape(3, 2, *v.shape[1:]))
        for v in (q.astype(np.float32), p.astype(np.float32), label)
    )
    (_, discriminator), metrics = jax.vmap(local, axis_name="data")(*shards)
    s_q, s_p = (np.log(np.exp(s).sum(1)) for s in (q, p))
    supervised = (s_q[0] - 2 + s_q[1] - 0 + s_q[2] - 0) / 3
    expected = {
        "loss/labelled": supervised,
        "accuracy/label": 1 / 3,  # the first
        "accuracy/data": 1 / 3,  # of the unlabelled, whose logits are negative, positive, negative
        "accuracy/sample": np.mean(s_p < 0),
        "confidence/data": np.mean(1 / (1 + np.exp(-s_q[3:]))),
        "confidence/sample": np.mean(1 / (1 + np.exp(s_p))),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name][0], value, rtol=1e-5, err_msg=name)
    softplus = lambda s: np.log1p(np.exp(s))  # noqa: E731
    total = softplus(-s_q[3:]).mean() + softplus(s_p).mean() + 3 * supervised
    np.testing.assert_allclose(discriminator[0], total, rtol=1e-5)


@pytest.mark.parametrize(
    ("generator", "discriminator", "finite"),
    [
        ((1, 2, 3), (1, np.nan, 3), 1),
        ((1, 2, np.inf), (1, 2, 3), 2),
        ((1, 2, 3), (-np.inf, 2, 3), 0),
        ((1, 2, 3), (4, 5, 6), 3),
    ],
)
def test_steps_are_finite_up_to_the_first_loss_of_either_player_that_is_not(generator, discriminator, finite):
    losses_of = {"loss/generator": jnp.float32(generator), "loss/discriminator": jnp.float32(discriminator)}
    found = compile.summary(losses_of)
    assert found["finite_steps"] == finite
    np.testing.assert_allclose(found["loss/generator"], np.mean(generator))
