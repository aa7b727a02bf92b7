"""Shows how far a long loop has come: a bar on a terminal, otherwise a log line now and then."""

import logging
import sys
import time

from tqdm import tqdm

_LOG_EVERY = 10.0  # seconds
_LOG = logging.getLogger("vae_attn")


def show_log() -> None:
    """Logs this package's lines to stderr, without those of the libraries that it uses."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    _LOG.addHandler(handler)
    _LOG.setLevel(logging.INFO)
    _LOG.propagate = False  # absl and orbax have handlers of their own on the root


class Progress:
    """Shows the progress of a loop.

    with Progress("explaining", total=len(images)) as progress:
        for batch in batches:
            ...
            progress.add(len(batch))

    Without a terminal, a line at the start says what is done ("explaining: 750 images"), and one
    every ten seconds how far it is ("explaining: 64 of 750 images").
    """

    def __init__(self, what: str, *, total: int, unit: str = "images") -> None:
        """Shows nothing yet.

        Args:
          what: is done, as "explaining".
          total: how much of it there is.
          unit: in the plural, of what is counted.
        """
        self._what, self._total, self._unit = what, total, unit
        self._done = 0

    def __enter__(self) -> "Progress":
        """Begins the bar, or says what is done."""
        self._bar = tqdm(
            total=self._total,
            desc=self._what,
            unit=f" {self._unit}",
            leave=False,
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )
        if self._bar.disable:
            unit = self._unit.removesuffix("s") if self._total == 1 else self._unit
            _LOG.info("%s: %d %s", self._what, self._total, unit)
        self._last = time.monotonic()
        return self

    def add(self, count: int = 1) -> None:
        """Counts what is done."""
        self._done += count
        self._bar.update(count)
        now = time.monotonic()
        if self._bar.disable and now - self._last >= _LOG_EVERY:
            self._last = now
            _LOG.info("%s: %d of %d %s", self._what, self._done, self._total, self._unit)

    def __exit__(self, *error: object) -> None:
        """Ends the bar."""
        self._bar.close()
