"""Variants of the game: what each equals where it is off, and that both players get their own gradients."""

import ast
import functools
import itertools
import re
import shlex
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small

from ali_jax import class_penalties, game, gradients, losses, model, penalties, train
from ali_jax import config as configs
from ali_jax.game import parts
from ali_jax.names import public_functions
from ali_jax.networks.layers import SpectralNorm
from ali_jax.program import command
from ali_jax.types import Batch, Logits, Losses

STEP = jnp.zeros((), jnp.int32)
compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # a few rows: run seldom
ONE_LOGIT = ("ali", "hinge", "least_squares", "relativistic", "relativistic_pairs", "none")
TERMS = {
    "r1": partial(penalties.r1, gamma=0.5),
    "cycle_x": partial(penalties.cycle_x, weight=0.5),
    "cycle_z": partial(penalties.cycle_z, weight=0.5),
    "cycle_z_sampled": partial(penalties.cycle_z, weight=0.5, sampled=True),
    "adversarial_cycle": partial(penalties.adversarial_cycle, weight=0.5),
    "unary_scores": partial(penalties.unary_scores, weight=0.5),
}
ROWS = re.findall(r"\| `(--[^|]*)` \|", (small.ROOT / "docs" / "reference" / "losses.md").read_text())


@functools.cache
def setting(posterior="gaussian", **discriminator):
    """Give perceptrons of one hidden layer, variables, four rows, noise and pairs."""

    def edit(config):
        config.encoder.layers = config.decoder.layers = (5,)
        config.encoder.posterior = posterior
        config.discriminator.update(
            {"x_layers": (6,), "z_layers": (4,), "joint_layers": (6,), **discriminator}
        )

    ali, _, batch = small.game("digits", edit=edit)

    @compiled
    def make():
        variables = model.init(ali, jax.random.PRNGKey(0), batch.x)
        noise = model.draw_noise(ali, jax.random.PRNGKey(2), 4)
        return variables, noise, model.generate(ali, *variables, batch, noise)[0]

    variables, noise, pairs = make()
    return SimpleNamespace(ali=ali, batch=batch, variables=variables, noise=noise, pairs=pairs)


def play(s, variables, loss=losses.ali, terms=(), step=STEP, **options):
    """Return the game's gradients."""
    return gradients.game_gradients(s.ali, variables, loss, terms, s.batch, s.noise, step, **options)[0]


def separate(s, variables, loss=losses.ali, terms=(), augment=None):
    """Differentiate each player's whole objective, penalties included, in all parameters at once."""

    def objectives(params):
        moved = variables._replace(params=params)
        pairs, _ = model.generate(s.ali, *moved, s.batch, s.noise)
        key = s.noise.key_discriminator
        shown = augment(pairs, jax.random.fold_in(key, 2**31 - 1), STEP) if augment else pairs
        stats = variables.batch_stats.discriminator
        logits, _ = model.judge(s.ali, params.discriminator, stats, shown, key)
        total = loss(logits, s.batch)[0]
        for term in terms:
            added, _ = term(s.ali, moved, pairs, s.noise.key_penalties, STEP)
            total = Losses(*map(jnp.add, total, added))
        return total

    _, pull = jax.vjp(objectives, variables.params)
    (by_generator,), (by_discriminator,) = pull(Losses(1.0, 0.0)), pull(Losses(0.0, 1.0))
    return by_generator._replace(discriminator=by_discriminator.discriminator)


def distance(a, b):
    return small.norm(jax.tree.map(np.subtract, *jax.device_get((a, b))))


def assert_close(a, b, tolerance=1e-5):
    """Compare trees network by network, by norm."""
    for one, other in zip(a, b, strict=True):
        assert jax.tree.structure(one) == jax.tree.structure(other)
        assert distance(one, other) <= tolerance * small.norm(other)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def with_logit(variables, factor, bias):
    """Scale D's last layer and set its bias."""
    params = variables.params
    kernel = factor * params.discriminator["logit"]["kernel"]
    discriminator = {**params.discriminator, "logit": {"kernel": kernel, "bias": jnp.full(1, bias)}}
    return variables._replace(params=params._replace(discriminator=discriminator))


