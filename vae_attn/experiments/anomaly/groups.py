"""Several categories in one command: their runs, and the tables and the page over all of them."""

import logging
import pathlib
import urllib.parse
from collections.abc import Mapping, Sequence

import ml_collections
import numpy as np

from vae_attn import workdir_scores
from vae_attn.experiments import titles
from vae_attn.experiments.anomaly import comparison, map_figures, summary
from vae_attn.experiments.anomaly import report as report_lib
from vae_attn.reporting import page, tables

_LOG = logging.getLogger("vae_attn")


def report(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, names: Mapping[str, str], mode: str
) -> pathlib.Path:
    """Writes `table.md` and `report/index.html` from the runs in `workdir/<category>`.

    Args:
      config: that all runs share.
      workdir: of the group.
      names: the runs' categories, with the names of their data sets.
      mode: `evaluate` writes the table alone, `explain` the page alone, `all` both.

    Returns:
      Path of the page, or else of the table.
    """
    found = {category: workdir_scores.of_run(workdir / category) for category in names}
    missing = [one.missing for one in found.values() if one.missing]
    for sentence in missing:
        _LOG.warning("left out of the table: %s", sentence)
    made, path = _tables(config, names, found), workdir / "table.md"
    title = titles.of_seeds(config, f"{len(names)} categories")
    if mode in ("all", "evaluate"):
        tables.write_markdown(made, path, title=title)
    if mode in ("all", "explain"):
        path = _write_page(config, workdir, names, made, title, missing)
    return path


def _tables(
    config: ml_collections.ConfigDict,
    names: Mapping[str, str],
    found: Mapping[str, workdir_scores.Found],
) -> list[tables.Table]:
    """Beside others' numbers, and more scores of the same; runs without scores are left out."""
    runs = {category: one.scores for category, one in found.items() if one.scores}
    if not runs:
        return []
    shown = [name.split("/") for name in comparison.beside(config)]
    made = {category: summary.scores_table(scores) for category, scores in runs.items()}
    made = {category: table for category, table in made.items() if table.rows}
    if not made:
        return comparison.compare(config, runs)
    rows = []
    for category, table in made.items():
        rows += [[names[category], *row] for row in table.rows[1:] if row[:2] in shown]
    every = table._replace(rows=[["category", *table.rows[0]], *rows])
    return [*comparison.compare(config, runs), every]


def _write_page(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    names: Mapping[str, str],
    made: list[tables.Table],
    title: str,
    missing: Sequence[str],
) -> pathlib.Path:
    """The page with a sheet of random defects of each category."""
    shown = {}
    for category, name in names.items():
        path = workdir / category / report_lib.EXAMPLES
        if path.exists():
            with np.load(path, allow_pickle=False) as file:
                shown[name] = dict(file)
    return page.write(
        config,
        workdir,
        title=title,
        summary="A variational autoencoder for each category, learned from its normal images "
        f"alone, with a page of its own in the folder of its name: {', '.join(names)}."
        + "".join(f" No scores: {sentence}." for sentence in missing),
        drawn={"defects": map_figures.sheet(config, shown)} if shown else {},
        tables=made,
        links=[
            (name, f"../{urllib.parse.quote(category)}/report/index.html")
            for category, name in names.items()
            if (workdir / category / "report" / "index.html").exists()
        ],
    )
