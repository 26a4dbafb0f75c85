"""Networks: the paper's tables, their shapes and parameter counts, and what does not fit."""

import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from scipy import stats

from ali_jax import config as defaults
from ali_jax import model, networks
from ali_jax.networks import discriminator, layers
from ali_jax.tools import describe


def counts(config):
    """Count trained parameters per network without computing anything."""
    ali = networks.build(config)
    batch = describe.abstract_batch(config, tuple(config.dataset.shape))
    variables = jax.eval_shape(partial(model.init, ali), jax.random.PRNGKey(0), batch.x, batch.y)
    return [sum(leaf.size for leaf in jax.tree.leaves(p)) for p in variables.params]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("svhn", [3_315_488, 1_767_584, 5_283_073]),
        ("cifar10", [3_118_496, 981_152, 2_611_009]),
        ("celeba", [6_794_880, 11_811_392, 15_189_057]),
        ("celeba_conditional", [6_925_952, 13_908_544, 15_713_345]),
        ("tiny_imagenet", [7_812_352, 3_164_224, 32_985_793]),
        ("mixture", [164_002, 484_802, 407_201]),
        ("mixture:gan", [164_002, 484_802, 405_201]),
    ],
)
def test_parameter_counts_are_those_of_the_authors_code(name, expected):
    assert counts(small.experiment(name)) == expected


@pytest.mark.parametrize("name", small.EXPERIMENTS)
def test_every_experiment_gives_codes_images_and_logits_of_the_right_shape(name):
    config = small.experiment(name)
    config.batch_size = 6
    ali = networks.build(config)
    batch = describe.abstract_batch(config, tuple(config.dataset.shape))
    rows = batch.x.shape[0]

    def run(key, x, y):
        variables = model.init(ali, key, x, y)
        z = model.encode(ali, variables, x, y)
        x_tilde = model.sample(ali, variables, key, rows, y)
        return z, x_tilde, model.discriminate(ali, variables, x, z, y)

    z, x_tilde, logits = jax.eval_shape(run, jax.random.PRNGKey(0), batch.x, batch.y)
    assert z.shape == (rows, config.latent_dim)
    assert x_tilde.shape == (rows, *config.dataset.shape)
    classes = config.discriminator.num_classes
    assert logits.shape == ((rows, classes) if classes > 1 else (rows,))
    assert {z.dtype, x_tilde.dtype, logits.dtype} == {jnp.dtype("float32")}


def test_svhn_maps_have_the_sizes_of_the_papers_table():
    config = small.experiment("svhn")
    sides = [layers.output_size(32, config.encoder.layers[: i + 1]) for i in range(6)]
    assert sides == [28, 13, 10, 4, 1, 1]
    sides = [layers.output_size(1, config.decoder.layers[: i + 1], transpose=True) for i in range(6)]
    assert sides == [4, 10, 13, 28, 32, 32]


@pytest.fixture(scope="module")
def svhn():
    """Give the initial parameters of the paper's SVHN networks, 32 maps wide, and the batch they are from."""
    ali, _, batch = small.game("svhn", batch_size=16, maps=32, edit=lambda c: setattr(c, "latent_dim", 64))
    return small.init(ali, jax.random.PRNGKey(0), batch.x).params, batch


def test_output_bias_starts_at_the_log_odds_of_the_mean_image(svhn):
    params, batch = svhn
    bias = params.decoder["untied"]["bias"]
    assert bias.shape == (32, 32, 3)
    np.testing.assert_allclose(jax.nn.sigmoid(bias), batch.x.mean(0), rtol=1e-5)


def test_output_bias_of_constant_pixels_is_finite(key):
    ali, config, _ = small.game("digits")
    bias = small.init(ali, key, jnp.zeros((3, *config.dataset.shape))).params.decoder["untied"]["bias"]
    np.testing.assert_allclose(bias, np.log(1e-7), rtol=1e-3)


def test_every_initial_kernel_has_the_papers_deviation(svhn):
    params, _ = svhn
    kernels = [leaf for path, leaf in jax.tree.leaves_with_path(params) if path[-1].key == "kernel"]
    assert len(kernels) == 6 + 2 + 6 + 1 + 5 + 2 + 2 + 1  # q: mu, log sigma; p: output; D: x, z, joint, logit
    for kernel in kernels:
        assert abs(kernel.std() / 0.01 - 1) < 4 / (2 * kernel.size) ** 0.5
        assert abs(kernel.mean() / 0.01) < 4 / kernel.size**0.5