# Losses.


def value(loss, q, p):
    return np.array(loss(Logits(jnp.asarray(q), jnp.asarray(p)), Batch(jnp.zeros((3, 2))))[0])


def test_the_values_of_the_losses_are_those_of_their_equations():
    q, p = np.array([2.0, 0.5, -1.0]), np.array([-3.0, 0.0, 1.0])
    softplus = lambda s: np.log1p(np.exp(s)).mean()  # noqa: E731
    expected = {
        "hinge": (q.mean() - p.mean(), (0 + 0.5 + 2) / 3 + (0 + 1 + 2) / 3),
        "least_squares": (
            ((q + 1) ** 2).mean() / 2 + ((p - 1) ** 2).mean() / 2,
            ((q - 1) ** 2).mean() / 2 + ((p + 1) ** 2).mean() / 2,
        ),
        "relativistic": (
            softplus(q - p.mean()) + softplus(q.mean() - p),
            softplus(p.mean() - q) + softplus(p - q.mean()),
        ),
        "relativistic_pairs": (softplus(q - p), softplus(p - q)),
        "none": (0, 0),
    }
    for name, both in expected.items():
        found = value(getattr(losses, name), q.astype(np.float32), p.astype(np.float32))
        np.testing.assert_allclose(found, both, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", ONE_LOGIT)
def test_swapping_the_kinds_of_pairs_and_the_sign_of_the_logits_changes_no_loss(name, key):
    q, p = jax.random.normal(key, (2, 3))
    loss = getattr(losses, name)
    np.testing.assert_allclose(value(loss, -p, -q), value(loss, q, p), rtol=1e-5, atol=1e-6)


def test_relativistic_losses_see_differences_of_logits_only(key):
    q, p = jax.random.normal(key, (2, 3))
    for loss in (losses.relativistic, losses.relativistic_pairs):
        np.testing.assert_allclose(value(loss, q + 3, p + 3), value(loss, q, p), rtol=1e-5)


def test_the_relativistic_means_are_those_of_all_devices(key):
    """The mean over devices of the gradients of local losses is the gradient of the whole batch's loss."""
    logits = Logits(*jax.random.normal(key, (2, 6)))

    def gradient(logits, axis_name=None):
        loss = partial(losses.relativistic, axis_name=axis_name)
        return jax.grad(lambda s: loss(s, Batch(jnp.zeros(())))[0].discriminator)(logits)

    split = jax.tree.map(lambda s: s.reshape(3, 2), logits)
    found = jax.vmap(partial(gradient, axis_name="data"), axis_name="data")(split)
    for local, whole in zip(found, gradient(logits), strict=True):
        np.testing.assert_allclose(local.reshape(-1) / 3, whole, rtol=1e-5)


# Gradients.


def test_every_loss_gives_both_players_their_own_gradient():
    """Also where a hinge leaves D without a gradient and the generator with its full one."""
    s = setting()

    @compiled
    def both(variables):
        chosen = {name: getattr(losses, name) for name in ONE_LOGIT}
        return {
            name: (play(s, variables, loss, gradient="one_pass"), separate(s, variables, loss))
            for name, loss in chosen.items()
        }

    for factor, bias in ((1.0, 0.0), (1.0, 5.0), (1.0, -5.0), (3e3, 0.0)):
        found = both(with_logit(s.variables, factor, bias))
        for ours, theirs in found.values():
            assert_close(ours, theirs)
    assert small.norm(found["hinge"][0].encoder) > 0
    assert small.norm(found["none"][0]) == 0


def test_every_penalty_gives_both_players_their_own_gradient_and_none_at_weight_zero():
    s = setting(unary_scores=True, pair_layers=(8,))
    groups = (("r1",), ("cycle_x", "cycle_z", "cycle_z_sampled"), ("adversarial_cycle", "unary_scores"))
    assert sum(groups, ()) == tuple(TERMS)
    off = [partial(t, **dict.fromkeys(t.keywords.keys() & {"gamma", "weight"}, 0.0)) for t in TERMS.values()]

    @compiled
    def run(variables):
        chosen = [[TERMS[name] for name in group] for group in groups]
        on = [(play(s, variables, terms=t), separate(s, variables, terms=t)) for t in chosen]
        return play(s, variables), play(s, variables, terms=off), on

    plain, silent, on = run(s.variables)
    assert_equal(silent, plain)
    for ours, theirs in on:
        assert_close(ours, theirs)
    change = [[distance(a, b) > 0 for a, b in zip(ours, plain, strict=True)] for ours, _ in on]
    assert change == [[False, False, True], [True, True, False], [True, True, True]]


def test_one_pass_is_exact_for_every_discriminator_that_couples_no_rows():
    s = setting(spectral_norm=True, packing=2, z_everywhere=True)
    noisy = partial(model.instance_noise, std=0.3, num_steps=10)
    terms = (TERMS["r1"],)

    @compiled
    def both(variables):
        ours = play(s, variables, losses.hinge, terms, gradient="one_pass", augment=noisy)
        return ours, separate(s, variables, losses.hinge, terms, noisy)

    assert_close(*both(s.variables))


# Penalties.


def test_cycles_are_squared_distances_summed_over_dimensions():
    s = setting()

    @compiled
    def run(variables):
        pairs, _ = model.generate(s.ali, *variables, s.batch, s.noise)
        x_hat = model.decode(s.ali, variables, pairs.z_hat)
        z_hat = model.encode(s.ali, variables, pairs.x_tilde)
        arguments = (s.ali, variables, pairs, s.noise.key_penalties, STEP)
        cycles = (penalties.cycle_x, penalties.cycle_z)
        return pairs, x_hat, z_hat, [cycle(*arguments, weight=3.0)[0] for cycle in cycles]

    pairs, x_hat, z_hat, (cycle_x, cycle_z) = jax.device_get(run(s.variables))
    expected = 3 * np.mean(np.sum((pairs.x - x_hat) ** 2, axis=(1, 2, 3)))
    np.testing.assert_allclose(cycle_x.generator, expected, rtol=1e-5)
    expected = 3 * np.mean(np.sum((pairs.z - z_hat) ** 2, axis=1))
    np.testing.assert_allclose(cycle_z.generator, expected, rtol=1e-5)
    assert cycle_x.discriminator == cycle_z.discriminator == 0


def test_the_pair_discriminator_and_the_unary_scores_are_judged_by_ali_and_by_hinges():
    s = setting(unary_scores=True, pair_layers=(8,))
    pairs = s.pairs

    @compiled
    def run(variables):
        arguments = (s.ali, variables, pairs, s.noise.key_penalties, STEP)
        call = partial(s.ali.discriminator.apply, {"params": variables.params.discriminator})
        x_hat = model.decode(s.ali, variables, pairs.z_hat)
        logits = Logits(call(pairs.x, pairs.x, method="pair"), call(pairs.x, x_hat, method="pair"))
        scores = [call(x, z, method="unary") for x, z in ((pairs.x, pairs.z_hat), (pairs.x_tilde, pairs.z))]
        return (
            (penalties.adversarial_cycle(*arguments, weight=2.0)[0], losses.ali(logits, s.batch)[0]),
            penalties.unary_scores(*arguments, weight=2.0)[0],
            [losses.hinge(Logits(scores[0][:, i], scores[1][:, i]), s.batch)[0] for i in (0, 1)],
            (*scores, call(pairs.x, pairs.z, method="unary")),
        )

    (cycle, judged), unary, one, (*scores, other) = jax.device_get(run(s.variables))
    np.testing.assert_allclose(cycle, 2 * np.array(judged), rtol=1e-5)
    np.testing.assert_allclose(unary, 2 * np.sum(one, axis=0), rtol=1e-5)
    np.testing.assert_array_equal(other[:, 0], scores[0][:, 0])  # s_x does not see z
    np.testing.assert_array_equal(other[:, 1], scores[1][:, 1])  # s_z does not see x


def test_r1_of_class_logits_is_that_of_their_logsumexp_and_weights_may_be_traced():
    s = setting(num_classes=3)

    def score(x, z):
        return jax.nn.logsumexp(model.discriminate(s.ali, s.variables, x[None], z[None])[0])

    @compiled
    def both(gamma, gamma_z, gamma_final):
        arguments = (s.ali, s.variables, s.pairs, s.noise.key_penalties, STEP)
        added, _ = penalties.r1(*arguments, gamma=gamma, gamma_z=gamma_z, gamma_final=gamma_final)
        by_x, by_z = jax.vmap(jax.grad(score, (0, 1)))(s.pairs.x, s.pairs.z_hat)
        return added.discriminator, (gamma * jnp.sum(by_x**2) + gamma_z * jnp.sum(by_z**2)) / 8

    np.testing.assert_allclose(*both(2.0, 0.5, 2.0), rtol=1e-4)


def test_weights_may_be_functions_of_the_step():
    s = setting()
    falling = optax.linear_schedule(2.0, 0.0, 4)  # 0.5 at step 3
    given = (
        (penalties.r1, "gamma", {"gamma_z": 1.0}),
        (penalties.r1, "gamma_z", {"gamma": 1.0}),
        (penalties.cycle_x, "weight", {}),
        (penalties.cycle_z, "weight", {}),
        (penalties.elbo, "weight", {}),
    )

    @compiled
    def run(step, weight):
        arguments = (s.ali, s.variables, s.pairs, s.noise.key_penalties, step)
        return [
            [penalty(*arguments, **{name: w}, **more)[0] for w in (falling, weight)]
            for penalty, name, more in given
        ]

    for found, expected in run(3, 0.5):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["adversarial_cycle", "unary_scores"])
