"""Reads the batches of coming steps, from images that need not fit into memory."""

import math
import pathlib
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Int, UInt8

from vae_attn import extras
from vae_attn.errors import UserError

# Threads, not processes: what they do is copy, during which Python's lock is free.
_THREADS = 4
_STEPS_AHEAD = 8  # whose batches are in memory


def read_ahead(
    images: UInt8[np.ndarray, "n ..."],
    indices_of: Callable[[int], Int[np.ndarray, "rows"]],
    *,
    start: int,
    stop: int,
) -> Iterator[UInt8[np.ndarray, "rows ..."]]:
    """The images of each step, in the order of steps, while threads read those of the next ones.

    Args:
      images: in memory, or mapped from a file.
      indices_of: which images a step takes. It alone determines what is read, so that nothing
        has to be kept to continue from any step.
      start: the first step.
      stop: exclusive.

    Yields:
      `images[indices_of(step)]`.

    Raises:
      UserError: if grain is not installed, or the images' file is cut short meanwhile.
    """
    # Imported here: it takes most of a second, which only those who stream have to wait.
    purpose = "streaming images (--config.data.resident=true keeps them in memory instead)"
    grain = extras.load("grain", extra="stream", purpose=purpose)
    check = _make_check(images)

    def read(step: int) -> np.ndarray | UserError:
        indices = indices_of(step)
        # Not raised here: grain adds lines of its own to what is.
        return check() or images[indices]

    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_STEPS_AHEAD)
    for batch in grain.MapDataset.range(start, stop).map(read).to_iter_dataset(options):
        if isinstance(batch, UserError):
            raise batch
        yield batch


def _make_check(images: np.ndarray) -> Callable[[], UserError | None]:
    """What finds a mapped file shorter than it is now: to read beyond its end kills the process.

    A file that is deleted stays readable to those who have mapped it.
    """
    path = pathlib.Path(images.filename) if isinstance(images, np.memmap) else None
    if path is None or (before := _size(path)) == math.inf:
        return lambda: None

    def check() -> UserError | None:
        if _size(path) >= before:
            return None
        return UserError(
            f"{path} was cut short while the training read it: run the same command again, which "
            "builds it again and resumes from the newest checkpoint."
        )

    return check


def _size(path: pathlib.Path) -> float:
    """Infinite where there is no file."""
    try:
        return float(path.stat().st_size)
    except FileNotFoundError:
        return math.inf
