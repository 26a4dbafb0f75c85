"""What a run will cost: images before it starts, time and memory once its speed is known."""

import resource
import sys
from collections.abc import Sequence
from typing import Any

from ali_jax.records.writers import format_seconds

PER_RSS = 1 if sys.platform == "darwin" else 1024  # bytes of a unit of ru_maxrss


def before(steps: int, batch_size: int, rows: int, *, members: int = 1) -> str:
    """Return a sentence on the images of the steps to come.

    Args:
      steps: how many are left.
      batch_size: images of a step, of each member.
      rows: of train.
      members: of the population; 1 for a single run.
    """
    images = steps * batch_size
    passes = images / rows
    of = f" for each of {members} members" * (members > 1)
    total = f"{images * members:,} images" + f", {images:,} each" * (members > 1)
    return (
        f"To do: {steps:,} step{'s' * (steps != 1)} of {batch_size:,} images{of}. That is {total}: "
        f"{passes:{',.0f' if passes >= 10 else '.2g'}} passes over train."
    )


def after(images: int, images_per_second: float, held: tuple[int, str]) -> str:
    """Return a sentence on the time that the images to come take, and on the memory in use.

    Args:
      images: how many are left, of all members together.
      images_per_second: the speed of a call that was compiled before.
      held: bytes, and where, as `memory` returns them.
    """
    size, where = held
    return (
        f"To go: about {format_seconds(images / images_per_second)} (h:mm:ss) at {images_per_second:,.0f} "
        f"images/s, evaluations apart. Memory so far: {size / 2**30:.2f} GiB {where}."
    )


def memory(devices: Sequence[Any]) -> tuple[int, str]:
    """Return the peak of memory in bytes, and where: on the fullest device or, for a CPU, in this process."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in devices]
    if any(peaks):
        return max(peaks), "on a device"
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * PER_RSS, "in this process"
