"""Residual networks: their sizes, their layers against independent sums, their gradients, their recipe."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small
from jax.test_util import check_grads

from ali_jax import config as configs
from ali_jax import game, gradients, losses, model, networks, penalties
from ali_jax.game import parts
from ali_jax.networks import stages
from ali_jax.types import Batch, Networks, Pairs

NAMES = ("mnist_residual", "svhn_residual", "cifar10_residual", "celeba_residual")
TINY = {"maps": (2, 3), "patch": 2, "activation": "leaky_relu", "slope": 0.2}


def tiny(shape=(6, 5, 2), *, lowering="native", dtype=jnp.float32, **discriminator):
    """Return the three networks, a few maps wide."""
    shared = {**TINY, "lowering": lowering, "dtype": dtype}
    return Networks(
        networks.ResidualEncoder(latent_dim=3, layers=(4,), **shared),
        networks.ResidualDecoder(x_shape=shape, **shared),
        networks.ResidualDiscriminator(x_layers=(4,), z_layers=(5,), **shared, **discriminator),
    )


@pytest.fixture(scope="module")
def fresh():
    """Give initial parameters of `tiny`."""
    return model.init(tiny(), jax.random.PRNGKey(0), jnp.ones((4, 6, 5, 2)))


@pytest.fixture(scope="module")
def started(fresh):
    """Give parameters of which none is zero, a batch, and codes."""
    random = np.random.default_rng(0)
    draw = lambda *shape: random.normal(size=shape).astype(np.float32)  # noqa: E731
    moved = jax.tree.map(lambda p: p + 0.3 * draw(*p.shape), fresh.params)
    return fresh._replace(params=moved), 0.5 + 0.2 * draw(4, 6, 5, 2), draw(4, 3)


@pytest.mark.parametrize("size", [(4, 4), (5, 6), (7, 3)])
def test_maps_are_blurred_before_they_are_halved(size):
    random = np.random.default_rng(0)
    h, w = random.normal(size=(2, *size, 3)).astype(np.float32), random.normal(size=(1, 1, 3, 2))
    blurred = np.pad(h, [(0, 0), (1, 2), (1, 2), (0, 0)])
    for axis in (1, 2):
        taps = enumerate([0.125, 0.375, 0.375, 0.125])
        blurred = sum(f * blurred.take(range(i, i + size[axis - 1]), axis) for i, f in taps)
    for blur, expected in ((True, blurred), (False, h)):
        layer = stages.Halving(2, blur, "native", jnp.float32)
        found = layer.apply({"params": {"kernel": jnp.asarray(w, jnp.float32)}}, h)
        np.testing.assert_allclose(found, expected[:, ::2, ::2] @ w[0, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("size", [(7, 10), (8, 9)])
def test_doubled_maps_are_interpolated(size, kernel):
    random = np.random.default_rng(0)
    h, w = random.normal(size=(2, 4, 5, 3)), random.normal(size=(kernel, kernel, 3, 2))
    padded = np.pad(h, [(0, 0), (1, 1), (1, 1), (0, 0)])
    repeated = np.zeros((2, 10, 12, 3))  # of all rows there may be, with one before and one after
    repeated[:, 1:9, 1:11] = h.repeat(2, 1).repeat(2, 2)
    smooth = padded.repeat(2, 1).repeat(2, 2)  # a pixel between two is 3/4 of the near and 1/4 of the far one
    for axis in (1, 2):
        last = smooth.shape[axis] - 1
        far = [min(max(n - 1 if n % 2 == 0 else n + 1, 0), last) for n in range(last + 1)]
        smooth = 0.75 * smooth + 0.25 * smooth.take(far, axis)
    smooth = smooth[:, 1:11, 1:13]
    for blur, doubled in ((True, smooth), (False, repeated)):
        layer = stages.Doubling(2, size, kernel, blur, "native", jnp.float32)
        found = layer.apply({"params": {"kernel": jnp.asarray(w, jnp.float32)}}, jnp.asarray(h, jnp.float32))
        margin = (kernel - 1) // 2
        expected = sum(
            doubled[:, 1 - margin + i : 9 - margin + i, 1 - margin + j : 11 - margin + j] @ w[i, j]
            for i in range(kernel)
            for j in range(kernel)
        )
        np.testing.assert_allclose(found, expected[:, : size[0], : size[1]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 17, 3), (28, 28, 1), (33, 64, 3)])
def test_networks_follow_the_size(shape, patch, key):
    config = small.experiment("svhn_residual:small")
    config.dataset.shape = shape
    for network in (config.encoder, config.decoder, config.discriminator):
        network.width, network.patch = 2, patch
    ali = networks.build(config)
    sides = stages.sides_of(shape, len(ali.encoder.maps), patch)
    assert 4 <= min(sides[-1]) <= 8
    shapes = jax.eval_shape(lambda: model.init(ali, key, jnp.zeros((2, *shape))))
    x_tilde = jax.eval_shape(lambda v: model.decode(ali, v, jnp.zeros((2, 64))), shapes)
    assert x_tilde.shape == (2, *shape)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("variant", ["", ":small"])
def test_parameters_are_those_of_the_blocks(name, variant, key):
    config = small.experiment(name + variant)
    ali = networks.build(config)
    x = jax.ShapeDtypeStruct((2, *config.dataset.shape), jnp.float32)
    params = jax.eval_shape(lambda x: model.init(ali, key, x), x).params
    z, channels, layer = config.latent_dim, x.shape[-1], lambda i, o: i * o + o
    for role, network, tree in zip(params._fields, ali, params, strict=True):
        blocks = sum(
            network.blocks * (m * e + e + 9 * e * e + e + e * m)
            for m, e in ((m, m * network.expansion) for m in network.maps)
        )
        changes = sum(a * b for a, b in zip(network.maps, network.maps[1:], strict=False))
        grid = network.maps[-1] * math.prod(
            stages.sides_of(x.shape[1:], len(network.maps), network.patch)[-1]
        )
        first = (3 if network.patch == 1 else 4) ** 2 * channels * network.maps[0] + network.maps[0]
        if role == "encoder":
            (hidden,) = network.layers
            expected = first + layer(grid, hidden) + 2 * layer(hidden, z)
        elif role == "decoder":
            expected = z * grid + network.maps[-1] + 9 * network.maps[0] * channels + channels
        else:
            (h_x,), (a, h_z) = network.x_layers, network.z_layers
            towers = layer(grid, h_x) + layer(z, a) + layer(a, h_z)
            expected = first + towers + layer(h_x + h_z, 1) + h_z * h_x
        assert sum(math.prod(p.shape) for p in jax.tree.leaves(tree)) == expected + blocks + changes, role


def test_the_output_bias_is_the_mean_colour(key):
    x = jnp.concatenate([jnp.full((2, 6, 5, 1), 0.2), jnp.full((2, 6, 5, 1), 0.9)], axis=-1).at[0].add(0.05)
    params = tiny().decoder.fit_bias({"output_bias": {"bias": jnp.zeros(2)}}, x)
    np.testing.assert_allclose(jax.nn.sigmoid(params["output_bias"]["bias"]), [0.225, 0.925], rtol=1e-5)


def test_blocks_start_as_the_identity(fresh):
    variables = fresh
    leaving = [leaf for path, leaf in jax.tree.leaves_with_path(variables.params) if "leave" in str(path)]
    assert len(leaving) == 6
    assert not any(map(np.any, leaving))
    entering = [leaf for path, leaf in jax.tree.leaves_with_path(variables.params) if "enter" in str(path)]
    assert all(map(np.all, entering))


@pytest.mark.parametrize("head", ["projection", "concatenation"])
def test_a_logit_depends_on_its_own_pair_alone(head, started):
    ali = tiny(head=head, joint_layers=(3,))
    (variables, x, z), params = started, {}
    if head == "concatenation":
        params = {"joint": {"layer_0": {"kernel": jnp.ones((9, 3))}, "bias_0": {"bias": jnp.ones(3)}}}
        params["logit"] = {"kernel": jnp.ones((3, 1)), "bias": jnp.ones(1)}
    params = variables.params._replace(discriminator={**variables.params.discriminator, **params})
    variables = variables._replace(params=params)
    logits = model.discriminate(ali, variables, x, z)
    x, z = x.copy(), z.copy()
    x[1] += 0.3
    z[2] += 1
    other = model.discriminate(ali, variables, x, z)
    assert logits.shape == (4,)
    np.testing.assert_array_equal(logits[jnp.array([0, 3])], other[jnp.array([0, 3])])
    assert (logits != other)[1:3].all()


def test_the_projection_is_a_bilinear_form(started):
    ali = tiny()
    variables, x, z = started
    tree = {"params": variables.params.discriminator}
    _, found = ali.discriminator.apply(
        tree,
        x,
        z,
        capture_intermediates=lambda module, _: module.name in ("x", "z"),
        mutable=["intermediates"],
    )
    h_x, h_z = (found["intermediates"][name]["__call__"][0] for name in ("x", "z"))
    d = tree["params"]
    expected = jnp.concatenate([h_x, h_z], 1) @ d["logit"]["kernel"][:, 0] + d["logit"]["bias"]
    expected += jnp.einsum("bi,ij,bj->b", h_z, d["projection"]["kernel"], h_x) / 2
    np.testing.assert_allclose(model.discriminate(ali, variables, x, z), expected, rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_finite_differences_to_second_order(started):
    with jax.enable_x64(True):
        ali = tiny(lowering="cpu", dtype=jnp.float64)
        variables, x, z = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), started)

        @jax.jit
        def logit(x, z):
            return jnp.sum(model.discriminate(ali, variables, x, z))

        @jax.jit
        def made(z):
            return jnp.sum(jnp.square(model.reconstruct(ali, variables, x + model.decode(ali, variables, z))))

        check_grads(logit, (x, z), order=2, modes=["rev"])
        check_grads(made, (z,), order=1, modes=["rev"])


def test_one_pass_serves_both_players(started, key):
    r1 = partial(penalties.r1, gamma=0.3, at="both")
    with jax.enable_x64(True):
        ali = tiny(dtype=jnp.float64)
        variables, x, _ = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), started)
        batch, noise = Batch(x), model.draw_noise(ali, key, 4)

        @jax.jit
        def fields(variables):
            game = ali, variables, losses.relativistic_pairs, [r1], batch, noise
            return [
                gradients.game_gradients(*game, gradient=gradient)[0]
                for gradient in ("auto", "two_pullbacks")
            ]

        one, two = fields(variables)
    for (path, a), b in zip(jax.tree.leaves_with_path(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
        if "logit" not in str(path) or "bias" not in str(path):  # which a difference of logits does not feel
            assert np.any(a), path


def test_the_second_moments_decay_rises_along_a_cosine():
    config = small.experiment("svhn_residual:small")
    config.num_steps = 4
    grad = Networks(*({"w": jnp.array([1.0, -2.0])} for _ in range(3)))
    for platform in ("cpu", "gpu"):
        tx = parts.make_optimizer(config, platform=platform)
        state, nu, product = tx.init(grad), 0.0, 1.0
        for t in range(4):
            scale = 1 + 0.5 * t
            updates, state = tx.update(jax.tree.map(lambda g: scale * g, grad), state, grad)  # noqa: B023
            b2 = 0.9 + 0.09 * (1 - math.cos(math.pi * t / 4)) / 2
            nu, product = b2 * nu + (1 - b2) * scale**2, b2 ** (t + 1)
            rate = 1e-3 * (0.1 + 0.9 * (1 + math.cos(math.pi * t / 4)) / 2)
            expected = -rate * scale / (math.sqrt(nu / (1 - product)) + 1e-8)
            assert float(updates.encoder["w"][0]) == pytest.approx(expected, rel=1e-4)


def test_a_half_life_in_images_is_a_decay_per_step():
    config = small.experiment("svhn_residual:small")
    config.ema_half_life, config.batch_size = 640.0, 64
    assert configs.average_decay(config) ** 10 == pytest.approx(0.5)
    config.ema_half_life, config.ema_decay = 0.0, 0.9
    assert configs.average_decay(config) == 0.9


@pytest.mark.parametrize(("schedule", "middle"), [("geometric", math.sqrt(0.1)), ("cosine", 0.55)])
def test_the_penalty_falls_by_its_schedule(schedule, middle, started, key):
    ali = tiny()
    variables, x, z = started
    pairs = Pairs(x, z, x, z)
    r1 = {"gamma": 2.0, "gamma_final": 0.2, "num_steps": 10, "schedule": schedule}
    at = [
        float(penalties.r1(ali, variables, pairs, key, jnp.array(step), **r1)[0].discriminator)
        for step in (0, 5, 10, 20)
    ]
    np.testing.assert_allclose(np.array(at) / at[0], [1, middle, 0.1, 0.1], rtol=1e-4)


@pytest.mark.parametrize(
    ("key_value", "message"),
    [
        (("encoder.batch_norm", (False,)), "ResidualEncoder has no such field"),
        (("encoder.maps", (2, 3)), "sets both width and maps"),
        (("discriminator.head", "bilinear"), "one of projection, concatenation"),
        (("decoder.patch", 3), "1 or 2"),
        (("penalties.r1.schedule", "linear"), "one of geometric, cosine"),
    ],
)
def test_what_a_residual_network_has_not_is_refused(key_value, message):
    config = small.experiment("svhn_residual:small")
    config = configs.with_values(config, dict([key_value]))

    def use():
        configs.validate(config)
        networks.build(config)

    with pytest.raises(ValueError, match=message):
        use()


def test_names_of_the_recipe_exist():
    config = small.experiment("svhn_residual")
    game.check_names(config)
    assert isinstance(parts.make_optimizer(config), optax.GradientTransformation)
