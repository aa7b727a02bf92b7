"""What a benchmark is: something that several sides do, after a check that they do the same."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from benchmarks.timing import Call

OURS = "ours"


@dataclasses.dataclass(frozen=True)
class Case:
    """One line of the table for each peer.

    Attributes:
      name: on the command line.
      what: is measured, for the table.
      items: that one call handles.
      unit: of the items.
      make: checks that all sides compute the same, and returns a call for each; `OURS` is one.
      goals: how many times as long as ours a side should take at least, by side.
      rounds: measured.
    """

    name: str
    what: str
    items: int
    unit: str
    make: Callable[[], Mapping[str, Call]]
    goals: Mapping[str, float]
    rounds: int = 9


def require_close(what: str, ours: np.ndarray, theirs: np.ndarray, *, tolerance: float) -> None:
    """Stops the benchmark unless both are the same.

    Args:
      what: is compared, for the message.
      ours: an array.
      theirs: of the same shape.
      tolerance: largest norm of the difference, relative to the norm of `theirs`.
    """
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    difference = np.linalg.norm(ours - theirs) / max(float(np.linalg.norm(theirs)), 1e-12)
    if ours.shape != theirs.shape or not difference <= tolerance:
        raise SystemExit(f"{what}: the sides differ by {difference:.2g}; nothing was timed.")
