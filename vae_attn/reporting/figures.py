"""Figures of a run in one style: grids of pictures, panels of curves, bars; and maps in colour.

They are matplotlib's objects, drawn without a display and without `pyplot`.
"""

import contextlib
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from vae_attn import whole_files

STYLE: dict[str, Any] = {
    "figure.dpi": 120,
    "figure.titlesize": 10,
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.markersize": 3,
    "image.cmap": "gray",
    "image.interpolation": "nearest",
}
HIGHLIGHT, PLAIN, BASELINE = "#b5367a", "#dba9c6", "0.6"  # of what is shown among others
# Ordered in lightness, so that colour-blind readers can read it.
COLOUR_MAP = "inferno"
# Blue below 0, red above, equally dark: told apart with every kind of colour blindness.
SIGNED_COLOUR_MAP = "RdBu_r"

FULL_COLOUR_QUANTILE = 0.995  # of many maps, where their common scale of colours ends

Numbers = Sequence[int | float]
Curves = Mapping[str, tuple[Numbers, Numbers]]  # steps and values by metric

# Titles of panels; in each, metrics and the names that the legend gives them.
LOSSES = {
    "total loss": {
        "loss": "training, z sampled",
        "validation_loss": "validation, at z = mean",
    },
    "reconstruction": {"reconstruction": ""},
    "KL": {"kl": ""},
}

_OUTLINE = "#39d353"
_PANEL = (3.1, 2.8)  # inches
_FEW_POINTS = 60  # up to so many are marked
_LEGEND_ROWS = 24  # in one column of a legend beside the panels
_CAPTION_HEIGHT = 16  # pixels, of a line over tiles


def to_uint8(
    images: Float[np.ndarray, "n height width channels"]
    | UInt8[np.ndarray, "n height width channels"],
) -> UInt8[np.ndarray, "n height width channels"]:
    """Images in [0, 1] as they are stored; stored ones as they are."""
    if images.dtype == np.uint8:
        return images
    return np.rint(255 * np.clip(images, 0, 1)).astype(np.uint8)


def styled() -> contextlib.AbstractContextManager[None]:
    """What draws within it, or decorated with it, draws in `STYLE`."""
    return matplotlib.rc_context(STYLE)


@styled()
def save(figure: Figure, path: pathlib.Path) -> None:
    """Writes a figure, whole or not at all; the ending of the path gives the format."""
    with whole_files.writing(path) as temporary:
        figure.savefig(temporary)


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
    strength = np.clip(maps / scale, 0, 1)
    return _blend(0.8 * _grey(images), colours(strength), 0.85 * strength**0.7)


def signed_overlay(
    images: UInt8[np.ndarray, "n height width channels"],
    maps: Float[np.ndarray, "n height width"],
    scale: float,
) -> Float[np.ndarray, "n height width 3"]:
    """The images in pale grey, with signed maps over them: blue where negative, red where positive.

    The images are pale because the full colours are dark: both read on black and on white.

    Args:
      images: grey or RGB.
      maps: of either sign, such as attributions.
      scale: the absolute value that gets the full colour, of either sign; larger ones are cut.

    Returns:
      RGB in [0, 1].
    """
    share = np.clip(maps / scale, -1, 1)
    return _blend(0.6 + 0.4 * _grey(images), signed_colours(share), 0.9 * np.abs(share) ** 0.6)


