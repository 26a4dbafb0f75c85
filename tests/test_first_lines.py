"""The first lines of a run say on what it computes, and in which precision; a GPU in vain is pointed out."""

from types import SimpleNamespace

import jax
import pytest

from ali_jax.program import cost, devices


def device(platform, capability=None):
    kind = {"cpu": "cpu", "gpu": "NVIDIA H200", "tpu": "TPU v5 lite"}[platform]
    return SimpleNamespace(platform=platform, device_kind=kind, compute_capability=capability)


@pytest.mark.parametrize(
    ("on", "setting", "precision"),
    [
        (device("cpu"), None, "float32"),
        (device("gpu", "9.0"), None, "tf32"),
        (device("gpu", "7.0"), None, "float32"),  # before Ampere
        (device("gpu", "gfx942"), None, "float32"),
        (device("gpu", "9.0"), "highest", "float32"),
        (device("tpu"), None, "bfloat16"),
        (device("tpu"), "tensorfloat32", "tensorfloat32"),
    ],
)
def test_the_precision_of_products_is_told(on, setting, precision):
    with jax.default_matmul_precision(setting):
        assert devices.product_precision(on) == precision
        said = devices.describe([on, on], "float32")
    kind = "NVIDIA H200 (gpu)" if on.platform == "gpu" else on.device_kind
    assert said == f"Trains on 2 x {kind}; networks compute in float32, their matrix products in {precision}."


def test_networks_in_bfloat16_multiply_in_it():
    said = devices.describe([device("gpu", "9.0")], "bfloat16")
    assert said.endswith("compute in bfloat16, their matrix products in bfloat16.")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Give a machine without GPU: the folder of its driver, and that of its programs."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.delenv("JAX_PLATFORMS")
    return tmp_path / "gpus", programs


def test_a_gpu_that_jax_does_not_see_is_pointed_out(machine):
    driver, _ = machine
    assert devices.unseen_gpu("cpu", driver=driver) == ""
    driver.mkdir()
    assert devices.unseen_gpu("cpu", driver=driver) == ""  # a driver without a GPU
    (driver / "0000:01:00.0").mkdir()
    assert "pip install '.[cuda13]'" in devices.unseen_gpu("cpu", driver=driver)
    assert devices.unseen_gpu("gpu", driver=driver) == ""


def test_nvidia_smi_tells_of_one_too_but_who_chose_the_cpu_is_left_alone(machine, monkeypatch):
    driver, programs = machine
    (programs / "nvidia-smi").write_text("#!/bin/sh\n")
    (programs / "nvidia-smi").chmod(0o755)
    assert "JAX does not see it" in devices.unseen_gpu("cpu", driver=driver)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert devices.unseen_gpu("cpu", driver=driver) == ""


def test_what_a_run_costs_is_said_in_images_then_in_time_and_memory():
    assert cost.before(90_000, 100, 1_400) == (
        "To do: 90,000 steps of 100 images. That is 9,000,000 images: 6,429 passes over train."
    )
    assert cost.before(1, 10, 40, members=3) == (
        "To do: 1 step of 10 images for each of 3 members. That is 30 images, 10 each: 0.25 passes over "
        "train."
    )
    assert cost.after(7_300_000, 1000.0, (3 * 2**29, "on a device")) == (
        "To go: about 2:01:40 (h:mm:ss) at 1,000 images/s, evaluations apart. Memory so far: 1.50 GiB on a "
        "device."
    )


def test_memory_is_that_of_the_fullest_device_or_of_the_process():
    on = [SimpleNamespace(memory_stats=lambda peak=peak: {"peak_bytes_in_use": peak}) for peak in (5, 7, 6)]
    assert cost.memory(on) == (7, "on a device")
    size, where = cost.memory(jax.local_devices())
    assert where == "in this process"
    assert 2**26 < size < 2**38  # JAX alone takes more than 64 MiB
