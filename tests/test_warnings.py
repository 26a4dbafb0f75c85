"""Warnings of this package, its tests and JAX fail a test; those of other packages and plugins do not."""

import subprocess
import sys
from pathlib import Path

from small import ROOT

PLUGIN = """
import warnings

def warn():
    warnings.warn("benchmarks are off")

pytest_configure = pytest_sessionstart = pytest_collection_modifyitems = warn
pytest_runtest_setup = pytest_terminal_summary = pytest_sessionfinish = warn
"""
TESTS = """
import warnings
import pytest

@pytest.mark.parametrize("module", {modules})
def test_it(module):
    warnings.warn_explicit("of " + module, DeprecationWarning, "file.py", 1, module)
"""


def run_pytest(folder: Path, modules: list[str]) -> tuple[int, str]:
    """Run tests in which these modules warn, with our settings and a plugin that warns in every hook.

    Returns pytest's exit status and its last line.
    """
    (folder / "setup.cfg").write_text((ROOT / "setup.cfg").read_text())
    (folder / "busy.py").write_text(PLUGIN)
    (folder / "tests").mkdir()
    (folder / "tests" / "test_it.py").write_text(TESTS.format(modules=modules))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "busy", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.splitlines()[-1]


def test_warnings_of_plugins_and_other_packages_fail_nothing(tmp_path):
    status, said = run_pytest(tmp_path, ["numpy", "matplotlib.text", "pytest_benchmark.logger"])
    assert status == 0
    assert said.startswith("3 passed")


def test_warnings_of_the_package_its_tests_and_jax_fail(tmp_path):
    modules = ["ali_jax", "ali_jax.losses", "jax._src.core", "flax.linen", "optax", "orbax.checkpoint"]
    modules += [path.stem for path in (ROOT / "tests").glob("*.py")]
    status, said = run_pytest(tmp_path, modules)
    assert status == 1
    assert said.startswith(f"{len(modules)} failed")
