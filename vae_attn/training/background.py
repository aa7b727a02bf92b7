"""Work that runs alongside the training: one job at a time, in the order given."""

import collections
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

    Where `can_run_beside` says no, each job runs at once in the caller.
    """

    def __init__(self) -> None:
        self._pool = None
        if can_run_beside():
            self._pool = concurrent.futures.ThreadPoolExecutor(1, "vae_attn-background")
        self._unfinished: collections.deque[concurrent.futures.Future] = collections.deque()
        self._failed = False

    @property
    def is_beside(self) -> bool:
        """Whether jobs run beside the caller, and not within it."""
        return self._pool is not None

    def keep(self, state: PyTree) -> PyTree:
        """A state that a job may read: a copy, as the next update takes the original's memory.

        Waits for all jobs, so that there is never more than one copy; raises what they raised.
        """
        if not self.is_beside:
            return state
        self.wait()
        return _copied(state)

    def run(self, job: Callable[[], object]) -> None:
        """Has a job done after those before it; raises what one of them has raised by now.

        After one that fails none is begun.
        """
        if self._pool is None:
            job()
            return
        while self._unfinished and self._unfinished[0].done():
            self._unfinished.popleft().result()
        self._unfinished.append(self._pool.submit(self._unless_failed, job))

    def wait(self) -> None:
        """Waits for all jobs; raises what one of them raised."""
        while self._unfinished:
            self._unfinished.popleft().result()

    def _unless_failed(self, job: Callable[[], object]) -> None:
        if self._failed:
            return
        try:
            job()
        except BaseException:
            self._failed = True
            raise

    def __enter__(self) -> "Background":
        """Jobs may come."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: types.TracebackType | None
    ) -> None:
        """Waits for all jobs; an error of theirs is raised unless there is one already."""
        try:
            with contextlib.suppress(Exception) if kind else contextlib.nullcontext():
                self.wait()
        finally:
            if self._pool is not None:
                self._pool.shutdown()