def test_discriminator_of_codes_has_no_biases_as_in_the_authors_code(svhn):
    params, _ = svhn
    assert params.discriminator["z"].keys() == {"layer_0", "layer_1"}


def test_stable_recipe_has_no_batch_statistics_and_starts_with_small_posteriors(key):
    ali, _, batch = small.game("digits")
    variables = small.init(ali, key, batch.x)
    assert not jax.tree.leaves(variables.batch_stats)
    log_sigma = model.posterior(ali, variables, batch.x)[1]
    np.testing.assert_allclose(log_sigma, -1.0, atol=0.1)


def test_maxout_takes_the_larger_of_adjacent_channels():
    h = jnp.array([[1.0, 5.0, -3.0, -2.0]])
    np.testing.assert_array_equal(layers.maxout(h, 2), [[5.0, -2.0]])


@pytest.mark.parametrize(
    ("where", "values"),
    [("dropout", {1, 2, 3, 4, 5, 6, 7}), ("dropout_after", {0, 2, 6, 10})],
)
def test_dropout_acts_where_it_is_set_in_every_layer_in_training_only(where, values):
    stack = layers.Stack((200, 200), **{where: 0.5})  # each layer: the mean of two neighbours, plus 1
    layer = {"kernel": (jnp.eye(200) + jnp.eye(200, k=1) + jnp.eye(200, k=-199)) / 2}, {"bias": jnp.ones(200)}
    names = ("layer_0", "bias_0", "layer_1", "bias_1")
    params = {"params": dict(zip(names, layer * 2, strict=True))}
    x = jnp.ones((4, 200))
    first, second = (
        stack.apply(params, x, train=True, rngs={"dropout": jax.random.PRNGKey(i)}) for i in (1, 2)
    )
    assert set(np.unique(first)) == values
    assert (first != second).any()
    assert set(np.unique(stack.apply(params, x, train=False))) == {3}


def test_batch_norm_has_the_authors_epsilon_and_momentum(key):
    stack = layers.Stack((3,), batch_norm=True, activation=lambda h: h)
    x = 0.02 * jax.random.normal(key, (50, 5))  # variances of about epsilon
    variables = stack.init(key, x, train=False)
    variables["params"]["layer_0"]["kernel"] = jnp.eye(5, 3)
    normalised, moved = stack.apply(variables, x, train=True, mutable=["batch_stats"])
    mean, std = x.mean(0)[:3], jnp.sqrt(x.var(0)[:3] + 1e-4)
    np.testing.assert_allclose(normalised, (x[:, :3] - mean[None]) / std[None], atol=1e-5)
    averages = moved["batch_stats"]["norm_0"]
    np.testing.assert_allclose(averages["mean"], 0.05 * mean, rtol=1e-4)
    np.testing.assert_allclose(averages["std"], 0.95 + 0.05 * std, rtol=1e-6)


def test_gaussian_encoder_is_mu_plus_sigma_epsilon(key):
    ali, _, batch = small.game("digits")
    variables = small.init(ali, key, batch.x)
    mu, log_sigma = model.posterior(ali, variables, batch.x)
    np.testing.assert_allclose(model.encode(ali, variables, batch.x), mu, rtol=1e-6)
    z = model.encode(ali, variables, batch.x, key=key)
    epsilon = jax.random.normal(key, mu.shape)
    np.testing.assert_allclose(z, mu + jnp.exp(log_sigma) * epsilon, rtol=1e-5)
    assert log_sigma.max() <= 0.5


def test_noise_encoder_is_stochastic_and_has_no_moments(key):
    ali, _, batch = small.game("mixture")
    variables = small.init(ali, key, batch.x)
    one, two = (model.encode(ali, variables, batch.x, key=jax.random.PRNGKey(i)) for i in (1, 2))
    assert not np.allclose(one, two)
    with pytest.raises(ValueError, match="not a Gaussian"):
        model.posterior(ali, variables, batch.x)