def test_a_penalty_without_its_part_of_the_discriminator_is_refused(name):
    s = setting()
    pairs = s.pairs
    with pytest.raises(ValueError, match=f"{name} needs a discriminator with"):
        TERMS[name](s.ali, s.variables, pairs, s.noise.key_penalties, STEP)


# Networks, and what D sees.


def test_ali_at_epsilon_zero_is_bigan():
    s, bigan = setting(), setting("deterministic")
    encoder = {k: v for k, v in s.variables.params.encoder.items() if k != "log_sigma"}
    variables = s.variables._replace(params=s.variables.params._replace(encoder=encoder))
    assert jax.tree.structure(variables) == jax.tree.structure(bigan.variables)
    s = SimpleNamespace(**vars(s) | {"noise": s.noise._replace(epsilon=jnp.zeros_like(s.noise.epsilon))})
    ours, theirs = compiled(lambda a, b: (play(s, a), play(bigan, b)))(s.variables, variables)
    assert small.norm(ours.encoder.pop("log_sigma")) == 0
    assert_close(ours, theirs, 1e-6)


def test_packs_are_pairs_of_one_kind_side_by_side():
    s = setting(packing=2)
    pairs = s.pairs
    params, stats = s.variables.params.discriminator, s.variables.batch_stats.discriminator
    plain = s.ali.discriminator.clone(packing=1)

    @compiled
    def run(params):
        logits, _ = model.judge(s.ali, params, stats, pairs, s.noise.key_discriminator)
        kinds = ((pairs.x, pairs.z_hat), (pairs.x_tilde, pairs.z))
        beside = [jnp.concatenate([part[::2], part[1::2]], axis=-1) for part in kinds[0]]
        each = [model.discriminate(s.ali, s.variables, *kind) for kind in kinds]
        return logits, each, plain.apply({"params": params}, *beside)

    logits, each, of_plain = run(params)
    assert logits.q.shape == logits.p.shape == (2,)
    np.testing.assert_allclose(logits, each, rtol=1e-5)
    np.testing.assert_allclose(of_plain, logits.q, rtol=1e-6)
    with pytest.raises(ValueError, match="packs 2 pairs, which do not divide a batch of 3"):
        model.judge(s.ali, params, stats, jax.tree.map(lambda v: v[:3], pairs), s.noise.key_discriminator)


