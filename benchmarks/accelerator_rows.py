"""What the cases of `benchmarks.accelerator` measure with, and the rows that they give."""

import statistics
import time
from collections.abc import Callable

import jax

from benchmarks.accelerator import Row

COPY = "copy, read and written"
MEASURED_OF_CHIP: dict[str, float] = {}  # by the case `chip`, in this run

_SECONDS = 1.0  # that the calls of one measurement take at least
_PEAK = [0.0]  # MiB of the device's memory, of all that this process has measured


def seconds(call: Callable[[], object], *, least: float = _SECONDS) -> float:
    """Median seconds of a call that waits for its result, without the first two."""
    call(), call()
    found: list[float] = []
    while not found or (sum(found) < least and len(found) < 1000):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def row(side: str, value: float, unit: str, note: str = "") -> Row:
    """What was measured, with the peak of memory where this side has raised that of its process."""
    stats = jax.local_devices()[0].memory_stats() or {}  # none on the CPU
    peak = stats.get("peak_bytes_in_use", 0) / 2**20
    raised, _PEAK[0] = peak > _PEAK[0], max(peak, _PEAK[0])
    return {
        "side": side,
        "value": value,
        "unit": unit,
        "peak_mib": peak if raised else 0,
        "note": note,
    }


def share(cost: dict[str, float], dtype: str, milliseconds: float) -> str:
    """How much of what the chip did in a large product and a large copy a step does."""
    shares = []
    for what, side, key, unit in (
        ("the product's arithmetic", f"product, {dtype}", "flops", 1e12),
        ("the copy's bytes", COPY, "bytes accessed", 1e9),
    ):
        if side in MEASURED_OF_CHIP:
            rate = cost.get(key, 0) / (milliseconds / 1e3) / unit
            shares.append(f"{rate / MEASURED_OF_CHIP[side]:.1%} of {what}")
    return ", ".join(shares)