def colours(strength: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape 3"]:
    """The colour of values in [0, 1], as RGB in [0, 1]."""
    return matplotlib.colormaps[COLOUR_MAP](strength)[..., :3]


def signed_colours(share: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape 3"]:
    """The colour of values in [-1, 1], as RGB in [0, 1]: white at 0."""
    return np.asarray(matplotlib.colormaps[SIGNED_COLOUR_MAP]((1 + share) / 2))[..., :3]


def _grey(images: np.ndarray) -> np.ndarray:
    return images.mean(axis=3, keepdims=True) / 255


def _blend(grey: np.ndarray, colour: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    opacity = opacity[..., None]
    return (1 - opacity) * np.broadcast_to(grey, colour.shape) + opacity * colour


@styled()
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
    masks, labels = masks or {}, labels or {}
    figure = Figure(figsize=(1.15 * len(columns) + 1.6, 1.15 * len(rows) + 1.0))
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for row, (name, images) in enumerate(rows.items()):
        for column, axis in enumerate(axes[row]):
            _show(axis, images[column])
            if name in masks and masks[name][column].any():
                axis.contour(masks[name][column], levels=[0.5], colors=_OUTLINE, linewidths=1.2)
            if row == 0:
                axis.set_title(columns[column], fontsize=8)
            if name in labels:
                axis.set_title(labels[name][column], fontsize=7, pad=2)
        axes[row, 0].set_ylabel(name, rotation=0, ha="right", va="center")
    figure.suptitle(title)
    figure.text(0.5, 0.005, note, fontsize=7, ha="center", va="bottom", color="0.35")
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    return figure


@styled()
def add_signed_scale(figure: Figure, scale: float, meanings: tuple[str, str]) -> None:
    """A colour bar for `signed_overlay`, between the pictures of a `grid` and its note.

    Args:
      figure: to add it to, which grows by it.
      scale: the absolute value that gets the full colour.
      meanings: of the least and of the largest value.
    """
    width, height = figure.get_size_inches()
    height += 0.35
    figure.set_size_inches(width, height)
    figure.tight_layout(rect=(0, 0.65 / height, 1, 1))
    axis = figure.add_axes((0.5 - 0.8 / width, 0.45 / height, 1.6 / width, 0.09 / height))
    axis.imshow(signed_colours(np.linspace(-1, 1, 255))[None], aspect="auto", extent=(-1, 1, 0, 1))
    axis.set(yticks=[], xticks=[-1, 0, 1])
    axis.set_xticklabels([f"≤ {-scale:.2g}", "0", f"≥ {scale:.2g}"], fontsize=6)
    axis.tick_params(length=2, pad=1)
    for place, meaning, side in zip((-1.1, 1.1), meanings, ("right", "left"), strict=True):
        axis.text(place, 0.5, meaning, fontsize=7, ha=side, va="center", color="0.35")


def _show(axis: Axes, image: np.ndarray) -> None:
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    grey = image.squeeze(-1) if image.shape[-1] == 1 else image
    axis.imshow(grey, vmin=0, vmax=255 if image.dtype == np.uint8 else 1)


def tiled(
    pictures: UInt8[np.ndarray, "rows columns height width channels"],
    *,
    captions: Sequence[str] = (),
    gap: int = 0,
) -> Image.Image:
    """A grid of pictures, pixel by pixel: for what is no figure.

    Args:
      pictures: grey or RGB.
      captions: over each column, perhaps of several lines; none for no line of them.
      gap: white pixels between the pictures and around them.

    Returns:
      The picture, grey or RGB like its tiles.
    """
    num_rows, num_columns, height, width, channels = pictures.shape
    top = _CAPTION_HEIGHT * max((1 + caption.count("\n") for caption in captions), default=0)
    size = (num_columns * (width + gap) + gap, num_rows * (height + gap) + gap + top)
    made = Image.new("L" if channels == 1 else "RGB", size, "white")
    draw = ImageDraw.Draw(made)
    for column in range(num_columns):
        left = gap + column * (width + gap)
        if captions:
            middle = (left + width / 2, 2)
            draw.text(middle, captions[column], fill="black", anchor="ma", align="center")
        for row in range(num_rows):
            tile = pictures[row, column].squeeze(-1) if channels == 1 else pictures[row, column]
            tile = Image.fromarray(np.ascontiguousarray(tile))
            made.paste(tile, (left, top + gap + row * (height + gap)))
    return made


class Line(NamedTuple):
    """A curve of a panel.

    Attributes:
      x: of its points.
      y: of its points.
      label: for the legend; "" for none.
      stroke: matplotlib's: "--" for dashes, "o" for points alone.
      colour: matplotlib's; None for the next one.
      pale: curves drawn pale beside it, such as those of single seeds.
    """

    x: Numbers
    y: Numbers
    label: str = ""
    stroke: str = "-"
    colour: str | None = None
    pale: Sequence[tuple[Numbers, Numbers]] = ()


@styled()
def line_panels(
    panels: Mapping[str, Sequence[Line]],
    *,
    x_label: str,
    y_label: str = "",
    size: tuple[float, float] = _PANEL,
    upright: float | None = None,
    rows: int = 1,
    legend_beside: bool = False,
) -> Figure:
    """Curves in panels side by side; a legend where a panel's names are not yet explained.

    Args:
      panels: the curves by the panels' titles; an empty title is left out.
      x_label: of all panels.
      y_label: of all panels.
      size: of a panel, in inches.
      upright: where to draw an upright dotted line, if anywhere.
      rows: of panels; those of the last one are as many as in the others.
      legend_beside: one legend for all, on the right: for many curves.

    Returns:
      The figure.
    """
    width, height = size
    abreast = len(panels) // rows
    figure = Figure(figsize=(max(width * abreast, 4), height * rows), layout="constrained")
    explained: dict[str, object] = {}
    axes = figure.subplots(rows, abreast, squeeze=False).ravel()
    for axis, (title, lines) in zip(axes, panels.items(), strict=True):
        drawn = {line.label: _draw(axis, line) for line in lines}
        if upright is not None:
            axis.axvline(upright, color="0.4", linewidth=0.8, linestyle=":")
        axis.set(title=title, xlabel=x_label, ylabel=y_label)
        named = {label: handle for label, handle in drawn.items() if label}
        if named.keys() - explained.keys() and not legend_beside:
            axis.legend(named.values(), named.keys())
        explained = named | explained
    if legend_beside:
        columns = -(-len(explained) // _LEGEND_ROWS)
        figure.set_figwidth(width * abreast + 2.5 * columns)
        figure.legend(
            explained.values(), explained.keys(), loc="outside right upper", ncols=columns
        )
    figure.draw_without_rendering()  # here, where ticks and labels take the style
    return figure


def _draw(axis: Axes, line: Line) -> object:
    (drawn,) = axis.plot(line.x, line.y, line.stroke, color=line.colour)
    if len(line.x) < _FEW_POINTS:
        drawn.set_marker("o")
    if line.stroke == "o":
        drawn.set_markersize(2 * drawn.get_markersize())
    for x, y in line.pale:
        axis.plot(x, y, color=drawn.get_color(), alpha=0.3, linewidth=0.8)
    return drawn


def curves(
    metrics: Curves,
    panels: Mapping[str, Mapping[str, str]] = LOSSES,
    *,
    y_label: str = "nats per image",
) -> Figure:
    """Metrics of a training against its steps.

    Args:
      metrics: steps and values by name; of several seeds their mean, and `<name>/seed_<seed>`.
      panels: names of the metrics in each panel and what the legend calls them, by the panel's
        title; panels of which there is no metric are left out.
      y_label: of all panels.

    Returns:
      The figure.
    """
    present = {
        title: [
            Line(*metrics[name], label=label, pale=_of_seeds(metrics, name))
            for name, label in names.items()
            if name in metrics
        ]
        for title, names in panels.items()
    }
    present = {title: lines for title, lines in present.items() if lines}
    return line_panels(present, x_label="step", y_label=y_label)


def _of_seeds(metrics: Curves, name: str) -> list[tuple[Numbers, Numbers]]:
    return [curve for other, curve in metrics.items() if other.startswith(f"{name}/")]


@styled()
def bars(
    values: Mapping[str, float],
    *,
    title: str,
    highlighted: str = "",
    baselines: Collection[str] = (),
    deviations: Mapping[str, float] | None = None,
    chance: float | None = None,
) -> Figure:
    """Scores in [0, 1] as bars, the best on top.

    Args:
      values: of each bar, by its name.
      title: of the figure.
      highlighted: the name of the bar in the strong colour.
      baselines: the names of the grey bars.
      deviations: half the length of a line over a bar, for the names given.
      chance: drawn as a line; None for none.

    Returns:
      The figure.
    """
    ordered = sorted(values, key=values.get)
    colour = {highlighted: HIGHLIGHT} | dict.fromkeys(baselines, BASELINE)
    figure = Figure(figsize=(6, 0.28 * len(ordered) + 1.0), layout="constrained")
    axis = figure.subplots()
    axis.grid(visible=False)
    drawn = axis.barh(
        ordered,
        [values[name] for name in ordered],
        color=[colour.get(name, PLAIN) for name in ordered],
    )
    for row, name in enumerate(ordered):
        if deviation := (deviations or {}).get(name):
            axis.errorbar(values[name], row, xerr=deviation, color="0.2", linewidth=1)
    axis.bar_label(drawn, fmt="%.3f", fontsize=7, padding=2)
    if chance is not None:
        axis.axvline(chance, color="0.2", linewidth=0.8, linestyle=":")
    axis.set(xlim=(0, 1.08), ylim=(-0.6, len(ordered) - 0.4), title=title)
    axis.spines[["top", "right"]].set_visible(False)
    figure.draw_without_rendering()
    return figure
