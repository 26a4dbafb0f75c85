"""The measurement on few images trains on these alone and compares with all of train."""

import json

import numpy as np
import pytest
import small

from ali_jax.program.command import load_config
from benchmarks import few_images


def test_a_run_sees_the_first_images_and_is_compared_with_all_of_train(tmp_path, monkeypatch):
    x = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", train_image=x, test_image=x[:20])
    config = load_config(str(small.ROOT / "experiments" / "digits.py"))  # perceptrons: they compile quickly
    config.encoder.layers = config.decoder.layers = config.discriminator.x_layers = (2,)
    config.discriminator.z_layers = config.discriminator.joint_layers = (2,)
    config.batch_size, config.num_steps, config.steps_per_call, config.evaluators = 4, 2, 2, ()
    config.dataset.path, config.dataset.train_split = str(tmp_path / "x.npz"), "train[:12]"
    config.population.seeds = 1
    monkeypatch.setattr(few_images, "SEEDS", 1)
    compared = []
    measure = few_images.frechet_measurements
    monkeypatch.setattr(
        few_images, "frechet_measurements", lambda *a: compared.append(len(a[3].train)) or measure(*a)
    )
    found = few_images.measure(few_images.augmented(config, 0.3), tmp_path / "run")
    assert compared == [40]
    assert set(few_images.COLUMNS[2:]) <= found.keys()  # without labels
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())
    assert [recorded["augment"][name] for name in few_images.TRANSFORMATIONS] == [0.3] * 3
    assert json.loads((tmp_path / "run" / "data.json").read_text())["train"]["rows"] == 12


def test_the_table_has_the_columns_that_both_runs_have():
    numbers = {"memorisation": 1.0, "memorisation/std": 0.1, "fid_grid": 2.0, "fid_grid/std": 0.2}
    found = {"plain": {**numbers, "class_kl": 3.0}, "augmented": numbers}
    head, _, *rows = few_images.table(found).splitlines()
    assert head == "| run | memorisation | fid_grid |"
    assert rows == [f"| {name} | 1.0000 +- 0.1000 | 2.0000 +- 0.2000 |" for name in found]


@pytest.mark.parametrize("size", [(8, 8, 1), (16, 32, 3)])
def test_grid_means_are_those_of_64_fields(size):
    x = np.random.default_rng(0).random((5, *size), np.float32)
    np.testing.assert_allclose(few_images.grid_means(np.full_like(x, 0.25)), 0.25, rtol=1e-5)
    means = few_images.grid_means(x)
    assert means.shape == (5, 64 * size[-1])
    np.testing.assert_allclose(means.mean(), x.mean(), rtol=0.02)
