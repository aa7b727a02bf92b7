"""Figures of a run, drawn with matplotlib's objects: no global state, no display."""

from collections.abc import Mapping

import matplotlib
import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

COLOUR_MAP = "inferno"  # ordered in lightness, so that colour-blind readers can read it


def overlay(
    images: UInt8[np.ndarray, "n height width channels"],
    maps: Float[np.ndarray, "n height width"],
    scale: float,
) -> Float[np.ndarray, "n height width 3"]:
    """The images in grey, with the maps in colour over them.

    Args:
      images: grey or RGB.
      maps: anomaly maps, from 0.
      scale: the value that gets the full colour. One for all images, so that normal images
        look calm; larger values are cut.

    Returns:
      RGB in [0, 1].
    """
    grey = images.mean(axis=3, keepdims=True) / 255
    strength = np.clip(maps / scale, 0, 1)
    colour = colours(strength)
    opacity = 0.85 * strength[..., None] ** 0.7
    return (1 - opacity) * (0.8 * np.broadcast_to(grey, colour.shape)) + opacity * colour


def colours(strength: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape 3"]:
    """The colour of values in [0, 1], as RGB in [0, 1]."""
    return matplotlib.colormaps[COLOUR_MAP](strength)[..., :3]


def grid(
    rows: dict[str, np.ndarray],
    columns: list[str],
    *,
    title: str,
    masks: dict[str, Bool[np.ndarray, "n height width"]] | None = None,
    labels: dict[str, list[str]] | None = None,
    note: str = "",
) -> Figure:
    """A labelled grid of images.

    Args:
      rows: heading of each row, and its images: grey (n, h, w, 1) or RGB (n, h, w, 3), 0 to 255
        as uint8 or 0 to 1 as floats.
      columns: heading of each column.
      title: of the figure.
      masks: for the rows named, regions to outline.
      labels: for the rows named, small print over each image.
      note: small print under the grid.

    Returns:
      The figure.
    """
    num_columns = len(columns)
    figure = Figure(figsize=(1.15 * num_columns + 1.6, 1.15 * len(rows) + 1.0), dpi=120)
    axes = figure.subplots(len(rows), num_columns, squeeze=False)
    for row, (name, images) in enumerate(rows.items()):
        for column in range(num_columns):
            axis = axes[row, column]
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_visible(False)
            limit = 255 if images.dtype == np.uint8 else 1
            image = images[column].squeeze(-1) if images.shape[-1] == 1 else images[column]
            axis.imshow(image, cmap="gray", vmin=0, vmax=limit, interpolation="nearest")
            if masks and name in masks and masks[name][column].any():
                axis.contour(masks[name][column], levels=[0.5], colors="#39d353", linewidths=1.2)
            if row == 0:
                axis.set_title(columns[column], fontsize=8)
            if labels and name in labels:
                axis.set_title(labels[name][column], fontsize=7, pad=2)
        axes[row, 0].set_ylabel(name, fontsize=8, rotation=0, ha="right", va="center")
    figure.suptitle(title, fontsize=10)
    figure.text(0.5, 0.005, note, fontsize=7, ha="center", va="bottom", color="0.35")
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    return figure


def curves(
    metrics: dict[str, tuple[list[int], list[float]]], panels: Mapping[str, tuple[str, ...]]
) -> Figure:
    """Metrics against the steps.

    Args:
      metrics: steps and values by name.
      panels: names of the metrics in each panel, by its title; panels without any are left out.
    """
    present = {
        title: [name for name in names if name in metrics] for title, names in panels.items()
    }
    present = {title: names for title, names in present.items() if names}
    figure = Figure(figsize=(3.1 * len(present), 2.8), dpi=120)
    axes = figure.subplots(1, len(present), squeeze=False)[0]
    for axis, (title, names) in zip(axes, present.items(), strict=True):
        for name in names:
            steps, values = metrics[name]
            few = len(steps) < 60
            (line,) = axis.plot(
                steps, values, marker="o" if few else None, markersize=3, label=name
            )
            seed_curves(line, metrics, name)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
        if len(names) > 1:
            axis.legend(fontsize=6, frameon=False)
    figure.tight_layout()
    return figure


def seed_curves(line: Line2D, metrics: dict[str, tuple[list[int], list[float]]], name: str) -> None:
    """Beside a metric's curve each seed's, pale, where there are several (`<name>/seed_<seed>`)."""
    for other, (steps, values) in metrics.items():
        if other.startswith(f"{name}/"):
            line.axes.plot(steps, values, color=line.get_color(), alpha=0.3, linewidth=0.8)


def bars(metrics: dict[str, float], metric: str, *, title: str, chance: float | None) -> Figure:
    """One metric over all styles and layers, best on top; baselines in grey.

    Args:
      metrics: flat keys `style/layer/metric`; `<key>_std`, where there is one, is the length of a
        line each way.
      metric: which one.
      title: of the figure.
      chance: value of a coin, drawn as a line; None for none.

    Returns:
      The figure.
    """
    values = {
        key.removesuffix(f"/{metric}"): value
        for key, value in metrics.items()
        if key.endswith(f"/{metric}") and np.isfinite(value)
    }
    ordered = sorted(values, key=values.get)
    figure = Figure(figsize=(6, 0.28 * len(ordered) + 1.0), dpi=120)
    axis = figure.subplots()
    colours = ["0.6" if name.endswith("/image") else "#b5367a" for name in ordered]
    drawn = axis.barh(ordered, [values[name] for name in ordered], color=colours)
    for row, name in enumerate(ordered):
        if deviation := metrics.get(f"{name}/{metric}_std"):
            axis.errorbar(values[name], row, xerr=deviation, color="0.2", linewidth=1)
    axis.bar_label(drawn, fmt="%.3f", fontsize=7, padding=2)
    if chance is not None:
        axis.axvline(chance, color="0.2", linewidth=0.8, linestyle=":")
    axis.set_xlim(0, 1.08)
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(title, fontsize=9)
    figure.tight_layout()
    return figure
