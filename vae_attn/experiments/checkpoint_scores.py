"""Scores of every checkpoint that a run kept: how long is it worth to train?"""

import json
import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import Any as PyTree
from typing import NamedTuple

import ml_collections

from vae_attn import whole_files
from vae_attn.experiments import scores as scores_lib
from vae_attn.reporting import tables
from vae_attn.training import loop

_LOG = logging.getLogger("vae_attn")
_FILE = pathlib.Path("evaluation", "checkpoints.json")


class Row(NamedTuple):
    """One checkpoint.

    Attributes:
      step: at which it was saved.
      epoch: how often training had seen every image by then.
      validation_loss: None where none was measured, since a signal stopped the run there.
      scores: by name, all of them better where higher; of several seeds means, with deviations
        as in `scores_lib.over_seeds`.
    """

    step: int
    epoch: float
    validation_loss: float | None
    scores: dict[str, float]

    @property
    def names(self) -> list[str]:
        """Of the scores, without their deviations."""
        return [name for name in self.scores if not name.endswith(scores_lib.STD)]


def score(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    score_of: Callable[[PyTree], dict[str, float]],
    *,
    num_images: int,
) -> list[Row]:
    """Scores one seed's kept checkpoints, ascending; broken ones are named and passed over.

    Args:
      config: the seed's.
      workdir: the seed's.
      score_of: from the VAE's variables to scores, all of them better where higher.
      num_images: that it was trained on.
    """
    rows = []
    epoch_images = config.data.images_per_epoch or num_images
    for step, loss, restored in loop.restore_each(config, workdir):
        _LOG.info("scoring the checkpoint of step %d", step)
        epoch = step * config.train.batch_size / epoch_images
        rows.append(Row(step, round(epoch, 3), loss, score_of(restored.variables)))
    return rows


def over_seeds(seeds: Sequence[Sequence[Row]]) -> list[Row]:
    """Means over several seeds, at the steps whose checkpoints all of them kept."""
    by_step = [{row.step: row for row in rows} for rows in seeds]
    joined = []
    for step in sorted(set.intersection(*map(set, by_step))):
        rows = [of_seed[step] for of_seed in by_step]
        losses = [row.validation_loss for row in rows if row.validation_loss is not None]
        loss = sum(losses) / len(rows) if len(losses) == len(rows) else None
        scores = scores_lib.over_seeds([row.scores for row in rows])
        joined.append(Row(step, rows[0].epoch, loss, scores))
    return joined


def best(rows: Sequence[Row]) -> Row | None:
    """That of the lowest validation loss, the first of equals; None where none was measured."""
    measured = [row for row in rows if row.validation_loss is not None]
    return min(measured, key=lambda row: row.validation_loss, default=None)


def write(rows: Sequence[Row], workdir: pathlib.Path, *, title: str) -> pathlib.Path:
    """Writes `evaluation/checkpoints.json` and `.md`; returns the latter's path."""
    path = workdir / _FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    chosen = best(rows)
    content = {
        "best_by_validation_loss": chosen.step if chosen else None,
        "best_by_test_score": {name: _best_by(name, rows).step for name in _names(rows)},
        "checkpoints": [row._asdict() for row in rows],
    }
    with whole_files.writing(path) as temporary:
        temporary.write_text(
            json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8"
        )
    return tables.write_markdown([table(rows)], path.with_suffix(".md"), title=title)


def read(workdir: pathlib.Path) -> list[Row]:
    """The rows of a run; none where its checkpoints were not scored, or the file is broken."""
    try:
        content = json.loads((workdir / _FILE).read_text(encoding="utf-8"))
        return [Row(**row) for row in content["checkpoints"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def table(rows: Sequence[Row]) -> tables.Table:
    """One row per checkpoint; the one that may be chosen is marked."""
    names, chosen = _names(rows), best(rows)
    cells = [["step", "epoch", "validation loss", *names, ""]]
    for row in rows:
        loss = "" if row.validation_loss is None else f"{row.validation_loss:.2f}"
        mark = "best by validation loss" if chosen and row.step == chosen.step else ""
        scores = (scores_lib.cell(row.scores, name) for name in names)
        cells.append([str(row.step), f"{row.epoch:g}", loss, *scores, mark])
    best_by_test = (f"{name} at step {_best_by(name, rows).step}" for name in names)
    note = "Choose by the validation loss only: it knows normal images alone."
    if names:
        note += (
            f" Best by test score would be {', '.join(best_by_test)}, but the test score must not "
        )
        note += "select a checkpoint."
    return tables.Table("Scores of the kept checkpoints", cells, note)


def _names(rows: Sequence[Row]) -> list[str]:
    """Of the scores that all checkpoints have."""
    if not rows:
        return []
    return [name for name in rows[0].names if all(name in row.scores for row in rows)]


def _best_by(name: str, rows: Sequence[Row]) -> Row:
    return max(rows, key=lambda row: row.scores[name])