def test_instance_noise_falls_to_zero_where_it_changes_nothing(key):
    s = setting()
    noisy = partial(model.instance_noise, std=0.5, num_steps=10)
    silent = partial(model.instance_noise, std=0.0, num_steps=10)
    plain, *off, early = compiled(
        lambda v: [
            play(s, v),
            play(s, v, augment=silent),
            play(s, v, step=jnp.asarray(10), augment=noisy),
            play(s, v, step=jnp.asarray(9), augment=noisy),
        ]
    )(s.variables)
    for other in off:
        assert_equal(other, plain)
    assert distance(early, plain) > 0
    x = jnp.zeros((100, 100))
    seen = noisy(model.Pairs(x, x, x, x), key, jnp.asarray(4))
    for part in (seen.x, seen.x_tilde):
        assert 0.29 < float(jnp.std(part)) < 0.31
    assert float(jnp.abs(jnp.mean(seen.x * seen.x_tilde))) < 0.01  # independent of each other
    assert_equal((seen.z, seen.z_hat), (x, x))


def test_spectral_norm_divides_by_the_largest_singular_value(key):
    norm, kernel = SpectralNorm(), jax.random.normal(key, (3, 3, 4, 6))
    held = norm.init(key, kernel, train=False)

    @compiled
    def iterate(held):
        return jax.lax.scan(
            lambda h, _: norm.apply(h, kernel, train=True, mutable=["batch_stats"])[::-1], held, length=30
        )

    held, scaled = iterate(held)
    first, *_, last = np.linalg.norm(scaled.reshape(30, 36, 6), 2, axis=(1, 2))
    assert abs(last - 1) < 1e-3 < abs(first - 1)
    np.testing.assert_allclose(norm.apply(held, kernel, train=False), scaled[-1], rtol=1e-4)
    gradient = jax.grad(lambda k: jnp.sum(norm.apply(held, k, train=True) ** 3))(kernel)
    np.testing.assert_allclose(
        jnp.sum(gradient * kernel), 0, atol=1e-3
    )  # the scale of a kernel has no effect


