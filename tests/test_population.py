"""Populations: each member equals the run that it would be alone; summaries over members."""

import json
import re

import jax
import numpy as np
import pytest
import small
from scipy import stats

from ali_jax import config as configs
from ali_jax import game
from ali_jax.game import compile, population
from ali_jax.program import loop
from ali_jax.records import checkpoint

VARY = (
    ("optimizer.generator.learning_rate", (1e-3, 3e-3)),
    ("optimizer.discriminator.b1", (0.5, 0.0)),
    ("encoder.init_std", (0.02, 0.3)),
)
CONVOLUTIONS = {
    "encoder__layers": ((3, 1, 4), (6, 1, 8)),  # 8 -> 6 -> 1
    "decoder__layers": ((6, 1, 8), (3, 1, 4)),
    "discriminator__x_layers": ((3, 1, 4), (6, 1, 8)),
}


def config_of(name="mixture", **values):
    """Return a narrow and shallow config with these values, by keys in which __ stands for a dot."""
    config = small.narrow(small.experiment(name))
    for network, key in (
        (config.encoder, "layers"),
        (config.decoder, "layers"),
        (config.discriminator, "joint_layers"),
    ):
        network[key] = network[key][:1]  # compiling is what takes the time here
    config.num_steps = config.steps_per_call = config.log_every = config.checkpoint_every = 6
    config.batch_size, config.evaluators = 8, ()
    values = {key.replace("__", "."): value for key, value in values.items()}
    return configs.with_values(config, values).lock()


def trained(config):
    """Return the state and the metrics after one call of all steps, as numpy arrays."""
    made = game.prepare(config)
    state = game.initial_state(made)
    feed = game.make_feed(made)
    call = game.make_call(made, feed, config.num_steps)
    return jax.device_get(call(state, feed.load(0, config.num_steps)))


def distance(a, b):
    """Return |a - b| / |b| over whole trees."""
    return small.norm(jax.tree.map(np.subtract, *jax.device_get((a, b)))) / small.norm(b)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("mixture", {"population__seeds": 2, "population__vary": VARY, "seed": 7}),
        (
            "digits",
            {
                "population__vary": (("penalties.r1.gamma", (0.0, 2.0)),),
                "penalties__r1__every": 2,
                "ema_decay": 0.9,
            },
        ),
        ("digits", {"population__seeds": 2, "num_steps": 2, **CONVOLUTIONS}),
    ],
)
def test_each_member_is_the_run_that_it_would_be_alone(name, values):
    config = config_of(name, **values)
    state, metrics = trained(config)
    members = population.members(config)
    assert [member.seed for member in members] == [config.seed, config.seed + 1]
    for k, member in enumerate(members):
        alone, alone_metrics = trained(member)
        own = game.member_of(state, k)
        assert int(own.step) == config.num_steps
        assert distance(own.variables, alone.variables) < 1e-4
        if own.ema is not None:
            assert distance(own.ema, alone.ema) < 1e-4
            assert distance(own.ema, own.variables) > 2e-4
        np.testing.assert_array_equal(own.key, alone.key)
        for key, value in alone_metrics.items():
            np.testing.assert_allclose(metrics[key][k], value, rtol=1e-4, err_msg=key)
    first, second = (game.member_of(state, k).variables.params for k in (0, 1))
    assert distance(first, second) > 0.01


def recorded(monkeypatch, texts):
    """Let every program that is compiled add its text to a list when it is first called."""

    def on_mesh(mesh, *, members=False):
        make = original(mesh, members=members)

        def compiled(function):
            program, known = make(function), set()

            def call(*arguments):
                if not known:
                    texts.append(program.lower(*arguments).as_text())
                known.add(True)
                return program(*arguments)

            return call

        return compiled

    original = compile.on_mesh
    monkeypatch.setattr(compile, "on_mesh", on_mesh)


def test_convolutional_members_on_devices_of_their_own_are_convolved_one_by_one(monkeypatch):
    """As a GPU takes them: each device unrolls its own, and no convolution is grouped."""
    config = config_of("digits", population__seeds=4, num_steps=2, lowering="gpu", **CONVOLUTIONS)
    two, texts = jax.devices()[:2], []
    monkeypatch.setattr(jax, "devices", lambda *_: two)
    with monkeypatch.context() as patch:
        recorded(patch, texts)
        state, _ = trained(config)
    (text,) = texts
    convolutions = re.findall(r"stablehlo\.convolution.*", text)
    assert convolutions
    for line in convolutions:
        assert "batch_group_count = 1 " in line
        assert "feature_group_count = 1 " in line
    alone, _ = trained(population.members(config)[3])
    assert distance(game.member_of(state, 3).variables, alone.variables) < 1e-4


def test_numbers_of_members_are_those_of_their_runs():
    config = config_of("mixture", population__seeds=2, ema_decay=0.9)
    made, (state, _) = game.prepare(config), trained(config)
    result = game.evaluate(made, state, "modes", raw_beside=True).scalars
    for k, member in enumerate(population.members(config)):
        alone = game.evaluate(
            game.prepare(member), game.member_of(state, k), "modes", raw_beside=True
        ).scalars
        for name in ("high_quality", "mode_spread", "mode_kept", "raw/mode_kept"):
            assert result[f"{name}/{k}"] == alone[name]


