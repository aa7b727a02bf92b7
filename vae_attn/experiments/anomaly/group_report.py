"""The page of a group of categories: their tables, and a sheet of random defects of each."""

import pathlib
import urllib.parse
from collections.abc import Mapping

import ml_collections
import numpy as np

from vae_attn.experiments.anomaly import map_figures, report, summary
from vae_attn.reporting import page


def write(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, names: Mapping[str, str]
) -> pathlib.Path:
    """Writes `figures/defects.png` and `report/index.html` from the runs in `workdir/<category>`.

    Args:
      config: that all runs share.
      workdir: of the group.
      names: the runs' categories, with the names of their data sets.

    Returns:
      Path of the page.
    """
    shown = {}
    for category, name in names.items():
        path = workdir / category / report.EXAMPLES
        if path.exists():
            with np.load(path, allow_pickle=False) as file:
                shown[name] = dict(file)
    return page.write(
        config,
        workdir,
        title=summary.group_title(config, names),
        summary="A variational autoencoder for each category, learned from its normal images "
        f"alone, with a page of its own in the folder of its name: {', '.join(names)}.",
        drawn={"defects": map_figures.sheet(config, shown)} if shown else {},
        tables=summary.of_group(config, workdir, names),
        links=[
            (name, f"../{urllib.parse.quote(category)}/report/index.html")
            for category, name in names.items()
            if (workdir / category / "report" / "index.html").exists()
        ],
    )
