"""Times several ways to do one thing in turn, so that a noisy machine slows all of them alike."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping

# A call that returns when its work is done, not when it is queued.
Call = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds that each call of one side took.

    Attributes:
      seconds: in the order in which they were measured.
    """

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median seconds."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile of the seconds."""
        if len(self.seconds) < 2:
            return self.seconds[0], self.seconds[0]
        first, _, third = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return first, third

    def ratio(self, other: "Timing") -> float:
        """How many times as long `other` takes: the median over the rounds of both."""
        pairs = zip(self.seconds, other.seconds, strict=True)
        return statistics.median(theirs / ours for ours, theirs in pairs)


def interleave(
    sides: Mapping[str, Call], *, rounds: int, warm_up: int = 1, least_seconds: float = 0.2
) -> dict[str, Timing]:
    """Calls every side in turn, round after round.

    Args:
      sides: what to time, by name.
      rounds: that are measured.
      warm_up: calls of each side that come before and are not measured: compilation, caches.
      least_seconds: a side that is faster is called several times a round, and their mean counts.

    Returns:
      The seconds of one call, by name, `rounds` of them.
    """
    calls = {}
    for name, call in sides.items():
        for _ in range(warm_up):
            call()
        calls[name] = max(1, round(least_seconds / _seconds(call, 1)))
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, call in sides.items():
            seconds[name].append(_seconds(call, calls[name]))
    return {name: Timing(tuple(times)) for name, times in seconds.items()}


def _seconds(call: Call, times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times