def test_centring_maps_x_and_leaves_the_noise_alone():
    encoder = networks.Encoder(1, (2,), batch_norm=False, posterior="noise", center=True)
    first = {"kernel": jnp.array([[1.0, 0], [0, 10], [100, 0]])}  # of x_0, x_1 and epsilon
    stack = {"layer_0": first, "bias_0": {"bias": jnp.zeros(2)}}
    params = {"stack": stack, "mu": {"kernel": jnp.ones((2, 1)), "bias": jnp.zeros(1)}}
    z = encoder.apply({"params": params}, jnp.array([[0.75, 1.0]]), jnp.array([[0.5]]))
    assert z == pytest.approx(1 * 0.5 + 10 * 1.0 + 100 * 0.5)


@pytest.mark.parametrize("kind", [np.uint8, np.int32, bool])
def test_data_as_they_are_stored_are_refused_by_their_type(kind, key):
    ali, _, batch = small.game("digits")
    variables, x = small.draw(ali, batch.x), np.ones(batch.x.shape, kind)
    z = jnp.zeros((len(x), model.latent_dim(ali)))
    calls = {
        "init": lambda: model.init(ali, key, x),
        "encode": lambda: model.encode(ali, variables, x),
        "reconstruct": lambda: jax.eval_shape(lambda x: model.reconstruct(ali, variables, x), x),
        "interpolate": lambda: model.interpolate(ali, variables, batch.x, x, 3),
        "discriminate": lambda: model.discriminate(ali, variables, x, z),
        "posterior": lambda: model.posterior(ali, variables, x),
        "features": lambda: model.features(ali, variables, x),
        "forward": lambda: model.forward(ali, variables, key, batch._replace(x=x)),
    }
    for call in calls.values():
        with pytest.raises(ValueError, match=rf"x is {np.dtype(kind)}, .* floats.*x / np.float32\(255\)"):
            call()
    half = model.encode(ali, variables, batch.x.astype(jnp.bfloat16))
    assert half.shape == z.shape


def test_batch_norm_of_the_discriminator_sees_both_kinds_of_pairs(key):
    ali, _, batch = small.game("svhn", batch_size=4)
    variables = small.init(ali, key, batch.x)
    forward = jax.jit(lambda batch: model.forward(ali, variables, key, batch)[0])
    logits, moved = forward(batch), forward(batch._replace(x=batch.x.at[0].set(0)))
    assert not np.allclose(logits.p, moved.p)  # a sample's logit moves with a datum


@pytest.mark.parametrize(("name", "last"), [("svhn", 5376), ("digits", 16 + 2 * 256)])
def test_features_are_the_code_beside_hidden_layers_before_the_nonlinearity(name, last):
    config = small.experiment(name)
    ali = networks.build(config)
    x = jax.ShapeDtypeStruct((2, *config.dataset.shape), jnp.float32)

    def run(key, x):
        return model.features(ali, model.init(ali, key, x), x)

    assert jax.eval_shape(run, jax.random.PRNGKey(0), x).shape == (2, last)


@pytest.mark.parametrize(
    ("size", "down", "up"),
    [
        (8, [8], [8, 8]),
        (16, [8, 16], [16, 8, 8]),
        (32, [8, 16, 32], [32, 16, 8, 8]),
        (64, [8, 16, 32, 64], [64, 32, 16, 8, 8]),
        (128, [8, 16, 32, 64, 64], [64, 64, 32, 16, 8, 8]),
        (256, [8, 16, 32, 64, 64, 64], [64, 64, 64, 32, 16, 8, 8]),
    ],
)
def test_layers_of_square_powers_of_two_are_those_of_runs_made_before(size, down, up):
    of_encoder = (*((4, 2, maps, 1) for maps in down), (4, 1, 2 * down[-1]))
    of_decoder = ((4, 1, up[0]), *((4, 2, maps, 1) for maps in up[1:]))
    for shape in (size, (size, size)):
        assert networks.pyramid(shape, 8, what="") == of_encoder
        assert networks.inverted_pyramid(shape, 8, what="") == of_decoder


SIDES = (8, 9, 13, 16, 28, 31, 60, 64, 65, 90, 120, 127, 200, 255, 256)


