"""SIGTERM and SIGINT end a training in good order: at one step everywhere, with a checkpoint."""

import logging
import signal
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

_LOG = logging.getLogger("vae_attn")
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):  # noqa: N818
    """A training that was asked to stop, and has saved its checkpoint; says how to resume."""


class Watch:
    """Holds signals back within `with`, for `stopping` to report; a second one ends the process."""

    def __init__(self) -> None:
        self._signalled = False
        self._before: dict[int, object] = {}
        self._vote: Int[Array, ""] | int = 0
        # A vote is the greatest of a number of each device.
        mesh = Mesh(np.array(jax.devices()), ("device",))
        self._each = NamedSharding(mesh, PartitionSpec("device"))
        self._count = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __enter__(self) -> "Watch":
        """Takes the signals."""
        # Elsewhere Python has no handlers, and whoever started the thread sees to signals.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        """Gives them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def stopping(self, *, now: bool = False) -> bool:
        """Whether to stop after this step, because a process received a signal.

        Every process asks once a step, and all get the same answer.

        Args:
          now: wait for this step's answer, where there are several processes. Otherwise it is that
            of the step before, so that no device waits for it.
        """
        if jax.process_count() == 1:
            return self._signalled
        before, self._vote = (
            self._vote,
            self._count(
                jax.make_array_from_callback(
                    self._each.mesh.devices.shape,
                    self._each,
                    lambda _: np.full(1, self._signalled, np.int32),
                )
            ),
        )
        return bool(before) or (now and bool(self._vote))

    def _handle(self, number: int, _: types.FrameType | None) -> None:
        self._signalled = True
        # The second one must not wait for Python, which has no say while XLA compiles or waits.
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        _LOG.warning(
            "%s: saving a checkpoint after this step; a second signal stops immediately.",
            signal.Signals(number).name,
        )
