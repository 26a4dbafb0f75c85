"""Gradient penalties: the definition, its placements, where it is refused, whom it concerns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from ali_jax import gradients, losses, model, penalties
from ali_jax.game import parts

STEP = jnp.zeros((), jnp.int32)


@pytest.fixture
def held(key):
    """Give networks, variables, and pairs drawn from them."""
    ali, _, batch = small.game("digits")
    variables = small.draw(ali, batch.x)
    noise = model.draw_noise(ali, key, 4)
    pairs, _ = model.generate(ali, *variables, batch, noise)
    return ali, variables, batch, noise, pairs


def by_hand(ali, variables, x, z):
    """Return mean squared norms of the logit's gradients, one pair at a time."""

    def logit(x, z):
        return model.discriminate(ali, variables, x[None], z[None])[0]

    gradients = [jax.grad(logit, (0, 1))(x[i], z[i]) for i in range(len(x))]
    return [np.mean([float(jnp.sum(g[part] ** 2)) for g in gradients]) for part in (0, 1)]


@pytest.mark.parametrize("at", ["encoder", "decoder", "both", "prior"])
def test_r1_is_half_the_weighted_mean_of_squared_gradients(held, key, at):
    ali, variables, _, _, pairs = held
    places = {
        "encoder": [(pairs.x, pairs.z_hat)],
        "decoder": [(pairs.x_tilde, pairs.z)],
        "prior": [(pairs.x, pairs.z)],
    }
    places["both"] = places["encoder"] + places["decoder"]
    by_x, by_z = np.sum([by_hand(ali, variables, x, z) for x, z in places[at]], axis=0)
    added, metrics = penalties.r1(ali, variables, pairs, key, STEP, gamma=2.0, gamma_z=0.5, at=at)
    np.testing.assert_allclose(added.discriminator, 0.5 * (2.0 * by_x + 0.5 * by_z), rtol=1e-4)
    np.testing.assert_allclose(metrics["r1/x"], by_x, rtol=1e-4)
    np.testing.assert_allclose(metrics["r1/z"], by_z, rtol=1e-4)
    assert added.generator == 0


def test_r1_is_annealed_geometrically(held, key):
    ali, variables, _, _, pairs = held

    def value(step):
        options = {"gamma": 1.0, "gamma_final": 0.01, "num_steps": 100}
        return float(penalties.r1(ali, variables, pairs, key, jnp.asarray(step), **options)[0].discriminator)

    np.testing.assert_allclose([value(50) / value(0), value(100) / value(0)], [0.1, 0.01], rtol=1e-4)
    assert value(200) == value(100)


def test_weights_cannot_fall_to_zero(held, key):
    ali, variables, _, _, pairs = held
    with pytest.raises(ValueError, match="gamma_final is 0"):
        penalties.r1(ali, variables, pairs, key, STEP, gamma=1.0, gamma_final=0)


def test_r1_moves_the_discriminator_only_and_by_its_own_gradient(held):
    ali, variables, batch, noise, pairs = held
    (penalty,) = parts.make_penalties(small.experiment("digits"))

    def term(discriminator):
        params = variables.params._replace(discriminator=discriminator)
        added, _ = penalty(ali, variables._replace(params=params), pairs, noise.key_penalties, STEP)
        return added.discriminator

    @jax.jit
    def both(variables):
        with_it, without = (
            gradients.game_gradients(ali, variables, losses.ali, terms, batch, noise)[0]
            for terms in ((penalty,), ())
        )
        return jax.tree.map(jnp.subtract, with_it, without), jax.grad(term)(variables.params.discriminator)

    difference, expected = both(variables)
    assert small.norm(difference.encoder) == small.norm(difference.decoder) == 0
    error = small.norm(jax.tree.map(np.subtract, difference.discriminator, expected))
    assert error < 1e-5 * small.norm(expected)


