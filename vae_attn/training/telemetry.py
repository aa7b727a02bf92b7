"""What a run tells while it trains: metrics.jsonl, TensorBoard events, a bar or log lines."""

import json
import logging
import pathlib
import sys
import time
from collections.abc import Mapping

import numpy as np
import tensorboardX
from jaxtyping import UInt8
from tqdm import tqdm

from vae_attn.training import distributed

_LOG = logging.getLogger("vae_attn")
_EVENTS = "tensorboard"  # in the workdir
_SCORES = ".scores"  # ends the name of the events file that has the scores


class Telemetry:
    """Writes a run's metrics; of a resumed run, what lay behind the checkpoint is dropped first.

    Of several processes only the main one writes.
    """

    def __init__(self, workdir: pathlib.Path, *, start_step: int, total_steps: int) -> None:
        self._writes = distributed.is_main()
        if not self._writes:
            return
        self._path = workdir / "metrics.jsonl"
        kept = [line for line in _lines(self._path) if json.loads(line)["step"] <= start_step]
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(line + "\n" for line in kept))
        temporary.replace(self._path)
        # Named by the step too: of the same second it would overwrite the file of the run before.
        self._events = tensorboardX.SummaryWriter(
            str(workdir / _EVENTS), purge_step=start_step + 1, filename_suffix=f".{start_step}"
        )
        self._total = total_steps
        self._since, self._first = time.monotonic(), start_step
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total_steps, initial=start_step, unit="step", dynamic_ncols=True)

    def write(
        self,
        step: int,
        metrics: dict[str, float],
        pictures: Mapping[str, UInt8[np.ndarray, "_height _width 3"]] | None = None,
    ) -> None:
        """Records the metrics of a step everywhere, and its pictures for TensorBoard."""
        if not self._writes:
            return
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
        for name, value in metrics.items():
            self._events.add_scalar(name, value, step)
        for name, picture in (pictures or {}).items():
            self._events.add_image(name, picture, step, dataformats="HWC")
        # Of several seeds the means alone: the single ones have a slash in their names.
        shown = " ".join(f"{k} {value:.4g}" for k, value in metrics.items() if "/" not in k)
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            self._bar.set_postfix_str(shown)
            return
        rate = (step - self._first) / (time.monotonic() - self._since)
        _LOG.info(
            "step %d/%d: %s (%.2f steps/s, %.0f s to go)",
            *(step, self._total, shown, rate, (self._total - step) / rate),
        )

    def close(self) -> None:
        """Flushes everything."""
        if not self._writes:
            return
        self._events.close()
        if self._bar is not None:
            self._bar.close()


def write_scores(workdir: pathlib.Path, scores: Mapping[int, Mapping[str, float]]) -> None:
    """Shows scores in TensorBoard, `score/<name>`, in the place of those of an earlier evaluation.

    Args:
      workdir: of the run.
      scores: by the step of the checkpoint that has them.
    """
    for old in (workdir / _EVENTS).glob(f"*{_SCORES}"):
        old.unlink()
    events = tensorboardX.SummaryWriter(str(workdir / _EVENTS), filename_suffix=_SCORES)
    for step, of_step in scores.items():
        for name, value in of_step.items():
            events.add_scalar(f"score/{name}", value, step)
    events.close()


def read_metrics(workdir: pathlib.Path) -> dict[str, tuple[list[int], list[float]]]:
    """The curves of a run: for every metric its steps and values."""
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for line in _lines(workdir / "metrics.jsonl"):
        row = json.loads(line)
        step = row.pop("step")
        for name, value in row.items():
            steps, values = curves.setdefault(name, ([], []))
            steps.append(step)
            values.append(value)
    return curves


def _lines(path: pathlib.Path) -> list[str]:
    """The whole lines of a file that may be missing, or end in the middle of a line."""
    if not path.exists():
        return []
    return [line[:-1] for line in path.read_text().splitlines(keepends=True) if line[-1] == "\n"]
