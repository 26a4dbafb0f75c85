"""What README shows works as it stands there."""

import re

import numpy as np
import pytest
import small

README = (small.ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_composition_with_networks_of_ones_own_runs():
    assert len(BLOCKS) == 1
    names: dict = {}
    exec(BLOCKS[0], names)
    assert int(names["state"].step) == 10
    assert np.isfinite(names["x_hat"]).all()
    assert names["x_hat"].shape == (128, 5)
    assert {"loss/generator", "loss/discriminator", "r1/x"} <= names["metrics"].keys()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"experiments/\w+\.py|ali_jax/\w+\.py", README))))
def test_the_files_that_it_names_exist(path):
    assert (small.ROOT / path).is_file()
