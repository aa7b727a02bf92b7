"""A run's scores against its epochs: files, TensorBoard, and the figure for its page."""

import functools
import logging
import pathlib
from collections.abc import Sequence

import ml_collections
from matplotlib.figure import Figure

from vae_attn.experiments import checkpoint_scores, titles
from vae_attn.experiments.protocol import Experiment
from vae_attn.reporting import figures, page, tables
from vae_attn.training import seeds, telemetry
from vae_attn.workdir import newest_step

_LOG = logging.getLogger("vae_attn")
_NAME = "checkpoints"  # of the figure's file


def write(experiment: Experiment, config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Scores each seed's kept checkpoints, and writes `evaluation/checkpoints.*` and the figure.

    Args:
      experiment: what scores them.
      config: of the run.
      workdir: of the run.
    """
    found, name = [], experiment.data.name
    for one, folder in seeds.runs(config, workdir):
        found.append(
            checkpoint_scores.score(
                one,
                folder,
                functools.partial(experiment.score_checkpoint, one),
                num_images=len(experiment.data.train),
            )
        )
        _write(one, folder, found[-1], name)
    if len(found) > 1:
        _write(config, workdir, checkpoint_scores.over_seeds(found), name)


def _write(config, workdir: pathlib.Path, rows: list[checkpoint_scores.Row], name: str) -> None:
    path = checkpoint_scores.write(rows, workdir, title=titles.of_seeds(config, name))
    shown = {row.step: {key: row.scores[key] for key in row.names} for row in rows}
    telemetry.write_scores(workdir, shown)
    (workdir / "figures").mkdir(exist_ok=True)
    for stem, (figure, *_) in drawn(config, workdir).items():
        figures.save(figure, workdir / "figures" / f"{stem}.png")
    _LOG.info("scores of the checkpoints: %s", path)


def drawn(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, page.Drawn]:
    """The figure for the run's page; nothing where the checkpoints have no scores."""
    rows = checkpoint_scores.read(workdir)
    if not any(row.names for row in rows[:1]):
        return {}
    caption = "Scores on the test set of every checkpoint that was kept. The upright line is the "
    caption += "one of the lowest validation loss, which was chosen; the test set chose none."
    caption += titles.all_seeds(config, "their mean, at the steps that all of them kept")
    return {_NAME: (against_epochs(rows), "How long to train", caption)}


def shown_tables(workdir: pathlib.Path) -> list[tables.Table]:
    """The table for the run's page; none where the checkpoints were not scored."""
    rows = checkpoint_scores.read(workdir)
    if not rows:
        return []
    made = checkpoint_scores.table(rows)
    newest = newest_step(workdir)
    if newest > rows[-1].step:  # trained longer since
        note = f" The checkpoints after step {rows[-1].step}, up to {newest}, are not scored: "
        note += "--mode=evaluate --config.evaluate.checkpoint=all scores all that are there."
        made = made._replace(note=made.note + note)
    return [made]


def against_epochs(rows: Sequence[checkpoint_scores.Row]) -> Figure:
    """A panel per metric, one curve per kind of map; a score's name is `metric/map`."""
    panels: dict[str, list[str]] = {}
    for name in rows[0].names:
        panels.setdefault(name.partition("/")[0], []).append(name)
    chosen = checkpoint_scores.best(rows)
    return figures.line_panels(
        {
            metric.replace("_", " "): [_line(rows, name) for name in names]
            for metric, names in panels.items()
        },
        x_label="epoch",
        upright=chosen.epoch if chosen else None,
    )


def _line(rows: Sequence[checkpoint_scores.Row], name: str) -> figures.Line:
    points = [(row.epoch, row.scores[name]) for row in rows if name in row.scores]
    epochs, scores = zip(*points, strict=True)
    return figures.Line(epochs, scores, label=name.partition("/")[2])
