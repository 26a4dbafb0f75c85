"""Input gradient penalties that follow from the game's own pass through D: exact, and nearly free."""

import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from ali_jax import gradients, losses, model, penalties
from ali_jax.types import Losses, Networks

STEP = jnp.zeros((), jnp.int32)
compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # a few rows: run seldom
R1 = partial(penalties.r1, gamma=0.5, at="both")
# All placements at once, each with weights of its own, and a cycle.
TERMS = (
    partial(penalties.r1, gamma=0.7, gamma_z=0.2),
    partial(penalties.r1, gamma=0.3, gamma_z=0.5, at="decoder"),
    partial(penalties.r1, gamma=0.11, gamma_z=0.05, at="both"),
    partial(penalties.r1, gamma=0.13, gamma_z=0.17, at="prior"),
    partial(penalties.cycle_x, weight=0.5),
)


class Smooth(nn.Module):
    """A discriminator with second derivatives; `coupled` by the mean of the batch, or not."""

    coupled: bool
    dtype: str = "float32"
    random: bool = False

    @nn.compact
    def __call__(self, x, z, y=None, *, train=False):
        h = jnp.concatenate([x.reshape(len(x), -1), z], axis=-1)
        kernel = self.param("kernel", nn.initializers.normal(0.3), (h.shape[-1], 5))
        h = jnp.tanh(h @ kernel)
        h = h - jnp.mean(h, axis=0)[None] if self.coupled else h
        return jnp.tanh(h) @ self.param("logit", nn.initializers.ones, (5,))


def setting(loss=losses.ali, own=None, *, dtype="float32", conditional=False, labelled=0, **discriminator):
    """Return perceptrons of one hidden layer, and the arguments of `play`: variables, batch and noise."""

    def edit(config):
        config.encoder.layers = config.decoder.layers = (5,)
        config.dataset.conditional, config.dataset.labelled = conditional, labelled
        config.condition.size = 2 * conditional
        layers = {"x_layers": (6,), "z_layers": (4,), "joint_layers": (6,)}
        config.discriminator.update({**layers, **discriminator})

    ali, _, batch = small.game("digits", edit=edit)
    ali = ali if own is None else ali._replace(discriminator=own)
    variables = small.draw(ali, batch.x, batch.y)
    given = (variables, batch, model.draw_noise(ali, jax.random.PRNGKey(2), 4))
    given = jax.tree.map(lambda v: v.astype(dtype) if v.dtype == jnp.float32 else v, given)
    return Networks(*(module.clone(dtype=dtype) for module in ali)), partial(play, loss), given


def play(loss, ali, terms, variables, batch, noise, **options):
    """Return the gradients of the game, and the metrics."""
    grads, aux = gradients.game_gradients(ali, variables, loss, terms, batch, noise, STEP, **options)
    return grads, aux.metrics


def separate(loss, ali, terms, variables, batch, noise):
    """Differentiate each player's whole objective, with penalties that call D themselves."""

    def objectives(params):
        moved = variables._replace(params=params)
        pairs, _ = model.generate(ali, *moved, batch, noise)
        stats = variables.batch_stats.discriminator
        logits, _ = model.judge(ali, params.discriminator, stats, pairs, noise.key_discriminator)
        added = [term(ali, moved, pairs, noise.key_penalties, STEP)[0] for term in terms]
        return Losses(*map(sum, zip(loss(logits, batch)[0], *added, strict=True))), logits

    _, pull, logits = jax.vjp(objectives, variables.params, has_aux=True)
    one, zero = jnp.ones_like(logits.q, shape=()), jnp.zeros_like(logits.q, shape=())
    (by_generator,), (by_discriminator,) = pull(Losses(one, zero)), pull(Losses(zero, one))
    return by_generator._replace(discriminator=by_discriminator.discriminator), logits


def anew(*arguments):
    """Call the penalty without what the game offers."""
    return R1(*arguments)


def errors(ours, theirs):
    """Return |a - b| / |b| of each network's gradient."""
    difference = jax.tree.map(np.subtract, *jax.device_get((ours, theirs)))
    return [small.norm(d) / small.norm(b) for d, b in zip(difference, theirs, strict=True)]


