"""What a run reports while it trains: metrics.jsonl, TensorBoard events, a bar or log lines."""

import json
import logging
import pathlib
import sys
import time
from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from vae_attn import whole_files
from vae_attn.errors import UserError
from vae_attn.training import distributed
from vae_attn.training.events import Events, append

_LOG = logging.getLogger("vae_attn")
_EVENTS = "tensorboard"  # in the workdir
_SCORES = ".scores"  # ends the name of the events file that has the scores


class Telemetry:
    """Writes a run's metrics; of a resumed run, what came after the checkpoint is dropped first.

    Of several processes only the main one writes.
    """

    def __init__(self, workdir: pathlib.Path, *, start_step: int, total_steps: int) -> None:
        self._writes = distributed.is_main()
        if not self._writes:
            return
        self._path = workdir / "metrics.jsonl"
        kept = [line for line, row in _rows(self._path) if row["step"] <= start_step]
        with whole_files.writing(self._path) as temporary:
            temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        # Named by the step too: of the same second it would overwrite the file of the run before.
        self._events = Events(workdir / _EVENTS, ending=f".{start_step}")
        self._events.start(start_step + 1)
        self._total = total_steps
        if start_step < total_steps:
            _LOG.info(
                "compiling the training step, once per start: about ten seconds for a small "
                "model, longer for a large one"
            )
        self._since, self._first = time.monotonic(), start_step
        self._compiled = False
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total_steps, initial=start_step, unit="step", dynamic_ncols=True)

    @property
    def shows_pictures(self) -> bool:
        """Whether pictures given to `write` are kept."""
        return self._writes and self._events.written

    def write(
        self,
        step: int,
        metrics: dict[str, float],
        pictures: Mapping[str, UInt8[np.ndarray, "_height _width 3"]] | None = None,
        *,
        at: float | None = None,
    ) -> None:
        """Records the metrics of a step everywhere, and its pictures for TensorBoard.

        Args:
          step: up to which the training has come.
          metrics: by name.
          pictures: likewise.
          at: when it came there, as `time.monotonic` has it; None: now.
        """
        if not self._writes:
            return
        append(self._path, json.dumps({"step": step, **metrics}).encode() + b"\n")
        self._events.write(step, metrics, pictures or {})
        # Of several seeds the means alone: the single ones have a slash in their names.
        shown = " ".join(f"{k} {value:.4g}" for k, value in metrics.items() if "/" not in k)
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            self._bar.set_postfix_str(shown)
            return
        now = time.monotonic() if at is None else at
        rate = (step - self._first) / max(now - self._since, 1e-9)
        _LOG.info(
            "step %d/%d: %s (%.2f steps/s, %.0f s to go)",
            *(step, self._total, shown, rate, (self._total - step) / rate),
        )
        if not self._compiled:  # from here on the rate is that of training alone
            self._compiled, self._since, self._first = True, now, step

    def close(self) -> None:
        """Ends the bar."""
        if self._writes and self._bar is not None:
            self._bar.close()


def write_scores(workdir: pathlib.Path, scores: Mapping[int, Mapping[str, float]]) -> None:
    """Shows scores in TensorBoard, `score/<name>`, in place of those of an earlier evaluation.

    Args:
      workdir: of the run.
      scores: by the step of the checkpoint that has them.
    """
    for old in (workdir / _EVENTS).glob(f"*{_SCORES}"):
        old.unlink()
    events = Events(workdir / _EVENTS, ending=_SCORES)
    for step, of_step in scores.items():
        events.write(step, {f"score/{name}": value for name, value in of_step.items()}, {})


def read_metrics(workdir: pathlib.Path) -> dict[str, tuple[list[int], list[float]]]:
    """The curves of a run: for every metric its steps and values.

    Raises:
      UserError: if `metrics.jsonl` is damaged; it names the line.
    """
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for _, row in _rows(workdir / "metrics.jsonl"):
        step = row.pop("step")
        for name, value in row.items():
            steps, values = curves.setdefault(name, ([], []))
            steps.append(step)
            values.append(float(value))
    return curves


def _rows(path: pathlib.Path) -> list[tuple[str, dict]]:
    """The whole lines of a file that may be missing, or end in the middle of one; and parsed."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): check its permissions, or move it away."
        ) from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            text = line.decode()
            row = json.loads(text)
            whole = type(row["step"]) is int and 0 <= row["step"] < 2**63
            whole &= _are_numbers(row.values())
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            whole = False
        if not whole:
            raise UserError(
                f"{path}, line {number}: is not a step with its metrics; remove the line, or move "
                "the file away."
            )
        rows.append((text, row))
    return rows


def _are_numbers(values: Iterable[object]) -> bool:
    """Whether all are what `json` makes of numbers, NaN and the infinities included."""
    return all(type(one) is float or (type(one) is int and abs(one) < 2**63) for one in values)