@pytest.mark.parametrize("field", ["unary_scores", "z_everywhere"])
def test_power_iteration_keeps_up_with_all_kernels_in_training(field):
    s = setting(spectral_norm=True, pair_layers=(8,), **{field: True})
    tx = optax.sgd(1e-2)
    state = train.TrainState(STEP, jax.random.PRNGKey(3), s.variables, None, tx.init(s.variables.params))
    step = compiled(partial(train.train_step, s.ali, tx, losses.hinge, ()))
    for _ in range(30):
        state, _ = step(state, s.batch)
    params, stats = state.variables.params.discriminator, state.variables.batch_stats.discriminator
    found = dict(jax.tree_util.tree_leaves_with_path(stats))
    train._check_axis(s.ali, state.variables.batch_stats, "data")  # would raise for batch norm's statistics
    assert len(found) == len([leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 2])
    for path, u in found.items():
        kernel = params
        for part in path[:-2]:
            kernel = kernel[part.key]
        kernel = kernel["kernel"]
        assert abs(jnp.linalg.norm(kernel @ u) / jnp.linalg.norm(kernel, 2) - 1) < 0.02, path


def test_z_reaches_every_layer_of_the_discriminator_by_a_map_of_its_own():
    """test_options.py has the values of one layer of each stack."""
    ali, _, batch = small.game("digits", edit=lambda c: c.discriminator.update({"z_everywhere": True}))
    variables = small.draw(ali, batch.x)
    z = jax.random.normal(jax.random.PRNGKey(3), (len(batch.x), model.latent_dim(ali)))
    d = variables.params.discriminator
    plain = model.discriminate(ali, variables, batch.x, z)
    for stack, layer in itertools.product(("x", "joint"), ("beside_0", "beside_1")):
        without = {**d, stack: {**d[stack], layer: jax.tree.map(jnp.zeros_like, d[stack][layer])}}
        other = variables._replace(params=variables.params._replace(discriminator=without))
        assert (model.discriminate(ali, other, batch.x, z) != plain).all(), (stack, layer)


