"""What every test runs under: eight CPU devices, quick compiling, no silent rank promotion.

setup.cfg names the warnings. On a GPU: JAX_PLATFORMS=cuda,cpu python -m pytest -m gpu
"""

import gc
import os
import signal
import tempfile
from pathlib import Path

import quick

# Before JAX starts. NPROC: steps queued on more devices than cores must not starve each other.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("NPROC", "16")
# Flags of one's own come later and win: XLA_FLAGS=--xla_backend_optimization_level=3. The kernels of a GPU
# are tested as they are.
os.environ["XLA_FLAGS"] = " ".join(
    (
        quick.XLA_FLAGS if os.environ["JAX_PLATFORMS"] == "cpu" else "",
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
    )
)
os.environ.setdefault("ALI_JAX_CACHE", str(Path(tempfile.gettempdir()) / "ali_jax_test_cache"))
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.environ["ALI_JAX_CACHE"])
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax
import pytest

gc.set_threshold(50_000, 20, 100)  # programs are millions of objects, and looking through them takes time
jax.config.update("jax_numpy_rank_promotion", "raise")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts programs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def key():
    """Give a PRNG key."""
    return jax.random.PRNGKey(0)


@pytest.fixture(scope="session")
def real_data():
    """Give the folder of real .npz data sets named by ALI_JAX_DATA, or skip."""
    folder = os.environ.get("ALI_JAX_DATA", "")
    if not folder:
        pytest.skip("ALI_JAX_DATA names no folder of real data (.npz)")
    return Path(folder)


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """Give the folder of a short run of digits, whose bytes go from 0 to 16."""
    from test_loop import loop, tiny

    folder = tmp_path_factory.mktemp("run") / "run"
    assert loop.run(tiny(num_steps=10, evaluators=()), folder) == 0
    return folder


@pytest.fixture(scope="session")
def trained(run):
    """Give the model of that run."""
    import ali_jax

    return ali_jax.load(run)