@pytest.mark.parametrize("height", SIDES)
def test_pyramids_mirror_each_other_at_every_size(height):
    """There are floor(log2(min / 4)) halvings, and the grid that is left has a short side of 4 to 8."""
    for width in (side for side in SIDES if max(side, height) <= 4 * min(side, height)):
        size = (height, width)
        down, up = networks.pyramid(size, 8, what=""), networks.inverted_pyramid(size, 8, what="")
        for axis, side in enumerate(size):
            assert layers.output_size(side, down, axis=axis) == 1
            assert layers.output_size(1, up, transpose=True, axis=axis) == side
        assert 4 * 2 ** (len(down) - 1) <= min(size) < 8 * 2 ** (len(down) - 1)
        grid = [layers.output_size(side, down[:-1], axis=axis) for axis, side in enumerate(size)]
        assert grid == [-(-side // 2 ** (len(down) - 1)) for side in size]
        assert 4 <= min(grid) <= 8


@pytest.mark.parametrize(
    ("variant", "shape"), [("64", (64, 64, 3)), ("32x1", (32, 32, 1)), ("90x120x3", (90, 120, 3))]
)
def test_the_shape_of_images_may_be_stated_in_advance(variant, shape):
    assert small.experiment(f"images:{variant}").dataset.shape == shape
    with pytest.raises(
        ValueError, match=f"images.py:{variant}x: the shape must be SIZE, SIZExCHANNELS or HEIGHT"
    ):
        small.experiment(f"images:{variant}x")


@pytest.mark.parametrize("shape", [(9, 8, 1), (90, 120, 3), (256, 64, 3), (100, 100, 1)])
def test_networks_that_follow_the_size_have_its_shape(shape):
    config = edited("images", dataset__shape=())
    ali = networks.build(config, shape)
    x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)

    def run(key, x):
        variables = model.init(ali, key, x)
        x_hat = model.reconstruct(ali, variables, x)
        return x_hat, model.discriminate(ali, variables, x_hat, jnp.zeros((2, config.latent_dim)))

    x_hat, logits = jax.eval_shape(run, jax.random.PRNGKey(0), x)
    assert (x_hat.shape, logits.shape) == ((2, *shape), (2,))


def test_every_pixel_of_an_odd_image_is_seen_and_made(key):
    """A row that a stride leaves over would have no gradient in the code, or not change with it."""
    config = edited("images", dataset__shape=(), latent_dim=3)
    for role in ("encoder", "decoder", "discriminator"):
        config[role].width, config[role].activation = 2, "leaky_relu"  # no unit is off
    ali = networks.build(config, (11, 17, 1))
    x = jax.random.uniform(key, (1, 11, 17, 1))

    @jax.jit
    def slopes(x):
        variables = model.init(ali, key, x)
        seen = jax.grad(lambda x: model.encode(ali, variables, x).sum())(x)
        a, b = (model.decode(ali, variables, z * jnp.ones((1, 3))) for z in (1.0, 0.5))
        return seen, a - b

    for slope in slopes(x):
        assert (np.abs(slope) > 0).all()


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_state(key):
    ali, _, batch = small.game("svhn", edit=lambda c: setattr(c, "dtype", "bfloat16"))
    variables = small.init(ali, key, batch.x)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    logits, stats = jax.eval_shape(lambda v: model.forward(ali, v, key, batch), variables)
    assert logits.q.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(stats)} == {jnp.dtype("float32")}
    text = str(jax.make_jaxpr(lambda v: model.forward(ali, v, key, batch))(variables))
    assert "conv_general_dilated" in text
    assert "bf16" in text


def edited(name, **changes):
    config = small.experiment(name)
    for path, value in changes.items():
        config.update_from_flattened_dict({path.replace("__", "."): value})
    return config


def build_and_initialise(config, shape):
    ali = networks.build(config, shape)
    x = jax.ShapeDtypeStruct((1, *config.dataset.shape), jnp.float32)
    jax.eval_shape(lambda k, x: model.init(ali, k, x), jax.random.PRNGKey(0), x)


