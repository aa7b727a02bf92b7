"""One table over the runs of several categories."""

import json
import pathlib

import ml_collections

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
    title = f"{len(names)} categories: {own}, beside the reconstruction error"
    others = [
        f"{category}, {line[0].lower()}{line[1:]}"
        for category in names
        for line in published.lines(config.data.name, category)
    ]
    return tables.write_table(
        [["category", *header], *rows], workdir / "table.md", title=title, published=others
    )
