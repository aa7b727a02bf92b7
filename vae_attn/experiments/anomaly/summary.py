"""Tables of a run and over runs: of categories, side by side; of seeds, mean and deviation."""

import pathlib
from collections.abc import Mapping, Sequence

import ml_collections
import numpy as np

from vae_attn.data.dataset import AnomalyData
from vae_attn.experiments.anomaly import comparison
from vae_attn.experiments.anomaly.calibration import variant_of
from vae_attn.reporting import tables

MAIN_METRICS = ("pixel_auroc", "aupro", "image_auroc_max")


def write(
    config: ml_collections.ConfigDict,
    folder: pathlib.Path,
    scores: Mapping[str, float],
    data: AnomalyData,
) -> pathlib.Path:
    """Writes `metrics.json` and `table.md` of a run.

    Args:
      config: the run's.
      folder: created if missing.
      scores: of `anomaly.evaluate`.
      data: what was scored.

    Returns:
      Path of the table.
    """
    tables.write(scores, folder)
    return tables.write_markdown(
        of_run(config, scores, data), folder / "table.md", title=title(config, data.name)
    )


def of_run(
    config: ml_collections.ConfigDict, scores: Mapping[str, float], data: AnomalyData
) -> list[tables.Table]:
    """The tables of a run: beside others' numbers, where there are any, and all scores."""
    compared = comparison.compare(
        config, {config.data.category: scores}, synthetic=is_synthetic(data.name)
    )
    return [*compared, tables.scores(scores, note=data.scores_note)]


def write_group(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, names: Mapping[str, str]
) -> pathlib.Path:
    """Writes `workdir/table.md`, of `of_group`; returns its path."""
    made = of_group(config, workdir, names)
    return tables.write_markdown(made, workdir / "table.md", title=group_title(config, names))


def of_group(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, names: Mapping[str, str]
) -> list[tables.Table]:
    """The tables over the runs of a group: beside others' numbers, and more scores of the same.

    Args:
      config: that all runs share.
      workdir: of the group; the runs are in `workdir/<category>`, and those without scores are
        left out.
      names: the runs' categories, with the names of their data sets.
    """
    found = {category: tables.read(workdir / category / "evaluation") for category in names}
    runs = {category: metrics for category, metrics in found.items() if metrics}
    if not runs:
        return []
    synthetic = any(map(is_synthetic, names.values()))
    shown = [name.split("/") for name in comparison.compared(config)]
    rows = []
    for category, scores in runs.items():
        table = tables.scores(scores, note="")
        header, *scored = table.rows
        rows += [[names[category], *row] for row in scored if row[:2] in shown]
    every = table._replace(rows=[["category", *header], *rows])
    return [*comparison.compare(config, runs, synthetic=synthetic), every]


def group_title(config: ml_collections.ConfigDict, names: Mapping[str, str]) -> str:
    """Heading over a group's tables; it says "synthetic" where the names do."""
    suffix = " (synthetic)" if any(map(is_synthetic, names.values())) else ""
    return title(config, f"{len(names)} categories{suffix}")


def main_scores(config: ml_collections.ConfigDict, scores: Mapping[str, float]) -> dict[str, float]:
    """The few scores by which runs and checkpoints are compared, as `metric/style/layer`.

    They are all better where higher: of the run's own maps, the paper's and the reconstruction
    error (`comparison.compared`).
    """
    names = dict.fromkeys((variant_of(config.attention).name, *comparison.compared(config)))
    return {
        f"{metric}/{name}": scores[f"{name}/{metric}"]
        for metric in MAIN_METRICS
        for name in names
        if f"{name}/{metric}" in scores
    }


def is_synthetic(name: str) -> bool:
    """Whether a data set's name says that its pictures are drawn (`layout.data_name`)."""
    return name.endswith("(synthetic)")


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
