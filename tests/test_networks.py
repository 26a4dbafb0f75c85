"""Networks: the paper's tables, their shapes and parameter counts, and what does not fit."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from ali_jax import config as defaults
from ali_jax import layers, model, networks


def counts(config):
    """Count trained parameters per network without computing anything."""
    ali = networks.build(config)
    x = jax.ShapeDtypeStruct((2, *config.dataset.shape), jnp.float32)
    variables = jax.eval_shape(lambda k, x: model.init(ali, k, x), jax.random.PRNGKey(0), x)
    return [sum(leaf.size for leaf in jax.tree.leaves(p)) for p in variables.params]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("svhn", [3_315_488, 1_767_584, 5_283_073]),
        ("cifar10", [3_118_496, 981_152, 2_611_009]),
        ("celeba", [6_794_880, 11_811_392, 15_189_057]),
        ("tiny_imagenet", [7_812_352, 3_164_224, 32_985_793]),
        ("mixture", [164_002, 484_802, 407_201]),
    ],
)
def test_parameter_counts_are_those_of_the_authors_code(name, expected):
    assert counts(small.experiment(name)) == expected


@pytest.mark.parametrize("name", small.EXPERIMENTS)
def test_every_experiment_gives_codes_images_and_logits_of_the_right_shape(name):
    config = small.experiment(name)
    ali = networks.build(config)
    x = jax.ShapeDtypeStruct((6, *config.dataset.shape), jnp.float32)

    def run(key, x):
        variables = model.init(ali, key, x)
        z = model.encode(ali, variables, x)
        x_tilde = model.sample(ali, variables, key, 5)
        return z, x_tilde, model.discriminate(ali, variables, x, z)

    z, x_tilde, logits = jax.eval_shape(run, jax.random.PRNGKey(0), x)
    assert z.shape == (6, config.latent_dim)
    assert x_tilde.shape == (5, *config.dataset.shape)
    assert logits.shape == (6,)
    assert {z.dtype, x_tilde.dtype, logits.dtype} == {jnp.dtype("float32")}


def test_svhn_maps_have_the_sizes_of_the_papers_table():
    config = small.experiment("svhn")
    sides = [layers.output_size(32, config.encoder.layers[: i + 1]) for i in range(6)]
    assert sides == [28, 13, 10, 4, 1, 1]
    sides = [layers.output_size(1, config.decoder.layers[: i + 1], transpose=True) for i in range(6)]
    assert sides == [4, 10, 13, 28, 32, 32]


def test_output_bias_starts_at_the_log_odds_of_the_mean_image(key):
    ali, _, batch = small.game("svhn", batch_size=16)
    params = small.init(ali, key, batch.x).params.decoder
    bias = params["untied"]["bias"]
    assert bias.shape == (32, 32, 3)
    np.testing.assert_allclose(jax.nn.sigmoid(bias), batch.x.mean(0), rtol=1e-5)


def test_output_bias_of_constant_pixels_is_finite(key):
    ali, config, _ = small.game("digits")
    bias = small.init(ali, key, jnp.zeros((3, *config.dataset.shape))).params.decoder["untied"]["bias"]
    np.testing.assert_allclose(bias, np.log(1e-7), rtol=1e-3)


def test_initial_weights_have_the_papers_deviation(key):
    config = small.experiment("svhn")
    ali = networks.build(config)
    params = jax.eval_shape(lambda: model.init(ali, key, jnp.zeros((1, 32, 32, 3)))).params
    assert params.discriminator["z"].keys() == {"layer_0", "layer_1"}  # D(z) has no biases
    kernel = layers.initializer(0.01)(key, (4, 4, 64, 128))
    assert abs(float(kernel.std()) - 0.01) < 2e-4


def test_maxout_takes_the_larger_of_adjacent_channels():
    h = jnp.array([[1.0, 5.0, -3.0, -2.0]])
    np.testing.assert_array_equal(layers.maxout(h, 2), [[5.0, -2.0]])


def test_dropout_acts_on_the_input_of_each_layer_in_training_only(key):
    stack = layers.Stack((64,), dropout=0.5, init_std=0.1)
    x = jnp.ones((4, 200))
    variables = stack.init(key, x, train=False)
    kept = [stack.apply(variables, x, train=True, rngs={"dropout": jax.random.PRNGKey(i)}) for i in (1, 2)]
    still = [stack.apply(variables, x, train=False) for _ in range(2)]
    assert not np.allclose(kept[0], kept[1])
    np.testing.assert_array_equal(still[0], still[1])


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
    with pytest.raises(ValueError, match="no Gaussian"):
        model.posterior(ali, variables, batch.x)


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


@pytest.mark.parametrize("size", [8, 16, 32, 64, 128])
def test_pyramids_mirror_each_other(size):
    assert layers.output_size(size, networks.pyramid(size, 8, what="")) == 1
    assert layers.output_size(1, networks.inverted_pyramid(size, 8, what=""), transpose=True) == size


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
        (edited("images", dataset__shape=()), (24, 24, 3), "8, 16, 32, 64 or 128"),
        (edited("images", dataset__shape=()), (16, 32, 3), "square images"),
        (edited("svhn", dataset__shape=()), (64, 64, 3), "make images of 32x32; the data are 64x64x3"),
        (
            edited("svhn", encoder__layers=((5, 1, 8), (40, 1, 8))),
            None,
            "smaller than the layers of config.encoder",
        ),
        (edited("digits", encoder__name="Encodr"), None, "ali_jax.networks has .*Encoder"),
        (edited("digits", encoder__activation="swish"), None, "relu, leaky_relu, maxout"),
        (edited("digits", dtype="float16"), None, "float32 or bfloat16"),
        (edited("digits", discriminator__x_dropout=(0.1, 0.2, 0.3)), None, "3 values.*for 2 layers"),
        (edited("images", encoder__layers=(3,)), None, "both width and layers"),
        (edited("images", dataset__shape=()), None, "set config.dataset.shape"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_remedy(config, shape, message):
    with pytest.raises(ValueError, match=message):
        build_and_initialise(config, shape)


def test_a_network_of_ones_own_takes_the_keys_that_are_its_fields(monkeypatch):
    class Blind(nn.Module):
        slope: float

    Blind.__module__ = networks.__name__
    monkeypatch.setattr(networks, "Blind", Blind, raising=False)
    config = defaults.base()
    config.dataset.shape = (4,)
    config.discriminator.name = "Blind"
    config.discriminator.slope = 0.3
    assert networks.build(config).discriminator == Blind(slope=0.3)
    config.discriminator.z_layers = (3,)
    with pytest.raises(ValueError, match=r"discriminator\.z_layers is set, but Blind has no such field"):
        networks.build(config)