def saturated(variables):
    """Scale D's last layer, so that D is sure of itself."""
    params = variables.params
    logit = jax.tree.map(lambda w: 1e5 * w, params.discriminator["logit"])
    return variables._replace(params=params._replace(discriminator={**params.discriminator, "logit": logit}))


TWO_KINDS = (*TERMS[:2], TERMS[-1])  # a weight for each kind of pairs, and a cycle
GAMES = {
    "smooth": ({"own": Smooth(coupled=False), "loss": losses.relativistic_pairs}, TERMS),
    "no game": ({"own": Smooth(coupled=False), "loss": losses.none}, TERMS),
    "packs with conditions": (
        {"packing": 2, "conditional": True, "spectral_norm": True},
        TWO_KINDS,
    ),
    "classes and a convolution": (
        {"num_classes": 3, "labelled": 1, "x_layers": ((3, 2, 2),), "loss": losses.semi_supervised},
        TWO_KINDS,
    ),
}


@pytest.mark.parametrize("name", GAMES)
def test_shared_penalties_are_exact_at_every_placement(name):
    """Beside penalties that call D anew, in float64, also where D is sure of itself."""
    options, terms = GAMES[name]
    with jax.enable_x64(True):
        ali, play, given = setting(dtype="float64", **options)
        both = compiled(lambda *args: (play(ali, terms, *args)[0], separate(play.args[0], ali, terms, *args)))
        for change in (lambda v: v, saturated):
            ours, (theirs, logits) = both(change(given[0]), *given[1:])
            assert all(error < 1e-10 for error in errors(ours, theirs))
        assert max(float(jnp.abs(s).max()) for s in logits) > 800  # its sigmoid is 0 in float64


def test_a_coupled_discriminator_keeps_penalties_with_a_call_of_their_own():
    ali, play, given = setting(own=Smooth(coupled=True))
    terms = ((R1,), (anew,))
    shared, own = compiled(lambda *args: [play(ali, t, *args)[0] for t in terms])(*given)
    jax.tree.map(np.testing.assert_array_equal, shared, own)


def test_shared_penalties_have_the_masks_of_the_game_and_others_their_own():
    ali, play, given = setting(joint_dropout=(0.5,))
    variables, batch, noise = given

    def norms(key):
        pairs, _ = model.generate(ali, *variables, batch, noise)
        params, stats = variables.params.discriminator, variables.batch_stats.discriminator

        def total(x, z_hat):
            seen = pairs._replace(x=x, z_hat=z_hat)
            return jnp.sum(model.judge(ali, params, stats, seen, key)[0].q)

        return [jnp.sum(g**2) / 4 for g in jax.grad(total, (0, 1))(pairs.x, pairs.z_hat)]

    terms = [(partial(penalties.r1, gamma=0.5, masks=masks),) for masks in ("game", "own")]

    @compiled
    def run():
        found = [play(ali, t, *given)[1] for t in terms]
        anew, _ = terms[0][0](
            ali, variables, model.generate(ali, *variables, batch, noise)[0], noise.key_penalties, STEP
        )
        return found, norms(noise.key_discriminator), anew.discriminator

    (shared, own), expected, anew = run()
    np.testing.assert_allclose([shared["r1/x"], shared["r1/z"]], expected, rtol=1e-5)
    np.testing.assert_allclose(0.25 * (own["r1/x"] + own["r1/z"]), anew, rtol=1e-5)
    assert abs(own["r1/x"] - shared["r1/x"]) > 1e-3 * shared["r1/x"]


def test_both_penalties_add_no_pass_through_the_discriminator_but_their_own_derivative():
    """D has four linear maps. Each gains one product for the tangent and one for the gradient."""
    ali, play, given = setting()

    def products(*terms):  # without what the game offers there are 36 instead of 27
        text = compiled(lambda *args: play(ali, terms, *args)[0]).lower(*given).compile().as_text()
        return len(re.findall(r" dot\(", text))

    assert products() < products(R1) <= products() + 2 * 4
