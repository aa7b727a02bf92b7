"""Work that runs alongside the training: one job at a time, in the order given."""

import concurrent.futures
import contextlib
import types
from collections.abc import Callable
from typing import Any as PyTree

import jax
import jax.numpy as jnp

# One program; `jax.jit` alone would hand its arguments on.
_copied = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


def can_run_beside() -> bool:
    """Whether jobs may run beside the training here.

    Not with several processes: saving a checkpoint is then collective, and all processes must come
    to their collectives in one order. Not on several simulated devices of a CPU: they share a pool
    of threads, and with twice as many steps under way one device of a step may find none, while the
    others wait for it until XLA ends the process.
    """
    simulated = jax.default_backend() == "cpu" and jax.local_device_count() > 1
    return jax.process_count() == 1 and not simulated


class Background:
    """Runs jobs in a thread of its own, while the caller gives the devices their next steps.

    At most one job is unfinished, so that the caller is never more than one job ahead. Where
    `can_run_beside` says no, each job runs at once in the caller.
    """

    def __init__(self) -> None:
        self._pool = None
        if can_run_beside():
            self._pool = concurrent.futures.ThreadPoolExecutor(1, "vae_attn-background")
        self._running: concurrent.futures.Future | None = None

    @property
    def is_beside(self) -> bool:
        """Whether jobs run beside the caller, and not within it."""
        return self._pool is not None

    def keep(self, state: PyTree) -> PyTree:
        """A state that a job may read: a copy, as the next update takes the original's memory."""
        return _copied(state) if self.is_beside else state

    def run(self, job: Callable[[], object]) -> None:
        """Starts a job when the one before is done; raises what that one raised."""
        if self._pool is None:
            job()
            return
        self.wait()
        self._running = self._pool.submit(job)

    def wait(self) -> None:
        """Waits for the job that runs; raises what it raised."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def __enter__(self) -> "Background":
        """Jobs may come."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: types.TracebackType | None
    ) -> None:
        """Waits for the last job; its error is raised unless there is one already."""
        try:
            with contextlib.suppress(Exception) if kind else contextlib.nullcontext():
                self.wait()
        finally:
            if self._pool is not None:
                self._pool.shutdown()
