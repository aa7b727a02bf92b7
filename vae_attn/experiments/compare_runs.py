"""Compares runs: one table and one page, with what differs between them and what came of it."""

import os
import pathlib
import urllib.parse
from collections.abc import Sequence

from matplotlib.figure import Figure

from vae_attn.errors import UserError
from vae_attn.experiments import scores as scores_lib
from vae_attn.experiments.finished_runs import SCORED_ON, SEED_KEYS, Run, find, over_seeds
from vae_attn.reporting import figures, page, tables
from vae_attn.workdir import CONFIG

_CURVES = {"loss": "training loss", "validation_loss": "validation loss"}
_BEST = " (best)"
_NOT_EVALUATED = "not evaluated"


def write(patterns: str, workdir: pathlib.Path) -> pathlib.Path:
    """Writes `report.md` and `index.html`, and the figure in `figures`.

    Args:
      patterns: of the runs' folders; see `finished_runs.find`.
      workdir: of the report, not of a run.

    Returns:
      Path of the page.

    Raises:
      UserError: if no run is found, the workdir holds one, or it cannot be written.
    """
    try:
        return _write(patterns, workdir)
    except OSError as error:
        raise UserError(
            f"--workdir={workdir} or the runs cannot be read or written ({error}): check the "
            "disk's space and the permissions."
        ) from error


def _write(patterns: str, workdir: pathlib.Path) -> pathlib.Path:
    if (workdir / CONFIG).exists():
        raise UserError(f"--workdir={workdir} is a run: give another folder for the report.")
    runs = find(patterns, leave_out=workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    title = f"{len(runs)} runs" if len(runs) > 1 else "1 run"
    made = compared(runs)
    tables.write_markdown(made, workdir / "report.md", title=title)
    drawn = {}
    if any(run.curves.keys() & _CURVES.keys() for run in runs):
        caption = "Losses of the training steps (means between two points) and of the validation "
        caption += "images, of all runs; they compare where the data and train.beta are the same."
        drawn["training"] = (overlaid(runs), "Training", caption)
    about = "Runs side by side: the keys of their configs that differ, and their scores."
    missing = [run.name for run in runs if not run.scores]
    left_out = f" Not evaluated: {', '.join(missing)}." if missing else ""
    left_out += "".join(f" No scores of {run.name}: {run.missing}." for run in runs if run.missing)
    return page.write(
        None,
        workdir,
        title=title,
        summary=f"{about}{left_out}",
        drawn=drawn,
        tables=made,
        links=[
            (name, urllib.parse.quote(os.path.relpath(path, workdir).replace(os.sep, "/")))
            for name, path in ((run.name, run.page) for run in runs)
            if path is not None
        ],
        file="index.html",
    )


def compared(runs: Sequence[Run]) -> list[tables.Table]:
    """The table of all runs, and that of means over seeds where runs differ by their seed only."""
    keys = differing(runs)
    scores = _marked([run.scored_on for run in runs], [run.scores for run in runs])
    names = list(dict.fromkeys(name for run in runs for name in run.scores))
    rows = [["run", *keys, *names]]
    for run, cells in zip(runs, scores, strict=True):
        shown = [cells.get(name, "") for name in names] if run.scores else _unscored(names)
        rows.append([run.name, *(_shown(run.keys[key]) for key in keys), *shown])
    note = "Scores on the test set, all better where higher; best: of the runs on the same data. "
    scored = [run for run in runs if run.scores]
    if len({run.scored_on for run in scored}) > len({run.data for run in scored}):
        note += f"Runs that differ in {' or '.join(SCORED_ON)} are not compared with each other. "
    note += "Keys of the configs that are the same in all runs are left out."
    made = [tables.Table("Runs", rows, note)]
    if joined := over_seeds(runs):
        keys = [key for key in keys if key not in SEED_KEYS]
        scores = _marked([run.scored_on for _, run, _ in joined], [found for *_, found in joined])
        rows = [["seeds", *keys, *names]]
        for (seeds, run, _), cells in zip(joined, scores, strict=True):
            values = (_shown(run.keys[key]) for key in keys)
            rows.append([seeds, *values, *(cells.get(name, "") for name in names)])
        note = "Mean ± standard deviation (of the sample, n - 1) of runs that differ by their seed."
        made.append(tables.Table("Over seeds", rows, note))
    return made


def differing(runs: Sequence[Run]) -> list[str]:
    """The keys that not all runs have the same value of, in the config's order."""
    keys = dict.fromkeys(key for run in runs for key in run.keys)
    return [key for key in keys if len({_shown(run.keys.get(key)) for run in runs}) > 1]


def overlaid(runs: Sequence[Run]) -> Figure:
    """The losses of all runs against their steps, a colour per run."""
    panels = {
        title: [
            # Ten colours; the runs after those have other strokes.
            figures.Line(
                *run.curves[name],
                label=run.name,
                stroke=("-", "--", ":", "-.")[number // 10 % 4],
                colour=f"C{number % 10}",
            )
            for number, run in enumerate(runs)
            if name in run.curves
        ]
        for name, title in _CURVES.items()
    }
    return figures.line_panels(
        panels, x_label="step", y_label="nats per image", size=(4.5, 4.0), legend_beside=True
    )


def _marked(on: Sequence[tuple], scores: Sequence[dict[str, float]]) -> list[dict[str, str]]:
    """Cells of the scores; the best of those scored on the same is marked, if there are others."""
    marked = []
    for own, found in zip(on, scores, strict=True):
        cells = {}
        for name in found:
            same = [
                other[name]
                for of, other in zip(on, scores, strict=True)
                if of == own and name in other
            ]
            best = len(same) > 1 and found[name] == max(same)
            cells[name] = scores_lib.cell(found, name) + (_BEST if best else "")
        marked.append(cells)
    return marked


def _unscored(names: Sequence[str]) -> list[str]:
    return [_NOT_EVALUATED, *("" for _ in names[1:])] if names else []


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
