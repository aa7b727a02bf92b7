"""What a benchmark is: something that several sides do, after a check that they do the same."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

OURS = "ours"


@dataclasses.dataclass(frozen=True)
class Side:
    """One way to do it, set up and ready.

    Attributes:
      call: does it once, and returns when it is done.
      values: what it computes, by name, to be compared with the other sides'.
    """

    call: Callable[[], object]
    values: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Case:
    """One line of the table for each side.

    Attributes:
      name: on the command line.
      what: is measured.
      items: that one call handles.
      unit: of the items.
      sides: by name, `OURS` first. Each runs in a process of its own, which it is built in.
      goals: how many times as long as ours a side should take at least, by its name.
      rounds: that are measured.
      warm_up: whether calls that are not measured come first: compilation, caches.
      tolerance: largest norm of the difference between two sides' values, relative to the norm.
    """

    name: str
    what: str
    items: int
    unit: str
    sides: Mapping[str, Callable[[], Side]]
    goals: Mapping[str, float] = dataclasses.field(default_factory=dict)
    rounds: int = 9
    warm_up: bool = True
    tolerance: float = 2e-3


def difference(
    first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """How far the values that both sides have are from each other, relative to their norm."""
    found = {}
    for name in first.keys() & second.keys():
        a, b = (np.asarray(side[name], np.float64) for side in (first, second))
        scale = max(float(np.linalg.norm(b)), 1e-12)
        found[name] = float(np.linalg.norm(a - b)) / scale if a.shape == b.shape else np.inf
    return found
