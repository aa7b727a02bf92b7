"""Plots of a page as inline SVG: they take its colours, dark or light, and its words are text."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from vae_attn.experiments.anomaly.curves import Curve, Curves, Histogram

WIDTH, HEIGHT = 420, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 12, 12, 44


@dataclasses.dataclass(frozen=True)
class Plot:
    """What the template draws, in pixels of a frame of WIDTH x HEIGHT.

    Attributes:
      heading: over it.
      caption: under it.
      description: the same in words, for those who do not see it.
      x_label: of the axis.
      y_label: of the axis.
      x_ticks: place and text of each.
      y_ticks: place and text of each.
      lines: series number, points and name, for the legend.
      bars: series number, x, y, width, height and text of each.
      marker: an upright line: its place and its text.
      names: of the series that have bars, for the legend.
    """

    heading: str
    caption: str
    description: str
    x_label: str
    y_label: str
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    lines: Sequence[tuple[int, str, str]] = ()
    bars: Sequence[tuple[int, float, float, float, float, str]] = ()
    marker: tuple[float, str] | None = None
    names: Sequence[str] = ()
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM


def of_run(curves: Curves, image_threshold: float, *, note: str, seed: str) -> list[Plot]:
    """A run's plots, of those curves that it has.

    Args:
      curves: of its scores.
      image_threshold: above which an image counts as abnormal.
      note: which images they are of, for the captions.
      seed: which of several seeds they are of, likewise.
    """
    plots = []
    if curves.histogram:
        plots.append(_scores(curves.histogram, image_threshold, note + seed))
    if curves.roc:
        caption = "Share of the abnormal images found against that of normal ones accused, by the "
        caption += "map's maximum (reconstruction_error: by the likelihood). "
        caption += note + seed
        plots.append(
            _lines("Which images: ROC", curves.roc, "AUROC", caption, 1.0,
                   "false alarms, share of normal images", "found, share of abnormal images")
        )  # fmt: skip
    if curves.pro:
        caption = "Mean share of each defect's region found against the share of normal pixels "
        caption += f"accused, up to the limit of AUPRO.{seed}"
        limit = max(max(curve.x) for curve in curves.pro.values())
        plots.append(
            _lines("Where: PRO", curves.pro, "AUPRO", caption, limit,
                   "false alarms, share of normal pixels", "per-region overlap")
        )  # fmt: skip
    return plots


def _lines(
    heading: str,
    curves: dict[str, Curve],
    area: str,
    caption: str,
    limit: float,
    x_label: str,
    y_label: str,
) -> Plot:
    lines, described = [], []
    for number, (name, curve) in enumerate(curves.items()):
        points = zip(_x(np.array(curve.x) / limit), _y(np.array(curve.y)), strict=True)
        legend = f"{name}, {area} {curve.area:.3f}"
        lines.append((number, " ".join(f"{x:.1f},{y:.1f}" for x, y in points), legend))
        at = [np.interp(limit * share, curve.x, curve.y) for share in (0.1, 0.5)]
        described.append(
            f"{legend}: {at[0]:.2f} at {limit * 0.1:.2f} and {at[1]:.2f} at {limit * 0.5:.2f}"
        )
    shares = np.linspace(0, 1, 6)
    return Plot(
        heading=heading,
        caption=caption,
        description=f"{y_label} against {x_label}. {'; '.join(described)}.",
        x_label=x_label,
        y_label=y_label,
        x_ticks=[(x, f"{limit * share:.2g}") for x, share in zip(_x(shares), shares, strict=True)],
        y_ticks=[(y, f"{share:.1f}") for y, share in zip(_y(shares), shares, strict=True)],
        lines=lines,
    )


def _scores(histogram: Histogram, threshold: float, note: str) -> Plot:
    """The share of the normal and of the abnormal images in each bin."""
    edges = np.array(histogram.edges)
    span = edges[-1] - edges[0]
    xs = _x((edges - edges[0]) / span)
    counts = {"normal": np.array(histogram.normal), "abnormal": np.array(histogram.abnormal)}
    shares = {name: count / max(count.sum(), 1) for name, count in counts.items()}
    most = max(share.max() for share in shares.values()) or 1.0
    bars = []
    for number, (name, share) in enumerate(shares.items()):
        for n, value in enumerate(share):
            if value:
                y = _y(value / most)
                last = n == len(share) - 1
                between = f"{edges[n]:.3g} or more" if last else f"{edges[n]:.3g}"
                text = f"{counts[name][n]} {name} ({value:.0%}) from {between}"
                bars.append((number, xs[n], y, xs[n + 1] - xs[n], _y(0.0) - y, text))
    above = {name: count[edges[:-1] >= threshold].sum() for name, count in counts.items()}
    totals = {name: count.sum() for name, count in counts.items()}
    told = ", ".join(f"some {above[name]} of {totals[name]} {name}" for name in counts)
    place = np.clip((threshold - edges[0]) / span, 0, 1)
    ticks = np.linspace(0, 1, 6)
    return Plot(
        heading="Scores of images",
        caption="Each image's score, the highest value of its map: shares of the normal and of "
        f"the abnormal images. {note}",
        description=f"Histogram of scores from {edges[0]:.3g} to {edges[-1]:.3g} and more. Above "
        f"the threshold {threshold:.3g} lie {told} images.",
        x_label="score (the last bar: all above)",
        y_label="share of images",
        x_ticks=[
            (x, f"{edges[0] + share * span:.3g}") for x, share in zip(_x(ticks), ticks, strict=True)
        ],
        y_ticks=[(_y(share), f"{share * most:.0%}") for share in (0.0, 0.5, 1.0)],
        bars=bars,
        marker=(float(_x(place)), f"threshold {threshold:.3g}"),
        names=list(counts),
    )


def _x(share: np.ndarray | float) -> np.ndarray | float:
    return _LEFT + share * (WIDTH - _LEFT - _RIGHT)


def _y(share: np.ndarray | float) -> np.ndarray | float:
    return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)
