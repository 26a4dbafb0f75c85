"""benchmarks.recipes: what its variants change, how long its runs are, and its table."""

import json

import pytest

from ali_jax import config as configs
from ali_jax import game, networks
from benchmarks import recipes

SMALL = "experiments/svhn_residual.py:small"


@pytest.fixture
def unmeasured(monkeypatch):
    """Let no run train: one of N steps has a class_kl of N / 1000 and half of that for odd seeds."""
    ran = []

    def run(config, folder):
        ran.append((config.num_steps, config.seed))
        return 0

    def numbers(_):
        steps, seed = ran[-1]
        return {"class_kl": steps / 1000 / (1 + seed % 2)}

    monkeypatch.setattr(recipes, "seconds_per_step", lambda config: 0.1)
    monkeypatch.setattr(recipes.loop, "run", run)
    monkeypatch.setattr(recipes, "read_metrics", numbers)
    return ran


def test_a_variant_changes_its_ingredient_alone_and_can_be_built():
    variants = recipes.make_variants(SMALL, ["--config.seed=3"])
    recipe = variants["recipe"]()
    assert recipe.seed == 3
    for name, change in recipes.CHANGES.items():
        config = variants[name]()
        assert configs.differences(recipe, config).keys() == {
            k for k in change if k in configs.flat(recipe)
        }, name
        configs.validate(config)
        game.check_names(config)
        networks.build(config)
    others = variants.keys() - recipes.CHANGES.keys()
    assert others == {"images.py", "images.py with the cycle", "svhn.py"}
    for name in others:
        config = variants[name]()
        assert config.dataset == recipe.dataset
        assert config.encoder.name == "Encoder"
        networks.build(config)
    assert variants["images.py with the cycle"]().penalties.cycle_x.weight == recipe.penalties.cycle_x.weight


def test_a_run_is_as_long_as_its_time_and_is_planned_once(unmeasured, tmp_path):
    config = recipes.make_variants(SMALL, [])["recipe"]()
    assert recipes.measure(config, tmp_path / "a.py_0", 62.0)["images"] == 600 * 64  # whole calls of 50 steps
    assert json.loads((tmp_path / "a.py_0.json").read_text()) == {"num_steps": 600}
    recipes.measure(config, tmp_path / "a.py_0", 10.0)
    recipes.measure(config, tmp_path / "a.py_1", 10.0)
    assert unmeasured == [(600, 0), (600, 0), (100, 0)]


def test_the_table_has_mean_and_deviation_over_seeds(unmeasured, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").symlink_to(recipes.Path(recipes.__file__).parents[1] / "experiments")
    assert recipes.main(["--seconds", "10", "--seeds", "0,1", "--variants", "recipe,no cycle"]) == 0
    out = capsys.readouterr().out
    assert "| recipe | 6,400 | 0.0750 +- 0.0354 |" in out
    assert "| no cycle | 6,400 |" in out
    assert [seed for _, seed in unmeasured] == [0, 0, 1, 1]


def test_an_unknown_variant_is_one_sentence(capsys):
    assert recipes.main(["--seconds", "10", "--variants", "no cylce"]) == 2
    assert capsys.readouterr().err.startswith("--variants: 'no cylce' is unknown; there are recipe,")
