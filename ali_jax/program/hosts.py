"""Several processes that train one run together, as on a TPU pod: how they connect, and stop together.

Each process runs the same command; only the first one writes. `join` must be called before JAX starts.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import NamedTuple

import jax
from jax.experimental import multihost_utils

from ali_jax.records.checkpoint import is_device_error
from ali_jax.records.workdir import RunError

AUTO = "auto"  # as coordinator: TPU pods, Slurm, Open MPI and Kubernetes tell JAX themselves
HEARTBEAT_SECONDS = 60  # if a process is silent for so long, the others end
JOIN_SECONDS = 300  # how long a process waits for the others at the start


class Hosts(NamedTuple):
    """The processes that train together, and which of them this one is."""

    coordinator: str  # host:port of the first process, or AUTO
    count: int | None = None
    index: int | None = None


def check(hosts: Hosts) -> None:
    """Raise a ValueError if the address or a number is wrong or missing."""
    if hosts.coordinator == AUTO:
        if hosts.count is not None or hosts.index is not None:
            raise ValueError(
                "--coordinator_address=auto finds out --num_processes and --process_id: leave them out."
            )
        return
    if not re.fullmatch(r"[^\s:]+:\d{1,5}", hosts.coordinator):
        raise ValueError(f"--coordinator_address is {hosts.coordinator!r}; it must be HOST:PORT, or auto.")
    if hosts.count is None or hosts.index is None:
        raise ValueError("--coordinator_address needs --num_processes and --process_id too.")
    if not 0 <= hosts.index < hosts.count:
        raise ValueError(
            f"--process_id is {hosts.index} of --num_processes {hosts.count}; it must be from 0 to "
            f"{hosts.count - 1}."
        )


def join(hosts: Hosts) -> None:
    """Connect to the other processes.

    Raises:
      RunError: they did not connect in time, or nothing on this machine says who they are.
    """
    known = {} if hosts.coordinator == AUTO else _arguments(hosts)
    try:
        jax.distributed.initialize(
            **known, initialization_timeout=JOIN_SECONDS, heartbeat_timeout_seconds=HEARTBEAT_SECONDS
        )
    except (RuntimeError, ValueError) as error:  # JaxRuntimeError if nobody answers
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RunError(f"The processes of this run did not connect at {hosts.coordinator}: {why}") from None


def _arguments(hosts: Hosts) -> dict:
    return {
        "coordinator_address": hosts.coordinator,
        "num_processes": hosts.count,
        "process_id": hosts.index,
        "cluster_detection_method": "deactivate",
    }


def preempted(first: int, count: int) -> bool:
    """Whether all processes must stop before these steps because one of them received SIGTERM.

    Every process must ask for the same steps in the same order; all get the same answer.
    """
    if jax.process_count() == 1:
        return False
    answers = [multihost_utils.reached_preemption_sync_point(step) for step in range(first, first + count)]
    return any(answers)


@contextlib.contextmanager
def device_errors() -> Iterator[None]:
    """Turn errors of devices, and of the connections between processes, into a RunError."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if not is_device_error(error):
            raise
        why = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        cause = "The device failed"
        if jax.process_count() > 1:
            cause = f"Process {jax.process_index()} lost another process of the run, or a device failed"
        raise RunError(f"{cause}: {why} Run the same command to resume from the last checkpoint.") from error
