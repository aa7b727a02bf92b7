"""The report's Tables 3 and 4 made again: our numbers beside its own and Liu et al.'s."""

from collections.abc import Mapping
from typing import NamedTuple

import ml_collections
import numpy as np

from vae_attn.experiments import scores as scores_lib
from vae_attn.experiments.anomaly import published, simple_baselines
from vae_attn.experiments.anomaly.calibration import Variant, fused_layers, variant_of
from vae_attn.experiments.anomaly.scores import MAP_SCORES
from vae_attn.experiments.map_functions import IMAGE, RECONSTRUCTION_ERROR
from vae_attn.reporting import tables

Scores = Mapping[str, float]

_REFERENCES = {row.name: row.references for row in MAP_SCORES}

_BASELINE = f"{RECONSTRUCTION_ERROR}/{IMAGE}"
_PRECISION = ("average_precision", "best_f1_test")
_PRECISION_NOTE = (
    "Average precision / F1 of pixels, at the threshold that is best on the test set. "
)


def compare(config: ml_collections.ConfigDict, runs: Mapping[str, Scores]) -> list[tables.Table]:
    """Table 3 for UCSD Ped1, Table 4 and the share of missed defects for MVTec-AD; else nothing.

    Beside each stand average precision and best F1, as the AUROC is near 1 for many maps.

    Args:
      config: that the runs share.
      runs: scores of `evaluation.evaluate` by `data.category`, which Ped1 has only "" of.

    Returns:
      The tables of which we have any number.
    """
    made = [make(config, runs) for make in _TABLES.get(config.data.name, ())]
    return [table for table in made if table is not None]


def _table_3(config: ml_collections.ConfigDict, runs: Mapping[str, Scores]) -> tables.Table | None:
    """Pixel AUROC by layer, one row per method."""
    rows = _by_layer(config, runs, ("pixel_auroc",))
    if len(rows) < 2:
        return None
    for source in published.IN_TABLE_3:
        values = _REFERENCES["pixel_auroc"][source].values()
        rows.append([source, *(f"{value:.2f}" for value in values), "", ""])
    note = f"Pixel AUROC. {_averaged(config)}"
    note += f"Report: {published.REPORT}. Liu et al.: {published.LIU}."
    return tables.Table("Table 3 of the report, made again", rows, note)


def _precision_by_layer(
    config: ml_collections.ConfigDict, runs: Mapping[str, Scores]
) -> tables.Table | None:
    """Average precision and best F1 by layer, one row per method."""
    rows = _by_layer(config, runs, _PRECISION)
    note = f"{_PRECISION_NOTE}{_averaged(config)}".strip()
    return tables.Table("Average precision by layer", rows, note) if len(rows) > 1 else None


def _averaged(config: ml_collections.ConfigDict) -> str:
    return f"Averaged: the mean of the maps of {', '.join(fused_layers(config))}. "


def _by_layer(
    config: ml_collections.ConfigDict, runs: Mapping[str, Scores], metrics: tuple[str, ...]
) -> list[list[str]]:
    """A header, and a row for each method that the only run has any of the scores of."""
    (scores,) = runs.values()
    layers, own = (
        tuple(_REFERENCES["pixel_auroc"][published.IN_TABLE_3[0]]),
        variant_of(config.attention),
    )
    header = ["", *layers, "averaged", "no layer"]

    def row(heading: str, names: Mapping[str, str]) -> list[str]:
        cells = []
        for column in header[1:]:
            keys = [f"{names.get(column, '')}/{metric}" for metric in metrics]
            cells.append(" / ".join(scores_lib.cell(scores, key) for key in keys if key in scores))
        return [heading, *cells]

    averaged = fused_layers(config)
    rows = []
    for style in dict.fromkeys(("paper", own.style)):
        names = {layer: Variant(style, (layer,)).name for layer in layers}
        if len(averaged) > 1:
            names["averaged"] = Variant(style, averaged).name
        rows.append(row(f"ours, {style}", names))
    if own.calibration != "none":
        column = own.layers[0] if len(own.layers) == 1 else "averaged"
        rows.append(row(f"ours, {own.name}", {column: own.name}))
    rows.append(row("ours, reconstruction error", {"no layer": _BASELINE}))
    for name in simple_baselines.NAMES:
        rows.append(row(_heading(name), {"no layer": name}))
    return [header, *(row for row in rows if any(row[1:]))]


class _Column(NamedTuple):
    """Scores by category: as numbers, for the mean, and as they are shown."""

    heading: str
    values: dict[str, tuple[float, ...]]
    cells: dict[str, str]
    form: str