def test_members_of_a_mixture_have_points_of_their_own_and_images_lie_on_the_device_once():
    drawn = game.make_feed(game.prepare(config_of("mixture", population__seeds=2)))
    shared = game.make_feed(game.prepare(config_of("digits", population__seeds=2)))
    assert drawn.load(0, 1).rows.x.shape == (2, 100_000, 2)
    assert shared.load(0, 1).rows.x.shape == (1400, 8, 8, 1)


def test_members_are_divided_among_devices_and_stay_the_same(monkeypatch, capsys):
    config = config_of("mixture", population__seeds=4, batch_size=15)  # no matter: a member's batch is whole
    assert len(game.initial_state(game.prepare(config)).key.sharding.device_set) == 4
    assert capsys.readouterr().err == "4 members over 8 devices: 4 are used.\n"
    spread, _ = trained(config)
    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: one)
    together, _ = trained(config)
    assert distance(spread.variables, together.variables) < 1e-5


def test_a_population_goes_on_bit_for_bit_and_one_lost_member_stops_nothing(tmp_path, capfd):
    rates = ("optimizer.generator.learning_rate", (1e-3, 1e30, 1e-3))
    values = {"population__vary": (rates,), "checkpoint_every": 2, "steps_per_call": 2, "log_every": 2}
    config = config_of("mixture", **values)
    assert loop.run(config, tmp_path / "whole") == 0
    assert capfd.readouterr().err.count("Member 1 has diverged") == 1
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert summary["images_seen"] == 6 * 3 * 8  # steps, members, batch
    manager = checkpoint.open_manager(tmp_path / "whole" / "checkpoints")
    progress = checkpoint.restore(manager, game.abstract_state(game.prepare(config)))[1]
    assert progress["timed_images"] == 4 * 3 * 8  # without the first call, which is compiled
    begun = configs.with_values(config, {"num_steps": 4}).lock()
    assert loop.run(begun, tmp_path / "stopped") == 0
    assert loop.run(config, tmp_path / "stopped") == 0
    whole, stopped = (
        [line for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines() if "loss/" in line]
        for folder in ("whole", "stopped")
    )
    assert len(whole) == 3
    assert whole == stopped
    assert '"loss/generator/1": null, "loss/generator/2"' in whole[-1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"population__seeds": 3, "population__vary": VARY}, "2 and 3 members"),
        ({"population__vary": (("latent_dim", (2, 3)),)}, "names 'latent_dim'"),
        (
            {"population__vary": (("optimizer.generator.b1", ("a", "b")),)},
            "must be pairs of a key and its numbers",
        ),
        ({"population__vary": ("optimizer.generator.b1",)}, "must be pairs of a key and its numbers"),
        ({"population__seeds": 2, "parallel": "pmap"}, "needs config.parallel = 'mesh'"),
        ({"population__vary": (("penalties.r1.gamma_z", (-1.0, 0.1)),)}, "use numbers of at least 0"),
        (
            {"population__vary": (("optimizer.generator.b1", (0.5, 1.5)),)},
            "Member 1 of the population: .*b1 is 1.5",
        ),
        (
            {"population__vary": (("optimizer.generator.eps", (0.0, 1e-8)),)},
            "Member 0 of the population: .*eps is 0.0",
        ),
        (
            {"population__vary": (("penalties.adversarial_cycle.weight", (0.0, 0.1)),)},
            "needs a discriminator with pair_layers",
        ),
    ],
)
def test_members_that_cannot_be_trained_at_once_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        game.prepare(config_of("mixture", **values))


def test_the_spread_of_members_leaves_out_those_that_are_no_numbers():
    result = population.spread(
        [{"modes": 1.0, "n_test": 9.0}, {"modes": np.nan, "n_test": 9.0}, {"modes": 4.0, "n_test": 9.0}]
    )
    assert (result["modes"], result["modes/std"]) == (2.5, pytest.approx(3 / 2**0.5))
    half = 12.7062 * 1.5  # Student's quantile for one degree of freedom, times std / sqrt(2)
    assert (result["modes/low"], result["modes/high"]) == pytest.approx((2.5 - half, 2.5 + half), rel=1e-5)
    assert (result["modes/0"], result["modes/2"]) == (1.0, 4.0)
    assert np.isnan(result["modes/1"])
    assert result["n_test"] == 9.0
    assert "n_test/std" not in result
    alone = population.spread([{"modes": 1.0}, {"modes": np.nan}])
    assert alone["modes"] == 1.0
    assert all(
        np.isnan(alone[f"modes/{part}"]) for part in ("std", "low", "high")
    )  # one says nothing of them


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_the_interval_of_few_seeds_contains_the_mean_as_often_as_it_says(count):
    """950 of 1,000 draws are expected, with a standard deviation of 7."""
    draws = 3 + np.random.default_rng(0).normal(size=(1_000, count))
    summaries = [population.spread([{"v": float(v)} for v in values]) for values in draws]
    assert 925 <= sum(s["v/low"] <= 3 <= s["v/high"] for s in summaries) <= 975


@pytest.mark.parametrize("count", [2, 6, 40])
def test_the_interval_is_where_a_t_test_of_the_mean_has_a_p_value_of_5_percent(count):
    values = np.random.default_rng(1).normal(size=count)
    summary = population.spread([{"v": float(v)} for v in values])
    for end in ("v/low", "v/high"):
        assert stats.ttest_1samp(values, summary[end]).pvalue == pytest.approx(0.05)


def test_equal_members_have_an_interval_without_width():
    summary = population.spread([{"v": 0.1}, {"v": 0.1}])
    assert summary["v"] == summary["v/low"] == summary["v/high"] == 0.1
