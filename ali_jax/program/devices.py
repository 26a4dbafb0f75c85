"""What a run computes on: its devices, the precision of their products, and a GPU that JAX does not see."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

DRIVER = Path("/proc/driver/nvidia/gpus")  # one folder per GPU, where NVIDIA's driver is loaded
TF32 = 8.0  # the compute capability from which NVIDIA's GPUs have tf32: Ampere


def describe(devices: Sequence[Any], dtype: str) -> str:
    """Return a sentence on the devices of a run, and on the precision in which its networks multiply."""
    first = devices[0]
    kind = first.device_kind
    if first.platform not in kind.lower():
        kind += f" ({first.platform})"
    precision = "bfloat16" if dtype == "bfloat16" else product_precision(first)
    return (
        f"Trains on {len(devices)} x {kind}; networks compute in {dtype}, "
        f"their matrix products in {precision}."
    )


def product_precision(device: Any) -> str:
    """Return the precision in which a device multiplies matrices of float32 under JAX's present setting.

    Without a setting (`jax_default_matmul_precision`), GPUs round the factors to tf32 if they have it, and
    TPUs to bfloat16.
    """
    setting = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    if device.platform == "cpu" or setting in ("float32", "highest"):
        return "float32"
    if setting not in (None, "default"):
        return str(setting)
    if device.platform == "gpu":
        return "tf32" if _capability(device) >= TF32 else "float32"
    return "bfloat16"


def _capability(device: Any) -> float:
    try:
        return float(getattr(device, "compute_capability", 0))
    except ValueError:  # AMD's are names
        return 0.0


def unseen_gpu(platform: str, *, driver: Path = DRIVER) -> str:
    """Return a warning if JAX runs on the CPU of a machine that has an NVIDIA GPU; otherwise "".

    No warning is due where JAX_PLATFORMS chooses the CPU.
    """
    chosen = bool(os.environ.get("JAX_PLATFORMS"))
    has_gpu = (driver.is_dir() and any(driver.iterdir())) or shutil.which("nvidia-smi") is not None
    if platform != "cpu" or chosen or not has_gpu:
        return ""
    return (
        "This machine has an NVIDIA GPU, but JAX does not see it and runs on the CPU: "
        "pip install '.[cuda13]' or, for a driver older than 580, '.[cuda]'."
    )