def _table_4(config: ml_collections.ConfigDict, runs: Mapping[str, Scores]) -> tables.Table | None:
    """Pixel AUROC / IoU at the threshold that is best on the test set, one row per category."""
    metrics = ("pixel_auroc", "best_iou_test")
    columns = _ours(config, runs, metrics, "{:.3f} / {:.3f}")
    if not columns:
        return None
    note = "Pixel AUROC / IoU at the threshold that is best on the test set, as in the paper. "
    note += _which(config)
    report, liu = published.IN_TABLE_4
    for heading, recalled, form in (
        (report, {}, "{:.2f} / {:.3f}"),
        (liu, _theirs(metrics, published.RECALLED), "{:.2f} / {:.2f}"),
    ):
        pairs = _theirs(metrics, heading) | recalled
        values = {c: pair for c, pair in pairs.items() if c in runs}
        cells = {
            c: form.format(*pair) + (" (recalled)" if c in recalled else "")
            for c, pair in values.items()
        }
        columns.append(_Column(heading, values, cells, form))
    note += (
        f"Report: {published.REPORT}. Liu et al.: {published.LIU}, as the report's Table 4 cites "
        "it; recalled: from memory of the paper, without a source at hand."
    )
    return tables.Table("Table 4 of the report, made again", _rows(columns, runs), note)


def _precision(
    config: ml_collections.ConfigDict, runs: Mapping[str, Scores]
) -> tables.Table | None:
    """Average precision / best F1 of pixels, one row per category."""
    columns = _ours(config, runs, _PRECISION, "{:.3f} / {:.3f}")
    if not columns:
        return None
    note = f"{_PRECISION_NOTE}{_which(config)}".strip()
    return tables.Table("Average precision", _rows(columns, runs), note)


def _missed(config: ml_collections.ConfigDict, runs: Mapping[str, Scores]) -> tables.Table | None:
    """Share of the maps that miss the defect, one row per category."""
    columns = _ours(config, runs, ("share_missed",), "{:.3f}")
    if not columns:
        return None
    note = f"A map misses where its peak lies outside of the defect. {_which(config)}"
    rows = _rows(columns, runs)
    rows = [[*row, ""] for row in rows]
    ((source, values),) = _REFERENCES["share_missed"].items()
    ((categories, value),) = values.items()
    rows[0][-1], rows[-1][-1] = f"{source}, over {categories}", value
    note += f"Report: {published.REPORT}, {published.MISSED_REPORT_HOW}."
    return tables.Table("Share of maps that miss the defect", rows, note.strip())


def _theirs(metrics: tuple[str, ...], source: str) -> dict[str, tuple[float, ...]]:
    """Scores of others by category."""
    each = [_REFERENCES[metric][source] for metric in metrics]
    return {category: tuple(one[category] for one in each) for category in each[0]}


def _ours(
    config: ml_collections.ConfigDict,
    runs: Mapping[str, Scores],
    metrics: tuple[str, ...],
    form: str,
) -> list[_Column]:
    """The paper's maps, those of `config.attention` and the reconstruction error, if scored."""
    columns = []
    for name in beside(config):
        keys = [f"{name}/{metric}" for metric in metrics]
        have = {c: scores for c, scores in runs.items() if all(key in scores for key in keys)}
        values = {c: tuple(scores[key] for key in keys) for c, scores in have.items()}
        cells = {
            c: " / ".join(scores_lib.cell(scores, key) for key in keys)
            for c, scores in have.items()
        }
        columns.append(_Column(_heading(name), values, cells, form))
    return [column for column in columns if column.values]


def _heading(name: str) -> str:
    """What a table calls maps, by their `style/layer`."""
    spoken = name.removesuffix(f"/{IMAGE}").replace("_", " ")
    return f"no model, {spoken}" if name in simple_baselines.NAMES else f"ours, {spoken}"


def compared(config: ml_collections.ConfigDict) -> list[str]:
    """What of ours stands beside others, as `style/layer`: all set before any score is seen.

    The paper's maps are not calibrated, and averaged over layers, since it names none.
    """
    paper, own = Variant("paper", fused_layers(config)), variant_of(config.attention)
    return list(dict.fromkeys((paper.name, own.name, _BASELINE)))


def beside(config: ml_collections.ConfigDict) -> list[str]:
    """`compared`, and the baselines without a model beside which they have to be read."""
    return [*compared(config), *simple_baselines.NAMES]


def _which(config: ml_collections.ConfigDict) -> str:
    paper, own, *_ = compared(config)
    layers = ", ".join(fused_layers(config))
    note = f"{paper}: the paper's maps of {layers}, not calibrated (the mean of several). "
    return note if own == _BASELINE else f"{note}{own}: as config.attention sets. "


def _rows(columns: list[_Column], categories: Mapping[str, Scores]) -> list[list[str]]:
    """A header, one row per category, and the mean over the categories that all columns have."""
    columns = [column for column in columns if column.values]
    rows = [["category", *(column.heading for column in columns)]]
    rows += [[c, *(column.cells.get(c, "") for column in columns)] for c in categories]
    common = [c for c in categories if all(c in column.values for column in columns)]
    if len(common) > 1:
        means = (np.mean([column.values[c] for c in common], axis=0) for column in columns)
        cells = [column.form.format(*mean) for column, mean in zip(columns, means, strict=True)]
        rows.append([f"mean of {len(common)}", *cells])
    return rows


# By `data.name`: what is compared of its runs.
_TABLES = {
    "ucsd_ped1": (_table_3, _precision_by_layer),
    "mvtec_ad": (_table_4, _precision, _missed),
}
