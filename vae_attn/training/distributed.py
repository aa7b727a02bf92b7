"""Several processes, one for each host, that train one model together."""

import itertools
import pathlib
import signal
import time
import zlib
from typing import Any as PyTree

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from vae_attn.errors import UnreachableError, UserError

# A process that is gone is noticed after this many seconds, and the others end.
_HEARTBEAT_TIMEOUT = 30
# The other processes may evaluate for as long as it takes; one that dies is noticed sooner.
_BARRIER_TIMEOUT = 7 * 24 * 3600
# What another host wrote may take this many seconds to be seen: file systems of networks cache.
_FILE_TIMEOUT = 60
# All processes come to the same barriers; no name may come twice.
_BARRIERS = itertools.count()


def initialize(
    *,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Joins the processes of a run; before anything else that uses a device.

    Without arguments, what TPU, Slurm, Open MPI or Kubernetes say is used.

    Args:
      coordinator_address: `HOST:PORT` of process 0, reachable from all.
      num_processes: of the run.
      process_id: of this process, from 0.

    Raises:
      UserError: if only some arguments are given, they are invalid or cannot be found out, or the
        other processes do not join.
    """
    given = {
        "coordinator_address": coordinator_address,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise UserError(
            f"{', '.join(missing)} missing: give all of {', '.join(map(_flag, given))}."
        )
    try:
        jax.distributed.initialize(
            **given,
            cluster_detection_method=None if missing else "deactivate",
            heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT,
            shutdown_timeout_seconds=_HEARTBEAT_TIMEOUT,
        )
    except (ValueError, RuntimeError) as error:  # the second where the others do not come in time
        kind = UserError if isinstance(error, ValueError) else UnreachableError
        raise kind(
            f"the processes of this run cannot be joined ({error}): give "
            f"{', '.join(map(_flag, given))}, or leave --distributed out."
        ) from error
    # JAX now holds SIGTERM back, for a service that knows no SIGINT; see `preemption`.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _flag(name: str) -> str:
    return f"--{name}"


def is_main() -> bool:
    """Whether this is the process that writes logs, metrics, figures and reports."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process is here, however long that takes.

    Args:
      name: of this place; every process has the same.
    """
    # With `processes` given it waits for a message, not in a collective that the devices spin in.
    ocp.multihost.sync_global_processes(
        f"{name}/{next(_BARRIERS)}",
        timeout=_BARRIER_TIMEOUT,
        processes=set(range(jax.process_count())),
    )


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; every process comes here."""
    if jax.process_count() == 1:
        return flag
    return bool(_gather(np.int32(flag)).any())


def require_same(values: dict[str, PyTree]) -> None:
    """Checks that all processes have the same values, and so train the same model.

    Args:
      values: from what a value is to arrays, numbers or a string.

    Raises:
      UserError: in all processes, naming what differs.
    """
    if jax.process_count() == 1:
        return
    checksums = np.array([_checksum(value) for value in values.values()], np.uint32)
    columns = _gather(checksums).T
    differing = [name for name, column in zip(values, columns, strict=True) if np.ptp(column)]
    if differing:
        raise UserError(
            f"the processes differ in {', '.join(differing)}: give all of them one command, the "
            "same data, and a --workdir on a file system that they share."
        )


def minimum(value: float) -> float:
    """The smallest of the values that the processes have, in single precision."""
    if jax.process_count() == 1:
        return value
    return float(_gather(np.float32(value)).min())


def _gather(values: np.ndarray | np.generic) -> np.ndarray:
    """Every process' values, along a leading axis of processes."""
    # Here they come at different times, as from decoding images; a collective of CPUs gives up on
    # those that are 30 seconds late.
    barrier("gather")
    return multihost_utils.process_allgather(values)


def _checksum(tree: PyTree) -> int:
    checksum = 0
    for leaf in jax.tree.leaves(jax.device_get(tree)):
        content = leaf.encode() if isinstance(leaf, str) else np.ascontiguousarray(leaf)
        checksum = zlib.crc32(content, checksum)
    return checksum


def sees(path: pathlib.Path) -> bool:
    """Whether this process sees a file that the main one has written before.

    Every process comes here; one that does not see the file gives it some time.
    """
    barrier("written")
    end = time.monotonic() + (0 if is_main() else _FILE_TIMEOUT)
    while not (there := path.exists()) and time.monotonic() < end:
        time.sleep(1)
    return there
