"""What the updates get: all training images, kept on every device, or those of each step."""

import logging
import math
from collections.abc import Callable, Iterator

import jax
import ml_collections
import numpy as np
from jaxtyping import Array, Int, UInt8

from vae_attn.config import require, require_each
from vae_attn.data import memory, stream
from vae_attn.training import distributed, parallel

MODES = ("auto", "true", "false")

_LOG = logging.getLogger("vae_attn")
_SHARE = 0.5  # of a device's memory, for the training images; the model needs the rest


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks what this module reads of a config.

    Raises:
      UserError: naming the first key that is wrong, its value and what it may be.
    """
    numbers = ("data.resident_limit_mb", "train.steps_at_once")
    require_each(config, numbers, lambda v: v >= 0, "0 or more")
    require(config, "data.resident", lambda v: v in MODES, f"one of {', '.join(MODES)}")


def is_resident(config: ml_collections.ConfigDict, images: UInt8[np.ndarray, "n ..."]) -> bool:
    """Whether the training images are kept on the devices, as `data.resident` has it.

    `auto` keeps them where they take no more than `data.resident_limit_mb`; if that is 0, than
    half the memory of a device, the smallest one of all processes.
    """
    if config.data.resident != "auto":
        return config.data.resident == "true"
    size, limit, of = images.nbytes / 1e6, config.data.resident_limit_mb, "data.resident_limit_mb"
    if not limit:
        limit, of = distributed.minimum(_SHARE * _device_bytes() / 1e6), "half a device's memory"
    if size > limit:
        _LOG.info(
            "the training images are streamed: they take %.1f MB, and %s is %.1f MB",
            size,
            of,
            limit,
        )
    return size <= limit


def _device_bytes() -> float:
    """The memory of a device; those of the CPU share what the machine has left."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    if all(stats):
        return float(min(one["bytes_limit"] for one in stats))
    return memory.available_bytes() / len(stats)


def batches(
    images: UInt8[np.ndarray, "n ..."],
    indices_of: Callable[..., Int[np.ndarray, "batch ..."]],
    *,
    resident: bool,
    start: int,
    stop: int,
) -> Iterator[tuple[Array | UInt8[np.ndarray, "rows ..."], Int[np.ndarray, "batch ..."]]]:
    """The images of each step, and the places in them of the batch.

    Args:
      images: all training images.
      indices_of: `indices_of(step=...)`, the batch of a step, whose images each are a row.
      resident: see `is_resident`.
      start: the first step.
      stop: exclusive.

    Yields:
      What `parallel.parallelize` takes: all images, on every device, with the batch's indices; or
      else the images of this process' share of the batch alone, with the places that each has
      among those of its device.
    """
    if resident:
        everywhere = parallel.replicate(images)
        for step in range(start, stop):
            yield everywhere, indices_of(step=step)
        return
    if start == stop:
        return
    places = _places(indices_of(step=start).shape)
    own = stream.read_ahead(
        images,
        lambda step: parallel.share(indices_of(step=step)).reshape(-1),
        start=start,
        stop=stop,
    )
    for rows in own:
        yield rows, places


def steps_at_once(config: ml_collections.ConfigDict, *, resident: bool) -> int:
    """How many steps one call makes, as `train.steps_at_once` has it; 1 where images are streamed.

    No more than divide the steps between two log lines and between two checkpoints, after which
    the loop looks at the state. 0 leaves it to the backend: one on the CPU, where XLA runs
    convolutions in a loop ten times as slowly, elsewhere as many as there may be.
    """
    if not resident:
        return 1
    most = math.gcd(config.train.log_every, config.train.checkpoint_every)
    wanted = config.train.steps_at_once or (1 if jax.default_backend() == "cpu" else most)
    return max(n for n in range(1, min(wanted, most) + 1) if most % n == 0)


def grouped(
    batches: Iterator[tuple[Array, Int[np.ndarray, "batch ..."]]], *, at_once: int, start: int
) -> Iterator[tuple[Array, Int[np.ndarray, "batch ..."], int]]:
    """The batches of several steps together, with how many; the last of them at a multiple.

    Args:
      batches: of one step each, from `start` on.
      at_once: how many together; of one there is no axis of steps.
      start: the first step.

    Yields:
      What `steps.repeated` takes: indices with an axis of steps after that of the batch.
    """
    waiting = []
    for done, (images, indices) in enumerate(batches, start + 1):
        if at_once == 1:
            yield images, indices, 1
            continue
        waiting.append(indices)
        if done % at_once == 0:
            yield images, np.stack(waiting, axis=1), len(waiting)
            waiting.clear()
    if waiting:
        yield images, np.stack(waiting, axis=1), len(waiting)


def _places(shape: tuple[int, ...]) -> Int[np.ndarray, "batch ..."]:
    """The same for every device: its images one after the other."""
    devices = len(jax.devices())
    of_one = np.arange(math.prod(shape) // devices, dtype=np.int32).reshape(-1, *shape[1:])
    return np.concatenate([of_one] * devices)
