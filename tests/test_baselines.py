"""The comparisons of the paper's mixture experiment: GAN, frozen decoders, learnt inverse, VAE."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from ali_jax import config as configs
from ali_jax import game, gradients, losses, model, penalties
from ali_jax.game import parts
from ali_jax.program import loop


def config_of(variant, **values):
    """Return a narrow config of experiments/mixture.py with these values, dots written as __."""
    config = small.narrow(small.experiment(f"mixture:{variant}"))
    config.num_steps = config.steps_per_call = config.log_every = config.checkpoint_every = 3
    config.batch_size, config.evaluators, config.report = 8, (), False
    return configs.with_values(config, {key.replace("__", "."): v for key, v in values.items()}).lock()


def test_the_encoder_of_a_gan_learns_nothing(key):
    ali, _, batch = small.game("mixture:gan")
    variables, noise = small.draw(ali, batch.x), model.draw_noise(ali, key, 4)
    field, _ = jax.jit(lambda v: gradients.game_gradients(ali, v, losses.ali, (), batch, noise))(variables)
    assert small.norm(field.encoder) == 0
    assert small.norm(field.decoder) > 0


@pytest.fixture(scope="module")
def gan(tmp_path_factory):
    """Give the folder of two GANs."""
    folder = tmp_path_factory.mktemp("gan")
    assert loop.run(config_of("gan", population__seeds=2), folder) == 0
    return folder


@pytest.mark.parametrize("variant", ["posthoc", "inverse"])
def test_a_gans_decoder_is_inherited_and_stays_as_it_is(gan, variant):
    _, state = game.trained_run(gan)
    trained = game.member_of(jax.device_get(state), 1).variables
    made = game.prepare(config_of(variant, init_from=str(gan), init_member=1))
    state = game.initial_state(made)
    first = jax.device_get(state)
    feed = game.make_feed(made)
    state, metrics = game.make_call(made, feed, 3)(state, feed.load(0, 3))
    for held in (first, jax.device_get(state)):
        for part in ("params", "batch_stats"):
            inherited, own = (getattr(v, part).decoder for v in (trained, held.variables))
            jax.tree.map(np.testing.assert_array_equal, inherited, own)
    change = jax.tree.map(
        np.subtract, jax.device_get(state.variables.params.encoder), first.variables.params.encoder
    )
    assert small.norm(change) > 0
    assert metrics["finite_steps"] == 3


def test_a_member_that_does_not_exist_is_refused(gan):
    made = game.prepare(config_of("posthoc", init_from=str(gan), init_member=2))
    with pytest.raises(ValueError, match=r"init_member is 2; .* has the members 0 to 1"):
        game.initial_state(made)


def test_a_frozen_decoder_runs_as_in_evaluation(key):
    """With statistics that are not those of the batch the two modes differ."""
    ali, _, batch = small.game("mixture:posthoc")
    variables = small.draw(ali, batch.x)
    z = model.draw_noise(ali, key, 4)
    pairs, (_, stats) = model.generate(ali, *variables, batch, z)
    np.testing.assert_allclose(pairs.x_tilde, model.decode(ali, variables, z.z), rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, stats, variables.batch_stats.decoder)


def test_the_inverse_mapping_minimises_the_distance_of_codes_alone(key):
    ali, config, batch = small.game("mixture:inverse")
    variables, noise = small.draw(ali, batch.x), model.draw_noise(ali, key, 4)
    terms = parts.make_penalties(config)
    loss = parts.make_loss(config)
    field, aux = jax.jit(lambda v: gradients.game_gradients(ali, v, loss, terms, batch, noise))(variables)
    assert small.norm(field.discriminator) == 0
    assert small.norm(field.encoder) > 0
    assert aux.losses.generator == aux.metrics["cycle/z"]


def test_elbo_is_the_error_over_twice_the_variance_plus_the_divergence_from_the_prior(key):
    ali, _, batch = small.game("digits")
    variables = small.draw(ali, batch.x)
    noise = model.draw_noise(ali, key, 4)
    pairs, _ = model.generate(ali, *variables, batch, noise)
    found, metrics = penalties.elbo(ali, variables, pairs, key, jnp.zeros(()), weight=2.0, sigma=0.5)
    x_hat = model.decode(ali, variables, pairs.z_hat)
    mu, log_sigma = model.posterior(ali, variables, batch.x)
    error = jnp.sum((batch.x - x_hat) ** 2, axis=(1, 2, 3)) / (2 * 0.5**2)
    sigma = jnp.exp(log_sigma)
    divergence = jnp.sum((mu**2 + sigma**2 - 1) / 2 - log_sigma, axis=1)
    np.testing.assert_allclose(found.generator, 2 * jnp.mean(error + divergence), rtol=1e-5)
    np.testing.assert_allclose(metrics["elbo/kl"], jnp.mean(divergence), rtol=1e-5)
    assert found.discriminator == 0


def test_elbo_needs_a_gaussian_encoder(key):
    ali, _, batch = small.game("mixture")
    pairs, _ = model.generate(ali, *small.draw(ali, batch.x), batch, model.draw_noise(ali, key, 4))
    with pytest.raises(ValueError, match="posterior = 'gaussian'"):
        penalties.elbo(ali, small.draw(ali, batch.x), pairs, key, jnp.zeros(()), weight=1.0)


def test_the_random_search_is_the_same_for_ali_and_gan_and_within_its_ranges():
    one, other = (small.experiment(f"mixture:{v}").population.vary for v in ("search", "gan_search"))
    assert one == other
    draws = dict(one)
    assert {len(values) for values in draws.values()} == {10}
    assert all(1e-5 <= rate <= 1e-3 for rate in draws["optimizer.generator.learning_rate"])
    assert draws["optimizer.generator.b1"] == draws["optimizer.discriminator.b1"]
    assert len(set(draws["encoder.init_std"])) == 10


def test_a_source_that_is_no_run_is_named_by_its_key(tmp_path):
    with pytest.raises(ValueError, match=r"config\.init_from is '.*/nowhere', which holds no run .*: name"):
        loop.run(config_of("posthoc", init_from=str(tmp_path / "nowhere")), tmp_path / "run")
    assert not (tmp_path / "run").exists()
