"""How the page shows scores: curves and a histogram of the images, bars of the maps compared."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from vae_attn.experiments import scores as scores_lib
from vae_attn.experiments.anomaly.curves import Curve, Curves
from vae_attn.experiments.map_functions import IMAGE
from vae_attn.reporting import figures, svg_plots

_MOST_BARS = 12


def of_run(
    curves: Curves, image_threshold: float | None, *, note: str, seed: str
) -> list[svg_plots.Plot]:
    """A run's plots, of those curves that it has.

    Args:
      curves: of its scores.
      image_threshold: above which an image counts as abnormal; None where that is not decided.
      note: which images they are of, for the captions.
      seed: which of several seeds they are of, likewise.
    """
    plots = []
    if found := curves.histogram:
        counts = {"normal": np.array(found.normal), "abnormal": np.array(found.abnormal)}
        caption = "Each image's score, the highest value of its map: shares of the normal and of "
        caption += f"the abnormal images. {note}{seed}"
        plots.append(
            svg_plots.histogram(
                "Scores of images", np.array(found.edges), counts,
                threshold=image_threshold, caption=caption,
            )
        )  # fmt: skip
    if curves.roc:
        caption = "The share of the abnormal images that is found, against the share of the normal "
        caption += "ones that is flagged, by the map's maximum (reconstruction_error: by the "
        caption += f"likelihood). {note}{seed}"
        plots.append(
            svg_plots.lines(
                "Which images: ROC", _named(curves.roc, "AUROC"), caption=caption, x_limit=1.0,
                x_label="false alarms, share of normal images",
                y_label="found, share of abnormal images",
            )
        )  # fmt: skip
    if curves.pro:
        caption = "The mean share of each defect's region that is found, against the share of "
        caption += f"normal pixels that is flagged, up to the limit of AUPRO.{seed}"
        plots.append(
            svg_plots.lines(
                "Where: PRO", _named(curves.pro, "AUPRO"), caption=caption,
                x_limit=max(max(curve.x) for curve in curves.pro.values()),
                x_label="false alarms, share of normal pixels", y_label="per-region overlap",
            )
        )  # fmt: skip
    return plots


def _named(curves: Mapping[str, Curve], area: str) -> dict[str, tuple[list[float], list[float]]]:
    return {
        f"{name}, {area} {curve.area:.3f}": (curve.x, curve.y) for name, curve in curves.items()
    }


def bars(metrics: Mapping[str, float], metric: str, *, own: str, heading: str) -> Figure | None:
    """The rows that count of one metric: the run's own maps, the baselines, each style's best.

    Args:
      metrics: flat keys `style/layer/metric`; of several seeds also `<key>_std`.
      metric: which one.
      own: `style/layer` of the run's own maps.
      heading: of the figure, which goes on to say how many rows there are.

    Returns:
      The figure; None where no row has the metric.
    """
    values = {
        key.removesuffix(f"/{metric}"): value
        for key, value in metrics.items()
        if key.endswith(f"/{metric}") and np.isfinite(value)
    }
    if not values:
        return None
    best: dict[str, str] = {}  # row of each style
    for row in sorted(values, key=values.get, reverse=True):
        best.setdefault(row.partition("/")[0], row)
    baselines = [row for row in best.values() if row.partition("/")[2].split(".")[0] == IMAGE]
    counted = dict.fromkeys([*(row for row in [own] if row in values), *baselines, *best.values()])
    shown = list(counted)[:_MOST_BARS]
    left_out = f", {len(shown)} of {len(values)} rows" if len(shown) < len(values) else ""
    return figures.bars(
        {row: values[row] for row in shown},
        title=f"{heading}{left_out}",
        highlighted=own,
        baselines=baselines,
        deviations={row: metrics.get(f"{row}/{metric}{scores_lib.STD}", 0.0) for row in shown},
        chance=0.5,
    )
