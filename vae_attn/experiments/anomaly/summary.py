"""The tables of a run on normal images, and the few scores by which runs are compared."""

from collections.abc import Mapping

import ml_collections

from vae_attn.data.dataset import AnomalyData
from vae_attn.experiments import faithful
from vae_attn.experiments import scores as scores_lib
from vae_attn.experiments.anomaly import comparison
from vae_attn.experiments.anomaly.calibration import variant_of
from vae_attn.experiments.anomaly.scores import MAP_SCORES
from vae_attn.reporting.tables import Table

MAIN_SCORES = ("pixel_auroc", "aupro", "image_auroc_max")


def of_run(
    config: ml_collections.ConfigDict, scores: Mapping[str, float], data: AnomalyData
) -> list[Table]:
    """The tables of a run: beside others' numbers, where there are any, and all scores.

    Where an image is abnormal and whether a map is true of its latent are tables of their own.
    """
    compared = comparison.compare(config, {config.data.category: scores})
    where = scores_table(scores, note=data.scores_note)
    return [*compared, where, *faithful.table(scores)]


def scores_table(scores: Mapping[str, float], *, note: str = "") -> Table:
    """The table of one run's scores: a row per style and layer, in the order of `scores`.

    Args:
      scores: of `evaluation.evaluate`.
      note: `AnomalyData.scores_note`.
    """
    columns = [row for row in MAP_SCORES if row.heading]
    cells = [["style", "layer", *(column.heading for column in columns)]]
    for name in dict.fromkeys(key.rsplit("/", 1)[0] for key in faithful.others(scores)):
        row = (scores_lib.cell(scores, f"{name}/{c.name}", interval=True) for c in columns)
        cells.append([*name.split("/"), *row])
    notes = [column.note for column in columns if column.note]
    return Table("Where is the defect?", cells, " ".join([*notes, note]).strip())


def main_scores(config: ml_collections.ConfigDict, scores: Mapping[str, float]) -> dict[str, float]:
    """The few scores by which runs and checkpoints are compared, as `score/style/layer`.

    They are all better where higher: of the run's own maps, the paper's and the reconstruction
    error (`comparison.compared`).
    """
    names = dict.fromkeys((variant_of(config.attention).name, *comparison.compared(config)))
    return {
        f"{score}/{name}": scores[f"{name}/{score}"]
        for score in MAIN_SCORES
        for name in names
        if f"{name}/{score}" in scores
    }
