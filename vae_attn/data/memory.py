"""How much memory this machine has left."""

import contextlib
import pathlib

import psutil

# What a container may use, where it is told: both versions of Linux' control groups.
_LIMITS = (
    pathlib.Path("/sys/fs/cgroup/memory.max"),
    pathlib.Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def available_bytes() -> int:
    """Memory that is free, or would be: of the machine, at most what its container may use."""
    limits = [psutil.virtual_memory().available]
    for path in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no such file, or it says "max"
            limits.append(int(path.read_text(encoding="utf-8")))
    return min(limits)
