"""Scores over several runs: of categories, in one table; of seeds, as mean and deviation."""

import json
import pathlib
from collections.abc import Sequence

import ml_collections
import numpy as np

from vae_attn.evaluation import published, tables
from vae_attn.evaluation.calibration import variant_of
from vae_attn.evaluation.explainer import IMAGE, RECONSTRUCTION_ERROR


def write(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, names: dict[str, str]
) -> pathlib.Path:
    """Writes `workdir/table.md` from the scores of the runs in `workdir/<category>`.

    A category has two rows: the maps of `config.attention`, which is set before any
    score is seen, and the reconstruction error.

    Args:
      config: that all runs share.
      workdir: of the group.
      names: the runs' categories, with the names of their data sets.

    Returns:
      Path of the table.
    """
    own = variant_of(config.attention).name
    shown = (own.split("/"), [RECONSTRUCTION_ERROR, IMAGE])
    rows = []
    for category, name in names.items():
        metrics = json.loads((workdir / category / "evaluation" / "metrics.json").read_text())
        header, *scored = tables.table(metrics)
        rows += [[name, *row] for row in scored if row[:2] in shown]
    heading = f"{len(names)} categories: {own}, beside the reconstruction error"
    others = [
        f"{category}, {line[0].lower()}{line[1:]}"
        for category in names
        for line in published.lines(config.data.name, category)
    ]
    return tables.write_table(
        [["category", *header], *rows],
        workdir / "table.md",
        title=title(config, heading),
        published=others,
    )


def over_seeds(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of each score, and as `<score>_std` its standard deviation (of the sample, n - 1).

    Bootstrap intervals belong to a single run and are left out, and so is a score that a seed
    lacks.

    Args:
      scores: of two or more seeds.
    """
    summary = {}
    for name in scores[0]:
        values = [one[name] for one in scores if name in one]
        if len(values) == len(scores) and not name.endswith(("_low", "_high")):
            summary[name] = float(np.mean(values))
            summary[name + tables.STD] = float(np.std(values, ddof=1))
    return summary


def title(config: ml_collections.ConfigDict, name: str) -> str:
    """Heading of a table: the data set's name and, of several seeds, which."""
    if config.num_seeds == 1:
        return name
    last = config.seed + config.num_seeds - 1
    return f"{name}: mean ± standard deviation of seeds {config.seed} to {last}"
