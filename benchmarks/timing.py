"""Times the sides of a case in turn, so that a noisy machine slows all of them alike.

Each side lives in a process of its own and sleeps while another is measured: in one process,
the waiting threads of one library would take time from the other.
"""

import dataclasses
import gc
import multiprocessing
import pathlib
import resource
import statistics
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection

from benchmarks.case import OURS, Case, Side, difference

_PROCESS = pathlib.Path("/proc/self")
_LEAST_SECONDS = 0.3  # of a measurement; a side that is faster is called several times


@dataclasses.dataclass(frozen=True)
class Timing:
    """What was measured of one side.

    Attributes:
      seconds: of one call, a value a round.
      peak_mib: of resident memory since its set-up, which may have needed both libraries; of its
        process, with all that is imported there, or of a process that it started.
    """

    seconds: tuple[float, ...]
    peak_mib: float

    @property
    def median(self) -> float:
        """Median seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, relative to the median."""
        if len(self.seconds) < 2:
            return 0.0
        first, _, third = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (third - first) / 2 / self.median

    def ratio(self, other: "Timing") -> float:
        """How many times as long `other` takes: the median over the rounds."""
        pairs = zip(self.seconds, other.seconds, strict=True)
        return statistics.median(theirs / mine for mine, theirs in pairs)


class SidesDifferError(Exception):
    """The sides of a case do not compute the same."""


def measure(case: Case, *, rounds: int | None = None) -> dict[str, Timing]:
    """Checks that all sides compute the same, then times them, round after round.

    Args:
      case: what to measure.
      rounds: instead of the case's.

    Returns:
      A timing a side, in the case's order.

    Raises:
      SidesDifferError: where they do not compute the same, or one of them failed.
    """
    workers = {}
    try:
        for name, build in case.sides.items():
            workers[name] = _Worker(name, build)
        values = {name: worker.receive() for name, worker in workers.items()}
        for name in case.sides:
            for what, distance in difference(values[OURS], values[name]).items():
                if not distance <= case.tolerance:
                    raise SidesDifferError(
                        f"{case.name}: {what} of {name} differs by {distance:.2g}"
                    )
        times = {name: _calls(worker) if case.warm_up else 1 for name, worker in workers.items()}
        seconds: dict[str, list[float]] = {name: [] for name in workers}
        for _ in range(rounds or case.rounds):
            for name, worker in workers.items():
                seconds[name].append(worker.ask(times[name]))
        return {
            name: Timing(tuple(seconds[name]), worker.ask(0)) for name, worker in workers.items()
        }
    finally:
        for worker in workers.values():
            worker.end()


def _calls(worker: "_Worker") -> int:
    """Warms a side up; how many calls a measurement takes."""
    worker.ask(2)
    return max(1, round(_LEAST_SECONDS / worker.ask(1)))


class _Worker:
    """A process with one side in it."""

    def __init__(self, name: str, build: Callable[[], Side]) -> None:
        context = multiprocessing.get_context("spawn")
        self._name = name
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(build, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def receive(self) -> object:
        """The next answer."""
        try:
            answer = self._pipe.recv()
        except EOFError:
            raise SidesDifferError(f"the process of {self._name} ended") from None
        if isinstance(answer, str):
            raise SidesDifferError(f"{self._name} failed:\n{answer}")
        return answer

    def ask(self, times: int) -> float:
        """Seconds of one of that many calls; 0 asks for the peak of memory in MiB."""
        self._pipe.send(times)
        return self.receive()

    def end(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.join()


def _serve(build: Callable[[], Side], pipe: Connection) -> None:
    """Builds a side, sends its values, and measures as often as it is asked to."""
    try:
        side = build()
        pipe.send(dict(side.values))
        _forget_peak()
        while True:
            times = pipe.recv()
            if not times:
                pipe.send(_peak_mib())
                continue
            start = time.perf_counter()
            for _ in range(times):
                side.call()
            pipe.send((time.perf_counter() - start) / times)
    except EOFError:
        return
    except BaseException:
        pipe.send(traceback.format_exc())


def _forget_peak() -> None:
    gc.collect()
    (_PROCESS / "clear_refs").write_text("5", encoding="utf-8")  # of Linux: `man 5 proc`


def _peak_mib() -> float:
    status = (_PROCESS / "status").read_text(encoding="utf-8").splitlines()
    # Not ru_maxrss: it would begin at what the process that started this one had.
    own = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    return max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) / 1024
