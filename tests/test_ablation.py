"""Each row of the ablation changes what its name says, and the table shows the numbers of its runs."""

import json

import pytest
import small

from ali_jax import config as configs
from ali_jax.game import population
from ali_jax.program.command import load_config
from benchmarks import ablation

EXPERIMENT = str(small.ROOT / "experiments" / "mixture_stable.py")
TINY = ["--config.encoder.layers=(4,)", "--config.decoder.layers=(4,)", "--config.batch_size=8"]
RUN = ["--config", EXPERIMENT, "--config.discriminator.joint_layers=(4,)", *TINY, "--config.num_steps=2"]


def test_every_row_changes_one_ingredient_of_the_recipe():
    config = load_config(EXPERIMENT)
    changed = {
        name: {key.rpartition(".")[2] for key in configs.differences(config, variant)}
        for name, variant in ablation.make_variants(config).items()
    }
    assert changed == {
        "recipe": set(),
        "no penalty": {"gamma", "gamma_z"},
        "penalty on x only": {"gamma_z"},
        "penalty on z only": {"gamma", "gamma_z"},
        "penalty at both pairs": {"at"},
        "penalty not annealed": {"gamma_final"},
        "b1 0.5": {"b1"},
        "b2 0.999": {"b2"},
        "constant learning rate": {"constant_fraction"},
        "no cycle": {"weight"},
        "no Fourier features": {"frequencies"},
    }


@pytest.mark.parametrize(
    ("name", "weights"),
    [("no penalty", None), ("penalty on x only", (1.0, 0.0)), ("penalty on z only", (0.0, 1.0))],
)
def test_the_penalty_has_the_parts_that_the_row_names(name, weights):
    r1 = ablation.make_variants(load_config(EXPERIMENT))[name].penalties.r1
    assert (None if r1.gamma == r1.gamma_z == 0 else (r1.gamma, r1.gamma_z)) == weights


def test_a_row_that_is_the_recipe_is_left_out():
    config = load_config(EXPERIMENT)
    for adam in (config.optimizer.generator, config.optimizer.discriminator):
        adam.b1 = 0.5
    assert "b1 0.5" not in ablation.make_variants(config)


def test_the_table_has_mean_and_standard_deviation_over_seeds():
    found = population.spread(
        [dict.fromkeys(ablation.COLUMNS, value) | {"raw/mode_kept": 1.0} for value in (1.0, 2.0, 3.0)]
    )
    single = dict.fromkeys(ablation.COLUMNS, 1.0)  # of one member, or of a single run
    results = {"recipe": found, "member": population.spread([single]), "run": single}
    _, _, averaged, *alone = ablation.table(results).splitlines()
    assert averaged == f"| recipe | averaged |{' 2.0000 +- 1.0000 |' * len(ablation.COLUMNS)}"
    values = " 1.0000 |" * len(ablation.COLUMNS)
    assert alone == [f"| member | averaged |{values}", f"| run | averaged |{values}"]


def test_an_ablation_trains_what_is_not_trained_yet(tmp_path, capsys, monkeypatch):
    arguments = [*RUN, "--workdir", str(tmp_path), "--variants", "no penalty"]
    assert ablation.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "2 steps, seeds 0 to 1" in printed
    assert [line.split(" | ")[:2] for line in printed.splitlines()[-2:]] == [
        ["| no penalty", "averaged"],
        ["| no penalty", "raw"],
    ]
    found = json.loads((tmp_path / "no_penalty" / "config.json").read_text())
    assert (found["penalties"]["r1"]["gamma"], found["population"]["seeds"]) == (0, 2)
    monkeypatch.setattr(ablation.loop, "_train", lambda *_: pytest.fail("a finished run is repeated"))
    assert ablation.main(arguments) == 0
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "experiments/mixture.py"], "config.penalties.r1.gamma is 0.0: an ablation starts"),
        (["--config", EXPERIMENT, "--variants", "both"], "'both' is unknown; there are recipe, no penalty, "),
        (["--config", EXPERIMENT, "--config.population.seeds=-1"], "config.population.seeds is -1"),
        (["--config", EXPERIMENT, "--config.seeed=1"], "There is no config key 'seeed'"),
    ],
)
def test_mistakes_get_one_message(arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(small.ROOT)
    assert ablation.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert len(printed.err.splitlines()) == 1