def test_what_must_not_see_z_excludes_z_everywhere():
    with pytest.raises(ValueError, match="blind discriminator sees no z"):
        setting(z_everywhere=True, blind=True)
    with pytest.raises(ValueError, match="score of x alone must not see z"):
        setting(z_everywhere=True, unary_scores=True)


# Configs.


@pytest.fixture(scope="module")
def digits():
    return game.load_data(small.experiment("digits"))


@pytest.mark.parametrize("flags", ROWS)
def test_the_flags_of_the_documentation_make_a_game_of_digits(flags, digits):
    config = small.narrow(small.experiment("digits"))
    command.override(config, shlex.split(flags))
    made = game.prepare(config, digits)
    terms = {
        f"penalties.{term.func.__name__}.{k}": v for term in made.penalties for k, v in term.keywords.items()
    }
    for key, text in (flag.removeprefix("--config.").split("=", 1) for flag in shlex.split(flags)):
        value = ast.literal_eval(text) if text[0] in "(0123456789TF" else text
        assert configs.flat(made.config)[key] == value
        assert not key.startswith("penalties.") or terms[key] == value
    for name in (*public_functions(penalties), *public_functions(class_penalties)):
        on = any(f"penalties.{name}.{weight}=" in flags for weight in parts.WEIGHTS) or name == "r1"
        assert any(term.func.__name__ == name for term in made.penalties) == on, name


def test_the_documentation_shows_every_loss_and_penalty():
    text = (small.ROOT / "docs" / "reference" / "losses.md").read_text()
    for name in (*ONE_LOGIT, *public_functions(penalties), *public_functions(class_penalties)):
        assert f"| `{name}` |" in text, name


def test_plain_ali_on_mnist_differs_from_the_recipe_by_its_additions_alone():
    recipe, plain = (configs.flat(small.experiment(name)) for name in ("mnist_stable", "mnist_stable:ali"))
    assert {key for key in recipe if recipe[key] != plain[key]} == {
        "encoder.batch_norm",
        "num_steps",
        "penalties.cycle_x.weight",
        "penalties.r1.gamma_final",
    }
    assert plain["penalties.cycle_x.weight"] == 0
    with pytest.raises(ValueError, match="the only variant is ali"):
        small.experiment("mnist_stable:plain")


def test_100_gaussians_have_the_recipe_of_25():
    recipe, grid = (configs.flat(small.experiment(name)) for name in ("mixture_stable", "mixture_stable:100"))
    assert {key: grid[key] for key in recipe if recipe[key] != grid[key]} == {"dataset.name": "mixture_100"}
    with pytest.raises(ValueError, match="the only variant is 100"):
        small.experiment("mixture_stable:25")


def test_every_experiment_on_images_measures_precision_and_recall():
    of_images = [name for name in small.EXPERIMENTS if len(small.experiment(name).dataset.shape) == 3]
    assert len(of_images) > 10
    for name in of_images:
        assert "precision_recall" in small.experiment(name).evaluators, name


def test_experiments_that_measure_memorisation_count_near_duplicates_beside_it():
    """One search of train serves both."""
    lists = {name: small.experiment(name).evaluators for name in small.EXPERIMENTS}
    measuring = {name for name, evaluators in lists.items() if "memorisation" in evaluators}
    assert {"digits", "images", "mnist", "celeba_residual"} <= measuring
    assert measuring == {name for name, evaluators in lists.items() if "near_duplicates" in evaluators}
