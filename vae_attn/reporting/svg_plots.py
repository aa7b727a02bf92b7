"""Plots of a page as inline SVG: they take its colours, dark or light, and their words are text."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

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


def lines(
    heading: str,
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    caption: str,
    x_limit: float,
    x_label: str,
    y_label: str,
) -> Plot:
    """Curves from left to right.

    Args:
      heading: over the plot.
      curves: x, in [0, x_limit], and y, in [0, 1], of each, by what the legend says of it.
      caption: under the plot.
      x_limit: the right end of the axis.
      x_label: of the axis.
      y_label: of the axis.
    """
    drawn, described = [], []
    for number, (legend, (x, y)) in enumerate(curves.items()):
        points = zip(_x(np.array(x) / x_limit), _y(np.array(y)), strict=True)
        drawn.append((number, " ".join(f"{px:.1f},{py:.1f}" for px, py in points), legend))
        at = [np.interp(x_limit * share, x, y) for share in (0.1, 0.5)]
        described.append(
            f"{legend}: {at[0]:.2f} at {x_limit * 0.1:.2f} and {at[1]:.2f} at {x_limit * 0.5:.2f}"
        )
    shares = np.linspace(0, 1, 6)
    return Plot(
        heading=heading,
        caption=caption,
        description=f"{y_label} against {x_label}. {'; '.join(described)}.",
        x_label=x_label,
        y_label=y_label,
        x_ticks=[
            (x, f"{x_limit * share:.2g}") for x, share in zip(_x(shares), shares, strict=True)
        ],
        y_ticks=[(y, f"{share:.1f}") for y, share in zip(_y(shares), shares, strict=True)],
        lines=drawn,
    )


def histogram(
    heading: str,
    edges: Float[np.ndarray, "bins_and_1"],
    counts: Mapping[str, Int[np.ndarray, "bins"]],
    *,
    threshold: float | None,
    caption: str,
) -> Plot:
    """The share of each kind of images in each bin of a score, and a threshold.

    Args:
      heading: over the plot.
      edges: of the bins; the last bin is open above.
      counts: images of each kind in each bin, by the kind.
      threshold: of the score, marked by an upright line; None where there is none.
      caption: under the plot.
    """
    span = edges[-1] - edges[0]
    xs = _x((edges - edges[0]) / span)
    shares = {name: count / max(count.sum(), 1) for name, count in counts.items()}
    most = max(share.max() for share in shares.values()) or 1.0
    bars = []
    for number, (name, share) in enumerate(shares.items()):
        for n in np.flatnonzero(share):
            y = _y(share[n] / most)
            between = f"{edges[n]:.3g} or more" if n == len(share) - 1 else f"{edges[n]:.3g}"
            text = f"{counts[name][n]} {name} ({share[n]:.0%}) from {between}"
            bars.append((number, xs[n], y, xs[n + 1] - xs[n], _y(0.0) - y, text))
    if threshold is None:
        above, marker = "There is no threshold.", None
    else:
        found = ", ".join(
            f"some {count[edges[:-1] >= threshold].sum()} of {count.sum()} {name}"
            for name, count in counts.items()
        )
        above = f"Above the threshold {threshold:.3g} lie {found} images."
        place = float(_x(np.clip((threshold - edges[0]) / span, 0, 1)))
        marker = (place, f"threshold {threshold:.3g}")
    ticks = np.linspace(0, 1, 6)
    return Plot(
        heading=heading,
        caption=caption,
        description=f"Histogram of scores from {edges[0]:.3g} to {edges[-1]:.3g} and more. {above}",
        x_label="score (the last bar: all above)",
        y_label="share of images",
        x_ticks=[
            (x, f"{edges[0] + share * span:.3g}") for x, share in zip(_x(ticks), ticks, strict=True)
        ],
        y_ticks=[(_y(share), f"{share * most:.0%}") for share in (0.0, 0.5, 1.0)],
        bars=bars,
        marker=marker,
        names=list(counts),
    )


def _x(share: np.ndarray | float) -> np.ndarray | float:
    return _LEFT + share * (WIDTH - _LEFT - _RIGHT)


def _y(share: np.ndarray | float) -> np.ndarray | float:
    return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)