@pytest.mark.parametrize("options", [{}, {"gamma_final": 0.1, "num_steps": 10}])
def test_a_penalty_of_weight_zero_changes_nothing(held, options):
    """Nor does one that is annealed, whether the weight is an array, as in a population, or a number."""
    ali, variables, batch, noise, _ = held

    @jax.jit
    def run(variables, array):
        weighted = [(functools.partial(penalties.r1, gamma=gamma, **options),) for gamma in (0.0, array)]
        return [
            gradients.game_gradients(ali, variables, losses.ali, terms, batch, noise, 5)[0]
            for terms in ((), *weighted)
        ]

    without, *found = run(variables, 0.0)
    for with_it in found:
        jax.tree.map(np.testing.assert_array_equal, with_it, without)


def test_a_penalty_on_the_generator_reaches_it_through_the_pairs(held):
    """A term on z_hat, such as ALICE's cycles, is differentiated through the encoder that made it."""
    ali, variables, batch, noise, _ = held

    def small_codes(ali, variables, pairs, key, step):
        return losses.Losses(jnp.mean(pairs.z_hat**2), jnp.zeros(())), {}

    def term(encoder):
        params = variables.params._replace(encoder=encoder)
        pairs, _ = model.generate(ali, params, variables.batch_stats, batch, noise)
        return jnp.mean(pairs.z_hat**2)

    @jax.jit
    def run(variables):
        with_it, without = (
            gradients.game_gradients(ali, variables, losses.ali, terms, batch, noise)[0].encoder
            for terms in ((small_codes,), ())
        )
        expected = jax.grad(term)(variables.params.encoder)
        return jax.tree.map(lambda a, b, c: a - b - c, with_it, without, expected), expected

    error, expected = run(variables)
    assert small.norm(error) < 1e-4 * small.norm(expected)


def test_a_discriminator_with_batch_norm_is_refused(key):
    ali, _, batch = small.game("svhn")
    variables = small.draw(ali, batch.x)
    pairs, _ = jax.eval_shape(lambda: model.generate(ali, *variables, batch, model.draw_noise(ali, key, 4)))
    with pytest.raises(ValueError, match="without batch norm"):
        penalties.r1(ali, variables, pairs, key, STEP, gamma=1.0)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"cycle": {"gamma": 1.0}},
            "penalties.cycle: Did you mean cycle_.* has .*cycle_x, cycle_z, elbo, entropy,.* r1",
        ),
        ({"r1": {"gamma": 1.0, "gama": 3.0}}, "penalties.r1.gama: its arguments are gamma, gamma_z"),
    ],
)
def test_config_penalties_that_do_not_exist_are_refused(section, message):
    config = small.experiment("svhn").unlock()
    config.penalties = section
    with pytest.raises(ValueError, match=message):
        parts.make_penalties(config)


def test_either_weight_switches_a_penalty_on(held):
    config = small.experiment("svhn")
    assert parts.make_penalties(config) == ()
    config.penalties.r1.gamma_z = 2.0
    (penalty,) = parts.make_penalties(config)
    ali, variables, _, noise, pairs = held
    added, metrics = penalty(ali, variables, pairs, noise.key_penalties, STEP)
    np.testing.assert_allclose(added.discriminator, metrics["r1/z"], rtol=1e-6)  # 1/2 times 2


def test_an_unknown_placement_is_refused(held, key):
    ali, variables, _, _, pairs = held
    with pytest.raises(ValueError, match="encoder, decoder, both, prior"):
        penalties.r1(ali, variables, pairs, key, STEP, gamma=1.0, at="data")


def test_r1_through_convolutions_is_the_same_in_both_lowerings(key):
    found = []
    for lowering in ("native", "cpu"):
        ali, config, batch = small.game("images", edit=lambda c, to=lowering: setattr(c, "lowering", to))
        variables = small.draw(ali, batch.x)
        noise = model.draw_noise(ali, key, 4)
        penalty = parts.make_penalties(config)
        run = lambda v, ali=ali: gradients.game_gradients(ali, v, losses.ali, penalty, batch, noise)[0]  # noqa: B023, E731
        found.append(jax.jit(run)(variables))
    error = small.norm(jax.tree.map(np.subtract, *found)) / small.norm(found[0])
    assert error < 1e-5