@pytest.mark.parametrize(
    ("config", "shape", "message"),
    [
        (edited("svhn"), (28, 28, 1), "28x28x1.*experiments/images.py"),
        (
            edited("images", dataset__shape=()),
            (7, 9, 3),
            r"8 to 256 pixels.* are 7x9: set config.dataset.resize",
        ),
        (edited("images", dataset__shape=()), (300, 257, 3), r"8 to 256 pixels a side"),
        (edited("images", dataset__shape=()), (33, 8, 3), r"at most 4 times the shorter"),
        (edited("svhn"), (32, 32, 1), "data are 32x32x1: convert the images to colour, or"),
        (edited("svhn"), (30, 32, 3), r"data are 30x32x3: set config.dataset.resize=\(32, 32\), or"),
        (edited("svhn", dataset__shape=()), (64, 64, 3), "make images of 32x32; the data are 64x64x3"),
        (
            edited("svhn", encoder__layers=((5, 1, 8), (40, 1, 8))),
            None,
            "smaller than the layers of config.encoder",
        ),
        (edited("digits", encoder__name="Encodr"), None, "ali_jax.networks has .*Encoder"),
        (edited("digits", encoder__activation="swish"), None, r"one of relu, leaky_relu\."),
        (edited("digits", dtype="float16"), None, "one of float32, bfloat16"),
        (edited("digits", discriminator__x_dropout=(0.1, 0.2, 0.3)), None, "3 values.*for 2 layers"),
        (edited("images", encoder__layers=(3,)), None, "both width and layers"),
        (edited("images", dataset__shape=()), None, "set config.dataset.shape"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_remedy(config, shape, message):
    with pytest.raises(ValueError, match=message):
        build_and_initialise(config, shape)


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("encoder.layers", ("a",), "positive width"),
        ("encoder.layers", ((3,),), "positive width"),
        ("encoder.layers", (-3,), "positive width"),
        ("encoder.layers", (True,), "positive width"),
        ("encoder.layers", ((4, 0, 8), 8), "positive width"),
        ("encoder.layers", ((4, 2, 8.0), 8), "positive width"),
        ("decoder.layers", ((0, 1, 8),), "positive width"),
        ("decoder.layers", ((4, 1, 8, -1),), "positive width"),
        ("decoder.layers", ((4, 1, 8, 1, 1),), "positive width"),
        ("discriminator.x_layers", ((4, 1, 0),), "positive width"),
        ("discriminator.z_layers", ((4, 1, 8),), "positive widths"),
        ("discriminator.joint_layers", (0,), "positive widths"),
        ("encoder.activation", "maxout", "relu, leaky_relu"),
        ("decoder.activation", "tanh", "relu, leaky_relu"),
        ("discriminator.activation", "tanh", "relu, leaky_relu, maxout"),
        ("encoder.posterior", "gausian", "gaussian, noise"),
        ("decoder.output", "sigmoide", "sigmoid, linear"),
        ("encoder.log_sigma_clip", (1.0,), "low < high"),
        ("encoder.log_sigma_clip", (1.0, -1.0), "low < high"),
        ("encoder.log_sigma_clip", ("a", "b"), "low < high"),
        ("encoder.log_sigma_bias", float("-inf"), "finite"),
        ("encoder.log_sigma_init", float("nan"), "finite"),
        ("encoder.frequencies", (64,), "count, std"),
        ("encoder.frequencies", (1.5, 3.0), "count, std"),
        ("encoder.frequencies", (64, -1.0), "count, std"),
        ("encoder.slope", float("inf"), "finite"),
        ("decoder.init_std", -0.1, "at least 0"),
        ("encoder.batch_norm", ("x",), "True or False"),
        ("discriminator.x_batch_norm", (1,), "True or False"),
        ("discriminator.x_dropout", (1.5,), r"\[0, 1\)"),
        ("discriminator.x_dropout_after", (1.0,), r"\[0, 1\)"),
        ("discriminator.z_dropout", ("x",), r"\[0, 1\)"),
        ("discriminator.joint_dropout", (-0.1,), r"\[0, 1\)"),
        ("discriminator.x_noise", (-0.1,), "numbers of at least 0"),
        ("discriminator.width", -1, "at least 0"),
        ("discriminator.pieces", 0, "must be positive"),
    ],
)
def test_values_that_no_network_can_use_are_refused_by_their_key(key, value, allowed):
    config = edited("digits", **{key: value})
    with pytest.raises(ValueError, match=f"^{re.escape(f'config.{key} is {value!r}; ')}.*{allowed}"):
        networks.build(config)


def test_modules_refuse_a_posterior_and_an_output_they_do_not_know(key):
    x = jnp.zeros((1, 4))
    with pytest.raises(ValueError, match="posterior is 'gausian'; it must be one of gaussian, noise"):
        networks.Encoder(2, layers=(3,), posterior="gausian").init(key, x, x[:, :2])
    with pytest.raises(ValueError, match="output is 'sigmoide'; it must be one of sigmoid, linear"):
        networks.Decoder((4,), layers=(3,), output="sigmoide").init(key, x[:, :2])


def test_a_network_of_ones_own_takes_the_keys_that_are_its_fields(monkeypatch):
    class Blind(nn.Module):
        slope: float

    Blind.__module__ = discriminator.__name__
    monkeypatch.setattr(discriminator, "Blind", Blind, raising=False)
    config = defaults.base()
    config.dataset.shape = (4,)
    config.discriminator.name = "Blind"
    config.discriminator.slope = 0.3
    assert networks.build(config).discriminator == Blind(slope=0.3)
    config.discriminator.z_layers = (3,)
    with pytest.raises(ValueError, match=r"discriminator\.z_layers is set, but Blind has no such field"):
        networks.build(config)


def test_dropout_masks_have_their_rate_and_are_independent():
    h = jnp.ones((64, 32, 32))
    kept = [
        layers.Dropout(0.2).apply({}, h, train=True, rngs={"dropout": jax.random.PRNGKey(i)}) > 0
        for i in range(3)
    ]
    for mask in kept:
        assert abs(float(mask.mean()) - 0.8) < 6 * (0.16 / h.size) ** 0.5
    rows = jnp.stack(kept).astype(jnp.float32).reshape(3, -1) - 0.8
    shifted = jnp.concatenate([rows, jnp.roll(rows[:1], 1, axis=1), jnp.roll(rows[:1], 32, axis=1)])
    correlation = np.corrcoef(shifted)
    assert np.abs(correlation - np.eye(5)).max() < 6 / h.size**0.5


def test_dropout_keeps_the_mean():
    h = jnp.full((100, 100), 3.0)
    dropped = layers.Dropout(0.5).apply({}, h, train=True, rngs={"dropout": jax.random.PRNGKey(0)})
    assert set(np.unique(dropped)) == {0.0, 6.0}


def test_noise_is_normal_and_independent_and_only_in_training():
    h = jnp.full((64, 32, 8), 2.0)
    noisy = lambda i: layers.GaussianNoise(0.3).apply({}, h, train=True, rngs={"dropout": jax.random.key(i)})  # noqa: E731
    rows = np.stack([np.ravel(noisy(i)) - 2 for i in range(3)]) / 0.3
    for row in rows:
        assert stats.kstest(row, "norm").pvalue > 1e-3
    shifted = np.concatenate([rows, np.roll(rows[:1], 1, axis=1), np.roll(rows[:1], 8, axis=1)])
    assert np.abs(np.corrcoef(shifted) - np.eye(5)).max() < 6 / h.size**0.5
    np.testing.assert_array_equal(layers.GaussianNoise(0.3).apply({}, h, train=False), h)


def test_fourier_features_are_sines_and_cosines_beside_the_input():
    x = jnp.asarray([[0.0, 0.0], [0.5, -1.0]])
    found = np.asarray(layers.fourier_features(x, 3, 2.0))
    w = 2.0 * np.random.RandomState(0).standard_normal((2, 3))
    np.testing.assert_allclose(found, np.concatenate([x, np.sin(x @ w), np.cos(x @ w)], -1), atol=1e-6)


def test_an_encoder_sees_its_frequencies_and_needs_none():
    x, epsilon = jnp.ones((4, 2)), jnp.zeros((4, 3))
    for frequencies, inputs in (((), 2), ((5, 3.0), 12)):
        encoder = networks.Encoder(3, (8,), batch_norm=False, frequencies=frequencies)
        params = jax.eval_shape(encoder.init, jax.random.key(0), x, epsilon)["params"]
        assert params["stack"]["layer_0"]["kernel"].shape == (inputs, 8)


@pytest.mark.parametrize(("name", "shape"), [("svhn", None), ("images", (16, 16, 3))])
def test_frequencies_of_a_convolutional_encoder_are_refused(name, shape):
    with pytest.raises(ValueError, match=r"config\.encoder\.frequencies are for perceptrons"):
        networks.build(edited(name, **{"encoder.frequencies": (64, 3.0)}), shape)
